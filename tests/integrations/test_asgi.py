# SPDX-License-Identifier: Apache-2.0
"""A FastAPI application that knows nothing of upseal, under uvicorn, behind the middleware."""

import asyncio
import json
import subprocess
import sys
import threading

import pytest
from http_support import (
    KEY,
    LONG,
    OTHER,
    ROOT,
    Proxy,
    Unplugged,
    ask,
    context,
    damages,
    digest,
    envelope,
    example,
    fastapi_app,
    growth,
    serve_asgi,
    upload,
)

from upseal import Opener, Sealer
from upseal.integrations.asgi import OpeningMiddleware
from upseal.integrations.http.bodies import Bound, Problem, codings, target_of

SEALED = {"Content_Encoding": "upseal"}


@pytest.fixture(scope="module")
def app():
    return fastapi_app()


@pytest.fixture(scope="module")
def server(app):
    with serve_asgi(OpeningMiddleware(app, Opener([KEY]), clear=["/hello", "/items/"])) as address:
        yield address


@pytest.mark.parametrize("body", [b"", b"x", b"r" * 70_000])
def test_envelope(server, app, body):
    answer = ask(server, "POST", "/raw", envelope(body, "POST", b"/raw"), **SEALED)
    assert answer.status == 200
    assert json.loads(answer.body) == {"length": len(body), "sha256": digest(body)}
    mark = app.mark
    assert (mark.sealed, mark.kind, mark.key_id) == (True, "envelope", KEY.public_key.key_id)
    headers = app.calls[-1][2]
    assert "content-encoding" not in headers
    assert headers["content-length"] == str(len(body))


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 2 * 16384, 19 * 16384, len(LONG)])
@pytest.mark.parametrize("chunked", [False, True])
def test_upload(server, app, size, chunked):
    body = LONG[:size].ljust(size, b".")
    sealed = upload(body, "PUT", b"/stream")
    answer = ask(server, "PUT", "/stream", sealed, chunked=chunked, **SEALED)
    assert answer.status == 200
    assert json.loads(answer.body) == {"length": len(body), "sha256": digest(body)}
    assert app.mark.kind == "upload"
    assert app.calls[-1][2].get("content-length") == (None if chunked else str(size))


def test_json_and_inner_coding(server, app):
    said = json.dumps({"a": 1}).encode()
    sealed = envelope(said, "POST", b"/items", b"x=1&y=%20", kind=b"application/json")
    answer = ask(
        server, "POST", "/items?x=1&y=%20", sealed, Content_Type="application/json", **SEALED
    )
    assert json.loads(answer.body) == {"got": {"a": 1}}
    sealed = envelope(b"zz", "POST", b"/raw", coding=b"gzip")
    answer = ask(server, "POST", "/raw", sealed, Content_Encoding="GZIP,  upseal")
    assert answer.status == 200
    assert app.calls[-1][2]["content-encoding"] == "gzip"


def test_path_is_decoded_once(server):
    """Not found there, but opened: another spelling of the same path opens as well."""
    sealed = envelope(b"x", "POST", "/ä b".encode())
    assert ask(server, "POST", "/%C3%A4%20b", sealed, **SEALED).status == 404
    assert ask(server, "POST", "/%c3%a4%20b", sealed, **SEALED).status == 404
    assert ask(server, "POST", "/%25c3%a4%20b", sealed, **SEALED).status == 400


@pytest.mark.parametrize("chunked", [False, True])
def test_all_damages_look_alike(server, chunked):
    seen = {
        name: ask(server, "POST", "/raw", body, chunked=chunked, **SEALED).seen
        for name, body in damages()
    }
    assert set(seen.values()) == {
        (400, "malformed", "application/problem+json", next(iter(seen.values()))[3])
    }
    assert b"cannot be opened" in next(iter(seen.values()))[3]


def test_application_is_not_called_for_damaged_envelopes(server, app):
    before = len(app.calls)
    assert ask(server, "POST", "/raw", envelope(b"b", "POST", b"/other"), **SEALED).status == 400
    assert len(app.calls) == before


def test_spliced_to_another_request(server):
    """A relay has recorded a request, and sends its body elsewhere."""
    with Proxy(lambda: server) as proxy:
        address = "127.0.0.1", int(proxy.url.rpartition(":")[2])
        sealed = envelope(b"transfer", "POST", b"/raw")
        assert ask(address, "POST", "/raw", sealed, **SEALED).status == 200
    assert ask(server, "POST", "/raw", sealed, **SEALED).status == 200  # replayed as it was
    assert ask(server, "PUT", "/raw", sealed, **SEALED).status == 400
    assert ask(server, "DELETE", "/raw", sealed, **SEALED).status == 400
    assert ask(server, "POST", "/other", sealed, **SEALED).status == 400
    assert ask(server, "POST", "/raw?admin=1", sealed, **SEALED).status == 400
    assert ask(server, "POST", "/raw", sealed, Content_Type="text/html", **SEALED).status == 400


def test_connection_cut_is_no_end():
    """Also for an application that takes every message for a body, and reads the naive way."""
    ends = []

    async def naive(scope, receive, send):
        body, more = b"", True
        try:
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
        except Exception as error:
            ends.append(type(error).__name__)
            raise
        ends.append(len(body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

    sealed = upload(LONG, "POST", b"/x")
    with serve_asgi(OpeningMiddleware(naive, Opener([KEY]))) as address:
        assert ask(address, "POST", "/x", sealed, **SEALED).body == b"fine"
        with pytest.raises(ConnectionError):
            ask(address, "POST", "/x", sealed, cut=len(sealed) - 100, **SEALED)
        assert ask(address, "POST", "/x", sealed[:-100], **SEALED).status == 400
        assert ask(address, "POST", "/x", sealed[:-100], chunked=True, **SEALED).status == 400
    assert ends == [len(LONG), "OpenError", "OpenError", "OpenError"]


def test_counting_application_never_has_all_of_a_cut_upload():
    """One that stops at Content-Length: what was cut must not add up to a whole.

    Called by hand, since it matters which bytes come together.
    """
    got = []

    async def counting(scope, receive, send):
        length = int(dict(scope["headers"])[b"content-length"])
        size = 0
        while size < length:
            size += len((await receive())["body"])
        got.append((size, length))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def run(body, at):
        pieces, sent = [body[:at], body[at:]], []

        async def receive():
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

        async def send(message):
            sent.append(message.get("status"))

        headers = [(b"content-encoding", b"upseal"), (b"content-length", b"%d" % len(body))]
        headers.append((b"content-type", b"application/octet-stream"))
        scope = {"type": "http", "method": "POST", "path": "/x", "headers": headers}
        asyncio.run(OpeningMiddleware(counting, Opener([KEY]))(scope, receive, send))
        return sent[0]

    sealed = upload(LONG, "POST", b"/x")
    front = len(sealed) - len(LONG) - 19 * 16
    for chunks in range(1, 6):
        cut = sealed[: front + 16400 * chunks] + bytes(16)
        for late in (16, 10, 1, 17, 16416):
            assert run(cut, len(cut) - late) == 400
    assert got == []
    assert run(sealed, len(sealed) - 16) == 200
    assert got == [(len(LONG), len(LONG))]


def test_swallowed_error_is_answered_all_the_same():
    async def careless(scope, receive, send):
        try:
            while (await receive()).get("more_body"):
                pass
        except Exception:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"stored"})

    sealed = upload(LONG, "POST", b"/x")
    with serve_asgi(OpeningMiddleware(careless, Opener([KEY]))) as address:
        answer = ask(address, "POST", "/x", sealed[:-1], **SEALED)
        assert (answer.status, b"stored" in answer.body) == (400, False)


@pytest.mark.parametrize("sealed", [envelope(b"b", "POST", b"/raw"), upload(LONG, "POST", b"/raw")])
def test_a_key_that_is_away_is_no_damage(sealed):
    with serve_asgi(OpeningMiddleware(fastapi_app(), Opener([Unplugged()]))) as address:
        answer = ask(address, "POST", "/raw", sealed, **SEALED)
    assert (answer.status, answer.headers["upseal-problem"]) == (503, "busy")
    assert int(answer.headers["retry-after"]) > 0


def test_stale_key(server, app):
    before = len(app.calls)
    for sealed in (
        envelope(b"b", "POST", b"/raw", key=OTHER),
        upload(LONG * 10, "POST", b"/raw", key=OTHER),
    ):
        answer = ask(server, "POST", "/raw", sealed, **SEALED)
        problem = json.loads(answer.body)
        assert (answer.status, problem["status"]) == (409, 409)
        assert problem["type"] == "https://upseal.invalid/problems/stale-key"
        assert answer.headers["upseal-problem"] == "stale-key"
        assert answer.headers["content-type"] == "application/problem+json"
    assert len(app.calls) == before


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_clear_bodies_are_refused(server, app, method):
    before = len(app.calls)
    for answer in (
        ask(server, method, "/raw", b"clear"),
        ask(server, method, "/raw", b"clear", chunked=True),
        ask(server, method, "/raw", b"clear", Content_Encoding="gzip"),
        ask(server, method, "/hello/../raw", b"clear"),
        ask(server, method, "/hello//raw", b"clear"),
        ask(server, method, "/helloraw", b"clear"),
    ):
        assert (answer.status, answer.headers["upseal-problem"]) == (422, "clear-not-accepted")
    assert len(app.calls) == before


@pytest.mark.parametrize("version", ["1.1", "2", "3"])
def test_a_length_of_nothing_hides_no_clear_body(version):
    """h11 lets both lengths pass, and the chunks count; HTTP/3 servers may not compare at all."""
    calls, sent = [], []

    async def app(scope, receive, send):
        calls.append(await receive())

    async def receive():
        return {"type": "http.request", "body": b"clear", "more_body": False}

    async def send(message):
        sent.append(message)

    headers = [(b"content-length", b"0"), (b"transfer-encoding", b"chunked")]
    scope = {
        "type": "http",
        "http_version": version,
        "method": "DELETE",
        "path": "/raw",
        "query_string": b"",
        "headers": headers if version == "1.1" else headers[:1],
    }
    asyncio.run(OpeningMiddleware(app, Opener([KEY]))(scope, receive, send))
    assert (calls, sent[0]["status"]) == ([], 422)


def test_a_monstrous_length_is_an_answer():
    sent = []

    async def app(scope, receive, send):
        raise AssertionError

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b""}
    scope["headers"] = [(b"content-length", b"9" * 5000)]
    asyncio.run(OpeningMiddleware(app, Opener([KEY]))(scope, receive, send))
    assert sent[0]["status"] == 422


def test_empty_clear_bodies(server, app):
    """A body left out is not a body that was empty."""
    for method in ("POST", "PUT", "PATCH"):
        assert ask(server, method, "/raw").status == 422
    assert ask(server, "DELETE", "/raw").status == 200
    assert app.mark.sealed is False


def test_clear_where_it_may_be(server, app):
    assert ask(server, "GET", "/hello").status == 200
    said = b'{"a":1}'
    answer = ask(server, "POST", "/items", said, Content_Type="application/json")
    assert answer.status == 422  # only what is below "/items/"
    assert ask(server, "POST", "/hello", b"clear").status == 405  # let through: a GET's address
    assert app.mark.sealed is False


def test_coding_must_be_the_last(server):
    for coding in ("upseal, gzip", "upseal, upseal"):
        answer = ask(server, "POST", "/raw", b"x", Content_Encoding=coding)
        assert (answer.status, answer.headers["upseal-problem"]) == (415, "media-type")


def test_limits(app):
    opener = Opener([KEY])
    guarded = OpeningMiddleware(app, opener, envelope_max=1000, upload_max=100_000)
    with serve_asgi(guarded) as address:
        fits = envelope(b"x" * 800, "POST", b"/raw")
        assert ask(address, "POST", "/raw", fits, **SEALED).status == 200
        for body in (
            envelope(b"x" * 1000, "POST", b"/raw"),
            envelope(b"x" * 90_000, "POST", b"/raw"),
            upload(b"x" * 100_000, "POST", b"/raw"),
        ):
            for chunked in (False, True):
                answer = ask(address, "POST", "/raw", body, chunked=chunked, **SEALED)
                assert answer.status == 413
        assert ask(address, "POST", "/raw", upload(b"x" * 90_000, "POST", b"/raw"), **SEALED)


def test_context_of_your_own(app):
    """A proxy in front strips /api; one header is bound as well."""

    def mine(bound):
        return b"mine/api" + bound.path + (bound.header("x-account") or "").encode()

    with serve_asgi(OpeningMiddleware(app, Opener([KEY]), context=mine)) as address:
        sealed = Sealer([KEY.public_key]).seal(b"b", b"mine/api/raw42")
        assert ask(address, "POST", "/raw", sealed, X_Account="42", **SEALED).status == 200
        assert ask(address, "POST", "/raw", sealed, X_Account="43", **SEALED).status == 400


def test_added_the_way_of_fastapi():
    app = fastapi_app()
    app.add_middleware(OpeningMiddleware, opener=Opener([KEY]), inline_max=0)
    with serve_asgi(app) as address:
        for sealed in (envelope(LONG, "POST", b"/raw"), upload(LONG, "POST", b"/raw")):
            assert ask(address, "POST", "/raw", sealed, **SEALED).status == 200
            assert app.mark.sealed
        assert ask(address, "POST", "/raw", LONG).status == 422


def test_what_is_refused_when_made():
    with pytest.raises(TypeError, match="Opener"):
        OpeningMiddleware(None, KEY)
    with pytest.raises(TypeError, match="list"):
        OpeningMiddleware(None, Opener([KEY]), clear="/x")
    with pytest.raises(ValueError, match="slash"):
        OpeningMiddleware(None, Opener([KEY]), clear=["x"])
    with pytest.raises(ValueError, match="limit"):
        OpeningMiddleware(None, Opener([KEY]), upload_max=0)


def test_body_that_no_header_announces():
    """As HTTP/2 has it: no length, no transfer coding, and a body."""
    calls = []

    async def app(scope, receive, send):
        calls.append((await receive(), await receive()))

    def run(*messages, path="/x"):
        waiting, sent = list(messages), []

        async def receive():
            return waiting.pop(0)

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "http_version": "2", "method": "GET", "path": path, "headers": []}
        guarded = OpeningMiddleware(app, Opener([KEY]), clear=["/clear"])
        asyncio.run(guarded(scope, receive, send))
        return sent[0]["status"] if sent else None

    gone = {"type": "http.disconnect"}
    empty = {"type": "http.request", "body": b"", "more_body": False}
    smuggled = {"type": "http.request", "body": b"clear", "more_body": False}
    assert run(smuggled, gone) == 422
    assert run({"type": "http.request", "body": b"", "more_body": True}, smuggled, gone) == 422
    assert calls == []
    assert run(empty, gone) is None
    assert run(smuggled, gone, path="/clear") is None
    assert calls == [(empty, gone), (smuggled, gone)]


def test_problems_of_the_application_are_its_own():
    """Also if they are of the class that the middleware uses."""

    async def app(scope, receive, send):
        await receive()
        raise Problem("busy")

    waiting = []

    async def receive():
        return {"type": "http.request", "body": waiting.pop()}

    for method, headers, body in (
        ("GET", [], b""),
        ("POST", [(b"content-encoding", b"upseal")], envelope(b"", "POST", b"/x", kind=b"")),
        ("POST", [(b"content-encoding", b"upseal")], upload(b"", "POST", b"/x", kind=b"")),
    ):
        scope = {"type": "http", "method": method, "path": "/x", "headers": headers}
        waiting.append(body)
        with pytest.raises(Problem, match="busy"):
            asyncio.run(OpeningMiddleware(app, Opener([KEY]))(scope, receive, None))


def test_web_sockets_and_lifespans_pass():
    passed = []

    async def app(scope, receive, send):
        passed.append(scope)

    guarded = OpeningMiddleware(app, Opener([KEY]))
    for kind in ("websocket", "lifespan"):
        asyncio.run(guarded({"type": kind}, None, None))
    assert passed == [{"type": "websocket"}, {"type": "lifespan"}]


def test_memory_is_flat_for_a_large_upload():
    assert growth("asgi", "httpx") < 24 << 10  # KiB, of an upload of 64 MiB


def test_example():
    said = example("asgi/app.py")
    assert "'sealed': True" in said
    assert "clear-not-accepted" in said


@pytest.mark.parametrize(("inline_max", "size", "elsewhere"), [
    (1 << 16, 100, False), (1 << 16, 1 << 20, True), (0, 100, True),
])  # fmt: skip
def test_long_work_is_not_the_event_loops(inline_max, size, elsewhere):
    threads = {}

    class Key:
        """As one whose unwrapping takes its time."""

        suite, key_id = KEY.suite, KEY.key_id

        def unwrap(self, wrapped):
            threads["unwrap"] = threading.get_ident()
            return KEY.unwrap(wrapped)

    async def app(scope, receive, send):
        threads["loop"] = threading.get_ident()
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with serve_asgi(OpeningMiddleware(app, Opener([Key()]), inline_max=inline_max)) as address:
        sealed = envelope(b"x" * size, "POST", b"/x")
        assert ask(address, "POST", "/x", sealed, **SEALED).status == 200
    assert (threads["unwrap"] != threads["loop"]) is elsewhere


def test_context_of_the_page():
    """The worked example in docs/integrations/http.md."""
    page = (ROOT / "docs/integrations/http.md").read_text()
    example = page.partition("75 70 73 65")
    shown = bytes.fromhex(example[1] + example[2].partition("```")[0])
    query = b"day=2026-11-23&x=%20"
    bound = "POST", "/reports/ä".encode(), query, b"application/json", b"gzip"
    assert Bound(*bound).context() == context(*bound) == shown
    assert target_of(b"/reports/%C3%A4?day=2026-11-23&x=%20") == bound[1:3]
    assert codings(["GZIP,upseal"]) == (True, "gzip")


def test_what_each_file_needs():
    """The servers' need the core alone; what is missing elsewhere is named with its extra."""
    code = """
import sys
class Nothing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in "httpx requests joserfc starlette anyio urllib3".split():
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
import upseal.integrations.asgi, upseal.integrations.wsgi
for name in ("httpx", "requests", "http.manifest"):
    try:
        __import__("upseal.integrations." + name)
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.partition("pip install ")[2] for line in done.stdout.splitlines()] == [
        "'upseal[httpx]'",
        "'upseal[requests]'",
        "'upseal[fleet]'",
    ]

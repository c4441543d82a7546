# SPDX-License-Identifier: Apache-2.0
"""A Flask application that knows nothing of upseal, under waitress and werkzeug's server."""

import io
import json
from contextlib import suppress

import pytest
from http_support import (
    KEY,
    LONG,
    OTHER,
    Unplugged,
    ask,
    damages,
    digest,
    envelope,
    example,
    flask_app,
    growth,
    serve_waitress,
    serve_werkzeug,
    upload,
)

from upseal import Opener, OpenError, Sealer
from upseal.integrations.http.bodies import Problem
from upseal.integrations.wsgi import OpeningMiddleware

SEALED = {"Content_Encoding": "upseal"}
SERVERS = [serve_waitress, serve_werkzeug]


@pytest.fixture(scope="module")
def app():
    return flask_app()


@pytest.fixture(scope="module", params=SERVERS)
def server(request, app):
    with request.param(OpeningMiddleware(app, Opener([KEY]), clear=["/hello"])) as address:
        yield address


@pytest.fixture(scope="module")
def streaming(app):
    with serve_werkzeug(OpeningMiddleware(app, Opener([KEY]))) as address:
        yield address


@pytest.mark.parametrize("body", [b"", b"x", b"r" * 70_000])
def test_envelope(server, app, body):
    answer = ask(server, "POST", "/raw", envelope(body, "POST", b"/raw"), **SEALED)
    assert answer.status == 200
    assert json.loads(answer.body) == {"length": len(body), "sha256": digest(body)}
    mark = app.mark
    assert (mark.sealed, mark.kind, mark.key_id) == (True, "envelope", KEY.public_key.key_id)
    headers = app.calls[-1][2]
    assert "Content-Encoding" not in headers
    assert headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 2 * 16384, 19 * 16384, len(LONG)])
@pytest.mark.parametrize("chunked", [False, True])
def test_upload(server, app, size, chunked):
    body = LONG[:size].ljust(size, b".")
    sealed = upload(body, "PUT", b"/stream")
    answer = ask(server, "PUT", "/stream", sealed, chunked=chunked, **SEALED)
    assert answer.status == 200
    assert json.loads(answer.body) == {"length": len(body), "sha256": digest(body)}
    assert app.mark.kind == "upload"


def test_json_form_and_inner_coding(server, app):
    said = json.dumps({"a": 1}).encode()
    sealed = envelope(said, "POST", b"/items", b"x=1&y=%20", kind=b"application/json")
    answer = ask(
        server, "POST", "/items?x=1&y=%20", sealed, Content_Type="application/json", **SEALED
    )
    assert json.loads(answer.body) == {"got": {"a": 1}}
    kind = "multipart/form-data; boundary=cut"
    form = (
        b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
        + LONG
        + b"\r\n--cut--\r\n"
    )
    sealed = upload(form, "POST", b"/form", kind=kind.encode())
    answer = ask(server, "POST", "/form", sealed, Content_Type=kind, **SEALED)
    assert json.loads(answer.body) == {"name": "a.bin", "length": len(LONG), "sha256": digest(LONG)}
    sealed = envelope(b"zz", "POST", b"/raw", coding=b"gzip")
    assert ask(server, "POST", "/raw", sealed, Content_Encoding="GZIP,  upseal").status == 200
    assert app.calls[-1][2]["Content-Encoding"] == "gzip"


def test_path_is_decoded_once(server):
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


def test_spliced_to_another_request(server):
    sealed = envelope(b"transfer", "POST", b"/raw")
    assert ask(server, "POST", "/raw", sealed, **SEALED).status == 200
    assert ask(server, "PUT", "/raw", sealed, **SEALED).status == 400
    assert ask(server, "DELETE", "/raw", sealed, **SEALED).status == 400
    assert ask(server, "POST", "/other", sealed, **SEALED).status == 400
    assert ask(server, "POST", "/raw?admin=1", sealed, **SEALED).status == 400
    assert ask(server, "POST", "/raw", sealed, Content_Type="text/html", **SEALED).status == 400


def test_cut_is_no_end_for_any_way_of_reading():
    """By read(), by lines, by iterating, and by one that stops at Content-Length."""
    ways = {
        "all": lambda stream, length: stream.read(),
        "exact": lambda stream, length: stream.read(length),
        "bits": lambda stream, length: [stream.read(1000) for _ in range(length // 1000 + 1)],
        "lines": lambda stream, length: stream.readlines(),
        "iter": lambda stream, length: list(stream),
    }
    ends = []

    def app(environ, start_response):
        way = ways[environ["PATH_INFO"][1:]]
        way(environ["wsgi.input"], int(environ["CONTENT_LENGTH"]))
        ends.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return [b"fine"]

    with serve_werkzeug(OpeningMiddleware(app, Opener([KEY]))) as address:
        for way in ways:
            sealed = upload(LONG, "POST", f"/{way}".encode())
            front = len(sealed) - len(LONG) - 19 * 16
            assert ask(address, "POST", f"/{way}", sealed, **SEALED).body == b"fine"
            for cut in (
                sealed[:-100],
                sealed[: front + 3 * 16400],
                sealed[: front + 3 * 16400] + bytes(16),
                sealed[: front + 18 * 16400] + bytes(16),
            ):
                assert ask(address, "POST", f"/{way}", cut, **SEALED).status == 400
            assert ask(address, "POST", f"/{way}", sealed, cut=len(sealed) - 7, **SEALED).status
    assert ends == [f"/{way}" for way in ways]


class Pieces:
    """What a server hands out as it comes: never two of these together."""

    def __init__(self, *pieces):
        self._pieces = list(pieces)

    def read(self, size):
        assert not self._pieces or size >= len(self._pieces[0])
        return self._pieces.pop(0) if self._pieces else b""


def test_counting_application_never_has_all_of_a_cut_upload():
    got = []

    def counting(environ, start_response):
        size, length = 0, int(environ["CONTENT_LENGTH"])
        while size < length:
            size += len(environ["wsgi.input"].read1(length - size))
        got.append((size, length))
        start_response("200 OK", [])
        return [b""]

    def run(body, at):
        environ = {
            "REQUEST_METHOD": "POST", "PATH_INFO": "/x", "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": "application/octet-stream", "HTTP_CONTENT_ENCODING": "upseal",
            "wsgi.input": Pieces(body[:at], body[at:]),
        }  # fmt: skip
        statuses = []
        guarded = OpeningMiddleware(counting, Opener([KEY]))
        list(guarded(environ, lambda status, headers: statuses.append(status)))
        return statuses[0][:3]

    sealed = upload(LONG[:100_000], "POST", b"/x")
    front = len(sealed) - 100_000 - 7 * 16
    for chunks in range(2, 6):
        cut = sealed[: front + 16400 * chunks] + bytes(16)
        for late in (16, 10, 1, 17, 8000):
            assert run(cut, len(cut) - late) == "400"
    assert got == []
    assert run(sealed, len(sealed) - 16) == "200"
    assert got == [(100_000, 100_000)]


def test_swallowed_error_is_answered_all_the_same():
    def careless(environ, start_response):
        with suppress(OpenError):
            environ["wsgi.input"].read()
        start_response("200 OK", [])
        return [b"stored"]

    def lazy(environ, start_response):
        environ["wsgi.input"].read()
        start_response("200 OK", [])
        yield b"stored"

    sealed = upload(LONG, "POST", b"/x")
    for app in (careless, lazy):
        with serve_werkzeug(OpeningMiddleware(app, Opener([KEY]))) as address:
            answer = ask(address, "POST", "/x", sealed[:-1], **SEALED)
            assert (answer.status, b"stored" in answer.body) == (400, False)
            assert ask(address, "POST", "/x", sealed, **SEALED).body == b"stored"


@pytest.mark.parametrize("sealed", [envelope(b"b", "POST", b"/raw"), upload(LONG, "POST", b"/raw")])
def test_a_key_that_is_away_is_no_damage(sealed):
    with serve_waitress(OpeningMiddleware(flask_app(), Opener([Unplugged()]))) as address:
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
    assert len(app.calls) == before


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_clear_bodies_are_refused(server, app, method):
    before = len(app.calls)
    for answer in (
        ask(server, method, "/raw", b"clear"),
        ask(server, method, "/raw", b"clear", chunked=True),
        ask(server, method, "/hello/../raw", b"clear"),
        ask(server, method, "/hello//raw", b"clear"),
        ask(server, method, "/helloraw", b"clear"),
    ):
        assert (answer.status, answer.headers["upseal-problem"]) == (422, "clear-not-accepted")
    assert len(app.calls) == before


def test_clear_where_it_may_be(server, app):
    for method in ("POST", "PUT", "PATCH"):
        assert ask(server, method, "/raw").status == 422
    assert ask(server, "DELETE", "/raw").status == 200
    assert app.mark.sealed is False
    assert ask(server, "GET", "/hello").status == 200
    assert ask(server, "POST", "/hello", b"clear").status == 405
    answer = ask(server, "POST", "/raw", b"x", Content_Encoding="upseal, gzip")
    assert (answer.status, answer.headers["upseal-problem"]) == (415, "media-type")


def test_limits(app):
    guarded = OpeningMiddleware(app, Opener([KEY]), envelope_max=1000, upload_max=100_000)
    with serve_werkzeug(guarded) as address:
        fits = envelope(b"x" * 800, "POST", b"/raw")
        assert ask(address, "POST", "/raw", fits, **SEALED).status == 200
        for body in (
            envelope(b"x" * 1000, "POST", b"/raw"),
            upload(b"x" * 100_000, "POST", b"/raw"),
        ):
            for chunked in (False, True):
                answer = ask(address, "POST", "/raw", body, chunked=chunked, **SEALED)
                assert answer.status == 413


def test_context_of_your_own(app):
    def context(bound):
        return b"mine/api" + bound.path + (bound.header("x-account") or "").encode()

    with serve_waitress(OpeningMiddleware(app, Opener([KEY]), context=context)) as address:
        sealed = Sealer([KEY.public_key]).seal(b"b", b"mine/api/raw42")
        assert ask(address, "POST", "/raw", sealed, X_Account="42", **SEALED).status == 200
        assert ask(address, "POST", "/raw", sealed, X_Account="43", **SEALED).status == 400


def test_problems_of_the_application_are_its_own():
    """Also if they are of the class that the middleware uses."""

    def app(environ, start_response):
        raise Problem("busy")

    guarded = OpeningMiddleware(app, Opener([KEY]))
    for method, coding, body in (
        ("GET", "", b""),
        ("POST", "upseal", envelope(b"", "POST", b"/x", kind=b"")),
        ("POST", "upseal", upload(b"", "POST", b"/x", kind=b"")),
    ):
        environ = {
            "REQUEST_METHOD": method, "PATH_INFO": "/x", "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": coding, "wsgi.input": io.BytesIO(body),
        }  # fmt: skip
        with pytest.raises(Problem, match="busy"):
            list(guarded(environ, None))


def test_body_that_no_header_announces():
    """A server that hands out bytes all the same: the application must not get them in clear."""
    got = []

    def app(environ, start_response):
        got.append(environ["wsgi.input"].read())
        return []

    for path in ("/x", "/clear"):
        environ = {
            "REQUEST_METHOD": "GET", "PATH_INFO": path, "wsgi.input_terminated": True,
            "wsgi.input": io.BytesIO(b"clear"),
        }  # fmt: skip
        OpeningMiddleware(app, Opener([KEY]), clear=["/clear"])(environ, None)
    assert got == [b"", b"clear"]


def test_a_monstrous_length_is_an_answer():
    said = []
    environ = {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/x", "CONTENT_LENGTH": "9" * 5000,
        "wsgi.input": io.BytesIO(b"clear"),
    }  # fmt: skip
    OpeningMiddleware(lambda *_: [], Opener([KEY]))(environ, lambda status, _: said.append(status))
    assert said[0].startswith("422")


def test_environment_says_what_it_was():
    found = []

    def app(environ, start_response):
        found.append([environ[f"upseal.{name}"] for name in ("sealed", "kind", "key_id")])
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    with serve_waitress(OpeningMiddleware(app, Opener([KEY]))) as address:
        assert ask(address, "POST", "/", envelope(b"b", "POST", b"/"), **SEALED).body == b"b"
        # A header cannot say it.
        assert ask(address, "GET", "/", upseal_sealed="1", **{"upseal.sealed": "1"}).body == b""
    assert found == [[True, "envelope", KEY.public_key.key_id.hex()], [False, None, None]]


def test_memory_is_flat_for_a_large_upload():
    assert growth("wsgi", "requests") < 24 << 10  # KiB, of an upload of 64 MiB


def test_example():
    said = example("wsgi/app.py")
    assert "'sealed': True" in said
    assert "clear-not-accepted" in said

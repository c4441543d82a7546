# SPDX-License-Identifier: Apache-2.0
"""httpx's own clients with the sealing transports, against real servers, over real sockets."""

import asyncio
import io
import time
from contextlib import contextmanager, suppress
from functools import partial

import httpx
import pytest
import trio
from http_manifests import HOSTILE, Site, plain, problem, published
from http_support import (
    KEY,
    LONG,
    MARKER,
    OTHER,
    Proxy,
    Script,
    digest,
    example,
    fastapi_app,
    flask_app,
    requests_in,
    serve_asgi,
    serve_werkzeug,
    url_of,
)

from upseal import Opener, Padding, Sealer
from upseal.fleet import jws
from upseal.fleet.policy import Level
from upseal.integrations.asgi import OpeningMiddleware
from upseal.integrations.http.manifest import FollowManifest
from upseal.integrations.httpx import (
    AsyncSealingTransport,
    BodyChanged,
    NotAgain,
    Recipients,
    SealingTransport,
    Withheld,
)
from upseal.integrations.wsgi import OpeningMiddleware as WsgiOpeningMiddleware

BODY = MARKER + LONG * 5
MINE = Recipients([KEY.public_key])


@pytest.fixture(scope="module")
def app():
    return fastapi_app()


@pytest.fixture(scope="module")
def server(app):
    with serve_asgi(OpeningMiddleware(app, Opener([KEY]))) as address:
        yield address


@contextmanager
def client_of(policy, url, **settings):
    more = {name: settings.pop(name) for name in list(settings) if name in ("auth", "mounts")}
    follow = settings.pop("follow", False)
    transport = SealingTransport(policy, **settings)
    with httpx.Client(
        transport=transport, base_url=url, timeout=30, follow_redirects=follow, **more
    ) as client:
        yield client


@contextmanager
def recorded(address):
    """A client behind a recording proxy, which must not have seen the marker."""
    with Proxy(lambda: address) as proxy:
        with client_of(MINE, proxy.url) as client:
            yield client, proxy
        for data in proxy.sent_up():  # answers are not sealed
            assert MARKER not in data


class Bodies:
    """Every way in which httpx takes a body."""

    ways = ("bytes", "text", "small", "generator", "list", "file", "form", "empty")

    @staticmethod
    def arguments(way):
        return {
            "bytes": {"content": BODY},
            "text": {"content": MARKER.decode()},
            "small": {"content": MARKER},
            "generator": {"content": (BODY[at : at + 999] for at in range(0, len(BODY), 999))},
            "list": {"content": [MARKER, BODY]},
            "file": {"content": io.BytesIO(BODY)},
            "form": {"data": {"words": MARKER.decode()}},
            "empty": {"content": b""},
        }[way]

    @staticmethod
    def plain(way):
        return {
            "text": MARKER, "small": MARKER, "list": MARKER + BODY, "empty": b"",
            "form": b"words=" + MARKER.replace(b" ", b"+"),
        }.get(way, BODY)  # fmt: skip


@pytest.mark.parametrize("way", Bodies.ways)
@pytest.mark.parametrize("target", ["/raw", "/raw?q=a%20b&empty=&x=%2F"])
def test_every_kind_of_body(server, app, way, target):
    plain_body = Bodies.plain(way)
    with recorded(server) as (client, proxy):
        answer = client.post(target, **Bodies.arguments(way))
        assert answer.status_code == 200
        assert answer.json() == {"length": len(plain_body), "sha256": digest(plain_body)}
        assert answer.request.headers["content-encoding"] == "upseal"
        [(line, headers, body)] = requests_in(proxy)
        assert line == f"POST {target} HTTP/1.1"
        assert (headers["content-encoding"], body[:4]) == ("upseal", b"USL\x01")
    assert app.mark.sealed
    assert app.mark.kind == ("upload" if plain_body.startswith(MARKER + MARKER) or
                             len(plain_body) > 1 << 20 or way in ("generator", "file")
                             else "envelope")  # fmt: skip


def test_json_file_and_headers(server, app):
    with recorded(server) as (client, proxy):
        said = {"words": MARKER.decode()}
        assert client.post("/items", json=said).json() == {"got": said}
        assert client.get("/hello").json() == {"hello": "world"}
        answer = client.post("/form", files={"file": ("a.bin", io.BytesIO(BODY))})
        assert answer.json() == {"name": "a.bin", "length": len(BODY), "sha256": digest(BODY)}
        lengths = [headers["content-length"] for _, headers, _ in requests_in(proxy)]
        assert lengths[1] is None
        assert int(lengths[2]) > len(BODY)
    answer = httpx.post(url_of(server, "/raw"), content=MARKER)
    assert (answer.status_code, answer.headers["upseal-problem"]) == (422, "clear-not-accepted")


def test_to_flask_as_well():
    app = flask_app()
    with (
        serve_werkzeug(WsgiOpeningMiddleware(app, Opener([KEY]))) as address,
        recorded(address) as (client, _),
    ):
        for way in Bodies.ways:
            body = Bodies.plain(way)
            answer = client.post("/raw?q=%C3%A4", **Bodies.arguments(way))
            if way == "form":  # Flask has taken it for its own form
                assert answer.status_code == 200
            else:
                assert answer.json() == {"length": len(body), "sha256": digest(body)}
        answer = client.post("/form", files={"file": ("a.bin", io.BytesIO(BODY))})
        assert answer.json()["sha256"] == digest(BODY)


def run_asyncio(main):
    return asyncio.run(main())


@pytest.mark.parametrize("run", [run_asyncio, trio.run])
def test_async(server, app, run):
    async def main(url):
        async def pieces():
            for at in range(0, len(BODY), 100_000):
                yield BODY[at : at + 100_000]

        transport = AsyncSealingTransport(MINE)
        async with httpx.AsyncClient(transport=transport, base_url=url, timeout=30) as client:
            found = [
                await client.post("/raw", content=MARKER),
                await client.post("/raw", content=BODY),
                await client.put("/stream", content=pieces()),
                await client.post("/form", files={"file": ("a", BODY)}),
            ]
            assert (await client.get("/hello")).json() == {"hello": "world"}
            return [answer.json()["sha256"] for answer in found]

    with Proxy(lambda: server) as proxy:
        assert run(partial(main, proxy.url)) == [digest(MARKER), *[digest(BODY)] * 3]
        assert all(MARKER not in data for data in proxy.sent_up())


def test_padding_and_context_are_settings(server):
    context = b"a context of the user's".__add__

    def both(bound):
        return context(bound.path)

    app = fastapi_app()
    sealer = partial(Sealer, padding=Padding.PADME)
    guarded = OpeningMiddleware(app, Opener([KEY]), context=both)
    with serve_asgi(guarded) as (host, port):
        url = f"http://{host}:{port}"
        with client_of(MINE, url, context=both, sealer=sealer) as client:
            answer = client.post("/raw?not=bound", content=b"x" * 1000)
            assert answer.json()["length"] == 1000
            length = int(answer.request.headers["content-length"])
            again = client.post("/raw", content=b"x" * 1010)
            assert int(again.request.headers["content-length"]) == length
        with client_of(MINE, url) as client:
            assert client.post("/raw", content=b"x").status_code == 400


# -- a key that is stale


@contextmanager
def rotated(recipients):
    """A server that has KEY alone, and a client that begins with ``recipients``."""
    fetched = []

    def fetch():
        fetched.append(1)
        return [KEY.public_key]

    policy = Recipients([key.public_key for key in recipients], fetch)
    with (
        serve_asgi(OpeningMiddleware(fastapi_app(), Opener([KEY]))) as address,
        Proxy(lambda: address) as proxy,
        client_of(policy, proxy.url) as client,
    ):
        yield client, proxy, fetched


@pytest.mark.parametrize("way", ["bytes", "small", "form", "list", "multipart"])
def test_stale_key_seals_again_once(way):
    with rotated([OTHER]) as (client, proxy, fetched):
        if way == "multipart":
            answer = client.post("/form", files={"file": ("a", io.BytesIO(BODY))})
            assert answer.json()["sha256"] == digest(BODY)
        elif way == "list":
            with pytest.raises(NotAgain, match="stream"):
                client.post("/raw", **Bodies.arguments(way))
            answer = client.post("/raw", **Bodies.arguments(way))
        else:
            answer = client.post("/raw", **Bodies.arguments(way))
        assert answer.status_code == 200
        first, second = (body for _, _, body in requests_in(proxy))
        ids = [key.public_key.key_id for key in (OTHER, KEY)]
        assert [ids[0] in first, ids[1] in first] == [True, False]
        assert [ids[0] in second, ids[1] in second] == [False, True]
        assert first[-16:] != second[-16:]
        assert fetched == [1]
        assert client.post("/raw", content=MARKER).status_code == 200  # the new key is kept
        assert len(requests_in(proxy)) == 3
        assert all(MARKER not in data for data in proxy.sent_up())


@pytest.mark.parametrize("way", ["generator", "file"])
def test_stale_key_and_a_stream_that_is_spent(way):
    with rotated([OTHER]) as (client, proxy, fetched):
        with pytest.raises(NotAgain, match="make the request again"):
            client.put("/stream", **Bodies.arguments(way))
        answer = client.put("/stream", **Bodies.arguments(way))
        assert answer.json()["sha256"] == digest(BODY)
        assert fetched == [1]


def test_stale_key_async():
    async def main(url):
        policy = Recipients([OTHER.public_key], lambda: [KEY.public_key])
        transport = AsyncSealingTransport(policy)

        async def pieces():
            yield BODY

        async with httpx.AsyncClient(transport=transport, base_url=url, timeout=30) as client:
            answer = await client.post("/raw", content=BODY)
            assert answer.json()["sha256"] == digest(BODY)
        transport = AsyncSealingTransport(Recipients([OTHER.public_key], lambda: [KEY.public_key]))
        async with httpx.AsyncClient(transport=transport, base_url=url, timeout=30) as client:
            with pytest.raises(NotAgain):
                await client.put("/stream", content=pieces())
            assert (await client.put("/stream", content=pieces())).status_code == 200

    with serve_asgi(OpeningMiddleware(fastapi_app(), Opener([KEY]))) as (host, port):
        asyncio.run(main(f"http://{host}:{port}"))


def test_stale_for_ever_is_asked_twice_and_no_more():
    """Whatever the server says: the second time its answer is the application's."""
    with Script([problem(409, "stale-key")]) as script:
        keys = [[KEY.public_key], [OTHER.public_key]] * 10
        policy = Recipients([OTHER.public_key], lambda: keys.pop(0))
        with client_of(policy, script.url) as client:
            answer = client.post("/raw", content=MARKER)
        assert (answer.status_code, len(script.requests), len(keys)) == (409, 2, 19)
        policy = Recipients([KEY.public_key], lambda: [KEY.public_key])
        with client_of(policy, script.url) as client:
            assert client.post("/raw", content=MARKER).status_code == 409
        assert len(script.requests) == 3  # nothing newer is known, so not again
        bodies = [body for _, _, body in script.requests]
        assert len({body[-16:] for body in bodies}) == 3
        assert not any(MARKER in body for body in bodies)


# -- redirects and the like


def test_redirect_is_sealed_for_where_it_goes(server):
    host, port = server
    there = f"http://{host}:{port}/raw"
    with Script([plain(307, f"Location: {there}")]) as script:
        for content in (MARKER, BODY):
            with client_of(MINE, script.url, follow=True) as client:
                answer = client.post("/elsewhere", content=content)
            assert answer.json() == {"length": len(content), "sha256": digest(content)}
        first = script.requests[0][2]
        assert (first[:4], MARKER in first) == (b"USL\x01", False)


def test_redirect_without_its_body(server):
    host, port = server
    with Script([plain(303, f"Location: http://{host}:{port}/hello")]) as script:
        with client_of(MINE, script.url, follow=True) as client:
            answer = client.post("/elsewhere", content=MARKER)
        assert answer.json() == {"hello": "world"}
        assert "content-encoding" not in answer.request.headers


def test_redirect_to_another_transport_is_sealed_still():
    """Only one address is mounted, and a hostile answer leads elsewhere."""
    for content in (MARKER, BODY):
        with Script([plain(200)]) as trap, Script([plain(307, f"Location: {trap.url}")]) as script:
            mounts = {script.url: SealingTransport(MINE)}
            with httpx.Client(mounts=mounts, follow_redirects=True) as client:
                assert client.post(script.url, content=content).status_code == 200
            [(_, headers, body)] = trap.requests
            assert headers["content-encoding"] == "upseal"
            assert MARKER not in body


def test_redirect_of_a_stream_that_is_spent():
    with Script([plain(307, "Location: %URL%/again"), plain(200)]) as script:
        with client_of(MINE, script.url, follow=True) as client:
            with pytest.raises(NotAgain):
                client.post("/raw", content=iter([MARKER]))
            assert len(script.requests) == 1
        script.requests.clear()
        with client_of(MINE, script.url, follow=True) as client, pytest.raises(BodyChanged):
            client.post("/raw", content=io.BytesIO(BODY))
        assert not any(MARKER in body for _, _, body in script.requests)


def test_digest_auth_sends_it_twice_sealed(server):
    challenge = plain(401, 'WWW-Authenticate: Digest realm="r", nonce="n", qop="auth"')
    with Script([challenge, plain(200)]) as script:
        with client_of(MINE, script.url, auth=httpx.DigestAuth("a", "b")) as client:
            assert client.post("/raw", content=MARKER).status_code == 200
        (_, _, first), (_, headers, second) = script.requests
        assert headers["authorization"].startswith("Digest")
        assert not {first[:4], second[:4]} - {b"USL\x01"}
        assert first != second
        assert MARKER not in first + second


def test_body_that_is_not_what_it_declares():
    with Script([plain(200)]) as script, client_of(MINE, script.url) as client:
        for length in (5, 500):
            with pytest.raises(BodyChanged, match="declares"):
                client.post("/", content=[b"x" * 50], headers={"Content-Length": str(length)})
        with pytest.raises(ValueError, match="Content-Encoding"):
            client.post("/", content=b"x", headers={"Content-Encoding": "Upseal"})
        with pytest.raises(ValueError, match="one Content-Type"):
            client.post("/", content=b"x", headers=[("Content-Type", "a/b"), ("Content-Type", "c")])


def test_failing_body_has_no_end(server, app):
    """A generator that raises half way: the application must not take it for whole."""

    def body():
        yield LONG
        raise RuntimeError("half way")

    before = list(app.whole)
    with recorded(server) as (client, proxy):
        with pytest.raises(RuntimeError, match="half way"):
            client.put("/stream", content=body())
        assert client.put("/stream", content=iter([MARKER])).status_code == 200
        assert len(proxy.sent_up()[0]) > 200_000  # it had begun
    assert app.whole == [*before, len(MARKER)]


# -- policy


def hostile_world(policy):
    """Whatever is answered, and however often: what left."""
    left = []
    for answer in HOSTILE:
        with Script([answer]) as script:
            for content in (MARKER, BODY, iter([MARKER])):
                with (
                    client_of(policy, script.url, follow=True, auth=("a", "b")) as client,
                    suppress(httpx.HTTPError, ValueError),
                ):
                    client.max_redirects = 3
                    client.post("/raw", content=content)
            left += script.requests
    return left


def test_required_never_sends_clear_whatever_is_answered(tmp_path):
    site = Site()
    site.enable()
    with published(tmp_path, site) as (_, url, trust):
        site.sign()
        left = hostile_world(FollowManifest.at(url, trust, level="required", pause=0.001))
        assert len(left) > len(HOSTILE)
        with_body = [(headers, body) for _, headers, body in left if body]
        assert len(with_body) > len(HOSTILE)
        assert all(body[:4] == b"USL\x01" for _, body in with_body)
        assert not any(MARKER in body for _, body in with_body)


def test_optional_never_sends_clear_for_an_answer(tmp_path):
    site = Site()
    site.enable()
    with published(tmp_path, site) as (_, url, trust):
        site.sign()
        left = hostile_world(FollowManifest.at(url, trust, level="optional", pause=0.001))
        assert not any(MARKER in body for _, _, body in left)


@pytest.mark.parametrize("level", ["required", "optional", "none"])
@pytest.mark.parametrize("state", ["never seen", "forged", "disabled", "enabled"])
def test_table(tmp_path, level, state):
    site = Site()
    if state in ("enabled", "forged"):
        site.enable()
    with published(tmp_path, site) as (publisher, url, trust), Script([plain(200)]) as script:
        site.sign()
        if state == "never seen":
            publisher.answer = []
        elif state == "forged":
            stranger = Site()
            stranger.enable()
            publisher.answer = [stranger.sign()]
        with client_of(FollowManifest.at(url, trust, level=level), script.url) as client:
            if level == "required" and state != "enabled":
                with pytest.raises(Withheld):
                    client.post("/raw", content=MARKER)
                assert script.requests == []
                return
            client.post("/raw", content=MARKER)
        [(_, headers, body)] = script.requests
        clear = level == "none" or state != "enabled"
        assert (MARKER in body) is clear
        assert headers["content-encoding"] == (None if clear else "upseal")


def test_rotation_of_a_deployment(tmp_path):
    site = Site()
    site.enable()
    with published(tmp_path, site) as (publisher, url, trust):
        site.sign()
        app = fastapi_app()
        opener = Opener(site.private)
        policy = FollowManifest.at(url, trust)
        with (
            serve_asgi(OpeningMiddleware(app, opener)) as address,
            Proxy(lambda: address) as proxy,
            client_of(policy, proxy.url) as client,
        ):
            assert client.post("/raw", content=MARKER).status_code == 200
            assert publisher.asked == 1
            old = site.private[0].public_key.key_id
            site.rotate()
            site.sign()
            opener.add_key(site.private[1])
            opener.remove_key(old)
            assert client.post("/raw", content=MARKER).status_code == 200
            assert (publisher.asked, len(requests_in(proxy))) == (2, 3)
            publisher.answer = []  # held back: the client goes on by what it has seen
            assert client.post("/raw", content=MARKER).status_code == 200
            assert not any(MARKER in data for data in proxy.sent_up())


def test_manifest_is_not_fetched_for_each_lie(tmp_path):
    site = Site()
    site.enable()
    with published(tmp_path, site) as (publisher, url, trust):
        site.sign()
        with (
            Script([problem(409, "stale-key")]) as script,
            client_of(FollowManifest.at(url, trust, pause=3600), script.url) as client,
        ):
            for _ in range(5):
                assert client.post("/raw", content=MARKER).status_code == 409
        assert len(script.requests) == 5
        assert publisher.asked == 2  # the first, and the first lie


def test_levels_of_the_manifest_go_first(tmp_path):
    site = Site()
    site.enable()
    me = b"i" * 16
    site.change(default_level=Level.NONE, levels={me: Level.REQUIRED})
    with published(tmp_path, site) as (_, url, trust), Script([plain(200)]) as script:
        site.sign()
        for agent in (None, me):
            policy = FollowManifest.at(url, trust, level="optional", agent=agent)
            with client_of(policy, script.url) as client:
                client.post("/", content=MARKER)
        assert [MARKER in body for _, _, body in script.requests] == [True, False]


def test_parents_capabilities(tmp_path):
    """What a relay of the manifest signs counts; the same words unsigned, or of others, do not."""
    site = Site()
    site.enable()
    relay = site.add_relay(decrypts=True)
    now = int(time.time() * 1000)

    def words(key, **changes):
        claims = {
            "sub": relay.identity.public.agent_id.hex(), "accepts_sealed": True, "serial": 3,
            "accepts_clear": True, "decrypts": True, "iat": now, "exp": now + 3_600_000,
            "key_ids": [private.public_key.key_id.hex() for private in relay.private],
            "parent": None,
        }  # fmt: skip
        return jws.sign(claims | changes, key, jws.CAPABILITIES).encode()

    said = []
    trust = site.trust(tmp_path / "trust.json")
    policy = FollowManifest(
        trust, lambda since: site.tokens, capabilities=lambda: said[-1], refresh=1e-9
    )
    server, decrypting = site.private[0].public_key, relay.private[0].public_key
    stranger = Site().signing
    with Script([plain(200)]) as script, client_of(policy, script.url) as client:
        for token, recipients in (
            (words(stranger, accepts_sealed=False), [server]),
            (words(relay.identity), [server, decrypting]),
            (b"{}", [server, decrypting]),
        ):
            said.append(token)
            client.post("/", content=MARKER)
            found = script.requests[-1][2]
            assert [key.key_id in found for key in (server, decrypting)] == [
                key in recipients for key in (server, decrypting)
            ]
        said.append(words(relay.identity, accepts_sealed=False, iat=now + 1))
        with pytest.raises(Withheld, match="parent-refuses-sealed"):
            client.post("/", content=MARKER)
    assert len(script.requests) == 3


def test_what_is_refused_when_made():
    with pytest.raises(TypeError, match="policy"):
        SealingTransport([KEY.public_key])
    with pytest.raises(TypeError, match="sequence"):
        Recipients(KEY.public_key)
    with pytest.raises(ValueError, match="nobody"):
        Recipients([])
    with pytest.raises(ValueError, match="envelope_max"):
        SealingTransport(MINE, envelope_max=1 << 24)


def test_example():
    assert "sealed again" in example("httpx/client.py")

# SPDX-License-Identifier: Apache-2.0
"""Sessions of requests with the sealing adapter, against real servers, over real sockets."""

import copy
import io
import pickle
from contextlib import contextmanager, suppress
from functools import partial

import pytest
import requests
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
from requests.auth import HTTPDigestAuth
from urllib3.util import Retry

from upseal import Opener, Padding, Sealer
from upseal.integrations.asgi import OpeningMiddleware as AsgiOpeningMiddleware
from upseal.integrations.http.manifest import FollowManifest
from upseal.integrations.requests import (
    BodyChanged,
    NotAgain,
    Recipients,
    SealingAdapter,
    Withheld,
    seal_session,
)
from upseal.integrations.wsgi import OpeningMiddleware

BODY = MARKER + LONG * 5
MINE = Recipients([KEY.public_key])


@pytest.fixture(scope="module")
def app():
    return flask_app()


@pytest.fixture(scope="module")
def server(app):
    with serve_werkzeug(OpeningMiddleware(app, Opener([KEY]))) as address:
        yield address


@contextmanager
def session_of(policy, **settings):
    with requests.Session() as session:
        session.trust_env = False
        yield seal_session(session, policy, **settings)


@contextmanager
def recorded(address):
    """A session, and a proxy that must not have seen the marker going up."""
    with Proxy(lambda: address) as proxy:
        with session_of(MINE) as session:
            yield session, proxy
        for data in proxy.sent_up():
            assert MARKER not in data


class Unseekable(io.RawIOBase):
    """A pipe: read once."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, target):
        return self._data.readinto(target)


WAYS = ["bytes", "text", "small", "generator", "iterator", "file", "pipe", "empty"]


def arguments(way):
    return {
        "bytes": BODY,
        "text": MARKER.decode(),
        "small": MARKER,
        "generator": (BODY[at : at + 999] for at in range(0, len(BODY), 999)),
        "iterator": iter([MARKER, BODY]),
        "file": io.BytesIO(BODY),
        "pipe": Unseekable(BODY),
        "empty": None,
    }[way]


def plain_of(way):
    short = {"text": MARKER, "small": MARKER, "iterator": MARKER + BODY, "empty": b""}
    return short.get(way, BODY)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", ["/raw", "/raw?q=a b&empty=&x=%2F&u=ä"])
def test_every_kind_of_body(server, app, way, target):
    body = plain_of(way)
    with recorded(server) as (session, proxy):
        answer = session.post(proxy.url + target, data=arguments(way))
        assert answer.json() == {"length": len(body), "sha256": digest(body)}
        assert answer.request.headers["content-encoding"] == "upseal"
        [(_, headers, sent)] = requests_in(proxy)
        assert (headers["content-encoding"], sent[:4]) == ("upseal", b"USL\x01")
    assert app.mark.kind == ("envelope" if way in ("text", "small", "empty") else "upload")


def test_json_form_file_and_get(server):
    with recorded(server) as (session, proxy):
        said = {"words": MARKER.decode()}
        assert session.post(proxy.url + "/items", json=said).json() == {"got": said}
        assert session.get(proxy.url + "/hello").json() == {"hello": "world"}
        for body in (MARKER, BODY):
            answer = session.post(proxy.url + "/form", files={"file": ("a.bin", io.BytesIO(body))})
            assert answer.json() == {"name": "a.bin", "length": len(body), "sha256": digest(body)}
        assert session.post(proxy.url + "/raw", data={"words": MARKER.decode()}).ok
    answer = requests.post(url_of(server, "/raw"), data=MARKER)
    assert (answer.status_code, answer.headers["upseal-problem"]) == (422, "clear-not-accepted")


def test_to_fastapi_with_padding_and_a_context():
    def context(bound):
        return b"mine" + bound.path

    app = fastapi_app()
    guarded = AsgiOpeningMiddleware(app, Opener([KEY]), context=context)
    sealer = partial(Sealer, padding=Padding.PADME)
    with (
        serve_asgi(guarded) as (host, port),
        session_of(MINE, context=context, sealer=sealer) as session,
    ):
        url = f"http://{host}:{port}"
        lengths = set()
        for size in (1000, 1010):
            answer = session.post(url + "/raw?not=bound", data=b"x" * size)
            assert answer.json()["length"] == size
            lengths.add(answer.request.headers["Content-Length"])
        assert len(lengths) == 1
        assert session.put(url + "/stream", data=io.BytesIO(BODY)).json()["sha256"] == digest(BODY)


# -- a key that is stale


@contextmanager
def rotated():
    """A server that has KEY alone, and a session that begins with OTHER."""
    fetched = []

    def fetch():
        fetched.append(1)
        return [KEY.public_key]

    policy = Recipients([OTHER.public_key], fetch)
    with (
        serve_werkzeug(OpeningMiddleware(flask_app(), Opener([KEY]))) as address,
        Proxy(lambda: address) as proxy,
        session_of(policy) as session,
    ):
        yield session, proxy, fetched


@pytest.mark.parametrize("way", ["bytes", "text", "small", "file", "empty"])
def test_stale_key_seals_again_once(way):
    with rotated() as (session, proxy, fetched):
        answer = session.post(proxy.url + "/raw", data=arguments(way))
        assert answer.json()["sha256"] == digest(plain_of(way))
        first, second = (body for _, _, body in requests_in(proxy))
        ids = [key.public_key.key_id for key in (OTHER, KEY)]
        assert [ids[0] in first, ids[1] in first] == [True, False]
        assert [ids[0] in second, ids[1] in second] == [False, True]
        assert first[-16:] != second[-16:]
        assert session.post(proxy.url + "/raw", data=MARKER).ok  # the new key is kept
        assert (fetched, len(requests_in(proxy))) == ([1], 3)
        assert all(MARKER not in data for data in proxy.sent_up())


@pytest.mark.parametrize("way", ["generator", "iterator", "pipe"])
def test_stale_key_and_a_stream_that_is_spent(way):
    with rotated() as (session, proxy, fetched):
        with pytest.raises(NotAgain, match="make the request again"):
            session.put(proxy.url + "/stream", data=arguments(way))
        answer = session.put(proxy.url + "/stream", data=arguments(way))
        assert answer.json()["sha256"] == digest(plain_of(way))
        assert fetched == [1]


def test_stale_for_ever_is_asked_twice_and_no_more():
    with Script([problem(409, "stale-key")]) as script:
        keys = [[KEY.public_key], [OTHER.public_key]] * 10
        with session_of(Recipients([OTHER.public_key], lambda: keys.pop(0))) as session:
            assert session.post(script.url, data=MARKER).status_code == 409
        assert (len(script.requests), len(keys)) == (2, 19)
        with session_of(MINE) as session:
            assert session.post(script.url, data=MARKER).status_code == 409
        assert len(script.requests) == 3
        bodies = [body for _, _, body in script.requests]
        assert len({body[-16:] for body in bodies}) == 3
        assert not any(MARKER in body for body in bodies)


# -- redirects, retries and the like


@pytest.mark.parametrize("way", ["small", "bytes", "file"])
def test_redirect_is_sealed_for_where_it_goes(server, way):
    there = url_of(server, "/raw")
    with Script([plain(307, f"Location: {there}")]) as script, session_of(MINE) as session:
        answer = session.post(script.url + "/elsewhere", data=arguments(way))
        body = plain_of(way)
        assert answer.json() == {"length": len(body), "sha256": digest(body)}
        first = script.requests[0][2]
        assert (first[:4], MARKER in first) == (b"USL\x01", False)


def test_redirect_without_its_body(server):
    there = url_of(server, "/hello")
    with Script([plain(303, f"Location: {there}")]) as script, session_of(MINE) as session:
        answer = session.post(script.url, data=MARKER)
        assert answer.json() == {"hello": "world"}
        assert "content-encoding" not in answer.request.headers


@pytest.mark.parametrize("way", ["small", "bytes", "file"])
def test_redirect_to_another_adapter_is_sealed_still(way):
    """Only one address is mounted, and a hostile answer leads elsewhere."""
    with (
        Script([plain(200)]) as trap,
        Script([plain(307, f"Location: {trap.url}/")]) as script,
        requests.Session() as session,
    ):
        session.mount(script.url, SealingAdapter(MINE))
        assert session.post(script.url, data=arguments(way)).ok
        [(_, headers, body)] = trap.requests
        assert headers["content-encoding"] == "upseal"
        assert (body[:4], MARKER in body) == (b"USL\x01", False)


def test_redirect_of_a_stream_that_is_spent():
    with Script([plain(307, "Location: %URL%/again"), plain(200)]) as script:
        with session_of(MINE) as session, pytest.raises(NotAgain):
            session.post(script.url, data=iter([MARKER]))
        assert len(script.requests) == 1


def test_digest_auth_sends_it_twice_sealed():
    challenge = plain(401, 'WWW-Authenticate: Digest realm="r", nonce="n", qop="auth"')
    for way in ("small", "file"):
        with Script([challenge, plain(200)]) as script, session_of(MINE) as session:
            answer = session.post(script.url, data=arguments(way), auth=HTTPDigestAuth("a", "b"))
            assert answer.ok
            (_, _, first), (_, headers, second) = script.requests
            assert headers["authorization"].startswith("Digest")
            assert (first[:4], second[:4]) == (b"USL\x01", b"USL\x01")
            assert first != second
            assert MARKER not in first + second


def test_retries_of_urllib3_send_the_same_bytes_or_seal_anew():
    retries = Retry(total=3, status_forcelist=[503], allowed_methods=None, backoff_factor=0)
    with Script([plain(503), plain(503), plain(200)]) as script:
        with session_of(MINE, max_retries=retries) as session:
            assert session.post(script.url, data=MARKER).ok
        bodies = [body for _, _, body in script.requests]
        assert len(bodies) == 3
        assert len(set(bodies)) == 1  # bytes that were sealed once
    with Script([plain(503), plain(503), plain(200)]) as script:
        with session_of(MINE, max_retries=retries) as session:
            assert session.post(script.url, data=io.BytesIO(BODY)).ok
        bodies = [body for _, _, body in script.requests]
        assert len({len(body) for body in bodies}) == 1
        opener = Opener([KEY])
        from http_support import context

        bound = context("POST", b"/", kind=b"")
        assert [opener.reader(io.BytesIO(b), bound).read() for b in bodies] == [BODY] * 3
        assert len({body[-20:] for body in bodies}) == 3  # each under a salt of its own
    with (
        Script([plain(503), plain(200)]) as script,
        session_of(MINE, max_retries=retries) as session,
        pytest.raises(NotAgain),
    ):
        session.post(script.url, data=iter([MARKER, BODY]))


def test_body_that_is_not_what_it_declares():
    with Script([plain(200)]) as script, session_of(MINE) as session:
        for length in ("5", "500"):
            request = requests.Request("POST", script.url, data=iter([b"x" * 50])).prepare()
            request.headers["Content-Length"] = length
            del request.headers["Transfer-Encoding"]
            with pytest.raises(BodyChanged, match="declares"):
                session.send(request)
        with pytest.raises(ValueError, match="Content-Encoding"):
            session.post(script.url, data=b"x", headers={"Content-Encoding": "upseal"})
        with pytest.raises(TypeError, match="bytes"):
            session.post(script.url, data=iter(["text"]))


def test_headers_may_be_bytes():
    with Script([plain(200)] * 2) as script, session_of(MINE) as session:
        for data in (b"x", None):
            answer = session.post(script.url, data=data, headers={"Content-Encoding": b"gzip"})
            assert answer.request.headers["Content-Encoding"] == "gzip, upseal"


def test_adapter_is_not_copied():
    """A copy by pickle would be an adapter without a policy."""
    for act in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="make another"):
            act(SealingAdapter(MINE))


def test_all_mounts_of_a_session_are_replaced():
    with requests.Session() as session:
        session.mount("https://somewhere/", requests.adapters.HTTPAdapter())
        seal_session(session, MINE)
        assert {type(adapter) for adapter in session.adapters.values()} == {SealingAdapter}


# -- policy


def hostile_world(policy):
    left = []
    for answer in HOSTILE:
        with Script([answer]) as script:
            for way in ("small", "bytes", "iterator"):
                with (
                    session_of(policy) as session,
                    suppress(requests.RequestException, ValueError),
                ):
                    session.max_redirects = 3
                    auth = HTTPDigestAuth("a", "b")
                    session.post(script.url + "/raw", data=arguments(way), auth=auth)
            left += script.requests
    return left


@pytest.mark.parametrize("level", ["required", "optional"])
def test_no_answer_brings_about_clear_text(tmp_path, level):
    site = Site()
    site.enable()
    with published(tmp_path, site) as (_, url, trust):
        site.sign()
        left = hostile_world(FollowManifest.at(url, trust, level=level, pause=0.001))
        bodies = [body for _, _, body in left if body]
        assert len(bodies) > len(HOSTILE)
        assert all(body[:4] == b"USL\x01" for body in bodies)
        assert not any(MARKER in body for body in bodies)


@pytest.mark.parametrize("state", ["never seen", "disabled"])
def test_withheld_before_anything_leaves(tmp_path, state):
    site = Site()
    with published(tmp_path, site) as (publisher, url, trust), Script([plain(200)]) as script:
        site.sign()
        if state == "never seen":
            publisher.answer = []
        with session_of(FollowManifest.at(url, trust)) as session:
            for way in WAYS:
                with pytest.raises(Withheld, match="sealed reports only"):
                    session.post(script.url, data=arguments(way))
            assert script.requests == []
            assert session.get(script.url).ok  # nothing in it to seal
        with session_of(FollowManifest.at(url, trust, level="optional")) as session:
            assert session.post(script.url, data=MARKER).ok
        assert [body for _, _, body in script.requests] == [b"", MARKER]


def test_rotation_of_a_deployment(tmp_path):
    site = Site()
    site.enable()
    with published(tmp_path, site) as (publisher, url, trust):
        site.sign()
        opener = Opener(site.private)
        with (
            serve_werkzeug(OpeningMiddleware(flask_app(), opener)) as address,
            Proxy(lambda: address) as proxy,
            session_of(FollowManifest.at(url, trust)) as session,
        ):
            assert session.post(proxy.url + "/raw", data=MARKER).ok
            old = site.private[0].public_key.key_id
            site.rotate()
            site.sign()
            opener.add_key(site.private[1])
            opener.remove_key(old)
            answer = session.put(proxy.url + "/stream", data=io.BytesIO(BODY))
            assert answer.json()["sha256"] == digest(BODY)
            assert (publisher.asked, len(requests_in(proxy))) == (2, 3)


def test_example():
    assert "sealed again" in example("requests/client.py")

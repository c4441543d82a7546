# SPDX-License-Identifier: Apache-2.0
"""The client against servers that lie, cut, drip and stall: one answer or `Unreachable`."""

import json
import os
import random
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from upseal.fleet.http.client import Backoff, Client, ClientTls, Timeouts, Unreachable
from upseal.fleet.http.problems import MOST_DELAY, UNKNOWN, Problem

CALM = Timeouts(connect=20, read=20, total=60)
HASTY = Timeouts(connect=20, read=0.3, total=0.6)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@contextmanager
def parent(*answers, then=None, hear=None):
    """Answers each connection with the next of these bytes, and closes it; what it heard is given.

    ``then`` is called with the connection after the answer, to hold it open or go on by hand.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    heard, connections, stop = [], [], threading.Event()

    def run():
        for answer in answers:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            connection.settimeout(20)
            heard.append((hear or _request)(connection))
            try:
                connection.sendall(answer)
                if then is not None:
                    then(connection, stop)
            except OSError:
                pass
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
    finally:
        stop.set()
        # Closing does not wake up accept() everywhere; shutting down does.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _request(connection):
    """Head and body of one request."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [n.split(b":")[1] for n in head.lower().split(b"\r\n") if b"content-length" in n]
    while lengths and len(body) < int(lengths[0]):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def unreachable(url, match=None, timeout=CALM, **how):
    with Client(url, timeout, **how) as client, pytest.raises(Unreachable, match=match) as caught:
        client.request("GET", "/")
    return str(caught.value)


def test_a_request_goes_out_as_it_should(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with parent(OK) as (url, heard), Client(url + "/base/", CALM) as client:
        answer = client.request("POST", "/v1/units", b"body", {"Authorization": "x"}, wait=7)
    assert (answer.status, answer.body, answer.problem()) == (200, b"ok", None)
    head, _, body = heard[0].partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert head.startswith(b"POST /base/v1/units HTTP/1.1\r\n") and body == b"body"
    assert {b"accept-encoding: identity", b"prefer: wait=7", b"authorization: x"} <= {*lines}
    assert b"body" not in repr(answer).encode()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_body_may_be_any_bytes(kind):
    with parent(OK) as (url, heard), Client(url, CALM) as client:
        client.request("POST", "/", kind(b"body"))
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert b"content-length: 4" in head.lower().split(b"\r\n") and body == b"body"


def test_a_redirect_is_an_answer_and_not_an_order():
    where = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    with parent(where) as (url, _), Client(url, CALM) as client:
        assert client.request("GET", "/").status == 302


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        OK[:-1],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nno length, so nobody knows whether it is whole",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 999999999999 OK\r\n\r\n",
    ],
    ids=range(11),
)
def test_half_an_answer_is_none(answer):
    with parent(answer) as (url, _):
        assert "0x" not in unreachable(url)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3e8\r\n" + b"x" * 1000,
    ],
)
def test_a_long_answer_is_not_read(answer):
    with parent(answer) as (url, _):
        unreachable(url, "longer than 999 bytes", limit=999)


def test_a_compressed_answer_is_not_unpacked():
    bomb = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b"
    with parent(bomb) as (url, _), Client(url, CALM) as client:
        assert client.request("GET", "/").body == b"\x1f\x8b"


def test_silence_and_dripping_end():
    def wait(connection, stop):
        stop.wait(20)

    def drip(connection, stop):
        while not stop.wait(0.05):
            connection.sendall(b"x")

    head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"
    with parent(b"", then=wait) as (url, _):
        unreachable(url, r"no answer within 0\.3 s", HASTY)
    with parent(head, then=drip) as (url, _):
        unreachable(url, "too long", HASTY)


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    unreachable(f"http://127.0.0.1:{port}", "Connection refused")


def test_what_speaks_no_tls_is_unreachable():
    with parent(b"HTTP/1.1 400 no\r\n\r\n", hear=lambda c: c.recv(5000)) as (url, _):
        unreachable(url.replace("http:", "https:"), "TLS failed")


def test_a_problem_is_read_from_an_answer():
    sent = Problem("full", "no room", retry_after=9)
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.headers().items())
    body = sent.encode()
    answer = (
        f"HTTP/1.1 503 no\r\n{head}date: Thu, 01 Jan 1970 00:01:40 GMT\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body
    with parent(answer) as (url, _), Client(url, CALM) as client:
        got = client.request("GET", "/")
    problem = got.problem()
    assert problem is not None and (problem.name, problem.retry_after) == ("full", 9)
    assert (got.date, got.retry_after, got.json()["status"]) == (100_000, 9, 503)


@pytest.mark.parametrize("head", [b"", b"date: never\r\nretry-after: never\r\n"])
def test_an_answer_of_somebody_elses(head):
    answer = b"HTTP/1.1 502 no\r\n%bcontent-length: 200000\r\n\r\n" % head + b"[" * 200_000
    with parent(answer) as (url, _), Client(url, CALM) as client:
        got = client.request("GET", "/")
    problem = got.problem()
    assert problem is not None and (problem.name, problem.status) == (UNKNOWN, 502)
    assert (got.date, got.retry_after) == (None, None)
    with pytest.raises(ValueError):
        got.json()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host",
        "host:80",
        "http://",
        "http://user:word@host",
        "http://@host",
        "http://host?x=1",
        "http://host#x",
        "http://host:99999",
        "",
    ],
)
def test_a_base_url_that_is_none(url):
    with pytest.raises(ValueError):
        Client(url)


def test_other_mistakes_of_callers(tmp_path):
    for wrong in ({"limit": 0}, {"connections": 0}, {"timeout": 0}, {"tls": ClientTls()}):
        with pytest.raises(ValueError):
            Client("http://host", **wrong)
    with pytest.raises(ValueError):
        Client("https://host", tls=ClientTls(key=tmp_path / "key.pem"))
    with pytest.raises(OSError):
        Client("https://host", tls=ClientTls(ca=tmp_path / "none.pem"))
    with Client("http://127.0.0.1:1") as client:
        for path in ("v1", "", "/a b", "/a\r\nx: y", "/\u00e9", "//evil.invalid/\x00"):
            with pytest.raises(ValueError):
                client.request("GET", path)
        with pytest.raises(ValueError):
            client.request("GET", "/", headers={"a": "b\r\nc: d"})


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_opens_a_connection_of_its_own():
    def serve(connection, stop):
        connection.settimeout(20)
        while _request(connection):
            connection.sendall(OK)

    with parent(OK, OK) as (url, heard), Client(url, 20.0) as client:
        assert client.request("GET", "/parent").body == b"ok"
        pid = os.fork()
        if not pid:
            code = 1
            try:
                code = 0 if client.request("GET", "/child").body == b"ok" else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert [line.split()[1] for line in heard] == [b"/parent", b"/child"]


def test_backoff_jitters_up_to_a_cap_and_starts_again():
    backoff = Backoff(1, 8, rng=random.Random(1))
    for reach in (1, 2, 4, 8, 8, 8):
        state = backoff._rng.getstate()
        drawn = {round(backoff._rng.uniform(0, reach), 9) for _ in range(50)}
        assert len(drawn) == 50  # it is a jitter
        backoff._rng.setstate(state)
        assert 0 <= backoff.next() <= reach
    for _ in range(5000):
        assert backoff.next() <= 8
    backoff.reset()
    assert backoff.next() <= 1


def test_backoff_stays_away_as_long_as_asked_within_bounds():
    backoff = Backoff(1, 8)
    assert 5 <= backoff.next(5) <= 6
    assert MOST_DELAY <= backoff.next(1e12) <= MOST_DELAY + 8
    assert Backoff(1, 1, most_asked=2).next(100) <= 3
    for wrong in ((0, 1), (2, 1), (1, float("inf"))):
        with pytest.raises(ValueError):
            Backoff(*wrong)


def test_a_whole_answer_leaves_the_connection_for_the_next():
    def more(connection, stop):
        if _request(connection):
            connection.sendall(OK)

    with parent(OK, then=more) as (url, _), Client(url, 20.0) as client:
        assert client.request("GET", "/").body == b"ok"
        began = time.monotonic()
        # A second connection would be refused: the parent takes one.
        assert client.request("POST", "/", json.dumps([1]).encode()).body == b"ok"
        assert time.monotonic() - began < 20

# SPDX-License-Identifier: Apache-2.0
"""What strangers can do to a server by a bare socket: long, slow, odd and never-ending requests."""

import json
import select
import socket
import time

import pytest
from starlette.responses import JSONResponse
from starlette.routing import Route

from upseal.fleet.http.apps import application, read_body
from upseal.fleet.http.client import Client
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.serving import Limits, in_thread

PATIENT = Limits(head_bytes=20_000, linger_bytes=200_000)
HASTY = Limits(head_seconds=0.5, keep_alive=1, linger_seconds=0.4)
"""Only for what does not come anyway: nobody's machine must be fast enough for a test."""
LIMIT = 50_000
calls = []


async def take(request):
    idle = 0.4 if request.query_params.get("n") == "hasty" else 60
    body = await read_body(request, LIMIT, idle=idle)
    calls.append((request.query_params.get("n"), len(body)))
    return JSONResponse({"bytes": len(body), "headers": sorted({*request.headers})})


def serving(limits):
    app = application([Route("/take", take, methods=["POST"])], metrics=Metrics("relay"))
    return in_thread(app, limits=limits)


@pytest.fixture(scope="module")
def address():
    with serving(PATIENT) as address:
        yield address


@pytest.fixture(scope="module")
def hasty_address():
    with serving(HASTY) as address:
        yield address


@pytest.fixture
def sock(address):
    yield from connected(address)


@pytest.fixture
def hasty(hasty_address):
    yield from connected(hasty_address)


def connected(address):
    calls.clear()
    with socket.create_connection(address[:2], timeout=20) as sock:
        yield sock
    # And it still serves.
    with Client(address.url, 20.0) as client:
        assert client.request("GET", "/healthz").status == 200


def head(*lines, n="", version="1.1"):
    said = "".join(f"{line}\r\n" for line in lines)
    return f"POST /take?n={n} HTTP/{version}\r\nhost: x\r\n{said}\r\n".encode()


def rest(sock):
    """All that comes until the other side closes; it must close."""
    data = b""
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            return data
        if not piece:
            return data
        data += piece


def answer(sock):
    """One answer with a declared length: its status and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(1)
        assert piece, f"it closed after {data!r}"
        data += piece
    length = int(data.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    body = b""
    while len(body) < length:
        body += sock.recv(length - len(body))
    return int(data.split()[1]), json.loads(body)


def send_until_closed(sock, piece, pause=0.0, most=30.0):
    """Sends on and on, as long as the other side lets us."""
    end, sent = time.monotonic() + most, 0
    sock.settimeout(most)
    try:
        while time.monotonic() < end:
            sock.sendall(piece)
            sent += len(piece)
            time.sleep(pause)
            sock.setblocking(False)
            try:
                if sock.recv(65536, socket.MSG_PEEK) == b"":
                    return sent
            except BlockingIOError:
                pass
            finally:
                sock.settimeout(most)
    except OSError:
        return sent
    raise AssertionError("it reads for ever")


# -- heads ------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [b"x-more: and more\r\n", b"x" * 1000], ids=["lines", "one line"])
def test_a_head_without_end(sock, piece):
    sock.sendall(head()[:-2])
    if b":" not in piece:
        sock.sendall(b"x: ")
    assert send_until_closed(sock, piece) < 20_000_000
    assert calls == []


def test_a_long_head_is_refused_in_words(sock):
    sock.sendall(head()[:-2] + b"x: " + b"y" * 25_000)
    status, body = answer(sock)
    assert (status, body["type"]) == (431, "https://upseal.invalid/problems/malformed")
    assert rest(sock) == b""


@pytest.mark.parametrize("begin", [b"", b"P", b"POST /take HTTP/1.1\r\nhost: x\r\n"])
def test_a_head_that_does_not_come(hasty, begin):
    hasty.sendall(begin)
    got = rest(hasty)
    assert got == b"" if not begin else b"/problems/slow" in got


def test_a_head_that_drips_in(hasty):
    hasty.sendall(head()[:-2])
    send_until_closed(hasty, b"x: y\r\n", pause=0.05)
    assert calls == []


@pytest.mark.parametrize("more", [None, b"\r\n"])
def test_an_idle_connection_is_closed(hasty, more):
    hasty.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    assert hasty.recv(12) == b"HTTP/1.1 200"
    if more is not None:  # blank lines are allowed between requests, and buy no time
        send_until_closed(hasty, more, pause=0.05)
    else:
        rest(hasty)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GARBAGE\r\n\r\n",
        b"POST /take HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /take HTTP/3.7\r\nhost: x\r\n\r\n",
        b"POST /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        head("content-length: -1"),
        head("content-length: 1", "content-length: 2") + b"xx",
        head("content-length: 99999999999999999999999"),
        head("transfer-encoding: chunked", "content-length: 4") + b"0\r\n\r\n",
        head("transfer-encoding: gzip, identity") + b"x",
        head("transfer-encoding: chunked") + b"zz\r\nx\r\n0\r\n\r\n",
        head("x: a\r\n b") + b"x",
    ],
    ids=range(14),
)
def test_what_is_no_request(sock, data):
    sock.sendall(data)
    got = rest(sock)
    assert got.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")) or got == b""
    assert b" 200 " not in got and calls == []


# -- bodies -----------------------------------------------------------------------------


def test_a_declared_length_is_refused_before_100_continue(sock):
    sock.sendall(head(f"content-length: {LIMIT + 1}", "expect: 100-continue"))
    assert answer(sock)[0] == 413
    sock.sendall(bytes(LIMIT + 1))
    sock.sendall(head("content-length: 1", "expect: 100-continue"))
    assert sock.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    sock.sendall(b"x")
    assert answer(sock)[0] == 200


def test_a_chunked_body_stops_at_the_limit(sock):
    sock.sendall(head("transfer-encoding: chunked"))
    sock.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (LIMIT, bytes(LIMIT)))
    assert answer(sock) == (200, {"bytes": LIMIT, "headers": ["host", "transfer-encoding"]})
    sock.sendall(head("transfer-encoding: chunked"))
    sock.sendall(b"%x\r\n%b\r\n" % (LIMIT + 1, bytes(LIMIT + 1)))
    assert answer(sock)[0] == 413
    assert len(calls) == 1


def test_who_goes_on_sending_after_the_answer_is_cut_off(sock):
    sock.sendall(head("transfer-encoding: chunked"))
    assert send_until_closed(sock, b"2710\r\n%b\r\n" % bytes(10_000)) < 20_000_000
    assert calls == []


def test_who_stalls_after_an_early_answer_is_cut_off(hasty):
    hasty.sendall(head("content-length: 1000000") + bytes(1000))
    assert answer(hasty)[0] == 413
    assert rest(hasty) == b""


def test_a_body_that_stalls(sock):
    sock.sendall(head("content-length: 100", n="hasty") + bytes(50))
    status, body = answer(sock)
    assert (status, body["type"]) == (408, "https://upseal.invalid/problems/slow")
    assert calls == []


def test_a_body_that_drips_in(sock):
    sock.sendall(head("content-length: 40000", n="hasty"))
    for _ in range(400):  # all of it would take half an hour, each byte in time
        sock.sendall(b"x")
        if select.select([sock], [], [], 0.05)[0]:
            break
    assert answer(sock)[0] == 408 and calls == []


def test_a_body_that_is_cut_is_never_taken(sock):
    sock.sendall(head("content-length: 100") + bytes(99))
    sock.shutdown(socket.SHUT_WR)
    rest(sock)
    assert calls == []


def test_chunk_extensions_and_trailers_without_end(address):
    for begin, piece in (
        (b"1;x=", b"y" * 1000),
        (b"1\r\nx\r\n0\r\n", b"x-trailer: more\r\n"),
        (b"1\r\nx\r\n0\r\nx-trailer: ", b"more" * 100),
    ):
        with socket.create_connection(address[:2], timeout=20) as sock:
            sock.sendall(head("transfer-encoding: chunked") + begin)
            assert send_until_closed(sock, piece) < 20_000_000


def test_trailers_are_no_headers(sock):
    sock.sendall(head("transfer-encoding: chunked"))
    sock.sendall(b"1\r\nx\r\n0\r\nauthorization: forged\r\n\r\n")
    assert answer(sock) == (200, {"bytes": 1, "headers": ["host", "transfer-encoding"]})


# -- connections ------------------------------------------------------------------------


def test_one_request_after_the_other(sock):
    for size in (1, 0, 40_000):
        sock.sendall(head(f"content-length: {size}") + bytes(size))
        assert answer(sock)[1]["bytes"] == size


def test_pipelined_requests_are_not_buffered(sock):
    one = head("content-length: 1", n=1) + b"x"
    sock.sendall(one + head("content-length: 1", n=2) + b"x" + b"junk" * 100)
    got = rest(sock)
    assert got.count(b"HTTP/1.1 ") == 1 and b" 200 OK" in got
    assert calls == [("1", 1)]


def test_an_upgrade_is_an_ordinary_request_and_the_last(sock):
    sock.sendall(head("connection: upgrade", "upgrade: websocket", "content-length: 1") + b"x")
    got = rest(sock)
    assert got.count(b"HTTP/1.1 ") == 1 and not got.startswith(b"HTTP/1.1 101")


def test_http_1_0_is_answered_and_closed(sock):
    sock.sendall(head("content-length: 1", version="1.0") + b"x")
    got = rest(sock)
    assert b" 200 OK" in got and b'"bytes":1' in got


def test_connections_too_many():
    with serving(Limits(connections=2)) as address:
        socks = [socket.create_connection(address[:2], timeout=20) for _ in range(4)]
        over = socket.create_connection(address[:2], timeout=20)
        try:
            assert rest(over) == b""
            for at, sock in enumerate(socks):
                sock.sendall(head("content-length: 30000") + bytes(30_000))
                status, body = answer(sock)
                assert status == (200 if at < 2 else 503)
                if status == 503:
                    assert body["type"].endswith("/full") and rest(sock) == b""
        finally:
            for sock in [*socks, over]:
                sock.close()
        with Client(address.url, 20.0) as client:
            assert client.request("POST", "/take", b"abc").status == 200

# SPDX-License-Identifier: Apache-2.0
"""An application served: common routes, bodies in bounds, refusals, holding, starts and ends."""

import asyncio
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import fleet_support
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from upseal.fleet.http import logs
from upseal.fleet.http.apps import application, patience, read_body
from upseal.fleet.http.client import Client, Unreachable
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.serving import Limits, in_thread, serve

LIMIT = 100_000
until = partial(fleet_support.eventually, seconds=20)


async def count(request):
    return JSONResponse({"bytes": len(await read_body(request, LIMIT))})


async def refuse(request):
    raise Problem("full", "no room", retry_after=3)


async def fail(request):
    raise ValueError(f"hunter2 {await read_body(request, LIMIT)!r}")


async def fail_late(request):
    async def pieces():
        yield b"x"
        raise ValueError("hunter2")

    return StreamingResponse(pieces(), headers={"content-length": "10"})


async def hold(request):
    state = request.app.state
    await read_body(request, LIMIT)
    future = asyncio.get_running_loop().create_future()
    if request.query_params.get("soon"):
        asyncio.get_running_loop().call_later(0.05, future.set_result, None)
    state.holding.release()
    try:
        done = await patience(request, future, float(request.query_params.get("s", 25)))
    finally:
        state.let_go.release()
    assert not future.cancelled()
    return PlainTextResponse("done" if done else "pending")


def build(lifespan=None, ready=lambda: None, **more):
    app = application(
        [
            Route("/count", count, methods=["POST"]),
            Route("/refuse", refuse),
            Route("/fail", fail, methods=["POST"]),
            Route("/fail-late", fail_late),
            Route("/hold", hold, methods=["POST"]),
        ],
        metrics=Metrics("relay"),
        lifespan=lifespan,
        ready=ready,
        **more,
    )
    app.state.holding = threading.Semaphore(0)
    app.state.let_go = threading.Semaphore(0)
    return app


@pytest.fixture(scope="module")
def why():
    """Why the server is not ready."""
    return [None]


@pytest.fixture(scope="module")
def app(why):
    return build(ready=lambda: why[0])


@pytest.fixture(scope="module")
def address(app):
    with in_thread(app) as address:
        yield address


@pytest.fixture
def client(address):
    with Client(address.url, 30.0) as client:
        yield client


def metric(client, name):
    lines = client.request("GET", "/metrics").body.decode().splitlines()
    (value,) = [line.rpartition(" ")[2] for line in lines if line.startswith(name + " ")]
    return float(value)


def test_health_readiness_and_metrics(client, why):
    assert client.request("GET", "/healthz").body == b"alive\n"
    assert client.request("GET", "/readyz").json() == {"ready": True}
    why[0] = "the disk is full"
    answer = client.request("GET", "/readyz")
    why[0] = None
    assert (answer.status, answer.json()) == (503, {"ready": False, "why": "the disk is full"})
    name = 'upseal_relay_http_requests_total{method="GET",route="/healthz",status="200"}'
    before = metric(client, name)
    client.request("GET", "/healthz")
    assert metric(client, name) == before + 1
    client.request("GET", "/some/path/that/strangers/choose")
    assert b"strangers" not in client.request("GET", "/metrics").body


def test_a_body_up_to_the_limit_is_read(client):
    for size in (0, 1, LIMIT):
        assert client.request("POST", "/count", os.urandom(size)).json() == {"bytes": size}


@pytest.mark.parametrize(
    ("method", "path", "name", "status"),
    [
        ("GET", "/refuse", "full", 503),
        ("GET", "/nothing", "not-found", 404),
        ("GET", "/count", "method-not-allowed", 405),
        ("POST", "/count/", "not-found", 404),
        ("POST", "/fail", "internal", 500),
    ],
)
def test_refusals_are_problems(client, method, path, name, status):
    answer = client.request(method, path, b"a body" if method == "POST" else b"")
    problem = answer.problem()
    assert (problem.name, problem.status) == (name, status)
    assert answer.headers["content-type"] == "application/problem+json"
    assert abs(answer.date / 1000 - time.time()) < 60
    assert problem.retry_after == (3 if name == "full" else None)
    assert ("allow" in answer.headers) == (status == 405)


def test_what_went_wrong_is_told_to_nobody(client, monkeypatch):
    monkeypatch.setenv("UPSEAL_DEBUG", "0")
    stream = io.StringIO()
    handler = logs.setup(json=True, stream=stream)
    try:
        answer = client.request("POST", "/fail", b"a body")
        with pytest.raises(Unreachable):  # the answer had begun: a cut is all that can be said
            client.request("GET", "/fail-late")
        until(lambda: stream.getvalue().count("\n") >= 2)
    finally:
        logging.getLogger().removeHandler(handler)
    assert set(answer.json()) == {"type", "title", "status"}
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["route"]) for line in lines] == [
        ("request failed", "/fail"),
        ("request failed", "/fail-late"),
    ]
    assert any(frame.endswith(" fail") for frame in lines[0]["trace"])
    assert "hunter2" not in stream.getvalue() and "a body" not in stream.getvalue()


def test_a_declared_length_over_the_limit_is_refused_unread(client):
    for size in (LIMIT + 1, 3_000_000):
        assert client.request("POST", "/count", bytes(size)).problem().name == "too-large"
    # The connection is still good for the next.
    assert client.request("POST", "/count", b"x").status == 200


def test_a_result_that_comes_while_somebody_waits(client, app):
    answer = client.request("POST", "/hold?soon=1", b"x", wait=20)
    assert answer.body == b"done"
    assert client.request("POST", "/hold?s=0", b"x").body == b"pending"
    assert client.request("POST", "/hold?s=0.05", b"x").body == b"pending"
    for _ in range(3):
        assert app.state.holding.acquire(timeout=20) and app.state.let_go.acquire(timeout=20)


def test_nobody_is_held_whose_client_is_gone(address, app):
    with socket.create_connection(address[:2]) as sock:
        sock.sendall(b"POST /hold HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx")
        assert app.state.holding.acquire(timeout=20)
    began = time.monotonic()
    assert app.state.let_go.acquire(timeout=20)
    assert time.monotonic() - began < 20


def test_many_threads_and_many_bodies(address, client):
    failed = []

    def work(size):
        try:
            for _ in range(20):
                answer = shared.request("POST", "/count", bytes(size))
                assert answer.json() == {"bytes": size}
        except BaseException as error:
            failed.append(error)

    with Client(address.url, 30.0, connections=2) as shared:
        threads = [threading.Thread(target=work, args=(n * 7919,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
    assert metric(client, "upseal_relay_http_body_bytes") == 0


def test_bodies_of_all_requests_share_a_budget():
    app = build(budget=50_000)
    with in_thread(app) as address, Client(address.url, 30.0) as client:
        with socket.create_connection(address[:2]) as slow:
            slow.sendall(b"POST /count HTTP/1.1\r\nhost: x\r\ncontent-length: 40000\r\n\r\n")
            slow.sendall(bytes(39_999))
            until(lambda: metric(client, "upseal_relay_http_body_bytes") == 39_999)
            problem = client.request("POST", "/count", bytes(20_000)).problem()
            assert (problem.name, problem.retry_after) == ("full", 2)
            assert client.request("POST", "/count", bytes(10_000)).status == 200
        # A client that goes away gives back what it held.
        until(lambda: metric(client, "upseal_relay_http_body_bytes") == 0)
        assert client.request("POST", "/count", bytes(20_000)).status == 200


# -- starts and ends --------------------------------------------------------------------


def test_the_lifespan_surrounds_the_serving():
    told = []

    @asynccontextmanager
    async def lifespan(app):
        told.append("start")
        yield
        told.append("end")

    with in_thread(build(lifespan)) as address, Client(address.url) as client:
        assert told == ["start"] and client.request("GET", "/healthz").status == 200
    assert told == ["start", "end"]
    with pytest.raises(OSError), socket.create_connection(address[:2]):
        pass


def test_errors_of_the_lifespan_are_raised():
    @asynccontextmanager
    async def bad_start(app):
        raise LookupError("no store")
        yield

    @asynccontextmanager
    async def bad_end(app):
        yield
        raise LookupError("cannot write")

    with pytest.raises(LookupError, match="no store"):
        serve(build(bad_start))
    with pytest.raises(LookupError, match="cannot write"), in_thread(build(bad_end)):
        pass


def test_an_address_that_is_taken_is_said_before_anything_starts():
    started = []

    @asynccontextmanager
    async def lifespan(app):
        started.append(1)
        yield

    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError):
        serve(build(lifespan), port=other.getsockname()[1])
    with pytest.raises(ValueError):
        serve(build(lifespan), port=70_000)
    assert not started


@pytest.mark.parametrize(("soft", "hard", "connections"), [(300, 4096, 1000), (300, 656, 200)])
def test_connections_leave_files_to_the_application(soft, hard, connections):
    code = (
        "import resource\n"
        "from upseal.fleet.http.serving import Limits, _afforded\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "print(_afforded(Limits(connections=1000)).connections)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert int(done.stdout) == connections


def test_a_stop_lets_held_requests_go_and_finishes_running_ones():
    app = build()
    stop, addresses, answers = threading.Event(), [], []
    server = threading.Thread(
        target=serve, args=(app,), kwargs={"stop": stop, "on_started": addresses.append}
    )
    server.start()
    until(lambda: addresses)

    def ask():
        with Client(addresses[0].url, 30.0) as client:
            answers.append(client.request("POST", "/hold", b"x", wait=25).body)

    asker = threading.Thread(target=ask)
    asker.start()
    assert app.state.holding.acquire(timeout=20)
    began = time.monotonic()
    stop.set()
    asker.join()
    server.join()
    assert answers == [b"pending"] and time.monotonic() - began < 15


def test_the_grace_is_bounded():
    entered = threading.Event()

    async def stubborn(request):
        entered.set()
        await asyncio.sleep(600)

    app = application([Route("/", stubborn)], metrics=Metrics("relay"))
    answers = []
    with in_thread(app, limits=Limits(grace=1)) as address:

        def ask():
            with Client(address.url, 60.0) as client:
                answers.append(client.request("GET", "/").problem().name)

        asker = threading.Thread(target=ask)
        asker.start()
        assert entered.wait(20)
    asker.join()
    assert answers == ["stopping"]


PROCESS = """
import sys, threading
from contextlib import asynccontextmanager
from upseal.fleet.http import apps, logs, metrics, serving

logs.setup(json=True)

@asynccontextmanager
async def lifespan(app):
    thread = threading.Thread(target=app.state.stop.wait)
    thread.start()
    yield
    app.state.stop.set()
    thread.join()
    print("ended", flush=True)

app = apps.application([], metrics=metrics.Metrics("relay"), lifespan=lifespan)
app.state.stop = threading.Event()
serving.serve(app, on_started=lambda at: print(at.port, flush=True))
print("returned", flush=True)
"""


@contextmanager
def process():
    running = subprocess.Popen(
        [sys.executable, "-c", PROCESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield running, int(running.stdout.readline())
    finally:
        running.kill()
        running.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_process_cleanly(number):
    with process() as (running, port):
        # An idle connection keeps nobody.
        with socket.create_connection(("127.0.0.1", port)) as idle:
            running.send_signal(number)
            out, err = running.communicate(timeout=30)
            idle.close()
        assert (running.returncode, out) == (0, "ended\nreturned\n")
        events = [json.loads(line)["event"] for line in err.splitlines()]
        assert events == ["serving", "stopping", "stopped"]

# SPDX-License-Identifier: Apache-2.0
"""HTTP servers under the same application and load: what a request costs in time and memory.

    python benchmarks/http_servers.py             # some minutes
    python benchmarks/http_servers.py --quick     # one minute: only a look
    python benchmarks/http_servers.py --json

A small Starlette application takes a body by POST and answers a little JSON, as relays and the
server do. Each server runs it in one worker process; 32 connections that are kept alive ask again
as soon as they are answered, from another process. Turns alternate, every turn is a fresh server,
and the figures are medians over the turns. The CPU time is that of the server's process and of all
its children, by psutil, while it was asked; so is the memory, at its most.

- `uvicorn`: with httptools and uvloop, as it comes.
- `granian`: in ASGI mode, with uvloop. Left out, and said so, if it is not installed.
- `upseal`: `upseal.fleet.http`, which is uvicorn with limits, budgets, metrics and logs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib import metadata
from statistics import median, quantiles
from typing import Any

import psutil

from upseal.cli.common import table
from upseal.cli.measure import calibration, interleave, machine

CONNECTIONS = 32
SIZES = (1024, 65536)
WARM, SECONDS, TURNS = 1.0, 5.0, 5
MOST_SECONDS = 10.0
STARTING = 30.0
PARTS = ("uvicorn", "granian", "starlette", "httptools", "uvloop")


# -- what is served, each in a process of its own -----------------------------------------


def application() -> Any:
    """The application that both serve as it is; named in `granian`'s target."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def units(request: Any) -> Any:
        return JSONResponse({"results": [{"bytes": len(await request.body()), "state": "done"}]})

    return Starlette(routes=[Route("/v1/units", units, methods=["POST"])])


def serve_uvicorn(port: int) -> None:
    import uvicorn

    uvicorn.run(application(), port=port, http="httptools", loop="uvloop", ws="none",
                log_level="critical", access_log=False)  # fmt: skip


def serve_granian(port: int) -> None:
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces, Loops

    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    Granian("http_servers:application", port=port, factory=True, interface=Interfaces.ASGI,
            workers=1, loop=Loops.uvloop, http=HTTPModes.http1, websockets=False,
            log_enabled=False).serve()  # fmt: skip


def serve_upseal(port: int) -> None:
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from upseal.fleet.http.apps import application, read_body
    from upseal.fleet.http.metrics import Metrics
    from upseal.fleet.http.serving import serve

    async def units(request: Any) -> Any:
        body = await read_body(request, 1 << 20)
        return JSONResponse({"results": [{"bytes": len(body), "state": "done"}]})

    routes = [Route("/v1/units", units, methods=["POST"])]
    serve(application(routes, metrics=Metrics("relay")), port=port)


SERVERS: dict[str, Callable[[int], None]] = {
    "uvicorn": serve_uvicorn,
    "granian": serve_granian,
    "upseal": serve_upseal,
}


def missing() -> dict[str, str]:
    """Servers that cannot run here, and why."""
    out = {}
    for name in ("uvicorn", "granian"):
        try:
            __import__(name)
        except ImportError as error:
            out[name] = str(error)
    return out


@contextmanager
def served(name: str) -> Any:
    """The process of one server, and its port, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = subprocess.Popen([sys.executable, __file__, "--serve", name, str(port)])
    try:
        end = time.monotonic() + STARTING
        while True:
            if running.poll() is not None:
                raise RuntimeError(f"{name} ended at once")
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        yield psutil.Process(running.pid), port
    finally:
        tree = [psutil.Process(running.pid).children(recursive=True) if running.poll() is None
                else []][0]  # fmt: skip
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(15)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        for child in tree:
            if child.is_running():
                child.kill()


# -- who asks -----------------------------------------------------------------------------


class Asker(asyncio.Protocol):
    """One connection: asks, reads an answer to its end, asks again."""

    def __init__(self, request: bytes, waits: list[float]) -> None:
        self.request, self.waits, self.buffer = request, waits, b""
        self.failed = self.stopping = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.since = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, mark, body = self.buffer.partition(b"\r\n\r\n")
        if not mark:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200 ") or not body.startswith(b'{"results"'):
            self.failed = True
            self.transport.close()
            return
        self.buffer = b""
        self.waits.append(time.perf_counter() - self.since)
        if self.stopping:
            self.transport.close()
        else:
            self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        self.failed |= not self.stopping
        if not self.ended.done():
            self.ended.set_result(None)


async def ask_for(port: int, size: int, seconds: float) -> list[float]:
    """How long each answer took, in seconds; none may fail."""
    request = (
        b"POST /v1/units HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\n"
        b"content-length: %d\r\n\r\n%b"
    ) % (size, random.Random(1).randbytes(size))
    waits: list[float] = []
    loop = asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: Asker(request, waits), "127.0.0.1", port))[1]
        for _ in range(CONNECTIONS)
    ]
    await asyncio.sleep(seconds)
    for asker in made:
        asker.stopping = True
    await asyncio.wait_for(asyncio.gather(*(asker.ended for asker in made)), 30)
    if any(asker.failed for asker in made):
        raise RuntimeError("a request was not answered as it should be")
    return waits


def asking(pipe: Any) -> None:
    """The process that asks: for each (port, size, seconds), the waits and the time it took."""
    import uvloop

    while (task := pipe.recv()) is not None:
        begin = time.perf_counter()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            waits = runner.run(ask_for(*task))
        took = time.perf_counter() - begin
        cuts = quantiles(waits, n=100)
        pipe.send((len(waits), took, cuts[49], cuts[98]))


# -- what it costs ------------------------------------------------------------------------


def tree_of(root: psutil.Process) -> list[psutil.Process]:
    return [root, *root.children(recursive=True)]


def cpu_of(root: psutil.Process) -> float:
    times = [process.cpu_times() for process in tree_of(root)]
    return sum(t.user + t.system for t in times)


def turn(name: str, size: int, seconds: float, pipe: Any) -> dict[str, float]:
    with served(name) as (root, port):
        pipe.send((port, size, WARM))
        pipe.recv()
        before, most = cpu_of(root), 0
        pipe.send((port, size, seconds))
        while not pipe.poll(0.2):
            most = max(most, sum(process.memory_info().rss for process in tree_of(root)))
        count, took, middle, late = pipe.recv()
        used = cpu_of(root) - before
        processes = len(tree_of(root))
    return {"requests": count, "per_second": count / took, "cpu_per_1000": used / count * 1000,
            "cores": used / took, "median_ms": middle * 1e3, "p99_ms": late * 1e3,
            "rss_mb": most / 1e6, "processes": processes}  # fmt: skip


def measure(names: list[str], turns: int, seconds: float) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    asker = context.Process(target=asking, args=(theirs,), daemon=True)
    asker.start()
    rows: dict[tuple[int, str], list[dict[str, float]]] = {}
    order = random.Random(3)
    try:
        for size in SIZES:
            for _ in range(turns):
                # In another order each time: nobody always follows the same neighbour.
                for name in order.sample(names, len(names)):
                    rows.setdefault((size, name), []).append(turn(name, size, seconds, ours))
        ours.send(None)
    finally:
        asker.join(5)
        asker.kill()
    return [
        {"size": size, "server": name, "turns": got,
         **{key: median(row[key] for row in got) for key in got[0]}}
        for (size, name), got in sorted(rows.items(), key=lambda r: (r[0][0], names.index(r[0][1])))
    ]  # fmt: skip


def in_words(rows: list[dict[str, Any]]) -> str:
    head = ["body", "server", "requests/s", "(turns)", "CPU s per 1,000", "(turns)", "median ms",
            "p99 ms", "RSS MB", "processes"]  # fmt: skip
    lines = [head]
    for row in rows:
        rates = [one["per_second"] for one in row["turns"]]
        costs = [one["cpu_per_1000"] for one in row["turns"]]
        lines.append([
            f"{row['size']:,}", row["server"], f"{row['per_second']:,.0f}",
            f"{min(rates):,.0f}-{max(rates):,.0f}", f"{row['cpu_per_1000']:.3f}",
            f"{min(costs):.3f}-{max(costs):.3f}", f"{row['median_ms']:.2f}",
            f"{row['p99_ms']:.2f}", f"{row['rss_mb']:.0f}", f"{row['processes']:.0f}",
        ])  # fmt: skip
    return table(lines, (0, 2, 3, 4, 5, 6, 7, 8, 9))


def versions() -> dict[str, str]:
    out = {}
    for part in PARTS:
        try:
            out[part] = metadata.version(part)
        except metadata.PackageNotFoundError:
            out[part] = "none"
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--quick", action="store_true", help="two turns of two seconds: a look")
    parser.add_argument("--turns", type=int, default=TURNS, help="of each server (default 5)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a turn, at most 10")
    parser.add_argument("--serve", nargs=2, metavar=("SERVER", "PORT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        SERVERS[args.serve[0]](int(args.serve[1]))
        return 0
    turns, seconds = (2, 2.0) if args.quick else (args.turns, min(args.seconds, MOST_SECONDS))
    left_out = missing()
    for name, why in left_out.items():
        print(f"left out: {name} ({why})", file=sys.stderr)
    begin, drift = time.perf_counter(), calibration()
    interleave([drift], begin + 0.5)
    rows = measure([name for name in SERVERS if name not in left_out], turns, seconds)
    facts = {"versions": versions(), "machine": machine(), "drift": drift.spread,
             "connections": CONNECTIONS, "turns": turns, "seconds": seconds,
             "left_out": left_out, "rows": rows}  # fmt: skip
    if args.json:
        print(json.dumps(facts))
        return 0
    host = facts["machine"]
    print(", ".join(f"{part} {version}" for part, version in facts["versions"].items()))
    print(f"{host['cpu']}, {host['usable_cores']} cores, {host['python']}, {host['os']}")
    print(f"{CONNECTIONS} connections kept alive, {turns} turns of {seconds:g} s; medians\n")
    print(in_words(rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

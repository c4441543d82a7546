# SPDX-License-Identifier: Apache-2.0
"""Ingest by a broker: what a front, NATS, one or two openers and PostgreSQL cost, and what limits.

    python benchmarks/ingest.py                      # some ten minutes, on a quiet machine
    python benchmarks/ingest.py --quick              # a look
    python benchmarks/ingest.py --json ingest.json

Each turn fills the stream through the front while no opener runs, then starts one opener or two, by
turns, and takes the time in which the middle nine tenths are stored. CPU time is that of the
processes in that time. PostgreSQL flushes to the disk (`fsync` is on), unless `--no-fsync`. Needs
`nats-server` and PostgreSQL's own programs, as the tests do; all of it is on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / name) for name in ("integrations", "fleet", "")]

import fleet_postgresql  # noqa: E402
import machine  # noqa: E402
import nats  # noqa: E402
import psutil  # noqa: E402
from broker_support import Process, broker  # noqa: E402
from fleet_server_support import sealed  # noqa: E402
from machine import say  # noqa: E402
from test_nats import Halves  # noqa: E402

from upseal.cli.common import table  # noqa: E402
from upseal.fleet.http.results import State  # noqa: E402
from upseal.integrations.nats import read_nats  # noqa: E402

PARTS = ("nats-py", "psycopg", "SQLAlchemy", "uvicorn")
BEGIN, END = 0.95, 0.05
"""Parts of the stream between which the time is taken: starting is not what is measured."""


@dataclass
class Turn:
    """What one turn took."""

    openers: int
    reports: int
    """In the time taken."""
    seconds: float
    cpu: dict[str, float]
    """Seconds, by party."""
    fill: dict[str, float]
    """The front's phase: reports, seconds, and CPU of front and broker."""

    @property
    def rate(self) -> float:
        return self.reports / self.seconds


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--json", metavar="FILE", help="also write the result to this file")
    add("--quick", action="store_true", help="a look")
    add("--turns", type=int, help="of each number of openers (4)")
    add("--units", type=int, help="in each turn (2000)")
    add("--reports", type=int, default=50, help="in a unit (50)")
    add("--size", type=int, default=1000, help="bytes of a report (1000)")
    add("--agents", type=int, default=50, help="that send (50)")
    add("--no-fsync", action="store_true", help="PostgreSQL does not flush: what else limits?")
    args = parser.parse_args()
    args.turns = args.turns or (1 if args.quick else 4)
    args.units = args.units or (600 if args.quick else 2000)
    for name, most in {"turns": 20, "units": 20_000, "reports": 1000, "agents": 500}.items():
        least = 200 if name == "units" else 1
        if not least <= getattr(args, name) <= most:
            parser.error(f"--{name} goes from {least} to {most}")
    return args


def cpu(*roots: int) -> float:
    """Seconds of these processes and of those below them, as far as they live."""
    total = 0.0
    for root in roots:
        process = psutil.Process(root)
        for one in [process, *process.children(recursive=True)]:
            try:
                times = one.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
    return total


class Bench:
    """A deployment in two halves, and what is sent to it."""

    def __init__(self, world: Halves, postgresql: Any, args: argparse.Namespace) -> None:
        self.world, self.args = world, args
        pid = (postgresql._folder / "data" / "postmaster.pid").read_text().split()[0]
        self.postmaster = int(pid)
        for one in world.openers:
            one.stop()
        say(f"{args.agents} agents enrol")
        self.agents = [world.site.enrol(f"agent-{i}") for i in range(args.agents)]

    def bodies(self) -> list[tuple[Any, bytes]]:
        made = []
        for number in range(self.args.units):
            agent = self.agents[number % len(self.agents)]
            records = [os.urandom(self.args.size) for _ in range(self.args.reports)]
            made.append((agent, sealed(self.world.site, agent.unit(*records))))
        return made

    def turn(self, openers: int) -> Turn:
        fill = self._fill(self.bodies())
        running = self.world.openers[:openers]
        for one in running:
            one.start(wait=False)  # it is looked at from before it begins
        seconds, used, share = asyncio.run(self._drain([one.child.pid for one in running]))
        for one in running:
            one.stop()
        return Turn(openers, round(share * fill["reports"]), seconds, used, fill)

    def _fill(self, bodies: list[tuple[Any, bytes]]) -> dict[str, float]:
        front, there = self.world.front.child.pid, self.world.server.child.pid
        before, begun = (cpu(front), cpu(there)), time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            states = list(pool.map(lambda one: one[0].send(one[1])[0].state, bodies))
        assert set(states) == {State.PENDING}
        return {
            "reports": float(len(bodies) * self.args.reports),
            "seconds": time.perf_counter() - begun,
            "front": cpu(front) - before[0], "nats": cpu(there) - before[1],
        }  # fmt: skip

    async def _drain(self, openers: list[int]) -> tuple[float, dict[str, float], float]:
        """Seconds, CPU by party, and which part of the stream went in them."""
        connection = await nats.connect(self.world.server.url)
        place = read_nats(self.world.site.folder, self.world.site.deployment)
        js = connection.jetstream()
        marks = []

        def used() -> dict[str, float]:
            parties = {
                "nats": (self.world.server.child.pid,), "postgresql": (self.postmaster,),
                "front": (self.world.front.child.pid,),
            }  # fmt: skip
            found = {name: cpu(*pids) for name, pids in parties.items()}
            return found | {f"opener {i}": cpu(pid) for i, pid in enumerate(openers, 1)}

        try:
            for bound in (BEGIN, END):
                while True:
                    depth = (await js.stream_info(place.units)).state.messages
                    if depth <= bound * self.args.units:
                        break
                    await asyncio.sleep(0.01)
                marks.append((time.perf_counter(), used(), depth))
            while (await js.stream_info(place.units)).state.messages:
                await asyncio.sleep(0.05)
        finally:
            await connection.close()
        (begun, before, first), (ended, after, last) = marks
        if first == last:
            raise SystemExit("all went between two looks: give more --units")
        spent = {name: after[name] - before[name] for name in after}
        return ended - begun, spent, (first - last) / self.args.units


def limit_of(turns: list[Turn]) -> str:
    """What the rate is bounded by, as far as CPU time can say."""
    cores = machine.cores()
    busy = {
        name: median(turn.cpu.get(name, 0.0) / turn.seconds for turn in turns)
        for name in turns[0].cpu
    }
    whole = sum(busy.values())
    top = sorted(busy.items(), key=lambda one: -one[1])
    shares = ", ".join(f"{name} {100 * part:.0f} %" for name, part in top)
    if whole >= 0.9 * cores:
        return f"the {cores} cores of this machine, shared ({shares} of a core)"
    if top[0][1] >= 0.9:
        return f"{top[0][0]}, one core of it ({shares})"
    return f"no CPU: waiting, for the disk and for turns at writing ({shares} of a core)"


def show(turns: list[Turn]) -> list[str]:
    rows = [["openers", "reports/s", "each turn", "CPU ms for 1,000 reports", "of these"]]
    lines = []
    for count in sorted({turn.openers for turn in turns}):
        mine = [turn for turn in turns if turn.openers == count]
        each = {
            name: median(1e6 * turn.cpu[name] / turn.reports for turn in mine)
            for name in mine[0].cpu
        }
        rows.append([
            str(count), f"{median(turn.rate for turn in mine):,.0f}",
            " ".join(f"{turn.rate:,.0f}" for turn in mine), f"{sum(each.values()):.1f}",
            ", ".join(f"{name} {ms:.1f}" for name, ms in each.items()),
        ])  # fmt: skip
        lines.append(f"limit with {count}: {limit_of(mine)}")
    fills = [turn.fill for turn in turns]
    front = [1e6 * fill["front"] / fill["reports"] for fill in fills]
    there = [1e6 * fill["nats"] / fill["reports"] for fill in fills]
    rate = [fill["reports"] / fill["seconds"] for fill in fills]
    return [
        table(rows),
        *lines,
        f"second opener: x {gain(turns):.2f}" if gain(turns) else "one number of openers alone",
        f"front, filling by one load process: {median(rate):,.0f} reports/s; CPU ms for 1,000 "
        f"reports: front {median(front):.1f}, nats {median(there):.1f}",
    ]


def gain(turns: list[Turn]) -> float:
    one, two = ([turn.rate for turn in turns if turn.openers == n] for n in (1, 2))
    return median(two) / median(one) if one and two else 0.0


@contextmanager
def database(*, fsync: bool) -> Iterator[Any]:
    if fsync:
        fleet_postgresql._OPTIONS = fleet_postgresql._OPTIONS.replace("fsync=off", "fsync=on")
    server = fleet_postgresql.PostgreSql.start()
    try:
        yield server
    finally:
        server.stop()


def main() -> None:
    args = arguments()
    load = os.getloadavg()
    Process.log_level = "info"  # as it is usual
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="upseal-ingest-")))
        postgresql = stack.enter_context(database(fsync=not args.no_fsync))
        server = stack.enter_context(broker(folder / "nats", disk=4 << 30))
        room = max(64 << 20, 2 * args.units * args.reports * (args.size + 64))
        world = Halves(folder, postgresql.database(), stack, server, max_bytes=room).serve(2)
        bench = Bench(world, postgresql, args)
        turns = []
        for number in range(args.turns):
            # Neither always comes second, when the tables are larger.
            for openers in (1, 2) if number % 2 == 0 else (2, 1):
                say(f"turn {number + 1} of {args.turns}, {openers} opener(s)")
                turns.append(bench.turn(openers))
        stored = world.stored()
        assert len(stored) == 2 * args.turns * args.units * args.reports
        assert set(stored.values()) == {1}, "something was stored twice"
    result = {
        "host": machine.facts(), "load": load, "parts": {p: metadata.version(p) for p in PARTS},
        "command": shlex.join(["python", *sys.argv]), "turns": [asdict(turn) for turn in turns],
        "gain": gain(turns),
    }  # fmt: skip
    print("\n".join([*machine.heading(result), "", *show(turns)]))
    machine.save(args.json, "ingest", **result)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Whole fleets by discrete-event simulation (simpy), beside the arithmetic of `upseal capacity`.

    python benchmarks/simulate_fleet.py storms --clients 1000000 --relays 1000,20 --decrypting
    python benchmarks/simulate_fleet.py compare --fleet unit50.json unit1000.json --write-doc
    python benchmarks/simulate_fleet.py curves --write-doc

- `storms`: a calm hour, a restart, a rotation and an outage of one fleet, simulated and counted.
- `compare`: the turns of `fleet.py` measured, counted and simulated, with relative errors.
- `curves`: the pictures and tables of docs/fleet_capacity.md, for 10^3 to 10^7 clients.

What is simulated: agents with the product's own `Pace`, `Flights` and `Backoff`; relays with their
queues, workers, bundles or batches and their limits; the server's interpreter, its group commits
and its opener's cache. What is not: the network's latency and loss, bodies that are read slowly,
bounds on rates and on one hop's new sessions, uploads, PostgreSQL.

Large fleets are simulated by cohorts: ``weight`` agents that do the same at the same moment. A hop
with such a body is busy for ``weight`` units on end, so that a unit waits up to that much longer
than alone (`grain`), and a quantile of the back-off of `K` cohorts is off by about 1/sqrt(K).
Relays are put into groups likewise, at most 200 in a tier: a group's request must stay small beside
what the server takes at once. tests/test_simulation.py runs 1,000 agents and 20 relays both ways.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from itertools import count
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import fleet_curves
import simpy
from capacity_doc import rewrite
from fleet_fit import LEAST, Row, read
from machine import say
from simulation import Body, Cpu, Server, Steps
from simulation_relay import Relay
from simulation_world import Outcome, World

from upseal.cli import fleet_storms
from upseal.cli.common import table
from upseal.cli.fleet_capacity import _tiers, duration
from upseal.cli.fleet_costs import MEASURED, FleetCosts
from upseal.cli.fleet_model import Fleet
from upseal.fleet.relay.settings import Repackage

PAGE = Path(__file__).parents[1] / "docs/fleet_capacity.md"
CORES = 2
ONE_AGENT = 4
"""Units that one agent has on their way at once."""


# -- measured, counted, simulated -----------------------------------------------------------


class Compared(NamedTuple):
    """Reports a second of one way, three times; and what a unit waits, seconds."""

    row: Row
    model: float
    bound: str
    simulated: float
    median: float
    p99: float


def _fleet_of(row: Row) -> Fleet:
    relays = () if row.way == "direct" else (1,)
    return Fleet(
        clients=max(row.agents, 1), relays=relays, decrypting=row.way == "decrypting relay",
        unit=row.unit, report_bytes=row.size, tls=False,
    )  # fmt: skip


def _at_once(row: Row) -> int:
    return ONE_AGENT if row.agents == 1 else min(row.at_once, row.agents)


def counted(row: Row, costs: FleetCosts, cores: int = CORES) -> tuple[float, str]:
    """Reports a second that the arithmetic allows, and what bounds them."""
    fleet = _fleet_of(row)
    server = costs.server(fleet.decrypting, bool(fleet.relays))
    parts = {"agents": costs.agent, "server": server}
    if fleet.relays:
        parts["relay"] = costs.decrypting if fleet.decrypting else costs.passing
    each = {who: cost.of_unit(row.unit, row.size) for who, cost in parts.items()}
    whole = sum(each.values())
    alone = whole + costs.sync * (3 if fleet.relays else 1)
    alone += Repackage().window if fleet.decrypting else 0.0
    bounds = {f"the {who}'s core": 1 / took for who, took in each.items()}
    bounds["all cores"] = cores / whole
    bounds["one after another"] = _at_once(row) / alone
    which = min(bounds, key=bounds.__getitem__)
    return bounds[which] * row.unit, which


def simulated(
    row: Row, costs: FleetCosts, seconds: float = 4.0, cores: int = CORES
) -> tuple[float, float, float]:
    """The same turn in simulated time: reports a second, median and p99 of a unit's wait."""
    env, fleet = simpy.Environment(), _fleet_of(row)
    machine = simpy.Resource(env, cores)
    server = Server(env, fleet, costs, Cpu(env, machine))
    parent: Server | Relay = server
    if fleet.relays:
        parent = Relay(
            env, fleet, costs, -1, server, random.Random(1), decrypts=fleet.decrypting,
            cpu=Cpu(env, machine),
        )  # fmt: skip
    load, keys, waits = Cpu(env, machine), count(1), []
    cost = costs.agent.of_unit(row.unit, row.size)

    def worker(who: int) -> Steps:
        while env.now < seconds:
            begun = env.now
            yield from load.work(cost)
            body = Body(next(keys), 1, row.unit, row.size, (who, 0), begun)
            answer = yield from parent.post(who, 1, [body], 10.0)
            while answer != [True]:
                answer = yield from parent.results(who, 1, [body.key], 10.0)
            waits.append(env.now - begun)

    working = [env.process(worker(who)) for who in range(_at_once(row))]
    env.run(until=simpy.AllOf(env, working))
    waits.sort()
    rate = len(waits) * row.unit / env.now
    return rate, waits[len(waits) // 2], waits[int(len(waits) * 0.99)]


def compare(rows: list[Row], costs: FleetCosts) -> list[Compared]:
    """All rows that were measured."""
    found = []
    for row in rows:
        model, bound = counted(row, costs)
        found.append(Compared(row, model, bound, *simulated(row, costs)))
    return found


def compared_words(found: list[Compared]) -> str:
    """As a table, with how far off each is."""
    lines = [["agents", "way", "unit", "", "measured", "counted", "off", "simulated", "off",
              "p50 ms", "simulated", "off", "bound counted"]]  # fmt: skip
    for one in found:
        row = one.row
        lines.append([
            f"{row.agents:,}", row.way, f"{row.unit:,}",
            "" if row.agents >= LEAST else "not fitted",
            f"{row.rate:,.0f}", f"{one.model:,.0f}", _off(one.model, row.rate),
            f"{one.simulated:,.0f}", _off(one.simulated, row.rate), f"{row.median * 1e3:.0f}",
            f"{one.median * 1e3:.0f}", _off(one.median, row.median), one.bound,
        ])  # fmt: skip
    return table(lines, (0, 2, 4, 5, 6, 7, 8, 9, 10, 11))


def _off(found: float, measured: float) -> str:
    return f"{(found - measured) / measured:+.0%}" if measured else "-"


# -- storms -----------------------------------------------------------------------------------


def storms(
    fleet: Fleet, costs: FleetCosts, seed: int, cohorts: int, minutes: float, hours: float
) -> dict[str, tuple[Outcome, fleet_storms.Storm | None, float]]:
    """By kind: simulated, counted, and the seconds that it took here."""
    every = 1 / fleet.units
    counted_ones = {
        "calm": None,
        "restart": fleet_storms.restart(fleet, costs, minutes),
        "rotation": fleet_storms.rotation(fleet, costs),
        "outage": fleet_storms.outage(fleet, costs, hours),
    }
    found = {}
    for kind, storm in counted_ones.items():
        begun = time.perf_counter()
        # Clients of a relay that waits ask it every ten seconds: hours of that are many events.
        world = World(fleet, costs, seed, min(cohorts, 100) if kind == "outage" else cohorts)
        away = storm.away if storm is not None else 0.0
        most = 600.0 if storm is None else 4 * min(storm.seconds, 86400.0) + 2 * every + 600
        step = max(1.0, most / 5000)
        what = "restart" if kind == "outage" else kind
        outcome = world.run(what, 2 * every, away, most, step)
        found[kind] = outcome, storm, time.perf_counter() - begun
    return found


def storm_words(found: dict[str, tuple[Outcome, fleet_storms.Storm | None, float]]) -> str:
    lines = [["", "made", "stored", "queued", "lost", "came again", "over after", "counted", "by",
              "p50 s", "p99 s", "turned away"]]  # fmt: skip
    for kind, (outcome, storm, _) in found.items():
        over = outcome.drained
        lines.append([
            kind, *(f"{value:,.0f}" for value in (
                outcome.made, outcome.stored, outcome.queued, outcome.lost, outcome.duplicates)),
            "-" if storm is None else "not yet" if over is None else duration(over),
            "-" if storm is None else duration(storm.seconds), "" if storm is None else storm.by,
            f"{outcome.median:.1f}", f"{outcome.p99:.1f}",
            "; ".join(f"{why} {number:,.0f}" for why, number in outcome.turned_away.items()),
        ])  # fmt: skip
    return table(lines, (1, 2, 3, 4, 5, 6, 7, 9, 10))


# -- all of it --------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    one = what.add_parser("storms", help="of one fleet")
    add = one.add_argument
    add("--clients", type=int, default=50_000)
    add("--relays", type=_tiers, default=(50,), metavar="N,N", help="as of `upseal capacity`")
    add("--decrypting", action="store_true")
    add("--reports-per-day", type=float, default=960.0)
    add("--burst", type=float, default=10.0)
    add("--report-bytes", type=float, default=1000.0)
    add("--unit", type=int, default=1000)
    add("--away-minutes", type=float, default=5.0)
    add("--away-hours", type=float, default=8.0)
    add("--cohorts", type=int, default=1000, help="of agents, at most (1000)")
    add("--seed", type=int, default=1)
    add("--json", action="store_true")
    one = what.add_parser("compare", help="with runs of fleet.py")
    one.add_argument("--fleet", nargs="+", type=Path, required=True, metavar="FILE",
                     help="runs as JSON, or a page with what was printed")  # fmt: skip
    one.add_argument("--write-doc", action="store_true")
    one = what.add_parser("curves", help="of docs/fleet_capacity.md")
    one.add_argument("--write-doc", action="store_true")
    one.add_argument("--no-simulation", action="store_true", help="the arithmetic alone")
    return parser.parse_args()


def run_storms(args: argparse.Namespace) -> str:
    fleet = Fleet(
        clients=args.clients, relays=args.relays, decrypting=args.decrypting, unit=args.unit,
        reports_per_day=args.reports_per_day, burst=args.burst, report_bytes=args.report_bytes,
    )  # fmt: skip
    found = storms(fleet, MEASURED, args.seed, args.cohorts, args.away_minutes, args.away_hours)
    if args.json:
        return json.dumps(
            {kind: {"simulated": outcome.facts(),
                    "counted": None if storm is None else fleet_storms.as_facts(storm)}
             for kind, (outcome, storm, _) in found.items()}
        )  # fmt: skip
    weight = -(-fleet.clients // args.cohorts)
    grain = weight * max(
        MEASURED.passing.of_unit(fleet.in_unit, fleet.report_bytes),
        MEASURED.server(fleet.decrypting, bool(fleet.relays)).of_unit(
            fleet.in_unit, fleet.report_bytes
        ),
    )  # fmt: skip
    took = sum(seconds for *_, seconds in found.values())
    return (f"{storm_words(found)}\n{weight:,} agents in a cohort, grain {duration(grain)}; seed "
            f"{args.seed}; {took:.0f} s in all")  # fmt: skip


def simulated_restart(fleet: Fleet) -> float | None:
    """For the curves: seconds until a restart of five minutes is over."""
    storm = fleet_storms.restart(fleet, MEASURED)
    if not isfinite(storm.seconds):
        return None
    say(f"{fleet.clients:,} clients, relays {fleet.relays}")
    every = 1 / fleet.units
    world = World(fleet, MEASURED, 1, 1000)
    return world.run("restart", 2 * every, storm.away, 4 * storm.seconds + 600, 2.0).drained


def main() -> int:
    args = arguments()
    if args.what == "storms":
        print(run_storms(args))
        return 0
    if args.what == "compare":
        runs = [run for path in args.fleet for run in read(path)]
        rows = [row for run in runs for row in run.rows]
        words = f"```text\n{runs[0].where}\n\n{compared_words(compare(rows, MEASURED))}```\n"
        blocks = {"compare": words}
    else:
        drain = None if args.no_simulation else simulated_restart
        blocks = fleet_curves.blocks(MEASURED, drain, write=args.write_doc)
    for name, block in blocks.items():
        print(block)
        if args.write_doc:
            page = PAGE.read_text(encoding="utf-8")
            marks = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
            PAGE.write_text(rewrite(page, block, *marks), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

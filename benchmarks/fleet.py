# SPDX-License-Identifier: Apache-2.0
"""The fleet, end to end: agents, relays and a server as processes over loopback.

    python benchmarks/fleet.py                       # under eight minutes
    python benchmarks/fleet.py --quick               # under a minute: only a look
    python benchmarks/fleet.py --json fleet.json
    python benchmarks/fleet.py --unit 1000           # larger units

A server, a passing relay and a decrypting relay run as `upseal server|relay run`. Simulated agents,
each with keys, a session and numbers of its own, send signed units from one process, and wait for a
receipt that verifies. What is compared (sealed and clear on the same way) runs by turns. CPU time
is that of the processes; load, relay and server share this machine's cores, so the rate is that of
all of it on one machine, and the CPU time is what capacity is planned by.

- `first contact`: the first unit of each agent, with a new session and an unknown credential.
- `flush`: a real agent's process (`upseal agent run --once`) and its spool.
- `rotation`: from the call of `rotate` until the last client has a receipt under the new key.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import fleet_agents
import machine
from fleet_load import Load, Turn
from fleet_site import WAYS, Site
from machine import say

from upseal.cli.common import table
from upseal.cli.measure import calibration, interleave

PARTS = ("uvicorn", "starlette", "httptools", "uvloop", "SQLAlchemy", "urllib3", "joserfc")
PARTIES = ("agents", "relay", "server")


def numbers(text: str) -> list[int]:
    found = sorted({int(part.replace("_", "")) for part in text.split(",")})
    if not found or found[0] < 1 or found[-1] > 10_000:
        raise argparse.ArgumentTypeError("numbers from 1 to 10000, with commas between")
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--json", metavar="FILE", help="also write the result to this file")
    add("--quick", action="store_true", help="fewer, shorter turns: only a look")
    add("--agents", type=numbers, metavar="N,N", help="simulated agents (1,100,2000)")
    add("--reports", type=int, help="of one turn, at most (40000)")
    add("--seconds", type=float, help="of one turn, after which no unit is begun (4)")
    add("--turns", type=int, help="of each, sealed and clear (4)")
    add("--unit", type=int, default=50, help="reports in a unit (50)")
    add("--size", type=int, default=1000, help="bytes of a report (1000)")
    add("--at-once", type=int, default=256, help="requests under way at once, at most (256)")
    add("--flush", type=int, help="reports in a real agent's spool (20000); 0: leave out")
    add("--watchers", type=int, help="clients that wait for a rotation (50); 0: leave out")
    add("--real", type=int, help="real agents' processes among them (3)")
    add("--poll", type=float, help="seconds between looks for a manifest (5)")
    add("--folder", metavar="DIR", help="where the temporary deployment goes")
    args = parser.parse_args()
    usual = {"agents": ([1, 100, 2000], [1, 100]), "reports": (40_000, 15_000), "turns": (4, 1),
             "seconds": (4.0, 1.5), "flush": (20_000, 3_000), "watchers": (50, 12), "real": (3, 1),
             "poll": (5.0, 1.0)}  # fmt: skip
    for name, choices in usual.items():
        if getattr(args, name) is None:
            setattr(args, name, choices[args.quick])
    bounds = {"reports": 10**6, "seconds": 30, "turns": 20, "unit": 10_000, "size": 1 << 20,
              "at_once": 2000, "flush": 10**6, "watchers": 500, "real": 10, "poll": 60}  # fmt: skip
    for name, most in bounds.items():
        least = 0 if name in ("flush", "watchers", "real") else 0.05 if name == "poll" else 1
        if not least <= getattr(args, name) <= most:
            parser.error(f"--{name.replace('_', '-')} goes from {least:g} to {most:g}")
    if 0 < args.watchers < len(WAYS):
        parser.error("--watchers: one for each way, at least")
    return args


# -- turns --------------------------------------------------------------------------------


def compare(site: Site, args: argparse.Namespace) -> tuple[Load, dict[str, list[Turn]]]:
    load = Load(site, args.size, args.unit, args.at_once)
    every = max(args.agents)
    say(f"first contact of {every:,} agents")
    first = [load.turn(way, every, True, every * args.unit) for way in WAYS]
    turns = []
    for count in args.agents:
        for way in WAYS:
            say(f"{count:,} agents, {way}")
            for number in range(args.turns):
                # Nobody always comes second, when the machine is warm or the disk is busy.
                for sealed in (True, False) if number % 2 == 0 else (False, True):
                    turns.append(load.turn(way, count, sealed, args.reports, args.seconds))
    return load, {"first": first, "turns": turns}


def rows_of(turns: list[Turn]) -> list[dict[str, Any]]:
    """Medians over turns; ratios pair by pair, since the machine drifts."""
    rows = []
    for count, way in dict.fromkeys((turn.agents, turn.way) for turn in turns):
        mine = [turn for turn in turns if (turn.agents, turn.way) == (count, way)]
        sealed, clear = ([t for t in mine if t.sealed is kind] for kind in (True, False))
        row: dict[str, Any] = {"agents": count, "way": way}
        for name, found in (("sealed", sealed), ("clear", clear)):
            row[name] = {
                "rate": median(turn.rate for turn in found),
                "rates": [round(turn.rate) for turn in found],
                "cpu": {who: median(cost(t, who) for t in found) for who in found[0].cpu},
                "peak_mb": {who: max(t.peak_mb[who] for t in found) for who in found[0].peak_mb},
                "median_ms": median(turn.median_ms for turn in found),
                "p99_ms": median(turn.p99_ms for turn in found),
            }
        pairs = list(zip(sealed, clear, strict=True))
        row["rate_ratio"] = median(a.rate / b.rate for a, b in pairs)
        row["cpu_ratio"] = median(whole(a) / whole(b) for a, b in pairs if whole(b))
        rows.append(row)
    return rows


def cost(turn: Turn, who: str) -> float:
    """CPU seconds for 1,000 reports."""
    return turn.cpu.get(who, 0.0) / turn.receipted * 1000


def whole(turn: Turn) -> float:
    return sum(cost(turn, who) for who in turn.cpu)


# -- words --------------------------------------------------------------------------------


def micros(found: dict[str, float]) -> dict[str, float]:
    """Of one report, from seconds for 1,000."""
    return {who: used * 1e3 for who, used in found.items()}


def figure(found: dict[str, float], who: str, form: str) -> str:
    return format(found[who], form) if who in found else "-"


def in_words(result: dict[str, Any]) -> str:
    args = result["settings"]
    parts = [
        *machine.heading(result),
        f"reports of {args['size']:,} bytes, {args['unit']} a unit; {args['turns']} turns each, "
        "by turns: medians",
        "",
    ]
    lines = [["agents", "way", "", "reports/s", "(turns)", "CPU us a report: agents", "relay",
              "server", "unit p50 ms", "p99 ms", "sealed:clear, rate", "CPU"]]  # fmt: skip
    for row in result["rows"]:
        for name in ("sealed", "clear"):
            found = row[name]
            ratios = [f"{row['rate_ratio']:.2f}", f"{row['cpu_ratio']:.2f}"]
            lines.append([
                f"{row['agents']:,}", row["way"], name, f"{found['rate']:,.0f}",
                f"{min(found['rates']):,}-{max(found['rates']):,}",
                *(figure(micros(found["cpu"]), who, ".1f") for who in PARTIES),
                f"{found['median_ms']:.1f}", f"{found['p99_ms']:.1f}",
                *(ratios if name == "sealed" else ["", ""]),
            ])  # fmt: skip
    parts += [table(lines, (0, *range(3, 12))), "most memory, MB (sealed)"]
    lines = [["agents", "way", *PARTIES]]
    for row in result["rows"]:
        peaks = row["sealed"]["peak_mb"]
        lines.append(
            [f"{row['agents']:,}", row["way"], *(figure(peaks, w, ".0f") for w in PARTIES)]
        )
    parts += [table(lines, (0, 2, 3, 4))]
    parts += [f"first contact: {result['first'][0]['agents']:,} agents, one unit of "
              f"{args['unit']} each, new sessions"]  # fmt: skip
    lines = [["way", "reports/s", "units/s", "CPU ms a unit: agents", "relay", "server"]]
    for found in result["first"]:
        each = {who: used / found["units"] * 1e3 for who, used in found["cpu"].items()}
        lines.append([
            found["way"], f"{found['receipted'] / found['seconds']:,.0f}",
            f"{found['units'] / found['seconds']:,.0f}",
            *(figure(each, who, ".2f") for who in PARTIES),
        ])  # fmt: skip
    parts += [table(lines, (1, 2, 3, 4, 5)), *flushed(result), *rotated(result)]
    parts += [
        f"made {result['made']:,}, receipted {result['receipted']:,}, in the database "
        f"{result['stored']:,}; {result['seconds']:.0f} s in all"
    ]
    return "\n".join(parts)


def flushed(result: dict[str, Any]) -> list[str]:
    found = result["flush"]
    if found is None:
        return []
    head = (f"a real agent, direct: `upseal agent run --once`, units of {found['unit']}; with "
            f"nothing in the spool it takes {found['empty']['cpu']:.2f} s of CPU, "
            f"{found['empty']['seconds']:.2f} s, {found['empty']['peak_mb']:.0f} MB")  # fmt: skip
    lines = [["", "reports", "seconds", "reports/s", "CPU us each", "without start", "server",
              "most MB", f"spooling ({found['chunk']} a call), us each"]]  # fmt: skip
    for sealed in (True, False):
        mine = [turn for turn in found["turns"] if turn["sealed"] is sealed]
        one = {key: median(turn[key] for turn in mine) for key in mine[0]}
        count = one["reports"]
        lines.append([
            "sealed" if sealed else "clear", f"{count:,.0f}", f"{one['seconds']:.2f}",
            f"{count / one['seconds']:,.0f}", f"{one['cpu'] / count * 1e6:.1f}",
            f"{(one['cpu'] - found['empty']['cpu']) / count * 1e6:.1f}",
            f"{one['server_cpu'] / count * 1e6:.1f}", f"{one['peak_mb']:.0f}",
            f"{one['spool_cpu'] / count * 1e6:.1f}",
        ])  # fmt: skip
    return [head, table(lines, range(1, 9))]


def rotated(result: dict[str, Any]) -> list[str]:
    found = result["rotation"]
    if found is None:
        return []
    head = (
        f"rotation: {found['watchers']} simulated clients and {len(found['real'])} real ones, "
        f"looking every {found['poll']:g} s; `rotate` itself took {found['rotate']:.1f} s"
    )
    lines = [["clients", "number", "median s", "last s"]]
    for way, one in found["ways"].items():
        lines.append([way, str(one["clients"]), f"{one['median']:.1f}", f"{one['last']:.1f}"])
    if found["real"]:
        real = found["real"]
        lines.append(["real agents", str(len(real)), f"{median(real):.1f}", f"{real[-1]:.1f}"])
    return [head, table(lines, (1, 2, 3))]


# -- all of it ----------------------------------------------------------------------------


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    load_before, begin = os.getloadavg(), time.perf_counter()
    drift = calibration()
    interleave([drift], begin + 0.5)
    say("making the deployment")
    with Site(folder, max(*args.agents, args.watchers), args.poll) as site:
        load, found = compare(site, args)
        flush = rotation = None
        if args.flush:
            say("a real agent's spool")
            flush = fleet_agents.flush(site, args.flush, args.size, max(1, args.turns - 1))
        counted = found["first"] + found["turns"]
        made, stored = sum(turn.made for turn in counted), site.stored()
        if flush is not None:
            stored -= sum(turn["reports"] for turn in flush["turns"])
        if args.watchers:
            say("rotation")
            rotation = fleet_agents.rotate(site, args.watchers, args.real)
    if not made == load.receipted == stored:
        raise RuntimeError(f"made {made}, receipted {load.receipted}, stored {stored}")
    return {
        "settings": {k: v for k, v in vars(args).items() if k not in ("json", "folder")},
        "command": " ".join(["python benchmarks/fleet.py", *sys.argv[1:]]),
        "parts": {part: metadata.version(part) for part in PARTS},
        "host": machine.facts(), "load": load_before, "drift": drift.spread,
        "made": made, "receipted": load.receipted, "stored": stored,
        "rows": rows_of(found["turns"]),
        "first": [turn.facts() for turn in found["first"]],
        "turns": [turn.facts() for turn in found["turns"]],
        "flush": flush, "rotation": rotation, "seconds": time.perf_counter() - begin,
    }  # fmt: skip


def main() -> int:
    args = arguments()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 8192:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    with tempfile.TemporaryDirectory(prefix="upseal-fleet-", dir=args.folder) as folder:
        result = measure(args, Path(folder))
    machine.save(args.json, "fleet", **result)
    print(in_words(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

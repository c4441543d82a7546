# SPDX-License-Identifier: Apache-2.0
"""From measured runs of a whole fleet to what a unit, a report and a byte cost each hop.

    python benchmarks/fleet.py --json unit50.json
    python benchmarks/fleet.py --agents 1,100 --unit 1000 --at-once 32 --reports 100000 \\
        --seconds 3 --turns 2 --flush 0 --watchers 0 --json unit1000.json
    python benchmarks/fleet.py --agents 100 --size 8000 --turns 2 --flush 0 --watchers 0 \\
        --json size8000.json
    python benchmarks/fleet_extras.py --json extras.json
    python benchmarks/fleet_fit.py --fleet unit50.json unit1000.json size8000.json \\
        --extras extras.json --write

Fitted is CPU time alone, from the rows with 100 agents or more: no rate and no latency of a run
goes into what `simulate_fleet.py` compares with that run, and no row of one agent. In place of a
run of `fleet.py` may stand a page with what it printed (docs/capacity.md).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from upseal.cli import fleet_costs
from upseal.cli.fleet_costs import FleetCosts, HopCost

BEGIN, END = "# measured:begin\n", "# measured:end\n"
WAYS = ("direct", "passing relay", "decrypting relay")
LEAST = 100
"""Agents of the rows that are fitted."""
_ROW = re.compile(
    r"^ *([\d,]+)  (direct|passing relay|decrypting relay) +sealed +([\d,]+) +[\d,]+-[\d,]+ "
    r"+([\d.]+) +(-|[\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)",
    re.M,
)
_FIRST = re.compile(
    r"^(direct|passing relay|decrypting relay) +[\d,]+ +[\d,]+ +([\d.]+) +(-|[\d.]+) +([\d.]+)$",
    re.M,
)


class Row(NamedTuple):
    """One line of a run: medians, sealed. CPU seconds a unit, by who."""

    agents: int
    way: str
    unit: int
    size: int
    at_once: int
    rate: float
    """Reports a second."""
    cpu: dict[str, float]
    median: float
    """Seconds from the sending of a unit to its receipt."""
    p99: float


class First(NamedTuple):
    """CPU seconds of an agent's first unit."""

    way: str
    agents: int
    unit: int
    cpu: dict[str, float]


class Run(NamedTuple):
    """What a run of `fleet.py` came to."""

    rows: list[Row]
    first: list[First]
    where: str
    rotation: dict[str, Any] | None


def read(path: Path) -> list[Run]:
    """A run as JSON, or the runs on a page."""
    text = path.read_text(encoding="utf-8")
    return [_from_json(json.loads(text))] if text.startswith("{") else _from_page(text)


def _from_json(found: dict[str, Any]) -> Run:
    said, host = found["settings"], found["host"]
    unit, size, at_once = said["unit"], said["size"], said["at_once"]
    rows = [
        Row(row["agents"], row["way"], unit, size, at_once, row["sealed"]["rate"],
            {who: used / 1000 * unit for who, used in row["sealed"]["cpu"].items()},
            row["sealed"]["median_ms"] / 1e3, row["sealed"]["p99_ms"] / 1e3)
        for row in found["rows"]
    ]  # fmt: skip
    first = [
        First(one["way"], one["agents"], unit,
              {who: used / one["units"] for who, used in one["cpu"].items()})
        for one in found["first"]
    ]  # fmt: skip
    where = (f"{host['cpu']}, {host['cores']} cores, {host['os']}, Python "
             f"{host['versions']['Python']}, upseal {host['versions']['upseal']} "
             f"({host['revision']}), {host['when']}, drift {found['drift']:.0%}")  # fmt: skip
    return Run(rows, first, where, found["rotation"])


def _from_page(text: str) -> list[Run]:
    """Of each block that `fleet.py` printed: 1,000 bytes; 50 a unit, or as its command says."""
    runs = []
    for block in re.findall(r"^```text\n(.*?)^```", text, re.M | re.S):
        if "unit p50 ms" not in block:
            continue
        before = text[: text.index(block)]
        command = block if "benchmarks/fleet.py" in block else before[-500:]
        given = re.search(r"--unit (\d+)", command)
        more = re.search(r"--at-once (\d+)", command)
        unit, at_once = int(given[1]) if given else 50, int(more[1]) if more else 256

        def used(
            agents: str, relay: str, server: str, scale: float, unit: int = unit
        ) -> dict[str, float]:
            found = {"agents": agents, "relay": relay, "server": server}
            return {who: float(took) * scale for who, took in found.items() if took != "-"}

        rows = [
            Row(int(n.replace(",", "")), way, unit, 1000, at_once, float(rate.replace(",", "")),
                used(a, r, s, 1e-6 * unit), float(p50) / 1e3, float(p99) / 1e3)
            for n, way, rate, a, r, s, p50, p99 in _ROW.findall(block)
        ]  # fmt: skip
        first = [First(w, 2000, unit, used(a, r, s, 1e-3)) for w, a, r, s in _FIRST.findall(block)]
        where = "; ".join(block.splitlines()[:1] + re.findall(r"^20.*$", block, re.M))
        runs.append(Run(rows, first, where or (runs[0].where if runs else "unknown"), None))
    if not runs:
        raise ValueError("there is no table of fleet.py on the page")
    return runs


def hop(runs: Iterable[Run], way: str, who: str) -> HopCost:
    """What a hop spends on that way: two or three settings, as many unknowns."""
    runs = list(runs)
    base = _mean(runs, way, who, 50, 1000)
    large = _mean(runs, way, who, 1000, 1000)
    heavy = _mean(runs, way, who, 50, 8000)
    if base is None or large is None:
        raise ValueError("it takes runs with --unit 50 and with --unit 1000, reports of 1000 bytes")
    each = max(0.0, (large - base) / 950)
    byte = 0.0 if heavy is None else min(each / 1000, max(0.0, (heavy - base) / (50 * 7000)))
    met = [
        found.cpu[who]
        for run in runs
        for found in run.first
        if (found.way, found.unit) == (way, 50)
        and found.agents >= LEAST
        and run.rows[0].size < 2000
    ]
    first = max(0.0, sum(met) / len(met) - base) if met else 0.0
    return HopCost(max(0.0, base - 50 * each), each - 1000 * byte, byte, first)


def _mean(runs: Iterable[Run], way: str, who: str, unit: int, size: int) -> float | None:
    found = [
        row.cpu[who]
        for run in runs
        for row in run.rows
        if (row.way, row.unit, row.size) == (way, unit, size) and row.agents >= LEAST
    ]
    return sum(found) / len(found) if found else None


def fit(runs: list[Run], extras: dict[str, Any]) -> FleetCosts:
    """All costs; the public-key work of a first contact is `unwrap`, and not in ``first`` twice."""
    crypto = extras["crypto"]

    def server(way: str) -> HopCost:
        found = hop(runs, way, "server")
        unwraps = crypto["first"] if way != "decrypting relay" else 0.0
        return HopCost(found.unit, found.report, found.byte, max(0.0, found.first - unwraps))

    def relay(way: str) -> HopCost:
        found = hop(runs, way, "relay")
        unwraps = crypto["first"] if way == "decrypting relay" else 0.0
        return HopCost(found.unit, found.report, found.byte, max(0.0, found.first - unwraps))

    agent = hop(runs, "direct", "agents")
    return FleetCosts(
        runs[0].where, HopCost(agent.unit, agent.report, agent.byte, 0.0),
        relay("passing relay"), relay("decrypting relay"), *(server(way) for way in WAYS),
        session=crypto["session"], wrap=crypto["wrap"], unwrap=crypto["first"],
        poll_server=extras["poll"]["server"], poll_relay=extras["poll"]["passing"],
        sync=extras["sync"], sync_byte=extras["sync_byte"], handshake=extras["handshake"],
        connection_bytes=extras["connection"]["server"], stored_bytes=max(0.0, extras["stored"]),
    )  # fmt: skip


def written(costs: FleetCosts) -> str:
    """As Python, in the house's format."""
    lines = ["MEASURED = FleetCosts("]
    words, at = costs.where.split(" "), 0
    lines.append("    where=(")
    while at < len(words):
        line = ""
        while at < len(words) and len(line) + len(words[at]) < 80:
            line, at = f"{line}{words[at]} ", at + 1
        lines.append(f'        "{line if at < len(words) else line.rstrip()}"')
    lines.append("    ),")
    for name in ("agent", "passing", "decrypting", "server_direct", "server_passing",
                 "server_decrypting"):  # fmt: skip
        cost: HopCost = getattr(costs, name)
        inside = ", ".join(
            f"{part}={_short(getattr(cost, part))}" for part in ("unit", "report", "byte", "first")
        )
        lines.append(f"    {name}=HopCost({inside}),")
    for name in ("session", "wrap", "unwrap", "poll_server", "poll_relay", "sync", "sync_byte",
                 "handshake", "connection_bytes", "stored_bytes"):  # fmt: skip
        lines.append(f"    {name}={_short(getattr(costs, name))},")
    return "\n".join([*lines, ")"]) + "\n"


def _short(value: float) -> str:
    """Three digits that count, as ruff writes them."""
    return repr(float(f"{value:.3g}"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--fleet", nargs="+", type=Path, required=True, metavar="FILE", help="runs of fleet.py")
    add("--extras", type=Path, required=True, metavar="FILE", help="of fleet_extras.py")
    add("--write", action="store_true", help="into the package, in place of what is there")
    args = parser.parse_args()
    runs = [run for path in args.fleet for run in read(path)]
    new = written(fit(runs, json.loads(args.extras.read_text(encoding="utf-8"))))
    print(new, end="")
    if args.write:
        page = Path(fleet_costs.__file__)
        text = page.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(before + BEGIN + new + END + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

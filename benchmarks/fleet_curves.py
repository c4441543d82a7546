# SPDX-License-Identifier: Apache-2.0
"""Tables and pictures of docs/fleet_capacity.md: 10^3 to 10^7 clients in several topologies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html import escape
from math import isfinite
from pathlib import Path

import charts

from upseal.cli.capacity import percent
from upseal.cli.fleet_capacity import duration
from upseal.cli.fleet_costs import FleetCosts
from upseal.cli.fleet_model import Fleet, first_full, hops
from upseal.cli.fleet_storms import outage, restart, rotation

FOLDER = Path(__file__).parents[1] / "docs/img"
SIZES = tuple(10**n for n in range(3, 8))
POINTS = tuple(round(10 ** (n / 4)) for n in range(12, 29))
STYLE = """<style>
svg { --ink: #1c2024; --soft: #60666d; --rule: #d5d5d0; --paper: #fbfbf9; --c0: #0b6e75;
  --c1: #c2571a; --c2: #6a4fb5; --c3: #2f7d32; --c4: #b03a72; --c5: #8a6d1f;
  font: 13px system-ui, sans-serif }
@media (prefers-color-scheme: dark) { svg { --ink: #e7e9ea; --soft: #9aa3ab; --rule: #31373d;
  --paper: #14171a; --c0: #3fb8bf; --c1: #f0935a; --c2: #ab97ee; --c3: #7cc47f; --c4: #ec86b4;
  --c5: #d4b45a } }
.paper { fill: var(--paper) } text { fill: var(--ink) }
.tick, .axis { fill: var(--soft); font-size: 12px }
.grid { stroke: var(--rule) } polyline { fill: none; stroke-width: 2 }
.dashed { stroke-dasharray: 6 4 } circle.dashed { stroke-dasharray: none }
.lead { stroke-width: 1; opacity: .45; stroke-dasharray: none }
.c0 { stroke: var(--c0) } .c1 { stroke: var(--c1) } .c2 { stroke: var(--c2) }
.c3 { stroke: var(--c3) } .c4 { stroke: var(--c4) } .c5 { stroke: var(--c5) }
circle.c0 { fill: var(--c0) } circle.c1 { fill: var(--c1) } circle.c2 { fill: var(--c2) }
circle.c3 { fill: var(--c3) } circle.c4 { fill: var(--c4) } circle.c5 { fill: var(--c5) }
text.label { stroke: none } text.c0 { fill: var(--c0) } text.c1 { fill: var(--c1) }
text.c2 { fill: var(--c2) } text.c3 { fill: var(--c3) } text.c4 { fill: var(--c4) }
text.c5 { fill: var(--c5) }
</style>"""


def _per(clients: int, each: int) -> int:
    return -(-clients // each)


TOPOLOGIES: dict[str, Callable[[int], Fleet]] = {
    "direct": lambda n: Fleet(clients=n, relays=()),
    "passing, 1,000 a relay": lambda n: Fleet(clients=n, relays=(_per(n, 1000),)),
    "decrypting, 1,000 a relay": lambda n: Fleet(
        clients=n, relays=(_per(n, 1000),), decrypting=True
    ),
    "passing, 3,000, two tiers": lambda n: Fleet(
        clients=n, relays=(_per(n, 3000), _per(n, 150_000))
    ),
    "decrypting, 3,000, two tiers": lambda n: Fleet(
        clients=n, relays=(_per(n, 3000), _per(n, 150_000)), decrypting=True
    ),
}
Drain = Callable[[Fleet], float | None]


def picture(name: str, about: str, series: list[charts.Line], y_axis: str, write: bool) -> str:
    """A file for an ``<img>``: with colours for light and dark, and words for who cannot see it."""
    drawn = charts.curves(
        series, ("clients", lambda value: f"{value:,.0f}", True), (y_axis, _short, True), SIZES
    )
    head, _, rest = drawn.partition(">")
    words = f"<title>{escape(about)}</title>"
    paper = '<rect class="paper" width="100%" height="100%"/>'
    if write:
        FOLDER.mkdir(exist_ok=True)
        text = f'{head} aria-label="{escape(about)}">{words}{STYLE}{paper}{rest}\n'
        (FOLDER / f"{name}.svg").write_text(text, encoding="utf-8")
    return f"![{about}](img/{name}.svg)\n"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def blocks(costs: FleetCosts, drain: Drain | None, *, write: bool) -> dict[str, str]:
    """By their markers in the page."""
    return {
        "server": _server(costs, write),
        "connections": _connections(costs, write),
        "first": _first(costs),
        "storms": _storms(costs, drain, write),
    }


def _server(costs: FleetCosts, write: bool) -> str:
    series = [
        charts.Line(name, [(n, hops(fleet(n), costs)[-1].steady) for n in POINTS])
        for name, fleet in TOPOLOGIES.items()
    ]
    series.append(
        charts.Line("70 % of one core", [(POINTS[0], 0.7), (POINTS[-1], 0.7)], dashed=True)
    )
    about = "Cores that the server needs, by the number of clients, in five topologies"
    return picture("fleet-server", about, series, "cores of the server", write)


def _connections(costs: FleetCosts, write: bool) -> str:
    series = [
        charts.Line(
            name, [(n, max(1.0, hops(fleet(n), costs)[-1].uses["connections"].value))
                   for n in POINTS])
        for name, fleet in list(TOPOLOGIES.items())[:4] if not name.startswith("decrypting")
    ]  # fmt: skip
    limit = float(Fleet().server.connections)
    series.append(
        charts.Line("the server's limit", [(POINTS[0], limit), (POINTS[-1], limit)], dashed=True)
    )
    about = "Connections that the server holds open, by the number of clients"
    return picture("fleet-connections", about, series, "connections at the server", write)


def _first(costs: FleetCosts) -> str:
    lines = [f"| clients | {' | '.join(TOPOLOGIES)} |", "|---:" + "|---" * len(TOPOLOGIES) + "|"]
    changes: dict[str, str] = {}
    for size in SIZES:
        cells = []
        for topology in TOPOLOGIES.values():
            found = first_full(topology(size), costs)
            bold = "**" if found.share > 1 else ""
            number = len(changes) + 1
            note = changes.setdefault(found.change, str(number))
            cells.append(f"{bold}{found.what}, {found.hop}: {percent(found.share)}{bold} ({note})")
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    lines += ["", "What to change, by the number in brackets:", ""]
    lines += [f"{number}. {change}" for change, number in changes.items()]
    lines += ["", "With so many relays as at 1,000,000 clients, something is full with", ""]
    for name, topology in TOPOLOGIES.items():
        lines.append(f"- {name}: {first_full(topology(10**6), costs).clients:,} clients")
    return "\n".join(lines) + "\n"


def _storms(costs: FleetCosts, drain: Drain | None, write: bool) -> str:
    lines = [
        "| clients | topology | restart | simulated | rotation | outage, 8 h | slowest of it |",
        "|---:|---|---:|---:|---:|---:|---|",
    ]
    for size in SIZES:
        for name, topology in TOPOLOGIES.items():
            fleet = topology(size)
            storms = [restart(fleet, costs), rotation(fleet, costs), outage(fleet, costs)]
            fits = first_full(fleet, costs).share <= 1
            found = drain(fleet) if drain is not None and fits else None
            lines.append(
                f"| {size:,} | {name} | {duration(storms[0].seconds)} "
                f"| {'-' if found is None else duration(found)} "
                f"| {duration(storms[1].seconds)} | {duration(storms[2].seconds)} "
                f"| {storms[2].by} |"
            )
    series = []
    for name, topology in TOPOLOGIES.items():
        found = [(n, outage(topology(n), costs).seconds) for n in POINTS]
        series.append(charts.Line(name, [(n, s) for n, s in found if isfinite(s)]))
    unit = [(n, outage(replace(TOPOLOGIES["passing, 1,000 a relay"](n), burst=100.0), costs))
            for n in POINTS]  # fmt: skip
    series.append(
        charts.Line("passing, 100 reports a unit",
                    [(n, storm.seconds) for n, storm in unit if isfinite(storm.seconds)],
                    dashed=True)
    )  # fmt: skip
    about = "Seconds until a fleet is as before after the server was away for eight hours"
    return (
        picture("fleet-outage", about, series, "seconds after an outage of 8 h", write)
        + "\n" + "\n".join(lines) + "\n"
    )  # fmt: skip

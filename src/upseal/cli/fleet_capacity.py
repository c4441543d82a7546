# SPDX-License-Identifier: Apache-2.0
"""``upseal capacity``: a fleet on paper, and what is full first (docs/fleet_capacity.md)."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from typing import Any

from upseal.cli import capacity, fleet_model, fleet_storms
from upseal.cli.common import OK, USAGE, Failure, check_engine, positive, say, say_json, table
from upseal.cli.fleet_costs import MEASURED, FleetCosts
from upseal.cli.fleet_model import Fleet
from upseal.cli.fleet_storms import Storm
from upseal.cli.measure import interleave, machine

_SECONDS = 2.0
SUITES = ("x25519", "p256", "mlkem768-x25519", "rsa2048", "rsa3072", "rsa4096")


def _number(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {low:g} to {high:g}")
        return value

    return number


def _tiers(text: str) -> tuple[int, ...]:
    if text == "0":
        return ()
    return tuple(positive(part) for part in text.split(","))


_OPTIONS: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("clients", positive, "in all"),
    ("reports_per_day", _number(1e-3, 1e9), "of one client"),
    ("burst", _number(1, 1e6), "reports that a client makes at one moment"),
    ("report_bytes", _number(1, 16 << 20), "bytes of one report"),
    ("unit", positive, "reports in a unit, at most: [batch] of agent.toml"),
    ("session_age", _number(1, 1e9), "seconds that a client's session lasts"),
    ("refresh", _number(0.1, 86400), "seconds between a client's looks for a manifest"),
    ("relay_refresh", _number(0.1, 86400), "... of a relay"),
    ("link_mbit", _number(0.1, 1e6), "Mbit/s of each relay and the server"),
    ("memory_gib", _number(0.1, 1e5), "GiB of memory, likewise"),
    ("disk_gib", _number(0, 1e9), "GiB of the server for reports; 0: as much as it takes"),
    ("keep_days", _number(0.01, 1e5), "days that it keeps them"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    usual, add = Fleet(), parser.add_argument
    add("--json", action="store_true", help="for machines")
    for name, kind, about in _OPTIONS:
        default = getattr(usual, name)
        add(
            "--" + name.replace("_", "-"), type=kind, default=default, metavar="N",
            help=f"{about} (default: {default:,.10g})",
        )  # fmt: skip
    add(
        "--relays", type=_tiers, default=usual.relays, metavar="N,N",
        help="how many, the tier next to the clients first; 0: none (default: 50)",
    )  # fmt: skip
    add("--decrypting", action="store_true", help="those next to the clients decrypt")
    add("--no-tls", action="store_true", help="hops speak plain HTTP")
    add(
        "--opener-sessions", type=positive, default=usual.server.opener_sessions, metavar="N",
        help=f"that the server remembers (default: {usual.server.opener_sessions:,})",
    )  # fmt: skip
    add(
        "--connections", type=positive, default=usual.server.connections, metavar="N",
        help=f"that the server takes (default: {usual.server.connections:,})",
    )  # fmt: skip
    add(
        "--relay-connections", type=positive, default=usual.relay_http.connections, metavar="N",
        help=f"that a relay takes (default: {usual.relay_http.connections:,})",
    )  # fmt: skip
    add("--away-minutes", type=_number(0.1, 1e5), default=5.0, metavar="N",
        help="of the server, before a restart (default: 5)")  # fmt: skip
    add("--away-hours", type=_number(0.1, 1e4), default=8.0, metavar="N",
        help="of the server, for an outage (default: 8)")  # fmt: skip
    add("--suite", choices=SUITES, default="x25519", help="of server and relays (default: x25519)")
    add(
        "--measure", action="store_true",
        help="the public-key work on this machine, for two seconds; another suite than x25519 "
        "always is",
    )  # fmt: skip


def fleet_of(args: argparse.Namespace) -> Fleet:
    """The fleet that the options describe."""
    usual = Fleet()
    try:
        return Fleet(
            relays=args.relays, decrypting=args.decrypting, tls=not args.no_tls,
            server=replace(
                usual.server, opener_sessions=args.opener_sessions, connections=args.connections
            ),
            relay_http=replace(usual.relay_http, connections=args.relay_connections),
            **{name: getattr(args, name) for name, _, _ in _OPTIONS},
        )  # fmt: skip
    except ValueError as error:
        raise Failure(USAGE, f"{error}; see --clients, --relays and --decrypting") from None


def measured(costs: FleetCosts, fleet: Fleet, suite: str) -> FleetCosts:
    """With this machine's public-key work, as `upseal bench` measures it."""
    check_engine()
    load = capacity.Load(
        report_bytes=min(1 << 16, max(1, round(fleet.report_bytes))),
        agent_batch=max(1, min(50, round(fleet.in_unit))), suite=suite,
    )  # fmt: skip
    bench = capacity.Bench(load)
    interleave(bench.probes, time.perf_counter() + _SECONDS, rounds=5)
    found, here = bench.costs(), machine()
    where = f"{costs.where}; public-key work ({suite}): here, {here['cpu']}"
    return replace(
        costs, where=where, session=found.session, wrap=found.wrap, unwrap=found.first
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Counts and prints."""
    fleet, costs = fleet_of(args), MEASURED
    if args.measure or args.suite != "x25519":
        costs = measured(costs, fleet, args.suite)
    storms = [
        fleet_storms.restart(fleet, costs, args.away_minutes),
        fleet_storms.rotation(fleet, costs),
        fleet_storms.outage(fleet, costs, args.away_hours),
    ]
    if args.json:
        facts = fleet_model.as_facts(fleet, costs)
        say_json({**facts, "storms": [fleet_storms.as_facts(storm) for storm in storms]})
    else:
        say(in_words(fleet, costs, storms))
    return OK


def in_words(fleet: Fleet, costs: FleetCosts, storms: list[Storm]) -> str:
    """What each hop needs, what is full first, and how long storms last."""
    lines = [["each", "number", "clients", "what", "needed", "of", "", "full"]]
    for hop in fleet_model.hops(fleet, costs):
        for i, (what, use) in enumerate(hop.uses.items()):
            whose = [hop.name, f"{hop.count:,}", f"{hop.clients:,.0f}"] if i == 0 else [""] * 3
            bound = isfinite(use.limit)
            lines.append([*whose, what, number(use.value), number(use.limit) if bound else "",
                          use.unit, capacity.percent(use.share) if bound else ""])  # fmt: skip
    first = fleet_model.first_full(fleet, costs)
    over = ", which is more than there is" if first.share > 1 else ""
    words = [
        f"{fleet.clients:,} clients, {fleet.reports_per_day:,g} reports of "
        f"{fleet.report_bytes:,g} bytes a day each, {fleet.in_unit:,.3g} in a unit; "
        + (f"relays: {', '.join(f'{count:,}' for count in fleet.relays)}" if fleet.relays else
           "no relays") + (", those next to clients decrypt" if fleet.decrypting else ""),
        table(lines, (1, 2, 4, 5, 7)),
        f"full first: {first.what} of the {first.hop}, {capacity.percent(first.share)}{over}; "
        + (f"with these relays something is full with {first.clients:,} clients."
           if first.clients else "so many relays are too many by themselves."),
        f"change: {first.change}",
        "",
    ]  # fmt: skip
    lines = [["storm", "over after", "by", "units queued", "reports spooled", "queues full after",
              "spools full after", "reports refused"]]  # fmt: skip
    for storm in storms:
        lines.append([
            storm.kind, duration(storm.seconds), storm.by, number(storm.queued),
            number(storm.spooled), duration(storm.queue_full), duration(storm.spool_full),
            number(storm.refused),
        ])  # fmt: skip
    away = f"{duration(storms[0].away)} away before the restart, {duration(storms[2].away)} outage"
    words += [table(lines, (1, 3, 4, 5, 6, 7)), f"{away}; costs: {costs.where}"]
    return "\n".join(words) + "\n"


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """``12 s``, ``5 min``, ``3.2 h``, ``never``."""
    if not isfinite(seconds):
        return "never"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds:.3g} s"

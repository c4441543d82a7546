# SPDX-License-Identifier: Apache-2.0
"""``upseal server trace``: what the store knows of one report, or of the unit it came in."""

from __future__ import annotations

import argparse
from typing import Any

from upseal.cli.common import BAD, OK, USAGE, Failure, say, say_json, table
from upseal.cli.server_queries import when
from upseal.fleet.policy import Level, Reason
from upseal.fleet.server.store import Store, trails
from upseal.fleet.server.store.activity import SEALED
from upseal.fleet.server.store.units import NUMBER_MAX
from upseal.fleet.trail import parse_unit, unit_name


def trace(args: argparse.Namespace, store: Store) -> int:
    """Prints it."""
    text: str = args.what
    report: int | None = None
    with store.reading() as db:
        if text.isascii() and text.isdecimal() and int(text) <= NUMBER_MAX:
            report = int(text)
            one = trails.of_report(db, report)
            found = [] if one is None else [one]
        elif (unit := parse_unit(text)) is not None and unit[1] <= NUMBER_MAX:
            found = trails.of_unit(db, *unit)
        else:
            raise Failure(
                USAGE,
                f"{text!r} is neither a report's id nor a unit as logs name it, EPOCH-SEQUENCE",
            )
        size = None if report is None else trails.size(db, report)
    if not found:
        where = "its agent's log says whether it was sent, `upseal server deadletters` what waits"
        raise Failure(BAD, f"nothing of {text} is stored; {where}")
    facts = [_facts(trail, report, size) for trail in found]
    if args.json:
        say_json({"units": facts})
    else:
        say("\n".join(_shown(trail, known) for trail, known in zip(found, facts, strict=True)))
    return OK


def _facts(trail: trails.Trail, report: int | None, size: int | None) -> dict[str, Any]:
    return {
        "unit": unit_name(trail.epoch, trail.sequence),
        "client": trail.client,
        "agent": trail.agent.hex(),
        "epoch": trail.epoch.hex(),
        "sequence": trail.sequence,
        "reports": {
            "first": trail.first,
            "last": trail.first + trail.records - 1,
            "count": trail.records,
        },
        "report": None
        if report is None
        else {"id": report, "position": report - trail.first, "bytes": size},
        "stated": trail.stated,
        "received": trail.received,
        "level": Level.parse(trail.level).value,
        "sealed": trail.reason in SEALED,
        "arrived": "clear" if trail.key_id is None else "sealed",
        "reason": Reason(trail.reason).label,
        "suite": trail.suite,
        "key_id": None if trail.key_id is None else trail.key_id.hex(),
        "generation": trail.generation,
        "key_state": trail.key_state,
        "client_now": {"actual": trail.actual, "last_seen": trail.last_seen},
    }


def _shown(trail: trails.Trail, facts: dict[str, Any]) -> str:
    key = "in clear"
    if trail.key_id is not None:
        key = f"under {trail.key_id.hex()}, suite {trail.suite}"
        if trail.generation is not None:
            key += f", generation {trail.generation}, {trail.key_state}"
    late = (trail.received - trail.stated) / 1000
    rows = [
        ["unit", f"{facts['unit']} (epoch {facts['epoch']}, sequence {facts['sequence']})"],
        ["client", f"{trail.client or '?'}, {trail.agent.hex()}"],
        ["stated", f"{when(trail.stated)} by the client's clock, {late:,.1f} s before"],
        ["received", when(trail.received)],
        ["arrived", key],
        ["because", f"{facts['reason']}, wanted {facts['level']}"],
        ["reports", f"{trail.records:,}: {trail.first} to {trail.first + trail.records - 1}"],
    ]
    if (report := facts["report"]) is not None:
        size = report["bytes"]
        kept = "not kept any more" if size is None else f"{size:,} bytes"
        rows.append(["report", f"{report['id']}, at position {report['position']}, {kept}"])
    if trail.actual is not None and trail.last_seen is not None:
        rows.append(["client now", f"{trail.actual}, seen {when(trail.last_seen)}"])
    return table(rows)

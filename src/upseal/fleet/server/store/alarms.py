# SPDX-License-Identifier: Apache-2.0
"""Alarms: what an administrator must look at. The same again within an hour only counts up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from upseal.fleet.server.tables import alarms

KINDS = (
    "contradiction",  # the same triple with other records
    "foreign-deployment",  # a statement made for another deployment
    "bad-signature",  # a statement that its agent did not sign so
    "bad-statement",  # signed, with numbers that no agent counts to
    "unknown-agent",
    "revoked-agent",
    "wrong-agent",  # an agent's hop sent another agent's units
    "clear-though-required",
    "arrived-clear",  # stated as sealed, but it came in a clear body
    "cannot-open",  # sealed to a key of ours, and would not open
    "dead-letters-full",
)
WINDOW = 3_600_000


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm, however often it came."""

    id: int
    kind: str
    subject: bytes
    first: int
    last: int
    times: int
    details: dict[str, Any]


def sound(
    db: Connection, kind: str, subject: bytes, details: Mapping[str, Any], now_ms: int,
    times: int = 1,
) -> bool:  # fmt: skip
    """Raises an alarm about an agent or hop (``b""``: neither); True if it is a new one."""
    same = (alarms.c.kind == kind) & (alarms.c.subject == subject)
    newest = select(func.max(alarms.c.id)).where(same, alarms.c.first > now_ms - WINDOW)
    again = (
        update(alarms)
        .where(alarms.c.id == newest.scalar_subquery())
        .values(times=alarms.c.times + times, last=now_ms)
    )
    if db.execute(again).rowcount:
        return False
    db.execute(
        insert(alarms).values(
            kind=kind, subject=subject, first=now_ms, last=now_ms, times=times,
            details=json.dumps(details, sort_keys=True),
        )
    )  # fmt: skip
    return True


def listing(db: Connection, since: int | None = None, limit: int | None = None) -> Iterator[Alarm]:
    """The newest first."""
    query = select(alarms).order_by(alarms.c.last.desc(), alarms.c.id.desc()).limit(limit)
    if since is not None:
        query = query.where(alarms.c.last >= since)
    for row in db.execute(query):
        yield Alarm(
            row.id, row.kind, bytes(row.subject), row.first, row.last, row.times,
            json.loads(row.details),
        )  # fmt: skip


def count(db: Connection, since: int = 0) -> int:
    """How many there are."""
    return db.execute(select(func.count()).where(alarms.c.last >= since)).scalar_one()

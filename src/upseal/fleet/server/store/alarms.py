# SPDX-License-Identifier: Apache-2.0
"""Alarms: what an administrator must look at. The same again within an hour only counts up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from upseal.fleet.server.tables import alarm_acknowledgements, alarms

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
    "foreign-message",  # at the broker lies what no front of ours has put there
    "page-logins-refused",  # somebody guesses at passwords
    "upload-does-not-match",  # bytes of an upload that are not those its agent has announced
    "uploads-full",  # stored files have reached ``stored_upload_bytes``
)
WINDOW = 3_600_000
# One that has come again since is as good as new.
_LOOKED_AT = (alarm_acknowledgements.c.alarm == alarms.c.id) & (
    alarm_acknowledgements.c.times >= alarms.c.times
)


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
    acknowledged: int | None = None
    """When somebody said that he has looked at it, and it has not come again since."""
    acknowledged_by: str | None = None


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


def listing(
    db: Connection, since: int | None = None, limit: int | None = None, *, only_open: bool = False
) -> Iterator[Alarm]:
    """The newest first; ``only_open`` leaves out what is acknowledged."""
    done = alarm_acknowledgements
    query = (
        select(alarms, done.c.at, done.c.actor)
        .join(done, _LOOKED_AT, isouter=True)
        .order_by(alarms.c.last.desc(), alarms.c.id.desc())
        .limit(limit)
    )
    if since is not None:
        query = query.where(alarms.c.last >= since)
    if only_open:
        query = query.where(done.c.alarm.is_(None))
    for row in db.execute(query):
        yield Alarm(
            row.id, row.kind, bytes(row.subject), row.first, row.last, row.times,
            json.loads(row.details), row.at, row.actor,
        )  # fmt: skip


def open_kinds(db: Connection) -> dict[str, int]:
    """How many nobody has acknowledged, by kind."""
    done = alarm_acknowledgements
    query = (
        select(alarms.c.kind, func.count())
        .select_from(alarms.join(done, _LOOKED_AT, isouter=True))
        .where(done.c.alarm.is_(None))
        .group_by(alarms.c.kind)
    )
    return {row[0]: row[1] for row in db.execute(query)}


def acknowledge(db: Connection, chosen: Sequence[Alarm], actor: str, now_ms: int) -> None:
    """Notes that somebody has looked at these, as often as they are known to have come."""
    done = alarm_acknowledgements
    for alarm in chosen:
        db.execute(delete(done).where(done.c.alarm == alarm.id))
        db.execute(insert(done).values(alarm=alarm.id, at=now_ms, times=alarm.times, actor=actor))


def count(db: Connection, since: int = 0) -> int:
    """How many there are."""
    return db.execute(select(func.count()).where(alarms.c.last >= since)).scalar_one()

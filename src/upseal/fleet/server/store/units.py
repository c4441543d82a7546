# SPDX-License-Identifier: Apache-2.0
"""Units and their reports: stored once each, found again by client and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, update

from upseal.fleet.server.store.base import Store
from upseal.fleet.server.store.prepared import Prepared
from upseal.fleet.server.tables import agents, counters, reports, units
from upseal.fleet.units import Status

NUMBER_MAX = 2**63 - 1
"""The highest sequence and time that a database holds."""
_PAGE = 500


@dataclass(frozen=True, slots=True)
class NewUnit:
    """A verified unit, ready to be stored."""

    agent: bytes
    epoch: bytes
    sequence: int
    stated: int
    level: int
    reason: int
    digest: bytes
    """Of the records."""
    records: Sequence[bytes]
    suite: int | None
    """What its body was sealed with for us; None: it came in clear."""
    key_id: bytes | None
    received: int


@dataclass(frozen=True, slots=True)
class Report:
    """A stored report, with what its unit says."""

    id: int
    agent: bytes
    name: str
    epoch: bytes
    sequence: int
    position: int
    """In its unit."""
    stated: int
    received: int
    level: int
    reason: int
    suite: int | None
    key_id: bytes | None
    body: bytes


def add(db: Connection, new: Sequence[NewUnit], ids: list[int] | None = None) -> list[Status]:
    """Stores what is not there yet; for each unit STORED, DUPLICATE or CONTRADICTION.

    The same triple with the same digest and count is a duplicate, with others a contradiction,
    and the first one stays: also among the units of one call. ``ids`` gets the id of each unit's
    first report, 0 for what is not stored now.
    """
    if not new:
        return []
    first = _take_ids(db, sum(max(1, len(unit.records)) for unit in new))
    rows, at = [], first
    for u in new:
        rows.append(
            (at, u.agent, u.epoch, u.sequence, u.digest, len(u.records), u.stated, u.received,
             u.level, u.reason, u.suite, u.key_id)
        )  # fmt: skip
        at += max(1, len(u.records))
    inserted = _PUT_UNITS.run_tuples(db, rows)
    results = [Status.STORED] * len(new)
    if inserted != len(new):
        here = select(units.c.id).where(units.c.id.between(first, at - 1))
        kept = set(db.execute(here).scalars())
        for i, row in enumerate(rows):
            if row[0] not in kept:
                results[i] = _compare(db, row)
    if ids is not None:
        stored = zip(rows, results, strict=True)
        ids.extend(row[0] if status is Status.STORED else 0 for row, status in stored)
    _PUT_REPORTS.run_tuples(
        db,
        [
            (row[0] + i, row[0], body)
            for unit, row, status in zip(new, rows, results, strict=True)
            if status is Status.STORED
            for i, body in enumerate(unit.records)
        ],
    )
    return results


_PUT_UNITS = Prepared(
    lambda insert: insert(units).on_conflict_do_nothing(),
    (
        "id", "agent", "epoch", "sequence", "digest", "records", "stated", "received", "level",
        "reason", "suite", "key_id",
    ),
)  # fmt: skip
_PUT_REPORTS = Prepared(lambda insert: insert(reports), ("id", "unit", "body"))
_TAKE = Prepared(
    lambda insert: (
        update(counters)
        .where(counters.c.name == "reports")
        .values(value=counters.c.value + bindparam("many"))
        .returning(counters.c.value)
    ),
    ("many",),
)


def _take_ids(db: Connection, count: int) -> int:
    """The first of ``count`` ids in a row.

    In PostgreSQL this also makes writers take turns, so ids appear in their order and nobody who
    reads on from an id misses one.
    """
    last: int = _TAKE.first(db, many=count)[0]
    return last - count + 1


def _compare(db: Connection, row: tuple[object, ...]) -> Status:
    _, agent, epoch, sequence, digest, count, *_ = row
    stored = db.execute(
        select(units.c.digest, units.c.records).where(
            units.c.agent == agent, units.c.epoch == epoch, units.c.sequence == sequence
        )
    ).one()
    same = bytes(stored.digest) == digest and stored.records == count
    return Status.DUPLICATE if same else Status.CONTRADICTION


def read(
    store: Store,
    agent: bytes | None = None,
    since: int | None = None,
    until: int | None = None,
    after: int = 0,
    limit: int | None = None,
) -> Iterator[Report]:
    """Stored reports in the order they came in.

    They are read a page at a time, so that a long listing holds up nobody.

    Args:
        store: where they are.
        agent: of this client only.
        since: received at or after.
        until: received before.
        after: behind the report of this id, to go on with a listing.
        limit: so many at most.
    """
    left = limit
    with store.reading() as db:
        at, end = _bounds(db, since, until, after)
    while at <= end and (left is None or left > 0):
        with store.reading() as db:
            found = _units(db, agent, since, until, at, end)
            names = _names(db, {bytes(row.agent) for row in found})
        for some in _in_pages(found):
            with store.reading() as db:
                page = [
                    report
                    for row in some
                    for report in _reports(db, row, names.get(bytes(row.agent), ""), after)
                ]
            yield from page[:left]
            left = None if left is None else left - len(page)
            if left is not None and left <= 0:
                return
        if len(found) < _PAGE:
            return
        at = found[-1].id + 1


def _bounds(db: Connection, since: int | None, until: int | None, after: int) -> tuple[int, int]:
    """The first and last unit that can matter, so that older and newer ones are not read."""
    first, last = func.min(units.c.id), func.max(units.c.id)
    low = db.execute(select(last).where(units.c.id <= after + 1)).scalar() or 0
    if since is not None:
        low = max(low, db.execute(select(first).where(units.c.received >= since)).scalar() or 0)
    query = select(last) if until is None else select(last).where(units.c.received < until)
    return low, db.execute(query).scalar() or -1


def _units(
    db: Connection, agent: bytes | None, since: int | None, until: int | None, at: int, end: int
) -> Sequence[Any]:
    query = select(units).where(units.c.id.between(at, end)).order_by(units.c.id).limit(_PAGE)
    if agent is not None:
        query = query.where(units.c.agent == agent)
    if since is not None:
        query = query.where(units.c.received >= since)
    if until is not None:
        query = query.where(units.c.received < until)
    return db.execute(query).all()


def _names(db: Connection, wanted: set[bytes]) -> dict[bytes, str]:
    query = select(agents.c.agent, agents.c.name).where(agents.c.agent.in_(wanted))
    return {bytes(agent): name for agent, name in db.execute(query)}


def _in_pages(found: Sequence[Any]) -> Iterator[list[Any]]:
    """Units that together have not too many reports to hold in memory."""
    page: list[Any] = []
    count = 0
    for row in found:
        page.append(row)
        count += row.records
        if count >= _PAGE:
            yield page
            page, count = [], 0
    if page:
        yield page


_REPORTS = Prepared(
    lambda _: (
        select(reports.c.id, reports.c.body)
        .where(reports.c.id.between(bindparam("low"), bindparam("high")))
        .order_by(reports.c.id)
    ),
    ("low", "high"),
)


def _reports(db: Connection, unit: Any, name: str, after: int) -> Iterator[Report]:
    """Those of one unit: their ids follow one another."""
    low, high = max(unit.id, after + 1), unit.id + unit.records - 1
    for number, body in _REPORTS.all(db, low=low, high=high):
        yield Report(
            number, bytes(unit.agent), name, bytes(unit.epoch), unit.sequence, number - unit.id,
            unit.stated, unit.received, unit.level, unit.reason, unit.suite,
            None if unit.key_id is None else bytes(unit.key_id), bytes(body),
        )  # fmt: skip


def totals(db: Connection) -> tuple[int, int]:
    """Units and reports stored."""
    found = db.execute(select(func.count(), func.coalesce(func.sum(units.c.records), 0))).one()
    return int(found[0]), int(found[1])

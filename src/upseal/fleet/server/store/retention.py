# SPDX-License-Identifier: Apache-2.0
"""Reports that were kept long enough go; that they were there stays.

Of a unit the row stays (whose, which number, how many records, their digest): without it, whoever
has kept the unit's body could have it stored a second time. What goes is what clients have said.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select

from upseal.fleet.server.store.units import NUMBER_MAX
from upseal.fleet.server.tables import reports, units

_UNITS = 500
_REPORTS = 5_000


@dataclass(frozen=True, slots=True)
class Due:
    """What is to go."""

    first: int
    """Id of the first unit that still has reports."""
    last: int
    """Id of the last unit that is to go: what comes after it is not looked at again."""
    units: int
    reports: int


def due(db: Connection, received_before: int) -> Due | None:
    """What came in before that time (unix milliseconds, the server's clock); None: nothing."""
    oldest = select(reports.c.unit).order_by(reports.c.id).limit(1)
    first = db.execute(oldest).scalar_one_or_none()
    if first is None:
        return None
    chosen = (units.c.id >= first) & (units.c.received < received_before) & (units.c.records > 0)
    # Where a clock was set back, some that have gone already stand between others that have not.
    there = select(reports.c.id).where(reports.c.id == units.c.id).exists()
    last, count, total = db.execute(
        select(
            func.max(units.c.id), func.count(), func.coalesce(func.sum(units.c.records), 0)
        ).where(chosen, there)
    ).one()
    return Due(first, last, count, int(total)) if count else None


def drop(db: Connection, first: int, received_before: int, last: int = NUMBER_MAX) -> int | None:
    """Deletes the reports of the next few units from ``first`` to ``last``, some thousands at most.

    ``last`` keeps it from looking through all that is kept, while writers wait.

    Returns:
        Where to go on; None if nothing is left.
    """
    found = db.execute(
        select(units.c.id, units.c.records)
        .where(
            units.c.id.between(first, last),
            units.c.received < received_before,
            units.c.records > 0,
        )
        .order_by(units.c.id)
        .limit(_UNITS)
    ).all()
    spans: list[tuple[int, int]] = []  # of ids; units mostly follow one another
    size = 0
    for number, count in found:
        if spans and size + count > _REPORTS:
            break
        size += count
        if spans and spans[-1][1] == number:
            spans[-1] = (spans[-1][0], number + count)
        else:
            spans.append((number, number + count))
    for low, high in spans:
        db.execute(delete(reports).where(reports.c.id >= low, reports.c.id < high))
    return spans[-1][1] if spans else None

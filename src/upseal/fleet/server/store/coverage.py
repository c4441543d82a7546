# SPDX-License-Identifier: Apache-2.0
"""How many clients sealed, over time: a row a minute, thinned out to one an hour, then forgotten.

Reports stand there as totals, so that a minute that nobody wrote down loses none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select

from upseal.fleet.server.store.prepared import upsert
from upseal.fleet.server.tables import coverage

MINUTE_MS = 60_000
MINUTES_KEPT = 2 * 24 * 60
"""How long each minute stays; of what is older the last of each hour."""
KEPT = 400 * 24 * 60
"""Minutes until a row is forgotten."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Clients by what they did in a minute, and the reports stored until then."""

    minute: int
    """Unix time in minutes."""
    sealed: int
    clear: int
    withheld: int
    silent: int
    sealed_reports: int
    clear_reports: int


def note(db: Connection, sample: Sample) -> None:
    """Writes a minute down; the same minute again replaces it."""
    values = {name: getattr(sample, name) for name in coverage.c.keys() if name != "minute"}  # noqa: SIM118
    db.execute(
        upsert(db, coverage)
        .values(minute=sample.minute, **values)
        .on_conflict_do_update(index_elements=["minute"], set_=values)
    )


def thin(db: Connection, now_ms: int) -> int:
    """Takes out what is not kept any longer; how many rows."""
    now = now_ms // MINUTE_MS
    minute = coverage.c.minute
    # Whole hours only, so that the last row of an hour is the last one for good.
    old = (now - MINUTES_KEPT) // 60 * 60
    last = select(func.max(minute)).where(minute < old).group_by(minute // 60)
    gone = delete(coverage).where(minute < old, minute.not_in(last))
    count = db.execute(gone).rowcount
    return count + db.execute(delete(coverage).where(minute < now - KEPT)).rowcount


def samples(db: Connection, since: int, until: int, step: int = 1) -> list[Sample]:
    """Those from the minute ``since`` to before ``until``, oldest first.

    Of each ``step`` minutes the last one, so that a long time costs no more than a short one.
    """
    minute = coverage.c.minute
    query = select(coverage).where(minute >= since, minute < until).order_by(minute)
    if step > 1:
        last = select(func.max(minute)).where(minute >= since, minute < until)
        query = query.where(minute.in_(last.group_by(minute // step)))
    return [Sample(*row) for row in db.execute(query)]


def before(db: Connection, minute: int) -> Sample | None:
    """The newest one of that minute or earlier."""
    query = select(coverage).where(coverage.c.minute <= minute)
    row = db.execute(query.order_by(coverage.c.minute.desc()).limit(1)).first()
    return None if row is None else Sample(*row)

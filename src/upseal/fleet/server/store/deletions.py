# SPDX-License-Identifier: Apache-2.0
"""Stored files that are deleted: their bytes go, their rows stay.

By the row the same body is known when it comes again, and answered DUPLICATE. What is to go is
written down first; then the bytes go, by whoever is there; then the server, which alone is sure to
be where they lie, notes that they are gone. So a kill at any point leaves nothing behind for long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import BigInteger, Connection, LargeBinary, bindparam, func, or_, select, update

from upseal.fleet.server.store.prepared import upsert
from upseal.fleet.server.upload_tables import GONE, deletions, uploads

_STEP = 100

Which = tuple[bytes, bytes]
"""Agent and upload."""


class Left(NamedTuple):
    """A deleted file whose bytes may be there still."""

    agent: bytes
    upload: bytes
    path: str
    body_id: bytes


@dataclass(frozen=True, slots=True)
class Due:
    """What is to go."""

    first: int
    """When the oldest of them came in."""
    uploads: int
    bytes: int


def put(db: Connection, which: Iterable[Which], now_ms: int) -> list[Which]:
    """Writes down that these are deleted; those that were not so before."""
    insert = upsert(db, deletions)
    new = []
    for agent, upload in which:
        statement = insert.values(agent=agent, upload=upload, deleted=now_ms)
        done = statement.on_conflict_do_nothing().returning(deletions.c.deleted)
        if db.execute(done).first() is not None:
            new.append((agent, upload))
    return new


def left(db: Connection, limit: int = _STEP) -> list[Left]:
    """Some of those whose bytes nobody has seen gone."""
    query = (
        select(uploads.c.agent, uploads.c.upload, uploads.c.path, uploads.c.body_id)
        .join_from(deletions, uploads, GONE)
        .where(deletions.c.removed.is_(None))
        .order_by(deletions.c.agent, deletions.c.upload)
        .limit(limit)
    )
    return [
        Left(bytes(row.agent), bytes(row.upload), row.path, bytes(row.body_id))
        for row in db.execute(query)
    ]


def removed(db: Connection, gone: Sequence[Left], now_ms: int) -> None:
    """Notes that their bytes are gone."""
    if not gone:
        return
    one = (deletions.c.agent == bindparam("whose", type_=LargeBinary)) & (
        deletions.c.upload == bindparam("which", type_=LargeBinary)
    )
    statement = update(deletions).where(one).values(removed=bindparam("at", type_=BigInteger))
    db.execute(statement, [{"whose": row.agent, "which": row.upload, "at": now_ms} for row in gone])


def due(db: Connection, received_before: int) -> Due | None:
    """What came in before that time (unix milliseconds, the server's clock); None: nothing."""
    query = (
        select(func.min(uploads.c.received), func.count(), func.sum(uploads.c.size))
        .join_from(uploads, deletions, GONE, isouter=True)
        .where(deletions.c.deleted.is_(None), uploads.c.received < received_before)
    )
    first, count, size = db.execute(query).one()
    return Due(first, count, int(size)) if count else None


def drop(db: Connection, first: int, received_before: int, now_ms: int) -> int | None:
    """Writes down that the next few are deleted, of those that came in from ``first`` on.

    Returns:
        Where to go on; None if nothing is left.
    """
    query = (
        select(uploads.c.agent, uploads.c.upload, uploads.c.received)
        .join_from(uploads, deletions, GONE, isouter=True)
        .where(
            deletions.c.deleted.is_(None),
            uploads.c.received >= first,
            uploads.c.received < received_before,
        )
        .order_by(uploads.c.received)
        .limit(_STEP)
    )
    rows = db.execute(query).all()
    put(db, [(bytes(row.agent), bytes(row.upload)) for row in rows], now_ms)
    return int(rows[-1].received) if rows else None


def stored_bytes(db: Connection) -> int:
    """Of all files whose bytes are on the disk."""
    query = (
        select(func.coalesce(func.sum(uploads.c.size), 0))
        .join_from(uploads, deletions, GONE, isouter=True)
        .where(or_(deletions.c.deleted.is_(None), deletions.c.removed.is_(None)))
    )
    return int(db.execute(query).scalar_one())

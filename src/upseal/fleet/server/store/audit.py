# SPDX-License-Identifier: Apache-2.0
"""The log of administrative acts: it only grows, and each row is chained to the one before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, text

from upseal.fleet.server.tables import audit

_START = bytes(32)


@dataclass(frozen=True, slots=True)
class Entry:
    """One act."""

    id: int
    at: int
    actor: str
    act: str
    details: dict[str, Any]
    previous: bytes
    hash: bytes


class BrokenChain(Exception):  # noqa: N818 - says what it found
    """A row was changed, taken out or put in."""


def append(db: Connection, actor: str, act: str, details: Mapping[str, Any], now_ms: int) -> Entry:
    """Adds a row, inside the transaction of the act itself."""
    if db.dialect.name == "postgresql":  # SQLite's writers take turns anyway
        db.execute(text("LOCK TABLE audit IN EXCLUSIVE MODE"))
    last = db.execute(select(audit.c.id, audit.c.hash).order_by(audit.c.id.desc()).limit(1)).first()
    number, previous = (last.id + 1, bytes(last.hash)) if last is not None else (1, _START)
    written = json.dumps(details, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = _hash(number, now_ms, actor, act, written, previous)
    db.execute(
        insert(audit).values(
            id=number, at=now_ms, actor=actor, act=act, details=written, previous=previous,
            hash=digest,
        )
    )  # fmt: skip
    return Entry(number, now_ms, actor, act, json.loads(written), previous, digest)


def entries(db: Connection, after: int = 0, limit: int | None = None) -> Iterator[Entry]:
    """The rows, oldest first."""
    query = select(audit).where(audit.c.id > after).order_by(audit.c.id).limit(limit)
    for row in db.execute(query):
        yield Entry(
            row.id, row.at, row.actor, row.act, json.loads(row.details), bytes(row.previous),
            bytes(row.hash),
        )  # fmt: skip


def verify(db: Connection) -> tuple[int, bytes]:
    """Walks the whole chain; how many rows, and the last hash (write it down elsewhere).

    Raises:
        BrokenChain: naming the first row that does not follow.
    """
    number, previous = 0, _START
    for row in db.execute(select(audit).order_by(audit.c.id)):
        expected = _hash(row.id, row.at, row.actor, row.act, row.details, previous)
        if row.id != number + 1 or bytes(row.previous) != previous or row.hash != expected:
            raise BrokenChain(f"row {row.id} of the audit log does not follow row {number}")
        number, previous = row.id, expected
    return number, previous


def _hash(number: int, at: int, actor: str, act: str, details: str, previous: bytes) -> bytes:
    """SHA-256(previous hash | row), the row as a JSON array."""
    row = json.dumps([number, at, actor, act, details], separators=(",", ":"))
    return hashlib.sha256(previous + row.encode()).digest()

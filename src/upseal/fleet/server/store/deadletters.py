# SPDX-License-Identifier: Apache-2.0
"""Bodies that should open and do not: kept whole, under a quota, until they can be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update

from upseal.fleet.server.tables import dead_letters

MISSING_KEY = "missing-key"
CANNOT_OPEN = "cannot-open"
MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One of them, without its body."""

    id: bytes
    hop: bytes
    role: str
    received: int
    reason: str
    key_id: bytes | None
    size: int
    attempts: int
    wanted: bool
    """Another try was asked for."""


_FACTS = (
    dead_letters.c.id, dead_letters.c.hop, dead_letters.c.role, dead_letters.c.received,
    dead_letters.c.reason, dead_letters.c.key_id, dead_letters.c.size, dead_letters.c.attempts,
    dead_letters.c.wanted,
)  # fmt: skip


def put(
    db: Connection, *, id: bytes, body: bytes, hop: bytes, role: str, received: int, reason: str,
    key_id: bytes | None, total_quota: int, hop_quota: int,
) -> bool:  # fmt: skip
    """Keeps a body; again does nothing. False: beyond the quota, it is not kept."""
    if find(db, id) is not None:
        return True
    size = func.coalesce(func.sum(dead_letters.c.size), 0)
    total = int(db.execute(select(size)).scalar_one())
    of_hop = int(db.execute(select(size).where(dead_letters.c.hop == hop)).scalar_one())
    if total + len(body) > total_quota or of_hop + len(body) > hop_quota:
        return False
    db.execute(
        insert(dead_letters).values(
            id=id, body=body, hop=hop, role=role, received=received, reason=reason, key_id=key_id,
            size=len(body), wanted=False,
        )
    )  # fmt: skip
    return True


def find(db: Connection, id: bytes) -> DeadLetter | None:
    """One of them."""
    row = db.execute(select(*_FACTS).where(dead_letters.c.id == id)).first()
    return None if row is None else _letter(row)


def find_many(db: Connection, ids: Sequence[bytes]) -> dict[bytes, DeadLetter]:
    """Those of them that are there."""
    found = {}
    for at in range(0, len(ids), 500):
        some = select(*_FACTS).where(dead_letters.c.id.in_(ids[at : at + 500]))
        for row in db.execute(some):
            letter = _letter(row)
            found[letter.id] = letter
    return found


def body(db: Connection, id: bytes) -> bytes | None:
    """The body of one."""
    found = db.execute(select(dead_letters.c.body).where(dead_letters.c.id == id)).scalar()
    return None if found is None else bytes(found)


def listing(db: Connection, *, wanted: bool | None = None) -> list[DeadLetter]:
    """All of them, oldest first; or only those that another try was asked for."""
    query = select(*_FACTS).order_by(dead_letters.c.received, dead_letters.c.id)
    if wanted is not None:
        query = query.where(dead_letters.c.wanted.is_(wanted))
    return [_letter(row) for row in db.execute(query)]


def newest(db: Connection, limit: int) -> list[DeadLetter]:
    """The last that came in, newest first."""
    order = (dead_letters.c.received.desc(), dead_letters.c.id)
    return [_letter(row) for row in db.execute(select(*_FACTS).order_by(*order).limit(limit))]


def by_reason(db: Connection) -> dict[str, int]:
    """How many for each reason."""
    query = select(dead_letters.c.reason, func.count()).group_by(dead_letters.c.reason)
    return {reason: int(count) for reason, count in db.execute(query)}


def usage(db: Connection) -> tuple[int, int]:
    """How many, and their bytes."""
    size = func.coalesce(func.sum(dead_letters.c.size), 0)
    row = db.execute(select(func.count(), size).select_from(dead_letters)).one()
    return int(row[0]), int(row[1])


def ask(
    db: Connection, ids: list[bytes] | None = None, *, key_id: bytes | None = None,
    reason: str | None = None,
) -> int:  # fmt: skip
    """Asks the server for another try: of those, of those under a key, or of all."""
    query = update(dead_letters).values(wanted=True)
    if ids is not None:
        query = query.where(dead_letters.c.id.in_(ids))
    if key_id is not None:
        query = query.where(dead_letters.c.key_id == key_id)
    if reason is not None:
        query = query.where(dead_letters.c.reason == reason)
    return db.execute(query).rowcount


def settle(db: Connection, id: bytes, *, done: bool, reason: str | None = None) -> None:
    """After another try: gone, or back to waiting, maybe for another reason."""
    here = dead_letters.c.id == id
    if done:
        db.execute(delete(dead_letters).where(here))
        return
    values: dict[str, object] = {"wanted": False, "attempts": dead_letters.c.attempts + 1}
    if reason is not None:
        values["reason"] = reason
    db.execute(update(dead_letters).where(here).values(values))


def drop(db: Connection, ids: list[bytes] | None = None) -> int:
    """Throws them away: those, or all."""
    query = delete(dead_letters)
    return db.execute(query if ids is None else query.where(dead_letters.c.id.in_(ids))).rowcount


def _letter(row: object) -> DeadLetter:
    fields = dict(row._mapping)  # type: ignore[attr-defined]
    for name in ("id", "hop"):
        fields[name] = bytes(fields[name])
    return DeadLetter(**fields)

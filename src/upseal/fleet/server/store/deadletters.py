# SPDX-License-Identifier: Apache-2.0
"""Bodies that should open and do not: kept whole, under a quota, until they can be replayed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, or_, select, update

from upseal.fleet.server.tables import dead_letters

MISSING_KEY = "missing-key"
CANNOT_OPEN = "cannot-open"
MALFORMED = "malformed"
REPEATED = "repeated"
"""It was given out so often, and never finished, that whoever opens it may die of it."""
EACH, SOME = 1024, 64
"""A quota holds one letter for so many of its bytes, however short they are, and a few in any case.
Without that, short ones could be so many that to count and replay them holds up everybody."""


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


class Taken:
    """What the letters there take of their quotas. Counted once: good for one transaction."""

    def __init__(self, db: Connection) -> None:
        facts = (func.count(), func.sum(dead_letters.c.size))
        rows = db.execute(select(dead_letters.c.hop, *facts).group_by(dead_letters.c.hop))
        self._hops = {bytes(hop): (int(count), int(size)) for hop, count, size in rows}
        self._all = (sum(n for n, _ in self._hops.values()), sum(n for _, n in self._hops.values()))

    def take(self, hop: bytes, size: int, total_quota: int, hop_quota: int) -> bool:
        """Takes room for one more of this hop, if both quotas have it."""
        all_, of_hop = _with(self._all, size), _with(self._hops.get(hop, (0, 0)), size)
        for (count, bytes_), quota in ((all_, total_quota), (of_hop, hop_quota)):
            if bytes_ > quota or count > max(SOME, quota // EACH):
                return False
        self._all, self._hops[hop] = all_, of_hop
        return True


def _with(taken: tuple[int, int], size: int) -> tuple[int, int]:
    return taken[0] + 1, taken[1] + size


def put(
    db: Connection, *, id: bytes, body: bytes, hop: bytes, role: str, received: int, reason: str,
    key_id: bytes | None, total_quota: int, hop_quota: int, taken: Taken | None = None,
) -> bool:  # fmt: skip
    """Keeps a body; again does nothing. False: beyond the quota, it is not kept.

    ``taken`` is for the caller's whole transaction: counting for each costs more and more.
    """
    if find(db, id) is not None:
        return True
    if not (taken or Taken(db)).take(hop, len(body), total_quota, hop_quota):
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


def listing(
    db: Connection, *, wanted: bool | None = None, limit: int | None = None,
    but: Collection[bytes] = (),
) -> list[DeadLetter]:  # fmt: skip
    """All of them, oldest first, or so many; or only those that another try was asked for.

    ``but`` names keys: those that wait for one of them are left out.
    """
    query = select(*_FACTS).order_by(dead_letters.c.received, dead_letters.c.id).limit(limit)
    if wanted is not None:
        query = query.where(dead_letters.c.wanted.is_(wanted))
    if but:
        key_id = dead_letters.c.key_id
        query = query.where(or_(key_id.is_(None), key_id.not_in(but)))
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

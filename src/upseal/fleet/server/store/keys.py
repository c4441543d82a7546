# SPDX-License-Identifier: Apache-2.0
"""The deployment's encryption keys, from pending to retired, and how far an old one has drained.

Only public halves and numbers: private keys are files in the folder ``keys/``.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update

from upseal.fleet.server.tables import clients, key_use, keys

PENDING = "pending"
ACTIVE = "active"
DRAINING = "draining"
RETIRED = "retired"
STATES = (PENDING, ACTIVE, DRAINING, RETIRED)
SERVER = "server"
"""`Key.holder` of the server's own; an escrow key has another name."""

_WHEN = {ACTIVE: keys.c.activated, DRAINING: keys.c.drained_from, RETIRED: keys.c.retired}
_HOUR_MINUTES = 60


@dataclass(frozen=True, slots=True)
class Key:
    """One key."""

    key_id: bytes
    generation: int
    holder: str
    state: str
    suite: int
    public: str
    certificate: str | None
    created: int
    ready: int | None
    """When its holder proved that it has it."""
    activated: int | None
    drained_from: int | None
    retired: int | None
    first_used: int | None
    last_used: int | None
    units: int
    reports: int


@dataclass(frozen=True, slots=True)
class Drain:
    """What still comes in under a key."""

    key: Key
    last_hour: int
    """Reports."""
    clients: int
    """Whose last sealed body was under it."""


def add(
    db: Connection,
    *,
    key_id: bytes,
    generation: int,
    holder: str = SERVER,
    suite: int,
    public: str,
    certificate: str | None,
    created: int,
    state: str = PENDING,
) -> None:
    """Writes down a key; its private half is a file already."""
    if state not in STATES:
        raise ValueError(f"no state {state!r}")
    db.execute(
        insert(keys).values(
            key_id=key_id, generation=generation, holder=holder, state=state, suite=suite,
            public=public, certificate=certificate, created=created,
        )
    )  # fmt: skip


def set_state(db: Connection, key_id: bytes, state: str, now_ms: int) -> None:
    """Moves a key on; when it began is written down.

    Raises:
        KeyError: there is no such key.
    """
    if state not in STATES:
        raise ValueError(f"no state {state!r}")
    values: dict[object, object] = {keys.c.state: state}
    if state in _WHEN:
        values[_WHEN[state]] = now_ms
    if not db.execute(update(keys).where(keys.c.key_id == key_id).values(values)).rowcount:
        raise KeyError(key_id.hex())


def set_ready(db: Connection, key_id: bytes, now_ms: int) -> None:
    """Its holder answered a challenge."""
    db.execute(update(keys).where(keys.c.key_id == key_id).values(ready=now_ms))


def remove(db: Connection, key_id: bytes) -> bool:
    """Forgets a key that is still pending (its making is taken back)."""
    gone = delete(keys).where(keys.c.key_id == key_id, keys.c.state == PENDING)
    return bool(db.execute(gone).rowcount)


def find(db: Connection, key_id: bytes) -> Key | None:
    """One of them."""
    row = db.execute(select(keys).where(keys.c.key_id == key_id)).first()
    return None if row is None else Key(*row)


def listing(db: Connection, holder: str | None = None) -> list[Key]:
    """All of them, oldest generation first."""
    query = select(keys).order_by(keys.c.generation, keys.c.created)
    if holder is not None:
        query = query.where(keys.c.holder == holder)
    return [Key(*row) for row in db.execute(query)]


def drain(db: Connection, now_ms: int) -> list[Drain]:
    """For each key of the server what still comes in under it, oldest first."""
    since = now_ms // 60_000 - _HOUR_MINUTES
    recent = (
        select(key_use.c.key_id, func.sum(key_use.c.reports))
        .where(key_use.c.minute > since)
        .group_by(key_use.c.key_id)
    )
    hour = {bytes(row[0]): int(row[1]) for row in db.execute(recent)}
    on_it = (
        select(clients.c.key_id, func.count())
        .where(clients.c.key_id.is_not(None))
        .group_by(clients.c.key_id)
    )
    users = {bytes(row[0]): row[1] for row in db.execute(on_it)}
    return [
        Drain(key, hour.get(key.key_id, 0), users.get(key.key_id, 0)) for key in listing(db, SERVER)
    ]


def prune_use(db: Connection, now_ms: int) -> None:
    """Forgets the minutes that no hour needs."""
    old = key_use.c.minute < now_ms // 60_000 - 2 * _HOUR_MINUTES
    db.execute(delete(key_use).where(old))

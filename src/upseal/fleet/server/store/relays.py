# SPDX-License-Identifier: Apache-2.0
"""Relays that enrolled, and the keys they made. Only the administrator puts one in the manifest."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from upseal.fleet.server.store.prepared import upsert
from upseal.fleet.server.tables import relay_keys, relays


@dataclass(frozen=True, slots=True)
class Relay:
    """One relay."""

    relay: bytes
    """Its id: the agent id of its identity key."""
    name: str
    identity: bytes
    """DER SubjectPublicKeyInfo."""
    accepts_sealed: bool
    decrypts: bool
    enrolled: int
    listed: bool
    """The administrator put it into the manifest."""
    last_seen: int | None


@dataclass(frozen=True, slots=True)
class RelayKey:
    """A key of a decrypting relay, as it sent it."""

    relay: bytes
    generation: int
    key_id: bytes
    spki: str
    """PEM (two blocks for the hybrid)."""
    certificate: str | None
    received: int
    ready_at: int | None
    """When it proved that it holds it."""


def put(
    db: Connection,
    *,
    relay: bytes,
    name: str,
    identity: bytes,
    accepts_sealed: bool,
    decrypts: bool,
    enrolled: int,
) -> None:
    """A relay enrols, or enrols again. Whether it is listed stays as it is."""
    values = {
        "name": name, "identity": identity, "accepts_sealed": accepts_sealed, "decrypts": decrypts,
        "enrolled": enrolled,
    }  # fmt: skip
    db.execute(
        upsert(db, relays)
        .values(relay=relay, listed=False, **values)
        .on_conflict_do_update(index_elements=["relay"], set_=values)
    )


def find(db: Connection, relay: bytes) -> Relay | None:
    """One of them."""
    row = db.execute(select(relays).where(relays.c.relay == relay)).first()
    return None if row is None else Relay(*row)


def by_key_id(db: Connection, key_id: bytes) -> Relay | None:
    """The one whose identity key has this id of 8 bytes: the first half of the relay's own."""
    if len(key_id) != 8:
        return None
    low, high = key_id + bytes(8), key_id + b"\xff" * 8
    row = db.execute(select(relays).where(relays.c.relay.between(low, high))).first()
    return None if row is None else Relay(*row)


def listing(db: Connection) -> list[Relay]:
    """All of them by name."""
    return [Relay(*row) for row in db.execute(select(relays).order_by(relays.c.name))]


def set_listed(
    db: Connection,
    relay: bytes,
    listed: bool,
    *,
    name: str | None = None,
    accepts_sealed: bool | None = None,
    decrypts: bool | None = None,
) -> None:
    """The administrator's act; what is None stays.

    Raises:
        KeyError: there is no such relay.
    """
    given = {"name": name, "accepts_sealed": accepts_sealed, "decrypts": decrypts}
    values = {"listed": listed, **{k: v for k, v in given.items() if v is not None}}
    if not db.execute(update(relays).where(relays.c.relay == relay).values(values)).rowcount:
        raise KeyError(relay.hex())


def seen(db: Connection, relay: bytes, now_ms: int) -> None:
    """It was heard of."""
    db.execute(update(relays).where(relays.c.relay == relay).values(last_seen=now_ms))


def put_key(
    db: Connection, *, relay: bytes, generation: int, key_id: bytes, spki: str, received: int
) -> bool:
    """A relay announces a key.

    False: it announced another one of that generation before, and proved it; one that was not
    proved is replaced.
    """
    have = find_key(db, relay, generation)
    if have is not None and have.key_id == key_id:
        return True
    if have is not None and have.ready_at is not None:
        return False
    values = {
        "key_id": key_id, "spki": spki, "received": received, "certificate": None,
        "ready_at": None,
    }  # fmt: skip
    db.execute(
        upsert(db, relay_keys)
        .values(relay=relay, generation=generation, **values)
        .on_conflict_do_update(index_elements=["relay", "generation"], set_=values)
    )
    return True


def find_key(db: Connection, relay: bytes, generation: int) -> RelayKey | None:
    """A relay's key of that generation."""
    here = (relay_keys.c.relay == relay) & (relay_keys.c.generation == generation)
    row = db.execute(select(relay_keys).where(here)).first()
    return None if row is None else RelayKey(*row)


def keys(db: Connection, relay: bytes | None = None) -> list[RelayKey]:
    """All keys, or one relay's, newest generation first."""
    query = select(relay_keys).order_by(relay_keys.c.relay, relay_keys.c.generation.desc())
    if relay is not None:
        query = query.where(relay_keys.c.relay == relay)
    return [RelayKey(*row) for row in db.execute(query)]


def set_ready(db: Connection, relay: bytes, generation: int, key_id: bytes, now_ms: int) -> bool:
    """It proved that it holds that key."""
    here = (relay_keys.c.relay == relay) & (relay_keys.c.generation == generation)
    proved = update(relay_keys).where(here, relay_keys.c.key_id == key_id).values(ready_at=now_ms)
    return bool(db.execute(proved).rowcount)


def set_key_certificate(db: Connection, relay: bytes, generation: int, certificate: str) -> None:
    """The authority certified it."""
    here = (relay_keys.c.relay == relay) & (relay_keys.c.generation == generation)
    db.execute(update(relay_keys).where(here).values(certificate=certificate))


def drop_keys(db: Connection, oldest_generation: int) -> None:
    """Forgets keys of retired generations."""
    db.execute(relay_keys.delete().where(relay_keys.c.generation < oldest_generation))

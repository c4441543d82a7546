# SPDX-License-Identifier: Apache-2.0
"""The signed manifests: the administrator writes them, the server hands them out."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, or_, select

from upseal.fleet.server.tables import manifests


@dataclass(frozen=True, slots=True)
class Stored:
    """One manifest as it was signed."""

    serial: int
    jws: str
    changed_signing_keys: bool
    issued: int


def newest(db: Connection) -> Stored | None:
    """The one with the highest serial."""
    row = db.execute(select(manifests).order_by(manifests.c.serial.desc()).limit(1)).first()
    return None if row is None else Stored(*row)


def newest_serial(db: Connection) -> int | None:
    """Its serial alone: what is asked every second."""
    return db.execute(select(func.max(manifests.c.serial))).scalar()


def last_change(db: Connection) -> tuple[int, int] | None:
    """Serial and time of the newest one that changed the signing keys, without its words."""
    query = select(manifests.c.serial, manifests.c.issued).where(manifests.c.changed_signing_keys)
    row = db.execute(query.order_by(manifests.c.serial.desc()).limit(1)).first()
    return None if row is None else (row.serial, row.issued)


def add(db: Connection, serial: int, jws: str, *, changed_signing_keys: bool, issued: int) -> None:
    """Adds the next one; the database refuses a serial that is there (IntegrityError).

    Raises:
        ValueError: the serial is not above the newest.
    """
    last = newest(db)
    if last is not None and serial <= last.serial:
        raise ValueError(f"serial {serial} is not above {last.serial}")
    db.execute(
        insert(manifests).values(
            serial=serial, jws=jws, changed_signing_keys=changed_signing_keys, issued=issued
        )
    )


def chain(db: Connection, since: int) -> list[Stored]:
    """As ``GET /v1/manifest?since=`` gives it, oldest first.

    Those after ``since`` that changed the signing keys, then the newest, even if ``since`` is it.
    """
    last = newest(db)
    if last is None:
        return []
    changed = (manifests.c.serial > since) & manifests.c.changed_signing_keys
    rows = db.execute(
        select(manifests)
        .where(or_(changed, manifests.c.serial == last.serial))
        .order_by(manifests.c.serial)
    )
    return [Stored(*row) for row in rows]

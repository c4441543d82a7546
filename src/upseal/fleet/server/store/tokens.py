# SPDX-License-Identifier: Apache-2.0
"""Enrolment tokens: single use, expiring, known here by SHA-256 of their secret only."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from upseal.fleet.server.tables import tokens


class Redeemed(enum.Enum):
    """What became of a token."""

    OK = "ok"
    AGAIN = "again"
    """By the same identity key as before: it lost the answer."""
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    USED = "used"
    """By another identity."""
    ROLE = "role"
    """It is for the other role."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A token as the database knows it."""

    secret: bytes
    """SHA-256."""
    note: str
    role: str | None
    created: int
    expires: int
    used: int | None
    agent: bytes | None


def add(
    db: Connection, secret: bytes, *, note: str, role: str | None, created: int, expires: int
) -> None:
    """Writes down a token by the digest of its ``secret`` (16 bytes, as in the token)."""
    if role not in (None, "agent", "relay"):
        raise ValueError(f"no role {role!r}")
    db.execute(
        insert(tokens).values(
            secret=_digest(secret), note=note, role=role, created=created, expires=expires
        )
    )


def look(db: Connection, secret: bytes, agent: bytes, role: str, now_ms: int) -> Redeemed:
    """What `redeem` would say; it changes nothing."""
    row = db.execute(select(tokens).where(tokens.c.secret == _digest(secret))).first()
    if row is None:
        return Redeemed.UNKNOWN
    if row.used is not None:  # also after it expired: the answer may have been lost on the way
        return Redeemed.AGAIN if bytes(row.agent) == agent else Redeemed.USED
    if row.expires <= now_ms:
        return Redeemed.EXPIRED
    if row.role not in (None, role):
        return Redeemed.ROLE
    return Redeemed.OK


def redeem(db: Connection, secret: bytes, agent: bytes, role: str, now_ms: int) -> Redeemed:
    """Uses a token up for the identity ``agent``; twice by the same one does no harm."""
    found = look(db, secret, agent, role, now_ms)
    if found is not Redeemed.OK:
        return found
    taken = db.execute(
        update(tokens)
        .where(tokens.c.secret == _digest(secret), tokens.c.used.is_(None))
        .values(used=now_ms, agent=agent)
    ).rowcount
    return Redeemed.OK if taken else Redeemed.USED


def listing(db: Connection) -> list[Issued]:
    """All of them, newest first."""
    return [Issued(*row) for row in db.execute(select(tokens).order_by(tokens.c.created.desc()))]


def revoke(db: Connection, digest: bytes) -> bool:
    """Takes back one that was not used; ``digest`` is `Issued.secret`."""
    gone = delete(tokens).where(tokens.c.secret == digest, tokens.c.used.is_(None))
    return bool(db.execute(gone).rowcount)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()

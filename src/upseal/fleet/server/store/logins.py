# SPDX-License-Identifier: Apache-2.0
"""Who may look at the server's page: a name, and scrypt of a password that was made for it."""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from upseal.fleet.server.tables import page_logins

NAME_MAX = 64
_COST, _BLOCK, _PARALLEL = 1 << 15, 8, 1  # 32 MiB and some 80 ms: passwords are made, not chosen
_COST_MAX = 1 << 20
_SALT, _HASH = 16, 32


@dataclass(frozen=True, slots=True)
class Secret:
    """What is kept of a password."""

    salt: bytes
    hash: bytes
    cost: int
    block: int
    parallel: int

    @classmethod
    def of(cls, password: str) -> Secret:
        """Takes some 80 ms."""
        salt = os.urandom(_SALT)
        digest = _scrypt(password, salt, _COST, _BLOCK, _PARALLEL)
        return cls(salt, digest, _COST, _BLOCK, _PARALLEL)

    def matches(self, password: str) -> bool:
        """Whether it is that password; takes as long as `of`."""
        found = _scrypt(password, self.salt, self.cost, self.block, self.parallel)
        return hmac.compare_digest(found, self.hash)


@dataclass(frozen=True, slots=True)
class Login:
    """One of them."""

    name: str
    secret: Secret
    created: int
    last_login: int | None


def nobody() -> Secret:
    """What no password matches, at the same cost: for names that are not there."""
    return Secret(os.urandom(_SALT), os.urandom(_HASH), _COST, _BLOCK, _PARALLEL)


def check_name(name: str) -> str:
    """The name.

    Raises:
        ValueError: it is none.
    """
    if not 1 <= len(name) <= NAME_MAX or not name.isprintable() or name != name.strip():
        raise ValueError(f"a login's name is 1 to {NAME_MAX} printable characters")
    if ":" in name:
        raise ValueError("a login's name has no colon in it: HTTP Basic could not say it")
    return name


def add(db: Connection, name: str, secret: Secret, now_ms: int) -> None:
    """A new one; a name that is there already is an IntegrityError."""
    db.execute(
        insert(page_logins).values(
            name=name, salt=secret.salt, hash=secret.hash, cost=secret.cost, block=secret.block,
            parallel=secret.parallel, created=now_ms,
        )
    )  # fmt: skip


def remove(db: Connection, name: str) -> bool:
    """Whether it was there."""
    return bool(db.execute(delete(page_logins).where(page_logins.c.name == name)).rowcount)


def find(db: Connection, name: str) -> Login | None:
    """One of them."""
    row = db.execute(select(page_logins).where(page_logins.c.name == name)).first()
    return None if row is None else _login(row)


def listing(db: Connection) -> list[Login]:
    """All of them by name."""
    return [_login(row) for row in db.execute(select(page_logins).order_by(page_logins.c.name))]


def any_there(db: Connection) -> bool:
    """Whether there is one."""
    return db.execute(select(page_logins.c.name).limit(1)).first() is not None


def seen(db: Connection, name: str, now_ms: int) -> None:
    """It has just logged in."""
    db.execute(update(page_logins).where(page_logins.c.name == name).values(last_login=now_ms))


def _login(row: Any) -> Login:
    secret = Secret(bytes(row.salt), bytes(row.hash), row.cost, row.block, row.parallel)
    return Login(row.name, secret, row.created, row.last_login)


def _scrypt(password: str, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
    if cost > _COST_MAX or block > 64 or parallel > 16:
        raise ValueError("a login that would take this machine's memory")
    data = password.encode("utf-8", "surrogatepass")
    most = 128 * block * (cost + parallel + 2) + (1 << 20)
    return hashlib.scrypt(
        data, salt=salt, n=cost, r=block, p=parallel, maxmem=most, dklen=_HASH
    )  # fmt: skip

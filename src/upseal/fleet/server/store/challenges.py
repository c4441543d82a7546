# SPDX-License-Identifier: Apache-2.0
"""Challenges to pending keys: the server's own and those of decrypting relays.

The holder of a key proves it by opening the challenge. What is kept is the challenge, and the
answer that is expected: never the nonce. One is open for each holder, generation and key.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select, update

from upseal.fleet.server.store.prepared import upsert
from upseal.fleet.server.tables import challenges

SERVER = "server"
"""The holder name of the server's own keys; a relay's is its id in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """One that was made."""

    holder: str
    generation: int
    key_id: bytes
    challenge: bytes
    expected: bytes
    created: int
    expires: int
    answered: int | None


def put(
    db: Connection,
    *,
    holder: str,
    generation: int,
    key_id: bytes,
    challenge: bytes,
    expected: bytes,
    created: int,
    expires: int,
) -> None:
    """Opens a challenge; an older one to the same key is void."""
    values = {
        "challenge": challenge, "expected": expected, "created": created, "expires": expires,
        "answered": None,
    }  # fmt: skip
    db.execute(
        upsert(db, challenges)
        .values(holder=holder, generation=generation, key_id=key_id, **values)
        .on_conflict_do_update(index_elements=["holder", "generation", "key_id"], set_=values)
    )


def find(db: Connection, holder: str, generation: int) -> list[Challenge]:
    """All of one holder's for that generation, answered or not."""
    here = (challenges.c.holder == holder) & (challenges.c.generation == generation)
    return [Challenge(*row) for row in db.execute(select(challenges).where(here))]


def unanswered(db: Connection, holder: str, now_ms: int) -> list[Challenge]:
    """Those that still can be answered."""
    here = (challenges.c.holder == holder) & challenges.c.answered.is_(None)
    query = select(challenges).where(here, challenges.c.expires > now_ms)
    return [Challenge(*row) for row in db.execute(query)]


def answer(db: Connection, holder: str, generation: int, given: bytes, now_ms: int) -> bytes | None:
    """Takes an answer: the key id it proves, or None. A challenge takes one right answer, once."""
    for open_one in unanswered(db, holder, now_ms):
        if open_one.generation == generation and hmac.compare_digest(open_one.expected, given):
            taken = db.execute(
                update(challenges)
                .where(
                    challenges.c.holder == holder,
                    challenges.c.generation == generation,
                    challenges.c.key_id == open_one.key_id,
                    challenges.c.expected == given,
                    challenges.c.answered.is_(None),
                )
                .values(answered=now_ms)
            ).rowcount
            return open_one.key_id if taken else None
    return None


def prune(db: Connection, before_ms: int) -> None:
    """Forgets those that expired before ``before_ms`` without an answer."""
    gone = (challenges.c.expires < before_ms) & challenges.c.answered.is_(None)
    db.execute(delete(challenges).where(gone))

# SPDX-License-Identifier: Apache-2.0
"""What stands in the queue's file: bodies, and what became of them."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from upseal.fleet.http.results import MOST_RECEIPTS, MalformedResults, Result

_SCHEMA = """
CREATE TABLE IF NOT EXISTS bodies(
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    hop BLOB NOT NULL,
    received INTEGER NOT NULL,
    size INTEGER NOT NULL,
    done INTEGER,
    result TEXT,
    body BLOB
);
CREATE INDEX IF NOT EXISTS queued ON bodies(seq) WHERE done IS NULL;
CREATE INDEX IF NOT EXISTS finished ON bodies(done) WHERE done IS NOT NULL;
"""
_VERSION = 1
_SWEPT = 2000
"""Results that one sweep deletes at most, and pages that it gives back: puts must not wait long."""
_SPARE = 1024
"""Free pages that stay in the file for what comes next."""


class Stats(NamedTuple):
    """How full it is."""

    bodies: int
    bytes: int
    in_flight: int
    oldest: int | None
    """When the oldest body came, in unix milliseconds."""
    results: int
    result_bytes: int


class Claimed(NamedTuple):
    """A body that is being passed on."""

    id: bytes
    body: bytes
    attempts: int
    """How often it was released again."""
    hop: bytes
    """Who brought it."""


class Entry:
    """A queued body in memory: all but the body."""

    __slots__ = ("attempts", "claimed", "durable", "hop", "id", "received", "seq", "size", "unread")

    def __init__(self, body_id: bytes, hop: bytes, size: int, received: int) -> None:
        self.id, self.hop, self.size, self.received = body_id, hop, size, received
        self.seq = -1
        self.attempts = self.unread = 0
        self.durable = False
        self.claimed = False


class Waiting(NamedTuple):
    """A body that is still queued, without itself."""

    seq: int
    id: bytes
    hop: bytes
    size: int
    received: int


class Written(NamedTuple):
    """A body that is on the disk, and its result if it has one already."""

    id: bytes
    seq: int
    result: str | None


def prepare(db: sqlite3.Connection) -> list[Waiting]:
    """Makes the tables in a new file; what is queued in an old one, in the order it came.

    Raises:
        ValueError: a newer release's file; it stays as it is.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, _VERSION):
        raise ValueError(
            f"the queue was made by a newer release: it is of version {version}, and known is "
            f"{_VERSION}; run that release again, until the queue is empty"
        )
    db.executescript(_SCHEMA)
    db.execute(f"PRAGMA user_version={_VERSION}")
    rows = db.execute(
        "SELECT seq, id, hop, size, received FROM bodies WHERE done IS NULL ORDER BY seq"
    )
    return [Waiting(*row) for row in rows]


def kept_results(db: sqlite3.Connection) -> tuple[int, int]:
    """How many results are kept, and their bytes."""
    total, size = db.execute(
        "SELECT count(*), coalesce(sum(length(result)), 0) FROM bodies WHERE done IS NOT NULL"
    ).fetchone()
    return total, size


def insert(
    db: sqlite3.Connection, body_id: bytes, body: bytes, hop: bytes, received: int
) -> Written:
    """Adds a body, unless it is there."""
    done = db.execute(
        "INSERT OR IGNORE INTO bodies(id, hop, received, size, body) VALUES (?, ?, ?, ?, ?)",
        (body_id, hop, received, len(body), body),
    )
    if done.rowcount and done.lastrowid is not None:
        return Written(body_id, done.lastrowid, None)
    seq, result = db.execute("SELECT seq, result FROM bodies WHERE id = ?", (body_id,)).fetchone()
    return Written(body_id, seq, result)


def encode(result: Result) -> str:
    """A result for the disk."""
    return json.dumps(result.to_dict(), separators=(",", ":"))


def decode(text: str) -> Result:
    """A result from the disk.

    Raises:
        MalformedResults: the disk has damaged it.
    """
    try:
        return Result.from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise MalformedResults("a result on the disk is damaged") from error


def body(db: sqlite3.Connection, entry: Entry) -> bytes | None:
    """A queued body, if it is what it was when it came; None: the disk has damaged it.

    Raises:
        DatabaseError: it cannot be read now. "Malformed" is said also of a disk that fails.
    """
    row = db.execute("SELECT body FROM bodies WHERE seq = ?", (entry.seq,)).fetchone()
    found: Any = None if row is None else row[0]
    if not isinstance(found, bytes) or hashlib.sha256(found).digest() != entry.id:
        return None
    return found


def result(db: sqlite3.Connection, body_id: bytes) -> Result | None:
    """What became of a body; None while it is queued.

    Raises:
        KeyError: it is not known.
        MalformedResults: the disk has damaged it.
    """
    row = db.execute("SELECT result FROM bodies WHERE id = ?", (body_id,)).fetchone()
    if row is None:
        raise KeyError(body_id.hex())
    return decode(row[0]) if row[0] is not None else None


def results(db: sqlite3.Connection, ids: Iterable[bytes]) -> dict[bytes, Result | None]:
    """What became of those that are known; None while they are queued.

    None also for those behind `MOST_RECEIPTS`: no answer has room for more.
    """
    found: dict[bytes, Result | None] = {}
    receipts = 0
    for body_id in ids:
        if receipts > MOST_RECEIPTS:
            found[body_id] = None
            continue
        with suppress(KeyError, MalformedResults):
            known = found[body_id] = result(db, body_id)
            receipts += 0 if known is None else len(known.receipts)
    return found


def finish(db: sqlite3.Connection, results: list[tuple[int, str]]) -> None:
    """Puts results in the place of bodies."""
    now = int(time.time() * 1000)
    db.executemany(
        "UPDATE bodies SET done = ?, result = ?, body = NULL WHERE seq = ?",
        [(now, text, seq) for seq, text in results],
    )


def keep(db: sqlite3.Connection, body_id: bytes, received: int, text: str) -> tuple[int, int]:
    """Puts a result where no body was, or another result.

    Returns:
        How many results there are more, and how many bytes.
    """
    row = db.execute("SELECT length(result) FROM bodies WHERE id = ?", (body_id,)).fetchone()
    db.execute(
        "INSERT INTO bodies(id, hop, received, size, done, result) VALUES (?, x'', ?, 0, ?, ?)"
        " ON CONFLICT(id) DO UPDATE SET"
        " received = excluded.received, done = excluded.done, result = excluded.result",
        (body_id, received, int(time.time() * 1000), text),
    )
    return (1, len(text)) if row is None else (0, len(text) - (row[0] or 0))


def delete(db: sqlite3.Connection, seq: int) -> None:
    """Forgets a body."""
    db.execute("DELETE FROM bodies WHERE seq = ?", (seq,))


def forget_results(db: sqlite3.Connection, keep: float, surplus: int) -> tuple[int, int, bool]:
    """Deletes results older than ``keep`` seconds, and the oldest while bytes are in surplus.

    Returns:
        How many went, their bytes, and whether there is more to do.
    """
    before = int((time.time() - keep) * 1000)
    old = db.execute(
        "SELECT seq, done, length(result) FROM bodies WHERE done IS NOT NULL ORDER BY done LIMIT ?",
        (_SWEPT,),
    ).fetchall()
    gone, freed = [], 0
    for seq, done, size in old:
        if done >= before and freed >= surplus:
            break
        freed += size
        gone.append((seq,))
    if gone:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("DELETE FROM bodies WHERE seq = ?", gone)
        db.execute("COMMIT")
    return len(gone), freed, len(gone) == _SWEPT


def give_back(db: sqlite3.Connection) -> bool:
    """Makes the file smaller, by a step; whether there is more to do."""
    free = int(db.execute("PRAGMA freelist_count").fetchone()[0])
    if free <= _SPARE:
        return False
    # One step of this statement is one page, and `execute` takes one step where no rows come out.
    db.executescript(f"PRAGMA incremental_vacuum({min(_SWEPT, free - _SPARE)})")
    return free - _SPARE > _SWEPT


def inspect(path: Path) -> Stats:
    """How full a queue is that another process may be using."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
    try:
        bodies, size, oldest = connection.execute(
            "SELECT count(*), coalesce(sum(size), 0), min(received) FROM bodies WHERE done IS NULL"
        ).fetchone()
        results, result_bytes = kept_results(connection)
    finally:
        connection.close()
    return Stats(bodies, size, 0, oldest, results, result_bytes)

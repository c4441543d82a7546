# SPDX-License-Identifier: Apache-2.0
"""The tables of uploads in a spool, and what stands in them.

What would tell about a file (its name, the digest of its plaintext, the secret that opens it) is
sealed to the spool's key, as reports are.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from sqlite3 import Connection
from typing import NamedTuple

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS uploads ("
    "id INTEGER PRIMARY KEY AUTOINCREMENT, upload BLOB NOT NULL UNIQUE, state TEXT NOT NULL, "
    "made INTEGER NOT NULL, ended INTEGER, why TEXT, size INTEGER NOT NULL, facts BLOB NOT NULL, "
    "file TEXT, file_size INTEGER NOT NULL, file_sha256 BLOB, secret BLOB, "
    "recipients BLOB NOT NULL, serial INTEGER NOT NULL, form TEXT, announcement BLOB, "
    "announced INTEGER, report INTEGER)",
    "CREATE INDEX IF NOT EXISTS uploads_by_state ON uploads (state, id)",
    "CREATE TABLE IF NOT EXISTS upload_counters (one INTEGER PRIMARY KEY CHECK (one = 1), "
    "made INTEGER NOT NULL DEFAULT 0, stored INTEGER NOT NULL DEFAULT 0, "
    "failed INTEGER NOT NULL DEFAULT 0, cancelled INTEGER NOT NULL DEFAULT 0, "
    "refused INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0)",
    "INSERT OR IGNORE INTO upload_counters (one) VALUES (1)",
)


class UploadState(enum.Enum):
    """What became of an upload. The values stand in the database."""

    WAITING = "waiting"
    STORED = "stored"
    """The server has receipted it."""
    FAILED = "failed"
    """The disk has damaged it here."""
    CANCELLED = "cancelled"


class UploadCounters(NamedTuple):
    """Since the spool was made: ``made == stored + failed + cancelled + waiting``, always."""

    made: int
    """Acknowledged to whoever gave them."""
    stored: int
    failed: int
    cancelled: int
    refused: int
    """Never acknowledged, for want of room."""
    bytes: int
    """In the folder, of those that wait."""

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self.made - self.stored - self.failed - self.cancelled


@dataclass(frozen=True, slots=True)
class Row:
    """One upload as it stands in the database."""

    id: int
    upload: bytes
    state: str
    made: int
    """Unix milliseconds, as `ended`."""
    ended: int | None
    why: str | None
    """Why it failed, in a few words."""
    size: int
    """Bytes of plaintext."""
    facts: bytes
    """Sealed: when the file was modified, and its name."""
    file: str | None
    """Name in the folder; None once it has ended."""
    file_size: int
    file_sha256: bytes | None
    """None for one of the spool's own, which is never a body."""
    secret: bytes | None
    """Sealed: the secret of the session that the file in the folder is sealed in."""
    recipients: bytes
    """Key ids that it is sealed to, one after the other; none for the spool's own."""
    serial: int
    """Of the manifest whose keys these are; -1 for the spool's own."""
    form: str | None
    """Of the body as it is announced; None while that is open."""
    announcement: bytes | None
    """Sealed: what was announced last."""
    announced: int | None
    """When, in unix milliseconds."""
    report: int | None
    """Its number among the reports."""

    @property
    def own(self) -> bool:
        """Whether the file is sealed to the spool's key alone, so that nobody else can open it."""
        return not self.recipients


_NAMES = tuple(field.name for field in fields(Row))
_COLUMNS = ", ".join(_NAMES)


def insert(db: Connection, row: Row) -> None:
    """A new one; its ``id`` is the database's to give."""
    values = [getattr(row, name) for name in _NAMES[1:]]
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT INTO uploads ({', '.join(_NAMES[1:])}) VALUES ({marks})", values)  # noqa: S608


def replace(db: Connection, row: Row) -> None:
    """Everything that may change of one that waits."""
    values = [getattr(row, name) for name in _NAMES[2:]]
    sets = ", ".join(f"{name} = ?" for name in _NAMES[2:])
    db.execute(f"UPDATE uploads SET {sets} WHERE id = ?", (*values, row.id))  # noqa: S608


def one(db: Connection, number: int) -> Row | None:
    """By id."""
    found = db.execute(f"SELECT {_COLUMNS} FROM uploads WHERE id = ?", (number,)).fetchone()  # noqa: S608
    return None if found is None else Row(*found)


def find(db: Connection, upload: bytes) -> Row | None:
    """By the upload's own id."""
    found = db.execute(f"SELECT {_COLUMNS} FROM uploads WHERE upload = ?", (upload,)).fetchone()  # noqa: S608
    return None if found is None else Row(*found)


def newest(db: Connection, most: int) -> list[Row]:
    """All that wait, and of the others the newest; oldest first, ``most`` at most."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM uploads ORDER BY (state = 'waiting') DESC, id DESC LIMIT ?",  # noqa: S608
        (most,),
    ).fetchall()
    return sorted((Row(*row) for row in rows), key=lambda row: row.id)


def waiting(db: Connection, after: int) -> list[int]:
    """Ids of those that wait, above ``after``, oldest first."""
    found = db.execute(
        "SELECT id FROM uploads WHERE state = 'waiting' AND id > ? ORDER BY id", (after,)
    )
    return [number for (number,) in found]


def files(db: Connection) -> set[str]:
    """Names in the folder that a row stands for."""
    return {file for (file,) in db.execute("SELECT file FROM uploads WHERE file IS NOT NULL")}


def is_report(db: Connection, number: int | None) -> bool:
    """Whether there is such a report."""
    return db.execute("SELECT 1 FROM reports WHERE id = ?", (number,)).fetchone() is not None


def prune(db: Connection, most: int) -> None:
    """Forgets those that have ended, but for the newest."""
    db.execute(
        "DELETE FROM uploads WHERE state != 'waiting' AND id <= "
        "(SELECT id FROM uploads WHERE state != 'waiting' ORDER BY id DESC LIMIT 1 OFFSET ?)",
        (most,),
    )


def read_counters(db: Connection) -> UploadCounters | None:
    """None: the row is missing, so the file is damaged."""
    found = db.execute(
        "SELECT made, stored, failed, cancelled, refused, bytes FROM upload_counters"
    ).fetchone()
    return None if found is None else UploadCounters(*found)

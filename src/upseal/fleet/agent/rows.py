# SPDX-License-Identifier: Apache-2.0
"""The tables of a spool, and what stands in them."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from typing import NamedTuple

from upseal.fleet.agent.database import SpoolDamaged

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS reports ("
    "id INTEGER PRIMARY KEY, made INTEGER NOT NULL, sealed BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS units (id INTEGER PRIMARY KEY AUTOINCREMENT, epoch BLOB NOT NULL, "
    "sequence INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, "
    "count INTEGER NOT NULL, digest BLOB NOT NULL, remade INTEGER NOT NULL DEFAULT 0, "
    "reduced INTEGER NOT NULL DEFAULT 0, UNIQUE (epoch, sequence))",
    "CREATE TABLE IF NOT EXISTS state (one INTEGER PRIMARY KEY CHECK (one = 1), "
    "made INTEGER NOT NULL DEFAULT 0, stored INTEGER NOT NULL DEFAULT 0, "
    "lost INTEGER NOT NULL DEFAULT 0, refused INTEGER NOT NULL DEFAULT 0, "
    "bytes INTEGER NOT NULL DEFAULT 0, planned_to INTEGER NOT NULL DEFAULT 0, "
    "untold INTEGER NOT NULL DEFAULT 0, mark BLOB)",
    "INSERT OR IGNORE INTO state (one) VALUES (1)",
)


class Counters(NamedTuple):
    """Reports since the spool was made: ``made == stored + lost + depth``, always."""

    made: int
    """Acknowledged to whoever reported them."""
    stored: int
    """Receipted."""
    lost: int
    """Dropped at the limit, or damaged on the disk."""
    refused: int
    """Never acknowledged, for want of room."""
    bytes: int
    """Sealed bytes that wait."""
    planned_to: int
    untold: int
    """Of the lost ones, those that the server has not been told about."""

    @property
    def depth(self) -> int:
        """How many wait."""
        return self.made - self.stored - self.lost


@dataclass(frozen=True, slots=True)
class SpooledUnit:
    """A unit's triple and members. The same for ever, but for the two flags."""

    id: int
    epoch: bytes
    sequence: int
    first: int
    last: int
    count: int
    remade: bool
    """It has been made again under another epoch, since the server held others under the first."""
    reduced: bool
    """Some of its reports were damaged on the disk after it had been written down."""


_UNITS = "SELECT id, epoch, sequence, first, last, count, remade, reduced FROM units"
_STATE = "SELECT made, stored, lost, refused, bytes, planned_to, untold FROM state"


def read_counters(db: sqlite3.Connection) -> Counters:
    """The one row of ``state``."""
    row = db.execute(_STATE).fetchone()
    if row is None:
        raise SpoolDamaged("the spool has no counters")
    return Counters(*row)


def all_units(db: sqlite3.Connection) -> list[SpooledUnit]:
    """Oldest first."""
    return [_unit(row) for row in db.execute(_UNITS + " ORDER BY id")]


def one_unit(db: sqlite3.Connection, number: int) -> SpooledUnit | None:
    """The unit of that id, if it is still there."""
    row = db.execute(_UNITS + " WHERE id = ?", (number,)).fetchone()
    return None if row is None else _unit(row)


def _unit(row: tuple[int, bytes, int, int, int, int, int, int]) -> SpooledUnit:
    number, epoch, sequence, first, last, count, remade, reduced = row
    return SpooledUnit(number, epoch, sequence, first, last, count, bool(remade), bool(reduced))


def members(db: sqlite3.Connection, first: int, last: int) -> list[tuple[int, bytes]]:
    """Number and sealed bytes of the reports in a range."""
    return db.execute(
        "SELECT id, sealed FROM reports WHERE id BETWEEN ? AND ? ORDER BY id", (first, last)
    ).fetchall()


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000

# SPDX-License-Identifier: Apache-2.0
"""What was reported and is not yet receipted: on the disk, sealed to the agent's own key.

Two rules keep a report from being lost or doubled, whenever a process dies. A report is on the disk
before `Spool.add` returns, and leaves it for a receipt alone. And which reports a unit has, and its
epoch and sequence, are written down before it is first sent and stay, so that the server knows it
again however often it comes.

Reports are numbered in the order they were committed in. A unit is a range of numbers, and takes
the oldest that are in none: all that is up to ``planned_to`` belongs to a unit or is gone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from upseal import Opener, OpenError, PrivateKey, PublicKey, Sealer
from upseal.engine.buffers import Buffer
from upseal.fleet.agent.database import (
    Database,
    SpoolDamaged,
    SpoolError,
    SpoolFull,
    SpoolUnusable,
)
from upseal.fleet.agent.intake import Intake
from upseal.fleet.agent.rows import (
    SCHEMA,
    Counters,
    SpooledUnit,
    all_units,
    members,
    now_ms,
    one_unit,
    read_counters,
)
from upseal.fleet.agent.settings import Batch, SpoolLimits
from upseal.fleet.agent.uploads.rows import SCHEMA as UPLOADS_SCHEMA
from upseal.fleet.units import records_digest

__all__ = [
    "Counters",
    "Spool",
    "SpoolDamaged",
    "SpoolError",
    "SpoolFull",
    "SpoolUnusable",
    "SpooledUnit",
    "spool_context",
]
_CONTEXT = b"upseal/v1 spool\0"
_MARK = b"a spool of this key"
_IDLE_BYTES = 8 << 20
"""Empty room that the file may keep for the next reports."""


def spool_context(deployment: bytes, agent: bytes) -> bytes:
    """What all that lies in an agent's spool is bound to."""
    return _CONTEXT + deployment + agent


class Spool:
    """Safe to share between threads, and between processes that open the same file.

    Args:
        path: the database.
        key: the agent's own, for this alone.
        context: `spool_context`.
        limits: how much it takes, and what happens then.
        notice: makes the report that tells the server how many reports were lost here.
    """

    def __init__(
        self,
        path: Path,
        key: PrivateKey,
        context: bytes,
        limits: SpoolLimits,
        notice: Callable[[int], bytes],
    ) -> None:
        self.path = path
        self._notice = notice
        self._context = context
        self._sealer = Sealer([key.public_key])
        self._opener = Opener([key], cache=4096)
        self._proving = Opener([key], cache=0)
        self._mark: bytes | None = None
        self._writer = Database(path, SCHEMA, self._check, UPLOADS_SCHEMA)
        # A second connection: whoever reads a unit keeps nobody waiting who reports.
        self._reader = Database(path, SCHEMA, self._check, UPLOADS_SCHEMA)
        self._intake = Intake(self._writer, limits)

    def _check(self, db: sqlite3.Connection) -> None:
        """Refuses a file sealed to another key: all in it would look as if the disk had damaged it.

        So would another agent's, by its context.
        """
        look = "SELECT mark FROM state"
        (mark,) = db.execute(look).fetchone() or (b"",)
        if mark is None:  # a new one; somebody else may be making it as well
            own = self._sealer.seal(_MARK, self._context)
            db.execute("UPDATE state SET mark = ? WHERE mark IS NULL", (own,))
            (mark,) = db.execute(look).fetchone()
        try:
            self._opener.open(mark, self._context)
        except (OpenError, TypeError) as error:
            raise SpoolDamaged(f"{self.path} is sealed to another key, or is damaged") from error
        self._mark = mark

    def close(self) -> None:
        """Lets the file go."""
        self._reader.close()
        self._writer.close()

    # -- reporting -----------------------------------------------------------------

    def add(self, reports: Sequence[Buffer]) -> range:
        """Takes reports, all or none; they are on the disk when this returns.

        Threads that come at the same time share one transaction, and so one wait for the disk.

        Returns:
            Their numbers.

        Raises:
            SpoolFull: there is no room. None of them was taken.
            SpoolError: nor were they here, for another reason.
        """
        if not reports:
            return range(0)
        return self._intake.add(self._sealer.seal_many(reports, self._context))

    # -- what else lies in this file -------------------------------------------------

    def writing(self) -> AbstractContextManager[sqlite3.Connection]:
        """One transaction on this file, for what belongs to it besides reports."""
        return self._writer.writing()

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """One look at this file."""
        return self._reader.reading()

    def put(self, db: sqlite3.Connection, report: bytes, *, limited: bool) -> int:
        """Takes a report as part of the caller's transaction, and gives its number.

        Raises:
            SpoolFull: there is no room, and it is to keep within the limits.
        """
        return self._intake.put(db, self._sealer.seal(report, self._context), limited)

    def hide(self, data: bytes, about: bytes) -> bytes:
        """Seals something of our own, bound to what it is about."""
        return self._sealer.seal(data, self._context + about)

    def show(self, sealed: bytes, about: bytes) -> bytes:
        """What `hide` was given.

        Raises:
            OpenError: the disk has damaged it.
        """
        try:
            return self._opener.open(sealed, self._context + about)
        except OpenError:
            self._prove_key()
            return self._opener.open(sealed, self._context + about)

    @property
    def public_key(self) -> PublicKey:
        """What all here is sealed to."""
        return self._sealer.recipients[0]

    @property
    def context(self) -> bytes:
        """What all here is bound to."""
        return self._context

    # -- units ---------------------------------------------------------------------

    def due(self, batch: Batch) -> float | None:
        """Seconds until a unit should be made of what is in none; None if nothing is."""
        with self._reader.reading() as db:
            state = read_counters(db)
            oldest = count = size = 0
            for made, length in db.execute(
                "SELECT made, length(sealed) FROM reports WHERE id > ? ORDER BY id LIMIT ?",
                (state.planned_to, batch.reports),
            ):
                oldest, count, size = oldest or made, count + 1, size + length
        if not count:
            return 0 if state.untold else None
        age = (now_ms() - oldest) / 1000
        if count >= batch.reports or size >= batch.bytes or age < 0:  # a clock that was set back
            return 0
        return max(0.0, batch.seconds - age)

    def plan(
        self, batch: Batch, epoch: bytes, sequence: int
    ) -> tuple[SpooledUnit, list[bytes]] | None:
        """Makes a unit of the oldest reports that are in none, and writes it down.

        Returns:
            The unit and its records, or None if there was nothing.
        """
        with self._writer.writing() as db:
            state = read_counters(db)
            if state.untold:
                self._tell(db, state)
            size = count = last = 0
            for number, length in db.execute(
                "SELECT id, length(sealed) FROM reports WHERE id > ? ORDER BY id LIMIT ?",
                (state.planned_to, batch.reports),
            ):
                size += length
                if count and size > batch.bytes:
                    break
                count, last = count + 1, number
            if not count:
                return None
            first = state.planned_to + 1
            rows = members(db, first, last)
            records = self._opened(db, rows)
            db.execute("UPDATE state SET planned_to = ?", (last,))
            if not records:
                return None
            digest = self._sealed_digest(records, epoch, sequence)
            cursor = db.execute(
                "INSERT INTO units (epoch, sequence, first, last, count, digest) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (epoch, sequence, first, last, len(records), digest),
            )
            unit = SpooledUnit(
                cursor.lastrowid or 0, epoch, sequence, first, last, len(records), False, False
            )
        return unit, records

    def _tell(self, db: sqlite3.Connection, state: Counters) -> None:
        """Puts the number of lost reports into a report of its own."""
        sealed = self._sealer.seal(self._notice(state.untold), self._context)
        db.execute(
            "INSERT INTO reports (id, made, sealed) VALUES (?, ?, ?)",
            (state.made + 1, now_ms(), sealed),
        )
        db.execute(
            "UPDATE state SET made = made + 1, untold = 0, bytes = bytes + ?", (len(sealed),)
        )

    def _opened(self, db: sqlite3.Connection, rows: list[tuple[int, bytes]]) -> list[bytes]:
        """What the rows hold. Those that the disk has damaged are taken out, and are lost."""
        opened = self._open_many(rows)
        good = []
        for (number, sealed), report in zip(rows, opened, strict=True):
            if isinstance(report, OpenError):
                db.execute("DELETE FROM reports WHERE id = ?", (number,))
                db.execute(
                    "UPDATE state SET lost = lost + 1, untold = untold + 1, bytes = bytes - ?",
                    (len(sealed),),
                )
            else:
                good.append(report)
        return good

    def _open_many(self, rows: list[tuple[int, bytes]]) -> list[bytes | OpenError]:
        """What the rows hold. Damage is believed only where the key is seen to do its work."""
        sealed = [sealed for _, sealed in rows]
        opened = self._opener.open_many(sealed, self._context)
        if any(isinstance(report, OpenError) for report in opened):
            self._prove_key()
            opened = self._opener.open_many(sealed, self._context)
        return opened

    def _prove_key(self) -> None:
        """What does not open may be whole: a key that fails, for want of memory, does not say so.

        Raises:
            SpoolUnusable: what does open has not opened.
        """
        if self._mark is None:  # nothing has been read or written yet
            return
        try:
            self._proving.open(self._mark, self._context)
        except OpenError as error:
            raise SpoolUnusable(f"the key of {self.path} cannot be used now") from error

    def units(self) -> list[SpooledUnit]:
        """All that are written down and not receipted, oldest first."""
        with self._reader.reading() as db:
            return all_units(db)

    def records(self, unit: SpooledUnit) -> tuple[SpooledUnit, list[bytes]] | None:
        """The unit as it is now, and its records; None if it is no more.

        Raises:
            SpoolDamaged: its reports are other ones than it was made of.
        """
        with self._reader.reading() as db:
            now = one_unit(db, unit.id)
            if now is None:
                return None
            unit = now
            rows = members(db, unit.first, unit.last)
            (digest,) = db.execute("SELECT digest FROM units WHERE id = ?", (unit.id,)).fetchone()
        records = self._open_many(rows)
        good = [record for record in records if not isinstance(record, OpenError)]
        if len(good) < unit.count:
            return self._reduce(unit)
        if not self._same_digest(unit, digest, good):
            raise SpoolDamaged(f"unit {unit.id} in {self.path} is not what it was made of")
        return unit, good

    def _reduce(self, unit: SpooledUnit) -> tuple[SpooledUnit, list[bytes]] | None:
        """Goes on with those reports of a unit that the disk has kept."""
        with self._writer.writing() as db:
            rows = members(db, unit.first, unit.last)
            gone = unit.count - len(rows)
            db.execute("UPDATE state SET lost = lost + ?, untold = untold + ?", (gone, gone))
            good = self._opened(db, rows)
            if not good:
                db.execute("DELETE FROM units WHERE id = ?", (unit.id,))
                return None
            digest = self._sealed_digest(good, unit.epoch, unit.sequence)
            db.execute(
                "UPDATE units SET count = ?, digest = ?, reduced = 1 WHERE id = ?",
                (len(good), digest, unit.id),
            )
            now = one_unit(db, unit.id)
        return None if now is None else (now, good)

    def stored(self, unit: SpooledUnit) -> bool:
        """Takes a unit out: the server has receipted it. False if it was out already."""
        with self._writer.writing() as db:
            row = db.execute("SELECT count FROM units WHERE id = ?", (unit.id,)).fetchone()
            if row is None:
                return False
            between = (unit.first, unit.last)
            (size,) = db.execute(
                "SELECT coalesce(sum(length(sealed)), 0) FROM reports WHERE id BETWEEN ? AND ?",
                between,
            ).fetchone()
            db.execute("DELETE FROM reports WHERE id BETWEEN ? AND ?", between)
            db.execute("DELETE FROM units WHERE id = ?", (unit.id,))
            db.execute("UPDATE state SET stored = stored + ?, bytes = bytes - ?", (row[0], size))
        return True

    def remake(self, unit: SpooledUnit, epoch: bytes, sequence: int) -> SpooledUnit | None:
        """Gives a unit another triple: the server holds other reports under its first one."""
        found = self.records(unit)
        if found is None:
            return None
        unit, records = found
        digest = self._sealed_digest(records, epoch, sequence)
        with self._writer.writing() as db:
            db.execute(
                "UPDATE units SET epoch = ?, sequence = ?, digest = ?, remade = 1 WHERE id = ?",
                (epoch, sequence, digest, unit.id),
            )
            return one_unit(db, unit.id)

    def _sealed_digest(self, records: Sequence[bytes], epoch: bytes, sequence: int) -> bytes:
        # Sealed as well: a digest of a short report would tell it to whoever can guess.
        bound = self._context + epoch + sequence.to_bytes(8, "big")
        return self._sealer.seal(records_digest(records), bound)

    def _same_digest(self, unit: SpooledUnit, sealed: bytes, records: Sequence[bytes]) -> bool:
        bound = self._context + unit.epoch + unit.sequence.to_bytes(8, "big")
        try:
            return bool(self._opener.open(sealed, bound) == records_digest(records))
        except OpenError:
            return False

    # -- upkeep --------------------------------------------------------------------

    def counters(self) -> Counters:
        """As they are on the disk."""
        with self._reader.reading() as db:
            return read_counters(db)

    def oldest(self) -> int | None:
        """When the oldest report that waits was made, in unix milliseconds."""
        with self._reader.reading() as db:
            row = db.execute("SELECT made FROM reports ORDER BY id LIMIT 1").fetchone()
        return None if row is None else int(row[0])

    def tidy(self) -> None:
        """Gives room that is empty for good back to the disk."""
        with suppress(SpoolError), self._writer.alone() as db:
            (page,) = db.execute("PRAGMA page_size").fetchone()
            (free,) = db.execute("PRAGMA freelist_count").fetchone()
            if free * page > _IDLE_BYTES:
                pages = free - _IDLE_BYTES // page
                # A script, since `execute` takes one step, which gives one page back.
                db.executescript(f"PRAGMA incremental_vacuum({pages})")

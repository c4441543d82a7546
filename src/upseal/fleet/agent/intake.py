# SPDX-License-Identifier: Apache-2.0
"""How reports get onto the disk: many callers' in one transaction, up to a limit."""

from __future__ import annotations

import sqlite3
from collections import deque

from upseal.core.forks import renew_in_children
from upseal.fleet.agent.database import Database, SpoolError, SpoolFull, SpoolUnusable
from upseal.fleet.agent.rows import now_ms, read_counters
from upseal.fleet.agent.settings import SpoolLimits
from upseal.fleet.files import free_bytes

_AT_ONCE = 4096
"""Reports that one transaction takes, of several threads that wait."""
_DROPPABLE = (
    "FROM reports WHERE id > (SELECT planned_to FROM state) "
    "AND id NOT IN (SELECT report FROM uploads WHERE report IS NOT NULL)"
)
"""Without its announcement, a file that waits here could not be stored."""


class _Job:
    """Reports of one call, on their way to the disk."""

    __slots__ = ("done", "error", "first", "sealed", "size")

    def __init__(self, sealed: list[bytes]) -> None:
        self.sealed = sealed
        self.size = sum(map(len, sealed))
        self.first = 0
        self.done = False
        self.error: SpoolError | None = None


class Intake:
    """The way in. Safe to share between threads.

    Args:
        database: where the reports go.
        limits: how many, and what happens then.
    """

    def __init__(self, database: Database, limits: SpoolLimits) -> None:
        self._database = database
        self._limits = limits
        self._jobs: deque[_Job] = deque()
        renew_in_children(self)

    def after_fork(self) -> None:
        """A child does not do what threads of its parent wait for."""
        self._jobs = deque()

    def add(self, sealed: list[bytes]) -> range:
        """Takes sealed reports, all or none; as `Spool.add`."""
        job = _Job(sealed)
        self._jobs.append(job)
        with self._database.lock:
            if not job.done:
                self._commit(job)
        if job.error is not None:
            raise job.error
        return range(job.first, job.first + len(job.sealed))

    def put(self, db: sqlite3.Connection, sealed: bytes, limited: bool) -> int:
        """Takes one sealed report within the caller's transaction, and gives its number.

        Raises:
            SpoolFull: there is no room, and it is to keep within the limits.
        """
        job = _Job([sealed])
        if limited:
            self._insert(db, job)
        else:
            self._write(db, job)
        if job.error is not None:
            raise job.error
        return job.first

    def _commit(self, own: _Job) -> None:
        """Writes what waits, from the front up to some thousand reports and past ``own``."""
        while not own.done:
            jobs: list[_Job] = []
            reports = 0
            while self._jobs and (not jobs or reports < _AT_ONCE):
                jobs.append(self._jobs.popleft())
                reports += len(jobs[-1].sealed)
            error: SpoolError = SpoolUnusable("adding was interrupted")
            refused = 0
            try:
                with self._database.writing() as db:
                    for job in jobs:
                        refused += self._insert(db, job)
                    if refused:
                        db.execute("UPDATE state SET refused = refused + ?", (refused,))
            except SpoolError as failed:
                error = failed
            else:
                error = SpoolError()
                for job in jobs:
                    job.done = True
            finally:
                for job in jobs:
                    if not job.done:
                        job.error = type(error)(*error.args)
                        job.done = True

    def _insert(self, db: sqlite3.Connection, job: _Job) -> int:
        """Inserts a job's reports, or refuses them; returns how many it refused."""
        job.error = None
        over = read_counters(db).bytes + job.size - self._limits.max_bytes
        try:
            self._check_disk(job.size)
            if over > 0:
                self._make_room(db, over)
        except SpoolFull as full:
            job.error = full
            return len(job.sealed)
        self._write(db, job)
        return 0

    @staticmethod
    def _write(db: sqlite3.Connection, job: _Job) -> None:
        job.first = read_counters(db).made + 1
        now = now_ms()
        numbers = range(job.first, job.first + len(job.sealed))
        db.executemany(
            "INSERT INTO reports (id, made, sealed) VALUES (?, ?, ?)",
            ((number, now, sealed) for number, sealed in zip(numbers, job.sealed, strict=True)),
        )
        db.execute(
            "UPDATE state SET made = made + ?, bytes = bytes + ?", (len(job.sealed), job.size)
        )

    def _check_disk(self, size: int) -> None:
        if free_bytes(self._database.path.parent) < self._limits.min_free + size:
            raise SpoolFull(f"the disk of {self._database.path} is nearly full")

    def _make_room(self, db: sqlite3.Connection, over: int) -> None:
        """Drops the oldest reports that are in no unit, so many bytes of them, if that is the rule.

        Those in a unit may be at the server already: whether they are lost could not be said.
        """
        full = SpoolFull(f"{self._database.path} has reached its {self._limits.max_bytes:,} bytes")
        if self._limits.full != "drop-oldest":
            raise full
        freed = count = last = 0
        for number, size in db.execute(f"SELECT id, length(sealed) {_DROPPABLE} ORDER BY id"):
            freed, count, last = freed + size, count + 1, number
            if freed >= over:
                break
        if freed < over:
            raise full
        db.execute(f"DELETE {_DROPPABLE} AND id <= ?", (last,))
        db.execute(
            "UPDATE state SET lost = lost + ?, untold = untold + ?, bytes = bytes - ?",
            (count, count, freed),
        )

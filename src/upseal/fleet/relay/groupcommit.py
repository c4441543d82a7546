# SPDX-License-Identifier: Apache-2.0
"""One thread writes to a SQLite file, and commits what many callers want with one fsync."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

_GROUP = 32 << 20
"""Bytes that one transaction takes at most: a longer one would keep the first caller waiting."""
_SOON = 0.05
"""Seconds until the rest of the chores: who wants something written comes in between."""


class _Job(NamedTuple):
    work: Callable[[sqlite3.Connection], Any]
    weight: int
    future: Future[Any]


class GroupCommit:
    """Runs jobs in order, many in one transaction; their futures are set after the commit.

    A job that fails (a full disk, say) fails alone: its group is rolled back, and each of the
    others is done again by itself. So a job touches nothing but the database.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        chores: Callable[[sqlite3.Connection], bool] | None = None,
        every: float = 5.0,
        name: str = "writer",
    ) -> None:
        """Takes the connection over (``isolation_level=None``, ``check_same_thread=False``).

        Args:
            connection: of this writer alone.
            chores: a little of them is done between transactions, now and then; says whether
                there is more to do.
            every: seconds between them.
            name: of the thread.
        """
        self._connection = connection
        self._chores = chores
        self._every = every
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self.turns = 0
        """Of the thread: it lives while they grow, also with nothing to write if it has chores."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[sqlite3.Connection], T], weight: int = 0) -> Future[T]:
        """Does ``work`` in a transaction; its result comes when that is on the disk.

        Raises:
            RuntimeError: closed.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # who no longer waits must not cancel what is written
        with self._changed:
            if self._closing:
                raise RuntimeError("this queue is closed")
            self._jobs.append(_Job(work, weight, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Writes what was submitted, and closes the file."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic() + self._every
        try:
            while jobs := self._next(due):
                self.turns += 1
                if jobs != [None]:
                    self._commit([job for job in jobs if job is not None])
                if self._chores is not None and time.monotonic() >= due:
                    more = self._tidy(self._chores)
                    due = time.monotonic() + (_SOON if more else self._every)
        finally:  # also where it ends by a mistake: then nobody is left waiting
            with self._changed:
                self._closing = True
                left, self._jobs = self._jobs, deque()
            for job in left:
                job.future.set_exception(RuntimeError("this queue is closed"))
            self._connection.close()

    def _next(self, due: float) -> list[_Job | None]:
        """The jobs of the next transaction; [None] if it is time for chores, [] at the end."""
        with self._changed:
            while not self._jobs:
                if self._closing:
                    return []
                left = due - time.monotonic() if self._chores is not None else None
                if left is not None and left <= 0:
                    return [None]
                self._changed.wait(left)
            group: list[_Job | None] = []
            weight = 0
            while self._jobs and (not group or weight + self._jobs[0].weight <= _GROUP):
                job = self._jobs.popleft()
                weight += job.weight
                group.append(job)
            return group

    def _commit(self, group: list[_Job]) -> None:
        try:
            results = self._transaction(group)
        except Exception as error:
            if len(group) == 1:
                group[0].future.set_exception(error)
                return
            for job in group:
                self._commit([job])
            return
        for job, result in zip(group, results, strict=True):
            job.future.set_result(result)

    def _transaction(self, group: list[_Job]) -> list[Any]:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            results = [job.work(connection) for job in group]
            connection.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some errors, a full disk among them.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return results

    def _tidy(self, chores: Callable[[sqlite3.Connection], bool]) -> bool:
        try:
            return chores(self._connection)
        except (sqlite3.Error, MemoryError):  # busy, or a full disk: nothing depends on it
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            return False


def connect(path: Path, *, writer: bool = False) -> sqlite3.Connection:
    """A connection to a file that is made, if it is new, for its owner alone."""
    if writer:
        # SQLite gives its -wal and -shm the mode of the file itself.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    try:
        if writer:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # counts in a new file alone
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA journal_size_limit=67108864")
            # What came in clear is overwritten where that costs no more writing.
            connection.execute("PRAGMA secure_delete=FAST")
        else:
            connection.execute("PRAGMA query_only=ON")
    except BaseException:
        connection.close()
        raise
    return connection

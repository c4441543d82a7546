# SPDX-License-Identifier: Apache-2.0
"""One SQLite connection, with what SQLite has not: a lock, care at forks, errors with a meaning.

SQLite keeps its bookkeeping of file locks in the process, so a child that inherits an open database
believes in locks that only its parent holds. Connections are therefore closed before a fork, and
opened again by whoever uses them next, parent or child.
"""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

from upseal.fleet.malformed import damaged

BUSY_SECONDS = 30.0
"""How long to wait for another process that writes."""
WAL_BYTES = 8 << 20
"""The log beside the database is cut back to this when it has been copied over."""
_OURS = 0x55505350  # "UPSP"
_VERSION = 1
_SMALLEST = 512
_FULL, _CORRUPT, _NOT_A_DATABASE = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
)
_TABLE = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+)")
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class SpoolError(Exception):
    """The spool cannot do it. What was acknowledged before is still there."""


class SpoolFull(SpoolError):  # noqa: N818 - what happened
    """No room: the limit is reached, or the disk is full. The report was not taken."""


class SpoolDamaged(SpoolError):  # noqa: N818 - what happened
    """The file is no spool, or not whole. Nothing in it is touched any more."""


class SpoolUnusable(SpoolError):  # noqa: N818 - what happened
    """The disk failed, somebody holds the file, or the spool is closed. It may go well later."""


def explained(error: sqlite3.Error, path: Path) -> SpoolError:
    """SQLite's error as ours."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == _FULL:
        return SpoolFull(f"no room on the disk of {path}")
    if code == _CORRUPT and not damaged(path):
        return SpoolUnusable(f"{path} could not be read: {error}")
    if code in (_CORRUPT, _NOT_A_DATABASE):
        return SpoolDamaged(f"{path} is damaged: {error}")
    if code in _LOCKED:
        return SpoolUnusable(f"{path} has been locked by another process for too long")
    return SpoolUnusable(f"{path} cannot be used: {error}")


class Database:
    """A connection that is opened when it is needed. Safe to share between threads.

    Args:
        path: the file; made, mode 0600, if there is none.
        schema: statements that make the tables where there are none.
        check: looks at each new connection, and raises `SpoolDamaged` if this is not to be used.
        later: statements that make tables which files of earlier releases do not have.
    """

    def __init__(
        self,
        path: Path,
        schema: tuple[str, ...],
        check: Callable[[sqlite3.Connection], None],
        later: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self._schema = schema
        self._later = later
        self._check = check
        self._connection: sqlite3.Connection | None = None
        self._turn: int | None = None
        self._closed = False
        # Taken again by its own thread where a signal handler forks: better than a deadlock.
        self.lock = threading.RLock()
        _databases.add(self)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on the disk when the block has ended well, or nothing of it."""
        with self._used() as connection:
            self._begin(connection)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # A COMMIT that failed for want of room has left the transaction open.
                with suppress(sqlite3.Error):
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                raise

    def _begin(self, connection: sqlite3.Connection) -> None:
        """Waits for the right to write, as one of all processes that want it.

        SQLite has whoever waits look again now and then, so a process that writes without pause
        would hardly ever be seen pausing. Here it cannot come back before the one that waits.
        """
        end = time.monotonic() + BUSY_SECONDS
        pause = 0.0005
        assert self._turn is not None
        while True:
            try:
                fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise SpoolUnusable(f"{self.path} is held by another process") from None
            time.sleep(pause)
            pause = min(2 * pause, 0.004)
        try:
            connection.execute("BEGIN IMMEDIATE")
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one look at the data as it is now."""
        with self._used() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    @contextmanager
    def alone(self) -> Iterator[sqlite3.Connection]:
        """The connection, outside any transaction: for upkeep."""
        with self._used() as connection:
            yield connection

    @contextmanager
    def _used(self) -> Iterator[sqlite3.Connection]:
        with self.lock:
            if self._closed:
                raise SpoolUnusable(f"{self.path} has been closed")
            try:
                if self._connection is None:
                    self._connection = self._open()
                yield self._connection
            except sqlite3.Error as error:
                # Whatever state the connection is in: the next one begins afresh.
                self._let_go()
                raise explained(error, self.path) from error
            except OSError as error:
                raise SpoolUnusable(f"{self.path} cannot be used: {error}") from error

    def _open(self) -> sqlite3.Connection:
        size = _size_or_made(self.path)
        if 0 < size < _SMALLEST:  # SQLite would take it for a new one, and write over it
            raise SpoolDamaged(f"{self.path} is damaged: it is cut off")
        connection = sqlite3.connect(
            self.path, BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            turn = self.path.with_name(self.path.name + ".turn")
            self._turn = os.open(turn, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            for pragma in (
                "secure_delete = ON",
                "synchronous = FULL",
                f"journal_size_limit = {WAL_BYTES}",
                "trusted_schema = OFF",
                "cell_size_check = ON",
            ):
                connection.execute(f"PRAGMA {pragma}")
            self._prepare(connection)
            self._check(connection)
        except BaseException:
            self._let_go(connection)
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Makes the tables of a new file; refuses a file of somebody else."""
        (ours,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if (ours, version) == (_OURS, _VERSION):
            self._add_tables(connection)
            return
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and not ours == _OURS:
            raise SpoolDamaged(f"{self.path} is a database, but no spool")
        if version > _VERSION:
            raise SpoolDamaged(f"{self.path} was made by a newer release")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # must stand before the first table
        _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchall())
        connection.execute("BEGIN IMMEDIATE")
        for statement in (*self._schema, *self._later):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_OURS}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _add_tables(self, connection: sqlite3.Connection) -> None:
        """Makes the tables that releases after the file's own have; what is there stays.

        Those of the beginning are never made again: where one is missing, the file is damaged.
        """
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        wanted = {match[1] for match in map(_TABLE.match, self._later) if match}
        if wanted <= there:
            return
        # On a full disk: whoever needs them will hear of it. Reports go on without.
        with suppress(sqlite3.OperationalError):
            try:
                connection.execute("BEGIN IMMEDIATE")
                for statement in self._later:
                    connection.execute(statement)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _let_go(self, opened: sqlite3.Connection | None = None) -> None:
        connection, self._connection = opened or self._connection, None
        turn, self._turn = self._turn, None
        if turn is not None:
            os.close(turn)
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def close(self) -> None:
        """For good."""
        with self.lock:
            self._closed = True
            self._let_go()

    def before_fork(self) -> None:
        """Holds still, with no connection."""
        self.lock.acquire()
        self._let_go()

    def after_fork(self, *, child: bool) -> None:
        """Goes on; a child under a lock of its own."""
        if child:
            self.lock = threading.RLock()
        else:
            self.lock.release()


def _size_or_made(path: Path) -> int:
    """The file's size; where there is none, an empty one is made with mode 0600.

    One that is there is never opened here: closing a descriptor gives up all POSIX locks that this
    process has on the file, those of its other connections too. The next process to close the
    database would then take itself for the last one, and delete the journal under the others.
    """
    with suppress(FileNotFoundError):
        return path.stat().st_size
    with suppress(FileExistsError):  # somebody else was quicker
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return 0


def _patiently(work: Callable[[], object]) -> None:
    """Changing the journal's mode does not wait for others by itself."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            work()
            return
        except sqlite3.OperationalError as error:
            if (error.sqlite_errorcode & 0xFF) not in _LOCKED or time.monotonic() > end:
                raise
        time.sleep(0.02)


_databases: WeakSet[Database] = WeakSet()
_still: list[Database] = []
_one_fork_at_a_time = threading.Lock()


def _before_fork() -> None:
    _one_fork_at_a_time.acquire()
    _still[:] = _databases
    for database in _still:
        database.before_fork()


def _after_fork(child: bool) -> None:
    global _one_fork_at_a_time
    for database in _still:
        database.after_fork(child=child)
    _still.clear()
    if child:
        _one_fork_at_a_time = threading.Lock()
    else:
        _one_fork_at_a_time.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=lambda: _after_fork(False),
        after_in_child=lambda: _after_fork(True),
    )

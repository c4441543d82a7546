# SPDX-License-Identifier: Apache-2.0
"""Copies of databases that are in use, and copies put back.

SQLite: ``VACUUM INTO``, which is one state of the database, keeps nobody waiting, and leaves out
what was deleted and still stands in free pages. PostgreSQL: ``pg_dump`` of a snapshot, and
``pg_restore`` in one transaction.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from sqlalchemy import Connection, func, select, text

from upseal.fleet.admin.refusals import Unusable
from upseal.fleet.files import free_bytes
from upseal.fleet.server.store import Store, StoreError, get_meta, manifests
from upseal.fleet.server.tables import agents, reports
from upseal.fleet.server.upload_tables import GONE, deletions, uploads

SQLITE, POSTGRESQL = "sqlite", "postgresql"
_SPARE = 64 << 20
_STEPS = 100_000
_WORDS = 300


@dataclass(frozen=True, slots=True)
class Upload:
    """A stored file, as the copy of the database has it."""

    agent: bytes
    upload: bytes
    path: str
    """In the folder of stored files."""
    size: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What stands in a copy."""

    deployment: str
    schema: str
    serial: int
    clients: int
    reports: int
    uploads: tuple[Upload, ...]


@contextmanager
def copied(database: str, work: Path, look: Callable[[], None]) -> Iterator[tuple[Path, Facts]]:
    """A file with one state of the database, and what that state is; gone when the block ends.

    Args:
        database: SQLite's file, or a URL.
        work: a folder of our own.
        look: called now and then; what it raises ends the work.

    Raises:
        Unusable: there is no room, or the database or ``pg_dump`` cannot be used.
    """
    target = work / "database"
    target.unlink(missing_ok=True)
    try:
        facts = (_dump if is_postgresql(database) else _vacuum)(database, target, look)
        yield target, facts
    finally:
        for end in ("", "-wal", "-shm", "-journal", "-turn", "-door"):
            target.with_name(target.name + end).unlink(missing_ok=True)


def is_postgresql(database: str) -> bool:
    """Whether it is no file."""
    return "://" in database and not database.startswith("sqlite")


def _vacuum(database: str, target: Path, look: Callable[[], None]) -> Facts:
    path = Path(database.removeprefix("sqlite:///")).absolute()
    needed = path.stat().st_size + _SPARE if path.is_file() else 0
    if free_bytes(target.parent) < needed:
        raise Unusable(
            "copy the database",
            f"{str(target.parent)!r} has no room for another {needed} bytes",
            "make room, or name another folder with --work",
        )

    def watch() -> int:
        look()
        return 0

    # Made before, and closed to others: SQLite would make it by the umask.
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", 30, uri=True)) as db:
            db.execute("PRAGMA trusted_schema = OFF")
            db.set_progress_handler(watch, _STEPS)
            db.execute("VACUUM INTO ?", (str(target),))
    except sqlite3.Error as error:
        look()  # a signal ends the statement, too
        raise Unusable(
            "copy the database", f"{str(path)!r}: {error}", "check the disk, and `database`"
        ) from error
    with _opened(str(target)) as store, store.reading() as copy:
        return _facts(copy)


def _dump(database: str, target: Path, look: Callable[[], None]) -> Facts:
    program = _program("pg_dump", "copy the database")
    with _opened(database) as store, store.reading() as db:
        # All that is said about the copy is read in the transaction that it is a copy of.
        snapshot = db.execute(text("SELECT pg_export_snapshot()")).scalar_one()
        _run(
            "copy the database",
            [program, "--format=custom", "--no-owner", "--no-privileges",
             f"--snapshot={snapshot}", f"--file={target}"],
            database, look,
        )  # fmt: skip
        return _facts(db)


def put_back(copy: Path, database: str, look: Callable[[], None]) -> None:
    """Fills an empty PostgreSQL database: all of it, or nothing.

    Raises:
        Unusable: ``pg_restore`` is not there or failed.
    """
    _run(
        "restore the database",
        [_program("pg_restore", "restore the database"), "--no-owner", "--no-privileges",
         "--exit-on-error", "--single-transaction"],
        database, look, copy,
    )  # fmt: skip


def check_empty(database: str) -> None:
    """Whether a backup can be put there.

    Raises:
        Unusable: there is something already, or it cannot be reached.
    """
    what = "restore the database"
    if not is_postgresql(database):
        path = Path(database.removeprefix("sqlite:///"))
        if path.exists():
            raise Unusable(what, f"there is a file {str(path)!r}", "move it away first")
        return
    _program("pg_restore", what)
    url = _url(what, database).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(url, hide_parameters=True)
    try:
        with engine.connect() as db:
            there = sqlalchemy.inspect(db).get_table_names()
    except sqlalchemy.exc.SQLAlchemyError as error:
        why = " ".join(str(getattr(error, "orig", None) or type(error).__name__).split())
        raise Unusable(what, why[:_WORDS], "check `database`, and that it was made") from error
    finally:
        engine.dispose()
    if there:
        raise Unusable(what, f"it has {len(there)} tables already", "make a new, empty one for it")


def _facts(db: Connection) -> Facts:
    newest = manifests.newest_serial(db)
    if newest is None:
        raise Unusable(
            "copy the database", "it has no manifest", "make the deployment anew, there is nothing"
        )
    rows = db.execute(
        select(uploads.c.agent, uploads.c.upload, uploads.c.path, uploads.c.size)
        .join(deletions, GONE, isouter=True)
        .where(deletions.c.deleted.is_(None))
        .order_by(uploads.c.agent, uploads.c.upload)
    )
    return Facts(
        deployment=get_meta(db, "deployment") or "",
        schema=get_meta(db, "schema") or "",
        serial=newest,
        clients=db.execute(select(func.count()).select_from(agents)).scalar_one(),
        reports=db.execute(select(func.count()).select_from(reports)).scalar_one(),
        uploads=tuple(Upload(bytes(r.agent), bytes(r.upload), r.path, r.size) for r in rows),
    )


def deleted(database: str) -> set[tuple[bytes, bytes]]:
    """Agent and upload of all files that somebody has deleted by now."""
    with _opened(database) as store, store.reading() as db:
        rows = db.execute(select(deletions.c.agent, deletions.c.upload))
        return {(bytes(row.agent), bytes(row.upload)) for row in rows}


@contextmanager
def _opened(database: str) -> Iterator[Store]:
    try:
        store = Store.open(database)
    except StoreError as error:
        raise Unusable("copy the database", str(error), "check `database`") from error
    with store:
        yield store


def _program(name: str, what: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Unusable(
            what, f"there is no {name} here", "install PostgreSQL's client programs (postgresql-"
            "client), of the server's version or a newer one",
        )  # fmt: skip
    return found


def _url(what: str, database: str) -> sqlalchemy.URL:
    """Whose errors would show parts of the password.

    Raises:
        Unusable: it is none.
    """
    try:
        return sqlalchemy.make_url(database)
    except (ValueError, sqlalchemy.exc.ArgumentError):
        raise Unusable(
            what, "`database` is no URL", "in a password, @ : / are %40 %3A %2F"
        ) from None


def _run(
    what: str, command: list[str], database: str, look: Callable[[], None], file: Path | None = None
) -> None:
    url = _url(what, database)
    environment = dict(os.environ)
    if url.password is not None:  # arguments can be read by everybody on the host
        environment["PGPASSWORD"] = str(url.password)
        url = url.set(password=None)
    where = url.set(drivername="postgresql").render_as_string(hide_password=False)
    arguments = [*command, f"--dbname={where}", *([] if file is None else [str(file)])]
    with subprocess.Popen(  # noqa: S603 - no shell, and nothing from the network
        arguments, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, errors="replace",
    ) as child:  # fmt: skip
        try:
            while True:
                try:
                    said = child.communicate(timeout=0.2)[1]
                    break
                except subprocess.TimeoutExpired:
                    look()
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        why = " ".join(said.split())[:_WORDS]
        raise Unusable(what, f"{Path(command[0]).name}: {why}", "mend that, then try again")

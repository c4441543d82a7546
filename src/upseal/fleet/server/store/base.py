# SPDX-License-Identifier: Apache-2.0
"""Connections and transactions: SQLite by default, PostgreSQL by a URL."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, event, insert, select

from upseal.fleet.server import tables, upload_tables
from upseal.fleet.server.store.turns import Turns

_WRITES = "upseal_writes"
_MAKING_TABLES = 0x7570_7365_616C
_ALL_TABLES = frozenset(tables.metadata.tables) | {upload_tables.uploads.name}
_BUSY_SECONDS = 30
_GONE = MappingProxyType({
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
})  # fmt: skip
"""For libpq, unless the URL says otherwise: a PostgreSQL that is silent is away, and an error.
Without them nothing is heard for 2 to 15 minutes. Seconds; the second one milliseconds."""


class StoreError(Exception):
    """The database is not there, not one of ours, or of another version."""


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Store:
    """A deployment's database. Safe to share between threads; several processes may use it.

    Everything is done inside a transaction, by the functions of the modules beside this one, which
    take the connection first::

        store = Store.open("/srv/upseal/server.db")     # or "postgresql://..."
        with store.reading() as db:
            newest = manifests.newest(db)
        with store.writing() as db:                     # all of it, or nothing
            manifests.add(db, serial, jws, changed_signing_keys=False, issued=now)
            audit.append(db, "root", "enable", {"generation": 2}, now)

    What stands inside `writing` is committed, on disk, when the block ends, and rolled back by an
    exception. Keep it short: others wait. A `Store` must not be used on in a forked child.
    """

    def __init__(self, engine: Engine, path: Path | None) -> None:
        """For `create` and `open`."""
        self.engine = engine
        self.path = path
        """SQLite's file."""
        levels = {} if path is not None else {"isolation_level": "READ COMMITTED"}
        self._writer = engine.execution_options(**{_WRITES: True}, **levels)
        self._turns = Turns(path) if path is not None else None

    @property
    def postgresql(self) -> bool:
        """False: SQLite."""
        return self.engine.dialect.name == "postgresql"

    @classmethod
    def create(cls, database: str | os.PathLike[str], deployment: bytes) -> Store:
        """Makes the tables, in a new SQLite file (mode 0600) or an empty PostgreSQL schema.

        Raises:
            StoreError: there is one already, or it cannot be reached.
        """
        url, path = _url(database)
        if path is not None:
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            except OSError as error:
                raise StoreError(f"cannot make the database {path}: {error.strerror}") from error
        store = cls(_engine(url, path), path)
        try:
            with store.writing() as db:
                if sqlalchemy.inspect(db).has_table("meta"):
                    raise StoreError("this database has upseal's tables already")
                tables.metadata.create_all(db)
                facts = {"schema": str(tables.SCHEMA), "deployment": deployment.hex()}
                rows = [{"name": name, "value": value} for name, value in facts.items()]
                db.execute(insert(tables.meta), rows)
                db.execute(insert(tables.counters), [{"name": "reports", "value": 0}])
        except sqlalchemy.exc.SQLAlchemyError as error:
            store.close()
            raise StoreError(f"cannot make the tables: {_reason(error)}") from error
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, database: str | os.PathLike[str]) -> Store:
        """Opens what `create` made.

        Raises:
            StoreError: it is not there, not ours, or of another version.
        """
        url, path = _url(database)
        if path is not None and not path.is_file():
            raise StoreError(f"there is no database {path}; `upseal admin init` makes one")
        store = cls(_engine(url, path), path)
        try:
            with store.reading() as db:
                there = set(sqlalchemy.inspect(db).get_table_names())
                if tables.meta.name not in there:
                    raise StoreError("this database is not one of upseal's")
                version = get_meta(db, "schema")
            if version != str(tables.SCHEMA):
                raise StoreError(
                    f"the database was made by a newer release: it is of version {version}, and "
                    f"this upseal knows {tables.SCHEMA}; use that release, or a backup from before"
                )
            if not there >= _ALL_TABLES:
                store._add_tables()
        except sqlalchemy.exc.SQLAlchemyError as error:
            store.close()
            raise StoreError(f"cannot use the database: {_reason(error)}") from error
        except BaseException:
            store.close()
            raise
        return store

    def _add_tables(self) -> None:
        """Those that came with a newer upseal, and change nothing of what is there."""
        with self.writing() as db:
            if self.postgresql:  # it knows no CREATE TABLE that two may do at once
                db.execute(select(sqlalchemy.func.pg_advisory_xact_lock(_MAKING_TABLES)))
            tables.metadata.create_all(db)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database; it never waits for writers."""
        with self.engine.begin() as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may change things; they are on disk when it ends."""
        if self._turns is None:
            with self._writer.begin() as db:
                yield db
            return
        with self._turns.take(), self._writer.begin() as db:
            yield db

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def get_meta(db: Connection, name: str) -> str | None:
    """A value of the meta table: ``schema``, ``deployment`` (hexadecimal)."""
    return db.execute(
        select(tables.meta.c.value).where(tables.meta.c.name == name)
    ).scalar_one_or_none()


def _url(database: str | os.PathLike[str]) -> tuple[sqlalchemy.URL, Path | None]:
    """A URL, and SQLite's file."""
    name = os.fspath(database)
    if "://" not in name:
        path = Path(name).absolute()
        return sqlalchemy.URL.create("sqlite+pysqlite", database=str(path)), path
    try:
        url = sqlalchemy.make_url(name)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # the latter of what it takes for a port
        raise StoreError("this is no database URL") from None  # it may hold a password: not said
    kind = url.get_backend_name()
    if kind == "sqlite":
        if not url.database or url.database == ":memory:":
            raise StoreError("the database must be a file: several processes use it")
        path = Path(url.database).absolute()
        return sqlalchemy.URL.create("sqlite+pysqlite", database=str(path)), path
    if kind in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg"), None
    raise StoreError(f"no database {kind!r}: SQLite and PostgreSQL are known")


def _engine(url: sqlalchemy.URL, path: Path | None) -> Engine:
    try:
        if path is None:
            # Readers see one state; a writer that waited for another sees what that did.
            return sqlalchemy.create_engine(
                url,
                pool_pre_ping=True,
                pool_size=8,
                isolation_level="REPEATABLE READ",
                hide_parameters=True,
                connect_args={k: v for k, v in _GONE.items() if k not in url.query},
            )
        engine = sqlalchemy.create_engine(
            url,
            pool_size=8,
            hide_parameters=True,  # an error's words must not hold a report
            connect_args={
                "timeout": _BUSY_SECONDS, "check_same_thread": False, "isolation_level": None,
            },
        )  # fmt: skip
    except ModuleNotFoundError as error:
        raise StoreError(
            f"PostgreSQL needs {error.name}: pip install 'upseal[postgresql]'"
        ) from error
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _record: Any) -> None:
    """SQLite: what is committed is on disk, and readers never wait."""
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "cache_size=-65536",
        "temp_store=MEMORY",
        "wal_autocheckpoint=4000",
        "journal_size_limit=67108864",
        "trusted_schema=OFF",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    """SQLite: a writer says so at once, since a reader that becomes one may fail half-way."""
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _reason(error: sqlalchemy.exc.SQLAlchemyError) -> str:
    """The driver's words on one line, without SQL and parameters."""
    return " ".join(str(getattr(error, "orig", None) or error).split())[:300]

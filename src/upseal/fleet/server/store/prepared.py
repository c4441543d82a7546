# SPDX-License-Identifier: Apache-2.0
"""Statements for the database at hand: made once, run often."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import sqlalchemy
from sqlalchemy import Connection


class Prepared:
    """A statement that is made into SQL once for each kind of database.

    The server runs a few statements for every group of units; SQLAlchemy would need longer to put
    them together anew, and to handle each parameter, than the database to execute them. What it
    makes of parameters is left out: they must be what the driver takes.
    """

    def __init__(self, make: Callable[[Any], Any], names: Sequence[str]) -> None:
        """``make`` is given the database's own ``insert``; ``names`` are the parameters."""
        self._make = make
        self._names = tuple(names)
        self._known: dict[str, tuple[str, Callable[[Mapping[str, Any]], Any]]] = {}

    def run(self, db: Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        """Once for each row, all in one go; how many rows of the table it changed."""
        if not rows:
            return 0
        sql, bind = self._of(db)
        return db.exec_driver_sql(sql, [bind(row) for row in rows]).rowcount

    def first(self, db: Connection, **values: Any) -> Any:
        """Once; the first row it gives, or None."""
        sql, bind = self._of(db)
        return db.exec_driver_sql(sql, bind(values)).first()

    def all(self, db: Connection, **values: Any) -> Sequence[Any]:
        """Once; all rows it gives."""
        sql, bind = self._of(db)
        return db.exec_driver_sql(sql, bind(values)).all()

    def run_tuples(self, db: Connection, rows: Sequence[tuple[Any, ...]]) -> int:
        """As `run`, for statements whose parameters are just `names`, in this order."""
        if not rows:
            return 0
        sql, _ = self._of(db)
        given: Any = rows
        if db.dialect.paramstyle == "pyformat":
            given = [dict(zip(self._names, row, strict=True)) for row in rows]
        return db.exec_driver_sql(sql, given).rowcount

    def _of(self, db: Connection) -> tuple[str, Callable[[Mapping[str, Any]], Any]]:
        found = self._known.get(db.dialect.name)
        if found is None:
            made = self._make(_insert(db)).compile(dialect=db.dialect, column_keys=self._names)
            constants = {n: v for n, v in made.params.items() if n not in self._names}
            order = made.positiontup
            if order is None:
                found = str(made), lambda row: {**constants, **row}
            elif constants:
                found = str(made), lambda row: tuple({**constants, **row}[n] for n in order)
            else:
                found = str(made), itemgetter(*order) if len(order) > 1 else _one(order[0])
            self._known[db.dialect.name] = found
        return found


def _one(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda row: (row[name],)


def _insert(db: Connection) -> Any:
    if db.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert
    from sqlalchemy.dialects import postgresql

    return postgresql.insert


def upsert(db: Connection, table: sqlalchemy.Table) -> Any:
    """An insert with ``on_conflict_do_update``, for the database at hand."""
    return _insert(db)(table)

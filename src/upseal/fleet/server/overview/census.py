# SPDX-License-Identifier: Apache-2.0
"""What each client does, by the database and the manifest together: counted, and listed in parts.

The database does the work, so that a page of 200,000 clients reads fifty of them. What the manifest
says of single clients (their levels, who is revoked) goes along as a parameter.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    FromClause,
    and_,
    case,
    cast,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

from upseal.core.suites import Suite
from upseal.fleet.manifest import Manifest
from upseal.fleet.policy import Level, Reason
from upseal.fleet.server.overview import orphans, people
from upseal.fleet.server.overview.people import HOUR_MS, Client
from upseal.fleet.server.store import clients as store_clients
from upseal.fleet.server.tables import agents, clients

DOES = ("sealed", "clear", "withheld", "silent", "revoked")
"""What a client does; ``silent`` goes before what it did when it was last heard of."""
FILTERS = ("orphaned", "clear", "withheld", "silent", "sealed", "gaps")
SORTS = ("name", "wanted", "actual", "why", "seen", "reports")


@dataclass(frozen=True)
class Known:
    """A client, and what it comes to."""

    client: Client
    does: str
    level: Level | None
    """By the manifest."""
    orphan: orphans.Orphan | None
    """It must seal, and cannot."""
    missing: int = 0
    """Units that its sequences say exist, and that have not arrived."""

    @property
    def orphaned(self) -> bool:
        """Whether its reports stay with it, or would."""
        return self.orphan is not None or self.does == "withheld"

    def facts(self) -> dict[str, Any]:
        """For machines."""
        client = self.client
        return {
            "agent": client.agent.hex(),
            "name": client.name,
            "wanted": client.wanted.value if client.wanted is not None else None,
            "set": self.level.value if self.level is not None else None,
            "actual": self.does,
            "last_actual": client.actual,
            "why": client.reason.label if client.reason is not None else None,
            "orphaned": self.orphaned,
            "orphaned_because": self.orphan.why if self.orphan is not None else None,
            "last_seen": client.last_seen,
            "suite": Suite(client.suite).label if client.suite is not None else None,
            "key_id": client.key_id.hex() if client.key_id is not None else None,
            "sealed_reports": client.sealed,
            "clear_reports": client.clear,
            "missing_units": self.missing,
        }


@dataclass(frozen=True)
class Counts:
    """All clients of one moment."""

    clients: int
    by: dict[str, int]
    """For each of `DOES`."""
    sealed_reports: int
    """All that were ever stored."""
    clear_reports: int
    orphaned: int = 0
    """Who must seal and cannot, whatever else is said of it."""

    def facts(self) -> dict[str, int]:
        """For machines."""
        return {"clients": self.clients, **self.by}


@dataclass(frozen=True)
class Choice:
    """Which clients are asked for, and in which order.

    Args:
        only: one of `FILTERS`, or all.
        search: a part of the name, or the beginning of the id.
        sort: one of `SORTS`.
        descending: the other way round.
    """

    only: str | None = None
    search: str = ""
    sort: str = "name"
    descending: bool = False

    def __post_init__(self) -> None:
        if self.only is not None and self.only not in FILTERS:
            raise ValueError(f"no filter {self.only!r}: choose one of {', '.join(FILTERS)}")
        if self.sort not in SORTS:
            raise ValueError(f"no order {self.sort!r}: choose one of {', '.join(SORTS)}")


class Census:
    """The clients of one moment: made for one transaction."""

    def __init__(self, db: Connection, manifest: Manifest, now_ms: int, silent_hours: int) -> None:
        """``silent_hours``: not heard of for so long."""
        self._db = db
        self._manifest = manifest
        self._heard = now_ms - silent_hours * HOUR_MS
        gone = manifest.revoked_agents
        self._revoked = or_(self._among(agents.c.agent, gone), self._among(agents.c.hop, gone))
        self._does: Any = case(
            (self._revoked, literal("revoked")),
            (func.coalesce(clients.c.last_seen, -1) < self._heard, literal("silent")),
            else_=func.coalesce(func.nullif(clients.c.actual, ""), "silent"),
        )

    def counts(self) -> Counts:
        """How many there are, by what they do."""
        sealed = func.coalesce(func.sum(clients.c.sealed), 0)
        clear = func.coalesce(func.sum(clients.c.clear), 0)
        does = self._does.label("does")
        orphaned = func.sum(case((self._orphaned(), 1), else_=0))
        query = select(does, func.count(), sealed, clear, orphaned).select_from(people.JOINED)
        rows = self._db.execute(query.where(agents.c.role == "agent").group_by(does)).all()
        by = dict.fromkeys(DOES, 0)
        for row in rows:
            by[row[0]] = by.get(row[0], 0) + int(row[1])
        sealed_reports, clear_reports, orphans_now = (
            sum(int(row[n]) for row in rows) for n in (2, 3, 4)
        )
        return Counts(sum(by.values()), by, sealed_reports, clear_reports, orphans_now)

    def count(self, choice: Choice) -> int:
        """How many are chosen."""
        # What clients have said is looked at only where it matters: it takes most of the time.
        whom: FromClause = agents if choice.only in (None, "gaps") else people.JOINED
        query = select(func.count()).select_from(whom).where(self._where(choice))
        return int(self._db.execute(query).scalar_one())

    def listing(self, choice: Choice, limit: int | None = None, offset: int = 0) -> list[Known]:
        """The chosen ones, or a part of them."""
        query = people.query(self._where(choice)).order_by(*self._order(choice))
        found = people.read(self._db, query.limit(limit).offset(offset or None))
        missing = store_clients.missing(self._db, [client.agent for client in found])
        return [self._known(client, missing.get(client.agent, 0)) for client in found]

    def _known(self, client: Client, missing: int) -> Known:
        manifest = self._manifest
        orphan = orphans.find([client], manifest, manifest)
        if orphans.is_revoked(client, manifest):
            does = "revoked"
        elif client.last_seen is None or client.last_seen < self._heard:
            does = "silent"
        else:
            does = client.actual or "silent"
        level = manifest.level_for(client.agent)
        return Known(client, does, level, orphan[0] if orphan else None, missing)

    def _where(self, choice: Choice) -> Any:
        clauses = [agents.c.role == "agent"]
        if choice.only == "orphaned":
            clauses.append(self._orphaned())
        elif choice.only == "gaps":
            clauses.append(agents.c.agent.in_(store_clients.with_gaps()))
        elif choice.only is not None:
            clauses.append(self._does == choice.only)
        if choice.search:
            clauses.append(_matching(choice.search))
        return and_(*clauses)

    def _orphaned(self) -> Any:
        """As `Known.orphaned`: `orphans.find` of the manifest as it is, for the database."""
        manifest = self._manifest
        if manifest.default_level is Level.REQUIRED:
            other = [a for a, level in manifest.levels.items() if level is not Level.REQUIRED]
            is_set = not_(self._among(agents.c.agent, other))
        else:
            same = [a for a, level in manifest.levels.items() if level is Level.REQUIRED]
            is_set = self._among(agents.c.agent, same)
        says = func.coalesce(clients.c.wanted, -1) == Level.REQUIRED.number
        refused = and_(
            func.coalesce(clients.c.actual, "") != "sealed",
            func.coalesce(clients.c.reason, -1) == int(Reason.PARENT_REFUSES_SEALED),
        )
        cannot = refused if manifest.active else true()
        must_and_cannot = and_(not_(self._revoked), or_(is_set, says), cannot)
        return or_(must_and_cannot, self._does == "withheld")

    def _order(self, choice: Choice) -> Iterable[Any]:
        by: dict[str, tuple[Any, ...]] = {
            "name": (),
            "wanted": (func.coalesce(clients.c.wanted, -1),),
            "actual": (self._does,),
            "why": (func.coalesce(clients.c.reason, -1),),
            "seen": (func.coalesce(clients.c.last_seen, -1),),
            "reports": (func.coalesce(clients.c.sealed + clients.c.clear, -1),),
        }
        columns = (*by[choice.sort], agents.c.name, agents.c.agent)
        return [column.desc() for column in columns] if choice.descending else columns

    def _among(self, column: Any, ids: Collection[bytes]) -> Any:
        """Whether a column holds one of these, of which there may be very many."""
        if not ids:
            return false()
        listed = literal(json.dumps([one.hex() for one in ids]))
        if self._db.dialect.name == "sqlite":
            rows = func.json_each(listed).table_valued("value")
            return func.lower(func.hex(column)).in_(select(rows.c.value))
        texts = func.jsonb_array_elements_text(cast(listed, JSONB)).column_valued("value")
        return func.encode(column, "hex").in_(select(texts))


def _matching(search: str) -> Any:
    """A part of the name; or the beginning of the id, in hexadecimal."""
    named = agents.c.name.icontains(search, autoescape=True)
    begins = people.id_begins(search)
    return named if begins is None else or_(named, begins)

# SPDX-License-Identifier: Apache-2.0
"""Clients and relays as the database knows them: what they last said of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, select

from upseal.fleet.policy import Level, Reason
from upseal.fleet.server.tables import agents, clients

HOUR_MS = 3_600_000
_LEAST_PREFIX = 6
JOINED = agents.outerjoin(clients, agents.c.agent == clients.c.agent)


@dataclass(frozen=True)
class Client:
    """An enrolled agent or relay, and what it last said of itself."""

    agent: bytes
    hop: bytes
    name: str
    role: str
    wanted: Level | None
    """As last stated; None: it has not reported yet, as ``actual``, ``reason``, ``last_seen``."""
    actual: str | None
    reason: Reason | None
    last_seen: int | None
    suite: int | None
    key_id: bytes | None
    sealed: int = 0
    clear: int = 0

    def silent(self, now_ms: int, hours: int) -> bool:
        """Whether nothing was heard from it for so long."""
        return self.last_seen is None or self.last_seen < now_ms - hours * HOUR_MS


def query(where: Any) -> Select[Any]:
    """What `read` reads, for who wants it in another order, or less of it."""
    return (
        select(
            agents.c.agent, agents.c.hop, agents.c.name, agents.c.role, clients.c.wanted,
            clients.c.actual, clients.c.reason, clients.c.last_seen, clients.c.suite,
            clients.c.key_id, clients.c.sealed, clients.c.clear,
        )
        .select_from(JOINED)
        .where(where)
    )  # fmt: skip


def read(db: Connection, rows: Select[Any]) -> list[Client]:
    """The clients of a `query`."""
    return [
        Client(
            agent=bytes(row.agent),
            hop=bytes(row.hop),
            name=row.name,
            role=row.role,
            wanted=None if row.wanted is None else Level.parse(row.wanted),
            actual=row.actual,
            reason=None if row.reason is None else Reason(row.reason),
            last_seen=row.last_seen,
            suite=row.suite,
            key_id=None if row.key_id is None else bytes(row.key_id),
            sealed=row.sealed or 0,
            clear=row.clear or 0,
        )
        for row in db.execute(rows)
    ]


def by_name(db: Connection, where: Any) -> list[Client]:
    """All that ``where`` chooses."""
    return read(db, query(where).order_by(agents.c.name, agents.c.agent))


def id_begins(text: str) -> Any:
    """Whose id begins so, in hexadecimal; None if that is too little, or no beginning of an id."""
    lower = text.lower()
    if not _LEAST_PREFIX <= len(lower) <= 32 or set(lower) - set("0123456789abcdef"):
        return None
    first, last = bytes.fromhex(lower.ljust(32, "0")), bytes.fromhex(lower.ljust(32, "f"))
    return agents.c.agent.between(first, last)

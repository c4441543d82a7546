# SPDX-License-Identifier: Apache-2.0
"""Who is there: agents and relays as the database knows them, found by name or id."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, update

from upseal.fleet.admin.refusals import Refused
from upseal.fleet.server.overview.people import Client, by_name, id_begins
from upseal.fleet.server.tables import agents

__all__ = ["Client", "clear_revoked", "find", "listing", "matches"]


def listing(db: Connection, role: str = "agent") -> list[Client]:
    """All that are enrolled, by name."""
    return by_name(db, agents.c.role == role)


def find(db: Connection, what: str, names: Iterable[str], role: str = "agent") -> list[Client]:
    """Those of that name or id; the beginning of an id will do if it is one client's only.

    Raises:
        Refused: there is none, or more than one.
    """
    found: dict[bytes, Client] = {}
    for name in names:
        for client in _named(db, what, name, role):
            found[client.agent] = client
    return list(found.values())


def matches(db: Connection, name: str) -> list[Client]:
    """Clients and relays of that name or id; none or several is no error here."""
    return [client for role in ("agent", "relay") for client in _by_name_or_id(db, name, role)]


def clear_revoked(db: Connection, agent: bytes) -> None:
    """For listings; what counts is the manifest's list."""
    db.execute(update(agents).where(agents.c.agent == agent).values(revoked=None))


def _named(db: Connection, what: str, name: str, role: str) -> list[Client]:
    both = _by_name_or_id(db, name, role)
    noun = "client" if role == "agent" else "relay"
    if not both:
        raise Refused(what, f"no {noun} has the name or id {name!r}", f"see `upseal admin {noun}s`")
    if len(both) > 1:
        ids = ", ".join(client.agent.hex() for client in both)
        raise Refused(what, f"{len(both)} {noun}s are called {name!r}", f"give an id: {ids}")
    return both


def _by_name_or_id(db: Connection, name: str, role: str) -> list[Client]:
    by_id = []
    begins = id_begins(name)
    if begins is not None:
        by_id = by_name(db, (agents.c.role == role) & begins)
        if len(name) == 32 and by_id:  # a whole id is never taken for somebody's name
            return by_id
    named = by_name(db, (agents.c.role == role) & (agents.c.name == name))
    return list({client.agent: client for client in (*named, *by_id)}.values())

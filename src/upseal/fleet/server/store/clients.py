# SPDX-License-Identifier: Apache-2.0
"""Who is enrolled, and what the server knows of each: wanted, actual, and why not."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Double, Select, case, cast, func, insert, select, update

from upseal.fleet.server.tables import agents, client_counts, clients, hops, streams

_ASKED = 500
NEVER = "never seen"
"""`Client.actual` before anything came in."""


@dataclass(frozen=True, slots=True)
class Agent:
    """An enrolled identity."""

    agent: bytes
    name: str
    identity: bytes
    """DER SubjectPublicKeyInfo."""
    hop: bytes
    role: str
    credential: str
    enrolled: int
    token: bytes | None = None
    revoked: int | None = None


@dataclass(frozen=True, slots=True)
class Client:
    """An enrolled identity and its state, for an administrator."""

    agent: bytes
    name: str
    role: str
    hop: bytes
    enrolled: int
    revoked: int | None
    wanted: int | None
    """Level number it stated last; None before it was heard of."""
    actual: str
    """``sealed``, ``clear``, ``withheld`` or `NEVER`."""
    reason: int | None
    last_seen: int | None
    stated: int | None
    """Its own clock at that moment."""
    suite: int | None
    """Suite and key id of its last sealed body."""
    key_id: bytes | None
    sealed: int
    """Reports that came under a statement of sealing, and in clear."""
    clear: int
    units: int
    beacons: int
    contradictions: int
    missing: int
    """Units that its sequences say exist and that never arrived."""
    by_reason: dict[int, int] = field(default_factory=dict)
    """Reason number: reports."""


def add(db: Connection, agent: Agent, hop_spki: bytes) -> None:
    """Enrols. An agent or hop id that is there already is an IntegrityError."""
    db.execute(
        insert(agents).values(
            agent=agent.agent, name=agent.name, identity=agent.identity, hop=agent.hop,
            role=agent.role, credential=agent.credential, enrolled=agent.enrolled,
            token=agent.token,
        )
    )  # fmt: skip
    db.execute(
        insert(hops).values(hop=agent.hop, agent=agent.agent, role=agent.role, spki=hop_spki)
    )


def renew(db: Connection, agent: Agent, hop_spki: bytes) -> None:
    """The same identity enrols with a new hop key: the old hop goes."""
    db.execute(hops.delete().where(hops.c.agent == agent.agent))
    db.execute(
        update(agents)
        .where(agents.c.agent == agent.agent)
        .values(
            name=agent.name, hop=agent.hop, role=agent.role, credential=agent.credential,
            enrolled=agent.enrolled, token=agent.token,
        )
    )  # fmt: skip
    db.execute(
        insert(hops).values(hop=agent.hop, agent=agent.agent, role=agent.role, spki=hop_spki)
    )


def find(db: Connection, agent: bytes) -> Agent | None:
    """One identity."""
    row = db.execute(select(agents).where(agents.c.agent == agent)).first()
    return None if row is None else _agent(row)


def by_hop(db: Connection, hop: bytes) -> Agent | None:
    """Who sends under this hop id."""
    query = select(agents).join(hops, hops.c.agent == agents.c.agent).where(hops.c.hop == hop)
    row = db.execute(query).first()
    return None if row is None else _agent(row)


def named(db: Connection, name_or_id: str) -> list[Agent]:
    """Those of this name, or the one of this id in hexadecimal (or its beginning, 8 digits up)."""
    query = select(agents).where(agents.c.name == name_or_id)
    found = [_agent(row) for row in db.execute(query)]
    if found or not 8 <= len(name_or_id) <= 32 or len(name_or_id) % 2:
        return found
    try:
        start = bytes.fromhex(name_or_id)
    except ValueError:
        return []
    low, high = start.ljust(16, b"\0"), start.ljust(16, b"\xff")
    query = select(agents).where(agents.c.agent >= low, agents.c.agent <= high)
    return [_agent(row) for row in db.execute(query)]


def mark_revoked(db: Connection, agent: bytes, now_ms: int) -> None:
    """For listings; what counts is the manifest's list."""
    db.execute(update(agents).where(agents.c.agent == agent).values(revoked=now_ms))


def listing(db: Connection, agent: bytes | None = None) -> Iterator[Client]:
    """All clients by name, or one; those that were never heard of as well."""
    missing = _missing()
    counts = select(client_counts.c.agent, client_counts.c.reason, client_counts.c.reports)
    if agent is not None:
        missing = missing.where(streams.c.agent == agent)
        counts = counts.where(client_counts.c.agent == agent)
    by_reason: dict[bytes, dict[int, int]] = {}
    for who, reason, reports in db.execute(counts):
        by_reason.setdefault(bytes(who), {})[reason] = reports
    gaps = missing.subquery()
    query = (
        select(agents, clients, gaps.c.missing)
        .join(clients, clients.c.agent == agents.c.agent, isouter=True)
        .join(gaps, gaps.c.agent == agents.c.agent, isouter=True)
        .order_by(agents.c.name, agents.c.agent)
    )
    if agent is not None:
        query = query.where(agents.c.agent == agent)
    for fields in db.execute(query):
        row = fields._mapping
        name = bytes(row[agents.c.agent])
        yield Client(
            agent=name,
            name=row[agents.c.name],
            role=row[agents.c.role],
            hop=bytes(row[agents.c.hop]),
            enrolled=row[agents.c.enrolled],
            revoked=row[agents.c.revoked],
            wanted=row[clients.c.wanted],
            actual=row[clients.c.actual] or NEVER,
            reason=row[clients.c.reason],
            last_seen=row[clients.c.last_seen],
            stated=row[clients.c.stated],
            suite=row[clients.c.suite],
            key_id=None if row[clients.c.key_id] is None else bytes(row[clients.c.key_id]),
            sealed=row[clients.c.sealed] or 0,
            clear=row[clients.c.clear] or 0,
            units=row[clients.c.units] or 0,
            beacons=row[clients.c.beacons] or 0,
            contradictions=row[clients.c.contradictions] or 0,
            missing=int(row[gaps.c.missing] or 0),
            by_reason=by_reason.get(name, {}),
        )


# A sequence may begin at 0 or 1; that units before the first one seen are missing too is known
# only from there. Agents choose sequences, and may count to the end: first less, then more, and
# the sum is none of whole numbers, which has an end.
_MISSING = func.sum(
    cast(streams.c.highest - streams.c.stored + case((streams.c.lowest > 0, 0), else_=1), Double)
)


def _missing() -> Select[Any]:
    """Agents, and how many of their units are missing."""
    return (
        select(streams.c.agent, _MISSING.label("missing"))
        .where(streams.c.beacon.is_(False))
        .group_by(streams.c.agent)
    )


def with_gaps() -> Select[Any]:
    """The agents of which units are missing, for another query."""
    return select(_missing().having(_MISSING > 0).subquery().c.agent)


def missing(db: Connection, among: Collection[bytes]) -> dict[bytes, int]:
    """How many units are missing of these agents, where any are.

    That is: their sequences say that they were made, and they have never arrived. For moments this
    is the case of what is on its way.
    """
    query = _missing().having(_MISSING > 0)
    if len(among) <= _ASKED:
        query = query.where(streams.c.agent.in_(among))
    return {bytes(row.agent): int(row.missing) for row in db.execute(query)}


def count(db: Connection) -> dict[str, int]:
    """Clients by what they do: ``{"sealed": 40, "never seen": 2, ...}``."""
    what = func.coalesce(clients.c.actual, NEVER)
    query = (
        select(what, func.count())
        .select_from(agents.join(clients, clients.c.agent == agents.c.agent, isouter=True))
        .group_by(what)
    )
    return {row[0]: row[1] for row in db.execute(query)}


def _agent(row: object) -> Agent:
    fields = dict(row._mapping)  # type: ignore[attr-defined]
    for name in ("agent", "identity", "hop"):
        fields[name] = bytes(fields[name])
    return Agent(**fields)

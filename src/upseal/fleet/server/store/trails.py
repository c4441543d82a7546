# SPDX-License-Identifier: Apache-2.0
"""What is known of one unit, by a report of it or by the name that logs give it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, select

from upseal.fleet.server.tables import agents, clients, keys, reports, units

_EPOCH_LEN = 16
_MOST = 100


@dataclass(frozen=True, slots=True)
class Trail:
    """One stored unit."""

    agent: bytes
    client: str
    epoch: bytes
    sequence: int
    first: int
    """Id of its first report; the others follow."""
    records: int
    stated: int
    received: int
    level: int
    reason: int
    suite: int | None
    key_id: bytes | None
    generation: int | None
    """Of that key, if it is one of the server's."""
    key_state: str | None
    actual: str | None
    """What its client does now."""
    last_seen: int | None


_FACTS = (
    select(
        units.c.agent, agents.c.name, units.c.epoch, units.c.sequence, units.c.id, units.c.records,
        units.c.stated, units.c.received, units.c.level, units.c.reason, units.c.suite,
        units.c.key_id, keys.c.generation, keys.c.state, clients.c.actual, clients.c.last_seen,
    )
    .select_from(units)
    .join(agents, agents.c.agent == units.c.agent, isouter=True)
    .join(clients, clients.c.agent == units.c.agent, isouter=True)
    .join(keys, keys.c.key_id == units.c.key_id, isouter=True)
)  # fmt: skip


def of_report(db: Connection, report: int) -> Trail | None:
    """The unit that a report came in: the ids of its reports follow its own."""
    nearest = _FACTS.where(units.c.id <= report).order_by(units.c.id.desc()).limit(1)
    found = db.execute(nearest).first()
    if found is None or report >= found.id + found.records:
        return None
    return _trail(found)


def of_unit(db: Connection, epoch: str, sequence: int) -> list[Trail]:
    """Units of an epoch that begins so (hexadecimal), and of that sequence. At most 100.

    Each client is looked at, by the index of its units: no unit of another name is read.
    """
    digits = 2 * _EPOCH_LEN
    low, high = bytes.fromhex(epoch.ljust(digits, "0")), bytes.fromhex(epoch.ljust(digits, "f"))
    here = and_(
        units.c.agent == agents.c.agent,
        units.c.epoch.between(low, high),
        units.c.sequence == sequence,
    )
    ids = db.execute(select(units.c.id).select_from(agents.join(units, here)).limit(_MOST))
    wanted = list(ids.scalars())
    query = _FACTS.where(units.c.id.in_(wanted)).order_by(units.c.id)
    return [_trail(row) for row in db.execute(query)]


def size(db: Connection, report: int) -> int | None:
    """Bytes of one report; None if it is not kept any more."""
    body = db.execute(select(reports.c.body).where(reports.c.id == report)).scalar()
    return None if body is None else len(body)


def _trail(row: Any) -> Trail:
    agent, name, epoch, sequence, first, records, *rest = row
    stated, received, level, reason, suite, key_id, *state = rest
    return Trail(
        bytes(agent), name or "", bytes(epoch), sequence, first, records, stated, received, level,
        reason, suite, None if key_id is None else bytes(key_id), *state,
    )  # fmt: skip

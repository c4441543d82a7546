# SPDX-License-Identifier: Apache-2.0
"""Who is who: identities and hops from the store, remembered."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import select

from upseal.fleet.identity import VerifyKey
from upseal.fleet.server.store import Store
from upseal.fleet.server.tables import agents, hops

_T = TypeVar("_T")
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Known:
    """An enrolled identity."""

    agent: bytes
    key: VerifyKey
    hop: bytes
    role: str
    name: str


class Directory:
    """Looks identities up, many at once, and remembers the newest ``size`` of them.

    What is not there is never remembered: it may be enrolled the next moment, by another process.
    """

    def __init__(self, store: Store, size: int = 262_144) -> None:
        """Reads nothing yet."""
        self._store = store
        self._size = size
        self._agents: OrderedDict[bytes, Known] = OrderedDict()
        self._hops: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, wanted: Iterable[bytes]) -> dict[bytes, Known]:
        """Those of these agents that are enrolled."""
        found, unknown = {}, []
        for agent in set(wanted):
            known = self._agents.get(agent)
            if known is None:
                unknown.append(agent)
            else:
                found[agent] = known
        for at in range(0, len(unknown), _CHUNK):
            some = unknown[at : at + _CHUNK]
            with self._store.reading() as db:
                rows = db.execute(select(agents).where(agents.c.agent.in_(some))).all()
            for row in rows:
                agent = bytes(row.agent)
                key = VerifyKey.from_der(bytes(row.identity))
                found[agent] = Known(agent, key, bytes(row.hop), row.role, row.name)
                self._remember(self._agents, agent, found[agent])
        return found

    def agent_of(self, hop: bytes) -> bytes | None:
        """Who sends under this hop id."""
        agent = self._hops.get(hop)
        if agent is None:
            with self._store.reading() as db:
                row = db.execute(select(hops.c.agent).where(hops.c.hop == hop)).scalar()
            if row is None:
                return None
            agent = bytes(row)
            self._remember(self._hops, hop, agent)
        return agent

    def forget(self, agent: bytes) -> None:
        """It enrolled again: its hop is another."""
        with self._lock:
            known = self._agents.pop(agent, None)
            if known is not None:
                self._hops.pop(known.hop, None)

    def _remember(self, where: OrderedDict[bytes, _T], name: bytes, value: _T) -> None:
        with self._lock:
            where[name] = value
            while len(where) > self._size:
                where.popitem(last=False)

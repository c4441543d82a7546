# SPDX-License-Identifier: Apache-2.0
"""The keys in force, and the old ones: how far they have drained, and from when they may go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from upseal.core.certificates import load
from upseal.fleet.manifest import EncryptionKey, Manifest
from upseal.fleet.server.overview.people import HOUR_MS
from upseal.fleet.server.store import keys
from upseal.fleet.server.tables import agents, clients

NAMED = 1000
"""Clients that a message or a JSON answer names at most."""


@dataclass(frozen=True)
class Drain:
    """An old key of the server, and who still needs it."""

    key: keys.Key
    last_hour: int
    """Reports."""
    safe_from: int
    """Unix milliseconds: if nothing more comes in under it, it may go then."""
    clients: tuple[str, ...]
    """Seen lately, and their last sealed reports were under it."""
    silent: tuple[str, ...]
    """The same, but nothing was heard of them for long."""

    def may_go(self, now_ms: int) -> bool:
        """Whether nobody needs it any more."""
        return now_ms >= self.safe_from and not self.clients

    def facts(self) -> dict[str, Any]:
        """For machines."""
        key = self.key
        return {
            "key_id": key.key_id.hex(),
            "generation": key.generation,
            "reports": key.reports,
            "last_hour": self.last_hour,
            "drained_from": key.drained_from,
            "last_used": key.last_used,
            "safe_from": self.safe_from,
            "clients": list(self.clients),
            "silent_clients": list(self.silent),
        }


def drains(
    db: Connection, now_ms: int, drain_hours: int, use: list[keys.Drain] | None = None
) -> list[Drain]:
    """The server's old keys, oldest first. ``use`` is `keys.drain`'s, if it was asked already."""
    found = []
    for drain in keys.drain(db, now_ms) if use is None else use:
        key = drain.key
        if key.state != keys.DRAINING:
            continue
        since = max(key.drained_from or 0, key.last_used or 0)
        recent = now_ms - drain_hours * HOUR_MS
        users = select(agents.c.name, clients.c.last_seen).join(
            clients, clients.c.agent == agents.c.agent
        )
        users = users.where(
            clients.c.key_id == key.key_id, clients.c.actual == "sealed", agents.c.revoked.is_(None)
        )
        rows = db.execute(users.order_by(agents.c.name).limit(2 * NAMED)).all()
        found.append(
            Drain(
                key,
                drain.last_hour,
                since + drain_hours * HOUR_MS,
                tuple(row.name for row in rows if row.last_seen >= recent)[:NAMED],
                tuple(row.name for row in rows if row.last_seen < recent)[:NAMED],
            )
        )
    return found


def in_force(manifest: Manifest) -> list[dict[str, Any]]:
    """Active and pending keys, for machines: the server's first, then escrow keys."""
    return [
        *(_facts(key, "active", index) for index, key in enumerate(manifest.encryption)),
        *(_facts(key, "pending", index) for index, key in enumerate(manifest.pending)),
    ]


def _facts(key: EncryptionKey, state: str, index: int) -> dict[str, Any]:
    return {
        "key_id": key.key_id.hex(),
        "suite": key.public().name,
        "generation": key.generation,
        "state": state,
        "holder": "escrow" if index else "server",
        "certificate_ends": ends(key),
    }


def carried(manifest: Manifest) -> Iterator[EncryptionKey]:
    """All that the manifest carries."""
    yield manifest.enrolment
    yield from manifest.encryption
    yield from manifest.pending
    for relay in manifest.relays:
        yield from relay.keys


def ends(key: EncryptionKey) -> int | None:
    """When its certificate ends, in milliseconds; None if it has none."""
    if key.certificate is None:
        return None
    return int(load(key.certificate.encode()).not_valid_after_utc.timestamp() * 1000)

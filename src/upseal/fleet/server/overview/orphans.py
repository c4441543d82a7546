# SPDX-License-Identifier: Apache-2.0
"""Who would be orphaned: clients that must seal and could not, so that they withhold everything.

The server knows the level that a client last stated, not the one in its settings file: where a
manifest's level is taken away, what it will do is unknown, and it is counted. A client is rather
named once too often than left in the dark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from upseal.fleet.manifest import Manifest
from upseal.fleet.policy import Level, Reason
from upseal.fleet.server.overview.people import Client

_UNKNOWN = "the level in its own settings is not known here"


@dataclass(frozen=True)
class Orphan:
    """A client that could not report, and why."""

    agent: bytes
    name: str
    why: str
    last_seen: int | None

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {
            "agent": self.agent.hex(),
            "name": self.name,
            "why": self.why,
            "last_seen": self.last_seen,
        }


def required(client: Client, after: Manifest, before: Manifest) -> str | None:
    """Why the client is, or may be, REQUIRED under ``after``; None if it is not.

    ``before`` is the manifest under which it stated its level.
    """
    then, now = after.level_for(client.agent), before.level_for(client.agent)
    says = "it says that its level is required" if client.wanted is Level.REQUIRED else None
    if then is Level.REQUIRED:
        return "its level is required"
    if then is None:
        if now is None:
            return says
        return None if now is Level.REQUIRED else says or _UNKNOWN
    # Stated although the manifest says otherwise: a process was started with a level of its own.
    return says if now not in (None, Level.REQUIRED) else None


def cannot_seal(client: Client, after: Manifest) -> str | None:
    """Why it could not seal under ``after``, as far as is known; None if it could."""
    if not after.active:
        return "encryption would be off"
    if client.actual != "sealed" and client.reason is Reason.PARENT_REFUSES_SEALED:
        return "its relay does not accept sealed reports"
    return None


def find(
    clients: Iterable[Client],
    after: Manifest,
    before: Manifest,
    among: Callable[[Client], bool] = lambda client: True,
    obstacle: str | None = None,
) -> tuple[Orphan, ...]:
    """The clients that would withhold everything under ``after``.

    ``among`` chooses; ``obstacle`` is what keeps any of them from sealing, besides what is known.
    """
    found = []
    for client in clients:
        if is_revoked(client, after) or not among(client):
            continue
        level = required(client, after, before)
        known = cannot_seal(client, after) or obstacle if level else None
        if level and known:
            why = f"{level}, and {known}"
            found.append(Orphan(client.agent, client.name, why, client.last_seen))
    return tuple(found)


def is_revoked(client: Client, manifest: Manifest) -> bool:
    """Whether the manifest says that it may not report."""
    return client.agent in manifest.revoked_agents or client.hop in manifest.revoked_agents

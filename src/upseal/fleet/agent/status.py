# SPDX-License-Identifier: Apache-2.0
"""What an agent says of itself: wanted, actual, why; what waits; whom it believes."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upseal.fleet.agent.membership import TRUST
from upseal.fleet.agent.parent import Believed
from upseal.fleet.agent.rows import now_ms
from upseal.fleet.policy import Parent as Known
from upseal.fleet.policy import actual, decide
from upseal.fleet.trust import Trust

if TYPE_CHECKING:
    from upseal.fleet.agent.agent import Agent

FILE = "status.json"
_FILE_MAX = 1 << 20


def of(agent: Agent) -> dict[str, Any]:
    """From the spool and what is believed; and, if a process sends, what that one says."""
    now = now_ms()
    told = said(agent)
    pid = agent.one.holder()
    uploads = told.get("uploads") if pid is not None else None
    trust = Trust.load(agent.settings.directory / TRUST)
    manifest = trust.manifest
    believed = Believed(manifest, trust.certificate(now), Known())
    if pid is None or "actual" not in told or told["actual"] is None:
        # Nobody sends: what would be, as far as it is known without a parent.
        level = agent.level(believed)
        decision = decide(level, believed.certificate, believed.parent)
        wanted, real, why = level.value, actual(decision), decision.reason.label
    else:
        wanted, real, why = told["wanted"], told["actual"], told["why"]
    counters = agent.spool.counters()
    oldest = agent.spool.oldest()
    return {
        "agent": agent.member.agent.hex(),
        "deployment": agent.member.deployment.hex(),
        "name": agent.settings.name,
        "directory": str(agent.settings.directory),
        "running": pid is not None,
        "pid": pid or None,
        "wanted": wanted,
        "actual": real,
        "why": why,
        "parent": {
            "url": agent.settings.parent,
            "relays": told.get("relays", []),
            "trouble": told.get("trouble") if pid is not None else None,
        },
        "recipients": told.get("recipients", []) if pid is not None else [],
        "spool": {
            "depth": counters.depth,
            "bytes": counters.bytes,
            "most_bytes": agent.settings.spool.max_bytes,
            "oldest": oldest,
            "oldest_seconds": None if oldest is None else round(max(0, now - oldest) / 1000, 1),
        },
        "reports": {
            "made": counters.made,
            "stored": counters.stored,
            "withheld": counters.depth if real == "withheld" else 0,
            "lost": counters.lost,
            "refused": counters.refused,
        },
        "manifest": None
        if manifest is None
        else {
            "serial": manifest.serial,
            "state": manifest.state.value,
            "issued": manifest.issued,
            "expires": manifest.expires,
            "stale": trust.stale(now),
        },
        "uploads": agent.uploads.status(uploads if isinstance(uploads, dict) else {}),
        "last_receipt": told.get("last_receipt"),
        "units": told.get("units"),
        "tally": told.get("tally", {}),
        "alarms": told.get("alarms", []),
        "updated": told.get("updated"),
    }


def publish(directory: Path, found: dict[str, Any], by: str) -> None:
    """For other processes: they see the spool, but not what the sending one has in mind.

    ``by`` is which of its threads; one waits for no other.
    """
    temporary = directory / f".{FILE}.{by}.part"
    # Told again in a few seconds: it need not outlive a power cut, nor stand on a full disk.
    with suppress(OSError):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(found, file)
        os.replace(temporary, directory / FILE)


def said(agent: Agent) -> dict[str, Any]:
    """What the process that sends says, this one or another; that may be long ago."""
    return agent.told() or _told(agent.settings.directory / FILE)


def uploads_of(agent: Agent) -> list[dict[str, Any]]:
    """Each upload that waits, and the newest of those that have ended."""
    found = of(agent)
    jobs = said(agent).get("uploads") if found["running"] else None
    return agent.uploads.listed(
        jobs if isinstance(jobs, dict) else {}, found["actual"] == "withheld"
    )


def _told(path: Path) -> dict[str, Any]:
    """What the sending process wrote last; nothing if that is not whole."""
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(_FILE_MAX))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

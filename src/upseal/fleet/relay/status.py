# SPDX-License-Identifier: Apache-2.0
"""What a relay says of itself, whether it runs or not: queue, parent, keys, readiness."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from upseal.fleet.agent.membership import TRUST, Credentials
from upseal.fleet.files import read_private, write_private
from upseal.fleet.manifest import Manifest
from upseal.fleet.relay import rows, wrapping
from upseal.fleet.relay.keys import listing
from upseal.fleet.relay.settings import Settings
from upseal.fleet.relay.state import ADDRESS, KEYS, QUEUE, SHELF, WRAPS, running
from upseal.fleet.trust import Trust

FILE = "status.json"
_FILE_MAX = 1 << 20


def note(folder: Path, facts: dict[str, Any]) -> None:
    """Writes down what only the process that runs knows; called when it has changed."""
    write_private(folder / FILE, json.dumps(facts).encode() + b"\n")


def status(settings: Settings) -> dict[str, Any]:
    """All of it.

    Raises:
        NotEnrolled: the folder is no relay's.
        ValueError: something in it is damaged.
        OSError: it cannot be read.
    """
    folder = settings.directory
    me = Credentials.load(folder)
    trust = Trust.load(folder / TRUST)
    manifest = trust.manifest
    now = time.time_ns() // 1_000_000
    alive = running(folder)
    told = _told(folder) if alive else {}
    try:
        stats = rows.inspect(folder / QUEUE)
    except sqlite3.OperationalError:  # it has never run
        stats = rows.Stats(0, 0, 0, None, 0, 0)
    except sqlite3.DatabaseError as error:
        raise ValueError(f"the queue is damaged: {error}") from error
    relay = me.identity.public.agent_id
    answered = told.get("answered", {})
    return {
        "relay": relay.hex(),
        "deployment": me.deployment.hex(),
        "name": settings.name,
        "directory": str(folder),
        "decrypting": settings.decrypting,
        "accepts_sealed": settings.accepts_sealed,
        "accepts_clear": settings.accepts_clear,
        "running": alive,
        "address": _address(folder) if alive else None,
        "ready": bool(told.get("ready")),
        "why_not_ready": told.get("why_not_ready") if alive else "no process runs",
        "parent": {
            "url": settings.parent,
            "away_since": told.get("parent_away_since"),
            "refusal": told.get("refusal"),
            "accepts_sealed": told.get("parent_accepts_sealed"),
        },
        "queue": {
            "depth": stats.bodies,
            "bytes": stats.bytes,
            "oldest": stats.oldest,
            "age": None if stats.oldest is None else round(max(0, now - stats.oldest) / 1000, 1),
            "max_bodies": settings.queue.max_bodies,
            "max_bytes": settings.queue.max_bytes,
            "results": stats.results,
        },
        "uploads": _uploads(folder, settings, now),
        "manifest": None
        if manifest is None
        else {
            "serial": manifest.serial,
            "state": manifest.state.value,
            "expires": manifest.expires,
            "stale": trust.stale(now),
            "generation": manifest.generation,
            "oldest_generation": manifest.oldest_generation,
        },
        "keys": [
            {
                "generation": generation,
                "key_id": key_id,
                "suite": suite,
                "state": _key_state(manifest, relay, key_id),
                "answered": answered.get(str(generation)),
            }
            for generation, key_id, suite in listing(folder / KEYS)
        ],
        "alarms": [{"serial": alarm.serial, "at": alarm.milliseconds} for alarm in trust.alarms],
    }


def _uploads(folder: Path, settings: Settings, now: int) -> dict[str, Any]:
    """What is on the shelf, by its files: another process may be using it."""
    counts = {".whole": 0, ".part": 0}
    size = 0
    oldest: int | None = None
    with suppress(FileNotFoundError):  # it has never run
        for path in (folder / SHELF).iterdir():
            with suppress(FileNotFoundError):  # just passed on
                found = path.stat()
                if path.suffix in counts and not path.name.startswith("."):
                    counts[path.suffix] += 1
                    size += found.st_size
                elif path.suffix == ".json":  # written once, at its creation
                    oldest = min(found.st_mtime_ns // 1_000_000, oldest or now)
    sealed, sealed_bytes = wrapping.inspect(folder / WRAPS)
    return {
        "whole": counts[".whole"],
        "open": counts[".part"],
        "sealed": sealed,
        "bytes": size + sealed_bytes,
        "oldest": oldest,
        "age": None if oldest is None else round(max(0, now - oldest) / 1000, 1),
        "max_bytes": settings.uploads.max_bytes,
    }


def _key_state(manifest: Manifest | None, relay: bytes, key_id: str) -> str:
    """``certified``: agents may seal to it; ``waiting``: the administrator has not enabled it."""
    entry = None if manifest is None else manifest.relay(relay)
    keys = () if entry is None else entry.keys
    return "certified" if any(key.key_id.hex() == key_id for key in keys) else "waiting"


def _told(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_private(folder / FILE, _FILE_MAX))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _address(folder: Path) -> str | None:
    try:
        return read_private(folder / ADDRESS, 1024).decode("ascii", "replace").strip()
    except OSError:
        return None

# SPDX-License-Identifier: Apache-2.0
"""Relays: those that the manifest names, and those that enrolled and wait to be let in."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from upseal.fleet.manifest import Manifest, RelayEntry
from upseal.fleet.server.store import relays


def listing(db: Connection, manifest: Manifest) -> list[dict[str, Any]]:
    """All of them, for machines."""
    entries = {entry.relay: entry for entry in manifest.relays}
    announced: dict[bytes, list[relays.RelayKey]] = {}
    for key in relays.keys(db):
        announced.setdefault(key.relay, []).append(key)
    found: list[tuple[bytes, str, RelayEntry | None, relays.Relay | None]] = []
    for row in relays.listing(db):
        entry = entries.pop(row.relay, None)
        found.append((row.relay, row.name, entry, row))
    for entry in entries.values():  # the database has lost it
        found.append((entry.relay, entry.name, entry, None))
    return [
        _facts(manifest, relay, name, entry, row, announced.get(relay, []))
        for relay, name, entry, row in found
    ]


def _facts(
    manifest: Manifest,
    relay: bytes,
    name: str,
    entry: RelayEntry | None,
    row: relays.Relay | None,
    announced: list[relays.RelayKey],
) -> dict[str, Any]:
    said = entry if entry is not None else row
    return {
        "relay": relay.hex(),
        "name": name,
        "in_manifest": entry is not None,
        "revoked": relay in manifest.revoked_agents,
        "decrypts": said.decrypts if said is not None else False,
        "accepts_sealed": said.accepts_sealed if said is not None else False,
        "last_seen": row.last_seen if row is not None else None,
        "keys": [
            {"generation": key.generation, "key_id": key.key_id.hex()}
            for key in (entry.keys if entry is not None else ())
        ],
        "announced": [
            {
                "generation": key.generation,
                "key_id": key.key_id.hex(),
                "proven": key.ready_at,
            }
            for key in announced
        ],
    }

# SPDX-License-Identifier: Apache-2.0
"""What an administrator sees: the state, the keys, who is covered, and what is to be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from upseal.core.suites import Suite
from upseal.fleet.admin import orphans, people, readying, relaying, renewing, retiring, signing
from upseal.fleet.admin.acting import DAY_MS, View
from upseal.fleet.admin.people import Client
from upseal.fleet.admin.refusals import Refused
from upseal.fleet.manifest import EncryptionKey, Manifest, State
from upseal.fleet.server.store import alarms

if TYPE_CHECKING:
    from upseal.fleet.admin.opened import Opened

FILTERS = ("orphaned", "clear", "withheld", "silent", "sealed")
_ALARMS_SINCE_MS = 7 * DAY_MS
_ALARMS_SHOWN = 20


@dataclass(frozen=True)
class Status:
    """A deployment at one moment."""

    now: int
    manifest: Manifest
    name: str
    signing: dict[str, Any]
    keys: list[dict[str, Any]]
    """Active and pending ones."""
    drains: list[retiring.Drain]
    holders: list[readying.Holder]
    coverage: dict[str, int]
    relays: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
    orphans_now: tuple[orphans.Orphan, ...]
    orphans_if_disabled: tuple[orphans.Orphan, ...]
    warnings: list[str]

    def facts(self) -> dict[str, Any]:
        """For machines."""
        manifest = self.manifest
        default = manifest.default_level
        return {
            "name": self.name,
            "deployment": manifest.deployment.hex(),
            "state": manifest.state.value,
            "serial": manifest.serial,
            "issued": manifest.issued,
            "expires": manifest.expires,
            "generation": manifest.generation,
            "oldest_generation": manifest.oldest_generation,
            "default_level": default.value if default is not None else None,
            "levels": len(manifest.levels),
            "signing": self.signing,
            "keys": self.keys,
            "old_keys": [drain.facts() for drain in self.drains],
            "readiness": [holder.facts() for holder in self.holders],
            "coverage": self.coverage,
            "relays": self.relays,
            "alarms": self.alarms,
            "orphans": [orphan.facts() for orphan in self.orphans_now],
            "orphans_if_disabled": [orphan.facts() for orphan in self.orphans_if_disabled],
            "warnings": self.warnings,
        }


def status(deployment: Opened) -> Status:
    """As `Deployment.status`."""
    with deployment.view() as view:
        manifest = view.manifest
        known = people.listing(view.db)
        off = replace(manifest, state=State.DISABLED, encryption=(), pending=())
        drains = retiring.drains(deployment, view)
        holders = readying.holders(deployment, view)
        sign = signing.facts(deployment, view)
        return Status(
            now=view.now,
            manifest=manifest,
            name=deployment.settings.name,
            signing=sign,
            keys=[
                *(_key(key, "active", index) for index, key in enumerate(manifest.encryption)),
                *(_key(key, "pending", index) for index, key in enumerate(manifest.pending)),
            ],
            drains=drains,
            holders=holders,
            coverage=_coverage(deployment, view, known),
            relays=relaying.listing(view),
            alarms=[
                {
                    "kind": alarm.kind, "subject": alarm.subject.hex(), "first": alarm.first,
                    "last": alarm.last, "times": alarm.times,
                }
                for alarm in alarms.listing(view.db, view.now - _ALARMS_SINCE_MS, _ALARMS_SHOWN)
            ],
            orphans_now=orphans.find(known, manifest, manifest),
            orphans_if_disabled=orphans.find(known, off, manifest) if manifest.active else (),
            warnings=list(_warnings(deployment, view, drains, holders, sign)),
        )  # fmt: skip


def _key(key: EncryptionKey, state: str, index: int) -> dict[str, Any]:
    return {
        "key_id": key.key_id.hex(),
        "suite": key.public().name,
        "generation": key.generation,
        "state": state,
        "holder": "escrow" if index else "server",
        "certificate_ends": renewing.ends(key),
    }


def actual(client: Client, manifest: Manifest, now_ms: int, hours: int) -> str:
    """What a client does: ``revoked``, ``silent``, ``sealed``, ``clear`` or ``withheld``."""
    if orphans.is_revoked(client, manifest):
        return "revoked"
    if client.silent(now_ms, hours):
        return "silent"
    return client.actual or "silent"


def _coverage(deployment: Opened, view: View, known: list[Client]) -> dict[str, int]:
    hours = deployment.settings.silent_hours
    counts = Counter(actual(client, view.manifest, view.now, hours) for client in known)
    words = ("sealed", "clear", "withheld", "silent", "revoked")
    return {"clients": len(known), **{word: counts[word] for word in words}}


def clients(deployment: Opened, only: str | None = None) -> list[dict[str, Any]]:
    """As `Deployment.clients`."""
    if only is not None and only not in FILTERS:
        raise ValueError(f"no filter {only!r}: choose one of {', '.join(FILTERS)}")
    hours = deployment.settings.silent_hours
    with deployment.view() as view:
        known = people.listing(view.db)
        gone = {
            orphan.agent: orphan for orphan in orphans.find(known, view.manifest, view.manifest)
        }
        found = []
        for client in known:
            does = actual(client, view.manifest, view.now, hours)
            orphan = gone.get(client.agent)
            is_orphan = orphan is not None or does == "withheld"
            if only is not None and not (is_orphan if only == "orphaned" else does == only):
                continue
            level = view.manifest.level_for(client.agent)
            found.append(
                {
                    "agent": client.agent.hex(),
                    "name": client.name,
                    "wanted": client.wanted.value if client.wanted is not None else None,
                    "set": level.value if level is not None else None,
                    "actual": does,
                    "last_actual": client.actual,
                    "why": _why(client),
                    "orphaned": is_orphan,
                    "orphaned_because": orphan.why if orphan is not None else None,
                    "last_seen": client.last_seen,
                    "suite": Suite(client.suite).label if client.suite is not None else None,
                    "key_id": client.key_id.hex() if client.key_id is not None else None,
                    "sealed_reports": client.sealed,
                    "clear_reports": client.clear,
                }
            )
        return found


def _why(client: Client) -> str | None:
    return client.reason.label if client.reason is not None else None


def _warnings(
    deployment: Opened,
    view: View,
    drains: list[retiring.Drain],
    holders: list[readying.Holder],
    sign: dict[str, Any],
) -> Iterator[str]:
    manifest, settings = view.manifest, deployment.settings
    warn = settings.warn_days * DAY_MS
    left = manifest.expires - view.now
    if left <= 0:
        yield "the manifest has expired, and clients say so: `upseal admin renew`"
    elif left < min(warn, settings.manifest_days * DAY_MS // 3):
        yield f"the manifest expires in {left // DAY_MS} days: `upseal admin renew`"
    if view.now < manifest.issued - 300_000:
        yield "the clock stands before the time of the newest manifest: set it"
    for key in renewing.keys(manifest):
        end = renewing.ends(key)
        if end is not None and end < view.now + warn:
            what = "has ended" if end <= view.now else f"ends in {(end - view.now) // DAY_MS} days"
            yield f"the certificate of {key.key_id.hex()} {what}: `upseal admin renew`"
    for drain in drains:
        if view.now >= drain.safe_from and not drain.clients:
            yield f"the key {drain.key.key_id.hex()} can go: `upseal admin retire`"
    if manifest.pending:
        waiting = [holder.name for holder in holders if not holder.ready]
        way = "`upseal admin ready`" if waiting else "`upseal admin enable`"
        yield f"a key is pending: {way}"
    elif holders:
        names = ", ".join(holder.name for holder in holders)
        yield f"relays without a key of their own: {names}: `upseal admin ready`, then `enable`"
    if sign["switch_from"] is not None and view.now >= sign["switch_from"]:
        yield "the next signing key may sign: `upseal admin signing-key switch`"


def audit_log(deployment: Opened, *, verify: bool, limit: int | None) -> dict[str, Any]:
    """As `Deployment.audit`."""
    from upseal.fleet.server.store import audit

    with deployment.view() as view:
        result: dict[str, Any] = {}
        if verify:
            try:
                rows, last = audit.verify(view.db)
            except audit.BrokenChain as error:
                raise Refused(
                    "verify the audit log", str(error), "compare the database with its backups"
                ) from error
            result = {"rows": rows, "hash": last.hex()}
        entries = [
            {
                "id": entry.id, "at": entry.at, "actor": entry.actor, "act": entry.act,
                "details": entry.details, "hash": entry.hash.hex(),
            }
            for entry in audit.entries(view.db)
        ]  # fmt: skip
        return {**result, "entries": entries[-limit:] if limit else entries}

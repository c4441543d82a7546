# SPDX-License-Identifier: Apache-2.0
"""What an administrator sees: the state, the keys, who is covered, and what is to be done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from upseal.fleet.admin import people, readying, retiring, signing
from upseal.fleet.admin.acting import DAY_MS, View
from upseal.fleet.admin.refusals import Refused
from upseal.fleet.manifest import Manifest, State
from upseal.fleet.server.overview import duties, oldkeys, orphans, relays
from upseal.fleet.server.overview.census import Census, Choice
from upseal.fleet.server.overview.holders import Holder
from upseal.fleet.server.overview.oldkeys import Drain
from upseal.fleet.server.store import alarms

if TYPE_CHECKING:
    from upseal.fleet.admin.opened import Opened

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
    drains: list[Drain]
    holders: list[Holder]
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
            keys=oldkeys.in_force(manifest),
            drains=drains,
            holders=holders,
            coverage=_census(deployment, view).counts().facts(),
            relays=relays.listing(view.db, manifest),
            alarms=[
                {
                    "kind": alarm.kind, "subject": alarm.subject.hex(), "first": alarm.first,
                    "last": alarm.last, "times": alarm.times,
                }
                for alarm in alarms.listing(
                    view.db, view.now - _ALARMS_SINCE_MS, _ALARMS_SHOWN, only_open=True
                )
            ],
            orphans_now=orphans.find(known, manifest, manifest),
            orphans_if_disabled=orphans.find(known, off, manifest) if manifest.active else (),
            warnings=list(
                duties.to_do(
                    manifest, view.now, deployment.settings.calendar, drains, holders,
                    sign["switch_from"],
                )
            ),
        )  # fmt: skip


def clients(deployment: Opened, only: str | None = None) -> list[dict[str, Any]]:
    """As `Deployment.clients`."""
    choice = Choice(only)
    with deployment.view() as view:
        return [known.facts() for known in _census(deployment, view).listing(choice)]


def _census(deployment: Opened, view: View) -> Census:
    return Census(view.db, view.manifest, view.now, deployment.settings.silent_hours)


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

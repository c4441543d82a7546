# SPDX-License-Identifier: Apache-2.0
"""Relays of the deployment: those that the manifest names, so that agents believe their words.

One that enrolled is only a candidate. To let it decrypt is the administrator's decision, whatever
it said when it enrolled.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from upseal.fleet.admin import people
from upseal.fleet.admin.acting import Outcome, Plan, View, perform
from upseal.fleet.admin.refusals import Refused, WouldOrphan
from upseal.fleet.identity import VerifyKey
from upseal.fleet.manifest import RelayEntry
from upseal.fleet.server.overview import orphans
from upseal.fleet.server.store import relays

if TYPE_CHECKING:
    from upseal.fleet.admin.opened import Opened


def add(
    deployment: Opened,
    name: str,
    *,
    decrypts: bool | None,
    accepts_sealed: bool | None,
    dry_run: bool,
    force: bool,
) -> Outcome:
    """As `Deployment.add_relay`."""

    def plan(view: View) -> Plan:
        manifest = view.manifest
        what = f"add the relay {name!r}"
        row = _row(view, what, name)
        if row.relay in manifest.revoked_agents:
            raise Refused(
                what, "it is revoked", f"take that back: `upseal admin revoke {name} --undo`"
            )
        old = next((entry for entry in manifest.relays if entry.relay == row.relay), None)
        if old is None:
            entry = RelayEntry(
                relay=row.relay,
                name=row.name,
                identity=VerifyKey.from_der(row.identity),
                accepts_sealed=row.accepts_sealed if accepts_sealed is None else accepts_sealed,
                decrypts=bool(decrypts),
                keys=(),
            )
        else:
            what = f"change the relay {name!r}"
            entry = replace(
                old,
                accepts_sealed=old.accepts_sealed if accepts_sealed is None else accepts_sealed,
                decrypts=old.decrypts if decrypts is None else decrypts,
            )
        if not entry.decrypts:
            entry = replace(entry, keys=())
        if entry == old:
            return Plan("relays-add", what, unchanged=True, messages=("it is as it should be",))
        others = [other for other in manifest.relays if other.relay != row.relay]
        after = replace(manifest, relays=(*others, entry))
        found: tuple[orphans.Orphan, ...] = ()
        if not entry.accepts_sealed and (old is None or old.accepts_sealed):
            # Who is below it is not known here: it may be anybody.
            found = orphans.find(
                people.listing(view.db), after, manifest,
                obstacle=f"it may be below {entry.name}, which would accept nothing sealed",
            )  # fmt: skip

        def write(_: object) -> None:
            relays.set_listed(
                view.db, row.relay, True, decrypts=entry.decrypts,
                accepts_sealed=entry.accepts_sealed,
            )  # fmt: skip

        words = ["decrypts" if entry.decrypts else "passes on"]
        words.append("accepts sealed reports" if entry.accepts_sealed else "no sealed reports")
        messages = [f"{entry.name}: {', '.join(words)}"]
        if entry.decrypts and not entry.keys and manifest.active:
            messages.append(
                "clients seal to it once it has a certificate: `upseal admin ready`, then `enable`"
            )
        return Plan(
            "relays-add", what, lambda tools: after, write,
            orphans=found,
            messages=tuple(messages),
            refusals=(WouldOrphan(what, found),) if found else (),
            details={
                "relay": row.relay.hex(), "decrypts": entry.decrypts,
                "accepts_sealed": entry.accepts_sealed,
            },
        )  # fmt: skip

    return perform(deployment, plan, dry_run=dry_run, force=force)


def remove(deployment: Opened, name: str, *, dry_run: bool) -> Outcome:
    """As `Deployment.remove_relay`."""

    def plan(view: View) -> Plan:
        manifest = view.manifest
        what = f"remove the relay {name!r}"
        wanted = name.lower()
        found = [e for e in manifest.relays if e.name == name or e.relay.hex() == wanted]
        if len(found) != 1:
            why = "the manifest names no such relay" if not found else "several have that name"
            raise Refused(what, why, "give an id of `upseal admin relays`")
        entry = found[0]
        after = replace(
            manifest, relays=tuple(e for e in manifest.relays if e.relay != entry.relay)
        )

        def write(_: object) -> None:
            if relays.find(view.db, entry.relay) is not None:
                relays.set_listed(view.db, entry.relay, False)

        return Plan(
            "relays-remove", what, lambda tools: after, write,
            messages=(
                f"agents believe nothing that {entry.name} says of itself, and seal to others only",
                "it may go on passing reports: `upseal admin revoke` stops that as well",
            ),
            details={"relay": entry.relay.hex()},
        )  # fmt: skip

    return perform(deployment, plan, dry_run=dry_run, force=False)


def _row(view: View, what: str, name: str) -> relays.Relay:
    wanted = name.lower()
    found = [
        row
        for row in relays.listing(view.db)
        if row.name == name or (len(wanted) >= 6 and row.relay.hex().startswith(wanted))
    ]
    if not found:
        raise Refused(
            what,
            "no relay of that name or id has enrolled",
            "give it a token (`upseal admin token --role relay`) and start it",
        )
    if len(found) > 1:
        ids = ", ".join(row.relay.hex() for row in found)
        raise Refused(what, f"{len(found)} relays are called so", f"give an id: {ids}")
    return found[0]

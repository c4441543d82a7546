# SPDX-License-Identifier: Apache-2.0
"""Who may report, and how: tokens, revocation, levels."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from upseal.core.certificates import load
from upseal.fleet.admin import people
from upseal.fleet.admin.acting import Outcome, Plan, View, perform
from upseal.fleet.admin.people import Client
from upseal.fleet.admin.refusals import Refused, WouldOrphan
from upseal.fleet.credentials import Token
from upseal.fleet.manifest import EncryptionKey, Manifest
from upseal.fleet.policy import Level
from upseal.fleet.server.overview import orphans
from upseal.fleet.server.overview.oldkeys import carried
from upseal.fleet.server.store import clients as store_clients
from upseal.fleet.server.store import manifests, relays, tokens

if TYPE_CHECKING:
    from upseal.fleet.admin.opened import Opened

_USES_MAX = 10_000
_NAMES_SHOWN = 10


def token(
    deployment: Opened, *, role: str, uses: int, lifetime_ms: int, note: str, dry_run: bool
) -> Outcome:
    """As `Deployment.token`."""
    if role not in ("agent", "relay"):
        raise ValueError(f"no role {role!r}: agent or relay")
    if not 1 <= uses <= _USES_MAX:
        raise ValueError(f"uses must be from 1 to {_USES_MAX}, not {uses}")
    if lifetime_ms < 1000:
        raise ValueError("a token must live for a second at least")

    def plan(view: View) -> Plan:
        manifest = view.manifest
        signer = manifest.signing_keys[0]
        # While the signing key changes, one who comes late must still be given the manifest that
        # announced the change: his chain begins there.
        least = manifest.serial
        if len(manifest.signing_keys) > 1:
            least = max(s.serial for s in manifests.chain(view.db, 0) if s.changed_signing_keys)
        made = [
            Token(manifest.deployment, signer.fingerprint, least, secrets.token_bytes(16))
            for _ in range(uses)
        ]

        def write(_: Manifest) -> None:
            for one in made:
                tokens.add(
                    view.db, one.secret, note=note, role=role, created=view.now,
                    expires=view.now + lifetime_ms,
                )  # fmt: skip

        texts = [] if dry_run else [one.encode() for one in made]
        return Plan(
            "token", "make a token", write=write,
            messages=(f"{uses} token(s) for {role}s, each good for one enrolment",),
            details={"role": role, "uses": uses, "expires": view.now + lifetime_ms, "note": note},
            result={"tokens": texts, "role": role, "expires": view.now + lifetime_ms},
        )  # fmt: skip

    return perform(deployment, plan, dry_run=dry_run, force=False)


def set_level(
    deployment: Opened,
    level: Level | None,
    *,
    clients: Sequence[str],
    everyone: bool,
    dry_run: bool,
    force: bool,
) -> Outcome:
    """As `Deployment.set_level`."""
    if everyone == bool(clients):
        raise ValueError("name clients, or all of them")
    word = level.value if level is not None else "default"

    def plan(view: View) -> Plan:
        manifest = view.manifest
        what = f"set the level to {word}"
        if everyone:
            after = replace(manifest, default_level=level)
        else:
            levels = dict(manifest.levels)
            for client in people.find(view.db, what, clients):
                levels.pop(client.agent, None)
                if level is not None:
                    levels[client.agent] = level
            after = replace(manifest, levels=levels)
        if (after.levels, after.default_level) == (manifest.levels, manifest.default_level):
            return Plan(
                "set-level", what, unchanged=True, messages=("they have that level already",)
            )
        known = people.listing(view.db)
        touched = {
            client.agent
            for client in known
            if after.level_for(client.agent) is not manifest.level_for(client.agent)
        }
        found = orphans.find(known, after, manifest, lambda client: client.agent in touched)
        messages = [f"{len(touched)} clients get the level {word}"]
        if everyone and manifest.levels:
            own = [client.name for client in known if client.agent in manifest.levels]
            few = ", ".join(own[:_NAMES_SHOWN]) + (", ..." if len(own) > _NAMES_SHOWN else "")
            messages.append(
                f"{len(own)} keep a level of their own ({few}): `set-level default --client NAME`"
            )
        return Plan(
            "set-level", what, lambda tools: after,
            orphans=found,
            messages=tuple(messages),
            refusals=(WouldOrphan(what, found),) if found else (),
            details={
                "level": word,
                "clients": "all" if everyone else sorted(agent.hex() for agent in touched),
            },
        )  # fmt: skip

    return perform(deployment, plan, dry_run=dry_run, force=force)


def revoke(deployment: Opened, target: str, *, undo: bool, dry_run: bool) -> Outcome:
    """As `Deployment.revoke`."""

    def plan(view: View) -> Plan:
        what = f"revoke {target!r}" if not undo else f"take back that {target!r} is revoked"
        found = people.matches(view.db, target)
        serials = _serials(view, target)
        if len(found) + len(serials) > 1:
            ids = [c.agent.hex() for c in found] + [f"0x{serial:x}" for serial in serials]
            raise Refused(what, "it may be more than one", f"give one of {', '.join(ids)}")
        if found:
            return _member(view, what, found[0], undo)
        if serials and not undo:
            return _certificate(view, what, serials[0])
        raise Refused(
            what,
            "no client, relay or certificate has that name, id or serial number",
            "see `upseal admin clients`, `relays` and `status`",
        )

    return perform(deployment, plan, dry_run=dry_run, force=False)


def _member(view: View, what: str, client: Client, undo: bool) -> Plan:
    manifest = view.manifest
    ids = {client.agent, client.hop}
    if orphans.is_revoked(client, manifest) is not undo:
        known = "is not revoked" if undo else "is revoked already"
        return Plan("revoke", what, unchanged=True, messages=(f"{client.name} {known}",))
    details = {"agent": client.agent.hex(), "role": client.role}
    if undo:
        after = replace(manifest, revoked_agents=manifest.revoked_agents - ids)
        return Plan(
            "unrevoke", what, lambda tools: after,
            lambda new: people.clear_revoked(view.db, client.agent),
            messages=(f"{client.name} may report again",), details=details,
        )  # fmt: skip
    entries = [entry for entry in manifest.relays if entry.relay == client.agent]
    serials = {
        load(key.certificate.encode()).serial_number
        for entry in entries
        for key in entry.keys
        if key.certificate is not None
    }
    after = replace(
        manifest,
        revoked_agents=manifest.revoked_agents | ids,
        revoked_certificates=manifest.revoked_certificates | serials,
        relays=tuple(entry for entry in manifest.relays if entry not in entries),
    )

    def write(new: Manifest) -> None:
        store_clients.mark_revoked(view.db, client.agent, view.now)
        if relays.find(view.db, client.agent) is not None:
            relays.set_listed(view.db, client.agent, False)

    messages = [f"{client.name} may not report any more; what it holds stays with it"]
    if entries:
        messages.append("it is no relay of this deployment any more; move its clients")
    return Plan(
        "revoke", what, lambda tools: after, write, messages=tuple(messages), details=details
    )


def _serials(view: View, target: str) -> list[int]:
    """Certificates of the manifest that have this serial number, hexadecimal or decimal."""
    wanted = set()
    text = target.lower().replace(":", "")
    for base in (16, 10):
        try:
            wanted.add(int(text, base))
        except ValueError:
            continue
    known = {
        load(key.certificate.encode()).serial_number
        for key in carried(view.manifest)
        if key.certificate is not None
    }
    return sorted(wanted & known)


def _certificate(view: View, what: str, serial: int) -> Plan:
    manifest = view.manifest

    def is_it(key: EncryptionKey) -> bool:
        found = key.certificate
        return found is not None and load(found.encode()).serial_number == serial

    for keys, role, way in (
        (manifest.encryption, "clients seal to it", "`upseal admin rotate` replaces it first"),
        (manifest.pending, "it is pending", "`upseal admin generate-key --replace` drops it"),
        ((manifest.enrolment,), "agents enrol by it", "it stays as long as the deployment"),
    ):
        if any(is_it(key) for key in keys):
            raise Refused(what, f"{role}, and no agent would take such a manifest", way)
    names = [entry.name for entry in manifest.relays if any(is_it(key) for key in entry.keys)]
    after = replace(
        manifest,
        revoked_certificates=manifest.revoked_certificates | {serial},
        relays=tuple(
            replace(entry, keys=tuple(key for key in entry.keys if not is_it(key)))
            for entry in manifest.relays
        ),
    )
    return Plan(
        "revoke-certificate", what, lambda tools: after,
        messages=(f"clients seal no more to that key of {', '.join(names)}",),
        details={"certificate": f"{serial:x}", "relays": names},
    )  # fmt: skip

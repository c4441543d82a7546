# SPDX-License-Identifier: Apache-2.0
"""A manifest that lasts longer, and a change of the CA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes

from upseal.fleet.admin import folder as files
from upseal.fleet.admin import renewing
from upseal.fleet.admin.acting import DAY_MS, Outcome, Plan, Tools, View, perform
from upseal.fleet.admin.authority import Authority, moment
from upseal.fleet.manifest import EncryptionKey, Manifest

if TYPE_CHECKING:
    from upseal.fleet.admin.opened import Opened


def renew(
    deployment: Opened, ca: tuple[Path, Path] | None, *, dry_run: bool, force: bool
) -> Outcome:
    """As `Deployment.renew`."""
    authority = deployment.read_authority(*ca) if ca is not None else None

    def plan(view: View) -> Plan:
        manifest = view.manifest
        settings = deployment.settings

        def build(tools: Tools) -> Manifest:
            if authority is None:
                return manifest
            return _by(deployment, authority, manifest, view.now)

        until = moment(view.now + settings.manifest_days * DAY_MS).date()
        messages = [f"the manifest is good until {until}"]
        if authority is not None:
            messages.append(
                f"certificates come from {authority.certificate.subject.rfc4514_string()} now"
            )
        elif renewing.is_due(deployment, view):
            messages.append("certificates that would end before are made again")
        return Plan(
            "renew", "renew the manifest", build,
            messages=tuple(messages),
            details={"ca_changed": authority is not None},
        )  # fmt: skip

    if authority is None or ca is None:
        return perform(deployment, plan, dry_run=dry_run, force=force)
    outcome = perform(deployment, plan, dry_run=dry_run, force=force, authority=authority)
    if outcome.changed and not dry_run:
        _use(deployment, authority, ca[1])
    return outcome


def _by(deployment: Opened, authority: Authority, manifest: Manifest, now: int) -> Manifest:
    """All certificates made again by another CA."""

    def new(key: EncryptionKey) -> EncryptionKey:
        if key.certificate is None:
            return key
        days = deployment.settings.certificate_days
        subject = renewing.subject(key)
        return renewing.make(authority, key.public(), subject, key.generation, now, days)

    return replace(
        manifest,
        enrolment=new(manifest.enrolment),
        encryption=tuple(new(key) for key in manifest.encryption),
        pending=tuple(new(key) for key in manifest.pending),
        relays=tuple(
            replace(relay, keys=tuple(new(key) for key in relay.keys)) for relay in manifest.relays
        ),
    )


def _use(deployment: Opened, authority: Authority, key: Path) -> None:
    """From the next act on."""
    name = f"ca-{authority.certificate.fingerprint(hashes.SHA256()).hex()[:16]}.pem"
    path = deployment.folder / name
    if not path.exists():
        files.write_new(path, authority.pem.encode())
    files.update_settings(deployment.folder, ca_cert=name, ca_key=str(key.absolute()))
    deployment.settings = files.load_settings(deployment.folder)
    deployment.ca_path, deployment.ca_key_path = path, key.absolute()
    deployment.forget_keys()

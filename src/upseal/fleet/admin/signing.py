# SPDX-License-Identifier: Apache-2.0
"""The signing key: which it is, how it is changed, and the manifest's lifetime.

A change has two steps. *Announce* puts the next key beside the present one into a manifest that the
present one signs; *switch* signs with the next and leaves the old one out. A client that was away
during both takes them one after the other, since the server keeps such manifests for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upseal.fleet.admin import folder as files
from upseal.fleet.admin.acting import HOUR_MS, Outcome, Plan, View, perform
from upseal.fleet.admin.refusals import Refused, Unusable
from upseal.fleet.identity import SigningKey, VerifyKey
from upseal.fleet.server.overview import duties
from upseal.fleet.server.store import manifests

if TYPE_CHECKING:
    from upseal.fleet.admin.opened import Opened


def next_path(deployment: Opened, key_id: str) -> Path:
    """Where an announced key lies: beside the present one, under its id."""
    return deployment.signing_path.with_name(f"signing-{key_id}.pem")


def signer(deployment: Opened, view: View) -> SigningKey:
    """The key that signed the newest manifest."""
    wanted = view.signer_id
    present, following = deployment.signing_path, next_path(deployment, wanted)
    key = deployment.signing_key(present) if present.exists() or not following.exists() else None
    if key is not None and key.public.key_id.hex() == wanted:
        return key
    if following.exists():
        # A switch that was cut off after its commit: the files are put right now.
        put_in_place(deployment, key.public.key_id.hex() if key is not None else None, wanted)
        return deployment.signing_key(present)
    raise Unusable(
        "sign a manifest",
        f"the key in {str(present)!r} is not {wanted}, which signed the newest one",
        "name the file of that key with --signing-key",
    )


def next_signer(deployment: Opened, view: View) -> SigningKey:
    """The announced key."""
    key_id = view.manifest.signing_keys[1].key_id.hex()
    key = deployment.signing_key(next_path(deployment, key_id))
    if key.public != view.manifest.signing_keys[1]:
        raise Unusable(
            "sign with the next key",
            f"{str(next_path(deployment, key_id))!r} holds another key than the announced one",
            "restore that file, or announce another with `signing-key announce --replace`",
        )
    return key


def put_in_place(deployment: Opened, old_id: str | None, new_id: str) -> None:
    """The next key's file becomes the present one's; the old one's stays, under its own name."""
    present = deployment.signing_path
    if old_id is not None:
        files.rename(present.with_name(f"signing-{old_id}.retired.pem"), present)
    files.rename(present, next_path(deployment, new_id))
    deployment.forget_keys()


def announced(view: View) -> tuple[bool, int, int]:
    """Whether a next key is announced, and serial and time of the last change."""
    last = manifests.last_change(view.db)
    assert last is not None  # the first one counts as a change
    return len(view.manifest.signing_keys) > 1, *last


def facts(deployment: Opened, view: View) -> dict[str, Any]:
    """For `signing-key status`."""
    present, *following = view.manifest.signing_keys
    pending, serial, issued = announced(view)
    wait = deployment.settings.signing_wait_hours
    return {
        "present": {"key_id": present.key_id.hex(), "fingerprint": present.fingerprint.hex()},
        "next": [
            {"key_id": key.key_id.hex(), "fingerprint": key.fingerprint.hex()} for key in following
        ],
        "announced_at": issued if pending else None,
        "announced_serial": serial if pending else None,
        "switch_from": duties.switch_time(view.db, view.manifest, wait),
    }


def announce(
    deployment: Opened,
    *,
    replace_next: bool,
    new_passphrase: Callable[[], bytes] | None,
    dry_run: bool,
) -> Outcome:
    """As `Deployment.announce_signing_key`."""
    kind = "p256" if deployment.settings.fips else "ed25519"
    made: list[SigningKey] = []

    def plan(view: View) -> Plan:
        manifest = view.manifest
        what = "announce a signing key"
        present, *following = manifest.signing_keys
        if following and not replace_next:
            raise Refused(
                what,
                f"{following[0].key_id.hex()} is announced already",
                "go on with `upseal admin signing-key switch`, or use --replace",
            )
        hours = deployment.settings.signing_wait_hours
        return Plan(
            "announce-signing-key", what,
            lambda tools: replace(manifest, signing_keys=(present, made[0].public)),
            finish=lambda new: _drop(deployment, following),
            messages=(f"next: `upseal admin signing-key switch`, in {hours} hours or later",),
            details={"present": present.key_id.hex(), "replaced": bool(following)},
        )  # fmt: skip

    def prepare(found: Plan) -> None:
        if new_passphrase is not None:
            secret: bytes | None = new_passphrase()
        else:  # as the present key is kept
            secret = deployment.passphrase_of(deployment.signing_path)
        key = SigningKey.generate(kind)
        made.append(key)
        files.write_new(next_path(deployment, key.public.key_id.hex()), key.to_pem(secret))

    def abandon() -> None:
        with deployment.view() as view:  # if this fails, the file stays
            named = view.manifest.signing_keys
        _drop(deployment, [key.public for key in made if key.public not in named])

    outcome = perform(
        deployment, plan, dry_run=dry_run, force=False, prepare=prepare, abandon=abandon
    )
    if not made:
        return outcome
    public = made[0].public
    path = next_path(deployment, public.key_id.hex())
    return replace(
        outcome,
        messages=(f"the next signing key is in {str(path)!r}", *outcome.messages),
        result={"fingerprint": public.fingerprint.hex(), "file": str(path)},
    )


def _drop(deployment: Opened, keys: Iterable[VerifyKey]) -> None:
    for key in keys:
        files.remove(next_path(deployment, key.key_id.hex()))
    deployment.forget_keys()


def switch(deployment: Opened, *, dry_run: bool, force: bool) -> Outcome:
    """As `Deployment.switch_signing_key`."""

    def plan(view: View) -> Plan:
        manifest = view.manifest
        what = "switch to the next signing key"
        pending, _, issued = announced(view)
        if not pending:
            raise Refused(
                what, "none is announced", "announce one with `upseal admin signing-key announce`"
            )
        old, new = manifest.signing_keys[:2]
        ripe = issued + deployment.settings.signing_wait_hours * HOUR_MS
        refusals = []
        if view.now < ripe:
            hours = -(-(ripe - view.now) // HOUR_MS)
            why = "clients have not had the time to hear of it"
            refusals.append(Refused(what, why, f"wait for {hours} hours more, or use --force"))
        return Plan(
            "switch-signing-key", what,
            lambda tools: replace(manifest, signing_keys=(new,)),
            finish=lambda _: put_in_place(deployment, old.key_id.hex(), new.key_id.hex()),
            messages=(
                f"manifests are signed by {new.key_id.hex()} from now on",
                "keep the old key off this machine, or destroy it: see signing-*.retired.pem",
            ),
            refusals=tuple(refusals),
            details={"old": old.key_id.hex(), "new": new.key_id.hex()},
        )  # fmt: skip

    return perform(deployment, plan, dry_run=dry_run, force=force, next_signer=True)


def cancel(deployment: Opened, *, dry_run: bool) -> Outcome:
    """As `Deployment.cancel_signing_key`."""

    def plan(view: View) -> Plan:
        manifest = view.manifest
        what = "take the next signing key back"
        present, *following = manifest.signing_keys
        if not following:
            raise Refused(what, "none is announced", "see `upseal admin signing-key status`")
        return Plan(
            "cancel-signing-key", what,
            lambda tools: replace(manifest, signing_keys=(present,)),
            finish=lambda new: _drop(deployment, following),
            messages=(f"{following[0].key_id.hex()} will not sign",),
            details={"next": following[0].key_id.hex()},
        )  # fmt: skip

    return perform(deployment, plan, dry_run=dry_run, force=False)

# SPDX-License-Identifier: Apache-2.0
"""The life of an encryption key: made, enabled, replaced, retired; and encryption turned off.

disabled --generate-key--> pending --enable--> enabled --generate-key--> pending rotation
                                                  ^-----------enable-----------'
disable: from enabled or pending rotation. generate-key --cancel: back to where it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from upseal.core.keys import KINDS, PrivateKey, PublicKey
from upseal.fleet.admin import people, readying, renewing
from upseal.fleet.admin.acting import Outcome, Plan, Tools, View, perform
from upseal.fleet.admin.authority import common_name
from upseal.fleet.admin.folder import key_file, remove, write_new
from upseal.fleet.admin.readying import Progress
from upseal.fleet.admin.refusals import NotReady, Refused, WouldOrphan
from upseal.fleet.manifest import EncryptionKey, Manifest, RelayEntry, State
from upseal.fleet.server.overview import orphans
from upseal.fleet.server.overview.holders import Holder
from upseal.fleet.server.settings import FIPS_KINDS
from upseal.fleet.server.store import keys, relays

if TYPE_CHECKING:
    from upseal.fleet.admin.opened import Opened

Escrow = tuple[str, PublicKey]
"""A name, and the key that may open everything as well."""
KeptKey = tuple[str, PublicKey]
"""Where a private key is kept (`upseal.integrations.keys`), and its public half."""
_AFTER = {
    State.DISABLED: State.PENDING,
    State.PENDING: State.PENDING,
    State.ENABLED: State.PENDING_ROTATION,
    State.PENDING_ROTATION: State.PENDING_ROTATION,
}
_BACK = {State.PENDING: State.DISABLED, State.PENDING_ROTATION: State.ENABLED}


def generate_key(
    deployment: Opened,
    *,
    key_type: str | None,
    escrow: Sequence[Escrow] | None,
    replace_pending: bool,
    dry_run: bool,
    force: bool,
    kept: KeptKey | None = None,
) -> Outcome:
    """As `Deployment.generate_key`."""
    settings = deployment.settings
    kind = kept[1].name if kept else key_type or settings.key_type
    if kind not in KINDS:
        raise ValueError(f"no key type {kind!r}: choose one of {', '.join(KINDS)}")
    if settings.fips and kind not in FIPS_KINDS:
        raise ValueError(f"{kind} is not for FIPS: choose {', '.join(FIPS_KINDS)}")
    _check_escrow(kind, escrow or ())
    made: list[PublicKey] = []

    def plan(view: View) -> Plan:
        manifest = view.manifest
        what = "make a key"
        if manifest.pending and not replace_pending:
            raise Refused(
                what,
                f"the key {manifest.pending[0].key_id.hex()} is pending already",
                "go on with `upseal admin ready`, or use --replace, or --cancel",
            )
        generation = manifest.generation + 1
        others = _escrow(view, manifest, escrow)
        _check_escrow(kind, others)

        def build(tools: Tools) -> Manifest:
            public = made[0]
            subject = common_name(settings.name, f"server {generation}")
            pending = [_certified(deployment, tools, public, subject, generation, view)]
            for name, key in others:
                pending.append(_certified(deployment, tools, key, name, generation, view))
            return replace(
                manifest,
                state=_AFTER[manifest.state],
                pending=tuple(pending),
                generation=generation,
            )

        def write(new: Manifest) -> None:
            for old in manifest.pending:
                keys.remove(view.db, old.key_id)
            for name, key in zip(
                (keys.SERVER, *(name for name, _ in others)), new.pending, strict=True
            ):
                if keys.find(view.db, key.key_id) is None:  # an escrow key may be there already
                    public = key.public()
                    keys.add(
                        view.db, key_id=key.key_id, generation=generation, holder=name,
                        suite=int(public.suite), public=public.to_pem().decode(),
                        certificate=key.certificate, created=view.now,
                    )  # fmt: skip

        messages = [f"a new {kind} key of generation {generation} is pending"]
        if manifest.pending:
            messages.append(f"the pending key {manifest.pending[0].key_id.hex()} is dropped")
        messages += [f"escrow: {name} ({key.key_id.hex()})" for name, key in others]
        return Plan(
            "generate-key", what, build, write,
            finish=lambda new: _drop_files(deployment, manifest.pending),
            certifies=True,
            messages=(*messages, "next: `upseal admin ready`, then `upseal admin enable`"),
            details={"type": kind, "generation": generation, "replaced": bool(manifest.pending)},
        )  # fmt: skip

    def prepare(found: Plan) -> None:
        if kept:
            public, data = kept[1], f"{kept[0]}\n".encode() + kept[1].to_pem()
        else:
            key = PrivateKey.generate(kind)
            public, data = key.public_key, key.to_pem()
        made.append(public)
        path = key_file(deployment.folder, int(found.details["generation"]), public.key_id)
        write_new(path.with_suffix(".ref") if kept else path, data, owner=deployment.folder)

    def abandon() -> None:
        if not made:
            return
        with deployment.view() as view:  # if this fails, the file stays: better than to lose a key
            named = [key.key_id for key in view.manifest.pending]
        if made[0].key_id not in named:
            for path in (deployment.folder / "keys").glob(f"*-{made[0].key_id.hex()}.*"):
                remove(path)

    return perform(deployment, plan, dry_run=dry_run, force=force, prepare=prepare, abandon=abandon)


def cancel_key(deployment: Opened, *, dry_run: bool, force: bool) -> Outcome:
    """As `Deployment.cancel_key`."""

    def plan(view: View) -> Plan:
        manifest = view.manifest
        what = "take the pending key back"
        if not manifest.pending:
            raise Refused(what, "no key is pending", "see `upseal admin status`")
        state = _BACK[manifest.state]

        def write(new: Manifest) -> None:
            for key in manifest.pending:
                keys.remove(view.db, key.key_id)

        return Plan(
            "cancel-key", what,
            lambda tools: replace(manifest, state=state, pending=()), write,
            finish=lambda new: _drop_files(deployment, manifest.pending),
            messages=(f"the pending key is gone; {state.value}",),
            details={"key_id": manifest.pending[0].key_id.hex()},
        )  # fmt: skip

    return perform(deployment, plan, dry_run=dry_run, force=force)


def enable(deployment: Opened, *, dry_run: bool, force: bool) -> Outcome:
    """As `Deployment.enable`."""

    def plan(view: View) -> Plan:
        manifest = view.manifest
        what = "enable encryption"
        if not manifest.pending and not manifest.active:
            raise Refused(what, "no key is pending", "make one with `upseal admin generate-key`")
        found = readying.holders(deployment, view)
        proven = {holder.id: holder for holder in found if holder.ready}
        waiting = [holder for holder in found if not holder.ready]
        if not manifest.pending:
            return _late(deployment, view, proven, waiting)
        new, old = manifest.pending, manifest.encryption
        names = sorted(h.name for h in proven.values() if h.id != "server")

        def build(tools: Tools) -> Manifest:
            return replace(
                manifest,
                state=State.ENABLED,
                encryption=new,
                pending=(),
                relays=_relays(deployment, view, tools, proven, new[0].public()),
            )

        def write(after: Manifest) -> None:
            kept = {key.key_id for key in new}
            for key in old:
                if key.key_id not in kept:
                    keys.set_state(view.db, key.key_id, keys.DRAINING, view.now)
            for key in new:
                keys.set_state(view.db, key.key_id, keys.ACTIVE, view.now)
            _note_certificates(view, after, proven)

        messages = [f"clients seal to the key {new[0].key_id.hex()} from now on"]
        if names:
            messages.append(f"decrypting relays with a new key: {', '.join(names)}")
        if old:
            messages.append("the old key stays until `upseal admin retire`")
        return Plan(
            "enable", what, build, write, certifies=bool(names), messages=tuple(messages),
            refusals=(NotReady(what, waiting),) if waiting else (),
            details={
                "key_id": new[0].key_id.hex(), "generation": new[0].generation,
                "not_ready": [holder.id for holder in waiting],
            },
        )  # fmt: skip

    return perform(deployment, plan, dry_run=dry_run, force=force)


def _late(deployment: Opened, view: View, proven: dict[str, Holder], waiting: list[Holder]) -> Plan:
    """Encryption is enabled already: relays that came later get their certificates."""
    manifest = view.manifest
    note = [f"{holder.name} is not ready: {holder.why}" for holder in waiting]
    if not proven:
        return Plan(
            "enable", "enable encryption", unchanged=True,
            messages=("encryption is enabled already", *note),
        )  # fmt: skip
    names = ", ".join(sorted(holder.name for holder in proven.values()))
    server = manifest.encryption[0].public()
    return Plan(
        "enable-relays", "certify relays",
        lambda tools: replace(
            manifest, relays=_relays(deployment, view, tools, proven, server)
        ),
        lambda after: _note_certificates(view, after, proven),
        certifies=True,
        messages=(f"clients below seal to these relays as well: {names}", *note),
        details={"relays": sorted(proven)},
    )  # fmt: skip


def _relays(
    deployment: Opened,
    view: View,
    tools: Tools,
    proven: dict[str, Holder],
    server: PublicKey,
) -> tuple[RelayEntry, ...]:
    """The relays with their newest keys first.

    One that is not ready keeps its old key, unless no session can have it beside the server's.
    """
    changed = []
    for entry in view.manifest.relays:
        found = tuple(
            key
            for key in entry.keys
            if key.public().suite.post_quantum == server.suite.post_quantum
        )
        holder = proven.get(entry.relay.hex())
        if holder is not None and holder.public is not None:
            generation = holder.generation
            new = _certified(deployment, tools, holder.public, entry.name, generation, view)
            found = (new, *(key for key in found if key.key_id != new.key_id))
        changed.append(replace(entry, keys=found))
    return tuple(changed)


def _note_certificates(view: View, after: Manifest, proven: dict[str, Holder]) -> None:
    for entry in after.relays:
        holder = proven.get(entry.relay.hex())
        if holder is not None and entry.keys and entry.keys[0].certificate is not None:
            relays.set_key_certificate(
                view.db, entry.relay, holder.generation, entry.keys[0].certificate
            )


def rotate(
    deployment: Opened,
    *,
    key_type: str | None,
    timeout: float,
    progress: Progress | None,
    dry_run: bool,
    force: bool,
) -> Outcome:
    """As `Deployment.rotate`."""
    with deployment.view() as view:
        state = view.manifest.state
        entries = [entry.name for entry in view.manifest.relays if entry.decrypts]
    if state not in (State.ENABLED, State.PENDING_ROTATION):
        raise Refused(
            "rotate",
            f"encryption is {state.value}, so there is no key to replace",
            "make the first with `upseal admin generate-key`, `ready` and `enable`",
        )
    messages: tuple[str, ...] = ()
    if state is State.ENABLED:
        made = generate_key(
            deployment, key_type=key_type, escrow=None, replace_pending=False, dry_run=dry_run,
            force=force,
        )  # fmt: skip
        messages = made.messages[:-1]
        if dry_run:
            needed = ", ".join(["the server", *entries])
            return replace(made, messages=(*messages, f"would have to be ready: {needed}"))
    elif key_type is not None:
        raise Refused(
            "rotate",
            "a key is pending already",
            "leave --type away to go on with it, or take it back with generate-key --cancel",
        )
    asked = readying.ready(deployment, timeout=timeout, progress=progress, dry_run=dry_run)
    done = enable(deployment, dry_run=dry_run, force=force)
    return replace(done, messages=(*messages, *asked.messages, *done.messages), result=asked.result)


def disable(deployment: Opened, *, dry_run: bool, force: bool) -> Outcome:
    """As `Deployment.disable`."""

    def plan(view: View) -> Plan:
        manifest = view.manifest
        what = "disable encryption"
        if manifest.state is State.DISABLED:
            return Plan(
                "disable", what, unchanged=True, messages=("encryption is disabled already",)
            )
        if manifest.state is State.PENDING:
            raise Refused(
                what,
                "it is not enabled yet",
                "take the pending key back with `upseal admin generate-key --cancel`",
            )
        after = replace(manifest, state=State.DISABLED, encryption=(), pending=())
        found = orphans.find(people.listing(view.db), after, manifest)

        def write(new: Manifest) -> None:
            for key in manifest.encryption:
                keys.set_state(view.db, key.key_id, keys.DRAINING, view.now)
            for key in manifest.pending:
                keys.remove(view.db, key.key_id)

        messages = ["clients that need not seal send clear text from now on"]
        if manifest.pending:
            messages.append(f"the pending key {manifest.pending[0].key_id.hex()} is dropped")
        return Plan(
            "disable", what, lambda tools: after, write,
            finish=lambda new: _drop_files(deployment, manifest.pending),
            orphans=found,
            messages=tuple(messages),
            refusals=(WouldOrphan(what, found),) if found else (),
            details={"key_id": manifest.encryption[0].key_id.hex()},
        )  # fmt: skip

    return perform(deployment, plan, dry_run=dry_run, force=force)


def _certified(
    deployment: Opened, tools: Tools, public: PublicKey, name: str, generation: int, view: View
) -> EncryptionKey:
    assert tools.authority is not None
    days = deployment.settings.certificate_days
    return renewing.make(tools.authority, public, name, generation, view.now, days)


def _escrow(view: View, manifest: Manifest, given: Sequence[Escrow] | None) -> list[Escrow]:
    """What is given, or else the present ones."""
    if given is not None:
        return list(given)
    found = []
    for key in manifest.encryption[1:]:
        row = keys.find(view.db, key.key_id)
        found.append((row.holder if row is not None else "escrow", key.public()))
    return found


def _check_escrow(kind: str, escrow: Sequence[Escrow]) -> None:
    """Raises `ValueError` for what no session can have beside the server's key."""
    hybrid = kind == "mlkem768-x25519"
    for name, key in escrow:
        if key.suite.post_quantum != hybrid:
            raise ValueError(
                f"the escrow key {name!r} is {key.name}, which cannot stand beside {kind}: "
                "a session is as strong as its weakest recipient"
            )
        if name == keys.SERVER:
            raise ValueError("an escrow key cannot be called 'server'")


def _drop_files(deployment: Opened, dropped: Sequence[EncryptionKey]) -> None:
    for key in dropped:
        path = key_file(deployment.folder, key.generation, key.key_id)
        for found in (path, path.with_suffix(".ref")):
            remove(found)

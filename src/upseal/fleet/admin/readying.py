# SPDX-License-Identifier: Apache-2.0
"""Readiness: the server and each decrypting relay prove that they hold the new key.

A challenge is put into the database; the server process answers its own there, a relay fetches
and answers its through the server. What counts is an answer to the key that would be certified.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from upseal.core.keys import PublicKey
from upseal.fleet.admin.acting import HOUR_MS, Outcome, View, who
from upseal.fleet.admin.folder import FIPS_KINDS
from upseal.fleet.admin.refusals import NotReady, Refused
from upseal.fleet.manifest import RelayEntry
from upseal.fleet.readiness import make_challenge
from upseal.fleet.server.store import audit, challenges, relays
from upseal.fleet.server.store.challenges import SERVER

if TYPE_CHECKING:
    from upseal.fleet.admin.opened import Opened

_OPEN_MS = HOUR_MS
_LOOK_SECONDS = (0.02, 0.5)  # at first, and at most: the longer it takes, the less it hurries


@dataclass(frozen=True)
class Holder:
    """Who must have the new key, and whether that is proven."""

    id: str
    """``server``, or the relay's id in hexadecimal."""
    name: str
    generation: int
    public: PublicKey | None
    """None: it has announced none yet."""
    proven: int | None
    """When it answered, in unix milliseconds."""
    why: str = ""
    """Why it is not ready."""
    usable: bool = True
    """False: its key is of a kind that cannot be used here."""

    @property
    def ready(self) -> bool:
        """Whether nothing stands in the way of its key."""
        return not self.why

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {
            "holder": self.id,
            "name": self.name,
            "generation": self.generation,
            "key_id": self.public.key_id.hex() if self.public is not None else None,
            "ready": self.ready,
            "proven": self.proven,
            "why": self.why or None,
        }


Progress = Callable[[list[Holder]], None]


def holders(deployment: Opened, view: View, since: int | None = None) -> list[Holder]:
    """The server and the decrypting relays that need the key in question.

    That is the pending one; or, where none is pending, the present one, for relays that came
    later. Only proofs since ``since`` count; unless given, since `Settings.proof_hours` ago.
    """
    manifest = view.manifest
    if since is None:
        since = view.now - deployment.settings.proof_hours * HOUR_MS
    found = []
    if manifest.pending:
        key = manifest.pending[0]
        found.append(_proven(view, SERVER, "the server", key.generation, key.public(), since))
        beside, generation = key.public(), key.generation
    elif manifest.encryption:
        beside, generation = manifest.encryption[0].public(), manifest.encryption[0].generation
    else:
        return []
    for entry in manifest.relays:
        have = any(key.generation == generation for key in entry.keys)
        if entry.decrypts and not have:
            found.append(_relay(deployment, view, entry, generation, beside, since))
    return found


def _relay(
    deployment: Opened,
    view: View,
    entry: RelayEntry,
    generation: int,
    beside: PublicKey,
    since: int,
) -> Holder:
    holder = entry.relay.hex()
    row = relays.find_key(view.db, entry.relay, generation)
    if row is None:
        why = f"it has announced no key of generation {generation} (is it running?)"
        return Holder(holder, entry.name, generation, None, None, why)
    why = ""
    try:
        public = PublicKey.from_pem(row.spki.encode())
    except ValueError:
        why = "what it announced is no public key"
        return Holder(holder, entry.name, generation, None, None, why, usable=False)
    if public.suite.post_quantum != beside.suite.post_quantum:
        # An agent seals to both, and a session is as strong as its weakest recipient.
        why = f"its key is {public.name}, which cannot stand beside the server's {beside.name}"
    elif deployment.settings.fips and public.name not in FIPS_KINDS:
        why = f"its key is {public.name}, which is not for FIPS"
    if why:
        return Holder(holder, entry.name, generation, public, None, why, usable=False)
    return _proven(view, holder, entry.name, generation, public, since)


def _proven(
    view: View, holder: str, name: str, generation: int, public: PublicKey, since: int
) -> Holder:
    found = [
        challenge
        for challenge in challenges.find(view.db, holder, generation)
        if challenge.key_id == public.key_id
    ]
    if not found:
        return Holder(holder, name, generation, public, None, "it was not asked yet")
    answered = found[0].answered
    if answered is None:
        return Holder(holder, name, generation, public, None, "it has not answered (is it up?)")
    why = "its proof is too old" if answered < since else ""
    return Holder(holder, name, generation, public, answered, why)


def ready(
    deployment: Opened,
    *,
    timeout: float,
    progress: Progress | None,
    dry_run: bool,
) -> Outcome:
    """As `Deployment.ready`."""
    end = time.monotonic() + timeout
    asked: set[tuple[str, bytes]] = set()
    with deployment.view() as view:
        found, manifest = holders(deployment, view), view.manifest
    if not found:
        _refuse_nothing(bool(manifest.encryption))
    pause = _LOOK_SECONDS[0]
    while not dry_run:
        found = _ask(deployment, asked, found)
        if progress is not None:
            progress(found)
        if all(holder.ready for holder in found) or time.monotonic() >= end:
            _note(deployment, found)
            break
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_SECONDS[1])
    waiting = tuple(holder for holder in found if not holder.ready)
    return Outcome(
        changed=not dry_run,
        manifest=manifest,
        messages=tuple(describe(found)),
        refusals=(NotReady("go on", waiting),) if waiting else (),
        dry_run=dry_run,
        result={"holders": [holder.facts() for holder in found]},
    )


def describe(found: list[Holder]) -> list[str]:
    """A line for each, after the count."""
    count = sum(holder.ready for holder in found)
    lines = [f"ready: {count} of {len(found)}"]
    return lines + [f"{holder.name}: {holder.why or 'ready'}" for holder in found]


def _refuse_nothing(enabled: bool) -> None:
    why = "no key is pending" + (", and every decrypting relay has its own" if enabled else "")
    raise Refused("ask who is ready", why, "make a key with `upseal admin generate-key`")


def _ask(deployment: Opened, asked: set[tuple[str, bytes]], found: list[Holder]) -> list[Holder]:
    """Poses a fresh challenge to whoever has not been asked by this call; then looks again.

    An older proof is void with it: `ready` means now.
    """
    new = [
        holder
        for holder in found
        if holder.public is not None and holder.usable
        and (holder.id, holder.public.key_id) not in asked
    ]  # fmt: skip
    if new:
        with deployment.view(writing=True) as view:
            for holder in new:
                assert holder.public is not None
                sealed, expected = make_challenge(holder.public)
                challenges.put(
                    view.db,
                    holder=holder.id,
                    generation=holder.generation,
                    key_id=holder.public.key_id,
                    challenge=sealed,
                    expected=expected,
                    created=view.now,
                    expires=view.now + _OPEN_MS,
                )
                asked.add((holder.id, holder.public.key_id))
    with deployment.view() as view:
        return holders(deployment, view)


def _note(deployment: Opened, found: list[Holder]) -> None:
    with deployment.view(writing=True) as view:
        details = {
            "serial": [view.manifest.serial, view.manifest.serial],
            "forced": [],
            "ready": [holder.id for holder in found if holder.ready],
            "waiting": [holder.id for holder in found if not holder.ready],
        }
        audit.append(view.db, who(), "ready", details, view.now)

# SPDX-License-Identifier: Apache-2.0
"""Old keys: how far they have drained, from when they may go, and their going.

A key is retired with all older ones, since holders are told one number: the oldest generation that
they must keep. Reports sealed to a retired key are not lost: their agents are told, and seal again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from upseal.fleet.admin.acting import HOUR_MS, Outcome, Plan, View, perform
from upseal.fleet.admin.refusals import Refused, StillUsed
from upseal.fleet.manifest import Manifest, RelayEntry
from upseal.fleet.server.overview import oldkeys
from upseal.fleet.server.overview.oldkeys import Drain
from upseal.fleet.server.store import keys, relays

if TYPE_CHECKING:
    from upseal.fleet.admin.opened import Opened

_WHAT = "retire the key"


def drains(deployment: Opened, view: View) -> list[Drain]:
    """The server's old keys, oldest first."""
    return oldkeys.drains(view.db, view.now, deployment.settings.drain_hours)


def retire(
    deployment: Opened, key_id: str | None, *, all_old: bool, dry_run: bool, force: bool
) -> Outcome:
    """As `Deployment.retire`."""
    if key_id is not None and all_old:
        raise ValueError("name one key, or all old ones, not both")

    def plan(view: View) -> Plan:
        manifest = view.manifest
        old = drains(deployment, view)
        if not old and key_id is None:
            return Plan("retire", _WHAT, unchanged=True, messages=("there is no old key",))
        last = _chosen(view, old, key_id, all_old)
        going = [drain for drain in old if drain.key.generation <= last]
        oldest = last + 1

        def build(tools: object) -> Manifest:
            return replace(
                manifest,
                # Where encryption is off, all may go: then the number of the next one is skipped.
                generation=max(manifest.generation, oldest),
                oldest_generation=oldest,
                relays=_without(manifest.relays, oldest),
            )

        def write(new: Manifest) -> None:
            for key in keys.listing(view.db):
                if key.generation <= last and key.state == keys.DRAINING:
                    keys.set_state(view.db, key.key_id, keys.RETIRED, view.now)
            relays.drop_keys(view.db, oldest)

        names = ", ".join(drain.key.key_id.hex() for drain in going)
        messages = [f"retired: {names}; whoever holds a private half deletes it"]
        silent = sorted({name for drain in going for name in drain.silent})
        if silent:
            messages.append(
                f"{len(silent)} silent clients sealed to it last; they will be told to seal again"
            )
        return Plan(
            "retire", _WHAT, build, write,
            messages=tuple(messages),
            refusals=(*_still_used(view, going), *_left_without(manifest, oldest)),
            details={"key_ids": [drain.key.key_id.hex() for drain in going], "oldest": oldest},
        )  # fmt: skip

    return perform(deployment, plan, dry_run=dry_run, force=force)


def _chosen(view: View, old: list[Drain], key_id: str | None, all_old: bool) -> int:
    """The newest generation that goes."""
    if key_id is None:
        if len(old) > 1 and not all_old:
            ids = ", ".join(drain.key.key_id.hex() for drain in old)
            raise Refused(_WHAT, f"there are {len(old)} old keys: {ids}", "name one, or --all-old")
        return old[-1].key.generation
    found = [drain.key for drain in old if drain.key.key_id.hex() == key_id.lower()]
    if not found:
        why = f"there is no old key {key_id!r}"
        carried = (*view.manifest.encryption, *view.manifest.pending)
        if key_id.lower() in {key.key_id.hex() for key in carried}:
            why = f"the key {key_id} is not an old one: it is in use, or pending"
        raise Refused(_WHAT, why, "see `upseal admin status`; a key is old once it was replaced")
    return found[0].generation


def _still_used(view: View, going: Iterable[Drain]) -> list[StillUsed]:
    refusals = []
    for drain in going:
        if drain.may_go(view.now):
            continue
        key = drain.key
        reasons = []
        if view.now < drain.safe_from:
            hours = -(-(drain.safe_from - view.now) // HOUR_MS)
            event = "replaced"
            if (key.last_used or 0) > (key.drained_from or 0):
                event = "used"
            reasons.append(f"it was {event} lately, and is safe to retire in {hours} h")
        if drain.clients:
            few = ", ".join(drain.clients[:5]) + (", ..." if len(drain.clients) > 5 else "")
            reasons.append(f"{len(drain.clients)} clients sealed to it last: {few}")
        why = f"{key.key_id.hex()}: {'; '.join(reasons)}"
        refusals.append(StillUsed(_WHAT, why, drain.clients))
    return refusals


def _left_without(manifest: Manifest, oldest: int) -> list[Refused]:
    """Decrypting relays that would have no key left: agents below seal to the server alone then."""
    before = {entry.relay for entry in manifest.relays if entry.keys}
    after = _without(manifest.relays, oldest)
    names = [entry.name for entry in after if entry.relay in before and not entry.keys]
    if not names:
        return []
    why = f"these relays have no newer key and could decrypt nothing: {', '.join(names)}"
    return [Refused(_WHAT, why, "bring them up (`upseal admin ready`, `enable`), or use --force")]


def _without(entries: Iterable[RelayEntry], oldest: int) -> tuple[RelayEntry, ...]:
    return tuple(
        replace(entry, keys=tuple(key for key in entry.keys if key.generation >= oldest))
        for entry in entries
    )

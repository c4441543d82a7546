# SPDX-License-Identifier: Apache-2.0
"""Readiness: the server and each decrypting relay prove that they hold the new key.

A challenge is put into the database; the server process answers its own there, a relay fetches
and answers its through the server. What counts is an answer to the key that would be certified.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from upseal.fleet.admin.acting import HOUR_MS, Outcome, View, who
from upseal.fleet.admin.refusals import NotReady, Refused
from upseal.fleet.readiness import make_challenge
from upseal.fleet.server.overview.holders import Holder
from upseal.fleet.server.overview.holders import holders as find
from upseal.fleet.server.store import audit, challenges

if TYPE_CHECKING:
    from upseal.fleet.admin.opened import Opened

_OPEN_MS = HOUR_MS
_LOOK_SECONDS = (0.02, 0.5)  # at first, and at most: the longer it takes, the less it hurries


Progress = Callable[[list[Holder]], None]


def holders(deployment: Opened, view: View, since: int | None = None) -> list[Holder]:
    """As `upseal.fleet.server.overview.holders.holders`; unless given, since `proof_hours` ago."""
    if since is None:
        since = view.now - deployment.settings.proof_hours * HOUR_MS
    return find(view.db, view.manifest, since, fips=deployment.settings.fips)


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

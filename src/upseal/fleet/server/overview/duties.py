# SPDX-License-Identifier: Apache-2.0
"""What is to be done in a deployment, and by which command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection

from upseal.fleet.manifest import Manifest
from upseal.fleet.server.overview import oldkeys
from upseal.fleet.server.overview.holders import Holder
from upseal.fleet.server.overview.oldkeys import Drain
from upseal.fleet.server.overview.people import HOUR_MS
from upseal.fleet.server.settings import Calendar
from upseal.fleet.server.store import manifests

DAY_MS = 86_400_000
_SLACK_MS = 300_000


def to_do(
    manifest: Manifest,
    now_ms: int,
    calendar: Calendar,
    drains: Sequence[Drain],
    holders: Sequence[Holder],
    switch_from: int | None,
) -> Iterator[str]:
    """A line for each; ``switch_from`` is `switch_time`'s."""
    warn = calendar.warn_days * DAY_MS
    left = manifest.expires - now_ms
    if left <= 0:
        yield "the manifest has expired, and clients say so: `upseal admin renew`"
    elif left < min(warn, calendar.manifest_days * DAY_MS // 3):
        yield f"the manifest expires in {left // DAY_MS} days: `upseal admin renew`"
    if now_ms < manifest.issued - _SLACK_MS:
        yield "the clock stands before the time of the newest manifest: set it"
    for key in oldkeys.carried(manifest):
        end = oldkeys.ends(key)
        if end is not None and end < now_ms + warn:
            what = "has ended" if end <= now_ms else f"ends in {(end - now_ms) // DAY_MS} days"
            yield f"the certificate of {key.key_id.hex()} {what}: `upseal admin renew`"
    for drain in drains:
        if drain.may_go(now_ms):
            yield f"the key {drain.key.key_id.hex()} can go: `upseal admin retire`"
    if manifest.pending:
        waiting = [holder.name for holder in holders if not holder.ready]
        way = "`upseal admin ready`" if waiting else "`upseal admin enable`"
        yield f"a key is pending: {way}"
    elif holders:
        names = ", ".join(holder.name for holder in holders)
        yield f"relays without a key of their own: {names}: `upseal admin ready`, then `enable`"
    if switch_from is not None and now_ms >= switch_from:
        yield "the next signing key may sign: `upseal admin signing-key switch`"


def switch_time(db: Connection, manifest: Manifest, wait_hours: int) -> int | None:
    """From when the announced signing key may sign, in milliseconds; None if none is announced."""
    if len(manifest.signing_keys) < 2:
        return None
    last = manifests.last_change(db)
    return None if last is None else last[1] + wait_hours * HOUR_MS

# SPDX-License-Identifier: Apache-2.0
"""Gauges: of the manifest, and those that are read from the store now and then."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from upseal.fleet.manifest import Manifest
from upseal.fleet.policy import Reason
from upseal.fleet.server.meters import Meters
from upseal.fleet.server.overview import oldkeys
from upseal.fleet.server.store import alarms, clients, deadletters, keys
from upseal.fleet.server.tables import clients as states
from upseal.fleet.server.tables import dead_letters


def of_manifest(meters: Meters, manifest: Manifest) -> None:
    """Sets those that only a new manifest changes."""
    meters.serial.set(manifest.serial)
    meters.expires.set(manifest.expires / 1000)
    meters.enabled.set(float(manifest.active))
    first: dict[int, int] = {}
    for key in oldkeys.carried(manifest):
        end = oldkeys.ends(key)
        if end is not None:
            first[key.generation] = min(end, first.get(key.generation, end))
    meters.certificates.clear()
    for generation, end in first.items():
        meters.certificates.labels(str(generation)).set(end / 1000)


def note(db: Connection, meters: Meters, now_ms: int) -> None:
    """Sets those of the store."""
    count, size = deadletters.usage(db)
    meters.letters.set(count)
    meters.letter_bytes.set(size)
    oldest = db.execute(select(func.min(dead_letters.c.received))).scalar()
    meters.letter_age.set(0.0 if oldest is None else max(0, now_ms - oldest) / 1000)
    meters.drain.clear()
    meters.on_key.clear()
    meters.used.clear()
    for drain in keys.drain(db, now_ms):
        labels = (str(drain.key.generation), drain.key.state)
        meters.drain.labels(*labels).inc(drain.last_hour)  # escrow aside, one key a generation
        meters.on_key.labels(*labels).inc(drain.clients)
        last = max(drain.key.drained_from or 0, drain.key.last_used or 0)
        meters.used.labels(*labels).set(last / 1000)
    actual = clients.count(db)
    for what in ("sealed", "clear", "withheld", clients.NEVER):
        meters.clients.labels(what).set(actual.get(what, 0))
    unseen = alarms.open_kinds(db)
    for kind in alarms.KINDS:
        meters.alarms.labels(kind).set(unseen.get(kind, 0))
    meters.reasons.clear()
    query = (
        select(states.c.actual, states.c.reason, func.count())
        .where(states.c.actual.is_not(None), states.c.reason.is_not(None))
        .group_by(states.c.actual, states.c.reason)
    )
    for what, reason, number in db.execute(query):
        meters.reasons.labels(what, _word(reason)).set(number)


def _word(reason: int) -> str:
    try:
        return Reason(reason).label
    except ValueError:
        return "other"

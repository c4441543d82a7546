# SPDX-License-Identifier: Apache-2.0
"""Gauges of the clients as the manifest sees them: who is silent, revoked, orphaned."""

from __future__ import annotations

import time

from upseal.fleet.manifest import Manifest
from upseal.fleet.server.meters import Meters
from upseal.fleet.server.overview.census import Census
from upseal.fleet.server.store import Store, now_ms

_EVERY = 5.0
_SHARE = 0.02
"""Of the time, at most: to count 200,000 clients reads all of them."""


class Headcount:
    """For one thread."""

    def __init__(self, store: Store, meters: Meters, silent_hours: int) -> None:
        """Has counted nobody yet."""
        self._store = store
        self._meters = meters
        self._silent_hours = silent_hours
        self._due = 0.0

    def round(self, manifest: Manifest | None) -> bool:
        """Counts them if it is time; whether it did."""
        begun = time.monotonic()
        if manifest is None or begun < self._due:
            return False
        with self._store.reading() as db:
            counts = Census(db, manifest, now_ms(), self._silent_hours).counts()
        for does, number in counts.by.items():
            self._meters.members.labels(does).set(number)
        self._meters.orphaned.set(counts.orphaned)
        end = time.monotonic()
        self._due = end + max(_EVERY, (end - begun) / _SHARE)
        return True

# SPDX-License-Identifier: Apache-2.0
"""Writes down once a minute how many clients seal: what the page's chart is drawn from."""

from __future__ import annotations

from upseal.fleet.manifest import Manifest
from upseal.fleet.server.overview.census import Census
from upseal.fleet.server.store import Store, coverage, now_ms
from upseal.fleet.server.store.coverage import MINUTE_MS, Sample

_THIN_MINUTES = 60


class Recording:
    """For one thread."""

    def __init__(self, store: Store, silent_hours: int) -> None:
        """Has written nothing yet."""
        self._store = store
        self.silent_hours = silent_hours
        self._minute = 0
        self._thinned = 0

    def round(self, manifest: Manifest | None) -> bool:
        """Writes the present minute down, unless that is done; whether it did."""
        now = now_ms()
        minute = now // MINUTE_MS
        if manifest is None or minute == self._minute:
            return False
        with self._store.reading() as db:
            counts = Census(db, manifest, now, self.silent_hours).counts()
        by = counts.by
        sample = Sample(
            minute, by["sealed"], by["clear"], by["withheld"], by["silent"],
            counts.sealed_reports, counts.clear_reports,
        )  # fmt: skip
        thin = not self._thinned <= minute < self._thinned + _THIN_MINUTES
        with self._store.writing() as db:
            coverage.note(db, sample)
            if thin:
                coverage.thin(db, now)
        self._minute = minute
        if thin:
            self._thinned = minute
        return True

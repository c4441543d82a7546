# SPDX-License-Identifier: Apache-2.0
"""Lets reports go that are older than ``keep_days``, a little at a time, beside requests."""

from __future__ import annotations

import logging
import time

from upseal.fleet.http.logs import event
from upseal.fleet.server.store import Store, audit, now_ms, retention

EVERY = 3600.0
"""Seconds between two looks for what has become too old."""
_TURN = 0.3
"""Seconds that one round may take; it goes on in the next one."""
_DAY_MS = 86_400_000
_log = logging.getLogger("upseal.server")


class Retention:
    """For one thread.

    Before anything goes, a row of the audit log says what: a process that is killed in the middle
    leaves no gap that nobody can account for.

    Args:
        store: where reports are.
        keep_days: 0 for ever.
    """

    def __init__(self, store: Store, keep_days: int) -> None:
        self._store, self._days = store, keep_days
        self._next: int | None = None
        self._before = self._last = 0
        self._look_at = 0.0

    def round(self) -> None:
        """Does some of what is due, if anything is."""
        if not self._days:
            return
        now = time.monotonic()
        if self._next is None:
            if now < self._look_at:
                return
            self._look_at = now + EVERY
            self._look()
        end = now + _TURN
        while self._next is not None:
            with self._store.writing() as db:
                following = retention.drop(db, self._next, self._before, self._last)
            if following is None:
                event(_log, "old reports are gone", received_before=self._before)
            self._next = following
            if time.monotonic() >= end:
                return

    def _look(self) -> None:
        before = now_ms() - self._days * _DAY_MS
        with self._store.reading() as db:
            due = retention.due(db, before)
        if due is None:
            return
        facts = {"received_before": before, "units": due.units, "reports": due.reports}
        with self._store.writing() as db:
            audit.append(db, "server", "drop-old-reports", facts, now_ms())
        event(_log, "old reports go", keep_days=self._days, **facts)
        self._next, self._before, self._last = due.first, before, due.last

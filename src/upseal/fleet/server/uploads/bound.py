# SPDX-License-Identifier: Apache-2.0
"""How many bytes of files may be stored in all; when that is reached, new ones wait."""

from __future__ import annotations

import logging
import threading
import time

from upseal.fleet.http.logs import event
from upseal.fleet.server.store import Store, alarms, deletions, now_ms

ALARM_EVERY = 600.0
"""Seconds between two alarms, however many bodies wait."""
_BELIEVED = 60.0
"""Seconds until what is stored is added up again."""
_log = logging.getLogger("upseal.server.uploads")


class Bound:
    """Safe to share between threads.

    What is under way when it is reached is stored: each thread may go beyond it by one file.

    Args:
        store: where rows are.
        most: bytes; 0 for no bound.
    """

    def __init__(self, store: Store, most: int) -> None:
        self._store, self._most = store, most
        self._lock = threading.Lock()
        self._bytes = 0
        self._until = 0.0
        """By then, `_bytes` is looked up again."""
        self._alarm_at = 0.0

    def reached(self) -> bool:
        """Whether nothing more is to be stored for now; says so by an alarm, once in a while.

        Raises:
            SQLAlchemyError: the database failed.
        """
        if not self._most:
            return False
        with self._lock:
            now = time.monotonic()
            if now >= self._until:
                with self._store.reading() as db:
                    self._bytes = deletions.stored_bytes(db)
                self._until = now + _BELIEVED
            if self._bytes < self._most:
                return False
            known, sounds = self._bytes, now >= self._alarm_at
            if sounds:
                self._alarm_at = now + ALARM_EVERY
        if sounds:
            details = {"bytes": known, "stored_upload_bytes": self._most}
            event(_log, "stored files have reached their bound", level=logging.WARNING, **details)
            with self._store.writing() as db:
                alarms.sound(db, "uploads-full", b"", details, now_ms())
        return True

    def more(self, size: int) -> None:
        """A file was stored."""
        with self._lock:
            self._bytes += size

    def changed(self) -> None:
        """Files have gone."""
        with self._lock:
            self._until = 0.0

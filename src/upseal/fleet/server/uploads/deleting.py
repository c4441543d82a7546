# SPDX-License-Identifier: Apache-2.0
"""Lets stored files go that somebody has deleted, or that are older than ``keep_upload_days``.

Whoever deletes writes it down, and may remove the bytes at once; here is seen to it that they are
gone. That is all that is to be done after a kill as well.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from upseal.fleet.http.logs import event
from upseal.fleet.server.store import Store, audit, deletions, now_ms
from upseal.fleet.server.store.deletions import Left, Which
from upseal.fleet.server.uploads.content import remove

EVERY = 3600.0
"""Seconds between two looks for what has become too old."""
AGAIN = 60.0
"""Seconds until what could not be removed is tried again."""
_TURN = 0.3
"""Seconds that one round may take; it goes on in the next one."""
_STEP = 100
_STUCK = 1000
_DAY_MS = 86_400_000
_log = logging.getLogger("upseal.server.uploads")


class Deleting:
    """For one thread.

    Before anything becomes too old, a row of the audit log says what goes.

    Args:
        store: where rows are.
        folder: of stored files.
        keep_days: 0 for ever.
        gone: told of files whose bytes are gone.
    """

    def __init__(
        self, store: Store, folder: Path, keep_days: int, gone: Callable[[Sequence[Left]], None]
    ) -> None:
        self._store, self._folder, self._days, self._gone = store, folder, keep_days, gone
        self._next: int | None = None
        self._before = 0
        self._look_at = 0.0
        self._stuck: set[Which] = set()
        self._stuck_until = 0.0

    def round(self) -> None:
        """Does some of what is due, if anything is.

        Raises:
            SQLAlchemyError: the database failed.
        """
        end = time.monotonic() + _TURN
        while self._remove(end) or self._drop():
            if time.monotonic() >= end:
                return

    # -- the bytes -------------------------------------------------------------------------

    def _remove(self, end: float) -> bool:
        """The bytes of some; False if there are none whose bytes can go now."""
        if self._stuck and time.monotonic() >= self._stuck_until:
            self._stuck.clear()
        if len(self._stuck) >= _STUCK:
            return False
        with self._store.reading() as db:
            found = deletions.left(db, _STEP + len(self._stuck))
        todo = [row for row in found if (row.agent, row.upload) not in self._stuck]
        gone: list[Left] = []
        for row in todo:
            try:
                remove(self._folder, row.path)
                gone.append(row)
            except OSError as error:
                self._cannot(row, error)
            if time.monotonic() >= end:
                break
        if gone:
            with self._store.writing() as db:
                deletions.removed(db, gone, now_ms())
            self._gone(gone)
        return bool(todo)

    def _cannot(self, row: Left, error: OSError) -> None:
        """A disk that is read-only, or somebody's folder: later."""
        if not self._stuck:
            self._stuck_until = time.monotonic() + AGAIN
            event(
                _log, "a deleted file stays", level=logging.ERROR, why=error,
                path=str(self._folder / row.path), again_in=AGAIN,
            )  # fmt: skip
        self._stuck.add((row.agent, row.upload))

    # -- what is too old -------------------------------------------------------------------

    def _drop(self) -> bool:
        """Writes some more down; False if nothing is due."""
        if not self._days:
            return False
        if self._next is None:
            now = time.monotonic()
            if now < self._look_at:
                return False
            self._look_at = now + EVERY
            self._look()
        if self._next is None:
            return False
        with self._store.writing() as db:
            self._next = deletions.drop(db, self._next, self._before, now_ms())
        if self._next is None:
            event(_log, "old uploads are gone", received_before=self._before)
        return self._next is not None

    def _look(self) -> None:
        before = now_ms() - self._days * _DAY_MS
        with self._store.reading() as db:
            due = deletions.due(db, before)
        if due is None:
            return
        facts = {"received_before": before, "uploads": due.uploads, "bytes": due.bytes}
        with self._store.writing() as db:
            audit.append(db, "server", "drop-old-uploads", facts, now_ms())
        event(_log, "old uploads go", keep_upload_days=self._days, **facts)
        self._next, self._before = due.first, before

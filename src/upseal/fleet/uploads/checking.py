# SPDX-License-Identifier: Apache-2.0
"""Verifies bodies that have all their bytes, behind the answer to the last piece."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress

from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.uploads.held import Gone, Held
from upseal.fleet.uploads.shelf import Shelf

_AT_ONCE = 2
"""Threads of the pool that verify: after a restart whole bodies are read, and others have to work
there as well."""
_REMEMBERED = 3600.0
_MOST_REMEMBERED = 4096
_log = logging.getLogger("upseal.uploads")


class Checking:
    """Safe for threads.

    Args:
        shelf: has the bodies.
        pool: where they are verified.
        on_whole: told of each that is whole, in a thread of the pool.
    """

    def __init__(self, shelf: Shelf, pool: Executor, on_whole: Callable[[Held], None]) -> None:
        self._shelf, self._pool, self._on_whole = shelf, pool, on_whole
        self._lock = threading.Lock()
        self._waiting: deque[Held] = deque()
        self._known: set[Held] = set()
        """Waiting, or being verified."""
        self._running = 0
        self._bad: OrderedDict[tuple[bytes, bytes], float] = OrderedDict()

    def add(self, held: Held) -> None:
        """Verifies it when it is its turn, once. Does not block."""
        with self._lock:
            if held in self._known:
                return
            self._known.add(held)
            self._waiting.append(held)
            if self._running >= _AT_ONCE:
                return
            self._running += 1
        try:
            self._pool.submit(self._run)
        except RuntimeError:  # the process stops: the next one finds it unchecked
            with self._lock:
                self._running -= 1

    def resume(self) -> int:
        """All that are unchecked on the shelf; how many."""
        unchecked = self._shelf.unchecked()
        for held in unchecked:
            self.add(held)
        return len(unchecked)

    def result(self, hop_id: bytes, body_id: bytes) -> Result | None:
        """As `upseal.fleet.uploads.tus.Tus.result`."""
        held = self._shelf.find(hop_id, body_id)
        if held is not None:
            return None if held.state == "open" else Result.pending(body_id)
        with self._lock:
            until = self._bad.get((hop_id, body_id), 0.0)
        if until < time.monotonic():
            return None
        problem = Problem("malformed", "the bytes that came are not those that were declared")
        return Result.failed(body_id, problem)

    def forget(self, hop_id: bytes, body_id: bytes) -> None:
        """It is begun again."""
        with self._lock:
            self._bad.pop((hop_id, body_id), None)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                held = self._waiting.popleft()
            try:
                self._check(held)
            except Exception as error:  # of the owner: the others must not wait for ever
                event(_log, "upload check failed", level=logging.ERROR, exc=error)
            finally:
                with self._lock:
                    self._known.discard(held)

    def _check(self, held: Held) -> None:
        if held.state != "checking":
            return
        with suppress(Gone):  # ended by its sender, or the process stops
            upload = held.ticket.upload.hex()
            try:
                good = self._shelf.complete(held)
            except OSError as error:  # its sender finds it unknown, and sends it again
                event(_log, "upload lost by the disk", level=logging.ERROR, why=error,
                      upload=upload)  # fmt: skip
                return
            if good:
                event(_log, "upload whole", upload=upload, bytes=held.ticket.size)
                self._on_whole(held)
                return
            with self._lock:
                self._bad[held.hop, held.body_id] = time.monotonic() + _REMEMBERED
                while len(self._bad) > _MOST_REMEMBERED:
                    self._bad.popitem(last=False)

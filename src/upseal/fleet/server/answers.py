# SPDX-License-Identifier: Apache-2.0
"""Results that somebody may ask for later: bounded in number and time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result, State
from upseal.fleet.server.store import Store, deadletters, now_ms

KEPT = 3600.0
"""Seconds. After that a sender that asks sends again, and is told DUPLICATE."""
_GRACE_MS = 30_000
"""What would not open is pending so long. Then it is better made again: sealed anew, it opens."""


class Answers:
    """Safe to share between threads."""

    def __init__(
        self,
        store: Store,
        most: int,
        kept: float = KEPT,
        told: Callable[[Result], object] = lambda _: None,
    ) -> None:
        """Holds nothing yet, and never more than ``most`` results or ``most`` receipts.

        ``told`` hears of each that is put here.
        """
        self._store = store
        self._told = told
        self._most = most
        self._kept = kept
        self._results: OrderedDict[bytes, tuple[float, Result]] = OrderedDict()
        self._lock = threading.Lock()
        self._receipts = 0
        self.changes = 0
        """Goes up with each `put`."""

    def __len__(self) -> int:
        return len(self._results)

    def put(self, result: Result) -> None:
        """Remembers what was settled; anything else is asked of the database."""
        self._told(result)
        if result.state is not State.DONE and not (
            result.problem is not None and not result.problem.temporary
        ):
            return
        now = time.monotonic()
        with self._lock:
            self._drop(self._results.pop(result.body, None))
            self._results[result.body] = (now, result)
            self._receipts += len(result.receipts)
            while self._results:
                when, _ = next(iter(self._results.values()))
                count = max(len(self._results), self._receipts)
                if count <= self._most and when > now - self._kept:
                    break
                self._drop(self._results.popitem(last=False)[1])
            self.changes += 1

    def _drop(self, known: tuple[float, Result] | None) -> None:
        if known is not None:
            self._receipts -= len(known[1].receipts)

    def forget(self, bodies: Iterable[bytes]) -> None:
        """What was said of these is to be found out anew."""
        with self._lock:
            for body in bodies:
                self._drop(self._results.pop(body, None))

    def settled(self, body: bytes) -> bool:
        """Whether its result is there."""
        return body in self._results

    def get(self, bodies: list[bytes]) -> list[Result]:
        """What is known of each, in this order."""
        now = time.monotonic()
        found: dict[bytes, Result] = {}
        for body in bodies:
            known = self._results.get(body)
            if known is not None and known[0] > now - self._kept:
                found[body] = known[1]
        unknown = [body for body in bodies if body not in found]
        if unknown:
            with self._store.reading() as db:
                letters = deadletters.find_many(db, unknown)
            for body in unknown:
                found[body] = _of_letter(body, letters.get(body))
        return [found[body] for body in bodies]


def _of_letter(body: bytes, letter: deadletters.DeadLetter | None) -> Result:
    if letter is None:
        return Result.unknown(body)
    if letter.reason == deadletters.MALFORMED:
        return Result.failed(body, Problem("malformed"))
    hopeless = letter.reason in (deadletters.CANNOT_OPEN, deadletters.REPEATED)
    if hopeless and letter.received < now_ms() - _GRACE_MS:
        return Result.unknown(body)
    return Result.pending(body)

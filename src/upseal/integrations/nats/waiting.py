# SPDX-License-Identifier: Apache-2.0
"""What a front knows of bodies that are at the broker: bounded, in memory, and never needed.

A front that has forgotten a body says ``unknown``, its sender sends it again, and the server knows
its units by their number. So what is kept here saves work, and nothing is lost with it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from upseal.fleet.http.results import Result

KEPT = 3600.0
"""Seconds for which a problem is told that holds no longer than the next try."""
LATE = 60.0
"""Seconds after which a result does not come any more, once the broker is rid of the message."""


@dataclass(slots=True)
class _Body:
    sequence: int
    """At the broker; 0 as long as it has not said."""
    when: float
    result: Result | None = None
    """A problem that may pass: it is not there any more."""


class Waiting:
    """Bodies between the broker's word and an opener's. Safe to share between threads."""

    def __init__(self, most: int) -> None:
        """Remembers ``most`` of them."""
        self._most = most
        self._bodies: OrderedDict[bytes, _Body] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._bodies)

    def begin(self, bodies: Iterable[bytes]) -> None:
        """Before they are given to the broker: a result may come before its word."""
        now = time.monotonic()
        with self._lock:
            for body in bodies:
                self._bodies.pop(body, None)
                self._bodies[body] = _Body(0, now)
            while len(self._bodies) > self._most:
                self._bodies.popitem(last=False)

    def taken(self, bodies: Iterable[bytes], sequence: int) -> None:
        """The broker has them."""
        with self._lock:
            for body in bodies:
                if (known := self._bodies.get(body)) is not None:
                    known.sequence = sequence

    def forget(self, bodies: Iterable[bytes]) -> None:
        """The broker has not taken them, or nobody knows whether it has."""
        with self._lock:
            for body in bodies:
                self._bodies.pop(body, None)

    def tell(self, result: Result) -> None:
        """What an opener says of one. What is final or a dead letter is known elsewhere."""
        with self._lock:
            known = self._bodies.pop(result.body, None)
            problem = result.problem
            if known is not None and problem is not None and problem.temporary:
                self._bodies[result.body] = _Body(known.sequence, time.monotonic(), result)

    def waits(self, body: bytes) -> bool:
        """Whether its result is still to come."""
        known = self._bodies.get(body)
        return known is not None and known.result is None

    def get(self, body: bytes) -> Result | None:
        """Pending, or the problem it has met; None: it is not here."""
        known = self._bodies.get(body)
        if known is None:
            return None
        return Result.pending(body) if known.result is None else known.result

    def settled(self, body: bytes) -> bool:
        """Whether there is a problem to be told."""
        known = self._bodies.get(body)
        return known is not None and known.result is not None

    def prune(self, done: int, last: int) -> None:
        """Forgets what cannot be waited for.

        Args:
            done: the broker is rid of all messages up to this one.
            last: the newest that it knows of; a later one went with a broker that was set up anew.
        """
        now = time.monotonic()
        with self._lock:
            gone = [
                body
                for body, known in self._bodies.items()
                if known.when < now - (LATE if known.result is None else KEPT)
                and (known.result is not None or not done < known.sequence <= last)
            ]
            for body in gone:
                del self._bodies[body]


__all__ = ["KEPT", "LATE", "Waiting"]

# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: each hop's bodies in the order they came, and the hops by turns.

One that sends without end delays itself: the others' next body goes after one of its own.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import count
from typing import Generic, Protocol, TypeVar


class OfHop(Protocol):
    """Something that a hop has brought."""

    @property
    def hop(self) -> bytes:
        """Which one."""


T = TypeVar("T", bound=OfHop)


class Turns(Generic[T]):
    """Bodies that wait. Not safe for threads."""

    def __init__(self) -> None:
        self._hops: OrderedDict[bytes, deque[T]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._hops)

    def append(self, entry: T) -> None:
        """Behind the others of its hop."""
        waiting = self._hops.get(entry.hop)
        if waiting is None:
            waiting = self._hops[entry.hop] = deque()
        waiting.append(entry)

    def first(self) -> T:
        """The next."""
        return next(iter(self._hops.values()))[0]

    def popleft(self) -> T:
        """The next, taken out; then it is another hop's turn."""
        hop, waiting = next(iter(self._hops.items()))
        entry = waiting.popleft()
        if waiting:
            self._hops.move_to_end(hop)
        else:
            del self._hops[hop]
        return entry


class Later(Generic[T]):
    """Bodies whose turn is not before their time. Not safe for threads."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._tie = count()

    def put(self, at: float, entry: T) -> None:
        """Not before then, by the monotonic clock."""
        heapq.heappush(self._heap, (at, next(self._tie), entry))

    def due(self, now: float) -> Iterator[T]:
        """Those whose time has come, taken out."""
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[2]

    def left(self, now: float, most: float) -> float:
        """Seconds until the next is due, or ``most`` if that is sooner."""
        return min(most, max(0.0, self._heap[0][0] - now)) if self._heap else most

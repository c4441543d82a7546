# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: each hop's bodies in the order they came, and the hops by turns.

One that sends without end delays itself: the others' next body goes after one of its own.
"""

from __future__ import annotations

from collections import OrderedDict, deque
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

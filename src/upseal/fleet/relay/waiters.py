# SPDX-License-Identifier: Apache-2.0
"""Requests that wait for results: told by the queue's writer, without asking again and again."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from upseal.fleet.http.results import Result


class Waiter:
    """One request. For the event loop's thread."""

    def __init__(self, bodies: Iterable[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self.got: dict[bytes, Result] = {}
        self.left = set(bodies)
        self.any: asyncio.Future[None] = loop.create_future()
        self.all: asyncio.Future[None] = loop.create_future()

    def tell(self, result: Result) -> None:
        """A result is there."""
        self.got[result.body] = result
        self.left.discard(result.body)
        if not self.any.done():
            self.any.set_result(None)
        if not self.left and not self.all.done():
            self.all.set_result(None)


class Waiters:
    """Of one application: `bind` to its event loop, `finished` from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._by_body: defaultdict[bytes, set[Waiter]] = defaultdict(set)

    def bind(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """To the running loop; to None at its end."""
        self._loop = loop

    def finished(self, results: Sequence[Result]) -> None:
        """Results that are on the disk."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the loop has been closed: nobody waits any more
                loop.call_soon_threadsafe(self._tell, results)

    def _tell(self, results: Sequence[Result]) -> None:
        for result in results:
            for waiter in self._by_body.get(result.body, ()):
                waiter.tell(result)

    @contextmanager
    def watch(self, bodies: Iterable[bytes]) -> Iterator[Waiter]:
        """Hears of these bodies while the block runs.

        Begun before the queue is asked what it has: then no result can come in between unheard.
        """
        waiter = Waiter(bodies, asyncio.get_running_loop())
        watched = list(waiter.left)
        for body in watched:
            self._by_body[body].add(waiter)
        try:
            yield waiter
        finally:
            for body in watched:
                others = self._by_body[body]
                others.discard(waiter)
                if not others:
                    del self._by_body[body]

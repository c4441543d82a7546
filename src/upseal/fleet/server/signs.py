# SPDX-License-Identifier: Apache-2.0
"""Signs of life of a running server, for the service manager's watchdog."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING

from upseal.fleet.notify import Service, Sign

if TYPE_CHECKING:
    from upseal.fleet.server.running import Server

_DISK = 60.0
"""Seconds that one transaction may take, on a disk or database that has much to do."""
_ROUND = 120.0
"""Seconds of one round of upkeep: it deletes what is too old as well."""


class Canary:
    """Sung by a pool's threads: while all of them hang, it is silent."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._last: Future[None] | None = None
        self._sung = 0

    def look(self) -> tuple[bool, int]:
        """As `Sign.look`; has it sung again if it was."""
        if self._last is None or self._last.done():
            try:
                self._last = self._pool.submit(self._sing)
            except RuntimeError:  # the pool has been shut down: nobody waits for it
                return False, self._sung
        return True, self._sung

    def _sing(self) -> None:
        self._sung += 1


def signs_of(server: Server, service: Service) -> list[Sign]:
    """Of the event loop, the pool that opens, the writer, and upkeep."""
    return [
        Sign("event loop", lambda: (True, service.ticks)),
        Sign("intake", Canary(server.pool).look, _DISK),
        Sign("writer", lambda: server.writer.progress, _DISK),
        Sign("upkeep", lambda: (True, server.upkeep.rounds), _ROUND),
    ]

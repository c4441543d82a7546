# SPDX-License-Identifier: Apache-2.0
"""Uploads at a relay: what comes from below goes on the shelf, and from there up (`Carrying`).

A body that is here with all its bytes is ``pending``; what became of it stands in the queue's file,
like the results of everything else. One that lacks bytes is nothing anybody may rely on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request
from starlette.routing import Route

from upseal.fleet.credentials import Hop
from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result, State
from upseal.fleet.relay.carrying import Carrying, names
from upseal.fleet.relay.meters import Meters
from upseal.fleet.relay.queue import Queue
from upseal.fleet.relay.settings import Settings
from upseal.fleet.relay.wrapping import Wraps
from upseal.fleet.uploads.shelf import Held, Shelf
from upseal.fleet.uploads.tus import Tus
from upseal.fleet.uploads.words import Ticket

_log = logging.getLogger(__name__)

_TIDY = 60.0
"""Seconds between two looks for bodies that nobody sends on."""
_AT_ONCE = 8
"""Pieces that are written, or bodies verified, at the same time."""


class Uploads:
    """All of it. Safe for threads.

    Args:
        settings: the relay's.
        shelf: for what comes.
        wraps: for what is sealed of it.
        queue: where results are kept.
        meters: count what happens.
        carrying: passes on what has come; started and stopped here.
    """

    def __init__(
        self,
        settings: Settings,
        shelf: Shelf,
        wraps: Wraps,
        queue: Queue,
        meters: Meters,
        carrying: Carrying,
    ) -> None:
        self._settings, self._shelf, self._wraps = settings, shelf, wraps
        self._queue, self._meters, self.carrying = queue, meters, carrying
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tidy, name="relay-uploads", daemon=True)
        self._pool = ThreadPoolExecutor(_AT_ONCE, "relay-shelf")
        self._who: Callable[[Request, bytes], Awaitable[Hop]] = _nobody
        self._tus = Tus(
            shelf,
            authenticate=lambda request, proven: self._who(request, proven),
            unwelcome=self._unwelcome,
            max_piece=settings.http.max_body,
            on_whole=self._whole,
            max_rate=settings.uploads.rate,
            pool=self._pool,
            known=self._known,
        )
        meters.watch_uploads(shelf.usage, lambda: self.carrying.waiting, lambda: wraps.size)

    # -- from below ----------------------------------------------------------------------

    def routes(self, authenticate: Callable[[Request, bytes], Awaitable[Hop]]) -> list[Route]:
        """Where bodies come in.

        Args:
            authenticate: says whose a request is, by the bytes that its proof covers, or raises a
                Problem.
        """
        self._who = authenticate
        return self._tus.routes()

    def _unwelcome(self, ticket: Ticket) -> Problem | None:
        problem = None
        if ticket.form == "sealed" and not self._settings.accepts_sealed:
            problem = Problem("sealed-not-accepted")
        if ticket.form == "clear" and not self._settings.accepts_clear:
            problem = Problem("clear-not-accepted")
        if problem is not None:
            self._meters.refused.labels(problem.name).inc()
        return problem

    def _known(self, hop: Hop, body: bytes) -> bool:
        """Whether a receipt is here for it: then nobody need send it again."""
        found = self._queue.lookup([body]).get(body)
        return found is not None and found.state is State.DONE

    def _whole(self, held: Held) -> None:
        """It has come, and verified. In a worker thread."""
        self._meters.uploads_in.labels(held.ticket.form).inc()
        self._meters.upload_bytes_in.inc(held.ticket.size)
        event(_log, "upload taken", bytes=held.ticket.size, **names(held.ticket))
        self.carrying.add(held)

    def lookup(self, hop: Hop, bodies: Iterable[bytes]) -> dict[bytes, Result | None]:
        """What the shelf knows of a hop's bodies: None for those that are pending. Does not block.

        To be asked before the queue: a result is there before its body leaves the shelf. One that
        is done goes before what is said here; any other is of an earlier time that it was sent.
        """
        found: dict[bytes, Result | None] = {}
        for body in bodies:
            result = self._tus.result(hop.hop_id, body)
            if result is not None:
                found[body] = None if result.state is State.PENDING else result
        return found

    # -- life ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to pass on; what was whole when the last process ended goes first."""
        whole = self._shelf.whole()
        here = {held.body_id for held in (*whole, *self._shelf.unchecked())}
        self._wraps.keep_only(here)
        for held in whole:
            self.carrying.add(held)
        self._tus.resume()
        for thread in (self._thread, *self.carrying.threads):
            thread.start()

    def stop(self) -> None:
        """Ends after the requests under way. What is not done stays on the shelf."""
        self._stop.set()
        self.carrying.stop()

    def join(self, timeout: float | None = None) -> bool:
        """Waits until the threads have ended; whether they have."""
        end = None if timeout is None else time.monotonic() + timeout
        threads = (self._thread, *self.carrying.threads)
        for thread in threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def close(self) -> None:
        """After the shelf was closed: nothing more is written."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _tidy(self) -> None:
        """Throws away what nobody sends on."""
        while not self._stop.wait(min(_TIDY, self._settings.uploads.expires / 4)):
            try:
                self._meters.uploads_expired.inc(self._shelf.expire())
            except OSError as error:
                event(_log, "expiring uploads failed", level=logging.ERROR, exc=error)


async def _nobody(request: Request, proven: bytes) -> Hop:
    raise Problem("stopping")  # nothing is asked before there are routes

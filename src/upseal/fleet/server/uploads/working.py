# SPDX-License-Identifier: Apache-2.0
"""The threads that settle bodies, and what they wait for: announcements, keys, room, better days.

They are not the threads of requests: a file of 100 GiB is opened while reports go on.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from upseal.errors import KeyUnavailable
from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.server.meters import Meters
from upseal.fleet.server.throttle import Throttled
from upseal.fleet.server.uploads.content import Stopped
from upseal.fleet.server.uploads.settling import Settled, Settling, Waits
from upseal.fleet.uploads.shelf import Gone, Held, Locked, Shelf

THREADS = 2
GRACE = 30.0
"""Seconds for which a body that fits nothing is given the benefit of the doubt."""
KEY_AGAIN = 30.0
"""Seconds between two looks for a key; a key that comes back is told at once."""
SOON, LATE = 2.0, 300.0
"""Seconds until what has failed is tried again: the first time, and at most."""
_log = logging.getLogger("upseal.server.uploads")

Which = tuple[bytes, bytes]
"""Hop and body."""


@dataclass(slots=True)
class _Job:
    held: Held
    due: float = 0.0
    """By the monotonic clock."""
    why: str = ""
    """That it waits."""
    tries: int = 0
    running: bool = False


class Working:
    """Takes bodies that are whole until each is settled.

    Args:
        shelf: where they are.
        settling: what becomes of them.
        settled: told of each, before it goes.
        meters: counts.
        unannounced: seconds that a body waits for its announcement.
    """

    def __init__(
        self,
        shelf: Shelf,
        settling: Settling,
        settled: Callable[[Held, Settled], None],
        meters: Meters,
        unannounced: float,
    ) -> None:
        self._shelf = shelf
        self._settling = settling
        self._settled = settled
        self._meters = meters
        self._unannounced = unannounced
        self._changed = threading.Condition()
        self._jobs: dict[Which, _Job] = {}
        self._ready: OrderedDict[Which, _Job] = OrderedDict()
        self._timed: list[tuple[float, Which]] = []
        """A heap of when those that are not ready are due; some of it may be out of date."""
        self._of_upload: dict[bytes, set[Which]] = {}
        self._busy: set[bytes] = set()
        """Upload ids that a thread is at work on: one body of each at a time."""
        self._stirred: set[bytes] = set()
        """Of these something was heard meanwhile."""
        self.stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __len__(self) -> int:
        """Bodies that wait."""
        return len(self._jobs)

    def start(self) -> None:
        """Begins with what is on the shelf."""
        for held in self._shelf.whole():
            self.add(held)
        for number in range(THREADS):
            name = f"upseal-uploads-{number}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Ends them. What is half done is done again at the next start."""
        self.stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # -- what others tell ------------------------------------------------------------------

    def add(self, held: Held) -> None:
        """A body that is whole."""
        which, upload = (held.hop, held.body_id), held.ticket.upload
        with self._changed:
            if which in self._jobs and self._jobs[which].held is not held:
                self._forget(which, upload)  # that one is gone
            if which not in self._jobs:
                self._jobs[which] = self._ready[which] = _Job(held)
                self._of_upload.setdefault(upload, set()).add(which)
            self._changed.notify()

    def announced(self, uploads: Iterable[bytes]) -> None:
        """Something was announced, and is in the database."""
        with self._changed:
            for upload in set(uploads):
                if upload in self._busy:
                    self._stirred.add(upload)
                for which in self._of_upload.get(upload, ()):
                    self._make_ready(which)
            self._changed.notify_all()

    def keys_changed(self) -> None:
        """A key is here that was not, or the other way round."""
        self._wake("key")

    def room(self) -> None:
        """Stored files have gone."""
        self._wake("room")

    def again(self) -> None:
        """Everything that waits is looked at now."""
        self._wake(None)

    def prune(self) -> None:
        """Forgets bodies that their senders have taken back, and times that hold no more."""
        with self._changed:
            for which, job in list(self._jobs.items()):
                if job.held.gone and not job.running:
                    self._forget(which, job.held.ticket.upload)
            if len(self._timed) > 2 * len(self._jobs):
                waiting = (w for w, job in self._jobs.items() if job.due and not job.running)
                self._timed = [(self._jobs[which].due, which) for which in waiting]
                heapq.heapify(self._timed)

    def _wake(self, why: str | None) -> None:
        with self._changed:
            for which, job in self._jobs.items():
                if job.running:  # it may have looked before this
                    self._stirred.add(job.held.ticket.upload)
                elif why is None or job.why == why:
                    self._make_ready(which)
            self._changed.notify_all()

    # -- who is next -----------------------------------------------------------------------

    def _make_ready(self, which: Which) -> None:
        job = self._jobs[which]
        if not job.running:
            job.due = 0.0
            self._ready[which] = job

    def _forget(self, which: Which, upload: bytes) -> None:
        self._jobs.pop(which, None)
        self._ready.pop(which, None)
        there = self._of_upload.get(upload)
        if there is not None:
            there.discard(which)
            if not there:
                del self._of_upload[upload]

    def _next(self) -> _Job | None:
        """The next that is due; None at the end."""
        with self._changed:
            while not self.stop.is_set():
                now = time.monotonic()
                while self._timed and self._timed[0][0] <= now:
                    due, which = heapq.heappop(self._timed)
                    job = self._jobs.get(which)
                    if job is not None and job.due == due:
                        self._make_ready(which)
                for which, job in self._ready.items():
                    if job.held.ticket.upload not in self._busy:
                        del self._ready[which]
                        self._busy.add(job.held.ticket.upload)
                        job.running = True
                        return job
                self._changed.wait(self._timed[0][0] - now if self._timed else None)
        return None

    def _put_back(self, job: _Job, *, done: bool) -> None:
        which, upload = (job.held.hop, job.held.body_id), job.held.ticket.upload
        with self._changed:
            self._busy.discard(upload)
            job.running = False
            if self._jobs.get(which) is not job:
                pass  # another body has come under this name
            elif done:
                self._forget(which, upload)
            elif upload in self._stirred:
                self._make_ready(which)
            else:
                heapq.heappush(self._timed, (job.due, which))
            self._stirred.discard(upload)
            self._changed.notify_all()

    # -- the threads -----------------------------------------------------------------------

    def _run(self) -> None:
        while (job := self._next()) is not None:
            done = False
            try:
                done = self._one(job)
            except Stopped:
                pass
            except Gone:  # its sender has taken it back
                done = True
            except Exception as error:
                self._trouble(job, error)
            finally:
                self._put_back(job, done=done)

    def _one(self, job: _Job) -> bool:
        """Whether a body is settled, and gone."""
        held = job.held
        begun = time.perf_counter()
        with self._shelf.working(held):
            try:
                age = time.time() - held.path.stat().st_mtime
            except FileNotFoundError:  # by somebody's hand: its sender is told "unknown"
                upload = held.ticket.upload.hex()
                event(_log, "bytes of an upload are gone", level=logging.ERROR, upload=upload)
                self._shelf.remove(held)
                return True
            try:
                settled = self._settling.settle(held, patient=age < GRACE, stop=self.stop)
            except Waits as waits:
                if waits.why == "announcement" and age >= self._unannounced:
                    settled = _never_announced()
                else:
                    self._wait(job, waits.why, age)
                    return False
            self._meters.upload_seconds.labels("settle").observe(time.perf_counter() - begun)
            self._log(held, settled, time.perf_counter() - begun)
            self._settled(held, settled)
            self._shelf.remove(held)
        return True

    def _wait(self, job: _Job, why: str, age: float) -> None:
        seconds = KEY_AGAIN
        if why == "announcement":  # to look once more when patience ends, and at its end
            seconds = GRACE - age if age < GRACE else self._unannounced - age
        if job.why != why:
            event(
                _log, "upload waits", upload=job.held.ticket.upload.hex(), why=why,
                bytes=job.held.ticket.size,
            )  # fmt: skip
        job.why, job.tries = why, 0
        job.due = time.monotonic() + max(0.05, seconds)

    def _trouble(self, job: _Job, error: Exception) -> None:
        """A full disk, a database that is away, a hop with too many new sessions: later, then."""
        seconds = min(LATE, SOON * 2 ** min(job.tries, 10))
        if isinstance(error, Throttled):
            self._meters.throttled.inc()
            seconds = error.seconds
        elif isinstance(error, Locked):
            seconds = 0.2
        else:
            self._meters.uploads.labels(job.held.ticket.form, "trouble").inc()
            expected = isinstance(error, OSError | SQLAlchemyError | KeyUnavailable)
            event(
                _log, "upload not stored", level=logging.WARNING if expected else logging.ERROR,
                exc=error, why=error, upload=job.held.ticket.upload.hex(), again_in=seconds,
            )  # fmt: skip
        job.why, job.tries = "trouble", job.tries + 1
        job.due = time.monotonic() + seconds

    def _log(self, held: Held, settled: Settled, seconds: float) -> None:
        form, size = held.ticket.form, held.ticket.size
        self._meters.uploads.labels(form, settled.what).inc()
        if settled.stored:
            self._meters.upload_bytes.labels(form).inc(size)
        agents: Sequence[str] = [row.agent.hex() for row in settled.stored]
        event(
            _log, "upload settled", upload=held.ticket.upload.hex(), result=settled.what,
            agents=agents, form=form, bytes=size, ms=round(seconds * 1000, 1),
        )  # fmt: skip


def _never_announced() -> Settled:
    problem = Problem("malformed", "nobody has announced these bytes")
    return Settled([], problem, "unannounced", [])


__all__ = ["GRACE", "KEY_AGAIN", "LATE", "SOON", "Working"]

# SPDX-License-Identifier: Apache-2.0
"""Which whole bodies go up next, and which the parent has and has not answered for."""

from __future__ import annotations

import heapq
import threading
import time
from collections import OrderedDict
from itertools import count

from upseal.fleet.http.client import Backoff
from upseal.fleet.http.problems import Problem
from upseal.fleet.relay.turns import Turns
from upseal.fleet.relay.wrapping import Wrapped


class Job:
    """A whole body that has to go up. Changed by whoever works on it, one at a time."""

    __slots__ = ("attempts", "body", "doubt", "hop", "wrapped")

    def __init__(self, body: bytes, hop: bytes) -> None:
        self.body, self.hop = body, hop
        self.attempts = 0
        self.wrapped: Wrapped | None = None
        """What goes up in its place, if this relay has sealed it."""
        self.doubt: Problem | None = None
        """The parent says so of what was sealed here: is that still what it was?"""


class Jobs:
    """Each body is one job: due, being worked on, or pending at the parent. Safe for threads.

    Args:
        retry: seconds until the first second try.
        most: and at most.
    """

    def __init__(self, retry: float, most: float) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._all: dict[bytes, Job] = {}
        self._later: list[tuple[float, int, Job]] = []
        self._due: Turns[Job] = Turns()
        self._tie = count()
        self._pending: OrderedDict[bytes, Job] = OrderedDict()  # by what the parent calls them
        self._backoff = Backoff(retry, most)
        self._gate = 0.0
        self._ended = False

    def __len__(self) -> int:
        return len(self._all)

    def add(self, body: bytes, hop: bytes) -> None:
        """A body is whole; nothing, if that is known."""
        with self._changed:
            if body not in self._all:
                job = self._all[body] = Job(body, hop)
                self._push(job, 0.0)

    def next(self) -> Job | None:
        """A job that is due, when there is one: of each hop in order, the hops by turns.

        None at the end.
        """
        with self._changed:
            while not self._ended:
                now = self._ripen()
                if self._due and self._gate <= now:
                    return self._due.popleft()
                if self._due:
                    self._changed.wait(self._gate - now)
                else:
                    self._changed.wait(self._later[0][0] - now if self._later else None)
        return None

    def others(self) -> bool:
        """Whether one is due that no worker has."""
        with self._changed:
            self._ripen()
            return bool(self._due)

    def _ripen(self) -> float:
        """Those whose time has come are due; the time."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._due.append(heapq.heappop(self._later)[2])
        return now

    def again(self, job: Job, delay: float, *, counts: bool = True) -> None:
        """After ``delay`` seconds, which double with each time that ``counts``, up to ``most``."""
        with self._changed:
            grown = min(delay * 2 ** min(job.attempts, 30), self._most)
            job.attempts += counts
            self._push(job, max(delay, grown))

    def forget(self, job: Job) -> None:
        """It is done."""
        with self._changed:
            self._all.pop(job.body, None)

    def end(self) -> None:
        """Tells whoever waits for the next one that there is none."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _push(self, job: Job, delay: float) -> None:
        heapq.heappush(self._later, (time.monotonic() + delay, next(self._tie), job))
        self._changed.notify()

    # -- the parent as a whole -------------------------------------------------------------

    def shut(self, asked: float | None) -> None:
        """Nothing more goes up for a while: it is the parent, and no single body."""
        with self._changed:
            now = time.monotonic()
            if self._gate <= now:  # workers that fail together count as one failure
                self._gate = now + self._backoff.next(asked)

    def arrived(self) -> None:
        """The parent has taken something."""
        with self._changed:
            self._backoff.reset()

    # -- what it has not answered for ------------------------------------------------------

    def pending(self, sent: bytes, job: Job) -> None:
        """The parent has it, by that id."""
        with self._changed:
            self._pending[sent] = job

    def ask(self, most: int) -> list[bytes]:
        """Ids that are pending; those first that were not asked about for the longest time."""
        with self._changed:
            chosen = list(self._pending)[:most]
            for sent in chosen:
                self._pending.move_to_end(sent)
            return chosen

    def answered(self, sent: bytes) -> Job | None:
        """It is pending no more; None if it was not."""
        with self._changed:
            return self._pending.pop(sent, None)

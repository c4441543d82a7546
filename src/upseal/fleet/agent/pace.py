# SPDX-License-Identifier: Apache-2.0
"""How long to stay away from a parent that fails; and what an agent says that withholds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from upseal.fleet.agent.deliveries import Deliveries
from upseal.fleet.agent.settings import Send
from upseal.fleet.agent.tally import Tally
from upseal.fleet.http.client import Backoff, Unreachable
from upseal.fleet.http.logs import event
from upseal.fleet.policy import Decision, Level, Withhold

_CHANGED = 1.0
"""Seconds between two beacons, however often the reason changes."""
_log = logging.getLogger("upseal.agent")


class Pace:
    """One back-off for all that goes to the parent. Safe to share between threads."""

    def __init__(self, send: Send, tally: Tally) -> None:
        self._backoff = Backoff(send.retry, send.retry_most)
        self._tally = tally
        self._lock = threading.Lock()
        self.until = 0.0
        """When the parent may be spoken to again."""
        self.trouble: str | None = None
        """What is the matter, in a few words."""

    def hold(
        self, why: str, error: Exception | None = None, retry_after: float | None = None
    ) -> None:
        """Something has failed: stay away for a while."""
        with self._lock:
            now = time.monotonic()
            if now < self.until and retry_after is None:
                return  # several requests have failed at once: that is one failure
            pause = self._backoff.next(retry_after)
            self.until = max(self.until, now + pause)
            first, self.trouble = self.trouble != why, why
        self._tally.add("held")
        event(
            _log,
            "waiting",
            level=logging.WARNING if first else logging.DEBUG,
            why=why,
            error=error,
            seconds=round(pause, 2),
        )

    def good(self) -> None:
        """Something has gone well."""
        with self._lock:
            self._backoff.reset()
            self.trouble = None

    def at_once(self) -> None:
        """Much may have changed: no need to wait for the rest of the time."""
        with self._lock:
            self.until = 0.0


class Beacons:
    """Tells that reports are withheld and why; in clear, and not a word of the reports.

    Sent when it begins, when its reason changes, once when it is over, and every now and then.
    """

    def __init__(self, deliveries: Deliveries, pace: Pace, send: Send) -> None:
        self._deliveries = deliveries
        self._pace = pace
        self._interval = send.beacon
        self._due = False
        self._busy = False
        self._now: tuple[Level, Decision] | None = None
        self.at = 0.0
        """When the next one may go."""

    def decided(self, level: Level, decision: Decision, before: Decision | None) -> None:
        """The decision has changed."""
        self._now = (level, decision)
        self._due = isinstance(decision, Withhold) or isinstance(before, Withhold)
        self.at = min(self.at, time.monotonic() + _CHANGED)

    def take(self) -> bool:
        """Whether one is to be sent now; `send` is then expected."""
        if not self._due or self._busy or time.monotonic() < self.at:
            return False
        self._busy = True
        return True

    def send(self, done: Callable[[], None]) -> None:
        """Sends one."""
        try:
            now = self._now
            if now is None:
                return
            level, decision = now
            response = self._deliveries.post_beacon(level, decision.reason)
            self.at = time.monotonic() + self._interval
            if self._now is now:  # else what has become of it meanwhile is to be told as well
                self._due = isinstance(decision, Withhold)
            problem = response.problem()
            if problem is not None:
                self._pace.hold(problem.name, problem, problem.retry_after)
        except Unreachable as error:
            self._pace.hold("unreachable", error)
        finally:
            self._busy = False
            done()

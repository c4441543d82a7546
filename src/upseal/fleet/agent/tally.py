# SPDX-License-Identifier: Apache-2.0
"""What an agent counts, and what it wants somebody to look at."""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import Any

from upseal.fleet.agent.rows import now_ms
from upseal.fleet.http.logs import event

_KINDS = 64
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
_log = logging.getLogger("upseal.agent")


class Tally:
    """Numbers that only go up, since the process began. Safe to share between threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._times = [0] * (len(_SECONDS) + 1)
        self._time = 0.0

    def took(self, seconds: float) -> None:
        """So long it was from the first sending of a unit to its receipt."""
        with self._lock:
            self._times[bisect_left(_SECONDS, seconds)] += 1
            self._time += seconds

    def times(self) -> tuple[list[tuple[str, float]], float]:
        """How many took at most so long, for each bound in turn; and the sum of all."""
        with self._lock:
            counts, total = list(accumulate(self._times)), self._time
        bounds = [*map(str, _SECONDS), "+Inf"]
        return list(zip(bounds, map(float, counts), strict=True)), total

    def add(self, name: str, number: int = 1) -> None:
        """So many more."""
        with self._lock:
            self._counts[name] += number

    def get(self, name: str) -> int:
        """How many."""
        with self._lock:
            return self._counts[name]

    def all(self) -> dict[str, int]:
        """All that were ever counted, by name."""
        with self._lock:
            return dict(sorted(self._counts.items()))


class Alarms:
    """Signs of lies, forgeries and damage: each kind once, with how often. Safe between threads."""

    def __init__(self) -> None:
        self._alarms: dict[tuple[str, str], dict[str, Any]] = {}
        self._lock = threading.Lock()

    def add(self, kind: str, what: str) -> None:
        """It has happened, or has happened again."""
        now = now_ms()
        with self._lock:
            alarm = self._alarms.get((kind, what))
            if alarm is None:
                if len(self._alarms) >= _KINDS:
                    del self._alarms[next(iter(self._alarms))]
                alarm = {"kind": kind, "what": what, "count": 0, "first": now, "last": now}
                self._alarms[kind, what] = alarm
            alarm["count"] += 1
            alarm["last"] = now
            count = alarm["count"]
        if count & (count - 1) == 0:  # the 1st, 2nd, 4th...: whoever lies must not fill the log
            event(_log, "alarm", level=logging.ERROR, kind=kind, what=what, count=count)

    def all(self) -> list[dict[str, Any]]:
        """As they stand."""
        with self._lock:
            return [dict(alarm) for alarm in self._alarms.values()]

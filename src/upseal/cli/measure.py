# SPDX-License-Identifier: Apache-2.0
"""How fast something is: medians of many short rounds, and what machine it was measured on.

The clock of a shared or mobile machine drifts, within seconds and by half. So nothing is timed to
the end before the next thing begins: all are timed in turn, a little each, round after round.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from upseal.cli import stopping

ROUNDS = 15
"""Aimed at. More where there is time, and never fewer than `LEAST`."""
LEAST = 3
_SPIN = 20_000


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: both directions of one thing."""

    what: str
    cipher: str
    size: int
    """Bytes of one report or upload."""
    seal: float | None
    open: float | None
    unit: str
    """Of ``seal`` and ``open``: ``reports/s``, ``GB/s`` and so on."""
    overhead: float | None = None
    """Bytes that sealing adds to one."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(slots=True)
class Probe:
    """One thing to time. A call of ``work`` does ``amount`` of it."""

    work: Callable[[], object]
    amount: float = 1.0
    clock: Callable[[], float] = time.process_time
    """CPU time, which others on the machine disturb least; wall clock where threads share it."""
    samples: list[float] = field(default_factory=list)
    """Seconds for an amount of 1, one for each round."""
    _once: float = 1e-6

    def warm(self) -> None:
        """One call that does not count, and one to see how long it takes."""
        self.work()
        start = time.perf_counter()
        self.work()
        self._once = time.perf_counter() - start

    def sample(self, seconds: float) -> None:
        """One round."""
        calls = max(1, int(seconds / max(self._once, 1e-7)))
        wall, start = time.perf_counter(), self.clock()
        for _ in range(calls):
            self.work()
        spent = self.clock() - start
        self._once = (time.perf_counter() - wall) / calls
        self.samples.append(max(spent, 1e-9) / calls / self.amount)

    @property
    def seconds(self) -> float:
        """For an amount of 1: the median of the rounds."""
        return statistics.median(self.samples)

    @property
    def rate(self) -> float:
        """How much a second."""
        return 1 / self.seconds

    @property
    def spread(self) -> float:
        """From the tenth to the ninetieth hundredth of the rounds, over the median."""
        ordered = sorted(self.samples)
        edge = len(ordered) // 10
        return (ordered[-1 - edge] - ordered[edge]) / self.seconds


def calibration() -> Probe:
    """A loop of Python that does nothing: whatever it varies by is the machine's."""
    return Probe(lambda: sum(range(_SPIN)), _SPIN)


def interleave(
    probes: Sequence[Probe],
    until: float,
    show: Callable[[float], object] = lambda _: None,
    rounds: int = ROUNDS,
) -> int:
    """Times all probes in turn until ``time.perf_counter()`` is ``until``; how many rounds.

    ``show`` is told the share that is done.
    """
    begin = time.perf_counter()
    for probe in probes:
        stopping.check()
        probe.warm()
    now = time.perf_counter()
    share = max(until - now, 0) / len(probes) / rounds
    done, took = 0, 0.0
    while done < LEAST or now + took < until:
        start = now
        for probe in probes:
            stopping.check()
            probe.sample(share)
            show(min(1.0, (time.perf_counter() - begin) / max(until - begin, 1e-9)))
        now = time.perf_counter()
        done, took = done + 1, now - start
    return done


def per_second(work: Callable[[], object], amount: float, seconds: float) -> float:
    """How much of ``amount`` a second of wall clock, timed alone."""
    probe = Probe(work, amount, time.perf_counter)
    interleave([probe], time.perf_counter() + seconds, rounds=LEAST)
    return probe.rate


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from upseal.engine.types import EngineError

    try:
        from upseal.engine.native import cpu_has_aes

        aes: bool | None = cpu_has_aes()
    except (ImportError, EngineError):
        aes = None
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:
        usable = os.cpu_count() or 1
    return {
        "cpu": _cpu_model(),
        "cpu_has_aes": aes,
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "os": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def backends() -> list[dict[str, Any]]:
    """The native engine's backends built in, best first; none if it was not built."""
    try:
        from upseal.engine.native import backends as built_in
    except ImportError:
        return []
    return [{"name": n, "version": v, "works": works} for n, v, works in built_in()]


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

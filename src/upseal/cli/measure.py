# SPDX-License-Identifier: Apache-2.0
"""How fast something is: medians of repeats, and what machine it was measured on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

REPEATS = 5


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
    """Of ``seal`` and ``open``: ``reports/s``, ``GB/s`` or ``sessions/s``."""
    overhead: float | None = None
    """Bytes that sealing adds to one."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def per_second(work: Callable[[], object], amount: float, seconds: float) -> float:
    """How much of ``amount`` a second: the median of `REPEATS` that take ``seconds`` together.

    Each repeat calls ``work``, which does ``amount``, as often as its share of the time allows, and
    at least once. One call before that warms up and is not counted.
    """
    work()
    start = time.perf_counter()
    work()
    once = max(time.perf_counter() - start, 1e-9)
    calls = max(1, int(seconds / REPEATS / once))
    rates = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        rates.append(amount * calls / (time.perf_counter() - start))
    return statistics.median(rates)


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

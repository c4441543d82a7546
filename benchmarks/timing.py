# SPDX-License-Identifier: Apache-2.0
"""Timing by turns: what is compared runs alternately, in many short rounds of one process.

A virtual machine's clock and its neighbours change between one second and the next by more than
what is to be found out. Within a round of a few milliseconds they mostly do not: so ratios are
taken round by round, and their median is the result.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from random import Random
from statistics import median
from time import perf_counter, perf_counter_ns

SLICE = 0.002
"""Seconds that each contestant runs in a round, if one call does not already take longer."""


@dataclass
class Work:
    """Something to time."""

    call: Callable[[], object]
    each: int = 1
    """Reports (or bytes) that one call deals with."""
    note: str = ""
    """What it leaves out, or pays once for many."""


@dataclass
class Times:
    """What one contestant needed, in nanoseconds for each report (or byte)."""

    each: int
    note: str
    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Half of the rounds were faster."""
        return median(self.rounds)

    @property
    def best(self) -> float:
        """The fastest round."""
        return min(self.rounds)


@contextmanager
def quiet():
    """No garbage collection in between: it would fall on whoever is next."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def alternate(
    works: dict[str, Work], rounds: int, budget: float, least: int = 5
) -> dict[str, Times]:
    """Runs all of them by turns.

    Args:
        works: what to run, by name.
        rounds: how often, at most.
        budget: seconds in all, about: slow contestants get fewer rounds.
        least: rounds whatever the budget says.
    """
    times = {name: Times(work.each, work.note) for name, work in works.items()}
    repeats = {name: _repeats(work.call) for name, work in works.items()}
    order, shuffle = list(works), Random(1).shuffle
    with quiet():
        end = perf_counter() + budget
        for number in range(rounds):
            for name in order:
                work, count = works[name], repeats[name]
                if count > 1:
                    work.call()  # finds what the one before it left in caches and heap: not timed
                taken = _time(work.call, count)
                times[name].rounds.append(taken / (count * work.each))
            shuffle(order)  # nobody always comes after the same neighbour
            if number + 1 >= least and perf_counter() > end:
                break
    return times


def ratio(slower: Times, faster: Times) -> float:
    """How many times faster the second is: the median of the rounds' ratios."""
    return median(a / b for a, b in zip(slower.rounds, faster.rounds, strict=True))


def _repeats(call: Callable[[], object]) -> int:
    """Calls in a round, found by trying; the trials are its warm-up as well."""
    count = 1
    while True:
        taken = _time(call, count) / 1e9
        if taken >= SLICE / 4 or count >= 1 << 20:
            break
        count *= 4
    return max(1, round(count * SLICE / taken))


def _time(call: Callable[[], object], count: int) -> int:
    start = perf_counter_ns()
    for _ in repeat(None, count):
        call()
    return perf_counter_ns() - start

# SPDX-License-Identifier: Apache-2.0
"""What a target is, and how one input goes through it."""

import gc
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

TRACED = 16
"""One input in so many is run with its memory measured: which ones follows from their bytes, so
that a finding repeats."""


class Finding(AssertionError):  # noqa: N818 - what it is
    """Something that must not be."""


@dataclass(frozen=True)
class Target:
    """One parser or opener with its oracle.

    Args:
        name: as on the command line.
        run: takes an input; anything it raises is a finding.
        seeds: valid inputs, by the code that makes them: `make_seeds.py` writes them down.
        mutate: changes an input so that it still gets behind signatures and tags; takes the input,
            a `random.Random` and a function that mutates bytes without knowing what they are.
        dictionary: name of a file in ``dictionaries``.
        longest: bytes of an input.
        memory: bytes that a run may have allocated at once, whatever the input is.
        memory_per_byte: and for each byte of it.
        close: ends what the target has started.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    mutate: Callable | None = None
    dictionary: str | None = None
    longest: int = 1 << 14
    memory: int = 4 << 20
    memory_per_byte: int = 100
    close: Callable[[], None] = field(default=lambda: None)

    def __call__(self, data, *, traced=None):
        """Runs one input; with its memory measured if ``traced``, or by its bytes."""
        if traced is None:
            traced = zlib.crc32(data) % TRACED == 0
        if traced and not tracemalloc.is_tracing():
            self._run_traced(data)
        else:
            self.run(data)

    def _run_traced(self, data):
        tracemalloc.start()
        try:
            self.run(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        most = self.memory + self.memory_per_byte * len(data)
        if peak > most:
            gc.collect()
            raise Finding(f"{peak} bytes were allocated for an input of {len(data)}")


def check(holds, what):
    """An oracle's complaint, if it does not hold."""
    if not holds:
        raise Finding(what)


def same(*found):
    """All of these are one, or it is a finding."""
    for other in found[1:]:
        check(other == found[0], f"{_short(found[0])} and {_short(other)}")
    return found[0]


def attempt(call, *allowed):
    """What the call gives and None, or None and the error, if that is one of those documented."""
    try:
        return call(), None
    except allowed as error:
        return None, error


def _short(value):
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}... ({len(text)} characters)"

# SPDX-License-Identifier: Apache-2.0
"""Memory for the C core: kept where it can be, and not cleared twice.

On many machines a page fault costs more than sealing the page.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

from upseal.engine._native import ffi, lib
from upseal.engine.types import EngineError

_MANY = 64 * 1024
"""From here on clearing an output that is written anyway is felt."""
_LARGE = 32 * 1024 * 1024
"""From here on the C library takes memory from the system and gives it back each time."""


class Workspace:
    """What one call works with. The buffers are kept: new ones would cost page faults each time."""

    __slots__ = ("alive", "joined", "out", "work")

    def __init__(self, backend: int) -> None:
        work = lib.upseal_work_new(backend)
        if work == ffi.NULL:
            raise EngineError("no memory for a work space of the C core")
        self.alive = alive = [True]
        """Empty when the C core has it back. What ends together, as garbage or with the
        interpreter, ends in any order: a key may look for it after that."""

        def end(work: Any, free: Any = lib.upseal_work_free) -> None:
            alive.clear()
            free(work)

        self.work = ffi.gc(work, end)
        self.joined = BytesIO()
        self.out = b""

    def room(self, size: int) -> bytes:
        """Memory for one group's results, to be copied out of before the next group."""
        if len(self.out) < size:
            self.out = bytes(size)
        return self.out


def new_bytes(size: int) -> bytes:
    """Bytes to be written by C before anybody sees them, and not cleared first if they are many."""
    if size < _MANY:
        return bytes(size)
    out = _uncleared_bytes()(None, size)
    if size >= _LARGE:
        lib.upseal_large_pages(ffi.from_buffer("uint8_t[]", out), size)
    return out


@cache
def _uncleared_bytes() -> Callable[[None, int], bytes]:
    """PyBytes_FromStringAndSize, which with NULL leaves it to its caller to fill the bytes."""
    import ctypes  # slow to import: only for those who seal or open much

    make = ctypes.pythonapi.PyBytes_FromStringAndSize
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t)
    return make


def overlap(out: bytearray, data: memoryview) -> bool:
    """Whether they share memory: C must not write over what it still reads."""
    with ffi.from_buffer("uint8_t[]", out) as o, ffi.from_buffer("uint8_t[]", data) as d:
        at, read = (int(ffi.cast("uintptr_t", where)) for where in (o, d))
        return at < read + len(d) and read < at + len(o)


class Room:
    """See `upseal.engine.types.Room`: the object itself is written to, so nothing is copied."""

    __slots__ = ("_made", "view")

    def __init__(self, size: int) -> None:
        self._made = new_bytes(size)
        self.view = memoryview(ffi.buffer(ffi.from_buffer("uint8_t[]", self._made)))

    def take(self, size: int) -> bytes:
        """See there."""
        self.view.release()
        return self._made if size == len(self._made) else self._made[:size]


def new_offsets(count: int) -> array[int]:
    """Zeros, for the offsets of ``count`` records."""
    return array("q", [0]) * (count + 1)

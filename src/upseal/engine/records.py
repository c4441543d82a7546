# SPDX-License-Identifier: Apache-2.0
"""Reports on their way into an engine and out of it: packed, in Arrow's layout.

values    report 0 | report 1 | ...                 any contiguous buffer
offsets   0, end of report 0, end of report 1, ...  int64, one more than there are reports
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeAlias

from upseal.engine.buffers import Buffer, view
from upseal.engine.sizes import RECORD_MAX, TAG


class Packed(NamedTuple):
    """Reports behind one another in one buffer."""

    values: memoryview
    """Format ``B``, contiguous."""
    offsets: memoryview
    """Format ``q``, contiguous: report i is bytes ``offsets[i] - offsets[0]`` to
    ``offsets[i + 1] - offsets[0]`` of ``values``."""

    @property
    def total(self) -> int:
        """How many reports."""
        return len(self.offsets) - 1

    def groups(self, size: int, each: int = 0) -> Iterator[tuple[int, int]]:
        """All of them at once: nothing needs joining."""
        yield 0, self.total

    def read(self, start: int, end: int, into: BytesIO) -> memoryview:
        """Reports ``start`` to ``end``, where they lie."""
        base = self.offsets[0]
        return self.values[self.offsets[start] - base : self.offsets[end] - base]


_PLAIN = {bytes, bytearray}  # of these len() is the size


class Listed:
    """Reports as separate objects, joined group by group: never all of them at once."""

    __slots__ = ("offsets", "reports", "total")

    def __init__(self, reports: Sequence[Buffer]) -> None:
        """Takes bytes and other buffers.

        Raises:
            TypeError: one of them is none.
        """
        if isinstance(reports, (bytes, bytearray, memoryview, str)):
            raise TypeError("expected a sequence of reports, not a single one")
        # Ours alone: a list may change meanwhile, and an iterator gives each report only once.
        reports = list(reports)
        if not _PLAIN.issuperset(map(type, reports)):
            reports = [view(report, "a report") for report in reports]
        self.reports = reports
        self.total = len(reports)
        # struct writes a row of numbers in half of the time that array takes to read it.
        offsets = accumulate(map(len, reports), initial=0)
        self.offsets = memoryview(struct.pack(f"{self.total + 1}q", *offsets)).cast("q")

    def groups(self, size: int, each: int = 0) -> Iterator[tuple[int, int]]:
        """Neighbours of about ``size`` bytes together, each counted for ``each`` at least."""
        start, most = 0, max(1, size // max(each, 64))
        while start < self.total:
            high = min(self.total, start + most)
            end = bisect_right(self.offsets, self.offsets[start] + size, start + 1, high + 1) - 1
            end = max(end, start + 1)
            yield start, end
            start = end

    def read(self, start: int, end: int, into: BytesIO) -> memoryview:
        """Reports ``start`` to ``end`` behind one another, in the buffer given.

        The caller keeps that: new memory each time would cost more than the sealing.
        """
        size = self.offsets[end] - self.offsets[start]
        reports = self.reports[start:end]
        if len(reports) == 1 and type(reports[0]) is bytes:
            return memoryview(reports[0])  # alone, and nobody can change it meanwhile
        into.seek(0)
        into.writelines(reports)
        if into.tell() != size:
            raise ValueError("a report changed its size while it was read")
        return into.getbuffer()[:size]


Reports: TypeAlias = "Packed | Listed"


def pack(reports: Sequence[Buffer]) -> Packed:
    """Copies separate reports into one buffer."""
    listed = Listed(reports)
    return Packed(memoryview(b"".join(listed.reports)), listed.offsets)


def packed(values: Buffer, offsets: Buffer) -> Packed:
    """Checks what a caller hands over in packed form; 32-bit offsets are widened.

    Raises:
        TypeError: offsets are not integers of 32 or 64 bits.
        ValueError: they fall, or leave ``values``, or there is not even one.
    """
    table = memoryview(offsets)
    if table.ndim != 1 or not table.c_contiguous or table.itemsize not in (4, 8):
        raise TypeError("offsets must be a flat buffer of 32- or 64-bit integers")
    if table.format not in ("i", "l", "q", "=i", "=q", "<i", "<q"):
        raise TypeError(f"offsets must be signed integers, not of format {table.format!r}")
    if len(table) == 0:
        raise ValueError("offsets must have one entry more than there are reports")
    # A copy in both cases: C checks offsets and then uses them, without the GIL, and nobody may
    # change them in between.
    small = table.itemsize == 4
    table = memoryview(array("q", table.cast("B").cast("i") if small else table.tobytes()))
    flat = view(values, "values")
    if not 0 <= table[0] <= table[-1] <= len(flat):
        raise ValueError("offsets leave the values")
    return Packed(flat[table[0] :], table)


def check_offsets(records: Packed) -> None:
    """For whoever uses offsets without the C core, which checks them itself.

    Raises:
        ValueError: they fall.
    """
    if any(a > b for a, b in pairwise(records.offsets)):
        raise ValueError("offsets fall")


def split(records: Packed) -> list[bytes]:
    """Each report as bytes of its own."""
    values, ends = records.values, records.offsets.tolist()
    if ends[0]:
        ends = [end - ends[0] for end in ends]
    whole = values.obj
    # Slicing bytes is the fastest, but all of them is no copy: of a work space, that would change.
    if type(whole) is bytes and len(whole) == len(values) and len(ends) > 2:
        return [whole[a:b] for a, b in pairwise(ends)]
    return [bytes(values[a:b]) for a, b in pairwise(ends)]


def sealed_ends(table: memoryview, padded: bool) -> memoryview | None:
    """Where each sealed record of a batch ends, from the table of their lengths (u32 each).

    Returns:
        int64, one more than there are records, from 0; None if one is of no possible length.
    """
    lengths = struct.unpack(f">{len(table) // 4}I", table)
    if min(lengths) < TAG + padded or max(lengths) > RECORD_MAX + TAG:
        return None
    return memoryview(array("q", accumulate(lengths, initial=0)))

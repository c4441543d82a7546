# SPDX-License-Identifier: Apache-2.0
"""Reports on their way into an engine and out of it: packed, in Arrow's layout.

values    report 0 | report 1 | ...                 any contiguous buffer
offsets   0, end of report 0, end of report 1, ...  int64, one more than there are reports
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from upseal.engine.types import Buffer

RECORD_MAX = 1 << 24
"""Longest report, in bytes, with its padding."""


class Packed(NamedTuple):
    """Reports behind one another in one buffer."""

    values: memoryview
    """Format ``B``, contiguous."""
    offsets: memoryview
    """Format ``q``, contiguous: report i is ``values[offsets[i]:offsets[i + 1]]``."""

    @property
    def total(self) -> int:
        """How many reports."""
        return len(self.offsets) - 1


def view(data: Buffer, what: str) -> memoryview:
    """``data`` as contiguous bytes, without copying it."""
    try:
        flat = memoryview(data)
        return (
            flat if flat.format == "B" and flat.ndim == 1 and flat.c_contiguous else flat.cast("B")
        )
    except TypeError as error:
        if isinstance(data, memoryview):
            raise ValueError(f"{what} must be contiguous") from error
        raise TypeError(
            f"{what} must be bytes or another buffer, not {type(data).__name__}"
        ) from None


def as_bytes(data: Buffer, what: str) -> bytes:
    """``data`` itself if it is bytes, else a copy."""
    return data if type(data) is bytes else bytes(view(data, what))


def pack(reports: Sequence[Buffer]) -> Packed:
    """Copies separate reports into one buffer."""
    if isinstance(reports, (bytes, bytearray, memoryview, str)):
        raise TypeError("expected a sequence of reports, not a single one")
    plain = [r if type(r) is bytes else view(r, "a report") for r in reports]
    values = b"".join(plain)
    offsets = array("q", bytes(8 * (len(plain) + 1)))
    end = 0
    for i, report in enumerate(plain, 1):
        end += len(report)
        offsets[i] = end
    if end != len(values):
        raise ValueError("a report changed its size while it was read")
    return Packed(memoryview(values), memoryview(offsets))


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
    if table.itemsize == 4:
        table = memoryview(array("q", table.cast("B").cast("i")))
    return Packed(view(values, "values"), table.cast("B").cast("q"))


def split(records: Packed) -> list[bytes]:
    """Each report as bytes of its own."""
    values, offsets = records
    whole = (
        values.obj if isinstance(values.obj, bytes) and len(values.obj) == len(values) else values
    )
    ends = offsets.tolist()
    if isinstance(whole, bytes):
        return [whole[a:b] for a, b in pairwise(ends)]
    return [bytes(whole[a:b]) for a, b in pairwise(ends)]

# SPDX-License-Identifier: Apache-2.0
"""The reports of an opened batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from upseal.engine.records import Packed, split


class Batch(Sequence[bytes]):
    """Reports in the order they were sealed in.

    They stay in the one buffer they were opened into, until asked for: ``batch[i]`` copies one out,
    iterating copies them one after another, ``values`` and ``offsets`` copy nothing.
    """

    __slots__ = ("_records",)

    def __init__(self, records: Packed) -> None:
        self._records = records

    @property
    def values(self) -> memoryview:
        """All reports behind one another, format ``B``."""
        return self._records.values

    @property
    def offsets(self) -> memoryview:
        """Where each begins, and the end: int64 (``q``), one more than there are reports."""
        return self._records.offsets

    def __len__(self) -> int:
        return self._records.total

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        start, end = self.offsets[place], self.offsets[place + 1]
        return bytes(self.values[start:end])

    def __iter__(self) -> Iterator[bytes]:
        return iter(split(self._records))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Batch):
            return self._records == other._records
        if isinstance(other, Sequence) and not isinstance(other, (str, bytes)):
            return len(self) == len(other) and list(self) == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Batch of {len(self)} reports, {len(self.values)} bytes>"

# SPDX-License-Identifier: Apache-2.0
"""What follows the header (docs/format.md, "Bodies").

01 envelope  N 24 | ciphertext | tag 16
02 batch     N 24 | u32 count | count x u32 sealed length | records
03 upload    salt 24 | commitment 32 | chunks
81, 82       as 01 and 02, padded
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, Self, TypeAlias

from upseal.engine.records import sealed_ends
from upseal.engine.sizes import NONCE, RECORD_MAX, TAG
from upseal.errors import OpenError, Truncated, UnsupportedFormat

BATCH_MAX = 1 << 20
BATCH_BYTES_MAX = 1 << 30
UPLOAD_FRONT = 24 + 32


ReadTable: TypeAlias = Callable[[memoryview, bool], memoryview | None]


class Kind(IntEnum):
    """The byte after the header."""

    ENVELOPE = 0x01
    BATCH = 0x02
    UPLOAD = 0x03
    PADDED_ENVELOPE = 0x81
    PADDED_BATCH = 0x82

    padded: bool
    """Whether records are padded."""
    label: str
    """Envelope, batch or upload."""
    mark: bytes
    """The byte itself."""

    def __new__(cls, value: int) -> Self:
        """Attributes, and no properties: every envelope asks for them."""
        kind = int.__new__(cls, value)
        kind._value_ = value
        kind.padded = value >= 0x80
        kind.label = ("envelope", "batch", "upload")[(value & 0x7F) - 1]
        kind.mark = bytes([value])
        return kind


_KINDS = {int(kind): kind for kind in Kind}


class Batch(NamedTuple):
    """The parts of a batch, still sealed."""

    nonce: bytes
    total: int
    ends: memoryview
    """Where each sealed record ends in ``records``: int64, one more than there are, from 0."""
    records: memoryview


def read_kind(data: bytes | memoryview, at: int, expected: str | None = None) -> Kind:
    """The kind byte at ``at``.

    Raises:
        UnsupportedFormat, Truncated, OpenError: unknown, missing, or not what was ``expected``.
    """
    if len(data) <= at:
        raise Truncated("ends before the kind", at)
    kind = _KINDS.get(data[at])
    if kind is None:
        raise UnsupportedFormat(f"kind {data[at]:#04x} is not known", at)
    if expected is not None and kind.label != expected:
        raise OpenError(f"this is {kind.label}, not {expected}", at)
    return kind


def check_envelope(size: int, at: int, padded: bool) -> None:
    """Checks the length of an envelope whose kind byte stands at ``at``."""
    body = size - at - 1
    if body < NONCE + TAG + padded:
        raise Truncated("ends inside the envelope", size)
    if body > NONCE + RECORD_MAX + TAG:
        raise OpenError("the envelope is longer than 16 MiB", at)


def parse_batch(
    data: memoryview,
    at: int,
    padded: bool,
    read: ReadTable = sealed_ends,
    size: int | None = None,
) -> Batch:
    """Reads a batch whose kind byte stands at ``at``; every length is checked against the rest.

    ``read`` reads the table of lengths: an engine may be quicker at it. Where ``data`` is cut off
    behind the table, ``size`` is how long it was.
    """
    size = len(data) if size is None else size
    table_at = at + 1 + NONCE + 4
    if size < table_at:
        raise Truncated("ends inside the batch's front", size)
    count = int.from_bytes(data[table_at - 4 : table_at], "big")
    if not 1 <= count <= BATCH_MAX:
        raise OpenError(f"a batch of {count} records, allowed are 1 to 2^20", table_at - 4)
    records_at = table_at + 4 * count
    if size < records_at:
        raise Truncated("ends inside the table of lengths", size)
    ends = read(data[table_at:records_at], padded)
    if ends is None:
        raise OpenError("a record's length is out of bounds", table_at)
    total = ends[count]
    if total - TAG * count > BATCH_BYTES_MAX:
        raise OpenError("the records are more than 1 GiB", table_at)
    if size - records_at < total:
        raise Truncated("ends inside the records", size)
    if size - records_at > total:
        raise OpenError("bytes follow the last record", records_at + total)
    return Batch(bytes(data[at + 1 : at + 1 + NONCE]), count, ends, data[records_at:])

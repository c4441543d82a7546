# SPDX-License-Identifier: Apache-2.0
"""The public part of a session (docs/format.md, "Header").

"USL" 01 | u8 cipher | u8 recipients | entries | commitment 32
entry:  u16 suite | key id 8 | u16 length | wrapped session secret
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from upseal.core.options import Cipher
from upseal.core.suites import Suite
from upseal.errors import OpenError, Truncated, UnsupportedFormat

MAGIC = b"USL"
VERSION = 1
RECIPIENTS_MAX = 16
COMMITMENT = 32

_FIXED = 6
_ENTRY = Struct(">H8sH")
_CIPHERS = {int(cipher): cipher for cipher in Cipher}
_SUITES = {int(suite): suite for suite in Suite}


class Entry(NamedTuple):
    """One recipient."""

    suite: Suite
    key_id: bytes
    wrapped: bytes


class Header(NamedTuple):
    """What a session says of itself."""

    cipher: Cipher
    entries: tuple[Entry, ...]
    raw: bytes
    """All of it, the commitment included."""

    @property
    def bound(self) -> bytes:
        """What the session's keys are derived from besides the secret: all but the commitment."""
        return self.raw[:-COMMITMENT]

    @property
    def commitment(self) -> bytes:
        """Its last 32 bytes."""
        return self.raw[-COMMITMENT:]


def encode(cipher: Cipher, entries: list[Entry]) -> bytes:
    """The header up to the commitment."""
    out = [MAGIC, bytes((VERSION, cipher, len(entries)))]
    for suite, key_id, wrapped in entries:
        out += (_ENTRY.pack(suite, key_id, len(wrapped)), wrapped)
    return b"".join(out)


def size(data: bytes | memoryview) -> int:
    """How long the header would be if this is one: nothing is checked, and 0 if it is too short.

    For looking up a header that was parsed before: what has the same digest is the same.
    """
    at = _FIXED
    try:
        for _ in range(data[5]):
            at += _ENTRY.size + (data[at + 10] << 8 | data[at + 11])
    except IndexError:
        return 0
    return at + COMMITMENT


def parse(data: bytes | memoryview) -> Header:
    """Reads the header at the front of ``data``; it accepts exactly what `encode` can write.

    Limits are checked before anything is allocated or any key is used.

    Raises:
        UnsupportedFormat, Truncated, OpenError: with the problem and its offset.
    """
    size = len(data)
    if data[:3] != MAGIC[:size]:
        raise UnsupportedFormat("does not begin with 'USL'", 0)
    if size < 4:
        raise Truncated("ends inside the header", size)
    if data[3] != VERSION:
        raise UnsupportedFormat(f"version {data[3]}, known is {VERSION}", 3)
    if size < 5:
        raise Truncated("ends inside the header", size)
    cipher = _CIPHERS.get(data[4])
    if cipher is None:
        raise UnsupportedFormat(f"cipher {data[4]} is not known", 4)
    if size < _FIXED:
        raise Truncated("ends inside the header", size)
    count = data[5]
    if not 1 <= count <= RECIPIENTS_MAX:
        raise OpenError(f"{count} recipients, allowed are 1 to {RECIPIENTS_MAX}", 5)
    entries: list[Entry] = []
    seen = set()
    at = _FIXED
    for number in range(1, count + 1):
        if size - at < _ENTRY.size:
            _short_entry(data, at, number)
        code, key_id, length = _ENTRY.unpack_from(data, at)
        suite = _SUITES.get(code)
        if suite is None:
            raise UnsupportedFormat(f"recipient {number} has the unknown suite {code:#06x}", at)
        if length not in suite.wrapped_len:
            raise OpenError(
                f"recipient {number}: {length} bytes are no {suite.label} secret", at + 10
            )
        if (code, key_id) in seen:
            raise OpenError(f"recipient {number} stands there twice", at)
        seen.add((code, key_id))
        at += _ENTRY.size
        if size - at < length:
            raise Truncated(f"ends inside recipient {number}", size)
        entries.append(Entry(suite, key_id, bytes(data[at : at + length])))
        at += length
    if size - at < COMMITMENT:
        raise Truncated("ends inside the commitment", size)
    return Header(cipher, tuple(entries), bytes(data[: at + COMMITMENT]))


def _short_entry(data: bytes | memoryview, at: int, number: int) -> None:
    """Says what is wrong first in an entry that is cut off: read left to right, as always."""
    rest = bytes(data[at:])
    if len(rest) >= 2 and int.from_bytes(rest[:2], "big") not in _SUITES:
        raise UnsupportedFormat(f"recipient {number} has an unknown suite", at)
    raise Truncated(f"ends inside recipient {number}", len(data))

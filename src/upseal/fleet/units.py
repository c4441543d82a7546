# SPDX-License-Identifier: Apache-2.0
"""Units, and the bodies they travel in (docs/fleet.md).

A unit is a signed statement and exactly the records that it counts. As rows of a batch, or in
clear, they follow each other: statement, records, statement, records. A unit without records is a
beacon.

``POST /v1/units`` carries one of these bodies, big-endian::

    sealed   an upseal batch, "USL" 01 ...
    clear    "UPC" 01 | u32 count | (u32 length | row) * count
    bundle   "UPB" 01 | u32 count | (u32 length | body) * count     no bundle in a bundle

What a parser here takes, written again, is the same bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from upseal.engine.buffers import Buffer, view
from upseal.engine.sizes import RECORD_MAX
from upseal.fleet.identity import SIGNATURE_LEN, SigningKey, VerifyKey
from upseal.fleet.policy import Level, Reason
from upseal.fleet.statements import (
    RECEIPT_LEN,
    RECORDS_MAX,
    SIGNED_LEN,
    STATEMENT_LEN,
    BadReceipt,
    Receipt,
    Statement,
    Status,
    fleet_context,
    open_receipt,
    records_digest,
    signed,
    signed_receipt,
)

__all__ = [
    "BODIES_MAX",
    "RECEIPT_LEN",
    "ROWS_MAX",
    "SIGNED_LEN",
    "BadReceipt",
    "MalformedUnits",
    "Receipt",
    "Statement",
    "Status",
    "Unit",
    "body_id",
    "body_kind",
    "bundle",
    "clear_body",
    "fleet_context",
    "make_unit",
    "open_receipt",
    "parse_bundle",
    "parse_clear",
    "parse_rows",
    "records_digest",
    "signed_receipt",
    "unit_rows",
]

Kind = Literal["sealed", "clear", "bundle"]

_SEALED: Final = b"USL\x01"
_CLEAR: Final = b"UPC\x01"
_BUNDLE: Final = b"UPB\x01"
_KINDS: dict[bytes, Kind] = {_SEALED: "sealed", _CLEAR: "clear", _BUNDLE: "bundle"}
_U32 = struct.Struct(">I")

ROWS_MAX = RECORDS_MAX + 1
"""Rows in a body, as in a batch."""
BODIES_MAX = 2**16
"""Bodies in a bundle."""


class MalformedUnits(ValueError):  # noqa: N818 - what it is
    """Not whole units."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A signed statement and its records.

    Args:
        statement: what is signed.
        signed: its record: statement, signature.
        records: exactly as many as it counts.
    """

    statement: Statement
    signed: bytes
    records: Sequence[bytes]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the statement without its signature: what a receipt names."""
        return hashlib.sha256(self.signed[:STATEMENT_LEN]).digest()

    @property
    def triple(self) -> tuple[bytes, bytes, int]:
        """Agent, epoch, sequence: its place, by which duplicates are found."""
        return self.statement.agent, self.statement.epoch, self.statement.sequence

    @property
    def beacon(self) -> bool:
        """Whether it has no records and only says how the agent is."""
        return self.statement.count == 0

    def whole(self) -> bool:
        """Whether count and digest are those of the records. Says nothing about who made it."""
        said = self.statement
        return said.count == len(self.records) and said.digest == records_digest(self.records)

    def verify(self, key: VerifyKey) -> bool:
        """Whether the owner of that key made it, for these records."""
        encoded, signature = self.signed[:STATEMENT_LEN], self.signed[STATEMENT_LEN:]
        return (
            self.statement.agent == key.agent_id
            and encoded == self.statement.encode()
            and key.verify(encoded, signature)
            and self.whole()
        )


def make_unit(
    key: SigningKey,
    deployment: bytes,
    epoch: bytes,
    sequence: int,
    milliseconds: int,
    level: Level,
    reason: Reason,
    records: Sequence[bytes],
) -> Unit:
    """A unit of these records, signed.

    Raises:
        ValueError: something is out of its range.
    """
    if len(records) > RECORDS_MAX:
        raise ValueError(f"a unit has 0 to {RECORDS_MAX} records, not {len(records)}")
    statement = Statement(
        deployment, key.public.agent_id, epoch, sequence, milliseconds, level, reason,
        len(records), records_digest(records),
    )  # fmt: skip
    return Unit(statement, signed(statement, key), records)


def unit_rows(units: Iterable[Unit]) -> list[bytes]:
    """Statement, records, statement, records: what is sealed as a batch, or sent in clear."""
    rows: list[bytes] = []
    for unit in units:
        rows.append(unit.signed)
        rows.extend(unit.records)
    return rows


def parse_rows(rows: Sequence[bytes]) -> list[Unit]:
    """The units that make up these rows. Signatures and digests are not looked at here.

    Raises:
        MalformedUnits: they are anything but whole units, one or more.
    """
    total = len(rows)
    if not 1 <= total <= ROWS_MAX:
        raise MalformedUnits(f"1 to {ROWS_MAX} rows make units, not {total}")
    every = list(rows)
    units: list[Unit] = []
    at = 0
    while at < total:
        row = bytes(every[at])
        if len(row) != SIGNED_LEN:
            raise MalformedUnits(f"row {at} is not a signed statement")
        try:
            statement = Statement.decode(row[:-SIGNATURE_LEN])
        except ValueError as error:
            raise MalformedUnits(f"row {at} is not a signed statement: {error}") from None
        end = at + 1 + statement.count
        if end > total:
            raise MalformedUnits(f"the unit at row {at} is cut off")
        units.append(Unit(statement, row, every[at + 1 : end]))
        at = end
    return units


def clear_body(rows: Sequence[bytes]) -> bytes:
    """Rows in clear, as one body.

    Raises:
        ValueError: none, too many, or one is too long.
    """
    return _packed(_CLEAR, rows, ROWS_MAX, RECORD_MAX, "row")


def parse_clear(body: Buffer) -> list[bytes]:
    """The rows of a clear body.

    Raises:
        MalformedUnits: it is none.
    """
    return [bytes(row) for row in _unpacked(_CLEAR, body, ROWS_MAX, RECORD_MAX, "clear body")]


def bundle(bodies: Sequence[Buffer]) -> bytes:
    """Several bodies as one, for one hop.

    Raises:
        ValueError: none, too many, or one of them is a bundle or no body at all.
    """
    for body in bodies:
        if body_kind(body) == "bundle":
            raise ValueError("no bundle in a bundle")
    return _packed(_BUNDLE, bodies, BODIES_MAX, 2**32 - 1, "body")


def parse_bundle(body: Buffer) -> list[memoryview]:
    """The bodies in a bundle, as views into it.

    Raises:
        MalformedUnits: it is none, or there is something else than bodies in it.
    """
    parts = _unpacked(_BUNDLE, body, BODIES_MAX, 2**32 - 1, "bundle")
    for part in parts:
        if _KINDS.get(bytes(part[:4]), "bundle") == "bundle":
            raise MalformedUnits("a bundle holds sealed and clear bodies only")
    return parts


def body_kind(body: Buffer) -> Kind:
    """By its first four bytes.

    Raises:
        MalformedUnits: it is no body.
    """
    kind = _KINDS.get(bytes(view(body, "a body")[:4]))
    if kind is None:
        raise MalformedUnits("not a body: neither sealed, nor clear, nor a bundle")
    return kind


def body_id(body: Buffer) -> bytes:
    """SHA-256 of it: its name between hops."""
    return hashlib.sha256(body).digest()


def _packed(magic: bytes, parts: Sequence[Buffer], most: int, longest: int, what: str) -> bytes:
    if not 1 <= len(parts) <= most:
        raise ValueError(f"1 to {most} of a {what}, not {len(parts)}")
    out: list[Buffer] = [magic, _U32.pack(len(parts))]
    for part in parts:
        size = len(part)
        if size > longest:
            raise ValueError(f"a {what} has at most {longest} bytes, not {size}")
        out += (_U32.pack(size), part)
    return b"".join(out)


def _unpacked(magic: bytes, body: Buffer, most: int, longest: int, what: str) -> list[memoryview]:
    data = view(body, "a body")
    total = len(data)
    if total < 8 or data[:4] != magic:
        raise MalformedUnits(f"not a {what}")
    (count,) = _U32.unpack_from(data, 4)
    if not 1 <= count <= most or count * 4 > total - 8:  # before anything is allocated
        raise MalformedUnits(f"a {what} with {count} parts")
    parts: list[memoryview] = []
    at = 8
    length_at = _U32.unpack_from
    for _ in range(count):
        if at + 4 > total:
            raise MalformedUnits(f"a {what} that is cut off")
        (size,) = length_at(data, at)
        at += 4
        if size > longest or size > total - at:
            raise MalformedUnits(f"a {what} that is cut off, or has too long a part")
        parts.append(data[at : at + size])
        at += size
    if at != total:
        raise MalformedUnits(f"a {what} with something after its end")
    return parts

# SPDX-License-Identifier: Apache-2.0
"""Statements and receipts: who vouches for which records, and who has them (docs/fleet.md).

Bytes only, big-endian. Both begin with the words that say what they are, so that a signature under
one is never taken for a signature under anything else.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from upseal.engine.buffers import Buffer
from upseal.fleet.identity import SIGNATURE_LEN, SigningKey, VerifyKey
from upseal.fleet.policy import Level, Reason

STATEMENT_CONTEXT = b"upseal/v1 statement\0"
RECEIPT_CONTEXT = b"upseal/v1 receipt\0"
_FLEET_CONTEXT = b"upseal/v1 fleet\0"

_STATEMENT = struct.Struct(">20s16s16s16sQQBBI32s")
_RECEIPT = struct.Struct(">18s16s32sB")
_LENGTH = struct.Struct(">I")

STATEMENT_LEN = _STATEMENT.size
SIGNED_LEN = STATEMENT_LEN + SIGNATURE_LEN
"""A statement record: statement, signature."""
RECEIPT_LEN = 8 + _RECEIPT.size + SIGNATURE_LEN
"""Key id, receipt, signature."""
RECORDS_MAX = 2**20 - 1
"""In one unit: a batch takes 2^20 rows, and the statement is one of them."""

_JOINED = 1 << 16
"""Records up to this length are copied together and hashed at once; longer ones are not copied."""


class Status(IntEnum):
    """What the server says about a unit."""

    STORED = 0
    DUPLICATE = 1
    """It was stored before."""
    CONTRADICTION = 2
    """The same place in the same epoch is taken by other records."""
    REFUSED = 3
    """Of an agent that is unknown or revoked, or not signed by it."""

    @property
    def held(self) -> bool:
        """Whether the server has the records, so that the agent may forget them."""
        return self in (Status.STORED, Status.DUPLICATE)


class BadReceipt(ValueError):  # noqa: N818 - what it is
    """No receipt, or not one of this deployment's. Which of it is not said."""

    def __init__(self) -> None:
        super().__init__("not a receipt of this deployment")


def fleet_context(deployment: bytes) -> bytes:
    """The context of all sealing of reports in a deployment.

    Raises:
        ValueError: the deployment is not 16 bytes.
    """
    return _FLEET_CONTEXT + _sized(deployment, 16, "deployment")


@dataclass(frozen=True, slots=True)
class Statement:
    """What an agent signs about the records that follow it.

    Args:
        deployment: 16 bytes.
        agent: 16 bytes, from its identity key.
        epoch: 16 random bytes of one process of the agent.
        sequence: the number of the unit in its epoch.
        milliseconds: unix time at which it was signed.
        level: the agent's.
        reason: why it was sent as it was.
        count: of the records; 0 in a beacon.
        digest: `records_digest` of them.

    Raises:
        ValueError: something is out of its range.
    """

    deployment: bytes
    agent: bytes
    epoch: bytes
    sequence: int
    milliseconds: int
    level: Level
    reason: Reason
    count: int
    digest: bytes

    def __post_init__(self) -> None:
        for name in ("deployment", "agent", "epoch"):
            _sized(getattr(self, name), 16, name)
        _sized(self.digest, 32, "digest")
        if not (0 <= self.sequence < 2**64 and 0 <= self.milliseconds < 2**64):
            raise ValueError("sequence and milliseconds are unsigned 64-bit numbers")
        if not 0 <= self.count <= RECORDS_MAX:
            raise ValueError(f"a unit has 0 to {RECORDS_MAX} records, not {self.count}")

    def encode(self) -> bytes:
        """`STATEMENT_LEN` bytes: what is signed."""
        return _STATEMENT.pack(
            STATEMENT_CONTEXT, self.deployment, self.agent, self.epoch, self.sequence,
            self.milliseconds, self.level.number, self.reason, self.count, self.digest,
        )  # fmt: skip

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """What `encode` wrote, and nothing else.

        Raises:
            ValueError: it is something else.
        """
        if len(memoryview(data)) != STATEMENT_LEN:
            raise ValueError(f"a statement has {STATEMENT_LEN} bytes")
        (context, deployment, agent, epoch, sequence, when, level, reason, count, digest) = (
            _STATEMENT.unpack(data)
        )
        if context != STATEMENT_CONTEXT:
            raise ValueError("not a statement")
        return cls(
            deployment, agent, epoch, sequence, when, Level.parse(level), Reason(reason), count,
            digest,
        )  # fmt: skip


def records_digest(records: Iterable[Buffer]) -> bytes:
    """SHA-256 over (u32 length | bytes) of each record."""
    hasher = hashlib.sha256()
    some: list[Buffer] = []
    waiting = 0
    for record in records:
        size = len(record)
        some.append(_LENGTH.pack(size))
        if size <= _JOINED:
            some.append(record)
            waiting += size + 4
            if waiting < 16 * _JOINED:
                continue
        # A call for each record would cost more than hashing it.
        hasher.update(b"".join(some))
        some.clear()
        waiting = 0
        if size > _JOINED:
            hasher.update(record)
    hasher.update(b"".join(some))
    return hasher.digest()


def signed(statement: Statement, key: SigningKey) -> bytes:
    """The statement record: statement, signature.

    Raises:
        ValueError: the key is another agent's.
    """
    if key.public.agent_id != statement.agent:
        raise ValueError("an agent signs its own statements only")
    encoded = statement.encode()
    return encoded + key.sign(encoded)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the server signs about one unit.

    Args:
        deployment: 16 bytes.
        statement_digest: SHA-256 of the statement, without its signature.
        status: what became of it.

    Raises:
        ValueError: a length is wrong.
    """

    deployment: bytes
    statement_digest: bytes
    status: Status

    def __post_init__(self) -> None:
        _sized(self.deployment, 16, "deployment")
        _sized(self.statement_digest, 32, "statement_digest")

    def encode(self) -> bytes:
        """What is signed."""
        return _RECEIPT.pack(RECEIPT_CONTEXT, self.deployment, self.statement_digest, self.status)


def signed_receipt(receipt: Receipt, key: SigningKey) -> bytes:
    """`RECEIPT_LEN` bytes: key id, receipt, signature."""
    encoded = receipt.encode()
    return key.public.key_id + encoded + key.sign(encoded)


def open_receipt(data: Buffer, keys: Mapping[bytes, VerifyKey], deployment: bytes) -> Receipt:
    """A receipt, verified.

    Args:
        data: from anywhere.
        keys: the manifest's receipt keys, by key id.
        deployment: whose it must be.

    Raises:
        BadReceipt: it is none, or not signed by one of these, or another deployment's.
    """
    raw = bytes(data)
    key = keys.get(raw[:8])
    if len(raw) != RECEIPT_LEN or key is None or key.key_id != raw[:8]:
        raise BadReceipt
    encoded = raw[8:-SIGNATURE_LEN]
    context, owner, digest, status = _RECEIPT.unpack(encoded)
    if (
        context != RECEIPT_CONTEXT
        or owner != deployment
        or status not in _STATUSES
        or not key.verify(encoded, raw[-SIGNATURE_LEN:])
    ):
        raise BadReceipt
    return Receipt(owner, digest, Status(status))


_STATUSES = frozenset(Status)


def _sized(value: bytes, size: int, what: str) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        raise ValueError(f"{what} must be {size} bytes")
    return value

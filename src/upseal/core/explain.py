# SPDX-License-Identifier: Apache-2.0
"""What can be said of sealed data without any key."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from upseal.core import header as headers
from upseal.core.bodies import (
    BATCH_MAX,
    UPLOAD_FRONT,
    Kind,
    check_envelope,
    parse_batch,
    read_kind,
)
from upseal.core.header import Header
from upseal.core.uploads import FRONT_MAX, plain_size
from upseal.engine.buffers import Buffer, view
from upseal.engine.sizes import CHUNK, NONCE, TAG
from upseal.errors import OpenError, Truncated

_ENOUGH = 1 << 16
_MOST = FRONT_MAX + 4 * BATCH_MAX
"""Bytes up to the end of the longest table of lengths: what comes behind is only counted."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a blob is, as far as its public part tells. Nothing of this is authenticated."""

    size: int
    """Bytes in all."""
    kind: str | None = None
    """``envelope``, ``batch`` or ``upload``."""
    cipher: str | None = None
    padded: bool | None = None
    recipients: list[dict[str, str]] = field(default_factory=list)
    """``suite`` and ``key_id`` (hexadecimal) of each."""
    header_size: int | None = None
    count: int | None = None
    """Reports (1 in an envelope), or None for an upload."""
    plaintext_size: int | None = None
    """Bytes of the reports, with their padding, or of the upload."""
    overhead: int | None = None
    """``size`` less ``plaintext_size``."""
    problem: str | None = None
    """The first thing that is wrong in the public part; None if nothing is."""
    offset: int | None = None
    """Where that is, in bytes from the start."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def explain(blob: Buffer | IO[bytes]) -> Explanation:
    """Says what sealed data is, without a key.

    Args:
        blob: the data, or a binary file with it. Of that at most 4 MiB are kept, and of an upload
            only the beginning is read, where the file can tell its size.
    """
    try:
        data = view(blob, "the data")
        size = len(data)
    except TypeError:
        if not hasattr(blob, "read"):
            raise
        data, size = _read(blob)
    known: dict[str, Any] = {"size": size}
    try:
        header = headers.parse(data)
        known |= _of_header(header)
        at = len(header.raw)
        kind = read_kind(data, at)
        known |= {"kind": kind.label, "padded": kind.padded}
        known |= _of_body(data, size, at, kind)
        known["overhead"] = size - known["plaintext_size"]
    except OpenError as error:
        known |= {"problem": error.problem or str(error), "offset": error.offset}
    return Explanation(**known)


def _of_header(header: Header) -> dict[str, Any]:
    recipients = [{"suite": e.suite.label, "key_id": e.key_id.hex()} for e in header.entries]
    for shown, entry in zip(recipients, header.entries, strict=True):
        if shown["suite"] == "rsa":
            shown["suite"] = f"rsa{8 * len(entry.wrapped)}"
    return {
        "cipher": str(header.cipher),
        "recipients": recipients,
        "header_size": len(header.raw),
    }


def _of_body(data: memoryview, size: int, at: int, kind: Kind) -> dict[str, Any]:
    if kind.label == "envelope":
        check_envelope(size, at, kind.padded)
        return {"count": 1, "plaintext_size": size - at - 1 - NONCE - TAG}
    if kind.label == "batch":
        batch = parse_batch(data, at, kind.padded, size=size)
        return {"count": batch.total, "plaintext_size": batch.ends[-1] - TAG * batch.total}
    chunks = size - at - 1 - UPLOAD_FRONT
    if chunks < 0:
        raise Truncated("ends before the first chunk", size)
    try:
        length = plain_size(chunks)
    except Truncated:
        raise Truncated("ends where a chunk ends, but the last one must be short", size) from None
    if length // CHUNK >= 1 << 38:
        raise OpenError("longer than 4 PiB", size)
    return {"plaintext_size": length}


def _read(file: Any) -> tuple[memoryview, int]:
    """The front of the file, as long as it may matter, and how many bytes there are in all."""
    front = _read_front(file, _ENOUGH)
    if not _is_upload(front):
        front += _read_front(file, _MOST - len(front))
    size = len(front)
    if file.seekable():
        start = file.tell() - size
        return memoryview(front), file.seek(0, os.SEEK_END) - start
    while more := file.read(_ENOUGH):
        size += len(more)
    return memoryview(front), size


def _read_front(file: Any, most: int) -> bytes:
    """As much as that, also where each read gives less."""
    front = bytearray()
    while len(front) < most and (more := file.read(min(_ENOUGH, most - len(front)))):
        front += more
    return bytes(front)


def _is_upload(front: bytes) -> bool:
    try:
        return read_kind(front, len(headers.parse(front).raw)) is Kind.UPLOAD
    except OpenError:
        return True  # not even a header: nothing behind it is needed to say so

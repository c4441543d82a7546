# SPDX-License-Identifier: Apache-2.0
"""Anything with bytes in it, as the one kind of view that all else works on."""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    Buffer = Any


def view(data: Buffer, what: str) -> memoryview:
    """``data`` as contiguous bytes, without copying it."""
    try:
        flat = memoryview(data)
        if flat.format == "B" and flat.ndim == 1 and flat.c_contiguous:
            return flat
        return flat.cast("B") if flat.nbytes else memoryview(b"")  # cast wants bytes
    except TypeError as error:
        if isinstance(data, memoryview):
            raise ValueError(f"{what} must be contiguous") from error
        raise TypeError(
            f"{what} must be bytes or another buffer, not {type(data).__name__}"
        ) from None


def as_bytes(data: Buffer, what: str) -> bytes:
    """``data`` itself if it is bytes, else a copy."""
    return data if type(data) is bytes else bytes(view(data, what))


def grown(out: bytearray, size: int) -> memoryview:
    """The first ``size`` bytes of ``out``, which is made longer if it must be.

    Raises:
        TypeError: it is no bytearray.
        ValueError: it would have to grow, and a view of it is still in use; or it is of a subclass
            and not as long as that says.
    """
    if not isinstance(out, bytearray):
        raise TypeError(f"out must be a bytearray, not {type(out).__name__}")
    if len(out) < size:
        try:
            out.extend(bytes(size - len(out)))
        except BufferError:
            raise ValueError("out must grow, but what it holds is still in use") from None
    room = memoryview(out)[:size]
    if len(room) < size:  # C would write behind its end
        raise ValueError("out is shorter than it says")
    return room


def placed(data: bytes | memoryview, out: bytearray | None) -> bytes | memoryview:
    """``data`` itself, or a copy in ``out``."""
    if out is None:
        return data
    room = grown(out, len(data))
    room[:] = data
    return room

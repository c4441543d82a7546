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


def grown(out: bytearray, size: int) -> memoryview:
    """The first ``size`` bytes of ``out``, which is made longer if it must be.

    Raises:
        TypeError: it is no bytearray.
        ValueError: it would have to grow, and a view of it is still in use.
    """
    if not isinstance(out, bytearray):
        raise TypeError(f"out must be a bytearray, not {type(out).__name__}")
    if len(out) < size:
        try:
            out.extend(bytes(size - len(out)))
        except BufferError:
            raise ValueError("out must grow, but what it holds is still in use") from None
    return memoryview(out)[:size]

# SPDX-License-Identifier: Apache-2.0
"""The ceiling: the C core called directly, once, on records that lie ready. No Python in it.

Every buffer is made beforehand and used again, so nothing is allocated, joined, copied or drawn at
random while the clock runs. What an engine reaches of this is what Python costs.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

from upseal.engine.sizes import CHUNK, NONCE, SEALED_CHUNK, TAG

HOT = 384 * 1024
"""Bytes of records that stay in a core's second-level cache, with what comes out of them."""


class Bare:
    """Direct calls of one backend and cipher.

    Each method returns a call without arguments. It gives the C core's status, and has been tried.
    """

    def __init__(self, engine: Any, cipher: int = 1) -> None:
        from upseal.engine.native import ffi, lib

        self.ffi, self.lib = ffi, lib
        self._work = engine._take().work
        self._record = engine.record_key(cipher, os.urandom(32))
        self._chunk = engine.chunk_key(cipher, os.urandom(44))
        self._nonce = os.urandom(NONCE)

    def seal_batch(self, size: int, count: int) -> Callable[[], int]:
        """All records of a batch, packed, in one call."""
        _, seal = self._batch(size, count)
        return seal

    def open_batch(self, size: int, count: int) -> Callable[[], int]:
        """And back."""
        sealed, seal = self._batch(size, count)
        seal()
        ends = self._offsets(size + TAG, count)
        out, out_offsets = self.ffi.new("uint8_t[]", size * count), self._offsets(0, count)
        aad = self._aad(count)
        return self._tried(
            self.lib.upseal_open_batch, self._work, self._record, self._nonce, 0, aad, len(aad),
            sealed, len(sealed), ends, count, 0, out, len(out), out_offsets,
        )  # fmt: skip

    def seal_envelope(self, size: int, prefix: bytes) -> Callable[[], int]:
        """One envelope."""
        report = os.urandom(size)
        out = self.ffi.new("uint8_t[]", len(prefix) + NONCE + size + TAG)
        return self._tried(
            self.lib.upseal_seal_envelope, self._work, self._record, self._nonce, prefix,
            len(prefix), b"\1", 1, report, size, 0, out, len(out),
        )  # fmt: skip

    def seal_chunks(self, data: bytes, piece: int) -> Callable[[], int]:
        """An upload's chunks, in pieces of that many chunks, into memory used again."""
        step, out = piece * CHUNK, self.ffi.new("uint8_t[]", piece * SEALED_CHUNK)
        source = self.ffi.from_buffer("uint8_t[]", data)
        calls = [
            self._tried(
                self.lib.upseal_seal_chunks, self._work, self._chunk, at // CHUNK, 0, source + at,
                step, out, len(out),
            )
            for at in range(0, len(data) - step + 1, step)
        ]  # fmt: skip
        return partial(_all, calls, source)

    def open_chunks(self, data: bytes, piece: int) -> Callable[[], int]:
        """And back, into memory that anybody may see."""
        step, count = piece * SEALED_CHUNK, len(data) // (piece * CHUNK)
        sealed = self.ffi.new("uint8_t[]", count * step)
        status = self.lib.upseal_seal_chunks(
            self._work, self._chunk, 0, 0, data, count * piece * CHUNK, sealed, len(sealed)
        )
        assert status == 0
        out, opened = self.ffi.new("uint8_t[]", piece * CHUNK), self.ffi.new("size_t *")
        calls = [
            self._tried(
                self.lib.upseal_open_chunks, self._work, self._chunk, i * piece, 0,
                sealed + i * step, step, out, len(out), opened,
            )
            for i in range(count)
        ]  # fmt: skip
        return partial(_all, calls, sealed)

    def _batch(self, size: int, count: int) -> tuple[Any, Callable[[], int]]:
        values = self.ffi.from_buffer("uint8_t[]", os.urandom(size * count))
        table = self.ffi.new("uint8_t[]", 4 * count)
        out = self.ffi.new("uint8_t[]", (size + TAG) * count)
        aad = self._aad(count)
        call = self._tried(
            self.lib.upseal_seal_batch, self._work, self._record, self._nonce, 0, aad, len(aad),
            values, len(values), self._offsets(size, count), count, 0, table, out, len(out),
        )  # fmt: skip
        return out, call

    def _aad(self, count: int) -> Any:
        return self.ffi.new("uint8_t[]", b"\2" + bytes(4) + count.to_bytes(4, "big"))

    def _offsets(self, size: int, count: int) -> Any:
        table = array("q", (i * size for i in range(count + 1)))
        return self.ffi.from_buffer("int64_t[]", table)

    def _tried(self, function: Any, *arguments: Any) -> Callable[[], int]:
        call = partial(function, *arguments)
        status = call()
        assert status == 0, f"status {status}"
        return call


def _all(calls: list[Callable[[], int]], kept: Any) -> int:
    """``kept`` is what the calls point into: a pointer does not keep that itself."""
    for call in calls:
        status = call()
        assert status == 0, status
    return 0

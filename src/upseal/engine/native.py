# SPDX-License-Identifier: Apache-2.0
"""The engine in C: ``native/upseal.h`` through cffi, which lets go of the GIL round every call."""

from __future__ import annotations

import os
from array import array
from typing import Any, NoReturn

from upseal.engine._native import ffi, lib
from upseal.engine.records import RECORD_MAX, Packed
from upseal.engine.types import CHUNK, NONCE, SEALED_CHUNK, TAG, EngineError

_FRONT = NONCE + TAG


class _Workspaces:
    """Work spaces not in use. Taking one and giving it back are single list operations."""

    def __init__(self, backend: int) -> None:
        self.backend = backend
        self.idle: list[Any] = []

    def new(self) -> Any:
        work = lib.upseal_work_new(self.backend)
        if work == ffi.NULL:
            raise EngineError("no memory for a work space of the C core")
        return ffi.gc(work, lib.upseal_work_free)


class NativeEngine:
    """See `upseal.engine.types.Engine`.

    Outputs are written straight into new ``bytes`` objects that nobody else has seen yet, as
    CPython's own C code does: no copy stands between the C core and what the caller gets.
    """

    name = "native"

    def __init__(self, backend: str | None = None) -> None:
        """Takes the first backend that works here, or the one named.

        Raises:
            EngineError: it is not built in, cannot run here, or failed its known-answer test.
        """
        tried = []
        for index in range(8):
            name = lib.upseal_backend_name(index)
            if name == ffi.NULL:
                break
            text = ffi.string(name).decode()
            if backend in (None, text) and lib.upseal_backend_test(index) == lib.UPSEAL_OK:
                self.backend = text
                self._work = _Workspaces(index)
                self._version = ffi.string(lib.upseal_backend_version(index)).decode()
                return
            tried.append(text)
        raise EngineError(
            f"backend {backend!r} is not usable here (built in: {', '.join(tried)})"
            if backend
            else f"no backend passed its known-answer test (built in: {', '.join(tried)})"
        )

    def describe(self) -> dict[str, str]:
        """See Engine."""
        return {"engine": self.name, "backend": self.backend, "version": self._version}

    def record_key(self, cipher: int, material: bytes) -> Any:
        """See Engine."""
        key = lib.upseal_key_new(cipher, material, len(material))
        if key == ffi.NULL:
            raise EngineError("no memory for a key of the C core")
        return ffi.gc(key, lib.upseal_key_free)

    chunk_key = record_key

    # -- records ---------------------------------------------------------------

    def seal_envelope(
        self, key: Any, nonce: bytes, prefix: bytes, aad: bytes, report: bytes, padded: bool
    ) -> bytes:
        """See Engine."""
        length = len(report)
        if padded:
            length = lib.upseal_padded_len(length)
        out = bytes(len(prefix) + _FRONT + length)
        idle = self._work.idle
        try:
            work = idle.pop()
        except IndexError:
            work = self._work.new()
        status = lib.upseal_seal_envelope(
            work, key, nonce, prefix, len(prefix), aad, len(aad), report, len(report), padded,
            out, len(out),
        )  # fmt: skip
        idle.append(work)
        if status:
            _failed(status)
        return out

    def open_envelope(
        self, key: Any, prefix_len: int, aad: bytes, envelope: bytes, padded: bool
    ) -> bytes | None:
        """See Engine."""
        room = len(envelope) - prefix_len - _FRONT
        if not 0 <= room <= RECORD_MAX:
            return None
        out = bytes(room)
        idle = self._work.idle
        try:
            work = idle.pop()
        except IndexError:
            work = self._work.new()
        status = lib.upseal_open_envelope(
            work, key, prefix_len, aad, len(aad), envelope, len(envelope), padded, out, room
        )
        idle.append(work)
        if status == room:
            return out
        if status >= 0:
            return out[:status]
        _check_forged(status)
        return None

    def seal_envelopes(
        self, key: Any, nonce: bytes, prefix: bytes, aad: bytes, reports: Packed, padded: bool
    ) -> Packed:
        """See Engine."""
        values, offsets, count = reports.values, reports.offsets, reports.total
        front = len(prefix) + NONCE
        with ffi.from_buffer("uint8_t[]", values) as v, ffi.from_buffer("int64_t[]", offsets) as o:
            out = bytes(_measure(v, o, count, padded) + front * count)
            work = self._take()
            status = lib.upseal_seal_envelopes(
                work, key, nonce, 0, prefix, len(prefix), aad, len(aad), v, len(v), o, count,
                padded, out, len(out),
            )  # fmt: skip
            self._work.idle.append(work)
        if status:
            _failed(status)
        ends, padded_len, extra = (
            array("q", bytes(8 * (count + 1))),
            lib.upseal_padded_len,
            front + TAG,
        )
        at = 0
        starts = offsets.tolist()
        for i in range(count):
            length = starts[i + 1] - starts[i]
            at += (padded_len(length) if padded else length) + extra
            ends[i + 1] = at
        return Packed(memoryview(out), memoryview(ends))

    def open_envelopes(
        self, key: Any, prefix_len: int, aad: bytes, envelopes: Packed, padded: bool
    ) -> tuple[Packed, memoryview]:
        """See Engine."""
        values, offsets, count = envelopes.values, envelopes.offsets, envelopes.total
        out = bytes(max(0, offsets[count] - offsets[0]))
        ends, results = array("q", bytes(8 * (count + 1))), bytearray(count)
        with (
            ffi.from_buffer("uint8_t[]", values) as v,
            ffi.from_buffer("int64_t[]", offsets) as o,
            ffi.from_buffer("int64_t[]", ends) as e,
            ffi.from_buffer("int8_t[]", results) as r,
        ):
            work = self._take()
            status = lib.upseal_open_envelopes(
                work, key, prefix_len, aad, len(aad), v, len(v), o, count, padded, out, len(out),
                e, r,
            )  # fmt: skip
            self._work.idle.append(work)
        if status:
            _failed(status)
        return Packed(memoryview(out)[: ends[count]], memoryview(ends)), memoryview(results)

    def seal_batch(
        self, key: Any, nonce: bytes, head: bytes, aad: bytes, reports: Packed, padded: bool
    ) -> bytes:
        """See Engine."""
        count, start = reports.total, len(head)
        with (
            ffi.from_buffer("uint8_t[]", reports.values) as v,
            ffi.from_buffer("int64_t[]", reports.offsets) as o,
        ):
            sealed = _measure(v, o, count, padded)
            out = bytes(start + 4 * count + sealed)
            target = ffi.from_buffer("uint8_t[]", out)
            ffi.memmove(target, head, start)
            work = self._take()
            status = lib.upseal_seal_batch(
                work, key, nonce, 0, ffi.new("uint8_t[]", aad), len(aad), v, len(v), o, count,
                padded, target + start, target + start + 4 * count, sealed,
            )  # fmt: skip
            self._work.idle.append(work)
        if status:
            _failed(status)
        return out

    def open_batch(
        self,
        key: Any,
        nonce: bytes,
        aad: bytes,
        table: memoryview,
        records: memoryview,
        padded: bool,
    ) -> Packed | None:
        """See Engine."""
        count = len(table) // 4
        sealed_ends, ends = array("q", bytes(8 * (count + 1))), array("q", bytes(8 * (count + 1)))
        out = bytes(len(records) - TAG * count)
        with (
            ffi.from_buffer("uint8_t[]", table) as t,
            ffi.from_buffer("uint8_t[]", records) as r,
            ffi.from_buffer("int64_t[]", sealed_ends) as s,
            ffi.from_buffer("int64_t[]", ends) as e,
        ):
            if lib.upseal_batch_offsets(t, count, padded, s) or sealed_ends[count] != len(records):
                return None
            work = self._take()
            status = lib.upseal_open_batch(
                work, key, nonce, 0, ffi.new("uint8_t[]", aad), len(aad), r, len(r), s, count,
                padded, out, len(out), e,
            )  # fmt: skip
            self._work.idle.append(work)
        if status:
            _check_forged(status)
            return None
        return Packed(memoryview(out)[: ends[count]], memoryview(ends))

    # -- chunks ----------------------------------------------------------------

    def seal_chunks(
        self, key: Any, first: int, last: bool, data: memoryview, out: memoryview
    ) -> None:
        """See Engine."""
        with ffi.from_buffer("uint8_t[]", data) as d, ffi.from_buffer("uint8_t[]", out, True) as o:
            work = self._take()
            status = lib.upseal_seal_chunks(work, key, first, last, d, len(d), o, len(o))
            self._work.idle.append(work)
        if status:
            _failed(status)

    def open_chunks(
        self, key: Any, first: int, last: bool, data: memoryview, out: memoryview
    ) -> bool:
        """See Engine."""
        opened = ffi.new("size_t *")
        with ffi.from_buffer("uint8_t[]", data) as d, ffi.from_buffer("uint8_t[]", out, True) as o:
            work = self._take()
            status = lib.upseal_open_chunks(work, key, first, last, d, len(d), o, len(o), opened)
            self._work.idle.append(work)
            if status == lib.UPSEAL_EFORGED:
                lib.upseal_wipe(o, len(o))
        if status:
            _check_forged(status)
        return not status

    def _take(self) -> Any:
        try:
            return self._work.idle.pop()
        except IndexError:
            return self._work.new()


def backends() -> list[tuple[str, str, bool]]:
    """(name, version, whether it works here) of each backend built in, best first."""
    found = []
    for index in range(8):
        name = lib.upseal_backend_name(index)
        if name == ffi.NULL:
            break
        version = ffi.string(lib.upseal_backend_version(index)).decode()
        usable = lib.upseal_backend_test(index) == lib.UPSEAL_OK
        found.append((ffi.string(name).decode(), version, usable))
    return found


def cpu_has_aes() -> bool:
    """Whether the CPU has instructions for AES and carry-less multiplication."""
    return bool(lib.upseal_cpu_has_aes())


def _measure(values: Any, offsets: Any, count: int, padded: bool) -> int:
    total = ffi.new("uint64_t *")
    if lib.upseal_records_measure(len(values), offsets, count, padded, total):
        raise ValueError("offsets fall, leave the values, or bound a report over 16 MiB")
    return int(total[0])


def _check_forged(status: int) -> None:
    """Raises if it is anything but a forgery: that is no fault of the data."""
    if status != lib.UPSEAL_EFORGED:
        _failed(status)


def _failed(status: int) -> NoReturn:
    if status == lib.UPSEAL_EARGUMENT:
        raise ValueError("a report is longer than 16 MiB, or its offsets are wrong")
    raise EngineError(f"the C core failed with status {status} (pid {os.getpid()})")


assert SEALED_CHUNK == lib.UPSEAL_SEALED_CHUNK_LEN
assert CHUNK == lib.UPSEAL_CHUNK_LEN

# SPDX-License-Identifier: Apache-2.0
"""The engine in C: ``native/upseal.h`` through cffi, which lets go of the GIL round every call."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from upseal.engine import fips
from upseal.engine._native import ffi, lib
from upseal.engine.backends import built_in as _built_in
from upseal.engine.backends import fips_provider as _fips_provider
from upseal.engine.backends import works as _works
from upseal.engine.buffers import grown, placed
from upseal.engine.keys import Keys
from upseal.engine.machine import cores
from upseal.engine.memory import Room, Workspace, new_bytes, new_offsets, overlap
from upseal.engine.records import Listed, Packed, Reports
from upseal.engine.single import sealing
from upseal.engine.sizes import CHUNK, NONCE, RECORD_MAX, SEALED_CHUNK, TAG
from upseal.engine.status import check_forged as _check_forged
from upseal.engine.status import failed as _failed
from upseal.engine.threads import share
from upseal.engine.types import EngineError, SealOne

_open_envelope = lib.upseal_open_envelope  # of one report: what stands in its way is felt

_FRONT = NONCE + TAG
_GROUP = 256 * 1024
"""Separate reports are joined in groups of this size: with what comes out they fit the L2 cache."""
_SHARE = 4 * 1024 * 1024
"""What a thread must have to do before it is worth starting, in bytes."""


class NativeEngine(Keys):
    """See `upseal.engine.types.Engine`.

    Outputs are written straight into new ``bytes`` objects that nobody else has seen yet, as
    CPython's own C code does: no copy stands between the C core and what the caller gets.
    """

    name = "native"

    def __init__(self, backend: str | None = None) -> None:
        """Takes the first backend that works here, or the one named.

        Raises:
            EngineError: it is not built in, cannot run here, or failed its known-answer test; or
                FIPS mode is on, and OpenSSL has no FIPS provider.
        """
        provider = None
        if fips.mode() is not None and (provider := _fips_provider()) is None:
            raise fips.refusal("the OpenSSL under the C core has none with all that is needed")
        for index, name, version in _built_in():
            if provider is not None and name != "openssl":
                continue
            if backend in (None, name) and _works(index):
                self.backend, self._index = name, index
                self._version = version if provider is None else f"{version}; {provider}"
                # Work spaces not in use: taking one and giving it back are single list operations.
                self._idle: list[Workspace] = []
                super().__init__(self._idle)
                return
        tried = [name for _, name, _ in _built_in()]
        raise EngineError(
            f"backend {backend!r} is not usable here (built in: {', '.join(tried)})"
            if backend
            else f"no backend passed its known-answer test (built in: {', '.join(tried)})"
        )

    def describe(self) -> dict[str, str]:
        """See Engine."""
        return {"engine": self.name, "backend": self.backend, "version": self._version}

    def measure(self, reports: Reports, padded: bool) -> int:
        """See Engine."""
        offsets = reports.offsets
        size = max(0, offsets[-1] - offsets[0])
        with ffi.from_buffer("int64_t[]", offsets) as o:
            return _measure(size, o, reports.total, padded)

    # -- records ---------------------------------------------------------------

    def sealing(self, key: Any, prefix: bytes, padded: bool) -> SealOne:
        """See Engine."""
        return sealing(self._idle, self._index, key, prefix, padded)

    def open_envelope(
        self, key: Any, prefix_len: int, aad: bytes, envelope: bytes, padded: bool
    ) -> bytes | None:
        """See Engine."""
        room = len(envelope) - prefix_len - _FRONT
        if not 0 <= room <= RECORD_MAX:
            return None
        out = bytes(room)
        try:
            space = self._idle.pop()
        except IndexError:
            space = Workspace(self._index)
        status = _open_envelope(
            space.work, key, prefix_len, aad, len(aad), envelope, len(envelope), padded, out, room
        )
        self._idle.append(space)
        if status == room:
            return out
        if status >= 0:
            return out[:status]
        _check_forged(status)
        return None

    def seal_envelopes(
        self, key: Any, nonce: bytes, prefix: bytes, aad: bytes, reports: Reports, padded: bool
    ) -> Iterator[Packed]:
        """See Engine."""
        front = len(prefix) + NONCE
        space = self._take()
        for start, end in reports.groups(_GROUP, front):
            count, ends = end - start, new_offsets(end - start)
            with (
                reports.read(start, end, space.joined) as values,
                ffi.from_buffer("uint8_t[]", values) as v,
                ffi.from_buffer("int64_t[]", reports.offsets[start : end + 1]) as o,
                ffi.from_buffer("int64_t[]", ends) as e,
            ):
                size = _measure(len(v), o, count, padded) + front * count
                out = space.room(size) if isinstance(reports, Listed) else new_bytes(size)
                status = lib.upseal_seal_envelopes(
                    space.work, key, nonce, start, prefix, len(prefix), aad, len(aad), v, len(v),
                    o, count, padded, out, size, e,
                )  # fmt: skip
            if status:
                _failed(status)
            yield Packed(memoryview(out), memoryview(ends))
        self._idle.append(space)

    def open_envelopes(
        self, key: Any, prefix: bytes, aad: bytes, envelopes: Reports, padded: bool
    ) -> Iterator[tuple[Packed, bytes]]:
        """See Engine."""
        space = self._take()
        for start, end in envelopes.groups(_GROUP):
            count, ends = end - start, new_offsets(end - start)
            results = bytearray(count)
            with (
                envelopes.read(start, end, space.joined) as values,
                ffi.from_buffer("uint8_t[]", values) as v,
                ffi.from_buffer("int64_t[]", envelopes.offsets[start : end + 1]) as o,
                ffi.from_buffer("int64_t[]", ends) as e,
                ffi.from_buffer("int8_t[]", results) as r,
            ):
                size = len(v)
                out = space.room(size) if isinstance(envelopes, Listed) else bytes(size)
                status = lib.upseal_open_envelopes(
                    space.work, key, prefix, len(prefix), aad, len(aad), v, size, o, count, padded,
                    out, size, e, r,
                )  # fmt: skip
            if status:
                _failed(status)
            yield Packed(memoryview(out), memoryview(ends)), bytes(results)
            if isinstance(envelopes, Listed):
                lib.upseal_wipe(ffi.from_buffer("uint8_t[]", out), ends[count])
        self._idle.append(space)

    def seal_batch(
        self,
        key: Any,
        nonce: bytes,
        head: bytes,
        aad: bytes,
        reports: Reports,
        padded: bool,
        out: bytearray | None = None,
    ) -> bytes | memoryview:
        """See Engine."""
        if out is not None and isinstance(reports, Packed) and overlap(out, reports.values):
            return placed(self.seal_batch(key, nonce, head, aad, reports, padded), out)
        total, start = reports.total, len(head)
        sealed = self.measure(reports, padded)
        made, target = _room(start + 4 * total + sealed, out)
        ffi.memmove(target, head, start)
        table, at = target + start, target + start + 4 * total

        def seal_share(first: int, end: int, out: Any, room: int, space: Workspace) -> int:
            with (
                reports.read(first, end, space.joined) as values,
                ffi.from_buffer("uint8_t[]", values) as v,
                ffi.from_buffer("int64_t[]", reports.offsets[first : end + 1]) as o,
            ):
                status: int = lib.upseal_seal_batch(
                    space.work, key, nonce, first, ffi.new("uint8_t[]", aad), len(aad), v, len(v),
                    o, end - first, padded, table + 4 * first, out, room,
                )  # fmt: skip
                return status

        jobs = []
        apart = isinstance(reports, Packed)  # lists are joined under the GIL: threads gain nothing
        for first, end in _shares(reports.offsets) if apart else reports.groups(_GROUP):
            room = sealed
            if end - first < total:
                with ffi.from_buffer("int64_t[]", reports.offsets[first : end + 1]) as o:
                    room = _measure(max(0, o[end - first] - o[0]), o, end - first, padded)
            jobs.append((first, end, at, room))
            at += room
        self._run(seal_share, jobs, apart)
        return made

    def sealed_ends(self, table: memoryview, padded: bool) -> memoryview | None:
        """See Engine."""
        count = len(table) // 4
        ends = new_offsets(count)
        with ffi.from_buffer("uint8_t[]", table) as t, ffi.from_buffer("int64_t[]", ends) as e:
            return None if lib.upseal_batch_offsets(t, count, padded, e) else memoryview(ends)

    def open_batch(
        self,
        key: Any,
        nonce: bytes,
        aad: bytes,
        ends: memoryview,
        records: memoryview,
        padded: bool,
        out: bytearray | None = None,
    ) -> Packed | None:
        """See Engine."""
        if out is not None and overlap(out, records):
            opened = self.open_batch(key, nonce, aad, ends, records, padded)
            return opened and Packed(memoryview(placed(opened.values, out)), opened.offsets)
        count = len(ends) - 1
        starts = new_offsets(count)
        size = len(records) - TAG * count
        # Padding leaves some of it unused: that must not be anything that lay in memory before.
        made, target = _room(size, bytearray(size) if padded and out is None else out)
        with (
            ffi.from_buffer("uint8_t[]", records) as r,
            ffi.from_buffer("int64_t[]", ends) as s,
            ffi.from_buffer("int64_t[]", starts) as e,
        ):

            def open_share(first: int, end: int, space: Workspace) -> int:
                start, own = s[first] - TAG * first, ffi.new("int64_t[]", end - first + 1)
                status: int = lib.upseal_open_batch(
                    space.work, key, nonce, first, ffi.new("uint8_t[]", aad), len(aad),
                    r + s[first], s[end] - s[first], s + first, end - first, padded,
                    target + start, size - start if padded else s[end] - TAG * end - start, own,
                )  # fmt: skip
                lib.upseal_shift_offsets(own + 1, end - first, start, e + first + 1)
                return status

            # How long padded reports are is known only once they are open: one share, then.
            shares = [(0, count)] if padded else _shares(ends)
            whole = False
            try:
                whole = self._run(open_share, shares, True)
            finally:  # an interrupt, too, leaves nothing of a batch that is not whole
                if not whole:
                    lib.upseal_wipe(target, size)
            if not whole:
                return None
        return Packed(memoryview(made)[: starts[count]], memoryview(starts))

    def _run(self, work: Callable[..., int], jobs: list[tuple[Any, ...]], apart: bool) -> bool:
        """Does ``work`` for each job, each in a thread if they go ``apart``.

        Returns:
            Whether all went well; False for a forgery.
        """
        statuses: list[int] = []
        left = jobs[::-1]

        def run() -> None:
            space = self._take()
            while left:
                try:
                    job = left.pop()
                except IndexError:  # another thread was quicker
                    break
                statuses.append(work(*job, space))
            self._idle.append(space)

        share(run, len(jobs) if apart else 1)
        for status in statuses:
            if status:
                _check_forged(status)
        return not any(statuses)

    # -- chunks ----------------------------------------------------------------

    def seal_chunks(
        self, key: Any, first: int, last: bool, data: memoryview, out: memoryview
    ) -> None:
        """See Engine."""
        with ffi.from_buffer("uint8_t[]", data) as d, ffi.from_buffer("uint8_t[]", out, True) as o:
            space = self._take()
            status = lib.upseal_seal_chunks(space.work, key, first, last, d, len(d), o, len(o))
            self._idle.append(space)
        if status:
            _failed(status)

    def open_chunks(
        self,
        key: Any,
        first: int,
        last: bool,
        data: memoryview,
        out: memoryview,
        private: bool = False,
    ) -> bool:
        """See Engine."""
        with ffi.from_buffer("uint8_t[]", data) as d, ffi.from_buffer("uint8_t[]", out, True) as o:
            space = self._take()
            if private:
                status = lib.upseal_open_chunks_private(
                    space.work, key, first, last, d, len(d), o, len(o)
                )
            else:
                status = lib.upseal_open_chunks(
                    space.work, key, first, last, d, len(d), o, len(o), ffi.new("size_t *")
                )
            self._idle.append(space)
            if status == lib.UPSEAL_EFORGED:
                lib.upseal_wipe(o, len(o))
        if status:
            _check_forged(status)
        return not status

    def room(self, size: int) -> Room:
        """See Engine."""
        return Room(size)

    def _take(self) -> Workspace:
        try:
            return self._idle.pop()
        except IndexError:
            return Workspace(self._index)


def backends() -> list[tuple[str, str, bool]]:
    """(name, version, whether it works here) of each backend built in, best first."""
    return [(name, version, _works(index)) for index, name, version in _built_in()]


def cpu_has_aes() -> bool:
    """Whether the CPU has instructions for AES and carry-less multiplication."""
    return bool(lib.upseal_cpu_has_aes())


def _shares(offsets: memoryview) -> list[tuple[int, int]]:
    """Neighbouring records in as many shares as there are cores, if they are worth threads."""
    count, base = len(offsets) - 1, offsets[0]
    size = offsets[count] - base
    number = min(cores(), size // _SHARE)
    if number < 2:
        return [(0, count)]
    marks = [bisect_left(offsets, base + size * i // number) for i in range(number)] + [count]
    return [(a, b) for a, b in pairwise(marks) if a < b]


def _room(size: int, out: bytearray | None) -> tuple[bytes | memoryview, Any]:
    """``size`` bytes to write to, new or in ``out``: for Python, and for C."""
    if out is None:
        made = new_bytes(size)
        return made, ffi.from_buffer("uint8_t[]", made)
    room = grown(out, size)
    # Not from the view: memoryviews that C holds crash the collector of CPython 3.11 and 3.12.
    target = ffi.from_buffer("uint8_t[]", out)
    if len(target) < size:
        raise ValueError("out is shorter than it says")
    return room, target


def _measure(size: int, offsets: Any, count: int, padded: bool) -> int:
    """Sealed length of these records, whose values are ``size`` bytes."""
    total = ffi.new("uint64_t *")
    if lib.upseal_records_measure(size, offsets, count, padded, total):
        raise ValueError("offsets fall, leave the values, or bound a report over 16 MiB")
    return int(total[0])


assert SEALED_CHUNK == lib.UPSEAL_SEALED_CHUNK_LEN
assert CHUNK == lib.UPSEAL_CHUNK_LEN

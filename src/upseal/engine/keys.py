# SPDX-License-Identifier: Apache-2.0
"""Keys of the C core: where they live, how they are made and when they are wiped."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from upseal.engine._native import ffi, lib
from upseal.engine.buffers import Buffer
from upseal.engine.memory import Workspace
from upseal.engine.status import failed
from upseal.engine.types import EngineError, KeyMemory

SESSION = 96
"""Bytes of a session's three keys."""


class Keys:
    """What the native engine does with keys: see `upseal.engine.types.Engine`.

    They are in pages of their own, and each is wiped with the last reference to it. What a work
    space has made of a key stays there until its next call: so whenever a key comes or goes, the
    work spaces that nobody uses just then are scrubbed.
    """

    def __init__(self, idle: list[Workspace]) -> None:
        arena = lib.upseal_arena_new()
        if arena == ffi.NULL:
            raise EngineError("no memory for keys of the C core")
        self._arena = ffi.gc(arena, lib.upseal_arena_free)
        self._scrub = _scrubber(idle)
        self._end = _ending(self._scrub)
        _alive.add(self)

    def record_key(self, cipher: int, material: Buffer) -> Any:
        """See Engine."""
        with ffi.from_buffer("uint8_t[]", material) as m:
            return self._kept(lib.upseal_arena_key(self._arena, cipher, m, len(m)))

    chunk_key = record_key

    def session_key(self, cipher: int, keys: Buffer) -> Any:
        """See Engine."""
        with ffi.from_buffer("uint8_t[]", keys) as k:
            if len(k) < SESSION:
                raise ValueError(f"the keys of a session are {SESSION} bytes, not {len(k)}")
            return self._kept(lib.upseal_session_key(self._arena, cipher, k))

    def batch_key(self, session: Any) -> Any:
        """See Engine."""
        return self._kept(lib.upseal_batch_key(self._arena, session))

    def upload_key(self, session: Any, info: bytes) -> tuple[Any, bytes]:
        """See Engine."""
        commitment = ffi.new("uint8_t[32]")
        key = lib.upseal_upload_key(self._arena, session, info, len(info), commitment)
        return self._kept(key), bytes(ffi.buffer(commitment))

    def expand(self, secret: Buffer, info: bytes, length: int) -> bytearray:
        """See Engine."""
        out = bytearray(length)
        with ffi.from_buffer("uint8_t[]", secret) as s, ffi.from_buffer("uint8_t[]", out) as o:
            if len(s) != lib.UPSEAL_KEY_LEN:
                raise ValueError(f"a secret is {lib.UPSEAL_KEY_LEN} bytes, not {len(s)}")
            status = lib.upseal_expand(s, info, len(info), o, length)
        if status:
            failed(status)
        return out

    def wipe(self, secret: bytes | bytearray) -> None:
        """See Engine."""
        lib.upseal_wipe(ffi.from_buffer("uint8_t[]", secret), len(secret))

    def key_memory(self) -> KeyMemory:
        """See Engine."""
        counts = ffi.new("uint64_t[3]")
        lib.upseal_arena_measure(self._arena, counts, counts + 1, counts + 2)
        return KeyMemory(*counts)

    def relock(self) -> None:
        """For the child of a fork, which has the keys without the locks."""
        lib.upseal_arena_relock(self._arena)

    def _kept(self, key: Any) -> Any:
        if key == ffi.NULL:
            raise EngineError("no memory for a key of the C core, or it is none")
        self._scrub()
        return ffi.gc(key, self._end)


# Both have all they need in their cells: keys may end when the interpreter has cleared its modules.


def _scrubber(idle: list[Workspace]) -> Callable[[], None]:
    work_scrub = lib.upseal_work_scrub

    def scrub() -> None:
        for _ in range(len(idle)):  # one at a time: whoever seals meanwhile wants the others
            try:
                space = idle.pop()
            except IndexError:
                break
            if space.alive:
                work_scrub(space.work)
                idle.insert(0, space)

    return scrub


def _ending(scrub: Callable[[], None]) -> Callable[[Any], None]:
    free = lib.upseal_key_free

    def end(key: Any) -> None:
        free(key)
        scrub()

    return end


_alive: WeakSet[Keys] = WeakSet()


def _after_fork() -> None:
    for keys in list(_alive):
        keys.relock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

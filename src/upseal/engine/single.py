# SPDX-License-Identifier: Apache-2.0
"""Reports sealed one by one by the C core: whatever stands in the way of one call is felt."""

from __future__ import annotations

from typing import Any

from upseal.engine._native import ffi, lib
from upseal.engine.memory import Workspace
from upseal.engine.sizes import NONCE, TAG
from upseal.engine.status import failed
from upseal.engine.types import SealOne

_BYTES, _FRONT = ffi.typeof("uint8_t[]"), ffi.typeof("upseal_front *")


def sealing(idle: list[Workspace], backend: int, key: Any, prefix: bytes, padded: bool) -> SealOne:
    """`Engine.sealing`, with the work spaces that are not in use.

    What stays the same for a session is in one C struct, so that cffi has 9 arguments to convert
    and not 12; and what Python needs each time is in a closure's cells, the quickest place it has.
    """
    at = ffi.from_buffer(_BYTES, prefix)
    front = ffi.new(_FRONT, (key, at, len(prefix), padded))
    around = len(prefix) + NONCE + TAG
    seal_report, padded_len = lib.upseal_seal_report, lib.upseal_padded_len

    # The struct points to the key and the prefix, and does not keep them: the default does.
    def seal(nonce: bytes, aad: bytes, report: bytes, _kept: Any = (key, at)) -> bytes:
        length = len(report)
        size = around + (padded_len(length) if padded else length)
        out = b"\0" * size  # as bytes(size), and faster
        try:
            space = idle.pop()
        except IndexError:
            space = Workspace(backend)
        status = seal_report(space.work, front, nonce, aad, len(aad), report, length, out, size)
        idle.append(space)
        if status:
            failed(status)
        return out

    return seal

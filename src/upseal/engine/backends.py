# SPDX-License-Identifier: Apache-2.0
"""The C core's backends: which are built in, and which of them work here."""

from __future__ import annotations

import os
import threading
from functools import cache

from upseal.engine import fips
from upseal.engine._native import ffi, lib

_asking = threading.Lock()
_NAME_MAX = 256

if fips.mode() is not None:
    lib.upseal_fips_only()


def built_in() -> list[tuple[int, str, str]]:
    """(index, name, version of the library under it) of each backend, best first."""
    found: list[tuple[int, str, str]] = []
    with _asking:  # to be asked for its version makes ippcp ready
        while (name := lib.upseal_backend_name(len(found))) != ffi.NULL:
            version = ffi.string(lib.upseal_backend_version(len(found))).decode()
            found.append((len(found), ffi.string(name).decode(), version))
    return found


def works(index: int) -> bool:
    """Whether the backend gives the known answers here; asked once, by one thread (upseal.h)."""
    with _asking:
        return _answers(index)


@cache
def _answers(index: int) -> bool:
    return bool(lib.upseal_backend_test(index) == lib.UPSEAL_OK)


def fips_provider(*, self_test: bool = False) -> str | None:
    """Who gives libcrypto's algorithms under ``fips=yes``, for people; None if nobody gives all.

    ``self_test`` has the provider run its own tests once more, which takes a tenth of a second.
    """
    out = ffi.new("char[]", _NAME_MAX)
    with _asking:
        if lib.upseal_fips_provider(self_test, out, _NAME_MAX):
            return None
    return str(ffi.string(out).decode("utf-8", "replace"))


def _after_fork() -> None:
    """In a child, nobody lets go of what another thread of its parent held."""
    global _asking
    _asking = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

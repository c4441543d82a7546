# SPDX-License-Identifier: Apache-2.0
"""Which engine runs, and why.

``UPSEAL_ENGINE=native|portable`` chooses; otherwise it is the native one wherever it was built and
works. ``UPSEAL_BACKEND`` names the native engine's backend (``ippcp``, ``openssl``). In FIPS mode
(`upseal.engine.fips`) there is one only if it works in a FIPS provider.
"""

from __future__ import annotations

import os
from functools import cache
from typing import NamedTuple

from upseal.engine import fips
from upseal.engine.machine import kernel_says_aes
from upseal.engine.sizes import AES_256_GCM, CHACHA20_POLY1305
from upseal.engine.types import Engine, EngineError


class Choice(NamedTuple):
    """An engine and the reason it was taken."""

    engine: Engine
    reason: str


@cache
def choose(name: str | None = None) -> Choice:
    """The engine of that name, or the one the environment or the machine decides for.

    Raises:
        EngineError: the one asked for cannot run here, or FIPS mode is on and cannot be kept.
        ValueError: there is none of that name.
    """
    fips.mode()  # a wrong word for it is no reason to take another engine
    wanted = name or os.environ.get("UPSEAL_ENGINE") or None
    source = "asked for" if name else "UPSEAL_ENGINE says so"
    if wanted == "portable":
        return _portable(source)
    if wanted not in (None, "native"):
        raise ValueError(f"no engine {wanted!r}: UPSEAL_ENGINE is 'native' or 'portable'")
    try:
        from upseal.engine.native import NativeEngine

        backend = os.environ.get("UPSEAL_BACKEND") or None
        engine = NativeEngine(backend)
    except (ImportError, EngineError) as error:
        if wanted or os.environ.get("UPSEAL_BACKEND"):
            raise EngineError(f"the native engine cannot run: {error}") from error
        return _portable(f"the native engine cannot run: {error}")
    return Choice(engine, source if wanted else "the C core is built and works here")


def resolve(engine: Engine | str | None) -> Engine:
    """An engine given as such or by its name; None for the best here."""
    return choose(engine).engine if engine is None or isinstance(engine, str) else engine


def _portable(reason: str) -> Choice:
    from upseal.engine.portable import PortableEngine

    return Choice(PortableEngine(), reason)


@cache
def default_cipher() -> int:
    """AES-256-GCM in FIPS mode and where the CPU has it, else ChaCha20-Poly1305."""
    if fips.mode() is not None:
        return AES_256_GCM
    try:
        from upseal.engine.native import cpu_has_aes

        fast = cpu_has_aes()
    except ImportError:
        fast = kernel_says_aes()
    return AES_256_GCM if fast else CHACHA20_POLY1305

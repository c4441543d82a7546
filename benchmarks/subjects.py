# SPDX-License-Identifier: Apache-2.0
"""What all benchmarks share: engines, keys, reports, and files that cost nothing."""

from __future__ import annotations

import io
import os
from array import array
from functools import cache
from typing import Any, NamedTuple

from upseal import Limits, Opener, PrivateKey, Sealer
from upseal.engine.types import EngineError

ENGINES = ("native[ippcp]", "native[openssl]", "portable")
CIPHERS = ("aes-256-gcm", "chacha20-poly1305")
SIZES = (64, 256, 1024, 4096, 16384)
"""Bytes of a report."""
MIB = 1 << 20


@cache
def engine(name: str) -> Any:
    """The engine of that name, or a string that says why there is none."""
    if name == "portable":
        from upseal.engine.portable import PortableEngine

        return PortableEngine()
    try:
        from upseal.engine.native import NativeEngine

        return NativeEngine(name.removeprefix("native[").removesuffix("]"))
    except (ImportError, EngineError) as error:
        return str(error)


@cache
def best() -> str:
    """The name of the engine that upseal takes by itself."""
    from upseal.engine import choose

    found = choose().engine.describe()
    return "portable" if found["engine"] == "portable" else f"native[{found['backend']}]"


@cache
def key() -> PrivateKey:
    """One X25519 recipient."""
    return PrivateKey.generate("x25519")


class Pair(NamedTuple):
    """A sealer and what opens it."""

    sealer: Sealer
    opener: Opener


def pair(name: str, cipher: str = CIPHERS[0]) -> Pair:
    """In a session that lasts: the public-key work is done before the clock runs."""
    limits = Limits(max_age=1e9, max_messages=1 << 32)
    sealer = Sealer([key().public_key], limits, cipher=cipher, engine=engine(name))
    opener = Opener([key()], engine=engine(name))
    opener.open(sealer.seal(b""))
    return Pair(sealer, opener)


def reports(size: int, count: int) -> list[bytes]:
    """Random ones, each an object of its own."""
    whole = os.urandom(size * count)
    return [whole[i * size : (i + 1) * size] for i in range(count)]


def packed(size: int, count: int) -> tuple[bytes, array]:
    """As many in Arrow's layout: values, and int64 offsets."""
    return os.urandom(size * count), array("q", (i * size for i in range(count + 1)))


class Sink(io.RawIOBase):
    """Takes everything and keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


class Source(io.RawIOBase):
    """``size`` bytes of zeros from nowhere: fills no buffer, since the caller's has zeros already.

    So an upload of any length needs no disk and no memory, and what is timed is the sealing.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        taken = min(len(target), self._left)
        self._left -= taken
        return taken


def seal_upload(sealer: Sealer, data: Any, sink: Any, piece: int = MIB) -> None:
    """A whole upload from memory, written ``piece`` by ``piece``."""
    whole = memoryview(data)
    with sealer.writer(sink) as writer:
        for at in range(0, len(whole), piece):
            writer.write(whole[at : at + piece])


def open_upload(opener: Opener, sealed: bytes, buffer: memoryview) -> None:
    """A whole upload from memory into a buffer used again."""
    with opener.reader(io.BytesIO(sealed)) as reader:
        while reader.readinto(buffer):
            pass

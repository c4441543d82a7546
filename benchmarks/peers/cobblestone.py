# SPDX-License-Identifier: Apache-2.0
"""``cryptography.cobblestone``: an independent implementation of the same upload format.

The key is there from the start: no recipients.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor

from peers.base import Peer

PIECE = 1 << 20
ROOM = PIECE + 64 * 1024
"""For what one `update_into` may give: the piece, what was held back, and its tags."""
CONTEXT = b"upseal benchmark"


def encrypt(key: bytes, data: memoryview, out: memoryview, piece: int = PIECE) -> None:
    """A whole upload into a buffer used again for each piece."""
    cipher = Cobblestone256Encryptor(key, CONTEXT)
    for at in range(0, len(data), piece):
        cipher.update_into(data[at : at + piece], out)
    cipher.finalize()


def decrypt(key: bytes, data: memoryview, out: memoryview, piece: int = PIECE) -> None:
    """And back."""
    cipher = Cobblestone256Decryptor(key, CONTEXT)
    for at in range(0, len(data), piece):
        cipher.update_into(data[at : at + piece], out)
    cipher.finalize()


class Cobblestone(Peer):
    """One thread, pieces of 1 MiB, buffers used again."""

    name = "cryptography Cobblestone-256"
    package = "cryptography"
    amortises = "the key is given: no recipients"
    files = True

    def __init__(self) -> None:
        self._key = Cobblestone256Encryptor.generate_key()

    def seal_file(self, source: Path, target: Path) -> None:
        _through(Cobblestone256Encryptor(self._key, CONTEXT), source, target)

    def open_file(self, source: Path, target: Path) -> None:
        _through(Cobblestone256Decryptor(self._key, CONTEXT), source, target)


def _through(cipher, source: Path, target: Path) -> None:
    buffer, out = memoryview(bytearray(PIECE)), memoryview(bytearray(ROOM))
    with source.open("rb", buffering=0) as reading, target.open("wb", buffering=0) as writing:
        while got := reading.readinto(buffer):
            writing.write(out[: cipher.update_into(buffer[:got], out)])
        writing.write(cipher.finalize())


PEERS = [Cobblestone]

# SPDX-License-Identifier: Apache-2.0
"""age as a Python package: ``pyrage``, which is rage, in Rust."""

from __future__ import annotations

from pathlib import Path

import pyrage

from peers.base import Peer


class Pyrage(Peer):
    """X25519 recipient; ChaCha20-Poly1305 in pieces of 64 KiB."""

    name = "age (pyrage)"
    package = "pyrage"
    reports = True
    files = True

    def __init__(self) -> None:
        self._key = pyrage.x25519.Identity.generate()
        self._public = self._key.to_public()

    def seal(self, report: bytes) -> bytes:
        return bytes(pyrage.encrypt(report, [self._public]))

    def open(self, sealed: bytes) -> bytes:
        return bytes(pyrage.decrypt(sealed, [self._key]))

    def seal_file(self, source: Path, target: Path) -> None:
        pyrage.encrypt_file(str(source), str(target), [self._public])

    def open_file(self, source: Path, target: Path) -> None:
        pyrage.decrypt_file(str(source), str(target), [self._key])


PEERS = [Pyrage]

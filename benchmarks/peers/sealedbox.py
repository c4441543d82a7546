# SPDX-License-Identifier: Apache-2.0
"""PyNaCl's SealedBox (libsodium: X25519, XSalsa20-Poly1305)."""

from __future__ import annotations

from nacl.public import PrivateKey, SealedBox

from peers.base import Peer


class Box(Peer):
    """A key pair of its own for each report."""

    name = "PyNaCl SealedBox"
    package = "PyNaCl"
    reports = True

    def __init__(self) -> None:
        private = PrivateKey.generate()
        self._private, self._public = SealedBox(private), SealedBox(private.public_key)

    def seal(self, report: bytes) -> bytes:
        return bytes(self._public.encrypt(report))

    def open(self, sealed: bytes) -> bytes:
        return self._private.decrypt(sealed)


PEERS = [Box]

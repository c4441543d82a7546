# SPDX-License-Identifier: Apache-2.0
"""``cryptography``'s HPKE (RFC 9180, X25519), single shot for every report."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from peers.base import Peer

SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
INFO = b"upseal benchmark"


class Hpke(Peer):
    """A key pair of its own and an exchange for each report."""

    name = "cryptography HPKE"
    package = "cryptography"
    reports = True

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self._public = self._private.public_key()

    def seal(self, report: bytes) -> bytes:
        return SUITE.encrypt(report, self._public, info=INFO)

    def open(self, sealed: bytes) -> bytes:
        return SUITE.decrypt(sealed, self._private, info=INFO)


PEERS = [Hpke]

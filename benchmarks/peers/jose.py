# SPDX-License-Identifier: Apache-2.0
"""JWE by joserfc: ECDH-ES+A256KW over X25519, A256GCM, compact serialisation."""

from __future__ import annotations

from joserfc import jwe
from joserfc.jwk import OKPKey

from peers.base import Peer

HEADER = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM"}


class Jwe(Peer):
    """A key pair of its own and an exchange for each report; base64 in the end."""

    name = "JWE (joserfc)"
    package = "joserfc"
    reports = True

    def __init__(self) -> None:
        self._key = OKPKey.generate_key("X25519")
        self._registry = jwe.JWERegistry(algorithms=list(HEADER.values()))
        self._registry.max_ciphertext_length = 1 << 26

    def seal(self, report: bytes) -> bytes:
        return jwe.encrypt_compact(HEADER, report, self._key, registry=self._registry).encode()

    def open(self, sealed: bytes) -> bytes:
        opened = jwe.decrypt_compact(sealed, self._key, registry=self._registry)
        return opened.plaintext or b""


PEERS = [Jwe]

# SPDX-License-Identifier: Apache-2.0
"""Tink: HPKE for reports, streaming AEAD (AES256_GCM_HKDF_1MB) for files."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfileobj

import tink
from tink import hybrid, streaming_aead

from peers.base import Peer

PIECE = 1 << 20


class Hybrid(Peer):
    """A key pair of its own and an exchange for each report."""

    name = "Tink hybrid"
    package = "tink"
    reports = True

    def __init__(self) -> None:
        hybrid.register()
        template = hybrid.hybrid_key_templates.DHKEM_X25519_HKDF_SHA256_HKDF_SHA256_AES_256_GCM
        private = tink.new_keyset_handle(template)
        self._encrypt = private.public_keyset_handle().primitive(hybrid.HybridEncrypt)
        self._decrypt = private.primitive(hybrid.HybridDecrypt)

    def seal(self, report: bytes) -> bytes:
        return self._encrypt.encrypt(report, b"")

    def open(self, sealed: bytes) -> bytes:
        return self._decrypt.decrypt(sealed, b"")


class Streaming(Peer):
    """Under a key that is there."""

    name = "Tink streaming"
    package = "tink"
    amortises = "the key is given: no recipients"
    files = True

    def __init__(self) -> None:
        streaming_aead.register()
        template = streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB
        self._aead = tink.new_keyset_handle(template).primitive(streaming_aead.StreamingAead)

    def seal_file(self, source: Path, target: Path) -> None:
        with (
            source.open("rb") as reading,
            target.open("wb") as writing,
            self._aead.new_encrypting_stream(writing, b"") as sealing,
        ):
            copyfileobj(reading, sealing, PIECE)

    def open_file(self, source: Path, target: Path) -> None:
        with (
            source.open("rb") as reading,
            target.open("wb") as writing,
            self._aead.new_decrypting_stream(reading, b"") as opening,
        ):
            copyfileobj(opening, writing, PIECE)


PEERS = [Hybrid, Streaming]

# SPDX-License-Identifier: Apache-2.0
"""AWS Encryption SDK with a raw AES key: no network, no key service."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from shutil import copyfileobj
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import aws_encryption_sdk
    from aws_encryption_sdk.identifiers import (
        Algorithm,
        CommitmentPolicy,
        EncryptionKeyType,
        WrappingAlgorithm,
    )
    from aws_encryption_sdk.internal.crypto.wrapping_keys import WrappingKey
    from aws_encryption_sdk.key_providers.raw import RawMasterKey

from peers.base import Peer

PIECE = 1 << 20


class Esdk(Peer):
    """AES-256-GCM with HKDF and key commitment, no signature, frames of 1 MiB for files."""

    name = "AWS Encryption SDK"
    package = "aws-encryption-sdk"
    amortises = "no public key: a data key is wrapped by AES for each report"
    reports = True
    files = True

    def __init__(self) -> None:
        wrapping = WrappingKey(
            wrapping_algorithm=WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING,
            wrapping_key=os.urandom(32),
            wrapping_key_type=EncryptionKeyType.SYMMETRIC,
        )
        self._key = RawMasterKey(provider_id="bench", key_id=b"key", wrapping_key=wrapping)
        self._client = aws_encryption_sdk.EncryptionSDKClient(
            commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
        )
        self._how = {
            "key_provider": self._key,
            "algorithm": Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY,
        }

    def seal(self, report: bytes) -> bytes:
        return self._client.encrypt(source=report, **self._how)[0]

    def open(self, sealed: bytes) -> bytes:
        return self._client.decrypt(source=sealed, key_provider=self._key)[0]

    def seal_file(self, source: Path, target: Path) -> None:
        self._through(source, target, mode="encrypt", frame_length=PIECE, **self._how)

    def open_file(self, source: Path, target: Path) -> None:
        self._through(source, target, mode="decrypt", key_provider=self._key)

    def _through(self, source: Path, target: Path, **how: Any) -> None:
        with (
            source.open("rb") as reading,
            target.open("wb") as writing,
            self._client.stream(source=reading, **how) as stream,
        ):
            copyfileobj(stream, writing, PIECE)


PEERS = [Esdk]

# SPDX-License-Identifier: Apache-2.0
"""Proof that somebody holds a pending private key, before anything is sealed to it.

A challenge is a random nonce sealed to the public key; the answer is a hash of the nonce, so that
whoever poses challenges learns no plaintext, not even of what he did not make himself. No private
key leaves its holder.

HPKE keys are told readiness from sessions by ``info``. OAEP has no such place that every HSM
supports, so there the words stand in the plaintext: a session secret (32 bytes) is never taken for
a challenge, nor the other way round.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
)

from upseal.core.keys import PrivateKey, PublicKey
from upseal.core.suites import Suite

INFO = b"upseal/v1 readiness"
NONCE = 32
CHALLENGE_MAX = 2048
"""No suite's challenge is longer: a bound for whoever reads one from the network."""

_KEMS = {
    Suite.P256: KEM.P256,
    Suite.X25519: KEM.X25519,
    Suite.MLKEM768_X25519: KEM.MLKEM768_X25519,
}


class BadChallenge(ValueError):  # noqa: N818 - what it is, as BadReceipt
    """It was not made for this key. Which step failed is not said."""

    def __init__(self) -> None:
        super().__init__("not a challenge for this key")


def make_challenge(public_key: PublicKey) -> tuple[bytes, bytes]:
    """A fresh challenge for the holder of that key, and the answer he will give."""
    nonce = os.urandom(NONCE)
    if public_key.suite is Suite.RSA_OAEP:
        sealed = bytes(public_key.parts[0].encrypt(INFO + nonce, _oaep()))
    else:
        sealed = _hpke(public_key.suite).encrypt(nonce, _recipient(public_key), info=INFO)
    return sealed, _answer(nonce)


class Prover(Protocol):
    """A private key that is kept elsewhere (`upseal.integrations.keys.HeldKey`)."""

    def answer_challenge(self, sealed: bytes) -> bytes:
        """As the function of that name."""


def answer_challenge(private_key: PrivateKey | Prover, sealed: bytes) -> bytes:
    """The answer, of 32 bytes.

    Raises:
        BadChallenge: it was not made for this key, or is damaged.
        KeyUnavailable: the key is kept elsewhere, and cannot be used at the moment.
    """
    if not isinstance(private_key, PrivateKey):
        return private_key.answer_challenge(sealed)
    return answer_with(private_key.public_key, partial(_decrypt, private_key), sealed)


def answer_with(public_key: PublicKey, decrypt: Callable[[bytes], bytes], sealed: bytes) -> bytes:
    """The answer, by whoever can decrypt for that key.

    Args:
        public_key: the challenge's.
        decrypt: by HPKE with our `INFO`, or by OAEP; ValueError if it does not open.
        sealed: the challenge.

    Raises:
        BadChallenge: it was not made for this key, or is damaged.
    """
    sealed = bytes(sealed)
    if len(sealed) != challenge_len(public_key):
        raise BadChallenge
    try:
        nonce = decrypt(sealed)
    except ValueError:  # also of a point that is not on the curve
        raise BadChallenge from None
    if public_key.suite is Suite.RSA_OAEP:
        if not nonce.startswith(INFO):
            raise BadChallenge
        nonce = nonce[len(INFO) :]
    if len(nonce) != NONCE:
        raise BadChallenge
    return _answer(nonce)


def _decrypt(private_key: PrivateKey, sealed: bytes) -> bytes:
    if private_key.suite is Suite.RSA_OAEP:
        return bytes(private_key.parts[0].decrypt(sealed, _oaep()))
    try:
        return _hpke(private_key.suite).decrypt(sealed, _holder(private_key), info=INFO)
    except InvalidTag:
        raise ValueError("not a challenge for this key") from None


def challenge_len(public_key: PublicKey) -> int:
    """How long a challenge for that key is, in bytes."""
    if public_key.suite is Suite.RSA_OAEP:
        return int(public_key.parts[0].key_size + 7) // 8
    # `enc || 32 bytes || tag`, as a session secret: the suite has one length only.
    return public_key.suite.wrapped_len.start


def _answer(nonce: bytes) -> bytes:
    return hashlib.sha256(b"ready" + nonce).digest()


@cache
def _hpke(suite: Suite) -> hpke.Suite:
    return hpke.Suite(_KEMS[suite], KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def _oaep() -> OAEP:
    return OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)


def _recipient(key: PublicKey) -> Any:
    return MLKEM768X25519PublicKey(*key.parts) if len(key.parts) == 2 else key.parts[0]


def _holder(key: PrivateKey) -> Any:
    return MLKEM768X25519PrivateKey(*key.parts) if len(key.parts) == 2 else key.parts[0]

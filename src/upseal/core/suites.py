# SPDX-License-Identifier: Apache-2.0
"""How a session secret is wrapped for one recipient: HPKE (RFC 9180) or RSA-OAEP (RFC 8017).

All of it is done by ``cryptography``. ``wrapped`` is ``enc || ciphertext`` for HPKE, base mode,
single shot, KDF HKDF-SHA256, AEAD AES-256-GCM.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import Any, Self

from cryptography.exceptions import InternalError, InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM

from upseal.engine.types import EngineError

SECRET_LEN = 32
INFO = b"upseal/v1 session"
"""HPKE's; its AAD is empty."""


_FACTS = {
    0x0010: ("p256", 113, 113),
    0x0020: ("x25519", 80, 80),
    0x647A: ("mlkem768-x25519", 1168, 1168),
    0xFF01: ("rsa", 256, 512),
}
"""Name, and shortest and longest wrapped secret: ``enc || 32 bytes || tag``, or the modulus."""


class Suite(IntEnum):
    """Numbers on the wire: the HPKE registry's KEM ids, and one of our own for RSA."""

    P256 = 0x0010
    X25519 = 0x0020
    MLKEM768_X25519 = 0x647A
    RSA_OAEP = 0xFF01

    label: str
    """The name people read: ``x25519``, ``p256``, ``mlkem768-x25519``, ``rsa``."""
    wrapped_len: range
    """How long a wrapped secret can be, in bytes."""

    def __new__(cls, value: int) -> Self:
        """Attributes, and no properties: every header asks for them."""
        suite = int.__new__(cls, value)
        suite._value_ = value
        suite.label, shortest, longest = _FACTS[value]
        suite.wrapped_len = range(shortest, longest + 1)
        return suite

    # Enum's own is written in Python and hashes the name; every header is looked up by its suite.
    __hash__ = int.__hash__

    @property
    def post_quantum(self) -> bool:
        """Whether it holds against a quantum computer."""
        return self is Suite.MLKEM768_X25519


_KEMS = {
    Suite.P256: KEM.P256,
    Suite.X25519: KEM.X25519,
    Suite.MLKEM768_X25519: KEM.MLKEM768_X25519,
}


@cache
def _hpke(suite: Suite) -> hpke.Suite:
    return hpke.Suite(_KEMS[suite], KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def _oaep() -> OAEP:
    # No label: many HSMs refuse one.
    return OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)


def wrap(suite: Suite, public_key: Any, secret: bytes) -> bytes:
    """The session secret for the holder of that key.

    Raises:
        EngineError: there are no random bytes, or no memory.
    """
    try:
        if suite is Suite.RSA_OAEP:
            return bytes(public_key.encrypt(secret, _oaep()))
        return _hpke(suite).encrypt(secret, public_key, info=INFO)
    except InternalError as error:
        raise EngineError("a session secret cannot be wrapped: OpenSSL refuses") from error


def unwrap(suite: Suite, private_key: Any, wrapped: bytes) -> bytes:
    """What was wrapped.

    Raises:
        ValueError: it was not wrapped for this key. Which step failed is not said.
    """
    if suite is Suite.RSA_OAEP:
        assert isinstance(private_key, rsa.RSAPrivateKey)
        return private_key.decrypt(wrapped, _oaep())
    try:
        return _hpke(suite).decrypt(wrapped, private_key, info=INFO)
    except InvalidTag:
        raise ValueError("not wrapped for this key") from None

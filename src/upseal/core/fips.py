# SPDX-License-Identifier: Apache-2.0
"""FIPS mode and public keys: which suites are for it, and whether a FIPS provider does the work."""

from __future__ import annotations

from functools import cache

from cryptography.exceptions import InternalError, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from upseal.engine.fips import cryptographys_openssl, mode, refusal
from upseal.errors import UnsupportedFormat

SUITES = ("p256", "rsa")
"""Of session secrets: ECDH on P-256 by HPKE, and RSA-OAEP. The hybrid has X25519 in it."""

# HPKE (RFC 9180) as suites use it, under the private key 01 02 .. 20: made by cryptography 50.
_SCALAR = bytes(range(1, 33))
_INFO = b"upseal/v1 known answer"
_SECRET = bytes(range(32))
_WRAPPED = bytes.fromhex(
    "04f8a606e1d202062f2185b07f11b8575c8199de45ea3ee3885ffa7f754ba66c6f098c2c4bc081005fb21818110f5a24"
    "44b760bedd713f05a660b7b7cca79f5334581da1ec337d98b20961bf4e0b90133091bd93fc0c1405e28bb35224be8e42"
    "4ba26da2f9e47e5a80228cb0de8b0f7925"
)


class NotApproved(UnsupportedFormat):
    """Sealed with a cipher that is not for FIPS mode. It can be opened where that is off."""

    message = "cannot be opened in FIPS mode: sealed with ChaCha20-Poly1305"


def check_suite(name: str) -> None:
    """For keys of a suite of that name, before anything is done with them.

    Raises:
        ValueError: FIPS mode is on, and the suite is not for it.
        EngineError: FIPS mode is on, and ``cryptography`` works in no FIPS provider.
    """
    who = mode()
    if who is None:
        return
    if name not in SUITES:
        raise ValueError(f"{name} keys are not for FIPS mode, which is on ({who}): use p256")
    public_key_work()


def check() -> None:
    """For other keys.

    Raises:
        EngineError: FIPS mode is on, and ``cryptography`` works in no FIPS provider.
    """
    if mode() is not None:
        public_key_work()


@cache
def public_key_work() -> str:
    """Checks where public-key work is done, once in a process: who does it, for people.

    A known secret is unwrapped, and a forged one refused.

    Raises:
        EngineError: not in a FIPS provider, or it gives a wrong answer.
    """
    name = cryptographys_openssl()
    try:
        good = _known_answer()
    except (InternalError, InvalidTag, UnsupportedAlgorithm, ValueError) as error:
        raise refusal(f"{name} fails its known-answer test ({type(error).__name__})") from error
    if not good:
        raise refusal(f"{name} fails its known-answer test")
    return f"{name}, which asks for fips=yes"


def _known_answer() -> bool:
    key = ec.derive_private_key(int.from_bytes(_SCALAR, "big"), ec.SECP256R1())
    suite = Suite(KEM.P256, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    if suite.decrypt(_WRAPPED, key, info=_INFO) != _SECRET:
        return False
    forged = _WRAPPED[:-1] + bytes([_WRAPPED[-1] ^ 1])
    try:
        suite.decrypt(forged, key, info=_INFO)
    except InvalidTag:
        return True
    return False

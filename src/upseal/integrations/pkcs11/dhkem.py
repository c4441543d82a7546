# SPDX-License-Identifier: Apache-2.0
"""HPKE (RFC 9180) in base mode where the Diffie-Hellman step is done by a token.

A token gives the raw shared secret of P-256. What follows is DHKEM's ExtractAndExpand (section
4.1), the key schedule (5.1) and one AEAD (5.2), with HKDF-SHA256 and AES-256-GCM, as docs/format.md
has it. All other keys go through the HPKE of ``cryptography``, which has no such way in.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

POINT = 65
"""Bytes of ``enc``: 04, x, y."""
_KEM = b"KEM" + (0x0010).to_bytes(2, "big")
_HPKE = b"HPKE" + b"".join(n.to_bytes(2, "big") for n in (0x0010, 0x0001, 0x0002))
_BASE = b"\0"


def check_point(enc: bytes) -> bytes:
    """The same, if it is a point on P-256 (RFC 9180, 7.1.4). It is public.

    Raises:
        ValueError: it is none.
    """
    if len(enc) != POINT:
        raise ValueError("not wrapped for this key")
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), enc)
    except ValueError:
        raise ValueError("not wrapped for this key") from None
    return enc


def open_base(
    enc: bytes, dh: bytes, public: bytes, ciphertext: bytes, info: bytes, aad: bytes = b""
) -> bytes:
    """The plaintext of a single-shot message.

    Args:
        enc: the sender's ephemeral public key, 65 bytes: see `check_point`.
        dh: the x-coordinate of the shared point, 32 bytes: what the token derived.
        public: the recipient's public key, encoded as ``enc``.
        ciphertext: with its tag of 16 bytes.
        info: HPKE's.
        aad: HPKE's.

    Raises:
        ValueError: it was not made for this key, or for another ``info`` or ``aad``.
    """
    prk = _extract(_KEM, b"", b"eae_prk", dh)
    shared = _expand(_KEM, prk, b"shared_secret", enc + public, 32)
    context = _BASE + _extract(_HPKE, b"", b"psk_id_hash", b"")
    context += _extract(_HPKE, b"", b"info_hash", info)
    secret = _extract(_HPKE, shared, b"secret", b"")
    key = _expand(_HPKE, secret, b"key", context, 32)
    nonce = _expand(_HPKE, secret, b"base_nonce", context, 12)
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, aad)
    except InvalidTag:
        raise ValueError("not wrapped for this key") from None


def _extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    """LabeledExtract of section 4; HKDF-Extract is HMAC, and an empty salt is one of zeros."""
    mac = HMAC(salt or bytes(32), SHA256())  # not Python's: in FIPS mode it is the provider's
    mac.update(b"HPKE-v1" + suite + label + ikm)
    return mac.finalize()


def _expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """LabeledExpand of section 4."""
    labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return HKDFExpand(SHA256(), length, labelled).derive(prk)

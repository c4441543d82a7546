# SPDX-License-Identifier: Apache-2.0
"""Keys that sign: of agents, relays, the server's receipts and the deployment's manifests.

Ed25519 (RFC 8032), or ECDSA on P-256 with SHA-256 in FIPS mode. A signature is always 64 bytes:
ECDSA's as ``r || s``, as JWS has it (RFC 7518, section 3.4).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from upseal.core import fips
from upseal.fleet.encoding import b64url, from_b64url
from upseal.fleet.files import make_private_directory, read_private, write_new_private

SIGNATURE_LEN = 64
KINDS = ("ed25519", "p256")
"""What `SigningKey.generate` makes."""

_ECDSA = ec.ECDSA(hashes.SHA256())
_UNSUITABLE = "not a signing key upseal uses: Ed25519 or ECDSA P-256"


class VerifyKey:
    """The public half: verifies, and names its owner."""

    __slots__ = ("agent_id", "algorithm", "der", "fingerprint", "key_id", "public")

    public: Any
    """The ``cryptography`` object."""
    der: bytes
    """SubjectPublicKeyInfo."""
    fingerprint: bytes
    """SHA-256 of it: 32 bytes, what is pinned."""
    agent_id: bytes
    """The first 16 bytes of the fingerprint: the name of the agent, relay or hop that has it."""
    key_id: bytes
    """The first 8."""
    algorithm: str
    """``Ed25519`` or ``ES256``: JWS's name for what this key can do, and the only thing."""

    def __init__(self, public: Any) -> None:
        """Takes a ``cryptography`` public key.

        Raises:
            ValueError: it is of another kind.
        """
        self.public = public
        self.algorithm = _algorithm(public, ed25519.Ed25519PublicKey, ec.EllipticCurvePublicKey)
        self.der = public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.fingerprint = hashlib.sha256(self.der).digest()
        self.agent_id = self.fingerprint[:16]
        self.key_id = self.fingerprint[:8]

    @classmethod
    def from_der(cls, spki: bytes) -> Self:
        """Reads SubjectPublicKeyInfo, in the one form that `der` has.

        Raises:
            ValueError: it is something else.
        """
        try:
            key = cls(serialization.load_der_public_key(spki))
        except (TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(_UNSUITABLE) from error
        if key.der != spki:  # another spelling would be another name for the same key
            raise ValueError("not the canonical DER of this key")
        return key

    @classmethod
    def from_pem(cls, data: bytes) -> Self:
        """Reads SubjectPublicKeyInfo in PEM.

        Raises:
            ValueError: it is something else.
        """
        try:
            return cls(serialization.load_pem_public_key(data))
        except (TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(_UNSUITABLE) from error

    def to_pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM."""
        pem: bytes = self.public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return pem

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether this key's owner signed it. Never raises for what an attacker can send."""
        if len(signature) != SIGNATURE_LEN:
            return False
        try:
            if self.algorithm == "Ed25519":
                self.public.verify(signature, message)
            else:
                r = int.from_bytes(signature[:32], "big")
                s = int.from_bytes(signature[32:], "big")
                self.public.verify(encode_dss_signature(r, s), message, _ECDSA)
        except (InvalidSignature, ValueError):
            return False
        return True

    def jwk(self) -> dict[str, str]:
        """RFC 7517, with the members that make the key and no others."""
        if self.algorithm == "Ed25519":
            return {"kty": "OKP", "crv": "Ed25519", "x": b64url(self.public.public_bytes_raw())}
        numbers = self.public.public_numbers()
        x, y = (b64url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "x": x, "y": y}

    @classmethod
    def from_jwk(cls, jwk: Any) -> Self:
        """What `jwk` gives.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(jwk, dict) or not all(isinstance(v, str) for v in jwk.values()):
            raise ValueError("not a JWK")
        match jwk:
            case {"kty": "OKP", "crv": "Ed25519", "x": x} if len(jwk) == 3:
                return cls(ed25519.Ed25519PublicKey.from_public_bytes(from_b64url(x, 32)))
            case {"kty": "EC", "crv": "P-256", "x": x, "y": y} if len(jwk) == 4:
                h, v = (int.from_bytes(from_b64url(part, 32), "big") for part in (x, y))
                return cls(ec.EllipticCurvePublicNumbers(h, v, ec.SECP256R1()).public_key())
        raise ValueError("not the JWK of an Ed25519 or P-256 public key")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifyKey) and self.der == other.der

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"<VerifyKey {self.algorithm} {self.key_id.hex()}>"


class SigningKey:
    """The private half."""

    __slots__ = ("private", "public")

    private: Any
    """The ``cryptography`` object."""
    public: VerifyKey

    def __init__(self, private: Any) -> None:
        """Takes a ``cryptography`` private key.

        Raises:
            ValueError: it is of another kind.
            EngineError: FIPS mode is on, and ``cryptography`` works in no FIPS provider.
        """
        fips.check()
        _algorithm(private, ed25519.Ed25519PrivateKey, ec.EllipticCurvePrivateKey)
        self.private = private
        self.public = VerifyKey(private.public_key())

    @classmethod
    def generate(cls, kind: str = "ed25519") -> Self:
        """Makes a key of one of `KINDS`.

        Raises:
            ValueError: there is no such kind.
        """
        if kind == "ed25519":
            return cls(ed25519.Ed25519PrivateKey.generate())
        if kind == "p256":
            return cls(ec.generate_private_key(ec.SECP256R1()))
        raise ValueError(f"no signing key {kind!r}: choose one of {', '.join(KINDS)}")

    @classmethod
    def from_pem(cls, data: bytes, passphrase: str | bytes | None = None) -> Self:
        """Reads PKCS#8 in PEM.

        Raises:
            TypeError: it is encrypted and no passphrase was given, or the other way round.
            ValueError: the passphrase is wrong, or it holds something else.
        """
        secret = passphrase.encode() if isinstance(passphrase, str) else passphrase
        try:
            return cls(serialization.load_pem_private_key(data, secret))
        except UnsupportedAlgorithm as error:
            raise ValueError(_UNSUITABLE) from error

    def to_pem(self, passphrase: str | bytes | None = None) -> bytes:
        """PKCS#8 in PEM; encrypted, by the best that ``cryptography`` has, given a passphrase.

        Raises:
            ValueError: the passphrase is empty.
        """
        secret = passphrase.encode() if isinstance(passphrase, str) else passphrase
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if secret is not None:
            if not secret:
                raise ValueError("the passphrase is empty")
            encryption = serialization.BestAvailableEncryption(secret)
        pem: bytes = self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
        return pem

    @property
    def algorithm(self) -> str:
        """``Ed25519`` or ``ES256``."""
        return self.public.algorithm

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        if self.algorithm == "Ed25519":
            signature: bytes = self.private.sign(message)
            return signature
        r, s = decode_dss_signature(self.private.sign(message, _ECDSA))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def __repr__(self) -> str:
        return f"<SigningKey {self.algorithm} {self.public.key_id.hex()}>"


def load_or_make(path: str | os.PathLike[str], kind: str = "ed25519") -> SigningKey:
    """The key in that file; if there is no file, a new key, written durably before it is returned.

    Two processes that start at once get the same key. The file has mode 0600.

    Raises:
        ValueError: there is no such kind, or the file holds something else.
        OSError: it cannot be read or written.
    """
    if kind not in KINDS:
        raise ValueError(f"no signing key {kind!r}: choose one of {', '.join(KINDS)}")
    target = Path(path)
    try:
        pem = read_private(target)
    except FileNotFoundError:
        make_private_directory(target.parent)
        key = SigningKey.generate(kind)
        if write_new_private(target, key.to_pem()):
            return key
        pem = read_private(target)  # somebody else was faster
    try:
        return SigningKey.from_pem(pem)
    except (TypeError, ValueError) as error:
        raise ValueError(f"no signing key in {target}: {error}") from error


def _algorithm(key: Any, edwards: type, elliptic: type) -> str:
    if isinstance(key, edwards):
        return "Ed25519"
    if isinstance(key, elliptic) and isinstance(key.curve, ec.SECP256R1):  # type: ignore[attr-defined]
        return "ES256"
    raise ValueError(f"{_UNSUITABLE}, not {type(key).__name__}")

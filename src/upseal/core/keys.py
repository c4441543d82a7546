# SPDX-License-Identifier: Apache-2.0
"""Private and public keys of recipients, and the files they live in.

PEM: PKCS#8 and SubjectPublicKeyInfo (RFC 5958, RFC 5280). The hybrid has two blocks in one file,
ML-KEM-768's then X25519's. A key is for this use alone.
"""

from __future__ import annotations

import hashlib
import re
from itertools import islice
from typing import Any, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, rsa, x25519
from cryptography.hazmat.primitives.hpke import (
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
)

from upseal.core import fips, suites
from upseal.core.copies import refuse
from upseal.core.suites import Suite
from upseal.engine.buffers import Buffer, as_bytes

KINDS = ("x25519", "p256", "mlkem768-x25519", "rsa2048", "rsa3072", "rsa4096")
"""What `PrivateKey.generate` makes."""

# A block ends before the next one begins: to look for its end beyond that took quadratic time.
_PEM_BLOCK = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]+)-----(?:(?!-----BEGIN ).)*?-----END \1-----\r?\n?", re.S
)
_BLOCK_MAX = 5000
"""Bytes. RSA-4096 takes 3.5 KB, encrypted; one of 8,192 bits is checked for seconds."""
_PRIVATE = (
    x25519.X25519PrivateKey,
    ec.EllipticCurvePrivateKey,
    rsa.RSAPrivateKey,
    mlkem.MLKEM768PrivateKey,
)
_PUBLIC = (
    x25519.X25519PublicKey,
    ec.EllipticCurvePublicKey,
    rsa.RSAPublicKey,
    mlkem.MLKEM768PublicKey,
)
_UNSUITABLE = (
    "{} is not a key upseal can use: X25519, P-256, RSA of 2048 to 4096 bits, "
    "or ML-KEM-768 and X25519 together (two PEM blocks, in this order)"
)


class PublicKey:
    """A recipient's public key: whoever holds the private one can open what is sealed to it."""

    __slots__ = ("_hpke", "_parts", "key_id", "suite")

    suite: Suite
    """How secrets are wrapped for it."""
    key_id: bytes
    """First 8 bytes of SHA-256 of the DER SubjectPublicKeyInfo (for the hybrid: of both)."""

    def __init__(self, *parts: Any) -> None:
        """Takes ``cryptography`` public keys: one, or ML-KEM-768's and X25519's.

        Raises:
            ValueError: no suite is made of these, or FIPS mode is on and the suite not for it.
            EngineError: FIPS mode is on, and ``cryptography`` works in no FIPS provider.
        """
        self.suite = _suite_of(parts, private=False)
        fips.check_suite(self.suite.label)
        self._parts = parts
        spki = b"".join(_spki(part, serialization.Encoding.DER) for part in parts)
        self.key_id = hashlib.sha256(spki).digest()[:8]
        self._hpke = MLKEM768X25519PublicKey(*parts) if len(parts) == 2 else parts[0]

    @classmethod
    def from_pem(cls, data: Buffer) -> Self:
        """Reads what `to_pem` wrote, or any PEM SubjectPublicKeyInfo of a suite of ours.

        Raises:
            ValueError: it holds something else.
        """
        blocks = _pem_blocks(data, b"PUBLIC KEY")
        try:
            return cls(*(serialization.load_pem_public_key(block) for block in blocks))
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(f"no public key for upseal in this PEM: {error}") from error

    @classmethod
    def from_certificate(cls, data: Buffer) -> Self:
        """The key in an X.509 certificate (DER or PEM), if it is one for encryption.

        Dates, chain and revocation are the caller's to check: they need a clock and roots.

        Raises:
            ValueError: not a certificate, or its key usage allows neither keyEncipherment nor
                keyAgreement, or it is one for TLS, or its key is of no suite of ours.
        """
        from upseal.core.certificates import encryption_key

        try:
            return cls(encryption_key(as_bytes(data, "a certificate")))
        except UnsupportedAlgorithm as error:
            raise ValueError(f"no public key for upseal in this certificate: {error}") from error

    def to_pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM; two blocks for the hybrid."""
        return b"".join(_spki(part, serialization.Encoding.PEM) for part in self._parts)

    @property
    def parts(self) -> tuple[Any, ...]:
        """The ``cryptography`` objects it is made of."""
        return self._parts

    @property
    def name(self) -> str:
        """As in `KINDS`."""
        return _name(self.suite, self._parts)

    def wrap(self, secret: bytes) -> bytes:
        """A session secret for this recipient (docs/format.md, "Wrapped session secrets")."""
        return suites.wrap(self.suite, self._hpke, secret)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.to_pem() == other.to_pem()

    def __hash__(self) -> int:
        return hash(self.key_id)

    def __repr__(self) -> str:
        return f"<PublicKey {self.name} {self.key_id.hex()}>"


class PrivateKey:
    """A recipient's private key."""

    __slots__ = ("_hpke", "_parts", "public_key")

    public_key: PublicKey

    __reduce_ex__ = refuse

    unwraps_afresh = True
    """See `upseal.core.known.KeyOpener`."""

    def __init__(self, *parts: Any) -> None:
        """Takes ``cryptography`` private keys: one, or ML-KEM-768's and X25519's.

        Raises:
            ValueError: no suite is made of these.
        """
        _suite_of(parts, private=True)
        self._parts = parts
        self._hpke = MLKEM768X25519PrivateKey(*parts) if len(parts) == 2 else parts[0]
        self.public_key = PublicKey(*(part.public_key() for part in parts))

    @classmethod
    def generate(cls, kind: str = "x25519") -> Self:
        """Makes a key of one of `KINDS`.

        Raises:
            ValueError: there is no such kind, or FIPS mode is on and the kind not for it.
            EngineError: FIPS mode is on, and ``cryptography`` works in no FIPS provider.
        """
        if kind in KINDS:  # before OpenSSL refuses in its own words
            fips.check_suite("rsa" if kind.startswith("rsa") else kind)
        if kind == "x25519":
            return cls(x25519.X25519PrivateKey.generate())
        if kind == "p256":
            return cls(ec.generate_private_key(ec.SECP256R1()))
        if kind == "mlkem768-x25519":
            return cls(mlkem.MLKEM768PrivateKey.generate(), x25519.X25519PrivateKey.generate())
        if kind in KINDS:
            return cls(rsa.generate_private_key(65537, int(kind.removeprefix("rsa"))))
        raise ValueError(f"no key type {kind!r}: choose one of {', '.join(KINDS)}")

    @classmethod
    def from_pem(cls, data: Buffer, passphrase: str | bytes | None = None) -> Self:
        """Reads what `to_pem` wrote, or any PEM private key of a suite of ours.

        Raises:
            TypeError: it is encrypted and no passphrase was given, or the other way round.
            ValueError: the passphrase is wrong, or it holds something else.
        """
        blocks = _pem_blocks(data, b"PRIVATE KEY")
        secret = _passphrase(passphrase)
        try:
            return cls(*(serialization.load_pem_private_key(block, secret) for block in blocks))
        except UnsupportedAlgorithm as error:
            raise ValueError(f"no private key for upseal in this PEM: {error}") from error

    def to_pem(self, passphrase: str | bytes | None = None) -> bytes:
        """PKCS#8 in PEM; encrypted, by the best that ``cryptography`` has, if given a passphrase.

        Raises:
            ValueError: the passphrase is empty.
        """
        secret = _passphrase(passphrase)
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if secret is not None:
            encryption = serialization.BestAvailableEncryption(secret)
        return b"".join(
            part.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
            )
            for part in self._parts
        )

    @property
    def suite(self) -> Suite:
        """How secrets are wrapped for it."""
        return self.public_key.suite

    @property
    def key_id(self) -> bytes:
        """Its public key's."""
        return self.public_key.key_id

    @property
    def parts(self) -> tuple[Any, ...]:
        """The ``cryptography`` objects it is made of."""
        return self._parts

    def unwrap(self, wrapped: bytes) -> bytes:
        """The session secret wrapped for this key.

        Raises:
            ValueError: it was not. An `Opener` never tells its caller.
        """
        return suites.unwrap(self.suite, self._hpke, wrapped)

    def __repr__(self) -> str:
        return f"<PrivateKey {self.public_key.name} {self.key_id.hex()}>"


def _suite_of(parts: tuple[Any, ...], *, private: bool) -> Suite:
    x25519_key, ec_key, rsa_key, mlkem_key = _PRIVATE if private else _PUBLIC
    match parts:
        case (key,):
            if isinstance(key, x25519_key):
                return Suite.X25519
            if isinstance(key, ec_key) and isinstance(key.curve, ec.SECP256R1):
                return Suite.P256
            if isinstance(key, rsa_key) and 2048 <= key.key_size <= 4096:
                return Suite.RSA_OAEP
        case (first, second):
            if isinstance(first, mlkem_key) and isinstance(second, x25519_key):
                return Suite.MLKEM768_X25519
    raise ValueError(_UNSUITABLE.format(" and ".join(type(p).__name__ for p in parts) or "nothing"))


def _name(suite: Suite, parts: tuple[Any, ...]) -> str:
    return f"rsa{parts[0].key_size}" if suite is Suite.RSA_OAEP else suite.label


def _spki(key: Any, encoding: serialization.Encoding) -> bytes:
    return bytes(key.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo))


def _pem_blocks(data: Buffer, label: bytes) -> list[bytes]:
    found = (
        match.group() for match in _PEM_BLOCK.finditer(as_bytes(data, "PEM"))
        if match.group(1).endswith(label)
    )  # fmt: skip
    blocks = list(islice(found, 3))  # no key has three
    if not blocks:
        raise ValueError(f"no {label.decode()} block in this PEM")
    if any(len(block) > _BLOCK_MAX for block in blocks):
        raise ValueError(f"a {label.decode()} block in this PEM is too long to be a key for upseal")
    return blocks


def _passphrase(passphrase: str | bytes | None) -> bytes | None:
    secret = passphrase.encode() if isinstance(passphrase, str) else passphrase
    if secret == b"":
        raise ValueError("the passphrase is empty")
    return secret

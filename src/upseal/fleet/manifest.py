# SPDX-License-Identifier: Apache-2.0
"""The manifest: what a deployment says about itself, signed by its administrator.

Everything an agent or relay believes comes from here. It is read strictly: what a parser takes,
written again, is the same claims, so there is one form of each manifest and none with extras.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509 import DuplicateExtension, UnsupportedGeneralNameType

from upseal.core.keys import PublicKey
from upseal.fleet import jws, manifest_certificates
from upseal.fleet.encoding import from_hex
from upseal.fleet.identity import SigningKey, VerifyKey
from upseal.fleet.manifest_checks import check_consistency
from upseal.fleet.manifest_claims import ManifestError, Reader
from upseal.fleet.policy import Absent, Certificate, Level

__all__ = [
    "EncryptionKey",
    "Manifest",
    "ManifestError",
    "RelayEntry",
    "State",
    "check_certificates",
]

MANIFEST_MAX = 8 << 20
"""Longest signed manifest, in bytes."""
RECIPIENTS_MAX = 15
"""Active keys: a session takes 16 recipients, and a decrypting relay is one of them."""
_VERSION = 1


class State(Enum):
    """Where a deployment stands. Only `upseal admin` moves it."""

    DISABLED = "disabled"
    PENDING = "pending"
    """A first key is made, and its holders prepare."""
    ENABLED = "enabled"
    PENDING_ROTATION = "pending-rotation"
    """Sealed to the old key still, while the holders of the next one prepare."""

    @property
    def active(self) -> bool:
        """Whether agents seal."""
        return self in (State.ENABLED, State.PENDING_ROTATION)

    @property
    def has_pending(self) -> bool:
        """Whether a key waits to be enabled."""
        return self in (State.PENDING, State.PENDING_ROTATION)


@dataclass(frozen=True, slots=True)
class EncryptionKey:
    """A public key that reports are sealed to.

    Args:
        certificate: X.509 in PEM, for every suite that has such certificates.
        public_key: PEM of the hybrid, which has none; exactly one of the two is there.
        generation: of the keys of the deployment, upwards from 1; what is apart from them has 0.
    """

    certificate: str | None
    public_key: str | None
    generation: int

    def public(self) -> PublicKey:
        """The key.

        Raises:
            ManifestError: there is none that could be used for encryption.
        """
        try:
            return _public(self.certificate, self.public_key)
        except (
            ValueError, TypeError,
            UnsupportedAlgorithm, DuplicateExtension, UnsupportedGeneralNameType,
        ) as error:  # fmt: skip
            raise ManifestError(f"an encryption key: {error}") from None

    @property
    def key_id(self) -> bytes:
        """8 bytes."""
        return self.public().key_id

    def claims(self) -> dict[str, Any]:
        """For JSON."""
        if self.certificate is not None:
            return {"certificate": self.certificate, "generation": self.generation}
        return {"public_key": self.public_key, "generation": self.generation}

    @classmethod
    def read(cls, claims: Any) -> Self:
        """What `claims` gives.

        Raises:
            ManifestError: it is something else.
        """
        reader = Reader(claims, "an encryption key")
        form = "certificate" if reader.has("certificate") else "public_key"
        pem = reader.text(form, 64 << 10)
        generation = reader.number("generation", 2**32)
        reader.finish()
        certificate, public_key = (pem, None) if form == "certificate" else (None, pem)
        return cls(certificate, public_key, generation)


@dataclass(frozen=True, slots=True)
class RelayEntry:
    """A relay that the manifest vouches for.

    Args:
        relay: 16 bytes, the agent id of its identity key.
        name: for people.
        identity: signs its capabilities and its answers to challenges.
        accepts_sealed: whether it may say that it takes sealed reports.
        decrypts: whether agents below it seal to it as well.
        keys: its own encryption keys, the newest first; empty if it does not decrypt.
    """

    relay: bytes
    name: str
    identity: VerifyKey
    accepts_sealed: bool
    decrypts: bool
    keys: tuple[EncryptionKey, ...] = ()

    def claims(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "relay": self.relay.hex(),
            "name": self.name,
            "identity": self.identity.jwk(),
            "accepts_sealed": self.accepts_sealed,
            "decrypts": self.decrypts,
            "keys": [key.claims() for key in self.keys],
        }

    @classmethod
    def read(cls, claims: Any) -> Self:
        """What `claims` gives.

        Raises:
            ManifestError: it is something else.
        """
        reader = Reader(claims, "a relay")
        entry = cls(
            reader.hex("relay", 16),
            reader.text("name", 256),
            reader.key("identity"),
            reader.flag("accepts_sealed"),
            reader.flag("decrypts"),
            tuple(EncryptionKey.read(key) for key in reader.items("keys", 64)),
        )
        reader.finish()
        return entry


@dataclass(frozen=True, slots=True)
class Manifest:
    """One manifest. `docs/fleet.md` says what each part is for.

    Args:
        deployment: 16 bytes.
        serial: upwards from 1; the same serial with other words is an alarm.
        issued: unix milliseconds; certificates must be valid then.
        expires: from then on it is stale, and agents seal to it all the same.
        state: where the deployment stands.
        authorities: certificates of the CAs, PEM; each is trusted, an intermediate one too.
        encryption: what agents seal to: the server's key first, then escrow keys.
        pending: the next such keys.
        generation: of the newest key made.
        oldest_generation: holders delete what is older.
        relays: those that the deployment vouches for.
        receipt_keys: the server's, for receipts, credentials and its own words.
        enrolment: requests to enrol are sealed to it.
        signing_keys: those that may sign the next manifest, and the one that signed this.
        revoked_agents: identity ids and hop ids.
        revoked_certificates: serial numbers.
        default_level: overrides what clients have in their settings.
        levels: overrides both, by agent.
    """

    deployment: bytes
    serial: int
    issued: int
    expires: int
    state: State
    authorities: tuple[str, ...]
    encryption: tuple[EncryptionKey, ...]
    pending: tuple[EncryptionKey, ...]
    generation: int
    oldest_generation: int
    relays: tuple[RelayEntry, ...]
    receipt_keys: tuple[VerifyKey, ...]
    enrolment: EncryptionKey
    signing_keys: tuple[VerifyKey, ...]
    revoked_agents: frozenset[bytes] = frozenset()
    revoked_certificates: frozenset[int] = frozenset()
    default_level: Level | None = None
    levels: Mapping[bytes, Level] = field(default_factory=dict)

    # -- what it means ---------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether agents seal."""
        return self.state.active

    def usable(self) -> Certificate | Absent:
        """What `decide` takes; whether it is stale is for whoever has a clock."""
        if not self.active:
            return Absent.DISABLED
        return Certificate(tuple(key.public() for key in self.encryption))

    def level_for(self, agent: bytes) -> Level | None:
        """What the administrator wants of an agent; None: its own settings hold."""
        return self.levels.get(agent, self.default_level)

    def relay(self, relay: bytes) -> RelayEntry | None:
        """The relay of that id."""
        return next((entry for entry in self.relays if entry.relay == relay), None)

    def signers(self) -> dict[str, VerifyKey]:
        """Who may sign the next one, by key id in hex."""
        return {key.key_id.hex(): key for key in self.signing_keys}

    def receivers(self) -> dict[str, VerifyKey]:
        """Receipt keys, by key id in hex: as `jws.verify` takes them."""
        return {key.key_id.hex(): key for key in self.receipt_keys}

    # -- writing ---------------------------------------------------------------------

    def claims(self) -> dict[str, Any]:
        """For JSON."""
        level = self.default_level
        return {
            "version": _VERSION,
            "deployment": self.deployment.hex(),
            "serial": self.serial,
            "issued": self.issued,
            "expires": self.expires,
            "state": self.state.value,
            "authorities": list(self.authorities),
            "encryption": [key.claims() for key in self.encryption],
            "pending": [key.claims() for key in self.pending],
            "generation": self.generation,
            "oldest_generation": self.oldest_generation,
            "relays": [relay.claims() for relay in self.relays],
            "receipt_keys": [key.jwk() for key in self.receipt_keys],
            "enrolment": self.enrolment.claims(),
            "signing_keys": [key.jwk() for key in self.signing_keys],
            "revoked_agents": sorted(agent.hex() for agent in self.revoked_agents),
            # Up to 160 bits: more than a JSON number is sure to keep.
            "revoked_certificates": [f"{serial:x}" for serial in sorted(self.revoked_certificates)],
            "default_level": None if level is None else level.value,
            "levels": {agent.hex(): self.levels[agent].value for agent in sorted(self.levels)},
        }

    def sign(self, key: SigningKey) -> str:
        """As JWS, with the key in its header for those that have a fingerprint alone.

        Raises:
            ManifestError: whoever got it would refuse it.
        """
        if key.public not in self.signing_keys:
            raise ManifestError("the key that signs must be among the signing keys")
        try:
            claims = self.claims()
        except (AttributeError, TypeError):
            raise ManifestError("something in it is of the wrong type") from None
        if self.from_claims(claims) != self:
            raise ManifestError("something in it is of the wrong type")
        check_certificates(self)
        token = jws.sign(claims, key, jws.MANIFEST, include_key=True)
        if len(token) > MANIFEST_MAX:
            raise ManifestError(f"{len(token)} bytes: a manifest has at most {MANIFEST_MAX}")
        return token

    # -- reading ---------------------------------------------------------------------

    @classmethod
    def from_claims(cls, claims: Any) -> Self:
        """What `claims` gives; says nothing about certificates (`check_certificates`).

        Raises:
            ManifestError: it is something else, or contradicts itself.
        """
        try:
            manifest = cls._read(claims)
            if manifest.claims() != claims:  # upper case, twice the same, another order
                raise ManifestError("a manifest in another form than the one it is written in")
            check_consistency(manifest)
        except ManifestError:
            raise
        except ValueError as error:
            raise ManifestError(f"a manifest: {error}") from None
        return manifest

    @classmethod
    def _read(cls, claims: Any) -> Self:
        reader = Reader(claims, "a manifest")
        if reader.number("version", 2**31) != _VERSION:
            raise ManifestError("a manifest of a version that is not known here")
        level = reader.optional_text("default_level", 16)
        manifest = cls(
            deployment=reader.hex("deployment", 16),
            serial=reader.number("serial", 2**53),
            issued=reader.number("issued", 2**53),
            expires=reader.number("expires", 2**53),
            state=reader.one_of("state", State),
            authorities=reader.texts("authorities", 64, 64 << 10),
            encryption=_keys(reader, "encryption"),
            pending=_keys(reader, "pending"),
            generation=reader.number("generation", 2**32),
            oldest_generation=reader.number("oldest_generation", 2**32),
            relays=tuple(RelayEntry.read(relay) for relay in reader.items("relays", 1 << 16)),
            receipt_keys=reader.keys("receipt_keys", 64),
            enrolment=EncryptionKey.read(reader.value("enrolment")),
            signing_keys=reader.keys("signing_keys", 16),
            revoked_agents=frozenset(
                from_hex(agent, 16) for agent in reader.items("revoked_agents", 1 << 20)
            ),
            revoked_certificates=frozenset(
                int(serial, 16) for serial in reader.texts("revoked_certificates", 1 << 16, 64)
            ),
            default_level=None if level is None else reader.level(level),
            levels={
                from_hex(agent, 16): reader.level(value)
                for agent, value in reader.mapping("levels", 1 << 20).items()
            },
        )
        reader.finish()
        return manifest

    @classmethod
    def open(cls, token: str | bytes, keys: VerifyKey | Mapping[str, VerifyKey]) -> Self:
        """A signed manifest, verified whole: signature, form, certificates.

        Raises:
            JwsError: it is not signed by one of these keys.
            ManifestError: it is, and is no manifest all the same.
        """
        manifest = cls.from_claims(jws.verify(token, keys, jws.MANIFEST, limit=MANIFEST_MAX))
        check_certificates(manifest)
        return manifest


def check_certificates(manifest: Manifest) -> None:
    """Every certificate: issued by an authority, valid at ``issued``, for encryption, not revoked.

    Raises:
        ManifestError: one is not: the manifest as a whole is to be ignored.
    """
    manifest_certificates.check(manifest)


def _keys(reader: Reader, name: str) -> tuple[EncryptionKey, ...]:
    return tuple(EncryptionKey.read(key) for key in reader.items(name, RECIPIENTS_MAX))


@lru_cache(1 << 14)
def _public(certificate: str | None, public_key: str | None) -> PublicKey:
    if (certificate is None) == (public_key is None):
        raise ValueError("it has either a certificate or a public key")
    if certificate is not None:
        return PublicKey.from_certificate(certificate.encode())
    assert public_key is not None
    key = PublicKey.from_pem(public_key.encode())
    if len(key.parts) == 1:
        raise ValueError("only the hybrid, which X.509 has no form for, comes without certificate")
    if key.to_pem() != public_key.encode():
        raise ValueError("the PEM has something else in it")
    return key

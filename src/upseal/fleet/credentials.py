# SPDX-License-Identifier: Apache-2.0
"""Joining a deployment: tokens, requests to enrol, and the server's answer.

A token is made by the administrator and used once. It carries the fingerprint of the key that signs
manifests, so that the newcomer needs no other trust, and a secret, so that the server knows who is
invited. The request is signed by the newcomer's new key and sealed to the server: relays on the way
read nothing of it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from upseal import Opener, Sealer
from upseal.fleet import jws
from upseal.fleet.encoding import b64url, from_b64url
from upseal.fleet.hops import Hop, HopCheck, HopRefused, issue_credential, prove
from upseal.fleet.identity import SigningKey, VerifyKey
from upseal.fleet.jws import JwsError
from upseal.fleet.manifest import Manifest
from upseal.fleet.manifest_claims import ManifestError, Reader

__all__ = [
    "ENROL_MAX",
    "BadEnrolment",
    "EnrolRequest",
    "Enrolled",
    "Hop",
    "HopCheck",
    "HopRefused",
    "Token",
    "enrol_request",
    "enrolled_answer",
    "issue_credential",
    "open_enrol_request",
    "open_enrolled",
    "prove",
]

Role = Literal["agent", "relay"]

ENROL_MAX = 16 << 10
"""Longest request, in bytes; anybody may send one."""
NAME_MAX = 128
_PREFIX = "upseal-token-1."
_TOKEN = struct.Struct(">16s32sQ16s")
_CHECK = 4
_CONTEXT = b"upseal/v1 enrol\0"


class BadEnrolment(ValueError):  # noqa: N818 - what it is
    """No request to enrol, or no answer to one."""


@dataclass(frozen=True, slots=True)
class Token:
    """An invitation.

    Args:
        deployment: 16 bytes.
        fingerprint: 32 bytes, of the key that signs manifests.
        least_serial: of the manifests the newcomer may believe.
        secret: 16 bytes; never logged, nor shown in a ``repr``.

    Raises:
        ValueError: a length or number is wrong.
    """

    deployment: bytes
    fingerprint: bytes
    least_serial: int
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        sizes = (len(self.deployment), len(self.fingerprint), len(self.secret))
        if sizes != (16, 32, 16) or not 0 <= self.least_serial < 2**53:
            raise ValueError("a token has parts of 16, 32 and 16 bytes, and a serial")

    def encode(self) -> str:
        """One word, to be copied."""
        data = _TOKEN.pack(self.deployment, self.fingerprint, self.least_serial, self.secret)
        return _PREFIX + b64url(data + _checksum(data))

    @classmethod
    def decode(cls, text: str) -> Self:
        """What `encode` gave; white space round it does not matter.

        Raises:
            ValueError: it is no token, or was not copied whole.
        """
        word = text.strip()
        if not word.startswith(_PREFIX):
            raise ValueError(f"not a token: it begins with {_PREFIX!r}")
        try:
            data = from_b64url(word.removeprefix(_PREFIX), _TOKEN.size + _CHECK)
        except ValueError:
            raise ValueError("not a token, or not copied whole") from None
        body = data[:-_CHECK]
        if data[-_CHECK:] != _checksum(body):
            raise ValueError("not a token: there is a typing error in it")
        return cls(*_TOKEN.unpack(body))


@dataclass(frozen=True, slots=True)
class EnrolRequest:
    """A request to enrol, opened: whoever sent it has the identity's private key.

    Whether the token is good, was used by another key, or the hop key is somebody else's already is
    for the server's store to say.

    Args:
        secret: the token's.
        deployment: 16 bytes.
        identity: signs statements.
        hop: signs requests.
        name: for people.
        role: ``agent`` or ``relay``.
        decrypts: of a relay, whether it wants to open what agents seal.
        accepts_sealed: of a relay, whether it takes sealed reports.
        milliseconds: when it was signed.
    """

    secret: bytes = field(repr=False)
    deployment: bytes
    identity: VerifyKey
    hop: VerifyKey
    name: str
    role: Role
    decrypts: bool
    accepts_sealed: bool
    milliseconds: int

    @property
    def agent(self) -> bytes:
        """Its id, 16 bytes."""
        return self.identity.agent_id

    @property
    def hop_id(self) -> bytes:
        """Its id at hops, 16 bytes."""
        return self.hop.agent_id


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The server's answer.

    Args:
        deployment: 16 bytes.
        agent: who was enrolled, 16 bytes.
        credential: to be shown at hops.
    """

    deployment: bytes
    agent: bytes
    credential: str = field(repr=False)


def enrol_context(deployment: bytes) -> bytes:
    """The context that requests to enrol are sealed under."""
    return _CONTEXT + deployment


def enrol_request(
    token: Token,
    manifest: Manifest,
    identity: SigningKey,
    hop: SigningKey,
    *,
    name: str,
    role: Role = "agent",
    now_ms: int,
    decrypts: bool = False,
    accepts_sealed: bool = True,
) -> bytes:
    """A request to enrol, signed by ``identity`` and sealed to the manifest's enrolment key.

    Args:
        token: the invitation.
        manifest: verified, by the fingerprint in the token.
        identity: the newcomer's new key.
        hop: another one, so that relays do not learn who reports.
        name: for people.
        role: ``agent`` or ``relay``.
        now_ms: unix time.
        decrypts: a relay's wish.
        accepts_sealed: a relay's.

    Raises:
        ValueError: the token is another deployment's, or something else does not go together.
    """
    if manifest.deployment != token.deployment:
        raise ValueError("the token is for another deployment")
    if identity.public == hop.public:
        raise ValueError("the hop key must not be the identity key: relays would learn who reports")
    claims = {
        "secret": b64url(token.secret),
        "deployment": token.deployment.hex(),
        "identity": identity.public.jwk(),
        "hop": hop.public.jwk(),
        "name": name,
        "role": role,
        "decrypts": decrypts,
        "accepts_sealed": accepts_sealed,
        "t": now_ms,
    }
    try:
        _read_request(claims)  # what the server would refuse is found out here
    except BadEnrolment as error:
        raise ValueError(str(error)) from None
    signed = jws.sign(claims, identity, jws.ENROL, include_key=True)
    sealer = Sealer([manifest.enrolment.public()])
    return sealer.seal(signed.encode(), enrol_context(token.deployment))


def open_enrol_request(
    body: bytes,
    opener: Opener,
    deployment: bytes,
    admit: Callable[[EnrolRequest], None] = lambda _: None,
) -> EnrolRequest:
    """What `enrol_request` made.

    Args:
        body: from anybody.
        opener: has the enrolment key.
        deployment: whose server this is.
        admit: told what it says before its signature is looked at, and raises to be spared that:
            anybody can seal a request, and to open it was one public-key operation.

    Raises:
        OpenError: it cannot be opened (`UnknownRecipient`: sealed to another key).
        BadEnrolment: it can, and is no request, or not signed by the key that it names.
    """
    if len(body) > ENROL_MAX:
        raise BadEnrolment(f"longer than {ENROL_MAX} bytes")
    signed = opener.open(body, enrol_context(deployment))
    try:
        said = _read_request(jws.unverified(signed, limit=ENROL_MAX))
        admit(said)
        key = jws.key_in(signed, limit=ENROL_MAX)
        claims = jws.verify(signed, key, jws.ENROL, limit=ENROL_MAX)
    except JwsError as error:
        raise BadEnrolment(f"not a signed request: {error}") from None
    request = _read_request(claims)
    if request.identity != key:
        raise BadEnrolment("signed by another key than the one it names")
    if request.deployment != deployment:
        raise BadEnrolment("for another deployment")
    return request


def enrolled_answer(
    request: EnrolRequest, receipt_key: SigningKey, now_ms: int, credential: str | None = None
) -> str:
    """The server's yes, signed: with the credential that it has issued, or a new one."""
    if credential is None:
        credential = issue_credential(
            request.deployment, request.hop, request.role, receipt_key, now_ms
        )
    claims = {
        "deployment": request.deployment.hex(),
        "agent": request.agent.hex(),
        "credential": credential,
    }
    return jws.sign(claims, receipt_key, jws.ENROLLED)


def open_enrolled(
    answer: str | bytes, keys: Mapping[str, VerifyKey], deployment: bytes, agent: bytes
) -> Enrolled:
    """The server's answer, verified.

    Args:
        answer: from anywhere.
        keys: the manifest's receipt keys (`Manifest.receivers`).
        deployment: whose it must be.
        agent: for whom.

    Raises:
        BadEnrolment: it is anything else.
    """
    try:
        reader = Reader(jws.verify(answer, keys, jws.ENROLLED), "an answer")
        found = Enrolled(
            reader.hex("deployment", 16), reader.hex("agent", 16), reader.text("credential", 4096)
        )
        reader.finish()
    except (JwsError, ManifestError) as error:
        raise BadEnrolment(str(error)) from None
    if found.deployment != deployment or found.agent != agent:
        raise BadEnrolment("the answer is for somebody else")
    return found


def _read_request(claims: Any) -> EnrolRequest:
    try:
        reader = Reader(claims, "a request to enrol")
        role: Role = "relay" if reader.value("role") == "relay" else "agent"
        if reader.value("role") != role:
            raise reader.error("role", "neither agent nor relay")
        request = EnrolRequest(
            secret=from_b64url(reader.text("secret", 64), 16),
            deployment=reader.hex("deployment", 16),
            identity=reader.key("identity"),
            hop=reader.key("hop"),
            name=reader.text("name", NAME_MAX),
            role=role,
            decrypts=reader.flag("decrypts"),
            accepts_sealed=reader.flag("accepts_sealed"),
            milliseconds=reader.number("t", 2**53),
        )
        reader.finish()
        if not request.name.isprintable():
            raise reader.error("name", "it cannot be shown")
        if request.identity == request.hop:
            raise reader.error("hop", "the same key as the identity")
    except ValueError as error:
        raise BadEnrolment(str(error)) from None
    return request


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(b"upseal-token-1" + data).digest()[:_CHECK]

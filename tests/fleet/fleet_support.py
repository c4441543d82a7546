# SPDX-License-Identifier: Apache-2.0
"""A deployment for the tests of the fleet: its CA, keys and signed manifests, by the real code.

site = Site()                                  # disabled, serial 1
site.enable()                                  # a certified server key; serial 2
relay = site.add_relay("r1", decrypts=True)    # serial 3
token = site.sign()                            # the manifest as JWS
trust = site.trust(tmp_path / "trust.json")    # believes the newest
"""

import base64
import dataclasses
import datetime
import json
import os
import time
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from upseal import Opener, PrivateKey
from upseal.core.certificates import issue, load
from upseal.fleet import jws
from upseal.fleet.credentials import Token, issue_credential
from upseal.fleet.encoding import b64url
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import EncryptionKey, Manifest, RelayEntry, State
from upseal.fleet.policy import Level, Reason
from upseal.fleet.trust import Outcome, Trust
from upseal.fleet.units import make_unit

DAY_MS = 86_400_000


def now_ms():
    return int(time.time() * 1000)


def eventually(holds, what="it", seconds=60, *, pause=0.01):
    """Waits until it holds, and gives what it gave; looks again after each pause (seconds)."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(pause)
    return found


def readings(text):
    """Of a page of metrics: name and labels, and the value."""
    pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def moment(milliseconds):
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)


@dataclass
class Authority:
    """A CA: `certificate` in PEM, `key`."""

    certificate: str
    key: object

    @classmethod
    def make(
        cls, name="Test CA", issuer=None, now=None, days=3650, *, is_ca=True, signs=True,
        path_length=None, key=None,
    ):  # fmt: skip
        """Self-signed, or issued by another authority."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        start = moment(now_ms() if now is None else now)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
             "key_agreement", "crl_sign", "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        usage["digital_signature"] = not signs
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if issuer is None else load(issuer.certificate.encode()).subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - datetime.timedelta(minutes=5))
            .not_valid_after(start + datetime.timedelta(days=days))
            .add_extension(
                x509.BasicConstraints(ca=is_ca, path_length=path_length if is_ca else None), True
            )
            .add_extension(x509.KeyUsage(key_cert_sign=signs, **usage), True)
            .sign(key if issuer is None else issuer.key, hashes.SHA256())
        )
        return cls(certificate.public_bytes(serialization.Encoding.PEM).decode(), key)

    def certify(self, public, name="key", now=None, days=825):
        """An encryption certificate in PEM, for an `upseal.PublicKey`."""
        start = moment(now_ms() if now is None else now)
        issuer = load(self.certificate.encode())
        return issue(public.parts[0], name, self.key, issuer, days, start).decode()

    @property
    def serial(self):
        return load(self.certificate.encode()).serial_number


@dataclass
class SiteRelay:
    """A relay with its private keys."""

    name: str
    identity: SigningKey
    hop: SigningKey
    private: list
    credential: str

    @property
    def relay(self):
        return self.identity.public.agent_id


@dataclass
class SiteAgent:
    """An enrolled agent's keys."""

    identity: SigningKey
    hop: SigningKey
    credential: str

    @property
    def agent(self):
        return self.identity.public.agent_id


class Site:
    """A deployment. Every act makes the next manifest, in `manifest`."""

    def __init__(self, kind="ed25519", suite="x25519", now=None, authority=None):
        self.kind, self.suite = kind, suite
        self.now = now_ms() if now is None else now
        self.authority = authority or Authority.make(now=self.now)
        self.signing = SigningKey.generate(kind)
        self.receipt = SigningKey.generate(kind)
        self.enrol = PrivateKey.generate("x25519" if kind == "ed25519" else "p256")
        self.deployment = os.urandom(16)
        self.private = []  # the server's, newest last
        self.tokens = []  # every manifest that was signed, oldest first
        self.manifest = Manifest(
            deployment=self.deployment, serial=1, issued=self.now,
            expires=self.now + 30 * DAY_MS, state=State.DISABLED,
            authorities=(self.authority.certificate,), encryption=(), pending=(), generation=0,
            oldest_generation=0, relays=(), receipt_keys=(self.receipt.public,),
            enrolment=self.key_entry(self.enrol.public_key, 0),
            signing_keys=(self.signing.public,),
        )  # fmt: skip

    # -- parts

    def key_entry(self, public, generation, authority=None):
        """As the manifest carries a key: certified, or plain for the hybrid."""
        if len(public.parts) > 1:
            return EncryptionKey(None, public.to_pem().decode(), generation)
        pem = (authority or self.authority).certify(public, now=self.now)
        return EncryptionKey(pem, None, generation)

    def new_key(self, generation):
        """A private key of the server's, and its entry."""
        private = PrivateKey.generate(self.suite)
        self.private.append(private)
        return self.key_entry(private.public_key, generation)

    # -- acts

    def change(self, **changes):
        """The next manifest, with these changes."""
        changes.setdefault("serial", self.manifest.serial + 1)
        self.manifest = dataclasses.replace(self.manifest, **changes)
        return self.manifest

    def pending(self):
        """Makes a key that is not enabled yet."""
        generation = self.manifest.generation + 1
        state = State.PENDING_ROTATION if self.manifest.active else State.PENDING
        return self.change(state=state, pending=(self.new_key(generation),), generation=generation)

    def enable(self):
        """Enables the pending key; makes one if there is none."""
        if not self.manifest.pending:
            self.pending()
        return self.change(state=State.ENABLED, encryption=self.manifest.pending, pending=())

    def rotate(self):
        """The next key, enabled."""
        self.pending()
        return self.enable()

    def disable(self):
        return self.change(state=State.DISABLED, encryption=(), pending=())

    def add_relay(self, name="relay", *, decrypts=False, accepts_sealed=True):
        """A relay that the manifest vouches for."""
        identity, hop = SigningKey.generate(self.kind), SigningKey.generate(self.kind)
        private = [PrivateKey.generate(self.suite)] if decrypts else []
        generation = max(1, self.manifest.generation)
        entry = RelayEntry(
            identity.public.agent_id, name, identity.public, accepts_sealed, decrypts,
            tuple(self.key_entry(key.public_key, generation) for key in private),
        )  # fmt: skip
        self.change(
            relays=(*self.manifest.relays, entry),
            generation=generation if decrypts else self.manifest.generation,
        )
        return SiteRelay(name, identity, hop, private, self.credential(hop, "relay"))

    def announce(self):
        """A next signing key, beside the present one."""
        following = SigningKey.generate(self.kind)
        self.change(signing_keys=(*self.manifest.signing_keys, following.public))
        return following

    def switch(self, following):
        """The next signing key signs from now on, alone."""
        self.signing = following
        return self.change(signing_keys=(following.public,))

    def sign(self, key=None):
        """The manifest as JWS."""
        token = self.manifest.sign(key or self.signing)
        self.tokens.append(token)
        return token

    # -- what others have of it

    def credential(self, hop, role="agent"):
        return issue_credential(self.deployment, hop.public, role, self.receipt, self.now)

    def agent(self):
        """Keys and credential of an enrolled agent."""
        identity, hop = SigningKey.generate(self.kind), SigningKey.generate(self.kind)
        return SiteAgent(identity, hop, self.credential(hop))

    def unit(self, agent, records=(b"report",), sequence=1, epoch=b"e" * 16, **changes):
        """A unit signed by an agent."""
        said = {"level": Level.OPTIONAL, "reason": Reason.SEALED, "milliseconds": self.now}
        return make_unit(
            agent.identity, self.deployment, epoch, sequence, records=list(records),
            **{**said, **changes},
        )  # fmt: skip

    def token(self, least_serial=1):
        """An invitation."""
        return Token(self.deployment, self.signing.public.fingerprint, least_serial, os.urandom(16))

    def enrol_opener(self):
        return Opener([self.enrol])

    def opener(self):
        """Opens what was sealed to the server."""
        return Opener(self.private)

    def trust(self, path):
        """A new trust that believes the newest manifest."""
        trust = Trust.start(path, self.signing.public.fingerprint, self.deployment, 1)
        assert trust.offer([self.sign()], self.now) is Outcome.ACCEPTED
        return trust


# -- what a forger makes

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def start_trust(path, site, least=1):
    return Trust.start(path, site.signing.public.fingerprint, site.deployment, least)


def twin(token):
    """The same words under a second signature, which anybody can make from the first (ECDSA)."""
    head, _, tail = token.rpartition(".")
    raw = base64.urlsafe_b64decode(tail + "==")
    s = P256_ORDER - int.from_bytes(raw[32:], "big")
    return f"{head}." + b64url(raw[:32] + s.to_bytes(32, "big"))


def raw_token(site, key=None, claims=None, typ=jws.MANIFEST, **changes):
    """Signed, without the checks that a manifest passes before it is signed."""
    said = site.manifest.claims() if claims is None else claims
    return jws.sign(said | changes, key or site.signing, typ, include_key=True)


def unsigned(site, alg="none"):
    head = {
        "alg": alg, "typ": jws.MANIFEST, "kid": site.signing.public.key_id.hex(),
        "jwk": site.signing.public.jwk(),
    }  # fmt: skip
    claims = site.manifest.claims()
    parts = [b64url(json.dumps(part).encode()) for part in (head, claims)]
    return ".".join([*parts, "" if alg == "none" else "A" * 86])

# SPDX-License-Identifier: Apache-2.0
"""Keys and a deployment that are the same in every run: seeds and findings stay good.

The keys are published here, so never use one.
"""

import datetime
import hashlib
import json
from functools import cache

import reference as ref
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from upfuzz import ROOT
from upseal import PrivateKey
from upseal.core.certificates import issue, issue_ca, load
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import EncryptionKey, Manifest, RelayEntry, State
from upseal.fleet.policy import Level

NOW = 1_780_000_000_000
"""Unix milliseconds: the only moment there is."""
DAY_MS = 86_400_000
DEPLOYMENT = hashlib.sha256(b"upseal fuzzing: deployment").digest()[:16]
CONTEXT = b"fuzz"
RECIPIENTS = ("x25519-a", "p256-a", "mlkem768-x25519-a", "rsa2048-a")
"""Those whose keys the openers have, of tests/vectors/keys.json."""


@cache
def _file():
    return json.loads((ROOT / "tests/vectors/keys.json").read_text())


@cache
def private(name):
    """A recipient's key."""
    return PrivateKey.from_pem(_file()[name]["private_pem"].encode())


@cache
def reference_key(name):
    """The same, for the second implementation."""
    return ref.Key(_file()[name]["suite_id"], _file()[name]["private_pem"])


def ours():
    """Recipients' keys for an `Opener`."""
    return [private(name) for name in RECIPIENTS]


def reference_keys():
    """The same for the second implementation."""
    return [reference_key(name) for name in RECIPIENTS]


@cache
def signing(name, kind="ed25519"):
    """A key that signs."""
    seed = hashlib.sha256(f"upseal fuzzing: {name}".encode()).digest()
    if kind == "ed25519":
        return SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(seed))
    return SigningKey(ec.derive_private_key(int.from_bytes(seed, "big") >> 8, ec.SECP256R1()))


def moment():
    """`NOW`, for certificates."""
    return datetime.datetime.fromtimestamp(NOW / 1000, datetime.UTC)


@cache
def authority():
    """A CA: its key, and its certificate in PEM."""
    key = signing("authority", "p256").private
    return key, issue_ca(key, "Fuzzing CA", 3650, moment())


@cache
def certificate(name):
    """An encryption certificate in PEM for a recipient's key."""
    key, issuer = authority()
    public = private(name).public_key.parts[0]
    return issue(public, name, key, load(issuer), 825, moment())


def entry(name, generation):
    """A recipient's key as a manifest has it."""
    if name.startswith("mlkem"):
        return EncryptionKey(None, private(name).public_key.to_pem().decode(), generation)
    return EncryptionKey(certificate(name).decode(), None, generation)


@cache
def manifest(state=State.PENDING_ROTATION):
    """A manifest with something in each of its members."""
    passing, decrypting = signing("relay 1").public, signing("relay 2", "p256").public
    active, pending = state.active, state.has_pending
    return Manifest(
        deployment=DEPLOYMENT,
        serial=7,
        issued=NOW,
        expires=NOW + 30 * DAY_MS,
        state=state,
        authorities=(authority()[1].decode(),),
        encryption=(entry("x25519-a", 2), entry("p256-a", 2)) if active else (),
        pending=(entry("mlkem768-x25519-a", 3),) if pending else (),
        generation=3,
        oldest_generation=1,
        relays=(
            RelayEntry(passing.agent_id, "passing", passing, True, False),
            RelayEntry(
                decrypting.agent_id, "decrypting", decrypting, False, True, (entry("p256-b", 2),)
            ),
        ),
        receipt_keys=(signing("receipt").public, signing("receipt 2", "p256").public),
        enrolment=entry("x25519-b", 0),
        signing_keys=(signing("manifest").public, signing("manifest 2", "p256").public),
        revoked_agents=frozenset({signing("revoked").public.agent_id}),
        revoked_certificates=frozenset({2**80 + 5}),
        default_level=Level.OPTIONAL,
        levels={signing("agent").public.agent_id: Level.REQUIRED},
    )


def signer_of(kid):
    """Which of our keys has that id, in hex; None if none."""
    return _signers().get(kid)


@cache
def _signers():
    names = (
        ("manifest", "ed25519"), ("manifest 2", "p256"), ("receipt", "ed25519"),
        ("receipt 2", "p256"), ("relay 1", "ed25519"), ("relay 2", "p256"), ("agent", "ed25519"),
        ("agent 2", "p256"), ("hop", "ed25519"), ("hop 2", "p256"), ("stranger", "ed25519"),
    )  # fmt: skip
    return {key.public.key_id.hex(): key for key in (signing(*name) for name in names)}

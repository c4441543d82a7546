# SPDX-License-Identifier: Apache-2.0
"""Targets: what is signed as JWS, changed and signed again by the key that counts."""

import hashlib
import warnings

from upfuzz import world
from upfuzz.harness import Target, attempt, check, same
from upfuzz.resign import TYPES, mutate_token, parts
from upseal.fleet import jws
from upseal.fleet.agent.parent import known_parent
from upseal.fleet.capabilities import SERVER, Way, certified, verified_hops
from upseal.fleet.credentials import HopCheck, HopRefused, issue_credential, prove
from upseal.fleet.encoding import b64url, from_b64url, load_object
from upseal.fleet.identity import VerifyKey
from upseal.fleet.jws import JwsError
from upseal.fleet.manifest import Manifest, ManifestError, State

_DIGEST = hashlib.sha256(b"body").digest()


def genuine(token, typ):
    """Whether one of our keys has signed just this for just that, found out without `jws`."""
    head, payload, signature = (token if isinstance(token, bytes) else token.encode()).split(b".")
    said = load_object(from_b64url(head.decode()))
    key = world.signer_of(said["kid"])
    raw = from_b64url(signature.decode())
    check(key is not None and said["typ"] == typ, "another key, or another purpose")
    same(said["alg"], key.algorithm)
    check(key.public.verify(head + b"." + payload, raw), "not signed")
    return load_object(from_b64url(payload.decode()))


# -- tokens ----------------------------------------------------------------------------------------


def run_jws(data):
    keys = {kid: key.public for kid, key in world._signers().items()}
    for typ in TYPES:
        claims, _ = attempt(lambda typ=typ: jws.verify(data, keys, typ), JwsError)
        if claims is not None:
            same(claims, genuine(data, typ), jws.unverified(data))
            for part in data.decode().split("."):
                same(b64url(from_b64url(part)), part)
    for look in (jws.header, jws.unverified):
        found, _ = attempt(lambda look=look: look(data), JwsError)
        check(found is None or isinstance(found, dict), "neither claims nor an error")
    key, _ = attempt(lambda: jws.key_in(data), JwsError)
    if key is not None:
        same(key, VerifyKey.from_jwk(key.jwk()))
    text = data.decode("latin-1")
    as_text, as_bytes = (attempt(lambda d=d: jws.header(d), JwsError)[0] for d in (text, data))
    check(as_text == as_bytes or not data.isascii(), "a token is another one as text")
    jws.signed_part(data)


# -- manifests -------------------------------------------------------------------------------------


def run_manifest(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keys = world.manifest().signers()
        found, _ = attempt(lambda: Manifest.open(data, keys), JwsError, ManifestError)
        claims, _ = attempt(lambda: jws.verify(data, keys, jws.MANIFEST), JwsError)
        if claims is None:
            check(found is None, "a manifest that nobody has signed")
            return
        read, _ = attempt(lambda: Manifest.from_claims(claims), ManifestError)
        if read is not None:
            same(read.claims(), claims)
            same(Manifest.from_claims(read.claims()), read)
        if found is None:
            return
        same(found, read)
        same(genuine(data, jws.MANIFEST), claims)
        _check_manifest(found)


def _check_manifest(found):
    """What must hold of each that is believed."""
    usable = found.usable()
    if found.active:
        check(1 <= len(usable.recipients) <= 15, "sealed to nobody, or to too many")
        check(len({key.suite.post_quantum for key in usable.recipients}) == 1, "a weak recipient")
    check(found.enrolment.public().key_id, "nothing to enrol by")
    check(not set(found.signing_keys) & set(found.receipt_keys), "a key of two purposes")
    for relay in found.relays:
        same(found.relay(relay.relay), relay)
        same(relay.identity.agent_id, relay.relay)
    check(found.expires > found.issued and found.serial > 0, "times that cannot be")


# -- capabilities ----------------------------------------------------------------------------------


def run_capabilities(data):
    manifest = world.manifest()
    hops = verified_hops(data, manifest, world.NOW)
    way = Way(None, "http://parent")
    heard = way.hear(data, manifest, world.NOW)
    same(heard, hops[: len(heard)])
    same(way.hear(data, manifest, world.NOW), heard)
    known = known_parent(hops, world.NOW)
    token = data
    for hop in hops:
        claims = genuine(token, jws.CAPABILITIES)
        same(claims["sub"], hop.subject)
        check(certified(hop, manifest), "not one that the manifest names")
        check(not hop.accepts_sealed or claims["accepts_sealed"] is True, "a yes nobody has said")
        refused = hop.relay is not None and not hop.relay.accepts_sealed
        check(not (refused and hop.accepts_sealed), "a yes that the administrator has not said")
        token = claims.get("parent")
    if known.accepts_sealed:
        check(bool(hops), "a yes of nobody")


def _capabilities(key, subject, parent=None, **changes):
    claims = {
        "sub": subject, "accepts_sealed": True, "accepts_clear": True, "decrypts": False,
        "key_ids": [], "serial": 7, "iat": world.NOW, "exp": world.NOW + 3_600_000,
        "parent": parent, **changes,
    }  # fmt: skip
    return jws.sign(claims, key, jws.CAPABILITIES)


def _capability_seeds():
    server = _capabilities(world.signing("receipt"), SERVER)
    one, two = world.signing("relay 1"), world.signing("relay 2", "p256")
    first = _capabilities(one, one.public.agent_id.hex(), server)
    key_id = world.private("p256-b").key_id.hex()
    second = _capabilities(
        two, two.public.agent_id.hex(), first, decrypts=True, accepts_sealed=False,
        key_ids=[key_id],
    )  # fmt: skip
    return [token.encode() for token in (server, first, second)]


# -- credentials -----------------------------------------------------------------------------------


def run_credential(data):
    """A credential and a proof, one behind the other."""
    credential, _, proof = data.decode("latin-1").partition("\n")
    check_ = HopCheck(world.manifest)
    headers = {"authorization": f"Upseal {credential}", "upseal-proof": proof}
    for _ in range(2):  # as a stranger, and remembered
        hop, _ = attempt(
            lambda: check_.check(headers, "POST", "/v1/units", _DIGEST, world.NOW), HopRefused
        )
        remembered = check_.remembered(headers["authorization"])
        if hop is None:
            check(remembered is None or remembered.hop_id, "remembered")
            continue
        same(hop, remembered)
        said, proved = genuine(credential, jws.HOP), jws.unverified(proof)
        same(said["dep"], world.DEPLOYMENT.hex())
        key = VerifyKey.from_jwk(said["jwk"])
        same((hop.hop_id.hex(), hop.role), (said["hop"], said["role"]))
        same(hop.hop_id, key.agent_id)
        check(key.verify(jws.signed_part(proof), from_b64url(proof.rpartition(".")[2])), "no proof")
        same((proved["m"], proved["p"], proved["b"]), ("POST", "/v1/units", b64url(_DIGEST)))
        check(abs(proved["t"] - world.NOW) <= 300_000, "of another time")
        check(hop.hop_id not in world.manifest().revoked_agents, "revoked")
        issuer = jws.header(credential)["kid"]
        check(issuer in world.manifest().receivers(), "issued by nobody who may")


def mutate_credential(data, rnd, plain):
    credential, _, proof = data.partition(b"\n")
    if rnd.getrandbits(1):
        credential = mutate_token(credential, rnd, plain)
    else:
        proof = mutate_token(proof, rnd, plain)
    return credential + b"\n" + proof


def _credential_seeds():
    for name, kind, issuer in (
        ("hop", "ed25519", world.signing("receipt")),
        ("hop 2", "p256", world.signing("receipt 2", "p256")),
    ):
        hop = world.signing(name, kind)
        role = "agent" if kind == "ed25519" else "relay"
        credential = issue_credential(world.DEPLOYMENT, hop.public, role, issuer, world.NOW)
        proof = prove(credential, hop, "POST", "/v1/units", b"body", world.NOW)["Upseal-Proof"]
        yield f"{credential}\n{proof}".encode()


# -- seeds -----------------------------------------------------------------------------------------


def _manifest_seeds():
    for state in State:
        yield world.manifest(state).sign(world.signing("manifest")).encode()
    yield world.manifest().sign(world.signing("manifest 2", "p256")).encode()


def _token_seeds():
    for key in (world.signing("agent"), world.signing("hop 2", "p256")):
        for typ in (jws.ENROL, jws.RELAY):
            yield jws.sign({"a": 1, "b": ["x", None]}, key, typ, include_key=True).encode()
            yield jws.sign({}, key, typ).encode()


for _token in _token_seeds():
    assert parts(_token) is not None

TARGETS = {
    target.name: target
    for target in (
        Target("jws", run_jws, _token_seeds, mutate_token, "claims.dict", longest=4096),
        Target("manifest", run_manifest, _manifest_seeds, mutate_token, "claims.dict",
               longest=1 << 15),
        Target("capabilities", run_capabilities, _capability_seeds, mutate_token, "claims.dict"),
        Target("credential", run_credential, _credential_seeds, mutate_credential, "claims.dict",
               longest=8192),
    )
}  # fmt: skip

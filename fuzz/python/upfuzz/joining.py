# SPDX-License-Identifier: Apache-2.0
"""Targets: enrolment, from the token to the server's answer, and the file that trust lives in."""

import hashlib
import json
import struct
from functools import cache

from upfuzz import world
from upfuzz.claims import genuine
from upfuzz.harness import Target, attempt, check, same
from upfuzz.mutators import json_bytes, json_value
from upfuzz.resign import mutate_token
from upseal import Opener, OpenError, Sealer
from upseal.fleet import jws
from upseal.fleet.credentials import (
    BadEnrolment,
    Token,
    enrol_context,
    enrol_request,
    enrolled_answer,
    open_enrol_request,
    open_enrolled,
)
from upseal.fleet.encoding import b64url, from_b64url, load_object
from upseal.fleet.trust import _believed
from upseal.fleet.trust_file import Alarm, Kept, Link, TrustError

_TOKEN = Token(world.DEPLOYMENT, world.signing("manifest").public.fingerprint, 7, b"s" * 16)


@cache
def _opener():
    return Opener([world.private("x25519-b")], cache=2)


@cache
def _sealer():
    return Sealer([world.private("x25519-b").public_key])


# -- requests --------------------------------------------------------------------------------------


def run_enrol(data):
    told = []
    request, _ = attempt(
        lambda: open_enrol_request(data, _opener(), world.DEPLOYMENT, told.append),
        OpenError, BadEnrolment,
    )  # fmt: skip
    if request is None:
        return
    same(told, [request])
    signed = _opener().open(data, enrol_context(world.DEPLOYMENT))
    check(jws.key_in(signed) == request.identity != request.hop, "another key has signed")
    check(request.identity.verify(jws.signed_part(signed), _signature(signed)), "not signed")
    check(request.name.isprintable() and 1 <= len(request.name) <= 128, "a name")
    same((len(request.secret), request.deployment), (16, world.DEPLOYMENT))
    check(request.role in ("agent", "relay"), "a role")
    answer = enrolled_answer(request, world.signing("receipt"), world.NOW)
    keys = world.manifest().receivers()
    same(open_enrolled(answer, keys, world.DEPLOYMENT, request.agent).agent, request.agent)


def _signature(token):
    return from_b64url(token.rpartition(b".")[2].decode())


def mutate_enrol(data, rnd, plain):
    """Opened, the token inside changed and signed again, and sealed again."""
    if not rnd.randrange(6):
        return plain(data)
    context = enrol_context(world.DEPLOYMENT)
    token, _ = attempt(lambda: _opener().open(data, context), OpenError)
    if token is None:
        return plain(data)
    return _sealer().seal(mutate_token(token, rnd, plain), context)


def _enrol_seeds():
    for name, kind, role in (("agent", "ed25519", "agent"), ("agent 2", "p256", "relay")):
        identity, hop = world.signing(name, kind), world.signing("hop")
        yield enrol_request(
            _TOKEN, world.manifest(), identity, hop, name=name, role=role, now_ms=world.NOW,
            decrypts=role == "relay",
        )  # fmt: skip


# -- answers ---------------------------------------------------------------------------------------


def run_enrolled(data):
    keys, agent = world.manifest().receivers(), world.signing("agent").public.agent_id
    found, _ = attempt(lambda: open_enrolled(data, keys, world.DEPLOYMENT, agent), BadEnrolment)
    if found is not None:
        said = genuine(data, jws.ENROLLED)
        same(said["agent"], agent.hex(), found.agent.hex())
        same((said["deployment"], said["credential"]), (world.DEPLOYMENT.hex(), found.credential))
        check(jws.header(data)["kid"] in keys, "of another key")


def _enrolled_seeds():
    for request in _enrol_seeds():
        opened = open_enrol_request(request, _opener(), world.DEPLOYMENT)
        yield enrolled_answer(opened, world.signing("receipt"), world.NOW).encode()


# -- tokens ----------------------------------------------------------------------------------------


def run_token(data):
    text = data.decode("utf-8", "surrogateescape")
    token, _ = attempt(lambda: Token.decode(text), ValueError)
    if token is not None:
        same(token.encode(), text.strip())
        check(b64url(token.secret) not in repr(token), "a secret that is shown")


def mutate_token_word(data, rnd, plain):
    """The bytes in the word are others, and its checksum fits."""
    word = data.decode("latin-1").removeprefix("upseal-token-1.")
    raw, _ = attempt(lambda: from_b64url(word), ValueError)
    if raw is None or not rnd.randrange(4):
        return plain(data)
    body = plain(raw[:-4])
    if rnd.getrandbits(1):
        serial = rnd.choice((0, 2**53 - 1, 2**53, 2**64 - 1))
        body = body[:48] + struct.pack(">Q", serial) + body[56:]
    digest = hashlib.sha256(b"upseal-token-1" + body).digest()[:4]
    return b"upseal-token-1." + b64url(body + digest).encode()


# -- trust.json ------------------------------------------------------------------------------------


def run_kept(data):
    kept, _ = attempt(lambda: Kept.decode(data, "trust.json"), TrustError)
    if kept is None:
        return
    same(load_object(kept.encode()), load_object(data))
    same(Kept.decode(kept.encode(), "trust.json"), kept)
    attempt(kept.check, ValueError)
    believed, _ = attempt(lambda: _believed(kept, ()), TrustError)
    if believed is not None and believed.manifest is not None:
        same(believed.manifest.deployment, kept.deployment)
        genuine(kept.newest.token, jws.MANIFEST)
        believed.chain.since(0)


def mutate_kept(data, rnd, plain):
    """As JSON; the manifest in it as a token."""
    try:
        said = json.loads(data)
        token = said["newest"]["token"].encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return json_bytes(data, rnd, plain)
    if rnd.getrandbits(1):
        said["newest"]["token"] = mutate_token(token, rnd, plain).decode("latin-1")
    else:
        said = json_value(said, rnd, plain)
    return json.dumps(said).encode()


def _kept_seeds():
    fingerprint = world.signing("manifest").public.fingerprint
    yield Kept(world.DEPLOYMENT, fingerprint, 1).encode()
    newest = Link(7, world.manifest().sign(world.signing("manifest")))
    alarm = Alarm(world.NOW, 7, bytes(32))
    yield Kept(world.DEPLOYMENT, fingerprint, 1, newest, (newest,), (alarm,)).encode()


TARGETS = {
    target.name: target
    for target in (
        Target("enrol", run_enrol, _enrol_seeds, mutate_enrol, "claims.dict"),
        Target("enrolled", run_enrolled, _enrolled_seeds, mutate_token, "claims.dict"),
        Target("token", run_token, lambda: [_TOKEN.encode().encode()], mutate_token_word,
               longest=512),
        Target("kept", run_kept, _kept_seeds, mutate_kept, "claims.dict", longest=1 << 16),
    )
}  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""Targets: PEM and DER of keys and certificates, and proofs that somebody holds a key."""

import base64
import json
import re
import warnings
from functools import cache

from upfuzz import ROOT, world
from upfuzz.harness import Target, attempt, check, same
from upseal import PrivateKey, PublicKey
from upseal.core import certificates
from upseal.fleet.identity import SigningKey, VerifyKey
from upseal.fleet.readiness import BadChallenge, answer_challenge, challenge_len, make_challenge

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s(.*?)\s-----END \1-----\n?", re.S)


def mutate_pem(data, rnd, plain):
    """Changes the DER in a PEM block, or the blocks, or the text."""
    blocks = list(_BLOCK.finditer(data))
    if not blocks or not rnd.randrange(5):
        return plain(data)
    block = rnd.choice(blocks)
    try:
        der = base64.b64decode(block.group(2))
    except ValueError:
        return plain(data)
    match rnd.randrange(8):
        case 0:
            made = block.group() * 2
        case 1:
            made = b""
        case 2:
            made = block.group().replace(b"PRIVATE", b"PUBLIC")
        case _:
            made = _pem(plain(_lengths(der, rnd) if rnd.getrandbits(1) else der), block.group(1))
    return data[: block.start()] + made + data[block.end() :]


def mutate_der(data, rnd, plain):
    """Changes DER, the lengths of what encloses it at times mended."""
    if b"-----BEGIN" in data:
        return mutate_pem(data, rnd, plain)
    return plain(_lengths(data, rnd) if rnd.randrange(3) else data)


def _pem(der, label):
    text = base64.encodebytes(der).replace(b"\n", b"")
    lines = b"\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (label, lines, label)


def _lengths(der, rnd):
    """One element inside is changed, and all that enclose it get the length that fits."""
    try:
        spans = list(_elements(der, 0, len(der), ()))
    except IndexError:
        return der
    if not spans:
        return der
    start, body, end, outer = rnd.choice(spans)
    content = der[body:end]
    choices = (
        b"", content + content, content[:-1], content + b"\0", bytes(len(content)),
        b"\xff" * len(content), content[::-1], rnd.randbytes(len(content)),
    )  # fmt: skip
    tags = (1, 2, 3, 4, 5, 6, 12, 0x13, 0x17, 0x18, 0x30, 0x31, 0xA0, 0xA3)
    tag = der[start] if rnd.randrange(4) else rnd.choice(tags)
    made = bytes([tag]) + _length(rnd.choice(choices))
    match rnd.randrange(4):
        case 0:
            made = der[start:end] * 2
        case 1:
            made = b""
    for from_, at, to in reversed(outer):
        made = der[from_ : from_ + 1] + _length(der[at:start] + made + der[end:to])
        start, end = from_, to
    return der[:start] + made + der[end:]


def _elements(der, at, end, outer):
    while at < end:
        start, tag, size = at, der[at], der[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(der[at : at + count], "big")
            at += count
        if at + size > end:
            return
        yield start, at, at + size, outer
        if tag & 0x20 and len(outer) < 12:
            yield from _elements(der, at, at + size, (*outer, (start, at, at + size)))
        at += size


def _length(content):
    size = len(content)
    if size < 128:
        return bytes([size]) + content
    number = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(number)]) + number + content


# -- what is run -----------------------------------------------------------------------------------


def run_keyfile(data):
    public, _ = attempt(lambda: PublicKey.from_pem(data), ValueError)
    if public is not None:
        again = PublicKey.from_pem(public.to_pem())
        same(public, again)
        same((public.key_id, public.name), (again.key_id, again.name))
        check(len(public.wrap(bytes(32))) in public.suite.wrapped_len, "a secret of another length")
    private, _ = attempt(lambda: PrivateKey.from_pem(data), ValueError, TypeError)
    if private is not None:
        same(private.to_pem(), PrivateKey.from_pem(private.to_pem()).to_pem())
        wrapped = private.public_key.wrap(bytes(32))
        same(private.unwrap(wrapped), bytes(32))


def run_certificate(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cryptography has an opinion on old encodings
        attempt(lambda: certificates.load(data), ValueError)
        public, _ = attempt(lambda: PublicKey.from_certificate(data), ValueError)
        if public is not None:
            same(public, PublicKey.from_pem(public.to_pem()))


def run_signing_key(data):
    for read in (VerifyKey.from_der, VerifyKey.from_pem):
        key, _ = attempt(lambda read=read: read(data), ValueError)
        if key is not None:
            same(key, VerifyKey.from_der(key.der), VerifyKey.from_jwk(key.jwk()))
            same(key, VerifyKey.from_pem(key.to_pem()))
            check(not key.verify(b"message", data[:64]), "anything is a signature")
    private, _ = attempt(lambda: SigningKey.from_pem(data), ValueError, TypeError)
    if private is not None:
        check(private.public.verify(data, private.sign(data)), "a signature that does not verify")
    jwk, _ = attempt(lambda: json.loads(data), ValueError, RecursionError)
    key, _ = attempt(lambda: VerifyKey.from_jwk(jwk), ValueError)
    if key is not None:
        same(key.jwk(), jwk)


# -- readiness -------------------------------------------------------------------------------------


def run_readiness(data):
    """An answer is of 32 bytes, or there is none; nobody else's challenge has one."""
    keys = [world.private(name) for name in world.RECIPIENTS]
    for key in keys:
        answer, _ = attempt(lambda key=key: answer_challenge(key, data), BadChallenge)
        if answer is not None:
            same(len(answer), 32)
            same(len(data), challenge_len(key.public_key))
            others = [k for k in keys if k is not key and k.suite == key.suite]
            check(not others, "two keys of one kind")


def mutate_readiness(data, rnd, plain):
    """A challenge to one of the keys, with another plaintext or other words round it."""
    key = world.private(rnd.choice(world.RECIPIENTS)).public_key
    if not rnd.randrange(3):
        return plain(make_challenge(key)[0])
    if rnd.getrandbits(1):  # a session's secret must not be taken for one
        return key.wrap(rnd.choice((bytes(32), bytes(51), b"upseal/v1 readiness" + bytes(32))))
    return plain(data)


# -- seeds -----------------------------------------------------------------------------------------


def _key_files():
    keys = json.loads((ROOT / "tests/vectors/keys.json").read_text())
    for name in ("x25519-a", "p256-a", "mlkem768-x25519-a", "rsa2048-a"):
        yield keys[name]["private_pem"].encode()
        yield keys[name]["public_pem"].encode()
    for name in ("agent", "hop 2"):
        yield world.signing(name, "p256" if name[-1] == "2" else "ed25519").to_pem()


@cache
def _certificates():
    _, ca = world.authority()
    pems = [world.certificate("x25519-a"), world.certificate("rsa2048-a"), ca]
    blocks = [base64.b64decode(_BLOCK.search(pem).group(2)) for pem in pems]
    return [*pems[:1], *blocks]


def _signing_keys():
    for name, kind in (("agent", "ed25519"), ("hop 2", "p256")):
        key = world.signing(name, kind)
        yield key.to_pem()
        yield key.public.to_pem()
        yield key.public.der
        yield json.dumps(key.public.jwk()).encode()


def _challenges():
    return [make_challenge(world.private(name).public_key)[0] for name in world.RECIPIENTS]


TARGETS = {
    target.name: target
    for target in (
        Target("keyfile", run_keyfile, _key_files, mutate_pem, "pem.dict", longest=8192),
        Target("certificate", run_certificate, _certificates, mutate_der, "pem.dict", longest=8192),
        Target("signing-key", run_signing_key, _signing_keys, mutate_der, "pem.dict", longest=4096),
        Target("readiness", run_readiness, _challenges, mutate_readiness, longest=4096),
    )
}

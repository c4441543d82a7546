# SPDX-License-Identifier: Apache-2.0
"""Keys in real tokens: SoftHSM2 (P-256), NSS's soft token (RSA-OAEP, P-256)."""

import hmac
import json
import os
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from keys_support import PIN, ROOT, SOFTHSM, Nss, Tokens, again, upseal

from upseal import KeyOpener, KeyUnavailable, Opener, OpenError, PrivateKey, Sealer
from upseal.core.suites import INFO
from upseal.fleet.readiness import BadChallenge, answer_challenge, make_challenge
from upseal.integrations.keys import HeldKey, LazyKey, open_key
from upseal.integrations.pkcs11 import dhkem
from upseal.integrations.pkcs11 import module as pkcs11_module
from upseal.integrations.pkcs11.uri import parse

SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return Tokens(tmp_path_factory.mktemp("softhsm"))


@pytest.fixture(scope="module")
def nss(tmp_path_factory):
    return Nss(tmp_path_factory.mktemp("nss"))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(pkcs11_module, "_RENEW", 0.2)


@pytest.fixture(params=["softhsm p256", "nss rsa", "nss p256"])
def held(request):
    """The same of each kind, in each token that has it."""
    where, kind = request.param.split()
    token = request.getfixturevalue("tokens" if where == "softhsm" else "nss")
    name = "curve" if request.param == "nss p256" else "server"
    key = open_key(token.uri(name))
    assert key.public_key.name.startswith(kind)
    return key


# -- what a key is for ----------------------------------------------------------------------


def test_what_is_sealed_to_the_public_key_opens_in_the_token(held):
    assert isinstance(held, KeyOpener)
    assert isinstance(held, HeldKey)
    sealer, opener = Sealer([held.public_key]), Opener([held])
    assert opener.open(sealer.seal(b"report", b"c"), b"c") == b"report"
    assert list(opener.open_batch(sealer.seal_batch([b"a", b"b"]))) == [b"a", b"b"]


def test_what_was_not_wrapped_for_it_is_an_open_error(held):
    wrapped = held.public_key.wrap(SECRET)
    assert held.unwrap(wrapped) == SECRET
    envelope = Sealer([held.public_key]).seal(b"report")
    opener = Opener([held])
    place = envelope.index(held.key_id) + 10
    for at in (place, place + 5, place + 70, place + 100):
        damaged = bytearray(envelope)
        damaged[at] ^= 1
        with pytest.raises(OpenError):
            opener.open(bytes(damaged))
    for bad in (b"", wrapped[:-1], wrapped + b"x", bytes(len(wrapped))):
        with pytest.raises(ValueError, match="not wrapped for this key"):
            held.unwrap(bad)
    assert held.unwrap(wrapped) == SECRET


def test_it_proves_that_it_is_there(held):
    challenge, answer = make_challenge(held.public_key)
    assert answer_challenge(held, challenge) == answer
    for bad in (b"", challenge[:-1] + bytes([challenge[-1] ^ 1]), held.public_key.wrap(SECRET)):
        with pytest.raises(BadChallenge):
            answer_challenge(held, bad)


def test_threads_share_it(held):
    wrapped = [held.public_key.wrap(bytes([i]) * 32) for i in range(8)]
    found = [None] * 8

    def work(i):
        found[i] = [held.unwrap(wrapped[i]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[bytes([i]) * 32] * 5 for i in range(8)]


def test_it_works_on_both_sides_of_a_fork(tokens, nss):
    program = """
import os, sys
from upseal.integrations.keys import open_key
keys = [open_key(uri) for uri in sys.argv[1:]]
wrapped = [key.public_key.wrap(b"s" * 32) for key in keys]
def check():
    for key, data in zip(keys, wrapped):
        assert key.unwrap(data) == b"s" * 32
check()
child = os.fork()
if not child:
    check()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
check()
print("both")
"""
    uris = [tokens.uri(), tokens.uri("other"), nss.uri(), nss.uri("curve")]
    done = subprocess.run(
        [sys.executable, "-c", program, *uris], capture_output=True, timeout=60, text=True
    )
    assert (done.stdout, done.returncode) == ("both\n", 0), done.stderr


# -- a token that is away -------------------------------------------------------------------


def test_an_unplugged_token_is_no_open_error_and_comes_back(tokens, quick):
    key = open_key(tokens.uri())
    sealer, opener = Sealer([key.public_key]), Opener([key])
    known, new = sealer.seal(b"known"), Sealer([key.public_key]).seal(b"new")
    assert opener.open(known) == b"known"
    with tokens.unplugged():
        for _ in range(2):
            with pytest.raises(KeyUnavailable, match="no such token"):
                opener.open(new)
        with pytest.raises(KeyUnavailable):
            opener.open_many([known, new])
        assert opener.open(known) == b"known"  # its session is remembered
    assert again(lambda: opener.open(new), KeyUnavailable) == b"new"
    other = open_key(tokens.uri("other"))
    assert other.unwrap(other.public_key.wrap(SECRET)) == SECRET


def test_one_error_of_the_token_is_told_from_bad_data_by_a_secret_of_our_own(nss):
    key = open_key(nss.uri())
    wrapped = key.public_key.wrap(SECRET)
    bad = PrivateKey.generate("rsa2048").public_key.wrap(SECRET)
    with nss.failing(1):  # of the token, once: then it is as if nothing had been
        assert key.unwrap(wrapped) == SECRET
    with nss.failing(1000):  # the same error, whatever it is given
        with pytest.raises(KeyUnavailable, match="DeviceError"):
            key.unwrap(wrapped)
        with pytest.raises(KeyUnavailable):
            key.unwrap(bad)
        with pytest.raises(KeyUnavailable):
            Opener([key]).open(Sealer([key.public_key]).seal(b"x"))
    assert again(lambda: key.unwrap(wrapped), KeyUnavailable) == SECRET
    with pytest.raises(ValueError, match="not wrapped"):
        key.unwrap(bad)


def test_another_key_under_the_same_name_is_not_taken_for_it(tokens):
    lazy = LazyKey(tokens.uri("other"), open_key(tokens.uri()).public_key)
    with pytest.raises(KeyUnavailable, match="does not have the key"):
        lazy.unwrap(b"")


def test_a_key_of_another_kind_in_its_place_is_no_fault_of_the_data(tmp_path, monkeypatch):
    program = """
import sys
import pkcs11
from pkcs11.util.ec import encode_named_curve_parameters
from upseal import KeyUnavailable, Opener, Sealer
from upseal.integrations.keys import open_key
key = open_key(sys.argv[1])
sealed = Sealer([key.public_key]).seal(b"kept")
with pkcs11.lib(sys.argv[2]).get_token(token_label="vault").open(rw=True) as session:
    for found in list(session.get_objects({pkcs11.Attribute.LABEL: "server"})):
        found.destroy()
    curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp384r1")}
    other = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
    other.generate_keypair(store=True, label="server", id=b"\\1")
try:
    Opener([key]).open(sealed)
except KeyUnavailable as error:
    print(error)
"""
    monkeypatch.setenv("SOFTHSM2_CONF", "")  # put back afterwards: what the others have stays
    arguments = [Tokens(tmp_path).uri(), SOFTHSM]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, timeout=60, text=True
    )
    assert "this is another curve" in done.stdout, done.stderr


def test_a_wrong_pin_is_tried_once(tokens, tmp_path):
    program = """
import sys, time
from upseal import KeyUnavailable
from upseal.integrations.pkcs11 import module as pkcs11_module
from upseal.integrations.keys import open_key
for words in ("refuses the PIN", "not tried again", "not tried again"):
    try:
        open_key(sys.argv[1])
    except KeyUnavailable as error:
        assert words in str(error), error
    else:
        sys.exit("it was taken")
with open(sys.argv[2], "w") as file:
    file.write(sys.argv[3])
open_key(sys.argv[1])
print("right")
"""
    wrong = tmp_path / "wrong"
    wrong.write_text("0000")
    arguments = [tokens.uri(pin=wrong), str(wrong), PIN]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, timeout=60, text=True
    )
    assert done.stdout == "right\n", done.stderr


def test_what_a_token_cannot_do_is_said_when_it_is_opened(tokens):
    with pytest.raises(KeyUnavailable, match="does not do RSA-OAEP with SHA-256"):
        open_key(tokens.uri("rsa"))
    with pytest.raises(KeyUnavailable, match="no such private key"):
        open_key(tokens.uri("nobody"))
    with pytest.raises(KeyUnavailable, match="cannot be used"):
        open_key("pkcs11:token=x;object=y?module-path=/nowhere/lib.so")


# -- URIs -----------------------------------------------------------------------------------


def test_a_uri_says_what_it_means():
    found = parse(
        "pkcs11:token=My%20token;id=%01%ff;object=k%3B1;serial=12?"
        "module-path=/usr/lib/x.so&pin-source=file:///run/pin%20file"
    )
    assert (found.token, found.id, found.label) == ("My token", b"\x01\xff", "k;1")
    assert (found.serial, found.module, found.pin_source) == (
        "12", "/usr/lib/x.so", "/run/pin file",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("pkcs11:token=a;object=b?module-path=/x&pin-value=1234", "would stand in settings"),
        ("pkcs11:token=a;object=b?module-path=/x&pin-source=|cat", "commands are not run"),
        ("pkcs11:token=a;object=b?module-path=/x&pin-source=https://x", "must be file"),
        ("pkcs11:object=b?module-path=/x", "must name the token"),
        ("pkcs11:token=a?module-path=/x", "must name the token"),
        ("pkcs11:token=a;object=b;type=cert?module-path=/x", "type must be private"),
        ("pkcs11:token=a;object=b;slot-id=3?module-path=/x", "'slot-id' is not taken"),
        ("pkcs11:token=a;object=b?module-path=x.so", "whole path"),
        ("pkcs11:token=a;object=b?module-name=x", "module-name is not taken"),
        ("pkcs11:token=a;token=b;object=b?module-path=/x", "each once"),
    ],
)
def test_what_a_uri_must_not_say(uri, words, monkeypatch):
    monkeypatch.delenv("UPSEAL_PKCS11_MODULE", raising=False)
    with pytest.raises(ValueError, match=words):
        parse(uri)


# -- HPKE from a token's shared secret ------------------------------------------------------


@cache
def vector():
    folder = Path(cryptography_vectors.__file__).parent / "HPKE"
    wanted = {"mode": 0, "kem_id": 0x10, "kdf_id": 1, "aead_id": 2}
    (found,) = [
        one
        for path in sorted(folder.glob("*.json"))
        for one in json.loads(path.read_text())
        if all(one.get(name) == value for name, value in wanted.items())
    ]
    return {n: bytes.fromhex(v) if isinstance(v, str) else v for n, v in found.items()}


def test_the_key_schedule_is_rfc_9180s():
    v = vector()
    first = {name: bytes.fromhex(value) for name, value in v["encryptions"][0].items()}
    private = ec.derive_private_key(int.from_bytes(v["skRm"], "big"), ec.SECP256R1())
    peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), v["enc"])
    dh = private.exchange(ec.ECDH(), peer)  # what a token derives
    given = (v["enc"], dh, v["pkRm"], first["ct"], v["info"], first["aad"])
    assert dhkem.open_base(*given) == first["pt"]
    for at in range(len(given)):
        wrong = list(given)
        wrong[at] = bytes([given[at][0] ^ 1]) + given[at][1:]
        with pytest.raises(ValueError, match="not wrapped"):
            dhkem.open_base(*wrong)


def test_it_opens_what_cryptography_wraps(monkeypatch):
    monkeypatch.setattr(hmac, "digest", None)  # Python's is in no FIPS provider
    private = ec.generate_private_key(ec.SECP256R1())
    key = PrivateKey(private)
    wrapped = key.public_key.wrap(SECRET)
    enc = dhkem.check_point(wrapped[:65])
    dh = private.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(
        ec.SECP256R1(), enc))  # fmt: skip
    point = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert dhkem.open_base(enc, dh, point, wrapped[65:], INFO) == SECRET
    for bad in (b"", enc[:-1], b"\x04" + bytes(64), b"\x05" + enc[1:], enc + b"x"):
        with pytest.raises(ValueError, match="not wrapped"):
            dhkem.check_point(bad)


# -- the command line, the example ----------------------------------------------------------


def test_upseal_open_takes_a_key_in_a_token(tokens, tmp_path):
    public = upseal("keygen", "--from", tokens.uri()).stdout
    (tmp_path / "server.pub.pem").write_bytes(public)
    sealed = upseal("seal", "-r", tmp_path / "server.pub.pem", input=b"hello").stdout
    assert upseal("open", "-i", tokens.uri(), input=sealed).stdout == b"hello"
    with tokens.unplugged():
        done = upseal("open", "-i", tokens.uri(), input=sealed, code=4)
        assert b"no such token" in done.stderr
    bare = tokens.uri().partition("&pin-source")[0]
    environment = {**os.environ, "UPSEAL_PASSPHRASE": PIN}
    assert upseal("open", "-i", bare, input=sealed, env=environment).stdout == b"hello"
    done = upseal("open", "-i", bare + "&pin-value=1", input=sealed, code=2)
    assert b"pin-source=file" in done.stderr


def test_the_example_runs():
    done = subprocess.run(
        [sys.executable, ROOT / "examples/pkcs11/main.py"], capture_output=True, timeout=60,
        text=True, env={**os.environ, "UPSEAL_PKCS11_MODULE": SOFTHSM},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "opened in the token: disk 41%" in done.stdout

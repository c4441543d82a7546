# SPDX-License-Identifier: Apache-2.0
"""Key pairs and their files."""

import hashlib

import pytest
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mlkem, rsa, x448, x25519
from support import SUITES, Opener, Sealer, key, load

from upseal import PrivateKey, PublicKey

PEM, DER = ser.Encoding.PEM, ser.Encoding.DER
SPKI = ser.PublicFormat.SubjectPublicKeyInfo
KINDS = SUITES


def private_pem(raw, fmt=ser.PrivateFormat.PKCS8, encryption=None):
    return raw.private_bytes(PEM, fmt, encryption or ser.NoEncryption())


def public_pem(raw):
    return raw.public_bytes(PEM, SPKI)


def rsa_of(bits):
    """An RSA public key of that size, without the work of finding primes."""
    return rsa.RSAPublicNumbers(65537, (1 << bits) - 1).public_key()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_made_and_lives_in_pem(kind):
    # Primes of the larger ones take seconds to find: those of keys.json will do.
    large = kind in ("rsa3072", "rsa4096")
    made = key(f"{kind}-a") if large else PrivateKey.generate(kind)
    assert made.public_key.name == kind
    envelope = Sealer([made.public_key]).seal(b"r")
    again = PrivateKey.from_pem(made.to_pem())
    assert Opener([again]).open(envelope) == b"r"
    public = PublicKey.from_pem(made.public_key.to_pem())
    assert public == made.public_key
    assert hash(public) == hash(made.public_key)
    assert (public.suite, public.key_id) == (made.suite, made.key_id)
    assert Opener([made]).open(Sealer([public]).seal(b"r")) == b"r"
    blocks = 2 if kind == "mlkem768-x25519" else 1
    assert made.to_pem().count(b"-----BEGIN PRIVATE KEY-----") == blocks
    assert public.to_pem().count(b"-----BEGIN PUBLIC KEY-----") == blocks


@pytest.mark.parametrize("kind", ["x25519", "p256", "mlkem768-x25519", "rsa2048"])
def test_a_passphrase_protects_the_file(kind):
    made = key(f"{kind}-a")
    locked = made.to_pem("correct horse")
    assert b"ENCRYPTED" in locked
    assert b"-----BEGIN PRIVATE KEY-----" not in locked
    for passphrase in ("correct horse", b"correct horse"):
        assert PrivateKey.from_pem(locked, passphrase).key_id == made.key_id
    with pytest.raises(ValueError, match=r".+"):
        PrivateKey.from_pem(locked, "wrong")
    with pytest.raises(TypeError):
        PrivateKey.from_pem(locked)
    with pytest.raises(TypeError):
        PrivateKey.from_pem(made.to_pem(), "needless")
    with pytest.raises(ValueError, match="empty"):
        made.to_pem("")
    with pytest.raises(ValueError, match="empty"):
        PrivateKey.from_pem(locked, b"")


@pytest.mark.parametrize("name", sorted(load("keys")))
def test_published_keys_are_read_and_written_as_published(name):
    stored = load("keys")[name]
    private, public = stored["private_pem"].encode(), stored["public_pem"].encode()
    assert PrivateKey.from_pem(private).to_pem() == private
    assert PublicKey.from_pem(public).to_pem() == public
    assert PrivateKey.from_pem(private).public_key == PublicKey.from_pem(public)
    assert PublicKey.from_pem(public).key_id.hex() == stored["key_id"]
    assert int(PublicKey.from_pem(public).suite) == stored["suite_id"]


@pytest.mark.parametrize("name", [f"{s}-a" for s in SUITES])
def test_a_key_id_is_what_the_format_says(name):
    parts = key(name).public_key.parts
    der = b"".join(part.public_bytes(DER, SPKI) for part in parts)
    assert key(name).key_id == hashlib.sha256(der).digest()[:8]
    lengths = {"p256-a": 91, "x25519-a": 44}
    assert len(der) == lengths.get(name, len(der))


def test_a_key_id_does_not_depend_on_how_a_point_was_written():
    point = key("p256-a").public_key.parts[0].public_numbers()
    sign = b"\3" if point.y & 1 else b"\2"
    compressed = ec.EllipticCurvePublicKey.from_encoded_point(
        ec.SECP256R1(), sign + point.x.to_bytes(32, "big")
    )
    assert PublicKey(compressed).key_id == key("p256-a").key_id


def test_other_pem_forms_of_the_same_keys_are_read():
    # What openssl writes: PKCS#1 and SEC1 private keys, and text round the block.
    for name in ("rsa2048-a", "p256-a"):
        raw = key(name).parts[0]
        pem = private_pem(raw, ser.PrivateFormat.TraditionalOpenSSL)
        assert PrivateKey.from_pem(b"a comment\n" + pem + b"\n").key_id == key(name).key_id
        crlf = private_pem(raw).replace(b"\n", b"\r\n")
        assert PrivateKey.from_pem(bytearray(crlf)).key_id == key(name).key_id


def test_the_blocks_of_a_hybrid_key_stand_in_one_order():
    made = key("mlkem768-x25519-a")
    for pem, read in (
        (made.to_pem(), PrivateKey.from_pem),
        (made.public_key.to_pem(), PublicKey.from_pem),
    ):
        at = pem.index(b"-----BEGIN", 1)
        with pytest.raises(ValueError, match="ML-KEM-768 and X25519"):
            read(pem[at:] + pem[:at])
        with pytest.raises(ValueError, match="ML-KEM-768"):
            read(pem[:at])  # ML-KEM alone
        assert read(pem[at:]).suite == 0x0020  # X25519 alone is another key
        assert read(pem[at:]).key_id != made.key_id


UNSUITABLE = {
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "X448": x448.X448PrivateKey.generate,
    "ML-KEM-1024": mlkem.MLKEM1024PrivateKey.generate,
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_keys_of_no_suite_are_refused(name):
    raw = UNSUITABLE[name]()
    for call in (
        lambda: PrivateKey(raw),
        lambda: PublicKey(raw.public_key()),
        lambda: PrivateKey.from_pem(private_pem(raw)),
        lambda: PublicKey.from_pem(public_pem(raw.public_key())),
    ):
        with pytest.raises(ValueError, match=r".+"):
            call()


@pytest.mark.parametrize("bits", [1024, 2047, 4097, 8192])
def test_rsa_keys_outside_2048_to_4096_bits_are_refused(bits):
    with pytest.raises(ValueError, match="2048 to 4096"):
        PublicKey(rsa_of(bits))
    with pytest.raises(ValueError, match=r".+"):
        PublicKey.from_pem(public_pem(rsa_of(bits)))


def test_a_small_private_rsa_key_is_refused():
    # Two fixed primes: generation of so small a key is refused by cryptography itself.
    p, q = (1 << 521) - 1, (1 << 607) - 1
    d = pow(65537, -1, (p - 1) * (q - 1))
    numbers = rsa.RSAPrivateNumbers(
        p,
        q,
        d,
        d % (p - 1),
        d % (q - 1),
        rsa.rsa_crt_iqmp(p, q),
        rsa.RSAPublicNumbers(65537, p * q),
    )
    with pytest.raises(ValueError, match=r".+"):
        PrivateKey(numbers.private_key(unsafe_skip_rsa_key_validation=True))


@pytest.mark.parametrize("bits", [2048, 2049, 3000, 4096])
def test_rsa_keys_of_odd_sizes_in_between_are_taken(bits):
    public = PublicKey(rsa_of(bits))
    assert (bits + 7) // 8 in public.suite.wrapped_len
    assert public.name == f"rsa{bits}"


def test_what_is_no_key_is_a_value_error():
    good = key("x25519-a").to_pem()
    for data in (
        b"",
        b"junk",
        good[:-30],
        good.replace(b"MC4C", b"MC4D"),
        key("x25519-a").public_key.to_pem(),
        good + good,
        b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
    ):
        with pytest.raises(ValueError, match=r".+"):
            PrivateKey.from_pem(data)
    public = key("x25519-a").public_key.to_pem()
    for data in (b"", b"junk", good, public + public, public[:40]):
        with pytest.raises(ValueError, match=r".+"):
            PublicKey.from_pem(data)
    with pytest.raises(TypeError):
        PublicKey.from_pem("text")
    with pytest.raises(ValueError, match="choose one of"):
        PrivateKey.generate("rsa1024")


def test_a_key_of_an_algorithm_unknown_to_cryptography_is_a_value_error():
    # An X25519 SubjectPublicKeyInfo with an OID nobody has: 1.3.101.99.
    der = key("x25519-a").public_key.parts[0].public_bytes(DER, SPKI)
    changed = der.replace(bytes.fromhex("2b656e"), bytes.fromhex("2b6563"))
    assert changed != der
    import base64

    pem = (
        b"-----BEGIN PUBLIC KEY-----\n"
        + base64.encodebytes(changed)
        + b"-----END PUBLIC KEY-----\n"
    )
    with pytest.raises(ValueError, match=r".+"):
        PublicKey.from_pem(pem)
    secret = (
        key("x25519-a").parts[0].private_bytes(DER, ser.PrivateFormat.PKCS8, ser.NoEncryption())
    )
    changed = secret.replace(bytes.fromhex("2b656e"), bytes.fromhex("2b6563"))
    pem = (
        b"-----BEGIN PRIVATE KEY-----\n"
        + base64.encodebytes(changed)
        + b"-----END PRIVATE KEY-----\n"
    )
    with pytest.raises(ValueError, match=r".+"):
        PrivateKey.from_pem(pem)


def test_parts_must_fit_together():
    ml, x = key("mlkem768-x25519-a").parts
    for parts in ((), (x, ml), (x, x), (ml, x, x), (ml, key("p256-a").parts[0]), (ml,)):
        with pytest.raises(ValueError, match="not a key"):
            PrivateKey(*parts)
    with pytest.raises(ValueError, match="not a key"):
        PublicKey(x)  # a private one
    assert PrivateKey(ml, x).key_id == key("mlkem768-x25519-a").key_id


def test_nothing_secret_shows_when_a_key_is_printed():
    for name in (f"{s}-a" for s in SUITES):
        made = key(name)
        assert repr(made) == f"<PrivateKey {name[:-2]} {made.key_id.hex()}>"
        assert repr(made.public_key) == f"<PublicKey {name[:-2]} {made.key_id.hex()}>"
    assert made.public_key != made
    assert key("x25519-a").public_key != key("x25519-b").public_key


def test_raw_x25519_keys_can_be_used_as_they_are():
    raw = x25519.X25519PrivateKey.generate()
    made = PrivateKey(raw)
    assert made.parts == (raw,)
    assert Opener([made]).open(Sealer([PublicKey(raw.public_key())]).seal(b"r")) == b"r"

# SPDX-License-Identifier: Apache-2.0
"""Wrapping: the HPKE suites that we use open the vectors of RFC 9180.

Our own info is fixed, so the vectors go through the very suite objects that `core.suites` uses,
by `cryptography`'s helper that takes an AAD too (the vectors have one).
"""

import hashlib
import json
from functools import cache
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519
from support import SUITES, key

from upseal.core import suites
from upseal.core.suites import Suite

FOLDER = Path(cryptography_vectors.__file__).parent / "HPKE"
BASE, HKDF_SHA256, AES_256_GCM, CHACHA = 0, 1, 2, 3


@cache
def vector(file, kem, aead):
    """The vector in base mode for this KEM with HKDF-SHA256."""
    wanted = {"mode": BASE, "kem_id": kem, "kdf_id": HKDF_SHA256, "aead_id": aead}
    (found,) = [
        v
        for v in json.loads((FOLDER / file).read_text())
        if all(v[name] == value for name, value in wanted.items())
    ]
    return found


def decrypt(suite, sealed, private, info, aad):
    try:
        from cryptography.hazmat.bindings._rust import openssl

        helper = openssl.hpke._decrypt_with_aad
    except (ImportError, AttributeError):
        pytest.skip("this cryptography has no helper that takes an AAD")
    return helper(suite, sealed, private, info, aad)


def check(suite, v, private):
    first = v["encryptions"][0]  # sequence number 0: what single shot means
    sealed = bytes.fromhex(v["enc"] + first["ct"])
    info, aad = bytes.fromhex(v["info"]), bytes.fromhex(first["aad"])
    assert decrypt(suite, sealed, private, info, aad) == bytes.fromhex(first["pt"])
    for wrong in (
        (sealed, b"upseal/v1 session", aad),
        (sealed, info, b""),
        (sealed[:-1] + bytes([sealed[-1] ^ 1]), info, aad),
    ):
        with pytest.raises(InvalidTag):
            decrypt(suite, wrong[0], private, *wrong[1:])


def test_x25519_opens_the_vector_of_the_rfc():
    v = vector("test-vectors.json", 0x0020, AES_256_GCM)
    private = x25519.X25519PrivateKey.from_private_bytes(bytes.fromhex(v["skRm"]))
    check(suites._hpke(Suite.X25519), v, private)


def test_p256_opens_the_vector_of_the_rfc():
    v = vector("test-vectors.json", 0x0010, AES_256_GCM)
    private = ec.derive_private_key(int(v["skRm"], 16), ec.SECP256R1())
    check(suites._hpke(Suite.P256), v, private)


def test_the_hybrid_kem_opens_the_vector_of_its_draft():
    # The vectors have it with ChaCha20-Poly1305 only: the KEM and its key schedule are what counts.
    v = vector("hpke-pq-test-vectors.json", 0x647A, CHACHA)
    parts = hashlib.shake_256(bytes.fromhex(v["skRm"])).digest(96)  # X-Wing's expansion of its seed
    private = hpke.MLKEM768X25519PrivateKey(
        mlkem.MLKEM768PrivateKey.from_seed_bytes(parts[:64]),
        x25519.X25519PrivateKey.from_private_bytes(parts[64:]),
    )
    check(
        hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305),
        v,
        private,
    )


def test_the_suites_carry_the_numbers_of_the_registry():
    assert {s.name: int(s) for s in Suite} == {
        "P256": 0x0010,
        "X25519": 0x0020,
        "MLKEM768_X25519": 0x647A,
        "RSA_OAEP": 0xFF01,
    }


@pytest.mark.parametrize("name", SUITES)
def test_a_wrapped_secret_has_the_length_its_suite_says(name):
    holder, secret = key(f"{name}-a"), bytes(range(32))
    wrapped = holder.public_key.wrap(secret)
    assert holder.unwrap(wrapped) == secret
    assert len(wrapped) in holder.suite.wrapped_len
    if not name.startswith("rsa"):
        assert len(wrapped) - 1 not in holder.suite.wrapped_len
        assert len(wrapped) + 1 not in holder.suite.wrapped_len
    assert holder.public_key.wrap(secret) != wrapped


@pytest.mark.parametrize("name", SUITES)
def test_a_secret_wrapped_for_another_key_or_damaged_is_a_value_error(name):
    other = "x25519-b" if name != "x25519" else "p256-b"
    wrapped = bytearray(key(f"{name}-a").public_key.wrap(bytes(32)))
    with pytest.raises(ValueError, match=r".*"):
        key(other).unwrap(bytes(wrapped))
    wrapped[-1] ^= 1
    with pytest.raises(ValueError, match=r".*"):
        key(f"{name}-a").unwrap(bytes(wrapped))
    for short in (b"", bytes(wrapped[:40])):
        with pytest.raises(ValueError, match=r".*"):
            key(f"{name}-a").unwrap(short)


def test_hpke_here_is_bound_to_our_own_info():
    holder = key("x25519-a")
    suite = suites._hpke(Suite.X25519)
    private = holder.parts[0]
    wrapped = holder.public_key.wrap(bytes(32))
    assert suite.decrypt(wrapped, private, info=b"upseal/v1 session") == bytes(32)
    foreign = suite.encrypt(bytes(32), private.public_key(), info=b"another protocol")
    with pytest.raises(ValueError, match="not wrapped for this key"):
        holder.unwrap(foreign)

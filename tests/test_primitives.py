# SPDX-License-Identifier: Apache-2.0
"""Each engine's ciphers against other people's vectors and libraries."""

import hashlib
import re
from pathlib import Path

import cryptography_vectors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt
from support import load, seal_all

AES, CHACHA = 1, 2
GCM = Path(cryptography_vectors.__file__).parent / "ciphers/AES/GCM"


def seal(engine, cipher, key, nonce, aad, plaintext):
    sealed = engine.sealing(engine.record_key(cipher, key), b"", False)(nonce, aad, plaintext)
    assert sealed[:24] == nonce
    return sealed[24:]


def unseal(engine, cipher, key, nonce, aad, sealed):
    return engine.open_envelope(engine.record_key(cipher, key), 0, aad, nonce + sealed, False)


@pytest.mark.parametrize(
    ("key", "aad", "sealed"),
    [
        (b"\1" * 32, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (
            b"\3" * 32,
            b"c2sp.org/XAES-256-GCM",
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
        ),
    ],
    ids=["top bit of L clear", "top bit of L set"],
)
def test_xaes_gives_the_vectors_of_c2sp(engine, key, aad, sealed):
    nonce, sealed = b"ABCDEFGHIJKLMNOPQRSTUVWX", bytes.fromhex(sealed)
    assert seal(engine, AES, key, nonce, aad, b"XAES-256-GCM") == sealed
    assert unseal(engine, AES, key, nonce, aad, sealed) == b"XAES-256-GCM"


def test_xaes_gives_the_accumulated_vector_of_c2sp(engine):
    # 10,000 random keys, nonces, plaintexts and AADs of 0 to 255 bytes: SHAKE-128 of nothing is
    # read as TLS would write them, and the ciphertexts are hashed.
    stream, at = hashlib.shake_128().digest(10_000 * (32 + 24 + 2 * 256)), 0
    sums = hashlib.shake_128()

    def take(length):
        nonlocal at
        at += length
        return stream[at - length : at]

    assert stream.hex().startswith("7f9c2ba4e88f827d616045507605853e")
    for number in range(10_000):
        key, nonce = take(32), take(24)
        plaintext = take(take(1)[0])
        aad = take(take(1)[0])
        sealed = seal(engine, AES, key, nonce, aad, plaintext)
        sums.update(sealed)
        if number % 20 == 0:
            assert unseal(engine, AES, key, nonce, aad, sealed) == plaintext
    assert sums.hexdigest(32) == "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"


def test_the_engines_give_the_published_primitives(engine):
    published = load("primitives")
    for cipher, name in ((AES, "xaes_256_gcm"), (CHACHA, "xchacha20_poly1305")):
        for v in published[name]:
            parts = (bytes.fromhex(v[f]) for f in ("key", "nonce", "aad", "plaintext"))
            assert seal(engine, cipher, *parts).hex() == v["sealed"]


def test_record_nonces_are_xored_as_published(engine):
    # Sealing many shows each record's nonce; only small indices can be reached this way.
    for base, index, nonce in load("primitives")["record_nonce"]:
        if index > 300:
            continue
        key, base = engine.record_key(AES, bytes(32)), bytes.fromhex(base)
        made = seal_all(engine, key, base, b"", b"", [b""] * (index + 1), False)
        assert made[index][:24].hex() == nonce


def test_xchacha_gives_the_vector_of_the_draft(engine):
    # draft-irtf-cfrg-xchacha-03, A.3.1.
    plaintext = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for "
        b"the future, sunscreen would be it."
    )
    key, aad = bytes(range(0x80, 0xA0)), bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    nonce = bytes(range(0x40, 0x58))
    sealed = bytes.fromhex(
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb"
        "731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452"
        "2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
        "21f9664c97637da9768812f615c68b13b52e"
        "c0875924c1c7987947deafd8780acf49"
    )
    assert seal(engine, CHACHA, key, nonce, aad, plaintext) == sealed
    assert unseal(engine, CHACHA, key, nonce, aad, sealed) == plaintext


@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=24, max_size=24),
    st.binary(max_size=100),
    st.integers(0, 2000),
    st.binary(min_size=1, max_size=9),
)
def test_xchacha_is_libsodiums(engine, key, nonce, aad, size, seed):
    plaintext = (seed * size)[:size]
    theirs = crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, aad, nonce, key)
    assert seal(engine, CHACHA, key, nonce, aad, plaintext) == theirs
    assert unseal(engine, CHACHA, key, nonce, aad, theirs) == plaintext


def cavp(name):
    """NIST's cases with IVs of 96 bits, tags of 128, no AAD (chunks have none).

    AAD is covered by the accumulated vector of XAES above.
    """
    text = (GCM / name).read_text()
    for group in re.split(r"(?=\[Keylen)", text)[1:]:
        sizes = dict(re.findall(r"\[(\w+) = (\d+)\]", group))
        if (sizes["IVlen"], sizes["AADlen"], sizes["Taglen"]) != ("96", "0", "128"):
            continue
        for case in re.split(r"\n\s*\n(?=Count)", group)[1:]:
            found = {
                k: bytes.fromhex(v)
                for k, v in re.findall(r"^(\w+) = ?([0-9a-f]*)$", case, re.M)
                if k != "Count"
            }
            yield found, "FAIL" in case


def test_aes_gcm_seals_as_nist_says(engine):
    count = 0
    for case, _ in cavp("gcmEncryptExtIV256.rsp"):
        out = bytearray(len(case["PT"]) + 16)
        key = engine.chunk_key(AES, case["Key"] + case["IV"])
        engine.seal_chunks(key, 0, True, memoryview(case["PT"]), memoryview(out))
        assert out == case["CT"] + case["Tag"]
        count += 1
    assert count == 75  # 5 lengths of plaintext, 15 of each


def test_aes_gcm_opens_and_refuses_as_nist_says(engine):
    seen = {True: 0, False: 0}
    for case, forged in cavp("gcmDecrypt256.rsp"):
        out = bytearray(len(case["CT"]))
        key = engine.chunk_key(AES, case["Key"] + case["IV"])
        sealed = memoryview(case["CT"] + case["Tag"])
        assert engine.open_chunks(key, 0, True, sealed, memoryview(out)) is not forged
        assert out == (bytes(len(out)) if forged else case["PT"])
        seen[forged] += 1
    assert sum(seen.values()) == 75
    assert min(seen.values()) > 20

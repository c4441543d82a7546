# SPDX-License-Identifier: Apache-2.0
"""Signing keys, their names, and the files they live in."""

import contextlib
import hashlib
import os
import stat
import threading
import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519
from hypothesis import given
from hypothesis import strategies as st

from upseal.fleet.encoding import b64url, from_b64url, from_hex, load_object
from upseal.fleet.files import FileLock, read_private, write_new_private, write_private
from upseal.fleet.identity import KINDS, SigningKey, VerifyKey, load_or_make

KEYS = {kind: SigningKey.generate(kind) for kind in KINDS}
OTHERS = {kind: SigningKey.generate(kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def key(kind):
    return KEYS[kind]


class TestSigning:
    def test_a_signature_has_64_bytes_and_verifies(self, key):
        for message in (b"", b"a report", os.urandom(100_000)):
            signature = key.sign(message)
            assert len(signature) == 64
            assert key.public.verify(message, signature)

    def test_nothing_else_verifies(self, key, kind):
        signature = key.sign(b"a report")
        assert not key.public.verify(b"b report", signature)
        assert not OTHERS[kind].public.verify(b"a report", signature)
        for bit in range(0, 512, 7):
            flipped = bytearray(signature)
            flipped[bit // 8] ^= 1 << bit % 8
            assert not key.public.verify(b"a report", bytes(flipped))

    @pytest.mark.parametrize("size", [0, 1, 63, 65, 72, 128])
    def test_other_lengths_do_not_verify(self, key, size):
        assert not key.public.verify(b"", bytes(size))

    def test_another_length_of_the_same_numbers_does_not_verify(self):
        key = KEYS["p256"]
        signature = key.sign(b"x")
        assert not key.public.verify(b"x", signature[:32] + b"\0" + signature[32:])
        assert not key.public.verify(b"x", signature + b"\0")

    @pytest.mark.parametrize("byte", [0, 255])
    def test_numbers_out_of_range_do_not_verify(self, key, byte):
        assert not key.public.verify(b"", bytes([byte]) * 64)

    def test_a_signature_of_the_other_kind_does_not_verify(self):
        for one, other in (KINDS, KINDS[::-1]):
            assert not KEYS[one].public.verify(b"x", KEYS[other].sign(b"x"))

    def test_ecdsa_numbers_are_padded(self):
        # About one signature in 128 has a number with a leading zero byte.
        key = KEYS["p256"]
        assert all(len(key.sign(b"%d" % i)) == 64 for i in range(300))


class TestNames:
    def test_they_are_of_the_public_key(self, key):
        digest = hashlib.sha256(key.public.der).digest()
        assert key.public.fingerprint == digest
        assert key.public.agent_id == digest[:16]
        assert key.public.key_id == digest[:8]

    def test_der_pem_and_jwk_lead_back(self, key):
        public = key.public
        for back in (
            VerifyKey.from_der(public.der), VerifyKey.from_pem(public.to_pem()),
            VerifyKey.from_jwk(public.jwk()),
        ):  # fmt: skip
            assert back == public
            assert hash(back) == hash(public)
            assert back.algorithm == key.algorithm
        assert public != OTHERS["ed25519"].public
        assert public != "a key"

    def test_a_repr_shows_no_secret(self, key):
        secret = key.private.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )  # fmt: skip
        assert secret.hex()[-20:] not in repr(key)

    def test_another_spelling_of_a_point_is_refused(self):
        # Compressed: the same key, with another SHA-256 and so another name.
        public = KEYS["p256"].public.public
        point = public.public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        )
        head = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
        with pytest.raises(ValueError):
            VerifyKey.from_der(head + point)

    def test_trailing_bytes_are_refused(self, key):
        with pytest.raises(ValueError):
            VerifyKey.from_der(key.public.der + b"\0")

    @given(st.binary(max_size=120))
    def test_no_input_crashes_der(self, data):
        with pytest.raises(ValueError):
            VerifyKey.from_der(data)

    @given(st.sampled_from(KINDS), st.integers(0, 90), st.integers(1, 255))
    def test_a_changed_der_is_another_key_or_none(self, kind, at, change):
        der = bytearray(KEYS[kind].public.der)
        der[at % len(der)] ^= change
        with contextlib.suppress(ValueError):
            assert VerifyKey.from_der(bytes(der)) != KEYS[kind].public

    @pytest.mark.parametrize("other", ["rsa", "x25519", "p384", "ed448"])
    def test_other_kinds_are_refused(self, other):
        private = {
            "rsa": lambda: rsa.generate_private_key(65537, 2048),
            "x25519": x25519.X25519PrivateKey.generate,
            "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
            "ed448": ed448.Ed448PrivateKey.generate,
        }[other]()
        with pytest.raises(ValueError):
            SigningKey(private)
        with pytest.raises(ValueError):
            VerifyKey(private.public_key())
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )  # fmt: skip
        with pytest.raises(ValueError):
            SigningKey.from_pem(pem)


class TestJwk:
    def test_what_is_no_jwk_is_refused(self, key):
        jwk = key.public.jwk()
        bad = [
            None, [], "x", {}, jwk | {"d": "AAAA"}, jwk | {"x": jwk["x"] + "="},
            jwk | {"x": jwk["x"][:-1]}, jwk | {"crv": "P-384"}, jwk | {"kty": "oct"},
            jwk | {"x": 5}, {k: v for k, v in jwk.items() if k != "x"}, jwk | {"kid": "a"},
        ]  # fmt: skip
        for value in bad:
            with pytest.raises(ValueError):
                VerifyKey.from_jwk(value)

    def test_a_point_off_the_curve_is_refused(self):
        jwk = KEYS["p256"].public.jwk()
        with pytest.raises(ValueError):
            VerifyKey.from_jwk(jwk | {"y": b64url(bytes(31) + b"\1")})


class TestFiles:
    def test_pem_leads_back(self, key, kind):
        assert SigningKey.from_pem(key.to_pem()).public == key.public
        sealed = key.to_pem("word")
        assert SigningKey.from_pem(sealed, "word").public == key.public
        with pytest.raises(TypeError):
            SigningKey.from_pem(sealed)
        with pytest.raises(ValueError):
            SigningKey.from_pem(sealed, "other")
        with pytest.raises(ValueError):
            key.to_pem("")

    def test_a_new_key_is_written_privately_and_found_again(self, tmp_path, kind):
        path = tmp_path / "new" / "deep" / "identity.pem"
        made = load_or_make(path, kind)
        assert load_or_make(path, kind).public == made.public
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert os.listdir(path.parent) == ["identity.pem"]

    def test_a_key_of_another_kind_stays(self, tmp_path):
        made = load_or_make(tmp_path / "k.pem", "p256")
        assert load_or_make(tmp_path / "k.pem", "ed25519").public == made.public

    def test_many_at_once_get_one_key(self, tmp_path):
        found, barrier = [], threading.Barrier(8)

        def run():
            barrier.wait()
            found.append(load_or_make(tmp_path / "k.pem").public)

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len(set(found)) == 1
        assert os.listdir(tmp_path) == ["k.pem"]

    @pytest.mark.parametrize("data", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
    def test_a_damaged_key_is_not_replaced(self, tmp_path, data):
        path = tmp_path / "k.pem"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"k\.pem"):
            load_or_make(path)
        assert path.read_bytes() == data

    def test_no_such_kind(self, tmp_path):
        for act in (SigningKey.generate, lambda kind: load_or_make(tmp_path / "k.pem", kind)):
            with pytest.raises(ValueError, match="choose one of"):
                act("rsa2048")
        assert not os.listdir(tmp_path)

    def test_a_write_that_fails_leaves_the_old_bytes(self, tmp_path, monkeypatch):
        path = tmp_path / "file"
        write_private(path, b"old")

        def fail(*_):
            raise OSError(28, "no space left")

        monkeypatch.setattr(os, "fsync", fail)
        for write in (write_private, write_new_private):
            with pytest.raises(OSError):
                write(path, b"new")
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["file"]

    def test_a_new_file_does_not_replace(self, tmp_path):
        assert write_new_private(tmp_path / "file", b"one")
        assert not write_new_private(tmp_path / "file", b"two")
        assert read_private(tmp_path / "file") == b"one"
        with pytest.raises(OSError):
            read_private(tmp_path / "file", 2)

    def test_a_lock_lets_one_in(self, tmp_path):
        inside, most, lock = 0, 0, threading.Lock()

        def run():
            nonlocal inside, most
            for _ in range(10):
                with FileLock(tmp_path / "lock"):
                    with lock:
                        inside += 1
                        most = max(most, inside)
                    time.sleep(0.0005)  # time enough for others to come in, if they may
                    with lock:
                        inside -= 1

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1


class TestEncoding:
    @given(st.binary(max_size=64))
    def test_base64url_leads_back(self, data):
        assert from_b64url(b64url(data)) == data
        assert from_hex(data.hex(), len(data)) == data

    @given(st.text(max_size=40))
    def test_each_value_has_one_spelling(self, text):
        with contextlib.suppress(ValueError):
            assert b64url(from_b64url(text)) == text

    @pytest.mark.parametrize("text", ["AB", "AA==", "A", "AA\n", "A+/A", "é", "AAA=", " AAA"])
    def test_other_spellings_are_refused(self, text):
        with pytest.raises(ValueError):
            from_b64url(text)

    @pytest.mark.parametrize("text", ["AB", "a b", "0g", "", "abc", None, 5, b"ab", "\u0661\u0661"])
    def test_hex_too(self, text):
        with pytest.raises(ValueError):
            from_hex(text, 1)

    @pytest.mark.parametrize(
        "text",
        ['{"a":1,"a":1}', '{"a":NaN}', '{"a":Infinity}', "[" * 5000, '{"a":' * 5000, "[]", "1",
         '"x"', "", b"\xff", "{}x", '{"a":{"b":1,"b":2}}', "null"],
    )  # fmt: skip
    def test_json_that_parsers_read_differently_is_refused(self, text):
        with pytest.raises(ValueError):
            load_object(text)

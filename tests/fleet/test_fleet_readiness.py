# SPDX-License-Identifier: Apache-2.0
"""Challenges: answered by the holder of the key, and by nobody else."""

from __future__ import annotations

import contextlib
import hashlib
import os

import pytest

from upseal import PrivateKey
from upseal.fleet import readiness
from upseal.fleet.readiness import BadChallenge, answer_challenge, make_challenge

KINDS = ("x25519", "p256", "mlkem768-x25519", "rsa2048", "rsa3072")


@pytest.fixture(scope="module")
def keys():
    return {kind: PrivateKey.generate(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_the_holder_answers(keys, kind):
    key = keys[kind]
    sealed, expected = make_challenge(key.public_key)
    assert len(sealed) == readiness.challenge_len(key.public_key) <= readiness.CHALLENGE_MAX
    assert answer_challenge(key, sealed) == expected
    assert len(expected) == 32
    assert make_challenge(key.public_key)[1] != expected, "each challenge is fresh"


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_else_answers(keys, kind):
    sealed, _ = make_challenge(keys[kind].public_key)
    with pytest.raises(BadChallenge):
        answer_challenge(PrivateKey.generate(kind), sealed)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused(keys, kind):
    key = keys[kind]
    sealed, expected = make_challenge(key.public_key)
    for bad in (b"", sealed[:-1], sealed + b"\0", bytes(len(sealed)), os.urandom(len(sealed))):
        with pytest.raises(BadChallenge):
            answer_challenge(key, bad)
    for place in range(0, len(sealed), max(1, len(sealed) // 40)):
        flipped = bytearray(sealed)
        flipped[place] ^= 1 << place % 8
        try:
            # X25519 ignores the top bit of a point: then the answer is still the true one or none.
            assert answer_challenge(key, bytes(flipped)) == expected
        except BadChallenge:
            continue
        assert kind == "x25519" and place == 31


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrapped_session_secret_is_no_challenge(keys, kind):
    """Else whoever poses challenges could use the relay as an oracle for captured headers."""
    key = keys[kind]
    with pytest.raises(BadChallenge):
        answer_challenge(key, key.public_key.wrap(os.urandom(32)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_challenge_is_no_wrapped_session_secret(keys, kind):
    sealed, _ = make_challenge(keys[kind].public_key)
    with contextlib.suppress(ValueError):
        assert len(keys[kind].unwrap(sealed)) != 32


def test_the_answer_is_the_published_one(keys, monkeypatch):
    monkeypatch.setattr(readiness.os, "urandom", lambda count: b"n" * count)
    _, expected = make_challenge(keys["x25519"].public_key)
    assert expected == hashlib.sha256(b"ready" + b"n" * 32).digest()

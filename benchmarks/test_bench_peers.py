# SPDX-License-Identifier: Apache-2.0
"""Everybody else. What is paid once for many reports stands in each test's name.

Figures to know a peer by; to compare, take `ratios.py` and `files.py`, which run by turns.
"""

import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from peers import aesgcm
from subjects import reports


@pytest.mark.parametrize("verb", ["seal", "open"])
def test_peer(rows, peer, size, verb):
    report = os.urandom(size)
    sealed = peer.seal(report)
    assert peer.open(sealed) == report
    run = rows(f"{verb} reports of {size} B", 1, size=size, amortises=peer.amortises)
    run(peer.seal, report) if verb == "seal" else run(peer.open, sealed)


SEALING = {
    "urandom_nonces": aesgcm.random_nonces,
    "counter_nonces": aesgcm.counter_nonces,
}
OPENING = {
    "urandom_nonces": aesgcm.open_random_nonces,
    "counter_nonces": aesgcm.open_counter_nonces,
}


@pytest.mark.parametrize("loop", SEALING)
def test_aesgcm_loop_seal_key_given(rows, size, count, loop):
    aead, items = AESGCM(AESGCM.generate_key(256)), reports(size, count)
    rows(f"seal reports of {size} B", count, size=size)(SEALING[loop], aead, items)


@pytest.mark.parametrize("loop", OPENING)
def test_aesgcm_loop_open_key_given(rows, size, count, loop):
    aead, items = AESGCM(AESGCM.generate_key(256)), reports(size, count)
    sealed = SEALING[loop](aead, items)
    assert rows(f"open reports of {size} B", count, size=size)(OPENING[loop], aead, sealed) == items


def test_aesgcm_encrypt_into_counter_nonces_key_given(rows, size, count):
    aead, items = AESGCM(AESGCM.generate_key(256)), reports(size, count)
    out = memoryview(bytearray((size + 16) * count))
    run = rows(f"seal reports of {size} B", count, size=size)
    run(aesgcm.into_one_buffer, aead, items, out)

# SPDX-License-Identifier: Apache-2.0
"""Padmé padding: exact lengths, and only exact padding is taken off."""

import generate
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Opener, Sealer, key, load, pattern

from upseal import OpenError, Padding, UnsupportedFormat, explain
from upseal.engine.padding import pad, padded_len, unpad

KEY, NONCE = bytes(range(32)), bytes(24)


def test_padded_lengths_are_the_published_ones():
    for length, padded in load("padme"):
        if length:
            assert padded_len(length - 1) == padded
    assert len(load("padme")) > 90


def test_both_engines_pad_to_the_same_length(engine):
    k = engine.record_key(1, KEY)
    for length, padded in load("padme"):
        if 0 < length <= 70000:
            sealed = engine.sealing(k, b"", True)(NONCE, b"", bytes(length - 1))
            assert len(sealed) == 40 + padded


def test_the_native_lengths_are_the_portable_ones():
    native = pytest.importorskip("upseal.engine._native", reason="the C core is not built")
    for length in [*range(5000), *(2**e + d for e in range(12, 25) for d in (-2, -1, 0, 1))]:
        assert native.lib.upseal_padded_len(length) == padded_len(length)


@given(st.integers(0, 1 << 24))
def test_padding_costs_at_most_12_percent_and_never_a_report(length):
    padded = padded_len(length)
    assert length < padded <= max(length + 2, (length + 1) * 1.12)
    # A fixed point: a sealer that pads twice by mistake would add nothing but the marker.
    assert padded_len(padded - 1) == padded


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=9).map(lambda b: b + b"\x80\0\0")))
def test_what_is_padded_comes_off_again(engine, report):
    assert unpad(pad(report)) == report
    k = engine.record_key(2, KEY)
    sealed = engine.sealing(k, b"p", True)(NONCE, b"a", report)
    assert engine.open_envelope(k, 1, b"a", sealed, True) == report
    assert engine.open_envelope(k, 1, b"a", sealed, False) == pad(report)


@given(
    st.one_of(
        st.binary(max_size=80),
        st.tuples(st.binary(max_size=40), st.integers(0, 40)).map(
            lambda t: t[0] + b"\x80" + bytes(t[1])
        ),
    )
)
def test_only_exact_padding_is_taken_off(engine, plaintext):
    # Sealed unpadded, opened as padded: the engine must judge the bytes themselves.
    k = engine.record_key(1, KEY)
    sealed = engine.sealing(k, b"", False)(NONCE, b"", plaintext)
    opened = engine.open_envelope(k, 0, b"", sealed, True)
    assert opened == unpad(plaintext)
    if opened is not None:
        assert pad(opened) == plaintext


@pytest.mark.parametrize(
    "plaintext",
    [
        b"\0",
        b"a",
        b"\0\0",
        b"\x80\0",
        b"a\x81",
        b"a\x80\0",
        bytes(8) + b"\x80",
        pad(bytes(100))[:-1],
        pad(bytes(100)) + b"\0",
        pad(bytes(100)) + bytes(8),
        pad(b"")[:0] + b"\0",
    ],
    ids=lambda p: f"{len(p)} bytes",
)
def test_wrong_padding_inside_a_genuine_seal_is_refused(engine, plaintext):
    if unpad(plaintext) is not None:
        pytest.fail(f"{plaintext!r} is good padding")
    recipient = key("x25519-a")
    secret = bytes(range(32))
    wrapped = recipient.public_key.wrap(secret)
    entry = generate.make_entry(int(recipient.suite), recipient.key_id, wrapped)
    session = generate.Session([entry], secret)
    opener = Opener([recipient], engine=engine)
    with pytest.raises(OpenError) as caught:
        opener.open(generate.envelope(session, NONCE, plaintext, b"", 0x81))
    assert type(caught.value) is OpenError
    good = pad(b"good")
    records = generate.records(session, NONCE, [good, plaintext, good], b"", 0x82)
    with pytest.raises(OpenError):
        opener.open_batch(generate.batch(session, NONCE, records, 0x82))
    assert opener.open(generate.envelope(session, NONCE, good, b"", 0x81)) == b"good"


def test_reports_of_like_size_become_alike(engine, key):
    sealer = Sealer([key.public_key], padding=Padding.PADME, engine=engine)
    sizes = {len(sealer.seal(bytes(n))) for n in range(992, 1024)}
    assert len(sizes) == 1
    assert explain(sealer.seal(b"")).padded
    assert explain(sealer.seal_batch([b""])).padded


def test_padded_and_plain_kinds_cannot_be_exchanged(engine, key):
    opener = Opener([key], engine=engine)
    padding = Sealer([key.public_key], padding=Padding.PADME, engine=engine)
    plain = Sealer([key.public_key], engine=engine)
    for data in (padding.seal(pattern(50)), plain.seal(pad(pattern(50)))):
        kind = 130
        assert data[kind] in (0x01, 0x81)
        with pytest.raises(OpenError):
            opener.open(data[:kind] + bytes([data[kind] ^ 0x80]) + data[kind + 1 :])
    with pytest.raises(UnsupportedFormat):
        opener.open(data[:kind] + b"\x83" + data[kind + 1 :])


def test_what_grows_over_a_batchs_limit_by_padding_is_refused_by_the_sealer(
    engine, key, monkeypatch
):
    # The limit holds after padding: a batch that no opener takes must not be made. The true
    # limit, 1 GiB, is too large for a test.
    monkeypatch.setattr("upseal.core.sealer.BATCH_BYTES_MAX", 1 << 16)
    monkeypatch.setattr("upseal.core.bodies.BATCH_BYTES_MAX", 1 << 16)
    opener = Opener([key], engine=engine)
    for padding, most in ((None, 1024), (Padding.PADME, 1023)):
        sealer = Sealer([key.public_key], padding=padding, engine=engine)
        assert len(opener.open_batch(sealer.seal_batch([bytes(most)] * 64))) == 64
        with pytest.raises(ValueError, match="at most"):
            sealer.seal_batch([bytes(most + 1)] * 64)

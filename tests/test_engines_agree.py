# SPDX-License-Identifier: Apache-2.0
"""The engines are one: same key, same nonce, same bytes; and each opens what another sealed."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import engine, open_all, seal_all

from upseal.engine.records import Listed, pack, packed, sealed_ends
from upseal.engine.sizes import CHUNK, SEALED_CHUNK

NATIVE = ["native[ippcp]", "native[openssl]"]
KEYS, NONCES = st.binary(min_size=32, max_size=32), st.binary(min_size=24, max_size=24)
CIPHERS = st.sampled_from([1, 2])
# Mostly short, at times across the limits of blocks and of unrolled loops.
REPORT = st.one_of(
    st.binary(max_size=70),
    st.integers(0, 5000).map(lambda n: bytes(i * 31 % 256 for i in range(n))),
    st.binary(max_size=20).map(lambda b: b + b"\x80" + bytes(len(b))),
)
REPORTS = st.lists(REPORT, min_size=1, max_size=12)
SHORT = st.binary(max_size=40)


@pytest.fixture(params=NATIVE, scope="module")
def pair(request):
    """A native engine and the portable one."""
    return engine(request.param), engine("portable")


def flat(reports):
    return bytes(reports.values), reports.offsets.tolist()


def both(reports):
    """The same reports as a list and packed."""
    return Listed(reports), pack(reports)


@given(CIPHERS, KEYS, NONCES, SHORT, SHORT, REPORT, st.booleans())
def test_an_envelope_is_the_same_and_opens_crosswise(
    pair, cipher, key, nonce, prefix, aad, report, padded
):
    keys = [e.record_key(cipher, key) for e in pair]
    sealed = {
        e.sealing(k, prefix, padded)(nonce, aad, report) for e, k in zip(pair, keys, strict=True)
    }
    (envelope,) = sealed
    for e, k in zip(pair, keys, strict=True):
        assert e.open_envelope(k, len(prefix), aad, envelope, padded) == report
        assert e.open_envelope(k, len(prefix), aad + b"x", envelope, padded) is None


@given(CIPHERS, KEYS, NONCES, SHORT, SHORT, REPORTS, st.booleans(), st.data())
def test_many_envelopes_are_the_same_and_open_crosswise(
    pair, cipher, key, nonce, prefix, aad, reports, padded, draws
):
    keys = [e.record_key(cipher, key) for e in pair]
    made, again = (
        seal_all(e, k, nonce, prefix, aad, reports, padded) for e, k in zip(pair, keys, strict=True)
    )
    assert made == again
    bad = draws.draw(st.integers(0, len(reports) - 1))
    forged = bytearray(made[bad])
    forged[draws.draw(st.integers(len(prefix), len(forged) - 1))] ^= 1
    damaged = [*made[:bad], bytes(forged), *made[bad + 1 :]]
    foreign = [*made[:bad], b"another prefix" * 5, *made[bad + 1 :]]
    for e, k in zip(pair, keys, strict=True):
        assert open_all(e, k, prefix, aad, made, padded) == [(r, 0) for r in reports]
        opened = open_all(e, k, prefix, aad, damaged, padded)
        assert opened[bad] == (b"", 255)
        assert [o for i, o in enumerate(opened) if i != bad] == [
            (r, 0) for i, r in enumerate(reports) if i != bad
        ]
        # Of another session or kind: not forged, but not for this call.
        if prefix and not foreign[bad].startswith(prefix):
            assert open_all(e, k, prefix, aad, foreign, padded)[bad] == (b"", 1)


@given(CIPHERS, KEYS, NONCES, SHORT, SHORT, REPORTS, st.booleans(), st.data())
def test_a_batch_is_the_same_and_opens_crosswise(
    pair, cipher, key, nonce, head, context, reports, padded, draws
):
    aad = b"\x02" + bytes(4) + len(reports).to_bytes(4, "big") + context
    keys = [e.record_key(cipher, key) for e in pair]
    made = {
        e.seal_batch(k, nonce, head, aad, form, padded)
        for e, k in zip(pair, keys, strict=True)
        for form in both(reports)
    }
    (batch,) = made
    cut = len(head) + 4 * len(reports)
    table, records = memoryview(batch)[len(head) : cut], memoryview(batch)[cut:]
    damaged = bytearray(records)
    damaged[draws.draw(st.integers(0, len(damaged) - 1))] ^= 1 << draws.draw(st.integers(0, 7))
    for e, k in zip(pair, keys, strict=True):
        ends = e.sealed_ends(table, padded)
        assert ends.tolist() == sealed_ends(table, padded).tolist()
        assert flat(e.open_batch(k, nonce, aad, ends, records, padded)) == flat(pack(reports))
        assert e.open_batch(k, nonce, aad, ends, memoryview(damaged), padded) is None


@given(
    CIPHERS,
    st.binary(min_size=44, max_size=44),
    st.integers(0, (1 << 38) - 8),
    st.integers(0, 3),
    st.one_of(st.none(), st.integers(0, CHUNK - 1)),
    st.binary(min_size=1, max_size=64),
)
def test_chunks_are_the_same_and_open_crosswise(pair, cipher, key, first, whole, rest, seed):
    size = whole * CHUNK + (rest or 0)
    data = memoryview((seed * (size // len(seed) + 1))[:size])
    last = rest is not None
    sealed_size = size + 16 * (whole + last)
    keys = [e.chunk_key(cipher, key) for e in pair]
    outs = [bytearray(sealed_size) for _ in pair]
    for e, k, out in zip(pair, keys, outs, strict=True):
        e.seal_chunks(k, first, last, data, memoryview(out))
    assert outs[0] == outs[1]
    for e, k in zip(pair, keys, strict=True):
        back = bytearray(size)
        for private in (False, True):
            assert e.open_chunks(k, first, last, memoryview(outs[0]), memoryview(back), private)
            assert back == data
            if sealed_size:
                sealed = memoryview(outs[0])
                assert not e.open_chunks(k, first + 1, last, sealed, memoryview(back), private)
                assert back == bytes(size)  # nothing of what did not verify stays behind


@pytest.mark.parametrize("private", [False, True])
def test_a_forged_chunk_in_the_middle_leaves_nothing_in_the_output(engine, private):
    key, out = engine.chunk_key(1, bytes(44)), bytearray(b"\xaa" * 5 * CHUNK)
    sealed = bytearray(5 * SEALED_CHUNK)
    engine.seal_chunks(key, 0, False, memoryview(b"\x55" * len(out)), memoryview(sealed))
    sealed[3 * SEALED_CHUNK - 1] ^= 1
    assert not engine.open_chunks(key, 0, False, memoryview(sealed), memoryview(out), private)
    assert out == bytes(len(out))


@pytest.mark.parametrize("size", [0, 1, 2, 1000, CHUNK, 1 << 20])
def test_a_room_gives_what_was_written_to_it_and_no_other_object(engine, size):
    for taken in {size, size // 2, max(0, size - 1)}:
        room = engine.room(size)
        room.view[:] = b"\x55" * size
        got = room.take(taken)
        assert type(got) is bytes
        assert got == b"\x55" * taken
        with pytest.raises(ValueError, match="released"):
            room.view[:] = b""
    assert bytes(size) == b"\0" * size  # none that Python shares was written to


@given(st.lists(st.integers(-40, 60), min_size=2, max_size=6), st.booleans())
def test_offsets_are_judged_alike(pair, offsets, padded):
    fits = offsets[0] >= 0 and offsets[-1] <= 50 and offsets == sorted(offsets)
    for e in pair:
        k = e.record_key(1, bytes(32))
        aad = b"\x02" + bytes(4) + (len(offsets) - 1).to_bytes(4, "big")
        for call in (
            lambda e=e, k=k: list(
                e.seal_envelopes(
                    k, bytes(24), b"", b"", packed(bytes(50), array("q", offsets)), padded
                )
            ),
            lambda e=e, k=k, aad=aad: e.seal_batch(
                k, bytes(24), b"", aad, packed(bytes(50), array("q", offsets)), padded
            ),
            lambda e=e, k=k: list(
                e.open_envelopes(k, b"", b"", packed(bytes(50), array("q", offsets)), padded)
            ),
        ):
            if fits:
                call()
            else:
                with pytest.raises(ValueError, match="offsets"):
                    call()


def test_every_engine_keeps_chunks_below_the_limit_of_the_format(engine):
    key = engine.chunk_key(1, bytes(44))
    most = (1 << 38) - 1
    engine.seal_chunks(key, most, True, memoryview(b""), memoryview(bytearray(16)))
    for first, last, size in ((most + 1, True, 0), (most, True, CHUNK), (most, False, 2 * CHUNK)):
        out = bytearray(size + 16 * (size // CHUNK + last))
        with pytest.raises(ValueError, match=r".+"):
            engine.seal_chunks(key, first, last, memoryview(bytes(size)), memoryview(out))
        with pytest.raises(ValueError, match=r".+"):
            engine.open_chunks(key, first, last, memoryview(out), memoryview(bytearray(size)))
        assert out == bytes(len(out))


def test_every_engine_takes_a_short_chunk_only_as_the_last(engine):
    key = engine.chunk_key(2, bytes(44))
    for size in (1, CHUNK - 1, CHUNK + 1):
        with pytest.raises(ValueError, match=r".+"):
            engine.seal_chunks(
                key, 0, False, memoryview(bytes(size)), memoryview(bytearray(size + 16))
            )
    for size, last in ((15, True), (SEALED_CHUNK + 15, True), (100, False), (SEALED_CHUNK, True)):
        with pytest.raises(ValueError, match=r".+"):
            engine.open_chunks(key, 0, last, memoryview(bytes(size)), memoryview(bytearray(size)))


def test_every_engine_describes_itself(engine):
    about = engine.describe()
    assert about["engine"] == engine.name
    assert set(about) == {"engine", "backend", "version"}
    assert all(about.values())

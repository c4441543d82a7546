# SPDX-License-Identifier: Apache-2.0
"""Whatever arrives, opening it ends soon, in little memory, and in an OpenError or in the truth."""

import io
import struct
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import (
    Opener,
    Pipe,
    blob,
    context,
    drain,
    key,
    open_any,
    plaintext,
    valid,
    vector,
)

from upseal import OpenError, explain
from upseal.core import header as headers

OPENER = Opener([key("x25519-a"), key("p256-a"), key("rsa2048-a")])
CALLS = ["open", "open_batch", "reader"]
SMALL = [v for v in valid() if len(v["blob"]) < 4000 and "rsa4096-a" not in v["recipients"]]


def outcome(call, data, bound=b"", wrap=io.BytesIO):
    """What opening gives: the truth, or None for an OpenError. Anything else is raised."""
    try:
        return open_any(OPENER, call, data, bound, wrap)
    except OpenError:
        return None


def survives(data, bound=b""):
    for call in CALLS:
        outcome(call, data, bound)
    outcome("reader", data, bound, Pipe)
    results = OPENER.open_many([data, data[1:], data], bound)
    assert all(isinstance(r, (bytes, OpenError)) for r in results)


@given(st.binary(max_size=600))
def test_random_bytes_are_refused(data):
    for front in (
        b"",
        b"USL\x01",
        b"USL\x01\x01\x01\x00\x20" + key("x25519-a").key_id + b"\x00\x50",
    ):
        assert outcome("open", front + data) is None
        survives(front + data)


def fields(data):
    """(offset, length) of every number in a blob's public part."""
    header = headers.parse(data)
    yield from ((0, 3), (3, 1), (4, 1), (5, 1))
    at = 6
    for entry in header.entries:
        yield from ((at, 2), (at + 2, 8), (at + 10, 2), (at + 12, len(entry.wrapped)))
        at += 12 + len(entry.wrapped)
    yield at, 32
    at += 32
    yield at, 1
    yield at + 1, 24
    if data[at] & 0x7F == 2:
        count = int.from_bytes(data[at + 25 : at + 29], "big")
        yield at + 25, 4
        yield from ((at + 29 + 4 * i, 4) for i in range(min(count, 20)))
    else:
        yield at + 25, min(32, len(data) - at - 25)


EXTREME = st.sampled_from(
    ["zeros", "ones", "plus one", "minus one", "top bit", "low bit", "random"]
)


def set_field(data, at, length, how, draws):
    old = int.from_bytes(data[at : at + length], "big")
    top = (1 << 8 * length) - 1
    new = {
        "zeros": 0,
        "ones": top,
        "plus one": old + 1,
        "minus one": old - 1,
        "top bit": old ^ (top + 1) >> 1,
        "low bit": old ^ 1,
    }.get(how)
    if new is None:
        new = draws.draw(st.integers(0, top))
    data[at : at + length] = (new & top).to_bytes(length, "big")


@given(st.sampled_from(SMALL), st.data())
def test_fields_set_to_extremes_give_an_error_or_the_truth(v, draws):
    original = blob(v)
    data = bytearray(original)
    places = list(fields(original))
    for _ in range(draws.draw(st.integers(1, 3))):
        at, length = draws.draw(st.sampled_from(places))
        set_field(data, at, length, draws.draw(EXTREME), draws)
    got = outcome(v["kind"], bytes(data), context(v))
    if data == original:
        return
    assert got is None
    survives(bytes(data), context(v))
    assert explain(bytes(data)).size == len(data)


@given(st.sampled_from(SMALL), st.data())
def test_parts_cut_out_doubled_and_exchanged_give_an_error(v, draws):
    original = blob(v)
    a = draws.draw(st.integers(0, len(original)))
    b = draws.draw(st.integers(a, len(original)))
    other = blob(draws.draw(st.sampled_from(SMALL)))
    for data in (
        original[:a] + original[b:],
        original[:b] + original[a:],
        original[:a] + other[a:],
        original[:a] + other[a:b] + original[b:],
        original[:a] + bytes(b - a) + original[b:],
    ):
        # Only what is whole and genuine may open, and then it is its own truth.
        got = outcome(v["kind"], data, context(v))
        if got is not None:
            assert data in (original, other)
            assert got == plaintext(v) or data == other
        survives(data, context(v))


def claiming(count, lengths=b"", kind=2):
    """A batch that claims so many records, in a short blob under a genuine header."""
    header = headers.parse(blob(vector("batch-2"))).raw
    return header + bytes([kind]) + bytes(24) + struct.pack(">I", count) + lengths


LIES = {
    "a million records, no table": claiming(1 << 20),
    "a million records, a short table": claiming(1 << 20, struct.pack(">I", (1 << 24) + 16) * 100),
    "four billion records": claiming(0xFFFFFFFF),
    "one record of 4 GiB": claiming(1, b"\xff" * 4),
    "one record of 16 MiB": claiming(1, struct.pack(">I", (1 << 24) + 16)),
    "sixty-four of 16 MiB": claiming(64, struct.pack(">I", (1 << 24) + 16) * 64),
    "ten thousand records of nothing": claiming(10_000, struct.pack(">I", 16) * 10_000),
    "sixteen recipients": b"USL\x01\x01\x10" + b"\xff\x01" + bytes(8) + b"\x02\x00",
    "an envelope of nothing": headers.parse(blob(vector("batch-2"))).raw + b"\x01",
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_length_claims_is_not_allocated(lie):
    data = LIES[lie]
    start = time.perf_counter()
    tracemalloc.start()
    try:
        for call in ("open", "open_batch"):
            assert outcome(call, data) is None
        explain(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000 + 20 * len(data)
    assert time.perf_counter() - start < 2


def test_a_bad_batch_gives_out_none_of_its_reports(opener):
    # All or none: the first record is genuine.
    data = bytearray(blob(vector("batch-300-aes")))
    data[-1] ^= 1
    with pytest.raises(OpenError) as caught:
        opener.open_batch(bytes(data))
    assert caught.value.args == (OpenError.message,)


def test_many_forged_headers_do_not_slow_a_genuine_one(opener, sealer):
    good = sealer.seal(b"r")
    for i in range(300):
        forged = bytearray(good)
        forged[20 + i % 70] ^= 1 + i // 70
        with pytest.raises(OpenError):
            opener.open(bytes(forged))
    assert opener.open(good) == b"r"
    assert len(opener._cache) == 1


def test_an_endless_upload_that_never_verifies_is_given_up_at_once(opener):
    class Endless(io.RawIOBase):
        total = 0

        def __init__(self, front):
            super().__init__()
            self._front = io.BytesIO(front)

        def readable(self):
            return True

        def readinto(self, target):
            piece = self._front.read(len(target)) or bytes(len(target))
            target[: len(piece)] = piece
            self.total += len(piece)
            return len(piece)

    v = vector("upload-length-0-aes")
    file = Endless(blob(v)[:-16])
    with pytest.raises(OpenError):
        opener.reader(file).readall()
    assert file.total < 1 << 20
    got, error = drain(opener, blob(v))
    assert (got, error) == (b"", None)

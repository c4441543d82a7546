# SPDX-License-Identifier: Apache-2.0
"""Packed batches written into a buffer that the caller uses again and again."""

import os
from array import array

import pytest

from upseal import Opener, OpenError, Padding, PrivateKey, Sealer

KEY = PrivateKey.generate()
REPORTS = [os.urandom(n) for n in (0, 1, 500, 70_000, 3)]
VALUES = b"".join(REPORTS)
OFFSETS = array("q", [sum(map(len, REPORTS[:i])) for i in range(len(REPORTS) + 1)])


@pytest.fixture(params=[None, Padding.PADME])
def pair(engine, request):
    return Sealer([KEY.public_key], padding=request.param, engine=engine), Opener(
        [KEY], engine=engine
    )


def test_a_buffer_grows_once_and_is_used_again(pair):
    sealer, opener = pair
    sealed, opened = bytearray(), bytearray()
    for _ in range(3):
        with sealer.seal_packed(VALUES, OFFSETS, out=sealed) as batch:
            values, offsets = opener.open_packed(batch, out=opened)
            assert values == VALUES
            assert offsets.tolist() == OFFSETS.tolist()
            assert batch.obj is sealed
            assert values.obj is opened
            values.release()
        assert len(sealed) == len(bytes(sealer.seal_packed(VALUES, OFFSETS)))


def test_a_larger_buffer_is_filled_from_its_front(pair):
    sealer, opener = pair
    out = bytearray(b"x" * 1_000_000)
    with sealer.seal_packed(VALUES, OFFSETS, out=out) as batch:
        assert list(opener.open_batch(bytes(batch))) == REPORTS
        assert out[len(batch) :] == b"x" * (1_000_000 - len(batch))


def test_after_a_forgery_the_buffer_holds_no_plaintext(pair):
    sealer, opener = pair
    batch = bytearray(sealer.seal_packed(VALUES, OFFSETS))
    batch[-1] ^= 1
    out = bytearray(len(batch))
    with pytest.raises(OpenError):
        opener.open_packed(batch, out=out)
    assert not any(out)


def test_a_buffer_in_use_cannot_grow(pair):
    sealer, _ = pair
    out = bytearray(10)
    with memoryview(out), pytest.raises(ValueError, match="still in use"):
        sealer.seal_packed(VALUES, OFFSETS, out=out)
    with pytest.raises(TypeError, match="bytearray"):
        sealer.seal_packed(VALUES, OFFSETS, out=b"")

# SPDX-License-Identifier: Apache-2.0
"""Batches large enough to be shared between threads: the same bytes, the same refusals."""

import os
from array import array

import pytest

from upseal import Opener, OpenError, Padding, PrivateKey, Sealer

COUNT = 3000
LENGTHS = [(i * 37) % 9000 for i in range(COUNT)]  # 13 MB, some of them empty
VALUES = os.urandom(sum(LENGTHS))
OFFSETS = array("q", [sum(LENGTHS[:i]) for i in range(COUNT + 1)])
KEY = PrivateKey.generate()


@pytest.mark.parametrize("padding", [None, Padding.PADME])
@pytest.mark.parametrize("cipher", [1, 2])
def test_a_large_packed_batch_comes_back(engine, cipher, padding):
    sealer = Sealer([KEY.public_key], cipher=cipher, padding=padding, engine=engine)
    batch = sealer.seal_packed(VALUES, OFFSETS)
    for opening in (engine, "portable"):
        opened = Opener([KEY], engine=opening).open_batch(batch)
        assert opened.values == VALUES
        assert opened.offsets.tolist() == OFFSETS.tolist()


def test_offsets_may_begin_anywhere(engine):
    sealer = Sealer([KEY.public_key], engine=engine)
    part = OFFSETS[1000:2001]
    opened = Opener([KEY], engine=engine).open_batch(sealer.seal_packed(VALUES, part))
    assert opened.values == VALUES[OFFSETS[1000] : OFFSETS[2000]]
    assert opened.offsets[0] == 0


@pytest.mark.parametrize("place", [0, 0.3, 0.5, 0.7, 1])
def test_a_flip_in_any_share_refuses_the_whole(engine, place):
    batch = bytearray(Sealer([KEY.public_key], engine=engine).seal_packed(VALUES, OFFSETS))
    front = len(batch) - len(VALUES) - 16 * COUNT
    batch[front + int((len(batch) - front - 1) * place)] ^= 1
    with pytest.raises(OpenError):
        Opener([KEY], engine=engine).open_batch(batch)

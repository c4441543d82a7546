# SPDX-License-Identifier: Apache-2.0
"""A changed, cut or lengthened blob gives an OpenError and not one wrong byte."""

import io

import pytest
from support import Pipe, blob, context, drain, open_any, pattern, plaintext, vector

from upseal import OpenError
from upseal.engine.sizes import CHUNK

SMALL = [
    "envelope-worked-example",
    "envelope-padded-8-chacha",
    "batch-5-aes",
    "batch-padded-chacha",
]
SMALL_UPLOADS = ["upload-x25519-aes", "upload-length-0-chacha"]
LONG_UPLOADS = ["upload-nonce-ones-aes", "upload-nonce-ones-chacha"]  # three chunks


def assert_refused(opener, v, data):
    with pytest.raises(OpenError):
        open_any(opener, v["kind"], data, context(v))


def assert_cut_short(opener, v, data, wrap):
    """Refused, and all that came out before is whole chunks from the front of the truth."""
    got, error = drain(opener, data, context(v), wrap, step=7 * CHUNK)
    assert error is not None
    assert plaintext(v).startswith(got)
    assert len(got) % CHUNK == 0


@pytest.mark.parametrize("name", SMALL)
def test_no_bit_of_a_report_can_be_flipped(opener, name):
    v, step = vector(name), 1 if len(blob(vector(name))) < 500 else 3
    data = bytearray(blob(v))
    assert open_any(opener, v["kind"], bytes(data), context(v)) == plaintext(v)
    for place in range(len(data)):
        for bit in range(place % step, 8, step):
            data[place] ^= 1 << bit
            assert_refused(opener, v, bytes(data))
            data[place] ^= 1 << bit
    assert open_any(opener, v["kind"], bytes(data), context(v)) == plaintext(v)


@pytest.mark.parametrize("name", SMALL)
def test_no_report_opens_at_another_length(opener, name):
    v = vector(name)
    data = blob(v)
    for length in range(len(data)):
        assert_refused(opener, v, data[:length])
    for more in (b"\0", b"\x80", data[-16:], data):
        assert_refused(opener, v, data + more)
    assert_refused(opener, v, b"\0" + data)


@pytest.mark.parametrize("wrap", [io.BytesIO, Pipe])
@pytest.mark.parametrize("name", SMALL_UPLOADS)
def test_no_bit_of_a_small_upload_can_be_flipped(opener, name, wrap):
    v = vector(name)
    data = bytearray(blob(v))
    assert drain(opener, bytes(data), context(v), wrap) == (plaintext(v), None)
    for place in range(len(data)):
        for bit in (0, 3, 7) if wrap is Pipe else range(8):
            data[place] ^= 1 << bit
            assert drain(opener, bytes(data), context(v), wrap)[0] == b""
            assert_cut_short(opener, v, bytes(data), wrap)
            data[place] ^= 1 << bit


@pytest.mark.parametrize("wrap", [io.BytesIO, Pipe])
@pytest.mark.parametrize("name", SMALL_UPLOADS)
def test_no_small_upload_opens_at_another_length(opener, name, wrap):
    v = vector(name)
    data = blob(v)
    for length in range(len(data)):
        assert_cut_short(opener, v, data[:length], wrap)
    for more in (b"\0", data[-16:], bytes(16400)):
        assert_cut_short(opener, v, data + more, wrap)


@pytest.mark.parametrize("wrap", [io.BytesIO, Pipe])
@pytest.mark.parametrize("name", LONG_UPLOADS)
def test_only_whole_verified_chunks_leave_a_damaged_upload(opener, name, wrap):
    v = vector(name)
    data = bytearray(blob(v))
    front = len(data) - len(plaintext(v)) - 3 * 16
    # Every 61st byte, and all those round the chunks' edges.
    edges = [front + k * (CHUNK + 16) + d for k in range(3) for d in (-17, -16, -1, 0, 1)]
    for place in {*range(0, len(data), 61), *edges, len(data) - 1}:
        data[place] ^= 1 << (place % 8)
        assert_cut_short(opener, v, bytes(data), wrap)
        data[place] ^= 1 << (place % 8)


@pytest.mark.parametrize("wrap", [io.BytesIO, Pipe])
@pytest.mark.parametrize("name", LONG_UPLOADS)
def test_only_whole_verified_chunks_leave_an_upload_that_is_cut(opener, name, wrap):
    v = vector(name)
    data = blob(v)
    front = len(data) - len(plaintext(v)) - 3 * 16
    edges = [front + k * (CHUNK + 16) + d for k in range(3) for d in (-1, 0, 1, 15, 16, 17)]
    for length in {*range(0, len(data), 97), *edges, len(data) - 1}:
        assert_cut_short(opener, v, data[:length], wrap)


@pytest.mark.parametrize("bad", [0, 31, 32, 33, 64, 99])
def test_a_pipe_gives_what_stood_before_the_damage_and_then_only_errors(sealer, opener, bad):
    # 100 chunks are several pieces of the engine: some come out before the error.
    from support import upload

    truth = pattern(100 * CHUNK + 5)
    data = bytearray(upload(sealer, truth))
    front = len(data) - len(truth) - 101 * 16
    data[front + bad * (CHUNK + 16) + 100] ^= 1
    got, error = drain(opener, bytes(data), wrap=Pipe, step=1000)
    assert type(error) is OpenError
    assert truth.startswith(got)
    assert len(got) % CHUNK == 0
    assert bad - 32 < len(got) // CHUNK <= bad  # at most one piece of good chunks is held back


def test_errors_of_content_all_read_alike(opener):
    # One class, one sentence, no place: whoever sent it learns nothing.
    v = vector("envelope-worked-example")
    seen = set()
    for place in (60, 100, 135, 158, 170):  # wrapped secret, commitment, nonce, ciphertext, tag
        data = bytearray(blob(v))
        data[place] ^= 1
        with pytest.raises(OpenError) as caught:
            opener.open(bytes(data), context(v))
        error = caught.value
        seen.add((type(error), str(error), error.problem, error.offset))
    assert seen == {(OpenError, OpenError.message, None, None)}

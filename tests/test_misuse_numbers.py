# SPDX-License-Identifier: Apache-2.0
"""Numbers at their limits: counts, offsets, seeks, ages, and counters of chunks past 2^32."""

import io
import math
import struct
from array import array
from fractions import Fraction

import pytest
from cryptography.cobblestone import Cobblestone256Decryptor
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from support import ENGINES, Opener, Pipe, Sealer, drain, engine, key, pattern, upload

from upseal import Limits, OpenError, Truncated
from upseal.core.uploads import start_upload
from upseal.engine.records import packed
from upseal.engine.sizes import CHUNK, CHUNKS_MAX, SEALED_CHUNK

PIECE = 16 * CHUNK
MATERIAL = bytes(range(32)) + bytes(range(0xF0, 0xFC))
COUNTERS = sorted(
    {
        max(0, base + by)
        for base in (0, 1 << 8, 1 << 16, 1 << 31, 1 << 32, 1 << 33, (1 << 37) + (1 << 32))
        for by in (-2, -1, 0, 1)
    }
    | {CHUNKS_MAX - 4, CHUNKS_MAX - 3}
)


def published(cipher, first, pieces):
    """Chunks by the library alone: the nonce is the base XOR the number, as 96 bits."""
    aead = (AESGCM if cipher == 1 else ChaCha20Poly1305)(MATERIAL[:32])
    base = int.from_bytes(MATERIAL[32:], "big")
    return b"".join(
        aead.encrypt((base ^ (first + i)).to_bytes(12, "big"), piece, None)
        for i, piece in enumerate(pieces)
    )


@pytest.mark.parametrize("first", COUNTERS)
def test_chunks_anywhere_in_4_pib_are_what_the_specification_says(engine, first):
    pieces = [pattern(CHUNK), bytes(CHUNK), b"the last one"]
    data, size = b"".join(pieces), 2 * SEALED_CHUNK + 28
    for cipher in (1, 2):
        chunk_key = engine.chunk_key(cipher, MATERIAL)
        out, back = bytearray(size), bytearray(len(data))
        engine.seal_chunks(chunk_key, first, True, memoryview(data), memoryview(out))
        assert out == published(cipher, first, pieces)
        for private in (False, True):
            assert engine.open_chunks(
                chunk_key, first, True, memoryview(out), memoryview(back), private
            )
            assert back == data
            # No counter is cut to 32 bits, or to any other number of them.
            for bit in range(38):
                if first ^ 1 << bit <= CHUNKS_MAX - 3 and bit in (0, 1, 8, 16, 31, 32, 33, 37):
                    assert not engine.open_chunks(
                        chunk_key,
                        first ^ 1 << bit,
                        True,
                        memoryview(out),
                        memoryview(back),
                        private,
                    )


@pytest.mark.parametrize("first", [-1, -(2**63), 2**38, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70])
def test_chunk_numbers_that_no_upload_has_are_refused(engine, first):
    chunk_key = engine.chunk_key(1, MATERIAL)
    out, back = bytearray(16), bytearray()
    with pytest.raises((ValueError, OverflowError)):
        engine.seal_chunks(chunk_key, first, True, memoryview(b""), memoryview(out))
    with pytest.raises((ValueError, OverflowError)):
        engine.open_chunks(chunk_key, first, True, memoryview(out), memoryview(back))
    assert out == bytes(16)


class Sparse(io.RawIOBase):
    """A file of some PiB of which a few pieces are there."""

    def __init__(self, size, pieces):
        super().__init__()
        self.size, self.pieces, self.at = size, pieces, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=0):
        self.at = (0, self.at, self.size)[whence] + offset
        return self.at

    def tell(self):
        return self.at

    def readinto(self, target):
        for start, data in self.pieces:
            if start <= self.at < start + len(data):
                got = data[self.at - start :][: len(target)]
                target[: len(got)] = got
                self.at += len(got)
                return len(got)
        return 0


@pytest.mark.parametrize("cipher", ["aes-256-gcm", "chacha20-poly1305"])
@pytest.mark.parametrize("last", [2**32 + 5, 2**33, CHUNKS_MAX - 1])
def test_an_upload_is_read_at_any_place_past_2_to_the_32_chunks(engine, cipher, last):
    recipient = key("x25519-a")
    sealer = Sealer([recipient.public_key], cipher=cipher, engine=engine)
    opener = Opener([recipient], engine=engine)
    session = sealer._take(1)
    front, chunk_key = start_upload(session.header, session.keys, b"")
    first = last - 7
    truth = pattern(7 * CHUNK + 9)
    sealed = bytearray(len(truth) + 16 * 8)
    engine.seal_chunks(chunk_key, first, True, memoryview(truth), memoryview(sealed))
    base = len(front)
    pieces = [(0, front), (base + first * SEALED_CHUNK, bytes(sealed))]
    source = Sparse(base + last * SEALED_CHUNK + 9 + 16, pieces)
    with opener.reader(source) as reader:
        assert reader.size == last * CHUNK + 9
        assert reader.seek(-len(truth), io.SEEK_END) == first * CHUNK
        assert reader.read() == truth
        assert reader.tell() == reader.size
        for at in (first * CHUNK + 5, (last - 1) * CHUNK - 3, reader.size - 1):
            assert reader.seek(at) == at
            want = truth[at - first * CHUNK :][: CHUNK + 10]
            assert reader.read(CHUNK + 10) == want
        for far in (2**52 - 1, 2**52, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 2**100):
            if far >= reader.size:
                assert reader.seek(far) == far
                assert reader.read() == reader.read(10) == b""
                assert reader.readinto(bytearray(3)) == 0
        reader.seek(0)  # not there at all
        with pytest.raises(Truncated):
            reader.read(1)
    source.size += SEALED_CHUNK * (CHUNKS_MAX - last)
    with pytest.raises(OpenError):
        opener.reader(source)


@pytest.mark.parametrize("name", ENGINES)
def test_a_writer_goes_past_2_to_the_32_chunks_and_the_other_side_agrees(name):
    # cobblestone has no way to begin in the middle, so it is the judge of the beginning alone.
    chosen, recipient = engine(name), key("x25519-a")
    sealer = Sealer([recipient.public_key], cipher="aes-256-gcm", engine=chosen)
    derived = bytes(range(128))
    session = sealer._take(1)
    session.keys = type(session.keys)(chosen, session.keys.cipher, derived)
    truth = pattern(3 * PIECE + 5)
    for start in (0, 2**32 - 20):
        out = io.BytesIO()
        with sealer.writer(out) as writer:
            writer._chunk = start
            writer.write(truth)
        message = out.getvalue()[len(session.header) + 1 :]
        if not start:
            other = Cobblestone256Decryptor(derived[64:96], b"\x03")
            assert bytes(other.update(message)) + bytes(other.finalize()) == truth
            continue
        chunk_key, commitment = session.keys.upload(message[:24], b"\x03")
        assert commitment == message[24:56]
        back = bytearray(len(truth))
        sealed = memoryview(message)[56:]
        assert chosen.open_chunks(chunk_key, start, True, sealed, memoryview(back))
        assert back == truth
        assert not chosen.open_chunks(chunk_key, 0, True, sealed, memoryview(back))
        for k in (2**32 - 1, 2**32):  # one by one
            at = (k - start) * SEALED_CHUNK
            one = bytearray(CHUNK)
            part = sealed[at : at + SEALED_CHUNK]
            assert chosen.open_chunks(chunk_key, k, False, part, memoryview(one))
            assert one == truth[(k - start) * CHUNK :][:CHUNK]


def test_a_write_past_4_pib_changes_nothing(sealer):
    # It took what fitted into the piece it was at, and then refused the rest.
    out = io.BytesIO()
    writer = sealer.writer(out)
    writer._chunk = CHUNKS_MAX - 17
    writer.write(b"x" * 100)
    before = writer._fill, out.getvalue()
    for size in (17 * CHUNK - 100, 18 * CHUNK, 40 * CHUNK):
        with pytest.raises(ValueError, match="4 PiB"):
            writer.write(bytes(size))
        assert (writer._fill, out.getvalue()) == before
    assert writer.write(bytes(17 * CHUNK - 101)) == 17 * CHUNK - 101
    writer.close()
    assert len(out.getvalue()) == len(before[1]) + 17 * SEALED_CHUNK - 1


@pytest.mark.parametrize("wrap", [io.BytesIO, Pipe])
def test_sizes_of_reads_at_their_limits(sealer, opener, wrap):
    truth = pattern(PIECE + 5)
    for size in (-1, None, -(2**63), -(2**70), 2**31, 2**63 - 1, 2**63, 2**64, 2**100):
        with opener.reader(wrap(upload(sealer, truth))) as reader:
            assert reader.read(size) == truth
            assert reader.read(size) == b""
    with opener.reader(wrap(upload(sealer, truth))) as reader:
        assert reader.read(True) == truth[:1]
        for size in (1.5, "1", math.inf, math.nan, Fraction(3, 2)):
            with pytest.raises((TypeError, ValueError, OverflowError)):
                reader.read(size)
        assert reader.read(0) == b""
        assert reader.read() == truth[1:]


def test_places_that_are_none_are_refused_and_change_nothing(sealer, opener):
    truth = pattern(PIECE + 5)
    with opener.reader(io.BytesIO(upload(sealer, truth))) as reader:
        reader.seek(7)
        for place in (-1, -(2**63), -(2**70)):
            with pytest.raises(ValueError, match="negative"):
                reader.seek(place)
        # A fraction was taken, and ended the reader at its next read.
        for place in (1.5, 3.0, math.nan, math.inf, "3", None, b"3"):
            with pytest.raises(TypeError):
                reader.seek(place)
        for whence in (-1, 3, 2**70, "0", None):
            with pytest.raises((ValueError, TypeError)):
                reader.seek(0, whence)
        with pytest.raises(ValueError, match="negative"):
            reader.seek(-reader.size - 1, io.SEEK_END)
        assert reader.tell() == 7
        assert reader.seek(True) == 1
        assert reader.read() == truth[1:]


INT64 = (2**63 - 1, -(2**63), 2**62, -1, 2**31, 2**32, 2**40)


@pytest.mark.parametrize("bad", INT64)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_offsets_near_the_limits_of_int64_are_refused(sealer, opener, bad, place):
    offsets = array("q", [0, 2, 4, 6])
    offsets[place] = bad
    for call in (sealer.seal_packed, sealer.seal_many_packed, opener.open_many_packed):
        with pytest.raises(ValueError, match=r".+"):
            call(b"report", offsets)


@pytest.mark.parametrize("bad", [2**31 - 1, -(2**31), -1, 7])
def test_offsets_near_the_limits_of_int32_are_refused(sealer, opener, bad):
    for place in range(4):
        offsets = array("i", [0, 2, 4, 6])
        offsets[place] = bad
        for call in (sealer.seal_packed, sealer.seal_many_packed, opener.open_many_packed):
            with pytest.raises(ValueError, match=r".+"):
                call(b"report", offsets)


def test_offsets_past_2_to_the_31_name_the_bytes_they_name():
    """Of values that lie there: pages that nobody writes to take no memory."""
    mmap = pytest.importorskip("mmap")
    with mmap.mmap(-1, (1 << 31) + (1 << 20)) as values:
        base = (1 << 31) - 3
        values[base : base + 12] = b"beforebehind"
        records = packed(values, array("q", [base, base + 6, base + 12]))
        assert bytes(records.read(0, 1, io.BytesIO())) == b"before"
        assert bytes(records.read(1, 2, io.BytesIO())) == b"behind"
        for name in ENGINES:
            chosen, recipient = engine(name), key("x25519-a")
            sealer = Sealer([recipient.public_key], engine=chosen)
            sealed = sealer.seal_packed(values, array("q", [base, base + 6, base + 12]))
            assert list(Opener([recipient], engine=chosen).open_batch(sealed)) == [
                b"before",
                b"behind",
            ]
            with pytest.raises(ValueError, match=r".+"):  # one of 2 GiB
                sealer.seal_packed(values, array("q", [0, base]))
        records.values.release()


@pytest.mark.parametrize("count", [0, 2**20 + 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_batch_that_claims_a_count_is_refused_before_memory_is_taken(sealer, opener, count):
    sealed = bytearray(sealer.seal_batch([b"r", b"s"]))
    at = sealed.index(struct.pack(">I", 2), 131)
    sealed[at : at + 4] = struct.pack(">I", count)
    with pytest.raises(OpenError):
        opener.open_batch(sealed)


@pytest.mark.parametrize("length", [0, 15, 2**24 + 17, 2**31, 2**32 - 1])
def test_a_batch_that_claims_a_length_is_refused(sealer, opener, length):
    sealed = bytearray(sealer.seal_batch([b"r", b"s"]))
    at = sealed.index(struct.pack(">I", 17), 131)
    sealed[at : at + 4] = struct.pack(">I", length)
    with pytest.raises(OpenError):
        opener.open_batch(sealed)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_age": 0},
        {"max_age": -0.0},
        {"max_age": -math.inf},
        {"max_age": math.nan},
        {"max_age": "60"},
        {"max_age": None},
        {"max_messages": 0},
        {"max_messages": -(2**64)},
        {"max_messages": 2**64},
        {"max_messages": math.nan},
        {"max_messages": math.inf},
        {"max_messages": 1e6},  # the second `seal` failed by it, whatever a caller had meant
        {"max_messages": 1.5},
        {"max_messages": "10"},
        {"max_messages": None},
    ],
    ids=str,
)
def test_limits_that_are_none_are_refused_when_they_are_made(wrong):
    with pytest.raises((ValueError, TypeError)):
        Limits(**wrong)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_age=math.inf, max_messages=2**32),
        Limits(max_age=5e-324),
        Limits(max_age=1.7e308, max_messages=1),
        Limits(max_age=True, max_messages=True),
        Limits(max_age=2**1000),
    ],
    ids=str,
)
def test_limits_that_are_strange_are_kept(engine, key, limits):
    sealer, opener = Sealer([key.public_key], limits, engine=engine), Opener([key], engine=engine)
    made = [sealer.seal(b"%d" % i) for i in range(5)] + sealer.seal_many([b"x"] * 3)
    assert opener.open_many(made) == [b"0", b"1", b"2", b"3", b"4", b"x", b"x", b"x"]


@pytest.mark.parametrize("cache", [-1, -(2**70)])
def test_a_cache_of_less_than_nothing_is_refused(key, cache):
    with pytest.raises(ValueError, match="cache"):
        Opener([key], cache=cache)


@pytest.mark.parametrize("index", [2, -3, 2**31, 2**63, -(2**63) - 1, 2**100])
def test_places_outside_of_a_batch_are_index_errors(sealer, opener, index):
    batch = opener.open_batch(sealer.seal_batch([b"r", b"s"]))
    with pytest.raises(IndexError):
        batch[index]
    assert batch[-1] == b"s"
    assert batch[: 2**100] == batch[-(2**100) :] == [b"r", b"s"]
    assert batch[:: 2**100] == [b"r"]
    with pytest.raises(TypeError):
        batch[0.0]


def test_one_write_of_everything_and_many_of_nothing_are_one_upload(sealer, opener):
    out = io.BytesIO()
    with sealer.writer(out) as writer:
        for _ in range(2000):
            assert writer.write(b"") == 0
            writer.flush()
    assert len(out.getvalue()) == 187 + 16
    assert drain(opener, out.getvalue()) == (b"", None)

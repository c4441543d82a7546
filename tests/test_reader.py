# SPDX-License-Identifier: Apache-2.0
"""OpeningReader: random access, only what is needed, and no way round a failure."""

import io
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Opener, Pipe, Sealer, drain, key, pattern, upload

from upseal import OpenError, Truncated
from upseal.engine.sizes import CHUNK, SEALED_CHUNK

PIECE = 32 * CHUNK
FRONT = 187  # header for one X25519 recipient, kind, salt and commitment
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 7]
TRUTH = pattern(3 * PIECE + 5000)


class Watched(io.BytesIO):
    """Notes what is read, as (offset, length)."""

    def __init__(self, data):
        super().__init__(data)
        self.reads = []

    def read(self, size=-1):
        at = self.tell()
        got = super().read(size)
        self.reads.append((at, len(got)))
        return got

    def readinto(self, target):
        at = self.tell()
        got = super().readinto(target)
        self.reads.append((at, got))
        return got


@pytest.fixture
def sealed(sealer):
    return upload(sealer, TRUTH)


@pytest.mark.parametrize("wrap", [io.BytesIO, Pipe])
@pytest.mark.parametrize("step", [1000, CHUNK, CHUNK + 1, PIECE - 1, PIECE + 1, 1 << 22])
def test_sizes_round_the_edges_read_in_any_steps_give_the_plaintext(sealer, opener, wrap, step):
    for size in SIZES:
        assert drain(opener, upload(sealer, pattern(size)), wrap=wrap, step=step) == (
            pattern(size),
            None,
        )


@given(st.data())
def test_seeks_and_reads_agree_with_an_ordinary_file(engine, data):
    recipient = key("x25519-a")
    size = data.draw(st.sampled_from(SIZES))
    truth = pattern(size)
    sealed = upload(Sealer([recipient.public_key], engine=engine), truth)
    plain = io.BytesIO(truth)
    with Opener([recipient], engine=engine).reader(io.BytesIO(sealed)) as reader:
        for _ in range(data.draw(st.integers(1, 12))):
            offset = data.draw(st.integers(-size - 3, size + 3))
            whence = data.draw(st.sampled_from([0, 1, 2]))
            try:
                # BytesIO moves to 0 where a file refuses: so say it for both.
                base = (0, plain.tell(), size)[whence]
                if base + offset < 0:
                    raise ValueError
                plain.seek(base + offset)
            except ValueError:
                with pytest.raises(ValueError, match="negative"):
                    reader.seek(offset, whence)
            else:
                assert reader.seek(offset, whence) == plain.tell()
            length = data.draw(st.sampled_from([0, 1, 100, CHUNK, CHUNK + 1, PIECE + 3]))
            got = bytearray(length)
            want = plain.read(length)
            assert reader.readinto(got) == len(want)
            assert got[: len(want)] == want
            assert reader.tell() == plain.tell()


def test_an_upload_may_stand_behind_something_else_in_its_file(opener, sealed):
    file = io.BytesIO(b"something else" + sealed)
    file.seek(14)
    with opener.reader(file) as reader:
        assert reader.size == len(TRUTH)
        reader.seek(-100, io.SEEK_END)
        assert reader.read() == TRUTH[-100:]
        reader.seek(CHUNK)
        assert reader.read(10) == TRUTH[CHUNK : CHUNK + 10]


def test_the_last_chunk_is_verified_before_anything_is_told(opener, sealed):
    damaged = bytearray(sealed)
    damaged[-1] ^= 1
    with pytest.raises(OpenError):
        opener.reader(io.BytesIO(damaged))
    with pytest.raises(Truncated):
        opener.reader(io.BytesIO(sealed[: FRONT + 3 * SEALED_CHUNK]))
    # Cut inside a chunk, the rest is long enough to be a last one: only its tag can tell.
    with pytest.raises(OpenError):
        opener.reader(io.BytesIO(sealed[: FRONT + 3 * SEALED_CHUNK + 500]))
    # A pipe cannot know; all before it is given out.
    got, error = drain(opener, sealed[: FRONT + 3 * SEALED_CHUNK + 500], wrap=Pipe)
    assert error is not None
    assert TRUTH.startswith(got)


def test_only_the_chunks_that_are_asked_for_are_read(opener, sealed):
    file = Watched(sealed)
    with opener.reader(file) as reader:
        last_chunk = FRONT + len(TRUTH) // CHUNK * SEALED_CHUNK
        assert file.reads[-1][0] >= last_chunk or file.reads[-2][0] >= last_chunk
        file.reads.clear()
        reader.seek(PIECE + 10)
        assert file.reads == []  # a seek alone reads nothing
        assert reader.read(5) == TRUTH[PIECE + 10 : PIECE + 15]
        assert min(at for at, _ in file.reads) == FRONT + 32 * SEALED_CHUNK
        assert sum(n for _, n in file.reads) <= 32 * SEALED_CHUNK  # one piece
        file.reads.clear()
        assert reader.read(100) == TRUTH[PIECE + 15 : PIECE + 115]
        assert file.reads == []  # still held


def test_damage_elsewhere_does_not_stop_random_access(opener, sealed):
    damaged = bytearray(sealed)
    damaged[FRONT + 5] ^= 1
    with opener.reader(io.BytesIO(damaged)) as reader:
        reader.seek(PIECE)
        assert reader.read(100) == TRUTH[PIECE : PIECE + 100]


@pytest.mark.parametrize("wrap", [io.BytesIO, Pipe])
def test_a_failure_is_for_good(opener, sealed, wrap):
    damaged = bytearray(sealed)
    damaged[FRONT + 40 * SEALED_CHUNK] ^= 1
    reader = opener.reader(wrap(bytes(damaged)))
    with pytest.raises(OpenError):
        while reader.read(CHUNK):
            pass
    calls = [
        reader.read,
        lambda: reader.read(1),
        lambda: reader.readinto(bytearray(1)),
        reader.tell,
        lambda: reader.seek(0),
    ]
    for call in calls * 2:
        with pytest.raises(OpenError):
            call()
    reader.close()


def test_one_large_read_gives_what_verified_before_it_fails(opener, sealed):
    damaged = bytearray(sealed)
    damaged[FRONT + 70 * SEALED_CHUNK] ^= 1
    reader = opener.reader(Pipe(bytes(damaged)))
    target = bytearray(len(TRUTH))
    got = reader.readinto(target)
    assert 0 < got <= 70 * CHUNK
    assert target[:got] == TRUTH[:got]
    assert not any(target[got:])
    with pytest.raises(OpenError):
        reader.readinto(target)


@pytest.mark.parametrize("wrap", [io.BytesIO, Pipe, Watched])
@pytest.mark.parametrize("bad", [0, 40, 70])
def test_one_large_read_gives_verified_bytes_alone(opener, sealed, wrap, bad):
    damaged = bytearray(sealed)
    damaged[FRONT + bad * SEALED_CHUNK + 9] ^= 1
    for size in (len(TRUTH), CHUNK * 65):
        got, reader = b"", opener.reader(wrap(bytes(damaged)))
        with pytest.raises(OpenError):
            while piece := reader.read(size):
                got += piece
        assert len(got) <= bad * CHUNK
        assert TRUTH.startswith(got)
        with pytest.raises(OpenError):
            reader.read(1)
    with pytest.raises(OpenError):
        opener.reader(wrap(bytes(damaged))).readall()


def test_memory_that_is_read_from_may_change_between_two_reads(opener, sealed):
    file = io.BytesIO()
    file.write(b"junk" + sealed)
    file.seek(4)
    with opener.reader(file) as reader:
        assert reader.read(100 * CHUNK) == TRUTH[: 100 * CHUNK]
        assert file.tell() <= file.getbuffer().nbytes  # and no view of it is kept:
        file.seek(0, io.SEEK_END)
        file.write(b"more")
        file.truncate(len(sealed) + 4)
        reader.seek(CHUNK)
        assert reader.read() == TRUTH[CHUNK:]
        assert file.tell() == len(sealed) + 4
        assert reader.read() == reader.read(5) == reader.read(0) == b""


def test_what_is_read_in_several_objects_is_one(opener, sealed):
    for wrap in (io.BytesIO, Pipe):
        assert opener.reader(wrap(sealed)).read(1 << 40) == TRUTH
        assert opener.reader(wrap(sealed)).read(None) == TRUTH
        assert opener.reader(wrap(sealed)).read(-1) == TRUTH


def test_a_file_that_changes_under_the_reader_is_noticed(opener, sealed):
    for change in (
        lambda f: f.truncate(FRONT + 10 * SEALED_CHUNK),
        lambda f: f.getbuffer().__setitem__(slice(FRONT, FRONT + 5), b"other"),
    ):
        file = io.BytesIO(sealed)
        reader = opener.reader(file)
        change(file)
        with pytest.raises(OpenError):
            reader.readall()


def test_it_is_a_raw_io_file(opener, sealed):
    with opener.reader(io.BytesIO(sealed)) as reader:
        assert isinstance(reader, io.RawIOBase)
        assert (reader.readable(), reader.writable(), reader.seekable()) == (True, False, True)
        buffered = io.BufferedReader(reader, 1000)
        assert buffered.read() == TRUTH
        buffered.seek(CHUNK + 7)
        assert buffered.read(3) == TRUTH[CHUNK + 7 : CHUNK + 10]
        buffered.detach()
        with pytest.raises(ValueError, match="whence"):
            reader.seek(0, 3)
    with pytest.raises(ValueError, match="closed"):
        reader.read()
    with pytest.raises(ValueError, match="closed"):
        reader.seek(0)


def test_a_pipe_cannot_be_sought(opener, sealed):
    reader = opener.reader(Pipe(sealed))
    assert not reader.seekable()
    assert reader.size is None
    with pytest.raises(io.UnsupportedOperation):
        reader.seek(0)
    assert reader.readall() == TRUTH
    assert reader.size == reader.tell() == len(TRUTH)


def test_the_file_below_stays_open(opener, sealed):
    file = io.BytesIO(sealed)
    opener.reader(file).close()
    assert not file.closed
    # Also where nothing could be opened.
    file = io.BytesIO(b"junk")
    with pytest.raises(OpenError):
        opener.reader(file)
    assert not file.closed


def test_what_is_read_never_changes_afterwards(opener, sealed):
    reader = opener.reader(io.BytesIO(sealed))
    first = reader.read(CHUNK)
    reader.readall()
    reader.close()
    assert first == TRUTH[:CHUNK]


class Stalling(io.RawIOBase):
    """Has nothing for the moment (None), once, at each of these offsets."""

    def __init__(self, data, stalls):
        super().__init__()
        self._data, self._stalls = io.BytesIO(data), sorted(stalls)

    def readable(self):
        return True

    def readinto(self, target):
        at = self._data.tell()
        if self._stalls and at >= self._stalls[0]:
            del self._stalls[0]
            return None
        room = min(len(target), (self._stalls or [1 << 40])[0] - at)
        piece = self._data.read(room)
        target[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize(
    "stall", [0, 100, FRONT + 10, 20000, FRONT + 32 * SEALED_CHUNK, FRONT + 40 * SEALED_CHUNK + 9]
)
def test_a_pipe_that_does_not_block_is_refused_and_loses_nothing(opener, sealed, stall):
    # A caller may well try again after a BlockingIOError: then it must either go on where it was
    # or fail for good, never go on with a gap.
    got, reader = b"", None
    with pytest.raises((BlockingIOError, OpenError)):
        reader = opener.reader(Stalling(sealed, [stall]))
        while piece := reader.read(40 * CHUNK):
            got += piece
    assert TRUTH.startswith(got)
    if reader is None:
        return  # it could not even be made
    try:
        while piece := reader.read(40 * CHUNK):
            got += piece
    except (BlockingIOError, OpenError):
        assert TRUTH.startswith(got)
    else:
        assert got == TRUTH


def test_an_error_of_the_file_is_passed_on_and_loses_nothing(opener, sealed):
    class Broken(io.BytesIO):
        when = 4

        def read(self, size=-1):
            self.when -= 1
            if not self.when:
                raise OSError(5, "Input/output error")
            return super().read(size)

        def readinto(self, target):
            got = self.read(len(target))
            target[: len(got)] = got
            return len(got)

    reader, got = opener.reader(Broken(sealed)), b""
    with pytest.raises(OSError, match="Input/output"):
        while piece := reader.read(40 * CHUNK):
            got += piece
    assert TRUTH.startswith(got)
    # The disk is back: whatever comes now must follow what came before.
    try:
        while piece := reader.read(40 * CHUNK):
            got += piece
    except (OSError, OpenError):
        assert TRUTH.startswith(got)
    else:
        assert got == TRUTH


def test_readers_of_one_opener_do_not_disturb_each_other(opener, sealer):
    rng = random.Random(7)
    truths = [pattern(rng.randrange(4 * CHUNK)) for _ in range(5)]
    readers = [opener.reader(io.BytesIO(upload(sealer, t))) for t in truths]
    for _ in range(60):
        i = rng.randrange(5)
        at = rng.randrange(len(truths[i]) + 1)
        readers[i].seek(at)
        assert readers[i].read(500) == truths[i][at : at + 500]


def test_it_reads_from_a_real_pipe(opener, sealer):
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as source, open(writing, "wb", buffering=0) as target:
        target.write(upload(sealer, b"through the kernel"))
        target.close()
        assert opener.reader(source).read() == b"through the kernel"


def test_only_memory_of_its_own_holds_what_has_not_verified(opener, sealed):
    """Nor what is held for later reads: a second thread could see it."""
    for wrap in (io.BytesIO, Pipe, Watched):
        reader = opener.reader(wrap(sealed))
        engine, told = reader._engine, []

        class Spy:
            room = staticmethod(engine.room)

            @staticmethod
            def open_chunks(*args, engine=engine, told=told):
                told.append(bool(args[5:] and args[5]))
                return engine.open_chunks(*args)

        reader._engine = Spy
        assert reader.readinto(bytearray(4 * CHUNK)) == 4 * CHUNK
        assert len(reader.read(4 * CHUNK)) == 4 * CHUNK
        assert len(reader.read(10)) == 10
        assert told == [False, True, False]


def test_what_was_held_is_wiped(opener, sealed):
    reader = opener.reader(io.BytesIO(sealed))
    short = reader._buffer
    assert any(short), "the last chunk"
    reader.read(10)
    long = reader._buffer
    assert any(long)
    assert not any(short)
    reader.close()
    assert not any(long)

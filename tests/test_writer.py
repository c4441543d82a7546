# SPDX-License-Identifier: Apache-2.0
"""SealingWriter: what it takes, and that nothing but a good close makes an upload whole."""

import gc
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Opener, Sealer, drain, key, pattern, upload, wait_for_children

from upseal import Truncated
from upseal.engine.sizes import CHUNK

PIECE = 32 * CHUNK
EDGES = sorted({max(0, n * CHUNK + d) for n in (0, 1, 2, 31, 32, 33, 64) for d in (-1, 0, 1)})


class Recording:
    """An engine that notes which chunks it was told to seal, under which key."""

    def __init__(self, engine):
        self._engine, self.sealed = engine, []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def seal_chunks(self, key, first, last, data, out):
        count = len(data) // CHUNK + last
        self.sealed += [(id(key), first + i) for i in range(count)]
        return self._engine.seal_chunks(key, first, last, data, out)


class Failing(io.BytesIO):
    """Raises at the nth write."""

    def __init__(self, when):
        super().__init__()
        self.left = when

    def write(self, data):
        self.left -= 1
        if self.left == 0:
            raise OSError(28, "No space left on device")
        return super().write(data)


class Short(io.BytesIO):
    """Takes at most so many bytes a write, as a socket may."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def write(self, data):
        return super().write(bytes(data[: self.most]))


@pytest.mark.parametrize("step", [1000, CHUNK, CHUNK + 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_sizes_round_the_edges_in_any_steps_give_the_same_plaintext(sealer, opener, step):
    for size in EDGES:
        data = pattern(size)
        sealed = upload(sealer, data, step=step)
        assert len(sealed) == 187 + size + 16 * (size // CHUNK + 1)
        assert drain(opener, sealed, step=PIECE) == (data, None)


@given(st.lists(st.tuples(st.integers(0, 3 * CHUNK), st.booleans()), max_size=40))
def test_writes_and_flushes_in_any_mixture_give_the_same_plaintext(engine, steps):
    recipient = key("x25519-a")
    sealer, opener = (
        Sealer([recipient.public_key], engine=engine),
        Opener([recipient], engine=engine),
    )
    out, truth = io.BytesIO(), bytearray()
    with sealer.writer(out) as writer:
        for size, flush in steps:
            data = pattern(size)
            assert writer.write(data) == size
            truth += data
            if flush:
                writer.flush()
    assert drain(opener, out.getvalue(), step=PIECE) == (bytes(truth), None)


def test_flush_writes_the_full_chunks_there_are(sealer):
    out = io.BytesIO()
    writer = sealer.writer(out)
    front = len(out.getvalue())
    writer.write(pattern(3 * CHUNK + 5))
    assert len(out.getvalue()) == front
    for _ in range(2):
        writer.flush()
        assert len(out.getvalue()) == front + 3 * (CHUNK + 16)
    writer.close()
    assert len(out.getvalue()) == front + 3 * (CHUNK + 16) + 21


def test_it_is_a_raw_io_file(sealer, opener):
    out = io.BytesIO()
    with sealer.writer(out) as writer:
        assert isinstance(writer, io.RawIOBase)
        assert (writer.writable(), writer.readable(), writer.seekable()) == (True, False, False)
        with io.BufferedWriter(writer) as buffered:
            buffered.write(b"through ")
            buffered.write(b"io")
    assert writer.closed
    assert not out.closed
    assert drain(opener, out.getvalue()) == (b"through io", None)


def test_closing_twice_is_closing_once(sealer, opener):
    out = io.BytesIO()
    writer = sealer.writer(out)
    writer.write(b"once")
    writer.close()
    length = len(out.getvalue())
    writer.close()
    writer.flush()
    assert len(out.getvalue()) == length
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"more")
    assert drain(opener, out.getvalue()) == (b"once", None)


def test_leaving_by_an_exception_leaves_the_upload_cut_off(sealer, opener):
    for size in (0, 5, CHUNK, PIECE + 1):
        out = io.BytesIO()
        with pytest.raises(KeyError), sealer.writer(out) as writer:
            writer.write(pattern(size))
            raise KeyError
        assert writer.closed
        assert type(drain(opener, out.getvalue())[1]) is Truncated


def test_a_forgotten_writer_leaves_the_upload_cut_off(sealer, opener):
    out = io.BytesIO()
    writer = sealer.writer(out)
    writer.write(pattern(PIECE + 1))
    del writer
    gc.collect()
    assert type(drain(opener, out.getvalue())[1]) is Truncated


def test_abort_leaves_the_upload_cut_off(sealer, opener):
    out = io.BytesIO()
    writer = sealer.writer(out)
    writer.write(pattern(100))
    writer.abort()
    writer.close()
    assert writer.closed
    assert type(drain(opener, out.getvalue())[1]) is Truncated


@pytest.mark.parametrize("when", [2, 3, 4])
def test_a_failed_write_ends_the_writer_and_no_chunk_is_sealed_twice(engine, key, opener, when):
    recording = Recording(engine)
    sealer = Sealer([key.public_key], engine=recording)
    out = Failing(when)  # the first write is the front
    writer = sealer.writer(out)
    with pytest.raises(OSError, match="No space"):
        for _ in range(5):
            writer.write(pattern(PIECE))
    for retry in (lambda: writer.write(b"again"), lambda: writer.write(pattern(PIECE))):
        with pytest.raises(RuntimeError, match="failed"):
            retry()
    writer.flush()
    writer.close()
    assert writer.closed
    # A new upload from the same sealer is sealed under a key of its own.
    assert drain(opener, upload(sealer, pattern(PIECE + 9)), step=PIECE) == (
        pattern(PIECE + 9),
        None,
    )
    assert len(set(recording.sealed)) == len(recording.sealed)
    assert type(drain(opener, out.getvalue())[1]) is Truncated


def test_a_failed_flush_or_close_ends_the_writer_too(engine, key, opener):
    for act in ("flush", "close"):
        recording = Recording(engine)
        out = Failing(2)
        writer = Sealer([key.public_key], engine=recording).writer(out)
        writer.write(pattern(2 * CHUNK))
        with pytest.raises(OSError, match="No space"):
            getattr(writer, act)()
        writer.close()
        assert writer.closed
        assert len(set(recording.sealed)) == len(recording.sealed) == 2 + (act == "close")
        assert drain(opener, out.getvalue())[1] is not None


def test_a_failed_front_makes_no_writer(sealer):
    with pytest.raises(OSError, match="No space"):
        sealer.writer(Failing(1))
    gc.collect()


def test_every_chunk_of_a_good_upload_is_sealed_once(engine, key):
    recording = Recording(engine)
    sealer = Sealer([key.public_key], engine=recording)
    upload(sealer, pattern(3 * PIECE + 70000), step=50001)
    assert [index for _, index in recording.sealed] == list(range(3 * 32 + 5))


@pytest.mark.parametrize("most", [1, 1000, 40000])
def test_short_writes_are_carried_on(sealer, opener, most):
    out = Short(most)
    data = pattern(20000 if most == 1 else PIECE + 20000)
    with sealer.writer(out) as writer:
        writer.write(data)
    assert drain(opener, out.getvalue(), step=PIECE) == (data, None)


def test_a_file_that_does_not_block_is_refused_loudly(sealer):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(reading, "rb"), open(writing, "wb", buffering=0) as pipe:
        writer = sealer.writer(pipe)
        with pytest.raises(BlockingIOError, match="blocks"):
            writer.write(pattern(PIECE))  # far more than a pipe takes
        with pytest.raises(RuntimeError):
            writer.write(b"again")
        writer.close()


def test_a_callers_mistake_changes_nothing(sealer, opener):
    out = io.BytesIO()
    with sealer.writer(out) as writer:
        writer.write(b"good ")
        with pytest.raises(TypeError):
            writer.write("text")
        with pytest.raises(ValueError, match="contiguous"):
            writer.write(memoryview(bytes(10))[::2])
        assert writer.write(b"") == 0
        writer.write(b"and good")
    assert drain(opener, out.getvalue()) == (b"good and good", None)


def test_the_callers_memory_can_be_used_again_at_once(sealer, opener):
    out, buffer, truth = io.BytesIO(), bytearray(PIECE + 77), bytearray()
    with sealer.writer(out) as writer:
        for number in range(4):
            buffer[:] = bytes([number]) * len(buffer)
            truth += buffer
            writer.write(memoryview(buffer))
            buffer[:] = bytes(len(buffer))
    assert drain(opener, out.getvalue(), step=PIECE) == (bytes(truth), None)


def test_the_4_pib_limit_of_the_format_is_kept(sealer):
    out = io.BytesIO()
    writer = sealer.writer(out)
    writer._chunk = (1 << 38) - 33  # as if all but 33 chunks had been written
    writer.write(pattern(PIECE))
    with pytest.raises(ValueError, match="4 PiB"):
        writer.write(pattern(PIECE))
    writer.write(pattern(CHUNK - 1))  # the short last chunk, number 2^38, is still allowed
    writer.close()
    assert len(out.getvalue()) == 187 + PIECE + 32 * 16 + CHUNK - 1 + 16


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("act", ["write", "close", "flush"])
def test_a_forked_child_cannot_go_on_with_its_parents_upload(sealer, opener, act):
    # The child would seal the same chunk index under the same key with other bytes.
    out = io.BytesIO()
    writer = sealer.writer(out)
    writer.write(b"of the parent")
    pid = os.fork()
    if not pid:
        code, before = 1, len(out.getvalue())
        try:
            writer.write(b"of the child") if act == "write" else getattr(writer, act)()
        except RuntimeError:
            del writer
            code = 0 if len(out.getvalue()) == before else 2
        finally:
            os._exit(code)
    assert wait_for_children([pid]) == [0]
    writer.close()
    assert drain(opener, out.getvalue()) == (b"of the parent", None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_by_the_file_itself_does_not_seal_on(sealer, opener):
    parent, children = os.getpid(), []

    class Forking(io.BytesIO):
        def write(self, data):
            if len(data) > CHUNK and not children:  # in the middle of the pieces
                children.append(os.fork())
            return super().write(data)

    out, truth = Forking(), pattern(4 * PIECE)
    writer = sealer.writer(out)
    try:
        writer.write(truth)
    except RuntimeError:
        os._exit(0 if os.getpid() != parent else 1)
    finally:
        if os.getpid() != parent:
            os._exit(2)
    assert wait_for_children(children) == [0]
    writer.close()
    assert drain(opener, out.getvalue()) == (truth, None)

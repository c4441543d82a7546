# SPDX-License-Identifier: Apache-2.0
"""Buffers that lie, overlap, change or go away; none may make C read or write elsewhere."""

import ctypes
import io
import mmap
import sys
import threading
from array import array
from contextlib import suppress

import pytest
from support import ROOT, Opener, Pipe, Sealer, drain, pattern, python, upload

from upseal import OpenError, Padding
from upseal.engine.sizes import CHUNK

PIECE = 16 * CHUNK
OFFSETS = array("q", range(0, 60_001, 600))
VALUES = pattern(60_000)


class LyingBytes(bytes):
    """Bytes whose Python side says something else than their memory."""

    def __len__(self):
        return 1 << 40

    def __getitem__(self, where):
        return "not bytes at all"

    def __iter__(self):
        return iter([1 << 20])

    def __bytes__(self):
        return b"other"


class LyingArray(bytearray):
    """The same of a bytearray."""

    __len__, __getitem__ = LyingBytes.__len__, LyingBytes.__getitem__
    __iter__, __bytes__ = LyingBytes.__iter__, LyingBytes.__bytes__


@pytest.mark.parametrize("kind", [LyingBytes, LyingArray])
def test_a_buffer_is_its_memory_whatever_its_methods_say(sealer, opener, kind):
    report = kind(b"the bytes there are")
    want = b"the bytes there are"
    assert opener.open(sealer.seal(report, report), want) == want
    assert opener.open_many(sealer.seal_many([report, b"", report])) == [want, b"", want]
    assert list(opener.open_batch(sealer.seal_batch([report, report]))) == [want, want]
    assert list(opener.open_batch(sealer.seal_packed(report, array("q", [0, 3, 19])))) == [
        want[:3],
        want[3:],
    ]
    values, ends = sealer.seal_many_packed(want, array("q", [0, 3, 19]))
    forged = kind(bytes(values[:-1]) + b"x")  # so that they are opened one by one
    reports, _, errors = opener.open_many_packed(forged, ends)
    assert (bytes(reports), list(errors)) == (want[:3], [1])
    assert opener.open(kind(sealer.seal(want))) == want
    assert list(opener.open_batch(kind(sealer.seal_batch([want])))) == [want]
    out = io.BytesIO()
    with sealer.writer(out, report) as writer:
        assert writer.write(report) == len(want)
    assert drain(opener, out.getvalue(), want) == (want, None)


SHORT_OUT = """
import sys
from array import array
from misuse_child import engine
from upseal import *

key, chosen = PrivateKey.generate(), engine(sys.argv[1])
sealer, opener = Sealer([key.public_key], engine=chosen), Opener([key], engine=chosen)
values, offsets = bytes(3 << 20), array("q", [0, 1 << 20, 2 << 20, 3 << 20])
batch = sealer.seal_packed(values, offsets)

class Out(bytearray):
    def __len__(self):
        return 1 << 40

class Grows(bytearray):
    def extend(self, more):
        pass

class Shows(bytearray):
    def __buffer__(self, flags):  # asked from Python 3.12 on
        return memoryview(bytearray(5))

for kind in (Out, Grows, Shows):
    for call in (
        lambda out: sealer.seal_packed(values, offsets, out=out),
        lambda out: opener.open_packed(batch, out=out),
    ):
        for size in (0, 10, 5000):
            out = kind(size)
            try:
                got = call(out)
            except ValueError:
                continue
            assert bytearray.__len__(out) >= 3 << 20, "C wrote behind its end"
print("well")
"""


def test_an_out_that_lies_about_its_size_is_not_written_behind_its_end(engine):
    name = "portable" if engine.name == "portable" else f"native[{engine.backend}]"
    done = python(SHORT_OUT, name, PYTHONPATH=str(ROOT / "tests"), PYTHONMALLOC="debug")
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr


@pytest.fixture(params=[None, Padding.PADME])
def pair(engine, key, request):
    return Sealer([key.public_key], padding=request.param, engine=engine), Opener(
        [key], engine=engine
    )


def foreign(buffer, at, size):
    """A view of a part that does not say whose memory it is."""
    return memoryview((ctypes.c_uint8 * size).from_buffer(buffer, at))


def own(buffer, at, size):
    return memoryview(buffer)[at : at + size]


@pytest.mark.parametrize("part", [own, foreign])
@pytest.mark.parametrize("at", [0, 5, 800, 3000, 70_000])
def test_out_may_be_where_the_input_lies(pair, part, at):
    # C reads and writes by turns: the reports were overwritten before they were sealed, and the
    # batch opened well, with something else in it.
    sealer, opener = pair
    out = bytearray(200_000)
    out[at : at + len(VALUES)] = VALUES
    with part(out, at, len(VALUES)) as values:
        sealed = bytes(sealer.seal_packed(values, OFFSETS, out=out))
    assert opener.open_packed(sealed)[0] == VALUES
    out = bytearray(200_000)
    out[at : at + len(sealed)] = sealed
    with part(out, at, len(sealed)) as batch:
        opened, offsets = opener.open_packed(batch, out=out)
        assert opened == VALUES
        assert offsets.tolist() == OFFSETS.tolist()
        assert opened.obj is out


@pytest.mark.parametrize("part", [own, foreign])
def test_out_that_must_grow_cannot_where_the_input_lies(pair, part):
    sealer, opener = pair
    out = bytearray(VALUES)
    with part(out, 0, len(VALUES)) as values, pytest.raises(ValueError, match="still in use"):
        sealer.seal_packed(values, OFFSETS, out=out)
    assert out == VALUES
    with pytest.raises(ValueError, match="still in use"):  # by the call itself
        sealer.seal_packed(out, OFFSETS, out=out)
    batch = bytearray(sealer.seal_packed(out, OFFSETS))
    batch[-1] ^= 1
    with pytest.raises(OpenError):
        opener.open_packed(batch, out=batch)


@pytest.mark.parametrize(
    "nothing",
    [
        array("d"),
        array("i"),
        memoryview(array("q")),
        (ctypes.c_int * 0)(),
        memoryview(b"").cast("B"),
        memoryview(bytes(6)).cast("B", (2, 3))[:0],
    ],
    ids=lambda b: type(b).__name__,
)
def test_a_buffer_without_bytes_is_empty_whatever_its_items(sealer, opener, nothing):
    # It was refused as if it were no buffer, or not contiguous.
    assert opener.open(sealer.seal(nothing, nothing), nothing) == b""
    assert list(opener.open_batch(sealer.seal_batch([nothing, b"x", nothing]))) == [b"", b"x", b""]
    assert drain(opener, upload(sealer, b"", nothing)) == (b"", None)
    with sealer.writer(io.BytesIO()) as writer:
        assert writer.write(nothing) == 0


def exporters():
    """What numpy, PIL and others show: many dimensions, of other order, by pointers."""
    try:
        from _testbuffer import ND_FORTRAN, ND_PIL, ND_WRITABLE, ndarray
    except ImportError:  # not every Python is installed with its tests
        return []
    items = list(range(12))
    return [
        (ndarray(items, shape=[12], format="B"), bytes(items)),
        (ndarray(items, shape=[3, 4], format="B", flags=ND_WRITABLE), bytes(items)),
        (ndarray(items, shape=[12], format="h"), array("h", items).tobytes()),
        (ndarray(items, shape=[2, 2, 3], format="l"), array("l", items).tobytes()),
        (ndarray(items, shape=[3, 4], format="B", flags=ND_FORTRAN), None),
        (ndarray(items, shape=[3, 4], format="B", flags=ND_PIL), None),
        (ndarray(items, shape=[6], strides=[2], format="B"), None),
        (ndarray(items, shape=[12], strides=[-1], offset=11, format="B"), None),
    ]


def structures():
    class Pair(ctypes.Structure):
        _fields_ = (("a", ctypes.c_int16), ("b", ctypes.c_double))

    pairs = (Pair * 3)((1, 2.5), (3, 4.5), (5, 6.5))
    numbers = ((ctypes.c_int * 3) * 4)(*[(1, 2, 3)] * 4)
    mapped = mmap.mmap(-1, 100)
    mapped[:5] = b"hello"
    return [
        (pairs, bytes(pairs)),
        (numbers, bytes(numbers)),
        (ctypes.c_double(1.5), bytes(ctypes.c_double(1.5))),
        (mapped, b"hello" + bytes(95)),
        (memoryview(mapped)[:7], b"hello\0\0"),
        (memoryview(array("f", [1, 2])).toreadonly(), array("f", [1, 2]).tobytes()),
        (memoryview(bytes(24)).cast("d", (3, 1)), bytes(24)),
        (memoryview(bytes(range(12))).cast("B", (3, 4))[::2], None),
        (memoryview(b"backwards")[::-1], None),
    ]


def test_exporters_of_every_shape_are_sealed_as_their_bytes_or_refused(sealer, opener):
    for data, want in exporters() + structures():
        if want is None:
            for call in (sealer.seal, lambda d: sealer.seal_batch([d]), opener.open):
                with pytest.raises((ValueError, TypeError, BufferError)):
                    call(data)
            continue
        assert opener.open(sealer.seal(data, data), want) == want
        assert list(opener.open_batch(sealer.seal_batch([data, b"x"]))) == [want, b"x"]
        assert opener.open_many(sealer.seal_many([b"x", data])) == [b"x", want]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python classes export from 3.12 on")
def test_exporters_written_in_python_may_show_something_else_each_time(sealer, opener):
    class Moody:
        times = 0

        def __buffer__(self, flags):
            Moody.times += 1
            return memoryview(b"x" * (Moody.times % 7))

        def __release_buffer__(self, view):
            sealer.seal(b"in the middle")

    for _ in range(20):
        moody = Moody()
        assert set(opener.open(sealer.seal(moody))) <= set(b"x")
        for report in opener.open_batch(sealer.seal_batch([moody, b"", moody])):
            assert set(report) <= set(b"x")


@pytest.mark.parametrize("wrap", [io.BytesIO, Pipe])
def test_a_readonly_target_is_a_mistake_and_does_not_end_the_reader(sealer, opener, wrap):
    truth = pattern(2 * PIECE)
    reader = opener.reader(wrap(upload(sealer, truth)))
    for target in (
        bytes(PIECE),
        memoryview(bytearray(PIECE)).toreadonly(),
        memoryview(bytearray(PIECE))[::2],
        "text",
        None,
        7,
    ):
        with pytest.raises((TypeError, ValueError)):
            reader.readinto(target)
    mapped, numbers = mmap.mmap(-1, PIECE), array("q", bytes(PIECE))
    grid = ((ctypes.c_uint16 * 8) * (PIECE // 16))()
    for target in (mapped, numbers, grid):
        at = reader.tell()
        got = reader.readinto(target)
        assert bytes(memoryview(target).cast("B"))[:got] == truth[at : at + got]
    assert reader.read() == truth[reader.tell() :] if wrap is not Pipe else True


def test_views_released_before_or_while_they_are_used(sealer, opener):
    gone = memoryview(b"gone")
    gone.release()
    for call in (
        lambda: sealer.seal(gone),
        lambda: sealer.seal_many([b"", gone]),
        lambda: sealer.seal_packed(gone, OFFSETS),
        lambda: opener.open(gone),
        lambda: sealer.writer(io.BytesIO()).write(gone),
    ):
        with pytest.raises(ValueError, match="released"):
            call()
    source = bytearray(b"here")
    views = [memoryview(source) for _ in range(3)]

    def reports():
        for i, view in enumerate(views):
            yield view
            if i:
                views[i - 1].release()

    with pytest.raises(ValueError, match="released"):
        sealer.seal_batch(reports())
    views[-1].release()
    source += b"nobody holds it"
    # A caller's view may go once the call has begun: the file lets go of it in the middle.
    data = memoryview(bytearray(pattern(3 * PIECE)))

    class Releasing(io.BytesIO):
        def write(self, piece):
            data.release()
            return super().write(piece)

    out = Releasing()
    writer = sealer.writer(io.BytesIO())
    writer._file = out
    assert writer.write(data) == 3 * PIECE
    writer.abort()
    assert len(out.getvalue()) == 3 * 16 * (CHUNK + 16)


def changing(buffer, work, resize=False):
    """Calls ``work`` some times while another thread fills the buffer with a, b, a, ..."""
    done, sizes = threading.Event(), []

    def change():
        while not done.is_set():
            for letter in b"ab":
                with suppress(ValueError):
                    buffer[:] = bytes([letter]) * len(buffer)
            if resize:
                try:
                    buffer.append(97)
                    buffer.pop()
                except BufferError:
                    sizes.append("refused")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(4):
            work()
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("resize", [False, True])
def test_what_changes_while_it_is_sealed_is_one_or_the_other(pair, resize):
    sealer, opener = pair
    size = 60_000
    data = bytearray(b"a" * size)

    def work():
        with suppress(ValueError):  # "a report changed its size while it was read"
            assert set(opener.open(sealer.seal(data))) <= set(b"ab")
            for opened in (
                opener.open_many(sealer.seal_many([data, b"", data])),
                opener.open_batch(sealer.seal_batch([data, b"", data])),
            ):
                assert set(b"".join(opened)) <= set(b"ab")
            opened, offsets = opener.open_packed(sealer.seal_packed(data, OFFSETS))
            assert set(opened) <= set(b"ab")
            assert offsets.tolist() == OFFSETS.tolist()
            out = io.BytesIO()
            with sealer.writer(out) as writer:
                for _ in range(6):
                    writer.write(data)
            got, error = drain(opener, out.getvalue(), step=PIECE)
            assert error is None
            assert set(got) <= set(b"ab")

    changing(data, work, resize)


def test_what_changes_while_it_is_opened_is_refused_or_right(sealer, opener):
    """Its header and its table are copied before they are believed."""
    good = sealer.seal_batch([b"r" * 700] * 60)
    many = sealer.seal_many([b"r" * 700] * 3)
    data = bytearray(good)
    done = threading.Event()

    def change():
        while not done.is_set():
            for at in (5, 10, 16, 60, 140, 160, 163, 164, 167, 200, 300):
                data[at] ^= 0xFF
                data[at] ^= 0xFF
            for other in many:
                data[: len(other)] = other
            data[:] = good

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(50):
            for call in (opener.open_batch, opener.open, lambda d: opener.open_many([d, d])):
                with suppress(OpenError, ValueError):
                    call(data)
    finally:
        done.set()
        thread.join()
    assert list(opener.open_batch(data)) == [b"r" * 700] * 60


def test_a_buffer_that_is_being_sealed_cannot_be_resized(key):
    from support import engine

    chosen = engine("native[openssl]")
    sealer = Sealer([key.public_key], engine=chosen)
    data, refused, sealed = bytearray(24 << 20), 0, []
    offsets = array("q", range(0, len(data) + 1, 1 << 18))
    thread = threading.Thread(target=lambda: sealed.append(sealer.seal_packed(data, offsets)))
    thread.start()
    while thread.is_alive():
        try:
            data.append(0)
            data.pop()
        except BufferError:
            refused += 1
    thread.join()
    assert refused
    assert len(Opener([key], engine=chosen).open_batch(sealed[0])) == 96

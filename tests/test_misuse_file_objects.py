# SPDX-License-Identifier: Apache-2.0
"""File objects of the caller's that raise, lie, close themselves or call back."""

import io

import pytest
from support import Opener, Pipe, Sealer, drain, pattern, upload

from upseal import OpenError, Truncated, open_file, seal_file
from upseal.engine.sizes import CHUNK

PIECE = 16 * CHUNK
TRUTH = pattern(2 * PIECE + 99)


class Endless(AssertionError):
    """It was asked again and again."""


class LyingWriter(io.BytesIO):
    """At its nth write it stores nothing, and answers (or raises) this; from then on always."""

    def __init__(self, when, answer):
        super().__init__()
        self.calls, self.when, self.answer = 0, when, answer

    def write(self, data):
        self.calls += 1
        if self.calls > 300:
            raise Endless
        if self.calls < self.when:
            return super().write(data)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer(data) if callable(self.answer) else self.answer


ANSWERS = {
    "None": (None, BlockingIOError),
    "0": (0, BlockingIOError),
    "negative": (-1, OSError),
    "too much": (lambda data: len(data) + 1, OSError),
    "far too much": (2**80, OSError),
    "text": ("all", TypeError),
    "fraction": (0.5, TypeError),
    "raises": (OSError(5, "Input/output error"), OSError),
    "closed": (ValueError("I/O operation on closed file"), ValueError),
    "no memory": (MemoryError(), MemoryError),
    "interrupt": (KeyboardInterrupt(), KeyboardInterrupt),
}


@pytest.mark.parametrize("when", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ANSWERS)
def test_a_write_that_fails_or_lies_ends_the_upload_visibly(sealer, opener, name, when):
    answer, error = ANSWERS[name]
    out = LyingWriter(when, answer)
    with pytest.raises(error) as raised:
        writer = sealer.writer(out)  # writes once
        writer.write(TRUTH)  # twice
        writer.close()  # once
    assert not isinstance(raised.value, Endless)
    if when > 1:
        assert writer.closed == (when == 4)
        for act in (lambda: writer.write(b"x"), lambda: writer.write(TRUTH)):
            with pytest.raises((RuntimeError, ValueError)):
                act()
        calls = out.calls
        writer.close()
        assert out.calls == calls
    assert type(drain(opener, out.getvalue())[1]) is Truncated


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("when", [1, 2, 4])
@pytest.mark.parametrize("name", ANSWERS)
def test_sealing_and_opening_into_a_file_that_lies_is_an_error(sealer, opener, name, when, threads):
    answer, error = ANSWERS[name]
    sealed = upload(sealer, TRUTH)
    for call in (
        lambda out: seal_file(Pipe(TRUTH), out, sealer, threads=threads),
        lambda out: open_file(Pipe(sealed, 2 * CHUNK), out, opener, threads=threads),
    ):
        out = LyingWriter(when, answer)
        try:
            call(out)
        except error as raised:
            assert not isinstance(raised, Endless)
        else:
            assert out.calls < when
            assert when == 4


class LyingReader:
    """At its nth read it answers (or raises) this, once or for ever; it has ``read`` alone."""

    def __init__(self, data, when, answer, seekable):
        self.file, self.calls, self.when, self.answer = io.BytesIO(data), 0, when, answer
        self._seekable = seekable

    def seekable(self):
        return self._seekable

    def seek(self, *where):
        return self.file.seek(*where)

    def tell(self):
        return self.file.tell()

    def read(self, size):
        self.calls += 1
        if self.calls > 300:
            raise Endless
        if self.calls < self.when:
            return self.file.read(size)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer(size) if callable(self.answer) else self.answer


class LyingInto(LyingReader):
    """The same with ``readinto``; only the number is a lie. Its ``read`` is honest."""

    def read(self, size):
        return self.file.read(size)

    def readinto(self, target):
        self.calls += 1
        if self.calls > 300:
            raise Endless
        if self.calls < self.when:
            return self.file.readinto(target)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer(len(target)) if callable(self.answer) else self.answer


READS = {
    "None": (None, BlockingIOError),
    "too much": (lambda size: bytes(size + 1), OSError),
    "far too much": (lambda size: bytes(2 * size + CHUNK), OSError),
    "text": (lambda size: "x" * size, TypeError),
    "a number": (7, TypeError),
    "raises": (OSError(5, "Input/output error"), OSError),
    "closed": (ValueError("I/O operation on closed file"), ValueError),
    "nothing": (b"", OpenError),
    "junk": (lambda size: bytes(size), OpenError),
}
INTOS = {
    "None": (None, BlockingIOError),
    "negative": (-1, OSError),
    "too much": (lambda size: size + 1, OSError),
    "far too much": (2**80, OSError),
    "text": ("all", TypeError),
    "fraction": (0.5, TypeError),
    "raises": (OSError(5, "Input/output error"), OSError),
    "nothing": (0, OpenError),
    "nothing read": (lambda size: size, OpenError),
}
LIES = [(LyingReader, n, *READS[n]) for n in READS] + [(LyingInto, n, *INTOS[n]) for n in INTOS]


@pytest.mark.parametrize("seekable", [False, True])
@pytest.mark.parametrize(("kind", "name", "answer", "error"), LIES)
def test_a_read_that_fails_or_lies_gives_verified_bytes_and_then_its_error_for_good(
    sealer, opener, kind, name, answer, error, seekable
):
    sealed = upload(sealer, TRUTH)
    for when in range(1, 9):
        source, got, reader = kind(sealed, when, answer, seekable), b"", None
        try:
            reader = opener.reader(source)
            while piece := reader.read(PIECE - 1):
                got += piece
        except (error, OpenError) as raised:
            assert not isinstance(raised, Endless)
            if reader is not None:
                for _ in range(2):
                    with pytest.raises(type(raised)):
                        reader.read(1)
        else:
            assert source.calls < when or got == TRUTH
        assert TRUTH.startswith(got)


@pytest.mark.parametrize("name", INTOS)
def test_sealing_from_a_file_that_lies_is_an_error_or_what_it_said(sealer, opener, name):
    answer, error = INTOS[name]
    for when in (1, 2, 3):
        source, out = LyingInto(TRUTH, when, answer, False), io.BytesIO()
        if name in ("nothing", "nothing read"):  # an end, or bytes for ever
            if name == "nothing":
                seal_file(source, out, sealer)
                assert TRUTH.startswith(opener.reader(io.BytesIO(out.getvalue())).read())
            continue
        with pytest.raises(error) as raised:
            seal_file(source, out, sealer)
        assert not isinstance(raised.value, Endless)
        assert type(drain(opener, out.getvalue())[1]) is Truncated


class LyingSeeks(io.BytesIO):
    """Its position is whatever it says."""

    def __init__(self, data, seek=None, tell=None):
        super().__init__(data)
        self._seek, self._tell = seek, tell

    def seek(self, *where):
        really = super().seek(*where)
        return self._seek(really) if self._seek else really

    def tell(self):
        really = super().tell()
        return self._tell(really) if self._tell else really


@pytest.mark.parametrize(
    "lie",
    [
        lambda at: None,
        lambda at: -5,
        lambda at: 0,
        lambda at: at - 100,
        lambda at: at + 1,
        lambda at: at + (1 << 62),
        lambda at: "here",
    ],
)
@pytest.mark.parametrize("which", ["seek", "tell"])
def test_positions_that_are_lies_give_no_wrong_byte(sealer, opener, which, lie):
    got, source = b"", LyingSeeks(upload(sealer, TRUTH), **{which: lie})
    try:
        with opener.reader(source) as reader:
            while piece := reader.read(PIECE - 1):
                got += piece
    except (OpenError, TypeError, ValueError, OSError):
        pass
    else:
        assert got == TRUTH
    assert TRUTH.startswith(got)


@pytest.mark.parametrize("cut", [0, 1, 186, 187, 200])
def test_a_file_that_shrinks_below_its_front_is_truncated(sealer, opener, cut):
    # Its size was taken for negative, and no index of a chunk is.
    class Shrinking(io.BytesIO):
        def seek(self, offset, whence=0):
            if whence == 2:
                self.truncate(cut)
            return super().seek(offset, whence)

    with pytest.raises(Truncated):
        opener.reader(Shrinking(upload(sealer, TRUTH)))


class Proxy:
    """Counts the calls of any method, and raises at the nth."""

    def __init__(self, file, when):
        self._file, self._left = file, when

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        method = getattr(self._file, name)

        def call(*args):
            self._left -= 1
            if self._left == 0:
                raise ConnectionResetError(104, f"{name} failed")
            return method(*args)

        return call


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failure_at_every_call_to_a_file_is_passed_on_and_nothing_wrong_comes_out(
    sealer, opener, threads
):
    sealed = upload(sealer, TRUTH)
    for way in ("seal from", "seal into", "open from", "open into"):
        when, failed = 0, True
        while failed:
            when += 1
            out, failed = io.BytesIO(), False
            sealing, into = way.startswith("seal"), way.endswith("into")
            source = io.BytesIO(TRUTH if sealing else sealed)
            ends = [source if into else Proxy(source, when), Proxy(out, when) if into else out]
            try:
                (seal_file if sealing else open_file)(
                    *ends, sealer if sealing else opener, threads=threads
                )
            except ConnectionResetError:
                failed = True
            data = out.getvalue()
            if not sealing:
                assert TRUTH.startswith(data)
                assert failed or data == TRUTH
            else:
                got, error = drain(opener, data, step=PIECE)
                assert TRUTH.startswith(got)
                assert (error is None) == (not failed or got == TRUTH)
        assert when > 3, way


def test_files_that_are_closed_under_us_are_errors(sealer, opener):
    out = io.BytesIO()
    writer = sealer.writer(out)
    writer.write(b"x")
    out.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(TRUTH)
    writer.close()
    source = io.BytesIO(upload(sealer, TRUTH))
    reader = opener.reader(source)
    source.close()
    for _ in range(2):
        with pytest.raises(ValueError, match="closed"):
            reader.read(PIECE)
    reader.close()


def test_a_plain_file_closed_by_progress_is_an_error(sealer, tmp_path):
    (tmp_path / "plain").write_bytes(pattern(6 << 20))
    for which in (0, 1):
        with (
            open(tmp_path / "plain", "rb", buffering=0) as source,
            open(tmp_path / "out", "wb", buffering=0) as target,
        ):
            ends = (source, target)

            def close(done, total, file=ends[which]):
                file.close()

            with pytest.raises(ValueError, match="closed"):
                seal_file(*ends, sealer, threads=3, progress=close)


def test_after_close_everything_says_so(sealer, opener):
    out = io.BytesIO()
    writer = sealer.writer(out)
    writer.close()
    reader = opener.reader(io.BytesIO(out.getvalue()))
    reader.close()
    for act in (
        lambda: writer.write(b""),
        lambda: writer.writelines([b"x"]),
        writer.__enter__,
        reader.read,
        reader.readall,
        lambda: reader.read(0),
        lambda: reader.read(-1),
        lambda: reader.readinto(bytearray(1)),
        lambda: reader.seek(0),
        reader.tell,
        reader.__enter__,
        lambda: next(reader),
    ):
        with pytest.raises(ValueError, match="closed"):
            act()
    before = out.getvalue()
    for _ in range(3):
        writer.close()
        writer.abort()
        writer.flush()
        reader.close()
    assert out.getvalue() == before


# -- files that call back -------------------------------------------------------------


@pytest.mark.parametrize("act", ["write", "write much", "flush", "close", "abort", "exit"])
@pytest.mark.parametrize("caught", [False, True])
def test_a_file_that_calls_its_writer_never_makes_a_wrong_upload(sealer, opener, act, caught):
    class Calling(io.BytesIO):
        writer, calls = None, 0

        def write(self, data):
            if self.writer is not None:
                self.calls += 1
                acts = {
                    "write": lambda: self.writer.write(b"again"),
                    "write much": lambda: self.writer.write(TRUTH),
                    "flush": self.writer.flush,
                    "close": self.writer.close,
                    "abort": self.writer.abort,
                    "exit": lambda: self.writer.__exit__(KeyError),
                }
                try:
                    acts[act]()
                except (RuntimeError, ValueError):
                    if not caught:
                        raise
            return super().write(data)

    out = Calling()
    writer = out.writer = sealer.writer(out)
    try:
        writer.write(TRUTH)
        writer.close()
    except (RuntimeError, ValueError):
        assert act in ("close", "abort", "exit") or not caught
    assert 0 < out.calls <= 4
    got, error = drain(opener, out.getvalue(), step=PIECE)
    if act in ("close", "abort", "exit") or not caught:
        assert type(error) is Truncated
        with pytest.raises((RuntimeError, ValueError)):
            writer.write(b"x")
    else:
        assert (got, error) == (TRUTH, None)
    writer.close()
    assert writer.closed


@pytest.mark.parametrize("act", ["read", "read all", "readinto", "seek", "tell", "close"])
@pytest.mark.parametrize("seekable", [False, True])
def test_a_file_that_calls_its_reader_is_refused(sealer, opener, act, seekable):
    class Calling(io.BytesIO):
        reader, refused = None, 0

        def seekable(self):
            return seekable

        def readinto(self, target):
            if self.reader is not None:
                acts = {
                    "read": lambda: self.reader.read(10),
                    "read all": self.reader.read,
                    "readinto": lambda: self.reader.readinto(bytearray(10)),
                    "seek": lambda: self.reader.seek(3),
                    "tell": self.reader.tell,
                    "close": self.reader.close,
                }
                with pytest.raises(RuntimeError, match="in the middle"):
                    acts[act]()
                self.refused += 1
            return super().readinto(target)

    source = Calling(upload(sealer, TRUTH))
    reader = source.reader = opener.reader(source)
    assert reader.read() == TRUTH
    assert source.refused
    reader.close()


def test_a_subclass_of_a_plain_file_is_read_by_its_own_methods(sealer, opener, tmp_path):
    # Its descriptor gives something else than it does: sealed would be what nobody has read.
    class Upper(io.BufferedReader):
        def readinto(self, target):
            got = super().readinto(target)
            target[:got] = bytes(target[:got]).upper()
            return got

    class Masked(io.BufferedWriter):
        def write(self, data):
            return super().write(bytes(b ^ 0x55 for b in bytes(data)))

    (tmp_path / "plain").write_bytes(b"small letters")
    with Upper(io.FileIO(tmp_path / "plain")) as source:
        seal_file(source, tmp_path / "sealed", sealer)
    with Masked(io.FileIO(tmp_path / "masked", "w")) as target:
        seal_file(tmp_path / "plain", target, sealer)
    open_file(tmp_path / "sealed", tmp_path / "opened", opener)
    assert (tmp_path / "opened").read_bytes() == b"SMALL LETTERS"
    masked = bytes(b ^ 0x55 for b in (tmp_path / "masked").read_bytes())
    assert drain(opener, masked) == (b"small letters", None)


@pytest.mark.parametrize("threads", [0, -1, "2", 1.5])
def test_a_wrong_number_of_threads_is_refused_before_a_byte_is_written(
    sealer, opener, tmp_path, threads
):
    (tmp_path / "plain").write_bytes(TRUTH)
    (tmp_path / "sealed").write_bytes(upload(sealer, TRUTH))
    for call, name, how in ((seal_file, "plain", sealer), (open_file, "sealed", opener)):
        with open(tmp_path / "out", "wb", buffering=0) as out:
            with pytest.raises((ValueError, TypeError)):
                call(tmp_path / name, out, how, threads=threads)
            assert out.tell() == 0
        for source in (tmp_path / name, io.BytesIO((tmp_path / name).read_bytes())):
            with pytest.raises((ValueError, TypeError)):
                call(source, tmp_path / "new", how, threads=threads)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "plain", "sealed"]


def test_many_more_threads_than_there_is_work_are_no_trouble(sealer, opener, tmp_path):
    (tmp_path / "plain").write_bytes(TRUTH)
    for threads in (True, 64, 2**31, 2**63):
        seal_file(tmp_path / "plain", tmp_path / "s", sealer, threads=threads)
        open_file(tmp_path / "s", tmp_path / "o", opener, threads=threads)
        assert (tmp_path / "o").read_bytes() == TRUTH
    assert isinstance(sealer, Sealer)
    assert isinstance(opener, Opener)

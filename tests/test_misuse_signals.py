# SPDX-License-Identifier: Apache-2.0
"""Interrupts anywhere: what was begun is whole, visibly cut off, or as if it had not been."""

import gc
import io
import os
import signal
import sys
import threading
import warnings
from array import array
from contextlib import suppress

import pytest
from support import Opener, Pipe, Sealer, drain, engine, key, pattern, python, upload

from upseal import OpenError, Truncated, open_file, seal_file
from upseal.engine.sizes import CHUNK

PIECE = 16 * CHUNK
TRUTH = pattern(3 * PIECE + 99)
OURS = os.path.join("upseal", "core")


class Interrupt(BaseException):
    """As KeyboardInterrupt: nobody of ours may catch it for good."""


class Late(Exception):
    """As a handler of SIGALRM may raise for a time limit."""


def _ends_something(frame):
    """What is raised while an object or a key of the C core ends is nobody's to catch."""
    while frame is not None and OURS in frame.f_code.co_filename:
        if frame.f_code.co_name in ("__del__", "end"):
            return True
        frame = frame.f_back
    return False


def interrupted(work, number, error=Interrupt):
    """Calls ``work``, with ``error`` raised at the ``number``th line of ours that runs.

    A signal's handler runs between two steps of the interpreter and may raise there: this does
    it at each place in turn.

    Returns:
        (what it gave, or the error; whether there were so many lines).
    """
    left = number

    def trace(frame, event, arg):
        nonlocal left
        if OURS not in frame.f_code.co_filename or _ends_something(frame):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise error
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        result = work()
    except error as raised:
        result = raised
    finally:
        sys.settrace(before)
    return result, left <= 0


def ours():
    """Threads that upseal has begun, and that run."""
    return [t for t in threading.enumerate() if t.name.startswith("upseal") and t.ident]


def every_place(work, check, error=Interrupt, step=1):
    """Interrupts ``work`` at every line in turn, and has each outcome checked; at least 10."""
    number = 0
    with warnings.catch_warnings():
        # Of what an interrupt takes away between opening a file and the `with` that closes it.
        warnings.simplefilter("ignore", ResourceWarning)
        while True:
            number += step
            result, reached = interrupted(work, number, error)
            if not reached:
                break
            check(result)
        gc.collect()
    assert number > 10


@pytest.fixture
def pair():
    chosen = engine("native[openssl]")
    return Sealer([key("x25519-a").public_key], engine=chosen), Opener(
        [key("x25519-a")], engine=chosen
    )


@pytest.mark.parametrize("error", [Interrupt, Late])
def test_a_writer_interrupted_anywhere_never_makes_an_upload_that_lacks_something(pair, error):
    sealer, opener = pair
    steps = [100, PIECE, PIECE - 50, CHUNK]
    parts = [bytes([i]) * size for i, size in enumerate(steps)]
    want = b"".join(parts)

    def work():
        nonlocal out
        out = io.BytesIO()
        writer = sealer.writer(out)
        for part in parts:
            with suppress(error, RuntimeError, ValueError):  # goes on as if nothing were
                writer.write(part)
                writer.flush()
        with suppress(error, RuntimeError):
            writer.close()
        return writer

    def check(result):
        data, problem = drain(opener, out.getvalue(), step=PIECE)
        if problem is None:
            # A call that raised has done all that it should, or nothing.
            assert data in [want, *(b"".join(p for p in parts if p is not gone) for gone in parts)]
        elif out.getvalue():
            assert isinstance(problem, Truncated)

    out = None
    every_place(work, check, error)
    assert work() is not None
    assert drain(opener, out.getvalue(), step=PIECE) == (want, None)


@pytest.mark.parametrize("error", [Interrupt, Late])
@pytest.mark.parametrize("wrap", [io.BytesIO, Pipe])
def test_a_reader_interrupted_anywhere_skips_nothing(pair, wrap, error):
    sealer, opener = pair
    sealed = upload(sealer, TRUTH)
    endings = set()

    def work():
        nonlocal got
        got = b""
        try:
            reader = opener.reader(wrap(sealed))
        except OpenError as raised:
            # In a key's `unwrap` any Exception is a secret that could not be unwrapped.
            assert error is Late
            return raised
        room = bytearray(CHUNK + 11)
        problem = None
        for size in (5, 2 * CHUNK, 0, PIECE + 3, None):
            for _ in range(2):  # tries again once
                try:
                    if size is None:
                        got += reader.read()
                    elif size:
                        got += reader.read(size)
                    else:
                        got += room[: reader.readinto(room)]
                    break
                except error as raised:
                    problem = raised
                except RuntimeError as raised:
                    problem = raised
        return problem

    def check(problem):
        assert TRUTH.startswith(got)
        endings.add(len(got) == len(TRUTH))
        if wrap is io.BytesIO and error is Interrupt and not isinstance(problem, RuntimeError):
            assert got in (TRUTH, b"")  # nothing is lost: it was read again

    got = None
    every_place(work, check, error)
    assert work() is None
    assert got == TRUTH


@pytest.mark.parametrize("wrap", [io.BytesIO, Pipe])
def test_a_reader_interrupted_by_its_file_goes_on_or_says_why_not(pair, wrap):
    sealer, opener = pair
    sealed = upload(sealer, TRUTH)

    class Interrupted(wrap):
        when = None

        def readinto(self, target):
            if self.when == self.tell_read:
                self.when = None
                half = memoryview(target)[: len(target) // 2]
                super().readinto(half)  # a pipe's bytes are gone then
                raise Interrupt
            self.tell_read += 1
            return super().readinto(target)

        tell_read = 0

    for when in range(3):
        source = Interrupted(sealed)
        source.when = when
        if wrap is io.BytesIO:
            source.__class__.read = io.BytesIO.read
        got, reader = b"", opener.reader(io.BytesIO(sealed))
        reader = opener.reader(source) if when else reader
        if not when:
            reader.close()
            continue
        problems = []
        for _ in range(12):
            try:
                got += reader.read(PIECE + 7)
            except Interrupt:
                problems.append("interrupt")
            except RuntimeError as error:
                problems.append(str(error))
        assert "interrupt" in problems
        if wrap is io.BytesIO:
            assert (got, problems) == (TRUTH, ["interrupt"])
        else:
            assert TRUTH.startswith(got)
            assert any("interrupted" in p for p in problems)


# A file that was open for less than a line is closed by Python, which says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO")
@pytest.mark.parametrize("threads", [1, 2])
def test_files_interrupted_anywhere_are_whole_or_not_there(pair, tmp_path, threads):
    sealer, opener = pair
    plain, sealed, opened = (tmp_path / name for name in ("plain", "sealed", "opened"))
    plain.write_bytes(TRUTH)
    seal_file(plain, tmp_path / "good", sealer)

    def check(result):
        for name in (sealed, opened):
            if name.exists():
                data = name.read_bytes()
                assert data == TRUTH if name is opened else drain(opener, data) == (TRUTH, None)
                name.unlink()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["good", "plain"]
        assert not ours()

    step = 1 if threads == 1 else 3
    every_place(lambda: seal_file(plain, sealed, sealer, threads=threads), check, step=step)
    every_place(
        lambda: open_file(tmp_path / "good", opened, opener, threads=threads), check, step=step
    )


STORM = """
import os, signal, sys, threading, io, random
from array import array
from upseal import *
from upseal.engine import choose

class Stop(BaseException): pass

key = PrivateKey.generate()
sealer, opener = Sealer([key.public_key]), Opener([key])
folder = sys.argv[1]
data = random.Random(1).randbytes(9 << 20)
with open(f"{folder}/plain", "wb") as f:
    f.write(data)
seal_file(f"{folder}/plain", f"{folder}/good", sealer)
offsets = array("q", range(0, len(data) + 1, 1 << 16))
batch = sealer.seal_packed(data, offsets)
out, armed = bytearray(len(batch) + 10), False

def handler(*_):
    if armed:
        raise Stop

signal.signal(signal.SIGALRM, handler)
jobs = [
    lambda: seal_file(f"{folder}/plain", f"{folder}/s", sealer, threads=3),
    lambda: open_file(f"{folder}/good", f"{folder}/o", opener, threads=3),
    lambda: sealer.seal_packed(data, offsets, out=out),
    lambda: opener.open_packed(batch, out=out),
]
stopped = whole = 0
for turn in range(int(sys.argv[2])):
    job = jobs[turn % 4]
    signal.setitimer(signal.ITIMER_REAL, random.Random(turn).uniform(2e-4, 6e-3), 4e-3)
    try:
        armed = True
        got = job()
        armed = False
        whole += 1
    except Stop:
        armed = False
        got = None
        stopped += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    running = [t for t in threading.enumerate() if t.name.startswith("upseal") and t.ident]
    assert not running, running
    if turn % 4 == 3 and got is None and out[: len(data)] != data:
        assert not any(out[: len(data)]), "plaintext of a batch that is not whole"
    got = None
    out.append(0); out.pop()  # nobody holds it any more
    for name in ("s", "o"):
        if os.path.exists(f"{folder}/{name}"):
            with open(f"{folder}/{name}", "rb") as f:
                assert (f.read() if name == "o" else opener.reader(f).read()) == data
            os.unlink(f"{folder}/{name}")
    left = sorted(os.listdir(folder))
    assert [n for n in left if not n.endswith(".part")] == ["good", "plain"], left
    for name in left:  # only of a second interrupt, in the very clean-up after the first
        if name.endswith(".part"):
            os.unlink(f"{folder}/{name}")
assert opener.open(sealer.seal(b"still")) == b"still"
print(stopped, whole)
"""


def test_a_storm_of_signals_leaves_no_thread_and_no_half_file(tmp_path):
    done = python(STORM, tmp_path, 40)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 5


REENTRANT = """
import signal, sys, io
from upseal import *
from upseal.core.keys import PublicKey

key = PrivateKey.generate()

class Slow(PublicKey):
    # The signal comes in the middle of making a session, which is done under the sealer's lock.
    def wrap(self, secret):
        wrapped = super().wrap(secret)
        if armed:
            signal.raise_signal(signal.SIGUSR1)
        return wrapped

armed = True
sealer, opener = Sealer([Slow(*key.public_key.parts)], Limits(max_messages=3)), Opener([key])
made = []

def handler(*_):
    global armed
    armed = False
    made.append(sealer.seal(b"from the handler"))
    out = io.BytesIO()
    with sealer.writer(out) as writer:
        writer.write(b"and an upload")
    made.append(out.getvalue())

signal.signal(signal.SIGUSR1, handler)
ours = sealer.seal(b"ours")
assert opener.open(ours) == b"ours"
assert opener.open(made[0]) == b"from the handler"
assert opener.reader(io.BytesIO(made[1])).read() == b"and an upload"
for _ in range(10):
    armed = True
    assert opener.open(sealer.seal(b"again")) == b"again"
print(len(made))
"""


def test_a_handler_may_seal_while_it_interrupts_the_sealer_itself():
    # With a plain lock it waited for itself, for ever: `timeout` ends such a child.
    code = "import faulthandler; faulthandler.dump_traceback_later(20, exit=True)\n" + REENTRANT
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 2


def test_a_handler_that_writes_to_the_writer_it_interrupts_is_refused(pair):
    sealer, opener = pair
    errors = []

    class Signalling(io.BytesIO):
        def write(self, data):
            if len(data) > CHUNK:
                signal.raise_signal(signal.SIGUSR1)
            return super().write(data)

    out = Signalling()
    writer = sealer.writer(out)

    def handler(*_):
        for act in (lambda: writer.write(b"in between"), writer.flush):
            try:
                act()
            except RuntimeError as error:
                errors.append(str(error))

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        writer.write(TRUTH)
    finally:
        signal.signal(signal.SIGUSR1, before)
    writer.close()
    assert len(errors) == 6
    assert "in the middle" in errors[0]
    assert drain(opener, out.getvalue(), step=PIECE) == (TRUTH, None)


@pytest.mark.parametrize("last", [False, True])
def test_a_handler_that_aborts_the_writer_it_interrupts_ends_it(pair, last):
    sealer, opener = pair

    class Signalling(io.BytesIO):
        armed = False

        def write(self, data):
            if self.armed:
                signal.raise_signal(signal.SIGUSR1)
            return super().write(data)

    out = Signalling()
    writer = sealer.writer(out)
    before = signal.signal(signal.SIGUSR1, lambda *_: writer.abort())
    try:
        if last:  # its bytes are on their way: what is there is whole and right, or cut off
            writer.write(b"the last chunk")
            out.armed = True
            writer.close()
        else:
            out.armed = True
            with pytest.raises(RuntimeError, match="aborted"):
                writer.write(TRUTH)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert writer.closed
    data, error = drain(opener, out.getvalue(), step=PIECE)
    assert (data, error) == (b"the last chunk", None) if last else type(error) is Truncated


def test_an_interrupt_while_it_waits_for_a_slow_file_ends_the_file_behind(pair):
    # What is written in a thread of its own: the interrupt must not leave it writing on.
    sealer, _ = pair
    go, written = threading.Event(), []

    class Slow(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            written.append(len(data))
            if len(written) == 2:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                go.wait(10)
            return len(data)

    source = Pipe(TRUTH, 1000)
    with pytest.raises(KeyboardInterrupt):
        seal_file(source, Slow(), sealer, threads=2)
    go.set()
    for thread in ours():
        thread.join(10)
    assert not ours()
    assert len(written) == 2


def test_packed_work_interrupted_in_a_share_is_waited_for(monkeypatch, pair):
    # Threads of a call that was interrupted while it started them must not write on.
    sealer, opener = pair
    monkeypatch.setattr("upseal.engine.native.cores", lambda: 4)
    monkeypatch.setattr("upseal.engine.native._SHARE", 1 << 20)
    data = pattern(9 << 20)
    offsets = array("q", range(0, len(data) + 1, 1 << 16))
    start, left = threading.Thread.start, [2]

    def interrupted_start(self):
        start(self)
        left[0] -= 1
        if not left[0]:
            raise Interrupt  # it runs, and nobody has been told

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    out = bytearray(len(data) + (1 << 16))
    with pytest.raises(Interrupt):
        sealer.seal_packed(data, offsets, out=out)
    assert not ours()
    seen = bytes(out)
    left[0] = 100
    batch = sealer.seal_packed(data, offsets)
    assert bytes(out) == seen  # nobody writes to it any more
    left[0] = 2
    with pytest.raises(Interrupt):
        opener.open_packed(batch, out=out)
    assert not ours()
    assert not any(out[: len(data)]), "plaintext of a batch that is not whole"

# SPDX-License-Identifier: Apache-2.0
"""Forks at the worst moment: no nonce twice, no child that hangs, no byte that did not verify."""

import io
import multiprocessing
import os
import threading
from array import array

import pytest
from support import Opener, Pipe, Sealer, engine, key, pattern, upload, wait_for_children

from upseal import OpenError
from upseal.core import header as headers
from upseal.engine.sizes import CHUNK

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
PIECE = 16 * CHUNK
TRUTH = pattern(5 * PIECE + 777)


def forked(child):
    """Runs ``child`` in a fork; its exit code is what that returns, 99 if it raises."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = child()
    finally:
        os._exit(code)


def used(sealed, label):
    """(header, nonce) of an envelope or a batch: the first nonce, and how many follow it."""
    at = len(headers.parse(sealed).raw)
    count = int.from_bytes(sealed[at + 25 : at + 29], "big") if label == "batch" else 1
    return sealed[:at], sealed[at + 1 : at + 25], count


@pytest.mark.parametrize("name", ["native[openssl]", "portable"])
def test_children_forked_while_other_threads_seal_batches_use_no_nonce_of_theirs(name):
    recipient = key("x25519-a")
    sealer, opener = (
        Sealer([recipient.public_key], engine=engine(name)),
        Opener([recipient], engine=engine(name)),
    )
    values = pattern(600_000)
    offsets = array("q", range(0, 600_001, 3000))
    made, done, pids, pipes = [], threading.Event(), [], []

    def busy(way):
        while not done.is_set():
            if way:
                made.append((sealer.seal_packed(values, offsets), "batch"))
            else:
                made.extend((e, "envelope") for e in sealer.seal_many([b"r"] * 50))

    threads = [threading.Thread(target=busy, args=(way,)) for way in (0, 1)]
    for thread in threads:
        thread.start()
    try:
        for number in range(6):
            reading, writing = os.pipe()
            pipes.append(reading)

            def child(writing=writing, number=number):
                batch = sealer.seal_packed(values[: 3000 * 8], offsets[:9])
                many = sealer.seal_many([b"%d" % number] * 5)
                with open(writing, "wb") as pipe:
                    for data in (batch, *many):
                        pipe.write(len(data).to_bytes(4, "big") + data)
                return 0

            pids.append(forked(child))
            os.close(writing)
        theirs = []
        for reading in pipes:
            with open(reading, "rb") as pipe:
                batch, *many = iter(lambda p=pipe: p.read(int.from_bytes(p.read(4), "big")), b"")
            theirs += [(batch, "batch"), *((e, "envelope") for e in many)]
            assert list(opener.open_batch(batch))[7] == values[21000:24000]
            assert len(many) == 5
        codes = wait_for_children(pids, 10)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 6
    fronts = [used(*one) for one in made + theirs if one[1] == "batch"]
    assert len({(h, n[:20]) for h, n, _ in fronts}) == len(fronts)  # what follows is in the last 4
    single = [used(*one)[:2] for one in made + theirs if one[1] == "envelope"]
    assert len(set(single)) == len(single)
    assert not {used(*o)[0] for o in made} & {used(*o)[0] for o in theirs}, (
        "a child goes on in its parent's session"
    )


def test_a_report_that_forks_while_it_is_collected_gives_two_batches_of_their_own(sealer, opener):
    reading, writing = os.pipe()
    children = []

    def reports():
        yield b"one"
        children.append(os.fork())
        yield b"parent" if children[0] else b"child"

    code = 1
    try:
        sealed = sealer.seal_batch(reports())
        if not children[0]:
            os.write(writing, sealed)
            code = 0
    finally:
        if children == [0]:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as pipe:
        theirs = pipe.read()
    assert wait_for_children(children) == [0]
    assert list(opener.open_batch(sealed)) == [b"one", b"parent"]
    assert list(opener.open_batch(theirs)) == [b"one", b"child"]
    assert used(sealed, "batch")[:2] != used(theirs, "batch")[:2]
    assert used(sealed, "batch")[0] != used(theirs, "batch")[0]


class Blocking(io.BytesIO):
    """In the process that made it, each call waits until it is let go; says when it is entered."""

    def __init__(self, data=b""):
        super().__init__(data)
        self.home, self.entered, self.go = os.getpid(), threading.Event(), threading.Event()
        self.armed = False

    def _wait(self):
        if self.armed and os.getpid() == self.home:
            self.entered.set()
            assert self.go.wait(20)

    def write(self, data):
        self._wait()
        return super().write(data)

    def readinto(self, target):
        self._wait()
        return super().readinto(target)


@pytest.mark.parametrize("act", ["write", "flush", "close", "abort", "exit", "forget"])
def test_a_child_forked_while_a_thread_writes_refuses_at_once(sealer, opener, act):
    out = Blocking()
    writer = sealer.writer(out)
    writer.write(b"x" * 10)
    out.armed = True
    thread = threading.Thread(target=writer.write, args=(TRUTH,))
    thread.start()
    assert out.entered.wait(20)

    def child():
        before = out.getvalue()
        acts = {
            "write": lambda: writer.write(b"of the child"),
            "flush": writer.flush,
            "close": writer.close,
            "abort": writer.abort,
            "exit": lambda: writer.__exit__(None),
            "forget": writer.__del__,
        }
        try:
            acts[act]()
            code = 0 if act in ("abort", "forget") else 3
        except RuntimeError as error:
            code = 0 if "forked child" in str(error) and act not in ("abort", "forget") else 4
        for again in (lambda: writer.write(b"x"), lambda: writer.write(TRUTH)):
            try:
                again()
                code = 5
            except (RuntimeError, ValueError):
                pass
        return code if out.getvalue() == before else 6

    pid = forked(child)
    assert wait_for_children([pid], 10) == [0]
    out.go.set()
    thread.join()
    writer.close()
    assert opener.reader(io.BytesIO(out.getvalue())).read() == b"x" * 10 + TRUTH


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_child_forked_while_a_thread_reads_does_not_hang_and_reads_no_wrong_byte(
    sealer, opener, kind
):
    source = Blocking(upload(sealer, TRUTH))
    if kind == "pipe":
        source.seekable = lambda: False
    reader = opener.reader(source)
    source.armed = True
    got = []
    thread = threading.Thread(target=lambda: got.append(reader.read()))
    thread.start()
    assert source.entered.wait(20)

    def child():
        try:
            mine = reader.read(1000)
        except OpenError:  # of a pipe, some bytes are with the parent's thread
            return 0 if kind == "pipe" else 4
        return 0 if mine == TRUTH[:1000] and reader.tell() == 1000 else 3

    pid = forked(child)
    assert wait_for_children([pid], 10) == [0]
    source.go.set()
    thread.join()
    assert got == [TRUTH]


def test_parent_and_child_may_read_one_file_by_turns(sealer, opener, tmp_path):
    # They share the descriptor's position: the reader must not believe that it knows it.
    (tmp_path / "sealed").write_bytes(upload(sealer, TRUTH))
    with open(tmp_path / "sealed", "rb", buffering=0) as file:
        reader = opener.reader(file)
        assert reader.read(PIECE) == TRUTH[:PIECE]
        pid = forked(lambda: 0 if reader.read() == TRUTH[PIECE:] else 3)
        assert wait_for_children([pid]) == [0]
        assert reader.read() == TRUTH[PIECE:]


def test_of_a_pipe_parent_and_child_get_what_is_true_or_an_error(sealer, opener):
    reader = opener.reader(Pipe(upload(sealer, TRUTH)))
    assert reader.read(10) == TRUTH[:10]
    pid = forked(lambda: 0 if reader.read() == TRUTH[10:] else 3)
    assert wait_for_children([pid]) == [0]
    assert reader.read() == TRUTH[10:]  # of memory: each process has its own


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_has_keys_is_not_sent_to_another_process(sealer, opener, key, method):
    how = multiprocessing.get_context(method)
    writer = sealer.writer(io.BytesIO())
    reader = opener.reader(io.BytesIO(upload(sealer, b"")))
    for thing in (sealer, opener, writer, reader, key):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            how.Process(target=print, args=(thing,)).start()
    writer.abort()


def go_on(writer):
    """In a child of multiprocessing."""
    try:
        writer.write(b"of the child")
    except RuntimeError:
        os._exit(7)
    os._exit(1)


def test_a_writer_given_to_a_forked_process_refuses_there(sealer, opener):
    out = io.BytesIO()
    writer = sealer.writer(out)
    process = multiprocessing.get_context("fork").Process(target=go_on, args=(writer,))
    process.start()
    process.join(10)
    assert process.exitcode == 7
    process.close()
    writer.close()
    assert opener.reader(io.BytesIO(out.getvalue())).read() == b""


def test_a_file_written_behind_is_not_written_on_in_a_forked_child(sealer, opener, tmp_path):
    from upseal.core.behind import WriteBehind

    with open(tmp_path / "out", "wb") as out, WriteBehind(out) as behind:
        behind.write(b"parent")

        def child():
            try:  # its thread is not there: after four buffers nobody would take any
                for _ in range(5):
                    behind.write(bytes(1 << 20))
            except RuntimeError:
                return 0
            return 3

        assert wait_for_children([forked(child)], 10) == [0]
    assert (tmp_path / "out").read_bytes() == b"parent"

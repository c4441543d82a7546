# SPDX-License-Identifier: Apache-2.0
"""Threads that share what they should not: a writer, a reader, a file, a batch."""

import io
import struct
import sys
import threading
from array import array
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from support import Opener, Pipe, Sealer, drain, pattern, upload

from upseal import Truncated, open_file, seal_file
from upseal.engine.sizes import CHUNK

PIECE = 16 * CHUNK
TRUTH = b"".join(struct.pack(">Q", i) for i in range(3 * PIECE // 8)) + b"the end."


@pytest.fixture(autouse=True)
def quick_turns():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(work, count):
    """``work(0)`` to ``work(count - 1)`` in a thread each, begun at once; what they gave."""
    start = threading.Barrier(count)

    def run(number):
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_writes_of_many_threads_go_in_whole_and_none_is_lost(engine, key):
    class Recording:
        def __init__(self):
            self.sealed = []

        def __getattr__(self, name):
            return getattr(engine, name)

        def seal_chunks(self, key, first, last, data, out):
            self.sealed += range(first, first + len(data) // CHUNK + last)
            return engine.seal_chunks(key, first, last, data, out)

    recording, out = Recording(), io.BytesIO()
    writer = Sealer([key.public_key], engine=recording).writer(out)
    sizes = [100, PIECE, CHUNK, 70_001, PIECE + 5, 3, 2 * PIECE]

    def work(number):
        for i, size in enumerate(sizes):
            block = struct.pack(">HHI", number, i, size) + bytes([number * 16 + i]) * size
            assert writer.write(block) == len(block)
            if i % 3 == 0:
                writer.flush()

    together(work, 6)
    writer.close()
    data, error = drain(Opener([key], engine=engine), out.getvalue(), step=PIECE)
    assert error is None
    assert recording.sealed == list(range(len(data) // CHUNK + 1))  # each once, in order
    seen, at = Counter(), 0
    while at < len(data):
        number, i, size = struct.unpack_from(">HHI", data, at)
        assert data[at + 8 : at + 8 + size] == bytes([number * 16 + i]) * size
        seen[number, i] += 1
        at += 8 + size
    assert seen == {(n, i): 1 for n in range(6) for i in range(len(sizes))}


def test_closing_while_others_write_gives_what_was_taken_or_a_cut_upload(sealer, opener):
    for act in ("close", "abort"):
        for _ in range(8):
            out = io.BytesIO()
            writer = sealer.writer(out)

            def work(number, writer=writer, act=act):
                if number < 2:
                    getattr(writer, act)()  # two at once: nobody is told off for that
                    return 0
                taken = 0
                with suppress(ValueError, RuntimeError):
                    for _ in range(4):
                        taken += writer.write(bytes([number]) * (PIECE // 2 + 1))
                return taken

            taken = together(work, 4)
            assert writer.closed
            data, error = drain(opener, out.getvalue(), step=PIECE)
            if act == "close":
                assert error is None
                assert [data.count(bytes([n])) for n in (2, 3)] == taken[2:]
            else:
                assert type(error) is Truncated


@pytest.mark.parametrize("wrap", [io.BytesIO, Pipe])
def test_reads_of_many_threads_give_every_byte_once(sealer, opener, wrap):
    reader = opener.reader(wrap(upload(sealer, TRUTH)))

    def work(number):
        got = []
        while True:
            if number % 2:
                piece = reader.read(8 * 1000)
            else:
                room = bytearray(8 * 3000)
                piece = bytes(room[: reader.readinto(room)])
            if not piece:
                return got
            got.append(piece)

    pieces = [piece for got in together(work, 6) for piece in got]
    ends = [piece for piece in pieces if piece.endswith(b"the end.")]
    assert len(ends) == 1
    pieces.sort()  # by the number that each begins with
    assert b"".join(pieces) == TRUTH
    assert reader.read() == b""


def test_seeks_and_reads_of_many_threads_never_give_a_byte_of_another_place(sealer, opener):
    reader = opener.reader(io.BytesIO(upload(sealer, TRUTH)))

    def work(number):
        for i in range(60):
            reader.seek(8 * ((number * 7919 + i * 104729) % (len(TRUTH) // 8 - 1)))
            piece = reader.read(8 * 20)
            at = int.from_bytes(piece[:8], "big") * 8
            assert piece == TRUTH[at : at + len(piece)] or piece == b"the end."

    together(work, 5)


def test_readers_may_share_a_file_and_move_it_under_each_other(sealer, opener, tmp_path):
    (tmp_path / "s").write_bytes(upload(sealer, TRUTH))
    for buffering in (0, -1):
        with open(tmp_path / "s", "rb", buffering) as file:
            first, second = (opener.reader(file) for _ in range(2) if not file.seek(0))
            got = [b"", b""]
            for _ in range(6):
                for i, reader in enumerate((first, second)):
                    got[i] += reader.read(CHUNK * 11)
                    file.seek(17)  # whoever else has it
            assert got == [TRUTH, TRUTH]


def test_a_batch_is_read_by_many_threads(sealer, opener):
    reports = [b"%d" % i * (i % 50) for i in range(400)]
    batch = opener.open_batch(sealer.seal_batch(reports))

    def work(number):
        assert list(batch) == reports
        assert batch[number::5] == reports[number::5]
        return batch == reports

    assert all(together(work, 6))


def test_everything_at_once_through_one_sealer_and_one_opener(engine, key, tmp_path):
    sealer, opener = Sealer([key.public_key], engine=engine), Opener([key], engine=engine)
    data = pattern(3 * PIECE)
    (tmp_path / "plain").write_bytes(data)
    offsets = array("q", range(0, 90_001, 300))

    def work(number):
        names = [tmp_path / f"{what}{number}" for what in ("sealed", "opened")]
        assert seal_file(tmp_path / "plain", names[0], sealer, threads=2) == len(data)
        assert open_file(names[0], names[1], opener, threads=2) == len(data)
        assert names[1].read_bytes() == data
        for _ in range(5):
            values, _ = opener.open_packed(sealer.seal_packed(data[:90_000], offsets))
            assert values == data[:90_000]
            many = sealer.seal_many_packed(data[:90_000], offsets)
            assert opener.open_many_packed(*many)[0] == data[:90_000]

    together(work, 4)


class NoMore(threading.Thread):
    """The system gives only so many threads."""

    left = 0

    def start(self):
        if NoMore.left <= 0:
            raise RuntimeError("can't start new thread")
        NoMore.left -= 1
        super().start()


@pytest.mark.parametrize("left", [0, 1])
def test_where_there_are_no_more_threads_those_there_are_will_do(
    engine, key, tmp_path, monkeypatch, left
):
    # At a limit of the system; and, from Python 3.12 on, in what is called while Python ends.
    sealer, opener = Sealer([key.public_key], engine=engine), Opener([key], engine=engine)
    data = pattern(9 << 20)
    (tmp_path / "plain").write_bytes(data)
    monkeypatch.setattr(threading, "Thread", NoMore)
    monkeypatch.setattr("upseal.engine.native.cores", lambda: 4, raising=False)
    for call in (
        lambda: seal_file(tmp_path / "plain", tmp_path / "s", sealer, threads=4),
        lambda: open_file(tmp_path / "s", tmp_path / "o", opener, threads=4),
    ):
        NoMore.left = left
        assert call() == len(data)
    assert (tmp_path / "o").read_bytes() == data
    sealed, opened = io.BytesIO(), io.BytesIO()
    NoMore.left = left
    seal_file(Pipe(data), sealed, sealer, threads=4)
    NoMore.left = left
    open_file(Pipe(sealed.getvalue()), opened, opener, threads=4)
    assert opened.getvalue() == data
    offsets = array("q", range(0, len(data) + 1, 1 << 16))
    NoMore.left = left
    batch = sealer.seal_packed(data, offsets)
    NoMore.left = left
    assert opener.open_packed(batch)[0] == data


def test_a_forgotten_reader_waits_for_nobody(engine, key):
    """Whoever collects garbage would wait for ever, in the middle of something else."""
    out = io.BytesIO()
    with Sealer([key.public_key], engine=engine).writer(out) as writer:
        writer.write(b"content")
    out.seek(0)
    reader = [Opener([key], engine=engine).reader(out)]
    assert reader[0].read(1) == b"c"
    # As an interrupt leaves it, between taking a lock and the `with` that gives it back.
    other = threading.Thread(target=reader[0]._turn.acquire)
    other.start()
    other.join()
    forgotten = threading.Event()

    def forget():
        reader.clear()
        forgotten.set()

    threading.Thread(target=forget, daemon=True).start()
    assert forgotten.wait(30)

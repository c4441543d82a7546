# SPDX-License-Identifier: Apache-2.0
"""seal_file and open_file: paths, files and pipes; and what stands under the target's name."""

import gzip
import io
import os
import stat
import threading

import pytest
from support import Opener, Pipe, Sealer, key, pattern

from upseal import OpenError, Truncated, open_file, seal_file
from upseal.engine.sizes import CHUNK

PIECE = 32 * CHUNK
SIZES = [0, 1, CHUNK - 1, CHUNK, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 100]
DATA = pattern(5 * PIECE + 100)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "plain").write_bytes(DATA)
    return tmp_path


@pytest.fixture
def sealed(folder, sealer):
    seal_file(folder / "plain", folder / "sealed", sealer, b"c")
    return folder / "sealed"


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("threads", [None, 1, 2, 4])
@pytest.mark.parametrize("size", SIZES)
def test_a_file_comes_back_whatever_its_size_and_the_threads(
    tmp_path, sealer, opener, size, threads
):
    (tmp_path / "a").write_bytes(pattern(size))
    assert seal_file(tmp_path / "a", str(tmp_path / "b"), sealer, b"c", threads) == size
    assert open_file(str(tmp_path / "b"), tmp_path / "c", opener, b"c", threads) == size
    assert (tmp_path / "c").read_bytes() == pattern(size)
    assert names(tmp_path) == ["a", "b", "c"]
    # What threads sealed in any order, one reader opens.
    assert opener.reader(io.BytesIO((tmp_path / "b").read_bytes()), b"c").readall() == pattern(size)


def test_keys_can_be_given_without_a_sealer_or_opener(folder, key):
    seal_file(folder / "plain", folder / "s", [key.public_key])
    open_file(folder / "s", folder / "o", [key])
    assert (folder / "o").read_bytes() == DATA


@pytest.mark.parametrize("buffering", [0, -1])
def test_file_objects_are_read_and_written_from_where_they_stand(folder, sealer, opener, buffering):
    (folder / "plain").write_bytes(b"front" + DATA)
    with (
        open(folder / "plain", "rb", buffering) as source,
        open(folder / "s", "wb", buffering) as target,
    ):
        source.read(5)
        assert seal_file(source, target, sealer) == len(DATA)
        assert source.tell() == 5 + len(DATA)
        target.write(b"behind")  # the file stands at the end of what was sealed
    whole = (folder / "s").read_bytes()
    assert whole.endswith(b"behind")
    (folder / "s").write_bytes(b"head" + whole[:-6])
    with (
        open(folder / "s", "rb", buffering) as source,
        open(folder / "o", "wb", buffering) as target,
    ):
        source.read(4)
        target.write(b"before ")
        assert open_file(source, target, opener) == len(DATA)
    assert (folder / "o").read_bytes() == b"before " + DATA


def test_bytes_in_memory_and_pipes_will_do(sealer, opener):
    for wrap in (io.BytesIO, Pipe, lambda d: Pipe(d, 1000)):
        out, back = io.BytesIO(), io.BytesIO()
        assert seal_file(wrap(DATA), out, sealer) == len(DATA)
        assert open_file(wrap(out.getvalue()), back, opener) == len(DATA)
        assert back.getvalue() == DATA


def test_everything_works_through_pipes_of_the_kernel(sealer, opener):
    pipes = [os.pipe() for _ in range(3)]
    (r1, w1), (r2, w2), (r3, w3) = (
        (os.fdopen(r, "rb", 0), os.fdopen(w, "wb", 0)) for r, w in pipes
    )

    def feed():
        with w1:
            data = memoryview(DATA)
            while data:
                data = data[w1.write(data) :]

    def seal():
        with w2:
            seal_file(r1, w2, sealer)

    def unseal():
        with w3:
            open_file(r2, w3, opener)

    threads = [threading.Thread(target=f) for f in (feed, seal, unseal)]
    for thread in threads:
        thread.start()
    got = r3.readall()
    for thread in threads:
        thread.join()
    for end in (r1, r2, r3):
        end.close()
    assert got == DATA


def test_a_compressed_file_is_read_and_written_through_its_own_object(folder, sealer, opener):
    # gzip's files have the fileno() of the compressed file: it must not be used behind their back.
    with gzip.open(folder / "x.gz", "wb") as file:
        file.write(DATA)
    with gzip.open(folder / "x.gz", "rb") as file:
        assert seal_file(file, folder / "s", sealer) == len(DATA)
    with gzip.open(folder / "y.gz", "wb") as file:
        open_file(folder / "s", file, opener)
    with gzip.open(folder / "y.gz", "rb") as file:
        assert file.read() == DATA
    with gzip.open(folder / "z.gz", "wb") as file:
        seal_file(folder / "plain", file, sealer)
    with gzip.open(folder / "z.gz", "rb") as file:
        open_file(file, folder / "o", opener)
    assert (folder / "o").read_bytes() == DATA


def test_a_source_that_does_not_block_is_refused_and_not_cut_short(sealer):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    out = io.BytesIO()
    with open(reading, "rb", 0) as source, open(writing, "wb", 0) as feed:
        feed.write(b"the first part; more is to come")
        with pytest.raises(BlockingIOError):
            seal_file(source, out, sealer)


# -- failures ---------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("place", [0, 100, 150, 3000, -1])
def test_a_failed_opening_leaves_nothing_and_changes_nothing(
    folder, sealed, opener, place, threads
):
    damaged = bytearray(sealed.read_bytes())
    damaged[place] ^= 1
    sealed.write_bytes(damaged)
    before = names(folder)
    with pytest.raises(OpenError):
        open_file(sealed, folder / "new", opener, b"c", threads)
    assert names(folder) == before
    (folder / "old").write_bytes(b"precious")
    with pytest.raises(OpenError):
        open_file(sealed, folder / "old", opener, b"c", threads)
    assert (folder / "old").read_bytes() == b"precious"
    assert names(folder) == sorted([*before, "old"])


def test_a_cut_upload_is_truncated_by_path_and_by_pipe(folder, sealed, opener):
    whole = sealed.read_bytes()
    for length in (0, 3, 50, 186, 187, 190, 187 + 3 * (CHUNK + 16), 187 + 3 * (CHUNK + 16) + 15):
        sealed.write_bytes(whole[:length])
        for source in (sealed, Pipe(whole[:length])):
            with pytest.raises(Truncated):
                open_file(source, folder / "o", opener, b"c")
    assert not (folder / "o").exists()


def test_into_a_file_object_goes_only_what_verified(folder, sealed, opener):
    damaged = bytearray(sealed.read_bytes())
    damaged[187 + 100 * (CHUNK + 16)] ^= 1
    out = io.BytesIO()
    with pytest.raises(OpenError):
        open_file(Pipe(bytes(damaged)), out, opener, b"c")
    assert DATA.startswith(out.getvalue())
    assert len(out.getvalue()) % CHUNK == 0


def test_a_failed_sealing_leaves_nothing_and_changes_nothing(folder, sealer):
    (folder / "old").write_bytes(b"precious")

    def stop(done, total):
        raise KeyboardInterrupt

    for target in ("old", "new"):
        for threads in (1, 4):
            with pytest.raises(KeyboardInterrupt):
                seal_file(folder / "plain", folder / target, sealer, threads=threads, progress=stop)
    with pytest.raises(FileNotFoundError):
        seal_file(folder / "missing", folder / "old", sealer)
    with pytest.raises(IsADirectoryError):
        seal_file(folder, folder / "old", sealer)
    with pytest.raises(FileNotFoundError):
        seal_file(folder / "plain", folder / "no" / "such", sealer)
    with pytest.raises(ValueError, match="threads"):
        seal_file(folder / "plain", folder / "old", sealer, threads=0)
    with pytest.raises(TypeError):
        seal_file(folder / "plain", folder / "old", sealer, context="text")
    assert (folder / "old").read_bytes() == b"precious"
    assert names(folder) == ["old", "plain"]


def test_a_source_that_shrinks_meanwhile_is_an_os_error(folder, sealer):
    # Of both ways: pieces by threads, and as a stream.
    for target in (folder / "s", io.BytesIO()):
        (folder / "plain").write_bytes(DATA)

        def cut(done, total):
            os.truncate(folder / "plain", PIECE + 5)

        with pytest.raises(OSError, match="shorter"):
            seal_file(folder / "plain", target, sealer, threads=1, progress=cut)
    assert names(folder) == ["plain"]


def test_what_is_added_to_a_source_meanwhile_is_left_for_the_next_time(folder, sealer, opener):
    for target in (folder / "s", io.BytesIO()):
        (folder / "plain").write_bytes(DATA)
        times = iter(range(3))  # not for ever, or a sealer that follows would never end

        def grow(done, total, times=times):
            if next(times, None) is not None:
                with open(folder / "plain", "ab") as log:
                    log.write(b"more")

        assert seal_file(folder / "plain", target, sealer, threads=1, progress=grow) == len(DATA)
        data = target.getvalue() if isinstance(target, io.BytesIO) else target.read_bytes()
        assert opener.reader(io.BytesIO(data)).readall() == DATA


def test_a_sealed_file_that_shrinks_while_it_is_opened_is_truncated(folder, sealed, opener):
    def cut(done, total):
        os.truncate(sealed, 2 * PIECE)

    with pytest.raises(OpenError):
        open_file(sealed, folder / "o", opener, b"c", threads=1, progress=cut)
    assert not (folder / "o").exists()


# -- the target -------------------------------------------------------------------


def test_an_existing_target_is_replaced_by_the_whole(folder, sealer, opener):
    old = folder / "old"
    old.write_bytes(b"x" * 10_000_000)
    with open(old, "rb") as still_open:
        seal_file(folder / "plain", old, sealer)
        assert still_open.read(1) == b"x"  # replaced, not overwritten
    open_file(old, folder / "plain", opener)
    assert (folder / "plain").read_bytes() == DATA
    open_file(old, old, opener)  # even by itself
    assert old.read_bytes() == DATA


def test_nothing_stands_under_the_name_before_the_whole_does(folder, sealer):
    seen = []
    seal_file(
        folder / "plain",
        folder / "s",
        sealer,
        progress=lambda *_: seen.append((folder / "s").exists()),
    )
    assert seen
    assert not any(seen)


def test_a_symlink_stays_and_its_file_is_replaced(folder, sealer):
    (folder / "real").write_bytes(b"old")
    (folder / "link").symlink_to("real")
    (folder / "dangling").symlink_to("made")
    for link, real in (("link", "real"), ("dangling", "made")):
        seal_file(folder / "plain", folder / link, sealer)
        assert (folder / link).is_symlink()
        assert (folder / real).read_bytes().startswith(b"USL")


def test_a_new_target_has_the_permissions_that_open_would_give(folder, sealer, opener):
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o027, 0o640)):
        before = os.umask(mask)
        try:
            seal_file(folder / "plain", folder / "s", sealer)
            open_file(folder / "s", folder / "o", opener)
        finally:
            os.umask(before)
        for name in ("s", "o"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == mode
            (folder / name).unlink()


def test_a_replaced_target_keeps_its_permissions(folder, sealer):
    (folder / "s").write_bytes(b"")
    os.chmod(folder / "s", 0o600)
    seal_file(folder / "plain", folder / "s", sealer)
    assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o600


def test_a_device_is_written_and_not_replaced(folder, sealed, sealer, opener):
    before = os.stat("/dev/null").st_mode
    assert seal_file(folder / "plain", "/dev/null", sealer) == len(DATA)
    assert open_file(sealed, "/dev/null", opener, b"c") == len(DATA)
    assert os.stat("/dev/null").st_mode == before


def test_a_named_pipe_is_written_and_not_replaced(folder, sealer, opener):
    os.mkfifo(folder / "fifo")
    thread = threading.Thread(target=seal_file, args=(folder / "plain", folder / "fifo", sealer))
    thread.start()
    open_file(folder / "fifo", folder / "o", opener)
    thread.join()
    assert (folder / "o").read_bytes() == DATA
    assert stat.S_ISFIFO((folder / "fifo").stat().st_mode)


def test_a_file_that_appends_is_appended_to(folder, sealer, opener):
    # With O_APPEND, pwrite ignores its offset: pieces must not be written out of order.
    for before in (b"", b"already here"):
        (folder / "s").write_bytes(before)
        with open(folder / "s", "ab") as target:
            seal_file(folder / "plain", target, sealer, threads=4)
        whole = (folder / "s").read_bytes()
        assert whole.startswith(before)
        assert opener.reader(io.BytesIO(whole[len(before) :])).readall() == DATA


@pytest.mark.parametrize("threads", [1, 4])
def test_progress_goes_up_to_the_whole(folder, sealer, opener, threads):
    sealing, opening, piping = [], [], []
    seal_file(
        folder / "plain",
        folder / "s",
        sealer,
        threads=threads,
        progress=lambda *a: sealing.append(a),
    )
    open_file(
        folder / "s", folder / "o", opener, threads=threads, progress=lambda *a: opening.append(a)
    )
    pipe = Pipe((folder / "s").read_bytes())
    open_file(pipe, io.BytesIO(), opener, progress=lambda *a: piping.append(a))
    for run, total in ((sealing, len(DATA)), (opening, len(DATA)), (piping, None)):
        assert len(run) > 2
        done = [d for d, _ in run]
        assert done == sorted(done)
        assert done[-1] == len(DATA)
        assert {t for _, t in run} == {total}


def test_one_sealer_serves_files_and_reports(folder, sealer, opener):
    seal_file(folder / "plain", folder / "s", sealer)
    front = (folder / "s").read_bytes()[:130]
    assert sealer.seal(b"")[:130] == front
    assert isinstance(sealer, Sealer)
    assert isinstance(opener, Opener)
    with pytest.raises(OpenError):
        open_file(folder / "s", folder / "o", [key("x25519-b")])


class Full(io.RawIOBase):
    """A target that takes some bytes and then has no room."""

    def __init__(self, room):
        self.room = room

    def writable(self):
        return True

    def write(self, data):
        if self.room < len(data):
            raise OSError(28, "no space left")
        self.room -= len(data)
        return len(data)


@pytest.mark.parametrize("room", [1_000, 600_000, 2_300_000])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_target_that_fails_is_an_error_also_from_the_writing_thread(sealer, room, threads):
    with pytest.raises(OSError, match="no space left"):
        seal_file(Pipe(DATA), Full(room), sealer, threads=threads)

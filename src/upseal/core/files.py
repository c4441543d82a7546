# SPDX-License-Identifier: Apache-2.0
"""Whole files: sealed and opened by several threads where both ends are files, else as streams."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from operator import index
from pathlib import Path
from typing import IO, Any, TypeAlias

from upseal.core.fileobjects import check_count
from upseal.core.keys import PublicKey
from upseal.core.opener import KeyOpener, Opener
from upseal.core.positioned import ShortError, naming, read_at, read_up_to, write_at
from upseal.core.reserve import reserve
from upseal.core.sealer import Sealer
from upseal.core.session import Session
from upseal.core.uploads import (
    FRONT_MAX,
    PIECE,
    find_upload,
    plain_size,
    sealed_size,
    start_upload,
)
from upseal.core.writer import SealingWriter, write_all
from upseal.engine.buffers import Buffer, as_bytes
from upseal.engine.machine import cores
from upseal.engine.sizes import CHUNK, CHUNKS_MAX, SEALED_CHUNK, TAG
from upseal.engine.threads import share
from upseal.errors import OpenError, Truncated

File: TypeAlias = str | os.PathLike[str] | IO[bytes]
Progress: TypeAlias = Callable[[int, int | None], None]

_SHARE = 64
"""Chunks that a thread takes at a time: not few, since threads meet at each call to the system."""
_BUFFERED = (io.BufferedReader, io.BufferedWriter, io.BufferedRandom)


def seal_file(
    source: File,
    target: File,
    recipients: Sequence[PublicKey] | Sealer,
    context: Buffer = b"",
    threads: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Seals one file, or pipe, as an upload.

    A target given by its path is written under a temporary name beside it and renamed when it is
    whole, so no half file ever stands under the name; it replaces what was there. As with ``cp``,
    it is for the caller to sync the disk.

    Args:
        source: a path, or a binary file to read from.
        target: a path, or a binary file to write to.
        recipients: public keys, or a `Sealer` that has them.
        context: bytes that the opener must name as well.
        threads: None for one a core, up to 4. Regular files are split between them; with pipes,
            two are used at most, to read and to write at once.
        progress: called with (bytes sealed, bytes in all or None), never from two threads at once.

    Returns:
        Bytes of plaintext sealed.

    Raises:
        OSError: reading or writing failed, or the source became shorter meanwhile. What is added
            to its end while it is sealed (a log) is left for the next time.
    """
    sealer = recipients if isinstance(recipients, Sealer) else Sealer(recipients)
    bound = as_bytes(context, "context")
    return _seal(source, target, lambda: sealer._take(1), bound, threads, progress or _silent)


def seal_file_kept(
    source: File,
    target: File,
    recipients: Sequence[PublicKey],
    context: Buffer = b"",
    progress: Progress | None = None,
) -> tuple[int, bytes]:
    """As `seal_file`, in a session of its own; not for users of the library.

    Returns:
        Bytes of plaintext sealed, and the session's secret: who has it can open this upload.
    """
    session, secret = Sealer(recipients)._take_kept()
    bound = as_bytes(context, "context")
    return _seal(source, target, lambda: session, bound, None, progress or _silent), secret


def _seal(
    source: File,
    target: File,
    take: Callable[[], Session],
    bound: bytes,
    threads: int | None,
    report: Progress,
) -> int:
    most = _thread_count(threads)
    with _source(source) as reading, replacing(target) as writing:
        size = _regular_size(reading)
        session = take()
        if size is None or _regular_size(writing) is None or not _at_start(writing):
            with (
                _behind(writing, most) as out,
                SealingWriter(out, session.header, session.keys, bound) as writer,
            ):
                return _copy(reading, writer, size, report)
        front, key = start_upload(session.header, session.keys, bound)
        engine, offset = session.keys.engine, reading.tell()
        with naming(writing.name):
            reserve(writing.fileno(), len(front) + sealed_size(size))
        write_at(writing, memoryview(front), 0)

        def seal_piece(piece: _Piece) -> None:
            data, out = piece.plain, piece.sealed
            read_at(reading, data, offset + piece.first * CHUNK)
            engine.seal_chunks(key, piece.first, piece.last, data, out)
            write_at(writing, out, len(front) + piece.first * SEALED_CHUNK)

        _in_pieces(size, most, seal_piece, report)
        reading.seek(offset + size)
        writing.seek(len(front) + sealed_size(size))
        return size


def open_file(
    source: File,
    target: File,
    keys: Iterable[KeyOpener] | Opener,
    context: Buffer = b"",
    threads: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Opens an upload from one file, or pipe, into another.

    A target given by its path is written under a temporary name beside it and renamed only when
    the whole has verified; on failure nothing is left. Into a file object goes what has verified,
    chunk by chunk: on an error the caller must throw away what came before it.

    Args:
        source: a path, or a binary file to read from.
        target: a path, or a binary file to write to.
        keys: private keys, or an `Opener` that has them.
        context: as in `seal_file`.
        threads: as in `seal_file`.
        progress: as in `seal_file`.

    Returns:
        Bytes of plaintext opened.

    Raises:
        OpenError: the upload is damaged, forged, cut off, or for somebody else.
        OSError: reading or writing failed.
    """
    opener = keys if isinstance(keys, Opener) else Opener(keys)
    bound = as_bytes(context, "context")
    report, most = progress or _silent, _thread_count(threads)
    with _source(source) as reading:
        sealed = _regular_size(reading)
        if sealed is None or not isinstance(target, (str, os.PathLike)):
            with (
                opener.reader(reading, bound) as reader,
                replacing(target) as writing,
                _behind(writing, most) as out,
            ):
                return _copy(reader, out, reader.size, report)
        offset = reading.tell()
        found = find_upload(read_up_to(reading, FRONT_MAX), opener._session_of, bound)
        size = plain_size(max(0, sealed - found.size))
        if size // CHUNK >= CHUNKS_MAX:
            raise OpenError
        engine, key = found.keys.engine, found.key

        with replacing(target) as writing:

            def open_piece(piece: _Piece) -> None:
                try:
                    at = offset + found.size + piece.first * SEALED_CHUNK
                    read_at(reading, piece.sealed, at)
                except ShortError:
                    raise Truncated from None
                if not engine.open_chunks(
                    key, piece.first, piece.last, piece.sealed, piece.plain, private=True
                ):
                    raise OpenError
                write_at(writing, piece.plain, piece.first * CHUNK)

            with naming(writing.name):
                reserve(writing.fileno(), size)
            _in_pieces(size, most, open_piece, report)
        return size


class _Piece:
    """Some chunks in a row, and the memory for them."""

    __slots__ = ("_plain", "_sealed", "first", "last", "plain", "sealed")

    def __init__(self) -> None:
        self._plain = memoryview(bytearray(_SHARE * CHUNK))
        self._sealed = memoryview(bytearray(_SHARE * SEALED_CHUNK))

    def move(self, number: int, size: int) -> int:
        """Becomes piece ``number`` of an upload of ``size`` bytes; returns its length."""
        self.first = number * _SHARE
        length = min(_SHARE * CHUNK, size - self.first * CHUNK)
        self.last = length < _SHARE * CHUNK
        self.plain = self._plain[:length]
        self.sealed = self._sealed[: length + TAG * (length // CHUNK + self.last)]
        return length


def _in_pieces(size: int, threads: int, work: Callable[[_Piece], None], report: Progress) -> None:
    """Does ``work`` once for every piece, in any order; the first error ends it all."""
    pieces = size // (_SHARE * CHUNK) + 1
    numbers = iter(range(pieces))
    lock = threading.Lock()
    process = os.getpid()
    done = 0
    stop = False

    def run() -> None:
        nonlocal done, stop
        piece = _Piece()
        while True:
            with lock:
                number = next(numbers, None)
                if number is None or stop:
                    return
            try:
                if os.getpid() != process:  # forked by ``report``: a chunk is sealed once
                    raise RuntimeError("an upload cannot go on in a forked child: start one there")
                length = piece.move(number, size)
                work(piece)
                with lock:
                    done += length
                    report(done, size)
            except BaseException:
                stop = True
                raise

    def end() -> None:
        nonlocal stop
        stop = True

    share(run, min(threads, pieces), end)


@contextmanager
def _behind(target: Any, threads: int) -> Iterator[Any]:
    """The target, written to by a second thread if there may be one."""
    if threads > 1:
        from upseal.core.behind import WriteBehind

        with WriteBehind(target) as behind:
            yield behind
    else:
        yield target
    if hasattr(target, "flush"):
        target.flush()


def _thread_count(threads: int | None) -> int:
    """How many to use.

    Raises:
        TypeError: it is no whole number.
        ValueError: less than one.
    """
    if threads is None:
        return cores()
    if index(threads) < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    return threads


def _copy(source: Any, target: Any, total: int | None, report: Progress) -> int:
    """Through one buffer, from a reader to a writer."""
    buffer = memoryview(bytearray(PIECE * CHUNK))
    done = 0
    while total is None or done < total:
        room = buffer if total is None else buffer[: total - done]
        count = source.readinto(room)
        if count is None:  # no end, only nothing yet: what went on here would cut the file off
            raise BlockingIOError("the source must be a file that blocks until it has data")
        check_count(count, len(room))
        if not count:
            if total is not None:
                raise ShortError
            break
        write_all(target, room[:count])
        done += count
        report(done, total)
    return done


@contextmanager
def _source(source: File) -> Iterator[Any]:
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb", buffering=0) as opened:
            yield opened
    else:
        yield source


@contextmanager
def replacing(target: File) -> Iterator[Any]:
    """A file to write, under a temporary name beside it until the block ends well.

    What is no path is the caller's own file, and handed through.
    """
    if not isinstance(target, (str, os.PathLike)):
        yield target
        return
    path = Path(os.path.realpath(target))
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):  # a device or named pipe cannot be replaced
            with open(path, "wb", buffering=0) as special:
                yield special
            return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    process = os.getpid()
    try:
        with open(temporary, "xb", buffering=0) as opened:
            yield opened
        with suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        if os.getpid() == process:  # in a forked child, it is still its parent's
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        raise


def _regular_size(file: Any) -> int | None:
    """Bytes from where the file stands to its end, if its descriptor may be used behind its back.

    It may for plain files of the operating system alone: other objects (of gzip, say) have a
    descriptor too, but give out something else than what stands there.
    """
    raw = file.raw if type(file) in _BUFFERED else file  # a subclass may read something else
    if type(raw) is not io.FileIO or not hasattr(os, "pread"):
        return None
    try:
        status = os.fstat(raw.fileno())
        return max(0, status.st_size - int(file.tell())) if stat.S_ISREG(status.st_mode) else None
    except OSError:
        return None


def _at_start(file: Any) -> bool:
    """Whether pieces may be written to an empty file in any order: not where writes append."""
    import fcntl  # not on Windows, where nothing gets here: it has no pread

    appends = fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_APPEND
    return bool(file.tell() == 0) and os.fstat(file.fileno()).st_size == 0 and not appends


def _silent(done: int, total: int | None) -> None:
    """For callers who do not ask."""

# SPDX-License-Identifier: Apache-2.0
"""Opening an upload while it is read."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from operator import index
from typing import IO, TypeVar

from upseal.core.copies import refuse
from upseal.core.fileobjects import check_count, readinto_of
from upseal.core.header import Header
from upseal.core.session import SessionKeys
from upseal.core.uploads import FRONT_MAX, PIECE, find_upload, plain_size
from upseal.engine.buffers import Buffer, view
from upseal.engine.sizes import CHUNK, CHUNKS_MAX, SEALED_CHUNK, TAG
from upseal.errors import OpenError, Truncated

_T = TypeVar("_T")
_FROM_MEMORY = 64
"""Chunks opened in one go straight from memory to where they belong, by way of no buffer."""
_PART = 64 * CHUNK
"""Of a pipe's bytes, how many are opened into one object."""


class OpeningReader(io.RawIOBase):
    """Opens an upload while it is read; seekable if the file under it is.

    Not a byte is handed out before its chunk has verified. After a chunk that does not, every
    later call raises `OpenError` as well. On a seekable file the last chunk is verified first, so
    the length is known to be true, and only the chunks that are asked for are read.

    Threads may share a reader: each call is one step. A call that is interrupted, by Ctrl-C say,
    has read nothing; of a pipe it has, and then every later call raises `RuntimeError`.
    """

    __reduce_ex__ = refuse

    def __init__(
        self, fileobj: IO[bytes], session: Callable[[Header], SessionKeys], context: bytes
    ) -> None:
        super().__init__()
        self._pid, self._turn, self._busy = os.getpid(), threading.RLock(), False
        self._file = fileobj
        self._error: Exception | None = None
        self._cut: Truncated | None = None  # to be raised when what stands before it is read
        self._at = 0  # of the next byte to hand out
        self._start = 0  # of the plaintext that is held
        self._held = memoryview(b"")
        # Longer when they must be: what is read at once, or from memory, does without.
        self._buffer = memoryview(bytearray(CHUNK))
        self._sealed = memoryview(bytearray())
        self._seekable = fileobj.seekable()
        self._base = fileobj.tell() if self._seekable else 0
        front = self._read_front()
        found = find_upload(front, session, context)
        self._engine, self._key = found.keys.engine, found.key
        self._base += found.size
        self._rest = front[found.size :]  # chunks that came with the front
        self._next = 0  # chunk that a seekable file stands at
        self._ended = False
        self._readinto = readinto_of(fileobj)
        # Of memory, what it holds is opened where it lies. Not of a subclass: that may read
        # something else.
        self._memory = fileobj if type(fileobj) is io.BytesIO else None
        self.size: int | None = None
        """Bytes of plaintext, verified; None while that is not known (a pipe)."""
        if self._seekable:
            self._find_end()

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """Whether the file under it is."""
        return self._seekable

    def tell(self) -> int:
        """Offset of the next byte, in the plaintext."""
        with self._alone():
            self._check()
            return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to an offset in the plaintext."""
        offset = index(offset)
        with self._alone():
            self._check()
            if not self._seekable or self.size is None:
                raise io.UnsupportedOperation("this upload comes from a pipe")
            if whence not in (io.SEEK_SET, io.SEEK_CUR, io.SEEK_END):
                raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
            base = (0, self._at, self.size)[whence]
            if base + offset < 0:
                raise ValueError(f"negative seek position {base + offset}")
            self._at = base + offset
            return self._at

    def readinto(self, target: Buffer, /) -> int:
        """Fills ``target`` with verified plaintext; 0 only at the verified end.

        Raises:
            OpenError: the upload is damaged, forged or cut off, now or earlier.
            OSError: the file under it failed, now or earlier: nothing is skipped by trying again.
            RuntimeError: an interrupt has ended this reader, or the call comes out of another one,
                from the file's own ``read`` or a signal's handler.
        """
        out = view(target, "what is read into")
        if out.readonly:
            raise TypeError("what is read into must be writable")
        return self._step(lambda: self._read(out, private=False))

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes of verified plaintext, fewer only at the verified end.

        Raises:
            OpenError: as `readinto`.
            OSError: as `readinto`.
            RuntimeError: as `readinto`.
        """
        most = -1 if size is None else index(size)
        return self.readall() if most < 0 else self._step(lambda: self._gather(most))

    def readall(self) -> bytes:
        """Everything from here to the verified end."""
        return self._step(self._gather_all)

    def _gather_all(self) -> bytes:
        parts: list[bytes] = []
        while piece := self._gather(_PART if self.size is None else max(0, self.size - self._at)):
            parts.append(piece)
            if self._error is not None:  # of what comes behind it
                raise self._error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _step(self, job: Callable[[], _T]) -> _T:
        """Does it when no other thread is at work; interrupted, it has done nothing."""
        start = end = None
        try:
            with self._alone():
                self._check()
                start, self._busy = self._at, True
                try:
                    try:
                        done = job()
                        end = self._at
                        return done
                    finally:
                        self._busy = False
                except BaseException:
                    self._busy = False
                    self._give_back(start)
                    raise
        except BaseException:
            # An interrupt that comes when all is done; unless another thread has gone on meanwhile.
            if start is not None and self._at == end:
                self._give_back(start)
            raise

    def _gather(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            # How long a pipe is, nobody knows: its bytes come together bit by bit.
            most = _PART if self.size is None else max(0, self.size - self._at)
            asked = min(size, most)
            room = self._engine.room(asked)
            try:
                done = self._read(room.view, private=True)
            except Exception:
                if not parts or self._error is None:
                    raise
                break  # what verified is handed out; the next call raises
            if not done:
                break
            parts.append(room.take(done))
            if done < asked:  # the end, or an error that the next call raises
                break
            size -= done
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, out: memoryview, private: bool) -> int:
        done = 0
        while done < len(out):
            if self._start <= self._at < self._start + len(self._held):
                held = self._held[self._at - self._start :]
                taken = min(len(held), len(out) - done)
                out[done : done + taken] = held[:taken]
            else:
                try:
                    loaded = self._load(out[done:], private)
                except Exception as error:
                    if self._error is None:
                        self._fail(error)
                    if done:  # what verified is handed out; the next call raises
                        break
                    raise
                except BaseException:
                    if not self._seekable:
                        self._fail(_interrupted())
                    raise
                if loaded is None:
                    break
                taken = loaded
            done += taken
            self._at += taken
        return done

    def _give_back(self, start: int) -> None:
        """After an error that is not the upload's: what was read, and is lost, is not skipped."""
        if self._error is None and self._at != start:
            if self._seekable:
                self._at = start
            else:
                self._fail(_interrupted())

    def _alone(self) -> AbstractContextManager[object]:
        """To be entered by every call: one at a time is at work."""
        if os.getpid() != self._pid:  # in a forked child the lock may be held for ever
            self._pid, self._turn, self._busy = os.getpid(), threading.RLock(), False
        return self._turn

    def close(self) -> None:
        """Forgets the plaintext held. The other file stays open."""
        with self._alone():
            if self._busy:
                raise _reentrant()
            self._close()

    def __del__(self) -> None:
        # io's own would wait for the lock. Nobody is at work here, and yet somebody may have it: an
        # interrupt can come between taking a lock and the `with` that gives it back.
        with suppress(AttributeError):  # made no further than that
            self._close()

    def _close(self) -> None:
        if not self.closed:
            self._held = memoryview(b"")
            self._wipe()
        super().close()

    def _wipe(self) -> None:
        self._buffer[:] = bytes(len(self._buffer))

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed upload")
        if self._busy:
            raise _reentrant()
        if self._error is not None:
            raise self._error

    def _fail(self, error: Exception) -> Exception:
        """Remembers the error: what failed once has failed for good."""
        self._error = error
        self._held = memoryview(b"")
        return error

    def _read_front(self) -> bytes:
        data = b""
        while len(data) < FRONT_MAX:
            more = self._file.read(FRONT_MAX - len(data))
            if more is None:
                raise BlockingIOError("an upload needs a file that blocks until it has data")
            if not more:
                break
            data += more
        return data

    def _find_end(self) -> None:
        """Verifies the last chunk of a seekable file, and so the length."""
        sealed = self._file.seek(0, io.SEEK_END) - self._base
        self.size = plain_size(max(0, sealed))  # it may have become shorter meanwhile
        self._rest = b""
        if self.size // CHUNK >= CHUNKS_MAX:
            raise OpenError
        self._next = -1
        last_chunk = self.size // CHUNK
        opened = self._open_at(last_chunk, 1, self._buffer)
        self._start, self._held = last_chunk * CHUNK, self._buffer[:opened]

    def _load(self, room: memoryview, private: bool) -> int | None:
        """Opens what comes next, straight into ``room`` where whole chunks fit in.

        Only a ``private`` room may hold what has not verified yet. What is held for later reads
        never does: a second thread that reads at once, though it should not, could else see it.

        Returns:
            Bytes put into ``room``; 0 if they are held instead; None at the end.
        """
        if self._cut is not None:
            raise self._fail(self._cut)
        if self._ended or (self.size is not None and self._at >= self.size):
            return None
        direct = self._at % CHUNK == 0 and len(room) >= CHUNK
        most = PIECE if self._memory is None else _FROM_MEMORY
        chunks = min(most, len(room) // CHUNK) if direct else PIECE
        chunk = self._at // CHUNK
        self._held = memoryview(b"")
        if not direct and len(self._buffer) < PIECE * CHUNK:
            self._wipe()
            self._buffer = memoryview(bytearray(PIECE * CHUNK))
        private = private and direct
        out = room if direct else self._buffer
        if self._seekable:
            opened = self._open_at(chunk, chunks, out, private)
        else:
            opened = self._open_next(chunk, chunks, out, private)
        if direct:
            return opened or None
        self._start, self._held = chunk * CHUNK, out[:opened]
        return 0 if opened else None

    def _open_at(self, chunk: int, chunks: int, out: memoryview, private: bool = False) -> int:
        """Opens so many chunks, or up to the end, of a seekable file."""
        assert self.size is not None
        last_chunk = self.size // CHUNK
        chunks = min(chunks, last_chunk - chunk + 1)
        last = chunk + chunks > last_chunk
        length = chunks * SEALED_CHUNK
        if last:
            length += self.size % CHUNK - CHUNK
        at = self._base + chunk * SEALED_CHUNK
        if self._memory is not None:
            # Not its getbuffer(): to make that, it copies all of the bytes that it came from.
            sealed = memoryview(self._memory.getvalue())[at : at + length]
            self._file.seek(at + len(sealed))
        else:
            if self._next != chunk or self._file.tell() != at:  # others may have moved it
                self._file.seek(at)
            self._next = -1  # until all is read, who knows where the file stands
            sealed = self._fill(length)
            self._next = chunk + chunks
        if len(sealed) != length:
            raise self._fail(Truncated())
        return self._open(chunk, last, sealed, out, private)

    def _open_next(self, chunk: int, chunks: int, out: memoryview, private: bool) -> int:
        """Opens so many chunks, or up to the end, of a pipe."""
        length = chunks * SEALED_CHUNK
        sealed = self._fill(length)
        got = len(sealed)
        last = got < length
        whole, rest = divmod(got, SEALED_CHUNK)
        if last and rest < TAG:
            self._cut = Truncated()
            if not whole:
                raise self._fail(self._cut)
            last, got = False, whole * SEALED_CHUNK  # if one of these is forged, that comes first
        if chunk + whole + last > CHUNKS_MAX:
            raise self._fail(OpenError())
        opened = self._open(chunk, last, sealed[:got], out, private)
        if last:
            self._ended, self.size = True, chunk * CHUNK + opened
        return opened

    def _open(
        self, chunk: int, last: bool, sealed: memoryview, out: memoryview, private: bool
    ) -> int:
        size = len(sealed) - TAG * (len(sealed) // SEALED_CHUNK + last)
        target = out[:size]
        if not self._engine.open_chunks(self._key, chunk, last, sealed, target, private):
            raise self._fail(OpenError())
        return size

    def _fill(self, length: int) -> memoryview:
        """Reads up to ``length`` sealed bytes; fewer only at the end of the file."""
        if len(self._sealed) < length:
            self._sealed = memoryview(bytearray(length))
        target = self._sealed[:length]
        got = min(len(self._rest), length)
        target[:got] = self._rest[:got]
        self._rest = self._rest[got:]
        while got < length:
            count = self._readinto(target[got:])
            if count is None:
                raise BlockingIOError("an upload needs a file that blocks until it has data")
            check_count(count, length - got)
            if not count:
                break
            got += count
        return target[:got]


def _interrupted() -> RuntimeError:
    return RuntimeError("a read of this pipe was interrupted, and what it had read is lost")


def _reentrant() -> RuntimeError:
    return RuntimeError("an upload cannot be read in the middle of a read of it")

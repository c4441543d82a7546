# SPDX-License-Identifier: Apache-2.0
"""Opening an upload while it is read."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO

from upseal.core.header import Header
from upseal.core.session import SessionKeys
from upseal.core.uploads import FRONT_MAX, PIECE, find_upload, plain_size
from upseal.engine.types import CHUNK, CHUNKS_MAX, SEALED_CHUNK, TAG, Buffer
from upseal.errors import OpenError, Truncated


class OpeningReader(io.RawIOBase):
    """Opens an upload while it is read; seekable if the file under it is.

    Not a byte is handed out before its chunk has verified. After a chunk that does not, every
    later call raises `OpenError` as well. On a seekable file the last chunk is verified first, so
    the length is known to be true, and only the chunks that are asked for are read.
    """

    def __init__(
        self, fileobj: IO[bytes], session: Callable[[Header], SessionKeys], context: bytes
    ) -> None:
        super().__init__()
        self._file = fileobj
        self._error: Exception | None = None
        self._cut: Truncated | None = None  # to be raised when what stands before it is read
        self._at = 0  # of the next byte to hand out
        self._start = 0  # of the plaintext that is held
        self._held = memoryview(b"")
        self._buffer = memoryview(bytearray(PIECE * CHUNK))
        self._sealed = memoryview(bytearray(PIECE * SEALED_CHUNK))
        self._seekable = fileobj.seekable()
        self._base = fileobj.tell() if self._seekable else 0
        front = self._read_front()
        found = find_upload(front, session, context)
        self._engine, self._key = found.keys.engine, found.key
        self._base += found.size
        self._rest = front[found.size :]  # chunks that came with the front
        self._next = 0  # chunk that the file stands at
        self._ended = False
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
        self._check()
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to an offset in the plaintext."""
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
        """
        self._check()
        out = memoryview(target).cast("B")
        done = 0
        while done < len(out):
            held = self._held[self._at - self._start :] if self._at >= self._start else b""
            if not len(held):
                try:
                    if not self._load():
                        break
                except Exception as error:
                    if self._error is None:
                        self._fail(error)
                    if done:  # what verified is handed out; the next call raises
                        break
                    raise
                continue
            taken = min(len(held), len(out) - done)
            out[done : done + taken] = held[:taken]
            done += taken
            self._at += taken
        return done

    def readall(self) -> bytes:
        """Everything from here to the verified end."""
        out = bytearray()
        while piece := self.read(PIECE * CHUNK):
            out += piece
        return bytes(out)

    def close(self) -> None:
        """Forgets the plaintext held. The other file stays open."""
        if not self.closed:
            self._held = memoryview(b"")
            self._buffer[:] = bytes(len(self._buffer))
        super().close()

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed upload")
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
        self.size = plain_size(sealed)
        self._rest = b""
        if self.size // CHUNK >= CHUNKS_MAX:
            raise OpenError
        self._next = -1
        self._open_at(self.size // CHUNK)

    def _load(self) -> bool:
        """Opens the piece with the next byte; False at the end."""
        if self._cut is not None:
            raise self._fail(self._cut)
        chunk = self._at // CHUNK
        if self.size is not None and self._at >= self.size:
            return False
        if self._seekable:
            self._open_at(chunk)
            return True
        return not self._ended and self._open_next()

    def _open_at(self, chunk: int) -> None:
        """Opens the chunk and those behind it that fit a piece, in a seekable file."""
        assert self.size is not None
        last_chunk = self.size // CHUNK
        chunks = min(PIECE, last_chunk - chunk + 1)
        last = chunk + chunks > last_chunk
        length = chunks * SEALED_CHUNK
        if last:
            length += self.size % CHUNK - CHUNK
        if self._next != chunk:
            self._file.seek(self._base + chunk * SEALED_CHUNK)
        self._next = -1  # until all is read, who knows where the file stands
        got = self._fill(length)
        self._next = chunk + chunks
        self._open(chunk, last, got, length)

    def _open_next(self) -> bool:
        """Opens the next piece of a pipe."""
        chunk = self._next
        got = self._fill(len(self._sealed))
        last = got < len(self._sealed)
        if last and got % SEALED_CHUNK < TAG:
            whole = got - got % SEALED_CHUNK
            if whole:  # if one of these is forged, that comes first
                self._open(chunk, False, whole, whole)
            self._cut = Truncated()
            if not whole:
                raise self._fail(self._cut)
            return True
        self._next += got // SEALED_CHUNK
        if self._next + last > CHUNKS_MAX:
            raise self._fail(OpenError())
        self._open(chunk, last, got, got)
        if last:
            self._ended, self.size = True, self._start + len(self._held)
        return bool(len(self._held))

    def _open(self, chunk: int, last: bool, got: int, expected: int) -> None:
        if got != expected:
            raise self._fail(Truncated())
        chunks = got // SEALED_CHUNK + last
        out = self._buffer[: got - TAG * chunks]
        self._held = memoryview(b"")
        if not self._engine.open_chunks(self._key, chunk, last, self._sealed[:got], out):
            raise self._fail(OpenError())
        self._start, self._held = chunk * CHUNK, out

    def _fill(self, length: int) -> int:
        """Reads up to ``length`` sealed bytes; fewer only at the end of the file."""
        target = self._sealed[:length]
        got = min(len(self._rest), length)
        target[:got] = self._rest[:got]
        self._rest = self._rest[got:]
        while got < length:
            more = self._file.read(length - got)
            if more is None:
                raise BlockingIOError("an upload needs a file that blocks until it has data")
            if not more:
                break
            target[got : got + len(more)] = more
            got += len(more)
        return got

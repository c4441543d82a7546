# SPDX-License-Identifier: Apache-2.0
"""Sealing an upload while it is written."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from typing import IO

from upseal.core.copies import refuse
from upseal.core.fileobjects import check_count
from upseal.core.session import SessionKeys
from upseal.core.uploads import PIECE, start_upload
from upseal.engine.buffers import Buffer, view
from upseal.engine.sizes import CHUNK, CHUNKS_MAX, SEALED_CHUNK, TAG


def write_all(fileobj: IO[bytes], data: Buffer) -> None:
    """Writes everything, also where ``write`` takes less at a time.

    Raises:
        BlockingIOError: the file takes nothing just now: it must be a blocking one.
        OSError: it says that it has written what cannot be.
    """
    rest = memoryview(data)
    while len(rest):
        written = fileobj.write(rest)
        if written is not None:
            check_count(written, len(rest))
        if not written:  # also 0, or we should ask for ever
            raise BlockingIOError("an upload needs a file that blocks until it has written")
        rest = rest[written:]


class SealingWriter(io.RawIOBase):
    """Seals what is written, as one upload, into another file.

    `close` seals the last chunk: without it the upload is visibly cut off. Leaving a ``with`` block
    by an exception, or forgetting the writer, does not count as closing: what is there stays cut
    off, since it is not the whole. The other file stays open.

    Each chunk is sealed once. After any error, an interrupt too, the writer fails for good, and so
    does a copy of it in a forked child: an upload that is to be tried again starts afresh, under a
    new salt. Threads may share a writer: each `write` goes in whole, in the order they come.

    What is put round it, an `io.BufferedWriter` say, closes it like everybody, also when it is
    itself left by an exception: `abort` the writer first.
    """

    _busy = False  # in the middle of a call
    _over = False  # to be ended as soon as nobody is in the middle of a call

    __reduce_ex__ = refuse

    def __init__(
        self, fileobj: IO[bytes], header: bytes, keys: SessionKeys, context: bytes
    ) -> None:
        super().__init__()
        self._file = fileobj
        self._engine = keys.engine
        self._pid = os.getpid()
        self._turn = threading.RLock()
        self._failed = False
        self._chunk = 0
        # Made when they are first needed: a small upload is sealed without them.
        self._held = bytearray()
        self._fill = 0
        self._out = memoryview(bytearray())
        front, self._key = start_upload(header, keys, context)
        write_all(fileobj, front)

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Takes all of ``data`` and says how much that was.

        Raises:
            ValueError: the writer is closed, or the upload would pass 4 PiB.
            RuntimeError: an earlier error, or a fork, has ended this writer; or the call comes out
                of another one, from the file's own ``write`` or a signal's handler.
        """
        source = view(data, "what is written")
        # The last chunk is never a full one.
        if self._chunk * CHUNK + self._fill + len(source) >= CHUNKS_MAX * CHUNK:
            raise ValueError("an upload is at most 4 PiB")
        self._work(lambda: self._take(source))
        return len(source)

    def _work(self, job: Callable[[], None]) -> None:
        """Does it when no other thread is at work; the writer has failed unless it ends well.

        What an interrupt leaves half done, or a file whose ``write`` calls its writer would do in
        the middle, can so never be sealed as if it were whole.
        """
        self._check_process()  # before the lock, which in a child may be held for ever
        with self._turn:
            self._check()
            self._busy = self._failed = True  # no chunk of this call must ever be sealed again
            try:
                job()
                self._failed = False
            finally:
                self._busy = False
                if self._over:
                    self._end()

    def _take(self, source: memoryview) -> None:
        """Seals the pieces that are full now, and keeps the rest."""
        room = PIECE * CHUNK
        if self._fill:
            taken = min(room - self._fill, len(source))
            self._hold(source[:taken])
            source = source[taken:]
            if self._fill < room:
                return
            self._seal(memoryview(self._held))
            self._fill = 0
        while len(source) >= room:  # straight from the caller's memory
            self._seal(source[:room])
            source = source[room:]
        self._hold(source)

    def _hold(self, data: memoryview) -> None:
        """Keeps what does not fill a piece yet."""
        end = self._fill + len(data)
        if end > len(self._held):
            grown = bytearray(PIECE * CHUNK if end > CHUNK else CHUNK)
            grown[: self._fill] = memoryview(self._held)[: self._fill]
            self._wipe()
            self._held = grown
        self._held[self._fill : end] = data
        self._fill = end

    def _wipe(self) -> None:
        self._held[:] = bytes(len(self._held))

    def flush(self) -> None:
        """Writes the full chunks there are. The rest waits: only the last chunk may be short."""
        if self.closed or (self._failed and not self._busy):
            return
        self._work(self._flush)

    def _flush(self) -> None:
        whole = self._fill - self._fill % CHUNK
        if whole:
            self._seal(memoryview(self._held)[:whole])
            self._held[: self._fill - whole] = self._held[whole : self._fill]
            self._fill -= whole

    def close(self) -> None:
        """Seals the last chunk, unless the writer has failed. The other file stays open."""
        if self.closed:
            return
        try:
            if not self._failed or self._busy:
                self._check_process()
                with self._turn:
                    if not (self.closed or self._failed):
                        self._work(self._seal_last)
        finally:
            self.abort()

    def _seal_last(self) -> None:
        self._seal(memoryview(self._held)[: self._fill], last=True)
        self._over = True  # before another thread has its turn: nothing comes behind the last chunk

    def abort(self) -> None:
        """Ends the writer without a last chunk: what it wrote can never be opened as a whole.

        Where another call is at work, that ends first: before its next piece, with an error.
        """
        self._over = True
        if os.getpid() != self._pid:  # a forked child: nobody is at work here
            self._end()
            return
        with self._turn:
            if not self._busy:
                self._end()

    def _end(self) -> None:
        self._failed, self._busy = True, False
        self._fill = 0
        self._wipe()
        super().close()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        # io's own would close, and so make a cut-off upload look whole.
        self._failed, self._busy = True, False
        super().close()

    def _check(self) -> None:
        if self.closed:
            raise ValueError("write to a closed upload")
        if self._busy:
            raise RuntimeError("an upload cannot be written to in the middle of a write to it")
        if self._failed:
            raise RuntimeError("this upload has failed: start it again, under a new salt")

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            self._failed = True
            raise RuntimeError("an upload cannot go on in a forked child: start one there")

    def _seal(self, data: memoryview, last: bool = False) -> None:
        self._check_process()  # the file's own `write` may have forked since the last piece
        chunks = len(data) // CHUNK + last
        if self._over:
            raise RuntimeError("this upload has been aborted meanwhile")
        first, self._chunk = self._chunk, self._chunk + chunks
        size = len(data) + TAG * chunks
        if len(self._out) < size:
            most = PIECE * SEALED_CHUNK if size > SEALED_CHUNK else SEALED_CHUNK
            self._out = memoryview(bytearray(most))
        out = self._out[:size]
        self._engine.seal_chunks(self._key, first, last, data, out)
        write_all(self._file, out)

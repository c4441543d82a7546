# SPDX-License-Identifier: Apache-2.0
"""Writing while the next piece is read and sealed: for pipes, which cannot be split by offset."""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Self

from upseal.core.writer import write_all
from upseal.engine.buffers import Buffer
from upseal.engine.sizes import SEALED_CHUNK

_BUFFERS = 4
_SIZE = 16 * SEALED_CHUNK
_PATIENCE = 1.0  # seconds that a failing caller waits for a write that may never return


class WriteBehind:
    """Writes to another file in a thread of its own, in order.

    What goes wrong there is raised by the next `write`, or at the end of the ``with`` block at the
    latest. Reading is left to the caller's thread: so nothing is ever read that is not used.
    """

    def __init__(self, fileobj: IO[bytes]) -> None:
        self._file = fileobj
        self._pid = os.getpid()
        self._alone = False  # without a thread: then all is written at once
        self._error: BaseException | None = None
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        self._full: SimpleQueue[memoryview | None] = SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(memoryview(bytearray(_SIZE)))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upseal-write", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._thread.start()
        except RuntimeError:  # at a limit; from Python 3.12 on also while Python shuts down
            self._alone = True
        except BaseException:  # it may have begun
            self._full.put(None)
            raise
        return self

    def write(self, data: Buffer, /) -> int:
        """Takes all of ``data``; its memory may be used again at once.

        Raises:
            RuntimeError: in a forked child, which has no thread that would write.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("a file cannot be written on in a forked child: start again there")
        rest = memoryview(data)
        total = len(rest)
        if self._alone:
            write_all(self._file, rest)
            return total
        while len(rest):
            buffer = self._free.get()
            if self._error is not None:
                raise self._error
            count = min(len(rest), _SIZE)
            buffer[:count] = rest[:count]
            self._full.put(buffer[:count])
            rest = rest[count:]
        return total

    def flush(self) -> None:
        """Nothing: all is written by the end of the ``with`` block."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._alone or os.getpid() != self._pid:
            return
        if error is not None and self._error is None:
            self._error = error  # so that the thread writes no more of it
        self._full.put(None)
        try:
            # No join: in Python 3.11 and 3.12, once interrupted, it waits no more.
            if error is None:
                self._ended.wait()
                self._thread.join()
        except BaseException as interrupt:
            error = self._error = interrupt
            raise
        finally:
            if error is not None:
                self._ended.wait(_PATIENCE)
        if error is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (piece := self._full.get()) is not None:
                if self._error is None:
                    try:
                        write_all(self._file, piece)
                    except BaseException as error:
                        self._error = error
                whole = piece.obj
                assert isinstance(whole, bytearray)
                self._free.put(memoryview(whole))
        finally:
            self._ended.set()

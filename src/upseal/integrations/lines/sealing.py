# SPDX-License-Identifier: Apache-2.0
"""The loop that reads lines, makes batches of them, and writes these out, until told to stop."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from upseal.core.sealer import Sealer
from upseal.integrations.lines import Limits, LineSealer
from upseal.integrations.lines.following import Followed, Follower
from upseal.integrations.lines.outputs import Output, State, StateFile

_POLL = 0.25
_GROUP_BYTES = 4 << 20
_FULL_POLL = 0.5


class Stop:
    """SIGINT, SIGTERM and SIGHUP as something to look at; the second one ends the process.

    What is being written is finished first, which an exception in the middle could not promise.
    """

    def __init__(self) -> None:
        self.number = 0
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before: dict[int, Any] = {}
        self._woken = -1

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._stop)
        # One that comes just before `wait` waits would not end it.
        self._woken = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._woken)
        for number, before in self._before.items():
            signal.signal(number, before)
        os.close(self._reading)
        os.close(self._writing)

    def wait(self, seconds: float | None, *descriptors: int) -> bool:
        """Until a descriptor can be read (True), the time is up, or a signal has come."""
        if self.number:
            return False
        ready, _, _ = select.select([self._reading, *descriptors], [], [], seconds)
        return any(d in ready for d in descriptors) and not self.number

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            before = self._before[number]
            if callable(before):
                before(number, frame)  # the reader of a pipe stands still: no use to wait for it
        self.number = number
        os.write(self._writing, b"s")


class Sealing:
    """Reads, seals, writes.

    Args:
        sealer: whose recipients may read.
        context: bound into every batch.
        limits: when lines become a batch.
        output: where batches go.
        state: how far files were read; None to keep nothing.
        stop: when to end.

    Raises:
        BadState: the state file is damaged.
        OSError: what was on its way out before cannot be written.
    """

    def __init__(
        self,
        sealer: Sealer,
        context: bytes,
        limits: Limits,
        output: Output,
        state: StateFile | None,
        stop: Stop,
    ) -> None:
        self._limits, self._output, self._file, self._stop = limits, output, state, stop
        self.counts = {"batches": 0, "lines": 0, "bytes": 0, "size": 0}
        """What was sealed: batches, lines, bytes of lines, bytes of batches."""
        known = state.load() if state is not None else None
        if known is not None and known.batches:
            first = known.sequence - len(known.batches)
            output.redo(known.end, known.stream, first, known.batches)
        output.begin()
        self._known = known
        self._lines = (
            LineSealer(sealer, context, known.stream, known.sequence)
            if known
            else LineSealer(sealer, context)
        )
        self._group: list[bytes] = []
        self._size = 0
        self._unsettled = known is not None and bool(known.batches)
        self._follower: Follower | None = None

    # -- standard input

    def pipe(self, descriptor: int) -> None:
        """Seals what comes from a descriptor, until its end.

        Raises:
            OSError: reading or writing failed.
        """
        held, offset, since, ended = bytearray(), 0, 0.0, False
        while not ended:
            wait = max(0.0, since + self._limits.seconds - time.monotonic()) if held else None
            if self._stop.wait(wait, descriptor):
                try:
                    data = os.read(descriptor, 1 << 16)
                except BlockingIOError:
                    continue
                if data and not held:
                    since = time.monotonic()
                held += data
                ended = not data
            ended = ended or bool(self._stop.number)
            old = bool(held) and time.monotonic() >= since + self._limits.seconds
            while count := self._limits.ready(held, all_of_it=ended) or (
                old * (held.rfind(b"\n") + 1)
            ):
                data = bytes(held[:count])
                del held[:count]
                since = time.monotonic()
                self._add(self._lines.seal(data, offset=offset), data)
                offset += count
            if old:
                since = time.monotonic()
            self._commit()

    # -- files

    def files(
        self, paths: list[str], *, follow: bool, wait: float, warn: Callable[[str], None]
    ) -> None:
        """Seals what is in files; with ``follow`` until told to stop.

        Without it and without a state file, all of each; with a state file what came since, up to
        the last whole line.

        Args:
            paths: absolute names.
            follow: wait for more.
            wait: as `Follower`'s ``rotate_wait``, in seconds.
            warn: is told what was lost.

        Raises:
            OSError: reading or writing failed, or a file is missing and nobody waits for it.
        """
        if not follow:
            for path in paths:
                os.stat(path)
        marks, saved = (self._known.marks, self._known.saved) if self._known else ([], None)
        follower = self._follower = Follower(paths, marks, saved, wait, warn)
        try:
            if self._known is None:
                self._save([], {})
            while not self._stop.number:
                follower.look()
                if self._pass(follower, last=False):
                    continue
                self._settle()
                if not follow:
                    break
                self._stop.wait(_POLL)
            # Whole lines that still wait for others; a half one waits for the next start.
            self._pass(follower, last=True)
            self._save([], {})
        finally:
            follower.close()
            self._follower = None

    def _pass(self, follower: Follower, *, last: bool) -> bool:
        """Each file once; whether there may be more at once."""
        more = False
        for file in list(follower.files):
            if last:  # who writes all the time would keep us from ending
                pass
            elif not file.read(self._limits.bytes):
                follower.truncated(file)
                file.read(self._limits.bytes)
                more = True
            while count := self._ready(follower, file, last):
                where = (file.path, file.file, file.offset)
                data = file.take(count)
                self._add(self._lines.seal(data, *where), data)
                if self._size >= _GROUP_BYTES:
                    self._commit()
                more = True
                if not last and (self._stop.number or not file.read(self._limits.bytes)):
                    break
            if follower.finished(file) and not file.held:
                follower.drop(file)
        self._commit()
        return more

    def _ready(self, follower: Follower, file: Followed, last: bool) -> int:
        whole = last and self._file is None
        count = self._limits.ready(file.held, all_of_it=whole or follower.finished(file))
        if not count and file.held:
            old = time.monotonic() >= file.since + self._limits.seconds
            if old or last or file.rotated:
                count = file.held.rfind(b"\n") + 1
        return count

    # -- out

    def _add(self, sealed: bytes, data: bytes) -> None:
        self._group.append(sealed)
        self._size += len(sealed)
        self.counts["batches"] += 1
        self.counts["lines"] += data.count(b"\n") + (not data.endswith(b"\n"))
        self.counts["bytes"] += len(data)
        self.counts["size"] += len(sealed)

    def _commit(self) -> None:
        """Makes the group durable, then writes it out."""
        if not self._group:
            return
        first = self._lines.sequence - len(self._group)
        self._save(self._group, self._output.end())
        while not self._output.has_room(self._size) and not self._stop.number:
            self._stop.wait(_FULL_POLL)
        self._output.write(self._lines.stream, first, self._group)
        self._group, self._size = [], 0
        self._unsettled = True

    def _settle(self) -> None:
        """Nothing is on its way out any more: a restart need not look."""
        if self._unsettled:
            self._save([], {})
            self._unsettled = False

    def _save(self, batches: list[bytes], end: dict[str, Any]) -> None:
        if self._file is not None and self._follower is not None:
            state = State(
                self._lines.stream,
                self._lines.sequence,
                self._follower.marks(),
                time.time(),
                end,
                batches,
            )
            self._file.save(state)

# SPDX-License-Identifier: Apache-2.0
"""The durable queue of a relay: bodies by their id, until the parent has receipted.

A body is acknowledged when it is on the disk and not before; after a crash everything acknowledged
is still there, in the order it came. What is queued is counted in memory, so that a full queue says
so without asking the disk. Results are kept for a while, for who asks late.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from upseal.fleet.files import free_bytes
from upseal.fleet.http.logs import event
from upseal.fleet.http.results import MalformedResults, Result
from upseal.fleet.relay import rows
from upseal.fleet.relay.groupcommit import GroupCommit, connect
from upseal.fleet.relay.rows import Claimed, Entry, Stats, Written
from upseal.fleet.relay.turns import Later, Turns

_REFUSING = 10.0
_DISK_PAUSE = 5.0
"""Seconds until what the disk would not take, or give, is tried again."""
_UNREAD_MOST = 6
"""Times that a body cannot be read before it counts as damaged: some five minutes."""
_log = logging.getLogger(__name__)


class Full(Exception):  # noqa: N818 - what it is
    """There is no room for these bodies now."""


class Queue:
    """Safe for threads; one process at a time.

    Args:
        path: the SQLite file.
        max_bytes, max_bodies: of what is queued.
        hop_share: how much of that one hop may hold, when `put` is told to see to it: one client
            gone wrong must not close the relay for all others.
        keep: seconds that a result stays.
        result_bytes: results that stay at most, the oldest go first. Who then asks for one is told
            "unknown", sends again, and the server sees a duplicate.
        min_free: bytes left free on the disk, without which no body could be taken out either.
        tidy: seconds between two looks at what can go.
        on_done: called with what was finished, after it is on the disk, in the writer's thread;
            and with when each body came, in unix milliseconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 1 << 30,
        max_bodies: int = 200_000,
        hop_share: float = 0.5,
        keep: float = 3600.0,
        result_bytes: int = 256 << 20,
        min_free: int = 0,
        tidy: float = 5.0,
        on_done: Callable[[Sequence[tuple[Result, int]]], None] | None = None,
    ) -> None:
        self._max_bytes, self._max_bodies, self._hop_share = max_bytes, max_bodies, hop_share
        self._keep, self._result_limit = keep, result_bytes
        self._folder, self._min_free = path.parent, min_free
        self._on_done = on_done
        self._entries: dict[bytes, Entry] = {}  # in the order they came
        self._ready: Turns[Entry] = Turns()
        self._later: Later[Entry] = Later()
        self._bytes = self._in_flight = self._results = self._result_bytes = 0
        self._held: defaultdict[bytes, list[int]] = defaultdict(lambda: [0, 0])
        self._changed = threading.Condition()
        self._claims_end = False
        self._refused = -math.inf
        writer = connect(path, writer=True)
        try:
            for row in rows.prepare(writer):
                entry = Entry(row.id, row.hop, row.size, row.received)
                self._add(entry)
                entry.seq, entry.durable = row.seq, True
                self._ready.append(entry)
            self._results, self._result_bytes = rows.kept_results(writer)
            self._lookups, self._bodies = connect(path), connect(path)
        except BaseException:
            writer.close()
            raise
        self._lookup_lock, self._body_lock = threading.Lock(), threading.Lock()
        self._writer = GroupCommit(writer, chores=self._sweep, every=tidy, name="relay-queue")

    @property
    def turns(self) -> int:
        """Of the thread that writes: it lives while they grow."""
        return self._writer.turns

    # -- coming in -----------------------------------------------------------------

    def put(
        self, bodies: Mapping[bytes, bytes], hop: bytes, *, shared: bool = False
    ) -> Future[dict[bytes, Result]]:
        """Takes bodies by their id, all or none.

        Those it has already are no second ones. With ``shared`` the hop keeps to its share.

        Returns:
            When all are on the disk: the results of those that are done already.

        Raises:
            Full: there is no room; nothing was taken.
        """
        received = int(time.time() * 1000)
        with self._changed:
            fresh = [
                Entry(body_id, hop, len(body), received)
                for body_id, body in bodies.items()
                if body_id not in self._entries
            ]
            size = sum(entry.size for entry in fresh)
            try:
                self._check_room(len(fresh), size, hop, shared)
            except Full:
                self._refused = time.monotonic()
                raise
            for entry in fresh:
                self._add(entry)

        def write(db: sqlite3.Connection) -> list[Written]:
            return [rows.insert(db, i, body, hop, received) for i, body in bodies.items()]

        outcome: Future[dict[bytes, Result]] = Future()

        def written(future: Future[list[Written]]) -> None:
            error = future.exception()
            if error is None:
                outcome.set_result(self._written(future.result(), bodies, hop, received))
                return
            with self._changed:
                for entry in fresh:
                    if not entry.durable:
                        self._remove(entry)
            outcome.set_exception(error)

        try:
            future = self._writer.submit(write, size)
        except RuntimeError:
            with self._changed:
                for entry in fresh:
                    self._remove(entry)
            raise
        future.add_done_callback(written)
        return outcome

    def _check_room(self, bodies: int, size: int, hop: bytes, shared: bool) -> None:
        if not bodies:
            return
        share = self._hop_share if shared else 1.0
        held_bodies, held_bytes = self._held.get(hop, (0, 0)) if shared else (0, 0)
        if (
            len(self._entries) + bodies > self._max_bodies
            or self._bytes + size > self._max_bytes
            or held_bodies + bodies > max(1, self._max_bodies * share)
            or held_bytes + size > self._max_bytes * share
        ):
            raise Full
        if self._min_free and free_bytes(self._folder) < self._min_free + size:
            raise Full

    def _written(
        self, written: Iterable[Written], bodies: Mapping[bytes, bytes], hop: bytes, received: int
    ) -> dict[bytes, Result]:
        done: dict[bytes, Result] = {}
        with self._changed:
            for body_id, seq, result in written:
                entry = self._entries.get(body_id)
                if result is not None:
                    with suppress(MalformedResults):
                        done[body_id] = rows.decode(result)
                    if entry is not None and not entry.durable:
                        self._remove(entry)
                    continue
                if entry is None:  # the first who brought it failed, and took it from the books
                    entry = Entry(body_id, hop, len(bodies[body_id]), received)
                    self._add(entry)
                if not entry.durable:
                    entry.seq, entry.durable = seq, True
                    self._ready.append(entry)
            self._changed.notify_all()
        return done

    # -- going out -----------------------------------------------------------------

    def claim(self, max_bytes: int, max_bodies: int, timeout: float) -> list[Claimed]:
        """Bodies that nobody works on, of each hop the oldest; waits for some.

        One at least, unless the time is over or the disk does not give what there is. Each is
        `finish`ed or `release`d by whoever claimed it.
        """
        deadline = time.monotonic() + timeout
        taken: list[Entry] = []
        with self._changed:
            while not self._due() and not self._claims_end:
                left = deadline - time.monotonic()
                if left <= 0:
                    return []
                self._changed.wait(self._later.left(time.monotonic(), left))
            if self._claims_end:
                return []
            size = 0
            while self._due() and len(taken) < max_bodies:
                entry = self._ready.first()
                if taken and size + entry.size > max_bytes:
                    break
                self._ready.popleft()
                entry.claimed = True
                size += entry.size
                taken.append(entry)
            self._in_flight += len(taken)
        read = ((entry, self._read(entry)) for entry in taken)
        return [Claimed(e.id, body, e.attempts, e.hop) for e, body in read if body is not None]

    def _read(self, entry: Entry) -> bytes | None:
        """A claimed body; None: it cannot be had now, and is queued again, or is lost."""
        body = None
        try:
            with self._body_lock:
                body = rows.body(self._bodies, entry)
        except (sqlite3.DatabaseError, MemoryError) as error:  # that is not to say it is damaged
            entry.unread += 1
            if entry.unread <= _UNREAD_MOST:
                event(_log, "queued body not read", level=logging.WARNING, why=str(error))
                self.release([entry.id], delay=_DISK_PAUSE)
                return None
        if body is None:
            self._lose(entry)
        return body

    def _due(self) -> bool:
        for entry in self._later.due(time.monotonic()):
            self._ready.append(entry)
        # A body released may get its result all the same, from whoever claimed it.
        while self._ready and self._entries.get((one := self._ready.first()).id) is not one:
            self._ready.popleft()
        return bool(self._ready)

    def _lose(self, entry: Entry) -> None:
        """The disk has damaged it. Its sender still has it, is told "unknown", and sends again."""
        event(_log, "queued body damaged", level=logging.ERROR, body=entry.id.hex())
        with self._changed:
            self._remove(entry)
        with suppress(RuntimeError):
            self._writer.submit(lambda db: rows.delete(db, entry.seq))

    def finish(self, results: Sequence[Result]) -> Future[None]:
        """Notes what became of claimed bodies. If the disk refuses, they are queued again."""
        with self._changed:
            known = [result for result in results if result.body in self._entries]
            entries = [self._entries[result.body] for result in known]
        texts = [rows.encode(result) for result in known]

        def write(db: sqlite3.Connection) -> None:
            rows.finish(db, [(e.seq, text) for e, text in zip(entries, texts, strict=True)])

        outcome: Future[None] = Future()

        def written(future: Future[None]) -> None:
            error = future.exception()
            if error is not None:
                self.release((entry.id for entry in entries), delay=_DISK_PAUSE)
                outcome.set_exception(error)
                return
            with self._changed:
                for entry in entries:
                    self._remove(entry)
                self._results += len(entries)
                self._result_bytes += sum(map(len, texts))
            if self._on_done is not None:
                self._on_done([(r, e.received) for r, e in zip(known, entries, strict=True)])
            outcome.set_result(None)

        try:
            self._writer.submit(write).add_done_callback(written)
        except RuntimeError as error:  # closed: what is queued is still there the next time
            outcome.set_exception(error)
        return outcome

    def keep(self, result: Result, received: int) -> Future[tuple[int, int]]:
        """Keeps what became of an upload, which was never queued here; RuntimeError if closed."""
        text = rows.encode(result)

        def written(future: Future[tuple[int, int]]) -> None:
            if future.exception() is None:
                with self._changed:
                    self._results += future.result()[0]
                    self._result_bytes += future.result()[1]

        future = self._writer.submit(lambda db: rows.keep(db, result.body, received, text))
        future.add_done_callback(written)
        return future

    def release(
        self, ids: Iterable[bytes], delay: float = 0.0, *, most: float = 3600.0, counts: bool = True
    ) -> None:
        """Queues claimed bodies again, to be claimed after ``delay`` seconds.

        The delay doubles with each time that ``counts``, up to ``most``.
        """
        now = time.monotonic()
        with self._changed:
            for body_id in ids:
                entry = self._entries.get(body_id)
                if entry is not None and entry.claimed:
                    at = now + min(delay * 2 ** min(entry.attempts, 30), most)
                    entry.claimed = False
                    entry.attempts += counts
                    self._in_flight -= 1
                    self._later.put(at, entry)
            self._changed.notify_all()

    # -- asking --------------------------------------------------------------------

    def lookup(self, ids: Sequence[bytes]) -> dict[bytes, Result | None]:
        """The result of each; None while it is queued; nothing for what is not known."""
        found: dict[bytes, Result | None] = {}
        with self._changed:
            for body_id in ids:
                entry = self._entries.get(body_id)
                if entry is not None and entry.durable:
                    found[body_id] = None
        with self._lookup_lock:
            found |= rows.results(self._lookups, [i for i in ids if i not in found])
        return found

    def stats(self) -> Stats:
        """How full it is."""
        with self._changed:
            oldest = next(iter(self._entries.values())).received if self._entries else None
            return Stats(
                len(self._entries), self._bytes, self._in_flight, oldest, self._results,
                self._result_bytes,
            )  # fmt: skip

    @property
    def refusing(self) -> bool:
        """Whether it had no room for somebody a moment ago."""
        return time.monotonic() - self._refused < _REFUSING

    def end_claims(self) -> None:
        """From here on there is nothing to claim; whoever waits for something is told."""
        with self._changed:
            self._claims_end = True
            self._changed.notify_all()

    def close(self) -> None:
        """Ends claims, writes what is under way, closes the file."""
        self.end_claims()
        self._writer.close()
        self._lookups.close()
        self._bodies.close()

    # -- the books: under the lock ---------------------------------------------------

    def _add(self, entry: Entry) -> None:
        self._entries[entry.id] = entry
        self._bytes += entry.size
        held = self._held[entry.hop]
        held[0] += 1
        held[1] += entry.size

    def _remove(self, entry: Entry) -> None:
        if self._entries.get(entry.id) is not entry:
            return
        del self._entries[entry.id]
        self._bytes -= entry.size
        self._in_flight -= entry.claimed
        held = self._held[entry.hop]
        held[0] -= 1
        held[1] -= entry.size
        if not held[0]:
            del self._held[entry.hop]

    def _sweep(self, db: sqlite3.Connection) -> bool:
        total, freed, more = rows.forget_results(
            db, self._keep, self._result_bytes - self._result_limit
        )
        with self._changed:
            self._results -= total
            self._result_bytes -= freed
        return rows.give_back(db) or more

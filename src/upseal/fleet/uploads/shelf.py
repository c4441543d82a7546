# SPDX-License-Identifier: Apache-2.0
"""Bodies of uploads on the disk of a hop, until they are passed on or stored.

Each has its bytes in ``<hop>-<body id>.part``, which becomes ``.whole`` when its SHA-256 has been
verified and it is synced, and a small ``.json`` beside it that says what was declared. After a
crash at any point the folder says all there is to know: a part's offset is the size of its file.
What the bytes are worth is decided by their SHA-256 alone, so appending need not wait for the disk.

Quotas are about declared sizes: who asks for a terabyte has it reserved, or is refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from upseal.engine.buffers import Buffer, view
from upseal.fleet.files import (
    free_bytes,
    make_private_directory,
    sync_directory,
    write_private,
)
from upseal.fleet.http.logs import event
from upseal.fleet.uploads.held import (
    CARD,
    PART,
    WHOLE,
    Contradiction,
    Gone,
    Held,
    Locked,
    NoRoom,
    ShelfError,
    ShelfLimits,
    State,
    TooLarge,
    Usage,
    WrongOffset,
)
from upseal.fleet.uploads.ondisk import lock_folder, reopen, unlink_body, write_all
from upseal.fleet.uploads.quotas import Quotas
from upseal.fleet.uploads.words import Ticket

__all__ = [
    "Contradiction",
    "Gone",
    "Held",
    "Locked",
    "NoRoom",
    "Shelf",
    "ShelfError",
    "ShelfLimits",
    "State",
    "TooLarge",
    "Usage",
    "WrongOffset",
]

_PIECE = 1 << 20
_SYNC_EVERY = 64 << 20
"""Bytes after which a part is synced: the last one must not wait for all of them at once."""
_log = logging.getLogger("upseal.uploads")


class Shelf:
    """Safe for threads, of one process; each call may block for the disk, but those that say not.

    Raises:
        OSError: the folder cannot be used.
        ShelfError: another process has it open.
    """

    def __init__(self, folder: Path, limits: ShelfLimits) -> None:
        self.folder, self.limits = folder, limits
        make_private_directory(folder)
        self._lock = threading.Lock()  # of what is in memory; nobody waits for a disk with it
        self._closed = False
        self._bodies: dict[tuple[bytes, bytes], Held] = {}  # oldest first
        self._by_body: dict[bytes, list[Held]] = {}
        self._quotas = Quotas(limits)
        self._flock = lock_folder(folder)
        try:
            for held in reopen(folder):
                self._enter(held)
        except BaseException:
            os.close(self._flock)
            raise

    # -- one body ----------------------------------------------------------------------

    def create(self, hop: bytes, role: str, ticket: Ticket) -> Held:
        """A body that its hop has declared; durable when this returns.

        The same again gives what is there, whatever its state.

        Raises:
            TooLarge: never.
            NoRoom: not now.
            Contradiction: it is there with another size or form.
            OSError: the disk does not take it; nothing stays.
        """
        key = hop, ticket.body_id
        free = free_bytes(self.folder)
        while True:
            with self._lock:
                self._alive()
                held = self._bodies.get(key)
                mine = held is None
                if held is None:
                    self._quotas.refuse(hop, role, ticket, free)
                    held = Held(self.folder, hop, role, ticket)
                    held.lock.acquire()  # nobody has seen it: this does not wait
                    self._enter(held)
            if mine:
                break
            held.ready.wait()  # for whoever is just creating it
            if held.gone:
                continue
            if held.ticket != ticket:
                raise Contradiction("the body is here with another size or form")
            return held
        try:
            try:
                # Bytes first: without the other file they are nothing, and are cleared away.
                os.close(os.open(held.named(PART), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
                write_private(held.named(CARD), held.card())
            except BaseException:
                self._discard(held)
                raise
            return held
        finally:
            held.ready.set()
            held.lock.release()

    def find(self, hop: bytes, body_id: bytes) -> Held | None:
        """One that this hop has created. Does not block."""
        with self._lock:
            return self._bodies.get((hop, body_id))

    def append(self, held: Held, offset: int, data: Buffer | Sequence[Buffer]) -> int:
        """Adds bytes behind those that are there, all or none; the new offset.

        Args:
            held: the body.
            offset: where they begin.
            data: the bytes, or parts of them in their order.

        Raises:
            WrongOffset: they do not follow.
            ValueError: they are more than was declared.
            Gone, Locked: see there.
            NoRoom: the disk is nearly full.
            OSError: the disk did not take all of them, and so has none.
        """
        given = data if isinstance(data, list | tuple) else (data,)
        parts = [view(part, "a piece") for part in given]
        count = sum(map(len, parts))
        if held.state != "open" or not count:  # also while it is being verified
            self._alive(held)
            if offset != held.offset or count:
                raise WrongOffset(held.offset)
            return offset  # so some clients ask whether all has come
        with self._at_work(held):
            if offset != held.offset or held.state != "open":
                raise WrongOffset(held.offset)
            if offset + count > held.ticket.size:
                raise ValueError("more bytes than were declared")
            if free_bytes(self.folder) - count < self.limits.min_free:
                raise NoRoom("the disk is nearly full")
            self._write(held, parts, count)
            if held.running is not None:
                for part in parts:
                    held.running.update(part)
            with self._lock:
                self._quotas.grow(held, offset + count)
                held.touched = time.time()
            return held.offset

    def complete(self, held: Held) -> bool:
        """Verifies a body that has all its bytes, and makes it durable. Reads it, if it must.

        False: it is not what was declared, and is not on the shelf any more.

        Raises:
            ValueError: bytes are missing.
            Gone: see there; also where the shelf is closed meanwhile.
            OSError: the disk failed it. It is not on the shelf any more: what a failed sync has
                kept is not known.
        """
        with self._at_work(held, wait=True):
            if held.state == "whole":
                return True
            if held.state == "open":
                raise ValueError("bytes are missing")
            try:
                good = self._verified(held)
            except OSError:
                self._discard(held)
                raise
            if not good:
                event(_log, "upload is not what was declared", level=logging.WARNING,
                      upload=held.ticket.upload.hex(), bytes=held.ticket.size)  # fmt: skip
                self._discard(held)
                return False
            with self._lock:
                held.state, held.running = "whole", None
            return True

    def remove(self, held: Held) -> None:
        """Takes it off the shelf: it was ended, passed on, or stored. Gone already: nothing.

        Raises:
            Locked: somebody else is at work on it.
        """
        with suppress(Gone), self._at_work(held):
            self._discard(held)

    @contextmanager
    def working(self, held: Held) -> Iterator[None]:
        """Nobody else removes it meanwhile; the same thread may.

        Raises:
            Gone, Locked: see there.
        """
        with self._at_work(held):
            yield

    # -- all of them -------------------------------------------------------------------

    def whole(self) -> list[Held]:
        """Those that are verified, oldest first. Does not block."""
        return self._of_state("whole")

    def unchecked(self) -> list[Held]:
        """Those that have all bytes and are not verified: to be given to `complete`."""
        return self._of_state("checking")

    def by_body(self, body_id: bytes) -> list[Held]:
        """Those of this id, of any hop. Does not block."""
        with self._lock:
            return list(self._by_body.get(body_id, ()))

    def expire(self, now: float | None = None) -> int:
        """Throws away open bodies that nobody has sent bytes for; how many."""
        before = (time.time() if now is None else now) - self.limits.expires
        count = 0
        for held in self._of_state("open"):
            if held.touched < before:
                with suppress(Gone, Locked), self._at_work(held):
                    if held.state == "open" and held.touched < before:
                        self._discard(held)
                        count += 1
                        event(_log, "upload expired", upload=held.ticket.upload.hex(),
                              bytes=held.offset)  # fmt: skip
        return count

    def usage(self) -> Usage:
        """What is on the shelf. Does not block."""
        with self._lock:
            oldest = next(iter(self._bodies.values()), None)
            return self._quotas.usage(None if oldest is None else oldest.received)

    @property
    def closed(self) -> bool:
        """Whether it takes nothing any more."""
        return self._closed

    def close(self) -> None:
        """Lets go of the folder. What is being verified stops soon, and is as it was."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            bodies = [held for held in self._bodies.values() if held.state != "whole"]
        for held in bodies:
            with held.lock:  # who is at work there must not be, when another process opens it
                pass
        os.close(self._flock)

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- how ---------------------------------------------------------------------------

    @contextmanager
    def _at_work(self, held: Held, *, wait: bool = False) -> Iterator[None]:
        if not held.lock.acquire(blocking=wait):
            raise Locked("somebody else is at work on this body")
        try:
            self._alive(held)
            yield
        finally:
            held.lock.release()

    def _alive(self, held: Held | None = None) -> None:
        if self._closed or (held is not None and held.gone):
            raise Gone("the body is not here any more, or the shelf is closed")

    def _enter(self, held: Held) -> None:
        """Into memory. With the lock, or alone."""
        self._bodies[held.hop, held.body_id] = held
        self._by_body.setdefault(held.body_id, []).append(held)
        self._quotas.enter(held)

    def _discard(self, held: Held) -> None:
        """Off the disk and out of memory; whatever fails, nobody is given it again."""
        try:
            unlink_body(self.folder, held.named("").name)
        except OSError as error:
            event(_log, "upload cannot be deleted", level=logging.ERROR, why=error)
        with self._lock:
            held.gone, held.running = True, None
            if self._bodies.pop((held.hop, held.body_id), None) is None:
                return
            self._quotas.leave(held)
            same = self._by_body[held.body_id]
            same.remove(held)
            if not same:
                del self._by_body[held.body_id]

    def _write(self, held: Held, parts: Sequence[memoryview], count: int) -> None:
        try:
            file = os.open(held.named(PART), os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._discard(held)
            raise Gone("somebody has deleted the body's file") from None
        try:
            if os.fstat(file).st_size != held.offset:
                self._as_on_disk(held, file)
            try:
                write_all(file, parts, held.offset)
            except OSError:
                with suppress(OSError):  # if this fails, the next one finds it longer, and cuts it
                    os.ftruncate(file, held.offset)
                raise
            held.unsynced += count
            if held.unsynced >= _SYNC_EVERY:
                try:
                    os.fdatasync(file)
                except OSError:  # which of its bytes are on the disk is not known any more
                    self._discard(held)
                    raise
                held.unsynced = 0
        finally:
            os.close(file)

    def _as_on_disk(self, held: Held, file: int) -> None:
        """Where somebody, or a failure, has changed its length: what is there counts."""
        size = os.fstat(file).st_size
        if size > held.offset:
            os.ftruncate(file, held.offset)
            return
        with self._lock:
            self._quotas.grow(held, size)
            held.running = None if size else hashlib.sha256()
        raise WrongOffset(size)

    def _verified(self, held: Held) -> bool:
        """Whether it is what was declared; then it is whole on the disk."""
        part = held.named(PART)
        file = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(file).st_size != held.ticket.size:
                return False
            digest = held.running
            if digest is None:
                digest = hashlib.sha256()
                for piece in self._pieces(file):
                    digest.update(piece)
            if digest.digest() != held.ticket.body_sha256:
                return False
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(part, held.named(WHOLE))
        sync_directory(self.folder)
        return True

    def _pieces(self, file: int) -> Iterable[bytes]:
        while piece := os.read(file, _PIECE):
            if self._closed:
                raise Gone("the shelf is closed")
            yield piece

    def _of_state(self, state: State) -> list[Held]:
        with self._lock:
            return [held for held in self._bodies.values() if held.state == state]

# SPDX-License-Identifier: Apache-2.0
"""The folder of stored files: ``<agent hex>/<upload hex>``, and nothing half under such a name.

A file is in place before the database says so. What a crash leaves is therefore either a file under
a temporary name, which goes at the next start, or a whole one without a row, which its body, still
on the shelf, replaces by the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from upseal.fleet.files import free_bytes, make_private_directory, sync_directory
from upseal.fleet.server.settings import Settings

_PARTS = ".parts"
_SYNC_EVERY = 64 << 20
"""Bytes after which a file is synced: the last sync must not take a stop's whole grace."""
_PIECE = 1 << 20


class Stopped(Exception):  # noqa: N818 - what happened
    """The server stops: what was half done is done again at the next start."""


class Sink(io.RawIOBase):
    """A new file that is hashed while it is written, and ends where the server stops."""

    def __init__(self, path: Path, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop
        self._hash = hashlib.sha256()
        self._unsynced = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self.size = 0
        """Bytes written."""

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, data: Any, /) -> int:
        """All of it.

        Raises:
            Stopped: the server stops.
            OSError: the disk does not take it.
        """
        piece = memoryview(data).cast("B")
        total = len(piece)
        self._hash.update(piece)
        while len(piece):
            if self._stop.is_set():
                raise Stopped
            piece = piece[os.write(self._descriptor, piece) :]
        self.size += total
        self._unsynced += total
        if self._unsynced >= _SYNC_EVERY:
            os.fdatasync(self._descriptor)
            self._unsynced = 0
        return total

    def sync(self) -> bytes:
        """Makes it durable; SHA-256 of all of it."""
        os.fsync(self._descriptor)
        return self._hash.digest()

    def close(self) -> None:
        """Closes the file."""
        if not self.closed:
            super().close()
            os.close(self._descriptor)


class Content:
    """The folder. For the threads of one process."""

    def __init__(self, folder: Path, min_free: int) -> None:
        """Makes it.

        Raises:
            OSError: it cannot be made.
        """
        self.folder = folder
        self._parts = folder / _PARTS
        self._min_free = min_free
        make_private_directory(self._parts)

    def clear(self) -> None:
        """At the start: what a killed process has left half done."""
        for name in os.listdir(self._parts):
            with suppress(FileNotFoundError):
                os.unlink(self._parts / name)

    def need(self, size: int) -> None:
        """Whether so many bytes more fit.

        Raises:
            OSError: they do not (ENOSPC).
        """
        if free_bytes(self.folder) < size + self._min_free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def part(self) -> Iterator[Path]:
        """A name for a file that is gone when the block ends."""
        path = self._parts / f"{secrets.token_hex(16)}.part"
        try:
            yield path
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def link(self, source: Path, target: Path, stop: threading.Event) -> None:
        """A file that is durable, under another name: no byte is copied where that can be.

        Raises:
            OSError: it cannot be had there.
            Stopped: the server stops.
        """
        try:
            os.link(source, target)
        except OSError:  # another disk, or one that has no links
            with open(source, "rb") as reading:
                size = os.fstat(reading.fileno()).st_size
                self.need(size)
                with Sink(target, stop) as sink:
                    shutil.copyfileobj(reading, sink, _PIECE)
                    sink.sync()

    def place(self, part: Path, agent: bytes, upload: bytes) -> str:
        """Gives a durable file its name, for good; returns that, relative to the folder.

        What has the name already has no row, and is replaced.
        """
        relative = f"{agent.hex()}/{upload.hex()}"
        target = self.folder / relative
        make_private_directory(target.parent)
        os.replace(part, target)
        sync_directory(target.parent)
        return relative


def remove(folder: Path, relative: str) -> None:
    """Deletes a stored file, durably; it may be gone already.

    Raises:
        OSError: it cannot be deleted.
    """
    path = folder / relative
    with suppress(FileNotFoundError):
        os.unlink(path)
    with suppress(FileNotFoundError):  # also where somebody else has unlinked it this moment
        sync_directory(path.parent)


def stored_folder(settings: Settings) -> Path:
    """Where stored files lie; `StoredUpload.path` is relative to it."""
    return settings.uploads / "stored"


def incoming_folder(settings: Settings) -> Path:
    """The shelf of bodies that are coming in, or wait."""
    return settings.uploads / "incoming"

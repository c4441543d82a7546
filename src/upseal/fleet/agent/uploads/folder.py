# SPDX-License-Identifier: Apache-2.0
"""The folder in which sealed files wait.

A file there counts if a row of the spool names it, and else is what a process has left behind that
was killed. One that is being made has no row yet: its maker holds a lock on it, which ends with the
maker, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from upseal.core.forks import renew_in_children
from upseal.fleet.agent.database import SpoolError, SpoolFull, SpoolUnusable
from upseal.fleet.files import free_bytes, make_private_directory, sync_directory

_OURS = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{8}")


class Folder:
    """Safe to share between threads, and between processes that use the same folder.

    Args:
        path: where it is, or will be made.
        named: the names that rows stand for, as the spool's file has them now.
        settled: the same, when no row can come back whose transaction failed at its last step.
    """

    def __init__(
        self, path: Path, named: Callable[[], set[str]], settled: Callable[[], set[str]]
    ) -> None:
        self.path = path
        self._named, self._settled = named, settled
        self._making: set[io.FileIO] = set()
        renew_in_children(self)

    def after_fork(self) -> None:
        """A child has no part in what its parent makes, and must not keep it locked."""
        for file in list(self._making):
            with suppress(OSError):
                file.close()
        self._making.clear()

    @contextmanager
    def making(self, upload: bytes) -> Iterator[tuple[str, io.FileIO]]:
        """A new file, to be written and to be named by a row before the block ends.

        Raises:
            SpoolError: it cannot be made.
            RuntimeError: this is a child that was forked inside the block.
        """
        name, file = self._new(upload)
        process = os.getpid()
        try:
            yield name, file
        except BaseException as error:
            if os.getpid() != process:
                raise RuntimeError("an upload cannot go on in a forked child") from error
            # By what the row says, since an interrupt may come when it has just been written. A
            # transaction that failed for want of room has left nothing that could come back.
            full = isinstance(error, SpoolFull)
            with suppress(SpoolError, OSError):
                if name not in (self._named() if full else self._settled()):
                    os.unlink(self.path / name)
            raise
        finally:
            self._making.discard(file)
            file.close()

    def _new(self, upload: bytes) -> tuple[str, io.FileIO]:
        try:
            make_private_directory(self.path)
            while True:
                name = f"{upload.hex()}.{secrets.token_hex(4)}"
                file = io.FileIO(self.path / name, "r+b", opener=_new_file)
                if self._locked(file):
                    return name, file
        except OSError as error:
            raise full_or_unusable(error, self.path) from error

    def _locked(self, file: io.FileIO) -> bool:
        """False: it was swept away between the two calls, before it was locked."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                self._making.add(file)
                return True
        except BaseException:
            file.close()
            raise
        file.close()
        return False

    def keep(self, file: io.FileIO) -> None:
        """Makes it durable, under its name.

        Raises:
            SpoolError: the disk did not take it.
        """
        try:
            os.fsync(file.fileno())
            sync_directory(self.path)
        except OSError as error:
            raise full_or_unusable(error, self.path) from error

    def open(self, name: str) -> io.FileIO:
        """One of those that are kept.

        Raises:
            OSError: it cannot be opened.
        """
        return io.FileIO(self.path / name, "rb")

    def remove(self, name: str | None) -> None:
        """Takes away one that no row names any more. If that fails now, `sweep` does it later."""
        if name is not None:
            with suppress(OSError):
                os.unlink(self.path / name)

    def sweep(self) -> int:
        """Takes away what no row names and nobody is making; says how many files that were.

        Raises:
            SpoolError: the rows cannot be read.
        """
        gone = 0
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            named = self._named()
            for entry in entries:
                if entry.name not in named and _OURS.fullmatch(entry.name):
                    gone += self._sweep_one(entry.name)
        return gone

    def _sweep_one(self, name: str) -> bool:
        path = self.path / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its maker may have finished since the rows were read.
            if name in self._named():
                return False
            os.unlink(path)
            return True
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def free(self) -> int:
        """Bytes that the disk has left."""
        return free_bytes(self.path if self.path.is_dir() else self.path.parent)


def _new_file(path: str, _: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def full_or_unusable(error: OSError, path: Path) -> SpoolError:
    """What an error of our own disk means."""
    if is_full(error):
        return SpoolFull(f"no room on the disk of {path}")
    return SpoolUnusable(f"{path} cannot be used: {error}")


def is_full(error: OSError) -> bool:
    """Whether the disk, a quota or the file system has no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

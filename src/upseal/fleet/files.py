# SPDX-License-Identifier: Apache-2.0
"""Small files that must survive a crash whole, and stay private: keys, credentials, trust.

And what is asked of long ones, and of their disk.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from upseal.core.positioned import blocking, naming, read_up_to

SMALL_MAX = 64 * 2**20
_PIECE = 1 << 20


def make_private_directory(path: Path) -> None:
    """Makes it, and what is missing above it, with mode 0700. What is there stays as it is."""
    if path.is_dir():
        return
    if path.parent != path:
        make_private_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes renames in it durable."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_private(path: Path, limit: int = SMALL_MAX) -> bytes:
    """A small file's bytes.

    Raises:
        OSError: it cannot be read, or is longer than anything we write.
    """
    with open(path, "rb", buffering=0) as file:
        data = read_up_to(file, limit + 1)
    if len(data) > limit:
        raise OSError(f"{path} is longer than {limit} bytes")
    return data


def write_private(path: Path, data: bytes) -> None:
    """Replaces a file, or makes it: after a crash the old bytes are there or the new ones."""
    with _beside(path, data) as temporary:
        os.replace(temporary, path)
    sync_directory(path.parent)


def write_new_private(path: Path, data: bytes) -> bool:
    """Makes a file, durably, with all its bytes or not at all; False if there is one already."""
    with _beside(path, data) as temporary:
        try:
            os.link(temporary, path)  # unlike a rename, this never replaces
        except FileExistsError:
            return False
    sync_directory(path.parent)
    return True


def free_bytes(folder: Path) -> int:
    """Bytes that this process may still write there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def read_at(descriptor: int, offset: int, length: int) -> bytes:
    """So many bytes from there; fewer only at the end."""
    parts = []
    while length and (part := os.pread(descriptor, length, offset)):
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def file_sha256(file: io.FileIO, check: Callable[[], None]) -> bytes:
    """Of all its bytes; ``check`` is called now and then, and what it raises ends the work."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_PIECE))
    file.seek(0)
    while count := _filled(file, buffer):
        digest.update(buffer[:count])
        check()
    return digest.digest()


def _filled(file: io.FileIO, buffer: memoryview) -> int:
    with naming(file.name):
        count: int | None = file.readinto(buffer)
        if count is None:
            raise blocking()
    return count


class FileLock:
    """One process at a time: ``flock`` on a file that stays. To be held for moments."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> None:
        import fcntl  # not on Windows: the fleet runs on POSIX systems

        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def __exit__(self, *_: object) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """Lets go, in a child of a fork of its copy alone."""
        if self._descriptor is not None:
            os.close(self._descriptor)  # with the last copy the lock goes
            self._descriptor = None


@contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    """The bytes, synced, under a temporary name in the same directory; removed afterwards."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with naming(path), open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)

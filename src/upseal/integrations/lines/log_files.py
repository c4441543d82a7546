# SPDX-License-Identifier: Apache-2.0
"""Which file is which among those that a log was rotated to."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from contextlib import suppress
from typing import Any

EDGE = 256
"""Bytes that are compared, at the beginning and before the place read so far."""
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".Z")


def open_regular(path: str) -> int | None:
    """A regular file for reading, if there is one; other kinds could block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file; use a pipe", path)
    return descriptor


def open_sibling(path: str, name: str) -> int | None:
    """One of the `siblings` for reading; None for another log that is not ours to read.

    Raises:
        OSError: it cannot be read, and is ``path`` or was.
    """
    try:
        return open_regular(name)
    except PermissionError:
        if name == path or is_rotated(path, name):
            raise
        return None


def siblings(path: str) -> list[tuple[tuple[int, int], str]]:
    """(device, inode) and name of regular files that are named alike, newest first."""
    folder, base = os.path.split(path)
    stem = os.path.splitext(base)[0]
    found = []
    with suppress(FileNotFoundError), os.scandir(folder or ".") as entries:
        for entry in entries:
            if entry.name.startswith(stem) and not entry.name.endswith(_COMPRESSED):
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=entry.name == base)
                    if stat.S_ISREG(status.st_mode):
                        identity = (status.st_dev, status.st_ino)
                        name = os.path.join(folder, entry.name)
                        found.append((status.st_mtime, identity, name))
    return [(identity, name) for _, identity, name in sorted(found, reverse=True)]


def is_rotated(path: str, name: str) -> bool:
    """Whether logrotate gives such names: ``app.log.1``, ``app.log-20261123``, ``app-1.log``.

    Another log may be called ``app.log.json``.
    """
    stem, ending = os.path.splitext(os.path.basename(path))
    base = re.escape(stem) + f"(?:{re.escape(ending)})?"
    number = r"[._-]?\d[\d._T:Z-]*"
    kept = rf"{base}(?:{number}(?:{re.escape(ending)})?|\.(?:old|bak|prev))"
    return name != path and re.fullmatch(kept, os.path.basename(name)) is not None


def identity(descriptor: int) -> tuple[int, int]:
    """Device and inode."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def identity_at(path: str) -> tuple[int, int] | None:
    """The same of what has that name now."""
    with suppress(FileNotFoundError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None


def edges(descriptor: int, position: int) -> tuple[bytes, bytes]:
    """What stands at the beginning, and just before ``position``."""
    head = os.pread(descriptor, min(EDGE, position), 0)
    start = max(0, position - EDGE)
    return head, os.pread(descriptor, position - start, start)


def digest(head: bytes, tail: bytes) -> str:
    """Of `edges`, for a state file, which shall show no lines."""
    return hashlib.sha256(bytes([len(head) % 256]) + head + tail).hexdigest()


def fits(descriptor: int, mark: dict[str, Any]) -> bool:
    """Whether a file still is, or is a copy of, what a mark was made of."""
    if os.fstat(descriptor).st_size < mark["offset"]:
        return False
    return bool(digest(*edges(descriptor, mark["offset"])) == mark["edges"])


def is_prefix(front: int, whole: int) -> bool:
    """Whether one file is how another begins: a copy, of a file that has grown since."""
    size, at = os.fstat(front).st_size, 0
    if not 0 < size <= os.fstat(whole).st_size:
        return False
    while at < size:
        piece = os.pread(front, 1 << 16, at)
        if not piece or os.pread(whole, len(piece), at) != piece:
            return False
        at += len(piece)
    return True

# SPDX-License-Identifier: Apache-2.0
"""A real tree of files, as the stream that a real ``tar`` makes of it."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upseal.cli.common import IO, Failure, printable_size

_LITTLE_OVER = 5 / 4
_EVERYWHERE = ("/usr/bin", "/usr/lib", "/usr/share", "/opt", "/usr/local", "/Library")


def choose(minimum: int, option: str = "--upload-mib") -> tuple[list[str], int, list[str]]:
    """Readable regular files of this host with ``minimum`` bytes together, and not much more.

    Args:
        minimum: bytes.
        option: which one to lower if there are not so many.

    Returns:
        Their absolute paths, their bytes, and the folders they were found in.
    """
    files: list[str] = []
    folders: list[str] = []
    seen: set[tuple[int, int]] = set()  # of a file with two names, tar keeps the second as a link
    size = 0
    for top in (*_EVERYWHERE, sys.prefix):
        root = os.path.realpath(top)
        if not os.path.isdir(root):
            continue
        for path, length, inode in _walk(root):
            if inode in seen or size + length > minimum * _LITTLE_OVER:
                continue
            seen.add(inode)
            files.append(path)
            size += length
            if root not in folders:
                folders.append(root)
            if size >= minimum:
                return files, size, folders
    raise Failure(
        IO,
        f"the folders of this host have only {printable_size(size)} that can be read; "
        f"give a smaller {option} than {minimum >> 20}",
    )


def _walk(root: str) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Path, bytes, and device and inode of each regular file."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.islink(path) or not os.path.isfile(path) or not os.access(path, os.R_OK):
                continue
            status = os.stat(path)
            yield path, status.st_size, (status.st_dev, status.st_ino)


class Hashing(io.RawIOBase):
    """Reads from a pipe and hashes what passes."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self._source = source
        self._hash = hashlib.sha256()
        self.size = 0

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, target: Any, /) -> int:
        """From the pipe."""
        count = int(self._source.readinto(target) or 0)
        self._hash.update(memoryview(target)[:count])
        self.size += count
        return count

    def digest(self) -> str:
        """SHA-256 of all that was read, in hexadecimal."""
        return self._hash.hexdigest()


@contextmanager
def tar_stream(files: list[str], folder: Path) -> Iterator[Hashing]:
    """What ``tar`` writes to its standard output, which is a pipe.

    Args:
        files: absolute paths.
        folder: for the list of them, and for what tar complains of.
    """
    program = shutil.which("tar")
    if program is None:
        raise Failure(IO, "there is no tar on this host; install it, or give --upload-mib 0")
    names = folder / "files"
    names.write_bytes(b"".join(os.fsencode(path[1:]) + b"\0" for path in files))
    complaints = folder / "tar.errors"
    with open(complaints, "wb") as errors:
        child = subprocess.Popen(  # noqa: S603 - the host's own tar
            [program, "-c", "-f", "-", "-C", "/", "--null", "-T", str(names)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
        )
    try:
        yield Hashing(child.stdout)
        status = child.wait()
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    if status > 1:  # 1: a file changed while it was read, which is no fault of the archive
        said = complaints.read_text("utf-8", "replace").strip().splitlines()
        raise Failure(IO, f"tar failed: {said[-1] if said else status}; try again")


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

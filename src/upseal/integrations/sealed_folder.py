# SPDX-License-Identifier: Apache-2.0
"""A folder of sealed files: each is there whole or not at all, and their names sort by age."""

from __future__ import annotations

import errno
import os
import secrets
import time
from pathlib import Path

SUFFIX = ".upseal"


class SealedFolder:
    """Puts sealed bytes into a folder, one file each, for whatever carries files away.

    A file stands under a name that begins with a dot until it is on the disk, then gets its own:
    a shipper that takes ``*.upseal`` sees whole files only.

    Args:
        path: made if it is not there (mode 0700).
        max_bytes: of all sealed files in it; more is refused with `OSError` (ENOSPC), so that a
            shipper that stands still fills no disk. None for no bound.

    Raises:
        ValueError: the bound is not above 0.
        OSError: the folder cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be above 0, not {max_bytes}")
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def __call__(self, sealed: bytes) -> None:
        """Keeps ``sealed`` under a name of its own: time, process and chance.

        Raises:
            OSError: it could not be written, or there is no room; nothing is left behind.
        """
        if not self.has_room(len(sealed)):
            raise OSError(errno.ENOSPC, f"holds {self.max_bytes} bytes already", str(self.path))
        self.put(f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}", sealed)
        self.settle()

    def put(self, name: str, sealed: bytes) -> None:
        """Keeps ``sealed`` as ``name.upseal``, over an equal one; `settle` makes names durable.

        Raises:
            OSError: it could not be written; nothing is left behind.
        """
        temporary = self.path / f".{name}.{secrets.token_hex(4)}.part"
        try:
            with open(temporary, "xb", buffering=0) as file:
                left = memoryview(sealed)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            os.replace(temporary, self.path / (name + SUFFIX))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def settle(self) -> None:
        """Returns when the names of all files put here are on the disk."""
        sync_folder(self.path)

    def has_room(self, more: int) -> bool:
        """Whether so many bytes fit; an empty folder takes anything."""
        if self.max_bytes is None:
            return True
        held = 0
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX):
                    try:
                        held += entry.stat(follow_symlinks=False).st_size
                    except FileNotFoundError:
                        continue  # the shipper has taken it
        return held == 0 or held + more <= self.max_bytes

    def files(self) -> list[Path]:
        """What is in it now, oldest first."""
        return sorted(p for p in self.path.glob("*" + SUFFIX) if not p.name.startswith("."))


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Makes names that were made or replaced in this folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

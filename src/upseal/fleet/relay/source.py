# SPDX-License-Identifier: Apache-2.0
"""The bytes of a body on the disk, piece by piece as they go up."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from upseal.fleet.files import read_at


class Lost(Exception):  # noqa: N818 - what happened
    """The file is not there any more, or not as long as it was left."""


class Source:
    """An open file, of a length that is known. Safe against its being deleted meanwhile.

    Args:
        path: of the file.
        size: that it must have.
        before: called with the length of each piece before it is read.

    Raises:
        Lost: see there.
        OSError: it cannot be read.
    """

    def __init__(
        self, path: Path, size: int, before: Callable[[int], None] = lambda count: None
    ) -> None:
        self._size, self._before = size, before
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Lost from None
        if os.fstat(self._file).st_size != size:
            self.close()
            raise Lost

    def read(self, offset: int, length: int) -> bytes:
        """A piece, whole: no more than there is.

        Raises:
            Lost: the file has become shorter.
            OSError: it cannot be read.
        """
        length = max(0, min(length, self._size - offset))
        self._before(length)
        piece = read_at(self._file, offset, length)
        if len(piece) < length:
            raise Lost
        return piece

    def close(self) -> None:
        """Closes it; twice does no harm."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

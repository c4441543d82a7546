# SPDX-License-Identifier: Apache-2.0
"""Regular files, read and written at an offset: all of it, or an error that says of which file.

The system may move less than it is asked to, and its own error says nothing but what went wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EAGAIN
from typing import Any

_PIECE = 1 << 20


class ShortError(OSError):
    """The file ended early."""

    def __init__(self) -> None:
        super().__init__("the source became shorter while it was read")


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Adds a path to an error of the system that has none. What is no path adds nothing."""
    try:
        yield
    except OSError as error:
        unnamed = error.errno is not None and error.filename is None
        if unnamed and isinstance(path, (str, bytes, os.PathLike)):
            error.filename = os.fspath(path)
        raise


def blocking() -> BlockingIOError:
    """For a file that has nothing just now, which is not its end."""
    return BlockingIOError(EAGAIN, os.strerror(EAGAIN))


def read_at(file: Any, target: memoryview, offset: int) -> None:
    """Fills ``target``.

    Raises:
        ShortError: the file ends before.
        OSError: it cannot be read.
    """
    with naming(file.name):
        while len(target):
            got = os.preadv(file.fileno(), [target], offset)
            if not got:
                raise ShortError
            target, offset = target[got:], offset + got


def write_at(file: Any, data: memoryview, offset: int) -> None:
    """Writes all of ``data``.

    Raises:
        OSError: the disk does not take it.
    """
    with naming(file.name):
        while len(data):
            written = os.pwrite(file.fileno(), data, offset)
            data, offset = data[written:], offset + written


def read_up_to(file: Any, most: int) -> bytes:
    """So many bytes from where the file stands; fewer only at its end.

    Raises:
        OSError: it cannot be read.
    """
    parts, left = [], most
    with naming(getattr(file, "name", None)):
        # Piece by piece: Python takes memory for all that a read asks for, and ``most`` may be far.
        while left and (part := file.read(min(_PIECE, left))) != b"":
            if part is None:
                raise blocking()
            parts.append(part)
            left -= len(part)
    return b"".join(parts)

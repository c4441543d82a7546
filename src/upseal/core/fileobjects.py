# SPDX-License-Identifier: Apache-2.0
"""What a caller's own file object answers with."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO


def check_count(count: int, most: int) -> None:
    """Checks how many bytes a ``readinto`` or ``write`` says it has moved.

    With one that cannot be, bytes would be left out or counted twice, and nobody would know.

    Raises:
        OSError: it is none from 0 to ``most``.
    """
    if not 0 <= count <= most:
        raise OSError(f"the file says that it has moved {count} bytes, of {most}")


def readinto_of(fileobj: IO[bytes]) -> Callable[[memoryview], int | None]:
    """Its ``readinto``, or one made of its ``read``."""
    own: Callable[[memoryview], int | None] | None = getattr(fileobj, "readinto", None)
    return own or _by_read(fileobj)


def _by_read(fileobj: IO[bytes]) -> Callable[[memoryview], int | None]:
    def readinto(target: memoryview) -> int | None:
        data: bytes | None = fileobj.read(len(target))
        if data is None:
            return None
        if len(data) <= len(target):  # more is what `check_count` refuses
            target[: len(data)] = data
        return len(data)

    return readinto

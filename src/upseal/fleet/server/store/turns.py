# SPDX-License-Identifier: Apache-2.0
"""Turns at writing to SQLite, so that a busy server does not starve an administrator's command.

SQLite's own lock is taken by whoever asks at the right moment, and those who wait ask ten times a
second: beside a server that commits without a pause they may never get it. So writers queue at two
file locks. Who waits for the second holds the first, and nobody can overtake him.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """The two locks beside a database file: ``NAME-door`` and ``NAME-turn``."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._door = f"{database}-door"
        self._turn = f"{database}-turn"

    @contextmanager
    def take(self) -> Iterator[None]:
        """Waits for the turn, and keeps it while the block runs. The system frees a dead one's."""
        turn = None
        door = self._open(self._door)
        try:
            fcntl.flock(door, fcntl.LOCK_EX)
            turn = self._open(self._turn)
            fcntl.flock(turn, fcntl.LOCK_EX)
        except BaseException:
            if turn is not None:
                os.close(turn)
            raise
        finally:
            os.close(door)
        try:
            yield
        finally:
            os.close(turn)

    def _open(self, path: str) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.geteuid() == 0:  # as SQLite does: else the server's own user could not open it
            owner = os.stat(self._database)
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        return descriptor

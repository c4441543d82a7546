# SPDX-License-Identifier: Apache-2.0
"""One sending process for each spool, by a lock on a file that ends with the process."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from upseal.core.forks import renew_in_children

_PATIENCE = 1.0
"""Seconds: whoever only looks whether somebody sends holds the lock for a moment."""


class OneSender:
    """The lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._waiting: int | None = None
        renew_in_children(self)

    def after_fork(self) -> None:
        """A child does not send, and must not keep others from it when its parent is gone."""
        # The one it waits with, too: what lock its parent gets by it the child would hold as well.
        for descriptor in (self._descriptor, self._waiting):
            if descriptor is not None:
                os.close(descriptor)
        self._descriptor = self._waiting = None

    def take(self) -> bool:
        """True if this process may send now."""
        if self._descriptor is not None:
            return False
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._waiting = descriptor
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    self._waiting = None
                    os.close(descriptor)
                    return False
            except BaseException:
                self._waiting = None
                os.close(descriptor)
                raise
            time.sleep(0.05)
        self._descriptor, self._waiting = descriptor, None
        with suppress(OSError):  # only for people: a full disk does not keep us from sending
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return True

    def release(self) -> None:
        """Lets another process send."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def holder(self) -> int | None:
        """The process that sends; None if none does, 0 if it cannot be told which."""
        if self._descriptor is not None:
            return os.getpid()
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            text = os.pread(descriptor, 20, 0)
            return int(text) if text.isdigit() else 0
        finally:
            os.close(descriptor)

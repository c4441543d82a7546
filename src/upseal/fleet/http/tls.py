# SPDX-License-Identifier: Apache-2.0
"""TLS contexts that follow their files: a renewed certificate needs no restart."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Callable, Sequence

from upseal.core.forks import renew_in_children
from upseal.fleet.http.logs import event

File = str | os.PathLike[str]
_Stamp = tuple[int, int, int] | None
_log = logging.getLogger("upseal.http")


class Renewing:
    """The context made of some files as they are now. Safe for threads, and in forked children.

    The files are looked at with every call of `current`, which is at every new connection. What
    cannot be used (a certificate whose key is still to be written) changes nothing: the last that
    could goes on, and one line in the log says so.

    Args:
        make: reads them.
        files: which; None for one that is not set.
    """

    def __init__(self, make: Callable[[], ssl.SSLContext], files: Sequence[File | None]) -> None:
        """Reads them.

        Raises:
            OSError, ValueError: one is not what it should be.
        """
        self._make = make
        self._files = [os.fspath(file) for file in files if file is not None]
        # First the stamp: what is written in between is seen at the next look.
        self._seen = self._stamps()
        self._context = make()
        self._lock = threading.Lock()
        renew_in_children(self)

    def after_fork(self) -> None:
        """For the child of a fork: a lock of its own."""
        self._lock = threading.Lock()

    def current(self) -> ssl.SSLContext:
        """For the next connection."""
        if self._stamps() != self._seen:
            self._renew()
        return self._context

    def _renew(self) -> None:
        with self._lock:
            stamps = self._stamps()
            if stamps == self._seen:
                return
            self._seen = stamps  # once for each state of the files, whatever comes of it
            try:
                self._context = self._make()
            except (OSError, ValueError) as error:
                event(
                    _log, "TLS files cannot be used; the last ones still are",
                    level=logging.WARNING, files=self._files, why=type(error).__name__,
                )  # fmt: skip
            else:
                event(_log, "TLS files read again", files=self._files)

    def _stamps(self) -> list[_Stamp]:
        return [_stamp(file) for file in self._files]


def _stamp(file: str) -> _Stamp:
    try:
        facts = os.stat(file)
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size

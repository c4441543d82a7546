# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, SIGTERM and SIGHUP as an exception, so that temporary files are cleaned away."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_seen = 0


class Stopped(BaseException):
    """A signal has asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def caught() -> Iterator[None]:
    """Within, these signals raise `Stopped`; one that is ignored (nohup) stays ignored."""
    global _seen
    _seen = 0
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.getsignal(n) for n in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def check() -> None:
    """Raises in a worker thread what the main thread has got: signals reach that one alone."""
    if _seen:
        raise Stopped(_seen)


def _stop(number: int, _: FrameType | None) -> None:
    global _seen
    _seen = number
    raise Stopped(number)

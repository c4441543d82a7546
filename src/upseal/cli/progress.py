# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr, where somebody is looking."""

from __future__ import annotations

import sys
import time

from upseal.cli import stopping
from upseal.cli.common import printable_size

_PATIENCE = 0.5
_EVERY = 0.1


class Progress:
    """A line that updates itself on a terminal, after half a second; silent on a pipe.

    Give it to ``seal_file`` or ``open_file``: it also ends their worker threads on a signal.
    """

    def __init__(self, label: str, *, wanted: bool = True) -> None:
        self._label = label
        self._on = wanted and sys.stderr is not None and sys.stderr.isatty()
        self._start = time.monotonic()
        self._next = self._start + _PATIENCE
        self._width = 0

    def __call__(self, done: int, total: int | None) -> None:
        """Called by the library, now and then."""
        stopping.check()
        if not self._on or (now := time.monotonic()) < self._next:
            return
        self._next = now + _EVERY
        text = f"{self._label} {printable_size(done)}"
        if total:
            text += f" of {printable_size(total)}, {100 * done // total} %"
        self.show(f"{text}, {printable_size(done / (now - self._start))}/s")

    def show(self, text: str) -> None:
        """Puts a text on the line."""
        if self._on:
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)

    def clear(self) -> None:
        """Takes the line away."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()


class Steps:
    """Says what is being done: one changing line on a terminal, else a line each."""

    def __init__(self, *, quiet: bool) -> None:
        self.progress = Progress("")
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._lines = sys.stderr is not None and not terminal and not quiet

    def __call__(self, text: str) -> Progress:
        """The next one."""
        stopping.check()
        if self._lines:
            print(f"upseal demo: {text}", file=sys.stderr, flush=True)
        self.progress.clear()
        self.progress = Progress(text)
        self.progress.show(text)
        return self.progress

    def counting(self, text: str) -> None:
        """How far the present one is; no line of its own where there are lines."""
        stopping.check()
        self.progress.show(text)

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.clear()

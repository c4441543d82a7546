# SPDX-License-Identifier: Apache-2.0
"""Processes of ``upseal``: started, watched, stopped, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from upseal.cli import stopping
from upseal.cli.common import BAD, Failure

_TAIL_LINES = 8
_TAIL_BYTES = 1 << 14
_PATIENCE = 30.0
_LOOK = 0.1
_LAST_WORD = 5.0
_OWN = ("UPSEAL_LEVEL", "UPSEAL_DEPLOYMENT", "UPSEAL_TOKEN", "UPSEAL_PASSPHRASE")
"""Of the user's environment, what would change what the demo's own processes do."""

_GUARD = """
import os, signal, sys
left = set()
for line in sys.stdin:
    left ^= {int(line)}
for process in left:
    try:
        os.kill(process, signal.SIGTERM)
    except OSError:
        pass
"""
"""Ends what is left when its input ends: also where the demo itself was killed by SIGKILL."""


class Process:
    """One of them, with its log."""

    def __init__(self, name: str, arguments: Iterable[str], log: Path, folder: Path) -> None:
        self.name = name
        self.log = log
        self.expected = False
        """It may end: it was asked to, or does so by itself."""
        environment = {k: v for k, v in os.environ.items() if k not in _OWN}
        with open(log, "ab") as file:
            self.child = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", "upseal", *arguments],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=folder, env=environment,
            )  # fmt: skip

    @property
    def ended(self) -> bool:
        """Whether it is no more."""
        return self.child.poll() is not None

    @property
    def missing(self) -> bool:
        """Whether it has ended and should not have."""
        return self.ended and not self.expected

    def terminate(self) -> None:
        """Asks it to end; `Processes.reap` waits for it."""
        self.expected = True
        if not self.ended:
            self.child.send_signal(signal.SIGTERM)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of its log that tell of one kind of event."""
        found = []
        for line in self.log.read_bytes().splitlines():
            with suppress(ValueError):  # the last one is being written
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") == name:
                    found.append(event)
        return found

    def tail(self) -> list[str]:
        """The last lines of its log."""
        text = self.log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace")
        return text.splitlines()[-_TAIL_LINES:]

    def failed(self, what: str) -> Failure:
        """An error that names it, after its last words."""
        if sys.stderr is not None:
            for line in self.tail():
                print(f"  {self.name}: {line}", file=sys.stderr)
        return Failure(BAD, f"the demo failed: {self.name} {what}; its last lines stand above")


class Processes:
    """All of them. Leaving the ``with`` ends whatever still runs, however it is left."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self._folder = folder
        self._logs = logs
        self.running: list[Process] = []
        self._guard: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._guard = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-I", "-c", _GUARD],
            stdin=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        return self

    def _tell(self, process: Process) -> None:
        """The guard hears of each twice: when it begins, and when it has been waited for."""
        if self._guard is not None and self._guard.stdin is not None:
            with suppress(OSError):
                self._guard.stdin.write(f"{process.child.pid}\n")
                self._guard.stdin.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for process in self.running:
                process.terminate()
            end = time.monotonic() + _LAST_WORD
            while any(not process.ended for process in self.running) and time.monotonic() < end:
                time.sleep(_LOOK)
        finally:  # also if a second signal comes meanwhile
            for process in self.running:
                with suppress(OSError):
                    process.child.kill()
            for process in self.running:
                process.child.wait()
                self._tell(process)
            if self._guard is not None:
                self._guard.communicate()

    def start(self, name: str, *arguments: str) -> Process:
        """``upseal`` with these arguments, its output in a log of that name."""
        log = self._logs / f"{name}.log"
        process = Process(name, arguments, log, self._folder)
        self.running.append(process)
        self._tell(process)
        return process

    def kill(self, process: Process) -> None:
        """SIGKILL: it has no say in it. It is gone when this returns."""
        process.expected = True
        process.child.kill()
        process.child.wait()
        self.running.remove(process)
        self._tell(process)

    def check(self) -> None:
        """Raises `Failure` if one has ended that nobody asked to."""
        stopping.check()
        for process in list(self.running):  # others may start and kill some meanwhile
            if process.missing:
                raise process.failed(f"ended with exit code {process.child.returncode}")

    def until(
        self,
        what: str,
        condition: Callable[[], bool],
        seconds: float = 120.0,
        pause: float = _LOOK,
        culprit: Process | None = None,
    ) -> None:
        """Waits for a condition while all run.

        Raises:
            Failure: a process has ended, or it did not come about in time.
        """
        end = time.monotonic() + seconds
        while not condition():
            self.check()
            if time.monotonic() > end:
                if culprit is not None:
                    raise culprit.failed(f"is not as it should be after {seconds:g} s: {what}")
                raise Failure(BAD, f"the demo failed: after {seconds:g} s still not so: {what}")
            time.sleep(pause)

    def reap(self, stopped: Iterable[Process]) -> None:
        """Waits for those that were asked to end.

        Raises:
            Failure: one did not, or not in good order.
        """
        end = time.monotonic() + _PATIENCE
        for process in list(stopped):
            try:
                code = process.child.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise process.failed(f"has not ended {_PATIENCE:g} s after SIGTERM") from None
            self.running.remove(process)
            self._tell(process)
            if code:
                raise process.failed(f"ended with exit code {code} when it was asked to stop")


def milliseconds(text: str) -> int:
    """A log line's time, as everything else has it."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)

# SPDX-License-Identifier: Apache-2.0
"""What every peer can be asked for, and how programs are run so that their memory is known."""

from __future__ import annotations

import atexit
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

POLL = 4
"""Milliseconds between two looks at a program's memory."""


class MissingError(Exception):
    """This peer cannot run here; the message says why."""


class Peer:
    """One way of sealing. Attributes say what it can do and what its figures leave out."""

    name = ""
    package: str | None = None
    """Distribution whose version is shown."""
    amortises = "nothing: all of its work is done for each report"
    """What its rows pay once for many reports, and so do not show."""
    program = False
    """A process of its own: figures are of the whole process, from start to end."""
    reports = False
    """It has `seal` and `open`."""
    files = False
    """It has `seal_file` and `open_file`."""

    def version(self) -> str:
        """For people to read."""
        try:
            return f"{self.package} {version(self.package)}" if self.package else ""
        except PackageNotFoundError:
            return str(self.package)

    def seal(self, report: bytes) -> bytes:
        """One report, to a recipient made beforehand."""
        raise NotImplementedError

    def open(self, sealed: bytes) -> bytes:
        """The report again."""
        raise NotImplementedError

    def seal_file(self, source: Path, target: Path) -> int | None:
        """File to file; a program returns its peak memory in KiB."""
        raise NotImplementedError

    def open_file(self, source: Path, target: Path) -> int | None:
        """Back again."""
        raise NotImplementedError


def find_program(name: str) -> str:
    """Where it is.

    Raises:
        MissingError: nowhere.
    """
    found = shutil.which(name)
    if found is None:
        raise MissingError(f"the program {name} is not installed")
    return found


def scratch() -> Path:
    """A folder for a program's keys, gone when this process ends."""
    folder = tempfile.mkdtemp(prefix="upseal-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def run(command: Sequence[str | Path]) -> int:
    """Runs a program to its end; returns its peak resident memory in KiB.

    That is read while it runs: what ``wait4`` says includes what the parent had before the exec.
    """
    process = subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    peak = 0
    status = Path(f"/proc/{process.pid}/status")
    ended = select.poll()
    with os.fdopen(os.pidfd_open(process.pid)) as descriptor:
        ended.register(descriptor, select.POLLIN)
        while not ended.poll(POLL):  # returns as soon as it ends: the clock is running
            with suppress(OSError, IndexError, ValueError):
                line = status.read_text().partition("VmHWM:")[2]
                peak = max(peak, int(line.split()[0]))
    process.wait()
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return peak


def pipe(command: Sequence[str | Path], data: bytes) -> bytes:
    """Runs a program on bytes."""
    parts = [str(part) for part in command]
    return subprocess.run(parts, input=data, stdout=subprocess.PIPE, check=True).stdout

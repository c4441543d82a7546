# SPDX-License-Identifier: Apache-2.0
"""Where sealed lines go, and the state file that makes a kill at any moment cost nothing.

Before sealed batches go out, the state file is replaced by one that holds them, the places in the
files behind them, and where the output ended. So they are durable before they count as read, and a
restart finishes writing exactly these bytes: nothing is sealed twice, and nothing is lost.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from upseal.integrations.sealed_folder import SealedFolder, sync_folder

_VERSION = 1
_FRONT_MAX = 16 << 20
_STREAM = re.compile("[0-9a-f]{32}")


class Output(Protocol):
    """Takes sealed batches; `write` returns when they are as durable as they get there."""

    def begin(self) -> None:
        """Before the first `write`, behind `redo` if there is something to redo."""

    def end(self) -> dict[str, Any]:
        """Where it ends now, for `redo`."""

    def write(self, stream: str, sequence: int, batches: list[bytes]) -> None:
        """Writes them all."""

    def redo(self, end: dict[str, Any], stream: str, sequence: int, batches: list[bytes]) -> None:
        """Writes what of them is not there yet, since it ended at ``end``."""

    def has_room(self, more: int) -> bool:
        """Whether so many bytes may come."""

    def close(self) -> None:
        """Closes it."""


def as_text(batches: list[bytes]) -> bytes:
    """One line of base64 each."""
    return b"".join(base64.b64encode(batch) + b"\n" for batch in batches)


class TextFile:
    """Appends lines of base64 to a file, and begins a new one when that is rotated away."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = self._open()
        sync_folder(os.path.dirname(path) or ".")

    def end(self) -> dict[str, Any]:
        """Device, inode and size."""
        self._reopen()
        status = os.fstat(self._descriptor)
        return {"device": status.st_dev, "inode": status.st_ino, "size": status.st_size}

    def write(self, stream: str, sequence: int, batches: list[bytes]) -> None:
        """Appends a line for each."""
        self._append(as_text(batches))

    def redo(self, end: dict[str, Any], stream: str, sequence: int, batches: list[bytes]) -> None:
        """Appends what of it is not there yet."""
        self._reopen()
        text = as_text(batches)
        status = os.fstat(self._descriptor)
        begins = end.get("size")
        same = (status.st_dev, status.st_ino) == (end.get("device"), end.get("inode"))
        if same and isinstance(begins, int) and begins <= status.st_size:
            with open(self.path, "rb", buffering=0) as file:
                there = os.pread(file.fileno(), len(text), begins)
            if text.startswith(there):
                text = text[len(there) :]
        self._append(text)

    def begin(self) -> None:
        """Ends a line that somebody else has left unfinished, so that ours begins a new one."""
        with open(self.path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                self._append(b"\n")

    def has_room(self, more: int) -> bool:
        """True: a full disk says so itself."""
        return True

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def _append(self, text: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        left = memoryview(text)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError:
            with suppress(OSError):  # half a line helps nobody; the first error is what counts
                os.ftruncate(self._descriptor, size)
            raise

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(self.path, flags, 0o644)  # sealed: shippers may run as others

    def _reopen(self) -> None:
        mine = os.fstat(self._descriptor)
        with suppress(FileNotFoundError):
            now = os.stat(self.path)
            if (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino):
                return
        os.close(self._descriptor)
        self._descriptor = self._open()
        sync_folder(os.path.dirname(self.path) or ".")


class Pipe:
    """Writes lines of base64 to a descriptor. What its reader does with them is not known."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def begin(self) -> None:
        """Nothing."""

    def end(self) -> dict[str, Any]:
        """Not known."""
        return {}

    def write(self, stream: str, sequence: int, batches: list[bytes]) -> None:
        """Waits while the reader does not read."""
        left = memoryview(as_text(batches))
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # somebody made the descriptor non-blocking
                time.sleep(0.02)

    def redo(self, end: dict[str, Any], stream: str, sequence: int, batches: list[bytes]) -> None:
        """All of it: the opener drops doubles."""
        self.write(stream, sequence, batches)

    def has_room(self, more: int) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """Leaves the descriptor open."""


class Files:
    """A sealed file for each batch, named by stream and number: writing one again changes nothing.

    Args:
        folder: where they go.
    """

    def __init__(self, folder: SealedFolder) -> None:
        self._folder = folder

    def begin(self) -> None:
        """Nothing."""

    def end(self) -> dict[str, Any]:
        """Nothing: names say what is there."""
        return {}

    def write(self, stream: str, sequence: int, batches: list[bytes]) -> None:
        """A file for each."""
        for number, batch in enumerate(batches, sequence):
            self._folder.put(f"{stream}-{number:020d}", batch)
        self._folder.settle()

    def redo(self, end: dict[str, Any], stream: str, sequence: int, batches: list[bytes]) -> None:
        """The same bytes under the same names."""
        self.write(stream, sequence, batches)

    def has_room(self, more: int) -> bool:
        """As the folder says."""
        return self._folder.has_room(more)

    def close(self) -> None:
        """Nothing is open."""


# -- the state file -----------------------------------------------------------------


class BadState(ValueError):  # noqa: N818 - says what it is
    """The state file is not one, or damaged."""


@dataclass
class State:
    """What a state file says."""

    stream: str
    sequence: int
    """Of the next batch."""
    marks: list[dict[str, Any]] = field(default_factory=list)
    saved: float | None = None
    """Unix time, in seconds."""
    end: dict[str, Any] = field(default_factory=dict)
    """Where the output ended before ``batches``."""
    batches: list[bytes] = field(default_factory=list)
    """That were on their way out."""


class StateFile:
    """The state file, held against a second process by a lock beside it.

    Raises:
        OSError: it cannot be read or locked; EBUSY if another process has it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise OSError(errno.EBUSY, "in use by another process", path) from None

    def load(self) -> State | None:
        """What it says; None if there is none yet.

        Raises:
            BadState: it is not a state file, or damaged.
        """
        try:
            with open(self.path, "rb") as file:
                front = file.readline(_FRONT_MAX)
                try:
                    return _parsed(json.loads(front), file.read())
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise BadState(f"{self.path!r} is no state file, or damaged") from error
        except FileNotFoundError:
            return None

    def save(self, state: State) -> None:
        """Replaces it; on the disk when this returns."""
        body = b"".join(state.batches)
        front = {
            "upseal": "lines state",
            "version": _VERSION,
            "stream": state.stream,
            "sequence": state.sequence,
            "saved": state.saved,
            "files": state.marks,
            "end": state.end,
            "sizes": [len(batch) for batch in state.batches],
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        temporary = self.path + ".new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(json.dumps(front).encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        sync_folder(os.path.dirname(self.path) or ".")

    def close(self) -> None:
        """Lets go of the lock."""
        os.close(self._lock)


_FIELDS = {"path": str, "file": str, "device": int, "inode": int, "offset": int, "edges": str}


def _parsed(front: Any, body: bytes) -> State:
    if (front["upseal"], front["version"]) != ("lines state", _VERSION):
        raise ValueError("another file or version")
    if hashlib.sha256(body).hexdigest() != front["sha256"] or sum(front["sizes"]) != len(body):
        raise ValueError("the batches are damaged")
    if not _STREAM.fullmatch(front["stream"]) or not isinstance(front["sequence"], int):
        raise ValueError("no stream")
    for mark in front["files"]:
        if any(not isinstance(mark[name], kind) for name, kind in _FIELDS.items()):
            raise ValueError("no mark")
    return State(
        front["stream"],
        front["sequence"],
        [{**mark, "done": bool(mark["done"])} for mark in front["files"]],
        float(front["saved"]),
        dict(front["end"]),
        list(_pieces(body, front["sizes"])),
    )


def _pieces(body: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield body[at : at + size]
        at += size

# SPDX-License-Identifier: Apache-2.0
"""The folder of a shelf: opened again after whatever happened to the process before."""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from upseal.fleet.encoding import from_hex, load_object
from upseal.fleet.files import read_at, read_private
from upseal.fleet.http.logs import event
from upseal.fleet.uploads.held import CARD, PART, WHOLE, Held, ShelfError
from upseal.fleet.uploads.words import Ticket

_NAMES = re.compile(r"([0-9a-f]{32}-[0-9a-f]{64})(\.part|\.whole|\.json)")
_LEFT_OVER = re.compile(r"\.[0-9a-f]{32}-[0-9a-f]{64}\.json\.[0-9a-f]{16}\.part")
"""Of a small file that a killed process was writing (`upseal.fleet.files`)."""
_CARD_MAX = 4096
_SEALED = b"USL\x01"
_AT_ONCE = 256 << 10
_log = logging.getLogger("upseal.uploads")


def lock_folder(folder: Path) -> int:
    """A lock on the folder, that the system frees when this process ends; ShelfError."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ShelfError(f"another process uses {folder}") from None
    return lock


def reopen(folder: Path) -> list[Held]:
    """What a process before this one has left, oldest first; the rest is cleared away."""
    kinds: dict[str, set[str]] = {}
    for entry in os.listdir(folder):
        named = _NAMES.fullmatch(entry)
        if named is not None:
            kinds.setdefault(named[1], set()).add(named[2])
        elif _LEFT_OVER.fullmatch(entry):
            os.unlink(folder / entry)
    bodies: list[Held] = []
    for name, there in kinds.items():
        held = _reopened(folder, name, there)
        if held is None:
            unlink_body(folder, name)
        else:
            bodies.append(held)
    return sorted(bodies, key=lambda held: held.received)


def unlink_body(folder: Path, name: str) -> None:
    """Deletes its files, the card first: after a crash the rest is nothing without it."""
    for kind in (CARD, WHOLE, PART):
        with suppress(FileNotFoundError):
            os.unlink(folder / (name + kind))


def _reopened(folder: Path, name: str, there: set[str]) -> Held | None:
    """One body as it is on the disk; None if there is none under this name."""
    if CARD not in there:
        return None  # it was being created, or removed
    try:
        held = _read_card(folder, name)
    except ValueError as error:
        event(_log, "upload with a damaged card dropped", level=logging.WARNING, why=error)
        return None
    if WHOLE in there:
        held.state = "whole"
        with suppress(FileNotFoundError):  # where it could not be deleted before
            os.unlink(held.named(PART))
    elif PART not in there:
        os.close(os.open(held.named(PART), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    held.stat()
    held.ready.set()
    size = held.ticket.size
    if held.offset > size or (held.state == "whole" and held.offset != size):
        event(_log, "upload of another length dropped", level=logging.WARNING,
              upload=held.ticket.upload.hex(), bytes=held.offset)  # fmt: skip
        return None
    return held


def _read_card(folder: Path, name: str) -> Held:
    """A body by its small file.

    Raises:
        ValueError: it is not one of ours, or does not belong to this name.
        OSError: it cannot be read.
    """
    card = folder / (name + CARD)
    if card.stat().st_size > _CARD_MAX:
        raise ValueError("longer than the card of a body")
    said: dict[str, Any] = load_object(read_private(card, _CARD_MAX))
    if said.get("version") != 1 or said.get("role") not in ("agent", "relay"):
        raise ValueError("not the card of a body")
    size, received = said.get("size"), said.get("received")
    if type(size) is not int or type(received) is not int:
        raise ValueError("the card of a body has its size and its time")
    form = said.get("form")
    if form not in ("sealed", "clear"):
        raise ValueError("a body is sealed or clear")
    upload, digest = from_hex(said.get("upload"), 16), from_hex(said.get("sha256"), 32)
    ticket = Ticket(upload, digest, form, size)
    held = Held(folder, from_hex(said.get("hop"), 16), said["role"], ticket, received)
    if held.named("").name != name:
        raise ValueError("the card of another body")
    return held


def write_all(file: int, parts: Iterable[memoryview], offset: int) -> None:
    """All of them, one behind the other, or OSError with some."""
    for part in parts:
        done = 0
        while done < len(part):
            # Not much more at once: for long writes Linux takes its memory in large blocks, and
            # those are mostly ones that nobody has touched for long.
            done += os.pwrite(file, part[done : done + _AT_ONCE], offset + done)
        offset += done


def looks_sealed(body: Path) -> bool:
    """Whether a body begins as sealed ones do."""
    with open(body, "rb", buffering=0) as file:
        return read_at(file.fileno(), 0, len(_SEALED)) == _SEALED

# SPDX-License-Identifier: Apache-2.0
"""A body on a shelf, the words its shelf has for it, and its small file beside it."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from upseal.core.uploads import FRONT_MAX, sealed_size
from upseal.fleet.encoding import dump_json
from upseal.fleet.uploads.words import Ticket

State = Literal["open", "checking", "whole"]

PART, WHOLE, CARD = ".part", ".whole", ".json"


class ShelfError(Exception):
    """The shelf does not do what it was asked."""


class TooLarge(ShelfError):  # noqa: N818 - what it is
    """Such a body is never taken. ``most``: the bytes that would be."""

    def __init__(self, most: int) -> None:
        super().__init__(f"at most {most} bytes")
        self.most = most


class NoRoom(ShelfError):  # noqa: N818
    """Not now: a quota, or the disk. ``own``: it is the hop's own share that is used up."""

    def __init__(self, why: str, *, own: bool = False) -> None:
        super().__init__(why)
        self.own = own


class WrongOffset(ShelfError):  # noqa: N818
    """Bytes must follow those that are there. ``offset``: how many are."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the body has {offset} bytes")
        self.offset = offset


class Gone(ShelfError):  # noqa: N818
    """The body is not on the shelf any more, or the shelf is closed."""


class Locked(ShelfError):  # noqa: N818
    """Somebody else is at work on this body."""


class Contradiction(ShelfError):  # noqa: N818
    """The hop has a body of this id on the shelf, of another size or form."""


@dataclass(frozen=True, slots=True)
class ShelfLimits:
    """Of one shelf.

    Args:
        max_bytes: of all bodies, as declared.
        max_size: of one body.
        open_per_hop: bodies of one hop that lack bytes.
        hop_share: of ``max_bytes`` and ``max_bodies``: what one agent's hop may reserve, 0 to 1.
        expires: seconds without a new byte, after which an open body is thrown away.
        min_free: bytes of the disk that stay free.
        relay_factor: how many times ``open_per_hop`` a relay's hop may have.
        max_bodies: of all hops.
        bodies_per_hop: of one agent's hop, also those that have all their bytes: without a bound of
            their own, two agents with empty files would fill the shelf by number.
        sealed_again: what comes in clear is sealed here, and needs room on the disk twice.
    """

    max_bytes: int
    max_size: int
    open_per_hop: int
    hop_share: float
    expires: float
    min_free: int
    relay_factor: int = 32
    max_bodies: int = 65_536
    bodies_per_hop: int = 1024
    sealed_again: bool = False

    def __post_init__(self) -> None:
        sizes = (self.max_bytes, self.max_size, self.open_per_hop, self.relay_factor)
        counts = (self.max_bodies, self.bodies_per_hop)
        if min(*sizes, *counts) < 1 or self.min_free < 0 or not self.expires > 0:
            raise ValueError("limits of a shelf are above 0")
        if not 0 < self.hop_share <= 1:
            raise ValueError("a hop's share is above 0 and at most 1")

    def cost(self, ticket: Ticket) -> int:
        """Bytes that such a body reserves."""
        if self.sealed_again and ticket.form == "clear":
            return ticket.size + sealed_most(ticket.size)
        return ticket.size

    def most(self, role: str) -> int:
        """Bytes of the longest body that such a hop can bring."""
        share = self.hop_share if role == "agent" else 1.0
        return min(self.max_size, int(self.max_bytes * share))


def sealed_most(clear: int) -> int:
    """Bytes that a clear body of this size takes when it is sealed, at most."""
    return FRONT_MAX + sealed_size(clear)


@dataclass(frozen=True, slots=True)
class Usage:
    """What is on a shelf."""

    bodies: int
    held: int
    """Bytes on the disk."""
    reserved: int
    """Bytes as declared."""
    open: int
    """Bodies that lack bytes."""
    oldest: int | None
    """Unix milliseconds of the creation of the oldest body."""


class Held:
    """One body. To be read by others, and changed by its shelf alone.

    ``hop``: 16 bytes, whose; ``role``: agent or relay; ``ticket``; ``received``: unix milliseconds
    of its creation; ``offset``: bytes that are there; ``state``: ``open`` (bytes are missing),
    ``checking`` (all there, not verified), ``whole``; ``touched``: unix seconds of the last byte.
    """

    __slots__ = (
        "body_id", "folder", "gone", "hop", "lock", "offset", "ready", "received", "role",
        "running", "state", "ticket", "touched", "unsynced",
    )  # fmt: skip

    def __init__(
        self, folder: Path, hop: bytes, role: str, ticket: Ticket, received: int | None = None
    ) -> None:
        self.folder, self.hop, self.role, self.ticket = folder, hop, role, ticket
        self.body_id = ticket.body_id
        self.received = time.time_ns() // 1_000_000 if received is None else received
        self.offset = 0
        self.state: State = "checking" if ticket.size == 0 else "open"
        self.touched = time.time()
        self.gone = False
        self.lock = threading.RLock()
        """Held by whoever works on it; never waited for with the shelf's own lock in hand."""
        self.ready = threading.Event()
        """Set when it is on the disk, or is not going to be."""
        self.running: hashlib._Hash | None = hashlib.sha256()
        """Over all bytes so far; None if this process has not seen them all."""
        self.unsynced = 0

    @property
    def path(self) -> Path:
        """Of its bytes."""
        return self.named(WHOLE if self.state == "whole" else PART)

    def named(self, kind: str) -> Path:
        """One of its files. Made of hex that we have written ourselves."""
        return self.folder / f"{self.hop.hex()}-{self.body_id.hex()}{kind}"

    def card(self) -> bytes:
        """What its small file says."""
        return dump_json({
            "version": 1, "hop": self.hop.hex(), "role": self.role, "received": self.received,
            "upload": self.ticket.upload.hex(), "sha256": self.ticket.body_sha256.hex(),
            "form": self.ticket.form, "size": self.ticket.size,
        })  # fmt: skip

    def stat(self) -> None:
        """Takes offset and time from the disk.

        Raises:
            OSError: its file cannot be looked at.
        """
        found = os.stat(self.path)
        self.offset, self.touched = found.st_size, found.st_mtime
        self.running = hashlib.sha256() if self.offset == 0 else None
        if self.state != "whole":
            self.state = "checking" if self.offset == self.ticket.size else "open"

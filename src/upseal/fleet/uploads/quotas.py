# SPDX-License-Identifier: Apache-2.0
"""What is reserved on a shelf, and by whom: counted in memory, from what is on the disk."""

from __future__ import annotations

from upseal.fleet.uploads.held import Held, NoRoom, ShelfLimits, TooLarge, Usage
from upseal.fleet.uploads.words import Ticket

_OVERHEAD = 16 << 10
"""What a body costs besides its bytes, at most: two files' blocks, and entries of a directory."""


class Quotas:
    """Not safe for threads: its shelf has a lock."""

    def __init__(self, limits: ShelfLimits) -> None:
        self._limits = limits
        self._of: dict[bytes, list[int]] = {}
        """By hop: bytes reserved, bodies, those that are open."""
        self._bodies = self._reserved = self._held = self._open = 0

    def refuse(self, hop: bytes, role: str, ticket: Ticket, free: int) -> None:
        """Raises what stands against one body more.

        Args:
            hop: whose it would be.
            role: of the hop.
            ticket: what it declares.
            free: bytes of the disk.

        Raises:
            TooLarge: never.
            NoRoom: not now.
        """
        limits = self._limits
        most, cost = limits.most(role), limits.cost(ticket)
        if ticket.size > most:
            raise TooLarge(most)
        if cost > limits.max_bytes * (limits.hop_share if role == "agent" else 1.0):
            raise TooLarge(most // 2)
        reserved, bodies, begun = self._of.get(hop, (0, 0, 0))
        agent = role == "agent"
        if ticket.size and begun >= limits.open_per_hop * (1 if agent else limits.relay_factor):
            raise NoRoom("as many uploads as this client may have begun", own=True)
        if agent and (
            reserved + cost > limits.max_bytes * limits.hop_share
            or bodies >= limits.bodies_per_hop
            or bodies + 1 > max(1.0, limits.max_bodies * limits.hop_share)
        ):
            raise NoRoom("this client's share of the room is used up", own=True)
        if self._reserved + cost > limits.max_bytes:
            raise NoRoom("the room for uploads is used up")
        if self._bodies >= limits.max_bodies:
            raise NoRoom("as many uploads as are taken at once")
        owed = self._reserved - self._held  # declared by others, and still to come
        if free - owed - cost - _OVERHEAD < limits.min_free:
            raise NoRoom("the disk is nearly full")

    def enter(self, held: Held) -> None:
        """A body is there."""
        self._count(held, 1)

    def leave(self, held: Held) -> None:
        """It is there no more."""
        self._count(held, -1)

    def grow(self, held: Held, offset: int) -> None:
        """It has so many bytes now, or lost some."""
        self._count(held, -1)
        held.offset = offset
        if held.state == "open" and offset == held.ticket.size:
            held.state = "checking"
        self._count(held, 1)

    def usage(self, oldest: int | None) -> Usage:
        """All of it."""
        return Usage(self._bodies, self._held, self._reserved, self._open, oldest)

    def _count(self, held: Held, one: int) -> None:
        begun, cost = one if held.state == "open" else 0, self._limits.cost(held.ticket)
        mine = self._of.setdefault(held.hop, [0, 0, 0])
        for at, count in enumerate((one * cost, one, begun)):
            mine[at] += count
        if not mine[1]:
            del self._of[held.hop]
        self._bodies += one
        self._reserved += one * cost
        self._held += one * held.offset
        self._open += begun

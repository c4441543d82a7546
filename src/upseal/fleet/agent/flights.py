# SPDX-License-Identifier: Apache-2.0
"""Units that are written down and not yet receipted: which to send next, and what belongs to which.

Only in memory. After a restart every unit is sent again, and the server knows the ones it has.
"""

from __future__ import annotations

import enum
import random
import time
from dataclasses import dataclass, field

from upseal.fleet.agent.rows import SpooledUnit
from upseal.fleet.agent.settings import Send

_DIGESTS = 16
"""Statements of one unit that a receipt may still come for."""
_RESEND_CAP = 6 * 3600.0
_random = random.SystemRandom()


class Stage(enum.Enum):
    """Where a unit is."""

    READY = "ready"
    SENDING = "sending"
    PENDING = "pending"
    """The parent has it, and has not answered for it."""
    RECEIPTED = "receipted"
    """The server has it; only the disk did not let us take it out."""
    ASIDE = "aside"
    """It cannot be sent, and is kept for somebody to look at."""


@dataclass(eq=False, slots=True)
class Flight:
    """One unit on its way."""

    unit: SpooledUnit
    records: list[bytes] | None = None
    """From when it was made until it is first sent: so they are not read and opened twice."""
    stage: Stage = Stage.READY
    tries: int = 0
    begun: float = 0.0
    """When it was first sent; 0 before that."""
    not_before: float = 0.0
    overdue: float = 0.0
    """When to stop waiting for the parent's answer."""
    serial: int = -1
    """Of the manifest that it was last sent under."""
    stale: bool = False
    """The key of that manifest was told to be retired: a newer one is worth a try at once."""
    digests: dict[bytes, None] = field(default_factory=dict)
    body: bytes = b""
    """The newest: what the parent is asked about."""


class Flights:
    """All of them. Not safe between threads: whoever uses it has a lock.

    Args:
        send: how long to wait before a unit is sent again.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._flights: dict[int, Flight] = {}
        self._digests: dict[bytes, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def all(self) -> list[Flight]:
        """Oldest first."""
        return list(self._flights.values())

    def count(self, *stages: Stage) -> int:
        """How many are in one of these stages."""
        return sum(flight.stage in stages for flight in self._flights.values())

    def add(self, unit: SpooledUnit, records: list[bytes] | None = None) -> Flight:
        """A unit that is to be sent."""
        flight = self._flights[unit.id] = Flight(unit, records)
        return flight

    def ready(self, now: float, serial: int) -> Flight | None:
        """The oldest that may be sent."""
        for flight in self._flights.values():
            if flight.stage is Stage.READY and (
                flight.not_before <= now or (flight.stale and serial > flight.serial)
            ):
                return flight
        return None

    def next_ready(self) -> float:
        """When the first of those that wait may be sent; 0 if none waits."""
        times = (f.not_before for f in self._flights.values() if f.stage is Stage.READY)
        return min(times, default=0.0)

    def sent(
        self, flight: Flight, unit: SpooledUnit, digest: bytes, body: bytes, serial: int
    ) -> bool:
        """It goes out, in this body, with a statement of this digest. False: no, it is settled."""
        if self._flights.get(unit.id) is not flight or flight.unit != unit:
            return False
        flight.records = None
        flight.serial, flight.stale = serial, False
        flight.tries += 1
        flight.begun = flight.begun or time.monotonic()
        flight.body = body
        flight.digests[digest] = None
        self._digests[digest] = flight
        while len(flight.digests) > _DIGESTS:
            oldest = next(iter(flight.digests))
            del flight.digests[oldest], self._digests[oldest]
        return True

    def again(self, flight: Flight, now: float, *, at_once: bool = False) -> None:
        """It is to be sent again: at once, or after a time that grows with every try."""
        if flight.unit.id not in self._flights:
            return
        reach = min(self._send.retry_most, self._send.retry * 2 ** min(flight.tries, 20))
        pause = _random.uniform(reach / 2, reach)
        # At once only the first few times: a parent that forgets all must not keep us busy.
        flight.not_before = now if at_once and flight.tries < 3 else now + pause
        flight.stage = Stage.READY

    def rest(self, flight: Flight) -> None:
        """It goes again as soon as the parent can be spoken to: this try does not count."""
        if flight.stage is Stage.SENDING:
            flight.tries = max(0, flight.tries - 1)
            flight.stage, flight.not_before = Stage.READY, 0.0

    def pending(self, flight: Flight, now: float) -> None:
        """The parent has it."""
        if flight.stage is not Stage.PENDING:
            reach = min(_RESEND_CAP, self._send.resend * 2 ** min(max(flight.tries - 1, 0), 20))
            flight.overdue = now + _random.uniform(0.75, 1.25) * reach
            flight.stage = Stage.PENDING

    def overdue(self, now: float) -> list[Flight]:
        """Those that the parent has had for too long: they are ready to be sent again."""
        late = [
            flight
            for flight in self._flights.values()
            if flight.stage is Stage.PENDING and flight.overdue <= now
        ]
        for flight in late:
            flight.stage, flight.not_before = Stage.READY, now
        return late

    def asked(self, most: int) -> dict[bytes, Flight]:
        """The newest body of pending units, to ask the parent about."""
        waiting = [f for f in self._flights.values() if f.stage is Stage.PENDING and f.body]
        return {flight.body: flight for flight in waiting[:most]}

    def of_digest(self, digest: bytes) -> Flight | None:
        """Whose statement that was."""
        return self._digests.get(digest)

    def done(self, flight: Flight) -> None:
        """Forgets it."""
        self._forget(flight)
        self._flights.pop(flight.unit.id, None)

    def remade(self, flight: Flight, unit: SpooledUnit, now: float) -> None:
        """It has another triple now: what was said about the old one no longer counts."""
        self._forget(flight)
        flight.unit, flight.tries = unit, 0
        flight.stage, flight.not_before = Stage.READY, now

    def _forget(self, flight: Flight) -> None:
        for digest in flight.digests:
            self._digests.pop(digest, None)
        flight.digests.clear()
        flight.body = b""
        flight.records = None

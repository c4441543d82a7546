# SPDX-License-Identifier: Apache-2.0
"""One unit as a body, and what the parent's answer means for the units it is about."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from upseal import PublicKey, Sealer
from upseal.fleet.agent.flights import Flight, Flights, Stage
from upseal.fleet.agent.membership import Credentials
from upseal.fleet.agent.parent import Believed, Parent
from upseal.fleet.agent.rows import now_ms
from upseal.fleet.agent.spool import Spool, SpoolDamaged, SpooledUnit, SpoolError
from upseal.fleet.agent.tally import Alarms, Tally
from upseal.fleet.http import results
from upseal.fleet.http.client import Response
from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.policy import Clear, Level, Reason, Seal
from upseal.fleet.trail import body_name, unit_name
from upseal.fleet.units import (
    BadReceipt,
    Status,
    body_id,
    clear_body,
    fleet_context,
    make_unit,
    open_receipt,
    unit_rows,
)

BYTES = "application/octet-stream"
JSON = "application/json"
_AWAY = frozenset({"unauthenticated", "clock", "revoked", "not-enrolled"})
"""Problems that are about us, not about a unit: sending another one would not help."""
_log = logging.getLogger("upseal.agent")


class Deliveries:
    """Makes bodies and sends them. Safe to share between threads.

    Args:
        credentials: who signs.
        parent: where they go.
        wait: seconds that the parent may hold an answer back.
        tally: where things are counted.
    """

    def __init__(self, credentials: Credentials, parent: Parent, wait: float, tally: Tally) -> None:
        self._credentials = credentials
        self._parent = parent
        self._wait = wait
        self._tally = tally
        self._context = fleet_context(credentials.deployment)
        self._sealer: Sealer | None = None
        self._beacons = os.urandom(16)
        self._beacon_number = 0

    def body(
        self, unit: SpooledUnit, records: list[bytes], level: Level, decision: Seal | Clear
    ) -> tuple[bytes, bytes]:
        """What goes over the wire, and the digest of the statement in it.

        The statement is signed anew, with the level, reason and time of now; what it is about
        (epoch, sequence and records) stays.
        """
        mine = self._credentials
        made = make_unit(
            mine.identity,
            mine.deployment,
            unit.epoch,
            unit.sequence,
            now_ms(),
            level,
            decision.reason,
            records,
        )
        rows = unit_rows([made])
        if isinstance(decision, Clear):
            return clear_body(rows), made.digest
        return self._sealer_for(decision.recipients).seal_batch(rows, self._context), made.digest

    def _sealer_for(self, recipients: tuple[PublicKey, ...]) -> Sealer:
        # One for as long as the recipients stay: its sessions end by age and number, and whoever
        # opens them pays for one public-key operation each.
        sealer = self._sealer
        if sealer is None or sealer.recipients != recipients:
            sealer = self._sealer = Sealer(recipients)
        return sealer

    @staticmethod
    def name(body: bytes) -> bytes:
        """What the parent calls it."""
        return body_id(body)

    def post_units(self, body: bytes, *, wait: bool, still: Callable[[], bool]) -> Response:
        """Sends a body."""
        seconds = self._wait if wait else 0
        self._tally.add("bytes_sent", len(body))
        return self._parent.post("/v1/units", body, wait=seconds, kind=BYTES, still=still)

    def post_results(self, bodies: list[bytes]) -> Response:
        """Asks about bodies."""
        asked = results.encode_ids(bodies)
        return self._parent.post("/v1/results", asked, wait=self._wait, kind=JSON)

    def post_beacon(self, level: Level, reason: Reason) -> Response:
        """Says in clear that this agent is here, and nothing of what it reports."""
        mine = self._credentials
        self._beacon_number += 1
        made = make_unit(
            mine.identity,
            mine.deployment,
            self._beacons,
            self._beacon_number,
            now_ms(),
            level,
            reason,
            [],
        )
        self._tally.add("beacons")
        return self._parent.post("/v1/units", clear_body(unit_rows([made])), kind=BYTES)


def follow_sent(unit: SpooledUnit, body: bytes, how: str, size: int) -> None:
    """Says in the log which unit goes out in which body."""
    event(
        _log,
        "unit sent",
        level=logging.DEBUG,
        unit=unit_name(unit.epoch, unit.sequence),
        body=body_name(body),
        how=how,
        count=unit.count,
        bytes=size,
    )


@dataclass(slots=True)
class Heard:
    """What follows from an answer, beyond the units it is about."""

    good: bool = False
    """The parent took a unit or answered for one."""
    settled: bool = False
    """A unit is receipted."""
    refresh: bool = False
    """A look for a newer manifest is worth while."""
    hold: str | None = None
    """Stay away, for this reason..."""
    retry_after: float | None = None
    """...and so long at least."""


class Answers:
    """Reads answers. Nothing in one has an effect on the spool but a receipt that verifies.

    Args:
        credentials: whose units they are.
        spool: what a receipt takes a unit out of.
        flights: the units that are on their way.
        lock: of the flights.
        tally: where things are counted.
        alarms: where lies go.
        random: makes the epoch of a unit that is made again.
    """

    def __init__(
        self,
        credentials: Credentials,
        spool: Spool,
        flights: Flights,
        lock: threading.Lock,
        tally: Tally,
        alarms: Alarms,
        random: Callable[[int], bytes],
    ) -> None:
        self._credentials = credentials
        self._spool = spool
        self._flights = flights
        self._lock = lock
        self._tally = tally
        self._alarms = alarms
        self._random = random
        self.last_receipt: int | None = None
        """Unix milliseconds."""

    def units(self, response: Response, asked: Mapping[bytes, Flight], believed: Believed) -> Heard:
        """Of ``POST /v1/units`` or ``POST /v1/results``, for these bodies."""
        heard = Heard()
        problem = response.problem()
        if problem is not None:
            for flight in asked.values():
                self._problem(flight, problem, heard, whole=True)
            return heard
        try:
            if response.status != 200:
                raise results.MalformedResults
            found = {result.body: result for result in results.decode(response.body)}
        except results.MalformedResults:
            found = {}
            self._tally.add("garbage")
            heard.hold = "the parent's answer is none"
        for body, flight in asked.items():
            self._one(flight, found.get(body), heard, believed)
        return heard

    def _one(
        self, flight: Flight, result: results.Result | None, heard: Heard, believed: Believed
    ) -> None:
        now = time.monotonic()
        match None if result is None else result.state:
            case results.State.DONE:
                assert result is not None
                self._receipts(flight, result.receipts, heard, believed)
            case results.State.PENDING:
                heard.good = True
                with self._lock:
                    self._flights.pending(flight, now)
            case results.State.UNKNOWN:
                # Only whoever asked about a body that the parent had is answered so.
                self._tally.add("unknown")
                with self._lock:
                    self._flights.again(flight, now, at_once=True)
            case results.State.PROBLEM:
                assert result is not None and result.problem is not None
                self._problem(flight, result.problem, heard, whole=False)
            case _:
                if heard.hold is None:
                    self._tally.add("garbage")
                    heard.hold = "the parent's answer is none"
                with self._lock:
                    if flight.stage is Stage.SENDING:
                        self._flights.again(flight, now)

    # -- receipts ------------------------------------------------------------------------

    def _receipts(
        self, flight: Flight, receipts: tuple[bytes, ...], heard: Heard, believed: Believed
    ) -> None:
        """Those that verify settle the unit whose statement they name; the others nothing."""
        keys = believed.receipt_keys()
        answered = False
        for data in receipts[:64]:
            try:
                receipt = open_receipt(data, keys, self._credentials.deployment)
            except BadReceipt:
                self._tally.add("forged")
                self._alarms.add("receipt", "a receipt did not verify")
                heard.refresh = True  # its key may be newer than our manifest
                continue
            with self._lock:
                named = self._flights.of_digest(receipt.statement_digest)
            if named is None:
                self._tally.add("receipts_for_others")
                continue
            answered = answered or named is flight
            self._receipted(named, Status(receipt.status), heard)
        if not answered:
            self._tally.add("without_receipt")
            heard.hold = heard.hold or "an answer without our receipt"
            with self._lock:
                if flight.stage in (Stage.SENDING, Stage.PENDING):
                    self._flights.again(flight, time.monotonic())

    def _receipted(self, flight: Flight, status: Status, heard: Heard) -> None:
        self.last_receipt = now_ms()
        name = status.name.lower()
        self._tally.add(f"receipts_{name}")
        if status in (Status.STORED, Status.DUPLICATE):
            heard.good = heard.settled = True
            self._settled(flight)
        elif status is Status.CONTRADICTION:
            self._contradiction(flight, heard)
        else:
            self._alarms.add("receipt", "the server refuses what this agent sends")
            heard.hold = "refused by the server"
            heard.refresh = True
            with self._lock:
                self._flights.again(flight, time.monotonic())

    def _settled(self, flight: Flight) -> None:
        with self._lock:
            flight.stage = Stage.RECEIPTED
        self.settle(flight)

    def settle(self, flight: Flight) -> None:
        """Takes a receipted unit out of the spool. If that fails, later: it is not sent again."""
        try:
            if self._spool.stored(flight.unit):
                self._tally.add("units_stored")
                if flight.begun:
                    self._tally.took(time.monotonic() - flight.begun)
                if _log.isEnabledFor(logging.DEBUG):
                    event(
                        _log,
                        "unit stored",
                        level=logging.DEBUG,
                        unit=unit_name(flight.unit.epoch, flight.unit.sequence),
                        body=body_name(flight.body),
                        count=flight.unit.count,
                    )
        except SpoolError as error:
            event(_log, "cannot take out a unit", level=logging.WARNING, error=error)
            return
        with self._lock:
            self._flights.done(flight)

    def _contradiction(self, flight: Flight, heard: Heard) -> None:
        """The server holds other reports under this triple."""
        if flight.unit.reduced:
            # Ours, from before the disk damaged some of them here: all of it had been stored.
            heard.good = heard.settled = True
            self._settled(flight)
            return
        self._alarms.add("contradiction", "the server holds other reports under a unit's number")
        if flight.unit.remade:
            with self._lock:
                flight.stage = Stage.ASIDE
            return
        try:
            unit = self._spool.remake(flight.unit, self._random(16), 1)
        except SpoolDamaged:  # this unit, which need not be the one whose answer it came with
            self._alarms.add("spool", "a unit on the disk is not what it was made of")
            with self._lock:
                flight.stage = Stage.ASIDE
            return
        with self._lock:
            if unit is None:
                self._flights.done(flight)
            else:
                self._flights.remade(flight, unit, time.monotonic())

    # -- problems ------------------------------------------------------------------------

    def _problem(self, flight: Flight, problem: Problem, heard: Heard, *, whole: bool) -> None:
        """A refusal, of the request or of one body. Nobody has signed it: it only costs time."""
        name = problem.name
        self._tally.add(f"problem_{name}")
        now = time.monotonic()
        if name in _AWAY or problem.temporary:
            heard.hold = name
            heard.retry_after = max(heard.retry_after or 0.0, problem.retry_after or 0.0) or None
            heard.refresh = heard.refresh or name in _AWAY
            if name in _AWAY:
                self._alarms.add("refused", name)
            with self._lock:
                self._flights.rest(flight)
                if not whole and flight.stage is Stage.PENDING:
                    self._flights.again(flight, now)
            return
        if name in ("stale-key", "sealed-not-accepted"):
            heard.refresh = True
        else:
            self._alarms.add("problem", name)
        with self._lock:
            if whole and flight.stage is Stage.PENDING:  # it was about the question, not the unit
                return
            self._flights.again(flight, now)
            flight.stale = name == "stale-key"

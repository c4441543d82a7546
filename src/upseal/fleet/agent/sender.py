# SPDX-License-Identifier: Apache-2.0
"""The loop that sends: one for each spool, whatever the number of those who report into it.

One thread decides what is to be done; a few others wait on the network. What is on the disk is the
truth: the loop may die at any point, and the next one begins with what is written down there.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from upseal.fleet.agent.deliveries import Answers, Deliveries, Heard, follow_sent
from upseal.fleet.agent.flights import Flight, Flights, Stage
from upseal.fleet.agent.membership import Credentials
from upseal.fleet.agent.pace import Beacons, Pace
from upseal.fleet.agent.parent import Believed, Parent, Unreachable
from upseal.fleet.agent.settings import Settings
from upseal.fleet.agent.spool import Spool, SpoolDamaged, SpoolError
from upseal.fleet.agent.tally import Alarms, Tally
from upseal.fleet.agent.workers import Workers
from upseal.fleet.http.logs import event
from upseal.fleet.policy import Decision, Level, Seal, Withhold, actual, decide
from upseal.fleet.trust import TrustError

TURN = 0.25
"""Seconds: how soon what another process has reported is seen."""
_LEAST_TURN = 0.01
_STOP = 2.0
_UPKEEP = 5.0
_REFRESH_LEAST = 1.0
_POLL_LEAST, _POLL_MOST = 0.2, 15.0
_ASKED = 1024
_log = logging.getLogger("upseal.agent")


class Sender:
    """Sends a spool's units to the parent until each is receipted.

    Args:
        settings: its batches, pace and waiting times.
        credentials: who signs, and for whom.
        spool: what to send.
        parent: where to.
        level: the level that holds, given what is believed.
        tally: where things are counted.
        alarms: where lies and damage go.
        publish: called every few seconds, and when the decision has changed.
    """

    def __init__(
        self,
        settings: Settings,
        credentials: Credentials,
        spool: Spool,
        parent: Parent,
        level: Callable[[Believed], Level],
        tally: Tally,
        alarms: Alarms,
        publish: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.flush = False
        """Make units of what there is, without waiting for more."""
        self._spool = spool
        self._parent = parent
        self._level = level
        self._tally = tally
        self._alarms = alarms
        self._publish = publish
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._flights = Flights(settings.send)
        self._deliveries = Deliveries(credentials, parent, settings.http.wait, tally)
        self._answers = Answers(
            credentials, spool, self._flights, self._lock, tally, alarms, os.urandom
        )
        self._workers = Workers(settings.send.units + 3, "upseal-send")
        self._pace = Pace(settings.send, tally)
        self._beacons = Beacons(self._deliveries, self._pace, settings.send)
        self._epoch = os.urandom(16)
        self._sequence = self.turns = 0
        self._refresh_at = 0.0
        self._refreshing = False
        self._refreshed = False
        self._looked = 0.0
        self._poll_at = 0.0
        self._poll_pause = _POLL_LEAST
        self._polling = False
        self._upkeep_at = 0.0
        self._decision: Decision | None = None
        self._wanted: Level | None = None

    # -- the loop ----------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Until told to stop. Everything that matters is on the disk at any moment.

        Raises:
            SpoolDamaged: the spool's file is not whole.
        """
        for unit in self._spool.units():
            self._flights.add(unit)
        try:
            while not stop.is_set():
                self._wake.clear()
                try:
                    self._turn()
                except SpoolDamaged:
                    raise
                except SpoolError as error:
                    self._pace.hold("the spool's disk", error)
                except Exception as error:  # whatever it is, reports must go on
                    event(_log, "unexpected error", level=logging.ERROR, error=error, exc=error)
                    self._pace.hold("unexpected error", error)
                self.turns += 1
                self._wake.wait(self._pause())
        finally:
            self._workers.stop(_STOP)

    def wake(self) -> None:
        """Something has changed: it looks at once."""
        self._wake.set()

    @property
    def refreshed(self) -> bool:
        """Whether the parent has been asked what it can do."""
        return self._refreshed

    def refresh_soon(self) -> None:
        """A look for a newer manifest is worth while."""
        soon = max(time.monotonic(), self._looked + _REFRESH_LEAST)
        self._refresh_at = min(self._refresh_at, soon)
        self._wake.set()

    def _pause(self) -> float:
        """Seconds until there may be something to do."""
        now = time.monotonic()
        with self._lock:
            next_unit = self._flights.next_ready()
        times = (self._pace.until, self._refresh_at, self._beacons.at, self._poll_at, next_unit)
        return max(
            _LEAST_TURN, min((at - now for at in times if now < at < now + TURN), default=TURN)
        )

    def _turn(self) -> None:
        now = time.monotonic()
        if now >= self._upkeep_at:
            self._upkeep_at = now + _UPKEEP
            self._upkeep()
        if now >= self._refresh_at and not self._refreshing:
            self._refreshing = True
            self._workers.submit(self._refresh)
        if not self._refreshed:  # what the parent can do must be known before the first report goes
            return
        believed, decision = self._decide()
        if now < self._pace.until:
            return
        if self._beacons.take():
            self._workers.submit(self._beacons.send, self._wake.set)
        with self._lock:
            late = self._flights.overdue(now)
            pending = self._flights.count(Stage.PENDING)
        self._tally.add("overdue", len(late))
        if pending and now >= self._poll_at and not self._polling:
            self._polling = True
            self._workers.submit(self._poll)
        if not isinstance(decision, Withhold):
            self._launch(now, believed)

    def _launch(self, now: float, believed: Believed) -> None:
        """Sends what may be sent: first what has been tried, then what is new."""
        send = self.settings.send
        while True:
            with self._lock:
                if self._flights.count(Stage.SENDING) >= send.units:
                    return
                flight = self._flights.ready(now, believed.serial)
                if flight is None:
                    if len(self._flights) - self._flights.count(Stage.ASIDE) >= send.pending:
                        return
                else:
                    flight.stage = Stage.SENDING
            if flight is None:
                flight = self._planned()
                if flight is None:
                    return
            self._workers.submit(self._deliver, flight)

    def _planned(self) -> Flight | None:
        """A new unit, if it is time for one."""
        batch = self.settings.batch
        due = self._spool.due(batch)
        if due is None or (due > 0 and not self.flush):
            return None
        # A number is used once it is on the disk: one left out would look like a lost unit.
        planned = self._spool.plan(batch, self._epoch, self._sequence + 1)
        if planned is None:
            return None
        self._sequence += 1
        unit, records = planned
        with self._lock:
            flight = self._flights.add(unit, records)
            flight.stage = Stage.SENDING
        return flight

    def _decide(self) -> tuple[Believed, Decision]:
        """What would happen to a report now; tells of changes, and when a beacon is due."""
        believed, level, decision = self._now()
        before, self._decision, self._wanted = self._decision, decision, level
        if before is None or (type(before), before.reason) != (type(decision), decision.reason):
            event(
                _log,
                "decision",
                wanted=level.value,
                actual=actual(decision),
                why=decision.reason,
                serial=believed.serial,
            )
            self._beacons.decided(level, decision, before)
            self._upkeep_at = 0.0
        return believed, decision

    # -- work on the network -------------------------------------------------------------

    def _deliver(self, flight: Flight) -> None:
        """Sends one unit."""
        try:
            self._deliver_one(flight)
        except Unreachable as error:
            self._pace.hold("unreachable", error)
            with self._lock:
                self._flights.rest(flight)
        except SpoolDamaged:
            self._alarms.add("spool", "a unit on the disk is not what it was made of")
            with self._lock:
                flight.stage = Stage.ASIDE
        except SpoolError as error:
            self._pace.hold("the spool's disk", error)
            with self._lock:
                self._flights.rest(flight)
        except BaseException:
            with self._lock:
                self._flights.again(flight, time.monotonic())
            raise
        finally:
            self._wake.set()

    def _deliver_one(self, flight: Flight) -> None:
        # Decided anew for every unit, with what is believed at this moment.
        believed, level, decision = self._now()
        if isinstance(decision, Withhold):
            self._keep(flight)
            return
        records = flight.records
        found = (flight.unit, records) if records is not None else self._spool.records(flight.unit)
        if found is None:
            with self._lock:
                self._flights.done(flight)
            return
        unit, records = found
        if unit != flight.unit:  # the disk had damaged some of it
            self._alarms.add("spool", "reports were damaged on the disk, and are lost")
            with self._lock:
                flight.unit = unit
        body, digest = self._deliveries.body(unit, records, level, decision)
        del records
        name = self._deliveries.name(body)

        def still() -> bool:
            # To read the disk and to wait for answers takes time, and clear text is not taken back.
            return isinstance(decision, Seal) or not isinstance(self._now()[2], Withhold)

        if not still():
            self._keep(flight)
            return
        with self._lock:
            if not self._flights.sent(flight, unit, digest, name, believed.serial):
                return
            pending = self._flights.count(Stage.PENDING)
        self._tally.add(f"sent_{actual(decision)}")
        if _log.isEnabledFor(logging.DEBUG):
            follow_sent(unit, name, actual(decision), len(body))
        # Where the parent has others to answer for, all are asked about together.
        response = self._deliveries.post_units(body, wait=not pending, still=still)
        del body
        self._heard(self._answers.units(response, {name: flight}, believed))

    def _now(self) -> tuple[Believed, Level, Decision]:
        believed = self._parent.believed()
        level = self._level(believed)
        return believed, level, decide(level, believed.certificate, believed.parent)

    def _keep(self, flight: Flight) -> None:
        """Until it may be sent: that may be long, and its records are plaintext."""
        flight.records = None
        with self._lock:
            self._flights.rest(flight)

    def _poll(self) -> None:
        """Asks about what the parent has taken and not answered for."""
        try:
            with self._lock:
                asked = self._flights.asked(_ASKED)
            if not asked:
                return
            began = time.monotonic()
            response = self._deliveries.post_results(list(asked))
            held_open = time.monotonic() - began > 1.0  # it waits for news, as it was asked to
            believed = self._parent.believed()
            settled = self._heard(self._answers.units(response, asked, believed))
            quick = settled or held_open
            self._poll_pause = _POLL_LEAST if quick else min(_POLL_MOST, self._poll_pause * 2)
        except Unreachable as error:
            self._pace.hold("unreachable", error)
        except SpoolError as error:
            self._pace.hold("the spool's disk", error)
        finally:
            self._poll_at = time.monotonic() + self._poll_pause
            self._polling = False
            self._wake.set()

    def _refresh(self) -> None:
        """Asks for a newer manifest, and what the parent can do."""
        try:
            if self._parent.refresh():
                self._tally.add("manifests")
                self._pace.at_once()
        except Unreachable as error:
            self._pace.hold("unreachable", error)
        except (OSError, TrustError) as error:  # what was believed before still is
            self._alarms.add("trust", "a new manifest cannot be written down")
            event(_log, "trust cannot be written", level=logging.ERROR, error=error)
        finally:
            self._refreshed = True
            pause = self.settings.send.refresh * random.uniform(0.8, 1.2)  # noqa: S311 - a spread
            self._looked = time.monotonic()
            self._refresh_at = self._looked + pause
            self._refreshing = False
            self._wake.set()

    def _heard(self, heard: Heard) -> bool:
        """Draws the consequences of an answer. True if a unit was settled by it."""
        if heard.refresh:
            self.refresh_soon()
        if heard.hold is not None:
            self._pace.hold(heard.hold, None, heard.retry_after)
        elif heard.good:
            self._pace.good()
        return bool(heard.settled)

    # -- upkeep ---------------------------------------------------------------------------

    def _upkeep(self) -> None:
        """Takes out what the disk did not let us take out before; gives room back."""
        with self._lock:
            receipted = [f for f in self._flights.all() if f.stage is Stage.RECEIPTED]
        for flight in receipted:
            self._answers.settle(flight)
        self._spool.tidy()
        self._publish()

    @property
    def progress(self) -> tuple[bool, int]:
        """Whether there are requests under way, and how many were made."""
        return self._workers.progress

    @property
    def withheld(self) -> bool:
        """Whether nothing may be sent as things are."""
        return isinstance(self._decision, Withhold)

    def snapshot(self) -> dict[str, Any]:
        """For people and for whoever watches."""
        with self._lock:
            stages = {stage.value: self._flights.count(stage) for stage in Stage}
        decision, level = self._decision, self._wanted
        return {
            "wanted": None if level is None else level.value,
            "actual": None if decision is None else actual(decision),
            "why": None if decision is None else decision.reason.label,
            "recipients": [
                {"suite": key.name, "key_id": key.key_id.hex()}
                for key in getattr(decision, "recipients", ())
            ],
            "units": stages,
            "trouble": self._pace.trouble,
            "last_receipt": self._answers.last_receipt,
            "epoch": self._epoch.hex(),
            **self._parent.facts(),
        }

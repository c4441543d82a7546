# SPDX-License-Identifier: Apache-2.0
"""Agents as processes of simpy. Pace, back-off, jitter and flights are the product's own objects.

`product_clock` lets those objects look at the simulated clock and draw from a seeded generator.
A `Cohort` is ``weight`` agents that do the same at the same moments.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import simpy
from simulation import Away, Body, Refused, Server, Steps
from simulation_relay import Relay

from upseal.cli.fleet_costs import FleetCosts
from upseal.cli.fleet_model import Fleet
from upseal.fleet.agent import flights as flights_module
from upseal.fleet.agent import pace as pace_module
from upseal.fleet.agent.flights import Flight, Flights, Stage
from upseal.fleet.agent.pace import Pace
from upseal.fleet.agent.rows import SpooledUnit
from upseal.fleet.agent.sender import _ASKED, _POLL_LEAST, _POLL_MOST
from upseal.fleet.agent.settings import Batch, Http
from upseal.fleet.agent.tally import Tally
from upseal.fleet.http.client import Backoff


class _Clock:
    """In place of the module `time`."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env

    def monotonic(self) -> float:
        return float(self._env.now)


@contextmanager
def product_clock(env: simpy.Environment, rng: random.Random) -> Iterator[None]:
    """`Pace` and `Flights` go by the simulated time and this generator, and log nothing."""
    modules = (pace_module, flights_module)
    before = [module.time for module in modules], flights_module._random
    log = logging.getLogger("upseal.agent")
    level = log.level
    log.setLevel(logging.CRITICAL)
    pace_module.time = flights_module.time = _Clock(env)
    flights_module._random = rng
    try:
        yield
    finally:
        for module, clock in zip(modules, before[0], strict=True):
            module.time = clock
        flights_module._random = before[1]
        log.setLevel(level)


class Cohort:
    """Some agents below one parent, from their first report on.

    Args:
        number: also the name of its sessions.
        weight: how many agents.
        key: gives a number to each unit.
        rng: for its phases and its back-off.
    """

    def __init__(
        self, env: simpy.Environment, fleet: Fleet, costs: FleetCosts, number: int, weight: int,
        parent: Server | Relay, key: Callable[[], int], rng: random.Random,
    ) -> None:  # fmt: skip
        self.env, self.number, self.weight = env, number, weight
        self._fleet, self._costs, self._parent, self._key, self._rng = (
            fleet, costs, parent, key, rng,
        )  # fmt: skip
        self._flights = Flights(fleet.agent)
        self._pace = Pace(fleet.agent, Tally())
        self._pace._backoff = Backoff(fleet.agent.retry, fleet.agent.retry_most, rng=rng)
        self._batch, self._http = Batch(reports=fleet.unit), Http()
        self._waiting = 0.0
        """Reports of one agent that are in no unit."""
        self._oldest = 0.0
        self._bodies: dict[int, Body] = {}
        self._wake = env.event()
        self._session, self._session_at = 0, float("-inf")
        self._poll_at, self._poll_pause, self._polling = 0.0, _POLL_LEAST, False
        self.made = self.refused = 0.0
        self.holds: list[tuple[float, float]] = []
        """When it began to stay away, and for how long."""
        env.process(self._report())
        env.process(self._run())

    # -- reports -------------------------------------------------------------------------

    def _report(self) -> Steps:
        every = self._fleet.burst / self._fleet.reports
        yield self.env.timeout(self._rng.uniform(0, every))
        most = self._fleet.spool.max_bytes / (self._fleet.report_bytes + self._costs.record_bytes)
        while True:
            count = self._fleet.burst
            if self.kept + count > most:
                self.refused += count * self.weight
            else:
                if not self._waiting:
                    self._oldest = self.env.now
                self._waiting += count
                self.made += count * self.weight
                self._rouse()
            yield self.env.timeout(every)

    @property
    def kept(self) -> float:
        """Reports of one agent that have no receipt yet."""
        return self._waiting + sum(body.reports for body in self._bodies.values())

    def queued(self, stored: set[int]) -> float:
        """Reports of all, that are not in a server that has stored these units."""
        left = sum(body.reports for body in self._bodies.values() if body.key not in stored)
        return self.weight * (self._waiting + left)

    def rotate(self, after: float) -> Steps:
        """Hears of a new key after so many seconds: its next unit begins a session."""
        yield self.env.timeout(after)
        self._session_at = float("-inf")

    @property
    def session(self) -> int:
        """Its newest."""
        return self._session

    # -- the loop of `upseal.fleet.agent.sender` -----------------------------------------

    def _rouse(self) -> None:
        if not self._wake.triggered:
            self._wake.succeed()

    def _run(self) -> Steps:
        while True:
            self._wake = self.env.event()
            now = self.env.now
            if now >= self._pace.until:
                self._flights.overdue(now)
                pending = self._flights.count(Stage.PENDING)
                if pending and now >= self._poll_at and not self._polling:
                    self._polling = True
                    self.env.process(self._poll())
                self._launch(now)
            pause = self._pause()
            if pause is None:
                yield self._wake
            else:
                yield self._wake | self.env.timeout(pause)

    def _pause(self) -> float | None:
        now = self.env.now
        times = [self._pace.until, self._flights.next_ready()]
        if self._flights.count(Stage.PENDING):
            times.append(self._poll_at)
        times += [f.overdue for f in self._flights.all() if f.stage is Stage.PENDING]
        if self._waiting:
            times.append(self._oldest + self._batch.seconds)
        return min((at - now for at in times if at > now), default=None)

    def _launch(self, now: float) -> None:
        send = self._fleet.agent
        while self._flights.count(Stage.SENDING) < send.units:
            flight = self._flights.ready(now, 0)
            if flight is None:
                if len(self._flights) >= send.pending or not self._due(now):
                    return
                flight = self._planned()
            flight.stage = Stage.SENDING
            self.env.process(self._deliver(flight))

    def _due(self, now: float) -> bool:
        if not self._waiting:
            return False
        whole = self._waiting * self._fleet.report_bytes >= self._batch.bytes
        return (
            self._waiting >= self._batch.reports
            or whole
            or now >= self._oldest + self._batch.seconds
        )

    def _planned(self) -> Flight:
        most = min(self._batch.reports, max(1.0, self._batch.bytes // self._fleet.report_bytes))
        count = min(self._waiting, most)
        self._waiting -= count
        if self.env.now - self._session_at >= self._fleet.session_age:
            self._session, self._session_at = self._session + 1, self.env.now
        key = self._key()
        self._bodies[key] = Body(
            key, self.weight, count, self._fleet.report_bytes, (self.number, self._session),
            self._oldest,
        )  # fmt: skip
        self._oldest = self.env.now
        return self._flights.add(SpooledUnit(key, b"", key, 0, 0, int(count), False, False))

    def _deliver(self, flight: Flight) -> Steps:
        body, name = self._bodies[flight.unit.id], flight.unit.id.to_bytes(8)
        held_open = not self._flights.count(Stage.PENDING)
        yield self.env.timeout(self._costs.agent.of_unit(body.reports, body.size))
        self._flights.sent(flight, flight.unit, name, name, 0)
        try:
            answer = yield from self._parent.post(
                self.number, self.weight, [body], self._http.wait if held_open else 0.0
            )
        except Away:
            self._held("unreachable", None)
            self._flights.rest(flight)
        else:
            if isinstance(answer, Refused):
                self._held(answer.why, answer.retry_after)
                self._flights.rest(flight)
            else:
                self._pace.good()
                self._settle(flight, answer[0])
        self._rouse()

    def _settle(self, flight: Flight, done: bool | None) -> None:
        if done:
            self._flights.done(flight)
            self._bodies.pop(flight.unit.id, None)
        elif done is None:
            self._flights.again(flight, self.env.now, at_once=True)
        else:
            self._flights.pending(flight, self.env.now)

    def _held(self, why: str, retry_after: float | None) -> None:
        before = self._pace.until
        self._pace.hold(why, None, retry_after)
        if self._pace.until > before:
            self.holds.append((self.env.now, self._pace.until - self.env.now))

    def _poll(self) -> Steps:
        asked = self._flights.asked(_ASKED)
        began, settled = self.env.now, False
        if asked and isinstance(self._parent, Relay):
            answers = yield from self._parent.results(
                self.number, self.weight, [f.unit.id for f in asked.values()], self._http.wait
            )
            for flight, done in zip(asked.values(), answers, strict=True):
                settled = settled or bool(done)
                self._settle(flight, done)
            self._pace.good()
        quick = settled or self.env.now - began > 1.0
        self._poll_pause = _POLL_LEAST if quick else min(_POLL_MOST, self._poll_pause * 2)
        self._poll_at = self.env.now + self._poll_pause
        self._polling = False
        self._rouse()

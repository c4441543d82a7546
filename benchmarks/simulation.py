# SPDX-License-Identifier: Apache-2.0
"""A server as processes of simpy: an interpreter, group commits, an opener's cache, limits.

Time is simulated; what a step costs comes from `FleetCosts`, limits and back-off from the product.
A `Body` stands for ``weight`` units of as many agents that do the same at the same moment. What
that leaves out is in `simulate_fleet.py`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import simpy

from upseal.cli.fleet_costs import FleetCosts, HopCost
from upseal.cli.fleet_model import RELAY_CONNECTIONS, Fleet

Steps = Generator[simpy.Event, Any, Any]
BEFORE, WRITING, AFTER = 0.5, 0.4, 0.1
"""How a server's CPU time for a unit falls on opening, writing and the receipt: assumed. They take
turns in one interpreter, so it moves no rate, only what a unit waits for."""
CROWDED_RETRY, READING_RETRY = 5.0, 2.0
"""Seconds that hops ask for: no connection is free; no memory for a body."""


class Away(Exception):  # noqa: N818 - a state of affairs
    """Nobody answers."""


class Refused(NamedTuple):
    """A whole request was."""

    why: str
    retry_after: float


@dataclass(eq=False, slots=True)
class Body:
    """``weight`` units of ``reports`` reports each, with one session each."""

    key: int
    weight: int
    reports: float
    size: float
    """Bytes of one report."""
    session: tuple[int, int]
    made: float
    sealed_by: tuple[int, int] | None = None
    """The session of the relay that has sealed it again."""
    alike: int = 1
    """As many relays as that stands for, with a session each."""

    @property
    def bytes(self) -> float:
        return self.weight * self.reports * self.size


class Cpu:
    """An interpreter: one thing at a time, in the order of coming.

    Args:
        cores: of a machine that it shares with others; None: it has one for itself.
        alike: so many of them do the same work side by side.
        busy: share of it that is taken by what is not simulated.
    """

    def __init__(
        self, env: simpy.Environment, cores: simpy.Resource | None = None, alike: float = 1.0,
        busy: float = 0.0,
    ) -> None:  # fmt: skip
        if not 0 <= busy < 1:
            raise ValueError("there is nothing left of it")
        self._env, self._cores, self._speed = env, cores, alike * (1 - busy)
        self._turns = simpy.Resource(env)
        self.used = self.waited = 0.0
        self.served = 0

    def work(self, seconds: float) -> Steps:
        begun = self._env.now
        with self._turns.request() as turn:
            yield turn
            self.waited += self._env.now - begun
            self.served += 1
            self.used += seconds
            if self._cores is None:
                yield self._env.timeout(seconds / self._speed)
                return
            with self._cores.request() as core:
                yield core
                yield self._env.timeout(seconds / self._speed)


class Committer:
    """One thread that writes: what waits is one transaction, and one flush of the disk.

    ``alike``: of so many hops, each with a disk of its own.
    """

    def __init__(
        self, env: simpy.Environment, cpu: Cpu, costs: FleetCosts, most: float = float("inf"),
        alike: int = 1,
    ) -> None:  # fmt: skip
        self._env, self._cpu, self._costs, self._most = env, cpu, costs, most
        self._alike = alike
        self._jobs: deque[tuple[float, float, Sequence[Body], simpy.Event]] = deque()
        self._changed = env.event()
        self.groups = 0
        env.process(self._run())

    def write(self, units: float, seconds: float, bodies: Sequence[Body] = ()) -> simpy.Event:
        """Done when it is on the disk."""
        done = self._env.event()
        self._jobs.append((units, seconds, bodies, done))
        if not self._changed.triggered:
            self._changed.succeed()
        return done

    def forget(self) -> None:
        """The process has died: what was not on the disk is gone, and nobody gets an answer."""
        for *_, done in self._jobs:
            done.fail(Away())
        self._jobs.clear()

    def _run(self) -> Steps:
        while True:
            if not self._jobs:
                self._changed = self._env.event()
                yield self._changed
            group = []
            units = 0.0
            while self._jobs and (not group or units + self._jobs[0][0] <= self._most):
                group.append(self._jobs.popleft())
                units += group[-1][0]
            yield from self._cpu.work(sum(job[1] for job in group))
            size = sum(body.bytes for job in group for body in job[2]) / self._alike
            yield self._env.timeout(self._costs.sync + size * self._costs.sync_byte)
            self.groups += 1
            for _, _, bodies, done in group:
                self.stored(bodies)
                done.succeed()

    def stored(self, bodies: Sequence[Body]) -> None:
        """On the disk now, before anybody hears of it."""


class Sessions:
    """What an opener remembers: the oldest goes first."""

    def __init__(self, most: float) -> None:
        self._most, self._held = most, 0.0
        self._known: OrderedDict[tuple[int, int], float] = OrderedDict()
        self.met = 0.0

    def new(self, session: tuple[int, int], weight: float) -> bool:
        """Whether it has to be unwrapped."""
        if session in self._known:
            self._known.move_to_end(session)
            return False
        self._known[session] = weight
        self._held += weight
        self.met += weight
        while self._held > self._most and len(self._known) > 1:
            self._held -= self._known.popitem(last=False)[1]
        return True

    def forget(self) -> None:
        self._known.clear()
        self._held = 0.0


class Hop:
    """What a server and a relay have in common: connections, and being there."""

    def __init__(self, env: simpy.Environment, cpu: Cpu, seats: float) -> None:
        self.env, self.cpu, self._most = env, cpu, seats
        self._seats: dict[int, int] = {}
        self.refused: dict[str, float] = {}

    def sit(self, who: int, weight: int) -> bool:
        """A connection for each, kept for ever; False: there are too many."""
        if who not in self._seats:
            if sum(self._seats.values()) + weight > self._most:
                return False
            self._seats[who] = weight
        return True

    def refuse(self, why: str, weight: float, retry_after: float) -> Refused:
        self.refused[why] = self.refused.get(why, 0.0) + weight
        return Refused(why, retry_after)


class _Writing(Committer):
    """The server's: it knows units by their keys, and stores each once."""

    def __init__(self, env: simpy.Environment, cpu: Cpu, costs: FleetCosts, most: float) -> None:
        super().__init__(env, cpu, costs, most)
        self.keys: set[int] = set()
        self.reports = self.duplicates = 0.0
        self.sessions: dict[int, int] = {}
        """The newest session of each sender that something is stored of."""
        self.delays: list[tuple[float, int]] = []

    def stored(self, bodies: Sequence[Body]) -> None:
        for body in bodies:
            if body.key in self.keys:
                self.duplicates += body.weight
                continue
            self.keys.add(body.key)
            self.reports += body.weight * body.reports
            self.sessions[body.session[0]] = body.session[1]
            self.delays.append((self._env.now - body.made, body.weight))


class Server(Hop):
    """Opens, writes, receipts; away from time to time."""

    def __init__(
        self, env: simpy.Environment, fleet: Fleet, costs: FleetCosts, cpu: Cpu | None = None
    ) -> None:
        super().__init__(env, cpu or Cpu(env), fleet.server.connections)
        self._fleet, self._costs = fleet, costs
        self._cost: HopCost = costs.server(fleet.decrypting, bool(fleet.relays))
        self.writer = _Writing(env, self.cpu, costs, fleet.server.group_units)
        self.sessions = Sessions(fleet.server.opener_sessions)
        self.down = False
        self._life = 0
        self._held = 0.0

    def away(self, seconds: float) -> Steps:
        """Killed now, and started again after that."""
        self.down, self._life, self._held = True, self._life + 1, 0.0
        self.writer.forget()
        self.sessions.forget()
        self._seats.clear()
        yield self.env.timeout(seconds)
        self.down = False

    def post(self, who: int, alike: int, bodies: Sequence[Body], wait: float) -> Steps:
        """Refused, or whether each is done: here always."""
        life = self._there(who, alike)
        if life is None:
            return self.refuse("connections", alike, CROWDED_RETRY)
        size = sum(body.bytes for body in bodies)
        # As many senders alike would have as many requests: one of them may always come in.
        if self._held and self._held + size > self._fleet.server.queue_bytes:
            return self.refuse("memory", sum(body.weight for body in bodies), READING_RETRY)
        self._held += size
        try:
            seconds = sum(b.weight * self._cost.of_unit(b.reports, b.size) for b in bodies)
            met = self._cost.first + self._costs.unwrap
            yield from self.cpu.work(BEFORE * seconds + met * self._new(bodies))
            self._same(life)
            units = sum(body.weight for body in bodies)
            yield self.writer.write(units, WRITING * seconds, bodies)
            yield from self.cpu.work(AFTER * seconds)
            self._same(life)
        finally:
            if life == self._life:
                self._held -= size
        return [True] * len(bodies)

    def _new(self, bodies: Sequence[Body]) -> float:
        """Sessions to be unwrapped."""
        seen = [
            (b.session, b.weight) if b.sealed_by is None else (b.sealed_by, b.alike) for b in bodies
        ]
        return sum(number for session, number in seen if self.sessions.new(session, number))

    def _there(self, who: int, alike: int) -> int | None:
        if self.down:
            raise Away
        places = alike * (RELAY_CONNECTIONS if self._fleet.relays else 1)
        return self._life if self.sit(who, places) else None

    def _same(self, life: int) -> None:
        if life != self._life:
            raise Away

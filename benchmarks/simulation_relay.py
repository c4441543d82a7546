# SPDX-License-Identifier: Apache-2.0
"""A relay as processes of simpy: a queue with limits, workers, bundles or batches, back-off."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence

import simpy
from simulation import (
    CROWDED_RETRY,
    Away,
    Body,
    Committer,
    Cpu,
    Hop,
    Refused,
    Server,
    Sessions,
    Steps,
)

from upseal.cli.fleet_costs import FleetCosts
from upseal.cli.fleet_model import RELAY_CONNECTIONS, Fleet
from upseal.fleet.http.client import Backoff

ACCEPTING = 0.5
"""Of a relay's CPU time for a unit, until it is queued; the rest is passing it on: assumed."""
FULL_RETRY, AWAY_RETRY = 5.0, 30.0
"""Seconds that a relay asks for while its queue is full: its parent is there, or away."""


class Relay(Hop):
    """Takes bodies, keeps them until its parent is done with them, passes them on.

    Args:
        number: below 0, so that no agent has it.
        alike: relays that this one stands for.
        decrypts: it opens, and seals again, in a session of its own.
        from_agents: who is below.
    """

    def __init__(
        self, env: simpy.Environment, fleet: Fleet, costs: FleetCosts, number: int,
        parent: Server | Relay, rng: random.Random, *, alike: int = 1, decrypts: bool = False,
        from_agents: bool = True, cpu: Cpu | None = None,
    ) -> None:  # fmt: skip
        super().__init__(env, cpu or Cpu(env, alike=alike), fleet.relay_http.connections * alike)
        self._fleet, self._costs, self.number, self._parent = fleet, costs, number, parent
        self._alike, self._decrypts, self._from_agents = alike, decrypts, from_agents
        self._cost = costs.decrypting if decrypts else costs.passing
        self._disk = Committer(env, self.cpu, costs, alike=alike)
        self._sessions = Sessions(fleet.repackage.cache * alike)
        self._queue: deque[Body] = deque()
        self._known: dict[int, Body] = {}
        """Accepted, and not done."""
        self._done: set[int] = set()
        self._pending: dict[int, Body] = {}
        self.bodies = self.bytes = 0.0
        self._backoff = Backoff(fleet.forward.retry, fleet.forward.retry_most, rng=rng)
        self._gate = 0.0
        self._parent_away = False
        self._more, self._asks = env.event(), env.event()
        self._told: dict[int, simpy.Event] = {}
        for _ in range(fleet.forward.workers):
            env.process(self._work())
        env.process(self._poll())

    # -- from below ----------------------------------------------------------------------

    def post(self, who: int, alike: int, bodies: Sequence[Body], wait: float) -> Steps:
        """Refused, or whether each is done; answered after ``wait`` seconds at the latest."""
        if not self.sit(who, alike * (1 if self._from_agents else RELAY_CONNECTIONS)):
            return self.refuse("connections", alike, CROWDED_RETRY)
        weight = sum(body.weight for body in bodies)
        fresh = [b for b in bodies if b.key not in self._known and b.key not in self._done]
        # Credentials not seen yet are in what a first contact costs here.
        met = 0
        if self._from_agents:
            met = sum(b.weight for b in fresh if self._sessions.new(b.session, b.weight))
        first = self._cost.first + (self._costs.unwrap if self._decrypts else 0.0)
        yield from self.cpu.work(ACCEPTING * self._seconds(bodies) + met * first)
        limits, size = self._fleet.queue, sum(body.bytes for body in fresh)
        if (
            self.bodies + sum(b.weight for b in fresh) > limits.max_bodies * self._alike
            or self.bytes + size > limits.max_bytes * self._alike
        ):
            away = self._parent_away
            why = "parent-away" if away else "full"
            return self.refuse(why, weight, AWAY_RETRY if away else FULL_RETRY)
        for body in fresh:
            self._known[body.key] = body
            self.bodies += body.weight
            self.bytes += body.bytes
        yield self._disk.write(weight, 0.0, fresh)
        self._queue.extend(fresh)
        self._wake("_more")
        yield from self._until([b.key for b in bodies], wait, every=True)
        return [body.key in self._done for body in bodies]

    def results(self, who: int, alike: int, keys: Sequence[int], wait: float) -> Steps:
        """Whether each is done; None: not known."""
        yield from self.cpu.work(alike * self._costs.poll_relay)
        yield from self._until(keys, wait, every=False)
        return [True if k in self._done else False if k in self._known else None for k in keys]

    def _until(self, keys: Sequence[int], wait: float, *, every: bool) -> Steps:
        left = [key for key in keys if key in self._known]
        if wait <= 0 or not left or (not every and len(left) < len(keys)):
            return
        told = [self._told.setdefault(key, self.env.event()) for key in left]
        news = simpy.AllOf(self.env, told) if every else simpy.AnyOf(self.env, told)
        yield news | self.env.timeout(wait)

    def _seconds(self, bodies: Iterable[Body]) -> float:
        return sum(b.weight * self._cost.of_unit(b.reports, b.size) for b in bodies)

    def _wake(self, which: str) -> None:
        event: simpy.Event = getattr(self, which)
        setattr(self, which, self.env.event())
        event.succeed()

    # -- to the parent -------------------------------------------------------------------

    def _work(self) -> Steps:
        forward = self._fleet.forward
        while True:
            if self._gate > self.env.now:
                yield self.env.timeout(self._gate - self.env.now)
                continue
            if sum(b.weight for b in self._pending.values()) >= forward.pending * self._alike:
                yield self.env.timeout(0.1)
                continue
            if not self._queue:
                yield self._more
                continue
            claimed = self._claim()
            if self._decrypts:
                end = self.env.now + self._fleet.repackage.window
                while self.env.now < end:
                    yield self._more | self.env.timeout(end - self.env.now)
                    claimed += self._claim(claimed)
            yield from self.cpu.work((1 - ACCEPTING) * self._seconds(claimed))
            wait = forward.wait if not self._pending else min(1.0, forward.wait)
            yield from self._send(claimed, wait)

    def _claim(self, already: Sequence[Body] = ()) -> list[Body]:
        """A bundle, or what one batch may have; at least one body."""
        if self._decrypts:
            records, size = self._fleet.repackage.records, self._fleet.repackage.bytes
        else:
            records, size = self._fleet.forward.bundle_bodies, self._fleet.forward.bundle_bytes
        found: list[Body] = []
        held = sum(self._records(b) for b in already)
        held_bytes = sum(b.bytes for b in already)
        while self._queue:
            body = self._queue[0]
            held += self._records(body)
            held_bytes += body.bytes
            full = held > records * self._alike or held_bytes > size * self._alike
            if full and (found or already):
                break
            found.append(self._queue.popleft())
        return found

    def _records(self, body: Body) -> float:
        return body.weight * (body.reports + 1 if self._decrypts else 1)

    def _send(self, claimed: list[Body], wait: float) -> Steps:
        if self._decrypts:
            own = (self.number, int(self.env.now // self._fleet.session_age))
            for body in claimed:
                body.sealed_by, body.alike = own, self._alike
        try:
            answer = yield from self._parent.post(self.number, self._alike, claimed, wait)
        except Away:
            answer = Refused("unreachable", 0.0)
            self._parent_away = True
        if isinstance(answer, Refused):
            if self._gate <= self.env.now:  # workers that fail together count as one failure
                self._gate = self.env.now + self._backoff.next(answer.retry_after)
            self._queue.extendleft(reversed(claimed))
            return
        self._parent_away = False
        self._backoff.reset()
        done = [body for body, ready in zip(claimed, answer, strict=True) if ready]
        for body, ready in zip(claimed, answer, strict=True):
            if not ready:
                self._pending[body.key] = body
        if len(done) < len(claimed):
            self._wake("_asks")
        yield from self._finish(done)

    def _finish(self, done: Sequence[Body]) -> Steps:
        if not done:
            return
        yield self._disk.write(len(done), 0.0)
        for body in done:
            if self._known.pop(body.key, None) is not None:
                self.bodies -= body.weight
                self.bytes -= body.bytes
            self._pending.pop(body.key, None)
            self._done.add(body.key)
            told = self._told.pop(body.key, None)
            if told is not None:
                told.succeed()

    def _poll(self) -> Steps:
        while True:
            if not self._pending or not isinstance(self._parent, Relay):
                yield self._asks
                continue
            asked = list(self._pending.values())
            answers = yield from self._parent.results(
                self.number, self._alike, [body.key for body in asked], self._fleet.forward.wait
            )
            both = list(zip(asked, answers, strict=True))
            for body, ready in both:
                if ready is None:
                    del self._pending[body.key]
                    self._queue.append(body)
                    self._wake("_more")
            yield from self._finish([body for body, ready in both if ready])

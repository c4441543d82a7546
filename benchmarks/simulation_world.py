# SPDX-License-Identifier: Apache-2.0
"""A whole fleet in simulated time: what goes in, what comes out, and how long storms last."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

import simpy
from simulation import Cpu, Server, Steps
from simulation_agents import Cohort, product_clock
from simulation_relay import Relay

from upseal.cli.fleet_costs import FleetCosts
from upseal.cli.fleet_model import Fleet
from upseal.cli.fleet_storms import JITTER


@dataclass
class Outcome:
    """What a simulation came to. Reports are those of all agents."""

    made: float = 0.0
    stored: float = 0.0
    queued: float = 0.0
    """Made, and not stored: with their agents, whoever else has a copy."""
    refused: float = 0.0
    """Never taken: the spool was full."""
    duplicates: float = 0.0
    """Units that came to the server again."""
    turned_away: dict[str, float] = field(default_factory=dict)
    """By hop and reason: units, or connections."""
    storm: float = 0.0
    """When the storm was over: the server there again, the manifest out."""
    drained: float | None = None
    """Seconds from then until no more waits than before; None: not within the time."""
    backlog: list[tuple[float, float]] = field(default_factory=list)
    """Reports made and not stored, by the time."""
    median: float = 0.0
    """Seconds from the first report of a unit to the commit."""
    p99: float = 0.0
    server_busy: float = 0.0
    """Of a core, with what is not simulated left out."""
    met: float = 0.0
    """Sessions that the server has unwrapped."""
    last_rotated: float | None = None
    """Seconds after the new manifest until something of each cohort is stored under it."""

    @property
    def lost(self) -> float:
        """Neither here nor there."""
        return self.made - self.stored - self.queued

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "lost": self.lost}


class World:
    """A fleet of at most so many cohorts, and so many groups of relays in each tier.

    Args:
        seed: the same one gives the same outcome.
    """

    def __init__(
        self, fleet: Fleet, costs: FleetCosts, seed: int = 1, cohorts: int = 1000, groups: int = 200
    ) -> None:  # fmt: skip
        self.env = simpy.Environment()
        self.fleet, self.costs, self._seed = fleet, costs, seed
        looks = fleet.relays[-1] / fleet.relay_refresh if fleet.relays else (
            fleet.clients / fleet.refresh
        )  # fmt: skip
        busy = min(0.99, looks * costs.poll_server)
        self.server = Server(self.env, fleet, costs, Cpu(self.env, busy=busy))
        self.relays: list[Relay] = []
        above: list[Server | Relay] = [self.server]
        for tier in range(len(fleet.relays), 0, -1):
            above = self._tier(tier, above, groups)
        keys, many = count(1), min(fleet.clients, cohorts)
        number = keys.__next__
        self.cohorts = [
            Cohort(
                self.env, fleet, costs, i, _share(fleet.clients, many, i), above[i % len(above)],
                number, random.Random(f"{seed} agent {i}"),
            )
            for i in range(many)
        ]  # fmt: skip

    def _tier(self, tier: int, above: list[Server | Relay], groups: int) -> list[Server | Relay]:
        fleet, whole = self.fleet, self.fleet.relays[tier - 1]
        made: list[Server | Relay] = []
        fed = fleet.clients if tier == 1 else fleet.relays[tier - 2]
        looks = fed / whole / (fleet.refresh if tier == 1 else fleet.relay_refresh)
        for i in range(min(whole, groups)):
            name, alike = -1 - len(self.relays), _share(whole, min(whole, groups), i)
            cpu = Cpu(self.env, alike=alike, busy=min(0.99, looks * self.costs.poll_relay))
            relay = Relay(
                self.env, fleet, self.costs, name, above[i % len(above)],
                random.Random(f"{self._seed} relay {name}"), alike=alike,
                decrypts=fleet.decrypting and tier == 1, from_agents=tier == 1, cpu=cpu,
            )  # fmt: skip
            self.relays.append(relay)
            made.append(relay)
        return made

    # -- running it ----------------------------------------------------------------------

    def run(
        self, kind: str, warm: float, away: float = 0.0, most: float = 3600.0, step: float = 1.0
    ) -> Outcome:
        """``kind``: ``calm``, ``restart`` (the server is away), ``rotation``.

        Args:
            warm: seconds before the storm.
            away: seconds that the server is.
            most: seconds after the storm.
            step: seconds between two looks at the backlog.
        """
        outcome = Outcome(storm=warm + away)
        with product_clock(self.env, random.Random(f"{self._seed} flights")):
            self.env.process(self._storm(kind, warm, away))
            before: list[float] = []
            while self.env.now < warm + away + most:
                self.env.run(until=self.env.now + step)
                now, waits = self.env.now, self._made() - self.server.writer.reports
                outcome.backlog.append((now, waits))
                if warm / 2 <= now <= warm:
                    before.append(waits)
                if now > outcome.storm and self._over(kind, before, outcome):
                    break
        self._sum_up(outcome)
        return outcome

    def _storm(self, kind: str, warm: float, away: float) -> Steps:
        yield self.env.timeout(warm)
        if kind == "restart":
            yield from self.server.away(away)
        elif kind == "rotation":
            rng = random.Random(f"{self._seed} rotation")
            for cohort in self.cohorts:
                self._sessions = {one.number: one.session for one in self.cohorts}
                reach = rng.uniform(0, self.fleet.refresh * JITTER)
                reach += sum(rng.uniform(0, self.fleet.relay_refresh) for _ in self.fleet.relays)
                self.env.process(cohort.rotate(reach))

    def _over(self, kind: str, before: list[float], outcome: Outcome) -> bool:
        now, waits = outcome.backlog[-1]
        if kind == "rotation":
            known = self.server.writer.sessions
            if all(known.get(number, -1) > old for number, old in self._sessions.items()):
                outcome.last_rotated = outcome.drained = now - outcome.storm
                return True
            return False
        usual, most = max(before, default=0.0), max(waiting for _, waiting in outcome.backlog)
        if kind == "restart" and waits <= usual * 1.1 + 0.005 * most:
            outcome.drained = now - outcome.storm
            return True
        return False

    def _made(self) -> float:
        return sum(cohort.made for cohort in self.cohorts)

    def _sum_up(self, outcome: Outcome) -> None:
        writer = self.server.writer
        outcome.made, outcome.stored = self._made(), writer.reports
        outcome.queued = sum(cohort.queued(writer.keys) for cohort in self.cohorts)
        outcome.refused = sum(cohort.refused for cohort in self.cohorts)
        outcome.duplicates = writer.duplicates
        for name, hop in (("server", self.server), *(("relay", relay) for relay in self.relays)):
            for why, number in hop.refused.items():
                which = f"{name}: {why}"
                outcome.turned_away[which] = outcome.turned_away.get(which, 0.0) + number
        outcome.server_busy = self.server.cpu.used / self.env.now
        outcome.met = self.server.sessions.met
        outcome.median, outcome.p99 = _quantiles(writer.delays)


def _share(whole: int, parts: int, which: int) -> int:
    """Of so many, as evenly as it goes."""
    return whole // parts + (which < whole % parts)


def _quantiles(delays: list[tuple[float, int]]) -> tuple[float, float]:
    ordered = sorted(delays)
    total, passed, found = sum(weight for _, weight in ordered), 0, []
    for delay, weight in ordered:
        passed += weight
        while len(found) < 2 and passed >= (0.5, 0.99)[len(found)] * total:
            found.append(delay)
    return (found[0], found[1]) if len(found) == 2 else (0.0, 0.0)

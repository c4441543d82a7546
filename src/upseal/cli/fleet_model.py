# SPDX-License-Identifier: Apache-2.0
"""What a whole fleet takes at each hop, and what is full first (docs/fleet_capacity.md).

Pure arithmetic on a `Fleet` and the `FleetCosts` of a machine. Limits are the product's own
settings, imported; `fleet_storms` says what happens after a restart, a rotation, an outage.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from math import ceil, inf, isfinite
from typing import Any

from upseal.cli.capacity import FULL
from upseal.cli.fleet_costs import FleetCosts, HopCost
from upseal.fleet.agent.settings import Batch, Send, SpoolLimits
from upseal.fleet.relay.settings import Forward, Http, QueueLimits, Refresh, Repackage
from upseal.fleet.server.settings import Limits

KEEP_ALIVE = 75.0
"""Seconds after which a hop closes a silent connection: ``Limits.keep_alive`` of its HTTP server,
which cannot be imported without it."""
RELAY_CONNECTIONS = 4
"""That a relay opens to its parent: its workers, who asks for results, who looks for news."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a deployment is, and what it has to carry."""

    clients: int = 50_000
    relays: tuple[int, ...] = (50,)
    """How many in each tier, that next to the clients first; none: clients talk to the server."""
    decrypting: bool = False
    """Whether the relays next to the clients decrypt; those above always pass."""
    reports_per_day: float = 960.0
    """Of one client."""
    burst: float = 10.0
    """Reports that a client makes at one moment, by one gathering: they go in one unit."""
    report_bytes: float = 1000.0
    unit: int = Batch().reports
    """Reports in a unit, at most."""
    session_age: float = 3600.0
    """Seconds: ``Limits.max_age`` of the agents' sealers."""
    refresh: float = Send().refresh
    """Seconds between two looks of a client for a new manifest."""
    relay_refresh: float = Refresh().manifest
    """... of a relay."""
    tls: bool = True
    link_mbit: float = 1000.0
    """Of each relay and the server, each way."""
    memory_gib: float = 8.0
    """Of each relay and the server."""
    keep_days: float = 30.0
    """That the server keeps reports."""
    disk_gib: float = 0.0
    """Of the server, for its database. 0: as much as it takes."""
    agent: Send = field(default_factory=Send)
    spool: SpoolLimits = field(default_factory=SpoolLimits)
    queue: QueueLimits = field(default_factory=QueueLimits)
    forward: Forward = field(default_factory=Forward)
    repackage: Repackage = field(default_factory=Repackage)
    relay_http: Http = field(default_factory=Http)
    server: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Raises ValueError where a number makes no sense."""
        if self.clients < 1 or any(count < 1 for count in self.relays):
            raise ValueError("clients and relays: at least one of each")
        if any(
            up > down for down, up in zip((self.clients, *self.relays), self.relays, strict=False)
        ):
            raise ValueError("more relays in a tier than there are hops below it")
        if self.decrypting and not self.relays:
            raise ValueError("no relays, and so none that decrypt")
        if not all(n > 0 for n in (self.burst, self.reports_per_day, self.report_bytes)):
            raise ValueError("reports, their number at a time and their size: above 0")

    @property
    def reports(self) -> float:
        """A second, of one client."""
        return self.reports_per_day / 86400

    @property
    def in_unit(self) -> float:
        """Reports in a unit: what is made at one moment, or while its first one waits."""
        return min(self.unit, max(1.0, self.burst, self.reports * Batch().seconds))

    @property
    def units(self) -> float:
        """A second, of one client."""
        return self.reports / self.in_unit

    @property
    def sessions(self) -> float:
        """New ones a second, of one client: at most one for each unit."""
        return self.units / max(1, ceil(round(self.units * self.session_age, 6)))

    def unit_bytes(self, costs: FleetCosts) -> float:
        """Of one unit on the wire."""
        return costs.body_bytes + self.in_unit * (self.report_bytes + costs.record_bytes)


@dataclass(frozen=True, slots=True)
class Use:
    """How much of something is needed, and how much there is."""

    value: float
    limit: float
    unit: str

    @property
    def share(self) -> float:
        """1: full."""
        return self.value / self.limit


@dataclass(frozen=True, slots=True)
class Hop:
    """One kind of hop: each of ``count`` does the same."""

    name: str
    """``client``, ``relay 1`` (next to the clients), ``relay 2``, ``server``."""
    count: int
    clients: float
    """Below each."""
    cost: HopCost
    """Of a unit."""
    unwrap: float
    """CPU seconds of a new session met here."""
    below: float
    """Connections from below."""
    uses: dict[str, Use]

    @property
    def steady(self) -> float:
        """Of a core, all day."""
        return self.uses["cpu"].value

    @property
    def fullest(self) -> tuple[str, Use]:
        """What is full first here."""
        return max(self.uses.items(), key=lambda item: item[1].share)


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What is full first in the whole fleet."""

    hop: str
    what: str
    share: float
    """Of its limit; above 1 it does not fit."""
    clients: int
    """With which something is full, the relays being as many as now; 0: not with one a relay."""
    change: str
    """What to do about it."""


CHANGES = {
    ("client", "cpu"): "fewer reports, or more of them in a unit: [batch] in agent.toml",
    ("relay", "cpu"): "more relays, or more reports in a unit",
    ("relay", "connections"): "more relays, or more `connections` in [http] of relay.toml, "
    "with as many open files",
    ("relay", "memory"): "more relays, or more memory for each",
    ("relay", "network"): "more relays, or a faster link",
    ("server", "cpu"): "ingest by a broker with several openers (docs/integrations/nats.md), "
    "relays that decrypt, or more reports in a unit",
    ("server", "connections"): "relays between clients and server, or more `connections` in "
    "[server] of deployment.toml, with as many open files",
    ("server", "memory"): "relays that decrypt, fewer `opener_sessions`, or more memory",
    ("server", "network"): "a faster link",
    ("server", "disk"): "a larger disk, or fewer days: `keep_days` in deployment.toml",
    ("server", "new sessions of one relay"): "more relays, or a larger `unwrap_share` in "
    "deployment.toml",
}
FORGETS = (
    "`opener_sessions` in deployment.toml above the number of clients: its opener forgets "
    "sessions before they are used again"
)
POLLS = "relays that look more seldom for a manifest: [refresh] in relay.toml, or tiers of them"


def hops(fleet: Fleet, costs: FleetCosts) -> list[Hop]:
    """From the clients to the server."""
    found = [_client(fleet, costs)]
    fed = fleet.clients
    for number, count in enumerate(fleet.relays, 1):
        decrypts = fleet.decrypting and number == 1
        found.append(_relay(fleet, costs, number, count, fed / count, decrypts))
        fed = count
    found.append(_server(fleet, costs, fed))
    return found


def _client(fleet: Fleet, costs: FleetCosts) -> Hop:
    recipients = 2 if fleet.decrypting else 1
    session = costs.session + (recipients - 1) * costs.wrap
    cpu = fleet.units * costs.agent.of_unit(fleet.in_unit, fleet.report_bytes)
    cpu += fleet.sessions * session
    uses = {"cpu": Use(cpu, FULL, "of a core")}
    return Hop("client", fleet.clients, 1, costs.agent, session, 0, uses)


def _relay(
    fleet: Fleet, costs: FleetCosts, number: int, count: int, fed: float, decrypts: bool
) -> Hop:
    """``fed``: hops directly below each."""
    cost = costs.decrypting if decrypts else costs.passing
    clients = fleet.clients / count
    from_clients = number == 1
    units = clients * fleet.units
    met = clients * fleet.sessions if from_clients else 0.0
    unwrap = 0.0
    if decrypts:
        unwrap = costs.unwrap
        met = clients * (fleet.sessions if clients <= fleet.repackage.cache else fleet.units)
    looks = fed / (fleet.refresh if from_clients else fleet.relay_refresh)
    open_ones = _connections(fleet, fed, from_clients)
    cpu = units * cost.of_unit(fleet.in_unit, fleet.report_bytes) + met * (cost.first + unwrap)
    cpu += looks * costs.poll_relay + _handshakes(fleet, costs, fed, from_clients)
    memory = costs.relay_bytes + open_ones * costs.connection_bytes
    if decrypts:
        memory += min(clients, fleet.repackage.cache) * costs.session_bytes
    uses = {
        "cpu": Use(cpu, FULL, "of a core"),
        "connections": Use(open_ones, fleet.relay_http.connections, ""),
        "memory": Use(memory / 2**30, fleet.memory_gib, "GiB"),
        "network": Use(units * fleet.unit_bytes(costs) * 8e-6, fleet.link_mbit, "Mbit/s"),
    }
    return Hop(f"relay {number}", count, clients, cost, unwrap, open_ones, uses)


def _server(fleet: Fleet, costs: FleetCosts, fed: float) -> Hop:
    cost = costs.server(fleet.decrypting, bool(fleet.relays))
    units = fleet.clients * fleet.units
    senders = fleet.relays[0] if fleet.decrypting else fleet.clients
    limits = fleet.server
    # A relay seals all the time.
    met = senders / fleet.session_age if fleet.decrypting else senders * fleet.sessions
    if senders > limits.opener_sessions:
        met = max(met, units)
    looks = fed / (fleet.relay_refresh if fleet.relays else fleet.refresh)
    open_ones = _connections(fleet, fed, not fleet.relays)
    cpu = units * cost.of_unit(fleet.in_unit, fleet.report_bytes)
    cpu += met * (cost.first + costs.unwrap) + looks * costs.poll_server
    cpu += _handshakes(fleet, costs, fed, not fleet.relays)
    memory = costs.server_bytes + open_ones * costs.connection_bytes
    memory += min(senders, limits.opener_sessions) * costs.session_bytes
    stored = units * fleet.in_unit * (fleet.report_bytes + costs.stored_bytes)
    uses = {
        "cpu": Use(cpu, FULL, "of a core"),
        "connections": Use(open_ones, limits.connections, ""),
        "memory": Use(memory / 2**30, fleet.memory_gib, "GiB"),
        "network": Use(units * fleet.unit_bytes(costs) * 8e-6, fleet.link_mbit, "Mbit/s"),
        "disk": Use(stored * 86400 * fleet.keep_days / 2**30, fleet.disk_gib or inf, "GiB"),
    }
    if fleet.relays and not fleet.decrypting:
        allowed = limits.unwrap_share * limits.relay_factor
        spent = met / fleet.relays[-1] * costs.unwrap
        uses["new sessions of one relay"] = Use(spent, allowed, "of a core")
    return Hop("server", 1, fleet.clients, cost, costs.unwrap, open_ones, uses)


def _connections(fleet: Fleet, fed: float, clients: bool) -> float:
    """A client looks for a manifest before its connection is closed as idle: it always has one."""
    if not clients:
        return fed * RELAY_CONNECTIONS
    kept = 1.0 if fleet.refresh <= KEEP_ALIVE else KEEP_ALIVE / fleet.refresh
    return fed * min(1.0, kept)


def _handshakes(fleet: Fleet, costs: FleetCosts, fed: float, clients: bool) -> float:
    """CPU seconds a second of TLS: none while connections are kept."""
    if not fleet.tls or not clients or fleet.refresh <= KEEP_ALIVE:
        return 0.0
    return fed / fleet.refresh * costs.handshake


def first_full(fleet: Fleet, costs: FleetCosts) -> Bottleneck:
    """What is full first as it is, and with how many clients."""
    found = hops(fleet, costs)
    name, what, share = _fullest(found)
    return Bottleneck(
        name, what, share, _when_full(fleet, costs), _change(fleet, costs, name, what)
    )


def _fullest(found: list[Hop]) -> tuple[str, str, float]:
    hop = max(found, key=lambda one: one.fullest[1].share)
    what, use = hop.fullest
    return hop.name, what, use.share


def _when_full(fleet: Fleet, costs: FleetCosts) -> int:
    """The largest number of clients with which nothing is over its limit; 0: not one a relay."""

    def fits(clients: int) -> bool:
        return _fullest(hops(replace(fleet, clients=clients), costs))[2] <= 1

    low = max(1, *fleet.relays) if fleet.relays else 1
    if not fits(low):
        return 0
    high = low * 2
    while high <= 10**9 and fits(high):
        low, high = high, high * 2
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _change(fleet: Fleet, costs: FleetCosts, name: str, what: str) -> str:
    kind = name.split()[0]
    if (kind, what) == ("server", "cpu"):
        if not fleet.decrypting and fleet.clients > fleet.server.opener_sessions:
            return FORGETS
        fed = fleet.relays[-1] if fleet.relays else 0
        polls = fed / fleet.relay_refresh * costs.poll_server
        if polls > hops(fleet, costs)[-1].steady / 2:
            return POLLS
    return CHANGES[kind, what]


def as_facts(fleet: Fleet, costs: FleetCosts) -> dict[str, Any]:
    """For JSON."""
    return {
        "fleet": asdict(fleet),
        "costs": asdict(costs),
        "units_per_client_per_day": fleet.units * 86400,
        "reports_in_unit": fleet.in_unit,
        "hops": [
            {
                "name": hop.name,
                "count": hop.count,
                "clients": hop.clients,
                "uses": {
                    what: {
                        "value": use.value,
                        "limit": use.limit if isfinite(use.limit) else None,
                        "unit": use.unit,
                        "share": use.share,
                    }
                    for what, use in hop.uses.items()
                },
            }
            for hop in hops(fleet, costs)
        ],
        "first": asdict(first_full(fleet, costs)),
    }  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""What a fleet goes through when all want something at once, and how long it takes; arithmetic.

- *restart*: the server is away for minutes; relays queue, and its opener has forgotten all.
- *outage*: the same for hours: queues fill up, then the clients' spools.
- *rotation*: every client seals a new session, and whoever opens meets them all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from upseal.cli.fleet_costs import FleetCosts
from upseal.cli.fleet_model import Fleet, Hop, hops
from upseal.fleet.agent.settings import Batch

JITTER = 1.2
"""How much longer than `Fleet.refresh` a client may wait: the sender's own spread."""
BACKOFF = "back-off"
REACH = "the clients' next report"


@dataclass(frozen=True, slots=True)
class Storm:
    """One of them."""

    kind: str
    away: float
    """Seconds that the server was."""
    seconds: float
    """Until all is as before; inf: never, since a hop is full without it."""
    by: str
    """What takes that long: a hop's name, `BACKOFF` or `REACH`."""
    drains: dict[str, float]
    """Seconds of each hop, if it were alone."""
    spread: float
    """Seconds over which clients or relays come back, or hear of it."""
    queued: float
    """Units that wait at the relays at most."""
    spooled: float
    """Reports that wait at the clients alone."""
    queue_full: float
    """Seconds after which the relays take no more; inf: they have room."""
    spool_full: float
    """Seconds after which a client takes no more."""
    refused: float
    """Reports that its program could not hand over for that."""


def restart(fleet: Fleet, costs: FleetCosts, minutes: float = 5.0) -> Storm:
    """The server is away for so long, and comes back."""
    return _away(fleet, costs, "restart", minutes * 60)


def outage(fleet: Fleet, costs: FleetCosts, hours: float = 8.0) -> Storm:
    """Likewise, for hours."""
    return _away(fleet, costs, "outage", hours * 3600)


def rotation(fleet: Fleet, costs: FleetCosts) -> Storm:
    """From the moment that the new manifest is at the server until all have used its key."""
    heard = fleet.refresh * JITTER + len(fleet.relays) * fleet.relay_refresh
    spread = heard + 1 / fleet.units
    drains = {}
    for hop in hops(fleet, costs):
        new = hop.clients if _meets(fleet, hop) else 0.0
        if hop.name == "client":
            work = hop.unwrap
        elif hop.name == "server" and fleet.decrypting:
            work = fleet.relays[0] * (hop.cost.first + hop.unwrap)
        else:
            work = new * (hop.cost.first + hop.unwrap)
        drains[hop.name] = _drain(hop, work)
    return _storm("rotation", 0.0, drains, spread, REACH, 0.0, 0.0, inf, inf, 0.0)


def _meets(fleet: Fleet, hop: Hop) -> bool:
    """Whether clients' sessions are opened there."""
    return hop.name == ("relay 1" if fleet.decrypting else "server")


def _away(fleet: Fleet, costs: FleetCosts, kind: str, away: float) -> Storm:
    each = fleet.unit_bytes(costs)
    units = fleet.clients * fleet.units
    room = sum(min(fleet.queue.max_bodies, fleet.queue.max_bytes / each) * n for n in fleet.relays)
    queue_full = room / units if fleet.relays else inf
    queued = min(away, queue_full) if fleet.relays else 0.0
    a_client = (fleet.report_bytes + costs.record_bytes) * fleet.reports
    spool_full = fleet.spool.max_bytes / a_client
    spooled = max(0.0, min(away, spool_full) - queued)
    refused = max(0.0, away - spool_full) * fleet.reports * fleet.clients
    packed = min(fleet.unit, max(fleet.in_unit, Batch().bytes / fleet.report_bytes))
    packed = max(1.0, min(packed, spooled * fleet.reports))
    drains = {}
    for hop in hops(fleet, costs):
        small = hop.clients * fleet.units * queued
        large = hop.clients * fleet.reports * spooled / packed
        size = fleet.report_bytes
        work = small * hop.cost.of_unit(fleet.in_unit, size)
        work += large * hop.cost.of_unit(packed, size)
        if hop.name == "server":
            # Its opener has forgotten all; a session is met once, if its client has sent anything.
            senders = fleet.relays[0] if fleet.decrypting else min(hop.clients, small + large)
            work += senders * (hop.cost.first + hop.unwrap)
            work += fleet.tls * hop.below * costs.handshake
        drains[hop.name] = _drain(hop, work)
    most = fleet.forward.retry_most if fleet.relays else fleet.agent.retry_most
    back = fleet.clients * fleet.reports * spooled
    return _storm(kind, away, drains, min(most, away), BACKOFF, units * queued, back,
                  queue_full, spool_full, refused)  # fmt: skip


def _drain(hop: Hop, work: float) -> float:
    """Seconds, while the usual goes on. A process runs Python on about one core."""
    spare = 1.0 - hop.steady
    return work / spare if spare > 0 else inf


def _storm(
    kind: str, away: float, drains: dict[str, float], spread: float, why: str, *more: float
) -> Storm:
    slowest = max(drains, key=drains.__getitem__)
    seconds, by = max((drains[slowest], slowest), (spread, why))
    return Storm(kind, away, seconds, by, drains, spread, *more)


def as_facts(storm: Storm) -> dict[str, Any]:
    """For JSON, which has no inf: None in its place."""
    facts = asdict(storm)
    facts["drains"] = {name: _finite(value) for name, value in storm.drains.items()}
    return {name: _finite(value) for name, value in facts.items()}


def _finite(value: Any) -> Any:
    return None if value == inf else value

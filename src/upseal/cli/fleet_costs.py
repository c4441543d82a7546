# SPDX-License-Identifier: Apache-2.0
"""What each hop of a fleet spends, as measured: what `upseal capacity` counts with.

The figures at the end are written by ``benchmarks/fleet_fit.py`` from runs of
``benchmarks/fleet.py`` and ``benchmarks/fleet_extras.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HopCost:
    """CPU seconds of one hop, all of its work: HTTP, checks, queue, database, receipts, sealing."""

    unit: float
    """Each unit."""
    report: float
    """Each report in it, beyond that."""
    byte: float
    """Each byte of a report, beyond that."""
    first: float
    """The first unit of a session, beyond that: public keys, and a credential not seen yet."""

    def of_unit(self, reports: float, size: float) -> float:
        """A unit of so many reports of so many bytes, its session known."""
        return self.unit + reports * (self.report + size * self.byte)


@dataclass(frozen=True, slots=True)
class FleetCosts:
    """Of a whole fleet; seconds and bytes."""

    where: str
    """Machine, system, date and drift of the measurement."""
    agent: HopCost
    """A client, beside its spool and its start."""
    passing: HopCost
    decrypting: HopCost
    server_direct: HopCost
    """Agents send to it by themselves."""
    server_passing: HopCost
    """Passing relays send bundles."""
    server_decrypting: HopCost
    """Decrypting relays send batches."""
    session: float
    """CPU seconds of a new session, to one recipient."""
    wrap: float
    """Each further recipient."""
    unwrap: float
    """CPU seconds of a session met for the first time."""
    poll_server: float
    """CPU seconds of a look at manifest and capabilities, on a connection that is kept."""
    poll_relay: float
    sync: float
    """Seconds that a commit waits for the disk..."""
    sync_byte: float
    """... and for each byte that is in it."""
    handshake: float
    """CPU seconds of who accepts a TLS connection."""
    connection_bytes: float
    """Memory of a hop for each connection."""
    session_bytes: float = 800.0
    """Memory of an opener for each session (docs/capacity.md, "High volume")."""
    server_bytes: float = 250e6
    """Memory of a server at rest, and with a few hundred units in hand."""
    relay_bytes: float = 100e6
    stored_bytes: float = 150.0
    """Disk of the server for a report, beyond its own bytes."""
    body_bytes: float = 600.0
    """Of a unit on the wire beyond its reports: statement, envelope, HTTP heads, receipt."""
    record_bytes: float = 20.0
    """Of a sealed report beyond its own bytes."""

    def server(self, decrypting: bool, relays: bool) -> HopCost:
        """The server's, by what it is sent."""
        if not relays:
            return self.server_direct
        return self.server_decrypting if decrypting else self.server_passing


# measured:begin
MEASURED = FleetCosts(
    where=(
        "AMD EPYC, 2 cores, 23.5 GiB, Debian GNU/Linux 12 (bookworm), Linux "
        "6.18.44-fc-v669; 2026-11-23 12:16 UTC, load before 2.81 7.34 8.05; drift 17%"
    ),
    agent=HopCost(unit=0.000621, report=3.98e-08, byte=3.04e-09, first=0.0),
    passing=HopCost(unit=0.00104, report=0.0, byte=9.86e-09, first=0.000253),
    decrypting=HopCost(unit=0.00107, report=0.0, byte=1.08e-08, first=0.000432),
    server_direct=HopCost(unit=0.00153, report=0.0, byte=9.37e-09, first=0.00162),
    server_passing=HopCost(unit=0.000582, report=3.22e-06, byte=7.3e-09, first=5.17e-05),
    server_decrypting=HopCost(unit=0.000247, report=3.76e-06, byte=7.39e-09, first=8.5e-05),
    session=0.000133,
    wrap=7.91e-05,
    unwrap=9.08e-05,
    poll_server=0.000225,
    poll_relay=0.000205,
    sync=0.00304,
    sync_byte=5.73e-09,
    handshake=0.000271,
    connection_bytes=10100.0,
    stored_bytes=31.0,
)
# measured:end

# SPDX-License-Identifier: Apache-2.0
"""How many cores sealing and opening take at agents, relays and server (docs/capacity.md).

`plan` is arithmetic: from a `Load` and the `Costs` of this machine. `Bench` measures those costs,
at the very sizes of the load, by the public API alone.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

from upseal.cli.common import table
from upseal.cli.measure import Probe

if TYPE_CHECKING:
    from upseal.core.opener import Opener
    from upseal.core.options import Cipher
    from upseal.core.sealer import Sealer

FULL = 0.7
"""How full a core is planned to be."""
_KNOWN = 64
_KNOWN_BYTES = 32 << 20
_UPLOAD = 4 << 20


@dataclass(frozen=True, slots=True)
class Load:
    """What a deployment has to carry."""

    clients: int = 50_000
    reports_per_hour: float = 4.0
    """Of one client."""
    report_bytes: int = 1024
    agent_batch: int = 1
    """Reports that an agent seals in one call."""
    batch: int = 50
    """Reports that a decrypting relay seals in one batch."""
    upload_bytes_per_day: float = 10e6
    """Of one client."""
    clients_per_relay: int = 1000
    session_age: float = 3600
    """Seconds: ``Limits.max_age``."""
    session_messages: int = 2**20
    cache: int = 65536
    """Sessions that an opener remembers."""
    suite: str = "x25519"


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU seconds, measured at a load's sizes."""

    seal: float
    """An agent's call of ``agent_batch`` reports: an envelope for one, a batch for more."""
    session: float
    """A new session to one recipient, beyond that."""
    wrap: float
    """Each further recipient."""
    open: float
    """What an agent sent in one call, its session known, others' opened in between."""
    first: float
    """First contact, beyond that: unwrapping the session secret, and deriving the keys."""
    seal_batch: float
    """A relay's batch of ``batch`` reports."""
    open_batch: float
    """The same opened, into one object for each report."""
    upload_seal: float
    """A byte."""
    upload_open: float
    sign: float
    """An Ed25519 signature: shown, and not counted."""
    verify: float


@dataclass(frozen=True, slots=True)
class Role:
    """What one agent, relay or server has to do."""

    name: str
    count: int
    """How many of them there are."""
    clients: int
    """Below each, or itself."""
    reports_per_second: float
    first_per_second: float
    """New sessions sealed (agent) or first contacts (relay, server)."""
    sessions: float
    """Share of a core for the public-key work of sessions."""
    reports: float
    uploads: float

    @property
    def share(self) -> float:
        """Of a core, in all."""
        return self.sessions + self.reports + self.uploads

    @property
    def cores(self) -> int:
        """Whole ones for one of them, each filled to `FULL` at most."""
        return ceil(self.share / FULL)

    @property
    def seconds_per_report(self) -> float:
        """CPU, sessions included, uploads not."""
        return (self.sessions + self.reports) / self.reports_per_second

    def as_dict(self) -> dict[str, Any]:
        """For JSON; None where there is no cryptography, and so no limit."""
        per_report = self.seconds_per_report
        return {
            **asdict(self),
            "share": self.share,
            "cores": self.cores,
            "seconds_per_report": per_report,
            "reports_per_second_per_core": 1 / per_report if per_report else None,
            "clients_per_core": self.clients / self.share if self.share else None,
        }


def sessions_per_second(calls: float, records: int, load: Load) -> float:
    """New sessions of a sealer that makes so many calls a second, each of so many reports.

    A session begins with a call, and ends when it is too old, or full, for another one.
    """
    by_age = ceil(round(calls * load.session_age, 6))
    by_count = load.session_messages // records
    return calls / max(1, min(by_age, by_count))


def plan(load: Load, costs: Costs) -> list[Role]:
    """What every role does; a pure function."""
    relays = ceil(load.clients / load.clients_per_relay)
    below = min(load.clients, load.clients_per_relay)
    reports = load.reports_per_hour / 3600
    calls = reports / load.agent_batch
    sessions = sessions_per_second(calls, load.agent_batch, load)
    upload = load.upload_bytes_per_day / 86400

    def agent(name: str, recipients: int) -> Role:
        new = costs.session + (recipients - 1) * costs.wrap
        return Role(name, load.clients, 1, reports, sessions, sessions * new, calls * costs.seal,
                    upload * costs.upload_seal)  # fmt: skip

    def first_contacts(of: int, calls: float, sessions: float) -> float:
        # Oldest out: where more take turns than are remembered, each is forgotten before its turn.
        return of * (sessions if of <= load.cache else calls)

    relay_calls = below * reports / load.batch
    relay_sessions = sessions_per_second(relay_calls, load.batch, load)
    met = first_contacts(below, calls, sessions)
    relay = Role(
        "relay, decrypting", relays, below, below * reports, met,
        met * costs.first + relay_sessions * costs.session,
        below * calls * costs.open + relay_calls * costs.seal_batch, 0.0,
    )  # fmt: skip
    uploads = load.clients * upload * costs.upload_open
    every = load.clients * reports

    def server(name: str, met: float, opening: float) -> Role:
        return Role(name, 1, load.clients, every, met, met * costs.first, opening, uploads)

    return [
        agent("agent, relay passes", 1),
        agent("agent, relay decrypts", 2),
        Role("relay, passing", relays, below, below * reports, 0.0, 0.0, 0.0, 0.0),
        relay,
        server(
            "server, relays pass",
            first_contacts(load.clients, calls, sessions),
            load.clients * calls * costs.open,
        ),
        server(
            "server, relays decrypt",
            first_contacts(relays, relay_calls, relay_sessions),
            every / load.batch * costs.open_batch,
        ),
    ]


def assumptions(load: Load, costs: Costs) -> list[str]:
    """What the plan rests on, in sentences."""
    calls = load.reports_per_hour / 3600 / load.agent_batch
    per_session = calls / sessions_per_second(calls, load.agent_batch, load) * load.agent_batch
    below = min(load.clients, load.clients_per_relay)
    forgets = load.clients > load.cache
    return [
        "Counted is CPU time for sealing and opening. Not counted: TLS, HTTP, disk, database, "
        "and the fleet's signed statements (Ed25519: "
        f"{costs.sign * 1e6:,.0f} us for each call at the agent, "
        f"{costs.verify * 1e6:,.0f} us at the server).",
        "Load comes evenly. For a storm, give its rate as --reports-per-hour. "
        f"A core is filled to {FULL:.0%} at most.",
        f"Reports have {load.report_bytes:,} bytes, without padding. "
        f"An agent seals {load.agent_batch:,} in a call.",
        f"A session lasts {load.session_age:,.0f} s or {load.session_messages:,} reports: "
        f"here {per_session:,.0f} of one client. All recipients are {load.suite}: the server, "
        "and the relay where it decrypts.",
        f"A relay has {load.clients_per_relay:,} clients. Passing costs it no cryptography. "
        "Decrypting, it unwraps each client's session once, opens, and seals batches of "
        f"{load.batch:,}, which fill in {load.batch / (below * load.reports_per_hour / 3600):,.3g} "
        "s, to the server in a session of its own.",
        "The server meets the session of every client where relays pass, of every relay where "
        "they decrypt.",
        f"An opener remembers {load.cache:,} sessions. "
        + (
            f"{load.clients:,} clients taking turns are more, so the server behind passing relays "
            "unwraps at every call: raise --cache and Opener(cache=...)."
            if forgets
            else "Where clients are more than that, every call is a first contact."
        ),
        "Uploads are sealed once, by the agent, and opened once, by the server.",
        "More than one core means one process on each, and a client keeps to its process: "
        "each process has an opener of its own.",
        "Costs are those of a busy core. One that sleeps between reports pays some times more for "
        "each, since it wakes up cold: trust small shares only in their magnitude.",
    ]


class Bench:
    """The probes for `Costs`. Time them by `measure.interleave`, then ask for `costs`."""

    def __init__(self, load: Load, cipher: Cipher | None = None) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        from upseal import Limits, Opener, PrivateKey, Sealer

        key = PrivateKey.generate(load.suite)
        to = [key.public_key]
        few = load.agent_batch
        sealer = Sealer(to, cipher=cipher)
        fresh = Sealer(to, Limits(max_messages=few), cipher=cipher)  # a session for every call
        knows, forgets = Opener([key]), Opener([key], cache=0)
        own = _reports(load.report_bytes, few)
        many = _reports(load.report_bytes, load.batch)
        rotation = max(2, min(_KNOWN, _KNOWN_BYTES // (few * load.report_bytes)))
        seal, fresh_seal = _sealing(sealer, own), _sealing(fresh, own)
        sent = [fresh_seal() for _ in range(rotation)]
        batch = sealer.seal_batch(many)
        knows_open, forgets_open = (_opening(o, few) for o in (knows, forgets))
        data, sink = os.urandom(_UPLOAD), io.BytesIO()
        with sealer.writer(sink) as writer:
            writer.write(data)
        sealed, target = sink.getvalue(), memoryview(bytearray(1 << 20))

        def upload() -> None:
            with sealer.writer(Sink()) as writer:  # type: ignore[arg-type]
                writer.write(data)

        def upload_open() -> None:
            with knows.reader(io.BytesIO(sealed)) as reader:
                while reader.readinto(target):
                    pass

        secret, signing = os.urandom(32), Ed25519PrivateKey.generate()
        public, statement = signing.public_key(), os.urandom(128)
        signature = signing.sign(statement)
        self._probes = {
            "seal": Probe(seal),
            "fresh": Probe(fresh_seal),
            "wrap": Probe(lambda: key.public_key.wrap(secret)),
            "open": Probe(lambda: [knows_open(each) for each in sent], rotation),
            "unknown": Probe(lambda: [forgets_open(each) for each in sent[:8]], len(sent[:8])),
            "seal_batch": Probe(lambda: sealer.seal_batch(many)),
            "open_batch": Probe(lambda: list(knows.open_batch(batch))),
            "upload_seal": Probe(upload, _UPLOAD),
            "upload_open": Probe(upload_open, _UPLOAD),
            "sign": Probe(lambda: signing.sign(statement)),
            "verify": Probe(lambda: public.verify(signature, statement)),
        }

    @property
    def probes(self) -> list[Probe]:
        """To be timed."""
        return list(self._probes.values())

    def costs(self) -> Costs:
        """Once they are."""
        took = {name: probe.seconds for name, probe in self._probes.items()}
        session = max(took.pop("fresh") - took["seal"], 0.0)
        first = max(took.pop("unknown") - took["open"], 0.0)
        return Costs(session=session, first=first, **took)


class Sink:
    """Takes what is written, and forgets it."""

    def write(self, data: bytes) -> int:
        """All of it."""
        return len(data)


def _reports(size: int, count: int) -> list[bytes]:
    whole = os.urandom(size * count)
    return [whole[i * size : (i + 1) * size] for i in range(count)]


def _sealing(sealer: Sealer, reports: list[bytes]) -> Callable[[], bytes]:
    """An agent's call."""
    if len(reports) == 1:
        return partial(sealer.seal, reports[0])
    return partial(sealer.seal_batch, reports)


def _opening(opener: Opener, count: int) -> Callable[[bytes], object]:
    """What opens that, into one object for each report."""
    return opener.open if count == 1 else lambda sealed: list(opener.open_batch(sealed))


def as_facts(load: Load, costs: Costs) -> dict[str, Any]:
    """For JSON."""
    return {
        "load": asdict(load),
        "costs": asdict(costs),
        "roles": [role.as_dict() for role in plan(load, costs)],
        "assumptions": assumptions(load, costs),
    }


def in_words(facts: dict[str, Any]) -> str:
    """The table, and the assumptions under it."""
    lines = [["", "number", "reports/s", "sessions/s", "us/report", "of a core", "cores",
              "reports/s a core", "clients a core"]]  # fmt: skip
    for role in facts["roles"]:
        free = role["share"] == 0
        lines.append([
            role["name"], f"{role['count']:,}", f"{role['reports_per_second']:,.4g}",
            f"{role['first_per_second']:,.3g}",
            "0" if free else f"{role['seconds_per_report'] * 1e6:,.1f}",
            percent(role["share"]), f"{role['cores']:,}",
            "no limit" if free else f"{role['reports_per_second_per_core']:,.0f}",
            "no limit" if free else f"{role['clients_per_core']:,.0f}",
        ])  # fmt: skip
    load = facts["load"]
    title = (
        f"capacity: {load['clients']:,} clients, {load['reports_per_hour']:g} reports of "
        f"{load['report_bytes']:,} bytes an hour and {load['upload_bytes_per_day'] / 1e6:,.4g} MB "
        f"of uploads a day each, {load['suite']}\n"
        "each agent, each relay, the server; sessions: begun, or met for the first time\n"
    )
    listed = "\n".join(f"{i}. {text}" for i, text in enumerate(facts["assumptions"], 1))
    return title + table(lines, right=tuple(range(1, 9))) + "\nassumptions\n" + listed + "\n"


def percent(share: float) -> str:
    """Two digits that count: ``0.0012 %``, ``36 %``."""
    value = share * 100
    if value >= 10 or value == 0:
        return f"{value:,.0f} %"
    return f"{value:.2g} %" if value >= 0.0001 else "under 0.0001 %"

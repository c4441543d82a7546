# SPDX-License-Identifier: Apache-2.0
"""Simulated agents for `fleet.py`: many identities in one process, each with its own keys.

Units, statements, sealing, proofs and the check of receipts are the product's own functions; the
HTTP client is bare (asyncio), so that what is measured is the rest.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

import machine
from fleet_site import WAYS, SimAgent, Site

from upseal import PublicKey
from upseal.fleet.credentials import prove
from upseal.fleet.http import results
from upseal.fleet.http.problems import Problem
from upseal.fleet.policy import Level, Reason
from upseal.fleet.server.store import now_ms
from upseal.fleet.units import (
    Status,
    body_id,
    clear_body,
    make_unit,
    open_receipt,
    unit_rows,
)

WAIT = 10
"""Seconds that the parent may hold its answer: as an agent asks for."""
TURN_MOST = 90.0
TRIES = 100
SETTLE = 0.3
"""Seconds after the last receipt in which processes finish what it left to do."""
ONE_AGENT = 4
"""Units that one agent has on their way at once, as `upseal agent run`."""


@dataclass
class Turn:
    """What one turn came to."""

    way: str
    agents: int
    sealed: bool
    made: int = 0
    receipted: int = 0
    units: int = 0
    seconds: float = 0.0
    again: int = 0
    """Requests beyond one for each unit: 429, 503, or still pending after the wait."""
    cpu: dict[str, float] = field(default_factory=dict)
    """Seconds, by process."""
    peak_mb: dict[str, float] = field(default_factory=dict)
    median_ms: float = 0.0
    p99_ms: float = 0.0

    @property
    def rate(self) -> float:
        return self.receipted / self.seconds if self.seconds else 0.0

    def facts(self) -> dict[str, Any]:
        return asdict(self)


class SiteError(RuntimeError):
    """Something that must not happen on a healthy site."""


class Connection:
    """One kept HTTP/1.1 connection; one request at a time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname, parts.port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(self, agent: SimAgent, path: str, body: bytes) -> tuple[int, bytes, float]:
        """An authenticated POST: status, body, and the seconds that Retry-After names."""
        if self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection(self.host, self.port)
        assert self._reader is not None
        proofs = prove(agent.credential, agent.hop, "POST", path, body, now_ms())
        said = {"host": "benchmark", "content-length": len(body), "prefer": f"wait={WAIT}"}
        lines = [f"POST {path} HTTP/1.1", *(f"{k}: {v}" for k, v in {**said, **proofs}.items())]
        self._writer.write("\r\n".join([*lines, "", ""]).encode("ascii"))
        self._writer.write(body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        answer = await self._reader.readexactly(int(fields["content-length"]))
        if fields.get("connection") == "close":
            self.close()
        with suppress(ValueError):
            return int(head.split(" ", 2)[1]), answer, float(fields.get("retry-after", "0"))
        return int(head.split(" ", 2)[1]), answer, 1.0

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Load:
    """Agents that send ``size`` bytes a report, ``unit`` reports a unit, ``most`` units at once."""

    def __init__(self, site: Site, size: int, unit: int, most: int) -> None:
        self.site, self.unit, self.most = site, unit, most
        self.receipted = 0
        """Reports, in all turns."""
        self._turned = 0
        # Sealed content does not compress, and nobody looks at it: a pool will do.
        self._pool = [os.urandom(size) for _ in range(1024 + unit)]
        self._keys = {key.key_id: key for key in site.manifest().receipt_keys}

    def turn(
        self, way: str, agents: int, sealed: bool, reports: int, seconds: float = TURN_MOST
    ) -> Turn:
        """So many reports, until the last receipt; none is begun after ``seconds``."""
        recipients = self.site.recipients(way) if sealed else None
        if sealed and recipients is None:
            raise SiteError(f"nobody to seal to on the way {way}")
        turn = Turn(way, agents, sealed)
        here = {"server": self.site.processes["server"]}
        if WAYS[way]:
            here["relay"] = self.site.processes[WAYS[way]]
        for process in here.values():
            process.check()
            process.peak_reset()
        machine.peak_reset()
        before = {name: process.cpu() for name, process in here.items()}
        begin, own = time.perf_counter(), time.process_time()
        waits: list[float] = []
        asyncio.run(self._all(turn, recipients, -(-reports // self.unit), seconds, waits))
        turn.seconds = time.perf_counter() - begin
        self.receipted += turn.receipted
        turn.cpu["agents"] = time.process_time() - own
        time.sleep(min(SETTLE, seconds / 10))
        for name, process in here.items():
            process.check()
            turn.cpu[name] = process.cpu() - before[name]
            turn.peak_mb[name] = process.peak_mb()
        turn.peak_mb["agents"] = machine.peak_kib() * 1024 / 1e6
        if len(waits) > 1:
            cuts = quantiles(waits, n=100)
            turn.median_ms, turn.p99_ms = cuts[49] * 1e3, cuts[98] * 1e3
        return turn

    async def _all(
        self, turn: Turn, recipients: tuple[PublicKey, ...] | None, units: int, seconds: float,
        waits: list[float],
    ) -> None:  # fmt: skip
        share = self._share(turn, units, time.perf_counter() + seconds)
        at_once = min(self.most, units, turn.agents if turn.agents > 1 else ONE_AGENT)
        async with asyncio.timeout(TURN_MOST), asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(self._work(turn, recipients, share, waits))

    def _share(self, turn: Turn, units: int, end: float) -> Iterator[SimAgent]:
        """Whose turn it is: all after each other, also from one turn to the next."""
        for _ in range(units):
            if time.perf_counter() > end:
                return
            self._turned += 1
            yield self.site.agents[turn.way][self._turned % turn.agents]

    async def _work(
        self, turn: Turn, recipients: tuple[PublicKey, ...] | None, share: Iterator[SimAgent],
        waits: list[float],
    ) -> None:  # fmt: skip
        connection = Connection(self.site.url(turn.way))
        try:
            for agent in share:
                begin = time.perf_counter()
                await self._deliver(turn, recipients, agent, connection)
                waits.append(time.perf_counter() - begin)
        finally:
            connection.close()

    async def _deliver(
        self, turn: Turn, recipients: tuple[PublicKey, ...] | None, agent: SimAgent,
        connection: Connection,
    ) -> None:  # fmt: skip
        """One unit, until its receipt verifies."""
        sequence = agent.next()
        unit, start = self.unit, turn.made % 1024
        sealed = recipients is not None
        level = Level.OPTIONAL if sealed else Level.NONE
        reason = Reason.SEALED if sealed else Reason.LEVEL_NONE
        made = make_unit(agent.identity, self.site.deployment, agent.epoch, sequence, now_ms(),
                         level, reason, self._pool[start : start + unit])  # fmt: skip
        turn.made += unit
        turn.units += 1
        rows = unit_rows([made])
        if recipients is None:
            body = clear_body(rows)
        else:
            body = agent.sealer(recipients).seal_batch(rows, self.site.context)
        name = body_id(body)
        path, asked = "/v1/units", body
        for _ in range(TRIES):
            status, answer, pause = await connection.request(agent, path, asked)
            if status in (429, 503):  # so many strangers with large units from one address, say
                turn.again += 1
                await asyncio.sleep(min(max(pause, 0.1), 5.0))
                continue
            if status != 200:
                raise SiteError(f"{status}: {answer[:300]!r}")
            (found,) = results.decode(answer)
            if found.state is results.State.DONE:
                self._receipt(made.digest, found)
                turn.receipted += unit
                return
            turn.again += 1
            if found.state is results.State.PENDING:
                path, asked = "/v1/results", results.encode_ids([name])
            elif found.state is results.State.UNKNOWN:
                path, asked = "/v1/units", body
            else:
                problem: Problem | None = found.problem
                raise SiteError(f"a unit was refused: {problem}")
        raise SiteError(f"no receipt after {TRIES} requests")

    def _receipt(self, digest: bytes, found: results.Result) -> None:
        """Nothing counts but a receipt that verifies, for this unit, that says stored."""
        for data in found.receipts:
            receipt = open_receipt(data, self._keys, self.site.deployment)
            if receipt.statement_digest == digest:
                if receipt.status is not Status.STORED:
                    raise SiteError(f"a unit was answered {receipt.status.name}")
                return
        raise SiteError("no receipt for the unit")

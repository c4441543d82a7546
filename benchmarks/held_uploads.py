# SPDX-License-Identifier: Apache-2.0
"""Many slow uploads at one relay, for `fleet_uploads.py`: how many it holds, and in how much."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from fleet_site import WAYS, SimAgent, Site

from upseal.fleet.credentials import prove
from upseal.fleet.http.client import Client
from upseal.fleet.http.paths import UPLOADS
from upseal.fleet.server.store import now_ms
from upseal.fleet.uploads.words import Ticket, path_of, proven

PIECE = 64 << 10
SIZE = 64 << 20
PAUSE = 1.0
"""Seconds that one piece takes, and that its sender rests then."""
TUS = {"tus-resumable": "1.0.0"}


class Slow:
    """One upload that comes slowly, over one connection."""

    def __init__(self, url: str, agent: SimAgent) -> None:
        parts = urlsplit(url)
        self._where = parts.hostname, parts.port
        self._agent = agent
        self._ticket = Ticket(os.urandom(16), os.urandom(32), "sealed", SIZE)

    async def run(self, end: float, answers: Counter[str]) -> None:
        """Creates it, sends pieces until the end, and takes it back."""
        self._reader, self._writer = await asyncio.open_connection(*self._where)
        try:
            path, said = path_of(self._ticket.body_id), {"upload-length": str(SIZE)}
            said["upload-metadata"] = self._ticket.metadata()
            answers[await self._ask("POST", UPLOADS, b"", said)] += 1
            offset, data = 0, os.urandom(PIECE)
            while time.monotonic() < end:
                said = {"upload-offset": str(offset)}
                status = await self._ask("PATCH", path, data, said, slowly=True)
                answers[status] += 1
                offset += PIECE if status == "PATCH 204" else 0
                await asyncio.sleep(PAUSE)
            answers[await self._ask("DELETE", path, b"", {})] += 1
        finally:
            self._writer.close()

    async def _ask(
        self, method: str, path: str, body: bytes, said: dict[str, str], *, slowly: bool = False
    ) -> str:
        headers = {**TUS, "content-type": "application/offset+octet-stream", **said}
        covered = proven(path, headers, body)
        agent = self._agent
        proofs = prove(agent.credential, agent.hop, method, path, covered, now_ms())
        headers = {"host": "x", "content-length": str(len(body)), **headers, **proofs}
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        self._writer.write("\r\n".join([*lines, "", ""]).encode("ascii"))
        if slowly:
            self._writer.write(body[: PIECE // 2])
            await self._writer.drain()
            await asyncio.sleep(PAUSE)
            body = body[PIECE // 2 :]
        self._writer.write(body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        await self._reader.readexactly(int(fields.get("content-length", "0")))
        return f"{method} {head.split(' ', 2)[1]}"


def hold(site: Site, way: str, uploads: int, seconds: float) -> dict[str, Any]:
    """So many at once, for so long."""
    relay, agents = site.processes[WAYS[way]], site.agents[way]
    relay.peak_reset()
    before, cpu, answers = relay.peak_mb(), relay.cpu(), Counter[str]()
    begin = time.monotonic()
    most: list[float] = []

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(uploads):
                slow = Slow(site.url(way), agents[number % len(agents)])
                group.create_task(slow.run(begin + seconds, answers))
            while time.monotonic() < begin + seconds:
                await asyncio.sleep(1)
                most.append(await asyncio.to_thread(_open, site.url(way)))

    asyncio.run(all_of_them())
    relay.check()
    took = time.monotonic() - begin
    return {
        "uploads": uploads, "clients": len(agents), "seconds": took, "open": int(max(most)),
        "piece": PIECE, "pieces": answers["PATCH 204"], "answers": dict(answers),
        "before_mb": before, "peak_mb": relay.peak_mb(), "cpu": (relay.cpu() - cpu) / took,
    }  # fmt: skip


def _open(url: str) -> float:
    with Client(url, 20.0) as client:
        text = client.request("GET", "/metrics").body.decode()
    found = [line for line in text.splitlines() if line.startswith("upseal_relay_uploads_open ")]
    return float(found[0].split()[1]) if found else 0.0

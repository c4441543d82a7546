# SPDX-License-Identifier: Apache-2.0
"""A proxy in every hop that keeps each byte of both directions, in files: it comes to gigabytes.

A proxy and not a packet capture: that would need privileges, and may lose packets under load. This
one passes on nothing that it has not kept.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from upseal.core.writer import write_all

HOST = "127.0.0.1"
_PIECE = 1 << 18
_BUFFER = 1 << 20
_PATIENCE = 30.0
_Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]


@dataclass
class Hop:
    """One place on the way up: who connects here is connected to ``target``."""

    name: str
    folder: Path
    port: int = 0
    target: tuple[str, int] | None = None
    """Set once it is known; until then connections are closed at once."""
    streams: list[Path] = field(default_factory=list)
    """What was said, a file for each direction of each connection: up, down, up, down...

    Kept apart, so that what two connections say at a time does not tear a report in two.
    """
    bytes: int = 0
    """How many were kept."""

    @property
    def url(self) -> str:
        """What those below have as their parent."""
        return f"http://{HOST}:{self.port}"

    def both(self) -> tuple[Path, Path]:
        """Files for one more connection: what goes up, and what comes down."""
        number = len(self.streams) // 2
        up, down = (self.folder / f"{number:04}-{way}" for way in ("up", "down"))
        self.streams += (up, down)
        return up, down


class Wire:
    """All hops, served by one thread. As a context manager; what was kept stays after it.

    Args:
        names: of the hops.
        folder: a new one, for what is kept: a folder for each hop, a file for each direction.
    """

    def __init__(self, *names: str, folder: Path) -> None:
        self.hops = {}
        for number, name in enumerate(names, 1):
            place = folder / f"{number}-{name.replace(' -> ', '-to-').replace(' ', '-')}"
            place.mkdir(mode=0o700, parents=True)
            self.hops[name] = Hop(name, place)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="upseal-wire", daemon=True)

    def __getitem__(self, name: str) -> Hop:
        return self.hops[name]

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        if self._failed is not None:
            raise OSError(f"the recording proxy cannot listen: {self._failed}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_PATIENCE)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        connections: set[asyncio.Task[None]] = set()
        servers = []
        try:
            for hop in self.hops.values():
                server = await asyncio.start_server(
                    _handler(hop, connections), HOST, 0, limit=_BUFFER
                )
                servers.append(server)
                hop.port = server.sockets[0].getsockname()[1]
            self._started.set()
            await self._stop.wait()
        finally:
            for server in servers:
                server.close()
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)


def _handler(hop: Hop, connections: set[asyncio.Task[None]]) -> _Connected:
    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio complains of a cancelled one that it has made itself.
        task = asyncio.ensure_future(_pass(hop, reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    return connected


async def _pass(hop: Hop, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writers = [writer]
    try:
        if hop.target is None:
            return
        upper_reader, upper_writer = await asyncio.open_connection(*hop.target, limit=_BUFFER)
        writers.append(upper_writer)
        up, down = hop.both()
        pumps = [
            asyncio.ensure_future(_pump(reader, upper_writer, hop, up)),
            asyncio.ensure_future(_pump(upper_reader, writer, hop, down)),
        ]
        try:
            await asyncio.gather(*pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
    except OSError:
        pass  # as without us: whoever is left sees that the connection is gone
    finally:
        for each in writers:
            each.close()
        for each in writers:
            with suppress(OSError):
                await each.wait_closed()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hop: Hop, path: Path
) -> None:
    with open(path, "xb", buffering=0) as kept:
        while piece := await reader.read(_PIECE):
            write_all(kept, piece)  # the disk's cache takes it: nobody waits for the disk itself
            hop.bytes += len(piece)
            writer.write(piece)
            await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()

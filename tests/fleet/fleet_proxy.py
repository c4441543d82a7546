# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy for the tests: records every byte, and can be a bad network.

with Proxy(lambda: ("127.0.0.1", port)) as proxy:
    proxy.weather = Weather(random.Random(1), drop=0.1, cut=0.1)
"""

import asyncio
import random
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

_PIECE = 1 << 16
_REPLAY_SECONDS = 5


@dataclass
class Weather:
    """Chances: of a connection to be dropped; of a piece of data to be delayed, cut or doubled."""

    chance: random.Random
    drop: float = 0.0
    delay: float = 0.0
    longest: float = 0.3
    cut: float = 0.0
    duplicate: float = 0.0


class Proxy:
    """Listens at `url`; ``target()`` says where to at each connection, or None: nobody is there."""

    def __init__(self, target):
        self._target = target
        self.weather = None
        self.book = bytearray  # makes what keeps the bytes of one direction of a connection
        self.happened = Counter()
        self._lock = threading.Lock()
        self._up, self._down, self._replays = [], [], set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-proxy")

    def __enter__(self):
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_):
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    async def _end(self):
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def recorded(self):
        """All bytes that passed: a list, one of each direction of each connection."""
        with self._lock:
            return [bytes(data) for data in (*self._up, *self._down)]

    def sent_up(self):
        """As `recorded`, of those who connected here."""
        with self._lock:
            return [bytes(data) for data in self._up]

    # -- one connection

    async def _serve(self, reader, writer):
        sockets = [writer]
        try:
            if self._happens("drop"):
                return
            there = self._target()
            if there is None:
                return
            above_reader, above = await asyncio.open_connection(*there)
            sockets.append(above)
            up, down = self._book(self._up), self._book(self._down)
            pumps = [
                asyncio.ensure_future(self._pump(reader, above, up, there)),
                asyncio.ensure_future(self._pump(above_reader, writer, down, None)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):  # asyncio would tell of a cancelled one
            pass
        finally:
            for socket in sockets:
                with suppress(Exception):
                    socket.transport.abort()

    def _book(self, where):
        book = self.book()
        with self._lock:
            where.append(book)
        return book

    async def _pump(self, reader, writer, book, replay_to):
        """``replay_to``: where doubled requests go; None for answers."""
        while data := await reader.read(_PIECE):
            if self._happens("delay"):
                await asyncio.sleep(self.weather.chance.uniform(0, self.weather.longest))
            cut = self._happens("cut")
            if cut:
                data = data[: self.weather.chance.randrange(len(data))]
            with self._lock:
                book += data
            writer.write(data)
            await writer.drain()
            if cut:
                return
            if replay_to is not None and self._happens("duplicate"):
                task = asyncio.ensure_future(self._replay(bytes(book), replay_to))
                self._replays.add(task)
                task.add_done_callback(self._replays.discard)

    async def _replay(self, requests, there):
        """The whole connection so far, once more; what is answered is nobody's."""
        with suppress(OSError, asyncio.TimeoutError):
            reader, writer = await asyncio.open_connection(*there)
            try:
                writer.write(requests)
                await writer.drain()
                async with asyncio.timeout(_REPLAY_SECONDS):
                    while await reader.read(_PIECE):
                        pass
            finally:
                writer.transport.abort()

    def _happens(self, what):
        weather = self.weather
        if weather is None or weather.chance.random() >= getattr(weather, what):
            return False
        self.happened[what] += 1
        return True

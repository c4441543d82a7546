# SPDX-License-Identifier: Apache-2.0
"""A front's connection to the broker: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from nats.errors import MaxPayloadError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError

from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.http.seldom import Seldom
from upseal.fleet.settings import SettingsError
from upseal.integrations.nats.settings import Broker
from upseal.integrations.nats.streams import (
    CONSUMER,
    LINES,
    Carried,
    Foreign,
    JetStreamContext,
    Msg,
    Nats,
    NatsError,
    Unfit,
    connect,
    decode_results,
    most,
    prepare,
    why,
)

_AGAIN = 1.0
_LOOK = 5.0
_log = logging.getLogger("upseal.nats")
Told = Callable[[Sequence[Result], Sequence[bytes]], object]


class Link:
    """Publishes requests, hears results, looks how far the openers are.

    Args:
        broker: where.
        told: hears what became of bodies, and which uploads were announced.
        progress: hears up to which message the broker is rid of all, and the newest.
    """

    def __init__(self, broker: Broker, told: Told, progress: Callable[[int, int], object]) -> None:
        self._broker, self._told, self._progress = broker, told, progress
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._ending = asyncio.Event()
        self._renewed = asyncio.Event()
        self._connection: Nats | None = None
        self._js: JetStreamContext | None = None
        self._listening: JetStreamContext.PushSubscription | None = None
        self._heard = 0
        self._seldom = Seldom(*LINES)
        self.trouble: str | None = "not connected yet"
        """Why nothing can be published, or None."""
        self.depth = 0
        """Messages that no opener has finished."""
        self.foreign = 0
        """Messages among the results that no opener has written."""

    def start(self) -> None:
        """Connects, and goes on trying.

        Raises:
            SettingsError: a file that the settings name cannot be used.
        """
        self._broker.options()
        self._thread = threading.Thread(target=self._run, name="upseal-nats", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the connection and the thread."""
        if self._thread is None:
            if not self._loop.is_closed():
                self._loop.close()
            return
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def ready(self) -> str | None:
        """Why nothing can be published, or None."""
        connection = self._connection
        if connection is not None and self._js is not None and not connection.is_connected:
            return "the broker is away"
        return self.trouble

    def publish(self, carried: Carried) -> Future[int]:
        """Gives a request to the broker; its sequence there, once the broker has it on its disk.

        The future fails with a `Problem`: full, parent-away, or too-large.
        """
        if self._ending.is_set() or self._loop.is_closed():
            raise Problem("stopping", retry_after=5)
        return asyncio.run_coroutine_threadsafe(self._publish(carried), self._loop)

    # -- in the thread ---------------------------------------------------------------

    async def _publish(self, carried: Carried) -> int:
        connection, js = self._connection, self._js
        if connection is None or js is None or not connection.is_connected:
            raise Problem("parent-away", "the broker is away", retry_after=2)
        if len(carried.body) > most(connection):
            raise Problem("too-large", f"the broker takes {most(connection)} bytes at once")
        try:
            ack = await js.publish(
                self._broker.subject("units"), carried.body, headers=dict(carried.to_headers()),
                timeout=self._broker.settings.patience, stream=self._broker.units,
            )  # fmt: skip
        except APIError as error:
            self._complain("the broker takes nothing", error)
            raise Problem("full", "the broker takes nothing more", retry_after=10) from None
        except MaxPayloadError:
            raise Problem("too-large", "the broker takes no such message") from None
        except (NatsError, TimeoutError) as error:
            self._complain("the broker does not answer", error)
            raise Problem("parent-away", "the broker does not answer", retry_after=2) from None
        return ack.seq

    def _complain(self, what: str, error: BaseException) -> None:
        if (left_out := self._seldom.tell()) is not None:
            event(_log, what, level=logging.WARNING, why=why(error), left_out=left_out)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as error:  # a bug of ours: the front says that it is not ready
            self.trouble = type(error).__name__
            event(_log, "the link has ended", level=logging.ERROR, exc=error)
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _live(self) -> None:
        work = asyncio.ensure_future(self._work())
        end = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait({work, end}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.trouble = "stopping"
            for task in (work, end):
                task.cancel()
            await asyncio.gather(work, end, return_exceptions=True)
            if self._connection is not None:
                await self._connection.close()

    async def _work(self) -> None:
        await self._open()
        while True:
            self._renewed.clear()
            try:
                await self._listen()
                while not self._renewed.is_set():
                    await self._look()
                    try:
                        await asyncio.wait_for(self._renewed.wait(), _LOOK)
                    except TimeoutError:
                        continue
            except (NatsError, TimeoutError, Unfit) as error:
                self._complain("the broker's streams cannot be used", error)
                await asyncio.sleep(_AGAIN)

    async def _open(self) -> None:
        """Until there is a connection, and streams that are as they must be."""
        told = ""
        while self._js is None:
            try:
                if self._connection is None:
                    self._connection = await connect(
                        self._broker, "upseal front", self._on_reconnected
                    )
                self._js = await prepare(self._connection, self._broker)
                self.trouble = None
                event(_log, "broker ready", stream=self._broker.units)
            except (NatsError, OSError, TimeoutError, Unfit, SettingsError) as error:
                self.trouble = f"the broker cannot be used: {why(error)}"
                if self.trouble != told:
                    event(_log, "broker not usable", level=logging.ERROR, why=why(error))
                told = self.trouble
                await asyncio.sleep(_AGAIN)

    async def _on_reconnected(self) -> None:
        self._renewed.set()

    async def _listen(self) -> None:
        """Hears results from the last one heard on; a broker that was down has forgotten us."""
        assert self._connection is not None
        if self._listening is not None:  # it may still be there, and each would hear all results
            with suppress(NatsError):
                await self._listening.unsubscribe()
            self._listening = None
        self._js = await prepare(self._connection, self._broker)
        info = await self._js.stream_info(self._broker.results)
        if info.state.last_seq < self._heard:  # set up anew
            self._heard = 0
        self._listening = await self._js.subscribe(
            self._broker.subject("results"),
            stream=self._broker.results,
            cb=self._on_results,
            manual_ack=True,
            config=ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=self._heard + 1,
                ack_policy=AckPolicy.NONE,
                inactive_threshold=60,
            ),
        )

    async def _on_results(self, message: Msg) -> None:
        self._heard = max(self._heard, message.metadata.sequence.stream)
        try:
            found, announced = decode_results(message)
        except Foreign as error:
            self.foreign += 1
            self._complain("a foreign message among the results", error)
            return
        self._told(found, announced)

    async def _look(self) -> None:
        assert self._js is not None and self._listening is not None
        await self._listening.consumer_info()  # one that is gone says nothing, and so do we
        stream = (await self._js.stream_info(self._broker.units)).state
        consumer = await self._js.consumer_info(self._broker.units, CONSUMER)
        self.depth = stream.messages
        done = consumer.ack_floor.stream_seq if consumer.ack_floor is not None else 0
        self._progress(done, stream.last_seq)

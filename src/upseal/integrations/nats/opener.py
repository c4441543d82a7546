# SPDX-License-Identifier: Apache-2.0
"""An opener: takes requests from the broker, and takes them away once their outcome is stored.

In this order and no other: opened, in the database, told to the fronts, acknowledged. One that ends
in between, however it ends, leaves the message to the next; the database knows units by their
number, so that a second time stores nothing and receipts again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

from nats.errors import MaxPayloadError
from nats.js.errors import APIError, NoStreamResponseError
from sqlalchemy.exc import SQLAlchemyError

from upseal.fleet.hops import HopRefused
from upseal.fleet.http import apps
from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.http.seldom import Seldom
from upseal.fleet.http.serving import in_thread
from upseal.fleet.server.opening import Sender
from upseal.fleet.server.settings import Settings
from upseal.fleet.server.writer import Job, Outcome
from upseal.integrations.nats.opening import Done, NotReady, Rooms, refused
from upseal.integrations.nats.settings import Broker
from upseal.integrations.nats.streams import (
    ANNOUNCED_MOST,
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
    encode_results,
    most,
    prepare,
    why,
)

_FETCH = 1.0
"""Seconds that a hand waits for a message, and a stop for a hand."""
_AGAIN = 1.0
_HEARTBEATS = 3
"""In each ``ack_wait``: that a message is still at work here."""
_T = TypeVar("_T")
_log = logging.getLogger("upseal.nats.opener")


class _Given(Exception):  # noqa: N818 - what became of it
    """The message is left to another opener, or to a better day."""


class Opener:
    """One process's worth of opening; see `run`."""

    def __init__(self, settings: Settings, broker: Broker) -> None:
        """Reads the folder and opens the database; starts nothing.

        Raises:
            SettingsError: something in the folder is not right.
            StoreError: the database cannot be used.
        """
        broker.options()
        self._broker = broker
        self._said = broker.settings
        self.rooms = Rooms(settings, self._reopened)
        self._pool = ThreadPoolExecutor(settings.limits.threads, "upseal-open")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: Nats | None = None
        self._js: JetStreamContext | None = None
        self._seldom = Seldom(*LINES)
        self.trouble: str | None = "not connected yet"
        self.done = 0
        """Messages acknowledged."""

    def close(self) -> None:
        """After `work`, or instead of it."""
        self._pool.shutdown()
        self.rooms.close()

    def ready(self) -> str | None:
        """Why nothing can be opened, or None."""
        return self.trouble or self.rooms.ready()

    async def work(self, stop: asyncio.Event) -> None:
        """Until ``stop``; what is in hand is finished then.

        Raises:
            Unfit: the broker cannot carry this deployment.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.rooms.start)
        connection = await self._connected_unless(stop)
        if connection is None:
            return
        event(_log, "opener ready", stream=self._broker.units, keys=len(self.rooms.keyring.key_ids))
        hands = [asyncio.ensure_future(self._hand(stop)) for _ in range(self._said.in_hand)]
        try:
            await asyncio.gather(*hands)
        finally:
            for hand in hands:
                hand.cancel()
            await asyncio.gather(*hands, return_exceptions=True)
            self._js = None
            await connection.close()

    async def _connected_unless(self, stop: asyncio.Event) -> Nats | None:
        """None: it was stopped before the broker was there."""
        connecting = asyncio.ensure_future(self._connected())
        ending = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({connecting, ending}, return_when=asyncio.FIRST_COMPLETED)
            return connecting.result() if connecting.done() else None
        finally:
            connecting.cancel()
            ending.cancel()

    async def _connected(self) -> Nats:
        connection: Nats | None = None
        while True:
            try:
                connection = connection or await connect(self._broker, "upseal opener")
                self._js = await prepare(connection, self._broker)
                self._connection = connection
                self.trouble = None
                return connection
            except (NatsError, OSError, TimeoutError) as error:
                self.trouble = f"the broker cannot be used: {why(error)}"
                self._complain("broker not usable", error)
                await asyncio.sleep(_AGAIN)
            except Unfit:
                if connection is not None:
                    await connection.close()
                raise

    # -- one of those that work at once ---------------------------------------------------

    async def _hand(self, stop: asyncio.Event) -> None:
        js = self._js
        assert js is not None
        messages = await js.pull_subscribe_bind(consumer=CONSUMER, stream=self._broker.units)
        while not stop.is_set():
            try:
                (message,) = await messages.fetch(1, timeout=_FETCH)
            except TimeoutError:
                continue
            except NatsError as error:  # away, or set up anew
                self._complain("nothing can be fetched", error)
                await self._mend(error)
                continue
            await self._one(message, stop)

    async def _mend(self, error: Exception) -> None:
        """Waits a little; streams that are gone are made again."""
        await asyncio.sleep(_AGAIN)
        connection, gone = self._connection, isinstance(error, APIError | NoStreamResponseError)
        if gone and connection is not None and connection.is_connected:
            with suppress(NatsError, TimeoutError, Unfit):
                await prepare(connection, self._broker)

    async def _one(self, message: Msg, stop: asyncio.Event) -> None:
        alive = asyncio.ensure_future(self._say_alive(message))
        try:
            done = await self._settled(message, stop)
            if done is not None:
                await self._tell(done, stop)
            with suppress(NatsError):  # it comes again, and is a duplicate
                await message.ack()
            self.done += 1
        except _Given:
            with suppress(NatsError):
                await message.nak(delay=_AGAIN)
        finally:
            alive.cancel()

    async def _say_alive(self, message: Msg) -> None:
        while True:
            await asyncio.sleep(self._said.ack_wait / _HEARTBEATS)
            with suppress(NatsError):
                await message.in_progress()

    async def _settled(self, message: Msg, stop: asyncio.Event) -> Done | None:
        """What became of it; None where nobody is to be told.

        Raises:
            _Given: it is not for this process to say.
        """
        try:
            carried = Carried.of(message)
            sender = await self._whenever(lambda: self.rooms.sender(carried), stop)
        except Foreign as error:
            await self._foreign(message, str(error), stop)
            return None
        except HopRefused as error:
            if error.problem == "revoked":  # since a front took it
                return Done(refused(carried, Problem("revoked")), [])
            await self._foreign(message, error.problem, stop)
            return None
        if message.metadata.num_delivered > self._said.deliveries:
            return await self._set_aside(carried, sender, stop)
        try:
            return await self._stored(carried, sender, stop)
        except Problem as problem:
            return Done(refused(carried, problem), [])
        except (_Given, asyncio.CancelledError):
            raise
        except Exception as error:  # a bug of ours: after some tries it is a dead letter
            event(_log, "not opened", level=logging.ERROR, exc=error, tries=_tries(message))
            raise _Given from None

    async def _stored(self, carried: Carried, sender: Sender, stop: asyncio.Event) -> Done:
        request = await self._whenever(lambda: self.rooms.open(carried, sender), stop)
        outcome = await self._written(request.job, stop)
        return await self._in_pool(lambda: self.rooms.finish(request, outcome))

    async def _set_aside(self, carried: Carried, sender: Sender, stop: asyncio.Event) -> Done:
        event(
            _log, "set aside unopened", level=logging.ERROR, hop=sender.hop.hex(),
            size=len(carried.body),
        )  # fmt: skip
        job = self.rooms.set_aside(carried, sender)
        outcome = await self._written(job, stop)
        full = Problem("full", "no room for what cannot be opened", retry_after=60)
        letters = zip(job.letters, outcome.letters, strict=True)
        return Done(
            [
                Result.pending(one.id) if kept else Result.failed(one.id, full)
                for one, kept in letters
            ],
            [],
        )

    async def _foreign(self, message: Msg, reason: str, stop: asyncio.Event) -> None:
        """Somebody else writes into our stream: for the administrator to know."""
        self.rooms.foreign.inc()
        if (left_out := self._seldom.tell()) is not None:
            event(
                _log, "foreign message", level=logging.WARNING, why=reason,
                size=len(message.data), left_out=left_out,
            )  # fmt: skip
        sounded = {("foreign-message", b""): (1, {"why": reason, "bytes": len(message.data)})}
        await self._written(Job(alarms=sounded), stop)

    async def _written(self, job: Job, stop: asyncio.Event) -> Outcome:
        while True:
            try:
                return await asyncio.wrap_future(self.rooms.writer.submit(job))
            except SQLAlchemyError as error:
                await self._later(error, stop)

    async def _whenever(self, act: Callable[[], _T], stop: asyncio.Event) -> _T:
        """By a thread, as soon as the database is there."""
        while True:
            try:
                return await self._in_pool(act)
            except (SQLAlchemyError, NotReady) as error:
                await self._later(error, stop)

    async def _later(self, error: Exception, stop: asyncio.Event) -> None:
        """The message stays in hand, so that waiting does not count as a try."""
        if stop.is_set():
            raise _Given
        self._complain("the database cannot be used", error)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _AGAIN)

    async def _in_pool(self, act: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, act)

    # -- what fronts are told -------------------------------------------------------------

    async def _tell(self, done: Done, stop: asyncio.Event) -> None:
        js = self._js
        assert js is not None
        while True:
            try:
                await self._publish(js, done)
                return
            except (NatsError, TimeoutError) as error:
                if stop.is_set():
                    raise _Given from None
                self._complain("results cannot be told", error)
                await self._mend(error)

    async def _publish(self, js: JetStreamContext, done: Done) -> None:
        """In one message, or in as many as the broker's bounds make of it."""
        assert self._connection is not None
        for start in range(ANNOUNCED_MOST, len(done.announced), ANNOUNCED_MOST):
            await self._publish(js, Done([], done.announced[start : start + ANNOUNCED_MOST]))
        data, headers = encode_results(done.results, done.announced[:ANNOUNCED_MOST])
        if len(data) > most(self._connection):
            if len(done.results) == 1:
                self._complain("results are too long for the broker", MaxPayloadError())
                return  # its sender sends again, and is told then
            half = len(done.results) // 2
            await self._publish(js, Done(done.results[:half], done.announced[:ANNOUNCED_MOST]))
            await self._publish(js, Done(done.results[half:], []))
            return
        await js.publish(
            self._broker.subject("results"), data, headers=dict(headers),
            stream=self._broker.results,
        )  # fmt: skip

    def _reopened(self, result: Result) -> None:
        """Of a dead letter, by the upkeep's thread."""
        js, loop = self._js, self._loop
        if js is not None and loop is not None:
            asyncio.run_coroutine_threadsafe(self._tell_once(js, result), loop)

    async def _tell_once(self, js: JetStreamContext, result: Result) -> None:
        try:
            await self._publish(js, Done([result], []))
        except (NatsError, TimeoutError) as error:  # who asks sends again, and is told then
            self._complain("results cannot be told", error)

    def _complain(self, what: str, error: BaseException) -> None:
        if (left_out := self._seldom.tell()) is not None:
            words = type(error).__name__ if isinstance(error, SQLAlchemyError) else why(error)
            event(_log, what, level=logging.WARNING, why=words, left_out=left_out)


def _tries(message: Msg) -> int:
    return int(message.metadata.num_delivered)


def run(
    settings: Settings,
    broker: Broker,
    *,
    listen: tuple[str, int] | None = None,
    stop: threading.Event | None = None,
    on_started: Callable[[Any], object] | None = None,
) -> None:
    """Opens until a signal comes or ``stop`` is set.

    Args:
        settings: of the deployment.
        broker: where the fronts put reports.
        listen: where to answer ``/healthz``, ``/readyz`` and ``/metrics``.
        stop: ends it, from another thread.
        on_started: told the address, or None where there is none.

    Raises:
        SettingsError: something in the folder is not right.
        StoreError: the database cannot be used.
        Unfit: the broker cannot carry this deployment.
        OSError: the address cannot be had.
    """
    opener = Opener(settings, broker)
    with ExitStack() as stack:
        stack.callback(opener.close)
        address = None
        if listen is not None:
            seen = apps.application([], metrics=opener.rooms.meters.metrics, ready=opener.ready)
            address = stack.enter_context(in_thread(seen, *listen))
        if on_started is not None:
            on_started(address)
        asyncio.run(_until(opener, stop))


async def _until(opener: Opener, stop: threading.Event | None) -> None:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    heard = []
    if threading.current_thread() is threading.main_thread():
        heard = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    for number in heard:
        loop.add_signal_handler(number, ending.set)
    watch = asyncio.ensure_future(_watch(stop, ending)) if stop is not None else None
    try:
        await opener.work(ending)
    finally:
        if watch is not None:
            watch.cancel()
        for number in heard:
            loop.remove_signal_handler(number)


async def _watch(stop: threading.Event, ending: asyncio.Event) -> None:
    while not stop.is_set():
        await asyncio.sleep(0.05)
    ending.set()

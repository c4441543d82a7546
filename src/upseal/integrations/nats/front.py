# SPDX-License-Identifier: Apache-2.0
"""The server's front: all of a server, but that reports are put on the broker and not opened.

To agents and relays it is the server; of bodies of reports it says what a passing relay says:
``pending`` as soon as the broker has them, and the receipts once an opener has stored them.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future

from starlette.requests import Request
from starlette.responses import Response

from upseal.fleet.hops import AUTHORIZATION, PROOF
from upseal.fleet.http import prefer, responses
from upseal.fleet.http.apps import let_go, patience
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result, State
from upseal.fleet.http.serving import Address
from upseal.fleet.server.app import App
from upseal.fleet.server.app import run as serve
from upseal.fleet.server.opening import Sender
from upseal.fleet.server.running import Server, raise_if_all_are_to_wait
from upseal.fleet.server.settings import Settings
from upseal.fleet.server.store import now_ms
from upseal.fleet.units import body_id, body_kind, parse_bundle
from upseal.integrations.nats.link import Link
from upseal.integrations.nats.settings import Broker
from upseal.integrations.nats.streams import Carried
from upseal.integrations.nats.waiting import Waiting

_AGENT_BODIES = 1024


class FrontServer(Server):
    """A server that opens no reports."""

    def __init__(self, settings: Settings, broker: Broker) -> None:
        """As `Server`; it needs no key in ``keys/`` but for uploads."""
        super().__init__(settings, opens=False)
        self.waiting = Waiting(settings.limits.results)
        self.link = Link(broker, self._told, self.waiting.prune)
        link = self.link
        self.meters.watch("broker_depth", "Messages that are not finished", lambda: link.depth)
        self.meters.watch("broker_waiting", "Bodies whose result is to come", self.waiting.__len__)
        self.meters.metrics.counted(
            "foreign_results", "Messages that no opener has written", lambda: link.foreign
        )

    def start(self) -> None:
        """The broker first: results may be there."""
        self.link.start()
        super().start()

    def stop(self) -> None:
        """What the broker has is the openers'."""
        self.link.stop()
        super().stop()

    def ready(self) -> str | None:
        """Why it cannot take reports, or None."""
        return self.link.ready() or super().ready()

    def results(self, sender: Sender, bodies: list[bytes]) -> list[Result]:
        """What is known of bodies: by the broker, by an opener's word, by the database."""
        here = {body: found for body in bodies if (found := self.waiting.get(body)) is not None}
        asked = [body for body in bodies if body not in here]
        here |= {found.body: found for found in super().results(sender, asked)} if asked else {}
        return [here[body] for body in bodies]

    def settled(self, sender: Sender, body: bytes) -> bool:
        """Whether a body's result is there."""
        return self.waiting.settled(body) or super().settled(sender, body)

    def forward(
        self, headers: Mapping[str, str], method: str, path: str, data: bytes
    ) -> Future[tuple[Sender, list[bytes]]]:
        """Puts a request on the broker; who sent it, and its bodies, once it is durable there.

        What waits already is not put there again: its sender has asked twice.
        """
        done: Future[tuple[Sender, list[bytes]]] = Future()
        done.set_running_or_notify_cancel()

        def take() -> None:
            bodies: list[bytes] = []
            try:
                digest = hashlib.sha256(data).digest()
                sender = self.authenticate(headers, method, path, digest, len(data))
                bodies = _bodies(data, sender)
                if all(self.waiting.waits(body) for body in bodies):
                    done.set_result((sender, bodies))
                    return
                said = {name: headers[name] for name in (AUTHORIZATION, PROOF)}
                self.waiting.begin(bodies)
                self.answers.forget(bodies)
                taken = self.link.publish(Carried(data, said, now_ms()))
            except BaseException as error:
                self.waiting.forget(bodies)
                done.set_exception(error)
            else:
                taken.add_done_callback(lambda _: finish(sender, bodies, taken))

        def finish(sender: Sender, bodies: list[bytes], taken: Future[int]) -> None:
            try:
                self.waiting.taken(bodies, taken.result())
            except BaseException as error:
                self.waiting.forget(bodies)
                stopped = isinstance(error, CancelledError)
                done.set_exception(Problem("stopping", retry_after=5) if stopped else error)
            else:
                done.set_result((sender, bodies))

        self.pool.submit(take)
        return done

    def _told(self, found: Sequence[Result], announced: Sequence[bytes]) -> None:
        for result in found:
            self.answers.put(result)
            self.waiting.tell(result)
            if result.state is State.PROBLEM:
                self.answers.changes += 1  # for those who wait: `put` keeps what is final
        if announced:
            self.uploads.working.announced(announced)


class FrontApp(App):
    """The endpoints of a server, but for bodies."""

    def __init__(self, server: FrontServer) -> None:
        """For `build`."""
        super().__init__(server)
        self._front = server

    async def units(self, request: Request) -> Response:
        """Takes bodies, and answers when the broker has them, or when they are done."""
        data = await self._read(request, self._front.settings.limits.max_body)
        changes = self._front.answers.changes
        headers, method, path = request.headers, request.method, request.url.path
        taken = self._front.forward(headers, method, path, data)
        sender, bodies = await asyncio.wrap_future(taken)
        del data
        let_go(request)  # the broker has it: who waits for receipts holds no memory
        seconds = prefer.wait(request.headers.get("prefer"))
        if seconds:
            news = asyncio.ensure_future(self._news(sender, bodies, changes))
            try:
                await patience(request, news, seconds)
            finally:
                news.cancel()
        found = await self._in_pool(lambda: self._front.results(sender, bodies))
        if sender.role == "agent":
            raise_if_all_are_to_wait(found)
        return responses.of_results(found, seconds)


def _bodies(data: bytes, sender: Sender) -> list[bytes]:
    """The ids of the bodies in a request. None of them is opened."""
    try:
        parts = parse_bundle(data) if body_kind(data) == "bundle" else [memoryview(data)]
        kinds = {body_kind(part) for part in parts}
    except ValueError:
        raise Problem("malformed", "this is no body") from None
    if "bundle" in kinds:
        raise Problem("malformed", "a bundle in a bundle")
    if sender.role == "agent" and len(parts) > _AGENT_BODIES:
        raise Problem("too-large", "too many bodies in a request")
    return list(dict.fromkeys(body_id(part) for part in parts))


def run(
    settings: Settings,
    broker: Broker,
    *,
    host: str | None = None,
    port: int | None = None,
    on_started: Callable[[Address], object] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serves as a front until a signal comes or ``stop`` is set.

    Raises:
        AlreadyRunning: another server runs from this folder.
        SettingsError: the folder is not right.
        StoreError: the database cannot be used.
        OSError: the address cannot be had.
    """
    serve(
        settings, host=host, port=port, on_started=on_started, stop=stop,
        make=lambda settings: FrontApp(FrontServer(settings, broker)),
    )  # fmt: skip

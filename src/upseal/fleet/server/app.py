# SPDX-License-Identifier: Apache-2.0
"""The server's side of HTTP.

Whoever is not authenticated costs no public-key operation but the two that cannot be had without:
an enrolment, of which few run at once, and the proof itself.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from upseal.fleet.files import write_private
from upseal.fleet.http import prefer, responses, results, serving
from upseal.fleet.http.apps import application, let_go, patience, read_body
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import MalformedResults, Result, State
from upseal.fleet.http.serving import Address, serve
from upseal.fleet.server import enrol, relayed
from upseal.fleet.server.opening import Sender
from upseal.fleet.server.running import Server
from upseal.fleet.server.settings import Settings
from upseal.fleet.server.signs import signs_of
from upseal.fleet.server.store import now_ms

if TYPE_CHECKING:
    from upseal.fleet.notify import Service
    from upseal.fleet.server.page.routes import Page

_RESULTS_MAX = 512 << 10
_ENROLLING = 64
_POLL = 0.1
_T = TypeVar("_T")


class AlreadyRunning(Exception):  # noqa: N818 - what is the case
    """Another process serves this folder."""


class App:
    """The endpoints."""

    def __init__(self, server: Server) -> None:
        """For `build`."""
        self._server = self.server = server
        self._enrolling = 0
        self._one_by_one = asyncio.Semaphore(1)

    def build(self) -> Starlette:
        """The application; it starts and stops the server."""
        server = self._server
        page = self._page()

        @asynccontextmanager
        async def life(_: Starlette) -> AsyncIterator[None]:
            try:
                await asyncio.to_thread(server.start)
                yield
            finally:
                if page is not None:
                    await asyncio.to_thread(page.close)
                await asyncio.to_thread(server.stop)

        return application(
            [
                Route("/v1/units", self.units, methods=["POST"]),
                Route("/v1/results", self.results, methods=["POST"]),
                Route("/v1/manifest", self.manifest),
                Route("/v1/capabilities", self.capabilities),
                Route("/v1/enrol", self.enrol, methods=["POST"]),
                Route("/v1/relay/key", self._of_relay(server.relayed.key), methods=["POST"]),
                Route(
                    "/v1/relay/challenge", self._of_relay(server.relayed.challenge),
                    methods=["POST"],
                ),
                Route("/v1/relay/answer", self._of_relay(server.relayed.answer), methods=["POST"]),
                *(() if page is None else page.routes()),
                *server.uploads.routes(),
            ],
            metrics=server.meters.metrics,
            ready=server.ready,
            lifespan=life,
            budget=server.settings.limits.queue_bytes,
            gate=server.gate,
        )  # fmt: skip

    def _page(self) -> Page | None:
        server = self._server
        if not server.settings.limits.page:
            return None
        from upseal.fleet.server.page.routes import Page

        return Page(server.store, server.settings, server.manifest, server.meters.metrics)

    # -- bodies ----------------------------------------------------------------------

    async def units(self, request: Request) -> Response:
        """Takes bodies; the answer has receipts for all that is on the disk."""
        data = await self._read(request, self._server.settings.limits.max_body)
        taken = self._server.receive(request.headers, request.method, request.url.path, data)
        try:
            answers = await asyncio.wrap_future(taken)
        except SQLAlchemyError:
            # A full disk, a database that is away: nothing is stored, and all can come again.
            raise Problem("full", "the database takes nothing", retry_after=10) from None
        return responses.of_results(answers)

    async def results(self, request: Request) -> Response:
        """What became of bodies that wait here, and of those that were settled lately."""
        data = await self._read(request, _RESULTS_MAX)
        headers, method, path = request.headers, request.method, request.url.path
        answers = self._server.answers

        def look() -> tuple[Sender, list[bytes], list[Result]]:
            digest = hashlib.sha256(data).digest()
            sender = self._server.authenticate(headers, method, path, digest)
            try:
                asked = results.decode_ids(data)
            except MalformedResults as error:
                raise Problem("malformed", str(error)) from None
            return sender, asked, self._server.results(sender, asked)

        changes = answers.changes
        sender, asked, found = await self._in_pool(look)
        seconds = prefer.wait(headers.get("prefer"))
        if seconds and all(result.state is State.PENDING for result in found):
            let_go(request)
            news = asyncio.ensure_future(self._news(sender, asked, changes))
            try:
                await patience(request, news, seconds)
            finally:
                news.cancel()
            found = await self._in_pool(lambda: self._server.results(sender, asked))
        return responses.of_results(found, seconds)

    async def _news(self, sender: Sender, asked: list[bytes], changes: int) -> None:
        """Until one of these is settled: there is little that waits at a server, so it is asked."""
        answers = self._server.answers
        while True:
            await asyncio.sleep(_POLL)
            if answers.changes != changes:
                changes = answers.changes
                if any(self._server.settled(sender, body) for body in asked):
                    return

    # -- what everybody may read ---------------------------------------------------------

    async def manifest(self, request: Request) -> Response:
        """The newest manifest, and those that lead to it."""
        found = self._server.published.chain(responses.since(request))
        return responses.of_notice(request, found, _nothing_yet())

    async def capabilities(self, request: Request) -> Response:
        """What this server takes, signed by its receipt key."""
        found = self._server.published.capabilities(now_ms())
        return responses.of_notice(request, found, _nothing_yet())

    # -- enrolment and relays --------------------------------------------------------------

    async def enrol(self, request: Request) -> Response:
        """Strangers may ask this, and it costs us: one at a time, and few in line."""
        data = await read_body(request, enrol.REQUEST_MAX)  # who is slow at it has no place yet
        if self._enrolling >= _ENROLLING:
            raise Problem("busy", "many are enrolling", retry_after=2)
        self._enrolling += 1
        try:
            async with self._one_by_one:
                answer = await self._in_pool(lambda: self._server.enrolment.enrol(data))
        finally:
            self._enrolling -= 1
        return Response(answer, 200, {"cache-control": "no-store"}, "application/jose")

    def _of_relay(self, heard: Callable[[bytes], dict[str, Any]]) -> Callable[..., Any]:
        """An endpoint for what relays say of their keys; a relay's hop brings it."""

        async def endpoint(request: Request) -> Response:
            data = await self._read(request, relayed.STATEMENT_MAX)
            headers, method, path = request.headers, request.method, request.url.path

            def hear() -> dict[str, Any]:
                digest = hashlib.sha256(data).digest()
                sender: Sender = self._server.authenticate(headers, method, path, digest)
                if sender.role != "relay":
                    raise Problem("not-enrolled", "this is for relays")
                return heard(data)

            answer = await self._in_pool(hear)
            return JSONResponse(answer, headers={"cache-control": "no-store"})

        return endpoint

    # -- how -------------------------------------------------------------------------------

    @staticmethod
    async def _read(request: Request, limit: int) -> bytes:
        if "authorization" not in request.headers or "upseal-proof" not in request.headers:
            raise Problem("unauthenticated")  # before a byte of the body is read
        return await read_body(request, limit)

    async def _in_pool(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._server.pool, work)
        except SQLAlchemyError:
            raise Problem("full", "the database cannot be used", retry_after=10) from None


def _nothing_yet() -> Problem:
    return Problem("full", "there is no manifest yet", retry_after=5)


def run(
    settings: Settings,
    *,
    host: str | None = None,
    port: int | None = None,
    on_started: Callable[[Address], object] | None = None,
    stop: threading.Event | None = None,
    make: Callable[[Settings], App] = lambda settings: App(Server(settings)),
    service: Service | None = None,
) -> None:
    """Serves a deployment's folder until a signal comes or ``stop`` is set.

    The real address stands in the folder's file ``address`` meanwhile. ``make`` gives what is
    served, where that is not a server that does all by itself. A ``service`` may have sockets to
    serve on, and is told how it goes.

    Raises:
        AlreadyRunning: another server runs from this folder.
        SettingsError: the folder is not right.
        StoreError: the database cannot be used.
        OSError: the address cannot be had.
    """
    limits = settings.limits

    def started(address: Address) -> None:
        write_private(settings.address, f"{_host(address)}:{address.port}\n".encode())
        if service is not None:
            service.ready(f"serving at {address.url}", signs_of(app.server, service))
        if on_started is not None:
            on_started(address)

    with _alone(settings):
        settings.address.unlink(missing_ok=True)
        app = make(settings)
        try:
            serve(
                app.build(),
                settings.host if host is None else host,
                settings.port if port is None else port,
                tls=settings.tls(),
                limits=serving.Limits(
                    connections=limits.connections,
                    address_share=settings.rates.address_share,
                    exceptions=settings.rates.exceptions,
                    grace=limits.grace,
                ),
                on_started=started,
                stop=stop,
                service=service,
            )
        finally:
            app.server.close()
            settings.address.unlink(missing_ok=True)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One server for each folder: a second one is a mistake. The system frees a dead one's lock."""
    lock = os.open(settings.folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"another process runs the server of {settings.folder}") from None
        yield
    finally:
        os.close(lock)


def _host(address: Address) -> str:
    return f"[{address.host}]" if ":" in address.host else address.host

# SPDX-License-Identifier: Apache-2.0
"""ASGI applications of the fleet: common routes, clean refusals, bodies of bounded cost.

    app = application([Route("/v1/units", units, methods=["POST"])], metrics=Metrics("relay"))

An endpoint raises a `Problem` to refuse; anything else that it raises becomes a plain 500 without a
word of what went wrong, and a line in the log with where, but not with what.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter as Counted
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from prometheus_client import Counter, Histogram
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from upseal.fleet.http.logs import event
from upseal.fleet.http.metrics import CONTENT_TYPE, Metrics
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.rates import Account, Gate

IDLE = 15.0
"""Seconds without a byte of a body before it is given up."""
SLOWEST = 1024
"""Bytes a second that a body must make on the whole, after `IDLE` seconds for free."""
BUDGET = 256 << 20
"""Bytes of bodies that one application holds at once."""
_LARGE = 16 << 10

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[Any]]
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SHARE = "upseal.share"
_CLOSED = 499
"""What proxies have long called a request whose client went away."""


class Stopping:
    """Says to requests that are being held that the process stops. For the event loop's thread."""

    def __init__(self) -> None:
        self.begun = False
        self._waiting: set[asyncio.Future[None]] = set()

    def begin(self) -> None:
        """From here on nobody is held."""
        self.begun = True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def future(self) -> asyncio.Future[None]:
        """Done when it begins."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.begun:
            future.set_result(None)
        else:
            self._waiting.add(future)
            future.add_done_callback(self._waiting.discard)
        return future


class _Budget:
    """Bytes of bodies in memory, over all requests of an application; and whose they are."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self.of: Counted[str] = Counted()


class _Share:
    """What one request holds of it; given back when the request is over, not when it was read.

    ``accounts`` are who has a part of it in common, and how much: a body is read before it is
    known who sent it, and whoever it is must not keep all others from being read. A single request
    may have more.
    """

    def __init__(self, budget: _Budget, accounts: Sequence[Account] = ()) -> None:
        self._budget = budget
        self._accounts = [(account, budget.most * part) for account, part in accounts]
        self._held = 0

    def take(self, count: int) -> None:
        budget, of = self._budget, self._budget.of
        if budget.held + count > budget.most:
            raise Problem("full", "too many requests are being read", retry_after=2)
        for account, most in self._accounts:
            if of[account] > self._held and of[account] + count > most:
                raise Problem("busy", "too many such requests are being read", retry_after=2)
        budget.held += count
        self._held += count
        for account, _ in self._accounts:
            of[account] += count

    def give_back(self) -> None:
        of = self._budget.of
        self._budget.held -= self._held
        for account, _ in self._accounts:
            of[account] -= self._held
            if of[account] <= 0:
                del of[account]
        self._held = 0


def application(
    routes: Sequence[BaseRoute],
    *,
    metrics: Metrics,
    ready: Callable[[], str | None] = lambda: None,
    lifespan: Lifespan | None = None,
    budget: int = BUDGET,
    gate: Gate | None = None,
    log: logging.Logger | None = None,
) -> Starlette:
    """An application with ``/healthz``, ``/readyz`` and ``/metrics``.

    ``ready`` says None, or why not; it is asked on the event loop, so it must not block.
    ``lifespan`` starts and stops what runs beside the requests. ``app.state.stopping`` is a
    `Stopping`, ``app.state.metrics`` are the metrics. ``gate`` turns away who asks too much.
    """
    log = log or logging.getLogger("upseal.http")

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(request: Request) -> Response:
        why = "stopping" if request.app.state.stopping.begun else ready()
        body = {"ready": why is None} | ({} if why is None else {"why": why})
        return JSONResponse(body, 200 if why is None else 503, {"cache-control": "no-store"})

    async def shown(request: Request) -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[Any]:
        # Kept, because a server would only say that there was an error.
        try:
            if lifespan is None:
                yield None
            else:
                async with lifespan(app) as state:
                    yield state
        except BaseException as error:
            app.state.failure = error
            raise

    shared = _Budget(budget)
    metrics.gauge("http_body_bytes", "Bytes of request bodies held", function=lambda: shared.held)
    metrics.gauge("ready", "1 if /readyz says so", function=lambda: float(ready() is None))
    app = Starlette(
        routes=[
            *routes,
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", shown),
        ],
        middleware=[Middleware(_Guard, metrics=metrics, budget=shared, gate=gate, log=log)],
        exception_handlers={Problem: _on_problem, HTTPException: _on_http},
        lifespan=life,
    )
    # What stands at /v1/units/ is nothing, and not a reason to send a body twice.
    app.router.redirect_slashes = False
    app.state.stopping = Stopping()
    app.state.metrics = metrics
    app.state.failure = None
    return app


async def read_body(request: Request, limit: int, *, idle: float = IDLE) -> bytes:
    """The whole body, or a Problem, as `read_parts`."""
    parts = await read_parts(request, limit, idle=idle)
    return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


async def read_parts(
    request: Request, limit: int, *, idle: float = IDLE
) -> list[bytes | bytearray]:
    """The whole body in the parts that it came in, or a Problem: too-large, slow, full.

    A declared length over the limit is refused before a byte is read (and before ``100 Continue``).
    """
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdecimal() and int(declared[:18]) > limit:
        raise _too_large(limit)
    share: _Share | None = request.scope.get(_SHARE)
    parts: list[bytes | bytearray] = []
    size = 0
    loop = asyncio.get_running_loop()
    begun = loop.time()
    try:
        async with asyncio.timeout(idle) as timer:
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece: bytes = message.get("body", b"")
                size += len(piece)
                if size > limit:
                    raise _too_large(limit)
                if share is not None:
                    share.take(len(piece))
                if piece:
                    _keep(parts, piece)
                if not message.get("more_body", False):
                    return parts
                # Each byte buys a little time, so that one byte now and then is not enough.
                most = begun + idle + size / SLOWEST
                timer.reschedule(min(loop.time() + idle, most))
    except TimeoutError:
        raise Problem("slow", f"{size} bytes came in {loop.time() - begun:.0f} s") from None


def _keep(parts: list[bytes | bytearray], piece: bytes) -> None:
    """Joined once, at the end: what grows is copied again and again, and so is large memory.

    Small ones are put together: as objects they would cost more than their bytes say.
    """
    if len(piece) >= _LARGE:
        parts.append(piece)
    elif parts and isinstance(parts[-1], bytearray) and len(parts[-1]) < _LARGE:
        parts[-1] += piece
    else:
        parts.append(bytearray(piece))


def let_go(request: Request) -> None:
    """Says that a body read is kept no longer: a request that is only held costs no memory."""
    share: _Share | None = request.scope.get(_SHARE)
    if share is not None:
        share.give_back()


async def patience(request: Request, done: asyncio.Future[Any], seconds: float) -> bool:
    """Holds a request until ``done`` is, or ``seconds`` have passed, or the process stops.

    Returns whether it is done, and never cancels it. A client that went away raises
    ClientDisconnect. The request's body must have been read.
    """
    if seconds <= 0 or done.done():
        return done.done()
    stopping: asyncio.Future[None] = request.app.state.stopping.future()
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait(
            {done, stopping, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if not done.done() and gone.done():
            raise ClientDisconnect
        return done.done()
    finally:
        stopping.cancel()
        gone.cancel()


async def _gone(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(limit: int) -> Problem:
    return Problem("too-large", f"at most {limit} bytes are taken here")


async def _on_problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem.to_response()


async def _on_http(request: Request, error: Exception) -> Response:
    """Starlette's own refusals, in our form."""
    assert isinstance(error, HTTPException)
    names = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}
    name = names.get(error.status_code, "malformed" if error.status_code < 500 else "internal")
    response = Problem(name, status=max(400, error.status_code)).to_response()
    for header, value in (error.headers or {}).items():
        response.headers[header] = value
    return response


class _Guard:
    """Round everything: counts requests, answers what nobody has caught, frees the budget."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        budget: _Budget,
        gate: Gate | None,
        log: logging.Logger,
    ) -> None:
        self._app, self._budget, self._gate, self._log = app, budget, gate, log
        self._requests = metrics.counter(
            "http_requests", "Requests answered", ("method", "route", "status")
        )
        self._seconds = metrics.histogram(
            "http_request_seconds", "Time from head to answer", ("route",)
        )
        # Asking a metric for its labels takes a lock and a look: once for each is enough.
        self._counts: dict[tuple[str, str, int], Counter] = {}
        self._times: dict[str, Histogram] = {}
        self._running = 0
        metrics.gauge(
            "http_requests_running", "Requests not yet answered", function=lambda: self._running
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        share = scope[_SHARE] = _Share(self._budget)  # the gate may say more
        begun = time.perf_counter()
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._running += 1
        try:
            if self._gate is not None:
                share = scope[_SHARE] = _Share(self._budget, self._gate.arrives(scope))
            await self._app(scope, receive, noting)
        except Problem as problem:  # the gate's: the application answers its own
            await problem.to_response()(scope, receive, noting)
        except ClientDisconnect:
            status = status or _CLOSED
        except asyncio.CancelledError:
            # The grace is over, or somebody up there gives up: say so while there is a chance.
            if status:
                raise
            await Problem("stopping", retry_after=5).to_response()(scope, receive, noting)
        except Exception as error:
            event(
                self._log,
                "request failed",
                level=logging.ERROR,
                exc=error,
                method=scope["method"],
                route=_route(scope),
            )
            if status:  # half an answer is out: the connection must end
                raise
            await Problem("internal").to_response()(scope, receive, noting)
        finally:
            share.give_back()
            self._running -= 1
            if self._gate is not None:
                self._gate.answered(scope, status)
            self._note(scope, status, time.perf_counter() - begun)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method, route = scope["method"], _route(scope)
        if method not in _METHODS:
            method = "other"
        key = (method, route, status)
        count, timed = self._counts.get(key), self._times.get(route)
        if count is None or timed is None:
            count = self._counts[key] = self._requests.labels(method, route, status)
            timed = self._times[route] = self._seconds.labels(route)
        count.inc()
        timed.observe(seconds)
        if self._log.isEnabledFor(logging.DEBUG):
            event(
                self._log,
                "request",
                level=logging.DEBUG,
                method=method,
                route=route,
                status=status,
                ms=round(seconds * 1000, 2),
            )


def _route(scope: Scope) -> str:
    """The pattern that matched, never the path as asked: strangers choose no label."""
    return str(getattr(scope.get("route"), "path", "other"))

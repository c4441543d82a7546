# SPDX-License-Identifier: Apache-2.0
"""The relay's side of HTTP: what agents and relays below it ask.

Who is not authenticated costs no public-key operation: the manifest and the capabilities lie ready,
and an enrolment is handed through within bounds.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Protocol, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from upseal.fleet.credentials import Hop, HopCheck, HopRefused
from upseal.fleet.http import prefer, responses, results
from upseal.fleet.http.apps import application, let_go, patience, read_body
from upseal.fleet.http.client import Response as Answer
from upseal.fleet.http.client import Unreachable
from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import MEDIA_TYPE, Problem
from upseal.fleet.http.rates import Gate
from upseal.fleet.http.results import MalformedResults, Result, State
from upseal.fleet.relay.meters import Meters
from upseal.fleet.relay.queue import Full, Queue
from upseal.fleet.relay.settings import Settings
from upseal.fleet.relay.uplink import Uplink
from upseal.fleet.relay.uploads import Uploads
from upseal.fleet.relay.waiters import Waiters
from upseal.fleet.trail import body_name
from upseal.fleet.units import body_kind, parse_bundle

_log = logging.getLogger(__name__)
_ENROL_MAX = 16 << 10
_RESULTS_MAX = 512 << 10
_HASHED_HERE = 256 << 10
"""Bytes that are hashed on the event loop; more would hold everybody up."""
_PROXIED = 8
"""Requests handed through to the parent at once, and as many again for each that wait for it."""
_PROXY_SECONDS = 600.0
"""Longer than any request to the parent lasts."""
_LINGER = 0.05
"""Seconds that an answer with one result waits for others that come along with it."""
T = TypeVar("T")


class Notices(Protocol):
    """What a relay serves to everybody, ready made."""

    def manifest(self, since: int) -> tuple[str, bytes] | None:
        """ETag and manifests after that serial; None while there are none."""

    def capabilities(self) -> tuple[str, bytes] | None:
        """ETag and the signed capabilities."""


class RelayApp:
    """The endpoints."""

    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        hops: HopCheck,
        notices: Notices,
        uplink: Uplink,
        meters: Meters,
        waiters: Waiters,
        uploads: Uploads,
    ) -> None:
        self._settings, self._queue, self._hops, self._notices = settings, queue, hops, notices
        self._uplink, self._meters, self._waiters = uplink, meters, waiters
        self._uploads = uploads
        self._gate = Gate(settings.rates, meters.metrics, hops.remembered)
        self._turns = asyncio.Semaphore(_PROXIED)
        self._proxied = 0

    def build(
        self, ready: object, running: AbstractAsyncContextManager[None] | None = None
    ) -> Starlette:
        """The application.

        Args:
            ready: says why the relay is not, or None.
            running: entered before the first request and left after the last.
        """
        routes = [
            Route("/v1/units", self.units, methods=["POST"]),
            Route("/v1/results", self.results, methods=["POST"]),
            Route("/v1/manifest", self.manifest),
            Route("/v1/capabilities", self.capabilities),
            Route("/v1/enrol", self.enrol, methods=["POST"]),
            *(
                Route(f"/v1/relay/{name}", self.relay, methods=["POST"])
                for name in ("key", "challenge", "answer")
            ),
            *self._uploads.routes(self._hop),
        ]

        @asynccontextmanager
        async def life(_: Starlette) -> AsyncIterator[None]:
            self._waiters.bind(asyncio.get_running_loop())
            try:
                if running is None:
                    yield
                else:
                    async with running:
                        yield
            finally:
                self._waiters.bind(None)

        return application(
            routes,
            metrics=self._meters.metrics,
            ready=ready,  # type: ignore[arg-type]
            lifespan=life,
            budget=self._settings.http.receiving,
            gate=self._gate,
        )

    # -- bodies ------------------------------------------------------------------------

    async def units(self, request: Request) -> Response:
        """Takes bodies, and answers when they are on the disk, or done."""
        body = await self._read(request, self._settings.http.max_body)
        hop = await self._hop(request, body)
        parts = _split(body)
        size, body = len(body), b""
        answers: dict[bytes, Result] = {}
        take: dict[bytes, bytes] = {}
        order = []
        for part in parts:
            body_id = hashlib.sha256(part).digest()
            order.append(body_id)
            problem = self._unwelcome(part)
            if problem is None:
                take[body_id] = part
            else:
                self._meters.refused.labels(problem.name).inc()
                answers[body_id] = Result.failed(body_id, problem)
        del parts
        with self._waiters.watch(take) as waiter:
            for body_id, found in (await self._lookup(list(take))).items():
                del take[body_id]
                if found is not None:
                    waiter.tell(found)
            for done in (await self._put(take, hop, size)).values():
                waiter.tell(done)
            take.clear()
            let_go(request)  # it is on the disk: who waits for receipts holds no memory
            seconds = prefer.wait(request.headers.get("prefer"))
            if waiter.left:
                await patience(request, waiter.all, seconds)
            answers |= waiter.got
        return responses.of_results(
            [answers.get(i) or Result.pending(i) for i in dict.fromkeys(order)], seconds
        )

    async def results(self, request: Request) -> Response:
        """What became of bodies: as soon as there is any news."""
        body = await self._read(request, _RESULTS_MAX)
        hop = await self._hop(request, body)
        try:
            asked = results.decode_ids(body)
        except MalformedResults as error:
            raise Problem("malformed", str(error)) from None
        seconds = prefer.wait(request.headers.get("prefer"))
        with self._waiters.watch(asked) as waiter:
            files = self._uploads.lookup(hop, asked)
            known = await self._lookup(asked)
            for body_id, found in files.items():
                if (kept := known.get(body_id)) is None or kept.state is not State.DONE:
                    known[body_id] = found
            pending = {body_id for body_id, found in known.items() if found is None}
            if (
                len(pending) == len(asked)
                and not waiter.any.done()
                and await patience(request, waiter.any, seconds)
                and waiter.left
            ):
                await patience(request, waiter.all, _LINGER)
            heard = waiter.got
        answers = []
        for body_id in asked:
            found = heard.get(body_id) or known.get(body_id)
            if found is None:
                found = Result.pending(body_id) if body_id in pending else Result.unknown(body_id)
            answers.append(found)
        return responses.of_results(answers, seconds)

    def _unwelcome(self, part: bytes) -> Problem | None:
        try:
            kind = body_kind(part)
        except ValueError as error:
            return Problem("malformed", str(error))
        if kind == "bundle":
            return Problem("malformed", "a bundle in a bundle")
        if kind == "sealed" and not self._settings.accepts_sealed:
            return Problem("sealed-not-accepted")
        if kind == "clear" and not self._settings.accepts_clear:
            return Problem("clear-not-accepted")
        return None

    async def _lookup(self, bodies: Sequence[bytes]) -> dict[bytes, Result | None]:
        if len(bodies) <= 4:  # each is a look into an index
            return self._queue.lookup(bodies)
        return await asyncio.to_thread(self._queue.lookup, bodies)

    async def _put(self, take: dict[bytes, bytes], hop: Hop, size: int) -> dict[bytes, Result]:
        if not take:
            return {}
        try:
            future = self._queue.put(take, hop.hop_id, shared=hop.role == "agent")
            done = await asyncio.wrap_future(future)
        except Full:
            raise self._no_room("the queue is full") from None
        except sqlite3.Error:
            raise self._no_room("the disk takes nothing") from None
        except RuntimeError:
            raise Problem("stopping", retry_after=5) from None
        if _log.isEnabledFor(logging.DEBUG):
            who = hop.hop_id.hex()
            for body_id, part in take.items():
                name, size_of = body_name(body_id), len(part)
                event(_log, "body taken", level=logging.DEBUG, body=name, hop=who, bytes=size_of)
        for part in take.values():
            self._meters.bodies_in.labels(body_kind(part)).inc()
        self._meters.bytes_in.inc(size)
        return done

    def _no_room(self, why: str) -> Problem:
        name, retry = ("parent-away", 30) if self._uplink.away else ("full", 5)
        self._meters.refused.labels(name).inc()
        return Problem(name, why, retry_after=retry)

    # -- what everybody may read ---------------------------------------------------------

    async def manifest(self, request: Request) -> Response:
        """The newest manifest, and those that lead to it."""
        found = self._notices.manifest(responses.since(request))
        return responses.of_notice(request, found, _nothing_yet())

    async def capabilities(self, request: Request) -> Response:
        """What this relay takes, signed by it, with its parent's words inside."""
        return responses.of_notice(request, self._notices.capabilities(), _nothing_yet())

    # -- handed through ------------------------------------------------------------------

    async def enrol(self, request: Request) -> Response:
        """An enrolment is between its sender and the server: sealed, and none of our business."""
        body = await read_body(request, _ENROL_MAX)
        try:
            answer = await self._proxy(request, lambda: self._uplink.plain("/v1/enrol", body))
        except Unreachable:
            raise Problem("parent-away", retry_after=30) from None
        return _handed_down(answer)

    async def relay(self, request: Request) -> Response:
        """A relay below speaks to the server about its keys: signed by it."""
        body = await self._read(request, _ENROL_MAX)
        hop = await self._hop(request, body)
        if hop.role != "relay":
            raise Problem("not-enrolled", "this is for relays")
        path = request.url.path
        try:
            answer = await self._proxy(
                request, lambda: self._uplink.post(path, body, kind="text/plain")
            )
        except Unreachable:
            raise Problem("parent-away", retry_after=30) from None
        return _handed_down(answer)

    async def _proxy(self, request: Request, call: Callable[[], Answer]) -> Answer:
        """The parent's answer. A parent that hangs keeps no relay from stopping."""
        if self._proxied >= 2 * _PROXIED:
            raise Problem("busy", "too many requests are being handed through", retry_after=2)
        self._proxied += 1
        work = asyncio.ensure_future(self._in_turn(call))
        work.add_done_callback(self._handed_through)
        if not await patience(request, work, _PROXY_SECONDS):
            raise Problem("stopping", retry_after=5)
        return work.result()

    async def _in_turn(self, call: Callable[[], Answer]) -> Answer:
        async with self._turns:
            return await _behind(call)

    def _handed_through(self, work: asyncio.Future[Answer]) -> None:
        """Also where nobody waits for it any more: until then it is under way."""
        self._proxied -= 1
        if not work.cancelled():
            work.exception()  # looked at, so that asyncio has nothing to tell

    # -- who asks --------------------------------------------------------------------------

    @staticmethod
    async def _read(request: Request, limit: int) -> bytes:
        if "authorization" not in request.headers or "upseal-proof" not in request.headers:
            raise Problem("unauthenticated")  # before a byte of the body is read
        return await read_body(request, limit)

    async def _hop(self, request: Request, body: bytes) -> Hop:
        if len(body) <= _HASHED_HERE:
            digest = hashlib.sha256(body).digest()
        else:
            digest = await asyncio.to_thread(lambda: hashlib.sha256(body).digest())
        now = int(time.time() * 1000)
        path = request.url.path
        try:
            hop = self._hops.check(request.headers, request.method, path, digest, now)
        except HopRefused as refused:
            raise Problem(refused.problem) from None
        self._gate.passed(hop, path, len(body))
        return hop


async def _behind(call: Callable[[], Answer]) -> Answer:
    """In a thread that nobody waits for at the end, unlike those of an executor."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Answer] = loop.create_future()

    def settle(found: Answer | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        elif found is not None:
            answer.set_result(found)

    def work() -> None:
        found, failed = None, None
        try:
            found = call()
        except BaseException as error:
            failed = error
        with suppress(RuntimeError):  # the loop is closed: the relay has stopped
            loop.call_soon_threadsafe(settle, found, failed)

    threading.Thread(target=work, name="relay-proxy", daemon=True).start()
    return await answer


def _split(body: bytes) -> list[bytes]:
    """The bodies of a bundle, or the one there is."""
    try:
        if body_kind(body) == "bundle":
            return [bytes(part) for part in parse_bundle(body)]
    except ValueError as error:
        raise Problem("malformed", str(error)) from None
    return [body]


def _nothing_yet() -> Problem:
    return Problem("parent-away", "nothing has come from the parent yet", retry_after=5)


def _handed_down(answer: Answer) -> Response:
    """The parent's answer, with nothing of its head but what the caller needs."""
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("text/plain", "application/json", "application/jose", MEDIA_TYPE):
        kind = "application/octet-stream"
    headers = {"cache-control": "no-store"}
    if answer.retry_after is not None:
        headers["retry-after"] = str(int(answer.retry_after))
    return Response(answer.body, answer.status, headers, kind)

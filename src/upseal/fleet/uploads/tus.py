# SPDX-License-Identifier: Apache-2.0
"""tus 1.0 for relays and the server: core, creation, checksum, expiration, termination.

Written here because no Python library fits: tuspyserver and fastapi-tusd (both need FastAPI) write
to the file while the request is still being read, so before the proof of its body could be checked,
and have one maximum size in place of quotas by declared size; tuspyserver has no checksums, and
resumable-upload is for `http.server`, without expiration. What is left of tus between a shelf and
our own refusals is less than the glue would be; that it is tus is shown by clients of others.

A piece is taken whole or not at all: it is read into memory, within the application's budget, its
proof is checked, and then it is appended. Requests without credential and proof are refused before
a byte of their body is read. Two requests with the same offset cannot both be right: the second one
is told so.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from email.utils import formatdate
from typing import Final, NamedTuple, ParamSpec, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from upseal.fleet.credentials import Hop
from upseal.fleet.encoding import from_hex
from upseal.fleet.http.apps import let_go, patience, read_parts
from upseal.fleet.http.logs import event
from upseal.fleet.http.paths import UPLOADS
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.http.seldom import Seldom
from upseal.fleet.uploads.checking import Checking
from upseal.fleet.uploads.refusals import problem_of, refused
from upseal.fleet.uploads.shelf import Held, NoRoom, Shelf
from upseal.fleet.uploads.words import Ticket, covered, parse_number, path_of

__all__ = ["ALGORITHMS", "EXTENSIONS", "VERSION", "Tus"]

VERSION: Final = "1.0.0"
EXTENSIONS: Final = "creation,checksum,expiration,termination"
ALGORITHMS: Final = ("sha256", "sha1", "md5")
PIECE_TYPE: Final = "application/offset+octet-stream"
_HASHED_HERE = 256 << 10
"""Bytes that are hashed on the event loop; more would hold everybody up."""
_HELD_BACK = 25.0
"""Seconds that an answer is held back, at most; who comes while it is more is sent away."""
_EXPIRE_EVERY = 1.0
_METHODS = frozenset({"OPTIONS", "HEAD", "POST", "PATCH", "DELETE"})
_NO_STORE = {"cache-control": "no-store"}
_log = logging.getLogger("upseal.uploads")
_Parts = Sequence[bytes | bytearray]
_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Checksum(NamedTuple):
    """What ``Upload-Checksum`` says."""

    algorithm: str
    digest: bytes

    def fits(self, parts: _Parts) -> bool:
        """Whether these are the bytes. Against accidents: the proof is against everything else."""
        found = hashlib.new(self.algorithm, usedforsecurity=False)
        return hmac.compare_digest(_digest(found, parts), self.digest)


class _Rate:
    """Bytes a second over all uploads. For the event loop's thread."""

    def __init__(self, most: float) -> None:
        self._most, self._paid = most, 0.0

    def behind(self) -> float:
        """Seconds until what was taken is what the rate allows."""
        return max(0.0, self._paid - time.monotonic())

    def take(self, count: int) -> None:
        if self._most:
            self._paid = max(self._paid, time.monotonic()) + count / self._most


class Tus:
    """The routes below `UPLOADS`.

    Args:
        shelf: where bodies are kept; the owner closes it, before the pool.
        authenticate: who asks, by the proof in the request and the bytes that it covers
            (`upseal.fleet.uploads.words.proven`: less than the body, and more). Raises Problem.
            The request's method is the one that counts, also where it was overridden.
        unwelcome: what stands against a body before there is one.
        max_piece: bytes of one PATCH.
        on_whole: told of each body that is verified and durable, in a thread of the pool.
        known: whether that hop has a final result for a body, so that it is not sent again; asked
            in a thread of the pool.
        max_rate: bytes a second that are taken in all; 0: no bound. Answers are held back.
        pool: for disk and hashing; two threads at least.
    """

    def __init__(
        self,
        shelf: Shelf,
        *,
        authenticate: Callable[[Request, bytes], Awaitable[Hop]],
        unwelcome: Callable[[Ticket], Problem | None],
        max_piece: int,
        on_whole: Callable[[Held], None],
        pool: Executor,
        known: Callable[[Hop, bytes], bool] = lambda hop, body_id: False,
        max_rate: float = 0,
    ) -> None:
        self._shelf, self._pool = shelf, pool
        self._authenticate, self._unwelcome, self._known = authenticate, unwelcome, known
        self._max_piece = max_piece
        self._rate = _Rate(max_rate)
        self._expire_at = 0.0
        self._lines = Seldom(rate=10.0, reserve=60.0)
        self._checking = Checking(shelf, pool, on_whole)

    def routes(self) -> list[Route]:
        """For `upseal.fleet.http.apps.application`."""
        return [
            Route(UPLOADS, _Endpoint(self._all, self._bounds())),
            Route(UPLOADS + "/{body:path}", _Endpoint(self._one, self._bounds())),
        ]

    def resume(self) -> int:
        """Verifies what had all its bytes when the last process ended, in the pool; how many."""
        return self._checking.resume()

    def result(self, hop_id: bytes, body_id: bytes) -> Result | None:
        """What the shelf knows about that hop's body, for ``/v1/results``. Does not block.

        ``pending`` from the last byte on; the problem ``malformed``, for an hour, if it was not
        what had been declared; else None: unknown here, or bytes are missing.
        """
        return self._checking.result(hop_id, body_id)

    # -- requests ----------------------------------------------------------------------

    async def _all(self, request: Request) -> Response:
        if request.method == "OPTIONS":
            return self._options()
        if request.method != "POST":
            raise Problem("method-not-allowed")
        _check_head(request)
        return await self._create(request)

    async def _one(self, request: Request) -> Response:
        if request.method == "OPTIONS":
            return self._options()
        if request.method not in ("HEAD", "PATCH", "DELETE"):
            raise Problem("method-not-allowed")
        _check_head(request)
        try:
            body_id = from_hex(request.path_params["body"], 32)
        except ValueError:
            raise Problem("not-found") from None
        if request.method == "PATCH":
            return await self._append(request, body_id)
        hop = await self._who(request, await read_parts(request, 0))
        held = self._shelf.find(hop.hop_id, body_id)
        if request.method == "HEAD":
            return await self._where(hop, body_id, held)
        if held is None:
            raise Problem("not-found")
        await self._in_pool(self._shelf.remove, held)
        if (more := self._lines.tell()) is not None:
            event(_log, "upload ended by its sender", upload=held.ticket.upload.hex(),
                  left_out=more)  # fmt: skip
        return Response(None, 204, _NO_STORE)

    def _options(self) -> Response:
        return Response(None, 204, {
            "tus-version": VERSION,
            "tus-extension": EXTENSIONS,
            "tus-checksum-algorithm": ",".join(ALGORITHMS),
            **self._bounds(),
        })  # fmt: skip

    def _bounds(self) -> dict[str, str]:
        return {
            "tus-max-size": str(self._shelf.limits.most("relay")),
            "upseal-max-piece": str(self._max_piece),
        }

    async def _create(self, request: Request) -> Response:
        if "upload-defer-length" in request.headers or "upload-concat" in request.headers:
            raise Problem("malformed", "the length is said at creation, and a body is not joined")
        hop = await self._who(request, await read_parts(request, 0))
        try:
            headers = request.headers
            ticket = Ticket.parse(headers.get("upload-length"), headers.get("upload-metadata"))
        except ValueError as error:
            raise Problem("malformed", str(error)) from None
        where = {**_NO_STORE, "location": path_of(ticket.body_id)}
        held = self._shelf.find(hop.hop_id, ticket.body_id)
        if held is None:
            problem = self._unwelcome(ticket)
            if problem is not None:
                raise problem
            if await self._in_pool(self._known, hop, ticket.body_id):
                return Response(None, 201, where)
            self._checking.forget(hop.hop_id, ticket.body_id)
        new = held is None
        held = await self._in_pool(self._created, hop, ticket)
        if new and (more := self._lines.tell()) is not None:
            event(_log, "upload begun", upload=ticket.upload.hex(), form=ticket.form,
                  bytes=ticket.size, left_out=more)  # fmt: skip
        if not ticket.size:
            self._checking.add(held)
        return Response(None, 201, {**where, **self._expires(held)})

    def _created(self, hop: Hop, ticket: Ticket) -> Held:
        """In the pool."""
        try:
            return self._shelf.create(hop.hop_id, hop.role, ticket)
        except NoRoom:
            now = time.monotonic()
            if now < self._expire_at:  # to look through all of them is not for who asks most
                raise
            self._expire_at = now + _EXPIRE_EVERY
            if not self._shelf.expire():
                raise
            return self._shelf.create(hop.hop_id, hop.role, ticket)

    async def _where(self, hop: Hop, body_id: bytes, held: Held | None) -> Response:
        if held is not None:
            return Response(None, 200, {
                **_NO_STORE,
                "upload-offset": str(held.offset),
                "upload-length": str(held.ticket.size),
                "upload-metadata": held.ticket.metadata(),
                **self._expires(held),
            })  # fmt: skip
        if await self._in_pool(self._known, hop, body_id):
            # Its bytes are not here any more, and none are wanted.
            return Response(None, 200, {**_NO_STORE, "upload-offset": "0", "upload-length": "0"})
        raise Problem("not-found")

    async def _append(self, request: Request, body_id: bytes) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != PIECE_TYPE:
            raise Problem("media-type", f"a piece is {PIECE_TYPE}")
        try:
            offset = parse_number(request.headers.get("upload-offset"), "Upload-Offset")
            checksum = _checksum(request.headers.get("upload-checksum"))
        except ValueError as error:
            raise Problem("malformed", str(error)) from None
        behind = self._rate.behind()
        if behind > _HELD_BACK:
            raise Problem("busy", "more uploads come than are taken", retry_after=behind)
        parts = await read_parts(request, self._max_piece)
        count = sum(map(len, parts))
        hop = await self._who(request, parts)
        held = self._shelf.find(hop.hop_id, body_id)
        if held is None:
            if await self._in_pool(self._known, hop, body_id):
                raise Problem("offset", "all of it has come")
            raise Problem("not-found")
        if checksum is not None and not await self._in_pool(checksum.fits, parts):
            raise Problem("checksum")
        now = await self._in_pool(self._shelf.append, held, offset, parts)
        if now == held.ticket.size and count:
            self._checking.add(held)
        self._rate.take(count)
        parts.clear()
        let_go(request)
        await self._hold_back(request)
        where = {**_NO_STORE, "upload-offset": str(now), **self._expires(held)}
        return Response(None, 204, where)

    # -- how ---------------------------------------------------------------------------

    async def _who(self, request: Request, parts: _Parts) -> Hop:
        if sum(map(len, parts)) <= _HASHED_HERE:
            digest = _digest(hashlib.sha256(), parts)
        else:
            digest = await self._in_pool(_digest, hashlib.sha256(), parts)
        return await self._authenticate(request, covered(request.headers, digest))

    async def _hold_back(self, request: Request) -> None:
        pause = min(self._rate.behind(), _HELD_BACK)
        if pause > 0:
            never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            await patience(request, never, pause)

    async def _in_pool(self, work: Callable[_P, _T], *args: _P.args, **named: _P.kwargs) -> _T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, lambda: work(*args, **named))
        except Problem:
            raise
        except Exception as error:
            problem = problem_of(error, self._shelf.closed)
            if problem is None:
                raise
            raise problem from error

    def _expires(self, held: Held) -> dict[str, str]:
        if held.state != "open":
            return {}
        until = held.touched + self._shelf.limits.expires
        return {"upload-expires": formatdate(min(until, 2.0**33), usegmt=True)}


class _Endpoint:
    """An ASGI application, so that it hears every method, and answers all of them as tus says."""

    def __init__(
        self, answer: Callable[[Request], Awaitable[Response]], bounds: dict[str, str]
    ) -> None:
        self._answer, self._bounds = answer, bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._answer(_overridden(request))
        except Problem as problem:
            response = refused(problem)
            if problem.name == "too-large":
                response.headers.update(self._bounds)
        response.headers["tus-resumable"] = VERSION
        await response(scope, receive, send)


def _overridden(request: Request) -> Request:
    """As if it had come with the method that ``X-HTTP-Method-Override`` names.

    A copy: the server goes on by the real method when it sends the answer.
    """
    method = request.headers.get("x-http-method-override", "").strip().upper()
    if request.method != "POST" or method not in _METHODS:
        return request
    return Request({**request.scope, "method": method}, request.receive)


def _check_head(request: Request) -> None:
    """What can be said before a byte of the body is read."""
    if request.headers.get("tus-resumable") != VERSION:
        raise Problem("tus-version", f"this is tus {VERSION}")
    if "authorization" not in request.headers or "upseal-proof" not in request.headers:
        raise Problem("unauthenticated")
    try:
        covered(request.headers, b"")
    except ValueError as error:
        raise Problem("malformed", str(error)) from None


def _digest(begun: hashlib._Hash, parts: _Parts) -> bytes:
    """Of all of them, in their order."""
    for part in parts:
        begun.update(part)
    return begun.digest()


def _checksum(text: str | None) -> _Checksum | None:
    if text is None:
        return None
    name, _, value = text.strip().partition(" ")
    if name not in ALGORITHMS:
        raise ValueError(f"a checksum is one of {', '.join(ALGORITHMS)}")
    try:
        digest = base64.b64decode(value.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a checksum is in base64") from None
    return _Checksum(name, digest)

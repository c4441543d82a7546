# SPDX-License-Identifier: Apache-2.0
"""ASGI: middleware that opens sealed request bodies (docs/integrations/http.md).

app.add_middleware(OpeningMiddleware, opener=opener)      # Starlette, FastAPI
app = OpeningMiddleware(app, opener)                      # anything else
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from typing import Any, TypeAlias

from upseal.core.opener import Opener
from upseal.errors import OpenError, Truncated
from upseal.integrations.http.bodies import Bound, Context, Problem
from upseal.integrations.http.opening import (
    CLEAR,
    DRAIN,
    ENVELOPE_MAX,
    UPLOAD_MAX,
    Incoming,
    Received,
    Rules,
    answer,
    refusal,
)

__all__ = ["OpeningMiddleware", "Received"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

INLINE_MAX = 1 << 16
_GONE = frozenset({b"content-encoding", b"content-length"})


class OpeningMiddleware:
    """Opens sealed bodies before the application sees them; refuses clear ones.

    The application finds a `Received` in ``scope["upseal"]``, and in ``scope["state"]["upseal"]``
    (Starlette's ``request.state.upseal``). Web sockets, and answers, pass as they are.

    Args:
        app: the application, which needs to know nothing.
        opener: has the private keys.
        clear: as `Rules` has it.
        context: as `Rules` has it.
        envelope_max: as `Rules` has it.
        upload_max: as `Rules` has it.
        inline_max: pieces up to so many bytes are opened in the event loop's thread, longer ones
            in another. 0 for keys whose unwrapping blocks: a token's, another process's.

    Raises:
        TypeError: as `Rules` has it.
        ValueError: as `Rules` has it.
    """

    def __init__(
        self,
        app: App,
        opener: Opener,
        *,
        clear: Iterable[str] = (),
        context: Context | None = None,
        envelope_max: int = ENVELOPE_MAX,
        upload_max: int | None = UPLOAD_MAX,
        inline_max: int = INLINE_MAX,
    ) -> None:
        self.app = app
        self._rules = Rules(
            opener,
            clear=clear,
            context=context,
            envelope_max=envelope_max,
            upload_max=upload_max,
        )
        self._inline = inline_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = {**scope, "headers": list(scope["headers"])}
        try:
            body = await self._admit(scope, receive)
        except _Refused as refused:
            await _drain(receive, refused.drain)
            await _answer(send, refused.problem)
            return
        if isinstance(body, _Body):
            await body.serve(self.app, send)
        else:
            await self.app(_marked(scope, CLEAR), body, send)

    async def _admit(self, scope: Scope, receive: Receive) -> _Body | Receive:
        """The body, to be opened; or what gives a clear one.

        Raises:
            _Refused: it is not let in.
        """
        heads = _Heads(scope)
        try:
            # Where both stand, the coding counts: RFC 9112, section 6.3.
            has_body = heads.has("transfer-encoding") or (
                heads.has("content-length") and heads.length != 0
            )
            sealed, inside = self._rules.admit(
                scope["method"], heads.path, heads.values("content-encoding"), has_body
            )
            if not sealed:
                framed = scope.get("http_version", "1.1").startswith("1") or has_body
                if not framed and not self._rules.may_be_clear(heads.path):
                    receive = await _bodiless(receive)
                return receive
            incoming = Incoming(self._rules, heads.bound(inside), heads.length)
        except Problem as problem:
            raise _Refused(problem, DRAIN) from None
        body = _Body(incoming, receive, self._inline, self._rules.upload_max)
        received = await body.begin()
        try:
            length = body.length
        except Problem as problem:
            raise _Refused(problem, self._rules.upload_max) from None
        body.scope = _marked(heads.opened(inside, length), received)
        return body


class _Refused(Exception):  # noqa: N818
    """The application is not called."""

    def __init__(self, problem: Problem, drain: int | None) -> None:
        super().__init__(problem.name)
        self.problem, self.drain = problem, drain


class _Heads:
    """The head of a request."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.path: bytes = scope["path"].encode("utf-8", "surrogateescape") or b"/"
        text = "".join(self.values("content-length")[:1])
        short = text.isascii() and len(text) < 19  # int() refuses very long ones
        self.length = int(text) if short and text.isdecimal() else None

    def values(self, name: str) -> list[str]:
        """Of each header of that name."""
        wanted = name.lower().encode("latin-1")
        return [v.decode("latin-1") for k, v in self._scope["headers"] if k.lower() == wanted]

    def has(self, *names: str) -> bool:
        """Whether there is one of these."""
        return any(self.values(name) for name in names)

    def bound(self, inside: str) -> Bound:
        """What the body is bound to.

        Raises:
            Problem: it has more than one ``Content-Type``.
        """
        kinds = self.values("content-type")
        if len(kinds) > 1:
            raise Problem("malformed", "a sealed request has one Content-Type")
        return Bound(
            self._scope["method"],
            self.path,
            self._scope.get("query_string") or b"",
            "".join(kinds).strip().encode("latin-1"),
            inside.encode("latin-1"),
            lambda name: ", ".join(self.values(name)) if self.has(name) else None,
        )

    def opened(self, inside: str, length: int | None) -> Scope:
        """The scope of the body inside."""
        gone = _GONE if length is None else _GONE | {b"transfer-encoding"}
        headers = [(k, v) for k, v in self._scope["headers"] if k.lower() not in gone]
        if inside:
            headers.append((b"content-encoding", inside.encode("latin-1")))
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        return {**self._scope, "headers": headers}


class _Body:
    """The body of one request, opened while the application asks for it."""

    def __init__(self, incoming: Incoming, receive: Receive, inline: int, most: int | None) -> None:
        self._incoming, self._receive, self._inline = incoming, receive, inline
        self._most = most
        self.scope: Scope = {}
        self._problem: Problem | None = None
        self._ready: bytes | None = None
        self._last = self._done = self._answering = False

    async def begin(self) -> Received:
        """Reads until it is known what it is; an envelope, to its end, and opens it.

        Raises:
            _Refused: it is not let in.
        """
        incoming = self._incoming
        try:
            while (received := incoming.received) is None or (
                received.kind == "envelope" and not self._last
            ):
                data, self._last = await self._next()
                incoming.take(data, self._last)
            if received.kind == "envelope":
                self._ready = await self._work(incoming.size, incoming.report)
        except Problem as problem:
            stop = problem.name == "too-large" or self._last
            raise _Refused(problem, 0 if stop else self._most) from None
        return received

    @property
    def length(self) -> int | None:
        """Bytes of the body inside, if that is known.

        Raises:
            Problem: no upload has that sealed length.
        """
        return self._incoming.plain_length if self._ready is None else len(self._ready)

    async def serve(self, app: App, send: Send) -> None:
        """Calls the application. If its body turns out bad, that is the answer, if it can be."""

        async def guarded(message: Message) -> None:
            if self._problem is None or self._answering:
                self._answering = True
                await send(message)

        try:
            await app(self.scope, self.receive, guarded)
        except Exception:
            if self._problem is None or self._answering:
                raise
        finally:
            self._incoming.close()
        if self._problem is not None and not self._answering:
            await _drain(self._receive, 0 if self._last else DRAIN)
            await _answer(send, self._problem)

    async def receive(self) -> Message:
        """What the application calls.

        Raises:
            OpenError: the body is damaged, cut off or too long. It never looks like its end.
        """
        if self._problem is not None:
            raise OpenError
        if self._done:
            return await self._receive()
        if self._ready is not None:
            body, self._ready, self._done = self._ready, None, True
            return {"type": "http.request", "body": body, "more_body": False}
        incoming = self._incoming
        try:
            plain = await self._work(incoming.size, partial(incoming.open, b"", self._last))
            while not plain and not self._last:
                data, self._last = await self._next()
                plain = await self._work(len(data), partial(incoming.open, data, self._last))
        except Problem as problem:
            self._problem = problem
            raise OpenError from None
        self._done = self._last
        return {"type": "http.request", "body": plain, "more_body": not self._done}

    async def _next(self) -> tuple[bytes, bool]:
        """The next bytes, and whether they are the last.

        Raises:
            Problem: whoever sent it has gone.
        """
        message = await self._receive()
        if message["type"] != "http.request":
            raise refusal(Truncated())
        return message.get("body", b""), not message.get("more_body", False)

    async def _work(self, size: int, job: Callable[[], bytes]) -> bytes:
        """In this thread if it is soon done."""
        return await asyncio.to_thread(job) if size > self._inline else job()


async def _bodiless(receive: Receive) -> Receive:
    """Of a request whose head announces no body, as in HTTP/2 it may have one all the same.

    Raises:
        Problem: it has.
    """
    first = await receive()
    if first["type"] == "http.request" and (first.get("body") or first.get("more_body")):
        raise Problem("clear-not-accepted", "the body must be sealed: Content-Encoding: upseal")
    waiting = [first]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _marked(scope: Scope, received: Received) -> Scope:
    state = {**(scope.get("state") or {}), "upseal": received}
    return {**scope, "upseal": received, "state": state}


async def _drain(receive: Receive, most: int | None) -> None:
    """Reads what is left of a refused body: a sender that is cut off would not hear the answer."""
    seen = 0
    while most is None or seen < most:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        seen += len(message.get("body", b""))


async def _answer(send: Send, problem: Problem) -> None:
    status, headers, body = answer(problem)
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})

# SPDX-License-Identifier: Apache-2.0
"""What one connection can cost: uvicorn's protocol, with the bounds that it leaves to a proxy.

Bounded here: connections, the length of a head and the time it takes, what is sent after an answer
that came early, chunk extensions and trailers, and answers that nobody reads. Pipelining is refused
politely: the connection ends after the answer, as HTTP/1.1 allows, and nothing is buffered behind
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from upseal.fleet.http.crowd import Crowd, Inside, Place, host_of
from upseal.fleet.http.problems import Problem

_CROWDED_SECONDS, _CROWDED_BYTES = 2.0, 1 << 20


@dataclass(frozen=True)
class Limits:
    """Of one server. Seconds and bytes."""

    connections: int = 1000
    """Beyond it a request is answered 503; beyond twice as many a connection is just closed. By TLS
    it is closed at once, before a handshake."""
    address_share: float = 1.0
    """Of those, for one address; beyond it likewise, with 429."""
    exceptions: tuple[str, ...] = ()
    """Addresses and networks that may have all of them."""
    head_seconds: float = 10.0
    head_bytes: int = 64 * 1024
    keep_alive: int = 75
    """Longer than clients are silent, so that it is they who close."""
    linger_seconds: float = 5.0
    linger_bytes: int = 4 << 20
    """What is read and thrown away after an answer that came before the body was read."""
    unread_bytes: int = 256 << 20
    """Of answers that wait to be read, in all; the share of one address holds for them too. Who
    goes beyond it is cut off, and so is who takes longer than ``keep_alive`` to read one."""
    grace: int = 20
    """What running requests get when the process stops."""


class Protocol(HttpToolsProtocol, Inside):
    """One connection. ``entered``: it has a place in the crowd already."""

    def __init__(
        self, limits: Limits, crowd: Crowd, *, entered: bool = False, **given: Any
    ) -> None:
        super().__init__(**given)
        self._limits = limits
        self._crowd, self._entered = crowd, entered
        self._place: Place | None = None
        self._host = ""
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._message_done = True
        self._deaf = False
        self._fruitless = 0
        self._thrown_away = 0
        self._unread = 0
        self._reading: asyncio.TimerHandle | None = None

    # -- from the transport ----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Counts it in, or turns it away."""
        super().connection_made(cast(asyncio.Transport, transport))  # uvloop's is none by name
        self._host, self.connected = host_of(transport), True
        place = Place.WELCOME if self._entered else self._crowd.enter(self._host)
        self._place = place
        if place is Place.AWAY:
            self._deaf = True
            self.transport.abort()
        elif place is not Place.WELCOME:
            self.app = _CROWDED if place is Place.CROWDED else _BUSY
        self._arm(self._limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leaves no timer behind."""
        self._disarm()
        self._has_read()
        if self._place is not None:
            self._crowd.leave(self._host, self._place)
            self._place = None
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Parses, and ends what only costs."""
        if self._deaf:
            return
        self._fruitless += len(data)
        super().data_received(data)
        # Nearly always all of a head comes at once, and there is nothing to do here.
        if self._fruitless > self._limits.head_bytes:
            if not self._deaf and not self.transport.is_closing():
                self._end(Problem("malformed", "the head of the request is too long", status=431))
        elif self._in_head:
            if self._timer is None:
                self._arm(self._limits.head_seconds)
        elif self._timer is None and self.timeout_keep_alive_task is None and self._idle():
            # What came was the rest of an unwanted body, or blank lines.
            self._arm(self.timeout_keep_alive)

    def pause_writing(self) -> None:
        """More waits for the other side than the system takes."""
        super().pause_writing()
        self._has_read()
        size = self.transport.get_write_buffer_size()
        seconds: float = 0  # and not at once: the transport is in the middle of a write
        if self._crowd.owe(self._host, size):
            self._unread, seconds = size, self.timeout_keep_alive
        self._reading = self.loop.call_later(seconds, self._unread_too_long)

    def resume_writing(self) -> None:
        """It has been read, but for a little."""
        self._has_read()
        super().resume_writing()

    def _has_read(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
            self._crowd.paid(self._host, self._unread)
            self._unread = 0

    def _unread_too_long(self) -> None:
        self._deaf = True
        self.transport.abort()

    # -- from the parser -------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._deaf:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._go_deaf()
            return
        self._disarm()
        self._in_head, self._message_done = True, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Starts the application."""
        if self._deaf:
            return
        self._disarm()
        self._in_head, self._fruitless, self._thrown_away = False, 0, 0
        super().on_headers_complete()
        # The request has its own; what trails a chunked body is thrown away.
        self.headers = []

    def on_body(self, body: bytes) -> None:
        """For the application, or, after its answer, for nobody."""
        if self._deaf:
            return
        self._fruitless = 0
        if self.cycle.response_complete:
            self._thrown_away += len(body)
            if self._thrown_away > self._limits.linger_bytes:
                self._go_deaf()
                self.transport.close()
            return
        if self.cycle.body or len(body) <= HIGH_WATER_LIMIT:
            super().on_body(body)
            return
        # Handed on as it came, where uvicorn would copy it twice: long bodies are mostly that.
        self.cycle.body = cast(Any, body)
        self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The request is in."""
        if self._deaf:
            return
        self._message_done, self._fruitless = True, 0
        if self.cycle.response_complete:
            self._disarm()
        super().on_message_complete()

    # -- from the application --------------------------------------------------------

    def on_response_complete(self) -> None:
        """The answer is out. A body still under way is read on for a while.

        To close at once would reset the connection, and often lose the answer on its way.
        """
        super().on_response_complete()
        if not self._message_done and not self.transport.is_closing():
            self._arm(self._limits.linger_seconds)

    # -- ends ------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP; but not what follows a request that is being answered."""
        if not self._deaf:
            self._end(Problem("malformed", "this is not HTTP/1.1"))

    def timeout_keep_alive_handler(self) -> None:
        """Idle for too long; who does not read the last answer does not get time to."""
        if self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def shutdown(self) -> None:
        """The process stops: after this answer, no more."""
        self._disarm()
        super().shutdown()

    def _unsupported_upgrade_warning(self) -> None:
        # What follows would be another protocol: answered as an ordinary request, and no more.
        self._go_deaf()

    def _idle(self) -> bool:
        """Between requests."""
        if not self._message_done or not (self.cycle is None or self.cycle.response_complete):
            return False
        return not self._deaf and not self.transport.is_closing()

    def _go_deaf(self) -> None:
        """Hears nothing more; ends after the answer that is being made."""
        self._deaf = True
        self._disarm()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def _end(self, problem: Problem) -> None:
        """Answers out of turn, unless an answer has begun, and closes."""
        self._deaf = True
        self._disarm()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = problem.encode()
            lines = [*self.server_state.default_headers]
            lines += [(k.encode(), v.encode()) for k, v in problem.headers().items()]
            lines += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
            head = b"".join(b"%b: %b\r\n" % line for line in lines)
            self.transport.write(STATUS_LINE[problem.status] + head + b"\r\n" + body)
        self.transport.close()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._too_late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._in_head:
            self._end(Problem("slow", "the head of the request did not come in time"))
        else:
            self.timeout_keep_alive_handler()


def _turned_away(name: str, why: str) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The application of a connection too many."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Read first, within bounds: to close on bytes under way would lose the answer.
        size, more = 0, True
        try:
            async with asyncio.timeout(_CROWDED_SECONDS):
                while more and size < _CROWDED_BYTES:
                    message = await receive()
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            pass
        response = Problem(name, why, retry_after=5).to_response()
        response.headers["connection"] = "close"
        await response(scope, receive, send)

    return app


_CROWDED = _turned_away("full", "too many connections")
_BUSY = _turned_away("busy", "too many connections from this address")

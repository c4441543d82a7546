# SPDX-License-Identifier: Apache-2.0
"""Brings a body to the parent by tus, as an agent does, and each relay.

What is sent are bytes that lie ready and do not change: after a cut, a restart or an expiry they
are sent on from where the parent is, or again. The parent's answers say where that is, and how long
to stay away; that it has all bytes ends nothing: for that there are results, with receipts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from upseal.fleet.http.client import Response, Unreachable
from upseal.fleet.http.logs import event
from upseal.fleet.http.paths import UPLOADS
from upseal.fleet.http.problems import Problem
from upseal.fleet.uploads.words import Ticket, parse_number, path_of

__all__ = ["LEAST_PIECE", "Carrier", "Link", "Source", "Throttle"]

LEAST_PIECE: Final = 64 << 10
PIECE: Final = 4 << 20
_ROUNDS = 5
"""Answers in a row that bring nothing forward, before it is given up for now."""
_PAUSE = 0.2
_TUS: Mapping[str, str] = {"tus-resumable": "1.0.0"}
_log = logging.getLogger("upseal.uploads")


class Source(Protocol):
    """The bytes of a body."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; OSError if there are none."""


class Link(Protocol):
    """Authenticated requests to one parent (its clock is the link's business)."""

    def request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Response:
        """One answer, of whatever status; Unreachable if there is no whole answer."""


class Throttle:
    """A rate, shared by all who send. Safe for threads.

    Args:
        bytes_per_second: 0: no bound.
    """

    def __init__(self, bytes_per_second: float) -> None:
        if not 0 <= bytes_per_second < float("inf"):
            raise ValueError("a rate is a number of bytes a second, 0 or more")
        self.rate = bytes_per_second
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self, count: int, stop: threading.Event) -> bool:
        """Waits until ``count`` bytes may go; False: stopped."""
        if not self.rate:
            return not stop.is_set()
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._next)
            self._next = begin + count / self.rate
        return not stop.wait(begin - now)

    def piece(self, most: int) -> int:
        """Bytes to send at once, so that it is smooth: what a second brings."""
        return most if not self.rate else max(min(LEAST_PIECE, most), min(most, int(self.rate)))


class Carrier:
    """Safe for threads: each body has its own state.

    Args:
        link: to the parent.
        piece: bytes of one request, at most.
        throttle: shared with other carriers.
        on_progress: told body id, bytes that the parent has, and bytes of the body.
    """

    def __init__(
        self,
        link: Link,
        *,
        piece: int = PIECE,
        throttle: Throttle | None = None,
        on_progress: Callable[[bytes, int, int], None] = lambda body_id, offset, size: None,
    ) -> None:
        if piece < 1:
            raise ValueError("a piece has at least a byte")
        self._link, self._on_progress = link, on_progress
        self._throttle = throttle or Throttle(0)
        self._piece = self._throttle.piece(piece)

    def carry(self, ticket: Ticket, source: Source, stop: threading.Event) -> bool:
        """Creates the body at the parent, or resumes it, and sends until the parent has all bytes.

        Returns:
            True: it has all; False: stopped.

        Raises:
            Unreachable: no answers, or none that bring it forward.
            Problem: a refusal; temporary ones may have ``retry_after``.
            OSError: the source cannot be read.
        """
        return _Way(self._link, ticket, source, self._piece, self._throttle, self._on_progress).go(
            stop
        )


class _Way:
    """One body under way."""

    def __init__(
        self,
        link: Link,
        ticket: Ticket,
        source: Source,
        piece: int,
        throttle: Throttle,
        on_progress: Callable[[bytes, int, int], None],
    ) -> None:
        self._link, self._ticket, self._source = link, ticket, source
        self._throttle, self._on_progress = throttle, on_progress
        self._path = path_of(ticket.body_id)
        self._most = self._piece = piece
        self._known: int | None = None
        """What the parent has, as far as it has said so."""
        self._best = -1
        self._fruitless = 0

    def go(self, stop: threading.Event) -> bool:
        while not stop.is_set():
            try:
                if self._known is None:
                    self._known = self._ask()
                    self._note(self._known)
                if self._known == self._ticket.size:
                    return True
                count = min(self._piece, self._ticket.size - self._known)
                if not self._throttle.wait(count, stop):
                    return False
                self._send(self._known, count)
            except Unreachable as error:
                self._smaller()  # each is taken whole or not at all: a bad line needs short ones
                self._again(error, stop)
            except Problem as problem:
                if problem.status not in (404, 408, 409, 423, 460) or problem.name == "conflict":
                    raise
                if problem.name == "slow":
                    self._smaller()
                self._again(problem, stop)
        return False

    def _again(self, error: Unreachable | Problem, stop: threading.Event) -> None:
        """Looks where the parent is, after a pause; gives up if that happens too often."""
        self._known = None
        self._fruitless += 1
        if self._fruitless > _ROUNDS:
            if isinstance(error, Unreachable) or error.temporary:
                raise error
            raise Unreachable(f"the parent's answers lead nowhere ({error.name})") from error
        stop.wait(_PAUSE * 2 ** (self._fruitless - 1))

    def _ask(self) -> int:
        """Where the parent is; creates the body there if it does not know it."""
        response = self._link.request("HEAD", self._path, b"", _TUS)
        if response.status == 404:
            self._create()
            return 0  # or it is there all the same: then the first piece is told so
        _raise(response)
        offset = _number(response, "upload-offset")
        length = _number(response, "upload-length")
        if offset == length:
            return self._ticket.size  # all it wants, or all that it ever wanted
        if offset > length or length != self._ticket.size:
            raise Problem("conflict", "the parent has a body of another size under this id")
        return offset

    def _create(self) -> None:
        ticket = self._ticket
        said = {"upload-length": str(ticket.size), "upload-metadata": ticket.metadata()}
        response = self._link.request("POST", UPLOADS, b"", {**_TUS, **said})
        _raise(response)
        event(_log, "upload begun at the parent", level=logging.DEBUG,
              upload=ticket.upload.hex(), bytes=ticket.size)  # fmt: skip

    def _send(self, offset: int, count: int) -> None:
        body = self._source.read(offset, count)
        if len(body) != count:
            raise OSError("the body has fewer bytes than it should have")
        said = {"upload-offset": str(offset), "content-type": "application/offset+octet-stream"}
        response = self._link.request("PATCH", self._path, body, {**_TUS, **said})
        if response.status == 413 and count > LEAST_PIECE:
            self._most = self._piece = self._shorter(response, count)
            return
        problem = response.problem()
        if problem is not None and problem.name == "clock" and count > LEAST_PIECE:
            # The line is so slow that the proof was too old when the last byte had come.
            self._most = self._piece = max(LEAST_PIECE, count // 2)
            return
        _raise(response)
        now = _number(response, "upload-offset")
        if now != offset + count:
            raise Unreachable("the parent's answer to a piece is none")
        self._known = now
        self._piece = min(self._most, self._piece * 2)
        self._note(now)

    def _shorter(self, response: Response, count: int) -> int:
        """After too-large: what the parent says it takes, or half."""
        try:
            most = parse_number(response.headers.get("upseal-max-piece"), "Upseal-Max-Piece")
        except ValueError:
            most = 0
        return most if LEAST_PIECE <= most < count else max(LEAST_PIECE, count // 2)

    def _smaller(self) -> None:
        self._piece = min(self._piece, max(LEAST_PIECE, self._piece // 2))

    def _note(self, offset: int) -> None:
        if offset > self._best:
            self._best, self._fruitless = offset, 0
        self._on_progress(self._ticket.body_id, offset, self._ticket.size)


def _raise(response: Response) -> None:
    problem = response.problem()
    if problem is not None:
        raise problem
    if response.status not in (200, 201, 204):
        raise Unreachable(f"an answer of status {response.status} is none")


def _number(response: Response, name: str) -> int:
    try:
        return parse_number(response.headers.get(name), name)
    except ValueError as error:
        raise Unreachable(f"the parent's answer makes no sense: {error}") from None

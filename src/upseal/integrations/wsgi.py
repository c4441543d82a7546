# SPDX-License-Identifier: Apache-2.0
"""WSGI: middleware that opens sealed request bodies (docs/integrations/http.md).

app.wsgi_app = OpeningMiddleware(app.wsgi_app, opener)    # Flask
application = OpeningMiddleware(application, opener)      # anything else
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any, TypeAlias

from upseal.core.opener import Opener
from upseal.errors import OpenError
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
)

__all__ = ["OpeningMiddleware", "Received"]

Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Callable[[bytes], object]]
App: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]

_PIECE = 1 << 18


class OpeningMiddleware:
    """Opens sealed bodies before the application sees them; refuses clear ones.

    The application finds a `Received` in ``environ["upseal"]``, and its parts in
    ``environ["upseal.sealed"]``, ``["upseal.kind"]`` and ``["upseal.key_id"]`` (hex, or None).
    Answers pass as they are.

    Args:
        app: the application, which needs to know nothing.
        opener: has the private keys.
        clear: as `Rules` has it.
        context: as `Rules` has it.
        envelope_max: as `Rules` has it.
        upload_max: as `Rules` has it.

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
    ) -> None:
        self.app = app
        self._rules = Rules(
            opener,
            clear=clear,
            context=context,
            envelope_max=envelope_max,
            upload_max=upload_max,
        )

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """One request."""
        source = _Source(environ)
        stop: int | None = DRAIN
        try:
            path = _path(environ)
            values = [environ.get("HTTP_CONTENT_ENCODING", "")]
            sealed, inside = self._rules.admit(
                environ["REQUEST_METHOD"], path, values, source.announced
            )
            body = None
            if sealed:
                incoming = Incoming(self._rules, _bound(environ, path, inside), source.length)
                stop = self._rules.upload_max
                environ, body = _opened(environ, source, incoming, inside)
        except Problem as problem:
            source.drain(0 if problem.name == "too-large" else stop)
            return _answer(start_response, problem)
        if body is not None:
            return _guarded(self.app, environ, start_response, body)
        if not sealed:
            environ = _marked(environ, CLEAR)
            if not source.announced and not self._rules.may_be_clear(path):
                environ["wsgi.input"] = io.BytesIO()  # none announced, so there is none
        return self.app(environ, start_response)


class _Source:
    """The body as the server gives it."""

    def __init__(self, environ: Environ) -> None:
        self._input = environ["wsgi.input"]
        text = (environ.get("CONTENT_LENGTH") or "").strip()
        short = text.isascii() and len(text) < 19  # int() refuses very long ones
        self.length = int(text) if short and text.isdecimal() else None
        chunked = "HTTP_TRANSFER_ENCODING" in environ
        self.announced = bool(self.length) or (self.length is None and chunked)
        terminated = bool(environ.get("wsgi.input_terminated"))
        self._left = self.length if self.length is not None or terminated else 0
        self.ended = False

    def next(self) -> tuple[bytes, bool]:
        """The next bytes, and whether they are the last."""
        most = _PIECE if self._left is None else min(_PIECE, self._left)
        data: bytes = self._input.read(most) if most else b""
        if self._left is not None:
            self._left -= len(data)
        self.ended = not data or self._left == 0
        return data, self.ended

    def drain(self, most: int | None) -> None:
        """Reads what is left: a sender that is cut off would not hear the answer."""
        seen = 0
        while not self.ended and (most is None or seen < most):
            seen += len(self.next()[0])


class _Body(io.RawIOBase):
    """An upload, opened while the application reads."""

    def __init__(self, incoming: Incoming, source: _Source) -> None:
        super().__init__()
        self._incoming, self.source = incoming, source
        self._plain = memoryview(b"")
        self._begun = self._done = False
        self.problem: Problem | None = None

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, target: Any, /) -> int:
        """Verified bytes; 0 only at the verified end.

        Raises:
            OpenError: the body is damaged, cut off or too long, now or earlier.
        """
        if self.problem is not None:
            raise OpenError
        try:
            while not self._plain and not self._done:
                data, last = self.source.next() if self._begun else (b"", self.source.ended)
                self._begun = True
                self._plain = memoryview(self._incoming.open(data, last))
                self._done = last
        except Problem as problem:
            self.problem = problem
            raise OpenError from None
        taken = min(len(target), len(self._plain))
        memoryview(target)[:taken] = self._plain[:taken]
        self._plain = self._plain[taken:]
        return taken

    def close(self) -> None:
        """Forgets what is held."""
        if not self.closed:
            self._incoming.close()
            self._plain = memoryview(b"")
        super().close()


def _guarded(
    app: App, environ: Environ, start_response: StartResponse, body: _Body
) -> Iterator[bytes]:
    """The application's answer; if its body turns out bad, that is the answer, if it can be."""
    guard = _Guard(start_response, body)
    result: Iterable[bytes] = ()
    try:
        result = app(environ, guard.start)
        for part in result:
            if guard.refused:
                break
            yield part
    except Exception:
        if not guard.refused:
            raise
    finally:
        if hasattr(result, "close"):
            result.close()
        body.close()
    if guard.refused:
        assert body.problem is not None
        body.source.drain(DRAIN)
        yield from _answer(start_response, body.problem)


class _Guard:
    """Lets an application answer, unless its request has turned out bad before."""

    def __init__(self, start_response: StartResponse, body: _Body) -> None:
        self._start, self._body = start_response, body
        self._answering = False

    @property
    def refused(self) -> bool:
        """Whether the answer is ours."""
        return self._body.problem is not None and not self._answering

    def start(self, *args: Any) -> Callable[[bytes], object]:
        """What the application calls."""
        if self.refused:
            return lambda _: None
        self._answering = True
        return self._start(*args)


def _path(environ: Environ) -> bytes:
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return path.encode("latin-1") or b"/"


def _bound(environ: Environ, path: bytes, inside: str) -> Bound:
    def header(name: str) -> str | None:
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        value: str | None = environ.get(key)
        return value

    return Bound(
        environ["REQUEST_METHOD"],
        path,
        environ.get("QUERY_STRING", "").encode("latin-1"),
        environ.get("CONTENT_TYPE", "").strip().encode("latin-1"),
        inside.encode("latin-1"),
        header,
    )


def _opened(
    environ: Environ, source: _Source, incoming: Incoming, inside: str
) -> tuple[Environ, _Body | None]:
    """The environment of the body inside; and that, if it is opened while it is read.

    Raises:
        Problem: it is not let in.
    """
    while (received := incoming.received) is None or (
        received.kind == "envelope" and not source.ended
    ):
        incoming.take(*source.next())
    environ = _marked(environ, received)
    for gone in ("HTTP_CONTENT_ENCODING", "HTTP_CONTENT_LENGTH", "CONTENT_LENGTH"):
        environ.pop(gone, None)
    if inside:
        environ["HTTP_CONTENT_ENCODING"] = inside
    environ["wsgi.input_terminated"] = True
    body = None
    if received.kind == "envelope":
        report = incoming.report()
        length: int | None = len(report)
        environ["wsgi.input"] = io.BytesIO(report)
    else:
        length = incoming.plain_length
        body = _Body(incoming, source)
        environ["wsgi.input"] = io.BufferedReader(body, _PIECE)
    if length is not None:
        environ["CONTENT_LENGTH"] = str(length)
        environ.pop("HTTP_TRANSFER_ENCODING", None)
    return environ, body


def _marked(environ: Environ, received: Received) -> Environ:
    return {
        **environ,
        "upseal": received,
        "upseal.sealed": received.sealed,
        "upseal.kind": received.kind,
        "upseal.key_id": None if received.key_id is None else received.key_id.hex(),
    }


def _answer(start_response: StartResponse, problem: Problem) -> list[bytes]:
    status, headers, body = answer(problem)
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Refused"
    start_response(f"{status} {phrase}", headers)
    return [body]

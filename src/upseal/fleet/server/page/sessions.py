# SPDX-License-Identifier: Apache-2.0
"""Who is logged in: in memory, by hashes of tokens. A restart of the server ends all sessions."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

TOKEN = 32
"""Bytes."""
_MOST = 1024
VALUE_MAX = 64
"""Characters of a cookie's value that are looked at."""


@dataclass(frozen=True, slots=True)
class Session:
    """One login."""

    name: str
    created: int
    """Of the login's row: another one of that name is somebody else."""
    ends: float


class Sessions:
    """Safe to share between threads."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``seconds`` from a login until it has to be done again."""
        self.seconds = seconds
        self._clock = clock
        self._found: OrderedDict[bytes, Session] = OrderedDict()  # the oldest first
        self._key = secrets.token_bytes(TOKEN)
        self._lock = threading.Lock()

    def begin(self, name: str, created: int) -> str:
        """A new session's token, which is kept nowhere but in the browser."""
        token = new_value()
        with self._lock:
            self._found[_hash(token)] = Session(name, created, self._clock() + self.seconds)
            while len(self._found) > _MOST:
                self._found.popitem(last=False)
        return token

    def find(self, token: str | None) -> Session | None:
        """Whose token it is, while the time lasts."""
        if not token or len(token) > VALUE_MAX:
            return None
        digest = _hash(token)
        with self._lock:
            session = self._found.get(digest)
            if session is not None and session.ends <= self._clock():
                del self._found[digest]
                session = None
        return session

    def end(self, token: str | None) -> None:
        """Logs out."""
        if token:
            with self._lock:
                self._found.pop(_hash(token), None)

    def form_token(self, cookie: str) -> str:
        """What a form must carry to be one that we gave to the holder of this cookie."""
        return hmac.new(self._key, cookie.encode(), hashlib.sha256).hexdigest()

    def is_ours(self, cookie: str | None, given: str) -> bool:
        """Whether a form is."""
        if not cookie or len(cookie) > VALUE_MAX:
            return False
        return hmac.compare_digest(self.form_token(cookie).encode(), given.encode())


class Cookie:
    """A cookie of one name: for this host alone, for no script, and from no other site."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self, request: Request) -> str | None:
        """Its value."""
        return request.cookies.get(self._named(request))

    def write(self, request: Request, response: Response, value: str, seconds: float) -> None:
        """Sets it."""
        response.set_cookie(
            self._named(request), value, max_age=int(seconds), path="/", httponly=True,
            samesite="strict", secure=is_tls(request),
        )  # fmt: skip

    def drop(self, request: Request, response: Response) -> None:
        """Takes it back."""
        self.write(request, response, "", 0)

    def _named(self, request: Request) -> str:
        return f"__Host-{self._name}" if is_tls(request) else self._name


SESSION = Cookie("upseal-session")
BEFORE = Cookie("upseal-login")
"""Of a browser that has the form before it: the form is bound to it."""


def is_tls(request: Request) -> bool:
    """Whether it came by TLS to us."""
    return request.url.scheme == "https"


def new_value() -> str:
    """A random value for a cookie."""
    return secrets.token_urlsafe(TOKEN)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()

# SPDX-License-Identifier: Apache-2.0
"""One parent over HTTP: a pool of connections that never follows, retries or waits without end.

What the other side can make us do is bounded: the length of an answer, the time it takes, and how
long it can send us away. Nothing is read from the environment (no proxies, no key log) unless the
caller asks for it.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
import urllib3.connection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from upseal import __version__
from upseal.fleet.http import prefer
from upseal.fleet.http.problems import MOST_DELAY, Problem, delay
from upseal.fleet.http.tls import Renewing

MOST_ANSWER = 16 << 20
_PIECE = 64 * 1024


class Unreachable(OSError):  # noqa: N818 - a state of affairs
    """No whole answer came: whether the request arrived is not known."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds: to connect, without a byte of the answer, and for all of the answer.

    The last once for its head, from when the request is out, and once for all together.
    """

    connect: float = 10.0
    read: float = 60.0
    total: float = 300.0

    def __post_init__(self) -> None:
        if not all(0 < s < float("inf") for s in (self.connect, self.read, self.total)):
            raise ValueError("a timeout is a number of seconds above 0")


@dataclass(frozen=True)
class ClientTls:
    """Which servers are believed, and who we are. Without ``ca``: the system's authorities."""

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    passphrase: str | None = field(default=None, repr=False)

    def context(self) -> ssl.SSLContext:
        """For one client; OSError or ValueError if a file is not what it should be."""
        # Not create_default_context(), which writes session keys where SSLKEYLOGFILE says.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.ca is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(cafile=os.fspath(self.ca))
        if self.certificate is not None:
            # A function, so that OpenSSL never asks on the terminal.
            context.load_cert_chain(
                os.fspath(self.certificate),
                None if self.key is None else os.fspath(self.key),
                lambda: self.passphrase or "",
            )
        elif self.key is not None:
            raise ValueError("a key without its certificate")
        return context

    def renewing(self) -> Renewing:
        """The same, and again whenever a file has changed."""
        return Renewing(self.context, (self.ca, self.certificate, self.key))


@dataclass(frozen=True)
class Response:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def problem(self) -> Problem | None:
        """The refusal, if the status says that it is one."""
        if self.status < 400:
            return None
        return Problem.from_response(min(self.status, 599), self.headers, self.body)

    def json(self) -> Any:
        """The body as JSON; ValueError if it is none."""
        try:
            return json.loads(self.body)
        except RecursionError:
            raise ValueError("JSON nested too deeply") from None

    @property
    def date(self) -> int | None:
        """Unix milliseconds of the other side's clock, to whole seconds, if it says so."""
        try:
            return int(parsedate_to_datetime(self.headers["date"]).timestamp() * 1000)
        except (KeyError, ValueError, TypeError, OverflowError, IndexError):
            return None

    @property
    def retry_after(self) -> float | None:
        """Seconds to stay away, bounded."""
        return delay(self.headers.get("retry-after"))


class _Timed(io.RawIOBase):
    """A connection's bytes until a moment: each one in time would let a head come for ever."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, seconds: float) -> None:
        self._raw, self._sock, self._end = raw, sock, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any, /) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        usual = self._sock.gettimeout()
        if usual is None or left < usual:
            self._sock.settimeout(left)
        return self._raw.readinto(target)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer whose time is bounded from its first byte on, in the thread that has asked."""

    asked = threading.local()

    def __init__(self, sock: socket.socket, *args: Any, **how: Any) -> None:
        super().__init__(sock, *args, **how)
        self.fp = io.BufferedReader(_Timed(self.fp.detach(), sock, self.asked.total))


class _Plain(urllib3.connection.HTTPConnection):
    response_class = _Answer


class _Secure(urllib3.connection.HTTPSConnection):
    response_class = _Answer


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Secure


class Client:
    """Requests to one base URL, from any thread, and in a process forked off as well."""

    def __init__(
        self,
        base_url: str,
        timeout: Timeouts | float = Timeouts(),
        tls: ClientTls | None = None,
        *,
        limit: int = MOST_ANSWER,
        connections: int = 4,
        proxy: str | None = None,
        environment: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("a base URL begins with http:// or https:// and a host")
        if parts.query or parts.fragment or parts.username is not None or "@" in parts.netloc:
            raise ValueError("a base URL has no user, query or fragment")
        if tls is not None and parts.scheme != "https":
            raise ValueError("TLS settings need an https:// URL")
        if limit < 1 or connections < 1:
            raise ValueError("limit and connections are at least 1")
        self.base_url = base_url.rstrip("/")
        self.name = parts.hostname + (f":{parts.port}" if parts.port else "")
        self.limit = limit
        if not isinstance(timeout, Timeouts):
            timeout = Timeouts(min(10.0, timeout), timeout, max(300.0, timeout))
        self.timeouts = timeout
        self._headers = {
            "user-agent": f"upseal/{__version__}",
            "accept-encoding": "identity",
            **(headers or {}),
        }
        self._connections = connections
        self._tls = (tls or ClientTls()).renewing() if parts.scheme == "https" else None
        if proxy is None and environment and not proxy_bypass(parts.hostname):
            proxy = getproxies().get(parts.scheme)
        self._proxy = proxy
        # By process: a child shares no connection with its parent, whose bytes would mix with its
        # own. The parent's pool stays here untouched, so that nothing is closed in its name.
        # With each the TLS context that it was made with: a renewed certificate has a new one.
        self._pools: dict[int, tuple[urllib3.PoolManager, ssl.SSLContext | None]] = {}
        self._pool()

    def request(
        self,
        method: str,
        path: str,
        body: bytes | bytearray | memoryview = b"",
        headers: Mapping[str, str] | None = None,
        *,
        wait: float = 0,
        limit: int | None = None,
        timeout: Timeouts | None = None,
    ) -> Response:
        """One request, one answer of whatever status; Unreachable if there is no whole answer.

        ``wait`` asks the other side to hold its answer so long (`prefer`), and waits longer.
        """
        if not path.startswith("/") or not path.isascii() or any(c <= " " for c in path):
            raise ValueError("a path begins with / and has no blanks")
        times = timeout or self.timeouts
        if wait:
            times = replace(times, read=times.read + wait, total=times.total + wait)
        said = {**self._headers, **prefer.header(wait), **(headers or {})}
        sent: Any = body if len(body) or method in ("POST", "PUT", "PATCH") else None
        if len(body) > _PIECE:
            # A timeout holds for what is sent at once: a slow line must get each piece through in
            # time, and not all of a long body.
            said["content-length"] = str(len(body))
            sent = (memoryview(body)[at : at + _PIECE] for at in range(0, len(body), _PIECE))
        most = self.limit if limit is None else limit
        deadline = time.monotonic() + times.total
        _Answer.asked.total = times.total
        try:
            answer = self._pool().urlopen(
                method,
                self.base_url + path,
                body=sent,
                headers=said,
                timeout=urllib3.Timeout(connect=times.connect, read=times.read),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            return self._whole(method, answer, most, deadline)
        except Unreachable:
            raise
        except (HTTPError, http.client.HTTPException, OSError) as error:
            why = _why(error, times)
            if isinstance(error, ReadTimeoutError | TimeoutError) and time.monotonic() > deadline:
                why = "the answer takes too long"
            raise Unreachable(f"{self.name}: {why}") from error

    def close(self) -> None:
        """Closes what is idle. A request after that opens a connection again."""
        found = self._pools.pop(os.getpid(), None)
        if found is not None:
            found[0].clear()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pool(self) -> urllib3.PoolManager:
        pid, context = os.getpid(), None if self._tls is None else self._tls.current()
        found = self._pools.get(pid)
        if found is not None and found[1] is not context:
            if self._pools.pop(pid, None) is found:  # not yet by another thread
                found[0].clear()
            found = None
        if found is None:
            found = self._pools.setdefault(pid, (self._new_pool(context), context))
        return found[0]

    def _new_pool(self, context: ssl.SSLContext | None) -> urllib3.PoolManager:
        settings: dict[str, Any] = {"maxsize": self._connections, "num_pools": 1}
        if context is not None:
            settings["ssl_context"] = context
        pool: urllib3.PoolManager
        if self._proxy is not None:
            pool = urllib3.ProxyManager(self._proxy, **settings)
        else:
            pool = urllib3.PoolManager(**settings)
        pool.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
        return pool

    def _whole(
        self, method: str, answer: urllib3.response.BaseHTTPResponse, most: int, deadline: float
    ) -> Response:
        """Reads an answer to its end. Its connection goes back to the pool only then."""
        clean = False
        try:
            declared = answer.headers.get("content-length", "")
            if declared.isascii() and declared.isdecimal() and int(declared[:18]) > most:
                raise Unreachable(f"{self.name}: the answer is longer than {most} bytes")
            pieces, size = [], 0
            while piece := answer.read1(_PIECE, decode_content=False):
                size += len(piece)
                if size > most:
                    raise Unreachable(f"{self.name}: the answer is longer than {most} bytes")
                if time.monotonic() > deadline:
                    raise Unreachable(f"{self.name}: the answer takes too long")
                pieces.append(piece)
            chunked = "chunked" in answer.headers.get("transfer-encoding", "").lower()
            if not (declared or chunked or method == "HEAD" or answer.status in (204, 304)):
                # It ends where the connection does, in its head or its body: a cut is not seen.
                raise Unreachable(f"{self.name}: the answer does not say how long it is")
            clean = True
            return Response(answer.status, answer.headers, b"".join(pieces))
        finally:
            if clean:
                answer.release_conn()
            else:
                answer.close()


def _why(error: BaseException, times: Timeouts) -> str:
    """In our words: those of the libraries name pools and addresses in memory."""
    if isinstance(error, ProxyError):
        return "the proxy cannot be reached"
    if isinstance(error, NewConnectionError):  # urllib3 counts it among the next
        cause = error.__cause__ or error.__context__
        words = cause.strerror if isinstance(cause, OSError) else None
        return f"no connection ({words or 'it is refused'})"
    if isinstance(error, ConnectTimeoutError):
        return f"no connection within {times.connect:g} s"
    if isinstance(error, SSLError | ssl.SSLError):
        inner = error.args[0] if error.args else error
        words = getattr(inner, "verify_message", None) or getattr(inner, "reason", None)
        return f"TLS failed ({words or 'the handshake broke'})"
    if isinstance(error, ReadTimeoutError | TimeoutError):
        return f"no answer within {times.read:g} s"
    return f"the connection broke ({type(error).__name__})"


class Backoff:
    """How long to wait after failures in a row: exponential, with full jitter, and a cap.

    Full jitter spreads the clients of a parent that comes back evenly over the time. What the
    parent asks for (``Retry-After``) is a floor, and the jitter comes on top of it.
    """

    def __init__(
        self,
        base: float = 1.0,
        cap: float = 300.0,
        *,
        most_asked: float = MOST_DELAY,
        rng: random.Random | None = None,
    ) -> None:
        if not 0 < base <= cap < float("inf"):
            raise ValueError("0 < base <= cap")
        self.base, self.cap, self.most_asked = base, cap, most_asked
        self.failures = 0
        # From the kernel: children forked off must not wait in step.
        self._rng = rng or random.SystemRandom()

    def next(self, retry_after: float | None = None) -> float:
        """Seconds to wait after one more failure."""
        reach = min(self.cap, self.base * 2 ** min(self.failures, 62))
        self.failures += 1
        pause = self._rng.uniform(0, reach)
        if retry_after is not None and retry_after > 0:
            return min(retry_after, self.most_asked) + pause
        return pause

    def reset(self) -> None:
        """After a success."""
        self.failures = 0

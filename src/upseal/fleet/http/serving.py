# SPDX-License-Identifier: Apache-2.0
"""Runs an application of `apps` by uvicorn: in the main thread, or in another beside other work.

A process that is asked to stop (SIGTERM, SIGINT, SIGHUP) takes no new connections, lets held
requests go, gives running ones their grace, stops the application's own threads and returns. Asked
a second time it gives no grace; the application's own end (its lifespan) is always waited for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import uvicorn
from starlette.applications import Starlette

from upseal.fleet.http.crowd import Crowd, Door
from upseal.fleet.http.logs import event
from upseal.fleet.http.protocol import Limits, Protocol
from upseal.fleet.http.rates import limited
from upseal.fleet.http.tls import Renewing
from upseal.fleet.sockets import prepare

if TYPE_CHECKING:
    from upseal.fleet.notify import Service

__all__ = ["Address", "Limits", "ServerTls", "in_thread", "serve"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_HANDSHAKE = 10.0
_OTHER_FILES = 256
_USUAL = Limits()
_log = logging.getLogger("upseal.http")


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int
    tls: bool

    @property
    def url(self) -> str:
        """For a client on the same machine or network."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        host = f"[{host}]" if ":" in host else host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}"


@dataclass(frozen=True)
class ServerTls:
    """A certificate with its key; with ``client_ca`` only clients that it has certified.

    Files that are written again while it serves hold for the next connection.
    """

    certificate: str | os.PathLike[str]
    key: str | os.PathLike[str] | None = None
    client_ca: str | os.PathLike[str] | None = None
    passphrase: str | None = field(default=None, repr=False)

    def context(self) -> ssl.SSLContext:
        """OSError or ValueError (ssl.SSLError is both) if a file is not what it should be."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(
            os.fspath(self.certificate),
            None if self.key is None else os.fspath(self.key),
            lambda: self.passphrase or "",  # so that OpenSSL never asks on the terminal
        )
        if self.client_ca is not None:
            context.load_verify_locations(cafile=os.fspath(self.client_ca))
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def renewing(self) -> Renewing:
        """The same, and again whenever a file has changed."""
        return Renewing(self.context, (self.certificate, self.key, self.client_ca))


def serve(
    app: Starlette,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    tls: ServerTls | None = None,
    limits: Limits = _USUAL,
    on_started: Callable[[Address], object] | None = None,
    stop: threading.Event | None = None,
    service: Service | None = None,
) -> None:
    """Serves until a signal comes or ``stop`` is set; raises what the application's lifespan did.

    Port 0 takes a free one; ``on_started`` is told which, once requests are taken. Signals are
    heard in the main thread only. Sockets that ``service`` has are served on in place of host and
    port, and it is told of every turn of the loop, and when it ends. OSError if the address cannot
    be had.
    """
    if not 0 <= port <= 65535:
        raise ValueError("a port is between 0 and 65535")
    renewing = None if tls is None else tls.renewing()
    limits = _afforded(limits)
    sockets = service.take() if service is not None and service.sockets else _bound(host, port)
    try:
        config = uvicorn.Config(
            app,
            lifespan="on",
            interface="asgi3",
            ws="none",
            http=Protocol,
            log_config=None,
            log_level=logging.CRITICAL,  # the application speaks for itself
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=limits.keep_alive,
            timeout_graceful_shutdown=limits.grace,
        )
        _Server(config, app, sockets, renewing, limits, on_started, stop, service).run()
    finally:
        for sock in sockets:
            sock.close()
    failure = getattr(app.state, "failure", None)
    if failure is not None:
        raise failure


@contextmanager
def in_thread(app: Starlette, host: str = "127.0.0.1", port: int = 0, **how: Any) -> Iterator[Any]:
    """Serves in a thread of its own while the block runs; gives the `Address`."""
    started, stop = threading.Event(), threading.Event()
    heard: list[Address] = []
    failed: list[BaseException] = []

    def told(address: Address) -> None:
        heard.append(address)
        started.set()

    def run() -> None:
        try:
            serve(app, host, port, on_started=told, stop=stop, **how)
        except BaseException as error:
            failed.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="upseal-http")
    thread.start()
    try:
        started.wait()
        if heard:
            yield heard[0]
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


def _afforded(limits: Limits) -> Limits:
    """As many connections as the system has files for, and some left for the application.

    Who runs out of them cannot open a database either: so connections give way, not reports.
    """
    try:
        import resource
    except ImportError:  # not a Unix
        return limits
    needed = 2 * limits.connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    except (OSError, ValueError):
        pass
    most = max(1, (soft - _OTHER_FILES) // 2)
    if most >= limits.connections:
        return limits
    event(_log, "few open files allowed", level=logging.WARNING, files=soft, connections=most)
    return replace(limits, connections=most)


def _bound(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host, all on one port; bound, not yet listening."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, proto, _, where in dict.fromkeys(found):
            sock = socket.socket(family, kind, proto)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            prepare(sock)
            taken = port or (sockets[0].getsockname()[1] if len(sockets) > 1 else 0)
            sock.bind((where[0], taken, *where[2:]))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


class _Server(uvicorn.Server):
    """Uvicorn's, with our own start, signals and end."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: Starlette,
        sockets: list[socket.socket],
        tls: Renewing | None,
        limits: Limits,
        on_started: Callable[[Address], object] | None,
        stop: threading.Event | None,
        service: Service | None,
    ) -> None:
        super().__init__(config)
        self._service = service
        self._app, self._sockets, self._tls = app, sockets, tls
        self._limits, self._on_started, self._stop = limits, on_started, stop
        metrics = getattr(app.state, "metrics", None)
        turned_away = (lambda _: None) if metrics is None else limited(metrics)
        self._crowd = Crowd(
            limits.connections, limits.address_share, limits.exceptions, turned_away,
            limits.unread_bytes,
        )  # fmt: skip
        if metrics is not None:
            metrics.gauge("http_connections", "Open connections", function=self._crowd.__len__)
            metrics.gauge(
                "http_unread_bytes", "Bytes of answers that wait to be read",
                function=lambda: self._crowd.unread,
            )  # fmt: skip

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """The application first: who can connect finds it ready."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise getattr(self._app.state, "failure", None) or RuntimeError(
                "the application did not start"
            )
        self.servers = []
        try:
            loop = asyncio.get_running_loop()
            backlog = self.config.backlog
            for sock in self._sockets:
                if self._tls is None:
                    made = await loop.create_server(self._connection, sock=sock, backlog=backlog)
                    self.servers.append(made)
                else:
                    door = Door(sock, self._crowd, self._tls, self._entered, _HANDSHAKE)
                    door.listen(backlog)
                    self.servers.append(cast(asyncio.Server, door))
            self.started = True
            name = self._sockets[0].getsockname()
            address = Address(name[0], name[1], self._tls is not None)
            event(_log, "serving", address=address.url, pid=os.getpid())
            if self._on_started is not None:
                self._on_started(address)
        except BaseException:
            for server in self.servers:
                server.close()
            await self.lifespan.shutdown()
            raise

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if self._service is not None:
            self._service.ticks += 1
        if self._stop is not None and self._stop.is_set():
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Requests, then the application."""
        event(_log, "stopping", running=len(self.server_state.tasks))
        if self._service is not None:
            self._service.stopping()
        stopping = getattr(self._app.state, "stopping", None)
        if stopping is not None:
            stopping.begin()
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would leave the application's threads alone
            await self.lifespan.shutdown()
        event(_log, "stopped")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ours until the end, and then as they were. One that is ignored (nohup) stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Once: with grace. Again: without."""
        self.force_exit = self.should_exit
        self.should_exit = True

    def _entered(self) -> Protocol:
        return self._connection(entered=True)

    def _connection(self, *, entered: bool = False) -> Protocol:
        return Protocol(
            self._limits,
            self._crowd,
            entered=entered,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

# SPDX-License-Identifier: Apache-2.0
"""Who is connected: how many in all and from one address, TLS handshakes that hang among them."""

from __future__ import annotations

import asyncio
import enum
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

from upseal.fleet.http.rates import Addresses
from upseal.fleet.http.tls import Renewing

_NO_FILES = 1.0
"""Seconds until it is tried again where the system gives no more files."""


class Inside(asyncio.Protocol):
    """The protocol of one connection. It leaves the crowd when it is lost."""

    connected = False
    """Whether it has begun."""


class Place(enum.Enum):
    """Whether there is one."""

    WELCOME = "welcome"
    CROWDED = "connections"
    """Too many in all: a request is answered so."""
    BUSY = "address-connections"
    """Too many from this address: likewise."""
    AWAY = "away"
    """Twice as many: just closed."""


class Crowd:
    """Counts connections. For the event loop's thread.

    Args:
        most: in all.
        share: of those, for one address.
        exceptions: addresses and networks that may have all.
        turned_away: told which limit it was.
        unread: bytes of answers that nobody has read yet, in all; for one address its share.
    """

    def __init__(
        self,
        most: int,
        share: float = 1.0,
        exceptions: tuple[str, ...] = (),
        turned_away: Callable[[str], None] = lambda _: None,
        unread: int = 256 << 20,
    ) -> None:
        self._most, self._each = most, max(1, int(most * share))
        self._unread_most, self._unread_each = unread, unread * share
        self.unread = 0
        self._unread_of: Counter[str] = Counter()
        self._addresses = Addresses(exceptions)
        self._turned_away = turned_away
        # Those that are let stand to be told so do not count against those that have a seat: else
        # one address could take the places of all by being turned away.
        self._seated = 0
        self._standing = 0
        self._seated_of: Counter[str] = Counter()
        self._standing_of: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._seated + self._standing

    def enter(self, host: str) -> Place:
        """One more, from there. `leave` when it is gone, unless it is told to go away."""
        key = self._addresses.key(host)
        if self._seated >= self._most:
            place = Place.CROWDED
        elif key is not None and self._seated_of[key] >= self._each:
            place = Place.BUSY
        else:
            self._seated += 1
            if key is not None:
                self._seated_of[key] += 1
            return Place.WELCOME
        self._turned_away(place.value)
        if self._standing >= self._most or (
            key is not None and self._standing_of[key] >= self._each
        ):
            return Place.AWAY
        self._standing += 1
        if key is not None:
            self._standing_of[key] += 1
        return place

    def owe(self, host: str, size: int) -> bool:
        """So many bytes for there wait to be read, until `paid`; False: that is too much."""
        key = self._addresses.key(host)
        if self.unread + size > self._unread_most or (
            key is not None and self._unread_of[key] + size > self._unread_each
        ):
            self._turned_away("unread-answers")
            return False
        self.unread += size
        if key is not None:
            self._unread_of[key] += size
        return True

    def paid(self, host: str, size: int) -> None:
        """They have been read, or nobody will."""
        self.unread -= size
        key = self._addresses.key(host)
        if key is not None:
            self._unread_of[key] -= size
            if self._unread_of[key] <= 0:
                del self._unread_of[key]

    def leave(self, host: str, place: Place) -> None:
        """It is gone."""
        if place is Place.AWAY:
            return
        of = self._standing_of
        if place is Place.WELCOME:
            self._seated -= 1
            of = self._seated_of
        else:
            self._standing -= 1
        key = self._addresses.key(host)
        if key is not None:
            of[key] -= 1
            if of[key] <= 0:
                del of[key]


class Door:
    """A listening socket whose connections are counted before their TLS handshake.

    One that there is no place for costs no handshake: it is closed. Made, used and closed in the
    event loop's thread; to a server that has several, it is as `asyncio.Server`.

    Args:
        sock: bound.
        crowd: counts them.
        tls: the certificate as it is now.
        inside: makes the protocol of a connection that has its place.
        seconds: how long a handshake may take.
    """

    def __init__(
        self,
        sock: socket.socket,
        crowd: Crowd,
        tls: Renewing,
        inside: Callable[[], Inside],
        seconds: float,
    ) -> None:
        self._sock, self._crowd, self._tls, self._inside = sock, crowd, tls, inside
        self._seconds = seconds
        self._shaking: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._open = False

    def listen(self, backlog: int) -> None:
        """From here on connections are taken."""
        self._sock.setblocking(False)
        self._sock.listen(backlog)
        self._backlog, self._open = backlog, True
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """No more, and none of those in their handshake."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        for task in self._shaking:
            task.cancel()

    async def wait_closed(self) -> None:
        """Until none is in its handshake."""
        if self._shaking:
            await asyncio.wait(self._shaking)

    def _accept(self) -> None:
        for _ in range(self._backlog):
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no more files: those that wait are still there in a second
                self._loop.remove_reader(self._sock.fileno())
                self._loop.call_later(_NO_FILES, self._again)
                return
            host = _host(peer)
            place = self._crowd.enter(host)
            if place is not Place.WELCOME:
                self._crowd.leave(host, place)
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._shake(sock, host))
            self._shaking.add(task)
            task.add_done_callback(self._shaking.discard)

    def _again(self) -> None:
        if self._open:
            self._loop.add_reader(self._sock.fileno(), self._accept)

    async def _shake(self, sock: socket.socket, host: str) -> None:
        protocol = self._inside()
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                sock,
                ssl=self._tls.current(),
                ssl_handshake_timeout=self._seconds,
            )
        except OSError:  # of another mind, gone, too slow, or without a certificate
            pass
        finally:
            if not protocol.connected:  # else it leaves when it is lost
                self._crowd.leave(host, Place.WELCOME)
                sock.close()


def host_of(transport: asyncio.BaseTransport) -> str:
    """The other side's address; empty if it is not of the network."""
    return _host(transport.get_extra_info("peername"))


def _host(peer: Any) -> str:
    return str(peer[0]) if isinstance(peer, tuple) and peer else ""

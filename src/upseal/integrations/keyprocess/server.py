# SPDX-License-Identifier: Apache-2.0
"""The process that keeps keys: it unwraps for local users that it was told of (docs/integrations).

It never gives a key. It gives session secrets, and the proof that it has a key, over a Unix socket
whose peers the kernel names (SO_PEERCRED). One thread serves one connection.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from upseal.core.keys import PrivateKey
from upseal.core.suites import SECRET_LEN
from upseal.engine import resolve
from upseal.errors import KeyUnavailable
from upseal.fleet.http.seldom import Seldom
from upseal.integrations.keyprocess import wire
from upseal.integrations.keyprocess.wire import Code
from upseal.integrations.keys import HeldKey

__all__ = ["KeyServer", "Peer", "Policy"]

_UCRED = struct.Struct("iII")
_PEERGROUPS = 59
"""SO_PEERGROUPS of Linux 4.13; Python has no name for it."""
_GROUPS_MAX = 256
"""Python asks for 1,024 bytes at most. Who is in more groups is known by his first one alone."""
_IDLE, _FRAME = 300.0, 5.0
"""Seconds without a request, and for one that has begun."""
_log = logging.getLogger("upseal.keys")

Key = PrivateKey | HeldKey


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel says."""

    pid: int
    uid: int
    groups: frozenset[int]


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may have what."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    rate: float = 5000.0
    """Unwraps a second by one user; a second's worth at once."""
    connections: int = 256
    """In all; one user gets half of them at most."""

    def allows(self, peer: Peer) -> bool:
        """Whether this peer may use the keys. Root is asked like everybody."""
        return peer.uid in self.uids or bool(self.gids & peer.groups)


@dataclass(slots=True)
class _User:
    """One uid's account."""

    room: float
    when: float
    connections: int = 0


@dataclass(slots=True)
class _Counts:
    """Since the start."""

    begun: float = field(default_factory=time.time)
    unwrapped: int = 0
    refused: int = 0
    unavailable: int = 0
    busy: int = 0
    denied: int = 0
    malformed: int = 0
    reloads: int = 0


class KeyServer:
    """Serves a listening socket until it is stopped."""

    def __init__(
        self,
        listener: socket.socket,
        load: Callable[[], Sequence[Key]],
        policy: Policy,
    ) -> None:
        """Loads the keys; serves nobody yet.

        Args:
            listener: a Unix socket that listens; whoever made it closes it.
            load: gives the keys, at the start and whenever it is told to reload.
            policy: who may use them.

        Raises:
            ValueError: no keys, too many, or the same twice; and what ``load`` raises.
        """
        self._listener, self._load, self._policy = listener, load, policy
        self._keys = _by_id(load())
        self._users: dict[int, _User] = {}
        self._open: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._counts = _Counts()
        self._lock = threading.Lock()
        self._seldom = Seldom()  # any local user may cause lines
        self._awake, self.wake = socket.socketpair()
        self.wake.setblocking(False)
        """What is written here wakes `serve`: for `signal.set_wakeup_fd`."""
        self._stopping = self._reload = False

    # -- from anywhere, also from signal handlers ------------------------------------------

    def stop(self) -> None:
        """Lets `serve` return when what has been asked is answered."""
        self._stopping = True
        self._nudge()

    def reload(self) -> None:
        """Loads the keys again, soon. If that fails the old ones stay."""
        self._reload = True
        self._nudge()

    def _nudge(self) -> None:
        with suppress(OSError):  # it is awake as it is, or at its end
            self.wake.send(b"\0")

    # -- the loop --------------------------------------------------------------------------

    def serve(self) -> None:
        """Until `stop`. Closes its connections."""
        self._listener.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._awake, selectors.EVENT_READ)
            while not self._stopping:
                for key, _ in selector.select():
                    if key.fileobj is self._awake:
                        self._awake.recv(4096)
                    else:
                        self._accept()
                if self._reload:
                    self._reload = False
                    self._load_again()
        self._end()

    def _end(self) -> None:
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RD)  # what was asked is answered still
            threads = list(self._threads)
        for thread in threads:
            thread.join(2 * _FRAME)
        self._awake.close()
        self.wake.close()

    def _load_again(self) -> None:
        try:
            keys = _by_id(self._load())
        except (OSError, ValueError, TypeError, ImportError, KeyUnavailable) as error:
            _log.error("keys not loaded again, the old ones stay: %s", error)
            return
        gone = [key_id.hex() for _, key_id in self._keys.keys() - keys.keys()]
        new = [key_id.hex() for _, key_id in keys.keys() - self._keys.keys()]
        self._keys = keys
        with self._lock:
            self._counts.reloads += 1
        _log.info("keys loaded again: %d, new %s, gone %s", len(keys), new, gone)

    def _warn(self, text: str, *facts: object) -> None:
        if (left_out := self._seldom.tell()) is not None:
            _log.warning(f"{text} (%d such lines left out)", *facts, left_out)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError as error:  # out of descriptors
            _log.error("no connection taken: %s", error)
            time.sleep(0.1)
            return
        try:
            peer = peer_of(sock)
        except OSError:
            sock.close()
            return
        code = self._admit(peer)
        if code is not Code.DONE:
            self._warn("%s: pid %d of uid %d", code.name.lower(), peer.pid, peer.uid)
            _answer_and_close(sock, code)
            return
        thread = threading.Thread(target=self._run, args=(sock, peer), name="upseal-keys")
        thread.daemon = True
        with self._lock:
            self._open.add(sock)
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # at a limit
            with self._lock:
                self._threads.discard(thread)
            self._leave(sock, peer)
            _answer_and_close(sock, Code.BUSY)

    def _admit(self, peer: Peer) -> Code:
        with self._lock:
            if not self._policy.allows(peer):
                self._counts.denied += 1
                return Code.DENIED
            user = self._users.setdefault(peer.uid, _User(self._policy.rate, time.monotonic()))
            most = self._policy.connections
            if len(self._open) >= most or user.connections >= max(1, most // 2):
                self._counts.busy += 1
                return Code.BUSY
            user.connections += 1
            return Code.DONE

    def _leave(self, sock: socket.socket, peer: Peer) -> None:
        with self._lock:
            self._open.discard(sock)
            self._users[peer.uid].connections -= 1
        # who has no connection keeps his account: he would have a full one when he comes again

    # -- one connection --------------------------------------------------------------------

    def _run(self, sock: socket.socket, peer: Peer) -> None:
        try:
            with sock:
                self._converse(sock, peer)
        finally:
            self._leave(sock, peer)
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _converse(self, sock: socket.socket, peer: Peer) -> None:
        while not self._stopping:
            try:
                body = wire.receive(sock, wire.REQUEST_MAX, _IDLE, _FRAME)
                what, which, data = wire.parse_request(bytes(body))
            except ValueError as error:
                with self._lock:
                    self._counts.malformed += 1
                self._warn("malformed request of pid %d, uid %d: %s", peer.pid, peer.uid, error)
                _answer_and_close(sock, Code.MALFORMED)
                return
            except OSError:
                return
            code, payload = self._do(what, which, data, peer)
            sent = _answer(sock, code, payload)
            if what == wire.UNWRAP and code is Code.DONE:
                resolve(None).wipe(payload)
            if not sent:
                return

    def _do(
        self, what: int, which: tuple[int, bytes] | None, data: bytes, peer: Peer
    ) -> tuple[Code, bytes]:
        if which is None:
            if what == wire.STATUS:
                return Code.DONE, json.dumps(self.status()).encode()
            pems = [key.public_key.to_pem() for key in self._keys.values()]
            return Code.DONE, wire.join_keys(pems)
        wait = self._spend(peer)
        if wait > 0:
            return Code.BUSY, min(60_000, int(wait * 1000) + 1).to_bytes(4, "big")
        key = self._keys.get(which)
        if key is None:
            return Code.NO_KEY, b""
        try:
            done = _prove(key, data) if what == wire.READY else _unwrap(key, data)
        except KeyUnavailable as error:
            with self._lock:
                self._counts.unavailable += 1
            return Code.UNAVAILABLE, str(error).encode()[:1000]
        except (MemoryError, RecursionError):
            return Code.UNAVAILABLE, b"no memory"
        except Exception:  # as `Opener`: whatever a key raises says that it is not for it
            with self._lock:
                self._counts.refused += 1
            return Code.REFUSED, b""
        with self._lock:
            self._counts.unwrapped += 1
        return Code.DONE, done

    def _spend(self, peer: Peer) -> float:
        """Seconds until this user may have another unwrap; 0: now."""
        with self._lock:
            user, now, rate = self._users[peer.uid], time.monotonic(), self._policy.rate
            user.room = min(rate, user.room + (now - user.when) * rate)
            user.when = now
            if user.room < 1:
                self._counts.busy += 1
                return (1 - user.room) / rate
            user.room -= 1
            return 0.0

    def status(self) -> dict[str, object]:
        """Keys, clients, and counts since the start."""
        keys = [
            {"key_id": key.key_id.hex(), "type": key.public_key.name} for key in self._keys.values()
        ]
        with self._lock:
            counts = self._counts
            return {
                "pid": os.getpid(),
                "since": int(counts.begun),
                "keys": keys,
                "connections": len(self._open),
                "users": {
                    str(uid): user.connections
                    for uid, user in self._users.items()
                    if user.connections
                },
                "unwrapped": counts.unwrapped,
                "refused": counts.refused,
                "unavailable": counts.unavailable,
                "busy": counts.busy,
                "denied": counts.denied,
                "malformed": counts.malformed,
                "reloads": counts.reloads,
            }


def peer_of(sock: socket.socket) -> Peer:
    """Who has connected, at the time he did.

    Raises:
        OSError: the kernel does not say.
    """
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    try:
        more = sock.getsockopt(socket.SOL_SOCKET, _PEERGROUPS, 4 * _GROUPS_MAX)
    except OSError:  # an old kernel, or too many
        more = b""
    return Peer(pid, uid, frozenset([gid, *(g for (g,) in struct.iter_unpack("I", more))]))


def _unwrap(key: Key, wrapped: bytes) -> bytes:
    """A session secret, for the caller to wipe.

    Raises:
        ValueError: it is of another length, and no secret: OAEP carries what a sender likes. Python
            has one object for all bytes of length 1, which must not be wiped.
    """
    secret = key.unwrap(wrapped)
    if len(secret) != SECRET_LEN:
        raise ValueError("not a session secret")
    return secret


def _prove(key: Key, challenge: bytes) -> bytes:
    from upseal.fleet.readiness import answer_challenge

    return answer_challenge(key, challenge)


def _by_id(keys: Sequence[Key]) -> dict[tuple[int, bytes], Key]:
    found = {(int(key.suite), bytes(key.key_id)): key for key in keys}
    if not keys:
        raise ValueError("there is no key to keep")
    if len(found) != len(keys):
        raise ValueError("the same key is named twice")
    if len(found) > wire.KEYS_MAX:
        raise ValueError(f"a process keeps {wire.KEYS_MAX} keys at most")
    return found


def _answer(sock: socket.socket, code: Code, payload: bytes = b"") -> bool:
    body = bytearray([code]) + payload
    try:
        wire.send(sock, body, _FRAME)
    except OSError:
        return False
    finally:
        body[:] = bytes(len(body))
    return True


def _answer_and_close(sock: socket.socket, code: Code) -> None:
    """Without waiting: this is the thread that takes connections."""
    with sock, suppress(OSError):
        wire.send(sock, bytes([code]), 0.0)
        sock.recv(wire.REQUEST_MAX)  # closed with a request unread, he would not see the answer

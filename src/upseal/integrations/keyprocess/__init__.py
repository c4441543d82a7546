# SPDX-License-Identifier: Apache-2.0
"""Keys that a local process keeps (``upseal keys serve``), as its clients use them.

::

    keys = KeyProcess("unix:/run/upseal/keys.sock").keys()
    opener = upseal.Opener(keys)
"""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from typing import Any

from upseal.core.copies import refuse
from upseal.core.forks import renew_in_children
from upseal.core.keys import PublicKey
from upseal.core.suites import SECRET_LEN
from upseal.engine import resolve
from upseal.errors import KeyUnavailable
from upseal.integrations.keyprocess import wire
from upseal.integrations.keyprocess.wire import Code

__all__ = ["KeyProcess", "ProcessKey"]

_POOL = 32
_PATH_MAX = 107
"""Bytes, on Linux."""


class KeyProcess:
    """A process that keeps keys. Safe to share between threads, and usable after a fork.

    Connections are kept for the next request, and made again when the process was started again.
    """

    __reduce_ex__ = refuse

    def __init__(self, address: str, *, timeout: float = 10.0) -> None:
        """Connects to nothing yet.

        Args:
            address: ``unix:`` and the path of its socket.
            timeout: seconds for connecting and for each answer.

        Raises:
            ValueError: the address is none.
        """
        path = address.removeprefix("unix:")
        if path == address or not path.startswith("/") or len(os.fsencode(path)) > _PATH_MAX:
            raise ValueError(f"{address!r} is not unix: and a whole path of at most 107 bytes")
        self.address = address
        self._path, self._timeout = path, timeout
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()
        renew_in_children(self)

    def after_fork(self) -> None:
        """For the child of a fork: its parent's connections are not its own."""
        self._lock = threading.Lock()
        for sock in self._idle:
            sock.close()  # the descriptor alone: the parent's connection stays
        self._idle = []

    def keys(self) -> list[ProcessKey]:
        """All keys it has for us, each tried on a secret of our own.

        Raises:
            KeyUnavailable: it cannot be asked, does not let us, or does not have what it names.
        """
        try:
            found = [PublicKey.from_pem(pem) for pem in wire.split_keys(self._asked(wire.LIST))]
        except ValueError as error:
            raise KeyUnavailable(f"{self.address} is no key process: {error}") from error
        keys = [ProcessKey(self, key) for key in found]
        for key in keys:
            key.prove()
        return keys

    def status(self) -> dict[str, Any]:
        """How it does: keys, clients and counts since it began.

        Raises:
            KeyUnavailable: as `keys`.
        """
        try:
            found = json.loads(self._asked(wire.STATUS))
        except ValueError as error:
            raise KeyUnavailable(f"{self.address} is no key process: {error}") from error
        if not isinstance(found, dict):
            raise KeyUnavailable(f"{self.address} is no key process")
        return found

    def close(self) -> None:
        """Closes the connections that are kept. It may be used on."""
        with self._lock:
            idle, self._idle = self._idle, []
        for sock in idle:
            sock.close()

    def __enter__(self) -> KeyProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        for sock in getattr(self, "_idle", ()):
            sock.close()

    def ask(self, what: int, which: tuple[int, bytes], data: bytes) -> bytes:
        """For `ProcessKey`: what it answers.

        Raises:
            ValueError: it was not made for this key.
            KeyUnavailable: anything else.
        """
        return self._asked(what, which, data)

    def _asked(self, what: int, which: tuple[int, bytes] | None = None, data: bytes = b"") -> bytes:
        request = wire.request(what, which, data)
        if len(request) > wire.REQUEST_MAX:
            raise ValueError("far too long for this key")
        try:
            answer = self._exchange(request)
        except (OSError, ValueError) as error:
            raise KeyUnavailable(
                f"the key process at {self.address} does not answer: "
                f"{getattr(error, 'strerror', None) or error or type(error).__name__}; "
                "is `upseal keys serve` running, and may this user use its socket?"
            ) from error
        code, payload = answer[0], bytes(memoryview(answer)[1:])
        resolve(None).wipe(answer)
        if code == Code.DONE:
            return payload
        if code == Code.REFUSED:
            raise ValueError("not wrapped for this key")
        raise KeyUnavailable(f"the key process at {self.address} {_said(code, payload)}")

    def _exchange(self, request: bytes) -> bytearray:
        sock = self._kept()
        if sock is not None:
            try:
                return self._over(sock, request)
            except TimeoutError:
                raise
            except (OSError, ValueError):
                self.close()  # it was started again: all that are kept are of no use
        return self._over(self._connect(), request)

    def _over(self, sock: socket.socket, request: bytes) -> bytearray:
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have said why
                wire.send(sock, request, self._timeout)
            answer = wire.receive(sock, wire.ANSWER_MAX, self._timeout, self._timeout)
        except BaseException:
            sock.close()
            raise
        if answer[0] in (Code.MALFORMED, Code.DENIED) or answer == bytes([Code.BUSY]):
            sock.close()  # as the other side does: BUSY without a time is of connections
            return answer
        with self._lock:
            if len(self._idle) < _POOL:
                self._idle.append(sock)
                return answer
        sock.close()
        return answer

    def _kept(self) -> socket.socket | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self._timeout)
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        return sock

    def __repr__(self) -> str:
        return f"<KeyProcess {self.address}>"


class ProcessKey:
    """One key of a process: see `upseal.KeyOpener`."""

    unwraps_afresh = True
    """See `upseal.core.known.KeyOpener`."""

    __reduce_ex__ = refuse

    def __init__(self, process: KeyProcess, public_key: PublicKey) -> None:
        """Asks nothing yet."""
        self._process = process
        self.public_key = public_key
        self.suite, self.key_id = int(public_key.suite), public_key.key_id

    def unwrap(self, wrapped: bytes) -> bytes:
        """The session secret wrapped for this key.

        Raises:
            ValueError: it was not.
            KeyUnavailable: the process cannot be used at the moment.
        """
        return self._process.ask(wire.UNWRAP, (self.suite, self.key_id), bytes(wrapped))

    def answer_challenge(self, sealed: bytes) -> bytes:
        """Proof that the process has it: see `upseal.fleet.readiness`.

        Raises:
            upseal.fleet.readiness.BadChallenge: it was not made for this key.
            KeyUnavailable: the process cannot be used at the moment.
        """
        from upseal.fleet.readiness import BadChallenge

        try:
            return self._process.ask(wire.READY, (self.suite, self.key_id), bytes(sealed))
        except ValueError:
            raise BadChallenge from None

    def prove(self) -> None:
        """Lets the process unwrap a secret of our own.

        Raises:
            KeyUnavailable: it does not get it.
        """
        secret = os.urandom(SECRET_LEN)
        try:
            proved = self.unwrap(self.public_key.wrap(secret)) == secret
        except ValueError:
            proved = False
        if not proved:
            raise KeyUnavailable(
                f"the key process at {self._process.address} does not have the private key "
                f"{self.key_id.hex()}, which it names"
            )

    def __repr__(self) -> str:
        return f"<ProcessKey {self.public_key.name} {self.key_id.hex()} at {self._process.address}>"


def _said(code: int, payload: bytes) -> str:
    if code == Code.NO_KEY:
        return "does not have this key any more"
    if code == Code.BUSY:
        if not payload:
            return "has no room for more connections by this user; keep fewer, or --connections"
        return f"has no room for more unwraps by this user; again in {_milliseconds(payload)} ms"
    if code == Code.DENIED:
        return "does not let this user use its keys; see `upseal keys serve --allow-user`"
    if code == Code.UNAVAILABLE:
        text = payload.decode("utf-8", "replace")
        return "cannot use the key: " + "".join(c if c.isprintable() else " " for c in text)[:500]
    return f"answers with {code}, which is not known here"


def _milliseconds(payload: bytes) -> int:
    return int.from_bytes(payload[:4], "big")

# SPDX-License-Identifier: Apache-2.0
"""What a service says to its manager: sd_notify(3), and its watchdog.

A datagram of ``NAME=value`` lines to the socket that ``NOTIFY_SOCKET`` names; systemd promises to
keep the protocol. Without that variable nothing is said and nothing is watched.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from upseal.fleet.http.logs import event
from upseal.fleet.sockets import inherited

_PATIENCE = 2.0
"""Seconds that a manager may take to read what we say: its queue may be full."""
_LOOKS = 8
"""In one interval of the watchdog."""
_log = logging.getLogger("upseal.service")


class Notifier:
    """Says lines to the manager.

    Args:
        environment: None for the process's own.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        env = os.environ if environment is None else environment
        said = env.get("NOTIFY_SOCKET", "")
        self._address = ("\0" + said[1:] if said.startswith("@") else said) or None
        if said and said[0] not in "/@":  # vsock, of a virtual machine's manager
            event(_log, "NOTIFY_SOCKET is of no kind known here", level=logging.WARNING)
            self._address = None
        self.interval = _interval(env)
        """Seconds between two signs of life that the manager waits for at most; 0: none."""

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return self._address is not None

    def say(self, **lines: str | int) -> bool:
        """One message, as ``say(READY=1, STATUS="serving")``. True if it was taken."""
        if self._address is None:
            return False
        text = "\n".join(f"{name}={_line(value)}" for name, value in lines.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(_PATIENCE)
                sock.sendto(text.encode(), self._address)
        except OSError as error:  # a manager that does not hear must not end a service
            event(_log, "the service manager is not told", level=logging.WARNING, error=error)
            return False
        return True


def _line(value: str | int) -> str:
    return " ".join(str(value).split())


def _interval(env: Mapping[str, str]) -> float:
    pid, micros = env.get("WATCHDOG_PID", ""), env.get("WATCHDOG_USEC", "")
    if not micros.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(micros) / 1e6


@dataclass(frozen=True)
class Sign:
    """A sign of life of one worker.

    Args:
        name: for people.
        look: whether it has something to do, and how much it has done: a count that grows.
        patience: seconds that one piece of its work may take, beyond what is given to all.
    """

    name: str
    look: Callable[[], tuple[bool, int]]
    patience: float = 0.0


@dataclass
class _Seen:
    done: int
    at: float = field(default=0.0)


class Watchdog:
    """Who has something to do and gets on with it.

    Args:
        signs: of all workers.
        patience: seconds without progress that are forgiven.
        clock: seconds that only go up.
    """

    def __init__(
        self,
        signs: Iterable[Sign],
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._signs, self._patience, self._clock = list(signs), patience, clock
        self._seen = {sign.name: _Seen(-1, clock()) for sign in self._signs}

    def stuck(self) -> list[str]:
        """The names of those that had something to do for too long, and did nothing."""
        now = self._clock()
        out = []
        for sign in self._signs:
            busy, done = sign.look()
            seen = self._seen[sign.name]
            if not busy or done != seen.done:
                seen.done, seen.at = done, now
            elif now - seen.at > self._patience + sign.patience:
                out.append(sign.name)
        return out


class Service:
    """One service under its manager: ready, alive, stopping.

    Args:
        notifier: says it.
        sockets: that the manager has handed over; closed by who serves on them.
    """

    def __init__(self, notifier: Notifier, sockets: Iterable[socket.socket] = ()) -> None:
        self.notifier = notifier
        self.sockets = list(sockets)
        self.ticks = 0
        """Turns of the event loop, counted by who runs it."""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @classmethod
    def of_process(cls) -> Service:
        """As the process's environment says.

        Raises:
            ValueError: it was handed what is no listening TCP socket.
        """
        return cls(Notifier(), inherited())

    def take(self) -> list[socket.socket]:
        """The sockets; whoever takes them closes them."""
        taken, self.sockets = self.sockets, []
        return taken

    def ready(self, status: str, signs: Iterable[Sign] = ()) -> None:
        """It serves: says so, and from now on that it lives while all ``signs`` do."""
        self.notifier.say(READY=1, STATUS=status)
        if self.notifier.heard and self.notifier.interval > 0 and self._thread is None:
            watchdog = Watchdog(signs, self.notifier.interval / 2)
            self._thread = threading.Thread(
                target=self._watch, args=(watchdog, status), name="upseal-watchdog", daemon=True
            )
            self._thread.start()

    def reloading(self) -> None:
        """Settings are read again; `reloaded` follows."""
        micros = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.notifier.say(RELOADING=1, MONOTONIC_USEC=micros)

    def reloaded(self, status: str) -> None:
        """They were, or could not be, which ``status`` says."""
        self.notifier.say(READY=1, STATUS=status)

    def stopping(self) -> None:
        """It takes nothing new. Nobody is watched any more: the end has a time limit of its own."""
        with self._lock:
            first = not self._ended.is_set()
            self._ended.set()
        if first:
            self.notifier.say(STOPPING=1, STATUS="stopping")

    def close(self) -> None:
        """The process ends."""
        self.stopping()
        if self._thread is not None:
            self._thread.join()
        for sock in self.sockets:
            sock.close()
        self.sockets = []

    def _watch(self, watchdog: Watchdog, status: str) -> None:
        troubled: list[str] = []
        while not self._ended.wait(self.notifier.interval / _LOOKS):
            stuck = watchdog.stuck()
            if stuck != troubled:
                troubled = stuck
                if stuck:
                    event(_log, "no progress", level=logging.ERROR, stuck=stuck)
                    self.notifier.say(STATUS=f"no progress: {', '.join(stuck)}")
                else:
                    event(_log, "progress again")
                    self.notifier.say(STATUS=status)
            if not stuck:
                self.notifier.say(WATCHDOG=1)

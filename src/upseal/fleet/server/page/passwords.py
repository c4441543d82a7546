# SPDX-License-Identifier: Apache-2.0
"""Logging in: one scrypt at a time, a short line before it, and a pause after failures.

Strangers may ask this. So they cost one thread a quarter of its time at most, 32 MiB once, and
nothing on the disk but an alarm an hour. Names that are not there cost as much as those that are.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from prometheus_client import Counter

from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.server.store import Store, alarms, logins, now_ms

LINE = 8
"""Requests that wait for their turn."""
FREE = 3
"""Failures of one name that cost no pause."""
LONGEST = 30.0
"""Seconds of pause at most: whoever guesses at a name keeps its owner out no longer."""
ALARM = 5
"""Failures of one name from which on there is an alarm."""
ALARM_OF_ALL = 20
"""Failures of all names within an hour, likewise."""
_FORGOTTEN = 3600.0
_NAMES = 4096
_REST = 3.0
_log = logging.getLogger("upseal.server")


class Pauses:
    """Failures by name, and how long a name has to wait after them. Safe for threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, name: str) -> float:
        """Seconds until that name may be tried again."""
        count, last = self._failures.get(_digest(name), (0, 0.0))
        if count < FREE:
            return 0.0
        pause = min(LONGEST, 2.0 ** min(count - FREE, 10))
        return max(0.0, last + pause - self._clock())

    def failed(self, name: str) -> int:
        """Counts a failure; how many there were."""
        digest, now = _digest(name), self._clock()
        with self._lock:
            count, last = self._failures.pop(digest, (0, now))
            count = 1 if now - last > _FORGOTTEN else count + 1
            self._failures[digest] = (count, now)
            while len(self._failures) > _NAMES:
                self._failures.popitem(last=False)
        return count

    def forget(self, name: str) -> None:
        """It was the right one."""
        with self._lock:
            self._failures.pop(_digest(name), None)


class Passwords:
    """Checks names and passwords."""

    def __init__(
        self,
        store: Store,
        results: Counter,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``results`` has the label ``result``: ok, refused or busy."""
        self._store = store
        self._results = results
        self._clock, self._sleep = clock, sleep
        self._pool = ThreadPoolExecutor(1, "upseal-login")
        self._pauses = Pauses(clock)
        self._all: tuple[float, int] = (0.0, 0)
        self._waiting = 0
        self._lock = threading.Lock()
        self._next = 0.0
        self._nobody = logins.nobody()

    async def check(self, name: str, password: str) -> logins.Login | None:
        """Whose password it is; None: nobody's.

        Raises:
            Problem: ``busy``: too many ask, or that name was tried too often.
        """
        try:
            return await asyncio.wrap_future(self._submit(name, password))
        except Problem:
            self._results.labels("busy").inc()
            raise

    def close(self) -> None:
        """What is in the line is dropped."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, name: str, password: str) -> Future[logins.Login | None]:
        self._raise_if_paused(name)
        with self._lock:
            if self._waiting >= LINE:
                raise Problem("busy", "others are logging in", retry_after=2)
            self._waiting += 1
        try:
            future = self._pool.submit(self._check, name, password)
        except RuntimeError:
            self._leave(None)
            raise Problem("stopping", retry_after=5) from None
        future.add_done_callback(self._leave)
        return future

    def _leave(self, _: object) -> None:
        with self._lock:
            self._waiting -= 1

    def _raise_if_paused(self, name: str) -> None:
        wait = self._pauses.wait(name)
        if wait > 0:
            raise Problem("busy", "this name was tried too often", retry_after=wait)

    def _check(self, name: str, password: str) -> logins.Login | None:
        self._raise_if_paused(name)  # another in the line has failed meanwhile
        rest = self._next - self._clock()
        if rest > 0:
            self._sleep(rest)
        begun = self._clock()
        with self._store.reading() as db:
            login = logins.find(db, name)
        secret = self._nobody if login is None else login.secret
        if not secret.matches(password) or login is None:
            self._next = self._clock() + _REST * (self._clock() - begun)
            self._note_failure(name, login)
            return None
        self._pauses.forget(name)
        with self._store.writing() as db:
            logins.seen(db, name, now_ms())
        self._results.labels("ok").inc()
        event(_log, "somebody looks at the page", login=name)
        return login

    def _note_failure(self, name: str, login: logins.Login | None) -> None:
        self._results.labels("refused").inc()
        count = self._pauses.failed(name)
        begun, of_all = self._all
        if not of_all or self._clock() - begun > _FORGOTTEN:
            begun, of_all = self._clock(), 0
        self._all = (begun, of_all + 1)
        if count < ALARM and of_all + 1 < ALARM_OF_ALL:
            return
        # What strangers call themselves stands nowhere.
        about = {"failures": count, **({} if login is None else {"login": login.name})}
        with self._store.writing() as db:
            new = alarms.sound(db, "page-logins-refused", b"", about, now_ms())
        if new:
            event(_log, "logins are refused", level=logging.WARNING, **about)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()

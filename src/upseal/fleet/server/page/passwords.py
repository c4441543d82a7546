# SPDX-License-Identifier: Apache-2.0
"""Logging in: one scrypt at a time, a short line before it, and a pause after failures.

Strangers may ask this. So they cost one thread a quarter of its time at most, 32 MiB once, and
nothing on the disk but an alarm an hour. Names that are not there cost as much as those that are.

Passwords are made, and of 123 bits: it is not pauses that keep them from being guessed. So a pause
is for one address, and who guesses at a name keeps its owner, who is elsewhere, out for no moment.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections import Counter as Counted
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from prometheus_client import Counter
from sqlalchemy.exc import SQLAlchemyError

from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.server.store import Store, alarms, logins, now_ms

LINE = 8
"""Requests that wait for their turn."""
LINE_THERE = 4
"""Those of one address."""
FREE = 3
"""Failures of one name that cost no pause."""
LONGEST = 30.0
"""Seconds of pause at most."""
ALARM = 5
"""Failures of one name from which on there is an alarm."""
ALARM_OF_ALL = 20
"""Failures of all names within an hour, likewise."""
_FORGOTTEN = 3600.0
_NAMES = 4096
_REST, _REST_MOST = 3.0, 2.0
"""Times as long as a failure took, and seconds at most: who stops the server waits for it."""
_log = logging.getLogger("upseal.server")


class Pauses:
    """Failures by name and address, and how long it has to wait after them. Safe for threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, name: str, where: str | None = None) -> float:
        """Seconds until that name may be tried again, from there."""
        count, last = self._failures.get(_digest(name, where), (0, 0.0))
        if count < FREE:
            return 0.0
        pause = min(LONGEST, 2.0 ** min(count - FREE, 10))
        return max(0.0, last + pause - self._clock())

    def failed(self, name: str, where: str | None = None) -> int:
        """Counts a failure; how many there were."""
        digest, now = _digest(name, where), self._clock()
        with self._lock:
            count, last = self._failures.pop(digest, (0, now))
            count = 1 if now - last > _FORGOTTEN else count + 1
            self._failures[digest] = (count, now)
            while len(self._failures) > _NAMES:
                self._failures.popitem(last=False)
        return count

    def forget(self, name: str, where: str | None = None) -> None:
        """It was the right one."""
        with self._lock:
            self._failures.pop(_digest(name, where), None)


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
        self._waiting: Counted[str | None] = Counted()
        self._lock = threading.Lock()
        self._next = 0.0
        self._nobody = logins.nobody()

    async def check(
        self, name: str, password: str, where: str | None = None
    ) -> logins.Login | None:
        """Whose password it is; None: nobody's.

        Args:
            name: as it was given.
            password: likewise.
            where: the address that it came from; None: one of many that cannot be told apart.

        Raises:
            Problem: ``busy``: too many ask, or that name was tried too often; ``full``: the
                database cannot be asked.
        """
        try:
            return await asyncio.wrap_future(self._submit(name, password, where))
        except Problem:
            self._results.labels("busy").inc()
            raise
        except SQLAlchemyError:
            raise Problem("full", "the database cannot be used", retry_after=10) from None

    def close(self) -> None:
        """What is in the line is dropped."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(
        self, name: str, password: str, where: str | None = None
    ) -> Future[logins.Login | None]:
        self._raise_if_paused(name, where)
        with self._lock:
            there = self._waiting[where] if where is not None else 0
            if there >= LINE_THERE or self._waiting.total() >= LINE:
                raise Problem("busy", "others are logging in", retry_after=2)
            self._waiting[where] += 1
        try:
            future = self._pool.submit(self._check, name, password, where)
        except RuntimeError:
            self._leave(where)
            raise Problem("stopping", retry_after=5) from None
        future.add_done_callback(lambda _: self._leave(where))
        return future

    def _leave(self, where: str | None) -> None:
        with self._lock:
            self._waiting[where] -= 1
            if not self._waiting[where]:
                del self._waiting[where]

    def _raise_if_paused(self, name: str, where: str | None) -> None:
        wait = self._pauses.wait(name, where)
        if wait > 0:
            raise Problem("busy", "this name was tried too often", retry_after=wait)

    def _check(self, name: str, password: str, where: str | None) -> logins.Login | None:
        self._raise_if_paused(name, where)  # another in the line has failed meanwhile
        rest = self._next - self._clock()
        if rest > 0:
            self._sleep(rest)
        begun = self._clock()
        login = self._find(name)
        secret = self._nobody if login is None else login.secret
        if not secret.matches(password) or login is None:
            now = self._clock()
            self._next = now + min(_REST_MOST, _REST * (now - begun))
            self._note_failure(name, where, login)
            return None
        self._pauses.forget(name, where)
        # Who looks because the disk is full must not be kept out by it.
        with suppress(SQLAlchemyError), self._store.writing() as db:
            logins.seen(db, name, now_ms())
        self._results.labels("ok").inc()
        event(_log, "somebody looks at the page", login=name)
        return login

    def _find(self, name: str) -> logins.Login | None:
        try:
            logins.check_name(name)
        except ValueError:  # nothing that a database should be asked for
            return None
        with self._store.reading() as db:
            return logins.find(db, name)

    def _note_failure(self, name: str, where: str | None, login: logins.Login | None) -> None:
        self._results.labels("refused").inc()
        count = self._pauses.failed(name, where)
        begun, of_all = self._all
        if not of_all or self._clock() - begun > _FORGOTTEN:
            begun, of_all = self._clock(), 0
        self._all = (begun, of_all + 1)
        if count < ALARM and of_all + 1 < ALARM_OF_ALL:
            return
        # What strangers call themselves stands nowhere.
        about = {"failures": count, **({} if login is None else {"login": login.name})}
        new = False
        with suppress(SQLAlchemyError), self._store.writing() as db:
            new = alarms.sound(db, "page-logins-refused", b"", about, now_ms())
        if new:
            event(_log, "logins are refused", level=logging.WARNING, **about)


def _digest(name: str, where: str | None) -> bytes:
    return hashlib.sha256(f"{where}\0{name}".encode("utf-8", "surrogatepass")).digest()

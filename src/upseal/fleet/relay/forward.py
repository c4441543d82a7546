# SPDX-License-Identifier: Apache-2.0
"""Passing on: a few workers send bundles to the parent, one thread asks for what is pending.

Nothing leaves the queue but by a result from above. Whatever goes wrong here, a body goes back into
the queue and is sent again; the parent knows bodies by their id and the server units by their
number, so that a second time does no harm.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from upseal.fleet.http import results
from upseal.fleet.http.client import Backoff, Response, Unreachable
from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import MalformedResults, Result, State
from upseal.fleet.http.seldom import Seldom
from upseal.fleet.relay.books import Books, bundles
from upseal.fleet.relay.meters import Meters
from upseal.fleet.relay.queue import Queue
from upseal.fleet.relay.repackage import Prepared, Repackager, Upload, as_they_are
from upseal.fleet.relay.rows import Claimed
from upseal.fleet.relay.settings import Settings
from upseal.fleet.relay.uplink import HANDED_DOWN, PER_BODY, Uplink
from upseal.fleet.trail import body_name
from upseal.fleet.units import bundle

_log = logging.getLogger(__name__)

_ASKED = 500
"""Bodies that one request to the parent asks about."""
_IDLE = 1.0
"""Seconds after which a waiting thread looks whether it should end."""


class Others(Protocol):
    """Bodies that are not in the queue, and that the parent is asked about as well."""

    def ask(self, most: int) -> list[bytes]:
        """Ids, by which the parent knows them."""

    def answered(self, sent: bytes, answer: Result | None) -> bool:
        """Takes what the parent says of one; whether that is news."""


Receipts = Callable[[Iterable[bytes]], dict[bytes, bytes]]
"""From receipts to those that hold, by the digest of the statement each is for."""


class Forwarder:
    """The threads. ``refresh`` fetches the manifest, and says the serial that then holds."""

    def __init__(
        self,
        queue: Queue,
        uplink: Uplink,
        settings: Settings,
        meters: Meters,
        *,
        repackager: Repackager | None = None,
        receipts: Receipts = lambda _: {},
        refresh: Callable[[], int | None] = lambda: None,
        others: Others | None = None,
    ) -> None:
        self._queue, self._uplink, self._meters = queue, uplink, meters
        self._limits, self._window = settings.forward, settings.repackage
        self._repackager, self._receipts, self._refresh = repackager, receipts, refresh
        self._others = others
        self.books = Books()
        self._seldom = Seldom()
        self._alone: set[bytes] = set()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._backoff = Backoff(self._limits.retry, self._limits.retry_most)
        self._gate = 0.0
        self._has_pending = threading.Event()
        self.turns = [0] * self._limits.workers
        """Of each worker: it lives while they grow."""
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"relay-forward-{i}", daemon=True)
            for i in range(self._limits.workers)
        ] + [threading.Thread(target=self._poll, name="relay-poll", daemon=True)]

    def start(self) -> None:
        """Begins."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends after the requests under way. What is not done stays in the queue."""
        self._stop.set()
        self._has_pending.set()
        self._queue.end_claims()

    def wake(self) -> None:
        """There is more to ask the parent about."""
        self._has_pending.set()

    def join(self, timeout: float | None = None) -> bool:
        """Waits until they have ended; whether they have."""
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # -- the workers -----------------------------------------------------------------

    def _work(self, which: int) -> None:
        while not self._stop.is_set():
            self.turns[which] += 1
            if self._closed():
                continue
            claimed: list[Claimed] = []
            try:
                self._gather(claimed)
                if self._gate > time.monotonic():  # closed by another worker meanwhile
                    self._queue.release([body.id for body in claimed], counts=False)
                elif claimed:
                    self._pass_on(claimed)
            except Exception as error:
                # A mistake of ours must not cost a body: they are still on the disk.
                event(_log, "forwarding failed", level=logging.ERROR, exc=error)
                self.books.give_up([body.id for body in claimed])
                self._again([body.id for body in claimed], "error", self._limits.retry_most)

    def _closed(self) -> bool:
        """Waits a little if the parent wants no requests now, or has enough to answer for."""
        left = self._gate - time.monotonic()
        if left > 0:
            self._stop.wait(min(left, _IDLE))
            return True
        if self.books.waiting >= self._limits.pending:
            self._stop.wait(0.1)
            return True
        return False

    def _gather(self, claimed: list[Claimed]) -> None:
        """Bodies for the next round; waits for some, but not long."""
        limits = self._limits
        if self._repackager is None:
            claimed += self._queue.claim(limits.bundle_bytes, limits.bundle_bodies, _IDLE)
            return
        # The first body opens a window, for others to come into the same batch.
        claimed += self._queue.claim(self._window.bytes, self._window.records, _IDLE)
        end = time.monotonic() + self._window.window
        size = sum(len(body.body) for body in claimed)
        while claimed and size < self._window.bytes and len(claimed) < self._window.records:
            left = end - time.monotonic()
            if left <= 0 or self._stop.is_set():
                break
            more = self._queue.claim(
                self._window.bytes - size, self._window.records - len(claimed), left
            )
            size += sum(len(body.body) for body in more)
            claimed += more

    def _pass_on(self, claimed: list[Claimed]) -> None:
        prepared = self._prepare(claimed)
        self.books.note(prepared)
        if prepared.problems:
            self._finish(prepared.problems)
        limits = self._limits
        groups = list(bundles(prepared.uploads, limits.bundle_bytes, limits.bundle_bodies))
        for i, group in enumerate(groups):
            if not self._send(group):
                # The parent is away, or full: the rest need not be tried.
                rest = [upload for later in groups[i + 1 :] for upload in later]
                self._again(self.books.failed(rest), "parent", 0.0, counts=False)
                return

    def _prepare(self, claimed: list[Claimed]) -> Prepared:
        if self._repackager is None:
            return as_they_are(claimed)
        with self._lock:
            alone = frozenset(self._alone.intersection(body.id for body in claimed))
        return self._repackager.prepare(claimed, alone)

    def _send(self, group: list[Upload]) -> bool:
        """Sends uploads in one request; False if the parent takes nothing now."""
        body = group[0].body if len(group) == 1 else bundle([upload.body for upload in group])
        # While it has other bodies to answer for, this worker need not be held as well.
        wait = self._limits.wait if not self.books.waiting else min(1.0, self._limits.wait)
        try:
            response = self._request("/v1/units", body, wait)
            answers = {answer.body: answer for answer in results.decode(response.body)}
        except (Unreachable, MalformedResults) as error:
            self._shut(None)
            event(_log, "no answer from the parent", level=logging.WARNING, why=str(error))
            self._again(self.books.failed(group), "parent", 0.0, counts=False)
            return False
        except Problem as problem:
            return self._refused(group, problem)
        for upload in group:
            how = "repackaged" if upload.repackaged else "passed"
            self._meters.sent.labels(how).inc()
            self._meters.sent_bytes.inc(len(upload.body))
            self._meters.package_bytes.observe(len(upload.body))
            if _log.isEnabledFor(logging.DEBUG):
                name, size = body_name(upload.id), len(upload.body)
                event(_log, "body passed on", level=logging.DEBUG, body=name, how=how, bytes=size)
        with self._lock:
            self._backoff.reset()
        for upload in group:
            self._settle(upload, answers.get(upload.id))
        return True

    def _request(self, path: str, body: bytes, wait: float) -> Response:
        begun = time.perf_counter()
        outcome = "unreachable"
        kind = "application/json" if path == "/v1/results" else "application/octet-stream"
        try:
            response = self._uplink.post(path, body, wait=wait, kind=kind)
            outcome = "answered"
            return response
        except Problem as problem:
            outcome = problem.name
            raise
        finally:
            self._meters.requests.labels(outcome).inc()
            self._meters.parent_seconds.observe(time.perf_counter() - begun)

    def _refused(self, group: list[Upload], problem: Problem) -> bool:
        """The parent refused a whole request."""
        if problem.name in PER_BODY:
            if len(group) == 1:
                self._problem(group[0], problem)
                return True
            middle = len(group) // 2
            first, second = group[:middle], group[middle:]
            if self._send(first):
                return self._send(second)
            self._again(self.books.failed(second), "parent", 0.0, counts=False)
            return False
        # Away, full, or no longer on speaking terms with us: nothing is wrong with the bodies.
        self._shut(problem.retry_after if problem.temporary else self._limits.retry_most)
        self._again(self.books.failed(group), problem.name, 0.0, counts=False)
        return False

    def _shut(self, asked: float | None) -> None:
        with self._lock:
            if self._gate <= time.monotonic():  # workers that fail together count as one failure
                self._gate = time.monotonic() + self._backoff.next(asked)

    # -- what became of an upload ------------------------------------------------------

    def _settle(self, upload: Upload, answer: Result | None) -> None:
        if answer is None or answer.state is State.UNKNOWN:
            self._again(self.books.failed([upload]), "unknown", self._limits.retry)
        elif answer.state is State.PENDING:
            self.books.pending(upload)
            self._has_pending.set()
        elif answer.problem is not None:
            self._problem(upload, answer.problem)
        elif upload.repackaged:
            self._receipted(upload, answer.receipts)
        else:
            self._finish([answer])

    def _receipted(self, upload: Upload, receipts: Sequence[bytes]) -> None:
        good = self._receipts(receipts)
        done, again = self.books.delivered(upload, good)
        missing = sum(d not in good for digests in upload.origins.values() for d in digests)
        if missing:
            self._meters.missing.inc(missing)
            event(_log, "receipts missing", level=logging.WARNING, units=missing, again=len(again))
        self._again(again, "receipts", self._limits.retry)
        self._finish(done)

    def _problem(self, upload: Upload, problem: Problem) -> None:
        """The parent answered an upload with a problem."""
        left_out = self._seldom.tell()
        if left_out is not None:
            event(
                _log,
                "problem from the parent",
                level=logging.WARNING,
                problem=problem.name,
                detail=problem.detail,
                bodies=len(upload.origins),
                repackaged=upload.repackaged,
                left_out=left_out,
            )
        if problem.temporary:
            delay = max(self._limits.retry, problem.retry_after or 0.0)
            self._again(self.books.failed([upload]), problem.name, delay)
        elif not upload.repackaged:
            self._finish([Result.failed(upload.id, problem)])
        elif problem.name == "stale-key":
            # Once at once for each manifest: what does not help then, helps later or not at all.
            news = self._refresh() != upload.serial
            delay = 0.0 if news else self._limits.retry
            self._again(self.books.failed([upload]), problem.name, delay, counts=not news)
        elif problem.name in HANDED_DOWN and len(upload.origins) == 1:
            (body_id,) = upload.origins
            self.books.failed([upload])
            self.books.give_up([body_id])
            self._finish([Result.failed(body_id, problem)])
        else:
            # One body spoils it for all: each gets a batch of its own. Other problems (a parent
            # that takes nothing sealed, say) are between it and us, and the bodies wait.
            again = self.books.failed([upload])
            spoilt = problem.name in HANDED_DOWN
            if spoilt:
                with self._lock:
                    self._alone.update(again)
            self._again(again, problem.name, 0.0 if spoilt else self._limits.retry_most)

    def _finish(self, done: Sequence[Result]) -> None:
        if done:
            with self._lock:
                self._alone.difference_update(result.body for result in done)
            self._queue.finish(done)

    def _again(
        self, bodies: Sequence[bytes], why: str, delay: float, *, counts: bool = True
    ) -> None:
        """Back into the queue; the longer the more often it happens."""
        if not bodies:
            return
        self._meters.resent.labels(why).inc(len(bodies))
        self._queue.release(bodies, delay, most=self._limits.retry_most, counts=counts)

    # -- what is pending at the parent ---------------------------------------------------

    def _poll(self) -> None:
        backoff = Backoff(self._limits.retry, self._limits.retry_most)
        fruitless = 0
        while not self._stop.is_set():
            self._has_pending.clear()
            asked = self.books.ask(_ASKED)
            others = [] if self._others is None else self._others.ask(_ASKED)
            if not asked and not others:
                self._has_pending.wait(_IDLE)
                continue
            try:
                settled = self._ask(asked, others)
            except (Unreachable, MalformedResults):
                self._stop.wait(backoff.next())
                continue
            except Problem as problem:
                own = problem.retry_after if problem.temporary else self._limits.retry_most
                self._stop.wait(backoff.next(own))
                continue
            except Exception as error:
                event(_log, "asking for results failed", level=logging.ERROR, exc=error)
                self._stop.wait(backoff.next())
                continue
            backoff.reset()
            # A parent that does not hold its answers is not asked all the time.
            fruitless = 0 if settled else min(fruitless + 1, 5)
            if fruitless:
                self._stop.wait(0.05 * 2**fruitless)

    def _ask(self, asked: Sequence[Upload], others: Sequence[bytes]) -> int:
        """Asks once; how many were settled."""
        body = results.encode_ids([*(upload.id for upload in asked), *others])
        response = self._request("/v1/results", body, self._limits.wait)
        answers = {answer.body: answer for answer in results.decode(response.body)}
        settled = 0
        if self._others is not None:
            settled += sum(self._others.answered(sent, answers.get(sent)) for sent in others)
        for upload in asked:
            answer = answers.get(upload.id)
            if answer is not None and answer.state is State.PENDING:
                continue
            if not self.books.answered(upload):
                continue
            settled += 1
            try:
                self._settle(upload, answer)
            except Exception as error:
                event(_log, "settling failed", level=logging.ERROR, exc=error)
                bodies = list(upload.origins)
                self.books.give_up(bodies)
                self._again(bodies, "error", self._limits.retry_most)
        return settled

# SPDX-License-Identifier: Apache-2.0
"""Carrying whole bodies of uploads to the parent, until their results are on our own disk.

Workers carry bodies. What the parent has and has not answered for is asked about together with
everything else (`Forwarder`). A body leaves the shelf when its result is durable in the queue's
file, and not before: a process killed in between finds both, and takes the body away then.

A decrypting relay seals what came in clear (`Wraps`) and carries that: the parent knows it by
another id than those below, and its result is noted under theirs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from upseal.fleet.http import results
from upseal.fleet.http.client import Unreachable
from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import MalformedResults, Result, State
from upseal.fleet.manifest import Manifest
from upseal.fleet.relay.jobs import Job, Jobs
from upseal.fleet.relay.meters import Meters
from upseal.fleet.relay.queue import Queue
from upseal.fleet.relay.settings import Settings
from upseal.fleet.relay.source import Lost, Source
from upseal.fleet.relay.uplink import HANDED_DOWN, PER_BODY, REFUSED, Uplink
from upseal.fleet.relay.wrapping import DiskFull, Stopped, Wraps
from upseal.fleet.trail import body_name
from upseal.fleet.uploads.carrier import Carrier, Throttle
from upseal.fleet.uploads.ondisk import looks_sealed
from upseal.fleet.uploads.shelf import Held, Locked, Shelf
from upseal.fleet.uploads.words import Ticket

_log = logging.getLogger(__name__)

_MOST_RECEIPTS = 16
"""A body has one. Who sends more than a few is not to fill our disk with them."""
_FIRST_WAIT = 1.0
"""Seconds that a worker waits for a result by itself: many are there then."""
_TURN = 30.0
"""Seconds that a body goes up while others wait for a worker: then it is their turn."""


class _MakesWay(Exception):  # noqa: N818 - what it does
    """Others wait. It goes on from where it is when it is its turn again."""


class _Reconsider(Exception):  # noqa: N818 - what is to be done
    """What was decided about a body does not hold any more."""


class Above(Protocol):
    """What a relay believes, and who can say more."""

    def current(self) -> Manifest | None:
        """The newest verified manifest."""

    def serial(self) -> int | None:
        """Fetches it; the serial that holds then."""


class Carrying:
    """The workers. Safe for threads.

    Args:
        settings: the relay's.
        shelf, wraps: its folders.
        queue: where results are kept.
        uplink: to the parent.
        meters: count what happens.
        above: what it believes.
        receipts: from receipts to those that verify, by what each is for.
        told: is told of each result, when the body has left the shelf.
    """

    def __init__(
        self,
        settings: Settings,
        shelf: Shelf,
        wraps: Wraps,
        queue: Queue,
        uplink: Uplink,
        meters: Meters,
        above: Above,
        *,
        receipts: Callable[[Iterable[bytes]], dict[bytes, bytes]],
        told: Callable[[Sequence[Result]], None],
    ) -> None:
        self._forward, self._decrypting = settings.forward, settings.decrypting
        self._shelf, self._wraps, self._queue = shelf, wraps, queue
        self._uplink, self._meters, self._above = uplink, meters, above
        self._receipts, self._told = receipts, told
        limits = settings.uploads
        throttle = Throttle(limits.throttle)
        self._carrier = Carrier(uplink, piece=limits.piece, throttle=throttle)
        self.stopping = threading.Event()
        self._jobs = Jobs(self._forward.retry, self._forward.retry_most)
        self.wake: Callable[[], None] = lambda: None
        """Called when there is something new to ask the parent about."""
        self.threads = [
            threading.Thread(target=self._work, name=f"relay-upload-{i}", daemon=True)
            for i in range(limits.workers)
        ]

    def add(self, held: Held) -> None:
        """A body is whole."""
        self._jobs.add(held.body_id, held.hop)

    def stop(self) -> None:
        """Ends the workers after the requests under way. What is not done stays on the shelf."""
        self.stopping.set()
        self._jobs.end()

    @property
    def waiting(self) -> int:
        """Whole bodies without a result."""
        return len(self._jobs)

    # -- what the parent is asked about, together with what else it has ----------------------

    def ask(self, most: int) -> list[bytes]:
        """Ids of bodies that the parent has and has not answered for."""
        return self._jobs.ask(most)

    def answered(self, sent: bytes, answer: Result | None) -> bool:
        """Takes what the parent says of one; whether that is news."""
        if answer is not None and answer.state is State.PENDING:
            return False
        job = self._jobs.answered(sent)
        if job is None:
            return False
        self._guarded(job, self._settle, answer)
        return True

    # -- the workers ---------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.next()) is not None:
            self._guarded(job, self._pass_on)

    def _guarded(self, job: Job, work: Callable[..., None], *args: Any) -> None:
        try:
            work(job, *args)
        except Stopped:
            pass
        except _Reconsider:
            self._again(job, "reconsidered", 0.0, counts=False)
        except _MakesWay:
            self._again(job, "turn", 0.0, counts=False)
        except Exception as error:
            # A mistake of ours, or of our disk, must not cost a body: it is still on the shelf.
            if not self.stopping.is_set():
                event(_log, "passing an upload on failed", level=logging.ERROR, exc=error)
            self._again(job, "error", self._forward.retry_most)

    def _again(self, job: Job, why: str, delay: float, *, counts: bool = True) -> None:
        """Later; the later the more often it happens."""
        self._meters.uploads_again.labels(why).inc()
        self._jobs.again(job, delay, counts=counts)

    def _pass_on(self, job: Job) -> None:
        held = self._held(job.body)
        if held is None:  # whoever sent it has taken it back
            self._wraps.drop(job.body)
            self._forget(job)
            return
        kept = self._queue.lookup([job.body]).get(job.body)
        if kept is not None and kept.state is State.DONE:
            self._clear(job)  # a process was killed before it could, or it came by a second way
            return
        if job.doubt is not None and self._judged(job, job.doubt):
            return
        try:
            ticket, path = self._way(job, held)
            before = self._reading(ticket)
            with Source(path, ticket.size, before) as source:
                if not self._carrier.carry(ticket, source, self.stopping):
                    return
        except Lost:
            self._lose(job, held)
        except DiskFull:
            event(_log, "no room to seal an upload", level=logging.ERROR, **names(held.ticket))
            self._again(job, "full", self._forward.retry_most)
        except Unreachable as error:
            self._away(job, error)
        except Problem as problem:
            self._refused(job, problem)
        else:
            self._jobs.arrived()
            self._meters.uploads_sent.labels("passed" if job.wrapped is None else "sealed").inc()
            event(_log, "upload sent", bytes=ticket.size, **names(ticket))
            self._first(job, ticket.body_id)

    def _held(self, body: bytes) -> Held | None:
        """A body on the shelf that is whole: if they were declared differently, the true one."""
        whole = [held for held in self._shelf.by_body(body) if held.state == "whole"]
        if len({held.ticket.form for held in whole}) > 1:
            with suppress(OSError):
                form = "sealed" if looks_sealed(whole[0].path) else "clear"
                whole = [held for held in whole if held.ticket.form == form]
        return whole[0] if whole else None

    def _way(self, job: Job, held: Held) -> tuple[Ticket, Path]:
        """What goes up for it: what came, or what this relay seals of it."""
        job.wrapped = self._wraps.find(job.body)
        manifest = self._above.current()
        if job.wrapped is None and self._seals(held.ticket) and manifest is not None:
            begun = time.perf_counter()
            job.wrapped = self._wraps.make(
                job.body, held.ticket, held.path, manifest, self.stopping
            )
            seconds = time.perf_counter() - begun
            self._meters.uploads_sealed.inc()
            self._meters.sealing_seconds.observe(seconds)
            into = body_name(job.wrapped.ticket.body_id)
            event(_log, "upload sealed", into=into, ms=round(seconds * 1000), **names(held.ticket))
        if job.wrapped is not None:
            return job.wrapped.ticket, job.wrapped.path
        return held.ticket, held.path

    def _seals(self, ticket: Ticket) -> bool:
        """Whether it goes up sealed by this relay, by the manifest that holds now."""
        manifest = self._above.current()
        clear = ticket.form == "clear"
        return clear and self._decrypting and manifest is not None and manifest.active

    def _reading(self, ticket: Ticket) -> Callable[[int], None]:
        """For one turn of a body: to be called before so many bytes are read to be sent."""
        end: float | None = None

        def before(count: int) -> None:
            nonlocal end
            if self._seals(ticket):
                raise _Reconsider
            if end is None:  # one piece at least
                end = time.monotonic() + _TURN
            elif time.monotonic() >= end and self._jobs.others():
                raise _MakesWay
            self._meters.upload_bytes_sent.inc(count)

        return before

    def _first(self, job: Job, sent: bytes) -> None:
        """Asks at once what became of a body that the parent has."""
        body = results.encode_ids([sent])
        wait = min(_FIRST_WAIT, self._forward.wait)
        answer: Result | None
        try:
            response = self._uplink.post("/v1/results", body, wait=wait, kind="application/json")
            found = {answer.body: answer for answer in results.decode(response.body)}
            answer = found.get(sent)
        except (Unreachable, MalformedResults, Problem):
            answer = Result.pending(sent)  # the others who ask will hear what is wrong
        if answer is not None and answer.state is State.PENDING:
            self._jobs.pending(sent, job)
            self.wake()
        else:
            self._settle(job, answer)

    # -- what became of a body -------------------------------------------------------------

    def _away(self, job: Job, error: Unreachable) -> None:
        event(_log, "no answer from the parent", level=logging.WARNING, why=str(error))
        self._jobs.shut(None)
        self._again(job, "parent", 0.0, counts=False)

    def _refused(self, job: Job, problem: Problem) -> None:
        """The parent refused a request that was to carry it."""
        if problem.name in PER_BODY:
            self._problem(job, problem)
            return
        if problem.name in REFUSED:  # it is no longer on speaking terms with us
            self._jobs.shut(self._forward.retry_most)
        delay = max(self._forward.retry, problem.retry_after or 0.0)
        self._again(job, problem.name, delay, counts=problem.name not in REFUSED)

    def _settle(self, job: Job, answer: Result | None) -> None:
        if answer is None or answer.state is State.UNKNOWN:
            self._again(job, "unknown", self._forward.retry)
        elif answer.problem is not None:
            self._problem(job, answer.problem)
        else:
            good = self._receipts(answer.receipts[:_MOST_RECEIPTS])
            if 0 < len(answer.receipts) == len(good):
                self._finish(job, Result.done(job.body, answer.receipts))
            else:  # nobody has answered for it yet whom we believe
                self._again(job, "receipts", self._forward.retry)

    def _problem(self, job: Job, problem: Problem) -> None:
        event(
            _log,
            "problem with an upload",
            level=logging.WARNING,
            problem=problem.name,
            detail=problem.detail,
            body=body_name(job.body),
            sealed_here=job.wrapped is not None,
        )
        if problem.temporary:
            delay = max(self._forward.retry, problem.retry_after or 0.0)
            self._again(job, problem.name, delay)
        elif job.wrapped is None:
            self._finish(job, Result.failed(job.body, problem))
        elif problem.name == "stale-key":
            # Once at once for each manifest: what does not help then, helps later or not at all.
            news = self._above.serial() != job.wrapped.serial
            if news:
                self._wraps.drop(job.body)
            self._again(job, problem.name, 0.0 if news else self._forward.retry, counts=not news)
        elif problem.name in HANDED_DOWN:
            job.doubt = problem
            self._again(job, problem.name, 0.0, counts=False)
        else:  # between the parent and us (one that takes nothing sealed, say): it waits
            self._again(job, problem.name, self._forward.retry_most)

    def _judged(self, job: Job, problem: Problem) -> bool:
        """A problem of a body sealed here: hands it down, unless it is our disk's."""
        job.doubt, wrapped = None, self._wraps.find(job.body)
        if wrapped is not None and not self._wraps.sound(wrapped, self.stopping):
            event(_log, "sealed body damaged; it is made anew", level=logging.ERROR)
            self._wraps.drop(job.body)
            return False
        self._finish(job, Result.failed(job.body, problem))
        return True

    def _finish(self, job: Job, result: Result) -> None:
        """Keeps the result; then, and not before, the body goes."""
        held = self._held(job.body)
        now = time.time_ns() // 1_000_000
        received = now if held is None else held.received
        self._queue.keep(result, received).result()
        self._clear(job)
        self._told([result])
        self._meters.uploads_finished.labels(result.state.value).inc()
        if result.problem is not None:
            self._meters.problems.labels(result.problem.name).inc()
        if held is not None:
            self._meters.upload_seconds.observe(max(0, now - received) / 1000)
            event(_log, "upload done", state=result.state.value, **names(held.ticket))

    def _lose(self, job: Job, held: Held) -> None:
        """The disk has lost it. Whoever sent it has it, is told "unknown", and sends it again."""
        if job.wrapped is not None:
            self._wraps.drop(job.body)  # only what was sealed of it: that can be made anew
        elif not held.gone:
            event(_log, "upload lost by the disk", level=logging.ERROR, **names(held.ticket))
            with suppress(Locked):
                self._shelf.remove(held)
        self._again(job, "lost", 0.0)

    def _clear(self, job: Job) -> None:
        """Takes a body away that has its result."""
        self._wraps.drop(job.body)
        for held in self._shelf.by_body(job.body):
            if held.state == "whole":
                with suppress(Locked):  # somebody is just doing the same
                    self._shelf.remove(held)
        self._forget(job)

    def _forget(self, job: Job) -> None:
        self._jobs.forget(job)
        held = self._held(job.body)
        if held is not None:  # it came by a second way meanwhile
            self.add(held)


def names(ticket: Ticket) -> dict[str, Any]:
    """For the log: by which a file is followed from agent to store."""
    return {"upload": ticket.upload.hex(), "body": body_name(ticket.body_id)}

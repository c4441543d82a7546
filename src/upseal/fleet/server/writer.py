# SPDX-License-Identifier: Apache-2.0
"""One thread writes: what many requests want is one transaction, and one flush of the disk."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from upseal.fleet.http.logs import event
from upseal.fleet.server.store import (
    Store,
    activity,
    alarms,
    deadletters,
    now_ms,
    units,
    uploads,
)
from upseal.fleet.server.store.units import NewUnit
from upseal.fleet.units import Status

_GROUP_BYTES = 32 << 20
_MALFORMED_PART = 8
_log = logging.getLogger("upseal.server.writer")


class Letter(NamedTuple):
    """A body to keep."""

    id: bytes
    body: bytes
    hop: bytes
    role: str
    received: int
    reason: str
    key_id: bytes | None


class Settled(NamedTuple):
    """What became of a dead letter that was replayed."""

    id: bytes
    done: bool
    reason: str | None


@dataclass(slots=True)
class Job:
    """What one request wants written, all of it or nothing."""

    units: Sequence[NewUnit] = ()
    beacons: Sequence[NewUnit] = ()
    alarms: Mapping[tuple[str, bytes], tuple[int, Mapping[str, Any]]] = field(default_factory=dict)
    """(kind, subject): how often, and details of the first."""
    letters: Sequence[Letter] = ()
    settled: Sequence[Settled] = ()
    size: int = 0
    """About how many bytes, so that a group stays small."""

    @property
    def empty(self) -> bool:
        """Nothing to write."""
        return not (self.units or self.beacons or self.alarms or self.letters or self.settled)


class Outcome(NamedTuple):
    """What became of a job: in the order of its units, beacons and letters."""

    units: list[Status]
    beacons: list[Status]
    letters: list[bool]
    """False: beyond the quota, not kept."""
    ids: Sequence[int] = ()
    """For each unit the id of its first report; 0 if it was not stored now."""


class Quota(NamedTuple):
    """Bytes of dead letters: in all, and of one hop."""

    total: int
    hop: int


class Writer:
    """The thread. A job's future is set once its transaction is on the disk.

    A group that fails is rolled back and its jobs are tried one by one, so that one bad job costs
    no other.
    """

    def __init__(
        self,
        store: Store,
        group_units: int,
        quota: Quota,
        *,
        deployment: bytes = bytes(16),
        announced: Callable[[Sequence[bytes]], object] = lambda _: None,
    ) -> None:
        """Starts it; ``announced`` is told of uploads that were announced, once that is on disk."""
        self._store = store
        self._deployment = deployment
        self._announced = announced
        self._group_units = group_units
        self._quota = quota
        self._jobs: deque[tuple[Job, Future[Outcome]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self.groups = self.turns = 0
        self._writing = False
        self.busy_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="upseal-writer", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._jobs)

    @property
    def progress(self) -> tuple[bool, int]:
        """Whether there is something to write, and how many groups and jobs were tried."""
        return bool(self._jobs) or self._writing, self.turns

    @property
    def alive(self) -> bool:
        """The thread runs."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> Future[Outcome]:
        """Writes a job; the future holds its outcome or the error.

        Raises:
            RuntimeError: closed.
        """
        future: Future[Outcome] = Future()
        future.set_running_or_notify_cancel()  # who no longer waits must not cancel what is written
        if job.empty:
            future.set_result(Outcome([], [], []))
            return future
        with self._changed:
            if self._closing:
                raise RuntimeError("the writer is closed")
            self._jobs.append((job, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Writes what was submitted, then ends."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while group := self._next():
            begun = time.perf_counter()
            self._writing = True
            try:
                self._write(group)
            except BaseException as error:  # a bug of ours must leave nobody waiting
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)
            self._writing = False
            self.turns += 1
            self.busy_seconds += time.perf_counter() - begun

    def _next(self) -> list[tuple[Job, Future[Outcome]]]:
        """The jobs of the next transaction; none at the end."""
        group: list[tuple[Job, Future[Outcome]]] = []
        count = size = 0
        with self._changed:
            while not self._jobs and not self._closing:
                self._changed.wait()
            while self._jobs:
                job = self._jobs[0][0]
                count += len(job.units)
                size += job.size
                if group and (count > self._group_units or size > _GROUP_BYTES):
                    break
                group.append(self._jobs.popleft())
        return group

    def _write(self, group: list[tuple[Job, Future[Outcome]]]) -> None:
        try:
            with self._store.writing() as db:
                outcomes, announced = self._transaction(db, [job for job, _ in group])
        except Exception as error:
            if len(group) > 1:
                for one in group:
                    self._write([one])
                    self.turns += 1  # each may wait for a database that is away
                return
            job, future = group[0]
            future.set_exception(error)
            event(
                _log, "not written", level=logging.ERROR, exc=error, why=_why(error),
                units=len(job.units),
            )  # fmt: skip
            return
        self.groups += 1
        if announced:
            self._announced(announced)
        for (_, future), outcome in zip(group, outcomes, strict=True):
            future.set_result(outcome)

    def _transaction(
        self, db: Connection, jobs: Sequence[Job]
    ) -> tuple[list[Outcome], list[bytes]]:
        """All units of all jobs at once; what is rare, one by one.

        With the outcomes comes which uploads were announced.
        """
        new = [unit for job in jobs for unit in job.units]
        ids: list[int] = []
        statuses = units.add(db, new, ids)
        now = now_ms()
        activity.note_units(db, new, statuses, now)
        announced = uploads.note(db, self._deployment, uploads.announced_in(new, statuses))
        sounded: dict[tuple[str, bytes], tuple[int, Mapping[str, Any]]] = {}
        for unit, status in zip(new, statuses, strict=True):
            if status is Status.CONTRADICTION:
                which = {"epoch": unit.epoch.hex(), "sequence": unit.sequence}
                _count(sounded, ("contradiction", unit.agent), 1, which)
        outcomes, at = [], 0
        taken = deadletters.Taken(db) if any(job.letters for job in jobs) else None
        for job in jobs:
            kept = [self._keep(db, letter, sounded, taken) for letter in job.letters]
            news = activity.note_beacons(db, job.beacons, now)
            for settled in job.settled:
                deadletters.settle(db, settled.id, done=settled.done, reason=settled.reason)
            for alarm, (times, details) in job.alarms.items():
                _count(sounded, alarm, times, details)
            end = at + len(job.units)
            outcomes.append(Outcome(statuses[at:end], news, kept, ids[at:end]))
            at = end
        for (kind, subject), (times, details) in sounded.items():
            alarms.sound(db, kind, subject, details, now, times)
        return outcomes, announced

    def _keep(
        self,
        db: Connection,
        letter: Letter,
        sounded: dict[tuple[str, bytes], tuple[int, Mapping[str, Any]]],
        taken: deadletters.Taken | None,
    ) -> bool:
        quota = self._quota
        # What is malformed is kept to be looked at, and never in the place of what can be replayed.
        part = _MALFORMED_PART if letter.reason == deadletters.MALFORMED else 1
        kept = deadletters.put(
            db,
            **letter._asdict(),
            total_quota=quota.total // part,
            hop_quota=quota.hop // part,
            taken=taken,
        )
        if not kept and part == 1:
            _count(sounded, ("dead-letters-full", letter.hop), 1, {"reason": letter.reason})
        return kept


def _count(
    sounded: dict[tuple[str, bytes], tuple[int, Mapping[str, Any]]],
    which: tuple[str, bytes],
    times: int,
    details: Mapping[str, Any],
) -> None:
    before, first = sounded.get(which, (0, details))
    sounded[which] = (before + times, first)


def _why(error: Exception) -> str:
    """A database's own words (a full disk, say), never the statement with its parameters."""
    if isinstance(error, SQLAlchemyError):
        # The first line: PostgreSQL's others quote the row.
        words = str(getattr(error, "orig", None) or type(error).__name__)
        return words.partition("\n")[0][:200]
    return type(error).__name__

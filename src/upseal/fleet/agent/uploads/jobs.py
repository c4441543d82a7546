# SPDX-License-Identifier: Apache-2.0
"""Uploads that wait, as the sending thread has them in mind, and what an answer says of one.

Only in memory. After a restart each is looked at again: the parent says what it has of it.
"""

from __future__ import annotations

import enum
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upseal.fleet.agent.settings import Send
from upseal.fleet.agent.tally import Tally
from upseal.fleet.agent.uploads.making import Body
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result, State
from upseal.fleet.identity import VerifyKey
from upseal.fleet.units import BadReceipt, Status, open_receipt

_AT_ONCE = 3
"""Tries that follow each other without a pause: a parent that forgets must not keep us busy."""
_RECEIPTS = 64
_SHOWN = 200
_random = random.SystemRandom()


class Stage(enum.Enum):
    """Where an upload is."""

    READY = "waiting"
    SENDING = "sending"
    PENDING = "pending"
    """The parent has all of it, and has not answered for it."""
    RECEIPTED = "receipted"
    """The server has it; only the disk did not let us take it out."""


@dataclass(eq=False, slots=True)
class Job:
    """One of them."""

    number: int
    """Of its row."""
    upload: str = ""
    stage: Stage = Stage.READY
    body: Body | None = None
    """What was sent last."""
    tries: int = 0
    not_before: float = 0.0
    stale: bool = False
    """The file as it lies there was said to be sealed to a key that is retired."""
    sent: int = 0
    asked: float = 0.0
    """When the parent was asked about it last."""
    looked: float = 0.0
    """When its file was looked at last, since the body was said to be malformed."""
    why: str | None = None
    """What keeps it, in a few words."""

    @property
    def body_id(self) -> bytes:
        """What the parent calls it; empty before it was sent."""
        return b"" if self.body is None else self.body.ticket.body_id


class Jobs:
    """All of them, oldest first. Safe to share between threads.

    Args:
        send: how long to wait before something is tried again.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._jobs: dict[int, Job] = {}
        self._lock = threading.Lock()
        self.newest = 0
        """The highest number seen."""

    def add(self, number: int) -> None:
        """One that waits."""
        with self._lock:
            self._jobs.setdefault(number, Job(number))
            self.newest = max(self.newest, number)

    def drop(self, job: Job) -> None:
        """Forgets it."""
        with self._lock:
            self._jobs.pop(job.number, None)

    def all(self) -> list[Job]:
        """As they are now."""
        with self._lock:
            return list(self._jobs.values())

    def of(self, stage: Stage) -> list[Job]:
        """In this stage."""
        return [job for job in self.all() if job.stage is stage]

    def asked(self, most: int, now: float) -> dict[bytes, Job]:
        """Of those that the parent has, the ones not asked about for longest, by body id."""
        pending = sorted(self.of(Stage.PENDING), key=lambda job: job.asked)[:most]
        for job in pending:
            job.asked = now
        return {job.body_id: job for job in pending}

    def next_ready(self, now: float) -> Job | None:
        """The oldest that may be sent."""
        for job in self.all():
            if job.stage is Stage.READY and job.not_before <= now:
                return job
        return None

    def next_time(self) -> float:
        """When the first of those that wait for their time may be sent; 0 if none does."""
        return min((job.not_before for job in self.of(Stage.READY)), default=0.0)

    def again(self, job: Job, now: float, why: str | None, *, at_once: bool = False) -> None:
        """It is to be sent again: at once, or after a time that grows with every try."""
        job.tries += 1
        job.stage, job.why = Stage.READY, why
        if at_once and job.tries <= _AT_ONCE:
            job.not_before = now
            return
        reach = min(self._send.retry_most, self._send.retry * 2 ** min(job.tries, 20))
        job.not_before = now + _random.uniform(reach / 2, reach)

    def all_at_once(self) -> None:
        """Much may have changed: what waits for its time need not."""
        for job in self.all():
            job.not_before = 0.0

    def snapshot(self) -> dict[str, Any]:
        """For people, of the oldest: by upload id."""
        found = {}
        for job in self.all()[:_SHOWN]:
            size = None if job.body is None else job.body.ticket.size
            if job.upload:
                found[job.upload] = {
                    "stage": job.stage.value,
                    "sent": job.sent,
                    "of": size,
                    "why": job.why,
                }
        return found


def about_us(problem: Problem) -> bool:
    """Whether it is about who asks, so that it would be the same for another upload."""
    return problem.status in (401, 403)


class Verdict(enum.Enum):
    """What an answer says of an upload."""

    STORED = "stored"
    REFUSED = "refused"
    PENDING = "pending"
    UNKNOWN = "unknown"
    PROBLEM = "problem"
    NONE = "none"
    """Nothing that counts."""

    @property
    def announce_after(self) -> int:
        """Milliseconds after which a body that is not stored is announced once more.

        Its report may be gone from the spool, and not have come to where the body is.
        """
        return ANNOUNCE_AGAIN[self]


ANNOUNCE_AGAIN = {Verdict.UNKNOWN: 600_000, Verdict.PENDING: 6 * 3_600_000}


def judged(
    result: Result | None, digest: bytes, keys: Mapping[bytes, VerifyKey], deployment: bytes,
    tally: Tally,
) -> Verdict:  # fmt: skip
    """What it comes to. Nothing ends an upload but a receipt that verifies and is for it.

    Args:
        result: of this body; from anywhere.
        digest: of its announcement.
        keys: receipt keys, by key id.
        deployment: ours.
        tally: where forgeries are counted.
    """
    match None if result is None else result.state:
        case State.PENDING:
            return Verdict.PENDING
        case State.UNKNOWN:
            return Verdict.UNKNOWN
        case State.PROBLEM:
            return Verdict.PROBLEM
        case None:
            return Verdict.NONE
    assert result is not None
    found = Verdict.NONE
    for data in result.receipts[:_RECEIPTS]:
        try:
            receipt = open_receipt(data, keys, deployment)
        except BadReceipt:
            tally.add("forged")
            continue
        if receipt.statement_digest != digest:
            tally.add("receipts_for_others")
        elif Status(receipt.status).held:
            return Verdict.STORED
        else:
            found = Verdict.REFUSED
    return found

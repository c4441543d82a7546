# SPDX-License-Identifier: Apache-2.0
"""The thread that sends uploads: one file at a time, each until the server has receipted it.

What is on the disk is the truth, as for reports. The thread may end at any point, and so may the
parent, and the one above it: whoever goes on asks how much is there, and sends the rest.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from upseal.fleet.agent.deliveries import JSON
from upseal.fleet.agent.membership import Credentials
from upseal.fleet.agent.pace import Pace
from upseal.fleet.agent.parent import Believed, Parent, Unreachable
from upseal.fleet.agent.sender import Sender
from upseal.fleet.agent.settings import Settings
from upseal.fleet.agent.spool import SpoolError
from upseal.fleet.agent.tally import Alarms, Tally
from upseal.fleet.agent.uploads.bodies import Damaged
from upseal.fleet.agent.uploads.carrying import Changed, CheckedLink, Pulse, Stopped, take_back
from upseal.fleet.agent.uploads.jobs import Job, Jobs, Stage, Verdict, about_us, judged
from upseal.fleet.agent.uploads.making import Body, Travel, travel_of
from upseal.fleet.agent.uploads.manager import Manager
from upseal.fleet.agent.uploads.rows import Row, UploadState
from upseal.fleet.http import results
from upseal.fleet.http.client import Response
from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.policy import Decision, Level, Withhold, decide
from upseal.fleet.uploads.carrier import Carrier, Throttle

TURN = 0.5
"""Seconds: how soon what another process has put there is seen."""
_LEAST_TURN = 0.01
_CHECK, _SWEEP, _TOLD, _ASKED = 5.0, 3600.0, 1.0, 1024
_WAIT = 2.0  # seconds that an answer may be held back: this thread has other things to do
_POLL_LEAST, _POLL_MOST, _LOOK_AGAIN = 0.2, 15.0, 3600.0
_log = logging.getLogger("upseal.agent")


class Uploading:
    """Sends what waits, until told to stop.

    Args:
        settings: pace, piece, throttle.
        credentials: for whom.
        manager: what waits.
        parent: where to.
        level: the level that holds, given what is believed.
        sender: knows whether the parent was asked what it can do, and looks for newer manifests.
        tally: where things are counted.
        alarms: where lies and damage go.
        publish: called when there is progress, now and then.
    """

    def __init__(
        self,
        settings: Settings,
        credentials: Credentials,
        manager: Manager,
        parent: Parent,
        level: Callable[[Believed], Level],
        sender: Sender,
        tally: Tally,
        alarms: Alarms,
        publish: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._who = credentials
        self._manager = manager
        self._ledger, self._maker = manager.ledger, manager.maker
        self._parent = parent
        self._level = level
        self._sender = sender
        self._tally = tally
        self._alarms = alarms
        self._publish = publish
        self._jobs = Jobs(settings.send)
        self._wake = threading.Event()
        self._pace = Pace(settings.send, tally)
        self._throttle = Throttle(settings.uploads.throttle)
        self._serial = -1
        self.pulse = Pulse()
        self._sweep_at = self._check_at = self._poll_at = self._told_at = 0.0
        self._poll_pause = _POLL_LEAST

    # -- the loop ------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Until told to stop."""
        while not stop.is_set():
            self._wake.clear()
            self.pulse.beat()
            more = False
            try:
                more = self._turn(stop)
            except Stopped:
                return
            except Unreachable as error:
                self._pace.hold("unreachable", error)
            except SpoolError as error:
                self._pace.hold("the spool's disk", error)
            except Exception as error:  # whatever it is, the next upload must go on
                event(_log, "unexpected error", level=logging.ERROR, error=error, exc=error)
                self._pace.hold("unexpected error", error)
            if not more and not stop.is_set():
                self._wake.wait(self._pause())

    def _pause(self) -> float:
        """Seconds until there may be something to do."""
        now = time.monotonic()
        times = (self._pace.until, self._poll_at, self._jobs.next_time())
        return max(_LEAST_TURN, min((t - now for t in times if now < t < now + TURN), default=TURN))

    def wake(self) -> None:
        """Something has changed: it looks at once."""
        self._wake.set()

    def snapshot(self) -> dict[str, Any]:
        """For people, and for other processes."""
        return {"trouble": self._pace.trouble, "jobs": self._jobs.snapshot()}

    def _turn(self, stop: threading.Event) -> bool:
        """Does one thing. True if there may be more to do at once."""
        now = time.monotonic()
        self._upkeep(now)
        if not self._sender.refreshed:
            return False
        believed, decision = self._now()
        if believed.serial != self._serial:
            self._serial = believed.serial
            self._jobs.all_at_once()
            self._pace.at_once()
        if now < self._pace.until:
            return False
        job = None if isinstance(decision, Withhold) else self._jobs.next_ready(now)
        if job is not None:
            self._send(job, stop)
        self._poll(0 if job is not None else min(_WAIT, self._settings.http.wait))
        return job is not None

    def _upkeep(self, now: float) -> None:
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP
            gone = self._manager.folder.sweep()
            if gone:
                event(_log, "removed what was left of uploads", files=gone)
        for number in self._ledger.waiting(self._jobs.newest):
            self._jobs.add(number)
        for job in self._jobs.of(Stage.RECEIPTED):
            self._end(job, UploadState.STORED)
        if now >= self._check_at:
            self._check_at = now + _CHECK
            there = set(self._ledger.waiting())
            for job in self._jobs.all():
                if job.number not in there:
                    self._gone(job)

    def _now(self) -> tuple[Believed, Decision]:
        believed = self._parent.believed()
        return believed, decide(self._level(believed), believed.certificate, believed.parent)

    # -- sending -------------------------------------------------------------------------

    def _send(self, job: Job, stop: threading.Event) -> None:
        """Brings one upload to the parent, as far as that goes."""
        row = self._ledger.one(job.number)
        if row is None:
            self._gone(job)
            return
        job.upload = row.upload.hex()
        now = time.monotonic()
        try:
            body = self._body(job, row, stop)
            if body is None:
                return
            job.stage, job.body, job.why = Stage.SENDING, body, None
            if not self._carry(job, body, stop):
                raise Stopped
            job.stage, job.asked = Stage.PENDING, 0.0
            self._poll_at, self._poll_pause = 0.0, _POLL_LEAST
            self._pace.good()
        except Changed:
            if self._ledger.one(job.number) is None:
                self._gone(job)
        except Unreachable as error:
            self._pace.hold("unreachable", error)
        except Problem as problem:
            self._problem(job, problem, stop)
        except Damaged as damage:
            self._fail(job, row, str(damage))
        except OSError as error:
            self._alarms.add("spool", "a file that waits to be sent cannot be read")
            event(_log, "an upload cannot be read", level=logging.ERROR, error=error)
            self._jobs.again(job, now, "its file cannot be read")
        except Exception:  # the next one need not wait for it
            self._jobs.again(job, now, "it cannot be made ready")
            raise
        finally:
            if job.stage is Stage.SENDING:
                job.stage = Stage.READY

    def _body(self, job: Job, row: Row, stop: threading.Event) -> Body | None:
        """What to send of it now; None if there is nothing, or not yet."""
        believed, decision = self._now()
        way = travel_of(row, decision, believed, job.stale)
        if way is Travel.WAIT:
            return None
        began = time.monotonic()
        body = self._maker.body(row, way, believed, lambda: self.pulse.beat(stop))
        if body is None:
            self._gone(job)
            return None
        if way is Travel.ANEW:
            job.stale = False
            self._tally.add("uploads_sealed_anew")
            event(_log, "upload sealed anew", upload=job.upload, serial=believed.serial,
                  seconds=round(time.monotonic() - began, 3))  # fmt: skip
        return body

    def _carry(self, job: Job, body: Body, stop: threading.Event) -> bool:
        checked = 0.0

        def still() -> bool:
            # Before each piece: to read the disk and to wait for answers takes time.
            nonlocal checked
            self.pulse.beat()
            believed, decision = self._now()
            if travel_of(body.row, decision, believed, job.stale) is not body.way:
                return False
            if (now := time.monotonic()) - checked > _TOLD:
                checked = now
                return self._ledger.one(job.number) is not None
            return True

        def progress(body_id: bytes, offset: int, size: int) -> None:
            job.sent = offset
            if (now := time.monotonic()) >= self._told_at:
                self._told_at = now + _TOLD
                self._publish()
            self._poll(0)  # for those that went before: this one may take days

        carrier = Carrier(
            CheckedLink(self._parent, still, self._tally),
            piece=self._settings.uploads.piece,
            throttle=self._throttle,
            on_progress=progress,
        )
        with self._maker.source(body) as source:
            return carrier.carry(body.ticket, source, stop)

    def _gone(self, job: Job) -> None:
        """It waits no more, or is another file now. What the parent has only takes room there."""
        self._jobs.drop(job)
        if self._ledger.one(job.number) is not None:
            self._jobs.add(job.number)
        elif job.body is not None and job.stage is not Stage.RECEIPTED:
            take_back(self._parent, job.body_id)

    # -- answers -------------------------------------------------------------------------

    def _poll(self, wait: float) -> None:
        """Asks what has become of those that the parent has, if it is time."""
        if not self._jobs.of(Stage.PENDING) or time.monotonic() < self._poll_at:
            return
        asked = self._jobs.asked(_ASKED, time.monotonic())
        settled = False
        try:
            body = results.encode_ids(list(asked))
            response = self._parent.post("/v1/results", body, wait=wait, kind=JSON)
            settled = self._heard(response, asked)
        finally:
            pause = _POLL_LEAST if settled else min(_POLL_MOST, self._poll_pause * 2)
            self._poll_pause = pause
            self._poll_at = time.monotonic() + pause

    def _heard(self, response: Response, asked: Mapping[bytes, Job]) -> bool:
        """Draws the consequences. True if one of them has come to something."""
        problem = response.problem()
        if problem is not None:  # of the question, not of the uploads
            self._whole(problem)
            return False
        try:
            said = response.body if response.status == 200 else b""
            found = {result.body: result for result in results.decode(said)}
        except results.MalformedResults:
            self._tally.add("garbage")
            self._pace.hold("the parent's answer is none")
            return False
        settled = False
        keys = self._parent.believed().receipt_keys()
        for body_id, job in asked.items():
            assert job.body is not None
            digest = job.body.announcement.digest(self._who.deployment, self._who.agent)
            result = found.get(body_id)
            verdict = judged(result, digest, keys, self._who.deployment, self._tally)
            settled |= verdict not in (Verdict.PENDING, Verdict.NONE)
            if result is not None and result.problem is not None:
                self._problem(job, result.problem, None)
            else:
                self._follow(job, verdict)
        return settled

    def _follow(self, job: Job, verdict: Verdict) -> None:
        now = time.monotonic()
        match verdict:
            case Verdict.STORED:
                job.stage = Stage.RECEIPTED
                self._end(job, UploadState.STORED)
                self._pace.good()
            case Verdict.REFUSED:
                self._alarms.add("receipt", "the server refuses what this agent sends")
                self._sender.refresh_soon()
                self._jobs.again(job, now, "refused by the server")
            case Verdict.PENDING:
                job.why = None
                self._announce(job, verdict)
            case Verdict.UNKNOWN:
                self._tally.add("unknown")
                self._jobs.again(job, now, None, at_once=True)
                self._announce(job, verdict)
                if job.tries > 1:  # a hop that was begun again may have found it to be malformed
                    self._look(job, now, None)
            case _:
                self._alarms.add("receipt", "an answer without our receipt for an upload")
                self._sender.refresh_soon()  # its key may be newer than our manifest
                self._jobs.again(job, now, "an answer without our receipt")

    def _announce(self, job: Job, verdict: Verdict) -> None:
        """Once more, if that was long ago and its report has left the spool."""
        assert job.body is not None
        if self._ledger.announce_again(job.number, job.body.announcement, verdict.announce_after):
            self._tally.add("uploads_announced_again")

    def _end(self, job: Job, state: UploadState, row: Row | None = None, why: str = "") -> bool:
        """Takes it out. If the disk does not let us, later: it is not sent again."""
        try:
            row = row or self._ledger.one(job.number)
            ended = row is not None and self._ledger.end(row, state, why or None)
        except SpoolError as error:
            self._pace.hold("the spool's disk", error)
            return False
        if row is not None and ended:
            self._tally.add(f"uploads_{state.value}")
            event(_log, f"upload {state.value}", upload=job.upload, bytes=row.size)
        self._jobs.drop(job)
        self._told_at = 0.0
        return ended

    def _fail(self, job: Job, row: Row, why: str) -> None:
        """The disk has damaged it, unless somebody has taken it out, or made it anew."""
        if self._end(job, UploadState.FAILED, row, why):
            self._alarms.add("spool", "a file that waited to be sent was damaged, and is lost")
        else:
            self._gone(job)

    # -- problems ------------------------------------------------------------------------

    def _problem(self, job: Job, problem: Problem, stop: threading.Event | None) -> None:
        """A refusal of one upload. Nobody has signed it: it costs time, or work, and no more."""
        now, name = time.monotonic(), problem.name
        if about_us(problem) or problem.temporary:
            self._whole(problem)
            self._jobs.again(job, now, name)
            return
        self._tally.add(f"problem_{name}")
        if name == "stale-key":
            job.stale = True
            self._sender.refresh_soon()
            newer = job.body is not None and self._serial > job.body.row.serial
            self._jobs.again(job, now, name, at_once=newer)
            return
        if name in ("sealed-not-accepted", "clear-not-accepted"):
            self._sender.refresh_soon()
        else:
            self._alarms.add("problem", name)
        self._jobs.again(job, now, name)
        if name == "malformed":
            self._look(job, now, stop)

    def _look(self, job: Job, now: float, stop: threading.Event | None) -> None:
        """Looks at its file, now and then: what was sent may be what the disk has made of it."""
        if job.body is None or (job.looked and now - job.looked < _LOOK_AGAIN):
            return
        job.looked = now
        if not self._maker.whole(job.body, lambda: self.pulse.beat(stop)):
            self._fail(job, job.body.row, "its file is not what it was when it was announced")

    def _whole(self, problem: Problem) -> None:
        """A refusal of all that we say: another upload would do no better."""
        self._tally.add(f"problem_{problem.name}")
        if about_us(problem):
            self._alarms.add("refused", problem.name)
            self._sender.refresh_soon()
        self._pace.hold(problem.name, problem, problem.retry_after)

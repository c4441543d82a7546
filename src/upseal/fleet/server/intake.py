# SPDX-License-Identifier: Apache-2.0
"""What comes in: opened, verified, written by the writer, receipted. In this order and no other.

`Intake.open` and `Intake.finish` run in a pool of threads, for they are public-key operations;
between them stands the writer's commit. So there is no receipt for what is not on the disk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from upseal.errors import KeyUnavailable
from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.http.seldom import Seldom
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import Manifest
from upseal.fleet.policy import Level, Reason
from upseal.fleet.server.directory import Directory, Known
from upseal.fleet.server.following import follow
from upseal.fleet.server.meters import Meters
from upseal.fleet.server.opening import Failed, Opened, Opening, Sender, key_unavailable
from upseal.fleet.server.store import deadletters, now_ms
from upseal.fleet.server.store.activity import SEALED
from upseal.fleet.server.store.units import NUMBER_MAX, NewUnit
from upseal.fleet.server.throttle import Throttled
from upseal.fleet.server.writer import Job, Letter, Outcome
from upseal.fleet.units import (
    Receipt,
    Status,
    Unit,
    body_id,
    body_kind,
    parse_bundle,
    signed_receipt,
)

_QUOTA_RETRY = 60.0
_AGENT_UNITS = 1024
"""In one request, and bodies: an agent sends one. Each costs a verification, and 64 MiB hold
300,000."""
_RECORDS = 1024
"""That cost as much as another unit does."""
_log = logging.getLogger("upseal.server.intake")
Sounded = dict[tuple[str, bytes], tuple[int, Mapping[str, Any]]]


@dataclass(slots=True)
class Body:
    """One body on its way."""

    id: bytes
    result: Result | None = None
    """Settled without the database."""
    letter: Letter | None = None
    receipts: list[tuple[bytes, Status | None, bool]] = field(default_factory=list)
    """For each unit: the digest of its statement, what is decided already, is it a beacon."""
    units: list[NewUnit] = field(default_factory=list)
    beacons: list[NewUnit] = field(default_factory=list)


@dataclass(slots=True)
class Request:
    """All bodies of one request, and what it wants written."""

    bodies: list[Body]
    job: Job
    begun: float

    @property
    def weight(self) -> int:
        """What it costs, in ordinary requests: of a body, a unit, a thousand records or so."""
        records = sum(len(unit.records) for unit in self.job.units)
        return sum(max(1, len(body.receipts)) for body in self.bodies) + records // _RECORDS


class Intake:
    """Opens and verifies, and makes receipts. Safe to share between threads."""

    def __init__(
        self,
        deployment: bytes,
        opening: Opening,
        directory: Directory,
        receipt_key: SigningKey,
        meters: Meters,
    ) -> None:
        """Begins without a manifest: see `manifest`."""
        self.deployment = deployment
        self.manifest: Manifest | None = None
        """The newest; whoever follows the store sets it."""
        self._opening = opening
        self._directory = directory
        self._receipt_key = receipt_key
        self._meters = meters
        self._lines = Seldom()

    # -- before the writer ----------------------------------------------------------

    def open(
        self, data: bytes, sender: Sender, received: int | None = None, *, replayed: bool = False
    ) -> Request:
        """Takes a request's body apart as far as it goes without writing.

        Args:
            data: as it came: a sealed body, a clear one, or a bundle of them.
            sender: which hop it came from, authenticated.
            received: when, in unix milliseconds; now unless given.
            replayed: a dead letter: what it costs is not on its hop's account.

        Raises:
            Problem: it is no body at all, or this hop is not one of ours.
        """
        begun = time.perf_counter()
        owner = self._owner(sender)
        when = now_ms() if received is None else received
        sounded: Sounded = {}
        account = None if replayed else sender
        opened = [
            self._opened(bytes(raw), sender, account, when, sounded)
            if owner is None or i < _AGENT_UNITS
            else (_too_many(body_id(raw)), None)
            for i, raw in enumerate(self._split(data))
        ]
        agents = {
            unit.statement.agent for _, found in opened if found is not None for unit in found.units
        }
        known = self._directory.find(agents)
        left = _AGENT_UNITS
        for body, found in opened:
            if found is None:
                continue
            if owner is not None and len(found.units) <= _AGENT_UNITS:
                left -= len(found.units)
                if left < 0:
                    body.result = _too_many(body.id).result
                    continue
            self._verify(body, found, sender, owner, known, when, sounded)
        bodies = [body for body, _ in opened]
        job = Job(
            units=[unit for body in bodies for unit in body.units],
            beacons=[beacon for body in bodies for beacon in body.beacons],
            alarms=sounded,
            letters=[body.letter for body in bodies if body.letter is not None],
            size=len(data),
        )
        self._meters.seconds.labels("open").observe(time.perf_counter() - begun)
        return Request(bodies, job, begun)

    def _owner(self, sender: Sender) -> bytes | None:
        """The agent behind an agent's hop; relays carry anybody's units."""
        if sender.role != "agent":
            return None
        owner = self._directory.agent_of(sender.hop)
        if owner is None:
            raise Problem("not-enrolled")
        return owner

    def _split(self, data: bytes) -> Sequence[bytes | memoryview]:
        try:
            return parse_bundle(data) if body_kind(data) == "bundle" else [data]
        except ValueError:
            raise Problem("malformed", "this is no body") from None

    def _opened(
        self, raw: bytes, sender: Sender, account: Sender | None, when: int, sounded: Sounded
    ) -> tuple[Body, Opened | None]:
        body = Body(body_id(raw))
        try:
            return body, self._opening.open(raw, account)
        except Throttled as throttled:
            self._meters.throttled.inc()
            problem = Problem("busy", "too many new sessions", retry_after=throttled.seconds)
            body.result = Result.failed(body.id, problem)
        except KeyUnavailable as error:  # nothing is wrong with the body: it waits where it is
            self._meters.failures.labels("key-unavailable").inc()
            if (left_out := self._lines.tell()) is not None:
                event(
                    _log, "key not available", level=logging.ERROR, why=str(error),
                    left_out=left_out,
                )  # fmt: skip
            body.result = Result.failed(body.id, key_unavailable())
        except Failed as failed:
            self._meters.failures.labels(failed.reason).inc()
            if failed.reason == deadletters.CANNOT_OPEN:
                _sound(sounded, "cannot-open", sender.hop, {"body": body.id.hex()})
            if failed.problem is not None:
                body.result = Result.failed(body.id, failed.problem)
            if failed.keep:
                body.letter = Letter(
                    body.id, raw, sender.hop, sender.role, when, failed.reason, failed.key_id
                )
        return body, None

    def _verify(
        self,
        body: Body,
        found: Opened,
        sender: Sender,
        owner: bytes | None,
        known: Mapping[bytes, Known],
        when: int,
        sounded: Sounded,
    ) -> None:
        """Each unit by itself: a bad one in a relay's batch costs no other client anything."""
        if owner is not None and len(found.units) > _AGENT_UNITS:
            body.result = Result.failed(body.id, Problem("too-large", "too many units in a body"))
            return
        if owner is not None and any(unit.statement.agent != owner for unit in found.units):
            _sound(sounded, "wrong-agent", owner, {"hop": sender.hop.hex()})
            problem = Problem("not-enrolled", "this hop is enrolled for another agent")
            body.result = Result.failed(body.id, problem)
            return
        for unit in found.units:
            said = unit.statement
            why = self._refusal(unit, known.get(said.agent))
            beacon = said.count == 0
            if why is not None:
                self._meters.refused.labels(why).inc()
                subject = said.agent if why == "revoked-agent" else sender.hop
                _sound(sounded, why, subject, {"agent": said.agent.hex()})
                body.receipts.append((unit.digest, Status.REFUSED, beacon))
                continue
            body.receipts.append((unit.digest, None, beacon))
            new = NewUnit(
                said.agent, said.epoch, said.sequence, said.milliseconds, said.level.number,
                int(said.reason), said.digest, unit.records, found.suite, found.key_id, when,
            )  # fmt: skip
            (body.beacons if beacon else body.units).append(new)
            if not beacon:
                self._look_for_downgrade(unit, found, sender, sounded)

    def _refusal(self, unit: Unit, known: Known | None) -> str | None:
        """Why a unit is not taken: the kind of alarm."""
        said = unit.statement
        if said.deployment != self.deployment:
            return "foreign-deployment"
        if known is None:
            return "unknown-agent"
        revoked = self.manifest.revoked_agents if self.manifest is not None else frozenset()
        if said.agent in revoked or known.hop in revoked:
            return "revoked-agent"
        if not unit.verify(known.key):
            return "bad-signature"
        if said.sequence > NUMBER_MAX or said.milliseconds > NUMBER_MAX:
            return "bad-statement"
        return None

    def _look_for_downgrade(
        self, unit: Unit, found: Opened, sender: Sender, sounded: Sounded
    ) -> None:
        """Nothing is lost for it, but somebody should look."""
        said = unit.statement
        details = {"hop": sender.hop.hex(), "reason": said.reason.name.lower().replace("_", "-")}
        if int(said.reason) in SEALED:
            if found.key_id is None:
                _sound(sounded, "arrived-clear", said.agent, details)
            return
        level = self.manifest.level_for(said.agent) if self.manifest is not None else None
        if (said.level if level is None else level) is Level.REQUIRED:
            _sound(sounded, "clear-though-required", said.agent, details)

    # -- after the writer -----------------------------------------------------------

    def finish(self, request: Request, outcome: Outcome) -> list[Result]:
        """The results, in the order of the bodies, with receipts for what is on the disk."""
        begun = time.perf_counter()
        units, beacons, letters = iter(outcome.units), iter(outcome.beacons), iter(outcome.letters)
        ids = iter(outcome.ids)
        results = []
        for body in request.bodies:
            if body.letter is not None:
                kept = next(letters)
                results.append(self._of_letter(body, kept))
            elif body.result is not None:
                results.append(body.result)
            else:
                stored = iter(body.units)
                receipts = []
                for digest, decided, beacon in body.receipts:
                    if decided is not None:
                        status = decided
                        self._meters.units.labels("refused").inc()
                    elif beacon:
                        status = next(beacons)
                        self._meters.beacons.labels(status.name.lower()).inc()
                    else:
                        status = next(units)
                        self._count(next(stored), status)
                    receipt = Receipt(self.deployment, digest, status)
                    receipts.append(signed_receipt(receipt, self._receipt_key))
                results.append(Result.done(body.id, receipts))
            if _log.isEnabledFor(logging.DEBUG):
                follow(_log, body, results[-1], ids)
        now = time.perf_counter()
        self._meters.seconds.labels("finish").observe(now - begun)
        self._meters.seconds.labels("all").observe(now - request.begun)
        return results

    def _of_letter(self, body: Body, kept: bool) -> Result:
        if body.result is not None:  # malformed: kept or not, it is for the sender to know
            return body.result
        if kept:
            return Result.pending(body.id)
        problem = Problem("full", "no room for what cannot be opened", retry_after=_QUOTA_RETRY)
        return Result.failed(body.id, problem)

    def _count(self, unit: NewUnit, status: Status) -> None:
        self._meters.units.labels(status.name.lower()).inc()
        if status is Status.STORED:
            sealed = unit.reason in SEALED
            self._meters.reports.labels("sealed" if sealed else "clear").inc(len(unit.records))
            if not sealed:
                reason = Reason(unit.reason).name.lower().replace("_", "-")
                self._meters.clear.labels(reason).inc(len(unit.records))
        elif status is Status.CONTRADICTION and (left_out := self._lines.tell()) is not None:
            event(
                _log, "contradiction", level=logging.WARNING, agent=unit.agent.hex(),
                epoch=unit.epoch.hex(), sequence=unit.sequence, left_out=left_out,
            )  # fmt: skip


def _too_many(name: bytes) -> Body:
    """By itself it would be taken."""
    problem = Problem("busy", "too many units in a request", retry_after=1)
    return Body(name, Result.failed(name, problem))


def _sound(sounded: Sounded, kind: str, subject: bytes, details: Mapping[str, Any]) -> None:
    times, first = sounded.get((kind, subject), (0, details))
    sounded[kind, subject] = (times + 1, first)

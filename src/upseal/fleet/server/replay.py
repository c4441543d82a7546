# SPDX-License-Identifier: Apache-2.0
"""Dead letters taken through intake again: when asked for, when their key is back, at the start."""

from __future__ import annotations

import logging

from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result, State
from upseal.fleet.server.answers import Answers
from upseal.fleet.server.intake import Intake
from upseal.fleet.server.meters import Meters
from upseal.fleet.server.opening import Sender
from upseal.fleet.server.store import Store, deadletters
from upseal.fleet.server.writer import Settled, Writer

_ROUND = 64
_log = logging.getLogger("upseal.server.replay")


class Replay:
    """Used by one thread."""

    def __init__(
        self, store: Store, intake: Intake, writer: Writer, answers: Answers, meters: Meters
    ) -> None:
        """Does nothing yet."""
        self._store = store
        self._intake = intake
        self._writer = writer
        self._answers = answers
        self._meters = meters
        self._key_away = False

    def begin(self) -> None:
        """At the start: all that a key or a mended server may open now."""
        with self._store.writing() as db:
            for reason in (deadletters.MISSING_KEY, deadletters.CANNOT_OPEN):
                deadletters.ask(db, reason=reason)

    def key_is_back(self, key_id: bytes) -> None:
        """All that waits for this key."""
        with self._store.writing() as db:
            deadletters.ask(db, key_id=key_id, reason=deadletters.MISSING_KEY)

    def round(self) -> bool:
        """Takes some through that were asked for; True if there may be more."""
        away: set[bytes | None] = set()
        while True:
            before = len(away)
            with self._store.reading() as db:
                but = [key_id for key_id in away if key_id is not None]
                wanted = deadletters.listing(db, wanted=True, limit=_ROUND, but=but)
            for letter in wanted:
                if letter.key_id in away:  # those that wait for other keys do not wait for it
                    continue
                self._key_away = False
                result = self._one(letter)
                if self._key_away:
                    away.add(letter.key_id)
                    continue
                self._meters.replayed.labels(result).inc()
                event(_log, "dead letter replayed", body=letter.id.hex(), result=result)
            if len(wanted) < _ROUND or None in away:
                return False
            if len(away) == before:
                return True

    def _one(self, letter: deadletters.DeadLetter) -> str:
        with self._store.reading() as db:
            raw = deadletters.body(db, letter.id)
        if raw is None:
            return "gone"
        sender = Sender(letter.hop, letter.role)
        try:
            request = self._intake.open(raw, sender, letter.received, replayed=True)
        except Problem as problem:  # its hop is no longer enrolled
            self._settle(letter, done=False, reason=None)
            return problem.name
        body = request.bodies[0]
        if body.letter is not None:
            # It stands where it stood; what was wrong may have another name now.
            self._settle(letter, done=False, reason=body.letter.reason)
            return body.letter.reason
        if body.result is not None and body.result.state is State.PROBLEM:
            return self._refused(letter, body.result)
        request.job.settled = [Settled(letter.id, True, None)]
        outcome = self._writer.submit(request.job).result()
        for result in self._intake.finish(request, outcome):
            self._answers.put(result)
        return "stored"

    def _refused(self, letter: deadletters.DeadLetter, result: Result) -> str:
        """It can never be stored as it is: whoever asks is told, and seals again."""
        assert result.problem is not None
        if result.problem.temporary:  # its key is away: it stays asked for
            self._key_away = True
            return result.problem.name
        self._answers.put(result)
        self._settle(letter, done=result.problem.name == "stale-key", reason=None)
        return result.problem.name

    def _settle(self, letter: deadletters.DeadLetter, *, done: bool, reason: str | None) -> None:
        with self._store.writing() as db:
            deadletters.settle(db, letter.id, done=done, reason=reason)

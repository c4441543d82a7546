# SPDX-License-Identifier: Apache-2.0
"""What the server does once a second beside requests: it follows the store and the keys' folder."""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from upseal.errors import KeyUnavailable
from upseal.fleet.http.logs import event
from upseal.fleet.readiness import BadChallenge, answer_challenge
from upseal.fleet.server import gauges
from upseal.fleet.server.headcount import Headcount
from upseal.fleet.server.intake import Intake
from upseal.fleet.server.keyring import Keyring
from upseal.fleet.server.meters import Meters
from upseal.fleet.server.published import Published
from upseal.fleet.server.recording import Recording
from upseal.fleet.server.replay import Replay
from upseal.fleet.server.retention import Retention
from upseal.fleet.server.store import Store, challenges, keys, now_ms
from upseal.fleet.server.uploads.room import Uploads

EVERY = 1.0
_GAUGES = 5.0
_PRUNE = 60.0
_REPLAY = 0.5
"""Seconds that dead letters may take of one round: the first stands before the first request."""
_log = logging.getLogger("upseal.server")


class Upkeep:
    """A thread: newest manifest, keys, challenges to our own, dead letters, gauges, old reports."""

    def __init__(
        self,
        store: Store,
        published: Published,
        keyring: Keyring,
        intake: Intake,
        replay: Replay | None,
        meters: Meters,
        retention: Retention | None,
        recording: Recording | None,
        uploads: Uploads | None,
    ) -> None:
        """Does nothing before `start`. What is None, another process of the deployment does."""
        self._store = store
        self._published = published
        self._keyring = keyring
        self._intake = intake
        self._replay = replay
        self._meters = meters
        self._retention = retention
        self._recording = recording
        self._headcount = None
        if recording is not None:
            self._headcount = Headcount(store, meters, recording.silent_hours)
        self._uploads = uploads
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._due = {"gauges": 0.0, "prune": 0.0}
        self._hopeless: set[bytes] = set()
        self.rounds = 0
        """Also those that failed."""
        self.trouble: str | None = None
        """Why the last round failed."""

    def start(self) -> None:
        """One round at once, so that keys and manifest are there; then once a second."""
        try:
            if self._replay is not None:
                self._replay.begin()
        except SQLAlchemyError as error:  # a full disk must not keep us from answering
            event(_log, "dead letters are not replayed", level=logging.WARNING, exc=error)
        self.round()
        self._thread = threading.Thread(target=self._run, name="upseal-upkeep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(EVERY):
            try:
                self.round()
                if self.trouble is not None:
                    event(_log, "well again")
                self.trouble = None
            except Exception as error:  # whatever it was may pass, and requests go on
                if self.trouble is None:
                    event(_log, "upkeep failed", level=logging.ERROR, exc=error)
                self.trouble = type(error).__name__
            self.rounds += 1

    def round(self) -> None:
        """Everything once."""
        with self._store.reading() as db:
            changed = self._published.refresh(db)
            known = keys.listing(db, keys.SERVER)
            asked = challenges.unanswered(db, challenges.SERVER, now_ms())
        manifest = self._published.manifest
        if changed and manifest is not None:
            self._intake.manifest = manifest
            gauges.of_manifest(self._meters, manifest)
            event(_log, "new manifest", serial=manifest.serial, state=manifest.state.value)
        oldest = manifest.oldest_generation if manifest is not None else 0
        new = self._keyring.refresh(known, oldest)
        if self._replay is not None:
            for key_id in new:
                self._replay.key_is_back(key_id)
        self._meters.keys_missing.set(len(self._keyring.missing()))
        self._hopeless &= {challenge.challenge for challenge in asked}
        for challenge in asked:
            self._answer(challenge)
        self._replay_some()
        if self._uploads is not None:
            self._uploads.round(keys_changed=changed or bool(new))
        if self._retention is not None:
            self._retention.round()
        self._now_and_then()
        if self._recording is not None:
            self._recording.round(self._published.manifest)
        if self._headcount is not None:
            self._headcount.round(self._published.manifest)

    def _replay_some(self) -> None:
        end = time.monotonic() + _REPLAY
        while (
            self._replay is not None
            and self._replay.round()
            and not self._stop.is_set()
            and time.monotonic() < end
        ):
            pass

    def _answer(self, challenge: challenges.Challenge) -> None:
        """Proves that we hold one of our own keys."""
        private = self._keyring.private(challenge.key_id)
        if private is None or challenge.challenge in self._hopeless:
            return
        try:
            given = answer_challenge(private, challenge.challenge)
        except KeyUnavailable as error:  # it is asked again the next round
            event(_log, "key not available", level=logging.WARNING, why=str(error))
            return
        except BadChallenge:
            self._hopeless.add(challenge.challenge)
            event(_log, "challenge does not open", level=logging.WARNING)
            return
        now = now_ms()
        with self._store.writing() as db:
            proved = challenges.answer(db, challenges.SERVER, challenge.generation, given, now)
            if proved is not None:
                keys.set_ready(db, proved, now)
        event(_log, "challenge answered", generation=challenge.generation)

    def _now_and_then(self) -> None:
        now = time.monotonic()
        if now >= self._due["gauges"]:
            self._due["gauges"] = now + _GAUGES
            self._gauges()
        if now >= self._due["prune"]:
            self._due["prune"] = now + _PRUNE
            with self._store.writing() as db:
                keys.prune_use(db, now_ms())
                challenges.prune(db, now_ms() - 3_600_000)

    def _gauges(self) -> None:
        with self._store.reading() as db:
            gauges.note(db, self._meters, now_ms())

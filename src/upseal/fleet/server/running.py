# SPDX-License-Identifier: Apache-2.0
"""A server's parts put together, started and stopped. What they do over HTTP is in `app`."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from upseal.core.keys import PrivateKey
from upseal.fleet.credentials import HopCheck, HopRefused
from upseal.fleet.files import read_private
from upseal.fleet.http.logs import event
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.rates import Gate
from upseal.fleet.http.results import Result
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import Manifest
from upseal.fleet.server.answers import Answers
from upseal.fleet.server.directory import Directory
from upseal.fleet.server.enrol import Enrolment
from upseal.fleet.server.intake import Intake, Request
from upseal.fleet.server.keyring import Keyring
from upseal.fleet.server.meters import Meters
from upseal.fleet.server.opening import Opening, Sender
from upseal.fleet.server.published import Published
from upseal.fleet.server.recording import Recording
from upseal.fleet.server.relayed import Relayed
from upseal.fleet.server.replay import Replay
from upseal.fleet.server.retention import Retention
from upseal.fleet.server.settings import Settings
from upseal.fleet.server.store import Store, get_meta, now_ms
from upseal.fleet.server.throttle import Throttle
from upseal.fleet.server.upkeep import Upkeep
from upseal.fleet.server.uploads.room import Uploads
from upseal.fleet.server.writer import Job, Outcome, Quota, Writer
from upseal.fleet.settings import SettingsError

_log = logging.getLogger("upseal.server")


class Server:
    """All parts of one server process over one deployment's folder."""

    def __init__(self, settings: Settings, *, opens: bool = True) -> None:
        """Reads the folder and opens the database; starts nothing.

        ``opens=False``: others open reports, and so take dead letters through again.

        Raises:
            SettingsError: a key file is missing or wrong, or the database is another deployment's.
            StoreError: the database cannot be used.
        """
        limits = settings.limits
        receipt_key = _signing_key(settings)
        enrol_key = _private_key(settings)
        self.settings = settings
        self.meters = Meters(Metrics("server"))
        self.store = Store.open(settings.database)
        try:
            with self.store.reading() as db:
                if get_meta(db, "deployment") != settings.deployment.hex():
                    raise SettingsError("the database is of another deployment")
            throttle = Throttle(limits.unwrap_share, limits.unwrap_reserve, limits.relay_factor)
            self.keyring = Keyring(settings.keys, limits.opener_sessions, throttle)
            self.directory = Directory(self.store, limits.opener_sessions)
            opening = Opening(settings.deployment, self.keyring, throttle, self.meters)
            self.intake = Intake(
                settings.deployment, opening, self.directory, receipt_key, self.meters
            )
            self.published = Published(receipt_key)
            self.answers = Answers(self.store, limits.results)
            self.relayed = Relayed(self.store, self.manifest)
            self.enrolment = Enrolment(
                self.store, settings.deployment, enrol_key, receipt_key, self.directory,
                self.manifest, self.meters, fips=settings.fips,
            )  # fmt: skip
            self._hops = HopCheck(self.manifest, limits.opener_sessions)
            self.gate = Gate(settings.rates, self.meters.metrics, self._hops.remembered)
            self.uploads = Uploads(
                settings, self.store, self.directory, self.keyring, opening, throttle,
                receipt_key, self.answers, self.meters, self.manifest, self.authenticate,
            )  # fmt: skip
        except BaseException:
            self.store.close()
            raise
        self.pool = ThreadPoolExecutor(limits.threads, "upseal-intake")
        self.writer = Writer(
            self.store,
            limits.group_units,
            Quota(limits.dead_letter_bytes, limits.dead_letter_bytes_per_hop),
            deployment=settings.deployment,
            announced=self.uploads.working.announced,
        )
        replay = None
        if opens:
            replay = Replay(self.store, self.intake, self.writer, self.answers, self.meters)
        self.upkeep = Upkeep(
            self.store, self.published, self.keyring, self.intake, replay, self.meters,
            Retention(self.store, limits.keep_days),
            Recording(self.store, settings.calendar.silent_hours), self.uploads,
        )  # fmt: skip
        self.meters.watch("writer_jobs", "Requests that wait for the writer", self.writer.__len__)
        self.meters.metrics.counted(
            "unwraps", "Sessions opened for the first time", lambda: throttle.unwraps
        )
        keyring = self.keyring  # its opener comes with the first key
        self.meters.watch("sessions", "Sessions remembered", lambda: keyring.sessions.remembered)
        self.meters.metrics.counted(
            "session_hits", "Sessions that were remembered", lambda: keyring.sessions.known
        )
        self.meters.watch("answers", "Results kept for who asks", self.answers.__len__)
        self.meters.letter_limit.set(limits.dead_letter_bytes)
        if (tls := settings.tls()) is not None:
            self.meters.metrics.certificates["listener"] = tls.certificate

    def start(self) -> None:
        """The manifest and the keys first: what comes in finds them."""
        self.upkeep.start()
        self.uploads.start()
        event(
            _log, "server ready", deployment=self.settings.deployment.hex(),
            keys=len(self.keyring.key_ids), postgresql=self.store.postgresql,
        )  # fmt: skip

    def stop(self) -> None:
        """What is in hand is written first."""
        self.upkeep.stop()
        self.uploads.close()
        self.writer.close()  # this first: what it has written is finished in the pool
        self.pool.shutdown()

    def close(self) -> None:
        """After `stop`, or instead of `start`."""
        self.stop()
        self.store.close()

    def manifest(self) -> Manifest | None:
        """The newest."""
        return self.published.manifest

    def ready(self) -> str | None:
        """Why the server cannot take reports, or None."""
        if self.published.manifest is None:
            return "there is no manifest"
        if not self.writer.alive:
            return "the writer has ended"
        if self.upkeep.trouble is not None:
            return f"upkeep fails: {self.upkeep.trouble}"
        return None

    def results(self, sender: Sender, bodies: list[bytes]) -> list[Result]:
        """What is known of bodies, of units and of uploads, for the hop that asks."""
        return self.uploads.results(sender.hop, self.answers.get(bodies))

    def settled(self, sender: Sender, body: bytes) -> bool:
        """Whether a body's result is there. Asks no database."""
        return self.answers.settled(body) or self.uploads.settled(sender.hop, body)

    def receive(
        self, headers: Mapping[str, str], method: str, path: str, data: bytes
    ) -> Future[list[Result]]:
        """Takes a request through: a thread of the pool, the writer, and the pool again.

        Every time one thread wakes another costs; so the one that waits for the result is woken
        once, at the end. An agent of which nothing at all was taken is told so by a `Problem`. A
        relay hears it of each body: whose bodies find no room is not to hold up its neighbours.
        """
        done: Future[list[Result]] = Future()
        done.set_running_or_notify_cancel()

        def take() -> None:
            try:
                digest = hashlib.sha256(data).digest()
                sender = self.authenticate(headers, method, path, digest, len(data))
                request = self.intake.open(data, sender)
                if sender.role == "agent":
                    self.gate.contained(sender.hop, request.weight)
                written = self._submit(request.job)
            except BaseException as error:
                done.set_exception(error)
            else:
                written.add_done_callback(
                    lambda _: self.pool.submit(finish, sender, request, written)
                )

        def finish(sender: Sender, request: Request, written: Future[Outcome]) -> None:
            try:
                results = self.intake.finish(request, written.result())
                for result in results:
                    self.answers.put(result)
                if sender.role == "agent":
                    raise_if_all_are_to_wait(results)
                done.set_result(results)
            except BaseException as error:
                done.set_exception(error)

        self.pool.submit(take)
        return done

    def _submit(self, job: Job) -> Future[Outcome]:
        try:
            return self.writer.submit(job)
        except RuntimeError:
            raise Problem("stopping", retry_after=5) from None

    def authenticate(
        self,
        headers: Mapping[str, str],
        method: str,
        path: str,
        body_digest: bytes,
        size: int = 0,
    ) -> Sender:
        """Which hop a request came from, with a body of so many bytes.

        Raises:
            Problem: unauthenticated, clock, revoked, or busy: it asks too much.
        """
        try:
            hop = self._hops.check(headers, method, path, body_digest, now_ms())
        except HopRefused as refused:
            raise Problem(refused.problem) from None
        self.gate.passed(hop, path, size)
        return Sender(hop.hop_id, hop.role)


def _signing_key(settings: Settings) -> SigningKey:
    try:
        return SigningKey.from_pem(read_private(settings.receipt_key))
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(settings.receipt_key.name, error) from error


def _private_key(settings: Settings) -> PrivateKey:
    try:
        return PrivateKey.from_pem(read_private(settings.enrol_key))
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(settings.enrol_key.name, error) from error


def _unusable(name: str, error: Exception) -> SettingsError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return SettingsError(f"cannot use {name}: {why}")


def raise_if_all_are_to_wait(answers: Sequence[Result]) -> None:
    """Where nothing at all was taken, the request as a whole says so, with its Retry-After."""
    problems = [answer.problem for answer in answers]
    if all(problem is not None and problem.temporary for problem in problems):
        assert problems[0] is not None
        raise problems[0]

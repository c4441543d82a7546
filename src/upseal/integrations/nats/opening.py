# SPDX-License-Identifier: Apache-2.0
"""The rooms of a server that an opener has: those between a body and its receipts, and no others.

An opener speaks no protocol of ours with anybody. What it needs of the deployment's folder are
``receipt.pem`` and ``keys/``, and the database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from upseal.fleet.files import read_private
from upseal.fleet.hops import HopCheck, HopRefused
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.identity import SigningKey
from upseal.fleet.server.answers import Answers
from upseal.fleet.server.directory import Directory
from upseal.fleet.server.intake import Intake, Request
from upseal.fleet.server.keyring import Keyring
from upseal.fleet.server.meters import Meters
from upseal.fleet.server.opening import Opening, Sender
from upseal.fleet.server.published import Published
from upseal.fleet.server.replay import Replay
from upseal.fleet.server.settings import Settings
from upseal.fleet.server.store import Store, deadletters, get_meta, uploads
from upseal.fleet.server.throttle import Throttle
from upseal.fleet.server.upkeep import Upkeep
from upseal.fleet.server.writer import Job, Letter, Outcome, Quota, Writer
from upseal.fleet.settings import SettingsError
from upseal.fleet.units import body_id, body_kind, parse_bundle
from upseal.integrations.nats.streams import Carried

_METHOD, _PATH = "POST", "/v1/units"


class NotReady(Exception):  # noqa: N818 - a state of affairs
    """There is no manifest yet."""


class Done(NamedTuple):
    """What became of a request."""

    results: list[Result]
    announced: list[bytes]
    """Uploads that were announced in it."""


class Rooms:
    """Opens, verifies, stores and receipts what fronts have taken. Safe to share between threads.

    Args:
        settings: of the deployment.
        told: hears of dead letters that could be opened after all.

    Raises:
        SettingsError: a key file is missing or wrong, or the database is another deployment's.
        StoreError: the database cannot be used.
    """

    def __init__(self, settings: Settings, told: Callable[[Result], object]) -> None:
        limits = settings.limits
        receipt_key = _receipt_key(settings)
        self.settings = settings
        self.meters = Meters(Metrics("opener"))
        self.foreign = self.meters.metrics.counter(
            "foreign_messages", "Messages at the broker that no front has written"
        )
        self.store = Store.open(settings.database)
        try:
            with self.store.reading() as db:
                if get_meta(db, "deployment") != settings.deployment.hex():
                    raise SettingsError("the database is of another deployment")
        except BaseException:
            self.store.close()
            raise
        throttle = Throttle(limits.unwrap_share, limits.unwrap_reserve, limits.relay_factor)
        self.keyring = Keyring(settings.keys, limits.opener_sessions, throttle)
        opening = Opening(settings.deployment, self.keyring, throttle, self.meters)
        directory = Directory(self.store, limits.opener_sessions)
        self.intake = Intake(settings.deployment, opening, directory, receipt_key, self.meters)
        self.published = Published(receipt_key)
        self._hops = HopCheck(lambda: self.published.manifest, limits.opener_sessions)
        self.writer = Writer(
            self.store, limits.group_units,
            Quota(limits.dead_letter_bytes, limits.dead_letter_bytes_per_hop),
            deployment=settings.deployment,
        )  # fmt: skip
        answers = Answers(self.store, 1, told=told)
        replay = Replay(self.store, self.intake, self.writer, answers, self.meters)
        self.upkeep = Upkeep(
            self.store, self.published, self.keyring, self.intake, replay, self.meters,
            retention=None, recording=None, uploads=None,
        )  # fmt: skip

    def start(self) -> None:
        """The manifest and the keys."""
        self.upkeep.start()

    def close(self) -> None:
        """What is in hand is written first."""
        self.upkeep.stop()
        self.writer.close()
        self.store.close()

    def ready(self) -> str | None:
        """Why nothing can be opened, or None."""
        if self.published.manifest is None:
            return "there is no manifest"
        if not self.writer.alive:
            return "the writer has ended"
        if self.upkeep.trouble is not None:
            return f"upkeep fails: {self.upkeep.trouble}"
        return None

    def sender(self, carried: Carried) -> Sender:
        """Who sent it: found out as the front has, so that nobody between need be believed.

        Raises:
            NotReady: nobody can be known yet.
            HopRefused: nobody who may; or no longer.
        """
        digest = hashlib.sha256(carried.body).digest()
        try:
            hop = self._hops.check(carried.headers, _METHOD, _PATH, digest, carried.received)
        except HopRefused as refused:
            if refused.problem == "parent-away":
                raise NotReady from None
            raise
        return Sender(hop.hop_id, hop.role)

    def open(self, carried: Carried, sender: Sender) -> Request:
        """Opened and verified; nothing is written yet.

        Raises:
            Problem: it is no body at all, or the hop has gone.
        """
        return self.intake.open(carried.body, sender, carried.received)

    def set_aside(self, carried: Carried, sender: Sender) -> Job:
        """Its bodies as dead letters, unopened: whoever opened them did not live to say so."""
        return Job(
            letters=[
                Letter(
                    body_id(part), bytes(part), sender.hop, sender.role, carried.received,
                    deadletters.REPEATED, None,
                )
                for part in _parts(carried.body)
            ],
            size=len(carried.body),
        )  # fmt: skip

    def finish(self, request: Request, outcome: Outcome) -> Done:
        """The receipts of what is in the database now."""
        found = self.intake.finish(request, outcome)
        told = uploads.announced_in(request.job.units, outcome.units)
        return Done(found, [announcement.upload for _, announcement in told])


def refused(carried: Carried, problem: Problem) -> list[Result]:
    """The same answer for each body of a request."""
    return [Result.failed(body_id(part), problem) for part in _parts(carried.body)]


def _parts(body: bytes) -> Sequence[bytes | memoryview]:
    try:
        return parse_bundle(body) if body_kind(body) == "bundle" else [body]
    except ValueError:
        return [body]


def _receipt_key(settings: Settings) -> SigningKey:
    path = settings.receipt_key
    try:
        return SigningKey.from_pem(read_private(path))
    except (OSError, ValueError, TypeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"cannot use {path.name}: {why}") from error

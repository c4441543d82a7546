# SPDX-License-Identifier: Apache-2.0
"""From a body to its units: by the server's keys, or as it is where it came in clear."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

from upseal.core import header as headers
from upseal.errors import OpenError, UnknownRecipient
from upseal.fleet.http.problems import Problem
from upseal.fleet.server.keyring import Keyring, Standing
from upseal.fleet.server.meters import Meters
from upseal.fleet.server.store import deadletters
from upseal.fleet.server.throttle import Throttle
from upseal.fleet.statements import fleet_context
from upseal.fleet.units import MalformedUnits, Unit, body_kind, parse_clear, parse_rows

KEY_RETRY = 10.0
"""Seconds until a key that is kept elsewhere is tried again by whoever sent something."""


class Sender(NamedTuple):
    """The hop that a request came from, authenticated."""

    hop: bytes
    role: str


@dataclass(frozen=True, slots=True)
class Opened:
    """The units of one body."""

    units: Sequence[Unit]
    suite: int | None
    """None: it came in clear."""
    key_id: bytes | None


class Failed(Exception):  # noqa: N818 - says what became of it
    """A body that gave no units."""

    def __init__(
        self, reason: str, problem: Problem | None, *, keep: bool, key_id: bytes | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.problem = problem
        """For whoever sent it; None: it waits here."""
        self.keep = keep
        """As a dead letter."""
        self.key_id = key_id


class Opening:
    """Opens bodies. Safe to share between threads."""

    def __init__(
        self, deployment: bytes, keyring: Keyring, throttle: Throttle, meters: Meters
    ) -> None:
        """Opens nothing yet."""
        self._context = fleet_context(deployment)
        self._keyring = keyring
        self._throttle = throttle
        self._meters = meters

    def open(self, raw: bytes, account: Sender | None) -> Opened:
        """The units in a sealed or clear body; a new session goes on this hop's account.

        Raises:
            Failed: it gives none.
            Throttled: this hop has made the server open too many new sessions.
            KeyUnavailable: the key is kept elsewhere, and cannot be used at the moment.
        """
        try:
            kind = body_kind(raw)
        except ValueError:
            kind = "bundle"
        if kind == "bundle":  # inside a bundle there is none, and `Intake` has opened this one
            raise Failed(deadletters.MALFORMED, Problem("malformed"), keep=False)
        self._meters.bodies.labels(kind).inc()
        self._meters.body_bytes.labels(kind).inc(len(raw))
        if kind == "clear":
            try:
                return Opened(parse_rows(parse_clear(raw)), None, None)
            except ValueError:
                raise Failed(deadletters.MALFORMED, Problem("malformed"), keep=False) from None
        suite, key_id = self.key_of(raw)
        with nullcontext() if account is None else self._throttle.on_account_of(*account):
            rows = self._rows(raw, key_id)
        self._meters.opened.inc()
        try:
            return Opened(parse_rows(rows), suite, key_id)
        except MalformedUnits:
            raise Failed(
                deadletters.MALFORMED, Problem("malformed"), keep=True, key_id=key_id
            ) from None

    def key_of(self, raw: bytes) -> tuple[int, bytes]:
        """Suite and id of the key of ours that opens what begins so.

        Raises:
            Failed: there is none.
        """
        try:
            entries = headers.parse(raw).entries
        except OpenError:
            raise Failed(deadletters.MALFORMED, Problem("malformed"), keep=False) from None
        standing = {entry.key_id: self._keyring.standing(entry.key_id) for entry in entries}
        for entry in entries:
            if standing[entry.key_id] is Standing.HERE:
                return int(entry.suite), entry.key_id
        for entry in entries:
            if standing[entry.key_id] is Standing.MISSING:
                raise Failed(deadletters.MISSING_KEY, None, keep=True, key_id=entry.key_id)
        retired = Standing.RETIRED in standing.values()
        raise _stale("retired-key" if retired else "unknown-key")

    def _rows(self, raw: bytes, key_id: bytes) -> list[bytes]:
        opener = self._keyring.opener
        try:
            if opener is None:
                raise UnknownRecipient([])
            return list(opener.open_batch(raw, self._context))
        except UnknownRecipient:  # the key was retired this moment
            raise _stale("retired-key") from None
        except OpenError as error:
            if error.problem is not None:  # its public part is wrong: no key will ever open it
                raise Failed(deadletters.MALFORMED, Problem("malformed"), keep=False) from None
            raise Failed(deadletters.CANNOT_OPEN, None, keep=True, key_id=key_id) from None


def key_unavailable() -> Problem:
    """For whoever sent what cannot be opened at the moment: he keeps it, and sends it again."""
    return Problem("busy", "the key is not available", retry_after=KEY_RETRY, status=503)


def _stale(reason: str) -> Failed:
    return Failed(reason, Problem("stale-key"), keep=False)

# SPDX-License-Identifier: Apache-2.0
"""From the bodies of many clients to few for the parent.

A passing relay sends bodies as they came. A decrypting one opens what its own keys open, in memory
alone, and seals the units of many bodies as one batch to the server; units stay whole. What it
cannot open it passes on: the server is a recipient too, and the one to judge.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from upseal.core.keys import PublicKey
from upseal.core.sealer import Sealer
from upseal.errors import KeyUnavailable, OpenError, UnknownRecipient
from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.http.seldom import Seldom
from upseal.fleet.manifest import Manifest
from upseal.fleet.relay.keys import RelayKeys
from upseal.fleet.relay.meters import Meters
from upseal.fleet.relay.rows import Claimed
from upseal.fleet.relay.settings import Repackage
from upseal.fleet.server.throttle import Throttled
from upseal.fleet.statements import fleet_context
from upseal.fleet.trail import body_name, in_lines, unit_name
from upseal.fleet.units import MalformedUnits, Unit, body_kind, parse_clear, parse_rows, unit_rows

_log = logging.getLogger(__name__)
_RECORD_COST = 20
"""Bytes that a sealed record is longer than itself: its length and its tag."""
_HEADER_COST = 64
_RECIPIENT_COST = 1180


@dataclass(frozen=True)
class Upload:
    """One body for the parent."""

    id: bytes
    body: bytes
    origins: dict[bytes, tuple[bytes, ...]]
    """The bodies it stands for, and the digests of their units in it; none, if passed as it is."""
    serial: int | None = None
    """Of the manifest that it was sealed by; None if it is passed on as it came."""

    @property
    def repackaged(self) -> bool:
        """Whether this relay has sealed it."""
        return self.serial is not None


class Prepared(NamedTuple):
    """What became of claimed bodies."""

    uploads: list[Upload]
    units: dict[bytes, tuple[bytes, ...]]
    """For each body that was opened, the digests of all its units, in order."""
    problems: list[Result]


@dataclass
class _Package:
    """Units that will be sealed together."""

    units: dict[bytes, Unit] = field(default_factory=dict)
    origins: dict[bytes, list[bytes]] = field(default_factory=dict)
    records: int = 0
    size: int = 0

    def add(self, origin: bytes, digest: bytes, unit: Unit, cost: int) -> None:
        self.origins.setdefault(origin, []).append(digest)
        if digest not in self.units:  # the same unit may come by two ways
            self.units[digest] = unit
            self.records += len(unit.records) + 1
            self.size += cost


def _follow(body_id: bytes, package: _Package) -> None:
    """Says in the log what went into a body of ours."""
    name = body_name(body_id)
    said = [unit.statement for unit in package.units.values()]
    for units in in_lines([unit_name(one.epoch, one.sequence) for one in said]):
        event(_log, "units repackaged", level=logging.DEBUG, body=name, units=units)
    for origins in in_lines([body_name(origin) for origin in package.origins]):
        event(_log, "bodies repackaged", level=logging.DEBUG, body=name, bodies=origins)


def as_they_are(claimed: Sequence[Claimed]) -> Prepared:
    """What a passing relay does."""
    return Prepared([passed(c.id, c.body) for c in claimed], {}, [])


def passed(body_id: bytes, body: bytes) -> Upload:
    """A body as it came."""
    return Upload(body_id, body, {body_id: ()})


class Repackager:
    """What a decrypting relay does. Safe for threads."""

    def __init__(
        self,
        keys: RelayKeys,
        manifest: Callable[[], Manifest | None],
        limits: Repackage,
        meters: Meters,
    ) -> None:
        self._keys, self._manifest, self._limits, self._meters = keys, manifest, limits, meters
        self._lock = threading.Lock()
        self._lines = Seldom()
        self._sealer: Sealer | None = None

    def prepare(
        self, claimed: Sequence[Claimed], alone: Collection[bytes] = frozenset()
    ) -> Prepared:
        """Opens what it can, and seals it to the server.

        Args:
            claimed: bodies from the queue.
            alone: those that share no batch with others, since one of them spoils it.
        """
        manifest = self._manifest()
        if manifest is None or not manifest.active:
            # No certificate is in force: in clear is how this came, or it is sealed to the server.
            return as_they_are(claimed)
        prepared = Prepared([], {}, [])
        context = fleet_context(manifest.deployment)
        shared: list[tuple[bytes, list[Unit]]] = []
        for body_id, body, _, hop in claimed:
            try:
                with self._keys.throttle.on_account_of(hop, "agent"):
                    units = self._units(body, context)
            except Throttled:
                # Somebody makes up sessions: what opening them costs is not ours to pay.
                self._meters.unopened.labels("throttled").inc()
                units = None
            except MalformedUnits as error:
                problem = Problem("malformed", str(error))
                prepared.problems.append(Result.failed(body_id, problem))
                continue
            if units is None:
                prepared.uploads.append(passed(body_id, body))
                continue
            prepared.units[body_id] = tuple(unit.digest for unit in units)
            if body_id in alone:
                self._seal([(body_id, units)], manifest, prepared)
            else:
                shared.append((body_id, units))
        self._seal(shared, manifest, prepared)
        return prepared

    def _units(self, body: bytes, context: bytes) -> list[Unit] | None:
        """The units of a body; None if it stays closed.

        Raises:
            MalformedUnits: it holds something else.
        """
        try:
            rows = self._open(body, context) if body_kind(body) == "sealed" else parse_clear(body)
        except ValueError as error:
            raise MalformedUnits(str(error)) from error
        if rows is None:
            return None
        units = parse_rows(rows)
        if not units:
            raise MalformedUnits("there are no units in it")
        return units

    def _open(self, body: bytes, context: bytes) -> list[bytes] | None:
        opener = self._keys.opener
        if opener is None:
            self._meters.unopened.labels("no-key").inc()
            return None
        try:
            rows = list(opener.open_batch(body, context))
        except UnknownRecipient:
            self._meters.unopened.labels("unknown-recipient").inc()
            return None
        except KeyUnavailable:  # the server has its own
            self._meters.unopened.labels("key-unavailable").inc()
            return None
        except OpenError as error:
            # Ours by its header, and yet not: the server sees it as we do, and answers for it.
            self._meters.unopened.labels("damaged").inc()
            if (more := self._lines.tell()) is not None:
                event(_log, "sealed body does not open", level=logging.WARNING, why=error.problem,
                      left_out=more)  # fmt: skip
            return None
        self._meters.opened.inc()
        return rows

    def _seal(
        self, bodies: Sequence[tuple[bytes, list[Unit]]], manifest: Manifest, prepared: Prepared
    ) -> None:
        if not bodies:
            return
        recipients = tuple(key.public() for key in manifest.encryption)
        sealer = self._sealer_for(recipients)
        context = fleet_context(manifest.deployment)
        for package in self._packages(bodies, len(recipients)):
            body = sealer.seal_batch(unit_rows(list(package.units.values())), context)
            origins = {origin: tuple(digests) for origin, digests in package.origins.items()}
            body_id = hashlib.sha256(body).digest()
            prepared.uploads.append(Upload(body_id, body, origins, manifest.serial))
            self._meters.repackaged.inc(len(package.units))
            if _log.isEnabledFor(logging.DEBUG):
                _follow(body_id, package)

    def _packages(
        self, bodies: Sequence[tuple[bytes, list[Unit]]], recipients: int
    ) -> Iterator[_Package]:
        """Whole units, as many together as the limits allow; a larger one goes by itself."""
        room = self._limits.bytes - _HEADER_COST - recipients * _RECIPIENT_COST
        package = _Package()
        for origin, units in bodies:
            for unit in units:
                size = len(unit.signed) + sum(map(len, unit.records))
                cost = size + _RECORD_COST * (len(unit.records) + 1)
                if package.units and (
                    package.records + len(unit.records) + 1 > self._limits.records
                    or package.size + cost > room
                ):
                    yield package
                    package = _Package()
                package.add(origin, unit.digest, unit, cost)
        if package.units:
            yield package

    def _sealer_for(self, recipients: tuple[PublicKey, ...]) -> Sealer:
        with self._lock:
            if self._sealer is None or self._sealer.recipients != recipients:
                self._sealer = Sealer(recipients)
            return self._sealer

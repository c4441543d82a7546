# SPDX-License-Identifier: Apache-2.0
"""The file that trust lives in: JSON, replaced as a whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Self

from upseal.fleet.chain import LINKS_MAX, Link
from upseal.fleet.encoding import dump_json, from_hex, load_object
from upseal.fleet.manifest_claims import ManifestError, Reader

ALARMS_MAX = 64
"""Remembered; who can sign contradictions can sign any number of them."""
_TOKEN_MAX = 8 << 20
_VERSION = 1


class TrustError(ValueError):
    """The file is damaged. What was believed is not guessed at: restore it, or enrol again."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """The signing key's owner has said two things under one serial.

    Args:
        milliseconds: when it was seen.
        serial: of both.
        digest: SHA-256 of the words that were not believed.
    """

    milliseconds: int
    serial: int
    digest: bytes

    @classmethod
    def contradiction(cls, serial: int, words: bytes, now_ms: int) -> Self:
        """For words that came second."""
        return cls(now_ms, serial, hashlib.sha256(words).digest())


@dataclass(frozen=True, slots=True)
class Kept:
    """What stands in the file.

    Args:
        deployment: 16 bytes.
        fingerprint: 32 bytes, of the first pinned key.
        least_serial: no manifest below it counts.
        newest: the newest verified manifest.
        links: those that lead to it (`Chain`).
        alarms: contradictions.
    """

    deployment: bytes
    fingerprint: bytes
    least_serial: int
    newest: Link | None = None
    links: tuple[Link, ...] = ()
    alarms: tuple[Alarm, ...] = ()

    def check(self) -> None:
        """Raises `ValueError` if a length or number is wrong."""
        if len(self.deployment) != 16 or len(self.fingerprint) != 32:
            raise ValueError("a deployment has 16 bytes, and a fingerprint 32")
        if not 0 <= self.least_serial < 2**53:
            raise ValueError(f"no serial can be {self.least_serial}")

    def encode(self) -> bytes:
        """JSON."""
        return dump_json(
            {
                "version": _VERSION,
                "deployment": self.deployment.hex(),
                "fingerprint": self.fingerprint.hex(),
                "least_serial": self.least_serial,
                "newest": None if self.newest is None else _link(self.newest),
                "links": [_link(link) for link in self.links],
                "alarms": [
                    {"t": alarm.milliseconds, "serial": alarm.serial, "sha256": alarm.digest.hex()}
                    for alarm in self.alarms
                ],
            }
        )

    @classmethod
    def decode(cls, data: bytes, where: str) -> Self:
        """What `encode` wrote.

        Raises:
            TrustError: it is damaged.
        """
        try:
            reader = Reader(load_object(data), "trust")
            if reader.number("version", 2**31) != _VERSION:
                raise ManifestError("of another version")
            newest = reader.value("newest")
            kept = cls(
                reader.hex("deployment", 16),
                reader.hex("fingerprint", 32),
                reader.number("least_serial", 2**53),
                None if newest is None else _read_link(newest),
                tuple(_read_link(link) for link in reader.items("links", LINKS_MAX)),
                tuple(_read_alarm(alarm) for alarm in reader.items("alarms", ALARMS_MAX)),
            )
            reader.finish()
        except ValueError as error:
            raise TrustError(f"{where} is damaged: {error}") from None
        return kept


def _link(link: Link) -> dict[str, Any]:
    return {"serial": link.serial, "token": link.token}


def _read_link(value: Any) -> Link:
    reader = Reader(value, "a manifest")
    link = Link(reader.number("serial", 2**53), reader.text("token", _TOKEN_MAX))
    reader.finish()
    return link


def _read_alarm(value: Any) -> Alarm:
    reader = Reader(value, "an alarm")
    digest = from_hex(reader.value("sha256"), 32)
    alarm = Alarm(reader.number("t", 2**53), reader.number("serial", 2**53), digest)
    reader.finish()
    return alarm

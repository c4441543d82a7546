# SPDX-License-Identifier: Apache-2.0
"""Whether a report is sealed, sent in clear, or withheld: one table, and nothing else.

Pure: no clock, no files, no network. What an attacker can choose (silence, unsigned answers, an old
manifest) must not choose clear text, so whoever fills in `Certificate` and `Parent` takes them from
what was verified alone.

========  =========================  =====================  ===========================
level     certificate, parent takes  no usable certificate  parent refuses sealed
========  =========================  =====================  ===========================
REQUIRED  seal                       withhold               withhold
OPTIONAL  seal                       clear                  clear
NONE      clear                      clear                  clear
========  =========================  =====================  ===========================
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from upseal.core.keys import PublicKey

_RECIPIENTS_MAX = 16  # of a session: docs/format.md


class Level(Enum):
    """What a client is set to."""

    REQUIRED = "required"
    """Sealed or not at all."""
    OPTIONAL = "optional"
    """Sealed where that is possible, else in clear."""
    NONE = "none"
    """Always in clear."""

    @property
    def number(self) -> int:
        """On the wire: 2, 1, 0."""
        return _NUMBERS[self]

    @classmethod
    def parse(cls, value: Level | str | int) -> Level:
        """Takes a level, its name in any case, or its number.

        Raises:
            ValueError: there is no such level.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            for level in cls:
                if level.value == value.strip().lower():
                    return level
        elif isinstance(value, int) and not isinstance(value, bool) and value in _LEVELS:
            return _LEVELS[value]
        raise ValueError(f"no level {value!r}: choose one of required, optional, none")

    def __str__(self) -> str:
        return self.value


_LEVELS = {2: Level.REQUIRED, 1: Level.OPTIONAL, 0: Level.NONE}
_NUMBERS = {level: number for number, level in _LEVELS.items()}


class Reason(IntEnum):
    """Why a decision fell as it did: one byte in statements and beacons."""

    SEALED = 0
    """Sealed, and nothing is amiss."""
    LEVEL_NONE = 1
    """The client's level says clear."""
    NO_CERTIFICATE = 2
    """No manifest with an enabled certificate was ever verified."""
    ENCRYPTION_DISABLED = 3
    """The newest verified manifest has encryption disabled."""
    PARENT_REFUSES_SEALED = 4
    """The parent said, signed, that it takes no sealed reports."""
    STALE_MANIFEST = 5
    """Sealed, but to the keys of a manifest past its expiry."""

    @property
    def label(self) -> str:
        """What people see: lower case with dashes."""
        return self.name.lower().replace("_", "-")

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, slots=True)
class Certificate:
    """A usable certificate: whom to seal to.

    Args:
        recipients: public keys, the server's first.
        stale: the manifest that named them is past its expiry.
    """

    recipients: tuple[PublicKey, ...]
    stale: bool = False

    def __post_init__(self) -> None:
        if not self.recipients:
            raise ValueError("a certificate without recipients is none: use Absent")


class Absent(Enum):
    """Why there is no usable certificate."""

    NEVER_SEEN = "never-seen"
    """No manifest was ever verified."""
    DISABLED = "disabled"
    """The newest verified one says that encryption is off, or not on yet."""


@dataclass(frozen=True, slots=True)
class Parent:
    """What is known of the next hop.

    Args:
        accepts_sealed: from the signed manifest, or from words signed by a relay certified there.
            None if nothing signed was ever heard: that counts as yes, since silence must not
            choose clear text.
        recipient: the key of the nearest decrypting relay, if there is one.
    """

    accepts_sealed: bool | None = None
    recipient: PublicKey | None = None


@dataclass(frozen=True, slots=True)
class Seal:
    """Seal to all of these."""

    recipients: tuple[PublicKey, ...]
    reason: Reason


@dataclass(frozen=True, slots=True)
class Clear:
    """Send it in clear."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Withhold:
    """Send it to nobody, and keep it."""

    reason: Reason


Decision: TypeAlias = Seal | Clear | Withhold


class Withheld(Exception):  # noqa: N818 - a public name
    """Somebody asked to send now, and this client may not: its level is REQUIRED."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"withheld: this client may send sealed reports only ({reason.label})")
        self.reason = reason


def decide(level: Level, certificate: Certificate | Absent, parent: Parent) -> Decision:
    """What to do with a report, and why.

    Args:
        level: the client's.
        certificate: the usable one, or why there is none.
        parent: what is known of the next hop.
    """
    if not isinstance(level, Level):
        raise TypeError(f"level must be a Level, not {type(level).__name__}")
    if not isinstance(certificate, Certificate | Absent):
        raise TypeError(f"no Certificate and not Absent: {type(certificate).__name__}")
    if level is Level.NONE:
        return Clear(Reason.LEVEL_NONE)
    if certificate is Absent.NEVER_SEEN:
        return _unsealed(level, Reason.NO_CERTIFICATE)
    if certificate is Absent.DISABLED:
        return _unsealed(level, Reason.ENCRYPTION_DISABLED)
    if parent.accepts_sealed is False:
        return _unsealed(level, Reason.PARENT_REFUSES_SEALED)
    reason = Reason.STALE_MANIFEST if certificate.stale else Reason.SEALED
    return Seal(_with_relay(certificate.recipients, parent.recipient), reason)


def actual(decision: Decision) -> str:
    """``sealed``, ``clear`` or ``withheld``."""
    match decision:
        case Seal():
            return "sealed"
        case Clear():
            return "clear"
        case Withhold():
            return "withheld"


def _unsealed(level: Level, reason: Reason) -> Decision:
    return Withhold(reason) if level is Level.REQUIRED else Clear(reason)


def _with_relay(
    recipients: tuple[PublicKey, ...], relay: PublicKey | None
) -> tuple[PublicKey, ...]:
    """The relay may open too, unless that would weaken the session or not fit in.

    A session is as strong as its weakest recipient, so a classical relay does not stand beside a
    post-quantum server (a `Sealer` would refuse the pair). It then passes the report on unopened.
    """
    if relay is None or relay in recipients or len(recipients) >= _RECIPIENTS_MAX:
        return recipients
    if any(key.suite.post_quantum != relay.suite.post_quantum for key in recipients):
        return recipients
    return (*recipients, relay)

# SPDX-License-Identifier: Apache-2.0
"""What a manifest says of its own state: dates, serial, certificates."""

from __future__ import annotations

import time
from collections.abc import Iterator

from upseal.cli.doctor.lines import Line, fail, ok, warn
from upseal.fleet.manifest import Manifest

_SOON_DAYS = 14
_DAY_MS = 86_400_000


def lines(manifest: Manifest, renew: str) -> Iterator[Line]:
    """How it stands.

    Args:
        manifest: verified.
        renew: what to do about its date.
    """
    now = time.time_ns() // 1_000_000
    until = day(manifest.expires)
    what = f"serial {manifest.serial}, {manifest.state.value}, signed {day(manifest.issued)}"
    left = manifest.expires - now
    if left <= 0:
        yield warn(
            "manifest", f"{what}: stale since {until}; clients seal to its keys all the same", renew
        )
    elif left < _SOON_DAYS * _DAY_MS:
        yield warn("manifest", f"{what}: expires {until}", renew)
    else:
        yield ok("manifest", f"{what}, until {until}")
    from upseal.fleet.policy import Absent

    usable = manifest.usable()
    if isinstance(usable, Absent):
        yield warn(
            "certificate",
            f"nothing is sealed by this manifest: it is {manifest.state.value}",
            "`upseal admin generate-key`, `ready` and `enable` change that, if it is not meant so",
        )
    else:
        keys = ", ".join(f"{one.name} {one.key_id.hex()}" for one in usable.recipients)
        yield ok("certificate", f"reports are sealed to {keys} (generation {manifest.generation})")


def pinned(signers: dict[str, object]) -> Iterator[Line]:
    """Whose signature the next manifest must have."""
    if signers:
        yield ok("pinned-key", f"manifests are believed from {', '.join(sorted(signers))} alone")
    else:
        yield fail(
            "pinned-key", "no manifest was ever seen here", "check `parent`, and enrol again"
        )


def day(milliseconds: int) -> str:
    """A date for people, UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(milliseconds / 1000))

# SPDX-License-Identifier: Apache-2.0
"""What relays and the server sign about themselves, and whose word counts at one parent's address.

Capabilities are public and name no client, so whoever is on the network can show those of one
relay to clients of another, or old ones. `Way` is the guard against that: it counts the word of one
relay, the parent, and never an older word than it has heard of the same relay.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from upseal.fleet import jws
from upseal.fleet.encoding import from_hex
from upseal.fleet.files import read_private, write_private
from upseal.fleet.http.logs import event
from upseal.fleet.manifest import Manifest, RelayEntry
from upseal.fleet.settings import ANY, SERVER

FILE = "parent.json"
SKEW_MS = 5 * 60_000
"""Clocks differ: so much is forgiven in what others have signed."""
_HOPS = 16
"""Relays between here and the server, at most."""
_REMEMBERED = 1024
_NOBODY = "?"
_log = logging.getLogger("upseal.fleet")


class Hop(NamedTuple):
    """What one relay above, or the server, has signed about itself."""

    relay: RelayEntry | None
    """None: the server."""
    accepts_sealed: bool
    decrypts: bool
    key_ids: frozenset[str]
    expires: int
    issued: int

    @property
    def subject(self) -> str:
        """Whose word it is: a relay's id in hexadecimal, or ``server``."""
        return SERVER if self.relay is None else self.relay.relay.hex()


def verified_hops(token: bytes | str, manifest: Manifest, now: int) -> tuple[Hop, ...]:
    """The way up as far as it is verified: each step signed by a key that the manifest names."""
    relays = {
        entry.identity.key_id.hex(): entry
        for entry in manifest.relays
        if entry.relay not in manifest.revoked_agents
    }
    keys = {key.key_id.hex(): key for key in manifest.receipt_keys}
    keys |= {key_id: entry.identity for key_id, entry in relays.items()}
    hops: list[Hop] = []
    following: Any = token
    while following is not None and len(hops) < _HOPS:
        try:
            claims = jws.verify(following, keys, jws.CAPABILITIES)
            hop = _hop(claims, relays.get(jws.header(following)["kid"]), now)
        except (ValueError, KeyError, TypeError):
            break
        hops.append(hop)
        following = None if hop.relay is None else claims.get("parent")
    return tuple(hops)


def _hop(claims: Mapping[str, Any], relay: RelayEntry | None, now: int) -> Hop:
    """One step, if it says what it must; `ValueError` otherwise."""
    subject = SERVER if relay is None else relay.relay.hex()
    accepts, decrypts, key_ids = (claims.get(n) for n in ("accepts_sealed", "decrypts", "key_ids"))
    issued, expires = _time(claims, "iat"), _time(claims, "exp")
    if (
        claims.get("sub") != subject
        or not isinstance(accepts, bool)
        or not isinstance(decrypts, bool)
        or not isinstance(key_ids, list)
        or not all(isinstance(key_id, str) for key_id in key_ids)
        or expires + SKEW_MS < now
        or issued - SKEW_MS > now
    ):
        raise ValueError("not what a hop signs")
    if relay is not None and not relay.accepts_sealed:
        accepts = False  # the administrator's word, which is signed as well
    return Hop(relay, accepts, decrypts, frozenset(key_ids), expires, issued)


def _time(claims: Mapping[str, Any], name: str) -> int:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is no time")
    return value


def certified(hop: Hop, manifest: Manifest) -> bool:
    """Whether the manifest still says of it what it said when it was verified."""
    if hop.relay is None:
        return True
    return hop.relay in manifest.relays and hop.relay.relay not in manifest.revoked_agents


@dataclass(frozen=True, slots=True)
class _Pin:
    """What is written down about one parent's address."""

    relay: str | None = None
    """Who answered there first, by what it said of itself."""
    listed: bool = False
    """The manifest has named it, so that it can be seen when it does so no longer."""
    newest: Mapping[str, int] = field(default_factory=dict)
    """The newest word heard of each relay: when it was signed."""


class Way:
    """Whose word counts at a parent's address. Safe to share between threads.

    Args:
        path: where it is written down; None: in memory alone.
        parent: the address. For another one all begins anew.
        ids: whose word counts; None: of who answers first.
    """

    def __init__(self, path: Path | None, parent: str, ids: Sequence[str] | None = None) -> None:
        self._path, self._parent, self._ids = path, parent, ids
        self._lock = threading.Lock()
        self._kept = _Pin()
        self.stranger: str | None = None
        """Who has answered last, if it is somebody whose word does not count here."""

    def hear(self, token: bytes | str, manifest: Manifest, now: int) -> tuple[Hop, ...]:
        """The way up as this answer has it, as far as it counts; empty if nothing of it does.

        Raises:
            OSError: it cannot be written down, and so does not count.
        """
        subject = _subject(token)
        if subject is None:
            return ()
        hops = verified_hops(token, manifest, now)
        with self._lock:
            before = self._load()
            pin = self._pinned(before, subject, hops, manifest)
            if pin is None:
                if self.stranger != subject:
                    event(_log, "another relay answers", level=logging.WARNING, relay=subject)
                self.stranger = subject
                return ()
            self.stranger = None
            found = []
            for hop in hops:
                if hop.issued < pin.newest.get(hop.subject, 0):
                    event(_log, "old capabilities", level=logging.WARNING, relay=hop.subject)
                    break  # it was signed before what was heard already
                found.append(hop)
            newest = {**pin.newest, **{hop.subject: hop.issued for hop in found}}
            pin = replace(pin, newest=_bounded(newest, manifest))
            if pin != before:
                self._save(pin)
        return tuple(found)

    def _pinned(
        self, pin: _Pin, subject: str, hops: Sequence[Hop], manifest: Manifest
    ) -> _Pin | None:
        """With the relay that counts; None if this is not the one."""
        if self._ids is not None:
            return pin if ANY in self._ids or subject in self._ids else None
        if pin.relay is None:
            # Also one that the manifest does not name, and whose word counts for nothing: that
            # another's does not count either is what is written down.
            return replace(pin, relay=subject, listed=bool(hops))
        if pin.relay == subject:
            return replace(pin, listed=pin.listed or bool(hops))
        named = {
            entry.relay.hex()
            for entry in manifest.relays
            if entry.relay not in manifest.revoked_agents
        }
        gone = pin.listed and pin.relay not in (SERVER, *named)
        # The administrator has taken it out. Who comes after it begins with a "yes".
        if gone and hops and all(hop.accepts_sealed for hop in hops):
            return replace(pin, relay=subject, listed=True)
        return None

    def _load(self) -> _Pin:
        """What is written down now: `forget` may have been called by another process."""
        if self._path is None:
            return self._kept
        try:
            said = json.loads(read_private(self._path, 1 << 20))
            if said["parent"] != self._parent:
                return _Pin()
            newest = {str(name): int(time) for name, time in said["newest"].items()}
            relay, listed = said["relay"], said["listed"]
            if not (relay is None or isinstance(relay, str)) or not isinstance(listed, bool):
                raise ValueError
        except FileNotFoundError:
            return _Pin()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            # It does not say any more whose word counts: then nobody's does.
            return _Pin(_NOBODY)
        return _Pin(relay, listed, newest)

    def _save(self, pin: _Pin) -> None:
        if self._path is None:
            self._kept = pin
            return
        said = {
            "parent": self._parent,
            "relay": pin.relay,
            "listed": pin.listed,
            "newest": dict(pin.newest),
        }
        write_private(self._path, json.dumps(said, indent=1).encode() + b"\n")


def forget(folder: Path) -> bool:
    """The next relay that answers at the parent's address counts; whether one was written down.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        (folder / FILE).unlink()
    except FileNotFoundError:
        return False
    return True


def _subject(token: bytes | str) -> str | None:
    """Who an answer says it is of, whoever has signed it."""
    try:
        subject = jws.unverified(token).get("sub")
        if subject != SERVER:
            from_hex(subject, 16)
    except (ValueError, TypeError, AttributeError):
        return None
    return str(subject)


def _bounded(newest: dict[str, int], manifest: Manifest) -> dict[str, int]:
    """Of those that the manifest names: what others sign counts for nothing anyway."""
    if len(newest) <= _REMEMBERED:
        return newest
    named = {SERVER, *(entry.relay.hex() for entry in manifest.relays)}
    kept = sorted((time, name) for name, time in newest.items() if name in named)
    return {name: time for time, name in kept[-_REMEMBERED:]}


__all__ = ["ANY", "FILE", "SERVER", "SKEW_MS", "Hop", "Way", "certified", "forget", "verified_hops"]

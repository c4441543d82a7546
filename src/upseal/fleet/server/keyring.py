# SPDX-License-Identifier: Apache-2.0
"""The server's private keys: files of the folder ``keys/``, opened with as the store says.

A file ``<generation>-<key id>.pem`` is a key. One that ends in ``.ref`` has in its first line where
the key is kept (`upseal.integrations.keys`), and below it the public key, by which the server knows
what is sealed to it while the token or process is away.

A key is used while its state in the store is pending, active or draining and its generation is not
below the oldest of the manifest; then it is forgotten. Files that come or go are noticed at the
next `Keyring.refresh`.
"""

from __future__ import annotations

import enum
import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from upseal.core.keys import PrivateKey
from upseal.core.opener import Opener, Sessions
from upseal.fleet.files import read_private
from upseal.fleet.http.logs import event
from upseal.fleet.server.store import keys
from upseal.fleet.server.throttle import Throttle, Throttled
from upseal.integrations.keys import LazyKey, kept_elsewhere

_NAME = re.compile(r"([0-9]{1,9})-([0-9a-f]{16})\.(?:pem|ref)")
_SIZE_MAX = 1 << 16
_log = logging.getLogger("upseal.server.keyring")


class Standing(enum.Enum):
    """What can be said of a key id."""

    HERE = "here"
    MISSING = "missing"
    """The store knows it as ours, but there is no file."""
    RETIRED = "retired"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class _Own:
    """A private key as an `Opener` uses it: each unwrap is accounted for.

    An opener unwraps at the first report of a session only, so this is where a flood of sessions
    is seen, without knowing anything of the opener's cache.
    """

    private: PrivateKey | LazyKey
    generation: int
    throttle: Throttle
    unwraps_afresh: ClassVar[bool] = True
    """See `upseal.core.known.KeyOpener`."""

    @property
    def suite(self) -> int:
        return int(self.private.suite)

    @property
    def key_id(self) -> bytes:
        return self.private.key_id

    def unwrap(self, wrapped: bytes) -> bytes:
        elsewhere = isinstance(self.private, LazyKey)
        with self.throttle.unwrapping(time.monotonic if elsewhere else time.thread_time):
            return self.private.unwrap(wrapped)


class Keyring:
    """Private keys and the `Opener` that has them. Safe to share between threads."""

    def __init__(self, folder: Path, sessions: int, throttle: Throttle | None = None) -> None:
        """Reads nothing yet.

        Args:
            folder: ``keys/`` of the deployment.
            sessions: how many the opener remembers; see `Opener`.
            throttle: what unwrapping may cost.
        """
        self._folder = folder
        self._sessions = sessions
        self._throttle = throttle or Throttle()
        self._opener: Opener | None = None
        self._own: dict[bytes, _Own] = {}
        self._states: dict[bytes, str] = {}
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._lock = threading.Lock()

    @property
    def opener(self) -> Opener | None:
        """Opens with all keys in use; None before there was any."""
        return self._opener

    @property
    def key_ids(self) -> tuple[bytes, ...]:
        """Of the keys in use."""
        return tuple(self._own)

    @property
    def sessions(self) -> Sessions:
        """How well the opener remembers sessions."""
        return Sessions(0, 0, 0) if self._opener is None else self._opener.sessions

    def private(self, key_id: bytes) -> PrivateKey | LazyKey | None:
        """A key in use."""
        own = self._own.get(key_id)
        return None if own is None else own.private

    def missing(self) -> list[bytes]:
        """Keys that are in use and have no file."""
        return [
            k for k, state in self._states.items() if state != keys.RETIRED and k not in self._own
        ]

    def standing(self, key_id: bytes) -> Standing:
        """What a body sealed to this key id is told by."""
        if key_id in self._own:
            return Standing.HERE
        state = self._states.get(key_id)
        if state is None:
            return Standing.UNKNOWN
        return Standing.RETIRED if state == keys.RETIRED else Standing.MISSING

    def refresh(self, known: Sequence[keys.Key], oldest_generation: int) -> list[bytes]:
        """Follows the store and the folder; the key ids that were not there before."""
        with self._lock:
            states = {}
            for key in known:
                if key.holder == keys.SERVER:
                    retired = key.state == keys.RETIRED or key.generation < oldest_generation
                    states[key.key_id] = keys.RETIRED if retired else key.state
            wanted = {key_id for key_id, state in states.items() if state != keys.RETIRED}
            files = self._files()
            for key_id in [k for k in self._own if k not in wanted or k not in files]:
                own = self._own.pop(key_id)
                if self._opener is not None:
                    self._opener.remove_key(key_id)
                event(_log, "key no longer used", generation=own.generation, key_id=key_id.hex())
            new = []
            for key_id in wanted - self._own.keys():
                own_key = self._load(files[key_id], key_id) if key_id in files else None
                if own_key is not None:
                    self._use(own_key)
                    new.append(key_id)
            self._states = states  # last: who finds a key here finds it in the opener as well
            return new

    def _use(self, own: _Own) -> None:
        if self._opener is None:
            self._opener = Opener([own], cache=self._sessions)
        else:
            self._opener.add_key(own)
        self._own[own.key_id] = own
        event(_log, "key in use", generation=own.generation, key_id=own.key_id.hex())

    def _files(self) -> dict[bytes, Path]:
        try:
            names = os.listdir(self._folder)
        except OSError:
            return {}
        found = {}
        for name in names:
            match = _NAME.fullmatch(name)
            if match is not None:
                found[bytes.fromhex(match[2])] = self._folder / name
        return found

    def _load(self, path: Path, key_id: bytes) -> _Own | None:
        """The key in a file, once for each state of the file: it is not read again in vain."""
        try:
            facts = os.stat(path)
            mark = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
            if self._seen.get(path.name) == mark:
                return None
            self._seen[path.name] = mark
            if facts.st_size > _SIZE_MAX:
                raise ValueError("far too long")
            data = read_private(path, _SIZE_MAX)
            private = (
                kept_elsewhere(data)
                if path.suffix == ".ref"
                else PrivateKey.from_pem(data, _passphrase(data))
            )
            if private.key_id != key_id:
                raise ValueError("its name is not that of the key in it")
        except (OSError, ValueError, TypeError) as error:
            if isinstance(error, OSError) and not isinstance(error, PermissionError):
                self._seen.pop(path.name, None)  # a disk that failed may do better
            event(
                _log, "key file not usable", level=logging.ERROR, file=path.name,
                why=type(error).__name__,
            )  # fmt: skip
            return None
        if facts.st_mode & 0o077 and path.suffix == ".pem":
            event(_log, "others may read a key file", level=logging.WARNING, file=path.name)
        del self._seen[path.name]
        return _Own(private, int(path.name.partition("-")[0]), self._throttle)


def _passphrase(data: bytes) -> str | None:
    """UPSEAL_PASSPHRASE, for a file that is encrypted."""
    if b"BEGIN ENCRYPTED" in data:
        return os.environ.get("UPSEAL_PASSPHRASE") or None
    return None


__all__ = ["Keyring", "Standing", "Throttle", "Throttled"]

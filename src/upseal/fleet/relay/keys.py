# SPDX-License-Identifier: Apache-2.0
"""The private keys of a decrypting relay, by generation: made here, and never anywhere else.

Unless somebody has put a file ``<generation>-<key id>.ref`` there before (see
`upseal.integrations.keys.kept_elsewhere`): then that generation's key is the one it refers to.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from contextlib import suppress
from pathlib import Path

from upseal.core.keys import PrivateKey
from upseal.core.opener import Opener, Sessions
from upseal.fleet.files import (
    make_private_directory,
    read_private,
    sync_directory,
    write_private,
)
from upseal.fleet.http.logs import event
from upseal.fleet.server.throttle import Throttle
from upseal.integrations.keys import LazyKey, kept_elsewhere

_log = logging.getLogger(__name__)
_NAME = re.compile(r"(\d{1,18})-([0-9a-f]{16})\.(pem|ref)")
_PEM_MAX = 1 << 16
RelayKey = PrivateKey | LazyKey


class _Counted:
    """A key whose use is on the account of whoever sent what it is used on."""

    unwraps_afresh = True
    """See `upseal.core.known.KeyOpener`."""

    def __init__(self, key: RelayKey, throttle: Throttle) -> None:
        self.suite, self.key_id = key.suite, key.key_id
        self._key, self._throttle = key, throttle

    def unwrap(self, wrapped: bytes) -> bytes:
        """As `PrivateKey.unwrap`."""
        elsewhere = isinstance(self._key, LazyKey)
        with self._throttle.unwrapping(time.monotonic if elsewhere else time.thread_time):
            return self._key.unwrap(wrapped)


class RelayKeys:
    """Keys in a folder, one file each: ``<generation>-<key id>.pem``. Safe for threads."""

    def __init__(
        self, folder: Path, *, cache: int = 65_536, throttle: Throttle | None = None
    ) -> None:
        """Reads what is there.

        Args:
            folder: made (mode 0700) if it is missing.
            cache: sessions that the opener remembers.
            throttle: what new sessions of one hop may cost.

        Raises:
            OSError: it cannot be read.
            ValueError: a file in it is no key, or not the one its name says.
        """
        self._folder = folder
        self._cache = cache
        self.throttle = throttle or Throttle()
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._keys: list[tuple[int, RelayKey]] = []
        self._opener: Opener | None = None
        make_private_directory(folder)
        for path in sorted(folder.iterdir()):
            named = _NAME.fullmatch(path.name)
            if named is not None:
                self._add(int(named.group(1)), _read(path, bytes.fromhex(named.group(2))))
            elif path.name.endswith(".part"):  # of a process that was killed while it wrote
                path.unlink()

    def all(self) -> list[tuple[int, RelayKey]]:
        """Generations and their keys, the oldest first."""
        with self._lock:
            return sorted(self._keys, key=lambda pair: pair[0])

    @property
    def opener(self) -> Opener | None:
        """Opens what is sealed to one of the keys; None while there is none."""
        return self._opener

    @property
    def sessions(self) -> Sessions:
        """How well the opener remembers sessions."""
        return Sessions(0, 0, 0) if self._opener is None else self._opener.sessions

    def get(self, generation: int, kind: str | None = None) -> RelayKey | None:
        """The key of that generation; the last made, and of that kind, if there are several."""
        found = [
            key for g, key in self.all() if g == generation and kind in (None, key.public_key.name)
        ]
        return found[-1] if found else None

    def make(self, generation: int, kind: str) -> RelayKey:
        """The key of that generation and kind (`PrivateKey.generate`): a new one if need be.

        It is on the disk before it is used. A generation has keys of two kinds where the
        administrator has thought again before it was enabled.
        """
        if generation < 0:
            raise ValueError("a generation is 0 or more")
        with self._making:
            known = self.get(generation, kind)
            if known is not None:
                return known
            key = PrivateKey.generate(kind)
            write_private(self._path(generation, key), key.to_pem())
            self._add(generation, key)
        event(_log, "made a relay key", generation=generation, key_id=key.key_id.hex(), kind=kind)
        return key

    def retire(self, oldest: int) -> list[int]:
        """Deletes the keys of generations below ``oldest``; returns those generations."""
        with self._lock:
            gone = [(g, key) for g, key in self._keys if g < oldest]
            self._keys = [(g, key) for g, key in self._keys if g >= oldest]
        for generation, key in gone:
            if self._opener is not None:
                with suppress(KeyError):
                    self._opener.remove_key(key.key_id)
            self._path(generation, key).unlink(missing_ok=True)
            event(_log, "deleted a retired key", generation=generation, key_id=key.key_id.hex())
        if gone:
            sync_directory(self._folder)
        return sorted(generation for generation, _ in gone)

    def _path(self, generation: int, key: RelayKey) -> Path:
        form = "ref" if isinstance(key, LazyKey) else "pem"
        return self._folder / f"{generation}-{key.key_id.hex()}.{form}"

    def _add(self, generation: int, key: RelayKey) -> None:
        with self._lock:
            counted = _Counted(key, self.throttle)
            if self._opener is None:
                self._opener = Opener([counted], cache=self._cache)
            else:
                self._opener.add_key(counted)
            self._keys.append((generation, key))


def listing(folder: Path) -> list[tuple[int, str, str]]:
    """Generation, key id and kind of the keys in a folder, which another process may be using."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        named = _NAME.fullmatch(path.name)
        if named is not None:
            with suppress(FileNotFoundError):  # deleted meanwhile
                key = _read(path, bytes.fromhex(named.group(2)))
                found.append((int(named.group(1)), named.group(2), key.public_key.name))
    return sorted(found)


def _read(path: Path, key_id: bytes) -> RelayKey:
    try:
        data = read_private(path, _PEM_MAX)
        key = kept_elsewhere(data) if path.suffix == ".ref" else PrivateKey.from_pem(data)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no private key: {error}") from error
    if key.key_id != key_id:
        raise ValueError(f"{path} holds another key than its name says")
    return key

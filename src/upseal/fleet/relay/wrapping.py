# SPDX-License-Identifier: Apache-2.0
"""What a decrypting relay seals for the last hop: bodies that came in clear, each once.

A sealed body is made under a temporary name, brought to the disk, and only then gets its sidecar:
with that it counts. What has none was begun by a process that was killed. It goes when the folder
is opened, and the body is sealed anew: in a session of its own, so that no salt serves twice.

BODY.sealed   what goes up; BODY is the hex id of the body that came from below
BODY.json     what it is called further up, and the manifest that it was sealed by
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from upseal.core.files import seal_file
from upseal.core.sealer import Sealer
from upseal.fleet.encoding import dump_json, from_hex, load_object
from upseal.fleet.files import (
    file_sha256,
    free_bytes,
    make_private_directory,
    read_private,
    sync_directory,
    write_private,
)
from upseal.fleet.http.logs import event
from upseal.fleet.manifest import Manifest
from upseal.fleet.relay.source import Lost, Source
from upseal.fleet.statements import fleet_context
from upseal.fleet.uploads.held import sealed_most
from upseal.fleet.uploads.words import Ticket

_log = logging.getLogger(__name__)
_SIDECAR_MAX = 4096
_NAME = re.compile(r"([0-9a-f]{64})\.(json|sealed)")


class DiskFull(Exception):  # noqa: N818 - what it is
    """The disk has no room for the sealed body beside the one that came."""


class Stopped(Exception):  # noqa: N818 - what happened
    """The process ends."""


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A body that this relay has sealed.

    Args:
        body: the id of the body that came from below.
        ticket: what it is further up: the same upload, sealed.
        serial: of the manifest that it was sealed by.
        path: of its bytes.
    """

    body: bytes
    ticket: Ticket
    serial: int
    path: Path

    def encode(self) -> bytes:
        """The sidecar."""
        return dump_json({
            "version": 1, "upload": self.ticket.upload.hex(),
            "sha256": self.ticket.body_sha256.hex(), "size": self.ticket.size,
            "serial": self.serial,
        })  # fmt: skip

    @classmethod
    def decode(cls, body: bytes, data: bytes, path: Path) -> Wrapped:
        """From a sidecar; ValueError if it is none."""
        try:
            said = load_object(data)
            if said["version"] != 1:
                raise ValueError("a sidecar of another version")
            upload, digest = from_hex(said["upload"], 16), from_hex(said["sha256"], 32)
            ticket = Ticket(upload, digest, "sealed", said["size"])
            return cls(body, ticket, int(said["serial"]), path)
        except (KeyError, TypeError) as error:
            raise ValueError("not a sidecar") from error


class Wraps:
    """The folder. Safe for threads; one thread at a time works on one body."""

    def __init__(self, folder: Path, *, min_free: int = 0) -> None:
        """Opens it, and takes away what was never finished.

        Args:
            folder: is made, if it is not there.
            min_free: bytes left free on the disk.

        Raises:
            OSError: it cannot be read or written.
        """
        self._folder, self._min_free = folder, min_free
        self._known: dict[bytes, Wrapped] = {}
        self._lock = threading.Lock()
        make_private_directory(folder)
        for path in sorted(folder.glob("*.json")):
            found = self._read(path)
            if found is not None:
                self._known[found.body] = found
        whole = {wrapped.body for wrapped in self._known.values()}
        for path in list(folder.iterdir()):
            name = _NAME.fullmatch(path.name)
            if name is None or bytes.fromhex(name[1]) not in whole:
                with suppress(IsADirectoryError):
                    path.unlink(missing_ok=True)

    def _read(self, path: Path) -> Wrapped | None:
        """What a sidecar stands for, if both it and the body are as they were left."""
        name = _NAME.fullmatch(path.name)
        if name is None:
            return None
        sealed = path.with_suffix(".sealed")
        try:
            data = read_private(path, _SIDECAR_MAX)
            wrapped = Wrapped.decode(bytes.fromhex(name[1]), data, sealed)
            if sealed.stat().st_size == wrapped.ticket.size:
                return wrapped
        except FileNotFoundError:
            return None
        except ValueError:
            pass
        event(_log, "sealed body damaged; it is made anew", level=logging.ERROR, file=path)
        return None

    def find(self, body: bytes) -> Wrapped | None:
        """What was sealed of this body."""
        with self._lock:
            return self._known.get(body)

    def keep_only(self, bodies: Collection[bytes]) -> None:
        """Drops what was sealed of any others: they are done."""
        with self._lock:
            others = [body for body in self._known if body not in bodies]
        for body in others:
            self.drop(body)

    def drop(self, body: bytes) -> None:
        """Forgets what was sealed of this body, if anything was; the sidecar goes first."""
        wrapped = self.find(body)
        if wrapped is not None:  # known until it is gone: what fails here is tried again
            wrapped.path.with_suffix(".json").unlink(missing_ok=True)
            wrapped.path.unlink(missing_ok=True)
            with self._lock:
                self._known.pop(body, None)

    @property
    def size(self) -> int:
        """Bytes held."""
        with self._lock:
            return sum(wrapped.ticket.size for wrapped in self._known.values())

    def make(
        self, body: bytes, clear: Ticket, source: Path, manifest: Manifest, stop: threading.Event
    ) -> Wrapped:
        """Seals a body that came in clear to the keys in force.

        Args:
            body: its id.
            clear: its ticket.
            source: its bytes.
            manifest: whose encryption keys it is sealed to.
            stop: gives up when it is set.

        Raises:
            DiskFull: there is no room.
            Lost: the body is not there, or not as long as it was.
            Stopped: it was told to.
            OSError: a file cannot be read or written.
        """
        with Source(source, clear.size):
            pass
        path = self._folder / f"{body.hex()}.sealed"
        temporary = self._folder / f"{body.hex()}.{secrets.token_hex(8)}.part"
        if free_bytes(self._folder) < self._min_free + sealed_most(clear.size):
            raise DiskFull

        def progress(done: int, total: int | None) -> None:
            _unless(stop)

        try:
            with open(temporary, "xb", buffering=0) as target:
                os.fchmod(target.fileno(), 0o600)
                sealer = Sealer([key.public() for key in manifest.encryption])
                context = fleet_context(manifest.deployment)
                if seal_file(source, target, sealer, context, progress=progress) != clear.size:
                    raise Lost
                os.fsync(target.fileno())
            digest, size = hashed(temporary, stop)
            os.replace(temporary, path)
            sync_directory(self._folder)
            ticket = Ticket(clear.upload, digest, "sealed", size)
            wrapped = Wrapped(body, ticket, manifest.serial, path)
            write_private(path.with_suffix(".json"), wrapped.encode())
        except BaseException:
            for left in (path.with_suffix(".json"), path, temporary):
                with suppress(OSError):  # then whoever opens the folder next takes it away
                    left.unlink()
            raise
        with self._lock:
            self._known[body] = wrapped
        return wrapped

    @staticmethod
    def sound(wrapped: Wrapped, stop: threading.Event) -> bool:
        """Whether its bytes are still what was sealed.

        Raises:
            Stopped: it was told to give up.
        """
        try:
            return hashed(wrapped.path, stop) == (wrapped.ticket.body_sha256, wrapped.ticket.size)
        except OSError:
            return False


def _unless(stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped


def hashed(path: Path, stop: threading.Event) -> tuple[bytes, int]:
    """SHA-256 and length of a file.

    Raises:
        Stopped: it was told to give up.
        OSError: it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        return file_sha256(file, lambda: _unless(stop)), file.tell()


def inspect(folder: Path) -> tuple[int, int]:
    """How many sealed bodies a folder holds that another process may be using, and their bytes."""
    count = size = 0
    for path in folder.glob("*.sealed"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size
            count += 1
    return count, size

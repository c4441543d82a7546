# SPDX-License-Identifier: Apache-2.0
"""Taking files: sealed into the folder, written down, and announced if it is known to whom.

What cannot be sealed to the server now, since encryption is off or this client's level says clear,
is sealed to the spool's own key: nothing waits on the disk in clear, whatever it will travel as.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from upseal.core.files import Progress
from upseal.core.uploads import sealed_size
from upseal.fleet.agent.settings import Uploads
from upseal.fleet.agent.spool import Spool, SpoolFull
from upseal.fleet.agent.uploads.bodies import Sealed, seal_into
from upseal.fleet.agent.uploads.folder import Folder, is_full
from upseal.fleet.agent.uploads.ledger import Facts, Ledger, Recipients
from upseal.fleet.agent.uploads.rows import Row
from upseal.fleet.policy import Certificate
from upseal.fleet.units import fleet_context
from upseal.fleet.uploads.words import Announcement, check_name

_FRONT = 256
"""Bytes before the first chunk, about: only for the first look whether there is room."""
_OWN = b"upload\0"


class Contexts:
    """What bodies are bound to.

    Args:
        spool: whose own files are bound to it, and to their upload.
        deployment: what is sealed for the server is bound to this.
    """

    def __init__(self, spool: Spool, deployment: bytes) -> None:
        self._own = spool.context + _OWN
        self._fleet = fleet_context(deployment)

    def of(self, upload: bytes, *, own: bool) -> bytes:
        """Of an upload's file."""
        return self._own + upload if own else self._fleet


def named_by(certificate: Certificate, serial: int) -> Recipients:
    """The server's keys. Not the nearest relay's: relays pass uploads on as they are."""
    return Recipients(b"".join(key.key_id for key in certificate.recipients), serial)


def announcement_of(upload: bytes, facts: Facts, size: int, sealed: Sealed | Row) -> Announcement:
    """What is said of a sealed body."""
    assert sealed.file_sha256 is not None
    return Announcement(
        upload, "sealed", size, sealed.file_size, sealed.file_sha256, facts.modified, facts.name
    )


class Taker:
    """Takes files. Safe to share between threads.

    Args:
        spool: its key seals what is not sealed to the server.
        folder: where sealed files go.
        ledger: where they are written down.
        contexts: what they are bound to.
        limits: how large one may be.
    """

    def __init__(
        self, spool: Spool, folder: Folder, ledger: Ledger, contexts: Contexts, limits: Uploads
    ) -> None:
        self._spool = spool
        self._folder = folder
        self._ledger = ledger
        self._contexts = contexts
        self._limits = limits

    def take(
        self,
        path: str | bytes | os.PathLike[str],
        name: str | bytes | None,
        progress: Progress | None,
        certificate: Certificate | None,
        serial: int,
    ) -> bytes:
        """Takes a file as it is now; it is on the disk, sealed, when this returns.

        Args:
            path: of a regular file.
            name: in place of its own.
            progress: called with bytes sealed and bytes in all.
            certificate: whom to seal to; None for the spool's own key.
            serial: of the manifest that the certificate is from.

        Returns:
            The upload's id.

        Raises:
            ValueError: it is no regular file, or too large, or its name cannot be one.
            SpoolFull: there is no room.
            SpoolError: it could not be written. It was not taken.
            OSError: the file cannot be read, or became shorter meanwhile.
        """
        facts_name = _checked_name(path, name)
        with _regular(path) as file:
            status = os.fstat(file.fileno())
            facts = Facts(facts_name, max(0, status.st_mtime_ns // 1_000_000))
            self._check_size(status.st_size)
            upload = os.urandom(16)
            try:
                self._ledger.check_room(_FRONT + sealed_size(status.st_size))
                self._seal(upload, facts, file, progress or _silent, certificate, serial)
            except SpoolFull:
                self._ledger.refused()
                raise
            except OSError as error:
                if not is_full(error):
                    raise
                self._ledger.refused()
                raise SpoolFull(f"no room on the disk of {self._folder.path}") from error
        return upload

    def _seal(
        self,
        upload: bytes,
        facts: Facts,
        file: io.FileIO,
        progress: Progress,
        certificate: Certificate | None,
        serial: int,
    ) -> None:
        own = certificate is None
        keys = (self._spool.public_key,) if certificate is None else certificate.recipients
        context = self._contexts.of(upload, own=own)
        with self._folder.making(upload) as (name, target):
            sealed = seal_into(target, file, keys, context, digest=not own, progress=progress)
            self._check_size(sealed.size)
            self._folder.keep(target)
            if certificate is None:
                self._ledger.add(upload, facts, name, sealed, Recipients(), None)
            else:
                announcement = announcement_of(upload, facts, sealed.size, sealed)
                recipients = named_by(certificate, serial)
                self._ledger.add(upload, facts, name, sealed, recipients, announcement)

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_size:
            raise ValueError(
                f"the file has {size:,} bytes, and uploads.max_size is {self._limits.max_size:,}"
            )


def _checked_name(path: str | bytes | os.PathLike[str], name: str | bytes | None) -> bytes:
    found = os.path.basename(os.fsencode(path)) if name is None else os.fsencode(name)
    check_name(found)
    return found


@contextmanager
def _regular(path: str | bytes | os.PathLike[str]) -> Iterator[io.FileIO]:
    """A regular file, open: nothing else is opened, since that alone may do something."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")
    # Whatever has taken its place meanwhile: a pipe would not keep us waiting.
    with io.FileIO(path, "rb", opener=_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        # Those of /proc say that they are empty. Some of a log that grows is a good beginning.
        if not _size(file) and os.pread(file.fileno(), 1, 0) and not _size(file):
            raise ValueError("a file that does not say how long it is; make a copy of it")
        yield file


def _at_once(path: str, _: int) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _size(file: io.FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _silent(done: int, total: int | None) -> None:
    """For callers who do not ask."""

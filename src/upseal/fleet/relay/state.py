# SPDX-License-Identifier: Apache-2.0
"""A relay's folder: who it is, what it believes, what it keeps.

relay.toml       settings
identity.pem     signs capabilities, and what it says of its keys
hop.pem          signs requests to the parent
trust.json       the newest verified manifest, and those that lead to it
keys/            a decrypting relay's own keys, by generation
queue.db         what is not receipted yet; as it came, so sealed bodies stay sealed
uploads/         whole files on their way, likewise
uploads-sealed/  those that came in clear, sealed by a decrypting relay
enrolment.json   written last: with it, the relay is enrolled
lock             held by the process that runs
address          where that one listens
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from upseal.fleet.agent.enrolment import ask, first_manifest
from upseal.fleet.agent.membership import ENROLMENT, TRUST, Credentials, Membership
from upseal.fleet.credentials import Token
from upseal.fleet.files import make_private_directory, write_private
from upseal.fleet.http.client import Client, ClientTls, Timeouts
from upseal.fleet.http.logs import event
from upseal.fleet.identity import load_or_make
from upseal.fleet.malformed import damaged
from upseal.fleet.relay.keys import RelayKeys
from upseal.fleet.relay.queue import Queue
from upseal.fleet.relay.settings import FILE_NAME, Settings, toml_of
from upseal.fleet.relay.wrapping import Wraps
from upseal.fleet.server.throttle import Throttle
from upseal.fleet.trust import Trust
from upseal.fleet.uploads.shelf import Shelf, ShelfError, ShelfLimits

_log = logging.getLogger(__name__)

QUEUE = "queue.db"
SHELF = "uploads"
WRAPS = "uploads-sealed"
KEYS = "keys"
ADDRESS = "address"
_LOCK = "lock"


class AlreadyRunning(Exception):  # noqa: N818 - what is the case
    """Another process runs this relay."""


def enrol(settings: Settings, token_text: str) -> Membership:
    """Makes the folder, its keys and its settings, and has them enrolled.

    As an agent (`upseal.fleet.agent.enrolment.enrol`); after a failure it can be run again.

    Raises:
        ValueError: the token is none.
        FileExistsError: the folder is one of an enrolled relay or agent.
        EnrolmentRefused: the server refused, or something did not verify.
        Unreachable: no answer came.
        OSError: a file cannot be written.
    """
    token = Token.decode(token_text)
    folder = settings.directory
    if (folder / ENROLMENT).exists():
        raise FileExistsError(errno.EEXIST, "is enrolled already", str(folder))
    make_private_directory(folder)
    with client_of(settings) as client:
        manifest = first_manifest(client, token, folder)
        identity = load_or_make(folder / "identity.pem", settings.kind)
        hop = load_or_make(folder / "hop.pem", settings.kind)
        wishes = {"decrypts": settings.decrypting, "accepts_sealed": settings.accepts_sealed}
        name = settings.name
        member = ask(client, name, token, manifest, identity, hop, role="relay", **wishes)
    if not (folder / FILE_NAME).exists():
        write_private(folder / FILE_NAME, toml_of(settings).encode())
    member.save(folder)
    return member


def client_of(settings: Settings) -> Client:
    """Speaks to the parent as the settings say."""
    http, tls = settings.http, None
    if settings.parent.startswith("https://"):
        tls = ClientTls(http.ca, http.certificate, http.key)
    times = Timeouts(min(10.0, http.timeout), http.timeout, max(60.0, http.timeout * 4))
    # One for each worker, the poller, the control thread, and what is handed through.
    workers = settings.forward.workers + settings.uploads.workers
    return Client(settings.parent, times, tls, connections=workers + 10)


@dataclass
class State:
    """What stands in the folder, opened by one process."""

    me: Credentials
    trust: Trust
    keys: RelayKeys
    queue: Queue
    shelf: Shelf
    wraps: Wraps
    _lock: int

    @classmethod
    def open(cls, settings: Settings, on_done: Callable[[Any], None] | None = None) -> Self:
        """Opens it.

        Raises:
            NotEnrolled: it is no relay's.
            AlreadyRunning: another process has it.
            ValueError: something in it is damaged (a damaged queue is set aside, and a new one
                begun: everything in it is still with its senders).
            OSError: it cannot be read or written.
        """
        folder = settings.directory
        me = Credentials.load(folder)
        lock = _locked(folder)
        try:
            trust = Trust.load(folder / TRUST)
            limits = settings.repackage
            throttle = Throttle(limits.unwrap_share, limits.unwrap_reserve)
            keys = RelayKeys(folder / KEYS, cache=limits.cache, throttle=throttle)
            try:
                shelf = Shelf(folder / SHELF, _shelf_limits(settings))
            except ShelfError as error:
                raise AlreadyRunning(str(error)) from None
            try:
                wraps = Wraps(folder / WRAPS, min_free=settings.uploads.min_free)
                queue = _queue(folder / QUEUE, settings, on_done)
            except BaseException:
                shelf.close()
                raise
        except BaseException:
            os.close(lock)
            raise
        return cls(me, trust, keys, queue, shelf, wraps, lock)

    def close(self) -> None:
        """Lets go of it."""
        self.shelf.close()
        self.queue.close()
        os.close(self._lock)


def _locked(folder: Path) -> int:
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise AlreadyRunning(f"another process runs the relay in {folder}") from None
    return lock


def running(folder: Path) -> bool:
    """Whether a process runs the relay."""
    try:
        os.close(_locked(folder))
    except AlreadyRunning:
        return True
    return False


def _shelf_limits(settings: Settings) -> ShelfLimits:
    limits = settings.uploads
    return ShelfLimits(
        limits.max_bytes,
        limits.max_size,
        limits.open_per_hop,
        limits.hop_share,
        limits.expires,
        limits.min_free,
        sealed_again=settings.decrypting,
    )


def _queue(path: Path, settings: Settings, on_done: Callable[[Any], None] | None) -> Queue:
    limits = settings.queue

    def made() -> Queue:
        return Queue(
            path,
            max_bytes=limits.max_bytes,
            max_bodies=limits.max_bodies,
            hop_share=limits.hop_share,
            keep=limits.keep_results,
            result_bytes=limits.result_bytes,
            min_free=limits.min_free,
            on_done=on_done,
        )

    try:
        return made()
    except sqlite3.OperationalError:
        raise  # locked, unreadable, a full disk: it is not damaged
    except sqlite3.DatabaseError as error:
        if not damaged(path):
            raise OSError(errno.EIO, "could not be read", str(path)) from error
        aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
        event(_log, "queue damaged, set aside", level=logging.ERROR, file=aside, why=str(error))
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        return made()

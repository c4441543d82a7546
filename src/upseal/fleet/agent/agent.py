# SPDX-License-Identifier: Apache-2.0
"""The agent as a library.

    with Agent(Settings.load("/var/lib/upseal/agent.toml")) as agent:
        agent.report(b'{"property": "..."}')      # on the disk, sealed, when it returns

Reporting needs no thread and no network. ``start`` or ``run`` sends, in one process for a folder.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Self

from upseal import PrivateKey
from upseal.core.files import Progress
from upseal.core.forks import renew_in_children
from upseal.engine.buffers import Buffer, as_bytes
from upseal.fleet import capabilities
from upseal.fleet.agent import status as statuses
from upseal.fleet.agent.gathering import Gatherer
from upseal.fleet.agent.inventory import lost_reports
from upseal.fleet.agent.membership import SPOOL_KEY, TRUST, Credentials, Membership
from upseal.fleet.agent.onesender import OneSender
from upseal.fleet.agent.parent import Believed, Parent, client_for
from upseal.fleet.agent.rows import now_ms
from upseal.fleet.agent.sender import Sender
from upseal.fleet.agent.settings import (
    REPORT_MAX,
    Settings,
    level_of_environment,
)
from upseal.fleet.agent.spool import Spool, SpoolError, spool_context
from upseal.fleet.agent.tally import Alarms, Tally
from upseal.fleet.agent.uploads.carrying import beside
from upseal.fleet.agent.uploads.manager import Manager, remembered
from upseal.fleet.agent.uploads.sending import Uploading
from upseal.fleet.capabilities import Way
from upseal.fleet.http.logs import event
from upseal.fleet.policy import Level
from upseal.fleet.trust import Trust
from upseal.fleet.uploads.words import is_announcement

_LONGEST_STOP = 10.0
_RETAKE = 2.0
"""Seconds between two looks whether the process that sends is gone."""
_log = logging.getLogger("upseal.agent")


class AlreadySending(RuntimeError):  # noqa: N818 - what is the case
    """Another process, or this one, sends from this folder."""


class Agent:
    """Takes reports and, in one process, sends them. Safe to share between threads.

    A forked child may go on to report; it has no sending thread, and may start its own once its
    parent's has ended.

    Args:
        settings: with the folder of an agent that is enrolled.
        level: in place of what settings and manifest say; None for ``UPSEAL_LEVEL``, if set.

    Raises:
        NotEnrolled: the folder is not one of an enrolled agent.
        SettingsError: ``UPSEAL_LEVEL`` is no level.
    """

    def __init__(self, settings: Settings, level: Level | None = None) -> None:
        self.settings = settings
        self.member = Membership.load(settings.directory)
        self.tally = Tally()
        self.alarms = Alarms()
        self._level = level if level is not None else level_of_environment()
        self._spool = Spool(
            settings.directory / "spool.db",
            PrivateKey.from_pem((settings.directory / SPOOL_KEY).read_bytes()),
            spool_context(self.member.deployment, self.member.agent),
            settings.spool,
            self._notice,
        )
        self._uploads = Manager(
            self._spool, settings.directory, settings.uploads, self.member.deployment
        )
        self._one = OneSender(settings.directory / "sender.lock")
        self._sender: Sender | None = None
        self._uploading: Uploading | None = None
        self._parent: Parent | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        renew_in_children(self)

    def after_fork(self) -> None:
        """A child has none of its parent's threads, nor what they were about."""
        self.tally, self.alarms = Tally(), Alarms()
        self._sender = self._uploading = self._parent = self._thread = None
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reporting -----------------------------------------------------------------------

    def report(self, data: Buffer) -> int:
        """Takes one report; it is on the disk, sealed, when this returns.

        Args:
            data: at most 1 MiB.

        Returns:
            Its number in this spool.

        Raises:
            SpoolFull: there is no room, and the settings say to refuse.
            SpoolError: it could not be written. It was not taken.
            ValueError: it is too long, or would be taken for what the agent says of uploads.
        """
        return self._spool.add([_checked(data)])[0]

    def report_many(self, reports: Iterable[Buffer]) -> range:
        """Takes several, all or none, for the price of one wait for the disk.

        Returns:
            Their numbers.

        Raises:
            SpoolError: as in `report`; none of them was taken.
            ValueError: as in `report`.
        """
        return self._spool.add([_checked(report) for report in reports])

    def upload(
        self,
        path: str | bytes | os.PathLike[str],
        *,
        name: str | bytes | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Takes a whole file as it is now; it is on the disk, sealed, when this returns.

        What becomes of the file afterwards makes no difference. Of one that grows meanwhile, what
        is added is left out; of one that is written to, nobody knows what was read.

        Args:
            path: of a regular file, of any length.
            name: what the server is to call it, in place of its own name.
            progress: called with bytes sealed and bytes in all.

        Returns:
            The upload's id, 32 hexadecimal digits.

        Raises:
            ValueError: it is no regular file, or longer than ``uploads.max_size``, or its name
                cannot be one.
            SpoolFull: there is no room.
            SpoolError: it could not be written. It was not taken.
            OSError: the file cannot be read, or became shorter meanwhile.
        """
        parent = self._parent
        believed = parent.believed() if parent is not None else remembered(self.settings.directory)
        upload = self._uploads.take(path, name, progress, believed, self.level(believed))
        if (uploading := self._uploading) is not None:
            uploading.wake()
        return upload

    def _notice(self, lost: int) -> bytes:
        """Tells the server what it will not see."""
        return lost_reports(self.settings.name, lost)

    # -- sending -------------------------------------------------------------------------

    def start(self) -> None:
        """Sends from now on, in threads of this process; waits while another process does.

        Raises:
            AlreadySending: this agent has been started.
        """
        if self._thread is not None and self._thread.is_alive():
            raise AlreadySending("this agent has been started")
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run_behind, args=(self._stop,), name="upseal-agent", daemon=True
        )
        self._thread.start()

    def _run_behind(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self.run(stop)
            except AlreadySending:
                stop.wait(_RETAKE)
            except Exception as error:
                self.alarms.add("agent", f"sending has ended: {type(error).__name__}")
                event(_log, "sending has ended", level=logging.ERROR, error=error, exc=error)
                return

    def run(self, stop: threading.Event, *, flush: bool = False, gather: bool = True) -> None:
        """Sends, in this thread and a few others, until told to stop.

        Args:
            stop: set it to end this.
            flush: send what there is without waiting for full batches.
            gather: also look at the host, as the settings say.

        Raises:
            AlreadySending: another process does.
            SpoolDamaged: the spool's file is not whole.
            OSError: a file of the agent cannot be read.
        """
        if not self._one.take():
            raise AlreadySending("another process sends from this folder")
        try:
            credentials = Credentials.load(self.settings.directory)
            trust = Trust.load(self.settings.directory / TRUST)
            connections = self.settings.send.units + 4
            with client_for(self.settings.parent, self.settings.http, connections) as client:
                way = Way(
                    self.settings.directory / capabilities.FILE,
                    self.settings.parent,
                    self.settings.parent_ids,
                )
                self._parent = Parent(client, credentials, trust, self.alarms, way)
                self._sender = Sender(
                    self.settings,
                    credentials,
                    self._spool,
                    self._parent,
                    self.level,
                    self.tally,
                    self.alarms,
                    self._publish,
                )
                self._sender.flush = flush
                self._uploading = Uploading(
                    self.settings,
                    credentials,
                    self._uploads,
                    self._parent,
                    self.level,
                    self._sender,
                    self.tally,
                    self.alarms,
                    partial(self._publish, "uploads"),
                )
                event(_log, "sending", agent=self.member.agent.hex(), parent=client.name)
                if gather:
                    self._gather_behind(stop)
                with beside(self._uploading.run, self._uploading.wake, "upseal-uploads"):
                    self._sender.run(stop)
                self._publish()
        finally:
            self._sender = self._uploading = None
            self._one.release()
        event(_log, "stopped")

    def _gather_behind(self, stop: threading.Event) -> None:
        gatherer = Gatherer(self.settings.gather, self.settings.name, self.report_many)
        threading.Thread(
            target=gatherer.run, args=(stop,), name="upseal-gather", daemon=True
        ).start()

    def send_all(self, timeout: float, stop: threading.Event | None = None) -> int:
        """Sends what there is, and returns when it is receipted, withheld, or time is up.

        Files as well, which take longer: how many of them remain, `uploads` says.

        Returns:
            How many reports remain.
        """
        ended = stop if stop is not None else threading.Event()
        watch = threading.Thread(target=self._watch, args=(ended, timeout), daemon=True)
        watch.start()
        try:
            self.run(ended, flush=True, gather=False)
        finally:
            ended.set()
            watch.join()
        return self._spool.counters().depth

    def _watch(self, stop: threading.Event, timeout: float) -> None:
        end = time.monotonic() + timeout
        while not stop.wait(0.1):
            sender = self._sender
            with suppress(SpoolError):
                if sender is None:
                    continue
                # One that withholds has said so before it ends, if it could.
                told = sender.withheld and (self.tally.get("beacons") or self.tally.get("held"))
                left = self._spool.counters().depth or self._uploads.counters().waiting
                if told or time.monotonic() > end or not left:
                    stop.set()

    def stop(self) -> None:
        """Ends what `start` began; a request that hangs is left behind."""
        self._stop.set()
        sender = self._sender
        if sender is not None:
            sender.wake()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(_LONGEST_STOP)

    def close(self) -> None:
        """Stops, and lets the spool go."""
        self.stop()
        self._spool.close()

    # -- settings ------------------------------------------------------------------------

    def level(self, believed: Believed) -> Level:
        """The level that holds: this process's own, else the manifest's for us, else the file's."""
        if self._level is not None:
            return self._level
        manifest = believed.manifest
        told = None if manifest is None else manifest.level_for(self.member.agent)
        return told if told is not None else self.settings.level

    def reload(self, settings: Settings) -> bool:
        """Takes level and batches of these settings. False if other things have changed too."""
        self.settings = replace(self.settings, level=settings.level, batch=settings.batch)
        sender = self._sender
        if sender is not None:
            sender.settings = self.settings
        event(_log, "settings read again", wanted=settings.level.value)
        return self.settings == settings

    # -- status --------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What is, as far as it can be told from here: also while another process sends."""
        return statuses.of(self)

    def told(self) -> dict[str, Any] | None:
        """What only the sending process knows; None while this one does not send."""
        sender, parent, uploading = self._sender, self._parent, self._uploading
        if sender is None or parent is None:
            return None
        return {
            **sender.snapshot(),
            "uploads": {} if uploading is None else uploading.snapshot(),
            "pid": os.getpid(),
            "updated": now_ms(),
            "relays": parent.names(),
            "tally": self.tally.all(),
            "alarms": self.alarms.all(),
        }

    def _publish(self, by: str = "sender") -> None:
        found = self.told()
        if found is not None:
            statuses.publish(self.settings.directory, found, by)

    @property
    def uploads(self) -> Manager:
        """Whole files: what waits, and what has become of them."""
        return self._uploads

    @property
    def spool(self) -> Spool:
        """What waits."""
        return self._spool

    @property
    def sender(self) -> Sender | None:
        """What sends, while it does."""
        return self._sender

    @property
    def uploading(self) -> Uploading | None:
        """What sends whole files, likewise."""
        return self._uploading

    @property
    def one(self) -> OneSender:
        """Who may send."""
        return self._one


def _checked(data: Buffer) -> bytes:
    report = as_bytes(data, "a report")
    if len(report) > REPORT_MAX:
        raise ValueError("a report is longer than 1 MiB")
    if is_announcement(report):  # what it said of a file would be believed
        raise ValueError("what begins with 'UPU' 01 is no report")
    return report

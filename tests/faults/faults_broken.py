# SPDX-License-Identifier: Apache-2.0
"""What the checks must find: the product with one thing of it done wrong."""

import os
from contextlib import contextmanager, suppress

import faults_agent
import faults_core
import faults_relay

from upseal.core import files as core_files
from upseal.core import session, uploads
from upseal.fleet import files


class NamedBeforeWhole(faults_core.KeyFiles):
    """A small file that is written under its final name."""

    def work(self, folder, run):
        @contextmanager
        def beside(path, data):
            with open(path, "wb", buffering=0) as file:
                file.write(data[: len(data) // 2])
                file.write(data[len(data) // 2 :])
            yield path

        files._beside = beside
        super().work(folder, run)


class ShortIgnored(faults_core.SealFile):
    """A write that is believed to have written all."""

    def __init__(self):
        super().__init__(1)

    def work(self, folder, run):
        core_files.write_at = lambda file, data, at: os.pwrite(file.fileno(), data, at)
        super().work(folder, run)


class ErrorIgnored(faults_core.SealFile):
    """A write whose error nobody looks at."""

    def __init__(self):
        super().__init__(1)

    def work(self, folder, run):
        whole = core_files.write_at

        def write_at(file, data, at):
            with suppress(OSError):
                whole(file, data, at)

        core_files.write_at = write_at
        super().work(folder, run)


class LeftBehind(faults_core.SealFile):
    """A temporary file that is not taken away."""

    def __init__(self):
        super().__init__(1)

    def work(self, folder, run):
        unlink = os.unlink
        os.unlink = lambda path: None if str(path).endswith(".part") else unlink(path)
        super().work(folder, run)


class SaltKept(faults_core.Writer):
    """A second try under the session and the salt of the first, with other bytes."""

    def work(self, folder, run):
        session.os = uploads.os = type("Fixed", (), {"urandom": staticmethod(bytes)})
        self.tries = 0
        super().work(folder, run)

    def data(self):
        self.tries += 1
        return bytes([self.tries]) * 800_000

    def recover(self, folder, run):
        """Nothing else is looked at here."""


class UnclearError(faults_core.KeyFiles):
    """Something else comes out than the error of the system."""

    def work(self, folder, run):
        whole = files._beside

        @contextmanager
        def beside(path, data):
            try:
                with whole(path, data) as temporary:
                    yield temporary
            except OSError as error:
                raise KeyError(path) from error

        files._beside = beside
        super().work(folder, run)


class SpoolPromisesEarly(faults_agent.Spooling):
    """A report that is acknowledged before it is committed."""

    def promise(self, spool, run, reports):
        run.ack("reports", hex=[report.hex() for report in reports])
        run.step(lambda: spool.add(reports))


class QueuePromisesEarly(faults_relay.Queueing):
    """A body that is acknowledged while it is still to be written."""

    def promise(self, queue, run, bodies):
        run.step(lambda: queue.put(faults_relay.named(*bodies), faults_relay.HOP))
        run.ack("bodies", hex=[body.hex() for body in bodies])


class UnreadIsLost(faults_relay.Queueing):
    """A body that cannot be read for a moment is taken for a damaged one."""

    def work(self, folder, run):
        import sqlite3

        from upseal.fleet.relay import rows

        whole = rows.body

        def body(db, entry):
            try:
                return whole(db, entry)
            except sqlite3.DatabaseError:
                return None

        rows.body = body
        super().work(folder, run)

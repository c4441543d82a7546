# SPDX-License-Identifier: Apache-2.0
"""Which uploads there are, and what has become of them: rows of the spool's own file.

A row and its announcement are written in one transaction, and so are a row's end and its counting.
The row is the truth: a file that none names is nothing, and is taken away sooner or later.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass, replace
from sqlite3 import Connection

from upseal.errors import OpenError
from upseal.fleet.agent.rows import now_ms
from upseal.fleet.agent.settings import Uploads
from upseal.fleet.agent.spool import Spool, SpoolDamaged, SpoolError, SpoolFull
from upseal.fleet.agent.uploads import rows
from upseal.fleet.agent.uploads.bodies import Damaged, Sealed
from upseal.fleet.agent.uploads.folder import Folder
from upseal.fleet.agent.uploads.rows import Row, UploadCounters, UploadState
from upseal.fleet.uploads.words import Announcement

ENDED_MOST = 10_000
"""How many that have ended are remembered, for who asks what became of them."""
_FACTS = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the file that was given."""

    name: bytes
    """The last component, as the file system has it."""
    modified: int
    """Unix milliseconds; 0 if that is not known."""


@dataclass(frozen=True, slots=True)
class Recipients:
    """Whom a file in the folder is sealed to."""

    key_ids: bytes = b""
    """One after the other; none for the spool's own key."""
    serial: int = -1
    """Of the manifest that names them."""


class Ledger:
    """Safe to share between threads, and between processes that open the same spool.

    Args:
        spool: in whose file the rows are.
        folder: where the files are.
        limits: how much may wait.
    """

    def __init__(self, spool: Spool, folder: Folder, limits: Uploads) -> None:
        self._spool = spool
        self._folder = folder
        self._limits = limits

    # -- into it -----------------------------------------------------------------------

    def check_room(self, file_size: int) -> None:
        """Whether so much would find a place.

        Raises:
            SpoolFull: it would not.
        """
        self.check_disk(file_size)
        with self._spool.reading() as db:
            self._check_limit(_counters(rows.read_counters(db)), file_size)

    def check_disk(self, file_size: int) -> None:
        """As `check_room`, for a file that takes another one's place."""
        if self._folder.free() < self._limits.min_free + file_size:
            raise SpoolFull(f"the disk of {self._folder.path} is nearly full")

    def _check_limit(self, counters: UploadCounters, file_size: int) -> None:
        if counters.bytes + file_size > self._limits.max_bytes:
            most = f"{self._limits.max_bytes:,}"
            raise SpoolFull(f"{self._folder.path} would have more than its {most} bytes")

    def refused(self) -> None:
        """Counts one that there was no room for."""
        with suppress(SpoolError), self._spool.writing() as db:  # it is said all the same
            db.execute("UPDATE upload_counters SET refused = refused + 1")

    def add(
        self,
        upload: bytes,
        facts: Facts,
        file: str,
        sealed: Sealed,
        recipients: Recipients,
        announcement: Announcement | None,
    ) -> None:
        """Takes an upload whose file is in place.

        Raises:
            SpoolFull: there is no room for it, or for its announcement.
            SpoolError: it could not be written, and was not taken.
        """
        row = Row(
            id=0,
            upload=upload,
            state=UploadState.WAITING.value,
            made=now_ms(),
            ended=None,
            why=None,
            size=sealed.size,
            facts=self._hide(_FACTS.pack(facts.modified) + facts.name, "facts", upload),
            file=file,
            file_size=sealed.file_size,
            file_sha256=sealed.file_sha256,
            secret=self._hide(sealed.secret, "secret", upload + file.encode()),
            recipients=recipients.key_ids,
            serial=recipients.serial,
            form=None,
            announcement=None,
            announced=None,
            report=None,
        )
        with self._spool.writing() as db:
            self._check_limit(_counters(rows.read_counters(db)), sealed.file_size)
            if announcement is not None:
                number = self._spool.put(db, announcement.encode(), limited=True)
                row = self._announced(row, announcement, number)
            rows.insert(db, row)
            db.execute(
                "UPDATE upload_counters SET made = made + 1, bytes = bytes + ?",
                (sealed.file_size,),
            )

    def _announced(self, row: Row, announcement: Announcement, number: int) -> Row:
        hidden = self._hide(announcement.encode(), "announcement", row.upload)
        return replace(
            row,
            form=announcement.form,
            announcement=hidden,
            announced=now_ms(),
            report=number,
        )

    # -- changes -----------------------------------------------------------------------

    def announce(self, row: Row, announcement: Announcement) -> Row | None:
        """Says what its body is, anew or again. None if it is not as it was any more."""
        with self._spool.writing() as db:
            if not self._same(db, row):
                return None
            # Beyond the limits if need be, by one record: what waits here waits for this.
            number = self._spool.put(db, announcement.encode(), limited=False)
            changed = self._announced(row, announcement, number)
            rows.replace(db, changed)
        return changed

    def announce_again(self, number: int, announcement: Announcement, after: int) -> bool:
        """Says it once more, if so many milliseconds ago, and its report is gone from the spool."""
        row = self.one(number)
        if row is None or row.announced is None or 0 <= now_ms() - row.announced < after:
            return False
        with self._spool.reading() as db:
            waits = rows.is_report(db, row.report)
        return not waits and self.announce(row, announcement) is not None

    def remake(
        self,
        row: Row,
        file: str,
        sealed: Sealed,
        recipients: Recipients,
        announcement: Announcement,
    ) -> Row | None:
        """Puts another file in the place of its own. None if it is not as it was any more."""
        with self._spool.writing() as db:
            if not self._same(db, row):
                return None
            number = self._spool.put(db, announcement.encode(), limited=False)
            changed = replace(
                row,
                file=file,
                file_size=sealed.file_size,
                file_sha256=sealed.file_sha256,
                secret=self._hide(sealed.secret, "secret", row.upload + file.encode()),
                recipients=recipients.key_ids,
                serial=recipients.serial,
            )
            changed = self._announced(changed, announcement, number)
            rows.replace(db, changed)
            db.execute(
                "UPDATE upload_counters SET bytes = bytes + ?", (sealed.file_size - row.file_size,)
            )
        self._folder.remove(row.file)
        return changed

    def end(self, row: Row, state: UploadState, why: str | None = None) -> bool:
        """It waits no more, and its file goes. False if it had ended already.

        Nor has one failed that has another file by now.
        """
        with self._spool.writing() as db:
            now = rows.one(db, row.id)
            if now is None or now.state != UploadState.WAITING.value:
                return False
            if state is UploadState.FAILED and now.file != row.file:
                return False
            ended = replace(
                now, state=state.value, ended=now_ms(), why=why, file=None, secret=None,
                announcement=None, report=None,
            )  # fmt: skip
            rows.replace(db, ended)
            column = state.value  # one of our own words
            db.execute(
                f"UPDATE upload_counters SET {column} = {column} + 1, bytes = bytes - ?",  # noqa: S608
                (now.file_size,),
            )
            rows.prune(db, ENDED_MOST)
        self._folder.remove(now.file)
        return True

    @staticmethod
    def _same(db: Connection, row: Row) -> bool:
        """Whether it still waits, with the file that the caller knows."""
        now = rows.one(db, row.id)
        waits = UploadState.WAITING.value
        return now is not None and (now.state, now.file) == (waits, row.file)

    # -- what stands there -------------------------------------------------------------

    def counters(self) -> UploadCounters:
        """As they are on the disk."""
        with self._spool.reading() as db:
            return _counters(rows.read_counters(db))

    def waiting(self, after: int = 0) -> list[int]:
        """Numbers of those that wait, above ``after``, oldest first."""
        with self._spool.reading() as db:
            return rows.waiting(db, after)

    def one(self, number: int) -> Row | None:
        """It, if it still waits."""
        with self._spool.reading() as db:
            row = rows.one(db, number)
        return row if row is not None and row.state == UploadState.WAITING.value else None

    def find(self, upload: bytes) -> Row | None:
        """By the upload's id, whatever has become of it; None if that is forgotten."""
        with self._spool.reading() as db:
            return rows.find(db, upload)

    def newest(self, most: int) -> list[Row]:
        """All that wait, and then the newest of the others; oldest first."""
        with self._spool.reading() as db:
            return rows.newest(db, most)

    def files(self) -> set[str]:
        """What is in the folder by right."""
        with self._spool.reading() as db:
            return rows.files(db)

    def settled_files(self) -> set[str]:
        """As `files`, when no row can come back whose transaction failed at its last step.

        Where the disk did not sync, the transaction is in the log all the same. It counts for
        nothing, unless the process ends before something else is written over it: so this writes.
        """
        with self._spool.writing() as db:
            for change in (1, -1):  # SQLite would not write what is as it was
                db.execute("UPDATE upload_counters SET refused = refused + ?", (change,))
            return rows.files(db)

    # -- what is sealed in a row ---------------------------------------------------------

    def facts(self, row: Row) -> Facts:
        """Raises `Damaged` if the disk has damaged them."""
        data = self._show(row.facts, "facts", row.upload)
        return Facts(data[_FACTS.size :], *_FACTS.unpack_from(data))

    def secret(self, row: Row) -> bytes:
        """Of the session of its file. Raises `Damaged` if the disk has damaged it."""
        if row.secret is None or row.file is None:
            raise Damaged("an upload that waits has no secret")
        return self._show(row.secret, "secret", row.upload + row.file.encode())

    def announcement(self, row: Row) -> Announcement | None:
        """What was announced last. Raises `Damaged` if the disk has damaged it."""
        if row.announcement is None:
            return None
        try:
            return Announcement.decode(self._show(row.announcement, "announcement", row.upload))
        except ValueError as error:
            raise Damaged("an announcement in the spool is none") from error

    def _hide(self, data: bytes, what: str, about: bytes) -> bytes:
        return self._spool.hide(data, _bound(what, about))

    def _show(self, sealed: bytes, what: str, about: bytes) -> bytes:
        try:
            return self._spool.show(sealed, _bound(what, about))
        except (OpenError, TypeError) as error:
            raise Damaged(f"the {what} of an upload do not open") from error


def _bound(what: str, about: bytes) -> bytes:
    return b"upload " + what.encode() + b"\0" + about


def _counters(found: UploadCounters | None) -> UploadCounters:
    if found is None:
        raise SpoolDamaged("the spool has no counters of uploads")
    return found

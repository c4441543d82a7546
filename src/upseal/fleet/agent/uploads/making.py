# SPDX-License-Identifier: Apache-2.0
"""What a waiting upload is sent as, and how that is made of what lies in the folder.

Decided anew each time, and as for reports by what was verified alone. A file that is sealed for the
server stays so as long as it may be opened there. Where it must be sealed to other keys, it is
opened and sealed in one stream, under a new session and a new salt; nothing is sealed twice under
one, and nothing is on the disk in clear in between.
"""

from __future__ import annotations

import enum
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from upseal.core.reader import OpeningReader
from upseal.fleet.agent.parent import Believed
from upseal.fleet.agent.spool import SpoolFull
from upseal.fleet.agent.uploads.bodies import (
    ClearSource,
    Damaged,
    SealedSource,
    clear_sha256,
    opened,
    seal_into,
)
from upseal.fleet.agent.uploads.folder import Folder, is_full
from upseal.fleet.agent.uploads.ledger import Ledger
from upseal.fleet.agent.uploads.rows import Row
from upseal.fleet.agent.uploads.taking import Contexts, announcement_of, named_by
from upseal.fleet.files import file_sha256
from upseal.fleet.policy import Certificate, Decision, Seal, Withhold
from upseal.fleet.uploads.carrier import Source
from upseal.fleet.uploads.words import Announcement, Ticket


class Travel(enum.Enum):
    """How an upload goes up as things are."""

    WAIT = "wait"
    SEALED = "sealed"
    """As it lies there."""
    ANEW = "anew"
    """Sealed to the keys of now."""
    CLEAR = "clear"


def travel_of(row: Row, decision: Decision, believed: Believed, stale: bool) -> Travel:
    """Which one.

    Args:
        row: the upload.
        decision: what would happen to a report.
        believed: what that rests on.
        stale: whether it was said of the file as it lies there that its key is retired.
    """
    if isinstance(decision, Withhold):
        return Travel.WAIT
    certificate = believed.certificate
    if row.own:
        return Travel.ANEW if isinstance(decision, Seal) else Travel.CLEAR
    if believed.parent.accepts_sealed is False:  # and the decision is clear, by signed words
        return Travel.CLEAR
    if not stale:
        return Travel.SEALED
    if not isinstance(certificate, Certificate):
        return Travel.CLEAR
    # Once for each manifest, and not to the same keys again. Where there are no others, it is tried
    # again as it is: whoever said that its key is retired may have lied.
    other = named_by(certificate, believed.serial).key_ids != row.recipients
    return Travel.ANEW if believed.serial > row.serial and other else Travel.SEALED


@dataclass(frozen=True, slots=True)
class Body:
    """A body that is announced and can be sent."""

    row: Row
    announcement: Announcement
    way: Travel
    """`Travel.SEALED` or `Travel.CLEAR`."""

    @property
    def ticket(self) -> Ticket:
        """What the parent is told of it."""
        said = self.announcement
        return Ticket(said.upload, said.body_sha256, said.form, said.body_size)


class Maker:
    """Makes bodies. For one thread.

    Args:
        folder: where files lie.
        ledger: where it is written down what they are.
        contexts: what they are bound to.
    """

    def __init__(self, folder: Folder, ledger: Ledger, contexts: Contexts) -> None:
        self._folder = folder
        self._ledger = ledger
        self._contexts = contexts

    def body(
        self, row: Row, way: Travel, believed: Believed, check: Callable[[], None]
    ) -> Body | None:
        """The body for this way, made and announced if it is not yet. None: the upload has ended.

        Args:
            row: the upload.
            way: not `Travel.WAIT`.
            believed: of the same moment.
            check: called now and then; what it raises ends the work.

        Raises:
            Damaged: the disk has damaged what it would be made of.
            SpoolError: the spool or its disk cannot take it now.
            OSError: the disk failed.
        """
        if way is Travel.ANEW:
            assert isinstance(believed.certificate, Certificate)
            return self._anew(row, believed.certificate, believed.serial, check)
        known = self._ledger.announcement(row)
        if known is not None and known.form == way.value:
            return Body(row, known, way)
        facts = self._ledger.facts(row)
        if way is Travel.SEALED:
            said = announcement_of(row.upload, facts, row.size, row)
        else:
            with self._file(row) as file, self._plaintext(row, file) as reader:
                digest = clear_sha256(reader, check)
            said = Announcement(
                row.upload, "clear", row.size, row.size, digest, facts.modified, facts.name
            )
        return self._body(self._ledger.announce(row, said), said, way)

    def _anew(
        self, row: Row, certificate: Certificate, serial: int, check: Callable[[], None]
    ) -> Body | None:
        facts = self._ledger.facts(row)
        self._ledger.check_disk(row.file_size)
        context = self._contexts.of(row.upload, own=False)

        def progress(done: int, total: int | None) -> None:
            check()

        try:
            with (
                self._folder.making(row.upload) as (name, target),
                self._file(row) as file,
                self._plaintext(row, file) as reader,
            ):
                sealed = seal_into(
                    target, reader, certificate.recipients, context, digest=True, progress=progress
                )
                self._folder.keep(target)
                said = announcement_of(row.upload, facts, sealed.size, sealed)
                recipients = named_by(certificate, serial)
                changed = self._ledger.remake(row, name, sealed, recipients, said)
                if changed is None:  # cancelled meanwhile
                    self._folder.remove(name)
        except OSError as error:
            if is_full(error):
                raise SpoolFull(f"no room on the disk of {self._folder.path}") from error
            raise
        return self._body(changed, said, Travel.SEALED)

    @staticmethod
    def _body(row: Row | None, said: Announcement, way: Travel) -> Body | None:
        return None if row is None else Body(row, said, way)

    @contextmanager
    def source(self, body: Body) -> Iterator[Source]:
        """Its bytes.

        Raises:
            Damaged: they are not what they were, as far as can be seen now.
            OSError: the disk failed.
        """
        with self._file(body.row) as file:
            if body.way is Travel.SEALED:
                yield SealedSource(file)
            else:
                with self._plaintext(body.row, file) as reader:
                    yield ClearSource(reader)

    def whole(self, body: Body, check: Callable[[], None]) -> bool:
        """Whether the file is what was announced: somebody has said that the body is not."""
        try:
            with self._file(body.row) as file:
                if body.row.file_sha256 is not None:
                    return file_sha256(file, check) == body.row.file_sha256
                with self._plaintext(body.row, file) as reader:
                    return clear_sha256(reader, check) == body.announcement.body_sha256
        except Damaged:
            return False

    @contextmanager
    def _file(self, row: Row) -> Iterator[io.FileIO]:
        assert row.file is not None
        try:
            file = self._folder.open(row.file)
        except FileNotFoundError as error:
            raise Damaged("a sealed file is missing from the folder") from error
        with file:
            if os.fstat(file.fileno()).st_size != row.file_size:
                raise Damaged("a sealed file in the folder has another length")
            yield file

    @contextmanager
    def _plaintext(self, row: Row, file: io.FileIO) -> Iterator[OpeningReader]:
        context = self._contexts.of(row.upload, own=row.own)
        with opened(file, self._ledger.secret(row), context) as reader:
            if reader.size != row.size:
                raise Damaged("a sealed file in the folder holds another length")
            yield reader

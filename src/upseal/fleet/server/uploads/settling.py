# SPDX-License-Identifier: Apache-2.0
"""What becomes of one body that is whole: whose it is, what is in it, what is stored of it.

What decides is what agents have announced in units that they have signed. A body's ticket is the
word of whoever has sent it, and says only where to look. Everything here may be broken off at any
point, and done again: files are put in place before their rows, and a body goes after both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from upseal.fleet.http.problems import Problem
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import Manifest
from upseal.fleet.policy import Level
from upseal.fleet.server.directory import Directory
from upseal.fleet.server.opening import Failed
from upseal.fleet.server.store import Store, alarms, deadletters, now_ms, uploads
from upseal.fleet.server.store.uploads import Announced, Receipted, StoredUpload
from upseal.fleet.server.uploads.content import Content
from upseal.fleet.server.uploads.unsealing import Unsealed, Unsealing
from upseal.fleet.units import Receipt, Status, signed_receipt
from upseal.fleet.uploads.ondisk import looks_sealed
from upseal.fleet.uploads.shelf import Held

_REMEMBERED = 4096
Alarm = tuple[str, bytes, dict[str, Any]]


class Settled(NamedTuple):
    """What became of a body: receipts, or a problem. It is no longer needed."""

    receipts: list[bytes]
    problem: Problem | None
    what: str
    """For logs and metrics: a status in small letters, or a problem's reason."""
    stored: list[StoredUpload]
    """By this body, now."""


class Waits(Exception):  # noqa: N818 - what it does
    """A body stays.

    ``why``: ``announcement`` (nobody's yet), ``key`` (ours, and not here), or ``room`` (too much is
    stored).
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(slots=True)
class _Found:
    """Whose a body is."""

    fitting: list[Announced] = field(default_factory=list)
    """Stored by this body, or to be."""
    refused: list[Announced] = field(default_factory=list)
    todo: list[Announced] = field(default_factory=list)
    """Not stored, and not refused: whether they fit is to be seen."""
    new: list[StoredUpload] = field(default_factory=list)
    """Stored now."""


class Settling:
    """Settles bodies. Safe to share between threads, as long as each upload id is with one."""

    def __init__(
        self,
        deployment: bytes,
        store: Store,
        directory: Directory,
        content: Content,
        unsealing: Unsealing,
        receipt_key: SigningKey,
        manifest: Callable[[], Manifest | None],
        full: Callable[[], bool] = lambda: False,
    ) -> None:
        """Settles nothing yet; ``full``: whether no more may be stored for now."""
        self._deployment = deployment
        self._manifest = manifest
        self._store = store
        self._directory = directory
        self._content = content
        self._unsealing = unsealing
        self._receipt_key = receipt_key
        self._full = full
        self._opened: dict[bytes, Unsealed] = {}
        """What was in bodies that were nobody's: they are not opened again for each newcomer."""

    def settle(self, held: Held, *, patient: bool, stop: threading.Event) -> Settled:
        """Takes a whole body through.

        Args:
            held: the body; nobody else may remove it meanwhile.
            patient: it came a moment ago, and what would explain it may be on its way.
            stop: breaks off.

        Raises:
            Waits: it stays.
            Throttled, Stopped: later.
            OSError, SQLAlchemyError: a disk or the database failed; later.
        """
        ticket, body = held.ticket, held.path
        sealed = looks_sealed(body)
        with self._store.reading() as db:
            named = uploads.candidates(db, ticket.upload, held.body_id, ticket.size, sealed=sealed)
            there = uploads.find_many(db, ticket.upload)
        if held.role == "agent":
            owner = self._directory.agent_of(held.hop)
            others, named = named, [one for one in named if one.agent == owner]
            if not named and any(_exact(one, held) for one in others):
                return self._of_another(held, owner, patient=patient)
        found = self._look(held, named, there)
        if any(one.agent not in there for one in found.todo) and self._full():
            if found.fitting:  # who has it here already need not wait for others
                return self._receipted(held, found)
            raise Waits("room")
        try:
            self._store_all(held, found, sealed=sealed, stop=stop)
        except Failed as failed:
            return self._failed(held, failed, found)
        if found.fitting or (found.refused and not patient):
            return self._receipted(held, found)
        if not patient:
            self._note_stranger(held)
        raise Waits("announcement")

    # -- whose it is -----------------------------------------------------------------------

    def _look(
        self, held: Held, named: Sequence[Announced], there: dict[bytes, StoredUpload]
    ) -> _Found:
        """Divides those who may be meant by a body."""
        known = self._directory.find({one.agent for one in named})
        manifest = self._manifest()
        revoked = manifest.revoked_agents if manifest is not None else frozenset()
        sure = {one.agent for one in named if _exact(one, held)}
        found = _Found()
        for one in named:
            exact = _exact(one, held)
            if not exact and one.agent in sure:
                continue  # it has announced this very body as well
            who = known.get(one.agent)
            row = there.get(one.agent)
            if who is None or one.agent in revoked or who.hop in revoked:
                if exact:
                    found.refused.append(one)
            elif row is not None and (exact or row.body_id == held.body_id):
                found.fitting.append(one)
            else:
                found.todo.append(one)
        return found

    def _of_another(self, held: Held, owner: bytes | None, *, patient: bool) -> Settled:
        """An agent's hop brings its own files only."""
        if patient:  # its own announcement may still come
            raise Waits("announcement")
        if owner is not None:  # else it has enrolled again meanwhile, under another hop
            self._sound([("wrong-agent", owner, {"hop": held.hop.hex(), "upload": _hex(held)})])
        problem = Problem("not-enrolled", "this hop is enrolled for another agent")
        return Settled([], problem, "wrong-agent", [])

    def _note_stranger(self, held: Held) -> None:
        """A body whose upload is announced, but with other bytes."""
        with self._store.reading() as db:
            agents = uploads.announcers(db, held.ticket.upload)
        details = {"upload": _hex(held), "hop": held.hop.hex(), "body": held.body_id.hex()}
        self._sound([("upload-does-not-match", agent, details) for agent in agents])

    # -- what is in it ---------------------------------------------------------------------

    def _store_all(self, held: Held, found: _Found, *, sealed: bool, stop: threading.Event) -> None:
        """Puts in place, and writes down, the file for everybody whose it is."""
        as_it_is = [one for one in found.todo if one.form == "clear" and _exact(one, held)]
        to_open = [one for one in found.todo if one not in as_it_is]
        if as_it_is:
            with self._content.part() as part:
                self._content.link(held.path, part, stop)
                file = Unsealed(held.ticket.size, held.ticket.body_sha256, None, None)
                self._write(held, as_it_is, part, file, found, stop)
        before = self._opened.get(held.body_id)
        if before is not None:  # what is in it is known already, and was nobody's then
            to_open = [one for one in to_open if _fits(one, held, before)]
        if not to_open:
            return
        if not sealed:
            self._sound([
                ("arrived-clear", one.agent, {"upload": _hex(held), "hop": held.hop.hex()})
                for one in to_open
            ])  # fmt: skip
        self._unsealing.key_of(held.path)  # before anything is written
        self._content.need(held.ticket.size)
        with self._content.part() as part:
            file = self._unsealing.open(held.path, part, held.hop, held.role, stop)
            fitting = [one for one in to_open if _fits(one, held, file)]
            self._write(held, fitting, part, file, found, stop)
        if not fitting:
            if len(self._opened) >= _REMEMBERED:
                self._opened.clear()
            self._opened[held.body_id] = file

    def _write(
        self,
        held: Held,
        fitting: Sequence[Announced],
        part: Path,
        file: Unsealed,
        found: _Found,
        stop: threading.Event,
    ) -> None:
        """A file for each agent, then its rows, then what is to be said of it."""
        found.fitting += fitting
        first: dict[bytes, Announced] = {}
        for one in fitting:
            first.setdefault(one.agent, one)
        if not first:
            return
        with self._store.reading() as db:  # stored by another body: its bytes stay
            rest = [
                one for one in first.values() if uploads.find(db, one.agent, one.upload) is None
            ]
        when, new = now_ms(), []
        while rest:
            one = rest.pop()
            with self._content.part() as mine:
                if rest:  # mostly it is one agent's
                    self._content.link(part, mine, stop)
                path = self._content.place(mine if rest else part, one.agent, one.upload)
            new.append(
                StoredUpload(
                    one.agent, one.upload, one.name, file.size, file.sha256, one.modified,
                    one.form, file.suite, file.key_id, when, path, held.body_id, one.digest,
                )
            )  # fmt: skip
        with self._store.writing() as db:
            for row in new:
                uploads.put(db, row)
            for one in first.values():
                if one.form == "clear" and self._must_seal(one):
                    details = {"upload": _hex(held), "hop": held.hop.hex()}
                    alarms.sound(db, "clear-though-required", one.agent, details, when)
        found.new += new

    def _must_seal(self, one: Announced) -> bool:
        manifest = self._manifest()
        level = manifest.level_for(one.agent) if manifest is not None else None
        if level is None:
            return one.level == Level.REQUIRED.number
        return level is Level.REQUIRED

    # -- what is said of it ----------------------------------------------------------------

    def _receipted(self, held: Held, found: _Found) -> Settled:
        with self._store.reading() as db:
            known = uploads.receipts(db, [held.body_id]).get(held.body_id, ())
        said = {one.digest: one.status for one in known}
        for one in found.fitting:  # sealed on the way, of a file that came another way before
            said.setdefault(one.digest, Status.DUPLICATE)
        for one in found.refused:
            said[one.digest] = Status.REFUSED
        what = "stored" if found.new else "duplicate" if found.fitting else "refused"
        some = list(said.items())[: uploads.RECEIPTS]
        signed = self.sign([Receipted(digest, status) for digest, status in some])
        return Settled(signed, None, what, found.new)

    def sign(self, said: Sequence[Receipted]) -> list[bytes]:
        """Receipts, for what is on the disk."""
        return [
            signed_receipt(Receipt(self._deployment, one.digest, one.status), self._receipt_key)
            for one in said
        ]

    def _failed(self, held: Held, failed: Failed, found: _Found) -> Settled:
        """A body that gives no file."""
        rest = [one for one in found.todo if one not in found.fitting and _exact(one, held)]
        if found.fitting and not (rest and held.ticket.form == "sealed"):
            # It was opened only to see whether it is somebody else's as well, or for one who has
            # announced a body in clear as sealed: nobody is kept from a receipt by that.
            return self._receipted(held, found)
        if failed.problem is None:
            raise Waits("key")
        if failed.reason == deadletters.CANNOT_OPEN:
            details = {"upload": _hex(held), "body": held.body_id.hex()}
            self._sound([("cannot-open", held.hop, details)])
        return Settled([], failed.problem, failed.reason, found.new)

    def _sound(self, sounded: Sequence[Alarm]) -> None:
        with self._store.writing() as db:
            for kind, subject, details in sounded:
                alarms.sound(db, kind, subject, details, now_ms())


def _exact(one: Announced, held: Held) -> bool:
    return one.body_id == held.body_id


def _fits(one: Announced, held: Held, opened: Unsealed) -> bool:
    """Whether what was in a body is the file that somebody has announced."""
    if one.size != opened.size:
        return False
    return _exact(one, held) if one.form == "sealed" else one.body_sha256 == opened.sha256


def _hex(held: Held) -> str:
    return held.ticket.upload.hex()

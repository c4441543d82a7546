# SPDX-License-Identifier: Apache-2.0
"""Uploads: what agents have announced, and which files are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, func, or_, select, tuple_

from upseal.fleet.server.store import activity
from upseal.fleet.server.store.base import Store
from upseal.fleet.server.store.prepared import Prepared, upsert
from upseal.fleet.server.store.units import NewUnit
from upseal.fleet.server.tables import agents
from upseal.fleet.server.tables import units as unit_rows
from upseal.fleet.server.upload_tables import GONE, announcements, deletions, uploads
from upseal.fleet.units import Status
from upseal.fleet.uploads.words import Announcement, is_announcement

OF_ONE_UPLOAD = 64
"""Announcements that an agent may make of one upload; one is needed for each new sealing."""
AT_ONCE = 16_384
"""Announcements of an agent that one transaction takes: as many as a unit of 1 MiB holds. Each
costs ten times what another report does, and everybody waits for a transaction."""
RECEIPTS = 16
"""For one body, at most: relays take no more. More than one only if several agents announce it."""
_OF_ONE_AGENT = 4
_CANDIDATES = 1024
_IDS = 400
_PAGE = 500


class Announced(NamedTuple):
    """An announcement, whose it is, and how the unit that it came in was sent."""

    digest: bytes
    agent: bytes
    upload: bytes
    body_id: bytes
    form: str
    size: int
    body_size: int
    body_sha256: bytes
    modified: int
    name: bytes
    received: int
    level: int | None
    """That its unit states; None: the unit is gone."""


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """A file that is here."""

    agent: bytes
    upload: bytes
    name: bytes
    """As its agent's file system has it."""
    size: int
    sha256: bytes
    modified: int
    form: str
    """As its agent has sent it, ``sealed`` or ``clear``."""
    suite: int | None
    """What it arrived under: a relay may have sealed what came to it in clear."""
    key_id: bytes | None
    received: int
    path: str
    body_id: bytes
    announcement: bytes
    deleted: int | None = None
    """When; None: it is here."""


class Receipted(NamedTuple):
    """What a receipt of a body says."""

    digest: bytes
    status: Status


# -- announcements ------------------------------------------------------------------------


def announced_in(
    new: Sequence[NewUnit], statuses: Sequence[Status]
) -> list[tuple[NewUnit, Announcement]]:
    """The announcements in units that are stored, now or before; `AT_ONCE` of each agent at most.

    The rest are reports and nothing more, until their agent announces them again.
    """
    found = []
    left: dict[bytes, int] = {}
    for unit, status in zip(new, statuses, strict=True):
        if not status.held:
            continue
        for record in unit.records:
            if is_announcement(record):
                left[unit.agent] = left.get(unit.agent, AT_ONCE) - 1
                if left[unit.agent] < 0:
                    break
                with suppress(ValueError):  # else an agent means another thing by these bytes
                    found.append((unit, Announcement.decode(record)))
    return found


def note(
    db: Connection, deployment: bytes, found: Sequence[tuple[NewUnit, Announcement]]
) -> list[bytes]:
    """Writes announcements down, in the transaction that has stored their units.

    Returns:
        The uploads that they name, for whoever has a body waiting.
    """
    if not found:
        return []
    ids: dict[tuple[bytes, bytes, int], int] = {}
    counts = _counts(db, {said.upload for _, said in found})
    rows = []
    for unit, said in found:
        triple = (unit.agent, unit.epoch, unit.sequence)
        if triple not in ids:
            ids[triple] = _unit_id(db, triple)
        which = (unit.agent, said.upload)
        counts[which] = counts.get(which, 0) + 1
        if counts[which] <= OF_ONE_UPLOAD:  # no honest agent needs so many
            rows.append(
                (
                    said.digest(deployment, unit.agent), unit.agent, said.upload, said.body_id,
                    said.form, said.size, said.body_size, said.body_sha256, said.modified,
                    said.name, ids[triple], unit.received,
                )
            )  # fmt: skip
    _PUT.run_tuples(db, rows)
    return list({said.upload for _, said in found})


_PUT = Prepared(
    lambda insert: insert(announcements).on_conflict_do_nothing(), announcements.c.keys()
)


def _counts(db: Connection, names: Set[bytes]) -> dict[tuple[bytes, bytes], int]:
    """How many announcements there are of these uploads, by agent and upload."""
    counts: dict[tuple[bytes, bytes], int] = {}
    there, wanted = announcements.c, list(names)
    for at in range(0, len(wanted), _IDS):
        query = (
            select(there.agent, there.upload, func.count())
            .where(there.upload.in_(wanted[at : at + _IDS]))
            .group_by(there.agent, there.upload)
        )
        for agent, upload, count in db.execute(query):
            counts[bytes(agent), bytes(upload)] = count
    return counts


def _unit_id(db: Connection, triple: tuple[bytes, bytes, int]) -> int:
    agent, epoch, sequence = triple
    here = unit_rows.c
    query = select(here.id).where(
        here.agent == agent, here.epoch == epoch, here.sequence == sequence
    )
    return int(db.execute(query).scalar_one())


def candidates(
    db: Connection, upload: bytes, body_id: bytes, size: int, *, sealed: bool
) -> list[Announced]:
    """Whose file a body of this upload may be.

    Those that announce this body, and, for a sealed one, those that announce the upload in clear: a
    relay may have sealed it on the way. Of each agent the newest few, so that nobody's are crowded
    out by another's.
    """
    which = [and_(announcements.c.body_id == body_id, announcements.c.body_size == size)]
    if sealed:
        which.append(announcements.c.form == "clear")
    turn = (
        func.row_number()
        .over(
            partition_by=announcements.c.agent,
            # One that names this very body goes first.
            order_by=(
                (announcements.c.body_id != body_id), announcements.c.received.desc(),
                announcements.c.digest,
            ),
        )
        .label("turn")
    )  # fmt: skip
    numbered = (
        select(announcements, turn).where(announcements.c.upload == upload, or_(*which)).subquery()
    )
    query = (
        select(numbered, unit_rows.c.level)
        .join_from(numbered, unit_rows, unit_rows.c.id == numbered.c.unit, isouter=True)
        .where(numbered.c.turn <= _OF_ONE_AGENT)
        .order_by(numbered.c.received, numbered.c.digest)
        .limit(_CANDIDATES)
    )
    return [_announced(row) for row in db.execute(query)]


def announcers(db: Connection, upload: bytes) -> list[bytes]:
    """The agents that have announced an upload of this id, a few at most."""
    query = select(announcements.c.agent).where(announcements.c.upload == upload).distinct()
    return [bytes(agent) for agent in db.execute(query.limit(16)).scalars()]


def _announced(row: Any) -> Announced:
    return Announced(
        bytes(row.digest), bytes(row.agent), bytes(row.upload), bytes(row.body_id), row.form,
        row.size, row.body_size, bytes(row.body_sha256), row.modified, bytes(row.name),
        row.received, row.level,
    )  # fmt: skip


# -- stored files -------------------------------------------------------------------------


def put(db: Connection, new: StoredUpload) -> bool:
    """Notes a file whose bytes are in place and on the disk; False: it was there before."""
    values = {name: getattr(new, name) for name in uploads.c.keys()}  # noqa: SIM118 - no dict
    statement = upsert(db, uploads).values(values).on_conflict_do_nothing()
    if db.execute(statement.returning(uploads.c.agent)).first() is None:
        return False
    if new.key_id is not None:
        activity.note_upload(db, new.key_id, new.received)
    return True


_HERE = deletions.c.deleted.is_(None)
_ROWS = select(uploads, deletions.c.deleted).join_from(uploads, deletions, GONE, isouter=True)
_NAMED = _ROWS.add_columns(agents.c.name.label("client")).join(
    agents, agents.c.agent == uploads.c.agent, isouter=True
)


def find(db: Connection, agent: bytes, upload: bytes) -> StoredUpload | None:
    """One of them, or of those that were deleted."""
    here = (uploads.c.agent == agent) & (uploads.c.upload == upload)
    row = db.execute(_ROWS.where(here)).first()
    return None if row is None else _stored(row)


def find_many(db: Connection, upload: bytes) -> dict[bytes, StoredUpload]:
    """Those of this id, by agent; deleted ones as well."""
    rows = db.execute(_ROWS.where(uploads.c.upload == upload).limit(_CANDIDATES))
    return {bytes(row.agent): _stored(row) for row in rows}


def receipts(db: Connection, bodies: Sequence[bytes]) -> dict[bytes, list[Receipted]]:
    """For those of these bodies whose file is stored, what their receipts say.

    STORED for the body that the file was taken from, DUPLICATE for others of the same upload, and
    for any of one that was deleted since. The same whenever it is asked, but for that: so a receipt
    that was lost with a crash can be made again.
    """
    found: dict[bytes, dict[bytes, tuple[bytes, Status]]] = {}  # body, digest: agent, status
    said, here = announcements.c, uploads.c
    same = (said.agent == here.agent) & (said.upload == here.upload)
    for at in range(0, len(bodies), _IDS):
        some = bodies[at : at + _IDS]
        taken = (
            select(here.body_id, here.announcement, here.agent, deletions.c.deleted)
            .join_from(uploads, deletions, GONE, isouter=True)
            .where(here.body_id.in_(some))
            .order_by(here.received, here.agent)
        )
        for body, digest, agent, deleted in db.execute(taken):
            status = Status.STORED if deleted is None else Status.DUPLICATE
            found.setdefault(bytes(body), {})[bytes(digest)] = (bytes(agent), status)
        named = (
            select(said.body_id, said.digest, said.agent, here.body_id, deletions.c.deleted)
            .join_from(announcements, uploads, same)
            .join(deletions, GONE, isouter=True)
            .where(said.body_id.in_(some))
            .order_by(said.received, said.digest)
        )
        for body, digest, agent, origin, deleted in db.execute(named):
            is_it = deleted is None and bytes(origin) == bytes(body)
            status = Status.STORED if is_it else Status.DUPLICATE
            found.setdefault(bytes(body), {}).setdefault(bytes(digest), (bytes(agent), status))
    return {body: _some(of_it) for body, of_it in found.items()}


def _some(found: dict[bytes, tuple[bytes, Status]]) -> list[Receipted]:
    """The first two of each agent (one is what an honest one has), and not too many in all."""
    some: list[Receipted] = []
    counts: dict[bytes, int] = {}
    for digest, (agent, status) in found.items():
        counts[agent] = counts.get(agent, 0) + 1
        if counts[agent] <= 2 and len(some) < RECEIPTS:
            some.append(Receipted(digest, status))
    return some


def is_stored(db: Connection, body: bytes) -> bool:
    """Whether a body is known, and everybody who has announced it has its file stored, or had."""
    said, here = announcements.c, uploads.c
    same = (said.agent == here.agent) & (said.upload == here.upload)
    query = (
        select(func.count(), func.count(here.agent))
        .select_from(announcements)
        .join(uploads, same, isouter=True)
        .where(said.body_id == body)
    )
    announced, stored = db.execute(query).one()
    if announced:
        return bool(announced == stored)
    # Sealed by a relay, of a file that came to it in clear.
    taken = select(here.body_id).where(here.body_id == body).limit(1)
    return db.execute(taken).first() is not None


def read(
    store: Store, agent: bytes | None = None, since: int | None = None, *, deleted: bool = False
) -> Iterator[tuple[StoredUpload, str]]:
    """Stored files in the order they came in, each with the name of its client.

    They are read a page at a time, so that a long listing holds up nobody.

    Args:
        store: where they are.
        agent: of this client only.
        since: received at or after, in unix milliseconds.
        deleted: also those that were deleted.
    """
    place = (uploads.c.received, uploads.c.agent, uploads.c.upload)
    query = _NAMED.order_by(*place).limit(_PAGE)
    if not deleted:
        query = query.where(_HERE)
    if agent is not None:
        query = query.where(uploads.c.agent == agent)
    if since is not None:
        query = query.where(uploads.c.received >= since)
    after: tuple[int, bytes, bytes] | None = None
    while True:
        page = query if after is None else query.where(tuple_(*place) > after)
        with store.reading() as db:
            rows = [(_stored(row), row.client or "") for row in db.execute(page)]
        yield from rows
        if len(rows) < _PAGE:
            return
        last = rows[-1][0]
        after = (last.received, last.agent, last.upload)


def newest(db: Connection, limit: int) -> list[tuple[StoredUpload, str]]:
    """The last that were stored and are here, newest first, each with the name of its client."""
    order = (uploads.c.received.desc(), uploads.c.agent, uploads.c.upload)
    query = _NAMED.where(_HERE).order_by(*order).limit(limit)
    return [(_stored(row), row.client or "") for row in db.execute(query)]


def totals(db: Connection) -> dict[str, tuple[int, int]]:
    """Files and bytes that are here, by how they were sent."""
    size = func.coalesce(func.sum(uploads.c.size), 0)
    query = (
        select(uploads.c.form, func.count(), size)
        .join_from(uploads, deletions, GONE, isouter=True)
        .where(_HERE)
        .group_by(uploads.c.form)
    )
    found = {form: (int(count), int(total)) for form, count, total in db.execute(query)}
    return {form: found.get(form, (0, 0)) for form in ("sealed", "clear")}


def _stored(row: Any) -> StoredUpload:
    return StoredUpload(
        bytes(row.agent), bytes(row.upload), bytes(row.name), row.size, bytes(row.sha256),
        row.modified, row.form, row.suite, None if row.key_id is None else bytes(row.key_id),
        row.received, row.path, bytes(row.body_id), bytes(row.announcement), row.deleted,
    )  # fmt: skip

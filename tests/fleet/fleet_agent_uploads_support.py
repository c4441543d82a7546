# SPDX-License-Identifier: Apache-2.0
"""For the tests of the agent's uploads: a parent with a real shelf, that can be told to lie.

What it opens, stores and receipts is real. It is small, since an honest server cannot be made to
lie.
"""

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from fleet_agent_support import AgentParent, agent_of, eventually
from fleet_relay_support import hop_of
from fleet_support import Site
from starlette.applications import Starlette
from starlette.routing import Mount

from upseal import OpenError, UnknownRecipient
from upseal.core import header as headers
from upseal.core.session import SALT
from upseal.fleet.agent import sender
from upseal.fleet.agent.uploads import sending
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.http.serving import in_thread
from upseal.fleet.units import Receipt, Status, fleet_context, signed_receipt
from upseal.fleet.uploads.shelf import Shelf, ShelfLimits
from upseal.fleet.uploads.tus import Tus
from upseal.fleet.uploads.words import Announcement, is_announcement

MARK = b"sesame-plaintext-marker "
PIECE = 64 << 10
ROOM = {"uploads": {"min_free": 0, "piece": PIECE}}
"""Settings of an agent."""


def pattern(size, mark=MARK):
    """Bytes that a search would find."""
    return (mark * (size // len(mark) + 1))[:size]


class UploadParent(AgentParent):
    """A server that takes files as well, until told otherwise."""

    def __init__(self, site, folder):
        self.folder, self.pool = folder, ThreadPoolExecutor(4)
        self.shelf = self.tus = None
        super().__init__(site)
        self.app.router.routes.append(Mount("/", app=self._uploads))

    def reset(self):
        super().reset()
        self.close()
        self.stored = {}  # (agent, upload) -> announcement, bytes
        self.bodies_seen = {}  # body id -> its bytes
        self.settled = {}  # body id -> Result
        self.senders = set()  # hops that brought something
        self.moves = []  # of requests: method, bytes in it
        self.refuse_upload = None  # callable(request) -> Problem | None
        self.before = lambda request: None  # called with each request of an upload
        self.judge_upload = self.honest_upload  # callable(held, announcements) -> Result | None
        self.results_of = self._of
        self.status_of_stored = Status.STORED
        number = getattr(self, "_number", 0) + 1
        self._number = number
        limits = ShelfLimits(
            max_bytes=1 << 40, max_size=1 << 38, open_per_hop=16, hop_share=1.0, expires=3600.0,
            min_free=0,
        )  # fmt: skip
        self.shelf = Shelf(self.folder / f"shelf-{number}", limits)
        self.tus = Tus(
            self.shelf, authenticate=self._known_hop, unwelcome=self._unwelcome,
            max_piece=8 << 20, on_whole=lambda held: None, pool=self.pool, known=self._final,
        )  # fmt: skip
        self.app_of_uploads = Starlette(routes=self.tus.routes())
        self.unwelcome = None

    async def _uploads(self, scope, receive, send):
        await self.app_of_uploads(scope, receive, send)

    def _unwelcome(self, ticket):
        return None if self.unwelcome is None else self.unwelcome(ticket)

    def _final(self, hop, body_id):
        return body_id in self.settled

    async def _known_hop(self, request, covered):
        self.before(request)
        if self.refuse_upload is not None:
            problem = self.refuse_upload(request)
            if problem is not None:
                raise problem
        hop = hop_of(self.hops, request, covered, self.clock)
        self.senders.add(hop.hop_id)
        self.moves.append((request.method, int(request.headers.get("content-length") or 0)))
        return hop

    # -- what becomes of them

    @property
    def announcements(self):
        """Agent and announcement, of all units that came."""
        with self.lock:
            units = list(self.units.items())
        return [
            (triple[0], Announcement.decode(record))
            for triple, records in units
            for record in records
            if is_announcement(record)
        ]

    def _of(self, ids):
        return [self._result(body_id) for body_id in ids]

    def _result(self, body_id):
        if body_id in self.settled:
            return self.settled[body_id]
        for held in self.shelf.by_body(body_id):
            result = self.tus.result(held.hop, body_id)
            if held.state != "whole":
                return result or Result.unknown(body_id)
            self.bodies_seen[body_id] = held.path.read_bytes()
            judged = self.judge_upload(held, self.announcements)
            if judged is None:
                return Result.pending(body_id)
            self.settled[body_id] = judged
            self.shelf.remove(held)
            return judged
        found = (self.tus.result(hop, body_id) for hop in self.senders)
        return next(filter(None, found), Result.unknown(body_id))

    def honest_upload(self, held, announcements):
        ticket = held.ticket
        for agent, said in announcements:
            if said.upload != ticket.upload or said.body_sha256 != ticket.body_sha256:
                continue
            body = self.bodies_seen[held.body_id]
            try:
                data = self.open(body) if ticket.form == "sealed" else body
            except UnknownRecipient:
                return Result.failed(held.body_id, Problem("stale-key"))
            except OpenError:
                return Result.failed(held.body_id, Problem("malformed"))
            assert len(data) == said.size
            known = (agent, said.upload) in self.stored
            self.stored.setdefault((agent, said.upload), (said, data))
            status = Status.DUPLICATE if known else self.status_of_stored
            return Result.done(held.body_id, [self.receipt_of(said, agent, status)])
        return None

    def open(self, body):
        context = fleet_context(self.site.deployment)
        return self.site.opener().reader(io.BytesIO(body), context).read()

    def receipt_of(self, said, agent, status=Status.STORED, key=None):
        digest = said.digest(self.site.deployment, agent)
        receipt = Receipt(self.site.deployment, digest, status)
        return signed_receipt(receipt, key or self.site.receipt)

    @property
    def files(self):
        """What is stored: name -> bytes."""
        return {said.name: data for said, data in self.stored.values()}

    def close(self):
        if self.shelf is not None:
            self.shelf.close()


@contextmanager
def upload_parent(site, folder):
    """A parent that is up: gives it, with ``url``."""
    parent = UploadParent(site, folder)
    try:
        with in_thread(parent.app) as address:
            parent.url = address.url
            yield parent
    finally:
        parent.close()
        parent.pool.shutdown()


def quickly(monkeypatch):
    """An agent of this process looks often: here nobody pays for it."""
    monkeypatch.setattr(sender, "TURN", 0.03)
    monkeypatch.setattr(sending, "TURN", 0.05)
    monkeypatch.setattr(sending, "_POLL_LEAST", 0.02)


@contextmanager
def agents_below(site, tmp_path, url, *, started):
    """Gives what begins another agent there, with `ROOM`; ends them all."""
    with ExitStack() as stack:

        def begin(name="agent", started=started, **changes):
            changes = {**ROOM, **changes}
            agent = agent_of(site, tmp_path, url, started=started, name=name, **changes)
            return stack.enter_context(agent)

        yield begin


def row_of(agent, upload):
    return agent.uploads.ledger.find(bytes.fromhex(upload))


def salt_and_header(body):
    """What must never be the same in two bodies that hold anything else."""
    raw = headers.parse(body[: 1 << 16]).raw
    return body[len(raw) + 1 : len(raw) + 1 + SALT], raw


def ended(agent):
    """Waits until no upload waits, and no report."""
    eventually(lambda: not agent.uploads.counters().waiting)
    eventually(lambda: not agent.spool.counters().depth)
    return consistent(agent)


def consistent(agent):
    """Counters, rows and folder say the same."""
    counters, reports = agent.uploads.counters(), agent.spool.counters()
    waiting = agent.uploads.ledger.waiting()
    assert counters.waiting == len(waiting)
    assert reports.made == reports.stored + reports.lost + reports.depth
    rows = [agent.uploads.ledger.one(number) for number in waiting]
    assert counters.bytes == sum(row.file_size for row in rows)
    folder = agent.uploads.folder.path
    wanted = {row.file: row.file_size for row in rows}

    def there():
        if not folder.exists():
            return {}
        return {path.name: path.stat().st_size for path in folder.iterdir()}

    # A file goes after its row: so it is never the other way round.
    assert wanted.items() <= there().items()
    eventually(lambda: there() == wanted)
    return counters


# -- fixtures: a file of tests takes those it wants, as in ``site = common.site`` --------------


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quickly(monkeypatch)


@pytest.fixture
def site():
    made = Site()
    made.enable()
    return made


@pytest.fixture(scope="module")
def above(tmp_path_factory):
    """One server for all tests: to start and stop one takes longer than most of them."""
    with upload_parent(Site(), tmp_path_factory.mktemp("parent")) as started:
        yield started


@pytest.fixture
def parent(above, site):
    above.adopt(site)
    return above


__all__ = [
    "MARK", "PIECE", "ROOM", "above", "agent_of", "agents_below", "consistent", "ended",
    "eventually", "parent", "pattern", "quick", "quickly", "row_of", "salt_and_header", "site",
    "upload_parent",
]  # fmt: skip

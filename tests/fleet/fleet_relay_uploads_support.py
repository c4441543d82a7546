# SPDX-License-Identifier: Apache-2.0
"""For the tests of uploads at relays: a parent that opens and receipts files, and who sends them.

with file_parent(site, folder) as parent:          # `Tus` and `Shelf`, and real receipts
    with relay_of(site, tmp_path, parent.url) as relay, senders(site, relay.url) as (sender,):
        file = parent.file(sender, b"content")     # made, and announced to the parent
        bring(sender, file)
        assert receipt_of(sender, file) is Status.STORED
"""

import asyncio
import hashlib
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from fleet_relay_support import Parent, eventually, hop_of, relay_of
from fleet_support import Site, readings
from starlette.responses import Response

from upseal import OpenError, Sealer, UnknownRecipient, open_file
from upseal.fleet.http import results
from upseal.fleet.http.apps import application
from upseal.fleet.http.client import Unreachable
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.paths import UPLOADS
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result, State
from upseal.fleet.http.serving import in_thread
from upseal.fleet.units import Receipt, Status, fleet_context, open_receipt, signed_receipt
from upseal.fleet.uploads.carrier import Carrier
from upseal.fleet.uploads.shelf import Shelf, ShelfLimits
from upseal.fleet.uploads.tus import Tus
from upseal.fleet.uploads.words import Announcement, Ticket, path_of

TUS = {"tus-resumable": "1.0.0"}
UPLOADS_QUICK = {"piece": 1 << 16, "min_free": 0}
"""Settings of a relay's ``[uploads]``."""


class File:
    """One file, as its agent has made it: ``announcement``, ``ticket``, ``body``."""

    def __init__(self, site, agent, content, form, keys=None):
        self.site, self.agent, self.content = site, agent, content
        self.body = content
        if form == "sealed":
            keys = keys or [key.public() for key in site.manifest.encryption]
            out = io.BytesIO()
            with Sealer(keys).writer(out, fleet_context(site.deployment)) as writer:
                writer.write(content)
            self.body = out.getvalue()
        upload, digest = os.urandom(16), hashlib.sha256(self.body).digest()
        self.ticket = Ticket(upload, digest, form, len(self.body))
        self.announcement = Announcement(
            upload, form, len(content), len(self.body), digest, 0, b"file"
        )
        self.id = self.ticket.body_id
        self.digest = self.announcement.digest(site.deployment, agent)

    def read(self, offset, length):
        """For a `Carrier`."""
        return self.body[offset : offset + length]


class FileParent(Parent):
    """A server for files: keeps, verifies, opens, receipts. What it judges can be replaced."""

    def __init__(self, site, folder, max_piece=8 << 20):
        super().__init__(site)
        limits = ShelfLimits(1 << 30, 1 << 30, 100, 1.0, 3600.0, 0)
        self.shelf, self.pool = Shelf(folder, limits), ThreadPoolExecutor(4)
        self.announced_files = {}
        self.forget()
        self.tus = Tus(
            self.shelf, authenticate=self._file_hop, unwelcome=lambda t: self.unwelcome(t),
            max_piece=max_piece, on_whole=self._whole, pool=self.pool, known=self._known,
        )  # fmt: skip
        own = [route for route in self.app.routes if route.path.startswith("/v1/")]
        self.app = application([*own, *self.tus.routes()], metrics=Metrics("server"))

    def forget(self):
        """Honest again, without memory of files; what lies on its shelf stays."""
        self.begun, self.arrived_files, self.judged = [], [], {}
        self.stored = {}  # upload -> content
        self.unwelcome = lambda ticket: None
        self.holding = lambda: False  # while it is true, no piece is taken
        self.judge_file = self.honest_file  # callable(held) -> Result, or None: pending
        self.say = lambda result: result  # what is said of it

    def file(self, sender, content, form="sealed", keys=None):
        """A file of an agent, announced here."""
        made = File(self.site, sender.me.agent, content, form, keys)
        self.announced_files[made.ticket.upload] = made
        return made

    def honest_file(self, held):
        """As the server does."""
        ticket = held.ticket
        try:
            content = self.content_of(held)
        except UnknownRecipient:
            return Result.failed(held.body_id, Problem("stale-key"))
        except OpenError:
            return Result.failed(held.body_id, Problem("malformed"))
        file = self.announced_files[ticket.upload]
        announced = hashlib.sha256(content).digest() == hashlib.sha256(file.content).digest()
        assert announced, "another file"
        with self.lock:
            status = Status.DUPLICATE if ticket.upload in self.stored else Status.STORED
            self.stored.setdefault(ticket.upload, content)
        return Result.done(held.body_id, [self.receipt_for(file, status)])

    def content_of(self, held):
        if held.ticket.form == "clear":
            return held.path.read_bytes()
        out = io.BytesIO()
        open_file(held.path, out, self.site.opener(), fleet_context(self.site.deployment))
        return out.getvalue()

    def receipt_for(self, file, status=Status.STORED, key=None):
        said = Receipt(self.site.deployment, file.digest, status)
        return signed_receipt(said, key or self.site.receipt)

    def judge_all(self):
        """Looks again at what was pending."""
        for held in self.shelf.whole():
            self._judge(held)

    def _whole(self, held):
        with self.lock:
            self.arrived_files.append((held.ticket.form, held.path.read_bytes()))
        self._judge(held)

    def _judge(self, held):
        result = self.judge_file(held)
        if result is not None:
            self.judged[held.body_id] = result
            self.shelf.remove(held)

    def _known(self, hop, body_id):
        found = self.judged.get(body_id)
        return found is not None and found.state is State.DONE

    async def _file_hop(self, request, proven):
        while request.method == "PATCH" and self.holding():
            await asyncio.sleep(0.01)
        hop = hop_of(self.hops, request, proven)
        if request.method == "POST":
            self.begun.append(request.headers["upload-metadata"])
        self.last_hop = hop
        return hop

    async def _results(self, request):
        ids = results.decode_ids(await self._hop(request))
        self.asked.append(ids)
        answers = []
        for body in ids:
            found = self.judged.get(body)
            if found is None and getattr(self, "last_hop", None) is not None:
                found = self.tus.result(self.last_hop.hop_id, body)
            answers.append(self.say(found or Result.unknown(body)))
        return Response(results.encode(answers), media_type="application/json")

    def close(self):
        self.shelf.close()
        self.pool.shutdown()


@contextmanager
def file_parent(site, folder, **options):
    """It, up, with ``url``."""
    parent = FileParent(site, folder, **options)
    try:
        with in_thread(parent.app) as address:
            parent.url = address.url
            yield parent
    finally:
        parent.close()


# -- who sends --------------------------------------------------------------------------


def bring(sender, file, piece=64 << 10):
    """All of it, to the relay."""
    assert Carrier(sender.uplink, piece=piece).carry(file.ticket, file, threading.Event())


def create(sender, file):
    said = {"upload-length": str(file.ticket.size), "upload-metadata": file.ticket.metadata()}
    return sender.uplink.request("POST", UPLOADS, b"", {**TUS, **said})


def patch(sender, file, offset, count):
    said = {"upload-offset": str(offset), "content-type": "application/offset+octet-stream"}
    piece = file.body[offset : offset + count]
    return sender.uplink.request("PATCH", path_of(file.id), piece, {**TUS, **said})


def head(sender, file):
    return sender.uplink.request("HEAD", path_of(file.id), b"", TUS)


def delete(sender, file):
    return sender.uplink.request("DELETE", path_of(file.id), b"", TUS)


def state_of(sender, file):
    return sender.ask(file.id)[0].state


def result_of(sender, file):
    """Its result, when there is one."""

    def found():
        answer = sender.ask(file.id, wait=5)[0]
        return answer if answer.state in (State.DONE, State.PROBLEM) else None

    return eventually(found)


def status_in(result, file):
    """What a receipt says of that file; it is the one there is, and verifies."""
    keys = {key.key_id: key for key in file.site.manifest.receipt_keys}
    (receipt,) = (open_receipt(r, keys, file.site.deployment) for r in result.receipts)
    assert receipt.statement_digest == file.digest
    return receipt.status


def receipt_of(sender, file):
    result = result_of(sender, file)
    assert result.state is State.DONE, result
    return status_in(result, file)


class Child(threading.Thread):
    """An agent that brings one file, whatever happens, until its receipt is there."""

    def __init__(self, sender, file, piece=64 << 10):
        super().__init__()
        self.sender, self.file, self.piece = sender, file, piece
        self.offset, self.result, self.failed = 0, None, None
        self.over = threading.Event()
        self.start()

    def run(self):
        try:
            while self.result is None and not self.over.is_set():
                try:
                    self._once()
                except (Unreachable, Problem):
                    self.over.wait(0.05)
        except BaseException as error:
            self.failed = error

    def _once(self):
        carrier = Carrier(self.sender.uplink, piece=self.piece, on_progress=self._note)
        if not carrier.carry(self.file.ticket, self.file, self.over):
            return
        while not self.over.is_set():
            answer = self.sender.ask(self.file.id, wait=2)[0]
            if answer.state is State.UNKNOWN:
                return
            if answer.state is not State.PENDING:
                self.result = answer
                return

    def _note(self, body, offset, size):
        self.offset = offset

    def close(self):
        self.over.set()
        self.join(60)
        assert not self.is_alive()
        if self.failed is not None:
            raise self.failed


# -- relays -----------------------------------------------------------------------------


def settled(relay):
    """Nothing is left in it."""
    state, carrying = relay.state, relay.uploads.carrying
    eventually(lambda: not (state.shelf.usage().bodies or carrying.waiting or state.wraps.size))
    assert not list((relay.settings.directory / "uploads-sealed").iterdir())
    assert [p.name for p in (relay.settings.directory / "uploads").iterdir()] == ["lock"]


def metrics(relay):
    found = readings(relay.meters.metrics.render().decode())
    return {name.removeprefix("upseal_relay_"): value for name, value in found.items()}


def own(site, tmp_path, parent, name, **changes):
    """Another relay, with settings of its own."""
    changes["uploads"] = {**UPLOADS_QUICK, **changes.pop("uploads", {})}
    return relay_of(site, tmp_path, parent.url, name, **changes)


@contextmanager
def house_of(folder, *names):
    """A parent, and relays by these names: ``decrypting`` is one. Gives (site, parent, relays)."""
    site = Site()
    site.enable()
    with ExitStack() as stack:
        parent = stack.enter_context(file_parent(site, folder / "parent"))
        relays = [
            stack.enter_context(own(site, folder, parent, name, decrypting=name == "decrypting"))
            for name in names
        ]
        yield site, parent, relays


# -- fixtures: a file of tests that has a ``house`` takes those it wants, as in
# ``site = common.site``


@pytest.fixture
def site(house):
    return house[0]


@pytest.fixture
def parent(house):
    house[1].reset()
    house[1].forget()
    return house[1]


@pytest.fixture
def decrypting(house, parent):
    """The last of the relays."""
    yield house[2][-1]
    settled(house[2][-1])

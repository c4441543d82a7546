# SPDX-License-Identifier: Apache-2.0
"""Uploads by hand: files with their announcements and bodies, and hops that bring them by tus."""

import hashlib
import io
import os
from dataclasses import dataclass, replace

import pytest
from fleet_server_support import Site, clear, now_ms, until

from upseal import Sealer, seal_file
from upseal.fleet.credentials import prove
from upseal.fleet.http.client import Client
from upseal.fleet.http.results import State
from upseal.fleet.policy import Reason
from upseal.fleet.server.store import alarms, uploads
from upseal.fleet.server.uploads import working
from upseal.fleet.uploads.shelf import ShelfLimits
from upseal.fleet.uploads.words import (
    UPLOADS,
    Announcement,
    Ticket,
    path_of,
    proven,
)

LIMITS = ShelfLimits(1 << 30, 1 << 30, 64, 1.0, 3600.0, 1)


def sealed_bytes(site, data, recipients=None, context=None):
    """A file sealed as an upload."""
    keys = recipients or [key.public() for key in site.manifest().encryption]
    out = io.BytesIO()
    seal_file(io.BytesIO(data), out, Sealer(keys), site.context if context is None else context)
    return out.getvalue()


@dataclass(frozen=True)
class Upload:
    """A file on its way: what it is, and its body."""

    data: bytes
    body: bytes
    announcement: Announcement

    @classmethod
    def make(cls, site, data, form="sealed", *, name=b"file", upload=None, body=None, **other):
        if body is None:
            body = sealed_bytes(site, data, **other) if form == "sealed" else data
        said = Announcement(
            upload or os.urandom(16), form, len(data), len(body), hashlib.sha256(body).digest(),
            1_700_000_000_000, name,
        )  # fmt: skip
        return cls(data, body, said)

    def again(self, site, **changes):
        """The same file, sealed anew."""
        made = Upload.make(site, self.data, upload=self.announcement.upload, **changes)
        return replace(made, announcement=replace(made.announcement, name=self.announcement.name))

    @property
    def ticket(self):
        said = self.announcement
        return Ticket(said.upload, said.body_sha256, said.form, said.body_size)

    @property
    def id(self):
        return self.ticket.body_id

    def digest(self, sender):
        return self.announcement.digest(sender.site.deployment, sender.agent)


def ticket_for(upload, body, form="sealed"):
    """What anybody may say of any bytes."""
    return Ticket(upload, hashlib.sha256(body).digest(), form, len(body))


def announce(sender, *files, level=None):
    """Sends the announcements as reports, in one unit."""
    more = {} if level is None else {"level": level}
    records = [file.announcement.encode() for file in files]
    (result,) = sender.send(clear(sender.unit(*records, reason=Reason.NO_CERTIFICATE, **more)))
    assert result.state is State.DONE
    return result


def tus(sender, method, path, body=b"", **headers):
    """One request; names of headers with _ for -."""
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    said["tus-resumable"] = "1.0.0"
    covered = proven(path, said, body)
    proof = prove(sender.credential, sender.hop, method, path, covered, now_ms())
    with Client(sender.site.url) as client:
        return client.request(method, path, body, {**said, **proof})


def create(sender, ticket):
    return tus(
        sender, "POST", UPLOADS, upload_length=str(ticket.size), upload_metadata=ticket.metadata()
    )


def patch(sender, ticket, offset, data):
    return tus(
        sender, "PATCH", path_of(ticket.body_id), data, upload_offset=str(offset),
        content_type="application/offset+octet-stream",
    )  # fmt: skip


def offset(sender, ticket):
    """What HEAD says, or None."""
    answer = tus(sender, "HEAD", path_of(ticket.body_id))
    return int(answer.headers["upload-offset"]) if answer.status == 200 else None


def put(sender, ticket, body, piece=1 << 20):
    """All of a body; False if the server has it all along, and wants none of it."""
    answer = create(sender, ticket)
    if answer.problem() is not None:
        raise answer.problem()
    assert answer.status == 201
    if not body:
        return True  # whole with its creation, and perhaps settled by now
    head = tus(sender, "HEAD", path_of(ticket.body_id))
    if head.headers["upload-offset"] == head.headers["upload-length"]:
        return False
    for at in range(0, len(body), piece):
        answer = patch(sender, ticket, at, body[at : at + piece])
        if answer.problem() is not None:
            raise answer.problem()
        assert answer.status == 204
    return True


def ask(sender, body_id):
    (result,) = sender.ask(body_id)
    return result


def finished(sender, body_id):
    """Its result, once it has one."""

    def look():
        result = ask(sender, body_id)
        return result if result.state is not State.PENDING else None

    return until(look, "the result")


def send(sender, file):
    """Announces a file and brings its body; the result."""
    announce(sender, file)
    put(sender, file.ticket, file.body)
    return finished(sender, file.id)


def rows(site, agent=None):
    with site.store() as store:
        return [row for row, _ in uploads.read(store, agent)]


def content(site, row):
    return (site.settings.uploads / "stored" / row.path).read_bytes()


def alarmed(site):
    with site.store() as store, store.reading() as db:
        return {(alarm.kind, alarm.subject) for alarm in alarms.listing(db)}


def enrol_relay(site, name="relay-1"):
    return site.enrol(name, role="relay", decrypts=False, accepts_sealed=True)


# -- fixtures: a file of tests takes those it wants, as in ``live = common.live`` ----------------


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """With a server, for tests that leave it as it was."""
    made = Site(tmp_path_factory.mktemp("live") / "deployment")
    made.enable()
    with made.running():
        yield made


@pytest.fixture
def impatient(monkeypatch):
    """What fits nothing is judged at once."""
    monkeypatch.setattr(working, "GRACE", 0.0)

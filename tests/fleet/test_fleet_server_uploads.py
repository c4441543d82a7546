# SPDX-License-Identifier: Apache-2.0
"""Uploads at the server: announced, brought by tus, opened, stored once, receipted."""

import hashlib
import os
import stat

import fleet_server_uploads_support as common
import pytest
from fleet_server_support import clear, now_ms, until
from fleet_server_uploads_support import (
    Upload,
    alarmed,
    announce,
    ask,
    content,
    create,
    enrol_relay,
    finished,
    offset,
    patch,
    put,
    rows,
    send,
    ticket_for,
    tus,
)

from upseal.fleet.http.results import State
from upseal.fleet.policy import Level, Reason
from upseal.fleet.server.store import alarms, keys, units, uploads
from upseal.fleet.server.uploads import working
from upseal.fleet.units import Status
from upseal.fleet.uploads.words import path_of

site = common.live


@pytest.fixture
def agent(site):
    return site.enrol("web-1")


@pytest.fixture(scope="module")
def relay(site):
    return enrol_relay(site)


NAMES = [b"a", b"x" * 1024, b"\xff\xfe name", "ä ☃\n\x1b[31m".encode(), b"-rf *", b"..."]


@pytest.mark.parametrize("form", ["sealed", "clear"])
@pytest.mark.parametrize("size", [0, 1, 16384, 300_001])
def test_a_file_is_stored_and_receipted(site, agent, form, size):
    file = Upload.make(site, os.urandom(size), form, name=NAMES[size % len(NAMES)])
    result = send(agent, file)
    assert agent.statuses(result) == {file.digest(agent): Status.STORED}
    (row,) = rows(site, agent.agent)
    assert content(site, row) == file.data
    assert row.sha256 == hashlib.sha256(file.data).digest()
    assert (row.size, row.name, row.form) == (size, file.announcement.name, form)
    assert (row.upload, row.modified) == (file.announcement.upload, 1_700_000_000_000)
    assert (row.key_id is None, row.suite is None) == ((form == "clear"),) * 2
    path = site.settings.uploads / "stored" / row.path
    assert row.path == f"{agent.agent.hex()}/{file.announcement.upload.hex()}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    until(lambda: not list((site.settings.uploads / "incoming").glob("*.whole")), "an empty shelf")
    assert not list((site.settings.uploads / "stored" / ".parts").iterdir())


def test_every_name_goes_into_the_database_and_none_into_a_path(site, agent):
    files = [Upload.make(site, b"%d" % i, name=name) for i, name in enumerate(NAMES)]
    announce(agent, *files)
    for file in files:
        put(agent, file.ticket, file.body)
    for file in files:
        assert finished(agent, file.id).state is State.DONE
    assert {row.name for row in rows(site, agent.agent)} == set(NAMES)
    stored = site.settings.uploads / "stored" / agent.agent.hex()
    assert {p.name for p in stored.iterdir()} == {f.announcement.upload.hex() for f in files}


def test_the_announcement_is_an_ordinary_report_as_well(site, agent):
    file = Upload.make(site, b"data")
    send(agent, file)
    with site.store() as store:
        assert [r.body for r in units.read(store, agent.agent)] == [file.announcement.encode()]


def test_what_begins_like_an_announcement_and_is_none_is_a_report(site, agent):
    for record in (b"UPU\x01", b"UPU\x01" + bytes(200)):
        unit = agent.unit(record, reason=Reason.NO_CERTIFICATE)
        (result,) = agent.send(clear(unit))
        assert agent.statuses(result) == {unit.digest: Status.STORED}


def test_the_body_may_come_first(site, agent, monkeypatch):
    monkeypatch.setattr(working, "GRACE", 3600.0)  # the announcement is what wakes it
    file = Upload.make(site, b"first the body")
    put(agent, file.ticket, file.body)
    until(lambda: ask(agent, file.id).state is State.PENDING, "pending")
    assert rows(site, agent.agent) == []
    announce(agent, file)
    assert finished(agent, file.id).state is State.DONE
    assert content(site, rows(site, agent.agent)[0]) == file.data


def test_pieces_and_resumption(site, agent):
    file = Upload.make(site, os.urandom(100_000))
    announce(agent, file)
    assert create(agent, file.ticket).status == 201
    assert ask(agent, file.id).state is State.UNKNOWN  # bytes are missing
    assert patch(agent, file.ticket, 0, file.body[:50_000]).status == 204
    assert offset(agent, file.ticket) == 50_000
    assert patch(agent, file.ticket, 0, file.body[:10]).problem().name == "offset"
    assert ask(agent, file.id).state is State.UNKNOWN
    assert patch(agent, file.ticket, 50_000, file.body[50_000:]).status == 204
    result = finished(agent, file.id)
    assert agent.statuses(result) == {file.digest(agent): Status.STORED}
    # Nobody sends again what is stored.
    assert create(agent, file.ticket).status == 201
    until(lambda: offset(agent, file.ticket) == 0, "HEAD without a body")
    assert ask(agent, file.id) == result


def test_waiting_for_the_result(site, agent):
    file = Upload.make(site, b"waited for")
    put(agent, file.ticket, file.body)
    until(lambda: ask(agent, file.id).state is State.PENDING, "pending")
    announce(agent, file)
    (result,) = agent.ask(file.id, wait=20)
    assert result.state is State.DONE


def test_a_second_body_is_a_duplicate(site, agent):
    file = Upload.make(site, b"once")
    send(agent, file)
    before = rows(site, agent.agent)
    again = file.again(site)
    assert again.id != file.id
    put(agent, again.ticket, again.body)
    until(lambda: ask(agent, again.id).state is State.PENDING, "pending")
    announce(agent, again)
    result = finished(agent, again.id)
    assert agent.statuses(result) == {again.digest(agent): Status.DUPLICATE}
    third = file.again(site)  # announced first: then nobody needs its bytes
    announce(agent, third)
    assert not put(agent, third.ticket, third.body)
    assert agent.statuses(ask(agent, third.id)) == {third.digest(agent): Status.DUPLICATE}
    assert rows(site, agent.agent) == before
    assert content(site, before[0]) == file.data


def test_two_agents_with_the_same_file(site, agent):
    other = site.enrol("web-2")
    one, two = (Upload.make(site, b"same bytes", "clear") for _ in range(2))
    assert agent.statuses(send(agent, one)) == {one.digest(agent): Status.STORED}
    assert other.statuses(send(other, two)) == {two.digest(other): Status.STORED}
    assert content(site, rows(site, agent.agent)[0]) == b"same bytes"
    assert content(site, rows(site, other.agent)[0]) == b"same bytes"


def test_through_a_relay(site, agent, relay):
    file = Upload.make(site, b"passed on")
    announce(agent, file)
    put(relay, file.ticket, file.body)
    result = finished(relay, file.id)
    assert agent.statuses(result) == {file.digest(agent): Status.STORED}
    assert ask(agent, file.id) == result  # who brought it does not matter
    assert rows(site, agent.agent)[0].form == "sealed"


def test_a_clear_file_that_a_relay_has_sealed(site, agent, relay):
    file = Upload.make(site, os.urandom(40_000), "clear")
    announce(agent, file)
    wrapped = Upload.make(site, file.data, upload=file.announcement.upload)
    put(relay, wrapped.ticket, wrapped.body)
    result = finished(relay, wrapped.id)
    assert agent.statuses(result) == {file.digest(agent): Status.STORED}
    (row,) = rows(site, agent.agent)
    assert content(site, row) == file.data
    assert row.form == "clear"  # as its agent has sent it
    assert row.key_id == site.manifest().encryption[0].public().key_id
    # The same, sealed once more by another relay: a duplicate, and its bytes are compared.
    other = Upload.make(site, file.data, upload=file.announcement.upload)
    put(relay, other.ticket, other.body)
    result = finished(relay, other.id)
    assert agent.statuses(result) == {file.digest(agent): Status.DUPLICATE}
    assert rows(site, agent.agent) == [row]


def test_a_key_that_is_used_for_uploads_is_not_drained(site, agent):
    def last_hour():
        with site.store() as store, store.reading() as db:
            return sum(d.last_hour for d in keys.drain(db, now_ms()))

    before = last_hour()
    send(agent, Upload.make(site, b"x"))
    assert last_hour() == before + 1


def test_results_after_they_are_forgotten(site, agent):
    """What is in the tables is enough: receipts are made again, the same statuses in them."""
    file = Upload.make(site, b"to be told again")
    send(agent, file)
    again = file.again(site)
    send(agent, again)
    with site.store() as store, store.reading() as db:
        found = uploads.receipts(db, [file.id, again.id, os.urandom(32)])
    assert found == {
        file.id: [(file.digest(agent), Status.STORED)],
        again.id: [(again.digest(agent), Status.DUPLICATE)],
    }


def test_alarms_about_clear_files(site, agent):
    file = Upload.make(site, b"clear", "clear")
    announce(agent, file, level=Level.REQUIRED)
    put(agent, file.ticket, file.body)
    assert finished(agent, file.id).state is State.DONE  # nothing is lost for it
    assert ("clear-though-required", agent.agent) in alarmed(site)
    other = site.enrol("web-3")
    file = Upload.make(site, b"clear", body=b"said to be sealed")
    announce(other, file)
    put(other, file.ticket, file.body)
    result = finished(other, file.id)
    assert (result.state, result.problem.name) == (State.PROBLEM, "malformed")
    assert ("arrived-clear", other.agent) in alarmed(site)
    assert rows(site, other.agent) == []
    assert "upload-does-not-match" in alarms.KINDS


def test_who_ends_an_upload(site, agent, relay):
    file = Upload.make(site, b"ended")
    put(agent, file.ticket, file.body)
    until(lambda: ask(agent, file.id).state is State.PENDING, "pending")
    assert tus(relay, "DELETE", path_of(file.id)).status == 404  # not its own
    until(lambda: tus(agent, "DELETE", path_of(file.id)).status == 204, "the end of it")
    assert ask(agent, file.id).state is State.UNKNOWN
    announce(agent, file)
    assert ask(agent, file.id).state is State.UNKNOWN
    put(agent, file.ticket, file.body)
    assert finished(agent, file.id).state is State.DONE


def test_strangers(site, agent):
    file = Upload.make(site, b"x")
    stranger = type(agent)(site, "x", agent.identity, type(agent.hop).generate(), "e30.e30.e30",
                           "agent")  # fmt: skip
    assert create(stranger, file.ticket).status == 401
    assert patch(stranger, file.ticket, 0, b"x").status == 401
    assert ask_status(stranger, file) == 401


def ask_status(sender, file):
    return tus(sender, "HEAD", path_of(file.id)).status


def test_bytes_that_are_not_what_was_declared(site, agent):
    ticket = ticket_for(os.urandom(16), b"these bytes")
    put(agent, ticket, b"other bytes")
    result = finished(agent, ticket.body_id)
    assert result.problem.name == "malformed"
    put(agent, ticket, b"these bytes")  # begun again
    until(lambda: ask(agent, ticket.body_id).state is State.PENDING, "pending")


def test_metrics(site, agent):
    def value(name):
        return site.metrics().get(name, 0.0)

    count = 'upseal_server_uploads_total{form="sealed",status="stored"}'
    size = 'upseal_server_upload_bytes_total{form="sealed"}'
    before = value(count), value(size)
    file = Upload.make(site, b"x" * 1000)
    send(agent, file)
    assert value(count) == before[0] + 1
    assert value(size) == before[1] + len(file.body)
    assert value('upseal_server_upload_seconds_count{step="settle"}') >= 1
    for name in ("uploads_open", "uploads_held_bytes", "uploads_waiting"):
        assert f"upseal_server_{name}" in site.metrics()

# SPDX-License-Identifier: Apache-2.0
"""Uploads under attack, or in bad luck, where several rooms meet: what a review has found."""

import os
import time
from dataclasses import replace

import fleet_agent_uploads_support as below
import fleet_relay_uploads_support as above
import fleet_server_uploads_support as server
import pytest
from fleet_relay_support import senders
from fleet_server_support import Site
from fleet_server_uploads_support import (
    Upload,
    announce,
    content,
    create,
    enrol_relay,
    finished,
    patch,
    put,
    rows,
)

from upseal import PrivateKey
from upseal.fleet.agent.uploads.ledger import Ledger
from upseal.fleet.agent.uploads.making import Maker
from upseal.fleet.agent.uploads.rows import UploadState
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import State
from upseal.fleet.relay import carrying
from upseal.fleet.units import Status

SIZE = 3 * below.PIECE + 17
live, impatient = server.live, server.impatient


# -- the server: somebody else announces what he cannot have made ------------------------------


@pytest.mark.parametrize("data", [b"the agent's", b"USL\x01 looks sealed, and is not"])
def test_a_clear_file_that_somebody_else_announces_as_sealed(live, impatient, data):
    """Who overhears an upload's id and digest must not be able to keep its receipt from it."""
    agent, squatter, relay = live.enrol("web-1"), live.enrol("squatter"), enrol_relay(live)
    file = Upload.make(live, data, "clear")
    lie = replace(file, announcement=replace(file.announcement, form="sealed"))
    assert lie.id == file.id
    announce(squatter, lie)
    announce(agent, file)
    put(relay, file.ticket, file.body)
    result = finished(relay, file.id)
    assert result.state is State.DONE
    assert agent.statuses(result)[file.digest(agent)] is Status.STORED
    assert [content(live, row) for row in rows(live, agent.agent)] == [data]
    assert rows(live, squatter.agent) == []


def test_a_clear_file_that_looks_sealed_and_whose_upload_somebody_else_announces(live, impatient):
    agent, squatter, relay = live.enrol("web-1"), live.enrol("squatter"), enrol_relay(live)
    file = Upload.make(live, b"USL\x01 looks sealed, and is not", "clear")
    lie = Upload.make(live, b"other bytes", "clear", upload=file.announcement.upload)
    announce(squatter, lie)
    announce(agent, file)
    put(relay, file.ticket, file.body)
    result = finished(relay, file.id)
    assert result.state is State.DONE
    assert agent.statuses(result) == {file.digest(agent): Status.STORED}


def test_a_sealed_file_that_somebody_else_announces_as_clear(live, impatient):
    """Its agent still hears that its key is no longer known, and can seal it anew."""
    agent, squatter, relay = live.enrol("web-1"), live.enrol("squatter"), enrol_relay(live)
    file = Upload.make(live, b"the agent's", recipients=[PrivateKey.generate().public_key])
    lie = Upload.make(live, file.body, "clear", upload=file.announcement.upload)
    assert lie.id == file.id
    announce(squatter, lie)
    announce(agent, file)
    put(relay, file.ticket, file.body)
    assert finished(relay, file.id).problem.name == "stale-key"
    again = file.again(live)
    announce(agent, again)
    put(relay, again.ticket, again.body)
    assert agent.statuses(finished(relay, again.id))[again.digest(agent)] is Status.STORED


def test_who_has_a_file_here_does_not_wait_for_room_for_others(tmp_path):
    made = Site(tmp_path / "deployment")
    made.enable()
    made.configure("[server]\nstored_upload_bytes = 1")
    with made.running():
        agent, squatter, relay = made.enrol("web-1"), made.enrol("squatter"), enrol_relay(made)
        first = Upload.make(made, b"the agent's")
        again = first.again(made)
        lie = Upload.make(made, b"other bytes", "clear", upload=first.announcement.upload)
        announce(agent, first, again)
        announce(squatter, lie)
        create(relay, again.ticket)
        put(relay, first.ticket, first.body)
        assert agent.statuses(finished(relay, first.id)) == {first.digest(agent): Status.STORED}
        patch(relay, again.ticket, 0, again.body)
        assert agent.statuses(finished(relay, again.id)) == {again.digest(agent): Status.DUPLICATE}


# -- the agent: a second sender, or somebody who cancels, in the wrong moment ------------------


site = below.site


@pytest.fixture
def parent(site, tmp_path):
    with below.upload_parent(site, tmp_path) as started:
        yield started


@pytest.fixture
def agent(parent, site, tmp_path, monkeypatch):
    below.quickly(monkeypatch)
    with below.agent_of(site, tmp_path, parent.url, started=False, **below.ROOM) as found:
        yield found


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(below.pattern(SIZE))
    return path


def once(monkeypatch, where, name, act):
    """Does something else the first time, just before."""
    real, done = getattr(where, name), []

    def meanwhile(self, *args):
        if not done:
            done.append(1)
            act(self, *args)
        return real(self, *args)

    monkeypatch.setattr(where, name, meanwhile)


def by_another(agent):
    """Seals a file anew, as a thread does that was left behind when the agent was stopped."""

    def act(_, row, *__):
        believed = agent._parent.believed()
        assert agent.uploads.maker._anew(row, believed.certificate, believed.serial, lambda: None)

    return act


def retire(site):
    site.rotate()
    site.sign()
    del site.private[0]


def test_cancelled_just_before_its_file_is_opened(agent, file, monkeypatch):
    upload = agent.upload(file)
    once(monkeypatch, Maker, "_file", lambda *_: agent.uploads.cancel(upload))
    agent.start()
    counters = below.ended(agent)
    assert (counters.cancelled, counters.failed) == (1, 0)
    assert not [alarm for alarm in agent.alarms.all() if "lost" in alarm["what"]]


def test_sealed_anew_by_another_before_its_file_is_opened(agent, parent, site, file, monkeypatch):
    """What is not there then is no file that the disk has lost."""
    upload = agent.upload(file)
    retire(site)
    act, real, done = by_another(agent), Maker._file, []

    def opened(self, row):
        if not done and agent._parent.believed().serial > row.serial:
            done.append(1)
            act(self, row)
        return real(self, row)

    monkeypatch.setattr(Maker, "_file", opened)
    agent.start()
    counters = below.ended(agent)
    assert done
    assert (counters.stored, counters.failed) == (1, 0)
    assert agent.uploads.state(upload) is UploadState.STORED
    assert parent.files == {b"file": below.pattern(SIZE)}


def test_sealed_anew_by_another_at_the_same_time(agent, parent, site, file, monkeypatch):
    """Who comes second throws its own away, and goes on with the other's."""
    upload = agent.upload(file)
    retire(site)
    once(monkeypatch, Ledger, "remake", by_another(agent))
    agent.start()
    counters = below.ended(agent)
    assert (counters.stored, counters.failed) == (1, 0)
    assert agent.uploads.state(upload) is UploadState.STORED
    assert parent.files == {b"file": below.pattern(SIZE)}


def test_a_long_file_does_not_keep_the_receipts_of_others_waiting(agent, parent, file, tmp_path):
    """Hops remember results for an hour, and a file may be on its way for days."""
    long, states, told = tmp_path / "long", [], []
    long.write_bytes(below.pattern(300 * below.PIECE))
    first, second = agent.upload(file), agent.upload(long)

    def before(request):
        if request.method == "PATCH" and told:
            states.append(agent.uploads.state(first))
            if states[-1] is UploadState.WAITING:
                time.sleep(0.01)

    def judge(held, announcements):
        if held.ticket.upload.hex() == first and len(told) < 2:
            told.append(1)  # pending, when it is asked about for the first times
            return None
        return parent.honest_upload(held, announcements)

    parent.before, parent.judge_upload = before, judge
    agent.start()
    below.ended(agent)
    assert agent.uploads.state(second) is UploadState.STORED
    assert states[-1] is UploadState.STORED


def test_damaged_after_it_was_announced_in_clear(parent, site, file, tmp_path, monkeypatch):
    """What can never be sent any more does not wait for ever."""
    below.quickly(monkeypatch)
    refuses = [True]
    parent.refuse_upload = lambda _: Problem("busy", retry_after=0) if refuses[0] else None
    room = {"uploads": {"min_free": 0, "piece": 4 << 20}}
    file.write_bytes(below.pattern(6 << 20))
    with below.agent_of(
        site, tmp_path, parent.url, started=False, name="other", level="none", **room
    ) as agent:
        upload = agent.upload(file)
        agent.start()
        below.eventually(lambda: parent.announcements)
        row = below.row_of(agent, upload)
        with open(agent.uploads.folder.path / row.file, "r+b") as sealed:
            was = os.pread(sealed.fileno(), 1, 3 << 20)[0]
            os.pwrite(sealed.fileno(), bytes([was ^ 1]), 3 << 20)
        refuses[0] = False
        counters = below.ended(agent)
        assert (counters.failed, counters.stored) == (1, 0)


# -- the relay: who sends much, and the others -------------------------------------------------


def test_who_sends_long_files_keeps_nobody_else_waiting(site, tmp_path, monkeypatch):
    """Workers are few: the next of another hop goes first, and a long one makes way for it."""
    monkeypatch.setattr(carrying, "_TURN", 0.0)
    holds = [True]
    with (
        above.file_parent(site, tmp_path / "parent") as parent,
        above.own(site, tmp_path, parent, "relay", uploads={"workers": 1}) as relay,
        senders(site, relay.url, 2) as (one, two),
    ):
        parent.holding = lambda: holds[0]
        long = [parent.file(one, os.urandom(20 << 16)) for _ in range(3)]
        short = parent.file(two, b"short")
        for file in long:
            above.bring(one, file)
        below.eventually(lambda: parent.begun)
        above.bring(two, short)
        below.eventually(lambda: relay.uploads.carrying.waiting == 4)
        holds[0] = False
        assert above.receipt_of(two, short) is Status.STORED
        assert {above.receipt_of(one, file) for file in long} == {Status.STORED}
        assert parent.arrived_files[0][1] == short.body
        assert len(parent.arrived_files) == 4
        above.settled(relay)

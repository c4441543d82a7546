# SPDX-License-Identifier: Apache-2.0
"""Uploads where things go wrong: lying relays, races, kills at every step, full disks, keys."""

import errno
import os
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace

import fleet_server_uploads_support as common
import pytest
from fleet_server_support import Site, sealed, until
from fleet_server_uploads_support import (
    LIMITS,
    Upload,
    alarmed,
    announce,
    ask,
    content,
    create,
    enrol_relay,
    finished,
    patch,
    put,
    rows,
    sealed_bytes,
    send,
    ticket_for,
    tus,
)

from upseal import PrivateKey
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.results import State
from upseal.fleet.policy import Level
from upseal.fleet.server.directory import Directory
from upseal.fleet.server.keyring import Keyring
from upseal.fleet.server.meters import Meters
from upseal.fleet.server.opening import Opening
from upseal.fleet.server.running import _signing_key
from upseal.fleet.server.store import Store, keys, now_ms, units, uploads
from upseal.fleet.server.store.units import NewUnit
from upseal.fleet.server.throttle import Throttle
from upseal.fleet.server.uploads import content as contents
from upseal.fleet.server.uploads import settling as settlings
from upseal.fleet.server.uploads import working
from upseal.fleet.server.uploads.content import Content, Stopped, incoming_folder, stored_folder
from upseal.fleet.server.uploads.settling import Settled, Settling, Waits
from upseal.fleet.server.uploads.unsealing import Unsealing
from upseal.fleet.units import Status, open_receipt, records_digest
from upseal.fleet.uploads.shelf import Shelf
from upseal.fleet.uploads.words import path_of

live, impatient = common.live, common.impatient


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "deployment")
    made.enable()
    return made


def pending(sender, body_id):
    until(lambda: ask(sender, body_id).state is State.PENDING, "pending")


# -- a relay that lies ------------------------------------------------------------------------


def test_a_relay_swaps_changes_and_renames(live, impatient):
    agent, relay = live.enrol("web-1"), enrol_relay(live)
    one, two = Upload.make(live, b"one"), Upload.make(live, b"two")
    plain = Upload.make(live, b"plain", "clear")
    announce(agent, one, two, plain)
    swapped = ticket_for(one.announcement.upload, two.body)
    put(relay, swapped, two.body)
    changed = bytearray(one.body)
    changed[-1] ^= 1
    damaged = ticket_for(one.announcement.upload, bytes(changed))
    put(relay, damaged, bytes(changed))
    other = sealed_bytes(live, b"made up")
    forged = ticket_for(plain.announcement.upload, other)
    put(relay, forged, other)
    nobodys = ticket_for(os.urandom(16), two.body)
    put(relay, nobodys, two.body)
    until(lambda: ("upload-does-not-match", agent.agent) in alarmed(live), "the alarm")
    for ticket in (swapped, damaged, forged, nobodys):
        assert ask(relay, ticket.body_id).state is State.PENDING
    assert rows(live, agent.agent) == []
    for file in (one, two, plain):  # the true ones still get in
        put(relay, file.ticket, file.body)
        result = finished(relay, file.id)
        assert agent.statuses(result) == {file.digest(agent): Status.STORED}
    found = {row.upload: content(live, row) for row in rows(live, agent.agent)}
    assert found == {f.announcement.upload: f.data for f in (one, two, plain)}


def test_a_body_that_is_nobodys_is_opened_once(live, impatient, monkeypatch):
    """However often its upload is announced with something else."""
    opened = []
    real = Unsealing.open

    def counting(self, body, *rest):
        opened.append(body)
        return real(self, body, *rest)

    monkeypatch.setattr(Unsealing, "open", counting)
    agent, relay = live.enrol("web-1"), enrol_relay(live)
    plain = Upload.make(live, b"plain", "clear")
    announce(agent, plain)
    other = sealed_bytes(live, b"made up")
    put(relay, ticket_for(plain.announcement.upload, other), other)
    until(lambda: ("upload-does-not-match", agent.agent) in alarmed(live), "the alarm")
    for i in range(3):
        announce(agent, Upload.make(
            live, b"%d" % i, "clear", upload=plain.announcement.upload
        ))  # fmt: skip
    # The same id, so that no other thread is at it: by then the worker has come round.
    file = Upload.make(live, b"plain", upload=plain.announcement.upload)
    assert send(agent, file).state is State.DONE
    assert len(opened) == 2


def test_an_agent_that_means_two_files_by_one_name(live):
    """The first one stays as it was stored, whatever else is announced and brought."""
    agent, relay = live.enrol("web-1"), enrol_relay(live)
    first = Upload.make(live, b"first", "clear")
    second = Upload.make(live, b"second", "clear", upload=first.announcement.upload)
    announce(agent, first, second)
    for file, status in ((first, Status.STORED), (second, Status.DUPLICATE)):
        wrapped = Upload.make(live, file.data, upload=file.announcement.upload)
        put(relay, wrapped.ticket, wrapped.body)
        assert agent.statuses(finished(relay, wrapped.id)) == {file.digest(agent): status}
    (row,) = rows(live, agent.agent)
    assert content(live, row) == b"first"


def test_a_size_that_is_not_the_files(live, impatient):
    """Announced with the right body: what it opens to must be as long as was said."""
    agent = live.enrol("web-1")
    file = Upload.make(live, b"four")
    wrong = replace(file, announcement=replace(file.announcement, size=5))
    announce(agent, wrong)
    put(agent, file.ticket, file.body)
    until(lambda: ("upload-does-not-match", agent.agent) in alarmed(live), "the alarm")
    assert ask(agent, file.id).state is State.PENDING
    assert rows(live, agent.agent) == []
    announce(agent, file)
    assert agent.statuses(finished(agent, file.id))[file.digest(agent)] is Status.STORED


def test_what_nobody_announces_goes(site, impatient):
    site.configure("[server]\nuploads_unannounced_hours = 0.000001")
    with site.running():
        relay = enrol_relay(site)
        file = Upload.make(site, b"nobody's")
        put(relay, file.ticket, file.body)
        result = finished(relay, file.id)
        assert (result.state, result.problem.name) == (State.PROBLEM, "malformed")
        until(lambda: not list(incoming_folder(site.settings).glob("*.whole")), "its end")


def test_an_agent_brings_its_own_files_only(live, impatient):
    agent, thief, relay = live.enrol("web-1"), live.enrol("thief"), enrol_relay(live)
    file = Upload.make(live, b"of web-1")
    announce(agent, file)
    put(thief, file.ticket, file.body)
    result = finished(thief, file.id)
    assert result.problem.name == "not-enrolled"
    assert ("wrong-agent", thief.agent) in alarmed(live)
    assert ask(relay, file.id).state is State.UNKNOWN  # nobody else is told that
    put(relay, file.ticket, file.body)
    result = finished(relay, file.id)
    assert agent.statuses(result) == {file.digest(agent): Status.STORED}


def test_somebody_else_announces_the_same_body(live):
    """Who overhears an upload's id and digest must not be able to keep it from its agent."""
    agent, squatter, relay = live.enrol("web-1"), live.enrol("squatter"), enrol_relay(live)
    file = Upload.make(live, b"the agent's")
    announce(squatter, file)
    announce(agent, file)
    put(relay, file.ticket, file.body)
    receipts = agent.statuses(finished(relay, file.id))
    assert receipts[file.digest(agent)] is Status.STORED
    assert [content(live, r) for r in rows(live, agent.agent)] == [b"the agent's"]
    # Also if its own announcement is late: then it is sent once more, and taken.
    late = Upload.make(live, b"late")
    announce(squatter, late)
    put(relay, late.ticket, late.body)
    assert file.digest(agent) not in agent.statuses(finished(relay, late.id))
    announce(agent, late)
    put(agent, late.ticket, late.body)
    until(lambda: late.digest(agent) in agent.statuses(ask(agent, late.id)), "its receipt")
    assert {content(live, r) for r in rows(live, agent.agent)} == {b"the agent's", b"late"}


def test_a_revoked_agent(live, impatient):
    agent, relay = live.enrol("web-1"), enrol_relay(live)
    file = Upload.make(live, b"of somebody who was trusted")
    announce(agent, file)
    with live.admin() as deployment:
        serial = deployment.revoke(agent.agent.hex()).manifest.serial
    live.wait_for(serial)
    put(relay, file.ticket, file.body)
    result = finished(relay, file.id)
    assert relay.statuses(result) == {file.digest(agent): Status.REFUSED}
    assert rows(live, agent.agent) == []


def test_an_agent_that_must_seal_by_the_manifest(live):
    agent = live.enrol("web-1")
    with live.admin() as deployment:
        done = deployment.set_level(Level.REQUIRED, clients=[agent.agent.hex()], force=True)
    live.wait_for(done.manifest.serial)
    file = Upload.make(live, b"clear", "clear")
    assert send(agent, file).state is State.DONE
    assert ("clear-though-required", agent.agent) in alarmed(live)


# -- races ------------------------------------------------------------------------------------


def test_bodies_and_relays_race(live):
    agent = live.enrol("web-1")
    relays = [enrol_relay(live, f"relay-{i}") for i in range(4)]
    file = Upload.make(live, os.urandom(200_000))
    again = file.again(live)
    announce(agent, file, again)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(
            lambda pair: put(pair[0], pair[1].ticket, pair[1].body, 64 << 10),
            zip(relays, (file, again, file, again), strict=True),
        ))  # fmt: skip
    said = {}
    for relay, one in zip(relays, (file, again, file, again), strict=True):
        said.setdefault(one.id, set()).add(agent.statuses(finished(relay, one.id))[
            one.digest(agent)
        ])  # fmt: skip
    assert sorted(map(tuple, said.values())) == [(Status.STORED,), (Status.DUPLICATE,)]
    (row,) = rows(live, agent.agent)
    assert content(live, row) == file.data
    for relay in relays:
        left = f"{relay.hop_id.hex()}-*"
        until(lambda left=left: not list(incoming_folder(live.settings).glob(left)), "their end")


# -- keys -------------------------------------------------------------------------------------


def test_a_missing_key_comes_back_and_brings_a_late_announcement(site, tmp_path, monkeypatch):
    """The announcement is a dead letter by then: its replay is what brings it."""
    monkeypatch.setattr(working, "KEY_AGAIN", 3600.0)  # it is told, and does not come round
    (key,) = site.settings.keys.iterdir()
    away = tmp_path / key.name
    with site.running():
        agent = site.enrol("web-1")
        file, told = Upload.make(site, b"late"), Upload.make(site, b"announced")
        announce(agent, told)
        shutil.move(key, away)
        until(lambda: site.metrics()["upseal_server_keys_missing"] == 1, "the missing key")
        unit = agent.unit(file.announcement.encode())
        (result,) = agent.send(sealed(site, unit))
        assert result.state is State.PENDING
        for one in (file, told):
            put(agent, one.ticket, one.body)
            pending(agent, one.id)
        assert rows(site) == []
        shutil.move(away, key)
        for one in (file, told):
            assert agent.statuses(finished(agent, one.id)) == {one.digest(agent): Status.STORED}


def test_retired_and_unknown_keys(site):
    strange = PrivateKey.generate("x25519").public_key
    with site.running():
        agent = site.enrol("web-1")
        file = Upload.make(site, b"to nobody here", recipients=[strange])
        assert send(agent, file).problem.name == "stale-key"
        create(agent, file.ticket)  # begun again: what was said of it holds no more
        assert patch(agent, file.ticket, 0, file.body[:10]).status == 204
        assert ask(agent, file.id).state is State.UNKNOWN
        old = Upload.make(site, b"to an old key")
        with site.admin() as deployment:
            deployment.generate_key()
            deployment.enable(force=True)
            serial = deployment.retire(force=True).manifest.serial
        site.wait_for(serial)
        until(lambda: len(list(site.settings.keys.iterdir())) == 1, "the old key's end")
        assert until(
            lambda: (r := send(agent, old)).problem is not None and r, "the server to notice"
        ).problem.name == "stale-key"  # fmt: skip
        again = old.again(site)
        result = send(agent, again)
        assert agent.statuses(result) == {again.digest(agent): Status.STORED}


def test_one_public_key_operation_at_most(live):
    strangers = [PrivateKey.generate("x25519").public_key for _ in range(16)]
    (ours,) = (key.public() for key in live.manifest().encryption)
    agent = live.enrol("web-1")

    def total():
        return live.metrics().get("upseal_server_unwraps_total", 0.0)

    def unwraps():
        return total() - before

    before = total()
    file = Upload.make(live, b"x", recipients=strangers)
    assert send(agent, file).problem.name == "stale-key"
    assert unwraps() == 0
    file = Upload.make(live, b"x", recipients=[*strangers[:15], ours])
    assert send(agent, file).state is State.DONE
    assert unwraps() == 1
    forged = bytearray(sealed_bytes(live, b"x", recipients=[ours]))
    forged[30] ^= 1  # in what is wrapped
    file = Upload.make(live, b"x", body=bytes(forged))
    assert send(agent, file).problem.name == "malformed"
    assert unwraps() == 2
    assert ("cannot-open", agent.hop_id) in alarmed(live)


@pytest.mark.parametrize("where", [0, 3, 40, -1])
def test_bytes_that_do_not_open(live, where):
    """Its agent has announced just these: a bug, or a lie. Nothing of them is stored."""
    agent = live.enrol("web-1")
    body = bytearray(sealed_bytes(live, os.urandom(40_000)))
    body[where] ^= 0x55
    for data in (bytes(body), bytes(body[:-20_000]), b"USL\x01", b""):
        file = Upload.make(live, b"x" * 40_000, body=data)
        assert send(agent, file).problem.name == "malformed"
    wrong = Upload.make(live, b"x", body=sealed_bytes(live, b"x", context=b"another"))
    assert send(agent, wrong).problem.name == "malformed"
    assert rows(live, agent.agent) == []
    assert not list((stored_folder(live.settings) / ".parts").iterdir())


def test_new_sessions_are_throttled_as_those_of_reports_are(site):
    site.configure("[server]\nunwrap_share = 0.0000001\nunwrap_reserve = 0.0000001")
    with site.running():
        agent, other = site.enrol("web-1"), site.enrol("web-2")
        assert send(agent, Upload.make(site, b"first")).state is State.DONE
        second = Upload.make(site, b"second")
        announce(agent, second)
        put(agent, second.ticket, second.body)
        until(lambda: site.metrics()["upseal_server_throttled_total"] >= 1, "the throttle")
        assert ask(agent, second.id).state is State.PENDING
        assert send(other, Upload.make(site, b"of another")).state is State.DONE
        assert send(agent, Upload.make(site, b"clear", "clear")).state is State.DONE


# -- disks, and time ----------------------------------------------------------------------------


def test_a_full_disk_while_opening(site, monkeypatch):
    monkeypatch.setattr(working, "SOON", 0.05)
    monkeypatch.setattr(working, "LATE", 0.05)
    full = threading.Event()
    write = contents.Sink.write

    def failing(self, data):
        if full.is_set() and self.size > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(contents.Sink, "write", failing)
    with site.running():
        agent = site.enrol("web-1")
        full.set()
        file = Upload.make(site, os.urandom(500_000))
        announce(agent, file)
        put(agent, file.ticket, file.body)
        trouble = 'upseal_server_uploads_total{form="sealed",status="trouble"}'
        until(lambda: site.metrics().get(trouble, 0) >= 2, "tries")
        assert ask(agent, file.id).state is State.PENDING
        assert rows(site) == []
        unit = agent.unit(b"reports go on")
        assert agent.statuses(agent.send(sealed(site, unit))[0]) == {unit.digest: Status.STORED}
        assert site.get("/readyz").status == 200
        full.clear()
        assert agent.statuses(finished(agent, file.id)) == {file.digest(agent): Status.STORED}
        assert content(site, rows(site)[0]) == file.data
        assert not list((stored_folder(site.settings) / ".parts").iterdir())


def test_a_disk_that_is_nearly_full_is_not_filled(site, monkeypatch):
    made = Content(site.folder / "uploads" / "stored", 1000)
    facts = os.statvfs(made.folder)
    made.need(0)
    with pytest.raises(OSError, match="space"):
        made.need(facts.f_bavail * facts.f_frsize + 1)


def test_sizes_beyond_what_is_taken(site):
    site.configure("[server]\nupload_bytes = 100000\nupload_size = 80000")
    with site.running():
        agent, relay = site.enrol("web-1"), enrol_relay(site)
        huge = ticket_for(os.urandom(16), b"")

        def declare(sender, size):
            ticket = type(huge)(os.urandom(16), os.urandom(32), "clear", size)
            problem = create(sender, ticket).problem()
            return None if problem is None else problem.name

        assert declare(agent, 1 << 40) == "too-large"
        assert declare(agent, 50_001) == "too-large"  # half of it is the most for one agent
        assert declare(relay, 80_001) == "too-large"
        assert declare(relay, 80_000) is None
        assert declare(agent, 20_001) == "full"  # reserved by what is declared
        assert declare(agent, 20_000) is None


def test_a_long_file_of_zeros(live):
    data = bytes(48 << 20)
    agent = live.enrol("web-1")
    file = Upload.make(live, data)
    announce(agent, file)
    put(agent, file.ticket, file.body, 8 << 20)
    assert finished(agent, file.id).state is State.DONE
    assert content(live, rows(live, agent.agent)[0]) == data


def test_a_long_opening_holds_up_nobody_and_ends_with_the_server(site, monkeypatch):
    begun, stopped = threading.Event(), threading.Event()
    write = contents.Sink.write

    def endless(self, data):
        if self.size > 100_000 and not stopped.is_set():
            begun.set()
            assert self._stop.wait(30)
            stopped.set()
        return write(self, data)

    monkeypatch.setattr(contents.Sink, "write", endless)
    data = os.urandom(400_000)
    with site.running():
        agent = site.enrol("web-1")
        file = Upload.make(site, data)
        announce(agent, file)
        put(agent, file.ticket, file.body)
        assert begun.wait(30)
        assert ask(agent, file.id).state is State.PENDING
        unit = agent.unit(b"reports go on")
        assert agent.statuses(agent.send(sealed(site, unit))[0]) == {unit.digest: Status.STORED}
        small = Upload.make(site, b"and small files")
        assert send(agent, small).state is State.DONE
        taken_back = tus(agent, "DELETE", path_of(file.id))  # not while it is being opened
        assert (taken_back.status, taken_back.problem().name) == (423, "busy")
    assert stopped.is_set()
    assert not list((stored_folder(site.settings) / ".parts").iterdir())
    with site.running():
        agent.site = site
        assert agent.statuses(finished(agent, file.id)) == {file.digest(agent): Status.STORED}
        assert {content(site, row) for row in rows(site)} == {data, b"and small files"}


def test_a_new_process_goes_on_where_the_last_one_was(site):
    with site.running():
        agent = site.enrol("web-1")
        unannounced, half = Upload.make(site, b"whole"), Upload.make(site, os.urandom(50_000))
        done = Upload.make(site, b"done")
        result = send(agent, done)
        announce(agent, half)
        put(agent, unannounced.ticket, unannounced.body)
        pending(agent, unannounced.id)
        create(agent, half.ticket)
        assert patch(agent, half.ticket, 0, half.body[:20_000]).status == 204
    part = stored_folder(site.settings) / ".parts" / "left.part"
    part.write_bytes(b"by a killed process")
    with site.running():
        assert not part.exists()
        assert agent.statuses(ask(agent, done.id)) == agent.statuses(result)  # from the tables
        assert ask(agent, unannounced.id).state is State.PENDING
        assert ask(agent, half.id).state is State.UNKNOWN
        announce(agent, unannounced)
        assert patch(agent, half.ticket, 20_000, half.body[20_000:]).status == 204
        for file in (unannounced, half):
            assert agent.statuses(finished(agent, file.id)) == {file.digest(agent): Status.STORED}


def test_on_postgresql_and_in_a_folder_elsewhere(postgresql, tmp_path):
    site = Site(tmp_path / "deployment", database=postgresql.database())
    site.configure(f'[server]\nuploads_folder = "{tmp_path / "elsewhere"}"')
    site.enable()
    with site.running():
        agent, relay = site.enrol("web-1"), enrol_relay(site)
        for form in ("sealed", "clear"):
            file = Upload.make(site, os.urandom(50_000), form)
            assert agent.statuses(send(agent, file)) == {file.digest(agent): Status.STORED}
            again = file.again(site, form="sealed")
            announce(agent, again)
            put(relay, again.ticket, again.body)
            receipts = agent.statuses(finished(relay, again.id))
            assert receipts[again.digest(agent)] is Status.DUPLICATE
    assert len(rows(site)) == 2
    assert len(list((tmp_path / "elsewhere" / "stored" / agent.agent.hex()).iterdir())) == 2
    assert not (site.folder / "uploads").exists()


# -- every kill point ---------------------------------------------------------------------------


class Killed(BaseException):
    """As if the process were gone here."""


class Bench:
    """A server's parts for uploads, without a server: made anew as by a new process."""

    def __init__(self, site):
        self.site = site
        self.settings = site.settings

    def __enter__(self):
        self.store = Store.open(self.settings.database)
        throttle = Throttle()
        keyring = Keyring(self.settings.keys, 100, throttle)
        with self.store.reading() as db:
            keyring.refresh(keys.listing(db, keys.SERVER), 0)
        opening = Opening(self.site.deployment, keyring, throttle, Meters(Metrics("server")))
        self.content = Content(stored_folder(self.settings), 1)
        self.content.clear()
        self.shelf = Shelf(incoming_folder(self.settings), LIMITS)
        unsealing = Unsealing(self.site.deployment, opening, keyring, throttle)
        self.settling = Settling(
            self.site.deployment, self.store, Directory(self.store), self.content, unsealing,
            _signing_key(self.settings), self.site.manifest,
        )  # fmt: skip
        return self

    def __exit__(self, *_):
        self.shelf.close()
        self.store.close()

    def announce(self, agent, *files):
        records = [file.announcement.encode() for file in files]
        agent.sequence += 1
        unit = NewUnit(
            agent.agent, agent.epoch, agent.sequence, now_ms(), Level.OPTIONAL.number, 2,
            records_digest(records), records, None, None, now_ms(),
        )  # fmt: skip
        with self.store.writing() as db:
            statuses = units.add(db, [unit])
            return uploads.note(
                db, self.site.deployment, uploads.announced_in([unit], statuses)
            )  # fmt: skip

    def bring(self, sender, file):
        held = self.shelf.create(sender.hop_id, sender.role, file.ticket)
        self.shelf.append(held, 0, file.body)
        assert self.shelf.complete(held)
        return held

    def settle(self, held=None):
        held = held or self.shelf.whole()[0]
        found = self.settling.settle(held, patient=False, stop=threading.Event())
        self.shelf.remove(held)
        return found


@pytest.fixture
def enrolled(site):
    with site.running():
        return site.enrol("web-1"), enrol_relay(site)


class Steps:
    """Counts what is done to disk and database, in order, and dies at one of them."""

    def __init__(self, monkeypatch, site):
        self.done, self.die_at = [], None
        for name in ("fsync", "replace", "link", "unlink"):
            self._watch(monkeypatch, contents.os, name, name)
        self._watch(monkeypatch, contents, "sync_directory", "sync folder")
        self._watch(monkeypatch, uploads, "put", "row")
        self._watch(monkeypatch, settlings, "signed_receipt", "receipt")

    def _watch(self, monkeypatch, where, name, called):
        real = getattr(where, name)

        def step(*args, **named):
            if self.die_at is not None and len(self.done) >= self.die_at:
                raise Killed(called)
            of_folder = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            result = real(*args, **named)
            if not of_folder:
                self.done.append(called)
            return result

        monkeypatch.setattr(where, name, step)


@pytest.mark.parametrize("form", ["sealed", "clear"])
def test_every_kill_point(site, enrolled, monkeypatch, form):
    agent, _ = enrolled
    steps = Steps(monkeypatch, site)
    file = Upload.make(site, os.urandom(100_000), form)
    with Bench(site) as bench:
        bench.announce(agent, file)
        bench.bring(agent, file)
        steps.done.clear()
        bench.settle()
        order = [step for step in steps.done if step != "unlink"]
    count = len(steps.done)
    first = order.index("fsync") if form == "sealed" else order.index("link")
    assert first < order.index("replace") < order.index("sync folder")
    assert order.index("sync folder") < order.index("row") < order.index("receipt")
    assert count > 4
    for moment in range(count + 1):
        file = Upload.make(site, os.urandom(100_000), form)
        with Bench(site) as bench:
            bench.announce(agent, file)
            held = bench.bring(agent, file)
            steps.done.clear()
            steps.die_at = moment
            with suppress(Killed):
                bench.settling.settle(held, patient=False, stop=threading.Event())
            steps.die_at = None
        said = None
        for _ in range(2):
            with Bench(site) as bench:  # the next process
                said = bench.settle() if bench.shelf.whole() else said
                row = {row.upload: row for row in rows(site)}[file.announcement.upload]
                assert content(site, row) == file.data
                assert not list((stored_folder(site.settings) / ".parts").iterdir())
                receipts = [_opened(site, receipt) for receipt in said.receipts]
                assert receipts == [(file.digest(agent), Status.STORED)]
    assert len(rows(site)) == count + 2


def _opened(site, receipt):
    known = {key.key_id: key for key in site.manifest().receipt_keys}
    found = open_receipt(receipt, known, site.deployment)
    return found.statement_digest, Status(found.status)


def test_a_database_that_fails_leaves_no_receipt(site, enrolled, monkeypatch):
    agent, _ = enrolled
    file = Upload.make(site, b"not yet")
    with Bench(site) as bench:
        bench.announce(agent, file)
        held = bench.bring(agent, file)
        real = uploads.put
        monkeypatch.setattr(uploads, "put", _raising(OSError("the database is away")))
        with pytest.raises(OSError, match="away"):
            bench.settle(held)
        monkeypatch.setattr(uploads, "put", real)
        assert rows(site) == []
        assert _opened(site, bench.settle(held).receipts[0])[1] is Status.STORED


def _raising(error):
    def fail(*_):
        raise error

    return fail


def test_another_disk_for_what_comes_in(site, enrolled, monkeypatch):
    """Where no link can be made, bytes are copied, and synced as well."""
    agent, _ = enrolled
    steps = Steps(monkeypatch, site)
    monkeypatch.setattr(contents.os, "link", _raising(OSError(errno.EXDEV, "another disk")))
    file = Upload.make(site, os.urandom(3_000_000), "clear")
    with Bench(site) as bench:
        bench.announce(agent, file)
        held = bench.bring(agent, file)
        steps.done.clear()
        stop = threading.Event()
        stop.set()
        with pytest.raises(Stopped):
            bench.settling.settle(held, patient=False, stop=stop)
        bench.settle(held)
        assert steps.done.index("fsync") < steps.done.index("replace")
    assert content(site, rows(site)[0]) == file.data


def test_what_waits_says_so(site, enrolled):
    agent, relay = enrolled
    with Bench(site) as bench:
        file = Upload.make(site, b"x")
        held = bench.bring(relay, file)
        with pytest.raises(Waits) as waits:
            bench.settle(held)
        assert waits.value.why == "announcement"
        bench.announce(agent, Upload.make(site, b"y", upload=file.announcement.upload))
        for patient in (True, False):  # what fits may be on its way: patience first
            with pytest.raises(Waits):
                bench.settling.settle(held, patient=patient, stop=threading.Event())
            expected = set() if patient else {("upload-does-not-match", agent.agent)}
            assert alarmed(site) == expected
        bench.announce(agent, file)
        shutil.move(site.settings.keys, site.folder / "away")
    try:
        with Bench(site) as bench, pytest.raises(Waits) as waits:
            bench.settle()
    finally:
        shutil.move(site.folder / "away", site.settings.keys)
    assert waits.value.why == "key"
    with Bench(site) as bench:
        assert bench.settle().stored[0].upload == file.announcement.upload


def test_who_takes_sealed_bytes_for_a_file_keeps_nothing_from_their_agent(site, enrolled):
    """Their agent's body waits for its key, whatever else somebody has announced it to be."""
    agent, relay = enrolled
    with site.running():
        squatter = site.enrol("squatter")
    file = Upload.make(site, b"the agent's")
    taken = Upload.make(site, file.body, "clear", upload=file.announcement.upload)
    assert taken.id == file.id
    shutil.move(site.settings.keys, site.folder / "away")
    try:
        with Bench(site) as bench:
            bench.announce(squatter, taken)
            bench.announce(agent, file)
            held = bench.bring(relay, file)
            with pytest.raises(Waits) as waits:
                bench.settle(held)
            assert waits.value.why == "key"
    finally:
        shutil.move(site.folder / "away", site.settings.keys)
    with Bench(site) as bench:
        said = dict(_opened(site, receipt) for receipt in bench.settle().receipts)
    assert said[file.digest(agent)] is Status.STORED
    assert [content(site, row) for row in rows(site, agent.agent)] == [b"the agent's"]


@contextmanager
def at_work(bench, settling=None):
    """The threads, over the shelf of a bench."""
    made = working.Working(
        bench.shelf, settling or bench.settling, lambda *_: None, Meters(Metrics("server")), 3600.0
    )
    made.start()
    try:
        yield made
    finally:
        made.close()


def idle(threads):
    with threads._changed:
        return not threads._busy and not threads._ready


def test_bodies_that_are_taken_back_are_forgotten(site, enrolled):
    """Nobody fills the memory by beginning and ending uploads, or by announcing them often."""
    agent, _ = enrolled
    file = Upload.make(site, b"x")
    with Bench(site) as bench, at_work(bench) as threads:
        threads.add(bench.bring(agent, file))
        for _ in range(20):
            until(lambda: idle(threads), "the worker")
            threads.announced([file.announcement.upload])
        until(lambda: idle(threads), "the worker")
        threads.prune()
        assert (len(threads), len(threads._timed)) == (1, 1)
        bench.shelf.remove(bench.shelf.whole()[0])
        threads.prune()
        assert (len(threads), threads._timed, threads._of_upload) == (0, [], {})


def test_a_body_that_somebody_deletes_is_sent_again(site, enrolled):
    with Bench(site) as bench:
        held = bench.bring(enrolled[0], Upload.make(site, b"x"))
        held.path.unlink()
        with at_work(bench) as threads:
            until(lambda: len(threads) == 0, "its end")
        assert bench.shelf.find(held.hop, held.body_id) is None


class Looks:
    """In the place of `Settling`: what its threads ask it to do, and what happens meanwhile."""

    def __init__(self, meanwhile):
        self.meanwhile = meanwhile
        self.count, self.running, self.both = 0, set(), False

    def settle(self, held, *, patient, stop):
        self.both |= held.ticket.upload in self.running
        self.running.add(held.ticket.upload)
        self.count += 1
        try:
            return self.meanwhile(held)
        finally:
            self.running.discard(held.ticket.upload)


def test_bodies_of_one_upload_take_turns(site, enrolled):
    with Bench(site) as bench:

        def slowly(_):
            threading.Event().wait(0.02)
            return Settled([], None, "stored", [])

        looks = Looks(slowly)
        upload = os.urandom(16)
        bodies = [Upload.make(site, b"%d" % i, "clear", upload=upload) for i in range(6)]
        for file in bodies:
            bench.bring(enrolled[1], file)
        with at_work(bench, looks) as threads:
            until(lambda: len(threads) == 0, "all of them")
        assert (looks.count, looks.both) == (6, False)


def test_an_announcement_that_comes_while_its_body_is_looked_at(site, enrolled, monkeypatch):
    monkeypatch.setattr(working, "GRACE", 3600.0)  # so that nothing else makes it look again
    agent, _ = enrolled
    with Bench(site) as bench:

        def announced_meanwhile(held):
            if looks.count == 1:
                threads.announced([held.ticket.upload])
                raise Waits("announcement")
            return Settled([], None, "stored", [])

        looks = Looks(announced_meanwhile)
        with at_work(bench, looks) as threads:
            threads.add(bench.bring(agent, Upload.make(site, b"x")))
            until(lambda: len(threads) == 0, "a second look at once")
        assert looks.count == 2

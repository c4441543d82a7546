# SPDX-License-Identifier: Apache-2.0
"""A decrypting relay seals whole files that came in clear: once each, and never loses which."""

from __future__ import annotations

import json
import os
import threading

import fleet_relay_uploads_support as common
import pytest
from fleet_relay_support import eventually, make_folder, running, senders, settings_for
from fleet_relay_uploads_support import (
    File,
    Status,
    bring,
    file_parent,
    house_of,
    metrics,
    own,
    receipt_of,
    result_of,
    settled,
    state_of,
    status_in,
)
from fleet_support import Site

from upseal import Opener, PrivateKey
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result, State
from upseal.fleet.relay.source import Lost, Source
from upseal.fleet.relay.wrapping import DiskFull, Stopped, Wraps
from upseal.fleet.units import fleet_context

CONTENT = os.urandom(200_000)
site, parent, decrypting = common.site, common.parent, common.decrypting


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    with house_of(tmp_path_factory.mktemp("house"), "decrypting") as made:
        yield made


def test_clear_bodies_are_sealed_for_the_last_hop(site, parent, decrypting):
    before = metrics(decrypting)
    with senders(site, decrypting.url) as (sender,):
        files = [parent.file(sender, content, "clear") for content in (CONTENT, b"", b"x" * 16384)]
        files.append(parent.file(sender, CONTENT))
        for file in files:
            bring(sender, file)
            result = result_of(sender, file)
            assert result.body == file.id and status_in(result, file) is Status.STORED
    assert {f.ticket.upload: f.content for f in files} == parent.stored
    assert {form for form, _ in parent.arrived_files} == {"sealed"}
    assert files[-1].body in [body for _, body in parent.arrived_files], "as it came"
    assert all(CONTENT[:64] not in body for _, body in parent.arrived_files)
    settled(decrypting)
    after = metrics(decrypting)
    assert after["uploads_sealed_total"] - before.get("uploads_sealed_total", 0) == 3


def test_a_disk_without_room_for_the_sealed_body(site, parent, decrypting, monkeypatch):
    """It waits for room, and never goes up in clear."""
    again = 'uploads_again_total{why="full"}'
    before = metrics(decrypting).get(again, 0)
    monkeypatch.setattr(decrypting.state.wraps, "_min_free", 1 << 60)
    with senders(site, decrypting.url) as (sender,):
        file, other = parent.file(sender, CONTENT, "clear"), parent.file(sender, CONTENT)
        bring(sender, file)
        eventually(lambda: metrics(decrypting).get(again, 0) > before + 1)
        assert state_of(sender, file) is State.PENDING
        bring(sender, other)
        assert receipt_of(sender, other) is Status.STORED, "sealed ones go on"
        monkeypatch.setattr(decrypting.state.wraps, "_min_free", 0)
        assert receipt_of(sender, file) is Status.STORED
    assert [form for form, _ in parent.arrived_files] == ["sealed", "sealed"]


def test_two_clients_with_the_same_clear_body(site, parent, decrypting):
    parent.unwelcome = lambda ticket: Problem("full", retry_after=0)
    with senders(site, decrypting.url, 2) as (first, second):
        file = parent.file(first, CONTENT, "clear")
        for sender in (first, second):
            bring(sender, file)
        eventually(lambda: decrypting.state.wraps.size)
        parent.unwelcome = lambda ticket: None
        assert receipt_of(first, file) is receipt_of(second, file) is Status.STORED
    assert len(parent.arrived_files) == 1


def test_while_encryption_is_disabled_clear_bodies_pass(tmp_path):
    site = Site()
    with (
        file_parent(site, tmp_path / "parent") as parent,
        own(site, tmp_path, parent, "relay", decrypting=True, accepts_sealed=True) as relay,
        senders(site, relay.url) as (sender,),
    ):
        file = parent.file(sender, CONTENT, "clear")
        bring(sender, file)
        assert receipt_of(sender, file) is Status.STORED
        assert parent.arrived_files == [("clear", CONTENT)]
        settled(relay)


def test_what_is_on_its_way_in_clear_when_encryption_is_enabled(tmp_path):
    """The rest of it does not go so, and it goes again, sealed."""
    site = Site()
    with (
        file_parent(site, tmp_path / "parent") as parent,
        own(site, tmp_path, parent, "relay", decrypting=True) as relay,
        senders(site, relay.url) as (sender,),
    ):
        file = parent.file(sender, os.urandom(500_000), "clear")

        def begun():
            return any(held.offset for held in parent.shelf.by_body(file.id))

        parent.holding = lambda: begun() and not relay.control.current().active
        bring(sender, file)
        eventually(begun)
        (held,) = parent.shelf.by_body(file.id)
        site.enable()
        site.sign()
        assert receipt_of(sender, file) is Status.STORED
        assert [form for form, _ in parent.arrived_files] == ["sealed"]
        assert 0 < held.offset < len(file.content)
        settled(relay)


def test_a_retired_key_is_sealed_for_anew(tmp_path):
    site = Site()
    site.enable()
    with (
        file_parent(site, tmp_path / "parent") as parent,
        own(site, tmp_path, parent, "relay", decrypting=True) as relay,
        senders(site, relay.url) as (sender,),
    ):
        parent.judge_file = lambda held: None
        file = parent.file(sender, CONTENT, "clear")
        bring(sender, file)
        eventually(parent.shelf.whole)
        site.rotate()
        site.private = site.private[-1:]
        site.sign()
        parent.judge_file = parent.honest_file
        parent.judge_all()
        assert receipt_of(sender, file) is Status.STORED
        settled(relay)
        bodies = [body for _, body in parent.arrived_files]
        assert len(bodies) == len(set(bodies)) == 2
        assert parent.stored == {file.ticket.upload: CONTENT}
        # What the client sealed itself is the client's to seal anew.
        old = File(
            site, sender.me.agent, CONTENT, "sealed", [PrivateKey.generate("x25519").public_key]
        )
        parent.announced_files[old.ticket.upload] = old
        bring(sender, old)
        assert result_of(sender, old).problem.name == "stale-key"


def test_a_sealed_body_that_the_disk_changes_is_made_anew(site, parent, decrypting):
    parent.unwelcome = lambda ticket: Problem("full", retry_after=0)
    with senders(site, decrypting.url) as (sender,):
        for damage in (lambda path: path.write_bytes(b"?" + path.read_bytes()[1:]),
                       lambda path: path.unlink()):  # fmt: skip
            parent.unwelcome = lambda ticket: Problem("full", retry_after=0)
            file = parent.file(sender, CONTENT, "clear")
            bring(sender, file)
            wrapped = eventually(lambda file=file: decrypting.state.wraps.find(file.id))
            damage(wrapped.path)
            parent.unwelcome = lambda ticket: None
            assert receipt_of(sender, file) is Status.STORED
            settled(decrypting)


def test_what_is_wrong_with_a_clear_body_is_its_senders_to_know(site, parent, decrypting):
    parent.judge_file = lambda held: Result.failed(held.body_id, Problem("malformed"))
    with senders(site, decrypting.url) as (sender,):
        file = parent.file(sender, CONTENT, "clear")
        bring(sender, file)
        result = result_of(sender, file)
        assert (result.body, result.problem.name) == (file.id, "malformed")


def test_a_parent_that_takes_nothing_sealed_is_waited_for(site, parent, decrypting):
    refusals = iter([Problem("sealed-not-accepted")] * 3)
    parent.unwelcome = lambda ticket: next(refusals, None)
    with senders(site, decrypting.url) as (sender,):
        file = parent.file(sender, CONTENT, "clear")
        bring(sender, file)
        assert receipt_of(sender, file) is Status.STORED


# -- the folder of sealed bodies ------------------------------------------------------------------


def sealed(site, folder, content=CONTENT, stop=None, **options):
    """A source, and what was sealed of it."""
    site.manifest.active or site.enable()
    source = folder / "source"
    source.write_bytes(content)
    file = File(site, b"a" * 16, content, "clear")
    wraps = Wraps(folder / "wraps", **options)
    made = wraps.make(file.id, file.ticket, source, site.manifest, stop or threading.Event())
    return wraps, file, source, made


def test_what_was_sealed_of_a_body_that_is_gone_goes_too(site, parent, tmp_path):
    """As after a kill while its sender took it back."""
    member = site.add_relay("left-over", decrypts=True)
    folder = make_folder(site, tmp_path / "relay", member)
    settings = settings_for(folder, parent.url, decrypting=True)
    (folder / "uploads-sealed").mkdir()
    made = Wraps(folder / "uploads-sealed")
    file = File(site, b"a" * 16, CONTENT, "clear")
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    made.make(file.id, file.ticket, source, site.manifest, threading.Event())
    with running(settings) as relay:
        settled(relay)


def test_a_sealed_body_is_found_again(tmp_path):
    site = Site()
    wraps, file, _, made = sealed(site, tmp_path)
    again = Wraps(tmp_path / "wraps")
    assert wraps.find(file.id) == again.find(file.id) == made
    assert again.size == made.ticket.size == made.path.stat().st_size
    assert made.ticket.form == "sealed" and made.ticket.upload == file.ticket.upload
    assert again.sound(made, threading.Event())
    assert made.path.stat().st_mode & 0o777 == 0o600
    with open(made.path, "rb") as opened:
        reader = Opener(site.private).reader(opened, fleet_context(site.deployment))
        assert reader.read() == CONTENT
    again.keep_only([])
    assert not list((tmp_path / "wraps").iterdir())


def test_what_was_not_finished_is_made_anew(tmp_path):
    site = Site()
    wraps, file, source, made = sealed(site, tmp_path)
    path, sidecar = made.path, made.path.with_suffix(".json")
    for damage in (
        lambda: sidecar.unlink(),  # killed before the sidecar
        lambda: path.unlink(),
        lambda: sidecar.write_bytes(b"{"),
        lambda: sidecar.write_bytes(b'{"version": 2}'),
        lambda: sidecar.write_bytes(json.dumps({"version": 1, "size": "x"}).encode()),
        lambda: os.truncate(path, 10),
    ):
        damage()
        (made.path.parent / f"{file.id.hex()}.{'0' * 16}.part").write_bytes(b"half")
        wraps = Wraps(tmp_path / "wraps")
        assert wraps.find(file.id) is None and not list((tmp_path / "wraps").iterdir())
        before = made
        made = wraps.make(file.id, file.ticket, source, site.manifest, threading.Event())
        assert made.ticket.body_sha256 != before.ticket.body_sha256, "another session, another salt"


def test_what_cannot_be_sealed_leaves_nothing(tmp_path):
    site = Site()
    with pytest.raises(DiskFull):
        sealed(site, tmp_path, min_free=1 << 60)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        sealed(site, tmp_path, stop=stop)
    wraps, file, source, made = sealed(site, tmp_path)
    with pytest.raises(Stopped):
        wraps.sound(made, stop)
    wraps.drop(file.id)
    source.write_bytes(CONTENT[1:])
    for _ in range(2):
        with pytest.raises(Lost):
            wraps.make(file.id, file.ticket, source, site.manifest, threading.Event())
        source.unlink(missing_ok=True)
    assert not list((tmp_path / "wraps").iterdir()) and wraps.size == 0


def test_a_source_is_as_long_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with Source(path, 10) as source:
        assert source.read(2, 3) == b"234" and source.read(8, 100) == b"89"
        assert source.read(10, 1) == b""
        os.truncate(path, 5)
        with pytest.raises(Lost):
            source.read(0, 10)
    for size in (4, 6):
        with pytest.raises(Lost):
            Source(path, size)
    with pytest.raises(Lost):
        Source(tmp_path / "none", 0)

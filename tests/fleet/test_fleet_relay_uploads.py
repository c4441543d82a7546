# SPDX-License-Identifier: Apache-2.0
"""Whole files at a relay: taken, kept until the receipt is durable here, passed on once."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from concurrent.futures import Future

import fleet_relay_uploads_support as common
import pytest
from fleet_relay_support import (
    eventually,
    make_folder,
    relay_of,
    running,
    senders,
    settings_for,
)
from fleet_relay_uploads_support import (
    UPLOADS_QUICK,
    File,
    Status,
    bring,
    create,
    delete,
    head,
    house_of,
    metrics,
    own,
    patch,
    receipt_of,
    result_of,
    settled,
    state_of,
)
from fleet_support import Site

from upseal.cli import main
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result, State
from upseal.fleet.identity import SigningKey
from upseal.fleet.relay import rows
from upseal.fleet.relay.groupcommit import connect
from upseal.fleet.relay.queue import Queue
from upseal.fleet.relay.settings import Settings, toml_of
from upseal.fleet.settings import SettingsError

CONTENT = os.urandom(200_000)
site, parent, decrypting = common.site, common.parent, common.decrypting


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A parent, a passing relay, and a decrypting one."""
    with house_of(tmp_path_factory.mktemp("house"), "passing", "decrypting") as made:
        yield made


@pytest.fixture
def passing(house, parent):
    yield house[2][0]
    settled(house[2][0])


# -- passing on --------------------------------------------------------------------------


def test_files_pass_as_they_came(site, parent, passing):
    before = metrics(passing)
    with senders(site, passing.url) as (sender,):
        files = [parent.file(sender, CONTENT), parent.file(sender, CONTENT, "clear")]
        files += [parent.file(sender, b""), parent.file(sender, b"", "clear")]
        for file in files:
            bring(sender, file)
            assert receipt_of(sender, file) is Status.STORED
    assert {f.ticket.upload: f.content for f in files} == parent.stored
    came = sorted((form, body) for form, body in parent.arrived_files)
    assert came == sorted((f.ticket.form, f.body) for f in files)
    settled(passing)
    after = metrics(passing)
    count = {name: after[name] - before.get(name, 0) for name in after}
    assert count['uploads_in_total{form="sealed"}'] == count['uploads_in_total{form="clear"}'] == 2
    assert count['uploads_finished_total{state="done"}'] == 4
    assert count['uploads_sent_total{how="passed"}'] == 4
    assert count["upload_bytes_in_total"] == sum(f.ticket.size for f in files)
    assert count["upload_bytes_sent_total"] == sum(f.ticket.size for f in files)


def test_what_results_say(site, parent, passing):
    parent.judge_file = lambda held: None
    with senders(site, passing.url, 2) as (sender, stranger):
        file = parent.file(sender, CONTENT)
        assert state_of(sender, file) is State.UNKNOWN
        assert create(sender, file).status == 201
        assert patch(sender, file, 0, 1000).status == 204
        assert state_of(sender, file) is State.UNKNOWN, "bytes are missing"
        bring(sender, file)
        assert state_of(sender, file) is State.PENDING
        assert state_of(stranger, file) is State.UNKNOWN, "another client's"
        eventually(parent.shelf.whole)
        assert state_of(sender, file) is State.PENDING
        parent.judge_file = parent.honest_file
        parent.judge_all()
        assert receipt_of(sender, file) is Status.STORED
        settled(passing)
        # Nobody sends it again: it is said to be here, and nothing is.
        assert create(sender, file).status == 201
        answer = head(sender, file)
        assert answer.headers["upload-offset"] == answer.headers["upload-length"]
        bring(sender, file)
        assert receipt_of(sender, file) is Status.STORED
    assert len(parent.arrived_files) == 1


def test_who_waits_is_told_at_once(site, parent, passing):
    parent.judge_file = lambda held: None
    with senders(site, passing.url) as (sender,):
        file = parent.file(sender, CONTENT)
        bring(sender, file)
        eventually(parent.shelf.whole)
        threading.Timer(0.1, lambda: (setattr(parent, "judge_file", parent.honest_file),
                                      parent.judge_all())).start()  # fmt: skip
        (answer,) = sender.ask(file.id, wait=25)
        assert answer.state is State.DONE, "one answer, held until there is news"


def test_two_clients_with_the_same_body(site, parent, passing):
    parent.unwelcome = lambda ticket: Problem("full", retry_after=0)
    with senders(site, passing.url, 2) as (first, second):
        file = parent.file(first, CONTENT)
        for sender in (first, second):
            bring(sender, file)
            assert state_of(sender, file) is State.PENDING
        assert passing.state.shelf.usage().bodies == 2
        parent.unwelcome = lambda ticket: None
        assert receipt_of(first, file) is receipt_of(second, file) is Status.STORED
    assert len(parent.arrived_files) == 1


def test_a_second_client_is_ready_while_the_first_ones_body_goes(
    site, parent, passing, monkeypatch
):
    with senders(site, passing.url, 2) as (first, second):
        file = parent.file(first, CONTENT)
        create(second, file)
        patch(second, file, 0, 1000)
        jobs, shelf = passing.uploads.carrying._jobs, passing.state.shelf
        forget = jobs.forget

        def forgetting(job):
            monkeypatch.setattr(jobs, "forget", forget)
            patch(second, file, 1000, len(file.body))
            eventually(shelf.whole)
            forget(job)

        monkeypatch.setattr(jobs, "forget", forgetting)
        bring(first, file)
        assert receipt_of(first, file) is receipt_of(second, file) is Status.STORED
        settled(passing)
    assert len(parent.arrived_files) == 1


def test_the_same_body_declared_as_something_else_does_no_harm(site, parent, passing):
    """Who overhears sealed bytes can bring them as clear ones; the honest client loses nothing."""
    parent.unwelcome = lambda ticket: Problem("full", retry_after=0)
    with senders(site, passing.url, 2) as (liar, honest):
        file = parent.file(honest, CONTENT)
        lie = File.__new__(File)
        lie.__dict__ |= file.__dict__
        ticket = file.ticket
        lie.ticket = type(ticket)(ticket.upload, ticket.body_sha256, "clear", ticket.size)
        bring(liar, lie)
        bring(honest, file)
        eventually(lambda: len(passing.state.shelf.whole()) == 2)
        parent.unwelcome = lambda ticket: None
        assert receipt_of(honest, file) is Status.STORED
    assert parent.arrived_files == [("sealed", file.body)]


def test_a_chain_of_relays(site, parent, decrypting, tmp_path):
    with (
        relay_of(site, tmp_path, decrypting.url, "below", uploads=UPLOADS_QUICK) as below,
        senders(site, below.url) as (sender,),
    ):
        for form in ("sealed", "clear"):
            file = parent.file(sender, CONTENT, form)
            bring(sender, file)
            assert receipt_of(sender, file) is Status.STORED
        settled(below)
    assert [form for form, _ in parent.arrived_files] == ["sealed", "sealed"]


# -- a parent that does not do what it should ------------------------------------------------


def test_a_lying_parent_gets_nothing_deleted(site, parent, passing):
    forger = SigningKey.generate()
    lies = iter(
        [
            lambda file: [parent.receipt_for(file, key=forger)],
            lambda file: [],
            lambda file: [parent.receipt_for(file), parent.receipt_for(file, key=forger)],
            lambda file: [b"x" * 139],
            lambda file: [Site().receipt.public.key_id + bytes(131)],
            lambda file: [parent.receipt_for(file)] * 17,
        ]
    )
    told = []

    def say(result):
        lie = next(lies, None) if result.state is State.DONE else None
        if lie is None:
            return result
        assert passing.state.shelf.whole(), "it is still here"
        told.append(lie)
        return Result.done(result.body, lie(file))

    with senders(site, passing.url) as (sender,):
        file = parent.file(sender, CONTENT)
        parent.say = say
        bring(sender, file)
        assert receipt_of(sender, file) is Status.STORED
    assert len(told) == 6
    assert metrics(passing)['uploads_again_total{why="receipts"}'] == 6


def test_a_parent_that_forgets_gets_it_again(site, parent, passing):
    parent.judge_file = lambda held: None
    with senders(site, passing.url) as (sender,):
        file = parent.file(sender, CONTENT)
        bring(sender, file)
        (held,) = eventually(parent.shelf.whole)
        parent.judge_file = parent.honest_file
        parent.shelf.remove(held)
        assert receipt_of(sender, file) is Status.STORED
    assert len(parent.arrived_files) == 2


@pytest.mark.parametrize("name", ["stale-key", "malformed", "too-large", "sealed-not-accepted"])
def test_problems_of_a_body_are_handed_down(site, parent, passing, name):
    parent.judge_file = lambda held: Result.failed(held.body_id, Problem(name))
    with senders(site, passing.url) as (sender,):
        file = parent.file(sender, CONTENT)
        bring(sender, file)
        assert result_of(sender, file).problem.name == name
        settled(passing)
        # It may be sent again, and may do better.
        parent.judge_file, parent.judged = parent.honest_file, {}
        bring(sender, file)
        assert receipt_of(sender, file) is Status.STORED


def test_refusals_of_a_creation(site, parent, passing):
    refusals = iter([Problem("full", retry_after=0), Problem("busy"), Problem("internal")])
    parent.unwelcome = lambda ticket: next(refusals, None)
    with senders(site, passing.url) as (sender,):
        file = parent.file(sender, CONTENT)
        bring(sender, file)
        assert receipt_of(sender, file) is Status.STORED
        parent.unwelcome = lambda ticket: Problem("clear-not-accepted")
        file = parent.file(sender, CONTENT, "clear")
        bring(sender, file)
        assert result_of(sender, file).problem.name == "clear-not-accepted"


def test_temporary_problems_of_a_body_are_kept_here(site, parent, passing):
    answers = iter([Problem("internal"), Problem("full", retry_after=0)])

    def judge(held):
        problem = next(answers, None)
        return parent.honest_file(held) if problem is None else Result.failed(held.body_id, problem)

    parent.judge_file = judge
    with senders(site, passing.url) as (sender,):
        file = parent.file(sender, CONTENT)

        def say(result):
            if result.state is State.PROBLEM:
                parent.judged.clear()
            return result

        parent.say = say
        bring(sender, file)
        assert receipt_of(sender, file) is Status.STORED


def test_a_revoked_relay_keeps_what_it_has(site, parent, tmp_path):
    with (
        own(site, tmp_path, parent, "revoked") as relay,
        senders(site, relay.url) as (sender,),
    ):
        eventually(lambda: relay.control.current().relay(relay.member.relay))
        believed = relay.control.current().serial
        revoked = site.manifest.revoked_agents
        # Before it has heard so itself: its parent refuses it.
        site.change(revoked_agents=tuple(sorted([*revoked, relay.member.hop.public.agent_id])))
        try:
            file = parent.file(sender, CONTENT)
            bring(sender, file)
            eventually(lambda: relay.uplink.refusal == "revoked", seconds=5)
            assert relay.control.current().serial == believed
            assert "refuses" in relay.why_not_ready()
            assert state_of(sender, file) is State.PENDING
        finally:
            site.change(revoked_agents=revoked)
        assert receipt_of(sender, file) is Status.STORED
        settled(relay)


# -- room ---------------------------------------------------------------------------------


def test_a_full_shelf_says_when_to_come_again(site, parent, tmp_path):
    parent.unwelcome = lambda ticket: Problem("full", retry_after=0)
    limits = {"max_bytes": 500_000, "hop_share": 1.0}
    with (
        own(site, tmp_path, parent, "small", uploads=limits) as relay,
        senders(site, relay.url, 2) as (sender, other),
    ):
        files = [parent.file(sender, CONTENT) for _ in range(3)]
        for file in files[:2]:
            bring(sender, file)
        assert create(sender, files[2]).problem().name == "busy", "it has all there is itself"
        refused = create(other, parent.file(other, CONTENT))
        assert refused.status == 503 and refused.problem().name == "full"
        assert refused.retry_after > 0
        assert create(sender, parent.file(sender, bytes(600_000))).status == 413
        parent.unwelcome = lambda ticket: None
        for file in files[:2]:
            assert receipt_of(sender, file) is Status.STORED
        settled(relay)
        bring(sender, files[2])
        assert receipt_of(sender, files[2]) is Status.STORED


def test_a_decrypting_relay_counts_clear_bodies_twice(site, parent, tmp_path):
    parent.unwelcome = lambda ticket: Problem("full", retry_after=0)
    limits = {"max_bytes": 900_000, "hop_share": 1.0}
    with (
        own(site, tmp_path, parent, "twice", decrypting=True, uploads=limits) as relay,
        senders(site, relay.url, 2) as (sender, other),
    ):
        clear = [parent.file(sender, CONTENT, "clear") for _ in range(2)]
        assert [create(sender, file).status for file in clear] == [201, 201]
        assert create(other, parent.file(other, CONTENT, "clear")).status == 503
        assert create(sender, parent.file(sender, bytes(500_000), "clear")).status == 413
        for file in clear:
            bring(sender, file)
        eventually(lambda: relay.state.wraps.size >= 2 * len(CONTENT))
        disk = sum(
            p.stat().st_size for name in ("uploads", "uploads-sealed")
            for p in (tmp_path / "twice" / name).iterdir()
        )  # fmt: skip
        assert disk < 900_000
        parent.unwelcome = lambda ticket: None
        for file in clear:
            assert receipt_of(sender, file) is Status.STORED
        settled(relay)


def test_one_client_gets_its_share(site, parent, tmp_path):
    parent.unwelcome = lambda ticket: Problem("full", retry_after=0)
    limits = {"max_bytes": 1_000_000, "hop_share": 0.4, "open_per_hop": 1}
    with (
        own(site, tmp_path, parent, "shared", uploads=limits) as relay,
        senders(site, relay.url, 2) as (greedy, other),
    ):
        mine = parent.file(greedy, CONTENT)
        assert create(greedy, mine).status == 201
        assert create(greedy, parent.file(greedy, b"x")).status == 429, "one is open"
        bring(greedy, mine)
        assert create(greedy, parent.file(greedy, CONTENT)).status == 429
        theirs = parent.file(other, CONTENT)
        bring(other, theirs)
        parent.unwelcome = lambda ticket: None
        assert receipt_of(other, theirs) is receipt_of(greedy, mine) is Status.STORED


def test_what_it_does_not_take(site, parent, tmp_path):
    with (
        own(site, tmp_path, parent, "no-clear", accepts_clear=False) as relay,
        senders(site, relay.url) as (sender,),
    ):
        answer = create(sender, parent.file(sender, CONTENT, "clear"))
        assert answer.problem().name == "clear-not-accepted"
        assert create(sender, parent.file(sender, CONTENT)).status == 201
    with (
        own(site, tmp_path, parent, "no-sealed", accepts_sealed=False) as relay,
        senders(site, relay.url) as (sender,),
    ):
        answer = create(sender, parent.file(sender, CONTENT))
        assert answer.problem().name == "sealed-not-accepted"
        assert not relay.state.shelf.usage().bodies
        assert metrics(relay)['bodies_refused_total{problem="sealed-not-accepted"}'] == 1


def test_what_nobody_sends_on_expires(site, parent, passing):
    with senders(site, passing.url) as (sender,):
        file = parent.file(sender, CONTENT)
        create(sender, file)
        patch(sender, file, 0, 1000)
        shelf = passing.state.shelf
        assert shelf.expire() == 0
        assert shelf.expire(time.time() + passing.settings.uploads.expires + 1) == 1
        assert head(sender, file).status == 404
        assert state_of(sender, file) is State.UNKNOWN
        bring(sender, file)
        assert receipt_of(sender, file) is Status.STORED


def test_a_client_takes_back_what_it_sent(site, parent, passing):
    parent.unwelcome = lambda ticket: Problem("full", retry_after=0)
    with senders(site, passing.url) as (sender,):
        begun, whole = parent.file(sender, CONTENT), parent.file(sender, CONTENT)
        create(sender, begun)
        patch(sender, begun, 0, 1000)
        bring(sender, whole)
        eventually(lambda: passing.state.shelf.whole())
        for file in (begun, whole):
            assert delete(sender, file).status == 204
            assert delete(sender, file).status == 404
            assert state_of(sender, file) is State.UNKNOWN
        parent.unwelcome = lambda ticket: None
        settled(passing)
    assert parent.arrived_files == []


# -- what the disk does ----------------------------------------------------------------------


def test_a_body_that_the_disk_has_lost_is_unknown(site, parent, passing):
    parent.unwelcome = lambda ticket: Problem("full", retry_after=0)
    with senders(site, passing.url) as (sender,):
        for damage in (lambda path: path.unlink(), lambda path: os.truncate(path, 7)):
            file = parent.file(sender, CONTENT)
            bring(sender, file)
            (held,) = eventually(passing.state.shelf.whole)
            damage(held.path)
            eventually(lambda file=file: state_of(sender, file) is State.UNKNOWN)
        parent.unwelcome = lambda ticket: None
        bring(sender, file)
        assert receipt_of(sender, file) is Status.STORED


def test_a_body_that_the_disk_has_changed_is_malformed(site, parent, passing):
    parent.unwelcome = lambda ticket: Problem("full", retry_after=0)
    with senders(site, passing.url) as (sender,):
        file = parent.file(sender, CONTENT)
        bring(sender, file)
        (held,) = eventually(passing.state.shelf.whole)
        with open(held.path, "r+b") as opened:
            opened.write(b"?")
        parent.unwelcome = lambda ticket: None
        assert result_of(sender, file).problem.name == "malformed"
        bring(sender, file)
        assert receipt_of(sender, file) is Status.STORED


def test_a_body_goes_when_its_result_is_on_the_disk_and_not_before(
    site, parent, passing, monkeypatch
):
    """Also where the disk takes the result only at the third try."""
    queue, shelf = passing.state.queue, passing.state.shelf
    keep, remove = queue.keep, shelf.remove
    tries, removed = [], []

    def keeping(result, received):
        assert shelf.by_body(result.body)[0].state == "whole"
        tries.append(result)
        if len(tries) == 1:
            raise sqlite3.OperationalError("database or disk is full")
        if len(tries) == 2:
            outcome = Future()
            outcome.set_exception(sqlite3.OperationalError("disk I/O error"))
            return outcome
        return keep(result, received)

    def removing(held):
        with contextlib.closing(connect(queue_file)) as file:
            found = rows.result(file, held.body_id)
        removed.append(found.state)
        remove(held)

    queue_file = passing.settings.directory / "queue.db"
    monkeypatch.setattr(queue, "keep", keeping)
    monkeypatch.setattr(shelf, "remove", removing)
    with senders(site, passing.url) as (sender,):
        file = parent.file(sender, CONTENT)
        bring(sender, file)
        assert receipt_of(sender, file) is Status.STORED
        settled(passing)
    assert len(tries) == 3
    assert removed == [State.DONE]


def test_results_of_files_obey_the_same_bounds(tmp_path):
    with contextlib.closing(
        Queue(tmp_path / "queue.db", keep=0.2, result_bytes=1000, tidy=0.05)
    ) as queue:
        results = [Result.done(bytes([i]) * 32, [b"r" * 139]) for i in range(20)]
        for result in results:
            queue.keep(result, 0).result(30)
        eventually(lambda: queue.stats().result_bytes <= 1000)
        assert queue.lookup([results[-1].body]), "the newest stay"
        assert not queue.lookup([results[0].body])
        queue.keep(results[-1], 0).result(30)
        eventually(lambda: queue.stats()[-2:] == (0, 0))
    with contextlib.closing(Queue(tmp_path / "queue.db")) as queue:
        problem = Result.failed(b"p" * 32, Problem("malformed"))
        for result in (problem, Result.done(b"p" * 32, [b"r" * 139]), problem):
            queue.keep(result, 0).result(30)
            size = len(rows.encode(result))
            assert queue.stats()[-2:] == (1, size), "a newer one takes the place of an older"
            assert queue.lookup([b"p" * 32])[b"p" * 32].state is result.state
        assert queue.stats().bodies == 0 and queue.claim(1, 1, 0) == []
    with pytest.raises(RuntimeError):
        queue.keep(problem, 0)


# -- started again -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["sealed", "clear"])
def test_it_goes_on_where_it_was(site, parent, tmp_path, form):
    """Pending at the parent, and the relay is started again: nothing is sent or sealed twice."""
    member = site.add_relay(f"again-{form}", decrypts=True)
    folder = make_folder(site, tmp_path / "relay", member)
    settings = settings_for(folder, parent.url, decrypting=True, uploads=UPLOADS_QUICK)
    parent.judge_file = lambda held: None
    with running(settings) as relay, senders(site, relay.url) as (sender,):
        file, open_one = parent.file(sender, CONTENT, form), parent.file(sender, CONTENT)
        bring(sender, file)
        create(sender, open_one)
        patch(sender, open_one, 0, 70_000)
        eventually(parent.shelf.whole)
    with running(settings) as relay, senders(site, relay.url) as (other,):
        other.uplink._credential, other.uplink._hop_key = sender.me.credential, sender.me.hop
        assert state_of(other, file) is State.PENDING
        assert head(other, open_one).headers["upload-offset"] == "70000"
        parent.judge_file = parent.honest_file
        parent.judge_all()
        assert receipt_of(other, file) is Status.STORED
        bring(other, open_one)
        assert receipt_of(other, open_one) is Status.STORED
        settled(relay)
    assert [form for form, _ in parent.arrived_files] == ["sealed", "sealed"]
    assert len(parent.begun) == 2


def test_a_result_that_is_there_already_ends_it(site, parent, tmp_path):
    """As after a kill between the result and the end of the body: it is not sent again."""
    member = site.add_relay("between")
    folder = make_folder(site, tmp_path / "relay", member)
    settings = settings_for(folder, parent.url, uploads=UPLOADS_QUICK)
    parent.unwelcome = lambda ticket: Problem("full", retry_after=0)
    with running(settings) as relay, senders(site, relay.url) as (sender,):
        file = parent.file(sender, CONTENT)
        bring(sender, file)
        eventually(relay.state.shelf.whole)
        result = Result.done(file.id, [parent.receipt_for(file)])
        relay.state.queue.keep(result, 0).result(30)
        assert state_of(sender, file) is State.DONE
    parent.unwelcome = lambda ticket: None
    with running(settings) as relay:
        settled(relay)
        assert relay.state.queue.stats().results == 1
    assert parent.arrived_files == []


def test_it_ends_while_it_sends(site, parent, tmp_path):
    """Throttled to a crawl: the end waits for no body."""
    with own(site, tmp_path, parent, "slow", uploads={"throttle": 70_000.0}) as relay:
        with senders(site, relay.url) as (sender,):
            file = parent.file(sender, os.urandom(3_000_000))
            bring(sender, file)
            eventually(lambda: parent.begun)
        relay.stop()
        assert relay.uploads.join(0)
        assert parent.arrived_files == []
        assert len(relay.state.shelf.whole()) == 1


# -- what an administrator sees --------------------------------------------------------------


def test_status_says_what_waits(site, parent, tmp_path, capsys):
    parent.unwelcome = lambda ticket: Problem("full", retry_after=0)
    with own(site, tmp_path, parent, "seen", decrypting=True) as relay:
        folder = relay.settings.directory
        (folder / "relay.toml").write_text(toml_of(relay.settings))
        with senders(site, relay.url) as (sender,):
            create(sender, parent.file(sender, CONTENT))
            bring(sender, parent.file(sender, CONTENT, "clear"))
        eventually(lambda: relay.state.wraps.size)
        eventually(relay.state.shelf.whole)
        assert main(["relay", "status", "-d", str(folder), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["uploads"]
        assert (found["whole"], found["open"], found["sealed"]) == (1, 1, 1)
        assert found["bytes"] > 2 * len(CONTENT) and found["age"] >= 0
        assert main(["relay", "status", "-d", str(folder)]) == 0
        assert "1 to pass on, 1 begun, 1 sealed here" in capsys.readouterr().out
        read = metrics(relay)
        assert (read["uploads_open"], read["uploads_waiting"]) == (1, 1)
        assert read["uploads_held_bytes"] == len(CONTENT)
        assert read["uploads_sealed_bytes"] == relay.state.wraps.size
        assert read["uploads_age_seconds"] >= 0


def test_logs_follow_a_file(site, parent, decrypting, caplog):
    caplog.set_level("INFO", logger="upseal")
    with senders(site, decrypting.url) as (sender,):
        file = parent.file(sender, b"plaintext that no log has", "clear")
        bring(sender, file)
        assert receipt_of(sender, file) is Status.STORED
        settled(decrypting)
    order = ["upload taken", "upload sealed", "upload sent", "upload done"]

    def said():  # the last line comes after what it tells of
        names = [
            r.upseal_event for r in list(caplog.records)
            if getattr(r, "upseal_fields", {}).get("upload") == file.ticket.upload.hex()
        ]  # fmt: skip
        return sorted(name for name in names if name in order) == sorted(order) and names

    assert [name for name in eventually(said) if name in order][:2] == order[:2]
    assert "plaintext" not in caplog.text


@pytest.mark.parametrize(
    "limits",
    [
        {"max_bytes": 1}, {"max_size": 0}, {"open_per_hop": 0}, {"hop_share": 0}, {"expires": 0},
        {"piece": 1000}, {"throttle": -1}, {"rate": -1}, {"workers": 0}, {"min_free": -1},
        {"nonsense": 1}, {"workers": 1.5},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant(limits):
    with pytest.raises(SettingsError):
        Settings.parse({"parent": "http://x", "uploads": limits})

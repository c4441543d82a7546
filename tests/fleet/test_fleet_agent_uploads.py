# SPDX-License-Identifier: Apache-2.0
"""Files that an agent sends: sealed once, kept, and gone for a receipt alone."""

import dataclasses
import os
import threading
import time

import fleet_agent_uploads_support as common
import pytest
from fleet_agent_support import capabilities, make_folder, settings_for
from fleet_agent_uploads_support import (
    MARK,
    PIECE,
    ROOM,
    agents_below,
    consistent,
    ended,
    eventually,
    pattern,
    row_of,
    salt_and_header,
)
from fleet_server_support import Site as RealSite
from fleet_server_uploads_support import content, rows
from fleet_support import Site
from prometheus_client import generate_latest

from upseal import PrivateKey
from upseal.core import header as headers
from upseal.fleet.agent import NoSuchUpload
from upseal.fleet.agent import parent as room
from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.enrolment import enrol
from upseal.fleet.agent.metrics import metrics_of
from upseal.fleet.agent.signs import signs_of
from upseal.fleet.agent.uploads import jobs, sending
from upseal.fleet.agent.uploads.jobs import Job, Jobs, Verdict, judged
from upseal.fleet.agent.uploads.rows import UploadState
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Level
from upseal.fleet.units import Receipt, Status, signed_receipt
from upseal.fleet.uploads.words import Announcement

SIZE = 5 * PIECE + 123
quick, site, above, parent = common.quick, common.site, common.above, common.parent


@pytest.fixture
def run(site, parent, tmp_path):
    """An agent below the parent."""
    with agents_below(site, tmp_path, parent.url, started=True) as begin:
        yield begin


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a file of mine"
    path.write_bytes(pattern(SIZE))
    return path


def on_disk(agent):
    """All bytes of the agent's folder."""
    folder = agent.settings.directory
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def busy(request):
    return Problem("busy", retry_after=0) if request.method in ("POST", "PATCH") else None


def moved(parent, method="PATCH"):
    return [size for name, size in parent.moves if name == method]


# -- how it goes ----------------------------------------------------------------------------


def test_sealed_once_stored_and_gone(run, parent, file, site):
    agent = run()
    upload = agent.upload(file)
    counters = ended(agent)
    assert (counters.made, counters.stored, counters.waiting) == (1, 1, 0)
    assert agent.uploads.state(upload) is UploadState.STORED
    ((said, data),) = parent.stored.values()
    assert (said.name, data) == (b"a file of mine", pattern(SIZE))
    assert said.modified == file.stat().st_mtime_ns // 1_000_000
    assert (said.form, said.upload.hex()) == ("sealed", upload)
    (body,) = parent.bodies_seen.values()
    assert MARK not in body
    assert moved(parent) == [PIECE] * (len(body) // PIECE) + [len(body) % PIECE]
    # To the server, and not to the agent itself: that would name it to every hop.
    entries = headers.parse(body).entries
    assert [entry.key_id for entry in entries] == [site.private[-1].key_id]
    assert agent.spool.counters().stored == 1, "the announcement is a report"
    row = row_of(agent, upload)
    assert (row.file, row.secret, row.announcement) == (None, None, None)


def test_one_file_that_takes_long_is_no_standstill(run, parent, file):
    """The service manager's watchdog looks at it, and would end an agent that does not get on."""
    agent, seen = run(started=False), []
    (sign,) = [sign for sign in signs_of(agent) if sign.name == "uploads"]
    parent.before = lambda request: seen.append((request.method, sign.look()[1]))
    agent.upload(file)
    agent.start()
    ended(agent)
    pieces = [count for method, count in seen if method == "PATCH"]
    assert len(pieces) > 5 and sorted(set(pieces)) == pieces


def test_it_waits_sealed_and_for_whoever_sends(run, parent, file, site, tmp_path):
    agent = run(started=False)
    upload = agent.upload(file, name=b"another name")
    file.unlink()
    assert MARK not in on_disk(agent)
    assert b"another name" not in on_disk(agent)
    assert b"file of mine" not in on_disk(agent)
    assert consistent(agent).bytes > SIZE
    row = row_of(agent, upload)
    assert not row.own
    path = agent.uploads.folder.path / row.file
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    sealed = path.read_bytes()
    with Agent(agent.settings) as other:  # as another process
        other.start()
        ended(other)
    assert parent.files == {b"another name": pattern(SIZE)}
    assert list(parent.bodies_seen.values()) == [sealed]


@pytest.mark.parametrize("level", ["optional", "none"])
def test_lengths(run, parent, tmp_path, level):
    agent, files = run(level=level), {}
    for size in (0, 1, 16383, 16384, 16385, 4 * PIECE):
        files[b"%d" % size] = os.urandom(size)
        (tmp_path / str(size)).write_bytes(files[b"%d" % size])
        told = {}
        agent.upload(tmp_path / str(size), progress=told.__setitem__)
        assert told[size] == size
    ended(agent)
    assert parent.files == files
    assert {said.form for said, _ in parent.stored.values()} == {
        "clear" if level == "none" else "sealed"
    }


def test_many_at_once_are_not_waited_for_one_by_one(run, parent, tmp_path):
    agent = run(batch={"seconds": 0.0})
    uploads = []
    for number in range(20):
        (tmp_path / f"file {number}").write_bytes(b"%d" % number)
        uploads.append(agent.upload(tmp_path / f"file {number}"))
    assert ended(agent).stored == 20
    assert parent.files == {b"file %d" % n: b"%d" % n for n in range(20)}
    assert len(set(uploads)) == 20


def test_what_an_agent_says_of_files_nobody_else_may_say(run):
    agent = run(started=False)
    said = Announcement(bytes(16), "clear", 1, 1, bytes(32), 0, b"x").encode()
    for report in (said, said[:4]):
        with pytest.raises(ValueError, match="UPU"):
            agent.report(report)
        with pytest.raises(ValueError, match="UPU"):
            agent.report_many([b"fine", report])
    assert agent.spool.counters().made == 0


def test_again_from_where_it_was(run, parent, file):
    """Stopped in the middle, and gone on with by another: not a byte twice."""
    agent = run()
    stop = threading.Event()

    def third(request):
        if request.method == "PATCH" and len(moved(parent)) >= 2:
            stop.set()
            return Problem("busy", retry_after=0)
        return None

    parent.refuse_upload = third
    agent.upload(file)
    assert stop.wait(20)
    agent.stop()
    (held,) = parent.shelf._bodies.values()
    assert held.offset == 2 * PIECE
    parent.refuse_upload = None
    with Agent(agent.settings) as other:
        other.start()
        ended(other)
    ((said, _),) = parent.stored.values()
    assert sum(moved(parent)) == said.body_size
    assert len(parent.bodies_seen) == 1


def test_a_parent_that_forgets_gets_the_same_bytes(run, parent, file):
    agent = run()
    seen = []
    honest = parent.judge_upload

    def forgetful(held, announcements):
        seen.append(parent.bodies_seen[held.body_id])
        return Result.unknown(held.body_id) if len(seen) < 3 else honest(held, announcements)

    def forgotten(ids):
        found = parent._of(ids)
        for result in found:
            if result.state.value == "unknown":
                parent.settled.pop(result.body, None)
        return found

    parent.judge_upload, parent.results_of = forgetful, forgotten
    agent.upload(file)
    ended(agent)
    assert len(seen) >= 3
    assert set(seen) == {seen[0]}, "resuming never seals again"


def test_refusals_and_a_clock_that_is_off_cost_time_alone(run, parent, file, monkeypatch):
    monkeypatch.setattr(room, "now_ms", lambda: int(time.time() * 1000) - 3 * 3_600_000)
    agent = run()
    answers = ["full", "internal", "busy", "too-large", "unknown", "stopping"]

    def refuse(request):
        return Problem(answers.pop(0), retry_after=0) if answers else None

    parent.refuse_upload = refuse
    agent.upload(file)
    ended(agent)
    assert not answers
    assert parent.files == {b"a file of mine": pattern(SIZE)}


def test_throttle(run, parent, file):
    agent = run(uploads={"min_free": 0, "piece": 1 << 20, "throttle": 400_000.0})
    began = time.monotonic()
    agent.upload(file)
    ended(agent)
    sizes = moved(parent)
    assert max(sizes) <= 400_000
    # The last piece goes when those before it are paid for; never earlier, however slow we are.
    assert time.monotonic() - began >= sum(sizes[:-1]) / 400_000 * 0.9


# -- levels -----------------------------------------------------------------------------------


def test_none_goes_in_clear_and_lies_on_no_disk_in_clear(run, parent, file):
    agent = run(started=False, level="none")
    upload = agent.upload(file)
    row = row_of(agent, upload)
    assert row.own
    assert row.announcement is None
    assert agent.spool.counters().made == 0, "what its body will be is not known yet"
    assert MARK not in on_disk(agent)
    disks = []
    parent.before = lambda request: disks.append(MARK in on_disk(agent))
    agent.start()
    ended(agent)
    assert disks
    assert not any(disks)
    ((said, data),) = parent.stored.values()
    assert (said.form, said.body_size, data) == ("clear", SIZE, pattern(SIZE))
    assert list(parent.bodies_seen.values()) == [pattern(SIZE)]


def test_withheld_until_it_is_enabled(run, parent, file, site):
    site.disable()
    site.sign()
    agent = run(level="required")
    eventually(lambda: agent.status()["actual"] == "withheld")
    upload = agent.upload(file)
    own = row_of(agent, upload)
    assert own.own
    eventually(lambda: len(parent.beacons) >= 3)
    assert (parent.moves, parent.shelf.usage().bodies) == ([], 0)
    (listed,) = agent.uploads.listed({}, True)
    assert (listed["state"], listed["name"], listed["form"]) == ("withheld", file.name, None)
    site.enable()
    site.sign()
    ended(agent)
    ((said, data),) = parent.stored.values()
    assert (said.form, data) == ("sealed", pattern(SIZE))
    assert all(MARK not in body for body in parent.bodies_seen.values())


def test_optional_without_encryption_goes_in_clear(run, parent, file, site):
    site.disable()
    site.sign()
    agent = run()
    agent.upload(file)
    ended(agent)
    assert list(parent.bodies_seen.values()) == [pattern(SIZE)]


def test_what_is_sealed_for_the_server_stays_so(run, parent, file, site):
    """Encryption is disabled while it waits: the server still opens it, and clear is no better."""
    agent = run(started=False)
    agent.upload(file)
    site.disable()
    site.sign()
    agent.start()
    ended(agent)
    ((said, data),) = parent.stored.values()
    assert (said.form, data) == ("sealed", pattern(SIZE))
    assert agent.status()["actual"] == "clear"


def refusing(site, parent, how):
    """The parent is a relay that takes no sealed reports, and says so, signed or not."""
    relay = site.add_relay("r1")
    site.sign()
    key = relay.identity if how == "signed" else SigningKey.generate()
    parent.capable = lambda: capabilities(relay, key, accepts_sealed=False)
    parent.unwelcome = lambda t: Problem("sealed-not-accepted") if t.form == "sealed" else None


def test_signed_words_of_the_parent_turn_a_sealed_file_clear(run, parent, file, site):
    agent = run(started=False)
    upload = agent.upload(file)
    sealed = row_of(agent, upload).file
    refusing(site, parent, "signed")
    agent.start()
    ended(agent)
    ((said, data),) = parent.stored.values()
    assert (said.form, said.upload.hex(), data) == ("clear", upload, pattern(SIZE))
    assert len(parent.announcements) == 2, "the first one was about the sealed body"
    assert sealed is not None


@pytest.mark.parametrize(("how", "level"), [("unsigned", "optional"), ("signed", "required")])
def test_other_words_do_not(run, parent, file, site, how, level):
    agent = run(started=False, level=level)
    upload = agent.upload(file)
    refusing(site, parent, how)
    asked = []
    parent.before = lambda request: asked.append(request.method)
    agent.start()
    if how == "unsigned":
        eventually(lambda: asked.count("POST") >= 4)
    else:
        eventually(lambda: agent.status()["actual"] == "withheld")
        eventually(lambda: len(parent.beacons) >= 3)
        assert not asked
    assert parent.shelf.usage().bodies == 0
    assert row_of(agent, upload).form == "sealed"
    parent.capable = parent.unwelcome = None
    if how == "signed":  # what was signed holds until something newer is
        site.change(relays=())
        site.sign()
    ended(agent)
    assert [said.form for said, _ in parent.stored.values()] == ["sealed"]


def test_clear_text_does_not_go_on_once_it_must_not(run, parent, file, site):
    agent = run(level="optional")
    eventually(lambda: agent.status()["actual"] == "sealed")
    site.disable()
    site.sign()
    eventually(lambda: agent.status()["actual"] == "clear")
    required = settings_for(agent.settings.directory, parent.url, level="required", **ROOM)

    def second(request):
        if len(moved(parent)) == 1:
            agent.reload(required)

    parent.before = second
    upload = agent.upload(file)
    eventually(lambda: agent.status()["actual"] == "withheld")
    eventually(lambda: parent.beacons)
    # The piece that was under way could not be taken back; none came after it.
    assert 1 <= len(moved(parent)) <= 2
    (held,) = parent.shelf._bodies.values()
    assert held.offset < SIZE
    assert agent.settings.level is Level.REQUIRED
    parent.before = lambda request: None
    site.enable()
    site.sign()
    ended(agent)
    ((said, data),) = parent.stored.values()
    assert (said.form, said.upload.hex(), data) == ("sealed", upload, pattern(SIZE))


# -- keys that retire -------------------------------------------------------------------------


def test_sealed_anew_once_its_key_is_retired(run, parent, file, site):
    agent = run(started=False)
    upload = agent.upload(file)
    first = row_of(agent, upload)
    before = (agent.uploads.folder.path / first.file).read_bytes()
    site.rotate()
    site.sign()
    del site.private[0]
    agent.start()
    ended(agent)
    ((said, data),) = parent.stored.values()
    assert (said.upload.hex(), data) == (upload, pattern(SIZE))
    assert sorted(map(len, parent.bodies_seen.values())) == [len(before)] * 2
    bodies = [before, *(b for b in parent.bodies_seen.values() if b != before)]
    assert len(bodies) == 2
    salts, sessions = zip(*map(salt_and_header, bodies), strict=True)
    assert len(set(salts)) == len(set(sessions)) == 2
    assert len({body[-4096:] for body in bodies}) == 2
    assert agent.tally.get("uploads_sealed_anew") == 1
    assert [said.upload.hex() for _, said in parent.announcements] == [upload] * 2


def test_a_lie_about_the_key_has_nothing_sealed_again(run, parent, file, site):
    """No newer manifest, or one with the same keys: there is nothing else to seal to."""
    agent = run()
    lies = []

    def lie(ids):
        lies.append(ids)
        return [Result.failed(body_id, Problem("stale-key")) for body_id in ids]

    parent.results_of = lie
    upload = agent.upload(file)
    first = row_of(agent, upload)
    eventually(lambda: len(lies) >= 3)
    site.change(default_level=Level.OPTIONAL)  # a newer one, with the same keys
    site.sign()
    eventually(lambda: agent.status()["manifest"]["serial"] == site.manifest.serial)
    told = len(lies)
    eventually(lambda: len(lies) >= told + 3)
    now = row_of(agent, upload)
    assert (now.file, now.announced, now.serial) == (first.file, first.announced, first.serial)
    parent.results_of = parent._of
    ended(agent)
    assert len(parent.bodies_seen) == 1
    assert agent.tally.get("uploads_sealed_anew") == 0


def test_a_retired_key_and_no_encryption(run, parent, file, site):
    """One that may goes in clear, as its reports do; one that must be sealed waits."""
    agents = [run(name, started=False, level=name) for name in ("optional", "required")]
    uploads = [agent.upload(file, name=name) for agent, name in zip(agents, "ab", strict=True)]
    site.disable()
    site.sign()
    retired, site.private = site.private, [PrivateKey.generate()]
    for agent in agents:
        agent.start()
    ended(agents[0])
    ((said, data),) = parent.stored.values()
    assert (said.name, said.form, data) == (b"a", "clear", pattern(SIZE))
    eventually(lambda: agents[1].status()["actual"] == "withheld")
    assert row_of(agents[1], uploads[1]).form == "sealed"
    assert retired
    site.rotate()
    site.sign()
    ended(agents[1])
    assert sorted(parent.files) == [b"a", b"b"]
    assert {said.form for said, _ in parent.stored.values() if said.name == b"b"} == {"sealed"}


# -- receipts ----------------------------------------------------------------------------------


def test_nothing_but_its_own_receipt_ends_it(run, parent, file, site):
    agent = run()
    stranger, other = SigningKey.generate(), Site()
    wrong = []

    def lies(said, who):
        there = other.deployment
        yield []  # done, and nothing to show for it
        yield [b"x" * 139]
        yield [parent.receipt_of(said, who, key=stranger)]
        yield (
            [
                parent.receipt_of(
                    said,
                    b"another's agent",
                )
            ]
            if False
            else [parent.receipt_of(said, bytes(16))]
        )
        elsewhere = Receipt(there, said.digest(there, who), Status.STORED)
        yield [signed_receipt(elsewhere, site.receipt)]
        changed = Announcement(said.upload, "sealed", said.size, said.body_size,
                               said.body_sha256, said.modified, b"renamed")  # fmt: skip
        yield [parent.receipt_of(changed, who)]
        unit = Receipt(site.deployment, said.body_sha256, Status.STORED)
        yield [signed_receipt(unit, site.receipt)]
        good = parent.receipt_of(said, who)
        yield [good[:-1] + bytes([good[-1] ^ 1])]
        yield [parent.receipt_of(said, who, Status.REFUSED)]
        yield [parent.receipt_of(said, who, Status.CONTRADICTION)]

    queue = []

    def liar(ids):
        if not parent.announcements:
            return [Result.pending(body_id) for body_id in ids]
        ((who, said),) = parent.announcements
        if not wrong:
            queue.extend(lies(said, who))
        if not queue:
            return parent._of(ids)
        receipts = queue.pop(0)
        wrong.append(receipts)
        return [Result.done(body_id, receipts) for body_id in ids]

    parent.results_of = liar
    upload = agent.upload(file)
    eventually(lambda: len(wrong) >= 10 or agent.uploads.state(upload) is not UploadState.WAITING)
    ended(agent)
    assert len(wrong) == 10, "each of them was shown, and none of them ended it"
    assert agent.uploads.state(upload) is UploadState.STORED
    assert {alarm["kind"] for alarm in agent.alarms.all()} == {"receipt"}
    assert agent.tally.get("forged") == 4


def test_duplicate_is_as_good_as_stored(run, parent, file):
    parent.status_of_stored = Status.DUPLICATE
    agent = run()
    agent.upload(file)
    assert ended(agent).stored == 1


def test_answers_that_are_none(run, parent, file):
    agent = run()
    said = []
    answers = [b"", b"nonsense", b'{"results": []}', b'{"results": [{"body": 1}]}', b"[" * 9999]

    def raw(path):
        from starlette.responses import Response

        if path == "results" and answers:
            said.append(answers.pop(0))
            return Response(said[-1])
        return None

    parent.raw = raw
    agent.upload(file)
    ended(agent)
    assert not answers
    assert agent.uploads.counters().stored == 1


def test_what_a_result_comes_to(site):
    tally, digest = type("T", (), {"add": lambda *_: None})(), bytes(32)
    keys = {site.receipt.public.key_id: site.receipt.public}

    def of(*statuses):
        receipts = [
            signed_receipt(Receipt(site.deployment, digest, status), site.receipt)
            for status in statuses
        ]
        return judged(Result.done(bytes(32), receipts), digest, keys, site.deployment, tally)

    assert of() is Verdict.NONE
    assert of(Status.REFUSED) is Verdict.REFUSED
    assert of(Status.REFUSED, Status.DUPLICATE) is Verdict.STORED
    assert of(*[Status.REFUSED] * 64, Status.STORED) is Verdict.REFUSED, "64 are looked at"
    assert judged(None, digest, keys, site.deployment, tally) is Verdict.NONE
    pending = Result.pending(bytes(32))
    assert judged(pending, digest, keys, site.deployment, tally) is Verdict.PENDING


def test_tries_grow_and_do_not_spin(site):
    made = Jobs(settings_for("/nowhere", "http://x").send)
    made.add(1)
    (job,) = made.all()
    for _ in range(3):
        made.again(job, 5.0, None, at_once=True)
        assert job.not_before == 5.0
    made.again(job, 5.0, "why", at_once=True)
    assert job.not_before > 5.0
    assert made.next_ready(5.0) is None
    made.all_at_once()
    assert made.next_ready(5.0) is job
    assert jobs._AT_ONCE == 3
    assert Job(7).body_id == b""


def test_announced_again_when_its_report_is_gone(run, parent, file, monkeypatch):
    monkeypatch.setattr(jobs, "ANNOUNCE_AGAIN", {Verdict.PENDING: 0, Verdict.UNKNOWN: 0})
    agent = run()

    def nobody_heard(held, announcements):
        return None if len(announcements) < 2 else parent.honest_upload(held, announcements)

    parent.judge_upload = nobody_heard
    agent.upload(file)
    ended(agent)
    first, second = parent.announcements[:2]
    assert first == second
    assert agent.tally.get("uploads_announced_again") >= 1


def test_not_announced_again_while_its_report_waits(run, parent, file):
    agent = run(started=False)
    upload = agent.upload(file)
    ledger, row = agent.uploads.ledger, row_of(agent, upload)
    said = ledger.announcement(row)
    assert not ledger.announce_again(row.id, said, 0)
    assert not ledger.announce_again(row.id, said, 3_600_000)
    assert agent.spool.counters().made == 1


# -- giving up, and what is said of it -----------------------------------------------------------


def test_cancelled_before_it_went(run, parent, file):
    agent = run(started=False)
    kept, gone = agent.upload(file), agent.upload(file)
    for name in ("", gone[:3], "0" * 32, "g" * 8):
        with pytest.raises(NoSuchUpload):
            agent.uploads.cancel(name)
    assert agent.uploads.cancel(gone[:12].upper()) == gone
    assert agent.uploads.cancel(gone) is None, "once"
    counters = consistent(agent)
    assert (counters.waiting, counters.cancelled) == (1, 1)
    assert agent.uploads.state(gone) is UploadState.CANCELLED
    agent.start()
    ended(agent)
    assert [said.upload.hex() for said, _ in parent.stored.values()] == [kept]


def test_cancelled_on_its_way_is_ended_at_the_parent(run, parent, file, monkeypatch):
    monkeypatch.setattr(sending, "_TOLD", 0.0)
    agent = run()
    parent.refuse_upload = lambda r: busy(r) if len(moved(parent)) >= 2 else None
    upload = agent.upload(file)
    eventually(lambda: len(moved(parent)) >= 2)
    agent.uploads.cancel(upload)
    eventually(lambda: moved(parent, "DELETE"))
    eventually(lambda: parent.shelf.usage().bodies == 0)
    assert ended(agent).cancelled == 1
    assert not parent.stored


def test_status_says_how_far_it_is(run, parent, file):
    agent = run()
    parent.refuse_upload = lambda r: busy(r) if len(moved(parent)) >= 3 else None
    upload = agent.upload(file)
    eventually(lambda: len(moved(parent)) >= 3)
    told = eventually(lambda: (agent.told() or {}).get("uploads"))
    (listed,) = agent.uploads.listed(told, False)
    body = row_of(agent, upload).file_size
    assert listed["percent"] == 100 * 3 * PIECE // body
    assert (listed["upload"], listed["size"]) == (upload, SIZE)
    assert listed["state"] in ("sending", "waiting")
    found = agent.status()["uploads"]
    assert (found["made"], found["waiting"], found["bytes"]) == (1, 1, body)
    assert found["sent"] == 3 * PIECE
    with Agent(agent.settings) as other:  # another process reads what this one has written
        eventually(lambda: other.status()["uploads"]["sent"] == 3 * PIECE)
    text = generate_latest(metrics_of(agent).registry).decode()
    assert "upseal_agent_uploads_waiting 1.0" in text
    assert f"upseal_agent_uploads_bytes {float(body)}" in text
    parent.refuse_upload = None
    ended(agent)
    found = agent.status()["uploads"]
    assert (found["stored"], found["waiting"], found["bytes"]) == (1, 0, 0)
    assert (
        "upseal_agent_uploads_stored_total 1.0"
        in generate_latest(metrics_of(agent).registry).decode()
    )


def test_send_all_waits_for_files(run, parent, file):
    agent = run(started=False)
    agent.report(b"one report")
    agent.upload(file)
    assert agent.send_all(30) == 0
    assert consistent(agent).stored == 1
    assert parent.files == {b"a file of mine": pattern(SIZE)}


def test_made_equals_stored_with_reports_between(run, parent, tmp_path):
    agent = run()
    for number in range(6):
        (tmp_path / str(number)).write_bytes(pattern(1000 * number))
        agent.upload(tmp_path / str(number))
        agent.report_many([b"report %d %d" % (number, i) for i in range(10)])
    ended(agent)
    assert agent.spool.counters().stored == 6 * 11
    records = [record for records in parent.units.values() for record in records]
    assert len(records) == len(set(records)) == 66


def test_a_folder_of_an_agent_that_never_sent_a_file(site, tmp_path, parent):
    folder = make_folder(site, tmp_path / "agent")
    with Agent(settings_for(folder, parent.url)) as agent:
        assert agent.status()["uploads"]["made"] == 0
        assert agent.uploads.listed({}, False) == []
        assert not (folder / "uploads").exists()


# -- with the real server ------------------------------------------------------------------------


def test_through_the_real_server(tmp_path, monkeypatch):
    """Sealed, in clear, over a rotation, and after the server has begun again."""
    real = RealSite(tmp_path / "d")
    real.enable()
    for name in ("sealed", "clear", "rotated"):
        (tmp_path / name).write_bytes(pattern(SIZE, name.encode()))
    agents = {}
    with real.running():
        for name in ("sealed", "clear"):
            level = "none" if name == "clear" else "required"
            settings = settings_for(tmp_path / f"{name}-agent", real.url, level=level, **ROOM)
            enrol(settings, real.token().encode())
            agents[name] = settings
        for name, settings in agents.items():
            with Agent(settings) as agent:
                agent.upload(tmp_path / name)
                assert agent.send_all(30) == 0
                assert ended(agent).stored == 1
        found = {row.name: (row.form, content(real, row)) for row in rows(real)}
        assert found == {
            b"sealed": ("sealed", pattern(SIZE, b"sealed")),
            b"clear": ("clear", pattern(SIZE, b"clear")),
        }
        with Agent(agents["sealed"]) as agent:
            agent.upload(tmp_path / "rotated")
            waiting = agent.uploads.ledger.one(agent.uploads.ledger.waiting()[0])
        with real.admin() as deployment:
            deployment.generate_key()
            deployment.enable(force=True)
            deployment.retire(waiting.recipients.hex(), force=True)
    with real.running():
        settings = dataclasses.replace(agents["sealed"], parent=real.url)
        with Agent(settings) as agent:
            assert agent.send_all(30) == 0
            assert ended(agent).stored == 2
            assert agent.tally.get("uploads_sealed_anew") == 1
        (row,) = [row for row in rows(real) if row.name == b"rotated"]
        assert content(real, row) == pattern(SIZE, b"rotated")

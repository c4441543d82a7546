# SPDX-License-Identifier: Apache-2.0
"""An agent and its parent: what goes out, how, and what it takes to leave the spool."""

import dataclasses
import json
import os
import threading
import time
from types import SimpleNamespace

import pytest
from fleet_agent_support import (
    Response,
    Site,
    agent_of,
    body_id,
    capabilities,
    drained,
    eventually,
    make_folder,
    parent_above,
    results,
    settings_for,
)

from upseal import Opener, OpenError
from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.deliveries import Answers
from upseal.fleet.agent.flights import Flights, Stage
from upseal.fleet.agent.membership import Credentials, NotEnrolled
from upseal.fleet.agent.parent import Believed, Parent, known_parent, verified_hops
from upseal.fleet.agent.rows import SpooledUnit
from upseal.fleet.agent.sender import Sender
from upseal.fleet.agent.settings import Send
from upseal.fleet.agent.spool import Spool, SpoolDamaged
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Absent, Clear, Level, Reason
from upseal.fleet.policy import Parent as Known
from upseal.fleet.trust import Outcome
from upseal.fleet.units import Receipt, Status, body_kind, signed_receipt

SECRET = b"sesame-plaintext-marker"
REPORTS = [SECRET + b" %03d" % i for i in range(25)]


@pytest.fixture
def site():
    made = Site()
    made.enable()
    return made


@pytest.fixture(scope="module")
def above():
    """One server for all tests: to start and stop one takes longer than most of them."""
    with parent_above(Site()) as started:
        yield started


@pytest.fixture
def parent(above, site):
    above.adopt(site)
    return above


@pytest.fixture
def run(site, parent, tmp_path):
    """Starts an agent below the parent; with reports, if wanted."""
    agents = []

    def begin(reports=REPORTS, name="agent", **changes):
        manager = agent_of(site, tmp_path, parent.url, started=False, name=name, **changes)
        agents.append(manager)
        agent = manager.__enter__()
        if reports:
            agent.report_many(reports)
        agent.start()
        return agent

    yield begin
    for manager in agents:
        manager.__exit__(None, None, None)


def sent_levels(parent):
    return {
        (unit.statement.level, unit.statement.reason, body_kind(body))
        for body in parent.bodies
        for unit in parent.opened(body)
        if not unit.beacon
    }


def stage_count(agent, stage):
    return (agent.status()["units"] or {}).get(stage)


def stays(agent, parent, posts=4):
    """Waits until the agent has tried so many times; everything is still there."""
    eventually(lambda: len(parent.posts) >= posts)
    assert agent.spool.counters().stored == 0
    assert agent.spool.counters().depth == len(REPORTS)


# -- level by level -----------------------------------------------------------------------


def test_sealed_once_and_gone(run, parent):
    agent = run(batch={"reports": 10})
    assert drained(agent).stored == 25
    assert parent.reports == REPORTS
    assert sorted(len(records) for records in parent.units.values()) == [5, 10, 10]
    assert parent.arrived == 3
    assert sent_levels(parent) == {(Level.OPTIONAL, Reason.SEALED, "sealed")}
    assert not any(SECRET in body for body in parent.bodies)
    assert [sequence for _, _, sequence in sorted(parent.units)] == [1, 2, 3], "without a gap"
    status = agent.status()
    assert (status["wanted"], status["actual"], status["why"]) == ("optional", "sealed", "sealed")
    assert status["reports"] == {"made": 25, "stored": 25, "withheld": 0, "lost": 0, "refused": 0}
    assert status["last_receipt"] > 0


def test_optional_without_encryption_goes_in_clear_and_says_why(run, parent, site):
    site.disable()
    site.sign()
    drained(run())
    assert sent_levels(parent) == {(Level.OPTIONAL, Reason.ENCRYPTION_DISABLED, "clear")}
    assert any(SECRET in body for body in parent.bodies), "or the search would prove nothing"


def test_none_goes_in_clear(run, parent):
    drained(run(level="none"))
    assert sent_levels(parent) == {(Level.NONE, Reason.LEVEL_NONE, "clear")}


def test_required_withholds_says_so_and_goes_on(run, parent, site):
    site.disable()
    site.sign()
    agent = run(level="required")
    eventually(lambda: len(parent.beacons) >= 3)
    status = agent.status()
    assert (status["actual"], status["why"]) == ("withheld", "encryption-disabled")
    assert status["reports"]["withheld"] == 25
    assert parent.kinds == set()
    beacons = parent.beacons
    assert {(b.level, b.reason, b.count) for b in beacons} == {
        (Level.REQUIRED, Reason.ENCRYPTION_DISABLED, 0)
    }
    assert len({b.epoch for b in beacons}) == 1
    assert [b.sequence for b in beacons] == list(range(1, len(beacons) + 1))
    assert not any(SECRET in body for body in parent.bodies)
    site.enable()
    site.sign()
    drained(agent)
    assert parent.reports == REPORTS
    assert parent.kinds == {"sealed"}
    eventually(lambda: parent.beacons[-1].reason is Reason.SEALED)
    units = {unit.statement.epoch for b in parent.bodies for unit in parent.opened(b)
             if not unit.beacon}  # fmt: skip
    assert units.isdisjoint({b.epoch for b in beacons}), "an epoch of its own"


def test_beacons_are_not_many(run, parent, site):
    site.disable()
    site.sign()
    run(level="required", send={"beacon": 3600})
    eventually(lambda: parent.beacons)
    eventually(lambda: parent.posts and time.monotonic() > parent.posts[0] + 1)
    assert len(parent.beacons) == 1


def test_the_manifest_has_the_last_word_but_for_the_process(run, site, parent):
    site.change(default_level=Level.NONE)
    site.sign()
    agent = run(level="required")
    drained(agent)
    assert sent_levels(parent) == {(Level.NONE, Reason.LEVEL_NONE, "clear")}
    site.change(levels={agent.member.agent: Level.OPTIONAL})
    site.sign()
    eventually(lambda: agent.status()["wanted"] == "optional")
    parent.reset()
    agent.report(b"more")
    drained(agent)
    assert sent_levels(parent) == {(Level.OPTIONAL, Reason.SEALED, "sealed")}


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_process_has_its_own_level(site, parent, tmp_path, monkeypatch, how):
    site.change(default_level=Level.NONE)
    folder = make_folder(site, tmp_path / "agent")
    if how == "environment":
        monkeypatch.setenv("UPSEAL_LEVEL", "required")
    level = Level.REQUIRED if how == "argument" else None
    with Agent(settings_for(folder, parent.url), level) as agent:
        agent.report(b"x")
        agent.start()
        drained(agent)
    assert sent_levels(parent) == {(Level.REQUIRED, Reason.SEALED, "sealed")}


# -- what the way up says --------------------------------------------------------------------


def test_a_decrypting_relay_may_open_too(run, parent, site):
    relay = site.add_relay("r", decrypts=True)
    site.sign()
    parent.capable = lambda: capabilities(relay)
    agent = run()
    drained(agent)
    opener = Opener(relay.private)
    context = b"upseal/v1 fleet\0" + site.deployment
    sealed = [body for body in parent.bodies if body_kind(body) == "sealed"]
    assert all(list(opener.open_batch(body, context))[1:] for body in sealed)
    assert len(agent.status()["recipients"]) == 2
    assert agent.status()["parent"]["relays"] == ["r"]


def test_the_nearest_of_several_relays(run, parent, site):
    far, near = site.add_relay("far", decrypts=True), site.add_relay("near", decrypts=True)
    passing = site.add_relay("passing")
    site.sign()
    above = capabilities(near, parent=capabilities(far))
    parent.capable = lambda: capabilities(passing, parent=above)
    agent = run()
    drained(agent)
    found = {key["key_id"] for key in agent.status()["recipients"]}
    assert near.private[0].key_id.hex() in found
    assert far.private[0].key_id.hex() not in found
    assert agent.status()["parent"]["relays"] == ["passing", "near", "far"]


def lies_about_capabilities(site, relay):
    """Each would have reports go out in clear, if it were believed."""

    def refusal(*args, **changes):
        return capabilities(relay, *args, **{"accepts_sealed": False, **changes})

    hour = 3_600_000
    now = int(time.time() * 1000)
    return {
        "another key": refusal(SigningKey.generate()),
        "another typ": refusal(typ="upseal-manifest+jwt"),
        "expired": refusal(iat=now - 3 * hour, exp=now - 2 * hour),
        "another relay": refusal(sub="00" * 16),
        "the server": refusal(sub="server"),
        "no token": '{"accepts_sealed": false}',
        "nothing": "",
        "cut off": refusal()[:-9],
        "odd": refusal(accepts_sealed="no"),
        "no time": refusal(exp=None),
    }


def test_unsigned_words_are_heard_by_nobody(site):
    relay = site.add_relay("r", decrypts=True)
    now = int(time.time() * 1000)
    assert verified_hops(capabilities(relay), site.manifest, now)
    for name, lie in lies_about_capabilities(site, relay).items():
        assert verified_hops(lie, site.manifest, now) == (), name
    real = capabilities(relay)
    for at in range(0, len(real), 7):
        flipped = real[:at] + chr(ord(real[at]) ^ 1) + real[at + 1 :]
        assert verified_hops(flipped, site.manifest, now) == ()


def test_a_verified_way_ends_where_a_lie_begins(site):
    near, far = site.add_relay("near"), site.add_relay("far", decrypts=True)
    now = int(time.time() * 1000)
    lie = capabilities(far, SigningKey.generate(), accepts_sealed=False)
    hops = verified_hops(capabilities(near, parent=lie), site.manifest, now)
    assert [hop.relay.name for hop in hops] == ["near"]
    token = None
    for _ in range(18):  # a ring of relays, or a chain without end
        token = capabilities(near, parent=token)
    assert len(verified_hops(token, site.manifest, now)) <= 16


def test_unsigned_words_choose_nothing(run, parent, site):
    relay = site.add_relay("r", decrypts=True)
    site.sign()
    lies = list(lies_about_capabilities(site, relay).values())
    heard = []

    def capable():
        heard.append(lies[len(heard) % len(lies)])
        return heard[-1]

    parent.capable = capable
    agent = run(send={"refresh": 0.1})
    for report in REPORTS:
        seen = len(heard)
        agent.report(report)
        eventually(lambda: len(heard) > seen)  # noqa: B023 - called at once
        if len(heard) > len(lies):
            break
    drained(agent)
    assert parent.kinds == {"sealed"}
    assert len(agent.status()["recipients"]) == 1


def test_a_revoked_relay_says_nothing(run, parent, site):
    relay = site.add_relay("r", decrypts=True)
    site.change(revoked_agents=frozenset([relay.relay]))
    site.sign()
    parent.capable = lambda: capabilities(relay, accepts_sealed=False)
    agent = run()
    drained(agent)
    assert parent.kinds == {"sealed"}
    assert len(agent.status()["recipients"]) == 1


@pytest.mark.parametrize("where", ["parent", "above", "manifest"])
def test_a_signed_refusal_counts(run, parent, site, where):
    relay = site.add_relay("r", accepts_sealed=where != "manifest")
    far = site.add_relay("far")
    site.sign()
    above = capabilities(far, accepts_sealed=where != "above")
    parent.capable = lambda: capabilities(relay, parent=above, accepts_sealed=where != "parent")
    drained(run())
    assert sent_levels(parent) == {(Level.OPTIONAL, Reason.PARENT_REFUSES_SEALED, "clear")}
    parent.reset()
    parent.capable = lambda: capabilities(relay, parent=above, accepts_sealed=where != "parent")
    strict = run(level="required", name="strict")
    eventually(lambda: parent.beacons)
    assert strict.status()["why"] == "parent-refuses-sealed"
    assert parent.kinds == set()
    parent.capable = None
    if where != "manifest":
        parent.capable = lambda: capabilities(relay)
        drained(strict)
        assert parent.kinds == {"sealed"}


def test_an_unsigned_refusal_counts_for_nothing(run, parent):
    refused = []

    def refuse(bodies):
        if len(refused) < 3:
            refused.append(bodies)
            return Problem("sealed-not-accepted")
        return None

    parent.refuse = refuse
    drained(run())
    assert parent.kinds == {"sealed"}
    assert parent.reports == REPORTS


# -- manifests --------------------------------------------------------------------------------


def test_a_rotated_key_is_sealed_to_again_at_once(run, parent, site):
    """The parent knows of the rotation before the agent: it says so, and the agent looks."""
    agent = run([], send={"refresh": 3600, "retry": 600, "retry_most": 600})
    eventually(lambda: agent.status()["actual"])
    old = site.tokens[-1]
    site.rotate()
    site.private.pop(0)  # the old one is retired: nothing opens what is sealed to it
    parent.manifests = lambda: [old] if not parent.requests else [site.tokens[-1]]
    site.sign()
    agent.report_many(REPORTS)
    drained(agent)
    assert parent.reports == REPORTS
    tally = agent.tally.all()
    assert tally["problem_stale-key"] == 1
    assert tally["sent_sealed"] == 2
    assert parent.kinds == {"sealed"}


def test_a_stale_key_that_stays_stale_is_not_tried_in_haste(run, parent, site):
    parent.judge = lambda body: Result.failed(body_id(body), Problem("stale-key"))
    agent = run(send={"retry": 0.2, "retry_most": 0.4, "refresh": 3600})
    eventually(lambda: agent.tally.get("problem_stale-key") >= 3)
    gaps = [b - a for a, b in zip(parent.posts, parent.posts[1:], strict=False)]
    assert min(gaps) > 0.09
    assert agent.spool.counters().depth == 25


@pytest.mark.parametrize("lie", ["rolled back", "contradiction", "foreign", "forged", "garbage"])
def test_manifests_that_must_not_be_believed(run, parent, site, lie):
    older = site.sign()
    site.change(levels={})
    now = site.sign()
    agent = run([])
    eventually(lambda: agent.status()["manifest"]["serial"] == site.manifest.serial)
    serial = site.manifest.serial
    other = Site()
    said = {
        "rolled back": lambda: older,
        "contradiction": lambda: site.change(serial=serial, expires=site.now + 9) and site.sign(),
        "foreign": other.sign,
        "forged": lambda: now[:-10] + "AAAAAAAAAA",
        "garbage": lambda: "manifest",
    }[lie]()
    looks = []
    parent.manifests = lambda: looks.append(1) or [said]
    eventually(lambda: len(looks) >= 2)
    agent.report_many(REPORTS)
    drained(agent)
    assert parent.kinds == {"sealed"}
    assert agent.status()["manifest"]["serial"] == serial
    alarms = {alarm["kind"] for alarm in agent.status()["alarms"]}
    assert alarms == ({"manifest"} if lie == "contradiction" else set())


def test_past_its_expiry_it_goes_on_sealing(run, parent, site):
    site.change(issued=site.now - 1000, expires=site.now - 1)
    site.sign()
    agent = run()
    drained(agent)
    assert sent_levels(parent) == {(Level.OPTIONAL, Reason.STALE_MANIFEST, "sealed")}
    assert agent.status()["manifest"]["stale"] is True


# -- answers ----------------------------------------------------------------------------------


def test_pending_is_asked_about(run, parent):
    """The parent takes everything, and knows the receipts a little later."""
    later = {}

    def judge(body):
        later[body_id(body)] = parent.honest(body)
        return Result.pending(body_id(body))

    parent.judge = judge
    parent.results_of = lambda ids: [
        later[i] if len(parent.asked) > 2 else Result.pending(i) for i in ids
    ]
    agent = run(batch={"reports": 5}, send={"resend": 3600})
    drained(agent)
    assert parent.arrived == 5, "nothing was sent twice"
    assert len(parent.asked[2]) > 1, "all are asked about at once"
    assert agent.tally.get("overdue") == 0


def test_unknown_is_sent_again(run, parent):
    parent.judge = lambda body: (
        Result.pending(body_id(body)) if len(parent.bodies) < 3 else parent.honest(body)
    )
    agent = run(send={"resend": 3600})  # what it asks about is unknown: the parent forgot
    drained(agent)
    assert agent.tally.get("unknown") == 2
    assert parent.reports == REPORTS


def test_what_stays_pending_is_sent_again(run, parent):
    parent.judge = lambda body: (
        Result.pending(body_id(body)) if len(parent.bodies) < 2 else parent.honest(body)
    )
    parent.results_of = lambda ids: [Result.pending(i) for i in ids]
    agent = run()
    drained(agent)
    assert agent.tally.get("overdue") == 1
    assert parent.reports == REPORTS


def test_a_lost_answer_makes_a_duplicate_and_no_double(run, parent):
    lost = []

    def judge(body):
        result = parent.honest(body)
        if len(lost) < 2:
            lost.append(result)
            return b"cut off"
        return result

    parent.judge = judge
    drained(run())
    assert parent.arrived == 3
    assert parent.reports == REPORTS
    assert len(parent.units) == 1, "the same triple each time"


def test_more_than_a_few_are_not_on_their_way(run, parent):
    parent.judge = lambda body: Result.pending(body_id(body))
    parent.results_of = lambda ids: [Result.pending(i) for i in ids]
    agent = run(batch={"reports": 1}, send={"pending": 3, "resend": 3600})
    eventually(lambda: len(parent.bodies) == 3)
    eventually(lambda: len(parent.asked) >= 2)
    assert len(parent.bodies) == 3
    assert len(agent.spool.units()) == 3


def forgeries(site):
    """Receipts for a statement digest, none of which may count."""
    stranger = SigningKey.generate()

    def sign(digest, key=site.receipt, deployment=site.deployment, status=Status.STORED):
        return signed_receipt(Receipt(deployment, digest, status), key)

    def flipped(digest, at):
        raw = bytearray(sign(digest))
        raw[at] ^= 1
        return bytes(raw)

    return {
        "stranger": lambda d: sign(d, stranger),
        "stranger with our key id": lambda d: site.receipt.public.key_id + sign(d, stranger)[8:],
        "signing key": lambda d: sign(d, site.signing),
        "another deployment": lambda d: sign(d, deployment=b"x" * 16),
        "another statement": lambda d: sign(os.urandom(32)),
        "flipped status": lambda d: flipped(d, -65),
        "flipped signature": lambda d: flipped(d, -1),
        "flipped digest": lambda d: flipped(d, 45),
        "cut off": lambda d: sign(d)[:-1],
        "longer": lambda d: sign(d) + b"\0",
        "zeros": lambda d: bytes(len(sign(d))),
    }


def test_forged_receipts_take_nothing_out(run, parent, site):
    """One after the other: if one were believed, nobody would come back for the next."""
    forge = forgeries(site)
    told = []

    def judge(body):
        if len(told) == len(forge):
            return parent.honest(body)
        told.append(list(forge)[len(told)])
        digests = [unit.digest for unit in parent.opened(body)]
        return Result.done(body_id(body), [forge[told[-1]](digest) for digest in digests])

    parent.judge = judge
    agent = run()
    drained(agent)
    assert told == list(forge)
    assert parent.reports == REPORTS
    assert parent.arrived == 1
    assert agent.tally.get("without_receipt") == len(forge)
    assert agent.tally.get("forged") == len(forge) - 1, "one is genuine, for another statement"
    assert {alarm["kind"] for alarm in agent.status()["alarms"]} == {"receipt"}
    assert parent.kinds == {"sealed"}


def garbage():
    def redirect():
        return Response(status_code=307, headers={"location": "/v1/elsewhere"})

    html = "<html>please log in</html>"
    return {
        "html": lambda: Response(html, media_type="text/html"),
        "nothing": lambda: Response(b""),
        "204": lambda: Response(status_code=204),
        "redirect": redirect,
        "binary": lambda: Response(os.urandom(3000)),
        "json of another form": lambda: Response(b'{"results": {}}'),
        "deep json": lambda: Response(b"[" * 100_000),
        "no results": lambda: Response(b'{"results": []}'),
        "results for others": lambda: Response(results.encode([Result.done(b"x" * 32, [])])),
        "odd states": lambda: Response(b'{"results":[{"body":"%s","state":"gone"}]}' % (b"0" * 64)),
        "huge": lambda: Response(b'{"results": [' + b" " * (5 << 20) + b"]}"),
        "500": lambda: Response("oops", status_code=500),
        "404": lambda: Response("nothing here", status_code=404),
        "401 of a proxy": lambda: Response(html, status_code=401, media_type="text/html"),
    }


def test_garbage_changes_nothing_but_the_pace(run, parent):
    said = []

    def raw(path):
        if path != "units" or len(said) == len(garbage()):
            return None
        said.append(list(garbage())[len(said)])
        return garbage()[said[-1]]()

    parent.raw = raw
    agent = run()
    drained(agent)
    assert said == list(garbage())
    assert parent.reports == REPORTS
    assert parent.arrived == 1
    assert parent.kinds == {"sealed"}


@pytest.mark.parametrize("path", ["results", "manifest", "capabilities"])
def test_garbage_elsewhere_too(run, parent, path):
    parent.raw = lambda asked: Response(os.urandom(2000)) if asked == path else None
    parent.judge = lambda body: (
        Result.pending(body_id(body)) if len(parent.bodies) < 3 else parent.honest(body)
    )
    agent = run()
    drained(agent)
    assert parent.reports == REPORTS
    assert parent.kinds == {"sealed"}


def test_every_problem_there_is_loses_nothing(run, parent):
    from upseal.fleet.http.problems import NAMES

    names = [name for name in NAMES if name != "clock"]
    waiting = list(names)

    def refuse(bodies):
        return Problem(waiting.pop()) if waiting else None

    parent.refuse = refuse
    drained(run())
    assert not waiting
    waiting = list(names)
    parent.refuse = None
    parent.judge = lambda body: (
        Result.failed(body_id(body), Problem(waiting.pop())) if waiting else parent.honest(body)
    )
    drained(run(name="other"))
    assert not waiting
    assert parent.reports == sorted(REPORTS * 2)
    assert parent.kinds == {"sealed"}


def test_retry_after_is_honoured(run, parent):
    parent.refuse = lambda bodies: (
        Problem("full", retry_after=2) if len(parent.requests) < 2 else None
    )
    drained(run())
    assert parent.posts[1] - parent.posts[0] >= 2


def test_a_parent_that_comes_later(site, tmp_path):
    with parent_above(site) as early:
        url = early.url
    with agent_of(site, tmp_path, url) as agent:
        agent.report_many(REPORTS)
        eventually(lambda: agent.tally.get("held") >= 3)
        assert agent.status()["parent"]["trouble"] == "unreachable"
        assert agent.status()["actual"] == "sealed"
        assert agent.spool.counters().depth == 25
        with parent_above(site) as late:
            # The port of the first may be taken: the agent's settings follow.
            agent.stop()
            agent.settings = settings_for(agent.settings.directory, late.url)
            agent.start()
            drained(agent)
            assert late.reports == REPORTS


def test_a_clock_that_is_off_is_corrected_for_proofs(run, parent, monkeypatch):
    from upseal.fleet.agent import parent as room

    behind = [3 * 3_600_000]
    monkeypatch.setattr(room, "_OFFSET_PAUSE", 3600.0)
    monkeypatch.setattr(room, "now_ms", lambda: int(time.time() * 1000) - behind[0])
    agent = run()
    drained(agent)
    assert agent.tally.get("problem_clock") == 0, "corrected, and sent again, at once"
    assert agent._parent._offset == pytest.approx(behind[0], abs=5000)
    stated = {u.statement.milliseconds for b in parent.bodies for u in parent.opened(b)}
    assert all(abs(ms - time.time() * 1000) < 60_000 for ms in stated), "for proofs alone"
    # Soon again: no. A parent must not play with our clock.
    behind[0] = 0
    agent.report(b"more")
    eventually(lambda: agent.tally.get("problem_clock"))
    assert agent._parent._offset == pytest.approx(3 * 3_600_000, abs=5000)
    # After a while: yes. Its clock may have jumped, and its date may have lagged behind.
    monkeypatch.setattr(room, "_OFFSET_PAUSE", 0.0)
    drained(agent)
    assert agent._parent._offset == pytest.approx(0, abs=5000)


# -- the server's own words ----------------------------------------------------------------------


def test_refused_keeps_everything(run, parent, site):
    def judge(body):
        receipts = [
            signed_receipt(Receipt(site.deployment, unit.digest, Status.REFUSED), site.receipt)
            for unit in parent.opened(body)
        ]
        return Result.done(body_id(body), receipts)

    honest, parent.judge = parent.judge, judge
    agent = run()
    stays(agent, parent)
    assert "the server refuses what this agent sends" in {
        alarm["what"] for alarm in agent.status()["alarms"]
    }
    parent.judge = honest
    drained(agent)
    assert parent.reports == REPORTS


def test_a_contradiction_is_made_again_once(run, parent, site):
    """As after a virtual machine was cloned: the server has other reports under that number."""
    epochs = []

    def judge(body):
        (unit,) = parent.opened(body)
        epochs.append(unit.statement.epoch)
        status = Status.CONTRADICTION if len(set(epochs)) == 1 else Status.STORED
        if status is Status.STORED:
            return parent.honest(body)
        receipt = Receipt(site.deployment, unit.digest, status)
        return Result.done(body_id(body), [signed_receipt(receipt, site.receipt)])

    parent.judge = judge
    agent = run()
    drained(agent)
    assert len(epochs) == 2
    assert epochs[0] != epochs[1]
    assert parent.reports == REPORTS
    assert "contradiction" in {alarm["kind"] for alarm in agent.status()["alarms"]}


def test_a_second_contradiction_is_set_aside_and_kept(run, parent, site):
    def judge(body):
        (unit,) = parent.opened(body)
        if len(unit.records) == 1:
            return parent.honest(body)
        receipt = Receipt(site.deployment, unit.digest, Status.CONTRADICTION)
        return Result.done(body_id(body), [signed_receipt(receipt, site.receipt)])

    parent.judge = judge
    agent = run()
    eventually(lambda: stage_count(agent, "aside") == 1)
    assert len(parent.bodies) == 2
    agent.report(b"goes on")
    eventually(lambda: parent.reports == [b"goes on"])
    eventually(lambda: agent.spool.counters().stored == 1)
    assert agent.spool.counters().depth == 25


def test_what_the_disk_damaged_after_it_was_stored(run, parent, site):
    """The server has the whole unit: the contradiction says so, and nothing is made again."""
    from test_fleet_spool import damage

    agent = run([])
    parent.raw = lambda path: Response(status_code=500) if path == "units" else None
    agent.report_many(REPORTS)
    eventually(lambda: parent.posts)
    agent.stop()
    damage(agent.settings.directory, 3)

    def judge(body):
        (unit,) = parent.opened(body)
        if unit.records != REPORTS[:2] + REPORTS[3:]:
            return parent.honest(body)
        receipt = Receipt(site.deployment, unit.digest, Status.CONTRADICTION)
        return Result.done(body_id(body), [signed_receipt(receipt, site.receipt)])

    parent.raw, parent.judge = None, judge
    agent.start()
    eventually(lambda: agent.spool.counters().stored >= 24)
    assert agent.spool.counters().lost == 1
    assert "spool" in {alarm["kind"] for alarm in agent.status()["alarms"]}
    eventually(lambda: parent.reports)
    (told,) = [json.loads(report) for report in parent.reports]
    assert (told["property"], told["lost"]) == ("upseal_lost_reports", 1)


def test_old_receipts_count_for_the_same_unit(site, tmp_path):
    """A receipt for a statement that was sent before the last one is as good."""
    with parent_above(site) as parent:
        first = []

        def judge(body):
            (unit,) = parent.opened(body)
            first.append(unit.digest)
            if len(first) < 3:
                return Result.failed(body_id(body), Problem("internal"))
            receipt = Receipt(site.deployment, first[0], Status.STORED)
            return Result.done(body_id(body), [signed_receipt(receipt, site.receipt)])

        parent.judge = judge
        with agent_of(site, tmp_path, parent.url) as agent:
            agent.report(b"x")
            drained(agent)
        assert len(set(first)) == 3


def test_a_receipt_that_cannot_be_written_down_is_not_forgotten(run, parent, monkeypatch):
    from upseal.fleet.agent import sender
    from upseal.fleet.agent.spool import Spool, SpoolFull

    real, full = Spool.stored, [True]

    def stored(self, unit):
        if full[0]:
            raise SpoolFull("no room")
        return real(self, unit)

    monkeypatch.setattr(sender, "_UPKEEP", 0.1)
    monkeypatch.setattr(Spool, "stored", stored)
    agent = run()
    eventually(lambda: stage_count(agent, "receipted") == 1)
    full[0] = False
    drained(agent)
    assert parent.arrived == 1, "it was not sent again"


# -- pace and memory -----------------------------------------------------------------------------


def test_several_units_are_in_flight(run, monkeypatch):
    inside, lock, enough = [0], threading.Lock(), threading.Event()
    real = Answers.units

    def units(self, response, asked, believed):
        with lock:
            inside[0] += 1
            if inside[0] == 4:
                enough.set()
        enough.wait(30)
        return real(self, response, asked, believed)

    monkeypatch.setattr(Answers, "units", units)
    drained(run(batch={"reports": 5}))
    assert enough.is_set()


def test_plaintext_is_not_kept_while_it_waits(run, parent, site):
    agent = run()
    parent.raw = lambda path: Response(status_code=503)
    eventually(lambda: agent.tally.get("held"))
    sender = agent.sender
    eventually(lambda: all(f.stage is not Stage.SENDING for f in sender._flights.all()))
    assert all(flight.records is None for flight in sender._flights.all())


def test_every_send_is_sealed_afresh(run, parent):
    parent.judge = lambda body: (
        Result.failed(body_id(body), Problem("internal")) if len(parent.bodies) < 3
        else parent.honest(body)
    )  # fmt: skip
    drained(run())
    assert len(parent.bodies) == len(set(parent.bodies)) == 3
    opener = Opener([parent.site.private[-1]])
    with pytest.raises(OpenError):
        opener.open_batch(parent.bodies[0], b"another context")


def sender_of(agent, above=None, level=lambda believed: Level.NONE):
    """One that does nothing by itself."""
    credentials = Credentials.load(agent.settings.directory)
    tally, alarms = agent.tally, agent.alarms
    return Sender(
        agent.settings, credentials, agent.spool, above, level, tally, alarms, lambda: None
    )


def test_every_sender_has_an_epoch_of_its_own(site, tmp_path):
    """Else, begun again, it would use numbers that the server knows for other reports."""
    with agent_of(site, tmp_path, "http://127.0.0.1:1", started=False) as agent:
        epochs = []
        for report in (b"one", b"two"):
            agent.report(report)
            epochs.append(sender_of(agent)._planned().unit.epoch)
    assert len(epochs[0]) == 16
    assert epochs[0] != epochs[1]


def test_whether_to_withhold_is_decided_at_the_last_moment(site, tmp_path):
    """The unit was launched when it might go in clear; when its turn comes, it no longer may."""
    posted, wanted = [], [Level.NONE]
    above = SimpleNamespace(
        believed=lambda: Believed(None, Absent.NEVER_SEEN, Known()),
        post=lambda *args, **more: posted.append(args),
    )
    with agent_of(site, tmp_path, "http://127.0.0.1:1", started=False) as agent:
        agent.report(SECRET)
        sender = sender_of(agent, above, lambda believed: wanted[0])
        assert isinstance(sender._decide()[1], Clear)
        flight = sender._planned()
        assert flight.records == [SECRET]
        wanted[0] = Level.REQUIRED
        sender._deliver(flight)
    assert posted == []
    assert flight.stage is Stage.READY
    assert flight.records is None, "plaintext is not kept while it waits"


def test_what_a_relay_signed_counts_until_it_expires(site):
    near, far = site.add_relay("near"), site.add_relay("far", decrypts=True)
    now, hour = int(time.time() * 1000), 3_600_000
    above = capabilities(far, accepts_sealed=False, exp=now + hour)
    token = capabilities(near, parent=above, exp=now + 3 * hour)
    hops = verified_hops(token, site.manifest, now)
    key = far.private[0].public_key
    assert known_parent(hops, now) == Known(False, key)
    assert known_parent(hops, now + 2 * hour) == Known(True, None), "the nearer one still counts"
    assert known_parent(hops, now + 4 * hour) == Known()


@pytest.mark.parametrize("lack", [{"key_ids": []}, {"key_ids": ["00" * 8]}, {"decrypts": False}])
def test_nothing_is_sealed_to_a_key_that_a_relay_does_not_hold(site, lack):
    relay = site.add_relay("r", decrypts=True)
    now = int(time.time() * 1000)
    hops = verified_hops(capabilities(relay), site.manifest, now)
    assert known_parent(hops, now) == Known(True, relay.private[0].public_key)
    hops = verified_hops(capabilities(relay, **lack), site.manifest, now)
    assert known_parent(hops, now) == Known(True, None)


def test_what_was_verified_counts_until_the_manifest_says_otherwise(site):
    relay = site.add_relay("r", decrypts=True)
    answer = SimpleNamespace(status=200, body=capabilities(relay, accepts_sealed=False).encode())
    client = SimpleNamespace(request=lambda *args, **more: answer)
    trust = SimpleNamespace(manifest=site.manifest)
    trust.counting = lambda now: (trust.manifest, Absent.DISABLED)
    parent = Parent(client, None, trust, None)
    for answer.status in (200, 503):
        parent._refresh_capabilities()
        assert parent.believed().parent == Known(False, relay.private[0].public_key)
    trust.manifest = site.change(revoked_agents=frozenset([relay.relay]))
    parent._refresh_capabilities()
    assert parent.believed().parent == Known()


def test_the_etag_of_what_was_not_believed_is_forgotten(site):
    """Or a parent that lies once could have us told for ever that there is nothing new."""
    asked, outcome = [], [Outcome.ACCEPTED]

    def request(method, path, headers=None, **more):
        asked.append(headers.get("if-none-match"))
        return SimpleNamespace(status=200, body=b"a.b.c", headers={"etag": f'"{len(asked)}"'})

    trust = SimpleNamespace(manifest=site.manifest, offer=lambda tokens, now: outcome[0])
    parent = Parent(SimpleNamespace(request=request), None, trust, None)
    for outcome[0] in (Outcome.ACCEPTED, Outcome.SAME, Outcome.INVALID, Outcome.SAME):
        parent._refresh_manifest()
    assert asked == [None, '"1"', '"2"', None]


def test_what_was_said_before_is_not_about_a_unit_made_again():
    flights = Flights(Send())
    old = SpooledUnit(1, b"e" * 16, 1, 1, 2, 2, False, False)
    new = dataclasses.replace(old, epoch=b"f" * 16, remade=True)
    flight = flights.add(old)
    assert flights.sent(flight, old, b"first", b"body", 1)
    flights.remade(flight, new, 0.0)
    assert flights.of_digest(b"first") is None
    assert not flights.sent(flight, old, b"late", b"body", 1), "sealed while it was made again"
    assert flights.of_digest(b"late") is None
    assert flights.sent(flight, new, b"second", b"body", 1)
    assert flights.of_digest(b"second") is flight


def test_a_unit_that_is_not_what_it_was_made_of_is_set_aside(site, tmp_path, monkeypatch):
    def damaged(self, unit):
        raise SpoolDamaged

    monkeypatch.setattr(Spool, "records", damaged)
    above = SimpleNamespace(believed=lambda: Believed(None, Absent.NEVER_SEEN, Known()))
    with agent_of(site, tmp_path, "http://127.0.0.1:1", started=False) as agent:
        agent.report(b"x")
        sender = sender_of(agent, above)
        flight = sender._planned()
        flight.records = None
        sender._deliver(flight)
        assert sender._flights.all() == [flight]
        assert flight.stage is Stage.ASIDE
        assert [alarm["kind"] for alarm in agent.alarms.all()] == ["spool"]


def test_what_a_process_said_that_has_ended_is_not_the_status(site, tmp_path):
    told = {"wanted": "none", "actual": "clear", "why": "level-none", "trouble": "unreachable"}
    with agent_of(site, tmp_path, "http://127.0.0.1:1", started=False, level="required") as agent:
        (agent.settings.directory / "status.json").write_text(json.dumps(told))
        status = agent.status()
    assert not status["running"]
    assert (status["wanted"], status["actual"]) == ("required", "sealed")
    assert status["parent"]["trouble"] is None


def test_the_identity_of_another_agent_is_refused(site, tmp_path):
    folder = make_folder(site, tmp_path / "agent")
    assert Credentials.load(folder).agent
    (folder / "identity.pem").write_bytes(SigningKey.generate().to_pem())
    with pytest.raises(NotEnrolled, match="another agent"):
        Credentials.load(folder)

# SPDX-License-Identifier: Apache-2.0
"""A passing relay: takes, keeps, passes on as it came, and brings the receipts back."""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import time

import pytest
from fleet_relay_support import (
    Status,
    eventually,
    make_folder,
    parent_of,
    relay_of,
    running,
    senders,
    settings_for,
)
from fleet_support import Site

from upseal import PrivateKey
from upseal.fleet.credentials import prove
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result, State
from upseal.fleet.relay.relay import Relay
from upseal.fleet.relay.state import AlreadyRunning
from upseal.fleet.units import body_id, bundle


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A parent and a relay of usual settings, for the tests that need no others."""
    site = Site()
    site.enable()
    with (
        parent_of(site) as parent,
        relay_of(site, tmp_path_factory.mktemp("house"), parent.url) as relay,
    ):
        yield site, parent, relay


@pytest.fixture
def relay(house):
    """The relay of the house; afterwards nothing is left in it."""
    _, parent, relay = house
    parent.reset()
    yield relay
    parent.reset()
    eventually(lambda: relay.state.queue.stats().bodies == 0)


@pytest.fixture
def site(house):
    return house[0]


@pytest.fixture
def parent(house):
    house[1].reset()
    return house[1]


@pytest.fixture
def sender(site, relay):
    with senders(site, relay.url) as (sender,):
        yield sender


def one(site, relay):
    return senders(site, relay.url)


def test_a_body_goes_up_as_it_came_and_its_receipts_come_down(parent, relay, sender):
    unit = sender.unit(b"a report", b"another")
    body = sender.sealed(unit)
    (result,) = sender.post(body, wait=20)
    assert result.state is State.DONE
    assert sender.receipts(result) == {unit.digest: Status.STORED}
    assert parent.bodies == [body], "not a byte of it is changed"
    clear = sender.clear(sender.unit(b"in clear"))
    assert sender.post(clear, wait=20)[0].state is State.DONE
    assert parent.bodies[1:] == [clear]
    assert sender.ask(body_id(body), body_id(clear))[0] == result
    assert relay.state.queue.stats().bodies == 0
    text = relay.meters.metrics.render().decode()
    assert 'upseal_relay_bodies_in_total{kind="sealed"} 1.0' in text
    assert 'upseal_relay_bodies_finished_total{state="done"} 2.0' in text


def test_a_bundle_is_answered_body_by_body(parent, sender):
    bodies = [sender.sealed(sender.unit(b"%d" % i)) for i in range(5)]
    answers = sender.post(bundle([*bodies, bodies[0]]), wait=20)
    assert [answer.body for answer in answers] == [body_id(body) for body in bodies]
    assert {answer.state for answer in answers} == {State.DONE}
    assert sorted(parent.bodies) == sorted(bodies), "the same body twice is one"


def test_what_waits_together_goes_up_together(parent, sender):
    parent.refuse = lambda bodies: Problem("full", retry_after=0)
    bodies = [sender.sealed(sender.unit(b"%d" % i)) for i in range(40)]
    for body in bodies:
        assert sender.post(body)[0].state is State.PENDING
    refused = len(parent.requests)
    parent.refuse = None
    sender.done(*bodies)
    assert len(parent.requests) - refused < 10
    assert len(parent.reports) == 40


def test_a_parent_that_is_away_costs_nothing(site, tmp_path):
    with parent_of(site) as parent:
        url = parent.url
    limits = {"max_bytes": 20_000, "hop_share": 1.0}
    with relay_of(site, tmp_path, url, queue=limits) as relay, one(site, relay) as (sender,):
        bodies = [sender.sealed(sender.unit(b"%d" % i)) for i in range(10)]
        for body in bodies:
            assert sender.post(body)[0].state is State.PENDING
        eventually(lambda: relay.uplink.away)
        ready = sender.client.request("GET", "/readyz")
        assert ready.status == 200, "or a balancer would send to no relay at all"
        assert sender.client.request("GET", "/healthz").status == 200
        assert sender.ask(body_id(bodies[0]))[0].state is State.PENDING
        problem = sender.client.request("POST", "/v1/enrol", b"x").problem()
        assert (problem.name, problem.status) == ("parent-away", 503)
        assert sender.client.request("GET", "/v1/manifest").status == 200, "from the disk"
        with pytest.raises(Problem) as refused:
            sender.post(sender.sealed(sender.unit(os.urandom(20_000))))
        assert refused.value.name == "parent-away", "there is no room, and this is why"
        assert refused.value.retry_after > 0
    # It comes back elsewhere, and the relay is started again.
    with parent_of(site) as parent:
        settings = settings_for(tmp_path / "relay", parent.url)
        with running(settings) as relay, one(site, relay) as (sender,):
            answers = sender.done(*bodies)
            assert {answer.state for answer in answers} == {State.DONE}
            assert len(parent.reports) == 10
            eventually(lambda: sender.client.request("GET", "/readyz").status == 200)


def test_a_full_queue_says_so_and_takes_the_rest_later(site, parent, tmp_path):
    away = Problem("parent-away", retry_after=0)
    parent.refuse = lambda bodies: away
    limits = {"max_bodies": 4, "hop_share": 1.0}
    with (
        relay_of(site, tmp_path, parent.url, queue=limits) as relay,
        one(site, relay) as (sender,),
    ):
        bodies = [sender.sealed(sender.unit(b"%d" % i)) for i in range(6)]
        for body in bodies[:4]:
            sender.post(body)
        for body in (bodies[4], bundle(bodies[3:6])):
            with pytest.raises(Problem) as refused:
                sender.post(body)
            assert (refused.value.name, refused.value.status) == ("full", 503)
            assert refused.value.retry_after > 0
        assert sender.post(bodies[0])[0].state is State.PENDING, "what it has needs no room"
        assert sender.client.request("GET", "/readyz").json()["why"] == "the queue is full"
        parent.refuse = None
        sender.done(*bodies[:4])
        sender.post(bundle(bodies[4:]))
        sender.done(*bodies)
        assert len(parent.reports) == 6


def test_one_agent_does_not_take_all_the_room(site, parent, tmp_path):
    parent.refuse = lambda bodies: Problem("full", retry_after=0)
    limits = {"max_bodies": 10, "hop_share": 0.3}
    with (
        relay_of(site, tmp_path, parent.url, queue=limits) as relay,
        senders(site, relay.url, 2) as (greedy, modest),
    ):
        with pytest.raises(Problem, match="full"):
            for i in range(10):
                greedy.post(greedy.sealed(greedy.unit(b"%d" % i)))
        assert greedy.sequence == 4
        assert modest.post(modest.sealed(modest.unit(b"a")))[0].state is State.PENDING


def test_a_body_that_is_to_wait_holds_up_no_other(site, parent, tmp_path):
    """An agent whose bodies the server has no room for, dead letters say, is not its neighbour."""

    def judge(body):
        if body in unwelcome:
            return Result.failed(body_id(body), Problem("full", retry_after=3600))
        return parent.honest(body)

    with (
        relay_of(site, tmp_path, parent.url) as relay,
        senders(site, relay.url, 2) as (rogue, honest),
    ):
        unwelcome = [rogue.sealed(rogue.unit(b"%d" % i)) for i in range(3)]
        parent.judge = judge
        for body in unwelcome:  # each in a request of its own, as the only body
            rogue.post(body)
            eventually(lambda body=body: body in parent.bodies)
        bodies = [honest.sealed(honest.unit(b"%d" % i)) for i in range(3)]
        for body in bodies:
            honest.post(body)
        assert {answer.state for answer in honest.done(*bodies)} == {State.DONE}
        assert {answer.state for answer in rogue.ask(*map(body_id, unwelcome))} == {State.PENDING}


def test_results_of_the_parent_are_fetched_when_it_is_slow(parent, sender):
    parent.judge = lambda body: Result.pending(body_id(body))
    waiting = {}

    def later(ids):
        return [waiting.get(i) or Result.pending(i) for i in ids]

    parent.results_of = later
    bodies = [sender.sealed(sender.unit(b"%d" % i)) for i in range(3)]
    for body in bodies:
        assert sender.post(body)[0].state is State.PENDING
    eventually(lambda: parent.asked and len(parent.asked[-1]) == 3)
    assert len(parent.bodies) == 3, "what the parent has is not sent again"
    for body in bodies:
        waiting[body_id(body)] = parent.honest(body)
    assert {answer.state for answer in sender.done(*bodies)} == {State.DONE}


def test_what_the_parent_has_forgotten_is_sent_again(parent, sender):
    parent.judge = lambda body: Result.pending(body_id(body))
    body = sender.sealed(sender.unit(b"a"))
    sender.post(body)
    eventually(lambda: len(parent.bodies) > 2)
    parent.judge = parent.honest
    assert sender.done(body)[0].state is State.DONE
    assert set(parent.bodies) == {body}


def test_problems_of_a_body_are_handed_down(site, parent, sender, monkeypatch):
    old = sender.sealed(sender.unit(b"old"))
    monkeypatch.setattr(site, "private", [PrivateKey.generate()])  # its key is gone
    good = sender.clear(sender.unit(b"good"))
    answers = sender.post(bundle([old, good]), wait=20)
    assert [answer.state for answer in answers] == [State.PROBLEM, State.DONE]
    assert answers[0].problem.name == "stale-key"
    assert sender.ask(body_id(old))[0].problem.name == "stale-key", "and stays for who asks"


def test_a_request_too_large_for_the_parent_is_sent_in_parts(parent, sender):
    def small(bodies):
        return Problem("too-large") if sum(map(len, bodies)) > 5000 else None

    parent.refuse = small
    bodies = [sender.sealed(sender.unit(os.urandom(1000))) for _ in range(9)]
    large = sender.sealed(sender.unit(os.urandom(9000)))
    sender.post(bundle([*bodies[:4], large, *bodies[4:]]))
    assert {answer.state for answer in sender.done(*bodies)} == {State.DONE}
    (result,) = sender.done(large)
    assert result.problem.name == "too-large"


def test_a_relay_may_refuse_sealed_bodies_or_clear_ones(site, parent, tmp_path):
    for kind in ("sealed", "clear"):
        changes = {f"accepts_{kind}": False}
        with (
            relay_of(site, tmp_path, parent.url, f"no-{kind}", **changes) as relay,
            one(site, relay) as (sender,),
        ):
            bodies = {
                "sealed": sender.sealed(sender.unit(b"a")),
                "clear": sender.clear(sender.unit(b"b")),
            }
            answers = sender.post(bundle(bodies.values()), wait=20)
            states = dict(zip(bodies, answers, strict=True))
            assert states[kind].problem.name == f"{kind}-not-accepted"
            assert [a.state for name, a in states.items() if name != kind] == [State.DONE]
            assert sender.ask(body_id(bodies[kind]))[0].state is State.UNKNOWN


def test_results_come_when_there_is_news(parent, sender):
    parent.refuse = lambda bodies: Problem("full", retry_after=0)
    bodies = [sender.sealed(sender.unit(b"%d" % i)) for i in range(2)]
    sender.post(bundle(bodies))
    unknown = os.urandom(32)
    answers = sender.ask(body_id(bodies[0]), unknown, wait=30)
    assert [a.state for a in answers] == [State.PENDING, State.UNKNOWN], "at once"
    heard = []
    asking = threading.Thread(
        target=lambda: heard.extend(sender.ask(*map(body_id, bodies), wait=30))
    )
    asking.start()
    asking.join(0.2)
    assert not heard, "it is held"
    parent.refuse = None
    asking.join(30)
    assert {answer.state for answer in heard} <= {State.DONE, State.PENDING}
    assert heard[0].state is State.DONE or heard[1].state is State.DONE


# -- who may send, and what ----------------------------------------------------------


def test_strangers_are_refused(site, parent, relay):
    with senders(site, relay.url, 2) as (a, b):
        body = a.sealed(a.unit(b"a"))
        now = int(time.time() * 1000)
        good = prove(a.me.credential, a.me.hop, "POST", "/v1/units", body, now)
        stranger = Site()
        theirs = stranger.agent()
        cases = {
            "nothing at all": {},
            "no proof": {"Authorization": good["Authorization"]},
            "another's key": prove(a.me.credential, b.me.hop, "POST", "/v1/units", body, now),
            "another path": prove(a.me.credential, a.me.hop, "POST", "/v1/results", body, now),
            "another body": prove(a.me.credential, a.me.hop, "POST", "/v1/units", b"x", now),
            "another deployment": prove(
                theirs.credential, theirs.hop, "POST", "/v1/units", body, now
            ),
            "garbage": {"Authorization": "Upseal a.b.c", "Upseal-Proof": "x"},
        }
        for name, headers in cases.items():
            response = a.client.request("POST", "/v1/units", body, headers)
            assert response.problem().name == "unauthenticated", name
        late = prove(a.me.credential, a.me.hop, "POST", "/v1/units", body, now - 600_000)
        response = a.client.request("POST", "/v1/units", body, late)
        assert response.problem().name == "clock"
        assert abs(response.date - now) < 60_000
        assert parent.bodies == []
        assert a.client.request("POST", "/v1/units", body, good).status == 200


def test_a_revoked_hop_is_refused_from_the_next_manifest_on(site, relay, sender):
    sender.post(sender.sealed(sender.unit(b"a")), wait=20)
    site.change(revoked_agents=frozenset({sender.me.hop.public.agent_id}))
    site.sign()
    eventually(lambda: relay.control.current().revoked_agents)
    with pytest.raises(Problem, match="revoked"):
        sender.post(sender.sealed(sender.unit(b"b")))


def test_a_relay_that_is_revoked_says_so(site, relay):
    site.change(revoked_agents=frozenset({relay.member.hop.public.agent_id}))
    site.sign()
    eventually(lambda: relay.why_not_ready() == "this relay is revoked")
    site.change(revoked_agents=frozenset())
    site.sign()
    eventually(lambda: relay.why_not_ready() is None)


def test_what_is_no_body_is_malformed(parent, relay, sender):
    body = sender.sealed(sender.unit(b"a"))
    for damaged in (
        b"",
        b"UPB\x01",
        b"XYZ\x01" + body,
        bundle([body, body])[:-1],
        bundle([body]) + b"\0",
        b"UPB\x01" + (1).to_bytes(4, "big") + b"\xff\xff\xff\xff",
        b"UPB\x01" + b"\xff\xff\xff\xff",
        bundle([body]).replace(b"USL", b"UPB", 1),
    ):
        try:
            problem = sender.post(damaged)[0].problem
        except Problem as refused:
            problem = refused
        assert problem.name == "malformed", damaged[:8]
    assert relay.state.queue.stats().bodies == 0
    assert parent.bodies == []


def test_too_much_is_refused_before_it_is_read(relay, sender):
    connection = http.client.HTTPConnection(*relay.url.removeprefix("http://").split(":"))
    with contextlib.closing(connection):
        now = int(time.time() * 1000)
        proof = prove(sender.me.credential, sender.me.hop, "POST", "/v1/units", b"", now)
        connection.putrequest("POST", "/v1/units")
        for name, value in proof.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(relay.settings.http.max_body + 1))
        connection.endheaders()
        assert connection.getresponse().status == 413, "without a byte of it"
    assert sender.post(sender.sealed(sender.unit(b"a")), wait=20)[0].state is State.DONE


# -- a parent that lies ----------------------------------------------------------------


def test_nonsense_from_the_parent_loses_nothing(parent, sender):
    said = [b"", b"{", b"[]", b'{"results": 5}', b'{"results": [{"body": "00", "state": "done"}]}']
    rest = list(said)
    parent.judge = lambda body: rest.pop() if rest else parent.honest(body)
    body = sender.sealed(sender.unit(b"a"))
    sender.post(body)
    assert sender.done(body)[0].state is State.DONE
    assert parent.bodies == [body] * (len(said) + 1)


def test_answers_about_other_bodies_change_nothing(parent, sender):
    other = os.urandom(32)
    parent.judge = lambda body: Result.done(other, [b"r"])
    body = sender.sealed(sender.unit(b"a"))
    sender.post(body)
    eventually(lambda: len(parent.requests) > 2)
    assert sender.ask(body_id(body), other)[1].state is State.UNKNOWN
    parent.judge = parent.honest
    assert sender.done(body)[0].state is State.DONE


def test_a_parent_that_refuses_the_relay_itself_loses_nothing(parent, relay, sender):
    parent.refuse = lambda bodies: Problem("revoked")
    body = sender.sealed(sender.unit(b"a"))
    sender.post(body)
    eventually(lambda: "revoked" in (relay.why_not_ready() or ""))
    parent.refuse = None
    assert sender.done(body)[0].state is State.DONE
    assert relay.why_not_ready() is None


# -- a chain, and restarts ---------------------------------------------------------------


def test_two_relays_in_a_row(site, parent, tmp_path):
    with (
        relay_of(site, tmp_path, parent.url, "upper") as upper,
        relay_of(site, tmp_path, upper.url, "lower") as lower,
        one(site, lower) as (sender,),
    ):
        body = sender.sealed(sender.unit(b"a"))
        (result,) = sender.post(body, wait=20)
        assert result.state is State.DONE
        assert parent.bodies == [body]


def test_two_processes_do_not_share_a_folder(relay):
    with pytest.raises(AlreadyRunning):
        Relay(relay.settings)


def test_a_damaged_queue_is_set_aside(site, parent, tmp_path):
    folder = make_folder(site, tmp_path / "relay", site.add_relay())
    (folder / "queue.db").write_bytes(b"this is no database" * 500)
    with running(settings_for(folder, parent.url)) as relay, one(site, relay) as (sender,):
        assert sender.post(sender.sealed(sender.unit(b"a")), wait=20)[0].state is State.DONE
    assert [path.read_bytes()[:4] for path in folder.glob("queue.db.damaged-*")] == [b"this"]

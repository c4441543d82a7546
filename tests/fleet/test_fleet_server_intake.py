# SPDX-License-Identifier: Apache-2.0
"""A whole server over HTTP: what it stores, refuses, keeps for later, and says about it."""

import hashlib
import json
import os
import random
import threading
from urllib.parse import quote

import pytest
from fleet_server_support import Sender, Site, clear, now_ms, sealed, until

from upseal import PrivateKey, Sealer
from upseal.fleet.agent.parent import verified_hops
from upseal.fleet.credentials import prove
from upseal.fleet.http.client import Client
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import State
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Level, Reason
from upseal.fleet.server import upkeep
from upseal.fleet.server.store import alarms, clients, deadletters, units
from upseal.fleet.units import Status, bundle, fleet_context, make_unit, unit_rows


@pytest.fixture(scope="module", autouse=True)
def quick():
    before, upkeep.EVERY = upkeep.EVERY, 0.05
    yield
    upkeep.EVERY = before


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """One server for all tests of this file: each brings its own agents."""
    made = Site(tmp_path_factory.mktemp("site") / "deployment")
    made.enable()
    made.configure("[server]\ndead_letter_bytes_per_hop = 20000")
    with made.running():
        yield made


@pytest.fixture
def agent(site, request):
    return site.enrol(request.node.name[:100])


@pytest.fixture(scope="module")
def relay(site):
    return site.enrol("relay", role="relay")


def stored(site, sender):
    with site.store() as store:
        return [report.body for report in units.read(store, sender.agent)]


def client(site, sender):
    with site.store() as store, store.reading() as db:
        (found,) = clients.listing(db, sender.agent)
    return found


def alarms_of(site, kind, subject):
    with site.store() as store, store.reading() as db:
        return [a for a in alarms.listing(db) if (a.kind, a.subject) == (kind, subject)]


def letter(site, body):
    with site.store() as store, store.reading() as db:
        return deadletters.find(db, hashlib.sha256(body).digest())


def only(found):
    (result,) = found
    return result


def problem_of(result):
    assert result.state is State.PROBLEM
    return result.problem.name


# -- what is stored ----------------------------------------------------------------------


def test_sealed_and_clear_units_are_stored_and_receipted(site, agent):
    first, second = agent.unit(b"one", b""), agent.unit(b"three")
    third = agent.unit(b"clear", reason=Reason.NO_CERTIFICATE)
    found = only(agent.send(sealed(site, first, second)))
    assert agent.statuses(found) == dict.fromkeys([first.digest, second.digest], Status.STORED)
    found = only(agent.send(clear(third)))
    assert agent.statuses(found) == {third.digest: Status.STORED}
    assert stored(site, agent) == [b"one", b"", b"three", b"clear"]
    now = client(site, agent)
    assert (now.wanted, now.actual, now.reason) == (1, "clear", Reason.NO_CERTIFICATE)
    assert (now.sealed, now.clear, now.missing) == (3, 1, 0)
    assert now.key_id == site.manifest().encryption[0].key_id


def test_bundles_carry_bodies_of_many(site, agent, relay):
    other = site.enrol("other")
    mine, its, bare = agent.unit(b"mine"), other.unit(b"its"), other.unit(b"bare")
    bodies = [sealed(site, mine), sealed(site, its), clear(bare), b"USL\x01garbage"]
    found = relay.send(bundle(bodies))
    assert [r.body for r in found] == [hashlib.sha256(b).digest() for b in bodies]
    assert [relay.statuses(r) for r in found[:3]] == [
        {unit.digest: Status.STORED} for unit in (mine, its, bare)
    ]
    assert problem_of(found[3]) == "malformed"
    assert stored(site, other) == [b"its", b"bare"]


def test_a_relays_batch_of_many_agents(site, agent, relay):
    other = site.enrol("other")
    made = [a.unit(b"%d" % i) for i in range(5) for a in (agent, other)]
    found = only(relay.send(sealed(site, *made)))
    assert relay.statuses(found) == {unit.digest: Status.STORED for unit in made}
    assert stored(site, agent) == stored(site, other) == [b"%d" % i for i in range(5)]


def test_a_unit_sent_again_is_a_duplicate_whatever_it_says_now(site, agent):
    unit = agent.unit(b"once")
    again = agent.unit(
        b"once", sequence=unit.statement.sequence, level=Level.NONE, reason=Reason.LEVEL_NONE,
        milliseconds=5,
    )  # fmt: skip
    assert list(agent.statuses(only(agent.send(sealed(site, unit)))).values()) == [Status.STORED]
    for body in (sealed(site, unit), clear(again), clear(again, again)):
        answer = agent.statuses(only(agent.send(body)))
        assert set(answer.values()) == {Status.DUPLICATE}
    assert stored(site, agent) == [b"once"]


def test_a_contradiction_is_told_and_the_first_stays(site, agent):
    unit = agent.unit(b"first")
    agent.send(sealed(site, unit))
    other = agent.unit(b"second", sequence=unit.statement.sequence)
    good = agent.unit(b"next")
    found = only(agent.send(sealed(site, other, good)))
    assert agent.statuses(found) == {
        other.digest: Status.CONTRADICTION, good.digest: Status.STORED,
    }  # fmt: skip
    assert stored(site, agent) == [b"first", b"next"]
    (alarm,) = alarms_of(site, "contradiction", agent.agent)
    assert alarm.details == {"epoch": agent.epoch.hex(), "sequence": unit.statement.sequence}
    assert client(site, agent).contradictions == 1


def test_gaps_show(site, agent):
    agent.send(sealed(site, agent.unit(b"1")))
    lost = agent.unit(b"2")
    agent.send(sealed(site, agent.unit(b"3")))
    assert client(site, agent).missing == 1
    agent.send(sealed(site, lost))
    assert client(site, agent).missing == 0


def test_a_beacon_says_that_a_client_withholds(site, agent):
    agent.send(sealed(site, agent.unit(b"x")))
    epoch = os.urandom(16)

    def beacon(number, reason):
        return agent.unit(sequence=number, epoch=epoch, level=Level.REQUIRED, reason=reason)

    says = beacon(2, Reason.ENCRYPTION_DISABLED)
    assert agent.statuses(only(agent.send(clear(says)))) == {says.digest: Status.STORED}
    found = client(site, agent)
    assert (found.actual, found.wanted, found.reason) == ("withheld", 2, Reason.ENCRYPTION_DISABLED)
    old = beacon(1, Reason.NO_CERTIFICATE)
    assert agent.statuses(only(agent.send(clear(old)))) == {old.digest: Status.DUPLICATE}
    assert client(site, agent).reason == Reason.ENCRYPTION_DISABLED
    assert stored(site, agent) == [b"x"]
    agent.send(sealed(site, agent.unit(b"y")))
    assert client(site, agent).actual == "sealed"


def test_many_agents_at_once_lose_and_double_nothing(site):
    agents = [site.enrol(f"crowd {i}") for i in range(4)]
    results = []

    def report(sender):
        for i in range(5):
            body = sealed(site, sender.unit(b"%d" % i), sender.unit(b"+"))
            for _ in range(2):
                results.extend(sender.statuses(only(sender.send(body))).values())

    threads = [threading.Thread(target=report, args=(a,)) for a in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(Status.STORED) == results.count(Status.DUPLICATE) == 40
    for sender in agents:
        assert sorted(stored(site, sender)) == sorted([b"%d" % i for i in range(5)] + [b"+"] * 5)
        assert client(site, sender).missing == 0


# -- what is refused -----------------------------------------------------------------------


def test_an_agents_hop_sends_its_own_units_only(site, agent):
    other = site.enrol("victim")
    found = only(agent.send(sealed(site, agent.unit(b"mine"), other.unit(b"its"))))
    assert problem_of(found) == "not-enrolled"
    assert stored(site, agent) == stored(site, other) == []
    assert alarms_of(site, "wrong-agent", agent.agent)


def test_an_agent_sends_few_units_in_a_body(site, agent, relay):
    body = clear(*[agent.unit(sequence=n) for n in range(1025)])
    assert problem_of(only(agent.send(body))) == "too-large"
    assert only(relay.send(body)).state is State.DONE


def test_units_of_strangers_are_refused_by_a_receipt(site, agent, relay):
    stranger = SigningKey.generate()
    facts = (site.deployment, os.urandom(16), 1, now_ms(), Level.NONE, Reason.LEVEL_NONE)
    strange, good = make_unit(stranger, *facts, [b"strange"]), agent.unit(b"good")
    found = only(relay.send(sealed(site, strange, good)))
    assert relay.statuses(found) == {
        strange.digest: Status.REFUSED, good.digest: Status.STORED,
    }  # fmt: skip
    (alarm,) = alarms_of(site, "unknown-agent", relay.hop_id)
    assert alarm.details == {"agent": stranger.public.agent_id.hex()}


def test_units_of_another_deployment_are_refused(site, agent, relay):
    foreign, good = agent.unit(b"there", deployment=bytes(16)), agent.unit(b"here")
    answer = relay.statuses(only(relay.send(sealed(site, foreign, good))))
    assert answer == {foreign.digest: Status.REFUSED, good.digest: Status.STORED}
    assert alarms_of(site, "foreign-deployment", relay.hop_id)


def test_what_a_relay_has_changed_is_refused_and_its_neighbours_are_not(site, agent, relay):
    changed, good, forged = agent.unit(b"true", b"more"), agent.unit(b"good"), agent.unit(b"f")
    rows = unit_rows([changed, good, forged])
    rows[1] = b"lie"
    rows[5] = rows[5][:-1] + bytes([rows[5][-1] ^ 1])  # one bit of a signature
    body = Sealer([site.manifest().encryption[0].public()]).seal_batch(
        rows, fleet_context(site.deployment)
    )
    answer = relay.statuses(only(relay.send(body)))
    assert answer == {
        changed.digest: Status.REFUSED, good.digest: Status.STORED, forged.digest: Status.REFUSED,
    }  # fmt: skip
    assert stored(site, agent) == [b"good"]
    assert alarms_of(site, "bad-signature", relay.hop_id)


def test_numbers_that_no_database_holds_are_refused_unit_by_unit(site, agent, relay):
    huge = agent.unit(b"x", sequence=2**64 - 1)
    late = agent.unit(b"y", milliseconds=2**63)
    good = agent.unit(b"z")
    answer = relay.statuses(only(relay.send(sealed(site, huge, late, good))))
    assert list(answer.values()) == [Status.REFUSED, Status.REFUSED, Status.STORED]


def test_a_revoked_client_is_refused_everywhere(site, relay):
    sender = site.enrol("revoked")
    assert sender.send(clear(sender.unit(b"before")))
    with site.admin() as deployment:
        serial = deployment.revoke(sender.agent.hex()).manifest.serial
    site.wait_for(serial)
    unit = sender.unit(b"after")
    with pytest.raises(Problem) as caught:
        sender.send(clear(unit))
    assert caught.value.name == "revoked"
    assert relay.statuses(only(relay.send(sealed(site, unit)))) == {unit.digest: Status.REFUSED}
    assert alarms_of(site, "revoked-agent", sender.agent)
    assert stored(site, sender) == [b"before"]


def test_who_is_not_authenticated_is_not_heard(site, agent):
    body = clear(agent.unit(b"x"))
    now = now_ms()
    good = prove(agent.credential, agent.hop, "POST", "/v1/units", body, now)
    other = SigningKey.generate()
    head, _, signature = agent.credential.rpartition(".")
    forged = f"{head}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
    headers = {
        "unauthenticated": [
            {},
            {"Authorization": good["Authorization"]},
            prove(agent.credential, other, "POST", "/v1/units", body, now),
            prove(agent.credential, agent.hop, "POST", "/v1/results", body, now),
            prove(agent.credential, agent.hop, "POST", "/v1/units", body + b"x", now),
            prove(forged, agent.hop, "POST", "/v1/units", body, now),
            {**good, "Authorization": "Bearer x"},
        ],
        "clock": [prove(agent.credential, agent.hop, "POST", "/v1/units", body, now - 600_000)],
    }
    with Client(site.url) as http:
        for name, tries in headers.items():
            for head in tries:
                answer = http.request("POST", "/v1/units", body, head)
                assert answer.problem().name == name, head
                assert answer.status == 401
                assert answer.date is not None
        assert http.request("POST", "/v1/results", b"{}").status == 401
    assert stored(site, agent) == []


def test_what_was_sent_in_clear_though_it_must_not_is_kept_and_seen(site, agent):
    with site.admin() as deployment:
        serial = deployment.set_level("required", clients=[agent.agent.hex()]).manifest.serial
    site.wait_for(serial)
    agent.send(clear(agent.unit(b"x", reason=Reason.NO_CERTIFICATE)))
    assert stored(site, agent) == [b"x"]
    (alarm,) = alarms_of(site, "clear-though-required", agent.agent)
    assert alarm.details["reason"] == "no-certificate"
    agent.send(clear(agent.unit(b"y")))  # says it was sealed
    assert alarms_of(site, "arrived-clear", agent.agent)
    assert len(alarms_of(site, "clear-though-required", agent.agent)) == 1
    assert stored(site, agent) == [b"x", b"y"]


# -- bodies that are none --------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"", b"USL", b"UPC\x01", b"UPC\x01\0\0\0\0", b"UPC\x01\xff\xff\xff\xff" + bytes(40),
        b"UPB\x01\0\0\0\x01\0\0\0\x04UPB\x01", b"UPB\x01\0\0\0\x01\0\0\0\x0aUPB\x01xxxxxx",
        b"USL\x01" + bytes(200), b"UPC\x01\0\0\0\x01\0\0\0\x03abc", os.urandom(100),
    ],
    ids=range(10),
)  # fmt: skip
def test_bodies_that_are_none(site, agent, body):
    try:
        assert problem_of(only(agent.send(body))) == "malformed"
    except Problem as problem:
        assert problem.name == "malformed"
    assert letter(site, body) is None


def test_damaged_bodies_store_nothing_and_break_nothing(site, relay):
    sender = site.enrol("damaged")
    chance = random.Random(7)
    whole = [clear(sender.unit(b"abc", b"d" * 40)), sealed(site, sender.unit(b"abc", b"d" * 40))]
    for body in whole:
        for _ in range(25):
            at = chance.randrange(len(body))
            bad = bytearray(body)
            if chance.random() < 0.3:
                del bad[at:]
            else:
                bad[at] ^= 1 << chance.randrange(8)
            try:
                for result in sender.send(bytes(bad)):
                    if result.state is State.DONE:
                        assert set(sender.statuses(result).values()) <= {Status.REFUSED}
            except Problem as problem:
                assert problem.name in ("malformed", "full", "not-enrolled")
    assert stored(site, sender) == []
    assert "500" not in str([k for k in site.metrics() if "http_requests_total" in k])
    for body in whole:  # and the genuine ones are taken after all that
        assert set(sender.statuses(only(sender.send(body))).values()) == {Status.STORED}


def test_sealed_rows_that_are_no_units_are_kept_to_look_at(site, agent):
    public = site.manifest().encryption[0].public()
    body = Sealer([public]).seal_batch([b"no statement"], fleet_context(site.deployment))
    for _ in range(2):
        assert problem_of(only(agent.send(body))) == "malformed"
    assert letter(site, body).reason == "malformed"
    assert problem_of(only(agent.ask(hashlib.sha256(body).digest()))) == "malformed"


def test_another_context_does_not_open(site, agent):
    public = site.manifest().encryption[0].public()
    body = Sealer([public]).seal_batch(unit_rows([agent.unit(b"x")]), fleet_context(bytes(16)))
    assert only(agent.send(body)).state is State.PENDING
    assert letter(site, body).reason == "cannot-open"
    assert alarms_of(site, "cannot-open", agent.hop_id)
    assert only(agent.ask(hashlib.sha256(body).digest())).state is State.PENDING


def test_dead_letters_of_one_hop_are_bounded(site, agent):
    public = site.manifest().encryption[0].public()

    def lost():
        rows = unit_rows([agent.unit(os.urandom(9000))])
        return Sealer([public]).seal_batch(rows, b"another context")

    states = [only(agent.send(lost())).state for _ in range(2)]
    assert states == [State.PENDING] * 2
    with pytest.raises(Problem) as caught:
        agent.send(lost())
    assert (caught.value.name, caught.value.status) == ("full", 503)
    assert caught.value.retry_after
    # In a bundle, the others are taken all the same.
    good = agent.unit(b"good")
    found = agent.send(bundle([lost(), sealed(site, good)]))
    assert problem_of(found[0]) == "full"
    assert found[0].problem.retry_after
    assert agent.statuses(found[1]) == {good.digest: Status.STORED}
    assert alarms_of(site, "dead-letters-full", agent.hop_id)


def test_a_relay_hears_of_each_body_that_it_is_to_wait(site, relay):
    """Its other clients have nothing to do with it: the request as a whole is no answer."""
    public = site.manifest().encryption[0].public()

    def lost():
        rows = unit_rows([relay.unit(os.urandom(9000))])
        return Sealer([public]).seal_batch(rows, b"another context")

    states = [only(relay.send(lost())).state for _ in range(2)]
    assert states == [State.PENDING] * 2
    for found in (relay.send(lost()), relay.send(bundle([lost(), lost()]))):
        assert {problem_of(result) for result in found} == {"full"}
        assert all(result.problem.retry_after for result in found)


def test_a_key_that_was_never_ours(site, agent):
    body = sealed(site, agent.unit(b"x"), recipients=[PrivateKey.generate().public_key])
    assert problem_of(only(agent.send(body))) == "stale-key"
    assert letter(site, body) is None


# -- results, manifest, capabilities -----------------------------------------------------------


def test_results_can_be_asked_for(site, agent, relay):
    unit = agent.unit(b"x")
    body = sealed(site, unit)
    agent.send(body)
    known, unknown = relay.ask(hashlib.sha256(body).digest(), bytes(32))
    assert relay.statuses(known) == {unit.digest: Status.STORED}
    assert unknown.state is State.UNKNOWN
    for data in (b"", b"[]", b'{"bodies":[]}', b'{"bodies":["00"]}', b"{" * 9000):
        assert relay.post("/v1/results", data).problem().name == "malformed"


def test_the_manifest_and_its_chain(site):
    first = site.get("/v1/manifest")
    lines = first.body.decode().split()
    etag = first.headers["etag"]
    serial = site.serial()
    digest = hashlib.sha256(lines[-1].encode()).hexdigest()[:16]
    assert etag == f'"{serial}-{digest}"'
    assert len(lines) == 2  # the first, which names the signing key, and the newest
    assert site.get(f"/v1/manifest?since={serial}").body.decode().split() == lines[-1:]
    assert site.get("/v1/manifest?since=99999999999").body.decode().split() == lines[-1:]
    unchanged = site.get("/v1/manifest?since=1", {"If-None-Match": etag})
    assert (unchanged.status, unchanged.body) == (304, b"")
    for since in ("-1", "x", "1.0", "\u0661", "9" * 30):
        assert site.get("/v1/manifest?since=" + quote(since)).status == 400


def test_capabilities_are_signed(site):
    answer = site.get("/v1/capabilities")
    (hop,) = verified_hops(answer.body, site.manifest(), now_ms())
    assert hop.relay is None
    assert hop.accepts_sealed and hop.decrypts
    assert hop.key_ids == {key.key_id.hex() for key in site.manifest().encryption}
    assert site.get("/v1/capabilities", {"If-None-Match": answer.headers["etag"]}).status == 304


def test_an_operator_sees_what_happens(site, agent):
    before = site.metrics()
    agent.send(clear(agent.unit(b"x", b"y", reason=Reason.LEVEL_NONE)))
    agent.send(sealed(site, agent.unit(b"z")))
    after = site.metrics()

    def grown(name):
        return after[f"upseal_server_{name}"] - before.get(f"upseal_server_{name}", 0)

    assert grown('reports_total{how="sealed"}') == 1
    assert grown('reports_total{how="clear"}') == 2
    assert grown('clear_reports_total{reason="level-none"}') == 2
    assert grown('units_total{status="stored"}') == 2
    assert after["upseal_server_manifest_serial"] == site.manifest().serial
    assert json.loads(site.get("/readyz").body) == {"ready": True}
    assert site.get("/healthz").status == 200
    assert site.get("/v1/nothing").status == 404


def test_an_agent_that_enrols_again_keeps_its_reports_and_loses_its_hop(site, agent):
    agent.send(clear(agent.unit(b"old")))
    again = Sender.enrol(site, "again", identity=agent.identity)
    with pytest.raises(Problem) as caught:
        agent.send(clear(agent.unit(b"x")))
    assert caught.value.name == "not-enrolled"
    again.send(clear(again.unit(b"new")))
    assert stored(site, agent) == [b"old", b"new"]
    until(lambda: client(site, agent).name == "again")

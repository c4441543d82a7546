# SPDX-License-Identifier: Apache-2.0
"""Enrolment at the server: a token once, an identity once, and nothing for strangers."""

import os
import socket
from contextlib import ExitStack

import pytest
from fleet_server_support import Sender, Site, clear, now_ms

from upseal import PrivateKey, Sealer
from upseal.fleet.credentials import Token, enrol_context, enrol_request, open_enrolled
from upseal.fleet.http.client import Client
from upseal.fleet.http.problems import Problem
from upseal.fleet.identity import SigningKey
from upseal.fleet.server import upkeep
from upseal.fleet.server.store import clients, relays
from upseal.fleet.server.tables import tokens as table
from upseal.fleet.units import Status


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    before, upkeep.EVERY = upkeep.EVERY, 0.05
    made = Site(tmp_path_factory.mktemp("site") / "deployment")
    with made.running():
        yield made
    upkeep.EVERY = before


def ask(site, body):
    with Client(site.url) as http:
        return http.request("POST", "/v1/enrol", body)


def request(site, token, identity=None, hop=None, **other):
    facts = {"name": "n", "role": "agent", "now_ms": now_ms(), **other}
    return enrol_request(
        token, site.manifest(), identity or SigningKey.generate(), hop or SigningKey.generate(),
        **facts,
    )  # fmt: skip


def refused(site, *args, **how):
    with pytest.raises(Problem) as caught:
        Sender.enrol(site, *args, **how)
    return caught.value.name


def known(site, sender):
    with site.store() as store, store.reading() as db:
        return clients.find(db, sender.agent)


def test_an_agent_enrols_and_may_report(site):
    agent = site.enrol("web-1")
    unit = agent.unit(b"x")
    assert agent.statuses(agent.send(clear(unit))[0]) == {unit.digest: Status.STORED}
    found = known(site, agent)
    assert (found.name, found.role, found.hop) == ("web-1", "agent", agent.hop_id)


def test_p256_identities_enrol_as_well(site):
    keys = {"identity": SigningKey.generate("p256"), "hop": SigningKey.generate("p256")}
    agent = Sender.enrol(site, "fips", **keys)
    assert agent.send(clear(agent.unit(b"x")))


def test_in_fips_mode_other_keys_are_refused(tmp_path):
    fips = Site(tmp_path / "deployment", fips=True)
    keys = {"identity": SigningKey.generate("p256"), "hop": SigningKey.generate("p256")}
    with fips.running():
        token = fips.token()
        assert refused(fips, "n", token=token) == "malformed"
        assert refused(fips, "n", token=token, identity=keys["identity"]) == "malformed"
        agent = Sender.enrol(fips, "n", token=token, **keys)
        unit = agent.unit(b"x")
        assert agent.statuses(agent.send(clear(unit))[0]) == {unit.digest: Status.STORED}


def test_a_lost_answer_can_be_asked_for_again(site):
    token, identity, hop = site.token(), SigningKey.generate(), SigningKey.generate()
    first = Sender.enrol(site, "n", token=token, identity=identity, hop=hop)
    again = Sender.enrol(site, "n", token=token, identity=identity, hop=hop)
    assert first.credential == again.credential


def test_a_token_is_for_one(site):
    token = site.token()
    Sender.enrol(site, "first", token=token)
    assert refused(site, "second", token=token) == "token"


def test_an_old_request_does_not_bring_back_an_old_hop(site):
    token, identity = site.token(), SigningKey.generate()
    kept = request(site, token, identity)
    assert ask(site, kept).status == 200
    newer = Sender.enrol(site, "n", identity=identity)
    assert ask(site, kept).problem().name == "token"
    assert newer.send(clear(newer.unit(b"x")))
    assert known(site, newer).hop == newer.hop_id


def test_tokens_that_are_unknown_revoked_or_for_others(site):
    good = site.token()
    wrong = Token(good.deployment, good.fingerprint, good.least_serial, os.urandom(16))
    assert refused(site, "n", token=wrong) == "token"
    assert refused(site, "n", token=site.token("relay")) == "token"
    assert refused(site, "n", role="relay", token=good) == "token"
    late = site.token()
    with site.store() as store, store.writing() as db:
        free = table.c.used.is_(None)
        db.execute(table.update().where(free).values(expires=now_ms() - 1))
    assert refused(site, "n", token=late) == "token"


def test_a_hop_key_of_somebody_else_is_a_conflict_and_costs_no_token(site):
    agent = site.enrol("owner")
    token = site.token()
    assert refused(site, "thief", token=token, hop=agent.hop) == "conflict"
    assert Sender.enrol(site, "honest", token=token)
    assert known(site, agent).name == "owner"


def test_a_revoked_identity_does_not_come_back(site):
    agent = site.enrol("bad")
    with site.admin() as deployment:
        site.wait_for(deployment.revoke(agent.agent.hex()).manifest.serial)
    assert refused(site, "bad again", identity=agent.identity) == "revoked"


def test_a_relay_is_known_but_not_listed(site):
    relay = site.enrol("relay-9", role="relay", decrypts=True, accepts_sealed=False)
    with site.store() as store, store.reading() as db:
        found = relays.find(db, relay.agent)
    assert (found.name, found.listed, found.decrypts, found.accepts_sealed) == (
        "relay-9", False, True, False,
    )  # fmt: skip
    assert site.manifest().relay(relay.agent) is None


def test_what_is_no_request(site):
    good = request(site, site.token())
    public = site.manifest().enrolment.public()
    context = enrol_context(site.deployment)
    other_key = Sealer([PrivateKey.generate().public_key]).seal(b"x", context)
    assert ask(site, other_key).problem().name == "stale-key"
    for body in (
        b"", b"x", good[:-1], good[:50], good[:100] + bytes([good[100] ^ 1]) + good[101:],
        Sealer([public]).seal(b"x", context), Sealer([public]).seal(b"a.b.c", context),
        Sealer([public]).seal(b"x", b"another context"),
    ):  # fmt: skip
        assert ask(site, body).problem().name == "malformed"
    assert ask(site, bytes(20_000)).status == 413
    assert ask(site, good).status == 200


def test_requests_that_never_come_keep_nobody_from_enrolling(site):
    with ExitStack() as stack:
        host, port = site.url.removeprefix("http://").split(":")
        for _ in range(80):
            slow = stack.enter_context(socket.create_connection((host, int(port)), 20))
            slow.sendall(
                b"POST /v1/enrol HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
                b"expect: 100-continue\r\n\r\n"
            )
            assert slow.recv(100).startswith(b"HTTP/1.1 100 "), "it is read"
        assert ask(site, request(site, site.token())).status == 200


def test_the_answer_is_for_one_identity(site):
    identity = SigningKey.generate()
    answer = ask(site, request(site, site.token(), identity)).body
    manifest = site.manifest()
    found = open_enrolled(answer, manifest.receivers(), site.deployment, identity.public.agent_id)
    assert found.agent == identity.public.agent_id
    with pytest.raises(ValueError, match="somebody else"):
        open_enrolled(answer, manifest.receivers(), site.deployment, bytes(16))

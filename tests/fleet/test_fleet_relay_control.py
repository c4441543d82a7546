# SPDX-License-Identifier: Apache-2.0
"""What a relay believes and tells: manifest, capabilities, enrolments and keys handed through."""

from __future__ import annotations

import time
from urllib.parse import quote

import pytest
from fleet_relay_support import (
    eventually,
    make_folder,
    parent_of,
    relay_of,
    running,
    senders,
    settings_for,
)
from fleet_support import Site

from upseal.fleet import jws
from upseal.fleet.agent.parent import verified_hops
from upseal.fleet.credentials import enrol_request, open_enrolled
from upseal.fleet.http.client import Client
from upseal.fleet.http.problems import Problem
from upseal.fleet.relay.status import status
from upseal.fleet.trust import Outcome, Trust


@pytest.fixture(scope="module")
def site():
    site = Site()
    site.enable()
    return site


@pytest.fixture(scope="module")
def parent(site):
    with parent_of(site) as parent:
        yield parent


@pytest.fixture(scope="module")
def relay(site, parent, tmp_path_factory):
    with relay_of(site, tmp_path_factory.mktemp("relay"), parent.url) as relay:
        yield relay


@pytest.fixture
def client(relay):
    with Client(relay.url, 10.0) as client:
        yield client


def serial_of(client):
    tokens = client.request("GET", "/v1/manifest").body.split()
    return jws.unverified(tokens[-1])["serial"]


# -- the manifest ----------------------------------------------------------------------


def test_the_manifest_is_handed_on_with_all_that_leads_to_it(site, relay, client, tmp_path):
    assert site.manifest.signing_keys == (site.signing.public,)
    first = Trust.start(tmp_path / "first", site.signing.public.fingerprint, site.deployment, 1)
    eventually(lambda: serial_of(client) == site.manifest.serial)
    assert first.offer(client.request("GET", "/v1/manifest").body.split(), 0) is Outcome.ACCEPTED
    for _ in range(2):  # the signing key changes, twice, while somebody is away
        following = site.announce()
        site.sign()
        site.switch(following)
        site.sign()
        site.rotate()
        site.sign()
    eventually(lambda: serial_of(client) == site.manifest.serial)
    response = client.request("GET", f"/v1/manifest?since={first.manifest.serial}")
    assert response.headers["content-type"].startswith("text/plain")
    tokens = response.body.split()
    assert len(tokens) < 7
    assert first.offer(tokens, 0) is Outcome.ACCEPTED
    assert first.manifest == site.manifest
    # And once more after a restart, from the disk.
    same = client.request(
        "GET", "/v1/manifest", headers={"if-none-match": response.headers["etag"]}
    )
    assert (same.status, same.body) == (304, b"")
    other = client.request("GET", "/v1/manifest", headers={"if-none-match": '"1-0"'})
    assert other.status == 200


@pytest.mark.parametrize("since", ["-1", "x", "1e3", "9" * 21, "٣"])
def test_a_serial_is_a_number(client, since):
    problem = client.request("GET", f"/v1/manifest?since={quote(since)}").problem()
    assert problem.name == "malformed"


def test_what_the_parent_makes_up_is_not_believed(site, parent, relay, client):
    eventually(lambda: serial_of(client) == site.manifest.serial)
    before = site.manifest.serial
    stranger = Site()
    stranger.change(serial=before + 5, deployment=site.deployment)
    for forged in (
        [stranger.sign()],
        ["not a token"],
        [site.tokens[0]],
        [],
        [site.tokens[-1][:-10] + "A" * 10],
    ):
        genuine, site.tokens = site.tokens, forged or [" "]
        relay.control.look()
        site.tokens = genuine
        assert serial_of(client) == before
    site.rotate()
    site.sign()
    eventually(lambda: serial_of(client) == before + 2)


def test_two_manifests_of_one_serial_are_an_alarm(tmp_path):
    site = Site()
    with (
        parent_of(site) as parent,
        relay_of(site, tmp_path, parent.url) as relay,
        Client(relay.url, 10.0) as client,
    ):
        eventually(lambda: serial_of(client) == site.manifest.serial)
        before = client.request("GET", "/v1/manifest").body
        site.change(serial=site.manifest.serial, expires=site.manifest.expires + 1)
        site.tokens[-1:] = [site.manifest.sign(site.signing)]
        eventually(lambda: relay.state.trust.alarms)
        assert client.request("GET", "/v1/manifest").body == before
        assert status(relay.settings)["alarms"][0]["serial"] == site.manifest.serial


def test_asking_costs_no_signature(site, relay, client, monkeypatch):
    eventually(lambda: relay.control.parent_accepts_sealed)
    token = client.request("GET", "/v1/capabilities").body
    signed = []
    monkeypatch.setattr(jws, "sign", lambda *_, **__: signed.append(1))
    for _ in range(50):
        assert client.request("GET", "/v1/capabilities").body == token
        assert client.request("GET", "/v1/manifest").status == 200
    assert not signed


# -- capabilities -----------------------------------------------------------------------


def test_capabilities_are_signed_and_carry_the_parents(site, parent, tmp_path):
    with (
        relay_of(site, tmp_path, parent.url, "upper", decrypting=True) as upper,
        relay_of(site, tmp_path, upper.url, "lower", accepts_sealed=False) as lower,
        Client(lower.url, 10.0) as client,
    ):

        def hops():
            response = client.request("GET", "/v1/capabilities")
            assert response.status == 200
            return verified_hops(response.body.strip(), site.manifest, int(time.time() * 1000))

        below, above, server = eventually(lambda: hops() if len(hops()) == 3 else None)
        assert (below.relay.name, above.relay.name, server.relay) == ("lower", "upper", None)
        assert (below.accepts_sealed, above.accepts_sealed) == (False, True)
        assert (below.decrypts, above.decrypts) == (False, True)
        key = upper.member.private[0].key_id.hex()
        assert above.key_ids == {key}
        # A change is told at once: a key more, two relays away.
        upper.state.keys.make(7, "x25519")
        eventually(lambda: len(hops()[1].key_ids) == 2)


def test_words_that_nobody_vouches_for_are_not_handed_on(site, parent, relay, client):
    claims = jws.unverified(eventually(lambda: _above(client)))
    assert claims["sub"] == "server"
    genuine = site.receipt
    site.receipt = type(genuine).generate()
    try:
        with senders(site, relay.url):
            relay.control.look()
        assert jws.unverified(_above(client))["iat"] <= claims["iat"] + 60_000
        key = {k.key_id.hex(): k for k in site.manifest.receipt_keys}
        jws.verify(_above(client), key, jws.CAPABILITIES)
    finally:
        site.receipt = genuine


def _above(client):
    token = client.request("GET", "/v1/capabilities").body.strip()
    return jws.unverified(token)["parent"]


# -- handed through ------------------------------------------------------------------------


def test_enrolments_are_handed_through_within_bounds(site, parent, relay, client):
    identity, hop = site.signing.generate(), site.signing.generate()
    sealed = enrol_request(
        site.token(), site.manifest, identity, hop, name="new", now_ms=int(time.time() * 1000)
    )
    response = client.request("POST", "/v1/enrol", sealed)
    receivers, me = site.manifest.receivers(), identity.public.agent_id
    assert open_enrolled(response.body, receivers, site.deployment, me).agent == me
    assert parent.enrol_requests == [sealed]
    problem = client.request("POST", "/v1/enrol", b"x").problem()
    assert (problem.name, problem.status, problem.retry_after) == ("token", 403, 7), "from above"
    assert client.request("POST", "/v1/enrol", bytes(17 << 10)).problem().name == "too-large"
    assert len(parent.enrol_requests) == 2


def test_a_relay_far_below_gets_ready(site, parent, tmp_path):
    with (
        relay_of(site, tmp_path, parent.url, "upper") as upper,
        relay_of(site, tmp_path, upper.url, "lower", decrypting=True) as lower,
    ):
        site.pending()
        site.sign()
        generation = site.manifest.generation
        eventually(lambda: generation in parent.announced)
        parent.pose(generation)
        eventually(lambda: not parent.posed)
        facts = eventually(lambda: (s := status(lower.settings))["keys"][-1]["answered"] and s)
        assert [key["state"] for key in facts["keys"]] == ["certified", "waiting"]
        assert facts["running"] and facts["ready"]
        assert facts["parent"]["accepts_sealed"] is True


def test_agents_say_nothing_about_keys(site, relay):
    with senders(site, relay.url) as (sender,), pytest.raises(Problem, match="not-enrolled"):
        sender.uplink.post("/v1/relay/key", b"x")


# -- clocks ----------------------------------------------------------------------------------


def test_a_relay_whose_clock_is_off_takes_its_parents(site, parent, tmp_path, monkeypatch):
    folder = make_folder(site, tmp_path / "relay", site.add_relay())
    site.sign()
    with running(settings_for(folder, parent.url)) as relay:
        relay.uplink._offset = -3_600_000
        with senders(site, relay.url) as (sender,):
            body = sender.sealed(sender.unit(b"a"))
            sender.post(body)
            sender.done(body)
        assert abs(relay.uplink._offset) < 10_000

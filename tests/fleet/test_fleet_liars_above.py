# SPDX-License-Identifier: Apache-2.0
"""A relay that lies stands between relays and the server: a passing one, and one that decrypts."""

import json
from contextlib import ExitStack

import pytest
from fleet_forgeries import attacks, manifests_of
from fleet_liar import REFUSAL, liar_of, tell_all
from fleet_world import eventually, make_world, seed_of

from upseal.fleet import jws
from upseal.fleet.agent.membership import TRUST
from upseal.fleet.capabilities import verified_hops
from upseal.fleet.http.client import Client
from upseal.fleet.http.serving import in_thread
from upseal.fleet.trust import Trust
from upseal.fleet.units import body_kind, parse_clear, parse_rows

SEALED = "sealed"
BELOW = {"decrypting": ("must", "may", "plain"), "passing": ("far", "open")}
LEVELS = {"must": "required", "may": "optional", "plain": "none", "far": "required", "open": "none"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two relays below the liar, which is in this process, and agents below each of them."""
    chance = seed_of("test_fleet_liars_above")
    folder = tmp_path_factory.mktemp("fleet") / "world"
    with ExitStack() as stack, make_world(folder, agents={}, relays=False) as made:
        made.liar = liar_of(made, stack, folder / "liar", chance)
        url = stack.enter_context(in_thread(made.liar.app)).url
        ways = {name: made.add_relay(name, url, decrypting=name == "decrypting") for name in BELOW}
        made.enable()
        for relay, names in BELOW.items():
            for name in names:
                made.add_agent(name, LEVELS[name], ways[relay])
        made.start_agents()
        made.report(5)
        made.check()
        yield made


@pytest.fixture(autouse=True)
def honest_again(world):
    yield
    world.liar.tell_the_truth()


def sealed_stay_sealed(world):
    """What is in clear is of the NONE client below the passing relay, and beacons."""
    mine = world.members["open"].id
    for body in world.liar.bodies:
        if body_kind(body) == "clear":
            for unit in parse_rows(parse_clear(body)):
                assert unit.statement.agent == mine or unit.statement.count == 0
    hidden = {*world.secret, *world.members["plain"].made.values()}
    assert world.liar.bodies
    for marker in hidden:
        assert not any(marker in body for body in world.liar.bodies)


def all_well(world):
    world.liar.tell_the_truth()
    sealed_stay_sealed(world)
    for name in BELOW:
        assert world.nodes[name].running
    world.restart_agents()
    world.check()
    sealed_stay_sealed(world)
    assert not world.alarms() & {"contradiction"}


def test_no_forged_receipt_is_believed(world):
    """A decrypting relay keeps what it has, a passing one's agents do."""
    liar = world.liar
    liar.told.clear()
    before = {m.name: world.stored(m) for m in world.members.values()}
    liar.lie = "forge"
    world.report(6)
    eventually(lambda: liar.told["forge"] >= 8, "lies")
    eventually(lambda: world.nodes["decrypting"].events("receipts missing"), "the relay's notice")
    for member in world.members.values():
        assert member.depth == 6
        assert world.stored(member) == before[member.name]
    for name in BELOW["passing"]:
        node = world.members[name].node
        eventually(lambda n=node: {e["kind"] for e in n.events("alarm")} & {"receipt"}, "an alarm")
    all_well(world)


def test_lies_of_all_kinds(world):
    """Each kind at least twice, drawn at random, while reports come."""
    tell_all(world, 2, 4)
    all_well(world)


def test_claims_not_to_take_sealed_reports(world):
    """Not signed by who counts: relays hand nothing of it down, and nobody sends in clear."""
    liar = world.liar
    own = {**REFUSAL, "sub": liar.identity.public.agent_id.hex()}
    for said in (
        json.dumps(REFUSAL),
        jws.sign(REFUSAL, liar.key, jws.CAPABILITIES),
        jws.sign(own, liar.identity, jws.CAPABILITIES),  # in no manifest
    ):
        liar.told.clear()
        liar.capabilities, liar.lie = said, "refuse"
        world.report(3)
        eventually(lambda: liar.told["capabilities"] >= 4 and liar.told["refuse"] >= 2, "lies")
        with world.admin() as admin, admin.view() as view:
            manifest = view.manifest
        for name in BELOW:
            with Client(world.proxies[name].url, 5) as client:
                answer = client.request("GET", "/v1/capabilities").body
            hops = verified_hops(answer, manifest, manifest.issued)
            assert hops
            assert all(hop.accepts_sealed for hop in hops)
        for name in ("must", "may", "far"):
            assert world.members[name].status()["actual"] == SEALED
        sealed_stay_sealed(world)
        liar.lie = None
    all_well(world)


def test_forwards_to_another_deployment(world, tmp_path):
    liar = world.liar
    with ExitStack() as stack, make_world(tmp_path / "other", agents={}, relays=False) as other:
        liar.uplink = liar_of(other, stack, tmp_path / "liar", liar.chance).uplink
        first = len(liar.bodies)
        world.report(3)
        eventually(lambda: len(liar.bodies) >= first + 4, "bodies")
        assert all(m.depth == 3 for m in world.members.values())
        assert other.query("SELECT count(*) FROM reports") == [(0,)]
        wire = other.proxies["server"].recorded()
        assert not any(marker in data for marker in world.secret for data in wire)
        all_well(world)


def serial_at(world, name):
    return Trust.load(world.folder / name / TRUST).manifest.serial


def test_manifests_that_no_relay_believes(world):
    """Stripped, swapped, expired, rolled back, forked, a signing key of its own: by relays too."""
    liar = world.liar
    newest, tokens, _ = manifests_of(world)
    for what, text in attacks(world, liar):
        liar.manifest = text + "\n"
        told = liar.told["manifest"]
        eventually(lambda told=told: liar.told["manifest"] >= told + 4, "looks")
        for name in BELOW:
            assert serial_at(world, name) == newest.serial, what
    world.report(2)
    for name in BELOW:
        assert world.nodes[name].events("two manifests of one serial"), name
        assert world.nodes[name].events("manifest not believed"), name
    # Frozen: what is held back does not come, and what is known goes on.
    liar.manifest = tokens[-1] + "\n"
    with world.admin() as admin:
        admin.renew()
    told = liar.told["manifest"]
    eventually(lambda: liar.told["manifest"] >= told + 4, "looks")
    assert {serial_at(world, name) for name in BELOW} == {newest.serial}
    liar.manifest = None
    eventually(
        lambda: {serial_at(world, name) for name in BELOW} == {newest.serial + 1}, "the next one"
    )
    all_well(world)

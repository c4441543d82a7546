# SPDX-License-Identifier: Apache-2.0
"""A relay that lies stands between the agents and an honest one."""

import dataclasses
import json
import time
from contextlib import ExitStack

import pytest
from fleet_forgeries import attacks, manifests_of
from fleet_liar import REFUSAL, liar_of, tell_all
from fleet_world import enrolled, eventually, make_world, seed_of

from upseal.fleet import jws
from upseal.fleet.agent.membership import TRUST
from upseal.fleet.capabilities import verified_hops
from upseal.fleet.encoding import b64url
from upseal.fleet.http.serving import in_thread
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Reason
from upseal.fleet.relay.settings import Settings as RelaySettings
from upseal.fleet.relay.state import enrol as enrol_relay
from upseal.fleet.units import body_kind, parse_clear, parse_rows

SEALED, WITHHELD = "sealed", "withheld"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One decrypting relay above; the liar below it, in this process."""
    chance = seed_of("test_fleet_liars")
    with (
        ExitStack() as stack,
        make_world(tmp_path_factory.mktemp("fleet") / "world", agents={}, passing=False) as made,
    ):
        made.liar = liar_of(made, stack, made.folder / "liar", chance)
        address = stack.enter_context(in_thread(made.liar.app))
        for name, level in (("must", "required"), ("may", "optional"), ("plain", "none")):
            made.add_agent(name, level, address.url)
        made.start_agents()
        made.report(10)
        made.check()
        yield made


@pytest.fixture(autouse=True)
def honest_again(world):
    """Each test leaves an honest relay, and agents that need not wait after what failed."""
    yield
    world.liar.tell_the_truth()


def sealed_stay_sealed(world):
    """Of all that the liar was given, what is in clear is the NONE client's, and beacons."""
    mine = world.members["plain"].id
    clear = [body for body in world.liar.bodies if body_kind(body) == "clear"]
    assert clear
    for body in clear:
        for unit in parse_rows(parse_clear(body)):
            assert unit.statement.agent == mine or unit.statement.count == 0
    for marker in world.secret:
        assert not any(marker in body for body in world.liar.bodies)


def all_well(world):
    """The honest way is back: all arrives, once; nobody sent in clear what is sealed."""
    world.liar.tell_the_truth()
    sealed_stay_sealed(world)
    world.restart_agents()
    world.check()
    sealed_stay_sealed(world)


def alarm_kinds(member):
    return {event["kind"] for event in member.node.events("alarm")}


def test_no_forged_receipt_is_believed(world):
    """Not signed, signed by another, changed, or for another unit: the spool keeps its reports."""
    liar = world.liar
    liar.told.clear()
    before = {m.name: world.stored(m) for m in world.members.values()}
    liar.lie = "forge"
    world.report(7)
    eventually(lambda: liar.told["forge"] >= 6, "lies")
    for member in world.members.values():
        eventually(lambda m=member: "receipt" in alarm_kinds(m), "an alarm")
        assert member.depth == 7
        assert world.stored(member) == before[member.name]
    all_well(world)


def test_lies_of_all_kinds(world):
    """Bodies are changed, dropped, doubled, in another order, old ones, refused, or answered by
    nonsense; each kind at least once, drawn at random."""
    tell_all(world, 1, 8)
    all_well(world)
    assert not world.alarms() & {"contradiction"}


def test_claims_not_to_accept_sealed_reports(world):
    """Not signed, or signed by a key that nobody certified: REQUIRED and OPTIONAL stay sealed."""
    liar = world.liar
    own = {**REFUSAL, "sub": liar.identity.public.agent_id.hex()}
    words = [
        json.dumps(REFUSAL),
        jws.sign(REFUSAL, liar.key, jws.CAPABILITIES),
        jws.sign(REFUSAL, liar.key, jws.CAPABILITIES, include_key=True),
        jws.sign(own, liar.identity, jws.CAPABILITIES),  # enrolled, and in no manifest
        b64url(b'{"alg":"none","typ":"%s"}' % jws.CAPABILITIES.encode())
        + "." + b64url(json.dumps(REFUSAL).encode()) + ".",
    ]  # fmt: skip
    for said in words:
        liar.told.clear()
        liar.capabilities, liar.lie = said, "refuse"
        world.report(3)
        eventually(lambda: liar.told["capabilities"] >= 3 and liar.told["refuse"] >= 2, "lies", 60)
        assert {world.members[n].status()["actual"] for n in ("must", "may")} == {SEALED}
        sealed_stay_sealed(world)
        liar.lie = None
    all_well(world)
    assert world.client("may")[1:] == (SEALED, Reason.SEALED)


def test_true_words_of_another_relay_and_old_ones(world):
    """Signed by relays of the manifest, and not for these clients, or not any more."""
    liar = world.liar
    folder = world.folder / "refusing"
    token = world.token("relay")
    settings = RelaySettings(world.url, folder, "refusing", accepts_sealed=False)
    enrolled(lambda: enrol_relay(settings, token))
    with world.admin() as admin:
        admin.add_relay("refusing", accepts_sealed=False, force=True)
    newest = manifests_of(world)[0]
    for name in ("must", "may"):
        eventually(
            lambda n=name: world.members[n].status()["manifest"]["serial"] == newest.serial,
            "the manifest with that relay in it",
        )
    now = time.time_ns() // 1_000_000

    def refusal(of, issued):
        """Signed by the relay in that folder."""
        identity = SigningKey.from_pem((world.folder / of / "identity.pem").read_bytes())
        claims = {
            "sub": identity.public.agent_id.hex(), "accepts_sealed": False, "accepts_clear": True,
            "decrypts": False, "key_ids": [], "serial": newest.serial, "iat": issued,
            "exp": now + 3_600_000, "parent": None,
        }  # fmt: skip
        assert verified_hops(jws.sign(claims, identity, jws.CAPABILITIES), newest, now)
        return jws.sign(claims, identity, jws.CAPABILITIES)

    for said in (refusal("refusing", now), refusal("decrypting", now - 30 * 60_000)):
        liar.told.clear()
        liar.capabilities = said
        eventually(lambda: liar.told["capabilities"] >= 6, "lies")
        world.report(3)
        for name in ("must", "may"):
            eventually(lambda n=name: world.arrived(world.members[n]), "receipts")
            assert world.members[name].status()["actual"] == SEALED
        sealed_stay_sealed(world)
    for name in ("must", "may"):
        assert "parent" in alarm_kinds(world.members[name])
    all_well(world)
    assert world.client("may")[1:] == (SEALED, Reason.SEALED)


def test_forwards_to_another_deployment(world, tmp_path):
    """Another deployment's server learns nothing, and its receipts are nobody's."""
    liar = world.liar
    with (
        ExitStack() as stack,
        make_world(tmp_path / "other", agents={}, relays=False) as other,
    ):
        there = liar_of(other, stack, other.folder / "liar", liar.chance)
        first = len(liar.bodies)
        liar.uplink = there.uplink
        world.report(4)
        eventually(lambda: len(liar.bodies) >= first + 6, "bodies")
        assert all(m.depth == 4 for m in world.members.values())
        assert other.query("SELECT count(*) FROM reports") == [(0,)]
        eventually(lambda: other.alarms() & {"foreign-deployment", "unknown-agent"}, "an alarm")
        wire = other.proxies["server"].recorded()
        assert not any(marker in data for marker in world.secret for data in wire)
        all_well(world)


def fetched(world, count=6):
    """Waits until the agents have been given the liar's manifest so often."""
    told = world.liar.told["manifest"]
    eventually(lambda: world.liar.told["manifest"] >= told + count, "fetches")


def test_manifests_that_must_change_nothing(world):
    newest = manifests_of(world)[0]
    before = [world.members[n].status()["recipients"] for n in ("must", "may")]
    for what, text in attacks(world, world.liar):
        world.liar.manifest = text + "\n"
        fetched(world)
        for name, recipients in zip(("must", "may"), before, strict=True):
            status = world.members[name].status()
            assert status["manifest"]["serial"] == newest.serial, what
            assert (status["actual"], status["recipients"]) == (SEALED, recipients), what
        world.report(2)
    for member in world.members.values():
        assert "manifest" in alarm_kinds(member)  # two of the same serial, both truly signed
        kept = json.loads((member.folder / TRUST).read_text())
        assert kept["alarms"]
    all_well(world)


def test_a_manifest_that_is_frozen(world):
    """Held back for good, it still seals; and after its expiry the server is told."""
    newest, tokens, key = manifests_of(world)
    liar = world.liar
    liar.manifest = tokens[-1] + "\n"
    with world.admin() as admin:
        admin.rotate(timeout=60)
    fetched(world)
    world.report(3)
    for name in ("must", "may"):
        eventually(lambda n=name: world.arrived(world.members[n]), "receipts")
        assert world.members[name].status()["manifest"]["serial"] == newest.serial
    liar.manifest = None
    rotated = manifests_of(world)[0]
    for name in ("must", "may"):
        eventually(
            lambda n=name: world.members[n].status()["manifest"]["serial"] == rotated.serial,
            "the rotated manifest",
        )
    # As one that is past its time would be: truly signed, and nothing newer comes.
    late = dataclasses.replace(rotated, serial=rotated.serial + 1, expires=rotated.issued + 1).sign(
        key
    )
    liar.manifest = late + "\n"
    for name in ("must", "may"):
        eventually(lambda n=name: world.members[n].status()["manifest"]["stale"], "staleness")
    world.report(3)
    for name in ("must", "may"):
        eventually(
            lambda n=name: world.client(n)[1:] == (SEALED, Reason.STALE_MANIFEST), "the reason"
        )
    with world.admin() as admin:  # its serial is used up: the next one but one is newer
        admin.renew()
        admin.renew()
    liar.manifest = None
    all_well(world)
    eventually(lambda: not world.members["may"].status()["manifest"]["stale"], "a fresh one")
    world.report(1)
    eventually(lambda: world.client("may")[1:] == (SEALED, Reason.SEALED), "fresh again")
    all_well(world)

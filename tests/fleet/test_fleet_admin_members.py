# SPDX-License-Identifier: Apache-2.0
"""Tokens, levels, relays and revocation, and who would be orphaned by them."""

import dataclasses
import itertools

import pytest
from fleet_admin_support import DAY, HOUR, START, World, snapshot

from upseal.core.certificates import load
from upseal.fleet.admin.people import Client
from upseal.fleet.admin.refusals import Refused, WouldOrphan
from upseal.fleet.credentials import Token
from upseal.fleet.policy import Clear, Level, Parent, Reason, Seal, Withhold
from upseal.fleet.server.overview import orphans
from upseal.fleet.server.store import relays, tokens
from upseal.fleet.trust import Outcome as Seen


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Encryption is enabled."""
    folder = tmp_path_factory.mktemp("template") / "deployment"
    made = World(folder)
    made.enable()
    made.close()
    return folder


@pytest.fixture
def world(tmp_path, template):
    made = World(tmp_path / "deployment", template)
    yield made
    made.close()


# -- token ----------------------------------------------------------------------------


def test_a_token_lets_one_in_and_says_whom_to_believe(world):
    outcome = world.deployment.token("relay", uses=2, lifetime=3600, note="rack 7")
    first, second = (Token.decode(text) for text in outcome.result["tokens"])
    assert first.secret != second.secret
    assert first.deployment == world.manifest.deployment
    assert first.fingerprint == world.manifest.signing_keys[0].fingerprint
    assert first.least_serial == world.manifest.serial
    with world.deployment.store.writing() as db:
        issued = tokens.listing(db)
        assert {(one.role, one.note, one.expires) for one in issued} == {
            ("relay", "rack 7", START + HOUR)
        }
        redeem = tokens.redeem
        assert redeem(db, first.secret, b"a" * 16, "agent", world.now) is tokens.Redeemed.ROLE
        assert redeem(db, first.secret, b"a" * 16, "relay", world.now) is tokens.Redeemed.OK
        assert redeem(db, first.secret, b"b" * 16, "relay", world.now) is tokens.Redeemed.USED
        late = world.now + HOUR
        assert redeem(db, second.secret, b"b" * 16, "relay", late) is tokens.Redeemed.EXPIRED


def test_no_secret_of_a_token_is_written_down(world):
    text = world.deployment.token().result["tokens"][0]
    secret = Token.decode(text).secret
    _, content = snapshot(world.folder)
    assert secret.hex().upper() not in content
    assert text not in content
    entry = world.deployment.audit()["entries"][-1]
    assert entry["act"] == "token"
    assert secret.hex() not in str(entry)


def test_a_dry_run_makes_no_token(world):
    assert world.deployment.token(uses=3, dry_run=True).result["tokens"] == []


@pytest.mark.parametrize("wrong", [{"role": "king"}, {"uses": 0}, {"lifetime": 0}])
def test_wrong_tokens(world, wrong):
    before = snapshot(world.folder)
    with pytest.raises(ValueError, match=r"\S"):
        world.deployment.token(**wrong)
    assert snapshot(world.folder) == before


# -- set-level ----------------------------------------------------------------------------


def test_levels_reach_clients_by_the_manifest(world):
    a, b = world.client("a"), world.client("b", "none")
    world.deployment.set_level("required", everyone=True)
    world.deployment.set_level("none", clients=["b"])
    for client in (a, b):
        client.sync()
    assert (a.level, b.level) == (Level.REQUIRED, Level.NONE)
    assert isinstance(a.decision(), Seal)
    assert b.decision() == Clear(Reason.LEVEL_NONE)
    world.deployment.set_level(None, clients=["b"])
    world.deployment.set_level(None, everyone=True)
    for client in (a, b):
        client.sync()
    assert (a.level, b.level) == (Level.OPTIONAL, Level.NONE)  # their own
    assert not world.deployment.set_level(None, everyone=True).changed


def test_set_level_for_all_says_who_keeps_his_own(world):
    world.client("special")
    world.deployment.set_level("none", clients=["special"])
    outcome = world.deployment.set_level("required", everyone=True)
    assert "1 keep a level of their own (special)" in " ".join(outcome.messages)


def test_required_while_encryption_is_off_would_orphan(world):
    a, b = world.client("a"), world.client("b")
    world.deployment.disable()
    for client in (a, b):
        client.sync()
        client.report()
    before = snapshot(world.folder)
    with pytest.raises(WouldOrphan, match="1 client would withhold everything: a"):
        world.deployment.set_level("required", clients=["a"])
    with pytest.raises(WouldOrphan, match="2 clients would withhold everything: a, b"):
        world.deployment.set_level(Level.REQUIRED, everyone=True)
    assert snapshot(world.folder) == before
    world.deployment.set_level("required", clients=["a"], force=True)
    a.sync()
    assert a.report() == Withhold(Reason.ENCRYPTION_DISABLED)
    world.deployment.set_level("none", clients=["b"])  # `a` is no orphan of this act


def test_a_client_below_a_relay_that_refuses_sealed_reports_would_be_an_orphan(world):
    client = world.client("stuck")
    client.parent = Parent(accepts_sealed=False)
    client.sync()
    assert client.report() == Clear(Reason.PARENT_REFUSES_SEALED)
    with pytest.raises(WouldOrphan) as refused:
        world.deployment.set_level("required", clients=["stuck"])
    assert "its relay does not accept" in refused.value.orphans[0].why
    world.deployment.set_level("required", clients=["stuck"], force=True)
    client.sync()
    assert client.report() == Withhold(Reason.PARENT_REFUSES_SEALED)
    assert world.deployment.status().coverage["withheld"] == 1


def test_taking_a_level_back_while_encryption_is_off_counts_what_is_unknown(world):
    client = world.client("secretive", "required")
    world.deployment.set_level("optional", clients=["secretive"])
    client.sync()
    client.report()
    world.deployment.disable()
    with pytest.raises(WouldOrphan) as refused:
        world.deployment.set_level(None, clients=["secretive"])
    assert "not known" in refused.value.orphans[0].why


def test_a_process_with_a_level_of_its_own_counts_as_it_says(world):
    """UPSEAL_LEVEL goes before the manifest."""
    client = world.client("stubborn")
    world.deployment.set_level("optional", clients=["stubborn"])
    client.sync()
    client.override = Level.REQUIRED
    assert isinstance(client.report(), Seal)
    with pytest.raises(WouldOrphan, match="stubborn"):
        world.deployment.disable()


def test_whom_a_level_is_for(world):
    first, second = world.client("twin"), world.client("twin")
    with pytest.raises(Refused, match=r"2 clients are called 'twin'.*give an id") as refused:
        world.deployment.set_level("none", clients=["twin"])
    assert first.agent.hex() in refused.value.next
    world.deployment.set_level("none", clients=[first.agent.hex()[:12]])
    assert world.manifest.levels == {first.agent: Level.NONE}
    world.deployment.set_level("none", clients=[second.agent.hex().upper()])
    assert len(world.manifest.levels) == 2
    with pytest.raises(Refused, match="no client has the name or id 'nobody'"):
        world.deployment.set_level("none", clients=["nobody"])
    with pytest.raises(ValueError, match="name clients, or all"):
        world.deployment.set_level("none")
    with pytest.raises(ValueError, match="no level 'high'"):
        world.deployment.set_level("high", everyone=True)


def test_orphans_by_the_table(world):
    """Every cell against the definition: could it be REQUIRED, and could it not seal?"""
    choices = [None, *Level]
    manifest = world.manifest
    off = manifest.__class__.from_claims(
        {**manifest.claims(), "state": "disabled", "encryption": []}
    )
    for wanted, before, after, active in itertools.product(
        choices, choices, choices, (True, False)
    ):
        client = Client(
            agent=b"a" * 16, hop=b"h" * 16, name="a", role="agent", wanted=wanted,
            actual="clear", reason=Reason.LEVEL_NONE, last_seen=START, suite=None, key_id=None,
        )  # fmt: skip
        then = dataclasses.replace(manifest if active else off, default_level=after)
        now = dataclasses.replace(manifest, default_level=before)
        found = bool(orphans.find([client], then, now))
        overrides = wanted is Level.REQUIRED and before not in (None, Level.REQUIRED)
        if after is not None:
            may = after is Level.REQUIRED or overrides
        elif before is None:
            may = wanted is Level.REQUIRED
        else:
            may = before is not Level.REQUIRED  # its own level is not known
        assert found == (may and not active), (wanted, before, after, active)


# -- what is shown -----------------------------------------------------------------------------


def test_clients_wanted_actual_and_why(world):
    sealed, clear, mute, late = (
        world.client("sealed", "required"), world.client("clear", "none"), world.client("mute"),
        world.client("late"),
    )  # fmt: skip
    late.sync()
    late.report()
    world.now += 2 * DAY
    for client in (sealed, clear):
        client.sync()
        client.report()
    del mute
    rows = {row["name"]: row for row in world.deployment.clients()}
    assert {name: (r["wanted"], r["actual"], r["why"]) for name, r in rows.items()} == {
        "sealed": ("required", "sealed", "sealed"),
        "clear": ("none", "clear", "level-none"),
        "mute": (None, "silent", None),
        "late": ("optional", "silent", "sealed"),
    }
    assert rows["sealed"]["suite"] == "x25519"
    assert rows["sealed"]["key_id"] == world.manifest.encryption[0].key_id.hex()
    names = {
        only: [row["name"] for row in world.deployment.clients(only)]
        for only in ("sealed", "clear", "silent", "withheld", "orphaned")
    }
    assert names == {
        "sealed": ["sealed"], "clear": ["clear"], "silent": ["late", "mute"], "withheld": [],
        "orphaned": [],
    }  # fmt: skip
    assert world.deployment.status().coverage == {
        "clients": 4, "sealed": 1, "clear": 1, "withheld": 0, "silent": 2, "revoked": 0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="no filter"):
        world.deployment.clients("blue")


# -- relays ----------------------------------------------------------------------------------


def test_a_relay_is_a_candidate_until_it_is_let_in(world):
    relay = world.relay("r1", add=False)
    assert world.manifest.relays == ()
    (row,) = world.deployment.relays()
    assert (row["name"], row["in_manifest"]) == ("r1", False)
    outcome = world.deployment.add_relay("r1")
    (entry,) = world.manifest.relays
    assert (entry.relay, entry.decrypts, entry.accepts_sealed) == (relay.relay, False, True)
    assert "passes on" in outcome.messages[0]  # it said that it decrypts; that is not its decision
    with world.deployment.store.reading() as db:
        assert relays.find(db, relay.relay).listed
    assert not world.deployment.add_relay("r1").changed
    outcome = world.deployment.add_relay(relay.relay.hex(), decrypts=True)
    assert "once it has a certificate" in outcome.messages[-1]
    relay.announce()
    world.ready()
    world.deployment.enable()
    assert len(world.manifest.relays[0].keys) == 1
    world.deployment.add_relay("r1", decrypts=False)
    assert world.manifest.relays[0].keys == ()
    world.deployment.remove_relay("r1")
    assert world.manifest.relays == ()
    with pytest.raises(Refused, match="names no such relay"):
        world.deployment.remove_relay("r1")


def test_relays_that_nobody_knows(world):
    with pytest.raises(Refused, match=r"no relay of that name.*token --role relay"):
        world.deployment.add_relay("r1")
    world.client("r1")  # an agent is no relay
    with pytest.raises(Refused, match="no relay of that name"):
        world.deployment.add_relay("r1")
    for _ in range(2):
        world.relay("twin", add=False)
    with pytest.raises(Refused, match="2 relays are called so"):
        world.deployment.add_relay("twin")


def test_a_relay_that_takes_nothing_sealed_may_orphan_anybody_required(world):
    client = world.client("must", "required")
    client.sync()
    client.report()
    world.relay("old")
    with pytest.raises(WouldOrphan, match="must") as refused:
        world.deployment.add_relay("old", accepts_sealed=False)
    assert "it may be below old" in refused.value.orphans[0].why
    world.deployment.add_relay("old", accepts_sealed=False, force=True)
    assert not world.manifest.relays[0].accepts_sealed
    world.deployment.add_relay("old", accepts_sealed=True)


# -- revoke -----------------------------------------------------------------------------------


def test_a_revoked_client_is_revoked_by_both_its_names(world):
    client = world.client("stolen")
    client.sync()
    client.report()
    world.deployment.revoke("stolen")
    assert world.manifest.revoked_agents == {client.agent, client.hop.public.agent_id}
    assert world.deployment.clients()[0]["actual"] == "revoked"
    assert world.deployment.status().coverage["revoked"] == 1
    assert not world.deployment.revoke("stolen").changed
    world.deployment.revoke(client.agent.hex(), undo=True)
    assert world.manifest.revoked_agents == frozenset()
    assert world.deployment.clients()[0]["actual"] == "sealed"
    assert not world.deployment.revoke("stolen", undo=True).changed


def test_a_revoked_client_is_no_orphan(world):
    client = world.client("gone", "required")
    client.sync()
    client.report()
    world.deployment.revoke("gone")
    world.deployment.disable()


def test_a_revoked_relay_leaves_with_its_certificates(world):
    relay = world.relay("r1")
    relay.announce()
    world.ready()
    world.deployment.enable()
    serial = load(world.manifest.relays[0].keys[0].certificate.encode()).serial_number
    world.deployment.revoke("r1")
    manifest = world.manifest
    assert manifest.relays == ()
    assert manifest.revoked_certificates == {serial}
    assert relay.relay in manifest.revoked_agents
    assert world.client("a").sync() is Seen.ACCEPTED  # no agent minds
    with pytest.raises(Refused, match=r"it is revoked.*--undo"):
        world.deployment.add_relay("r1")


def test_certificates_by_serial_number(world):
    relay = world.relay("r1")
    relay.announce()
    world.ready()
    world.deployment.enable()
    manifest = world.manifest
    server, relays_own, enrolment = (
        load(key.certificate.encode()).serial_number
        for key in (manifest.encryption[0], manifest.relays[0].keys[0], manifest.enrolment)
    )
    before = snapshot(world.folder)
    with pytest.raises(Refused, match=r"clients seal to it.*rotate"):
        world.deployment.revoke(f"{server:x}")
    with pytest.raises(Refused, match="agents enrol by it"):
        world.deployment.revoke(f"{enrolment:x}")
    with pytest.raises(Refused, match="no client, relay or certificate"):
        world.deployment.revoke("123456")
    assert snapshot(world.folder) == before
    world.deployment.revoke(f"0x{relays_own:X}")
    assert world.manifest.relays[0].keys == ()
    assert world.manifest.revoked_certificates == {relays_own}
    assert world.client("a").sync() is Seen.ACCEPTED


def test_what_may_be_two_is_neither(world):
    world.client("same")
    world.relay("same", add=False)
    with pytest.raises(Refused, match="more than one"):
        world.deployment.revoke("same")

# SPDX-License-Identifier: Apache-2.0
"""Encryption keys, from made to retired: each act, each refusal, each dry run."""

import pytest
from fleet_admin_support import DAY, HOUR, World, snapshot

from upseal import PrivateKey, Sealer
from upseal.core.certificates import load
from upseal.fleet.admin.refusals import NotReady, Refused, StillUsed, WouldOrphan
from upseal.fleet.manifest import State
from upseal.fleet.policy import Clear, Level, Reason, Seal, Withhold
from upseal.fleet.readiness import answer_challenge
from upseal.fleet.server.store import activity, challenges
from upseal.fleet.server.store import keys as store_keys
from upseal.fleet.server.store.units import NewUnit


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template") / "deployment"
    World(folder).close()
    return folder


@pytest.fixture
def world(tmp_path, template):
    made = World(tmp_path / "deployment", template)
    yield made
    made.close()


def key_files(world):
    return sorted(path.name for path in (world.folder / "keys").iterdir())


def states(world):
    """Generation: state, of the server's keys."""
    with world.deployment.store.reading() as db:
        return {key.generation: key.state for key in store_keys.listing(db, "server")}


def acts(world):
    return [entry["act"] for entry in world.deployment.audit()["entries"]]


# -- generate-key -----------------------------------------------------------------


def test_a_first_key_is_pending_and_nobody_seals_to_it(world):
    outcome = world.deployment.generate_key()
    assert outcome.changed
    manifest = world.manifest
    assert (manifest.state, manifest.serial, manifest.generation) == (State.PENDING, 2, 1)
    assert not manifest.active
    (key,) = manifest.pending
    assert key_files(world) == [f"1-{key.key_id.hex()}.pem"]
    private = PrivateKey.from_pem((world.folder / "keys" / key_files(world)[0]).read_bytes())
    assert private.public_key == key.public()
    assert states(world) == {1: "pending"}
    client = world.client("a")
    client.sync()
    assert client.decision() == Clear(Reason.ENCRYPTION_DISABLED)


def test_a_second_key_while_one_is_pending_is_refused_unless_it_replaces_it(world):
    world.deployment.generate_key()
    first = world.manifest.pending[0].key_id
    before = snapshot(world.folder)
    with pytest.raises(Refused, match=r"pending already.*--replace"):
        world.deployment.generate_key()
    assert snapshot(world.folder) == before
    world.deployment.generate_key(replace=True)
    assert world.manifest.generation == 2
    assert first.hex() not in "".join(key_files(world))
    assert len(key_files(world)) == 1
    assert states(world) == {2: "pending"}


@pytest.mark.parametrize("enabled", [False, True])
def test_a_pending_key_can_be_taken_back(world, enabled):
    if enabled:
        world.enable()
    kept = key_files(world)
    world.deployment.generate_key()
    assert world.state == ("pending-rotation" if enabled else "pending")
    world.deployment.cancel_key()
    assert world.state == ("enabled" if enabled else "disabled")
    assert key_files(world) == kept
    assert world.manifest.generation == 1 + enabled  # numbers are not given twice
    with pytest.raises(Refused, match="no key is pending"):
        world.deployment.cancel_key()


@pytest.mark.parametrize("kind", ["p256", "mlkem768-x25519", "rsa2048"])
def test_other_kinds_of_keys(world, kind):
    world.enable(key_type=kind)
    (key,) = world.manifest.encryption
    assert key.public().name == kind
    assert (key.certificate is None) == (kind == "mlkem768-x25519")
    client = world.client("a")
    client.sync()
    decision = client.decision()
    assert isinstance(decision, Seal)
    private = PrivateKey.from_pem((world.folder / "keys" / key_files(world)[0]).read_bytes())
    from upseal import Opener

    assert Opener([private]).open(Sealer(list(decision.recipients)).seal(b"report")) == b"report"


def test_no_such_kind(world):
    with pytest.raises(ValueError, match="no key type"):
        world.deployment.generate_key("rot13")


def test_certificates_come_from_our_authority_and_do_not_outlive_it(world):
    world.deployment.generate_key()
    authority = load((world.folder / "ca.pem").read_bytes())
    certificate = load(world.manifest.pending[0].certificate.encode())
    certificate.verify_directly_issued_by(authority)
    assert certificate.not_valid_after_utc <= authority.not_valid_after_utc


def test_escrow_keys_may_open_everything_and_stay_over_rotations(world):
    escrow = PrivateKey.generate("x25519")
    world.enable(escrow=[("vault", escrow.public_key)])
    assert [key.public() for key in world.manifest.encryption][1:] == [escrow.public_key]
    world.enable()
    assert [key.public() for key in world.manifest.encryption][1:] == [escrow.public_key]
    with world.deployment.store.reading() as db:
        assert store_keys.find(db, escrow.key_id).holder == "vault"
        assert store_keys.find(db, escrow.key_id).state == "active"
    world.enable(escrow=[])
    assert len(world.manifest.encryption) == 1
    with world.deployment.store.reading() as db:
        assert store_keys.find(db, escrow.key_id).state == "draining"


def test_an_escrow_key_that_would_weaken_the_session_is_refused(world):
    before = snapshot(world.folder)
    escrow = [("vault", PrivateKey.generate("x25519").public_key)]
    with pytest.raises(ValueError, match="weakest"):
        world.deployment.generate_key("mlkem768-x25519", escrow=escrow)
    assert snapshot(world.folder) == before


def test_a_key_whose_act_fails_leaves_no_file(world, monkeypatch):
    """Here the database refuses it; the file was written before."""
    from upseal.fleet.admin import acting

    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(acting.manifests, "add", full)
    before = snapshot(world.folder)
    with pytest.raises(OSError, match="No space"):
        world.deployment.generate_key()
    assert snapshot(world.folder) == before


# -- ready, enable ---------------------------------------------------------------------


def test_enable_needs_a_key(world):
    with pytest.raises(Refused, match=r"no key is pending.*generate-key"):
        world.deployment.enable()
    with pytest.raises(Refused, match="no key is pending"):
        world.deployment.ready(timeout=0)


def test_enable_names_who_is_not_ready(world):
    here, away = world.relay("here"), world.relay("away")
    world.relay("passing", decrypts=False)
    away.up = False
    world.deployment.generate_key()
    here.announce()
    waiting = {holder.name: holder.why for holder in world.ready()}
    assert waiting == {"away": "it has announced no key of generation 1 (is it running?)"}
    before = snapshot(world.folder)
    with pytest.raises(NotReady, match="away") as refused:
        world.deployment.enable()
    assert refused.value.facts()["waiting"][0]["holder"] == away.relay.hex()
    assert snapshot(world.folder) == before
    assert world.deployment.enable(dry_run=True).refusals[0].waiting[0].name == "away"
    assert snapshot(world.folder) == before
    outcome = world.deployment.enable(force=True)
    assert [refusal.name for refusal in outcome.refusals] == ["not-ready"]
    entries = {entry.name: entry for entry in world.manifest.relays}
    assert [key.public() for key in entries["here"].keys] == [here.keys[1].public_key]
    assert entries["away"].keys == () == entries["passing"].keys
    assert world.deployment.audit()["entries"][-1]["details"]["forced"] == ["not-ready"]


def test_nobody_is_ready_who_was_not_asked(world):
    world.deployment.generate_key()
    with pytest.raises(NotReady, match="the server: it was not asked yet"):
        world.deployment.enable()
    world.deployment.ready(timeout=0)
    with pytest.raises(NotReady, match="the server: it has not answered"):
        world.deployment.enable()


def test_a_proof_is_of_this_key_and_not_old(world):
    world.deployment.generate_key()
    assert not world.ready()
    world.now += 25 * HOUR
    with pytest.raises(NotReady, match="too old"):
        world.deployment.enable()
    world.ready()
    world.deployment.generate_key(replace=True)
    with pytest.raises(NotReady, match="not asked"):
        world.deployment.enable()


def test_asking_again_makes_earlier_proofs_void(world):
    world.deployment.generate_key()
    world.ready()
    world.deployment.ready(timeout=0)
    with pytest.raises(NotReady, match="has not answered"):
        world.deployment.enable()


def test_a_wrong_answer_proves_nothing(world):
    world.deployment.generate_key()
    world.deployment.ready(timeout=0)
    with world.deployment.store.writing() as db:
        assert challenges.answer(db, "server", 1, bytes(32), world.now) is None
    with pytest.raises(NotReady):
        world.deployment.enable()


def test_the_proof_of_another_key_of_the_same_generation_is_none(world):
    """A relay that lost its key announces another, before anybody knew that it had the first."""
    relay = world.relay("relay")
    world.deployment.generate_key()
    relay.announce()
    world.deployment.ready(timeout=0)
    with world.deployment.store.writing() as db:
        (posed,) = challenges.unanswered(db, relay.relay.hex(), world.now)
        given = answer_challenge(relay.keys.pop(1), posed.challenge)
        assert challenges.answer(db, relay.relay.hex(), 1, given, world.now)
    relay.announce()
    with pytest.raises(NotReady, match="relay: it was not asked yet"):
        world.deployment.enable()


def test_ready_waits_for_a_relay_that_comes_up_meanwhile(world):
    relay = world.relay("late")
    world.deployment.generate_key()
    looks = []

    def progress(holders):
        looks.append([holder.name for holder in holders if not holder.ready])
        world.answer()
        if len(looks) == 2:
            relay.announce()

    outcome = world.deployment.ready(timeout=30, progress=progress)
    assert not outcome.refusals
    assert looks[0] == ["the server", "late"]
    assert looks[-1] == []
    world.deployment.enable()
    assert len(world.manifest.relays[0].keys) == 1


def test_a_relay_key_of_another_strength_is_not_taken(world):
    relay = world.relay("odd")
    world.deployment.generate_key("mlkem768-x25519")
    relay.announce("x25519")
    assert "cannot stand beside" in world.ready()[0].why
    world.deployment.enable(force=True)
    assert world.manifest.relays[0].keys == ()


def test_a_forced_change_of_strength_leaves_the_relays_old_key_out(world):
    """An agent could seal to no session that has both."""
    relay = world.relay("slow")
    world.enable()
    assert len(world.manifest.relays[0].keys) == 1
    relay.up = False
    world.deployment.generate_key("mlkem768-x25519")
    world.ready()
    world.deployment.enable(force=True)
    assert world.manifest.relays[0].keys == ()


def test_a_relay_that_comes_later_gets_its_certificate_by_enabling_again(world):
    world.enable()
    assert not world.deployment.enable().changed
    relay = world.relay("late")
    assert "relays without a key of their own: late" in " ".join(world.deployment.status().warnings)
    outcome = world.deployment.enable()
    assert not outcome.changed
    assert "late is not ready" in " ".join(outcome.messages)
    relay.announce()
    world.ready()
    assert world.deployment.enable().changed
    assert world.manifest.state is State.ENABLED
    assert [key.public() for key in world.manifest.relays[0].keys] == [relay.keys[1].public_key]
    assert acts(world)[-1] == "enable-relays"
    with pytest.raises(Refused, match="every decrypting relay has its own"):
        world.ready()


# -- rotate -----------------------------------------------------------------------------


def test_rotate_does_it_all(world):
    world.relay("relay").announce()
    world.enable()
    (old,) = world.manifest.encryption
    client = world.client("a")
    client.sync()

    def progress(holders):
        world.relays[0].announce()
        world.answer()

    outcome = world.deployment.rotate(timeout=30, progress=progress)
    assert outcome.changed
    manifest = world.manifest
    assert (manifest.state, manifest.generation) == (State.ENABLED, 2)
    assert manifest.encryption[0].public() != old.public()
    assert [key.generation for key in manifest.relays[0].keys] == [2, 1]
    assert states(world) == {1: "draining", 2: "active"}
    assert len(key_files(world)) == 2  # the old one stays
    assert client.decision().recipients[0] == old.public()  # it has not heard yet
    client.sync()
    assert client.decision().recipients[0] == manifest.encryption[0].public()


def test_rotate_that_is_not_ready_goes_on_later_with_the_same_key(world):
    world.enable()
    with pytest.raises(NotReady):
        world.deployment.rotate(timeout=0)
    assert world.state == "pending-rotation"
    pending = world.manifest.pending[0]
    with pytest.raises(Refused, match="pending already"):
        world.deployment.rotate("p256", timeout=0)
    world.deployment.rotate(timeout=30, progress=world.answer)
    assert world.manifest.encryption == (pending,)


def test_rotate_needs_something_to_replace(world):
    with pytest.raises(Refused, match=r"encryption is disabled.*generate-key"):
        world.deployment.rotate(timeout=0)


# -- retire ------------------------------------------------------------------------------


def rotated(world):
    """Two keys, the first of them old, and clients that use either."""
    world.enable()
    old, new = world.client("on-old"), world.client("on-new")
    for client in (old, new):
        client.sync()
        assert isinstance(client.report(), Seal)
    world.now += HOUR
    world.enable()
    new.sync()
    new.report()
    return old, new


def test_an_old_key_stays_while_it_is_needed(world):
    old, _ = rotated(world)
    (drain,) = world.deployment.status().drains
    assert drain.clients == ("on-old",)
    assert drain.safe_from == world.now + DAY
    before = snapshot(world.folder)
    with pytest.raises(StillUsed, match="on-old") as refused:
        world.deployment.retire()
    assert refused.value.clients == ("on-old",)
    assert snapshot(world.folder) == before
    world.now += 20 * HOUR
    old.report()  # it has not heard of the new key yet
    world.now += 20 * HOUR
    with pytest.raises(StillUsed, match=r"used lately.*1 clients sealed to it last: on-old"):
        world.deployment.retire()
    old.sync()
    old.report()
    with pytest.raises(StillUsed, match="safe to retire in 4 h"):
        world.deployment.retire()
    world.now += 4 * HOUR
    assert any("can go" in warning for warning in world.deployment.status().warnings)
    world.deployment.retire()
    assert world.manifest.oldest_generation == 2
    assert states(world) == {1: "retired", 2: "active"}
    assert [name[:2] for name in key_files(world)] == ["2-"]
    assert not world.deployment.retire().changed


def test_a_client_that_is_silent_for_long_does_not_keep_a_key(world):
    rotated(world)
    world.now += 3 * DAY
    (drain,) = world.deployment.status().drains
    assert (drain.clients, drain.silent) == ((), ("on-old",))
    outcome = world.deployment.retire()
    assert outcome.changed
    assert "1 silent clients" in " ".join(outcome.messages)


def test_a_client_that_seals_no_more_does_not_keep_a_key(world):
    old, _ = rotated(world)
    world.deployment.set_level("none", clients=["on-old"])
    world.now += 2 * DAY
    old.sync()
    assert isinstance(old.report(), Clear)
    world.deployment.retire()


def test_a_client_that_says_it_will_seal_again_keeps_the_key_it_used_last(world):
    """By a beacon, which is sent once when withholding is over, and under no key."""
    old, _ = rotated(world)
    world.now += 2 * DAY
    over = NewUnit(
        agent=old.agent, epoch=old.beacon_epoch, sequence=9, stated=world.now,
        level=Level.OPTIONAL.number, reason=int(Reason.SEALED), digest=bytes(32), records=(),
        suite=None, key_id=None, received=world.now,
    )  # fmt: skip
    with world.deployment.store.writing() as db:
        activity.note_beacons(db, [over], world.now)
    with pytest.raises(StillUsed, match="1 clients sealed to it last: on-old"):
        world.deployment.retire()


def test_retire_by_force(world):
    rotated(world)
    outcome = world.deployment.retire(force=True)
    assert [refusal.name for refusal in outcome.refusals] == ["still-used"]
    assert world.manifest.oldest_generation == 2


def test_which_key_to_retire(world):
    world.enable()
    ids = []
    for _ in range(2):
        ids.append(world.manifest.encryption[0].key_id.hex())
        world.enable()
    world.now += 2 * DAY
    with pytest.raises(Refused, match=r"2 old keys.*name one, or --all-old"):
        world.deployment.retire()
    with pytest.raises(Refused, match="no old key 'abc'"):
        world.deployment.retire("abc")
    with pytest.raises(Refused, match="not an old one"):
        world.deployment.retire(world.manifest.encryption[0].key_id.hex())
    with pytest.raises(ValueError, match="not both"):
        world.deployment.retire(ids[0], all_old=True)
    world.deployment.retire(ids[0])
    assert states(world) == {1: "retired", 2: "draining", 3: "active"}
    world.deployment.retire(all_old=True)
    assert states(world) == {1: "retired", 2: "retired", 3: "active"}
    assert len(key_files(world)) == 1


def test_retire_goes_for_older_ones_as_well(world):
    for _ in range(3):
        world.enable()
    world.now += 2 * DAY
    with world.deployment.store.reading() as db:
        second = next(k for k in store_keys.listing(db) if k.generation == 2)
    world.deployment.retire(second.key_id.hex())
    assert states(world) == {1: "retired", 2: "retired", 3: "active"}


def test_retire_refuses_to_leave_a_relay_without_a_key(world):
    relay = world.relay("slow")
    relay.announce()
    world.enable()
    relay.up = False
    world.deployment.generate_key()
    world.ready()
    world.deployment.enable(force=True)
    assert [key.generation for key in world.manifest.relays[0].keys] == [1]
    world.now += 2 * DAY
    with pytest.raises(Refused, match="could decrypt nothing: slow"):
        world.deployment.retire()
    world.deployment.retire(force=True)
    assert world.manifest.relays[0].keys == ()


def test_a_key_file_that_outlived_its_retirement_goes_with_the_next_act(world):
    """As after a crash between the commit and the deletion."""
    rotated(world)
    (old,) = (world.folder / "keys").glob("1-*.pem")
    pem = old.read_bytes()
    world.deployment.retire(force=True)
    old.write_bytes(pem)
    world.deployment.renew(dry_run=True)
    assert old.exists()
    world.deployment.renew()
    assert not old.exists()
    assert len(key_files(world)) == 1


def test_with_encryption_off_all_keys_may_go(world):
    world.enable()
    world.deployment.disable()
    world.now += 2 * DAY
    world.deployment.retire()
    assert key_files(world) == []
    world.enable()
    assert world.manifest.encryption[0].generation > 1
    assert world.manifest.oldest_generation <= world.manifest.encryption[0].generation


# -- disable -------------------------------------------------------------------------------


def test_disable_names_the_orphans_and_refuses(world):
    world.enable()
    must, may, never = (
        world.client("must", "required"), world.client("may"), world.client("never", "none"),
    )  # fmt: skip
    for client in (must, may, never):
        client.sync()
        client.report()
    before = snapshot(world.folder)
    with pytest.raises(WouldOrphan, match="1 client would withhold everything: must") as refused:
        world.deployment.disable()
    assert [orphan.agent for orphan in refused.value.orphans] == [must.agent]
    outcome = world.deployment.disable(dry_run=True)
    assert [orphan.name for orphan in outcome.orphans] == ["must"]
    assert snapshot(world.folder) == before
    assert [o.name for o in world.deployment.status().orphans_if_disabled] == ["must"]
    world.deployment.disable(force=True)
    assert world.state == "disabled"
    details = world.deployment.audit()["entries"][-1]["details"]
    assert details["orphans"] == [must.agent.hex()]
    assert details["forced"] == ["would-orphan"]
    for client in (must, may, never):
        client.sync()
    assert must.report() == Withhold(Reason.ENCRYPTION_DISABLED)
    assert may.report() == Clear(Reason.ENCRYPTION_DISABLED)
    assert never.report() == Clear(Reason.LEVEL_NONE)
    assert [client["name"] for client in world.deployment.clients("orphaned")] == ["must"]
    assert not world.deployment.disable().changed
    world.enable()
    must.sync()
    assert isinstance(must.report(), Seal)
    assert world.deployment.clients("orphaned") == []


def test_disable_drops_a_pending_key_and_keeps_the_old_one_for_what_is_under_way(world):
    world.enable()
    world.deployment.generate_key()
    world.deployment.disable()
    assert states(world) == {1: "draining"}
    assert [name[:2] for name in key_files(world)] == ["1-"]


def test_what_is_only_pending_is_cancelled_not_disabled(world):
    world.deployment.generate_key()
    with pytest.raises(Refused, match="--cancel"):
        world.deployment.disable()


# -- dry runs ---------------------------------------------------------------------------------


def test_dry_runs_change_nothing(world):
    rotated(world)
    world.relay("relay")
    world.now += 2 * DAY
    world.deployment.status()
    before = snapshot(world.folder)
    deployment = world.deployment
    for act in (
        lambda: deployment.generate_key(dry_run=True),
        lambda: deployment.rotate(dry_run=True),
        lambda: deployment.retire(dry_run=True),
        lambda: deployment.retire(all_old=True, dry_run=True, force=True),
        lambda: deployment.disable(dry_run=True),
        lambda: deployment.renew(dry_run=True),
        lambda: deployment.token(dry_run=True),
        lambda: deployment.set_level("required", everyone=True, dry_run=True),
        lambda: deployment.revoke("on-old", dry_run=True),
        lambda: deployment.add_relay("relay", accepts_sealed=False, dry_run=True),
        lambda: deployment.remove_relay("relay", dry_run=True),
        lambda: deployment.announce_signing_key(dry_run=True),
    ):
        outcome = act()
        assert outcome.dry_run
        assert outcome.changed
        assert outcome.manifest == world.manifest
    assert deployment.ready(dry_run=True).dry_run
    assert snapshot(world.folder) == before
    deployment.generate_key()
    before = snapshot(world.folder)
    assert deployment.cancel_key(dry_run=True).changed
    assert deployment.enable(dry_run=True).refusals
    assert deployment.rotate(dry_run=True, force=True).changed
    assert snapshot(world.folder) == before


def test_every_act_is_one_manifest_and_one_row(world):
    world.enable()
    world.client("a")
    deployment = world.deployment
    for act in (
        lambda: deployment.set_level("optional", everyone=True),
        lambda: deployment.set_level("none", clients=["a"]),
        lambda: deployment.renew(),
        lambda: deployment.revoke("a"),
        lambda: deployment.generate_key(),
        lambda: deployment.generate_key(replace=True),
        lambda: deployment.cancel_key(),
        lambda: deployment.announce_signing_key(),
        lambda: deployment.cancel_signing_key(),
        lambda: deployment.disable(),
    ):
        rows, serial = len(acts(world)), world.manifest.serial
        assert act().changed
        assert (len(acts(world)), world.manifest.serial) == (rows + 1, serial + 1)
        entry = deployment.audit()["entries"][-1]
        assert entry["details"]["serial"] == [serial, serial + 1]
        assert entry["actor"]
    assert deployment.audit(verify=True)["rows"] == len(acts(world))

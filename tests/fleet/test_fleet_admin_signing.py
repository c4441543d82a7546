# SPDX-License-Identifier: Apache-2.0
"""The signing key, the manifest's lifetime, the CA; two administrators; a tampered database."""

import dataclasses
import shutil
import threading

import pytest
from fleet_admin_support import DAY, HOUR, World, new_ca, snapshot
from sqlalchemy import delete, update

from upseal.core.certificates import load
from upseal.fleet import jws
from upseal.fleet.admin import signing
from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.admin.refusals import Overtaken, Refused, Unusable
from upseal.fleet.credentials import Token
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import Manifest, State
from upseal.fleet.policy import Reason, Seal
from upseal.fleet.server.store import keys as store_keys
from upseal.fleet.server.store import manifests
from upseal.fleet.server.tables import audit as audit_table
from upseal.fleet.server.tables import manifests as manifests_table
from upseal.fleet.trust import Outcome as Seen
from upseal.fleet.trust import Trust


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


def signer(world):
    """Key id of who signed the newest manifest."""
    return jws.header(world.newest())["kid"]


# -- the signing key ---------------------------------------------------------------------


def test_the_signing_key_changes_in_two_steps(world):
    always, offline, between = world.client("always"), world.client("offline"), None
    for client in (always, offline):
        client.sync()
    old = signer(world)
    world.deployment.announce_signing_key()
    facts = world.deployment.signing_keys()
    new = facts["next"][0]["key_id"]
    assert (facts["present"]["key_id"], signer(world)) == (old, old)
    always.sync()
    between = world.client("between")  # its token names the old key
    before = snapshot(world.folder)
    with pytest.raises(Refused, match="wait for 24 hours more, or use --force"):
        world.deployment.switch_signing_key()
    assert snapshot(world.folder) == before
    world.now += 24 * HOUR
    assert any("may sign" in warning for warning in world.deployment.status().warnings)
    world.deployment.switch_signing_key()
    assert signer(world) == new
    world.deployment.renew()
    assert signer(world) == new
    assert [key.key_id.hex() for key in world.manifest.signing_keys] == [new]
    for client in (always, offline, between):
        assert client.sync() is Seen.ACCEPTED
        assert client.trust.manifest.serial == world.manifest.serial
    late = world.client("late")
    assert late.sync() is Seen.ACCEPTED
    names = sorted(path.name for path in world.folder.glob("signing*"))
    assert names == [f"signing-{old}.retired.pem", "signing.pem"]


def test_a_client_that_was_away_for_two_changes_follows(world):
    away = world.client("away")
    away.sync()
    for _ in range(2):
        world.deployment.announce_signing_key()
        world.deployment.generate_key(replace=True)
        world.deployment.switch_signing_key(force=True)
        world.deployment.renew()
    # One who is given the newest only can tell nothing; the chain leads there.
    assert away.trust.offer([world.newest()], world.now) is Seen.FORGED
    assert len(world.chain(away.trust.manifest.serial)) == 5
    assert away.sync() is Seen.ACCEPTED
    assert away.trust.manifest.serial == world.manifest.serial


def test_tokens_of_any_time_lead_to_the_newest_manifest(world, tmp_path):
    texts = [world.deployment.token().result["tokens"][0]]
    world.deployment.announce_signing_key()
    texts.append(world.deployment.token().result["tokens"][0])
    world.deployment.renew()
    texts.append(world.deployment.token().result["tokens"][0])
    world.deployment.switch_signing_key(force=True)
    texts.append(world.deployment.token().result["tokens"][0])
    world.deployment.renew()
    for number, text in enumerate(texts):
        token = Token.decode(text)
        trust = Trust.start(
            tmp_path / f"{number}.json", token.fingerprint, token.deployment, token.least_serial
        )
        assert trust.offer(world.chain(), world.now) is Seen.ACCEPTED
        assert trust.manifest.serial == world.manifest.serial


def test_an_announced_key_can_be_replaced_or_taken_back(world):
    world.deployment.announce_signing_key()
    first = world.deployment.signing_keys()["next"][0]["key_id"]
    with pytest.raises(Refused, match=r"announced already.*--replace"):
        world.deployment.announce_signing_key()
    world.deployment.announce_signing_key(replace=True)
    second = world.deployment.signing_keys()["next"][0]["key_id"]
    assert first != second
    assert not (world.folder / f"signing-{first}.pem").exists()
    world.deployment.cancel_signing_key()
    assert sorted(path.name for path in world.folder.glob("signing*")) == ["signing.pem"]
    for act in (world.deployment.cancel_signing_key, world.deployment.switch_signing_key):
        with pytest.raises(Refused, match="none is announced"):
            act()
    assert world.client("a").sync() is Seen.ACCEPTED


def test_a_switch_cut_off_after_its_commit_is_finished_by_the_next_act(world, monkeypatch):
    world.deployment.announce_signing_key()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(signing, "put_in_place", killed)
        with pytest.raises(KeyboardInterrupt):
            world.deployment.switch_signing_key(force=True)
    new = signer(world)
    assert (world.folder / f"signing-{new}.pem").exists()
    with world.open() as deployment:
        assert deployment.renew().changed
    assert sorted(path.name for path in world.folder.glob("signing*"))[-1] == "signing.pem"
    assert not (world.folder / f"signing-{new}.pem").exists()
    assert (
        SigningKey.from_pem((world.folder / "signing.pem").read_bytes()).public.key_id.hex() == new
    )


def test_the_signing_key_may_lie_elsewhere(world, tmp_path):
    elsewhere = tmp_path / "usb"
    elsewhere.mkdir()
    shutil.move(world.folder / "signing.pem", elsewhere / "manifest.pem")
    with pytest.raises(Unusable, match=r"cannot read.*signing\.pem"):
        world.deployment.renew()
    assert world.deployment.renew(dry_run=True).changed  # needs no key
    world.deployment.token()  # nor does this
    with world.open(signing_key=elsewhere / "manifest.pem") as deployment:
        deployment.renew()
        deployment.announce_signing_key()
        deployment.switch_signing_key(force=True)
        deployment.renew()
    assert (elsewhere / "manifest.pem").exists()
    (elsewhere / "manifest.pem").write_bytes(SigningKey.generate().to_pem())
    wrong = r"which signed the newest one.*--signing-key"
    with (
        world.open(signing_key=elsewhere / "manifest.pem") as deployment,
        pytest.raises(Unusable, match=wrong),
    ):
        deployment.renew()


def test_keys_under_a_passphrase(tmp_path):
    folder, asked = tmp_path / "deployment", []
    Deployment.init(folder, new_passphrase=lambda: b"secret")
    assert b"ENCRYPTED" in (folder / "signing.pem").read_bytes()
    assert b"ENCRYPTED" in (folder / "ca.key").read_bytes()
    assert b"ENCRYPTED" not in (folder / "receipt.pem").read_bytes()  # the server needs it

    def passphrase(path):
        asked.append(path.name)
        return b"secret"

    with Deployment.open(folder, passphrase=passphrase) as deployment:
        deployment.status()
        deployment.generate_key(dry_run=True)
        assert asked == []  # nobody is asked for nothing
        deployment.generate_key()
        assert sorted(asked) == ["ca.key", "signing.pem"]
        deployment.announce_signing_key()
        deployment.switch_signing_key(force=True)
        deployment.renew()
    assert b"ENCRYPTED" in (folder / "signing.pem").read_bytes()  # the new one as well
    with (
        Deployment.open(folder, passphrase=lambda path: b"wrong") as deployment,
        pytest.raises(Unusable, match="check the file and its passphrase"),
    ):
        deployment.renew()
    with Deployment.open(folder) as deployment, pytest.raises(Unusable, match="passphrase"):
        deployment.renew()


# -- how long things last -------------------------------------------------------------------


def test_a_manifest_lasts_until_it_is_renewed(world):
    client = world.client("a")
    client.sync()
    world.now += 75 * DAY
    assert "the manifest expires in 15 days" in " ".join(world.deployment.status().warnings)
    world.now += 16 * DAY
    assert "has expired" in " ".join(world.deployment.status().warnings)
    decision = client.decision()
    assert isinstance(decision, Seal)  # to stop sealing would be worse
    assert decision.reason is Reason.STALE_MANIFEST
    world.deployment.renew()
    client.sync()
    assert client.decision().reason is Reason.SEALED
    assert world.manifest.expires == world.now + 90 * DAY


def test_certificates_are_renewed_before_they_end(world):
    """Or the enrolment key's would one day make each new manifest invalid."""
    client = world.client("a")
    keys = [world.manifest.enrolment.public(), world.manifest.encryption[0].public()]
    for _ in range(12):
        world.now += 80 * DAY
        world.deployment.renew()
        assert client.sync() is Seen.ACCEPTED
    assert world.now > load(world.manifest.authorities[0].encode()).not_valid_before_utc.timestamp()
    assert [world.manifest.enrolment.public(), world.manifest.encryption[0].public()] == keys
    for key in (world.manifest.enrolment, world.manifest.encryption[0]):
        end = load(key.certificate.encode()).not_valid_after_utc.timestamp() * 1000
        assert end > world.manifest.expires


def test_after_years_without_an_act_the_first_one_mends_all(world):
    world.now += 3000 * DAY
    assert "has ended" in " ".join(world.deployment.status().warnings)
    world.deployment.set_level("optional", everyone=True)
    assert world.client("a").sync() is Seen.ACCEPTED


def test_when_the_authority_has_ended_another_is_needed(world, tmp_path):
    world.now += 4000 * DAY
    before = snapshot(world.folder)
    with pytest.raises(Unusable, match=r"the CA's certificate is valid from.*renew --ca-cert"):
        world.deployment.renew()
    assert snapshot(world.folder) == before
    ca = new_ca(tmp_path, "Next", world.now)
    assert world.deployment.renew(ca, dry_run=True).changed
    assert snapshot(world.folder) == before
    world.deployment.renew(ca)
    client = world.client("a")
    assert client.sync() is Seen.ACCEPTED
    world.deployment.generate_key()
    assert client.sync() is Seen.ACCEPTED
    with world.open() as deployment:  # the settings know it as well
        deployment.generate_key(replace=True)
    assert "Next" in load(world.manifest.pending[0].certificate.encode()).issuer.rfc4514_string()
    assert len(world.manifest.authorities) == 1
    assert (world.folder / "deployment.toml").stat().st_mode & 0o777 == 0o600


def test_what_is_no_ca_is_refused(world, tmp_path):
    certificate, key = new_ca(tmp_path, "Company", world.now)
    end = tmp_path / "end.pem"
    end.write_text(world.manifest.encryption[0].certificate)
    before = snapshot(world.folder)
    for ca, why in (
        ((end, key), "it is not a CA's"),
        ((certificate, world.folder / "signing.pem"), "belongs to another certificate"),
        ((tmp_path / "none.pem", key), "cannot read"),
        ((key, key), "company.key"),
    ):
        with pytest.raises(Unusable, match=why):
            world.deployment.renew(ca)
    assert snapshot(world.folder) == before


# -- the clock ---------------------------------------------------------------------------------


def test_a_clock_that_went_back_is_noticed(world):
    world.now += 30 * DAY
    world.deployment.renew()
    issued = world.manifest.issued
    world.now -= 2 * HOUR
    before = snapshot(world.folder)
    with pytest.raises(Refused, match=r"the clock stands 7200 seconds before.*--force"):
        world.deployment.renew()
    assert snapshot(world.folder) == before
    assert "set it" in " ".join(world.deployment.status().warnings)
    world.now += 2 * HOUR - 60_000  # clocks differ by minutes
    world.deployment.renew()
    assert world.manifest.issued == issued
    client = world.client("a")
    assert client.sync() is Seen.ACCEPTED
    world.now -= 2 * HOUR
    world.deployment.renew(force=True)
    assert world.manifest.issued == world.now
    assert client.sync() is Seen.ACCEPTED


def test_no_manifest_that_agents_would_refuse(world):
    """Before the CA there is no time at which its certificates are valid."""
    world.now -= 400 * DAY
    before = snapshot(world.folder)
    with pytest.raises(Unusable, match="check the clock"):
        world.deployment.renew(force=True)
    assert snapshot(world.folder) == before


# -- two administrators ----------------------------------------------------------------------------


def test_of_two_at_once_one_wins(world, monkeypatch):
    """The second looks, the first acts, the second goes on."""
    first, second = world.deployment, world.open()
    look = type(second).signer

    def slow(self, view, **options):
        if self is second:
            first.set_level("optional", everyone=True)
        return look(self, view, **options)

    monkeypatch.setattr(type(second), "signer", slow)
    with second, pytest.raises(Overtaken, match=r"somebody else changed.*status"):
        second.generate_key()
    assert world.state == "enabled"
    assert len(list((world.folder / "keys").iterdir())) == 1
    assert [entry["act"] for entry in first.audit()["entries"]].count("generate-key") == 1


def test_many_at_once_make_one_chain(world):
    """Threads with a database connection each: as processes."""
    before, results, start = world.manifest.serial, [], threading.Barrier(6)

    def administrate(number):
        with world.open() as deployment:
            start.wait(30)
            for turn in range(3):
                try:
                    deployment.set_level(
                        "none" if (number + turn) % 2 else "optional", everyone=True
                    )
                    results.append("done")
                except Overtaken:
                    results.append("overtaken")

    threads = [threading.Thread(target=administrate, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 18
    rows = [e for e in world.deployment.audit(verify=True)["entries"] if e["act"] == "set-level"]
    assert world.manifest.serial == before + len(rows)
    assert len(rows) >= 1
    assert world.client("a").sync() is Seen.ACCEPTED


# -- a database that somebody else wrote to -----------------------------------------------


def forged(world, key, **changes):
    """A manifest that a broken-into server would like the administrator to go on from."""
    manifest = dataclasses.replace(world.manifest, serial=world.manifest.serial + 1, **changes)
    if key.public not in manifest.signing_keys:
        manifest = dataclasses.replace(manifest, signing_keys=(key.public,))
    return manifest.sign(key)


def put(world, token, serial):
    with world.deployment.store.writing() as db:
        manifests.add(db, serial, token, changed_signing_keys=False, issued=world.now)


def test_a_planted_manifest_is_not_built_on(world):
    stranger = SigningKey.generate()
    put(
        world,
        forged(world, stranger, state=State.DISABLED, encryption=()),
        world.manifest.serial + 1,
    )
    for act in (world.deployment.status, world.deployment.renew, world.deployment.token):
        with pytest.raises(Unusable, match="is not genuine"):
            act()


def test_a_changed_manifest_of_the_same_serial_is_not_built_on(world):
    present = SigningKey.from_pem((world.folder / "signing.pem").read_bytes())
    manifest = dataclasses.replace(world.manifest, default_level=None, expires=world.now + DAY)
    with world.deployment.store.writing() as db:
        db.execute(
            update(manifests_table)
            .where(manifests_table.c.serial == manifest.serial)
            .values(jws=manifest.sign(present))
        )
    with pytest.raises(Unusable, match=r"not genuine .contradiction"):
        world.deployment.status()


def test_a_restored_database_is_noticed_and_brought_forward(world, tmp_path):
    client = world.client("a")
    world.deployment.store.close()
    shutil.copy(world.folder / "server.db", tmp_path / "backup.db")
    world.enable()  # generation 2, which the backup does not know
    world.deployment.announce_signing_key()
    world.deployment.switch_signing_key(force=True)
    world.enable()
    world.deployment.generate_key()
    seen = world.manifest
    client.sync()
    world.deployment.close()
    for name in ("server.db", "server.db-wal", "server.db-shm"):
        (world.folder / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.db", world.folder / "server.db")
    world.deployment = world.open()
    with pytest.raises(Unusable, match=r"older manifest than.*backup.*admin recover"):
        world.deployment.renew()
    before = snapshot(world.folder)
    assert world.deployment.recover(dry_run=True).changed
    assert snapshot(world.folder) == before
    assert world.deployment.recover().changed
    assert world.manifest == seen
    with world.deployment.store.reading() as db:
        states = {key.generation: key.state for key in store_keys.listing(db, "server")}
    assert states == {1: "draining", 2: "draining", 3: "active", 4: "pending"}
    assert not world.deployment.recover().changed
    world.ready()
    world.deployment.enable()
    assert client.sync() is Seen.ACCEPTED
    fresh = world.client("fresh")
    assert fresh.sync() is Seen.ACCEPTED
    world.now += 2 * DAY
    world.deployment.retire(all_old=True)
    assert len(list((world.folder / "keys").iterdir())) == 1
    assert "recover" in [entry["act"] for entry in world.deployment.audit(verify=True)["entries"]]


def test_the_audit_log_tells_when_a_row_was_changed(world):
    world.deployment.renew()
    assert world.deployment.audit(verify=True)["hash"]
    assert len(world.deployment.audit(limit=1)["entries"]) == 1
    with world.deployment.store.writing() as db:  # as one who owns the file
        for what in ("update", "delete"):
            db.exec_driver_sql(f"DROP TRIGGER audit_no_{what}")
        db.execute(update(audit_table).where(audit_table.c.id == 2).values(actor="nobody"))
    with pytest.raises(Refused, match="row 2 of the audit log does not follow"):
        world.deployment.audit(verify=True)
    with world.deployment.store.writing() as db:
        db.execute(delete(audit_table).where(audit_table.c.id == 2))
    with pytest.raises(Refused, match="row 3 of the audit log does not follow"):
        world.deployment.audit(verify=True)


def test_what_the_administrator_signs_is_what_agents_get(world):
    """Byte for byte, and nothing that the strict reader would not take."""
    for token in world.chain():
        manifest = Manifest.open(token, jws.key_in(token))
        assert manifest.deployment == world.manifest.deployment

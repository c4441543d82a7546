# SPDX-License-Identifier: Apache-2.0
"""How a deployment is made, and what its folder and settings may be."""

import dataclasses
import os
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from fleet_admin_support import START, World, new_ca

from upseal import PrivateKey
from upseal.core.certificates import load
from upseal.fleet.admin import creating, folder
from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.admin.refusals import Overtaken, Refused, Unusable
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import State
from upseal.fleet.server.settings import read_settings
from upseal.fleet.trust import Outcome as Seen


def clock():
    return START


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made(tmp_path):
    where = tmp_path / "new" / "site"
    outcome = Deployment.init(where, clock=clock)
    manifest = outcome.manifest
    assert (manifest.serial, manifest.state, manifest.generation) == (1, State.DISABLED, 0)
    assert mode(where) == mode(where / "keys") == 0o700
    names = {path.name for path in where.iterdir() if not path.name.startswith("server.db-")}
    assert names == {
        "deployment.toml", "signing.pem", "ca.pem", "ca.key", "enrol.pem", "receipt.pem",
        "server.db", "keys", "trust.json", "trust.json.lock",
    }  # fmt: skip
    for path in where.iterdir():
        if path.is_file():
            assert mode(path) == 0o600, path
    signing = SigningKey.from_pem((where / "signing.pem").read_bytes())
    assert manifest.signing_keys == (signing.public,)
    receipt = SigningKey.from_pem((where / "receipt.pem").read_bytes())
    assert manifest.receipt_keys == (receipt.public,)
    enrol = PrivateKey.from_pem((where / "enrol.pem").read_bytes())
    assert manifest.enrolment.public() == enrol.public_key
    authority = load((where / "ca.pem").read_bytes())
    load(manifest.enrolment.certificate.encode()).verify_directly_issued_by(authority)
    with Deployment.open(where, clock=clock) as deployment:
        assert deployment.status().manifest == manifest
        assert [e["act"] for e in deployment.audit(verify=True)["entries"]] == ["init"]
    settings = read_settings(where)  # the server's reading of it
    assert (settings.name, settings.deployment) == ("site", manifest.deployment)
    assert settings.database == str(where / "server.db")


def test_two_deployments_have_nothing_in_common(tmp_path):
    one, other = (Deployment.init(tmp_path / name).manifest for name in "ab")
    assert one.deployment != other.deployment
    assert one.signing_keys != other.signing_keys


@pytest.mark.parametrize("there", ["deployment.toml", "signing.pem", "ca.key", "keys", "server.db"])
def test_nothing_is_ever_written_over(tmp_path, there):
    tmp_path.chmod(0o700)
    (tmp_path / there).write_text("mine")
    with pytest.raises(Refused, match=r"already.*-d"):
        Deployment.init(tmp_path)
    assert (tmp_path / there).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_others_enter_is_not_closed_behind_their_backs(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "letter").write_text("mine")
    with pytest.raises(Unusable, match=r"others may enter it.*chmod 700"):
        Deployment.init(tmp_path)
    assert mode(tmp_path) == 0o755
    with pytest.raises(Unusable, match="is no folder"):
        Deployment.init(tmp_path / "letter")
    empty = tmp_path / "empty"
    empty.mkdir(0o755)
    Deployment.init(empty)
    assert mode(empty) == 0o700


def test_a_dry_run_makes_nothing(tmp_path):
    outcome = Deployment.init(tmp_path / "new", dry_run=True)
    assert outcome.dry_run
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["manifests.add", "audit.append", "write_new", "Store.create"])
def test_what_fails_half_way_leaves_nothing(tmp_path, monkeypatch, broken):
    where, _, name = broken.rpartition(".")
    part = getattr(creating, where) if where else creating
    calls = []

    def fails(*args, **options):
        calls.append(args)
        if name != "write_new" or len(calls) == 4:
            raise OSError(28, "No space left on device")
        folder.write_new(*args, **options)

    monkeypatch.setattr(part, name, fails)
    with pytest.raises(OSError, match="No space"):
        Deployment.init(tmp_path / "new")
    left = [path.name for path in (tmp_path / "new").iterdir() if "lock" not in path.name]
    assert left == []
    monkeypatch.undo()
    Deployment.init(tmp_path / "new")


def test_for_fips(tmp_path):
    world = World(tmp_path / "site", fips=True)
    manifest = world.manifest
    assert manifest.signing_keys[0].algorithm == manifest.receipt_keys[0].algorithm == "ES256"
    assert manifest.enrolment.public().name == "p256"
    world.enable()
    assert world.manifest.encryption[0].public().name == "p256"
    for kind in ("x25519", "mlkem768-x25519"):
        with pytest.raises(ValueError, match="not for FIPS"):
            world.deployment.generate_key(kind)
    relay = world.relay("relay")
    relay.announce("x25519")
    assert "not for FIPS" in world.ready()[0].why
    world.deployment.announce_signing_key()
    world.deployment.switch_signing_key(force=True)
    assert world.manifest.signing_keys[0].algorithm == "ES256"
    world.close()
    with pytest.raises(ValueError, match="not for FIPS"):
        Deployment.init(tmp_path / "other", fips=True, key_type="x25519")


@pytest.mark.parametrize("kind", ["p256", "mlkem768-x25519", "rsa2048"])
def test_the_kind_of_keys(tmp_path, kind):
    world = World(tmp_path / "site", key_type=kind)
    assert world.manifest.enrolment.public().name == kind
    world.enable()
    assert world.manifest.encryption[0].public().name == kind
    assert world.client("a").sync() is Seen.ACCEPTED
    world.close()


def test_the_companys_ca(tmp_path):
    certificate, key = new_ca(tmp_path, "Company", START)
    world = World(tmp_path / "site", ca_cert=certificate, ca_key=key)
    assert not (world.folder / "ca.key").exists()
    assert world.manifest.authorities == (certificate.read_text(),)
    world.enable()
    issuer = load(world.manifest.encryption[0].certificate.encode()).issuer
    assert "Company" in issuer.rfc4514_string()
    key.unlink()
    world.deployment.forget_keys()
    with pytest.raises(Unusable, match=r"cannot read.*company\.key"):
        world.deployment.generate_key()
    world.deployment.set_level("optional", everyone=True)  # needs no certificate
    world.close()


def test_an_expired_ca_is_found_out_before_anything_is_made(tmp_path):
    certificate, key = new_ca(tmp_path, "Company", START - 4000 * 86_400_000)
    with pytest.raises(Unusable, match="is valid from"):
        Deployment.init(tmp_path / "site", ca_cert=certificate, ca_key=key, clock=clock)
    assert not (tmp_path / "site").exists()


def test_our_own_ca_is_for_this_alone(tmp_path):
    Deployment.init(tmp_path / "site", clock=clock)
    key = load_pem_private_key((tmp_path / "site" / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = load((tmp_path / "site" / "ca.pem").read_bytes())
    limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (True, 0)


@pytest.mark.parametrize("name", ["", "x" * 49, "two\nlines"])
def test_names(tmp_path, name):
    with pytest.raises(ValueError, match="1 to 48 printable"):
        Deployment.init(tmp_path / "site", name=name)
    assert not (tmp_path / "site").exists()


# -- settings --------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    Deployment.init(tmp_path / "site", name='A "name" \\ with signs', clock=clock)
    return tmp_path / "site"


def test_settings_come_back_as_they_were_written(site):
    settings = folder.load_settings(site)
    assert settings.name == 'A "name" \\ with signs'
    other = dataclasses.replace(settings, manifest_days=3, key_type="p256", port=1)
    assert folder.Settings.from_toml(other.to_toml()) == other
    assert read_settings(site).name == settings.name


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("manifest_days = 90", "manifest_days = 0", "at least 1"),
        ("manifest_days = 90", 'manifest_days = "90"', "of type int"),
        ("manifest_days = 90", "manifest_day = 90", "no setting 'manifest_day'"),
        ('key_type = "x25519"', 'key_type = "rot13"', "no key type"),
        ("port = 8450", "port = 70000", "no port"),
        ("fips = false", "fips = true", "not for FIPS"),
        ("[admin]", "[admin", "deployment.toml"),
        ("name = ", "nome = ", "no name"),
        ("deployment = ", "deployments = ", "hexadecimal"),
    ],
)
def test_wrong_settings(site, old, new, why):
    path = site / "deployment.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(Unusable, match=why):
        Deployment.open(site)


def test_the_servers_settings_stay_where_ours_are_changed(site, tmp_path):
    path = site / "deployment.toml"
    path.write_text(path.read_text() + "\n[server]\nthreads = 3  # of mine\n")
    ca = new_ca(tmp_path, "Next", START)
    with Deployment.open(site, clock=clock) as deployment:
        deployment.renew(ca)
    assert "threads = 3  # of mine" in path.read_text()
    assert folder.load_settings(site).ca_key == str(ca[1])


def test_there_must_be_a_deployment(tmp_path, site):
    with pytest.raises(Unusable, match=r"no deployment\.toml.*UPSEAL_DEPLOYMENT.*init"):
        Deployment.open(tmp_path)
    (site / "server.db").rename(site / "elsewhere.db")
    with pytest.raises(Unusable, match="no database"):
        Deployment.open(site)
    (site / "elsewhere.db").rename(site / "server.db")
    (site / "trust.json").write_text("{")
    with pytest.raises(Unusable, match="says which manifests are genuine"):
        Deployment.open(site)


def test_files_for_the_server_belong_to_the_servers_user(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can make a folder of another user")
    where = tmp_path / "site"
    where.mkdir()
    os.chown(where, 1234, 1234)
    world = World(where)
    world.enable()
    world.close()
    for name in ("deployment.toml", "enrol.pem", "receipt.pem", "server.db", "keys"):
        assert (where / name).stat().st_uid == 1234, name
    assert {path.stat().st_uid for path in where.glob("keys/*")} == {1234}
    assert {path.stat().st_uid for path in where.glob("server.db-*")} == {1234}


# -- PostgreSQL ---------------------------------------------------------------------------------


def test_on_postgresql(tmp_path, postgresql):
    """The whole life of a key, and two administrators of one deployment."""
    url = postgresql.database()
    world = World(tmp_path / "site", database=url)
    assert not (world.folder / "server.db").exists()
    with pytest.raises(Unusable, match="already"):
        Deployment.init(tmp_path / "twin", database=url)
    assert [p.name for p in (tmp_path / "twin").iterdir() if "lock" not in p.name] == []
    relay, client = world.relay("relay"), world.client("must", "required")
    world.enable()
    client.sync()
    client.report()
    with world.open() as other:
        seen = other.status().manifest

        def overtaking(*_args, **_options):
            world.deployment.renew()

        plain, other.authority = other.authority, overtaking
        with pytest.raises(Overtaken):
            other.generate_key()
        other.authority = plain
        assert other.status().manifest.serial == seen.serial + 1
    with pytest.raises(Refused, match="must"):
        world.deployment.disable()
    world.enable()
    client.sync()
    client.report()
    world.now += 2 * 86_400_000
    world.deployment.retire()
    assert len(world.manifest.relays[0].keys) == 1
    assert sorted(relay.keys) == [1, 2]
    assert world.deployment.audit(verify=True)["rows"] > 5
    world.deployment.revoke("relay")
    world.close()

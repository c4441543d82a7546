# SPDX-License-Identifier: Apache-2.0
"""The drill: a server's disk is gone, and it is set up again from its newest backup.

Real processes; the commands are those that an administrator would give.
"""

import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from fleet_modes import Mode
from fleet_world import eventually, make_world, reporting

from upseal import Opener, OpenError, PrivateKey, open_file, seal_file
from upseal.fleet import jws
from upseal.fleet.admin.backup import databases, taking
from upseal.fleet.admin.backup.archive import CONTEXT, TYPE, fits
from upseal.fleet.admin.backup.checking import check
from upseal.fleet.admin.backup.restoring import restore
from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.admin.refusals import Refused, Unusable
from upseal.fleet.agent.enrolment import EnrolmentRefused, enrol
from upseal.fleet.agent.settings import Settings as AgentSettings
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Level
from upseal.fleet.server.settings import read_settings, settings_of
from upseal.fleet.server.store import Store, alarms, audit, deletions

AGENTS = {"must": "required", "plain": "none"}


def command(*words, code=0):
    """What `upseal` says, on both of its outputs; it must end with that code."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UPSEAL_")}
    done = subprocess.run(
        [sys.executable, "-m", "upseal", *map(str, words)], env=environment, timeout=120,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout, done.stderr


def make_keys(folder):
    command("keygen", "-o", folder / "backup.pem")
    return folder / "backup.pub.pem", folder / "backup.pem"


def units_of(world, member):
    return set(world.query("SELECT epoch, sequence FROM units WHERE agent = ?", (member.id,)))


class Disk:
    """What is lost with the server's host, and a new one."""

    def __init__(self, world):
        self.world, self.database = world, world.mode.database

    def destroy(self):
        shutil.rmtree(self.world.deployment)
        if self.database is not None:
            import psycopg

            name, rest = self.database.split("@/")[1].split("?host=")
            with psycopg.connect(host=rest, user="postgres", autocommit=True) as db:
                db.execute(f"DROP DATABASE {name} WITH (FORCE)")
                db.execute(f"CREATE DATABASE {name}")


def drill(world, folder):
    public, private = make_keys(folder)
    backup, server = folder / "backup.sealed", world.nodes["server"]
    members = list(world.members.values())
    world.report()
    world.check(wire=False)
    unused = world.token("agent")

    with reporting(world):  # the server is at work meanwhile
        said = command("server", "backup", "-d", world.deployment, "-r", public, backup)
    assert said == ("", "")
    assert backup.stat().st_mode & 0o777 == 0o600
    world.report()
    with world.admin() as admin:  # after it, so that the backup's manifest is not the newest
        serial = admin.renew().manifest.serial
    for member in members:
        eventually(
            lambda m=member: m.status()["manifest"]["serial"] == serial, "the newest manifest"
        )
    world.check(wire=False)
    stored = {m.name: set(world.stored(m)) for m in members}
    units = {m.name: units_of(world, m) for m in members}

    server.kill()
    Disk(world).destroy()
    world.deployment.mkdir()
    world.report()  # nobody is there: it waits
    damaged(world, folder, backup, private)

    facts = json.loads(
        command("server", "restore", "-d", world.deployment, "-i", private, backup, "--json")[0]
    )
    assert facts["serial"] < serial and facts["void_tokens"] == 1
    gone = {m.name: stored[m.name] - set(world.stored(m)) for m in members}
    missing = {m.name: len(units[m.name] - units_of(world, m)) for m in members}
    assert all(len(gone[m.name]) >= 10 and missing[m.name] for m in members)
    # Clients have seen a newer manifest than is in the backup; each of them can give it back.
    words = ("admin", "recover", "-d", world.deployment, "--trust")
    command(*words, members[0].folder / "trust.json", "--dry-run")
    assert world.query("SELECT max(serial) FROM manifests") == [(facts["serial"],)]
    command(*words, members[0].folder / "trust.json")
    assert world.query("SELECT max(serial) FROM manifests") == [(serial,)]

    server.start()
    world.report()
    for member in members:
        eventually(lambda m=member: world.arrived(m), f"the receipts of {member.name}")
    went_on(world, gone, missing)
    with world.admin() as admin:
        assert not admin.rotate(timeout=60).refusals
        assert admin.audit(verify=True)["rows"]
        acts = [entry["act"] for entry in admin.audit()["entries"]]
    assert acts.index("restore") < acts.index("recover") < len(acts) - 1
    world.report()
    for member in members:
        eventually(lambda m=member: world.arrived(m), f"the receipts of {member.name}")
    went_on(world, gone, missing)
    # What was handed out before, and may have been taken back since, is void.
    with pytest.raises(EnrolmentRefused):
        enrol(AgentSettings(world.url, folder / "late", Level.OPTIONAL, "late"), unused)
    assert not world.alarms() & {"contradiction", "bad-signature"}
    for member in members:
        assert not member.node.events("alarm")


def went_on(world, gone, missing):
    """Lost is what was receipted after the backup, nothing else; and the server says whose."""
    for member in world.members.values():
        stored = world.stored(member)
        assert set(member.made) - set(stored) == gone[member.name], member.name
        assert max(stored.values()) == 1
    with world.admin() as admin:
        said = {client["name"]: client["missing_units"] for client in admin.clients("gaps")}
    assert said == missing


def damaged(world, folder, backup, private):
    """Is refused, with nothing written."""
    whole, bad = backup.read_bytes(), folder / "bad.sealed"
    middle = len(whole) // 2
    opener = Opener([PrivateKey.from_pem(private.read_bytes())])
    for data in (
        b"",
        whole[:-1],
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        whole + b"\0",
        whole[:middle],
    ):
        bad.write_bytes(data)
        with pytest.raises(OpenError):
            back(bad, opener, world.deployment)
        assert not list(world.deployment.iterdir())
    words = ("-d", world.deployment, "-i", private, bad)
    _, error = command("server", "restore", *words, code=1)
    assert "nothing was written" in error
    assert not list(world.deployment.iterdir())
    if world.mode.database is not None:
        with pytest.raises(Exception, match="does not exist"):
            world.query("SELECT 1 FROM meta")


def test_a_drill(tmp_path):
    with make_world(tmp_path / "world", agents=AGENTS, passing=False) as world:
        drill(world, tmp_path)


@pytest.mark.slow
def test_a_drill_with_postgresql(tmp_path, postgresql):
    mode = Mode(database=postgresql.database())
    with make_world(tmp_path / "world", agents=AGENTS, passing=False, mode=mode) as world:
        drill(world, tmp_path)


# -- in one process ------------------------------------------------------------------


@pytest.fixture
def keys():
    private = PrivateKey.generate("x25519")
    return private.public_key, Opener([private])


@pytest.fixture
def deployment(tmp_path):
    folder = tmp_path / "deployment"
    Deployment.init(folder, name="one")
    with Deployment.open(folder) as admin:
        admin.generate_key()
    return folder


def back(path, opener, folder, **options):
    return restore(path, opener, settings_of, folder, **options)


def plain(path, opener):
    """The archive of a backup, as names and bytes."""
    out = io.BytesIO()
    open_file(path, out, opener, CONTEXT)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def sealed(path, public, files):
    """As somebody would make it who has the public key."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = out.getvalue().rstrip(b"\0")
    data += bytes(-len(data) % 512 + 1024)
    seal_file(io.BytesIO(data), path, [public], CONTEXT)


def listed(files):
    """With a list of contents that fits them."""
    pairs = files.items() if isinstance(files, dict) else files
    return "".join(f"{hashlib.sha256(d).hexdigest()}  {n}\n" for n, d in pairs).encode()


def ended(files, signed, key):
    """With an end that fits them, signed by that key."""
    contents = listed(files)
    claims = jws.unverified(signed) | {
        "contents": hashlib.sha256(contents).hexdigest(), "files": len(files),
        "bytes": sum(len(data) for _, data in files),
    }  # fmt: skip
    token = jws.sign(claims, key, TYPE).encode()
    return [*files, ("contents", contents), ("backup.jws", token)]


def test_all_of_the_folder_comes_back(deployment, tmp_path, keys):
    public, opener = keys
    (deployment / "tls").mkdir()
    (deployment / "tls" / "server.pem").write_text("a certificate")
    backup, target = tmp_path / "b", tmp_path / "new"
    taken = taking.take(read_settings(deployment), backup, [public])
    assert back(backup, opener, target).found.id == check(backup, opener).id
    passing = {"server.db", "backup.lock", "trust.json.lock", "server.db-turn", "server.db-door"}
    wanted = {
        path.relative_to(deployment): path.read_bytes()
        for path in deployment.rglob("*") if path.is_file() and path.name not in passing
    }  # fmt: skip
    found = {
        path.relative_to(target): path.read_bytes()
        for path in target.rglob("*") if path.is_file() and path.name not in passing
    }  # fmt: skip
    assert found == wanted and len(wanted) == taken.files - 1
    assert all(path.stat().st_mode & 0o077 == 0 for path in target.rglob("*"))
    with Deployment.open(target) as admin:
        assert admin.status().facts()["serial"] == taken.serial


def test_tar_reads_it(deployment, tmp_path, keys):
    public, opener = keys
    taking.take(read_settings(deployment), tmp_path / "b", [public])
    files = plain(tmp_path / "b", opener)
    contents = files.pop("contents")
    assert files.pop("backup.jws") and contents == listed(files)
    assert files["database"].startswith(b"SQLite format 3\0")


def test_what_was_deleted_is_not_in_it(deployment, tmp_path, keys):
    """It stands in free pages of the database's file still."""
    public, opener = keys
    secret = b"deleted long ago " * 1000
    with closing(sqlite3.connect(deployment / "server.db")) as db:
        db.execute("INSERT INTO reports VALUES (1, 1, ?)", (secret,))
        db.commit()
        db.execute("PRAGMA secure_delete = OFF")
        db.execute("DELETE FROM reports")
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert secret[:17] in (deployment / "server.db").read_bytes()
    taking.take(read_settings(deployment), tmp_path / "b", [public])
    assert secret[:17] not in plain(tmp_path / "b", opener)["database"]


def test_a_key_of_the_folder_itself_is_refused(deployment, tmp_path):
    (path,) = (deployment / "keys").iterdir()
    with pytest.raises(Refused, match="lies in the folder itself"):
        taking.take(
            read_settings(deployment), tmp_path / "b",
            [PrivateKey.from_pem(path.read_bytes()).public_key],
        )  # fmt: skip
    assert not (tmp_path / "b").exists()


def test_nothing_is_written_over(deployment, tmp_path, keys):
    public, opener = keys
    backup = tmp_path / "b"
    taking.take(read_settings(deployment), backup, [public])
    before = backup.read_bytes()
    with pytest.raises(Refused, match="already"):
        taking.take(read_settings(deployment), backup, [public])
    assert backup.read_bytes() == before
    with pytest.raises(Refused, match="not empty"):
        back(backup, opener, deployment)
    (tmp_path / "mounted" / "lost+found").mkdir(parents=True)
    back(backup, opener, tmp_path / "mounted")
    assert (tmp_path / "mounted" / "deployment.toml").exists()


def test_an_act_meanwhile_begins_it_again(deployment, tmp_path, keys, monkeypatch):
    """Keys, manifests and database of one moment: between them an administrator makes a key."""
    public, opener = keys
    copied, acted = databases.copied, []

    def act_once(database, work, look):
        found = copied(database, work, look)
        if not acted:
            acted.append(1)
            return Acting(found)
        return found

    class Acting:
        def __init__(self, inner):
            self.inner = inner

        def __enter__(self):
            got = self.inner.__enter__()
            with Deployment.open(deployment) as admin:
                admin.generate_key(replace=True)
            return got

        def __exit__(self, *words):
            return self.inner.__exit__(*words)

    monkeypatch.setattr(databases, "copied", act_once)
    taken = taking.take(read_settings(deployment), tmp_path / "b", [public])
    assert acted and taken.serial == 3
    assert not back(tmp_path / "b", opener, tmp_path / "new").to_recover
    with Deployment.open(tmp_path / "new") as admin:
        admin.cancel_key()  # its key's file is there, and the manifest is as the folder knows it


def test_a_killed_one_leaves_nothing_for_long(deployment, tmp_path, keys):
    (deployment / ".backup-old").mkdir()
    (deployment / ".backup-old" / "database").write_bytes(b"reports")
    taking.take(read_settings(deployment), tmp_path / "b", [keys[0]])
    assert not list(deployment.glob(".backup*"))
    assert "folder/.backup-old/database" not in plain(tmp_path / "b", keys[1])


def test_a_failure_leaves_no_file(deployment, tmp_path, keys):
    class Enough(Exception):
        pass

    def stop(done, total):
        if total and done > total // 2:
            raise Enough

    with pytest.raises(Enough):
        taking.take(read_settings(deployment), tmp_path / "b", [keys[0]], progress=stop)
    assert {path.name for path in tmp_path.iterdir()} == {"deployment"}
    taking.take(read_settings(deployment), tmp_path / "b", [keys[0]])
    calls = [0]

    def stop_writing(done, total):
        calls.append(done)
        if any(b < a for a, b in pairwise(calls)) and done > total // 2:
            raise Enough  # the second time, when it is written

    with pytest.raises(Enough):
        back(tmp_path / "b", keys[1], tmp_path / "new", progress=stop_writing)
    assert not (tmp_path / "new").exists()


def test_a_forged_one_is_refused(deployment, tmp_path, keys):
    """Whoever has the public key of backups can seal; who may sign, he cannot choose."""
    public, opener = keys
    backup, forged = tmp_path / "b", tmp_path / "forged"
    taking.take(read_settings(deployment), backup, [public])
    files = plain(backup, opener)
    signed = files.pop("backup.jws")
    del files["contents"]
    whole = [*files.items(), ("contents", listed(files)), ("backup.jws", signed)]
    sealed(forged, public, whole)
    check(forged, opener)  # so it is not for its form that the others are refused
    Deployment.init(tmp_path / "other", name="other")
    other = {
        f"folder/{name}": (tmp_path / "other" / name).read_bytes()
        for name in ("deployment.toml", "trust.json", "receipt.pem")
    }  # fmt: skip
    taking.take(read_settings(tmp_path / "other"), tmp_path / "b2", [public])
    evil = {
        "another key": files | {"folder/receipt.pem": other["folder/receipt.pem"]},
        "another deployment": files | other,
        "one more": files | {"folder/more.pem": b"x"},
        "another database": files | {"database": files["database"] + bytes(4096)},
        "no database": {n: d for n, d in files.items() if n != "database"},
        "no trust": {n: d for n, d in files.items() if n != "folder/trust.json"},
    }
    for what, words in evil.items():
        sealed(
            forged, public, [*words.items(), ("contents", listed(words)), ("backup.jws", signed)]
        )
        with pytest.raises(OpenError):
            back(forged, opener, tmp_path / what)
        assert not (tmp_path / what).exists(), what
    ours = SigningKey.from_pem(files["folder/receipt.pem"])
    names = list(files.items())
    sealed(forged, public, ended(names, signed, ours))
    check(forged, opener)  # all that follow have one thing wrong
    for why, words in (
        ("does not verify", ended(names, signed, SigningKey.generate("ed25519"))),
        ("list of contents is missing", whole[:-1]),
        ("list of contents says", [*whole[:-2], ("contents", b""), whole[-1]]),
        ("behind its end", [*whole, whole[-1]]),
        ("behind its end", [*whole, ("folder/more", b"x")]),
        ("twice", ended([*names, names[0]], signed, ours)),
        ("no backup has", ended([("folder/../../evil", b"x"), *names], signed, ours)),
        ("no backup has", ended([("/etc/evil", b"x"), *names], signed, ours)),
    ):
        sealed(forged, public, words)
        with pytest.raises(OpenError) as caught:
            check(forged, opener)
        assert why in caught.value.problem
    fingerprint = check(backup, opener).fingerprint
    check(backup, opener, fingerprint=fingerprint[:16].upper())
    with pytest.raises(Refused, match="not by"):
        check(tmp_path / "b2", opener, fingerprint=fingerprint)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, b"x", b"L"])
def test_a_backup_has_files_alone(tmp_path, keys, kind):
    public, opener = keys
    info = tarfile.TarInfo("folder/evil")
    info.type, info.linkname, info.size = kind, "/etc/passwd", 1 << 30
    data = info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    seal_file(io.BytesIO(data), tmp_path / "b", [public], CONTEXT)
    with pytest.raises(OpenError) as caught:
        check(tmp_path / "b", opener)
    assert "no backup has" in caught.value.problem


def test_names_lead_nowhere_else():
    assert fits("folder/keys/1-00ff.pem") and fits("uploads/" + "0" * 32 + "/" + "f" * 32)
    for name in (
        "folder/..", "folder/a/../b", "folder/.", "folder//a", "/folder/a", "uploads/a/b",
        "folder/a\n", "folder/" + "a" * 100, "other/a", "folder/",
    ):  # fmt: skip
        assert not fits(name), name


def put_upload(folder, agent, upload, data):
    path = folder / "uploads" / "stored" / agent.hex() / upload.hex()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    with closing(sqlite3.connect(folder / "server.db")) as db:
        db.execute(
            "INSERT INTO uploads (agent, upload, name, size, sha256, modified, form, received, "
            "path, body_id, announcement) VALUES (?, ?, x'41', ?, ?, 1, 'clear', 1, ?, ?, ?)",
            (agent, upload, len(data), hashlib.sha256(data).digest(),
             f"{agent.hex()}/{upload.hex()}", upload * 2, agent * 2),
        )  # fmt: skip
        db.commit()
    return path


def test_uploads_come_back(deployment, tmp_path, keys):
    public, opener = keys
    agent, first, second = os.urandom(16), os.urandom(16), os.urandom(16)
    kept = put_upload(deployment, agent, first, os.urandom(100_000))
    lost = put_upload(deployment, agent, second, b"will go")
    (deployment / "uploads" / "incoming").mkdir()
    (deployment / "uploads" / "incoming" / "half").write_bytes(b"half")
    settings = read_settings(deployment)
    lost.unlink()
    with pytest.raises(Unusable, match="is missing"):
        taking.take(settings, tmp_path / "b", [public])
    # As if it had been deleted between the copy of the database and this.
    copied = databases.deleted
    try:
        databases.deleted = lambda database: {(agent, second)}
        taking.take(settings, tmp_path / "b", [public])
    finally:
        databases.deleted = copied
    done = back(tmp_path / "b", opener, tmp_path / "new")
    assert (done.found.uploads, len(done.found.gone)) == (1, 1)
    there = tmp_path / "new" / "uploads"
    assert [p for p in there.rglob("*") if p.is_file()] == [
        there / "stored" / agent.hex() / first.hex()
    ]
    assert (there / "stored" / agent.hex() / first.hex()).read_bytes() == kept.read_bytes()
    with Store.open(tmp_path / "new" / "server.db") as store, store.reading() as db:
        assert [left.upload for left in deletions.left(db)] == [second]
    kept.write_bytes(b"cut")
    with pytest.raises(Unusable, match="3 bytes"):
        taking.take(settings, tmp_path / "b3", [public])


def test_uploads_and_database_elsewhere(deployment, tmp_path, keys):
    """They come back to where the settings say, or nothing does."""
    public, opener = keys
    text = (deployment / "deployment.toml").read_text()
    text = text.replace("sqlite:///server.db", f"sqlite:///{tmp_path}/far.db")
    (deployment / "deployment.toml").write_text(
        text + f'\n[server]\nuploads_folder = "{tmp_path}/far"\n'
    )
    (deployment / "server.db").rename(tmp_path / "far.db")
    agent, upload = os.urandom(16), os.urandom(16)
    settings = read_settings(deployment)
    with Store.open(settings.database) as store, store.writing() as db:
        alarms.sound(db, "one", b"", {}, 1)
    taking.take(settings, tmp_path / "b", [public])
    with pytest.raises(Refused, match=r"far\.db"):
        back(tmp_path / "b", opener, tmp_path / "new")
    assert not (tmp_path / "new").exists() and agent != upload
    (tmp_path / "far.db").unlink()
    (tmp_path / "far").mkdir(exist_ok=True)
    (tmp_path / "far" / "something").write_bytes(b"")
    with pytest.raises(Refused, match="folder of uploads"):
        back(tmp_path / "b", opener, tmp_path / "new")
    (tmp_path / "far" / "something").unlink()
    back(tmp_path / "b", opener, tmp_path / "new")
    with Store.open(tmp_path / "far.db") as store, store.reading() as db:
        assert [alarm.kind for alarm in alarms.listing(db)] == ["one"]
        assert [entry.act for entry in audit.entries(db)][-1] == "restore"


def test_trust_of_another_deployment_brings_nothing_forward(deployment, tmp_path):
    Deployment.init(tmp_path / "other", name="other")
    with Deployment.open(deployment) as admin:
        before = (deployment / "trust.json").read_bytes()
        with pytest.raises(Refused, match="another deployment"):
            admin.recover(tmp_path / "other" / "trust.json")
        with pytest.raises(Unusable, match="cannot read"):
            admin.recover(tmp_path / "nothing")
        assert (deployment / "trust.json").read_bytes() == before


def test_two_at_once(deployment, tmp_path, keys):
    def again(done, total):
        with pytest.raises(Refused, match="another one"):
            taking.take(read_settings(deployment), tmp_path / "c", [keys[0]])
        seen.append(done)

    seen = []
    taking.take(read_settings(deployment), tmp_path / "b", [keys[0]], progress=again)
    assert seen


def _put_back(url):
    databases.put_back(Path("none"), url, lambda: None)


@pytest.mark.parametrize("use", [databases.check_empty, _put_back])
def test_a_database_that_is_no_url_keeps_its_password(use):
    with pytest.raises(Unusable, match="no URL") as refused:
        use("postgresql://u:pa@ss:word@host/db")
    assert "word@" not in str(refused.value)

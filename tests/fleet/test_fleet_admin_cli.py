# SPDX-License-Identifier: Apache-2.0
"""``upseal admin`` as people and scripts use it: words, objects, exit codes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fleet_admin_support import World, dump, new_ca, snapshot
from fleet_server_support import Site, now_ms

from upseal import PrivateKey
from upseal.cli import admin_clients, admin_common, main
from upseal.cli.parser import build
from upseal.fleet.credentials import Token
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Level
from upseal.fleet.server.overview.census import FILTERS


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("UPSEAL_DEPLOYMENT", "UPSEAL_PASSPHRASE", "UPSEAL_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys):
    """Runs one act; gives its output, parsed if it is an object."""

    def call(*args, code=0):
        capsys.readouterr()
        assert main(["admin", *map(str, args)]) == code, capsys.readouterr()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert err.count("\n") == (1 if code else 0), err
        if code:
            assert err.startswith("upseal: ")
        call.err = err
        return json.loads(out) if "--json" in args else out

    return call


@pytest.fixture
def site(run, tmp_path, monkeypatch):
    folder = tmp_path / "site"
    monkeypatch.setenv("UPSEAL_DEPLOYMENT", str(folder))
    run("init", "--name", "Site")
    return folder


@pytest.fixture
def world(site):
    """What clients and relays do there, by the real clock."""
    made = World(site.parent / "world", template=site)
    made.now = now_ms()  # that of `site`
    made.close()
    made.folder = site
    made.deployment = made.open()
    yield made
    made.close()


def test_from_nothing_to_enabled_and_back(run, site):
    facts = run("status", "--json")
    assert (facts["name"], facts["state"], facts["serial"]) == ("Site", "disabled", 1)
    assert "generation 1 is pending" in run("generate-key")
    run("ready", "--timeout", "0", code=6)
    assert "the server: it has not answered" in run.err
    run("enable", code=6)
    assert "--force" in run.err
    made = run("enable", "--force", "--json")
    assert made["changed"]
    assert made["refusals"][0]["refused"] == "not-ready"
    assert made["state"] == "enabled"
    out = run("status")
    assert "encryption is enabled" in out
    assert "active, server" in out
    assert "0 clients" in out
    run("rotate", "--timeout", "0", code=6)
    assert run("status", "--json")["state"] == "pending-rotation"
    assert "the pending key is gone" in run("generate-key", "--cancel")
    assert "clear text" in run("disable")
    assert run("status", "--json")["old_keys"][0]["generation"] == 1


def test_orphans_have_an_exit_code_of_their_own(run, site, world):
    world.enable()
    client = world.client("web-1", "required")
    client.sync()
    client.report()
    before = dump(site)
    run("disable", code=7)
    assert "1 client would withhold everything: web-1" in run.err
    found = run("disable", "--json", code=7)
    assert found["refused"] == "would-orphan"
    assert found["orphans"][0]["agent"] == client.agent.hex()
    out = run("disable", "--dry-run", code=7)
    assert "dry run: would change" in out
    assert re.search(r"would be orphaned:\n  web-1 \([0-9a-f]{32}\): it says", out)
    found = run("disable", "--dry-run", "--json", code=7)
    assert (found["changed"], found["would_change"], found["dry_run"]) == (False, True, True)
    assert found["orphans"][0]["name"] == "web-1"
    assert dump(site) == before
    run("disable", "--dry-run", "--force")
    assert "would be orphaned by `disable`: 1 (web-1)" in run("status")
    out = run("disable", "--force")
    assert "overridden" in out
    client.sync()
    client.report()
    out = run("clients", "--filter", "orphaned")
    assert re.search(r"web-1 .*required +withheld +encryption-disabled", out)
    run("set-level", "required", "--all", code=7)
    run("set-level", "optional", "--client", "web-1")
    assert run("clients", "--json")["clients"][0]["set"] == "optional"
    assert "required (set: optional)" in run("clients")


def test_dry_runs_write_nothing(run, site, world):
    world.relay("r1", add=False)
    world.client("a")
    before = snapshot(site)
    for act in (
        ["generate-key"], ["token"], ["set-level", "none", "--all"], ["revoke", "a"], ["renew"],
        ["relays", "add", "r1"], ["signing-key", "announce"],
    ):  # fmt: skip
        assert "dry run: would change" in run(*act, "--dry-run")
    assert snapshot(site) == before


def test_tokens(run, site):
    lines = run("token", "--uses", "2", "--role", "relay", "--expires", "30m").split()
    assert len({Token.decode(line).secret for line in lines}) == 2
    now = now_ms()
    found = run("token", "--json")
    assert len(found["tokens"]) == 1
    assert 86_300_000 < found["expires"] - now < 86_500_000 + 600_000


def test_relays(run, site, world):
    assert "accepts sealed" in run("relays")
    world.relay("r1", add=False)
    assert "no: `relays add`" in run("relays", "list")
    run("relays", "add", "r1", "--decrypts", "--accepts-sealed", "yes")
    (relay,) = run("relays", "--json")["relays"]
    assert (relay["in_manifest"], relay["decrypts"]) == (True, True)
    run("relays", "set", "r1", "--no-decrypts")
    assert not run("relays", "--json")["relays"][0]["decrypts"]
    run("relays", "remove", "r1")
    run("relays", "remove", "r1", code=6)
    run("relays", "add", code=2)
    run("relays", "list", "r1", code=2)
    run("relays", "remove", "r1", "--decrypts", code=2)


def test_revoke(run, site, world):
    client = world.client("a")
    assert "may not report" in run("revoke", "a")
    assert client.agent in world.manifest.revoked_agents
    run("revoke", "a", "--undo")
    run("revoke", "b", code=6)
    assert "no client, relay or certificate" in run.err


def test_the_signing_key(run, site):
    assert run("signing-key").startswith("present  ")
    out = run("signing-key", "announce")
    assert "signing-key switch" in out
    assert "may sign from" in run("signing-key", "status")
    run("signing-key", "switch", code=6)
    run("signing-key", "switch", "--force")
    run("signing-key", "cancel", code=6)
    run("signing-key", "switch", "--replace", code=2)
    assert [e["act"] for e in run("audit", "--json", "--limit", "2")["entries"]] == [
        "announce-signing-key", "switch-signing-key",
    ]  # fmt: skip
    out = run("audit", "--verify")
    assert "whole: 3 rows" in out


def test_escrow_keys(run, site, tmp_path):
    key = PrivateKey.generate().public_key
    (tmp_path / "vault.pub.pem").write_bytes(key.to_pem())
    out = run("generate-key", "--escrow", tmp_path / "vault.pub.pem")
    assert f"escrow: vault.pub ({key.key_id.hex()})" in out
    run("generate-key", "--replace", "--no-escrow", "--escrow", tmp_path / "vault.pub.pem", code=2)
    run("generate-key", "--cancel", "--replace", code=2)
    run("generate-key", "--replace", "-t", "mlkem768-x25519", "--no-escrow")


def test_retire(run, site, world):
    world.enable()
    first = world.manifest.encryption[0].key_id.hex()
    world.enable()
    run("retire", first, "--all-old", code=2)
    run("retire", first, code=6)
    assert "safe to retire in 24 h" in run.err
    assert "safe to retire from" in run("status")
    assert f"retired: {first}" in run("retire", first, "--force")
    assert "there is no old key" in run("retire", "--all-old")


def test_the_ca(run, site, tmp_path):
    certificate, key = new_ca(tmp_path, "Next", now_ms())
    run("renew", "--ca-cert", certificate, code=2)
    assert "CN=Next upseal CA" in run("renew", "--ca-cert", certificate, "--ca-key", key)
    run("init", "-d", tmp_path / "b", "--ca-cert", certificate, code=2)
    made = run("init", "--json", "-d", tmp_path / "b", "--ca-cert", certificate, "--ca-key", key)
    assert (
        made["fingerprint"]
        == SigningKey.from_pem(
            (tmp_path / "b" / "signing.pem").read_bytes()
        ).public.fingerprint.hex()
    )
    assert not (tmp_path / "b" / "ca.key").exists()


def test_passphrases(run, tmp_path, monkeypatch):
    folder, words = tmp_path / "site", tmp_path / "words"
    words.write_text("open sesame\n")
    run("init", "-d", folder, "--passphrase-file", words)
    run("generate-key", "-d", folder, "--passphrase-file", words)
    monkeypatch.setenv("UPSEAL_PASSPHRASE", "open sesame")
    run("generate-key", "-d", folder, "--replace")
    monkeypatch.setenv("UPSEAL_PASSPHRASE", "wrong")
    run("renew", "-d", folder, code=6)
    assert "passphrase" in run.err
    assert "open sesame" not in run.err


def test_the_database_is_back_from_a_backup(run, site):
    old = (site / "server.db").read_bytes()
    run("renew")
    for name in ("server.db-wal", "server.db-shm"):
        (site / name).unlink(missing_ok=True)
    (site / "server.db").write_bytes(old)
    run("status", code=6)
    assert "upseal admin recover" in run.err
    run("recover", "--dry-run")
    run("recover")
    assert run("status", "--json")["serial"] == 2


def test_wrong_usage(run, tmp_path, site):
    run("status", "-d", tmp_path, code=6)
    assert "no deployment.toml" in run.err
    run("init", code=6)
    assert "already" in run.err
    for wrong in (
        [], ["dance"], ["set-level", "required"], ["set-level", "high", "--all"],
        ["set-level", "none", "--all", "--client", "a"], ["token", "--expires", "soon"],
        ["token", "--uses", "0"], ["clients", "--filter", "blue"], ["ready", "--force"],
        ["init", "--fips", "-t", "x25519", "-d", tmp_path / "c"], ["token", "--uses", "99999"],
    ):  # fmt: skip
        run(*wrong, code=2)
    run("clients", "--dry-run", code=2)  # it changes nothing


def test_a_database_that_fails_is_one_line_without_secrets(run, site):
    path = site / "deployment.toml"
    url = "postgresql://admin:hunter2@127.0.0.1:1/none"
    path.write_text(path.read_text().replace("sqlite:///server.db", url))
    run("status", code=6)
    assert "cannot use the database" in run.err
    assert "hunter2" not in run.err


def test_times_for_people():
    assert [admin_common.duration(text) for text in ("90", "30m", "24h", "7d", "1.5h")] == [
        90, 1800, 86400, 604800, 5400,
    ]  # fmt: skip
    assert admin_common.moment(None) == "never"
    assert admin_common.moment(1 << 62) == str(1 << 62)
    assert admin_common.ago(0, 3_600_000 * 50) == "2 d ago"
    assert admin_common.ago(0, 5000) == "5 s ago"


def test_the_lists_agree_with_the_library():
    assert admin_clients.FILTERS == FILTERS
    assert (*(level.value for level in Level), "default") == admin_clients.LEVELS


def test_the_page_names_every_act_and_exit_code():
    page = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    section = page.partition("## upseal admin")[2].partition("\n## ")[0]
    parser = build(["admin"])
    (commands,) = (a for a in parser._actions if isinstance(a.choices, dict))
    (acts,) = (a for a in commands.choices["admin"]._actions if isinstance(a.choices, dict))
    for act in acts.choices:
        assert f"`{act}`" in section, act
    for code in (admin_common.REFUSED, admin_common.ORPHANS):
        assert f"| {code} |" in page


def test_asking_for_help_imports_no_database():
    code = (
        "import sys; from upseal.cli import main; main(['admin', 'rotate', '--help'])\n"
        "assert 'sqlalchemy' not in sys.modules and 'cryptography' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert b"--timeout" in done.stdout


def test_with_a_running_server(run, tmp_path):
    """The real server proves that it has the key."""
    site = Site(tmp_path / "site")
    site.enable()
    with site.running():
        found = run("rotate", "--json", "-d", site.folder)
        assert [holder["ready"] for holder in found["holders"]] == [True]
        assert (found["state"], found["serial"]) == ("enabled", 5)
        site.wait_for(5)

# SPDX-License-Identifier: Apache-2.0
"""``upseal relay`` as a process: enrols, runs, is killed, is asked how it is."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from fleet_relay_support import eventually, make_folder, parent_of, senders, settings_for
from fleet_support import Site

from upseal.cli import main
from upseal.fleet.http.client import Unreachable
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import State
from upseal.fleet.relay.settings import Http, Settings, toml_of
from upseal.fleet.settings import SettingsError

UPSEAL = [sys.executable, "-m", "upseal", "relay"]
QUICK = """
[forward]
retry = 0.02
retry_most = 0.2
[refresh]
manifest = 0.1
[repackage]
window = 0.02
"""


@pytest.fixture(scope="module")
def site():
    site = Site()
    site.enable()
    return site


@pytest.fixture(scope="module")
def parent(site):
    with parent_of(site) as parent:
        yield parent


@pytest.fixture
def folder(site, parent, tmp_path):
    """An enrolled decrypting relay's, with settings."""
    parent.reset()
    folder = make_folder(
        site, tmp_path / "relay", site.add_relay(f"r{tmp_path.name}", decrypts=True)
    )
    site.sign()
    settings = settings_for(folder, parent.url, decrypting=True)
    (folder / "relay.toml").write_text(toml_of(settings) + QUICK)
    return folder


@pytest.fixture
def logs_as_before():
    """For a command in this process that sends its logs to a stderr that will be closed."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)


@contextmanager
def process(folder, log):
    """``upseal relay run``: gives the process and its URL."""
    (folder / "address").unlink(missing_ok=True)
    with (
        open(log, "ab") as file,
        subprocess.Popen(
            [*UPSEAL, "run", "-d", folder, "--listen", "127.0.0.1:0"], stderr=file
        ) as child,
    ):
        try:
            where = eventually(
                lambda: (folder / "address").exists() and (folder / "address").read_text()
            )
            yield child, f"http://{where.strip()}"
        finally:
            if child.poll() is None:
                child.kill()


def test_it_runs_and_ends_in_good_order(site, parent, folder, tmp_path, capsys):
    log = tmp_path / "log"
    with process(folder, log) as (child, url):
        with senders(site, url) as (sender,):
            record = b"never to be logged"
            body = sender.sealed(sender.unit(record), to=[_key(site, folder)])
            assert sender.post(body, wait=20)[0].state is State.DONE
            eventually(lambda: sender.client.request("GET", "/readyz").status == 200)
            metrics = sender.client.request("GET", "/metrics").body.decode()
            for name in ("queue_bodies", "queue_bytes", "queue_age_seconds", "parent_away"):
                assert f"upseal_relay_{name} 0.0" in metrics
            assert "upseal_relay_units_repackaged_total 1.0" in metrics
            eventually(lambda: _status(capsys, folder)["ready"])
            found = _status(capsys, folder)
            assert found["running"] and f"http://{found['address']}" == url
            assert found["queue"]["depth"] == 0
            assert [key["state"] for key in found["keys"]] == ["certified"]
            assert subprocess.run([*UPSEAL, "run", "-d", folder], check=False).returncode == 4
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
    assert not (folder / "address").exists()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"relay starts", "serving", "stopped"} <= {line["event"] for line in lines}
    assert record not in log.read_bytes()
    assert sender.me.credential not in log.read_text()
    assert not _status(capsys, folder)["running"]


def test_kill_9_loses_nothing_that_was_acknowledged(site, parent, folder, tmp_path):
    key = _key(site, folder)
    acknowledged = []
    for round_ in range(2):
        parent.refuse = (lambda _: Problem("full", retry_after=0)) if round_ < 1 else None
        with process(folder, tmp_path / "log") as (child, url), senders(site, url) as (sender,):
            for i in range(12):
                record = b"%d.%d" % (round_, i)
                unit = sender.unit(record)
                body = sender.sealed(unit, to=[key]) if i % 2 else sender.clear(unit)
                try:
                    sender.post(body)
                except (Unreachable, Problem):
                    break
                acknowledged.append((record, body))
                if i == 4 + round_:
                    child.kill()
                    child.wait(30)
    assert len(acknowledged) == 5 + 6
    parent.refuse = None
    with process(folder, tmp_path / "log") as (child, url), senders(site, url) as (sender,):
        answers = sender.done(*(body for _, body in acknowledged))
        assert {answer.state for answer in answers} == {State.DONE}
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
    assert parent.reports == sorted(record for record, _ in acknowledged)


def _key(site, folder):
    relay = json.loads((folder / "enrolment.json").read_text())["agent"]
    return site.manifest.relay(bytes.fromhex(relay)).keys[0].public()


def _status(capsys, folder):
    capsys.readouterr()
    assert main(["relay", "status", "-d", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# -- enrolling ---------------------------------------------------------------------------


def test_enrolling(site, parent, tmp_path, capsys, monkeypatch):
    site.sign()
    folder = tmp_path / "new"
    token = site.token().encode()
    monkeypatch.setenv("UPSEAL_TOKEN", token)
    args = ["relay", "enrol", "--parent", parent.url, "-d", str(folder), "--json"]
    assert main([*args, "--name", "née", "--decrypting", "--listen", "127.0.0.1:0"]) == 0
    out = capsys.readouterr().out
    facts = json.loads(out)
    assert token not in out
    assert (facts["name"], facts["decrypting"]) == ("née", True)
    assert facts["deployment"] == site.deployment.hex()
    settings = Settings.load(folder / "relay.toml")
    assert (settings.name, settings.decrypting, settings.directory) == ("née", True, folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("identity.pem", "hop.pem", "enrolment.json"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    found = _status(capsys, folder)
    assert found["relay"] == facts["relay"]
    assert found["manifest"]["serial"] == site.manifest.serial
    assert main(["relay", "status", "-d", str(folder)]) == 0
    assert "decrypts and repackages" in capsys.readouterr().out
    assert main(args) == 4
    assert "enrolled already" in capsys.readouterr().err


def test_enrolling_trusts_the_token_alone(site, parent, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("upseal.fleet.agent.enrolment._PATIENCE", 0.0)
    site.sign()
    args = ["relay", "enrol", "--parent", parent.url, "-d", str(tmp_path / "new"), "--token"]
    assert main([*args, Site().token().encode()]) == 1, "another deployment's"
    assert main([*args, site.token(least_serial=10**6).encode()]) == 1, "the manifest is older"
    assert main([*args, "upseal-token-1.x"]) == 2
    assert main(args[:-1]) == 2, "none"
    err = capsys.readouterr().err
    assert err.count("upseal: ") == err.count("\n") == 4
    assert not (tmp_path / "new" / "enrolment.json").exists()
    assert main([*args, site.token().encode()]) == 0, "and after all that"


def test_wrong_usage(tmp_path, capsys, parent, site, logs_as_before):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["relay", "run", "-d", str(empty)]) == 2
    (empty / "relay.toml").write_text('parent = "http://127.0.0.1:1"\n')
    assert main(["relay", "run", "-c", str(empty / "relay.toml")]) == 2
    assert main(["relay", "status", "-c", str(empty / "relay.toml")]) == 2
    assert "upseal relay enrol" in capsys.readouterr().err
    (empty / "relay.toml").write_text('parnt = "http://127.0.0.1:1"\n')
    assert main(["relay", "run", "-d", str(empty)]) == 2
    assert "parnt" in capsys.readouterr().err
    assert main(["relay"]) == 2
    folder = make_folder(site, tmp_path / "relay", site.add_relay("damaged"))
    (folder / "relay.toml").write_text(f'parent = "{parent.url}"\n')
    (folder / "trust.json").write_text("{}")
    assert main(["relay", "run", "-d", str(folder)]) == 1
    assert main(["relay", "status", "-d", str(folder)]) == 1


# -- settings ------------------------------------------------------------------------------


def test_settings_are_read_as_they_are_written(tmp_path):
    settings = Settings(
        parent="https://example.org:8443/x/", directory=tmp_path, name='a "quoted" \\ näme',
        listen="[::1]:0", decrypting=True, accepts_sealed=False, fips=True,
        http=Http(ca="/etc/ca \\ own.pem"),
    )  # fmt: skip
    (tmp_path / "relay.toml").write_text(toml_of(settings))
    assert Settings.load(tmp_path / "relay.toml") == settings


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"parent": "ftp://x"},
        {"parent": "http://x", "listen": "nowhere"},
        {"parent": "http://x", "decrypting": 1},
        {"parent": "http://x", "decrypting": "yes"},
        {"parent": "http://x", "source": "x"},
        {"parent": "http://x", "queue": 5},
        {"parent": "http://x", "queue": {"max_bytes": True}},
        {"parent": "http://x", "queue": {"max_bytes": 1.5}},
        {"parent": "http://x", "queue": {"hop_share": 0}},
        {"parent": "http://x", "forward": {"workers": 0}},
        {"parent": "http://x", "forward": {"retry": 5, "retry_most": 1}},
        {"parent": "http://x", "http": {"max_body": 1 << 40}},
        {"parent": "http://x", "http": {"key": "x"}},
        {"parent": "http://x", "tls": {"key": "x"}},
        {"parent": "http://x", "nonsense": {}},
        {"parent": "http://x", "refresh": {"often": 1}},
    ],
)
def test_settings_that_cannot_be_meant(table):
    with pytest.raises(SettingsError):
        Settings.parse(table)


def test_a_file_that_is_no_toml(tmp_path):
    for data in (b"parent = ", b"\xff", b"#" * (1 << 21)):
        (tmp_path / "relay.toml").write_bytes(data)
        with pytest.raises(SettingsError):
            Settings.load(tmp_path / "relay.toml")

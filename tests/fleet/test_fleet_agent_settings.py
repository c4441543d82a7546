# SPDX-License-Identifier: Apache-2.0
"""agent.toml: what is mistyped is said, and never taken for a default."""

import pytest

from upseal.fleet.agent.settings import (
    Batch,
    Settings,
    SettingsError,
    level_of_environment,
    split_listen,
    toml_of,
)
from upseal.fleet.policy import Level

FULL = """
parent = "https://relay.example:8443/"
name = "web-1"
level = "Required"
fips = true
listen = "[::1]:9464"
[batch]
reports = 10
bytes = 2000
seconds = 1
[spool]
max_bytes = 100000
full = "drop-oldest"
min_free = 0
[gather]
interval = 0
what = ["cpu", "mine"]
[http]
timeout = 5
wait = 0.5
ca = "ca.pem"
certificate = "me.pem"
key = "me.key"
[send]
units = 1
pending = 2
resend = 3
refresh = 4
beacon = 5
retry = 0.5
retry_most = 6
"""


def test_everything_can_be_set(tmp_path):
    (tmp_path / "agent.toml").write_text(FULL)
    found = Settings.load(tmp_path / "agent.toml")
    assert found.parent == "https://relay.example:8443"
    assert found.directory == tmp_path, "the folder of the file, unless it says otherwise"
    assert (found.level, found.fips, found.kind) == (Level.REQUIRED, True, "p256")
    assert found.batch == Batch(10, 2000, 1)
    assert found.spool.full == "drop-oldest"
    assert found.gather.what == ("cpu", "mine")
    assert found.send.retry_most == 6


def test_defaults_are_those_of_the_manual():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    page = page[page.index("# agent.toml") :]
    text = page[: page.index("```")]
    shown = Settings.parse(dict(__import__("tomllib").loads(text)))
    plain = Settings.parse({"parent": shown.parent})
    assert (shown.batch, shown.spool, shown.send) == (plain.batch, plain.spool, plain.send)
    assert shown.uploads == plain.uploads
    assert (shown.level, shown.gather.interval, shown.gather.timeout, shown.http.timeout) == (
        plain.level, plain.gather.interval, plain.gather.timeout, plain.http.timeout,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "parent"),
        ("parent = 1", "parent"),
        ('parent = "relay:8443"', "http"),
        ('parent = "ftp://relay"', "http"),
        ('parent = "http://user:pw@relay"', "user"),
        ('parent = "http://relay?x=1"', "query"),
        ('parent = "http://relay:99999"', "address"),
        ("level = 2", "level"),
        ('level = "always"', "level"),
        ("levle = 'none'", "levle"),
        ("source = 'x'", "source"),
        ("fips = 'yes'", "fips"),
        ("name = ''", "name"),
        ('name = "a\\nb"', "name"),
        ('name = "a\\u0007b"', "name"),
        ("listen = 'here'", "HOST:PORT"),
        ("listen = 'x:70000'", "HOST:PORT"),
        ("batch = 1", "batch"),
        ("[batch]\nreports = 0", "batch.reports"),
        ("[batch]\nreports = 1.5", "whole number"),
        ("[batch]\nreports = true", "whole number"),
        ("[batch]\nreport = 1", "batch.report"),
        ("[batch]\nbytes = 99999999", "batch.bytes"),
        ("[batch]\nseconds = nan", "batch.seconds"),
        ("[spool]\nfull = 'explode'", "spool.full"),
        ("[spool]\nmax_bytes = -1", "spool.max_bytes"),
        ("[gather]\nwhat = 'cpu'", "list"),
        ("[gather]\nwhat = [1]", "list"),
        ("[gather]\ninterval = inf", "gather.interval"),
        ("[http]\nwait = 31", "http.wait"),
        ("[http]\nkey = 'x'", "http.key"),
        ("[http]\nca = 1", "text"),
        ("[send]\nunits = 0", "send.units"),
        ("[send]\nretry = 5\nretry_most = 1", "send.retry_most"),
        ("x = [", "TOML"),
    ],
)
def test_what_cannot_be_meant(tmp_path, text, word):
    path = tmp_path / "agent.toml"
    if not text.startswith("parent") and text:
        text = "parent = 'http://relay:1'\n" + text
    path.write_text(text)
    with pytest.raises(SettingsError, match=word):
        Settings.load(path)


def test_files_that_are_no_settings(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    with open(tmp_path / "b", "wb") as file:
        file.truncate(2 << 20)
    for name in "ab":
        with pytest.raises(SettingsError):
            Settings.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Settings.load(tmp_path / "none")


def test_what_enrolment_writes_is_read_again(tmp_path):
    path = tmp_path / "agent.toml"
    for table in (
        {"parent": "http://relay:1"},
        {"parent": "http://relay:1", "name": 'a "b" \\ ü', "level": "none", "fips": True},
        {"parent": "https://relay:1", "http": {"ca": "/a b/c"}},
    ):
        settings = Settings.parse({**table, "directory": str(tmp_path)})
        path.write_text(toml_of(settings), "utf-8")
        assert Settings.load(path) == settings


def test_the_environment(monkeypatch):
    monkeypatch.delenv("UPSEAL_LEVEL", raising=False)
    assert level_of_environment() is None
    monkeypatch.setenv("UPSEAL_LEVEL", "NONE")
    assert level_of_environment() is Level.NONE
    monkeypatch.setenv("UPSEAL_LEVEL", "off")
    with pytest.raises(SettingsError, match="UPSEAL_LEVEL"):
        level_of_environment()


def test_addresses_to_listen_at():
    assert split_listen("127.0.0.1:0") == ("127.0.0.1", 0)
    assert split_listen("[::1]:80") == ("::1", 80)

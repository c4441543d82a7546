# SPDX-License-Identifier: Apache-2.0
"""Settings by file, environment and flags: what goes before what, and what is mistyped is said."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upseal.cli import main
from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.admin.folder import load_settings
from upseal.fleet.agent.settings import Settings as AgentSettings
from upseal.fleet.agent.settings import schema as agent_schema
from upseal.fleet.configuration import HIDDEN, Flag, layered, printable, secret
from upseal.fleet.relay.settings import Settings as RelaySettings
from upseal.fleet.relay.settings import schema as relay_schema
from upseal.fleet.server.settings import read_settings, read_table
from upseal.fleet.server.settings import schema as server_schema
from upseal.fleet.settings import SettingsError

ROOT = Path(__file__).parents[2]
SCHEMAS = {"agent": agent_schema, "relay": relay_schema, "server": server_schema}
URL = "postgresql://upseal:open-sesame@db.example/upseal"


@pytest.fixture
def folders(tmp_path):
    """Of an agent, a relay and a server, each with a settings file."""
    for role in ("agent", "relay"):
        (tmp_path / role).mkdir()
        (tmp_path / role / f"{role}.toml").write_text('parent = "http://127.0.0.1:1"\n')
    Deployment.init(tmp_path / "server", name="site")
    return tmp_path


def run(folders, role, *options):
    return main([role, "run", "-d", str(folders / role), *options])


def shown(folders, role, capsys, *options):
    assert run(folders, role, "--show-config", "--json", *options) == 0
    return json.loads(capsys.readouterr().out)["settings"]


# -- what goes before what ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "setting", "file", "variable", "values"),
    [
        (
            "agent",
            "batch.reports",
            "[batch]\nreports = {}",
            "UPSEAL_AGENT_BATCH__REPORTS",
            (3, 4, 5),
        ),
        (
            "agent",
            "log_level",
            "log_level = {}",
            "UPSEAL_AGENT_LOG_LEVEL",
            ("error", "info", "debug"),
        ),
        (
            "relay",
            "queue.hop_share",
            "[queue]\nhop_share = {}",
            "UPSEAL_RELAY_QUEUE__HOP_SHARE",
            (0.1, 0.2, 0.3),
        ),
        (
            "relay",
            "accepts_clear",
            "accepts_clear = {}",
            "UPSEAL_RELAY_ACCEPTS_CLEAR",
            (False, True, False),
        ),
        (
            "server",
            "server.threads",
            "[server]\nthreads = {}",
            "UPSEAL_SERVER_SERVER__THREADS",
            (3, 4, 5),
        ),
        (
            "server",
            "server.page",
            "[server]\npage = {}",
            "UPSEAL_SERVER_SERVER__PAGE",
            (False, True, False),
        ),
    ],
)
def test_a_flag_goes_before_the_environment_and_that_before_the_file(
    folders, capsys, monkeypatch, role, setting, file, variable, values
):
    path = next((folders / role).glob("*.toml"))
    usual = shown(folders, role, capsys)[setting]
    assert usual["from"] == "default"
    with open(path, "a") as out:
        out.write(f"\n{file.format(printable(values[0]))}\n")
    assert shown(folders, role, capsys)[setting] == {"value": values[0], "from": "file"}
    monkeypatch.setenv(variable, str(values[1]).lower())
    assert shown(folders, role, capsys)[setting] == {"value": values[1], "from": variable}
    flag = f"{setting}={str(values[2]).lower()}"
    first = [] if not isinstance(values[0], str) else ["--set", f"{setting}=x"]
    found = shown(folders, role, capsys, *first, "--set", flag)[setting]
    assert found == {"value": values[2], "from": "--set"}
    monkeypatch.setenv(variable, "")
    assert shown(folders, role, capsys)[setting]["from"] == "file", "empty counts as not set"


def test_what_is_shown_is_what_holds(folders, monkeypatch):
    """The settings that a process gets, not only those that it would print."""
    monkeypatch.setenv("UPSEAL_RELAY_RATES__EXCEPTIONS", "10.0.0.0/8, ::1")
    monkeypatch.setenv("UPSEAL_RELAY_QUEUE__MAX_BYTES", "1_048_576")
    monkeypatch.setenv("UPSEAL_RELAY_FORWARD__WAIT", "3")
    flags = [Flag("parent_ids", '["server"]', "--set"), Flag("http.ca", "a,b.pem", "--set")]
    found = RelaySettings.parse(layered(relay_schema(), {"parent": "http://x"}, None, flags).table)
    assert found.rates.exceptions == ("10.0.0.0/8", "::1")
    assert (found.queue.max_bytes, found.forward.wait) == (1 << 20, 3.0)
    assert (found.parent_ids, found.http.ca) == (("server",), "a,b.pem")


def test_options_of_old_are_flags(folders, capsys, monkeypatch):
    monkeypatch.setenv("UPSEAL_RELAY_LISTEN", "127.0.0.1:5")
    options = ["--listen", "[::1]:7", "--log-level", "error"]
    found = shown(folders, "relay", capsys, *options)
    assert found["listen"] == {"value": "[::1]:7", "from": "--listen"}
    assert found["log_level"] == {"value": "error", "from": "--log-level"}
    found = shown(folders, "server", capsys, *options)
    assert (found["listen.host"]["value"], found["listen.port"]["value"]) == ("::1", 7)
    assert found["server.log_level"] == {"value": "error", "from": "--log-level"}


def test_a_flag_takes_a_setting_back_to_none():
    table = {"parent": "http://x", "listen": "127.0.0.1:1"}
    flags = [Flag("listen", "", "--set")]
    assert AgentSettings.parse(layered(agent_schema(), table, {}, flags).table).listen is None


def test_without_a_file_the_environment_can_say_all(tmp_path, capsys, monkeypatch):
    assert main(["agent", "run", "-d", str(tmp_path), "--check-config"]) == 2
    assert "enrol" in capsys.readouterr().err
    monkeypatch.setenv("UPSEAL_AGENT_PARENT", "http://127.0.0.1:1")
    monkeypatch.setenv("UPSEAL_AGENT_DIRECTORY", str(tmp_path))
    assert main(["agent", "run", "--show-config", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"] is None
    assert said["settings"]["directory"]["value"] == str(tmp_path)
    other = tmp_path / "other"
    assert main(["agent", "run", "-d", str(other), "--show-config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["directory"]["value"] == str(other)


# -- what is wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("role", SCHEMAS)
def test_what_is_right_is_said_by_no_word(folders, capsys, role):
    assert run(folders, role, "--check-config") == 0
    assert capsys.readouterr() == ("", "")
    assert not (folders / role / "address").exists(), "and nothing is started"


@pytest.mark.parametrize(
    ("role", "environment", "options", "words"),
    [
        (
            "agent",
            {"UPSEAL_AGENT_PARENTS": "x"},
            [],
            "UPSEAL_AGENT_PARENTS; UPSEAL_AGENT_PARENT is one",
        ),
        (
            "relay",
            {"UPSEAL_RELAY_QUEUE__MAX_BYTE": "1"},
            [],
            "UPSEAL_RELAY_QUEUE__MAX_BYTES is one",
        ),
        ("relay", {"UPSEAL_RELAY_PORT_8441_TCP": "tcp://1.2.3.4"}, [], "enableServiceLinks: false"),
        ("server", {"UPSEAL_SERVER_DEPLOYMENT": "00"}, [], "there is no setting"),
        ("server", {"UPSEAL_SERVER_SERVER__LOG_LEVEL_FILE": "x"}, [], "there is no setting"),
        (
            "agent",
            {"UPSEAL_AGENT_BATCH__REPORTS": "0"},
            [],
            "comes from UPSEAL_AGENT_BATCH__REPORTS",
        ),
        ("agent", {"UPSEAL_AGENT_BATCH__REPORTS": "1.5"}, [], "must be a whole number, not '1.5'"),
        ("agent", {"UPSEAL_AGENT_FIPS": "1"}, [], "fips must be true or false"),
        ("agent", {"UPSEAL_AGENT_LISTEN": "nowhere"}, [], "comes from UPSEAL_AGENT_LISTEN"),
        ("agent", {"UPSEAL_AGENT_LEVEL": "some"}, [], "level is required, optional or none"),
        ("agent", {}, ["--set", "batch.report=1"], "--set: there is no setting batch.report"),
        ("agent", {}, ["--set", "batch.reports"], "--set takes KEY=VALUE"),
        (
            "relay",
            {},
            ["--set", 'queue.max_bytes=1\nparent = "http://y"'],
            "must be a whole number",
        ),
        ("server", {}, ["--set", f"deployment={'0' * 32}"], "stands in the file alone"),
        (
            "server",
            {},
            ["--set", "server.threads=0"],
            "threads must be above 0 (it comes from --set)",
        ),
        ("server", {}, ["--set", "listen.port=70000"], "a port is a number"),
        ("server", {"UPSEAL_SERVER_SERVER__UNWRAP_SHARE": "nan"}, [], "a number with an end"),
        (
            "server",
            {"UPSEAL_SERVER_DATABASE": "a", "UPSEAL_SERVER_DATABASE_FILE": "b"},
            [],
            "both set",
        ),
        ("server", {"UPSEAL_SERVER_DATABASE_FILE": "/nonexistent"}, [], "cannot read /nonexistent"),
        ("relay", {}, ["--set", "tls.certificate=/nonexistent.pem"], "nonexistent.pem"),
        ("server", {}, ["--set", "server.tls_certificate=none.pem"], "none.pem"),
        (
            "agent",
            {"UPSEAL_AGENT_PARENT": "https://x"},
            ["--set", "http.ca=/nonexistent.pem"],
            "http",
        ),
    ],
)
def test_what_is_wrong_is_said_and_where_it_came_from(
    folders, capsys, monkeypatch, role, environment, options, words
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run(folders, role, "--check-config", *options) == 2
    out, err = capsys.readouterr()
    assert words in err and not out and err.count("\n") == 1


@pytest.mark.parametrize("text", ['databse = "x"', "[listen]\nprot = 1", "[sever]\nthreads = 3"])
def test_an_unknown_key_of_a_servers_file_is_an_error(folders, capsys, text):
    """A mistyped `database` made an empty one."""
    path = folders / "server" / "deployment.toml"
    found = tomllib.loads(path.read_text())
    path.write_text(f'deployment = "{found["deployment"]}"\nname = "site"\n{text}\n')
    with pytest.raises(SettingsError, match="has no setting"):
        read_settings(folders / "server")


def test_other_roles_variables_are_not_ours(folders, monkeypatch):
    monkeypatch.setenv("UPSEAL_RELAY_NONSENSE", "1")
    assert run(folders, "agent", "--check-config") == 0
    assert run(folders, "relay", "--check-config") == 2


def test_every_act_follows_the_environment(folders, capsys, monkeypatch):
    monkeypatch.setenv("UPSEAL_RELAY_NONSENSE", "1")
    assert main(["relay", "status", "-d", str(folders / "relay")]) == 2
    assert "UPSEAL_RELAY_NONSENSE" in capsys.readouterr().err


@pytest.mark.parametrize("role", SCHEMAS)
def test_names_follow_from_the_schema(role):
    schema = SCHEMAS[role]()
    variables = [one.variable for one in schema.settings.values() if one.variable]
    assert len(set(variables)) == len(variables) > 20
    for one in schema.settings.values():
        rule = f"UPSEAL_{role.upper()}_" + one.name.upper().replace(".", "__")
        assert one.variable in (rule, None)


@given(
    st.sampled_from(sorted(relay_schema().settings)),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
)
def test_no_text_of_a_variable_is_more_than_a_wrong_setting(name, text):
    one = relay_schema().settings[name]
    try:
        layers = layered(relay_schema(), {"parent": "http://x"}, {one.variable: text})
        RelaySettings.parse(layers.table)
    except SettingsError:
        return
    section, _, key = name.rpartition(".")
    assert set(layers.table) <= {"parent", section or key}, "one variable is one setting"


# -- secrets ----------------------------------------------------------------------------------


def test_a_secret_stands_in_a_file_or_a_credential_and_is_not_shown(
    folders, capsys, monkeypatch, tmp_path
):
    (tmp_path / "upseal.server.database").write_text(URL + "\n")
    for name, value, origin in (
        ("UPSEAL_SERVER_DATABASE", URL, "UPSEAL_SERVER_DATABASE"),
        (
            "UPSEAL_SERVER_DATABASE_FILE",
            str(tmp_path / "upseal.server.database"),
            "UPSEAL_SERVER_DATABASE_FILE",
        ),
        ("CREDENTIALS_DIRECTORY", str(tmp_path), "the credential upseal.server.database"),
    ):
        monkeypatch.setenv(name, value)
        path, table = read_table(folders / "server")
        assert layered(server_schema(), table).table["database"] == URL
        assert load_settings(folders / "server").database == URL, "upseal admin follows"
        found = shown(folders, "server", capsys)["database"]
        assert found == {"value": HIDDEN, "from": origin}
        assert run(folders, "server", "--show-config") == 0
        assert "sesame" not in capsys.readouterr().out
        monkeypatch.delenv(name)
    assert load_settings(folders / "server").database == "sqlite:///server.db"
    assert secret(server_schema(), "database", {"CREDENTIALS_DIRECTORY": "/nonexistent"}) is None


# -- the page ---------------------------------------------------------------------------------


def test_the_page_says_what_the_source_says(tmp_path):
    page = ROOT / "docs" / "configuration.md"
    command = [sys.executable, ROOT / "scripts" / "configuration_page.py"]
    done = subprocess.run([*command, "--check"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    text = page.read_text()
    for role, schema in SCHEMAS.items():
        for one in schema().settings.values():
            assert f"| `{one.name}` |" in text, role
            assert one.variable is None or f"`{one.variable}`" in text


def test_a_page_that_says_something_else_is_seen(tmp_path):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import configuration_page
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    text = configuration_page.PAGE.read_text()
    assert configuration_page.page(text) == text
    assert configuration_page.page(text.replace("`1000`", "`1001`", 1)) == text

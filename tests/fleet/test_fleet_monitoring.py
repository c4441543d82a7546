# SPDX-License-Identifier: Apache-2.0
"""What packaging/monitoring has: alert rules and a dashboard, loaded and asked by a real Prometheus
that watches real processes, in good days and in bad ones.
"""

import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from fleet_nodes import eventually
from fleet_prometheus import (
    DASHBOARD,
    RULES,
    Late,
    alerts,
    asked,
    names,
    panels,
    program,
    prometheus,
    rules,
    selectors,
)
from fleet_world import make_world, reporting

MANUAL = Path(__file__).parents[2] / "docs/monitoring.md"
TESTS = RULES.with_name("upseal.tests.yml")
UNITS = {"Bps", "bytes", "cps", "percentunit", "reqps", "s", "short"}
SCREEN = 28
"""Rows of a grid that one screen of 1080 lines shows without Grafana's own bars."""
NOTHING = {
    # Only where something is amiss, or set up otherwise.
    "away from {{instance}}", "TLS, {{use}}", "{{status}} /min", "not opened: {{reason}}",
    "refused: {{reason}}", "passed on closed: {{why}}",
}  # fmt: skip


def promtool(*words):
    found = subprocess.run([program("promtool"), *words], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def addresses(world, role):
    """Where the processes of a role show their metrics: agents say it in their logs."""
    found = []
    for node in world.nodes.values():
        if node.role == role and node.role == "agent":
            found.append(node.events("serving")[-1]["address"].removeprefix("http://"))
        elif node.role == role:
            found.append("{}:{}".format(*node.address()))
    return found


def watch(prom, world):
    prom.watch(**{role: addresses(world, role) for role in ("server", "relay", "agent")})


# -- the files by themselves --------------------------------------------------------------------


def test_promtool_takes_the_rules_and_the_configuration():
    promtool("check", "rules", str(RULES))
    promtool("check", "config", str(RULES.with_name("prometheus.example.yml")))


def test_each_alert_fires_when_it_should_and_is_silent_when_not():
    """By Prometheus' own unit tests; and there is one for each, of both kinds."""
    assert "SUCCESS" in promtool("test", "rules", str(TESTS))
    fires, silent = set(), set()
    for case in yaml.safe_load(TESTS.read_text())["tests"]:
        for asks in case["promql_expr_test"]:
            assert "ALERTS" in asks["expr"]
            if asks["exp_samples"]:
                (sample,) = asks["exp_samples"]
                assert f'alertname="{case["name"]}"' in sample["labels"]
                fires.add(case["name"])
            else:
                silent.add(case["name"])
    assert fires == silent == set(alerts())


def test_alerts_say_what_is_the_matter_and_where_to_read_on():
    page = MANUAL.read_text()
    rows = dict(re.findall(r'^\| <a id="(\w+)"></a>`(\w+)` \|.*\|.*\|$', page, re.M))
    assert sorted(rows.values()) == sorted(alerts()), "docs/monitoring.md has each of them once"
    for name, rule in alerts().items():
        said = rule["annotations"]
        assert set(said) == {"summary", "description", "runbook"}, name
        assert said["runbook"] == f"docs/monitoring.md#{name.lower()}"
        assert rows[name.lower()] == name
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert f"`{name}` | {rule['labels']['severity']} |" in page, name


def test_the_dashboard_is_one_screen_of_whole_panels():
    board = json.loads(DASHBOARD.read_text())
    assert board["schemaVersion"] >= 38
    assert board["uid"]
    assert "__inputs" not in board, "it can be provisioned as a file"
    source = {"type": "prometheus", "uid": "${datasource}"}
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in board["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["datasource"] == source
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert all(legends), panel["title"]
        assert len(set(legends)) == len(legends), panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(legends)
        for target in panel["targets"]:
            assert target["datasource"] == source
            for selector in selectors(target["expr"]):
                assert 'deployment=~"$deployment"' in selector, (panel["title"], selector)
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            by = re.findall(r"\b(?:by|on) \(([\w, ]*)\)", target["expr"])
            if by and shown:
                assert any(shown <= set(labels.split(", ")) for labels in by), target
    assert max(x for x, _ in taken) == 23
    assert max(y for _, y in taken) == SCREEN - 1
    assert len(taken) == 24 * SCREEN, "no holes"


# -- in good days -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("monitoring") / "world"
    agents = {"must": "required", "may": "optional", "plain": "none"}
    with make_world(folder, agents={}) as world:
        relay = world.folder / "decrypting/relay.toml"
        relay.write_text(relay.read_text().replace("[queue]\n", "[queue]\nmax_bytes = 262144\n"))
        world.nodes["decrypting"].restart()
        for name, level in agents.items():
            member = world.add_agent(name, level, world.url)
            settings = member.folder / "agent.toml"
            settings.write_text('listen = "127.0.0.1:0"\n' + settings.read_text())
        # Where the process itself says so, no manifest can tell it otherwise.
        world.members["plain"].node.environment = {"UPSEAL_LEVEL": "none"}
        world.start_agents()
        world.report(20)
        for member in world.members.values():
            eventually(lambda m=member: world.arrived(m), f"the receipts of {member.name}")
        world.enable()  # so that there is an old key
        file = folder / "file"
        file.write_bytes(bytes(300_000))
        for member in world.members.values():
            eventually(lambda m=member: m.node.events("serving"), member.name)
        for role in ("server", "relay"):
            for address in addresses(world, role):
                with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                    urllib.request.urlopen(f"http://{address}/v1/units", b"x")
                refused.value.close()
        with prometheus(folder.parent / "prometheus") as prom:
            watch(prom, world)
            # Until it knows whom to ask it says, rightly, that it watches nobody.
            eventually(lambda: prom.value("count(up)") == 6 and not prom.firing(), "all targets")
            begun = time.monotonic()
            with reporting(world):
                for name in ("must", "plain"):
                    world.members[name].agent.upload(file)
                eventually(lambda: not lacking(prom), Late(lambda: lacking(prom)))
            yield SimpleNamespace(world=world, prom=prom, begun=begun)


def lacking(prom):
    """What must have data in a healthy fleet and has none yet: panels, recording rules."""
    wanted = {
        f"{panel['title']}: {target['legendFormat']}": asked(target["expr"])
        for panel in panels()
        for target in panel["targets"]
        if target["legendFormat"] not in NOTHING
    }
    wanted |= {rule["record"]: rule["record"] for rule in rules() if "record" in rule}
    wanted["two keys"] = "count(upseal_server_key_last_used_seconds) == 2"
    wanted["looks, for longer than any alert waits"] = "min(count_over_time(up[5m])) >= 10"
    wanted["all seal"] = 'upseal_server_members{does="silent"} == 0'
    return [name for name, expr in wanted.items() if not prom.query(expr)]


def test_every_expression_is_answered(watched):
    """Without an error or a warning; those that need data have been waited for."""
    assert lacking(watched.prom) == []
    board = json.loads(DASHBOARD.read_text())
    expressions = [asked(target["expr"]) for panel in panels() for target in panel["targets"]]
    expressions += [asked(note["expr"]) for note in board["annotations"]["list"]]
    expressions += [rule["expr"] for rule in rules()]
    for expr in expressions:
        watched.prom.query(expr)
    for group in watched.prom.ask("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule
    variables = [v for v in board["templating"]["list"] if v["type"] == "query"]
    for variable in variables:
        metric, label = re.fullmatch(
            r"label_values\((\w+), (\w+)\)", variable["definition"]
        ).groups()
        assert watched.prom.value(f"count by ({label}) ({metric})") == 1


def test_every_metric_that_is_named_is_shown_by_a_process(watched):
    there = {"up", "ALERTS"} | {rule["record"] for rule in rules() if "record" in rule}
    for role in ("server", "relay", "agent"):
        for address in addresses(watched.world, role):
            with urllib.request.urlopen(f"http://{address}/metrics") as answer:
                text = answer.read().decode()
            for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M):
                there |= {name, f"{name}_bucket"} if kind == "histogram" else {name}
    board = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    expressions += [note["expr"] for note in board["annotations"]["list"]]
    expressions += [rule["expr"] for rule in rules()]
    named = {name for expr in expressions for part in selectors(expr) for name in names(part)}
    assert len(named) > 60
    assert named <= there, sorted(named - there)


def test_no_alert_looks_for_what_cannot_be(watched):
    """Each selector finds series while all is well: a rise from 0 is seen, no word is wrong."""
    blind = {}
    for name, rule in alerts().items():
        for selector in selectors(rule["expr"]):
            if not watched.prom.query(selector) and "_tls_" not in selector:
                blind[name] = selector
    assert blind == {}


def test_alerts_find_their_words(watched):
    """Templates that cannot be expanded would show an error instead."""

    def tried():
        found = watched.prom.ask("alerts")["alerts"]
        return [a for a in found if a["labels"]["alertname"].startswith("Tried")]

    eventually(lambda: len(tried()) == len(alerts()), "their words")
    for alert in tried():
        for text in alert["annotations"].values():
            assert text
            assert "error" not in text.lower(), alert
            assert "{{" not in text, alert


def test_a_healthy_fleet_is_silent(watched):
    """Not now, nor at any moment since Prometheus has seen all of it."""
    since = int(time.monotonic() - watched.begun)
    firing = 'ALERTS{alertstate="firing",alertname!~"Tried.*"}'
    sounded = watched.prom.query(f"count by (alertname) (count_over_time({firing}[{since}s]))")
    found = {series["metric"]["alertname"] for series in sounded}
    if watched.prom.query(alerts()["UpsealKeysMayBeSwapped"]["expr"]):
        found -= {"UpsealKeysMayBeSwapped"}  # of this machine that is true
    assert found == set()


# -- in bad days: the last test, since it breaks what the others look at ------------------------


@pytest.mark.slow
def test_faults_are_heard(watched):
    world, prom = watched.world, watched.prom

    def heard(*wanted):
        eventually(
            lambda: set(wanted) <= prom.firing(),
            Late(lambda: f"{wanted}: there is {prom.firing()}"),
        )

    def silent(*wanted):
        eventually(
            lambda: not set(wanted) & prom.firing(), Late(lambda: f"an end of {prom.firing()}")
        )

    must, plain = world.members["must"], world.members["plain"]
    # A policy says required, and reports come in clear all the same.
    serial = prom.value("max(upseal_server_manifest_serial)")
    with world.admin() as admin:
        admin.set_level("required", clients=["plain"], force=True)
    eventually(lambda: prom.value("max(upseal_server_manifest_serial)") > serial, "the manifest")
    plain.report(5, world.marker(secret=False))
    heard("UpsealClearThoughRequired")
    # Encryption is disabled over the heads of clients that must seal.
    with world.admin() as admin:
        admin.disable(force=True)
    told = 'upseal_agent_decision{why="encryption-disabled"} == 1'
    eventually(lambda: len(prom.query(told)) == 2, "who would seal, to hear of it")
    world.report(5, must=False, may=False)
    heard(
        "UpsealEncryptionDisabled", "UpsealAgentWithholds", "UpsealClientsOrphaned",
        "UpsealReportsInClear",
    )  # fmt: skip
    assert must.depth
    with world.admin() as admin:
        admin.set_level("none", clients=["plain"])
    world.enable()
    eventually(lambda: not must.depth, "what was withheld")
    # The server stops, and the queue in front of it fills.
    world.nodes["server"].stop()
    must.agent.report_many([bytes([i]) * 8000 for i in range(26)])
    heard("UpsealServerDown", "UpsealParentAway", "UpsealRelayNotReady", "UpsealQueueFills")
    world.nodes["server"].start()
    watch(prom, world)
    silent(
        "UpsealEncryptionDisabled", "UpsealAgentWithholds", "UpsealClientsOrphaned",
        "UpsealServerDown", "UpsealParentAway", "UpsealRelayNotReady", "UpsealQueueFills",
    )  # fmt: skip
    # A relay dies.
    assert "UpsealRelayDown" not in prom.firing()
    world.nodes["passing"].kill()
    heard("UpsealRelayDown")

# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus over a fleet of the tests, with the rules and configuration that we ship."""

import json
import os
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from fleet_nodes import eventually

SHIPPED = Path(__file__).parents[2] / "packaging/monitoring"
RULES = SHIPPED / "prometheus/upseal.rules.yml"
EXAMPLE = SHIPPED / "prometheus/prometheus.example.yml"
DASHBOARD = SHIPPED / "grafana/upseal.json"
QUICKER = 600
"""So many times shorter are the times that an alert must hold: an hour is 6 seconds."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SELECTOR = re.compile(
    r"""\b(?:upseal[\w:]*|up|process_\w+|ALERTS)(?![\w:])(?:\{[^}]*\})?|\{__name__[^}]*\}"""
)


class Late:
    """Words that are found when they are shown: for `eventually`, when it has waited too long."""

    def __init__(self, make):
        self._make = make

    def __str__(self):
        return str(self._make())


def program(name):
    """Where it is; a test that stands on it fails without."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed; scripts/test-companions gets it (prometheus)")
    return found


def rules():
    """All rules that we ship, recording ones first."""
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def alerts():
    """Those that sound."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def seconds(duration):
    """Of one that Prometheus' files have."""
    return sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)([smhd])", duration))


def panels():
    """The panels of the dashboard."""
    return json.loads(DASHBOARD.read_text())["panels"]


def asked(expr):
    """An expression of the dashboard as Grafana sends it, for scrapes of one second."""
    return expr.replace("$deployment", ".*").replace("$__rate_interval", "10s")


def selectors(expr):
    """What it reads: ``up{job="upseal-relay"}``."""
    return set(_SELECTOR.findall(expr))


def names(selector):
    """The metrics that a selector names, each way that its pattern can go."""
    name, _, inside = selector.partition("{")
    if name:
        return {name}
    (pattern,) = re.findall(r'__name__=~"([^"]*)"', inside)
    before, ways, after = re.fullmatch(r"(\w*)\(([\w|]*)\)(\w*)", pattern).groups()
    return {before + way + after for way in ways.split("|")}


def _quicker():
    """Our rules, in less time; and each alert once more, sounding at once: its words are tried."""
    found = yaml.safe_load(RULES.read_text())
    tried = []
    for group in found["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = f"{max(1, seconds(rule['for']) // QUICKER)}s"
            if "alert" in rule:
                words = {"alert": f"Tried{rule['alert']}", "annotations": rule["annotations"]}
                tried.append({**words, "expr": "vector(0.5)", "labels": rule["labels"]})
    found["groups"].append({"name": "tried", "rules": tried})
    return found


class Prometheus:
    """One process, with its data below a folder."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder
        self.watch()
        config = yaml.safe_load(EXAMPLE.read_text())
        del config["alerting"]
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for job in config["scrape_configs"]:
            del job["static_configs"]
            job["file_sd_configs"] = [
                {"files": [f"{job['job_name']}.json"], "refresh_interval": "1s"}
            ]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / RULES.name).write_text(yaml.safe_dump(_quicker()))
        with open(folder / "log", "wb") as log:
            self.child = subprocess.Popen(
                [
                    program("prometheus"), "--config.file=prometheus.yml",
                    "--storage.tsdb.path=data", "--web.listen-address=127.0.0.1:0",
                ],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def watch(self, **jobs):
        """Whom to ask, by ``server``, ``relay``, ``agent``: addresses, or nobody."""
        for role in ("server", "relay", "agent", "agent-files"):
            found = [{"targets": jobs.get(role, []), "labels": {"deployment": "world"}}]
            part = self.folder / f".upseal-{role}.json"
            part.write_text(json.dumps(found))
            os.replace(part, self.folder / f"upseal-{role}.json")

    def up(self):
        """Waits until it answers."""

        def listening():
            assert self.child.poll() is None, (self.folder / "log").read_text()
            said = (self.folder / "log").read_text()
            found = re.search(r'msg="Listening on" address=(127\.0\.0\.1:\d+)', said)
            return found and "Server is ready to receive web requests" in said and found[1]

        self.url = f"http://{eventually(listening, 'Prometheus')}/api/v1"
        return self

    def ask(self, path, **words):
        """What its HTTP API answers; an error is one of urllib's."""
        body = urllib.parse.urlencode(words).encode() if words else None
        with urllib.request.urlopen(f"{self.url}/{path}", body, timeout=30) as answer:
            found = json.load(answer)
        assert found["status"] == "success"
        assert not found.get("warnings"), found
        return found["data"]

    def query(self, expr):
        """The series of an expression as they are now."""
        return self.ask("query", query=expr)["result"]

    def value(self, expr):
        """Of the one series there is, or None."""
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else None

    def firing(self):
        """Names of the alerts that sound now."""
        found = self.ask("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in found if alert["state"] == "firing"} - {
            f"Tried{name}" for name in alerts()
        }

    def stop(self):
        """As an administrator would."""
        self.child.terminate()
        self.child.wait(60)


@contextmanager
def prometheus(folder):
    """One that runs while the block does."""
    found = Prometheus(folder)
    try:
        yield found.up()
    finally:
        found.stop()

# SPDX-License-Identifier: Apache-2.0
"""A whole fleet in FIPS mode: every process of it works in a real FIPS provider, or not at all."""

import json
import subprocess
import sys

import fleet_world
import pytest
from fips_support import Fips
from fleet_modes import Mode
from fleet_nodes import Node
from fleet_world import make_world


@pytest.fixture(scope="module")
def fips(tmp_path_factory):
    return Fips(tmp_path_factory.mktemp("fips"))


def test_reports_go_all_the_way_in_fips_mode(fips, tmp_path, monkeypatch):
    class FipsNode(Node):
        def start(self, **how):
            self.environment = fips.environment()
            return super().start(**how)

    monkeypatch.setattr(fleet_world, "Node", FipsNode)
    agents, mode = {"must": "required"}, Mode(fips=True)
    with make_world(tmp_path / "world", agents=agents, passing=False, mode=mode) as world:
        world.report(20)
        world.check()
        must = world.members["must"]
        assert must.status()["actual"] == "sealed"
        for role, folder in (
            ("agent", must.folder),
            ("relay", world.folder / "decrypting"),
            ("server", world.deployment),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "upseal", "doctor", "--fips", "--json", f"--{role}", folder],
                env={**fips.environment(), "PATH": "/usr/bin"}, capture_output=True, text=True,
                timeout=60,
            )  # fmt: skip
            lines = json.loads(done.stdout)["lines"]
            bad = [line for line in lines if line["state"] not in ("ok", "warn")]
            assert not bad, bad
            named = [line["what"] for line in lines if line["check"] == "keys"]
            assert named and all("ES256" in what or "p256" in what for what in named), named


def test_a_server_without_a_provider_does_not_start(tmp_path):
    from upseal.fleet.admin.deployment import Deployment

    Deployment.init(tmp_path / "site", fips=True)
    node = Node("server", "server", tmp_path / "site", tmp_path / "log")
    node.environment = {"UPSEAL_FIPS": "1"}
    node.start(wait=False)
    assert node.child.wait(60) == 5
    assert "does not work in a FIPS provider" in node.log.read_text()
    assert node.address() is None

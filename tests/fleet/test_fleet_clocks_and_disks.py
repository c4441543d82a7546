# SPDX-License-Identifier: Apache-2.0
"""Agents whose clocks are wrong by days, and disks that are full."""

import shutil
import subprocess

import pytest
from fleet_world import eventually, make_world

from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.settings import Settings
from upseal.fleet.agent.spool import SpoolFull

DISK = 6 << 20
DAYS = 2 * 86_400
_SHIFT = """
import os, time
_by = int(os.environ["TEST_CLOCK_SHIFT"])
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + _by
time.time_ns = lambda: _time_ns() + _by * 10**9
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    agents = {"ahead": "required", "behind": "required"}
    folder = tmp_path_factory.mktemp("fleet") / "world"
    with make_world(folder, agents=agents, passing=False) as made:
        yield made


def test_clocks_that_are_wrong_by_days(world, tmp_path):
    """Proofs go by the parent's clock, and nothing is lost for the rest that is off."""
    (tmp_path / "sitecustomize.py").write_text(_SHIFT)
    for name, by in (("ahead", DAYS), ("behind", -DAYS)):
        node = world.members[name].node
        node.stop()
        node.environment = {"PYTHONPATH": str(tmp_path), "TEST_CLOCK_SHIFT": str(by)}
        node.start()
    world.report(10)
    world.check()
    for name, by in (("ahead", DAYS), ("behind", -DAYS)):
        node = world.members[name].node
        corrected = node.events("clock corrected for proofs")
        assert abs(corrected[0]["milliseconds"] / 1000 + by) < 300
        assert world.client(name)[1] == "sealed"
    # It jumps while they are away, and back.
    for name in world.members:
        node = world.members[name].node
        node.kill()
        node.environment["TEST_CLOCK_SHIFT"] = str(-int(node.environment["TEST_CLOCK_SHIFT"]))
    world.report(10)
    for name in world.members:
        world.members[name].node.start()
    world.check()
    for name in world.members:
        world.members[name].node.environment = {}
    world.restart_agents()
    world.report(10)
    world.check()
    assert not world.alarms() & {"contradiction", "bad-signature", "bad-statement"}


class SmallDisk:
    """A process's folder on a small tmpfs, which a filler file fills."""

    def __init__(self, world, node):
        self.node, self.filler = node, node.folder / "filler"
        kept = node.folder.with_name(node.folder.name + ".kept")
        node.stop()
        shutil.copytree(node.folder, kept)
        options = f"size={DISK},mode=0700"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", node.folder], capture_output=True
        )
        if mounted.returncode:
            node.start()
            pytest.skip("needs a root who may mount a tmpfs")
        world.stack.callback(
            lambda: subprocess.run(["umount", "-l", node.folder], check=True, capture_output=True)
        )
        shutil.copytree(kept, node.folder, dirs_exist_ok=True)
        shutil.rmtree(kept)

    def fill(self):
        with open(self.filler, "wb", buffering=0) as file:
            for size in (1 << 16, 4096, 1):  # to the last byte
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    pass

    def empty(self):
        self.filler.unlink()


def refusals(world, name):
    """How often whoever stands behind this proxy has said that it takes nothing now."""
    return sum(data.count(b"HTTP/1.1 503") for data in world.proxies[name].recorded())


@pytest.mark.parametrize("name", ["decrypting", "server"])
def test_a_full_disk_above(world, name):
    """Refused with 503 and kept below; it goes on when there is room, in the same process."""
    node = world.nodes[name]
    disk = SmallDisk(world, node)
    node.start()
    world.report(5)
    world.check(wire=False)
    before = refusals(world, name)
    disk.fill()
    world.report(40)
    eventually(lambda: refusals(world, name) > before, "a refusal")
    assert node.running
    disk.empty()
    for below in world.nodes.values():  # who has been told to come back later need not wait
        if below.role == "relay" and below is not node:
            below.restart()
    world.restart_agents()
    world.report(5)
    world.check()
    assert node.running


def test_a_full_disk_at_the_agent(world):
    """Reports are refused, and so not made; what had been taken before arrives all the same."""
    member = world.members["ahead"]
    member.agent.close()
    disk = SmallDisk(world, member.node)
    member.agent = Agent(Settings.load(member.folder / "agent.toml"))
    world.stack.callback(member.agent.close)
    marker = world.marker(secret=True)
    disk_full = False
    member.report(30, marker)  # taken, and not sent yet
    disk.fill()
    for _ in range(100_000):
        try:
            member.report(1, marker)
        except SpoolFull:
            disk_full = True
            break
    assert disk_full
    member.node.start()
    with pytest.raises(SpoolFull):
        for _ in range(100_000):
            member.report(1, marker)
    assert member.node.running
    disk.empty()
    member.report(10, marker)
    world.check()
    assert member.node.running

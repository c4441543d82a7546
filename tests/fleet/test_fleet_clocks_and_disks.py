# SPDX-License-Identifier: Apache-2.0
"""Clocks that are wrong or jump, by minutes and by days, and disks that are full."""

import mmap
import resource
import struct
import subprocess
import sys
from contextlib import contextmanager

import pytest
from fleet_disks import SmallDisk
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
_JUMPING = """
import mmap, os, struct, time
with open(os.environ["TEST_CLOCK_FILE"], "r+b") as _file:
    _by = mmap.mmap(_file.fileno(), 8)
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + struct.unpack_from("<q", _by)[0]
time.time_ns = lambda: _time_ns() + struct.unpack_from("<q", _by)[0] * 10**9
"""


class Clock:
    """A clock of processes that can be set while they run; what is monotonic stays so."""

    def __init__(self, folder):
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_JUMPING)
        path = folder / "clock"
        path.write_bytes(bytes(8))
        self.environment = {"PYTHONPATH": str(folder), "TEST_CLOCK_FILE": str(path)}
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)

    def set(self, seconds):
        """So many seconds ahead of the others'."""
        struct.pack_into("<q", self._map, 0, seconds)

    def close(self):
        self._map.close()


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


@pytest.mark.slow
def test_clocks_of_relay_and_server_that_jump(world, tmp_path, request):
    """Forwards and backwards, minutes and days, while both run: nothing is lost or doubled."""
    clocks = {}
    for name in ("decrypting", "server"):
        node, clocks[name] = world.nodes[name], Clock(tmp_path / name)
        world.stack.callback(clocks[name].close)
        request.addfinalizer(lambda clock=clocks[name]: clock.set(0))
        node.stop()
        node.environment = clocks[name].environment
        node.start()
    minutes = 7 * 60
    for relay, server in ((minutes, -minutes), (-DAYS, minutes), (DAYS, -DAYS), (0, 0)):
        world.report(3)  # some are under way when it happens
        clocks["decrypting"].set(relay)
        clocks["server"].set(server)
        world.report(3)
        # An agent follows its parent's clock now and then only: a new process does so at once.
        world.restart_agents()
        world.check(wire=False)
        for name in clocks:
            assert world.nodes[name].running
    for name in clocks:
        world.nodes[name].environment = {}
        world.nodes[name].restart()
    world.restart_agents()
    world.report(3)
    world.check()
    assert world.nodes["decrypting"].events("clock differs from the parent's")
    assert not world.alarms() & {"contradiction", "bad-signature", "bad-statement"}


@contextmanager
def no_room_for(process):
    """Its files may not grow, nor be written behind their first page: as a full disk, for anybody.

    No root is needed, and it holds for a process that runs.
    """
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        if process.poll() is None:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["decrypting", "server"])
def test_files_that_may_not_grow_above(world, name):
    """As a full disk: 503 below, and it goes on in the same process when there is room."""
    node = world.nodes[name]
    world.report(5)
    world.check(wire=False)
    before = refusals(world, name)
    stored = [world.stored(member) for member in world.members.values()]
    with no_room_for(node.child):
        world.report(20)
        eventually(lambda: refusals(world, name) > before, "a refusal")
        assert node.running
        assert all(member.depth >= 20 for member in world.members.values())
        if name == "server":
            assert stored == [world.stored(member) for member in world.members.values()]
    go_on_at_once(world, node)
    world.report(5)
    world.check()
    assert node.running


def test_files_that_may_not_grow_at_the_agent(world):
    """What sends can write nothing down, and loses nothing; what cannot be taken is refused."""
    member = world.members["ahead"]
    world.check(wire=False)
    with no_room_for(member.node.child):
        world.report(10)
        eventually(lambda: world.arrived(world.members["behind"]), "the other one's receipts")
        assert member.node.running
        assert member.depth == 10
        # A report that cannot be written is not made, and whoever makes it is told.
        report = ["upseal", "agent", "report", "-d", str(member.folder)]
        made = member.agent.spool.counters().made
        done = subprocess.run(
            ["sh", "-c", 'ulimit -f 8; exec "$0" -m "$@"', sys.executable, *report],
            input=b"never made" * 1000, capture_output=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 4, done.stderr
        assert done.stderr.count(b"\n") == 1
        assert member.agent.spool.counters().made == made
    world.restart_agents()
    world.report(5)
    world.check()


def refusals(world, name):
    """How often whoever stands behind this proxy has said that it takes nothing now."""
    return sum(data.count(b"HTTP/1.1 503") for data in world.proxies[name].recorded())


def go_on_at_once(world, node):
    """Who has been told to come back later need not wait."""
    for below in world.nodes.values():
        if below.role == "relay" and below is not node:
            below.restart()
    world.restart_agents()


@pytest.mark.parametrize("name", ["decrypting", "server"])
def test_a_full_disk_above(world, name):
    """Refused with 503 and kept below; it goes on when there is room, in the same process."""
    node = world.nodes[name]
    disk = SmallDisk(world, node, DISK)
    node.start()
    world.report(5)
    world.check(wire=False)
    before = refusals(world, name)
    disk.fill()
    world.report(40)
    eventually(lambda: refusals(world, name) > before, "a refusal")
    assert node.running
    disk.empty()
    go_on_at_once(world, node)
    world.report(5)
    world.check()
    assert node.running


def test_a_full_disk_at_the_agent(world):
    """Reports are refused, and so not made; what had been taken before arrives all the same."""
    member = world.members["ahead"]
    member.agent.close()
    disk = SmallDisk(world, member.node, DISK)
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

# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` of every process at random moments, while whole files go up through all of them."""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter

import pytest
from fleet_nodes import forms
from fleet_upload_world_support import (
    BLOCK,
    check_files,
    content,
    counters,
    files_extra,
    files_world,
    give,
    holds,
    make_and_give,
    make_file,
    marker_of,
    nothing_waits,
    sha256_of,
    taken,
)
from fleet_world import reporting, seed_of

MIB = 1 << 20
_GIVER = """
import sys, time
from pathlib import Path
from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.settings import Settings
with Agent(Settings.load(Path(sys.argv[1]) / "agent.toml")) as agent:
    for path in sys.argv[2:]:
        print(path, agent.upload(path), flush=True)  # only now it is taken
        time.sleep(0.3)
    time.sleep(600)
"""


class Giver:
    """A process that gives small files one by one, and says which ones were taken."""

    name = "giver"

    def __init__(self, world, member, chance):
        self.world, self.member, self.chance = world, member, chance
        self.number, self.child, self.unsure = 0, None, []

    def start(self, wait=True):
        self.number += 1
        self.said = self.world.sources.parent / f"giver-{self.number}.out"
        self.paths = [
            make_file(self.world, self.member, self.chance.randrange(300_000), self.chance)
            for _ in range(12)
        ]
        words = [str(self.member.folder), *map(str, self.paths)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("UPSEAL_")}
        with open(self.said, "wb") as out:
            self.child = subprocess.Popen(
                [sys.executable, "-c", _GIVER, *words], stdout=out, env=environment
            )

    def kill(self):
        """What it was told was taken must arrive; the next one may or may not."""
        self.child.kill()
        self.child.wait()
        told = [line.split() for line in self.said.read_text().splitlines(True) if "\n" in line]
        for path, upload in told:
            taken(self.world, self.member, path, upload)
        for path in self.paths[len(told) : len(told) + 1]:
            self.unsure.append(sha256_of(path))


def keep_busy(world, chance, size):
    """Whoever has nothing more to send is given a file."""
    for member in world.members.values():
        if counters(member).waiting < 2:
            make_and_give(world, member, size(chance), chance)


def kill_them(world, chance, count, longest, giver, busy):
    """So many kills of processes drawn at random, each started again at once; how many of each."""
    giver.start()
    victims = [*world.nodes.values(), giver]
    order = [victims[i % len(victims)] for i in range(count)]
    chance.shuffle(order)
    try:
        for victim in order:
            busy()
            # The moment is random; what must hold does not depend on it.
            time.sleep(chance.uniform(0, longest))
            assert victim.child.poll() is None, f"{victim.name} has died by itself"
            victim.kill()
            victim.start(wait=False)
    finally:
        giver.kill()
    return Counter(victim.name for victim in order)


def end_of(world, giver, **how):
    for node in world.nodes.values():
        node.up()
    world.restart_agents()
    check_files(world, unsure=giver.unsure, **how)
    wrong = {"contradiction", "bad-signature", "unknown-agent", "cannot-open", "wrong-agent",
             "upload-does-not-match", "arrived-clear"}  # fmt: skip
    assert not world.alarms() & wrong
    for member in world.members.values():
        assert not member.node.events("alarm")


def test_kill_9_while_files_go_up(tmp_path):
    chance = seed_of("test_kill_9_while_files_go_up")
    extra = files_extra(agent={"throttle": 2 * MIB}, relay={"throttle": 6 * MIB})
    with files_world(tmp_path, extra=extra) as world:
        giver = Giver(world, world.members["must"], chance)
        with reporting(world, pause=0.3):
            killed = kill_them(
                world, chance, 20, 0.5, giver,
                lambda: keep_busy(world, chance, lambda c: c.randrange(2 * MIB, 4 * MIB)),
            )  # fmt: skip
        print("killed", dict(killed), "files", len(world.given), "on the way", on_the_way(world))
        assert sum(killed.values()) == 20
        assert set(killed) == {*world.nodes, "giver"}
        end_of(world, giver)


def on_the_way(world):
    """What lies on disks while it waits: no sealed file can be read there, and no clear one at its
    agent. Gives how many files that were."""
    waiting = nothing_waits(world)
    for path in waiting:
        agents = any(path.startswith(str(m.folder)) for m in world.members.values())
        for marker in (world.secret_file, *([world.public_file] if agents else [])):
            if path.startswith(str(world.deployment / "uploads" / "stored")):
                continue  # the store's own
            assert not holds(path, marker), path
    return len(waiting)


class Sieve(bytearray):
    """What a proxy keeps where there is too much to keep: whether secrets came by."""

    needles, found, come = (), [], 0

    def __iadd__(self, data):
        type(self).come += len(data)
        window = bytes(self) + data
        type(self).found += [needle for needle in self.needles if needle in window]
        self[:] = window[-128:]
        return self


@pytest.mark.slow
def test_kill_9_while_2_gib_go_up(tmp_path):
    """The long mode: 200 kills, in rounds with one such file each."""
    chance = seed_of("test_kill_9_while_2_gib_go_up")
    rounds, kills, size = 4, 50, 2 << 30
    pace = {"piece": 4 * MIB, "throttle": 48 * MIB}
    try:
        with files_world(tmp_path, extra=files_extra(agent=pace, relay=pace)) as world:
            Sieve.needles = tuple(forms(world.secret_file))
            for proxy in world.proxies.values():
                proxy.book = Sieve
            giver = Giver(world, world.members["must"], chance)
            killed = Counter()
            for number in range(rounds):
                member = world.members[("must", "plain")[number % 2]]
                path = big_file(world, member, size, chance)
                give(world, member, path)
                path.unlink()
                killed += kill_them(
                    world, chance, kills, 3.0, giver,
                    lambda: keep_busy(world, chance, lambda c: c.randrange(MIB)),
                )  # fmt: skip
                on_the_way(world)
                end_of(world, giver, wire=False, seconds=900)
                print(f"round {number}: killed {dict(killed)}, {Sieve.come:,} bytes by wire")
            assert sum(killed.values()) == rounds * kills
            assert Sieve.come > rounds * 3 * size
            assert not Sieve.found
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)


def big_file(world, member, size, chance):
    """The content of a smaller one over and over, each time with another number in some blocks."""
    marker, part = marker_of(world, member), 64 * MIB
    path = world.sources / f"big-{len(world.given)}"
    pool = bytearray(b"".join(content(marker, part, chance.randrange(1 << 40))))
    with open(path, "wb", buffering=0) as file:
        for number in range(size // part):
            for at in range(len(marker) + 1, part, 64 * BLOCK):
                pool[at : at + 8] = b"%08d" % number
            file.write(pool)
    return path

# SPDX-License-Identifier: Apache-2.0
"""While everybody reports: ``kill -9`` at random moments, of every process; and a bad network."""

import os
import subprocess
import sys
import time
from collections import Counter

import pytest
from fleet_proxy import Weather
from fleet_world import eventually, make_world, reporting, seed_of

_REPORTER = """
import sys
from pathlib import Path
from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.settings import Settings
with Agent(Settings.load(Path(sys.argv[1]) / "agent.toml")) as agent:
    number = 0
    while True:
        agent.report(f"{sys.argv[2]} reporter {sys.argv[3]} {number}".encode())
        print(number, flush=True)  # only now is it made
        number += 1
"""


class Reporter:
    """A process that reports one by one, and says which ones were taken."""

    def __init__(self, member, marker, log):
        self.member, self.marker, self.log, self.number = member, marker, log, 0
        self.child = None

    def start(self):
        self.number += 1
        self.said = self.log / f"reporter-{self.number}.out"
        words = [str(self.member.folder), self.marker.decode(), str(self.number)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("UPSEAL_")}
        with open(self.said, "wb") as out:
            self.child = subprocess.Popen(
                [sys.executable, "-c", _REPORTER, *words], stdout=out, env=environment
            )

    def kill(self):
        """What it was told was taken must arrive; the one it was about to make may or may not."""
        self.child.kill()
        self.child.wait()
        numbers = [int(line) for line in self.said.read_bytes().split(b"\n")[:-1]]
        assert numbers == list(range(len(numbers)))
        marker = self.marker
        text = b"%s reporter %d %%d" % (marker, self.number)
        self.member.made.update({text % number: marker for number in numbers})
        self.member.unsure.add(text % len(numbers))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with make_world(tmp_path_factory.mktemp("fleet") / "world") as made:
        yield made


def kill_and_restart(world, chance, count, longest):
    """So many kills of processes drawn at random; each is started again at once."""
    reporter = Reporter(world.members["must"], world.marker(secret=True), world.folder.parent)
    world.stack.callback(lambda: reporter.child.poll() is None and reporter.child.kill())
    reporter.start()
    victims = [*world.nodes.values(), reporter]
    order = [victims[i % len(victims)] for i in range(count)]
    chance.shuffle(order)
    for victim in order:
        # The moment is random; what must hold does not depend on it.
        time.sleep(chance.uniform(0, longest))
        assert victim.child.poll() is None, f"{victim} has died by itself"
        victim.kill()
        victim.start(wait=False) if victim is not reporter else victim.start()
    eventually(lambda: reporter.said.stat().st_size, "a report of the last reporter")
    reporter.kill()
    return Counter(getattr(victim, "name", "reporter") for victim in order)


def round_of_kills(world, name, count, longest):
    chance = seed_of(name)
    with reporting(world):
        killed = kill_and_restart(world, chance, count, longest)
    print("killed", dict(killed))
    assert sum(killed.values()) == count
    for node in world.nodes.values():
        node.up()
    world.restart_agents()
    world.check()
    assert not world.alarms() & {"contradiction", "bad-signature", "unknown-agent"}
    for member in world.members.values():
        assert not member.node.events("alarm")


def test_kill_9(world):
    round_of_kills(world, "test_kill_9", 20, 0.5)


@pytest.mark.slow
def test_kill_9_many_times(world):
    """The long mode."""
    for i in range(10):
        round_of_kills(world, f"test_kill_9_many_times {i}", 21, 1.5)


def test_a_network_that_drops_delays_cuts_and_doubles(world):
    kinds = ("drop", "delay", "cut", "duplicate")
    chance = seed_of("test_a_network")
    for proxy in world.proxies.values():
        proxy.happened.clear()
        proxy.weather = Weather(chance, drop=0.2, delay=0.1, cut=0.08, duplicate=0.1)
    with reporting(world):
        for name, proxy in world.proxies.items():
            eventually(
                lambda p=proxy: all(p.happened[kind] >= 2 for kind in kinds),
                f"the weather before {name}: {dict(proxy.happened)}",
            )
    print({name: dict(proxy.happened) for name, proxy in world.proxies.items()})
    for proxy in world.proxies.values():
        proxy.weather = None
    world.restart_agents()
    world.check()
    assert not world.alarms() & {"contradiction", "bad-signature", "unknown-agent"}

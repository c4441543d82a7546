# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` of a relay while files go through it: none is lost or comes twice."""

from __future__ import annotations

import contextlib
import hashlib
import time

import pytest
from fleet_nodes import Node, seed_of
from fleet_proxy import Proxy
from fleet_relay_support import Sender, eventually, make_folder, settings_for
from fleet_relay_uploads_support import Child, Status, file_parent, status_in
from fleet_support import Site

from upseal.fleet.http.client import Client
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import State
from upseal.fleet.relay.settings import toml_of

QUICK = """
[forward]
retry = 0.02
retry_most = 0.1
wait = 2
[refresh]
manifest = 0.1
[uploads]
piece = 65536
min_free = 0
"""
PIECE = 64 << 10


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """The clients; the relay is another process."""
    monkeypatch.setattr("upseal.fleet.uploads.carrier._PAUSE", 0.02)


class World:
    """A parent, a relay that is a process, and clients that do not give up."""

    def __init__(self, tmp_path, stack, *, decrypting):
        self.site = Site()
        self.site.enable()
        self.stack = stack
        self.parent = stack.enter_context(file_parent(self.site, tmp_path / "parent"))
        self.parent_is_there = True
        where = self.parent.url.removeprefix("http://").rpartition(":")
        target = (where[0], int(where[2]))
        self.above = stack.enter_context(Proxy(lambda: target if self.parent_is_there else None))
        member = self.site.add_relay("relay", decrypts=decrypting)
        folder = make_folder(self.site, tmp_path / "relay", member)
        self.site.sign()
        settings = settings_for(folder, self.above.url, decrypting=decrypting)
        (folder / "relay.toml").write_text(toml_of(settings) + QUICK)
        self.relay = Node("relay", "relay", folder, tmp_path / "relay.log")
        self.below = stack.enter_context(Proxy(self.relay.address))
        stack.callback(lambda: self.relay.running and self.relay.kill())
        self.relay.start()
        self.children = []

    def child(self, content, form, sender=None):
        if sender is None:
            sender = Sender(self.site, self.below.url)
            self.stack.enter_context(sender.client)
        child = Child(sender, self.parent.file(sender, content, form), PIECE)
        self.stack.callback(child.close)
        self.children.append(child)
        return child

    def check(self):
        """Every file is stored once, as it was; nothing is left on the way."""
        for child in self.children:
            eventually(lambda child=child: child.result or child.failed)
            child.close()
            assert child.result.state is State.DONE, child.result
            assert status_in(child.result, child.file) in (Status.STORED, Status.DUPLICATE)
        stored = {upload: hashlib.sha256(c).digest() for upload, c in self.parent.stored.items()}
        made = {
            child.file.ticket.upload: hashlib.sha256(child.file.content).digest()
            for child in self.children
        }
        assert stored == made
        folder = self.relay.folder
        eventually(lambda: not list((folder / "uploads-sealed").iterdir()))
        eventually(lambda: [p.name for p in (folder / "uploads").iterdir()] == ["lock"])


def one_of(chance, moments):
    """A moment to wait for, drawn at random: its name, and whether it has come."""
    name = chance.choice(sorted(moments))
    return name, moments[name]


@pytest.mark.parametrize("kills", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_kill_9_at_random_points_of_an_upload(tmp_path, kills):
    chance = seed_of("test_kill_9_at_random_points_of_an_upload")
    with contextlib.ExitStack() as stack:
        world = World(tmp_path, stack, decrypting=True)
        relay, parent = world.relay, world.parent
        happened = []
        for number in range(kills):
            form = ("clear", "sealed")[number % 2]
            child = world.child(chance.randbytes(chance.randrange(1 << 20, 3 << 20)), form)
            down, up = (chance.randrange(child.file.ticket.size) for _ in range(2))
            upload = child.file.ticket.upload

            def sent_up(upload=upload):
                held = parent.shelf.whole() + parent.shelf._of_state("open")
                return max((h.offset for h in held if h.ticket.upload == upload), default=0)

            moments = {
                "coming": lambda child=child, down=down: child.offset >= down,
                "going": lambda sent_up=sent_up, up=up: sent_up() >= up,
                "answered": lambda upload=upload: upload in parent.stored,
                "told": lambda child=child: child.result is not None,
            }
            if form == "clear":
                half = relay.folder / "uploads-sealed"
                moments["sealing"] = lambda half=half: half.is_dir() and list(half.iterdir())
            name, come = one_of(chance, moments)
            over = moments["told"]  # a moment can be too short to be seen
            end = time.monotonic() + 60
            while not come() and not over():
                assert time.monotonic() < end and child.failed is None, (name, child.failed)
                time.sleep(0.001)
            relay.kill()
            happened.append(name)
            relay.start(wait=False)
        print(happened)
        world.check()
        # Nothing came up again that had been answered for, but for what a kill came between.
        assert len(parent.arrived_files) <= 2 * len(world.children)


def test_the_parent_is_away_and_the_relay_is_killed(tmp_path):
    """Days of it: what was taken stays taken, over any number of starts."""
    with contextlib.ExitStack() as stack:
        world = World(tmp_path, stack, decrypting=True)
        relay, parent = world.relay, world.parent
        world.parent_is_there = False
        relay.kill()  # its connections that are there already would go on
        relay.start()
        children = [world.child(b"%d" % i * 100_000, f) for i, f in enumerate(("clear", "sealed"))]
        # The same clear body from a second client.
        second = Sender(world.site, world.below.url)
        stack.enter_context(second.client)
        twin = Child(second, children[0].file, PIECE)
        stack.callback(twin.close)
        whole = relay.folder / "uploads"
        eventually(lambda: len(list(whole.glob("*.whole"))) == 3)
        for _ in range(2):
            relay.kill()
            relay.start()
            for child in (*children, twin):
                (answer,) = eventually(lambda child=child: _asked(child))
                assert answer.state is State.PENDING
            assert len(list(whole.glob("*.whole"))) == 3
        assert parent.arrived_files == []
        parent.judge_file = lambda held: None  # and when it is back, it takes its time
        world.parent_is_there = True
        eventually(lambda: len(parent.shelf.whole()) == 2)
        relay.kill()
        relay.start()
        parent.judge_file = parent.honest_file
        parent.judge_all()
        world.check()
        eventually(lambda: twin.result)
        assert twin.result.state is State.DONE
        assert len(parent.arrived_files) == len(parent.begun) == 2
        assert relay.stop() == 0


def _asked(child):
    try:
        return child.sender.ask(child.file.id)
    except (OSError, Problem):
        return None


def test_sigterm_while_it_is_throttled(tmp_path):
    """It ends, and goes on with what it has."""
    with contextlib.ExitStack() as stack:
        world = World(tmp_path, stack, decrypting=True)
        relay, parent = world.relay, world.parent
        settings = relay.folder / "relay.toml"
        quick = settings.read_text()
        settings.write_text(quick + "throttle = 65536\n")
        assert relay.restart()
        child = world.child(bytes(4 << 20), "clear")
        eventually(lambda: parent.begun)
        assert relay.stop() == 0
        assert child.result is None and parent.arrived_files == []
        settings.write_text(quick)
        relay.start()
        world.check()
        assert len(parent.begun) == 1
        with Client(world.below.url) as client:
            eventually(lambda: client.request("GET", "/readyz").status == 200)

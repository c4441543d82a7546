# SPDX-License-Identifier: Apache-2.0
"""Floods against a real server and a real relay, by strangers and by somebody enrolled: the bounds
hold, and an honest agent's reports are stored meanwhile. `fleet_flood_support` makes them.
"""

import time
from contextlib import ExitStack

import fleet_flood_support as floods
import psutil
import pytest
from fleet_flood_support import THERE, Enrolled, Flood
from fleet_modes import Mode
from fleet_support import readings
from fleet_world import World, enrolled, eventually

from upseal import Sealer
from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.agent.enrolment import enrol
from upseal.fleet.agent.membership import Credentials
from upseal.fleet.agent.settings import Settings
from upseal.fleet.credentials import Token, enrol_context, enrol_request
from upseal.fleet.http.client import Client
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Level

CONNECTIONS, SHARE = 40, 0.5
MOST = int(2 * CONNECTIONS * SHARE)
"""Connections of one address, beyond which they are closed at once."""
MEMORY = 96 << 20
"""Bytes that a process may grow by: the bodies it may hold, and what Python takes for itself."""
DISK = 32 << 20
"""Bytes that a folder may grow by: most of it is SQLite's log, before it is taken up."""
SERVER = f"""
[server]
threads = 1
connections = {CONNECTIONS}
max_body = 1048576
queue_bytes = 8388608
unwrap_share = 0.0005
unwrap_reserve = 0.001
relay_factor = 1000.0
dead_letter_bytes = 2097152
dead_letter_bytes_per_hop = 1048576
uploads_open_per_hop = 3
"""
RELAY = f"""
connections = {CONNECTIONS}
max_body = 1048576
receiving = 8388608
[uploads]
open_per_hop = 3
"""
RATES = f"""
[rates]
hop_requests = 15
hop_bytes = 4194304
address_failures = 40
address_share = {SHARE}
reserve = 1
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A server, a decrypting relay, an honest agent below it; processes, and small limits."""
    folder = tmp_path_factory.mktemp("floods")
    with ExitStack() as stack:
        world = World(folder, stack, Mode())
        Deployment.init(world.deployment, name="floods")
        with open(world.deployment / "deployment.toml", "a") as file:
            file.write(SERVER + RATES)
        world.node("server", "server", world.deployment).start()
        world.url = world.add_relay("relay", world.proxy_to("server"), decrypting=True)
        with open(folder / "relay" / "relay.toml", "a") as file:
            file.write(RELAY + RATES)
        world.nodes["relay"].restart()
        world.enable()
        world.honest = world.add_agent("honest", "required", world.url)
        world.start_agents()
        world.marked = world.marker(secret=True)
        world.rogue = rogue(world)
        report(world)
        yield world


def rogue(world):
    """Somebody enrolled who does not behave."""
    folder = world.folder / "rogue"
    settings = Settings(world.url, folder, Level.OPTIONAL, "rogue")
    token = world.token("agent")
    enrolled(lambda: enrol(settings, token))
    me = Credentials.load(folder)
    with world.admin() as admin, admin.view() as view:
        world.manifest = view.manifest
    keys = tuple(key.public() for key in world.manifest.encryption)
    return Enrolled(me.deployment, me.identity, me.hop, me.credential, keys)


def report(world, count=25):
    """The honest agent reports, and all of it is stored, with receipts."""
    world.honest.report(count, world.marked)
    eventually(lambda: world.arrived(world.honest), "the honest agent's receipts")


def metrics(world, name):
    host, port = world.nodes[name].address()
    with Client(f"http://{host}:{port}", 20.0) as client:
        return readings(client.request("GET", "/metrics").body.decode())


def limited(found, name, limit):
    return found.get(f'upseal_{name}_http_limited_total{{limit="{limit}"}}', 0.0)


def memory(world, name):
    return psutil.Process(world.nodes[name].child.pid).memory_info().rss


def theirs(world, name):
    """Open connections of the address that floods."""
    found = psutil.Process(world.nodes[name].child.pid).net_connections("tcp")
    return sum(1 for c in found if c.status == "ESTABLISHED" and c.raddr and c.raddr.ip == THERE)


def disk(world, name):
    """Bytes of the folder, but for what the honest agent's reports take, which is little."""
    folder = world.nodes[name].folder
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Watch:
    """Floods relay and server at once; ``after`` are their metrics when it is over."""

    def __init__(self, world, work, *, threads=1, least=30, names=("relay", "server"), until=None):
        self.world = world
        before = {name: (memory(world, name), disk(world, name)) for name in names}
        counted = {name: metrics(world, name) for name in names}
        self.floods, most = {}, dict.fromkeys(names, 0)
        with ExitStack() as running:
            for name in names:
                flood = Flood(world.nodes[name].address(), work, threads)
                self.floods[name] = running.enter_context(flood.running())
            eventually(lambda: all(f.total >= least for f in self.floods.values()), "a flood")
            report(world)
            end = time.monotonic() + 60
            while True:
                for name in names:
                    most[name] = max(most[name], theirs(world, name))
                if until is None or all(until(self.floods[name]) for name in names):
                    break
                assert time.monotonic() < end, {n: f.answers for n, f in self.floods.items()}
                time.sleep(0.02)
            report(world)
            self.during = {name: metrics(world, name) for name in names}
        self.answers = {name: flood.answers for name, flood in self.floods.items()}
        self.after = {}
        for name in names:
            assert most[name] <= MOST + 2, "connections"  # some are being closed
            assert memory(world, name) - before[name][0] < MEMORY
            assert disk(world, name) - before[name][1] < DISK
            self.after[name] = metrics(world, name)
        self.limited = {
            name: lambda limit, name=name: (
                limited(self.after[name], name, limit) - limited(counted[name], name, limit)
            )
            for name in names
        }
        self.names = names

    def was_limited(self, limit):
        return all(self.limited[name](limit) > 0 for name in self.names)


# -- strangers --------------------------------------------------------------------------------


def test_connections_that_stay_open(world):
    watch = Watch(world, floods.held_connections(5 * CONNECTIONS), least=3 * CONNECTIONS)
    assert watch.was_limited("address-connections")
    for name in watch.names:
        assert watch.during[name][f"upseal_{name}_http_connections"] <= 2 * CONNECTIONS


def test_heads_that_come_slowly(world):
    watch = Watch(world, floods.slow_heads(2 * CONNECTIONS), least=200)
    assert watch.was_limited("address-connections")


def test_bodies_that_come_slowly(world):
    """They take their part of the memory for bodies, and no more."""
    watch = Watch(world, floods.slow_bodies(15), least=15)
    for name in watch.names:
        assert watch.during[name][f"upseal_{name}_http_body_bytes"] <= (8 << 20) / 4 + (1 << 20)


def test_credentials_that_are_none(world):
    watch = Watch(
        world,
        floods.garbage_credentials(world.rogue.credential),
        until=lambda f: f.answers[429] > 9,
    )
    assert watch.was_limited("address-failures")
    for answers in watch.answers.values():
        assert set(answers) <= {401, 429, "closed", 0}


def test_bodies_without_end(world):
    watch = Watch(world, floods.oversized(), least=8)
    for answers in watch.answers.values():
        assert set(answers) <= {401, 413, 429, "closed", 0}


def test_enrolments_of_those_who_were_not_invited(world):
    manifest = world.manifest
    token = Token(manifest.deployment, bytes(32), 1, bytes(16))
    asked = enrol_request(
        token, manifest, SigningKey.generate(), SigningKey.generate(), name="x",
        now_ms=floods.now_ms(),
    )  # fmt: skip
    sealer = Sealer([manifest.enrolment.public()])
    before = len(world.nodes["server"].events("enrolment refused"))
    watch = Watch(world, floods.enrolments(asked), until=lambda f: f.answers[429] > 9)
    assert watch.was_limited("address-failures")
    for answers in watch.answers.values():
        assert set(answers) <= {403, 429, "closed", 0}
    lines = len(world.nodes["server"].events("enrolment refused")) - before
    refused = watch.after["server"]['upseal_server_enrolments_total{result="token"}']
    assert lines <= refused
    garbage = sealer.seal(b"garbage", enrol_context(manifest.deployment))
    Watch(world, floods.enrolments(garbage), names=("server",))


# -- somebody who is enrolled -------------------------------------------------------------------


def test_an_agent_that_sends_as_fast_as_it_can(world):
    watch = Watch(
        world, floods.sends(world.rogue, floods.small_units), threads=2,
        until=lambda f: f.answers[429] > 5,
    )  # fmt: skip
    assert watch.was_limited("hop-requests")
    for answers in watch.answers.values():
        assert set(answers) <= {200, 429, "closed"}


def test_an_agent_that_makes_up_sessions(world):
    """The server says `busy`; a relay passes on closed what is too much for it."""
    before = metrics(world, "server")["upseal_server_throttled_total"]
    watch = Watch(
        world, floods.sends(world.rogue, floods.new_sessions), threads=2, least=60,
        # How many it takes is a matter of how fast the machine is.
        until=lambda _: metrics(world, "server")["upseal_server_throttled_total"] > before,
    )  # fmt: skip
    assert watch.answers["server"][429] > 0


def test_an_agent_whose_bodies_do_not_open(world):
    """They are dead letters up to a quota, of which the one hop has its part alone."""

    def full(flood):
        return flood.answers[503] > 0 or flood.answers[429] > 20

    watch = Watch(
        world, floods.sends(world.rogue, floods.undecryptable), names=("server",), until=full
    )
    kept = watch.after["server"]["upseal_server_dead_letter_bytes"]
    assert kept <= 1 << 20


def through(world, enough):
    """That a file of the honest agent is stored meanwhile, and the flood has met its bound."""
    given = []

    def until(flood):
        if not given:
            path = world.folder.parent / "honest-file"
            path.write_bytes(world.marked * 20_000)
            given.append(world.honest.agent.upload(path))
        return not world.honest.agent.uploads.counters().waiting and enough(flood)

    return until


def test_uploads_of_strangers(world):
    """Without a proof nothing is begun, and no piece is read."""
    watch = Watch(
        world, floods.strangers_uploads(world.rogue.credential),
        until=through(world, lambda f: f.answers[429] > 9),
    )  # fmt: skip
    assert watch.was_limited("address-failures")
    for name, answers in watch.answers.items():
        assert set(answers) <= {401, 413, 429, "closed", 0}
        assert watch.after[name][f"upseal_{name}_uploads_open"] == 0


def test_an_agent_that_sends_pieces_without_a_byte(world):
    watch = Watch(
        world, floods.sends(world.rogue, floods.empty_pieces()), threads=2,
        until=through(world, lambda f: f.answers[429] > 5 and f.answers[204] > 20),
    )  # fmt: skip
    assert watch.was_limited("hop-requests")
    for name, answers in watch.answers.items():
        assert set(answers) <= {201, 204, 404, 429, "closed"}
        assert watch.after[name][f"upseal_{name}_uploads_open"] == 1


def test_an_agent_that_declares_any_size(world):
    watch = Watch(
        world, floods.sends(world.rogue, floods.sizes), threads=2,
        until=through(world, lambda f: f.answers[429] > 5 and f.answers[413] > 0),
    )  # fmt: skip
    for name in watch.names:
        assert set(watch.answers[name]) <= {201, 400, 413, 429, "closed"}
        assert watch.after[name][f"upseal_{name}_uploads_open"] <= 3


def test_an_agent_that_announces_uploads_without_end(world):
    def refused(flood):
        return sum(n for status, n in flood.answers.items() if status in (429, 503)) > 5

    watch = Watch(world, floods.sends(world.rogue, floods.creations), until=refused)
    for name in watch.names:
        assert watch.after[name][f"upseal_{name}_uploads_open"] <= 3


def test_nothing_of_the_honest_agent_was_lost(world):
    uploads = world.honest.agent.uploads.counters()
    assert uploads.made == uploads.stored
    world.check(wire=False)
    for node in world.nodes.values():
        assert node.running
        assert not node.events("request failed")

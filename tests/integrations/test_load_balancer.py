# SPDX-License-Identifier: Apache-2.0
"""Relays behind a real HAProxy, with the configuration that the documentation shows.

agents -> HAProxy -> two passing relays -> server; a relay is killed while agents send.
"""

import random
import re
import socket
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from broker_support import eventually, found, free_port
from fleet_nodes import seed_of
from fleet_upload_world_support import check_files, counters, files_extra, make_and_give, rows
from fleet_world import make_world, reporting

from upseal.fleet.http.client import Client, Unreachable

CONFIG = Path(__file__).parents[2] / "examples" / "load_balancers" / "haproxy.cfg"
PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "load_balancers.md"


def settled(text, port, relays):
    """The configuration with the addresses of this test, and else as it stands there."""
    text = text.replace("bind 192.0.2.10:8441", f"bind 127.0.0.1:{port}")
    for number, (host, at) in enumerate(relays, 1):
        text = text.replace(f"192.0.2.2{number}:8441", f"{host}:{at}")
    assert "192.0.2" not in text
    return text


@contextmanager
def haproxy(folder, relays, change=lambda text: text):
    port = free_port()
    config = folder / "haproxy.cfg"
    config.write_text(change(settled(CONFIG.read_text(), port, relays)))
    with open(folder / "haproxy.log", "ab") as log:
        child = subprocess.Popen(
            [found("haproxy"), "-db", "-f", str(config)], stdin=subprocess.DEVNULL,
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        eventually(lambda: answers(port) or child.poll() is not None, "haproxy")
        assert child.poll() is None, (folder / "haproxy.log").read_text()
        yield port
    finally:
        child.kill()
        child.wait()


def answers(port):
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            return client.request("GET", "/readyz").status == 200
    except Unreachable:
        return False


def patches(node):
    """Pieces of uploads that a relay has taken."""
    return sum(1 for e in node.events("request") if e["method"] == "PATCH" and e["status"] == 204)


@contextmanager
def balanced(folder, agents=("must", "may", "other"), change=lambda text: text):
    """A world whose agents have two relays behind one address."""
    extra = files_extra()
    extra["relay"] += '\n[rates]\nexceptions = ["127.0.0.1"]\n'
    with make_world(folder / "world", relays=False, agents={}, extra=extra) as world:
        above = world.url
        relays = []
        for name in ("relay-1", "relay-2"):
            world.add_relay(name, above, decrypting=False)
            relays.append(world.nodes[name])
        for relay in relays:  # it comes back where the balancer looks for it
            host, port = relay.address()
            path = relay.folder / "relay.toml"
            path.write_text(path.read_text().replace("127.0.0.1:0", f"{host}:{port}"))
        ids = [
            bytes(i).hex() for (i,) in world.query("SELECT agent FROM agents WHERE role='relay'")
        ]
        with haproxy(folder, [relay.address() for relay in relays], change) as port:
            for name in agents:
                member = world.add_agent(name, "required", f"http://127.0.0.1:{port}")
                path = member.folder / "agent.toml"
                path.write_text(f"parent_ids = {ids}\n".replace("'", '"') + path.read_text())
            world.sources = folder / "sources"
            world.sources.mkdir()
            world.given = []
            world.secret_file = world.public_file = world.marker(secret=True)
            world.start_agents()
            yield world, relays, port


def test_a_relay_is_killed_and_nothing_is_lost_or_doubled(tmp_path):
    rng = seed_of("load-balancer")
    with balanced(tmp_path) as (world, relays, port):
        members = list(world.members.values())
        for member in members:
            make_and_give(world, member, rng.randrange(1 << 20, 2 << 20), rng)
        with reporting(world):
            time.sleep(rng.uniform(0.2, 1.0))
            victim = max(relays, key=patches)  # pieces are there: they go on at the other one
            victim.kill()
            time.sleep(rng.uniform(1.0, 2.0))
            for member in members:
                make_and_give(world, member, 1 << 20, rng)
            assert answers(port)
        # The other one carries all; what the dead one had was sent again, for want of a receipt.
        for member in members:
            eventually(lambda m=member: not counters(m).waiting, "receipts by way of the other")
        victim.start()  # with what it still has in its queue: all of it is there already
        eventually(lambda: not waiting(victim), "what a relay has found again")
        check_files(world)
        with reporting(world):
            time.sleep(0.5)
        check_files(world)
        assert not world.alarms()
        for member in members:
            assert not member.node.events("another one answers")
        with Client(f"http://127.0.0.1:{port}") as client:
            assert client.request("GET", "/metrics").status == 404
            assert client.request("GET", "/admin").status == 404
            assert client.request("GET", "/v1/manifest").status == 200
        with socket.create_connection(victim.address(), 10) as one:  # `send-proxy`: not spoken
            one.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET /healthz HTTP/1.1\r\n\r\n")
            assert one.recv(12) == b"HTTP/1.1 400"


def waiting(relay):
    host, port = relay.address()
    with Client(f"http://{host}:{port}") as client:
        text = client.request("GET", "/metrics").body.decode()
    return float(re.search(r"^upseal_relay_queue_bodies(?:\{[^}]*\})? (\S+)", text, re.M)[1])


def checks(relay):
    """What it has said of itself to the balancer's health checks, each status and how often."""
    return Counter(e["status"] for e in relay.events("request") if e["route"] == "/readyz")


@pytest.mark.slow
def test_pieces_of_an_upload_come_where_the_rest_is(tmp_path):
    """Without that they would be begun again and again: which line does it is seen by its lack."""
    rng = random.Random(5)
    with balanced(tmp_path, ["one", "two", "three", "four"]) as (world, relays, _):
        members = list(world.members.values())
        for member in members:
            make_and_give(world, member, 3 << 20, rng)
        check_files(world)
        pieces = sum(map(patches, relays))
        # 3 MiB of a file are 13 pieces of 256 KiB, once sealed; none is sent twice.
        assert pieces == 13 * len(members)
        assert all(rows(world, member) for member in members)
        assert not any(counters(member).failed for member in members)
        # While the server is away the relays take what comes, and are sent to.
        world.nodes["server"].kill()
        before = [checks(relay)[200] for relay in relays]
        for relay, seen in zip(relays, before, strict=True):
            eventually(
                lambda r=relay, n=seen: checks(r)[200] > n + 3, "checks of a relay without a parent"
            )
        members[0].report(10, world.secret_file)
        eventually(lambda: sum(map(waiting, relays)) > 0, "what a relay keeps")
        world.nodes["server"].start()
        check_files(world)


def test_the_page_shows_what_was_tested():
    assert f"```haproxy\n{CONFIG.read_text()}```\n" in PAGE.read_text()

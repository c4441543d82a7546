# SPDX-License-Identifier: Apache-2.0
"""The whole fleet as processes: levels, encryption off and on, rotation, retired keys."""

import json
import random
import subprocess
import sys

import pytest
from fleet_proxy import Weather
from fleet_world import eventually, make_world, reporting

from upseal.fleet.admin.refusals import WouldOrphan
from upseal.fleet.policy import Reason

SEALED, CLEAR, WITHHELD = "sealed", "clear", "withheld"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with make_world(tmp_path_factory.mktemp("fleet") / "world") as made:
        yield made


def test_levels(world):
    """Each level does what the policy says, over two relays, and the server shows it."""
    world.report(60)
    world.check()
    assert world.client("must") == (2, SEALED, Reason.SEALED)
    assert world.client("may") == (1, SEALED, Reason.SEALED)
    assert world.client("plain") == (0, CLEAR, Reason.LEVEL_NONE)
    # The last hop is always sealed: what the decrypting relay sends up, nobody can read.
    wire = b"".join(world.proxies["server"].recorded())
    assert world.public
    assert not any(marker in wire for marker in world.public)
    assert any(marker in b"".join(world.proxies["passing"].sent_up()) for marker in world.public)


def actual(world, name, what):
    eventually(lambda: world.members[name].status()["actual"] == what, f"{name} {what}")


def test_disabled_and_enabled_again(world):
    """REQUIRED withholds, says so in beacons, and what was withheld goes out later, sealed."""
    must, may = world.members["must"], world.members["may"]
    with world.admin() as admin:
        with pytest.raises(WouldOrphan) as refused:
            admin.disable()
        assert [orphan["name"] for orphan in refused.value.facts()["orphans"]] == ["must"]
        admin.disable(force=True)
    actual(world, "must", WITHHELD)
    actual(world, "may", CLEAR)
    before = world.stored(must)
    world.report(30, may=False)
    eventually(lambda: world.arrived(may), "the clear reports")
    eventually(
        lambda: world.client("must") == (2, WITHHELD, Reason.ENCRYPTION_DISABLED), "the beacon"
    )
    eventually(lambda: world.client("may") == (1, CLEAR, Reason.ENCRYPTION_DISABLED), "the reason")
    assert must.depth == 30
    assert world.stored(must) == before
    with world.admin() as admin:
        shown = {client["name"]: client for client in admin.clients()}
        assert shown["must"]["actual"] == WITHHELD
    world.enable()
    actual(world, "must", SEALED)
    actual(world, "may", SEALED)
    world.check()
    assert world.client("must") == (2, SEALED, Reason.SEALED)


def used_keys(world, member):
    rows = world.query("SELECT DISTINCT key_id FROM units WHERE agent = ?", (member.id,))
    return {bytes(key_id) for (key_id,) in rows if key_id is not None}


def test_rotation_while_reports_come(world):
    """Nobody waits for it, nothing is lost, and all are on the new key in the end."""
    sealing = [world.members["must"], world.members["may"]]
    with world.admin() as admin, reporting(world):
        before = {m.name: used_keys(world, m) for m in sealing}
        admin.rotate(timeout=60)
        with admin.view() as view:
            new = {key.key_id for key in view.manifest.encryption}
        for m in sealing:
            eventually(
                lambda m=m: m.status()["recipients"][0]["key_id"] in {k.hex() for k in new},
                "the new key at the agent",
            )
            assert not new & before[m.name]
        eventually(
            lambda: all(new & used_keys(world, m) for m in sealing), "the new key at the server"
        )
    world.check()


def let_go(world):
    """Generations of the keys that the server uses no longer."""
    return [event["generation"] for event in world.nodes["server"].events("key no longer used")]


def test_what_was_sealed_to_a_retired_key_is_sealed_again(world):
    """Bodies wait in the passing relay while their key is retired: the agents hear of it."""
    gate = world.proxies["decrypting"]
    gate.weather = Weather(random.Random(1), drop=1, cut=1)
    sealing = [world.members["must"], world.members["may"]]
    tallies = {m.name: m.status()["tally"].get("problem_stale-key", 0) for m in sealing}
    world.report(5)
    for m in sealing:
        eventually(lambda m=m: (m.status()["units"] or {}).get("pending"), "the relay to take it")
    with world.admin() as admin:
        admin.rotate(timeout=60)
        retired = admin.retire(all_old=True, force=True)
        assert retired.changed
        with admin.view() as view:
            kept = {view.manifest.generation}
    # Both holders have let the old keys go before anything sealed to them comes.
    keys = world.folder / "decrypting" / "keys"
    eventually(lambda: {int(p.name.split("-")[0]) for p in keys.glob("*.pem")} == kept, "the relay")
    eventually(lambda: max(let_go(world), default=0) == max(kept) - 1, "the server")
    gate.weather = None
    world.check()
    for m in sealing:
        told = eventually(
            lambda m=m: m.status()["tally"].get("problem_stale-key", 0) - tallies[m.name]
        )
        assert told <= 2  # one unit each, sealed again once; twice if it was sent again meanwhile


def test_words_of_the_command_line(world):
    """What `upseal agent report` takes, `upseal server reports` shows."""
    must = world.members["must"]
    report = world.marker(secret=True) + b" by the command line"
    upseal = [sys.executable, "-m", "upseal"]
    subprocess.run(
        [*upseal, "agent", "report", "-d", must.folder], input=report, check=True, timeout=60
    )
    must.made[report] = report
    eventually(lambda: report in world.stored(must), "the report")
    shown = subprocess.run(
        [*upseal, "server", "reports", "-d", world.deployment, "--client", "must", "--json"],
        stdout=subprocess.PIPE, check=True, timeout=60,
    ).stdout  # fmt: skip
    lines = [json.loads(line) for line in shown.splitlines()]
    assert len(lines) == len(must.made)
    assert {line["client"] for line in lines} == {"must"}


def test_all_end_cleanly(world):
    """SIGTERM, bottom to top: exit code 0, and no secret in any file or log they leave."""
    for name in (*world.members, "passing", "decrypting", "server"):
        assert world.nodes[name].stop() == 0
        assert world.nodes[name].events("stopped"), name
    world.check()
    for member in world.members.values():
        assert not member.node.events("alarm")

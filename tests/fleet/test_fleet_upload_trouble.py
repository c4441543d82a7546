# SPDX-License-Identifier: Apache-2.0
"""Files through the whole fleet where something is odd, or goes wrong, at the worst time."""

import os

import pytest
from fleet_disks import SmallDisk
from fleet_proxy import Weather
from fleet_upload_world_support import (
    check_files,
    content,
    counters,
    files_extra,
    files_world,
    give,
    make_and_give,
    make_file,
    nothing_waits,
    offset_at,
    rows,
)
from fleet_world import eventually, seed_of

from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.settings import Settings
from upseal.fleet.agent.spool import SpoolFull

MIB = 1 << 20
EXPIRES = 3
SLOW = "\n[uploads]\nmin_free = 0\npiece = 65536\nthrottle = 400000\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    extra = files_extra(relay={"expires": EXPIRES, "piece": 65_536})
    with files_world(tmp_path_factory.mktemp("trouble"), extra=extra, direct=False) as made:
        made.chance = seed_of("test_fleet_upload_trouble")
        yield made


def configure(world, member, extra=""):
    """Other settings of an agent, in its process and here."""
    member.configure(extra)
    member.agent.close()
    member.agent = Agent(Settings.load(member.folder / "agent.toml"))
    member.node.restart()


def every_name():
    """File names with each byte that there may be in one, and some that are famous."""
    every = bytes(b for b in range(1, 256) if b != ord("/"))
    return [every, b"-rf", b"...", b" ", b"\n", b"..\\..\\x", b"\xff\xfe", b"'; DROP TABLE", b"%00",
            "é\u202etxt".encode(), b"x" * 255]  # fmt: skip


def test_files_that_are_odd(world):
    """Empty ones, holes, all names, a source that changes, the same file of several agents."""
    must, may, plain = (world.members[name] for name in ("must", "may", "plain"))
    for member in (must, plain):
        give(world, member, make_file(world, member, 0, world.chance))
    for number, name in enumerate(every_name()):
        member = (must, plain)[number % 2]
        path = make_file(world, member, number, world.chance, os.fsdecode(name))
        give(world, member, path)
        path.unlink()
    hole = world.sources / "hole"
    with open(hole, "wb") as file:
        file.write(b"".join(content(world.public_file, 4096, 1)))
        file.truncate(8 * MIB)
        file.seek(0, os.SEEK_END)
        file.write(b"the end")
    same = make_file(world, plain, 3 * MIB, world.chance, "the same")
    for path in (hole, same):
        for member in (must, may, plain):
            give(world, member, path)
    give(world, must, same)  # and once more of the same agent: that is another upload
    same.write_bytes(b"it is another one now")
    hole.unlink()
    check_files(world)
    names = {name for name, *_ in (*rows(world, must).values(), *rows(world, plain).values())}
    assert names >= set(every_name())


@pytest.mark.slow
def test_a_network_that_drops_delays_and_cuts(world):
    kinds = ("drop", "delay", "cut")
    for proxy in world.proxies.values():
        proxy.happened.clear()
        proxy.weather = Weather(world.chance, drop=0.15, delay=0.03, cut=0.02, longest=0.2)
    try:
        for number in range(4):  # of lines that are cut in a piece, none brings all of it
            for member in world.members.values():
                make_and_give(world, member, 2 * MIB // (number + 1), world.chance)
        for name, proxy in world.proxies.items():
            eventually(
                lambda p=proxy: all(p.happened[kind] >= 2 for kind in kinds),
                f"the weather before {name}: {dict(proxy.happened)}",
            )
    finally:
        for proxy in world.proxies.values():
            proxy.weather = None
    world.restart_agents()
    check_files(world)


@pytest.mark.slow
def test_an_upload_that_expires_is_begun_again(world):
    """The agent dies in the middle, for longer than the relay keeps what nobody sends on."""
    must, passing = world.members["must"], world.nodes["passing"]
    configure(world, must, SLOW)
    given = make_and_give(world, must, 3 * MIB, world.chance)
    eventually(lambda: offset_at(passing, given) > 2 * 65_536, "some of it at the relay")
    must.node.kill()
    before = len(passing.events("upload begun"))
    eventually(
        lambda: given.upload in {e["upload"] for e in passing.events("upload expired")}, "the end"
    )
    assert offset_at(passing, given) == 0
    assert not any(str(passing.folder) in path for path in nothing_waits(world))
    configure(world, must)
    check_files(world)
    assert given.upload in {e["upload"] for e in passing.events("upload begun")[before:]}


def test_keys_change_while_files_wait(world):
    """What was sealed to a key that is retired is sealed anew; what must be sealed waits while
    encryption is off; and what may go in clear does."""
    must, may, plain = (world.members[name] for name in ("must", "may", "plain"))
    for member in world.members.values():
        member.node.stop()
        make_and_give(world, member, MIB, world.chance)
    with world.admin() as admin:
        admin.rotate(timeout=60)
        assert admin.retire(all_old=True, force=True).changed
    for member in world.members.values():
        member.node.start()
    check_files(world)
    for member in (must, may):
        assert member.node.events("upload sealed anew")
    # One that is sealed already, and then encryption ends: it stays so.
    for member in (must, may):
        member.node.stop()
        make_and_give(world, member, MIB, world.chance)
    with world.admin() as admin:
        assert admin.disable(force=True).changed
    for member in (must, may):
        member.node.start()
    eventually(lambda: not counters(may).waiting, "the file that was sealed before")
    path = world.sources / "given while it is off"  # which is seen on every hop
    path.write_bytes(b"".join(content(b"~open~", MIB, 1)))
    kept = [give(world, member, path) for member in (must, may, plain)]
    eventually(lambda: not counters(may).waiting + counters(plain).waiting, "clear files")
    assert counters(must).waiting >= 1
    assert kept[0].upload not in rows(world, must)
    assert rows(world, may)[kept[1].upload][3] == "clear"
    world.enable()
    check_files(world)
    assert rows(world, must)[kept[0].upload][3] == "sealed"
    assert not world.alarms() & {"arrived-clear", "cannot-open", "contradiction"}


def test_a_full_disk_at_the_agent(world):
    """The file is refused, and so not taken; with room again the next one is."""
    must = world.members["must"]
    disk = SmallDisk(world, must.node, 2 * MIB, must.folder / "uploads")
    path = make_file(world, must, MIB, world.chance)
    give(world, must, path)
    disk.fill()
    before = counters(must)
    with pytest.raises(SpoolFull):
        must.agent.upload(path)
    assert counters(must).made == before.made
    assert counters(must).refused == before.refused + 1
    must.node.start()  # what was taken goes, from a disk that is full
    eventually(lambda: not counters(must).waiting, "the first one")
    disk.empty()
    give(world, must, path)
    check_files(world)


@pytest.mark.parametrize(
    "name", ["passing", pytest.param("decrypting", marks=pytest.mark.slow), "server"]
)
def test_a_full_disk_above(world, name):
    """It is full when some of a file is there; that waits below, and goes on when there is room."""
    node, must = world.nodes[name], world.members["must"]
    disk = SmallDisk(world, node, 12 * MIB, node.folder / "uploads")
    node.start()
    slow = world.members["must"] if name == "passing" else world.nodes[BELOW[name]]
    slow_down(world, slow)
    given = make_and_give(world, must, 3 * MIB, world.chance)
    eventually(lambda: offset_at(node, given) > 65_536, f"some of it at {name}")
    disk.fill()
    eventually(lambda: refused(world, name), "a refusal")
    assert given.upload not in rows(world, must)
    assert node.running
    disk.empty()
    slow_down(world, slow, no_more=True)
    world.restart_agents()
    check_files(world)


BELOW = {"decrypting": "passing", "server": "decrypting"}


def refused(world, name):
    """Whoever stands behind this proxy has said that it takes nothing now."""
    return any(b"HTTP/1.1 503" in data for data in world.proxies[name].recorded())


def slow_down(world, who, *, no_more=False):
    """Throttles what an agent or a relay sends; it is started again."""
    if hasattr(who, "configure"):
        configure(world, who, "" if no_more else SLOW)
        return
    settings = who.folder / "relay.toml"
    line = "throttle = 400000\n"  # of the last table
    text = settings.read_text().replace(line, "")
    settings.write_text(text if no_more else text + line)
    who.restart()


@pytest.mark.slow
def test_a_disk_too_full_to_open_a_file(world):
    """The body is at the server, and stays there until there is room for what is in it."""
    server, must = world.nodes["server"], world.members["must"]
    disk = SmallDisk(world, server, 10 * MIB, server.folder / "uploads")
    with open(disk.filler, "wb") as file:
        file.write(bytes(6 * MIB))
    server.start()
    given = make_and_give(world, must, 3 * MIB, world.chance)
    eventually(
        lambda: given.upload in {e.get("upload") for e in server.events("upload not stored")},
        "an opening that fails",
    )
    world.report(5)
    world.check(wire=False)  # reports go on
    assert counters(must).waiting == 1
    assert given.upload not in rows(world, must)
    disk.empty()
    check_files(world)

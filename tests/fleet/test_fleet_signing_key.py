# SPDX-License-Identifier: Apache-2.0
"""The signing key changes while agents run, are stopped, or cannot be reached."""

import dataclasses
import random
from contextlib import ExitStack

from fleet_liar import liar_of
from fleet_proxy import Proxy, Weather
from fleet_world import eventually, make_world

from upseal.fleet import jws
from upseal.fleet.http.serving import in_thread
from upseal.fleet.identity import SigningKey

BAD = Weather(random.Random(1), drop=1, cut=1)


def serial(member):
    return member.status()["manifest"]["serial"]


def newest(world):
    with world.admin() as admin, admin.view() as view:
        return view.manifest


def test_the_signing_key_changes_while_agents_run(tmp_path):
    """Who was there, who was stopped, and who was cut off follow it; a forged one nobody does."""
    with ExitStack() as stack, make_world(tmp_path / "world", agents={}, relays=False) as world:
        relay = world.add_relay("relay", world.url, decrypting=False)
        liar = liar_of(world, stack, world.folder / "liar", random.Random(2), url=relay)
        address = stack.enter_context(in_thread(liar.app))
        wires = {
            name: stack.enter_context(Proxy(lambda: (address.host, address.port)))
            for name in ("runs", "stopped", "offline")
        }
        for name, wire in wires.items():
            world.add_agent(name, "required", wire.url)
        world.start_agents()
        world.report(3)
        world.check()
        members = world.members

        old = SigningKey.from_pem((world.deployment / "signing.pem").read_bytes())
        assert members["stopped"].node.stop() == 0
        wires["offline"].weather = BAD
        before = newest(world)
        with world.admin() as admin:
            admin.announce_signing_key()
        announced = newest(world)
        assert len(announced.signing_keys) == 2
        eventually(lambda: serial(members["runs"]) == announced.serial, "the announcement")
        with world.admin() as admin:
            admin.switch_signing_key(force=True)
            admin.renew()  # the newest alone does not lead there
        switched = newest(world)
        assert old.public not in switched.signing_keys
        eventually(lambda: serial(members["runs"]) == switched.serial, "the switch")
        world.report(3)
        eventually(lambda: world.arrived(members["runs"]), "receipts")
        assert {serial(members[n]) for n in ("stopped", "offline")} == {before.serial}
        assert members["stopped"].depth == members["offline"].depth == 3

        wires["offline"].weather = None
        members["stopped"].node.start()
        for name in ("stopped", "offline"):
            eventually(lambda n=name: serial(members[n]) == switched.serial, f"{name} to follow")

        # Switches that the present key has not signed: by the one that counts no more, by anybody.
        following = switched.serial + 1
        for key in (old, liar.key):
            for keys in ((key.public,), (*switched.signing_keys, key.public)):
                forged = dataclasses.replace(switched, serial=following, signing_keys=keys)
                text = jws.sign(forged.claims(), key, jws.MANIFEST, include_key=True)
                liar.manifest = text + "\n"
                told = liar.told["manifest"]
                eventually(lambda told=told: liar.told["manifest"] >= told + 6, "looks")
                assert {serial(member) for member in members.values()} == {switched.serial}
        for member in members.values():
            assert member.node.events("manifest ignored"), member.name
        liar.manifest = None
        world.report(3)
        world.restart_agents()  # the one that was cut off may be waiting still
        world.check()
        with world.admin() as admin:  # and the new key goes on signing
            admin.rotate(timeout=60)
        for member in members.values():
            eventually(lambda m=member: serial(m) == newest(world).serial, "the rotation")
        world.report(2)
        world.check()

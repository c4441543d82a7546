# SPDX-License-Identifier: Apache-2.0
"""``upseal capacity``: a fleet's arithmetic at inputs made by hand, and the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from test_cli import upseal

from upseal.cli import fleet_model, fleet_storms
from upseal.cli.fleet_costs import MEASURED, FleetCosts, HopCost
from upseal.cli.fleet_model import Fleet, first_full, hops
from upseal.fleet.agent.settings import SpoolLimits
from upseal.fleet.relay.settings import QueueLimits
from upseal.fleet.server.settings import Limits

MS = 1e-3
NOTHING = HopCost(0.0, 0.0, 0.0, 0.0)
COSTS = FleetCosts(
    where="by hand",
    agent=HopCost(1 * MS, 0.0, 0.0, 0.0),
    passing=HopCost(1 * MS, 0.0, 0.0, 0.0),
    decrypting=HopCost(2 * MS, 0.0, 0.0, 0.0),
    server_direct=HopCost(2 * MS, 0.01 * MS, 0.0, 0.0),
    server_passing=HopCost(1 * MS, 0.01 * MS, 0.0, 0.0),
    server_decrypting=HopCost(0.5 * MS, 0.01 * MS, 0.0, 0.0),
    session=0.2 * MS,
    wrap=0.1 * MS,
    unwrap=0.1 * MS,
    poll_server=0.0,
    poll_relay=0.0,
    sync=0.0,
    sync_byte=0.0,
    handshake=0.0,
    connection_bytes=10_000.0,
    stored_bytes=0.0,
)
FLEET = Fleet(clients=36_000, relays=(36,), reports_per_day=960.0, burst=10.0)
"""40 units a second; a session for each client and hour, which is 10 a second."""


def of(fleet, name, costs=COSTS):
    return next(hop for hop in hops(fleet, costs) if hop.name == name)


def test_the_server_pays_for_units_reports_and_sessions():
    assert (FLEET.in_unit, FLEET.units * 86400) == (10, pytest.approx(96))
    assert FLEET.sessions * 3600 == pytest.approx(1)
    server = of(FLEET, "server")
    assert server.steady == pytest.approx(40 * (1 + 10 * 0.01) * MS + 10 * 0.1 * MS)
    decrypting = of(replace(FLEET, decrypting=True), "server")
    assert decrypting.steady == pytest.approx(40 * 0.6 * MS + 36 / 3600 * 0.1 * MS)
    direct = of(replace(FLEET, relays=()), "server")
    assert direct.steady == pytest.approx(40 * 2.1 * MS + 10 * 0.1 * MS)


def test_each_relay_has_its_share_and_a_tier_above_has_more():
    fleet = replace(FLEET, relays=(36, 4), decrypting=True)
    lower, upper = of(fleet, "relay 1"), of(fleet, "relay 2")
    assert (lower.count, lower.clients, upper.count, upper.clients) == (36, 1000, 4, 9000)
    assert lower.steady == pytest.approx(40 / 36 * 2 * MS + 10 / 36 * 0.1 * MS)
    assert upper.steady == pytest.approx(40 / 4 * 1 * MS)  # it opens nothing
    assert lower.uses["connections"].value == 1000
    assert upper.uses["connections"].value == 9 * fleet_model.RELAY_CONNECTIONS


def test_looks_for_a_manifest_are_counted_at_the_parent():
    costs = replace(COSTS, poll_relay=1 * MS, poll_server=3 * MS)
    more = [
        of(FLEET, name, costs).steady - of(FLEET, name).steady for name in ("relay 1", "server")
    ]
    assert more == [pytest.approx(1000 / 60 * 1 * MS), pytest.approx(36 / 5 * 3 * MS)]


def test_a_client_always_has_a_connection_unless_it_looks_seldom():
    costs = replace(COSTS, handshake=5 * MS)
    direct = replace(FLEET, relays=())
    assert of(direct, "server", costs).uses["connections"].value == 36_000
    seldom = replace(direct, refresh=300.0)
    server = of(seldom, "server", costs)
    assert server.uses["connections"].value == pytest.approx(36_000 / 4)
    assert server.steady - of(seldom, "server").steady == pytest.approx(36_000 / 300 * 5 * MS)
    assert of(replace(seldom, tls=False), "server", costs).steady == of(seldom, "server").steady


def test_silence_is_as_long_as_the_http_server_allows():
    from upseal.fleet.http.protocol import Limits as HttpLimits

    assert HttpLimits().keep_alive == fleet_model.KEEP_ALIVE


@pytest.mark.parametrize(
    ("fleet", "costs", "hop", "what", "word"),
    [
        (replace(FLEET, relays=()), COSTS, "server", "connections", "relays between"),
        (replace(FLEET, relays=(10,)), COSTS, "relay 1", "connections", "more relays"),
        (replace(FLEET, reports_per_day=960_000.0), COSTS, "server", "cpu", "broker"),
        (
            replace(FLEET, reports_per_day=960_000.0),
            replace(COSTS, passing=HopCost(0.2, 0.0, 0.0, 0.0)),
            "relay 1",
            "cpu",
            "more relays",
        ),
        (
            replace(FLEET, reports_per_day=96_000.0, server=Limits(opener_sessions=9_999)),
            COSTS,
            "server",
            "cpu",
            "opener_sessions",
        ),
        (FLEET, replace(COSTS, poll_server=1.0), "server", "cpu", "more seldom"),
        (replace(FLEET, memory_gib=0.1), COSTS, "server", "memory", "memory"),
        (replace(FLEET, link_mbit=1.0), COSTS, "server", "network", "link"),
        (replace(FLEET, disk_gib=10.0), COSTS, "server", "disk", "keep_days"),
        (
            replace(FLEET, relays=(36, 1), relay_http=replace(FLEET.relay_http, connections=10**6)),
            replace(COSTS, unwrap=1.0, server_passing=NOTHING),
            "server",
            "new sessions of one relay",
            "unwrap_share",
        ),
        (
            FLEET,
            replace(COSTS, agent=HopCost(1e4, 0.0, 0.0, 0.0)),
            "client",
            "cpu",
            "fewer reports",
        ),
    ],
)
def test_what_is_full_first_is_named(fleet, costs, hop, what, word):
    found = first_full(fleet, costs)
    assert (found.hop, found.what) == (hop, what)
    assert word in found.change
    assert found.share == max(
        use.share for each in hops(fleet, costs) for use in each.uses.values()
    )
    # And with so many clients as it says, it is full indeed.
    if found.clients:
        many = replace(fleet, clients=found.clients)
        assert first_full(many, costs).share <= 1
        more = replace(fleet, clients=math.ceil(found.clients * 1.003) + 1)
        assert first_full(more, costs).share > 1
    else:
        fewest = replace(fleet, clients=max(1, *fleet.relays, 1))
        assert first_full(fewest, costs).share > 1


def test_every_bottleneck_has_words():
    for fleet in (replace(FLEET, relays=()), replace(FLEET, relays=(36, 4))):
        for hop in hops(fleet, COSTS):
            for what in hop.uses:
                assert (hop.name.split()[0], what) in fleet_model.CHANGES


def test_more_sessions_than_the_opener_remembers_are_met_at_every_unit():
    for sessions, met in ((36_000, 10), (35_999, 40)):
        fleet = replace(FLEET, server=Limits(opener_sessions=sessions))
        units = 40 * 1.1 * MS
        assert of(fleet, "server").steady - units == pytest.approx(met * 0.1 * MS)


# -- storms -------------------------------------------------------------------------


def test_a_restart_is_over_when_the_slowest_hop_is_through():
    fleet = replace(FLEET, reports_per_day=96_000.0)  # 4,000 units a second... of 1.1 ms: too many
    assert fleet_storms.restart(fleet, COSTS).seconds == math.inf
    fleet = replace(FLEET, reports_per_day=9_600.0)
    storm = fleet_storms.restart(fleet, COSTS, minutes=10)
    server = of(fleet, "server")
    work = 400 * 600 * 1.1 * MS + 36_000 * 0.1 * MS
    assert storm.queued == pytest.approx(400 * 600)
    assert storm.drains["server"] == pytest.approx(work / (1 - server.steady))
    assert (storm.by, storm.seconds) == ("server", storm.drains["server"])
    calm = fleet_storms.restart(FLEET, COSTS, minutes=10)
    assert (calm.by, calm.seconds) == (fleet_storms.BACKOFF, FLEET.forward.retry_most)


def test_queues_fill_up_then_spools_and_what_spools_hold_goes_in_large_units():
    fleet = replace(FLEET, queue=QueueLimits(max_bodies=1000))
    storm = fleet_storms.outage(fleet, COSTS, hours=1)
    assert storm.queue_full == pytest.approx(36_000 / 40)
    assert storm.queued == pytest.approx(36_000)
    assert storm.spooled == pytest.approx(36_000 / 90 * (3600 - 900))
    small = 36_000 * 1.1 * MS
    reports = 960 / 86400 * 2700
    large = 36_000 * (1 + reports * 0.01) * MS
    work = small + large + 36_000 * 0.1 * MS
    assert storm.drains["server"] == pytest.approx(work / (1 - of(fleet, "server").steady))
    assert storm.refused == 0


def test_a_spool_that_is_full_refuses_and_that_is_said():
    fleet = replace(FLEET, relays=(), spool=SpoolLimits(max_bytes=1 << 20), report_bytes=10_000.0)
    storm = fleet_storms.outage(fleet, COSTS, hours=10)
    filled = (1 << 20) / 10_020 / (960 / 86400)
    assert storm.spool_full == pytest.approx(filled)
    assert storm.refused == pytest.approx((36_000 - filled) * 960 / 86400 * 36_000)


def test_after_a_rotation_the_opener_meets_everybody_once():
    passing, decrypting = (
        fleet_storms.rotation(replace(FLEET, decrypting=way), COSTS) for way in (False, True)
    )
    spare = [1 - of(replace(FLEET, decrypting=way), "server").steady for way in (False, True)]
    assert passing.drains["server"] == pytest.approx(36_000 * 0.1 * MS / spare[0])
    assert decrypting.drains["server"] == pytest.approx(36 * 0.1 * MS / spare[1])
    assert passing.drains["relay 1"] == 0 < decrypting.drains["relay 1"]
    assert passing.seconds == pytest.approx(60 * 1.2 + 5 + 900)


# -- what it refuses, and the command -----------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"clients": 0},
        {"relays": (0,)},
        {"relays": (10, 20)},
        {"clients": 5, "relays": (6,)},
        {"relays": (), "decrypting": True},
        {"burst": 0.0},
        {"reports_per_day": 0.0},
        {"report_bytes": math.nan},
    ],
)
def test_a_fleet_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError):
        replace(FLEET, **wrong)


def test_the_committed_costs_are_measured_ones():
    assert "cores" in MEASURED.where
    for name in ("agent", "passing", "decrypting", "server_direct", "server_passing",
                 "server_decrypting"):  # fmt: skip
        cost = getattr(MEASURED, name)
        assert 1e-5 < cost.unit < 0.1
        assert 1e-7 < cost.of_unit(1, 1000) - cost.unit < 1e-3
    # One request of one unit is dearer than its part of a bundle, or of a batch.
    assert MEASURED.server_decrypting.unit < MEASURED.server_direct.unit
    for name in ("session", "wrap", "unwrap", "poll_server", "poll_relay", "handshake"):
        assert 1e-6 < getattr(MEASURED, name) < 0.01


def test_the_command_in_words():
    done = upseal("capacity", "--clients", "10000", "--relays", "0")
    assert not done.stderr
    text = done.stdout.decode()
    assert "full first: connections of the server, 122 %, which is more than there is" in text
    assert "full with 8,192 clients" in text
    assert "change: relays between clients and server" in text
    for word in ("restart", "rotation", "outage", MEASURED.where):
        assert word in text


def test_the_command_for_machines():
    done = upseal("capacity", "--json", "--clients", "200000", "--relays", "100,4", "--decrypting")
    facts = json.loads(done.stdout)
    assert [hop["name"] for hop in facts["hops"]] == ["client", "relay 1", "relay 2", "server"]
    assert [hop["count"] for hop in facts["hops"]] == [200_000, 100, 4, 1]
    assert facts["first"]["what"] in facts["hops"][1]["uses"]
    assert facts["hops"][3]["uses"]["disk"]["limit"] is None
    assert [storm["kind"] for storm in facts["storms"]] == ["restart", "rotation", "outage"]
    assert facts["storms"][1]["queue_full"] is None
    assert facts["costs"]["where"] == MEASURED.where


def test_it_measures_public_keys_here_if_it_is_to():
    done = upseal("capacity", "--json", "--suite", "p256")
    costs = json.loads(done.stdout)["costs"]
    assert costs["where"].startswith(MEASURED.where)
    assert "p256" in costs["where"]
    assert (costs["unwrap"], costs["session"]) != (MEASURED.unwrap, MEASURED.session)
    assert costs["server_direct"]["unit"] == MEASURED.server_direct.unit


@pytest.mark.parametrize(
    "wrong",
    [
        ["--relays", "10,20"],
        ["--relays", "0", "--decrypting"],
        ["--relays", "x"],
        ["--clients", "0"],
        ["--burst", "0"],
        ["--keep-days", "nan"],
    ],
)
def test_wrong_usage(wrong):
    done = upseal("capacity", *wrong, code=2)
    assert not done.stdout
    assert done.stderr.startswith(b"upseal: ")
    assert done.stderr.count(b"\n") == 1

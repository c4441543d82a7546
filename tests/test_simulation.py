# SPDX-License-Identifier: Apache-2.0
"""The simulated fleet: against queueing theory, itself, the arithmetic, and its own counts."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import simpy

from upseal.cli import fleet_storms
from upseal.cli.fleet_costs import FleetCosts, HopCost
from upseal.cli.fleet_model import Fleet
from upseal.fleet.agent import flights, pace
from upseal.fleet.agent.settings import Send, SpoolLimits
from upseal.fleet.relay.settings import Forward, QueueLimits
from upseal.fleet.server.settings import Limits

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MS = 1e-3
COSTS = FleetCosts(
    where="by hand",
    agent=HopCost(1 * MS, 0.0, 0.0, 0.0),
    passing=HopCost(1 * MS, 0.0, 0.0, 0.0),
    decrypting=HopCost(1 * MS, 0.0, 0.0, 0.0),
    server_direct=HopCost(2 * MS, 0.0, 0.0, 0.0),
    server_passing=HopCost(1 * MS, 0.0, 0.0, 0.0),
    server_decrypting=HopCost(0.5 * MS, 0.0, 0.0, 0.0),
    session=0.2 * MS,
    wrap=0.1 * MS,
    unwrap=0.1 * MS,
    poll_server=0.0,
    poll_relay=0.2 * MS,
    sync=2 * MS,
    sync_byte=0.0,
    handshake=0.0,
    connection_bytes=10_000.0,
)


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def of(name):
    return importlib.import_module(name)


def world(fleet, costs=COSTS, seed=1, cohorts=100, groups=4):
    return of("simulation_world").World(fleet, costs, seed, cohorts, groups)


def conserved(outcome):
    """Whatever was made is stored or waits with its agent: nothing else has become of it."""
    assert outcome.made > 0
    assert outcome.lost == pytest.approx(0, abs=1e-6)
    assert outcome.stored + outcome.queued == pytest.approx(outcome.made)


# -- known results of queueing theory -------------------------------------------------


@pytest.mark.parametrize("load", [0.5, 0.7])
@pytest.mark.parametrize("even", [True, False], ids=["M/D/1", "M/M/1"])
def test_waiting_for_an_interpreter_is_as_theory_says(load, even):
    env, rng, service = simpy.Environment(), random.Random(7), 1 * MS
    cpu, count = of("simulation").Cpu(env), 40_000

    def arrivals():
        for _ in range(count):
            yield env.timeout(rng.expovariate(load / service))
            env.process(cpu.work(service if even else rng.expovariate(1 / service)))

    env.process(arrivals())
    env.run()
    # Pollaczek-Khinchine: a load of rho waits rho/(1-rho) services, and half of it if all are even.
    expected = load / (1 - load) * service / (2 if even else 1)
    assert cpu.served == count
    assert cpu.waited / count == pytest.approx(expected, rel=0.08)
    assert cpu.used / env.now == pytest.approx(load, rel=0.03)


def test_hops_alike_do_as_much_more_and_what_is_busy_otherwise_less():
    for how, took in (({}, 10), ({"alike": 5}, 2), ({"busy": 0.5}, 20)):
        env = simpy.Environment()
        cpu = of("simulation").Cpu(env, **how)
        for _ in range(10):
            env.process(cpu.work(1.0))
        env.run()
        assert env.now == pytest.approx(took)


def test_interpreters_share_the_cores_of_a_machine():
    env = simpy.Environment()
    cores = simpy.Resource(env, 2)
    for _ in range(3):
        env.process(of("simulation").Cpu(env, cores).work(1.0))
    env.run()
    assert env.now == 2


def test_what_waits_is_written_in_one_group_and_a_group_has_a_limit():
    for most, groups in ((100, 2), (3, 4)):
        env = simpy.Environment()
        simulation = of("simulation")
        disk = simulation.Committer(env, simulation.Cpu(env), COSTS, most)
        done = [disk.write(1, 0.0) for _ in range(1)]
        env.run(until=COSTS.sync / 2)
        done += [disk.write(1, 0.0) for _ in range(9)]
        env.run(until=simpy.AllOf(env, done))
        assert disk.groups == groups


def test_an_opener_forgets_the_oldest_session_first():
    sessions = of("simulation").Sessions(20)
    assert [sessions.new((i, 0), 10) for i in (1, 2, 1, 3, 1, 2)] == [
        True, True, False, True, False, True,
    ]  # fmt: skip
    assert sessions.met == 40


# -- a fleet ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relays", "decrypting"), [((), False), ((4,), False), ((4,), True), ((6, 2), True)]
)
def test_what_is_made_is_stored_or_waits_through_a_restart(relays, decrypting):
    fleet = Fleet(clients=1000, relays=relays, decrypting=decrypting, reports_per_day=9600)
    outcome = world(fleet).run("restart", 120, 60, 900)
    conserved(outcome)
    assert outcome.drained is not None
    assert outcome.queued < 0.1 * outcome.made
    assert outcome.turned_away == {}  # queues and spools had room
    waited = max(waits for _, waits in outcome.backlog)
    assert waited > 4 * outcome.backlog[60][1]  # it was a storm indeed


@pytest.mark.parametrize("relays", [(), (4,), (6, 2)])
def test_at_the_worst_moment_agents_have_all_that_is_not_stored(relays):
    fleet = Fleet(clients=1000, relays=relays, reports_per_day=9600)
    outcome = world(fleet).run("restart", 120, 600, most=0)
    conserved(outcome)
    assert outcome.queued > 0.5 * outcome.made


def test_a_server_that_was_away_has_forgotten_its_sessions():
    fleet = Fleet(clients=200, relays=(), reports_per_day=9600, session_age=86400)
    one = world(fleet)
    outcome = one.run("restart", 300, 120, 600)
    assert outcome.drained is not None
    assert outcome.met == pytest.approx(2 * 200, rel=0.1)


def test_nothing_is_lost_in_an_outage_that_fills_queues_and_spools():
    fleet = Fleet(
        clients=200, relays=(2,), reports_per_day=96_000, queue=QueueLimits(max_bodies=1000),
        spool=SpoolLimits(max_bytes=2 << 20),
    )  # fmt: skip
    outcome = world(fleet, cohorts=20).run("restart", 60, 1800, 1200)
    conserved(outcome)
    assert outcome.turned_away["relay: parent-away"] > 0
    assert outcome.refused > 0
    assert outcome.drained is not None
    assert outcome.duplicates >= 0


def test_units_that_come_twice_are_stored_once():
    slow = replace(COSTS, server_direct=HopCost(30 * MS, 0.0, 0.0, 0.0), sync=1.0)
    fleet = Fleet(clients=100, relays=(), reports_per_day=9600)
    outcome = world(fleet, slow).run("restart", 300.5, 30, 600)
    assert outcome.duplicates > 0
    conserved(outcome)


def test_agents_without_a_connection_wait_for_ever_and_are_counted():
    fleet = Fleet(clients=1000, relays=(), server=Limits(connections=400))
    outcome = world(fleet).run("calm", 900, most=900)
    conserved(outcome)
    assert outcome.turned_away["server: connections"] > 0
    assert outcome.stored == pytest.approx(0.4 * outcome.made, rel=0.1)


def test_a_rotation_reaches_all_and_the_opener_meets_them_again():
    fleet = Fleet(clients=500, relays=(2,), session_age=86400)
    one = world(fleet)
    outcome = one.run("rotation", 1800, most=3000)
    conserved(outcome)
    assert outcome.last_rotated <= fleet_storms.rotation(fleet, COSTS).seconds + 10
    assert outcome.met == pytest.approx(2 * 500)


def test_a_decrypting_relay_spares_the_server_the_sessions():
    fleet = Fleet(clients=500, relays=(4, 2), decrypting=True)
    outcome = world(fleet, groups=2).run("calm", 1800, most=100)
    conserved(outcome)
    assert outcome.met == 4  # one of each relay that decrypts


def test_the_same_seed_gives_the_same_and_another_one_does_not():
    fleet = Fleet(clients=500, relays=(3,), reports_per_day=9600)
    first, again, other = (
        world(fleet, seed=seed).run("restart", 120, 60, 600).facts() for seed in (1, 1, 2)
    )
    assert first == again
    assert first["backlog"] != other["backlog"]


@pytest.mark.parametrize("relays", [(), (4,)])
def test_cohorts_say_the_same_as_single_agents(relays):
    """1,000 agents both ways; what differs is bounded by the grain and by the sampling."""
    fleet = Fleet(clients=1000, relays=relays, reports_per_day=4800)
    single, cohorts = (
        world(fleet, cohorts=many).run("restart", 180, 120, 1200) for many in (1000, 100)
    )
    for outcome in (single, cohorts):
        conserved(outcome)
        assert outcome.drained is not None
    assert cohorts.made / 300 == pytest.approx(single.made / 300, rel=0.25)
    usual = [outcome.backlog[170][1] for outcome in (single, cohorts)]
    assert usual[1] == pytest.approx(usual[0], rel=0.35)
    grain = 10 * 2 * MS
    reach = fleet.forward.retry_most if relays else 2 * 120  # full jitter doubles up to there
    assert abs(cohorts.drained - single.drained) <= grain + reach * 3 / 100**0.5
    assert cohorts.median == pytest.approx(single.median, abs=1.0)


def test_groups_of_relays_say_the_same_as_single_ones():
    costs = replace(COSTS, server_passing=HopCost(10 * MS, 0.0, 0.0, 0.0))
    fleet = Fleet(clients=1000, relays=(20,), reports_per_day=19_200)
    single, groups = (
        world(fleet, costs, groups=many).run("restart", 120, 300, 1200) for many in (20, 5)
    )
    for outcome in (single, groups):
        conserved(outcome)
        assert outcome.drained is not None
    assert groups.drained == pytest.approx(single.drained, rel=0.1)
    assert groups.median == pytest.approx(single.median, rel=0.1)


def test_a_storm_is_drained_as_fast_as_the_arithmetic_says():
    """Where capacity, and not the back-off, is what limits: one relay's worth of work."""
    costs = replace(COSTS, server_passing=HopCost(20 * MS, 0.0, 0.0, 0.0))
    fleet = Fleet(
        clients=1000, relays=(4,), reports_per_day=19_200,
        forward=Forward(retry=0.5, retry_most=1.0),
    )  # fmt: skip
    storm = fleet_storms.restart(fleet, costs, minutes=5)
    assert storm.by == "server"
    outcome = world(fleet, costs).run("restart", 120, 300, 4 * storm.seconds)
    conserved(outcome)
    assert outcome.drained == pytest.approx(storm.seconds, rel=0.15)


def test_pauses_are_those_of_the_product():
    """Its own objects decide: with other settings, other pauses; and its clock is put back."""
    for retry, most in ((1.0, 300.0), (7.0, 7.0)):
        fleet = Fleet(
            clients=100, relays=(), reports_per_day=9600,
            agent=Send(retry=retry, retry_most=most),
        )  # fmt: skip
        one = world(fleet)
        one.run("restart", 60, 600, 300)
        pauses = [pause for cohort in one.cohorts for _, pause in cohort.holds]
        assert len(pauses) > 100
        assert max(pauses) <= most
        firsts = [cohort.holds[0][1] for cohort in one.cohorts if cohort.holds]
        assert max(firsts) <= retry
        assert sum(firsts) / len(firsts) == pytest.approx(retry / 2, rel=0.25)
    import time

    assert pace.time is flights.time is time
    assert isinstance(flights._random, random.SystemRandom)


# -- beside what was measured ----------------------------------------------------------


def test_what_was_measured_is_read_from_the_page_and_fitted():
    fleet_fit = of("fleet_fit")
    runs = fleet_fit.read(BENCHMARKS.parent / "docs/capacity.md")
    rows = [row for run in runs for row in run.rows]
    assert {(row.agents, row.way, row.unit) for row in rows} >= {
        (n, way, unit)
        for n, unit in ((1, 50), (100, 50), (2000, 50), (1, 1000), (100, 1000))
        for way in fleet_fit.WAYS
    }
    cost = fleet_fit.hop(runs, "direct", "server")
    for row in rows:
        if (row.way, row.agents) == ("direct", 100):
            assert cost.of_unit(row.unit, row.size) == pytest.approx(row.cpu["server"], rel=0.25)


def test_a_fit_finds_the_costs_that_rows_were_made_of():
    fleet_fit = of("fleet_fit")
    cost = HopCost(2 * MS, 3e-6, 4e-9, 0.5 * MS)

    def run(unit, size):
        used = {"server": cost.of_unit(unit, size)}
        row = fleet_fit.Row(100, "direct", unit, size, 256, 1.0, used, 0.1, 0.2)
        first = fleet_fit.First("direct", 100, unit, {"server": used["server"] + cost.first})
        return fleet_fit.Run([row], [first], "here", None)

    found = fleet_fit.hop([run(50, 1000), run(1000, 1000), run(50, 8000)], "direct", "server")
    for name in ("unit", "report", "byte", "first"):
        assert getattr(found, name) == pytest.approx(getattr(cost, name), rel=1e-6)
    with pytest.raises(ValueError):
        fleet_fit.hop([run(50, 1000)], "direct", "server")


def test_a_closed_loop_is_simulated_and_counted_alike():
    """One interpreter that is always busy: the rate can only be what it can do."""
    simulate, fit = of("simulate_fleet"), of("fleet_fit")
    row = fit.Row(100, "direct", 50, 1000, 256, 1.0, {}, 0.1, 0.2)
    counted, bound = simulate.counted(row, COSTS)
    assert (counted, bound) == (pytest.approx(50 / (2 * MS)), "the server's core")
    rate, median, p99 = simulate.simulated(row, COSTS)
    assert rate == pytest.approx(counted, rel=0.05)
    # Little's law: a hundred under way, and so many a second.
    assert median == pytest.approx(100 / (rate / 50), rel=0.1)
    assert p99 >= median
    alone = fit.Row(1, "decrypting relay", 50, 1000, 256, 1.0, {}, 0.1, 0.2)
    rate, median, _ = simulate.simulated(alone, COSTS)
    assert 0.2 < median < 0.25  # the relay's window
    assert rate == pytest.approx(simulate.counted(alone, COSTS)[0], rel=0.1)


def run(*options):
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "simulate_fleet.py"), *options],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


def test_the_script_simulates_a_fleet():
    done = run(
        "storms", "--clients=300", "--relays=2", "--cohorts=30", "--away-hours=0.2", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"calm", "restart", "rotation", "outage"}
    for kind in found.values():
        assert kind["simulated"]["lost"] == pytest.approx(0, abs=1e-6)
    assert found["outage"]["simulated"]["drained"] is not None


def test_the_script_compares_with_what_is_on_the_page():
    done = run("compare", "--fleet", str(BENCHMARKS.parent / "docs/capacity.md"))
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "%" in line and "drift" not in line]
    assert len(rows) >= 15

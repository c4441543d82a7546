# SPDX-License-Identifier: Apache-2.0
"""``upseal server run`` as a real process: signals, kill -9, a full disk, logs; PostgreSQL."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

import pytest
from fleet_server_support import PATIENCE, Site, clear, sealed, until

from upseal.fleet.http.client import Unreachable
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import State
from upseal.fleet.policy import Reason
from upseal.fleet.server.store import alarms, audit, clients, units
from upseal.fleet.units import Status


@contextmanager
def process(site, *options, log=None):
    """The server; killed at the end if it still runs."""
    (site.folder / "address").unlink(missing_ok=True)
    command = [sys.executable, "-m", "upseal", "server", "run", "-d", str(site.folder)]
    with open(log or os.devnull, "ab") as errors:
        child = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", *options], stderr=errors, stdout=errors
        )
        try:
            address = site.folder / "address"
            until(lambda: child.poll() is not None or address.exists(), "the address")
            assert child.poll() is None
            site.url = f"http://{address.read_text().strip()}"
            yield child
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "deployment")
    made.enable()
    return made


def stored(site, sender):
    with site.store() as store:
        return [report.body for report in units.read(store, sender.agent)]


def test_it_ends_cleanly_and_logs_no_secrets(site, tmp_path):
    """SIGTERM comes while requests run: each gets its answer or none, and no receipt is a lie."""
    log = tmp_path / "log"
    secret = b"plaintext-that-nobody-may-log"
    with process(site, "--log-level", "debug", log=log) as child:
        agents = [site.enrol(f"web-{i}") for i in range(3)]
        agents[0].send(clear(agents[0].unit(secret)))
        with suppress(Problem):
            agents[0].send(clear(agents[0].unit(secret))[:-2])
        second = subprocess.run(
            [sys.executable, "-m", "upseal", "server", "run", "-d", site.folder],
            capture_output=True, timeout=60,
        )  # fmt: skip
        assert second.returncode == 4  # as of a second agent or relay
        assert b"another process runs the server" in second.stderr
        assert b"stop it first" in second.stderr
        assert b"deployment.toml" not in second.stderr, "there is nothing to mend in it"
        done, running = [], threading.Event()

        def report(agent):
            with suppress(Unreachable, Problem):
                for i in range(1000):
                    unit = agent.unit(secret + b"%d" % i)
                    result = agent.send(sealed(site, unit))[0]
                    done.append((agent, unit, agent.statuses(result)[unit.digest]))
                    running.set()

        threads = [threading.Thread(target=report, args=(a,)) for a in agents]
        for thread in threads:
            thread.start()
        assert running.wait(PATIENCE)
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
        for thread in threads:
            thread.join()
    assert not (site.folder / "address").exists()
    assert {status for _, _, status in done} == {Status.STORED}
    for agent in agents:
        kept = set(stored(site, agent))
        assert {unit.records[0] for who, unit, _ in done if who is agent} <= kept
    text = log.read_bytes()
    events = [json.loads(line)["event"] for line in text.splitlines()]
    assert {"server ready", "serving", "enrolled", "stopping", "stopped"} <= set(events)
    for never in (secret, agents[0].credential.encode(), b"PRIVATE", b"Upseal ey"):
        assert never not in text


def test_kill_9_loses_nothing_that_has_a_receipt(site):
    """All that was receipted is there, and what is sent again is there once."""
    chance = random.Random(3)
    made, receipted = [], set()
    agent = None
    for least in (4, 8):  # receipts before the kill: a slow machine must have some to lose
        with process(site) as child:
            if agent is None:
                agent = site.enrol()
            killer = threading.Timer(chance.uniform(0.0, 0.3), child.kill)
            with suppress(Unreachable):
                while True:
                    if killer.ident is None and len(receipted) >= least:
                        killer.start()
                    waiting = [unit for unit in made if unit.digest not in receipted][:3]
                    if not waiting:
                        made.append(agent.unit(b"%d" % len(made), b"+" * chance.randrange(3000)))
                        continue
                    result = agent.send(sealed(site, *waiting))[0]
                    answer = agent.statuses(result)
                    assert set(answer.values()) <= {Status.STORED, Status.DUPLICATE}
                    receipted |= answer.keys()
            killer.join()
    with process(site) as child:
        rest = [unit for unit in made if unit.digest not in receipted]
        if rest:
            agent.send(sealed(site, *rest))
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
    found = stored(site, agent)
    assert len(receipted) > 5
    assert found == [record for unit in made for record in unit.records]


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no prlimit")
def test_a_full_disk_is_said_and_passes(site):
    with process(site) as child:
        agent = site.enrol()
        agent.send(sealed(site, agent.unit(b"before")))
        before = resource.prlimit(child.pid, resource.RLIMIT_FSIZE)
        small = (site.folder / "server.db-wal").stat().st_size + 10_000
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (small, before[1]))
        unit = agent.unit(os.urandom(200_000))
        for _ in range(2):
            with pytest.raises(Problem) as caught:
                agent.send(sealed(site, unit))
            assert (caught.value.name, caught.value.status) == ("full", 503)
            assert caught.value.retry_after
        assert site.get("/healthz").status == 200
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, before)
        answer = agent.statuses(agent.send(sealed(site, unit))[0])
        assert answer == {unit.digest: Status.STORED}
        assert len(stored(site, agent)) == 2


def test_a_server_on_postgresql(tmp_path, postgresql, monkeypatch):
    from upseal.fleet.server import upkeep

    monkeypatch.setattr(upkeep, "EVERY", 0.05)
    site = Site(tmp_path / "deployment", database=postgresql.database())
    with site.running():
        with site.admin() as deployment:
            deployment.generate_key()
            deployment.ready(timeout=PATIENCE)
            site.wait_for(deployment.enable().manifest.serial)
        agents = [site.enrol(f"a{i}") for i in range(3)]
        results = []

        def report(agent):
            for i in range(5):
                body = sealed(site, agent.unit(b"%d" % i, b"\0\xff"), agent.unit(b"x"))
                for _ in range(2):
                    results.extend(agent.statuses(agent.send(body)[0]).values())

        threads = [threading.Thread(target=report, args=(a,)) for a in agents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results.count(Status.STORED) == results.count(Status.DUPLICATE) == 30
        first = agents[0]
        place = {"sequence": 1, "epoch": first.epoch}
        other = first.unit(b"other", reason=Reason.LEVEL_NONE, **place)
        assert first.statuses(first.send(clear(other))[0]) == {other.digest: Status.CONTRADICTION}
        # The database goes away under the server's feet: a request may fail, and the next will not.
        with site.store() as store, store.writing() as db:
            db.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        late = first.unit(b"after")

        def taken():
            with suppress(Problem):
                return first.statuses(first.send(sealed(site, late))[0])[late.digest].held

        assert until(taken)
        until(lambda: site.get("/readyz").status == 200)
        (path,) = (site.folder / "keys").iterdir()
        path.rename(site.folder / "away.pem")
        until(lambda: site.metrics()["upseal_server_keys_missing"] == 1)
        late = sealed(site, first.unit(b"late"))
        assert first.send(late)[0].state is State.PENDING
        (site.folder / "away.pem").rename(path)
        until(lambda: b"late" in stored(site, first))
        with site.store() as store, store.reading() as db:
            (found,) = clients.listing(db, first.agent)
            assert (found.units, found.missing, found.contradictions) == (12, 0, 1)
            assert [a.kind for a in alarms.listing(db)] == ["contradiction"]
            assert audit.verify(db)[0] >= 3
        assert stored(site, agents[1])[:3] == [b"0", b"\0\xff", b"x"]

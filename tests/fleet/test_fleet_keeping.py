# SPDX-License-Identifier: Apache-2.0
"""Old reports go after `keep_days`, a little at a time; alarms are acknowledged; gaps are shown."""

import json
import sqlite3
from contextlib import closing

import pytest
from fleet_page_support import add_client
from fleet_server_support import Site, clear, now_ms, until
from sqlalchemy import event, insert

from upseal.cli import main
from upseal.cli.server_queries import when
from upseal.fleet.policy import Reason
from upseal.fleet.server import retention as rounds
from upseal.fleet.server import tables
from upseal.fleet.server.retention import Retention
from upseal.fleet.server.settings import read_settings
from upseal.fleet.server.store import Store, alarms, audit, clients, deadletters, retention, units
from upseal.fleet.settings import SettingsError
from upseal.fleet.units import Status

A = b"A" * 16
DAY = 86_400_000


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request, tmp_path_factory):
    if request.param == "sqlite":
        yield str(tmp_path_factory.mktemp("store") / "server.db")
    else:
        yield request.getfixturevalue("postgresql").database()


@pytest.fixture(scope="module")
def made(url):
    with Store.create(url, bytes(16)) as store:
        yield store


@pytest.fixture
def store(made):
    """Empty of units."""
    with made.writing() as db:
        for name in ("reports", "units"):
            db.exec_driver_sql(f"DELETE FROM {name}")
    return made


def unit(sequence, age_days, records=(b"one", b"two"), epoch=b"e" * 16):
    now = now_ms()
    return units.NewUnit(
        agent=A, epoch=epoch, sequence=sequence, stated=now, level=2, reason=0,
        digest=b"d%031d" % sequence, records=records, suite=1, key_id=b"k" * 8,
        received=now - age_days * DAY,
    )  # fmt: skip


def put(store, *new):
    with store.writing() as db:
        return units.add(db, new)


def bodies(store):
    return [report.body for report in units.read(store)]


def acts(store):
    with store.reading() as db:
        audit.verify(db)
        return [e.details for e in audit.entries(db) if e.act == "drop-old-reports"]


def turn(store, days):
    """All that a server's upkeep does about it, in one go."""
    kept = Retention(store, days)
    kept.round()
    while kept._next is not None:
        kept.round()


def test_reports_go_after_their_days_and_not_before(store):
    now = now_ms()
    put(store, unit(1, 40, (b"old", b"older")), unit(2, 31, ()), unit(3, 31, (b"same day",)))
    put(store, unit(4, 29, (b"young",)), unit(5, 0, (b"new",)))
    before = len(acts(store))
    turn(store, 0)  # 0: for ever
    assert len(bodies(store)) == 5
    turn(store, 30)
    assert bodies(store) == [b"young", b"new"]
    (act,) = acts(store)[before:]
    assert (act["units"], act["reports"]) == (2, 3)
    assert abs(act["received_before"] - (now - 30 * DAY)) < 600_000
    turn(store, 30)  # nothing is left to do, and nothing is written about it
    assert len(acts(store)) == before + 1
    with store.reading() as db:
        assert units.totals(db) == (5, 5), "what was there once is still known"


def test_what_is_gone_is_not_stored_again(store):
    """Whoever has kept the body of a unit must not be able to bring it back."""
    old = unit(1, 50)
    assert put(store, old) == [Status.STORED]
    turn(store, 30)
    assert bodies(store) == []
    assert put(store, unit(1, 0)) == [Status.DUPLICATE]
    assert put(store, unit(1, 0, (b"other",))) == [Status.CONTRADICTION]
    assert bodies(store) == []


def test_it_goes_on_where_a_killed_process_stopped(store, monkeypatch):
    monkeypatch.setattr(retention, "_REPORTS", 10)
    monkeypatch.setattr(retention, "_UNITS", 7)
    monkeypatch.setattr(rounds, "_TURN", 0.0)
    put(store, *(unit(i, 40, (b"r%d" % i,) * 3) for i in range(1, 40)))
    kept = Retention(store, 30)
    kept._look()
    for _ in range(3):
        with store.writing() as db:
            kept._next = retention.drop(db, kept._next, kept._before)
    left = len(bodies(store))
    assert 0 < left < 39 * 3
    assert left % 3 == 0, "whole units"
    turn(store, 30)
    assert bodies(store) == []
    assert [act["reports"] for act in acts(store)[-2:]] == [39 * 3, left]


def test_a_clock_that_was_set_back_keeps_nothing_for_ever(store):
    """Some came in 'later' by a clock that was ahead: those before and behind them go in time."""
    put(store, unit(1, 40, (b"a",)), unit(2, -20, (b"ahead",)), unit(3, 35, (b"b",)))
    turn(store, 30)
    assert bodies(store) == [b"ahead"]
    put(store, unit(4, 31, (b"c",)))
    turn(store, 30)
    assert bodies(store) == [b"ahead"]


def test_what_is_kept_is_not_looked_through_while_writers_wait(store):
    """All units that stay come after those that go: each turn would read all of them."""
    if store.postgresql:
        pytest.skip("SQLite counts its steps")
    put(store, *(unit(i, 9) for i in range(5)))
    put(store, *(unit(i, 0, (b"new",)) for i in range(5, 5005)))
    before = now_ms() - 8 * DAY
    with store.reading() as db:
        found = retention.due(db, before)
    steps = []
    with store.writing() as db:
        raw = db.connection.dbapi_connection
        raw.set_progress_handler(lambda: steps.append(1) and None, 100)
        following = retention.drop(db, found.first, before, found.last)
        assert retention.drop(db, following, before, found.last) is None
        raw.set_progress_handler(None, 0)
    assert sum(1 for body in bodies(store) if body == b"new") == len(bodies(store)) == 5000
    assert len(steps) < 20


def test_one_large_unit_is_one_transaction(store):
    now = now_ms()
    put(store, unit(1, 40, tuple(b"%d" % i for i in range(6000))), unit(2, 40))
    with store.reading() as db:
        due = retention.due(db, now)
    with store.writing() as db:
        following = retention.drop(db, due.first, now)
    assert bodies(store) == [b"one", b"two"]
    with store.writing() as db:
        assert retention.drop(db, following, now) is not None
        assert retention.drop(db, following + 2, now) is None
        assert retention.due(db, now) is None


def test_a_running_server_does_it(tmp_path, monkeypatch):
    site = Site(tmp_path / "site")
    site.configure("[server]\nkeep_days = 7")
    with site.running():
        agent = site.enrol("web-1")
        agent.send(clear(agent.unit(b"old", reason=Reason.NO_CERTIFICATE)))
        agent.send(clear(agent.unit(b"new", reason=Reason.NO_CERTIFICATE)))
    with site.store() as store, store.writing() as db:
        db.exec_driver_sql(f"UPDATE units SET received = {now_ms() - 8 * DAY} WHERE sequence = 1")
    with site.running(), site.store() as store:
        until(lambda: bodies(store) == [b"new"])
        assert agent.send(clear(agent.unit(b"more", reason=Reason.NO_CERTIFICATE)))
        assert acts(store)[0]["reports"] == 1
    with site.admin() as admin:
        rows = [row for row in admin.audit(verify=True)["entries"] if row["actor"] == "server"]
        assert [row["act"] for row in rows] == ["drop-old-reports"]


@pytest.mark.parametrize(("said", "good"), [("0", True), ("3650", True), ("-1", False),
                                            ('"7"', False), ("1.5", False)])  # fmt: skip
def test_what_keep_days_may_be(tmp_path, said, good):
    site = Site(tmp_path / "site")
    with open(site.folder / "deployment.toml", "a") as file:
        file.write(f"\n[server]\nkeep_days = {said}\n")
    if good:
        assert read_settings(site.folder).limits.keep_days == int(said)
        return
    with pytest.raises(SettingsError, match="keep_days"):
        read_settings(site.folder)


# -- what an administrator sees --------------------------------------------------------------------


@pytest.fixture
def admin(capsys, monkeypatch):
    """Runs one act; gives its output, parsed if it is an object."""
    monkeypatch.delenv("UPSEAL_DEPLOYMENT", raising=False)

    def call(site, *args, code=0):
        capsys.readouterr()
        assert main(["admin", *map(str, args), "-d", str(site.folder)]) == code
        out, err = capsys.readouterr()
        if code:
            return err
        return json.loads(out) if "--json" in args else out

    return call


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site") / "site")
    with site.running():
        yield site


def sound(site, kind, subject=b"", times=1):
    with site.store() as store, store.writing() as db:
        alarms.sound(db, kind, subject, {"n": 1}, now_ms(), times)


def listed(admin, site, *args):
    return admin(site, "alarms", "--json", *args)["alarms"]


def test_alarms_are_acknowledged_and_come_back(shared, admin):
    site, began = shared, now_ms()
    agent = site.enrol("web-7")
    sound(site, "bad-signature", agent.agent, 3)
    sound(site, "cannot-open", agent.hop_id)
    sound(site, "dead-letters-full")
    found = {alarm["kind"]: alarm for alarm in listed(admin, site)}
    assert found["bad-signature"]["client"] == found["cannot-open"]["client"] == "web-7"
    assert found["dead-letters-full"]["subject"] is None
    assert "web-7" in admin(site, "alarms")
    one = found["bad-signature"]["id"]

    assert "1 alarm(s)" in admin(site, "alarms", "--acknowledge", one, "--dry-run")
    assert len(listed(admin, site)) == 3
    done = admin(site, "alarms", "--acknowledge", one, "--json")
    assert (done["changed"], done["acknowledged"]) == (True, [one])
    assert {a["kind"] for a in listed(admin, site)} == {"cannot-open", "dead-letters-full"}
    everything = {a["kind"]: a for a in listed(admin, site, "--acknowledged")}
    assert everything["bad-signature"]["acknowledged"] >= began
    assert everything["bad-signature"]["acknowledged_by"]
    assert everything["cannot-open"]["acknowledged"] is None
    status = admin(site, "status", "--json")
    assert {alarm["kind"] for alarm in status["alarms"]} == {"cannot-open", "dead-letters-full"}
    assert "by" in admin(site, "alarms", "--acknowledged")

    sound(site, "bad-signature", agent.agent)  # the same, within the hour: it counts up
    assert one in [alarm["id"] for alarm in listed(admin, site)]
    done = admin(site, "alarms", "--all", "--json")
    assert len(done["acknowledged"]) == 3
    assert listed(admin, site) == []
    assert admin(site, "alarms") == "no alarms\n"
    assert not admin(site, "alarms", "--all", "--json")["changed"]

    with site.admin() as deployment:
        rows = deployment.audit(verify=True)["entries"]
        told = [row["details"] for row in rows if row["act"] == "acknowledge"]
        assert [(row["alarms"], row["count"]) for row in told] == [
            ([one], 1), (sorted(a["id"] for a in everything.values()), 3),
        ]  # fmt: skip
        assert all(row["actor"] != "server" for row in rows if row["act"] == "acknowledge")


def test_alarms_that_cannot_be_acknowledged(shared, admin):
    before = listed(admin, shared, "--acknowledged")
    assert "no alarm 99999" in admin(shared, "alarms", "--acknowledge", 99999, code=6)
    assert "--dry-run" in admin(shared, "alarms", "--dry-run", code=2)
    for args in (("--acknowledge", "x"), ("--acknowledge", "0"), ("--all", "--acknowledge", "1")):
        admin(shared, "alarms", *args, code=2)
    assert listed(admin, shared, "--acknowledged") == before


def test_a_database_from_before_gets_the_table(tmp_path, admin):
    site = Site(tmp_path / "site")
    with closing(sqlite3.connect(site.folder / "server.db")) as db:
        db.execute("DROP TABLE alarm_acknowledgements")
        db.commit()
    sound(site, "bad-statement")
    assert len(admin(site, "alarms", "--all", "--json")["acknowledged"]) == 1
    assert listed(admin, site) == []


def test_units_that_a_relay_dropped_are_shown(shared, admin):
    """Sequences say that they were made; what is on its way arrives, and the gap closes."""
    site = shared
    agent, whole = site.enrol("gappy"), site.enrol("whole")
    first, second, third, fourth = (
        agent.unit(b"%d" % i, reason=Reason.NO_CERTIFICATE) for i in range(4)
    )
    agent.send(clear(first, fourth))
    whole.send(clear(whole.unit(b"x", reason=Reason.NO_CERTIFICATE)))

    def gaps(*args):
        found = admin(site, "clients", "--json", *args)["clients"]
        return {client["name"]: client["missing_units"] for client in found}

    assert gaps()["gappy"] == 2
    assert gaps()["whole"] == 0
    assert gaps("--filter", "gaps") == {"gappy": 2}
    shown = admin(site, "clients", "--filter", "gaps").splitlines()
    assert "gaps" in shown[0]
    assert len(shown) == 2
    agent.send(clear(second))
    assert gaps("--filter", "gaps") == {"gappy": 1}
    agent.send(clear(third))
    assert gaps("--filter", "gaps") == {}


def test_an_agent_that_counts_to_the_end_hides_nobody(store):
    """Gaps of many epochs come to more than a database counts to."""
    with store.writing() as db:
        agent, other = add_client(db, "liar"), add_client(db, "honest")
        for epoch, end in ((b"1", 2**63 - 1), (b"2", 2**63 - 2), (b"3", 2**63 - 2)):
            for who, highest in ((agent, end), (other, 5)):
                row = {"agent": who, "epoch": epoch * 16, "beacon": False, "last_seen": 1}
                row |= {"lowest": 0, "highest": highest, "stored": 2}
                db.execute(insert(tables.streams).values(row))
    with store.reading() as db:
        found = clients.missing(db, [agent, other])
        assert found[other] == 12 and found[agent] > 2**64
        assert {client.name: client.missing for client in clients.listing(db)}["honest"] == 12
        assert set(db.execute(clients.with_gaps()).scalars()) == {agent, other}


def test_counting_dead_letters_reads_none_of_them(store):
    """They may be of a GiB in all, are counted every few seconds, and again for each new one."""
    if store.postgresql:
        pytest.skip("SQLite says which pages it reads")
    seen = []

    def note(connection, cursor, statement, parameters, context, many):
        if "dead_letters" in statement:
            plan = connection.connection.dbapi_connection.execute(
                f"EXPLAIN QUERY PLAN {statement}", parameters
            )
            seen.extend(row[3] for row in plan if "dead_letters" in row[3])

    with store.reading() as db:
        event.listen(db, "before_cursor_execute", note)
        assert deadletters.usage(db) == (0, 0)
        assert deadletters.by_reason(db) == {}
    with store.writing() as db:
        event.listen(db, "before_cursor_execute", note)
        deadletters.put(
            db, id=bytes(32), body=b"x", hop=bytes(16), role="agent", received=now_ms(),
            reason=deadletters.MISSING_KEY, key_id=None, total_quota=9, hop_quota=9,
        )  # fmt: skip
        deadletters.drop(db)
    sums = [plan for plan in seen if "COVERING INDEX dead_letters_by_hop" in plan]
    assert len(sums) >= 3, seen


def test_times_that_are_none_are_shown_as_they_are():
    assert when(0) == "1970-01-01 00:00:00Z"
    assert when(2**63 - 1) == str(2**63 - 1)

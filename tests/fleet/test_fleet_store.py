# SPDX-License-Identifier: Apache-2.0
"""The server's store, on SQLite and on a real PostgreSQL: nothing twice, nothing lost, a chain."""

import hashlib
import os
import socket
import sqlite3
import subprocess
import sys
import threading

import pytest
import sqlalchemy
from sqlalchemy.exc import IntegrityError

from upseal.fleet.policy import Level, Reason
from upseal.fleet.server import tables
from upseal.fleet.server.store import (
    Store,
    StoreError,
    activity,
    alarms,
    audit,
    base,
    challenges,
    clients,
    deadletters,
    get_meta,
    keys,
    manifests,
    relays,
    tokens,
    units,
)
from upseal.fleet.server.store.tokens import Redeemed
from upseal.fleet.units import Status

DEPLOYMENT = bytes(range(16))
A, B = b"A" * 16, b"B" * 16
EPOCH = b"e" * 16
KEY = b"k" * 8
HOUR = 3_600_000
NOW = 1_800_000_000_000


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return str(tmp_path / "server.db")
    return request.getfixturevalue("postgresql").database()


@pytest.fixture
def fresh(url):
    """A store of its own, for tests that change more than rows."""
    with Store.create(url, DEPLOYMENT) as made:
        yield made


@pytest.fixture(scope="module")
def shared(postgresql):
    with Store.create(postgresql.database(), DEPLOYMENT) as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    """An empty store; that of PostgreSQL is emptied for each test, which is quicker."""
    if request.param == "sqlite":
        with Store.create(tmp_path / "server.db", DEPLOYMENT) as made:
            yield made
        return
    made = request.getfixturevalue("shared")
    with made.writing() as db:
        db.exec_driver_sql("SET LOCAL session_replication_role = replica")  # no triggers
        names = [t.name for t in tables.metadata.sorted_tables if t is not tables.meta]
        db.exec_driver_sql("; ".join(f"DELETE FROM {name}" for name in names))
        db.execute(tables.counters.insert().values(name="reports", value=0))
    yield made


def unit(agent=A, sequence=0, records=(b"one",), epoch=EPOCH, received=NOW, **other):
    facts = {"level": Level.REQUIRED.number, "reason": int(Reason.SEALED), "suite": 0x20,
             "key_id": KEY, "stated": NOW - 5, **other}  # fmt: skip
    digest = hashlib.sha256(b"".join(records)).digest()
    return units.NewUnit(
        agent=agent, epoch=epoch, sequence=sequence, digest=digest, records=list(records),
        received=received, **facts,
    )  # fmt: skip


def put(store, *new, now=NOW + 100):
    with store.writing() as db:
        results = units.add(db, new)
        activity.note_units(db, new, results, now)
    return results


def enrol(store, agent, name, role="agent"):
    hop = hashlib.sha256(agent).digest()[:16]
    with store.writing() as db:
        clients.add(db, clients.Agent(agent, name, b"der", hop, role, "credential", NOW), b"spki")
    return hop


def client(store, agent=A):
    with store.reading() as db:
        (found,) = clients.listing(db, agent)
    return found


# -- units and reports ------------------------------------------------------------------


def test_units_are_stored_once(store):
    first, second = unit(records=[b"a", b"", b"c" * 3000]), unit(sequence=1)
    assert put(store, first, second) == [Status.STORED] * 2
    assert put(store, second, first) == [Status.DUPLICATE] * 2
    assert [r.body for r in units.read(store)] == [b"a", b"", b"c" * 3000, b"one"]
    with store.reading() as db:
        assert units.totals(db) == (2, 4)


def test_a_duplicate_is_one_whatever_its_new_statement_says(store):
    put(store, unit())
    again = unit(stated=NOW + 99, level=0, reason=int(Reason.LEVEL_NONE), key_id=None, suite=None)
    assert put(store, again) == [Status.DUPLICATE]
    (report,) = units.read(store)
    assert (report.level, report.key_id) == (Level.REQUIRED.number, KEY)


def test_contradictions_are_seen_and_the_first_stays(store):
    put(store, unit(records=[b"genuine"]))
    other_records, other_count = unit(records=[b"other"]), unit(records=[b"gen", b"uine"])
    assert other_count.digest == unit(records=[b"genuine"]).digest  # the count alone differs
    assert put(store, other_records, other_count) == [Status.CONTRADICTION] * 2
    assert [r.body for r in units.read(store)] == [b"genuine"]


def test_units_of_one_call_are_compared_with_each_other(store):
    same, other = unit(), unit(records=[b"two"])
    assert put(store, same, same, other, unit(B)) == [
        Status.STORED, Status.DUPLICATE, Status.CONTRADICTION, Status.STORED,
    ]  # fmt: skip
    assert len(list(units.read(store))) == 2


def test_a_failed_transaction_leaves_nothing(store):
    with pytest.raises(ZeroDivisionError), store.writing() as db:
        units.add(db, [unit(records=[b"x"] * 50)])
        1 / 0  # noqa: B018
    assert list(units.read(store)) == []
    assert put(store, unit()) == [Status.STORED]


def test_reading_by_client_time_and_page(store, monkeypatch):
    monkeypatch.setattr(units, "_PAGE", 4)
    enrol(store, A, "alpha")
    for i in range(6):
        put(store, unit(A, i, [b"a%d" % i, b"+"], received=NOW + i), unit(B, i, [b"b%d" % i]))
    found = list(units.read(store, agent=A))
    assert [r.body for r in found] == [x for i in range(6) for x in (b"a%d" % i, b"+")]
    assert {r.name for r in found} == {"alpha"}
    assert [r.position for r in found[:4]] == [0, 1, 0, 1]
    assert [r.sequence for r in units.read(store, agent=A, limit=5)] == [0, 0, 1, 1, 2]
    late = units.read(store, since=NOW + 2, until=NOW + 4)
    assert [r.body for r in late] == [b"a2", b"+", b"a3", b"+"]
    rest = list(units.read(store, after=found[3].id))
    assert [r.id for r in rest] == sorted(r.id for r in rest)
    assert len(rest) == 18 - 5
    assert list(units.read(store, limit=0)) == []


def test_many_writers_lose_and_double_nothing(url):
    with Store.create(url, DEPLOYMENT) as store:
        results = []

        def write(agent):
            for i in range(12):
                batch = [unit(agent, i, [b"x"] * 3), unit(b"C" * 16, i, [b"shared"])]
                results.extend(put(store, *batch))

        threads = [threading.Thread(target=write, args=(bytes([n]) * 16,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results.count(Status.STORED) == 4 * 12 + 12
        assert results.count(Status.DUPLICATE) == 3 * 12
        ids = [r.id for r in units.read(store)]
        assert len(ids) == len(set(ids)) == 4 * 12 * 3 + 12


# -- clients ------------------------------------------------------------------------------


def test_a_client_tells_wanted_actual_and_why(store):
    hop = enrol(store, A, "alpha")
    never = client(store)
    assert (never.actual, never.wanted, never.last_seen) == (clients.NEVER, None, None)
    put(store, unit(records=[b"1", b"2"]))
    clear = unit(sequence=1, reason=int(Reason.NO_CERTIFICATE), level=1, key_id=None, suite=None,
                 received=NOW + 1)  # fmt: skip
    put(store, clear)
    found = client(store)
    assert (found.actual, found.reason, found.wanted) == ("clear", 2, 1)
    assert (found.sealed, found.clear, found.units) == (2, 1, 2)
    assert found.by_reason == {0: 2, 2: 1}
    assert (found.key_id, found.suite, found.last_seen) == (KEY, 0x20, NOW + 1)
    with store.reading() as db:
        assert clients.by_hop(db, hop).agent == A
        assert clients.count(db) == {"clear": 1}


def test_what_came_in_earlier_does_not_change_what_is(store):
    enrol(store, A, "alpha")
    put(store, unit(received=NOW))
    put(store, unit(sequence=7, received=NOW - HOUR, reason=int(Reason.LEVEL_NONE)))  # a replay
    found = client(store)
    assert (found.actual, found.last_seen, found.clear) == ("sealed", NOW, 1)


def test_a_clock_that_was_wrong_does_not_freeze_a_client(store):
    enrol(store, A, "alpha")
    put(store, unit(received=NOW + 9 * HOUR), now=NOW + 9 * HOUR)
    put(store, unit(sequence=1, reason=int(Reason.LEVEL_NONE)), now=NOW)
    assert (client(store).actual, client(store).last_seen) == ("clear", NOW)


def test_gaps_are_counted_until_they_close(store):
    enrol(store, A, "alpha")
    put(store, unit(sequence=1), unit(sequence=2), unit(sequence=5))
    assert client(store).missing == 2
    put(store, unit(sequence=1, epoch=b"f" * 16), unit(sequence=9, epoch=b"f" * 16))
    assert client(store).missing == 2 + 7
    put(store, unit(sequence=4), unit(sequence=3), unit(sequence=3))
    assert client(store).missing == 7
    put(store, unit(sequence=3, epoch=b"0" * 16))  # the first that came of an epoch
    assert client(store).missing == 7 + 2


def test_contradictions_are_counted_for_their_client(store):
    enrol(store, A, "alpha")
    put(store, unit(), unit(records=[b"other"]))
    put(store, unit(records=[b"third"]))
    assert client(store).contradictions == 2
    assert client(store).actual == "sealed"


def beacon(sequence, epoch=b"b" * 16, reason=Reason.ENCRYPTION_DISABLED, level=2, **other):
    return unit(sequence=sequence, records=(), epoch=epoch, reason=int(reason), level=level,
                suite=None, key_id=None, **other)  # fmt: skip


def tell(store, *new):
    with store.writing() as db:
        return activity.note_beacons(db, new, NOW + 100)


def test_the_newest_beacon_wins(store):
    enrol(store, A, "alpha")
    put(store, unit())
    assert tell(store, beacon(1, received=NOW + 1)) == [Status.STORED]
    assert client(store).actual == "withheld"
    assert client(store).reason == Reason.ENCRYPTION_DISABLED
    assert client(store).key_id == KEY
    newer = beacon(3, reason=Reason.NO_CERTIFICATE, received=NOW + 2)
    older = beacon(2, reason=Reason.PARENT_REFUSES_SEALED, received=NOW + 3)
    assert tell(store, newer, older, newer) == [
        Status.STORED, Status.DUPLICATE, Status.DUPLICATE,
    ]  # fmt: skip
    assert client(store).reason == Reason.NO_CERTIFICATE
    assert client(store).missing == 0  # beacons may be lost: their numbers are no gaps
    put(store, unit(sequence=1, received=NOW + 4))
    assert client(store).actual == "sealed"
    assert client(store).beacons == 2


def test_an_old_beacon_sent_again_says_nothing(store):
    enrol(store, A, "alpha")
    tell(store, beacon(5, epoch=b"1" * 16, received=NOW))
    tell(store, beacon(1, epoch=b"2" * 16, reason=Reason.SEALED, received=NOW + 1))
    assert client(store).actual == "sealed"
    assert tell(store, beacon(6, epoch=b"1" * 16, received=NOW + 2)) == [Status.DUPLICATE]
    assert client(store).actual == "sealed"
    with store.reading() as db:
        (row,) = db.execute(sqlalchemy.select(tables.beacons))
        assert (row.agent, row.level, row.reason, row.received) == (A, 2, 0, NOW + 1)


def test_a_beacon_of_who_need_not_seal_is_not_withholding(store):
    enrol(store, A, "alpha")
    tell(store, beacon(1, level=1, reason=Reason.NO_CERTIFICATE))
    assert client(store).actual == "clear"


def test_clients_by_name_and_id(store):
    enrol(store, A, "alpha")
    enrol(store, B, "alpha")
    with store.reading() as db:
        assert {c.agent for c in clients.named(db, "alpha")} == {A, B}
        assert [c.agent for c in clients.named(db, A.hex())] == [A]
        assert [c.agent for c in clients.named(db, B.hex()[:10])] == [B]
        assert clients.named(db, "41") == clients.named(db, "zz" * 8) == []
        assert [c.name for c in clients.listing(db)] == ["alpha", "alpha"]


def test_ids_are_taken_once_and_a_new_hop_replaces_the_old(store):
    old = enrol(store, A, "alpha")
    with pytest.raises(IntegrityError):
        enrol(store, A, "again")
    new = clients.Agent(A, "beta", b"der", b"n" * 16, "agent", "new", NOW)
    with store.writing() as db:
        clients.renew(db, new, b"spki")
    with store.reading() as db:
        assert clients.by_hop(db, old) is None
        assert clients.by_hop(db, b"n" * 16) == new
    with pytest.raises(IntegrityError), store.writing() as db:
        clients.add(db, clients.Agent(B, "b", b"der", b"n" * 16, "agent", "c", NOW), b"spki")


# -- keys -----------------------------------------------------------------------------------


def add_key(store, key_id=KEY, generation=1, **other):
    with store.writing() as db:
        keys.add(db, key_id=key_id, generation=generation, suite=0x20, public="PEM",
                 certificate=None, created=NOW, **other)  # fmt: skip


def test_the_drain_of_keys(store):
    add_key(store)
    add_key(store, b"l" * 8, 2)
    add_key(store, b"x" * 8, 1, holder="escrow")
    enrol(store, A, "alpha")
    put(store, unit(records=[b"1", b"2"], received=NOW - 2 * HOUR), unit(sequence=1, received=NOW))
    with store.reading() as db:
        old, new = keys.drain(db, NOW)
    assert (old.key.units, old.key.reports, old.last_hour, old.clients) == (2, 3, 1, 1)
    assert (old.key.first_used, old.key.last_used) == (NOW - 2 * HOUR, NOW)
    assert (new.key.reports, new.last_hour, new.clients) == (0, 0, 0)
    with store.writing() as db:
        keys.set_state(db, KEY, keys.DRAINING, NOW + 5)
        keys.prune_use(db, NOW + 5 * HOUR)
    put(store, unit(sequence=2, key_id=b"l" * 8, received=NOW + 7), unit(sequence=2))
    with store.reading() as db:
        old, new = keys.drain(db, NOW + 8)
    assert (old.key.state, old.key.drained_from, old.clients) == ("draining", NOW + 5, 0)
    assert (new.key.reports, new.clients) == (1, 1)


def test_states_of_keys(store):
    add_key(store)
    with store.writing() as db:
        keys.set_ready(db, KEY, NOW)
        keys.set_state(db, KEY, keys.ACTIVE, NOW + 1)
        assert not keys.remove(db, KEY)  # only what is pending is taken back
        with pytest.raises(KeyError):
            keys.set_state(db, b"?" * 8, keys.ACTIVE, NOW)
        with pytest.raises(ValueError, match="no state"):
            keys.set_state(db, KEY, "lost", NOW)
    with store.reading() as db:
        found = keys.find(db, KEY)
    assert (found.ready, found.certificate, found.activated) == (NOW, None, NOW + 1)


# -- acts -------------------------------------------------------------------------------------


def test_the_audit_log_is_a_chain_that_only_grows(store):
    for i in range(3):
        with store.writing() as db:
            audit.append(db, "root", "set-level", {"n": i, "who": "Zoë"}, NOW + i)
    with store.reading() as db:
        assert audit.verify(db)[0] == 3
        assert [e.details["n"] for e in audit.entries(db, after=1)] == [1, 2]
    for statement in ("UPDATE audit SET act = 'x'", "DELETE FROM audit WHERE id = 3"):
        refused = pytest.raises(sqlalchemy.exc.SQLAlchemyError, match="append-only")
        with refused, store.writing() as db:
            db.exec_driver_sql(statement)
    with store.reading() as db:
        assert audit.verify(db)[0] == 3


def test_who_goes_round_the_triggers_breaks_the_chain(fresh):
    store = fresh
    for i in range(3):
        with store.writing() as db:
            audit.append(db, "root", "act", {"n": i}, NOW + i)
    with store.writing() as db:
        drops = ["audit_append_only ON audit"] if store.postgresql else [
            "audit_no_update", "audit_no_delete",
        ]  # fmt: skip
        for name in drops:
            db.exec_driver_sql(f"DROP TRIGGER {name}")
    for change in (
        "UPDATE audit SET act = 'nothing' WHERE id = 2",
        "UPDATE audit SET at = at + 1 WHERE id = 1",
        "UPDATE audit SET details = '{}' WHERE id = 3",
        "DELETE FROM audit WHERE id = 2",
        "DELETE FROM audit WHERE id = 1",
    ):
        with pytest.raises(audit.BrokenChain), store.writing() as db:
            db.exec_driver_sql(change)
            audit.verify(db)
    with store.reading() as db:
        assert audit.verify(db)[0] == 3


def test_acts_at_the_same_time_make_one_chain(store):
    def act(name):
        for i in range(5):
            with store.writing() as db:
                audit.append(db, name, "act", {"n": i}, NOW)

    threads = [threading.Thread(target=act, args=(f"admin {n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.reading() as db:
        assert audit.verify(db)[0] == 15


def test_manifests_and_the_chain_that_leads_to_the_newest(store):
    with store.reading() as db:
        assert manifests.newest(db) is None
        assert manifests.chain(db, 0) == []
    for serial, changed in ((1, True), (2, False), (3, True), (4, False), (5, False)):
        with store.writing() as db:
            manifests.add(db, serial, f"jws{serial}", changed_signing_keys=changed, issued=NOW)
    with pytest.raises(ValueError, match="not above"), store.writing() as db:
        manifests.add(db, 5, "other", changed_signing_keys=False, issued=NOW)
    with store.reading() as db:
        assert manifests.newest_serial(db) == 5
        for since, serials in ((0, [1, 3, 5]), (1, [3, 5]), (3, [5]), (5, [5]), (9, [5])):
            assert [m.serial for m in manifests.chain(db, since)] == serials


def test_tokens_are_used_once(store):
    with store.writing() as db:
        for secret, role in ((b"1" * 16, None), (b"2" * 16, "relay")):
            tokens.add(db, secret, note="n", role=role, created=NOW, expires=NOW + HOUR)

    def redeem(secret, agent, role="agent", now=NOW + 1):
        with store.writing() as db:
            return tokens.redeem(db, secret, agent, role, now)

    assert redeem(b"?" * 16, A) is Redeemed.UNKNOWN
    assert redeem(b"1" * 16, A, now=NOW + HOUR) is Redeemed.EXPIRED
    assert redeem(b"2" * 16, A) is Redeemed.ROLE
    assert redeem(b"1" * 16, A) is Redeemed.OK
    assert redeem(b"1" * 16, A, now=NOW + 2 * HOUR) is Redeemed.AGAIN
    assert redeem(b"1" * 16, B) is Redeemed.USED
    with store.writing() as db:
        used, free = sorted(tokens.listing(db), key=lambda t: t.used is None)
        assert (used.agent, used.used) == (A, NOW + 1)
        assert b"1" * 16 not in {t.secret for t in (used, free)}  # only its digest is kept
        assert not tokens.revoke(db, used.secret)
        assert tokens.revoke(db, free.secret)
    assert redeem(b"2" * 16, A, "relay") is Redeemed.UNKNOWN


def test_challenges_are_answered_once_and_in_time(store):
    def put(challenge, expected, expires=NOW + HOUR):
        with store.writing() as db:
            challenges.put(
                db, holder="server", generation=2, key_id=KEY, challenge=challenge,
                expected=expected, created=NOW, expires=expires,
            )  # fmt: skip

    def answer(given, generation=2, holder="server", now=NOW + 1):
        with store.writing() as db:
            return challenges.answer(db, holder, generation, given, now)

    put(b"one", b"1" * 32)
    put(b"two", b"2" * 32)  # the first is void
    assert answer(b"1" * 32) is None
    assert answer(b"2" * 32, generation=1) is None
    assert answer(b"2" * 32, holder="00" * 16) is None
    assert answer(b"2" * 32, now=NOW + HOUR) is None
    assert answer(b"2" * 32) == KEY
    assert answer(b"2" * 32) is None
    with store.writing() as db:
        assert challenges.find(db, "server", 2)[0].answered == NOW + 1
        assert challenges.unanswered(db, "server", NOW) == []
        challenges.prune(db, NOW + 9 * HOUR)
        assert len(challenges.find(db, "server", 2)) == 1  # a proof stays


def test_relays_and_their_keys(store):
    def relay(**changes):
        facts = {"relay": A, "name": "r", "identity": b"der", "accepts_sealed": True,
                 "decrypts": True, "enrolled": NOW, **changes}  # fmt: skip
        with store.writing() as db:
            relays.put(db, **facts)

    def key(key_id, generation=1):
        with store.writing() as db:
            return relays.put_key(
                db, relay=A, generation=generation, key_id=key_id, spki="PEM", received=NOW
            )

    relay()
    with store.writing() as db:
        relays.set_listed(db, A, True, accepts_sealed=False)
        with pytest.raises(KeyError):
            relays.set_listed(db, B, True)
    relay(name="renamed")
    with store.reading() as db:
        found = relays.find(db, A)
        assert (found.name, found.listed) == ("renamed", True)
        assert relays.by_key_id(db, A[:8]) == found
        assert relays.by_key_id(db, B[:8]) is relays.by_key_id(db, b"") is None
    assert key(KEY)
    assert key(b"l" * 8)  # not proved yet: it may think again
    with store.writing() as db:
        assert not relays.set_ready(db, A, 1, KEY, NOW)
        assert relays.set_ready(db, A, 1, b"l" * 8, NOW)
    assert not key(KEY)
    assert key(b"l" * 8)
    assert key(KEY, 2)
    with store.writing() as db:
        assert [k.generation for k in relays.keys(db, A)] == [2, 1]
        relays.drop_keys(db, 2)
        assert [k.key_id for k in relays.keys(db)] == [KEY]


def test_alarms_of_one_hour_are_one(store):
    def sound(kind="contradiction", subject=A, now=NOW, times=1):
        with store.writing() as db:
            return alarms.sound(db, kind, subject, {"sequence": 1}, now, times)

    assert sound()
    assert not sound(now=NOW + 5, times=3)
    assert sound(subject=B)
    assert sound("unknown-agent")
    assert sound(now=NOW + 2 * HOUR)
    with store.reading() as db:
        found = list(alarms.listing(db))
        assert [a.times for a in found if a.kind == "contradiction"] == [1, 4, 1]
        assert found[0].last == NOW + 2 * HOUR
        assert alarms.count(db, NOW + 1) == 2
        assert len(list(alarms.listing(db, since=NOW + 1, limit=1))) == 1


def test_dead_letters_have_a_quota(store):
    def keep(number, size=10, hop=A, reason=deadletters.MISSING_KEY):
        with store.writing() as db:
            return deadletters.put(
                db, id=bytes([number]) * 32, body=bytes(size), hop=hop, role="agent",
                received=NOW + number, reason=reason, key_id=KEY, total_quota=50, hop_quota=30,
            )  # fmt: skip

    assert keep(1) and keep(2) and keep(1)
    assert not keep(3, 11)
    assert keep(4, 30, B)
    assert not keep(5, 1, b"C" * 16)
    with store.writing() as db:
        assert deadletters.usage(db) == (3, 50)
        assert deadletters.body(db, b"\4" * 32) == bytes(30)
        assert deadletters.body(db, b"\5" * 32) is None
        assert deadletters.ask(db, [b"\1" * 32]) == 1
        assert deadletters.ask(db, reason=deadletters.MALFORMED) == 0
        assert [d.id[0] for d in deadletters.listing(db, wanted=True)] == [1]
        deadletters.settle(db, b"\1" * 32, done=False, reason=deadletters.CANNOT_OPEN)
        found = deadletters.find(db, b"\1" * 32)
        assert (found.attempts, found.reason, found.wanted) == (1, "cannot-open", False)
        assert deadletters.ask(db, key_id=KEY) == 3
        deadletters.settle(db, b"\2" * 32, done=True)
        assert deadletters.drop(db, [b"\2" * 32, b"\4" * 32]) == 1
        assert deadletters.drop(db) == 1
        assert deadletters.usage(db) == (0, 0)


# -- the database itself -----------------------------------------------------------------------


def test_a_database_is_made_once_and_known_again(url):
    Store.create(url, DEPLOYMENT).close()
    with Store.open(url) as store:
        with store.reading() as db:
            assert get_meta(db, "deployment") == DEPLOYMENT.hex()
            assert get_meta(db, "nothing") is None
        with store.writing() as db:
            db.execute(tables.meta.update().where(tables.meta.c.name == "schema").values(value="9"))
    with pytest.raises(StoreError):
        Store.create(url, DEPLOYMENT)
    with pytest.raises(StoreError, match="version 9"):
        Store.open(url)


def test_errors_do_not_quote_what_is_stored(store):
    with pytest.raises(IntegrityError) as caught, store.writing() as db:
        db.execute(tables.reports.insert(), [{"id": 1, "unit": 1, "body": b"plain"}] * 2)
    assert "plain" not in str(caught.value)
    assert b"plain".hex() not in str(caught.value)


@pytest.mark.parametrize("name", ["sqlite://", "sqlite:///:memory:", "mysql://h/d", "://", "x://y"])
def test_databases_that_are_none(name):
    with pytest.raises(StoreError):
        Store.open(name)


def test_sqlite_files_are_private_durable_and_ours(tmp_path):
    path = tmp_path / "server.db"
    with Store.create(path, DEPLOYMENT) as store:
        put(store, unit())
        for beside in tmp_path.iterdir():
            assert beside.stat().st_mode & 0o777 == 0o600, beside
        with store.reading() as db:
            assert db.exec_driver_sql("PRAGMA synchronous").scalar() == 2
            assert db.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    with pytest.raises(StoreError, match="no database"):
        Store.open(tmp_path / "other.db")
    sqlite3.connect(tmp_path / "foreign.db").execute("CREATE TABLE x (y)").connection.close()
    (tmp_path / "garbage.db").write_bytes(os.urandom(8192))
    for name in ("foreign.db", "garbage.db"):
        with pytest.raises(StoreError):
            Store.open(tmp_path / name)


def test_a_password_in_a_url_is_not_repeated():
    with pytest.raises(StoreError) as caught:
        Store.open("postgresql://u:hunter2@127.0.0.1:1/none")
    assert "hunter2" not in str(caught.value)


_ACT = """
import sys
from upseal.fleet.server.store import Store, audit
with Store.open(sys.argv[1]) as store:
    for i in range(10):
        with store.writing() as db:
            audit.append(db, "other process", "act", {"n": i}, i)
"""


def test_a_busy_server_does_not_starve_another_process(tmp_path):
    """The writer below never pauses; SQLite's own lock alone would hardly let anybody in."""
    path = str(tmp_path / "server.db")
    with Store.create(path, DEPLOYMENT) as store:
        stop = threading.Event()
        written = []

        def write():
            while not stop.is_set():
                put(store, unit(sequence=len(written), records=[bytes(1000)] * 20))
                written.append(1)

        threads = [threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        try:
            subprocess.run([sys.executable, "-c", _ACT, path], check=True, timeout=60)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        with store.reading() as db:
            assert audit.verify(db)[0] == 10
            assert units.totals(db)[0] == len(written)


def test_a_postgresql_that_is_silent_is_away(monkeypatch):
    """A host that was switched off: the writer would else stand still for minutes."""
    monkeypatch.setattr(base, "_GONE", {**base._GONE, "connect_timeout": 2})
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it connects, and that is all
        url = f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/x"
        failed = []

        def use():
            with pytest.raises(StoreError) as caught:
                Store.open(url)
            failed.append(str(caught.value))

        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        thread.join(30)
        assert failed and "cannot use the database" in failed[0]

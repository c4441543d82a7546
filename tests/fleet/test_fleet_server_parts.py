# SPDX-License-Identifier: Apache-2.0
"""Parts of the server by themselves: settings, writer, throttle, results that are asked for."""

import hashlib
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import sqlalchemy
from fleet_server_support import until
from fleet_support import Site as Fleet
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from upseal import PrivateKey
from upseal.fleet import jws
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result, State
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Level, Reason
from upseal.fleet.server import writer as writers
from upseal.fleet.server.answers import Answers
from upseal.fleet.server.directory import Known
from upseal.fleet.server.intake import Intake
from upseal.fleet.server.meters import Meters
from upseal.fleet.server.opening import Opened, Sender
from upseal.fleet.server.relayed import Relayed
from upseal.fleet.server.settings import read_settings
from upseal.fleet.server.store import Store, alarms, deadletters, now_ms, units
from upseal.fleet.server.store.units import NewUnit
from upseal.fleet.server.throttle import Throttle, Throttled
from upseal.fleet.server.writer import Job, Letter, Quota, Settled, Writer
from upseal.fleet.settings import SettingsError, split_listen
from upseal.fleet.units import Status, clear_body, make_unit

ID = "00112233445566778899aabbccddeeff"


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "server.db", bytes(16)) as made:
        yield made


@pytest.fixture
def writer(store):
    made = Writer(store, 100, Quota(1000, 1000))
    yield made
    made.close()


def unit(sequence, body=b"x", agent=b"A" * 16, **other):
    facts = {"stated": 1, "level": 1, "reason": 0, "suite": 32, "key_id": b"k" * 8, **other}
    return NewUnit(
        agent=agent, epoch=b"e" * 16, sequence=sequence, records=[body],
        digest=hashlib.sha256(body).digest(), received=now_ms(), **facts,
    )  # fmt: skip


# -- settings -----------------------------------------------------------------------------


def write(folder, text):
    (folder / "deployment.toml").write_text(text)
    return folder


def test_settings_of_a_folder(tmp_path):
    text = f"""
name = "n"
deployment = "{ID}"
database = "sqlite:///data/x.db"
[listen]
host = "::1"
port = 1
[admin]
anything = 1
[server]
threads = 3
unwrap_share = 0.5
tls_certificate = "tls.pem"
"""
    found = read_settings(write(tmp_path, text))
    assert (found.name, found.deployment.hex(), found.port) == ("n", ID, 1)
    assert found.database == str(tmp_path / "data/x.db")
    assert (found.limits.threads, found.limits.unwrap_share) == (3, 0.5)
    assert found.tls().certificate == tmp_path / "tls.pem"
    assert found.tls().key is None
    plain = read_settings(write(tmp_path, f'deployment = "{ID}"'))
    assert (plain.database, plain.tls()) == (str(tmp_path / "server.db"), None)
    elsewhere = f'deployment = "{ID}"\ndatabase = "postgresql://h/d"'
    assert read_settings(write(tmp_path, elsewhere)).database == "postgresql://h/d"


_WRONG = [
    "name = 1", 'listen = "x"', "server = 1", "[listen]\nport = 65536", "[listen]\nport = true",
    "[server]\nthreads = 0", '[server]\nthreads = "2"', "[server]\nspeed = 9",
]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "=",
        "",
        "deployment = 1",
        'deployment = "00"',
        *(f'deployment = "{ID}"\n{w}' for w in _WRONG),
    ],
)
def test_settings_that_are_wrong(tmp_path, text):
    with pytest.raises(SettingsError):
        read_settings(write(tmp_path, text))


def test_addresses():
    assert split_listen("127.0.0.1:0") == ("127.0.0.1", 0)
    assert split_listen("[::1]:8450") == ("::1", 8450)
    for wrong in ("", ":", "host", "host:", ":1", "host:x", "host:70000", "host:-1"):
        with pytest.raises(SettingsError):
            split_listen(wrong)


# -- the writer -----------------------------------------------------------------------------


def held(writer, store, work):
    """Submits jobs while another writer has the database, so that they make one group."""
    with store.writing():
        first = writer.submit(Job(units=[unit(10**6)]))  # the writer waits with this one
        until(lambda: len(writer) == 0)
        futures = work()
    assert first.result(30).units == [Status.STORED]
    return futures


def test_many_requests_are_one_transaction(writer, store):
    futures = held(writer, store, lambda: [writer.submit(Job(units=[unit(n)])) for n in range(50)])
    assert [f.result(30).units for f in futures] == [[Status.STORED]] * 50
    assert writer.groups == 2


def test_a_bad_job_costs_no_other(writer, store):
    def work():
        jobs = [unit(0), unit(1, level=None), unit(2)]  # the database refuses the second
        return [writer.submit(Job(units=[job])) for job in jobs]

    first, second, third = held(writer, store, work)
    assert first.result(30).units == third.result(30).units == [Status.STORED]
    with pytest.raises(SQLAlchemyError) as caught:
        second.result(30)
    assert "kkkk" not in str(caught.value)
    assert sorted(r.sequence for r in units.read(store)) == [0, 2, 10**6]
    assert writer.submit(Job(units=[unit(3)])).result(30).units == [Status.STORED]


def test_contradictions_sound_once_for_a_group(writer, store):
    def work():
        return [writer.submit(Job(units=[unit(0, b"%d" % n)])) for n in range(5)]

    found = [f.result(30).units[0] for f in held(writer, store, work)]
    assert found == [Status.STORED] + [Status.CONTRADICTION] * 4
    with store.reading() as db:
        (alarm,) = alarms.listing(db)
    assert (alarm.kind, alarm.times) == ("contradiction", 4)


def test_letters_are_kept_under_their_quota_and_settled(writer, store):
    def letter(n, size, reason=deadletters.MISSING_KEY):
        return Letter(bytes([n]) * 32, bytes(size), b"h" * 16, "agent", 1, reason, None)

    letters = [letter(1, 600), letter(2, 500), letter(3, 400), letter(4, 10, deadletters.MALFORMED)]
    outcome = writer.submit(Job(letters=letters)).result(30)
    assert outcome.letters == [True, False, True, False]
    with store.reading() as db:
        assert [a.kind for a in alarms.listing(db)] == ["dead-letters-full"]
    job = Job(settled=[Settled(b"\1" * 32, True, None), Settled(b"\3" * 32, False, "cannot-open")])
    writer.submit(job).result(30)
    with store.reading() as db:
        (left,) = deadletters.listing(db)
    assert (left.id[0], left.reason, left.attempts) == (3, "cannot-open", 1)


def test_a_writer_that_closes_writes_what_it_has(store):
    made = Writer(store, 100, Quota(1000, 1000))
    futures = [made.submit(Job(units=[unit(n)])) for n in range(20)]
    made.close()
    assert all(f.result(0).units == [Status.STORED] for f in futures)
    with pytest.raises(RuntimeError):
        made.submit(Job(units=[unit(99)]))
    assert made.submit(Job()).result(0).units == []  # nothing to write is done at once
    assert not made.alive


def _raised(error):
    raise error


def test_each_job_that_a_database_refuses_is_progress(writer, store, monkeypatch):
    """Each may wait for it as long as it may: a watchdog must not take many of them for one."""
    held, release, progress = threading.Event(), threading.Event(), []

    @contextmanager
    def writing():
        progress.append(writer.progress[1])
        held.set()
        release.wait(30)
        yield from _raised(OperationalError("x", {}, Exception("away")))

    monkeypatch.setattr(store, "writing", writing)
    futures = [writer.submit(Job(units=[unit(0)]))]
    assert held.wait(30)
    futures += [writer.submit(Job(units=[unit(n)])) for n in range(1, 6)]
    release.set()
    assert all(isinstance(f.exception(30), OperationalError) for f in futures)
    # The first by itself, then all others at once, and then each of those.
    assert len(progress) == 7 and progress[2:] == [*range(progress[2], progress[2] + 5)]


def test_who_no_longer_waits_stops_nothing(writer):
    future: Future = writer.submit(Job(units=[unit(0)]))
    assert not future.cancel()
    assert future.result(30).units == [Status.STORED]


def test_errors_of_databases_are_logged_without_rows():
    class Raised(SQLAlchemyError):
        orig = Exception("null value in column\nDETAIL: Failing row contains (secret)")

    assert writers._why(Raised()) == "null value in column"


# -- the throttle ------------------------------------------------------------------------------


def spend(throttle, hop, role="agent", times=1):
    with throttle.on_account_of(hop, role):
        for _ in range(times):
            with throttle.unwrapping():
                sum(range(20_000))


def test_a_hop_that_makes_many_sessions_is_told_to_come_back():
    throttle = Throttle(share=1e-6, reserve=0.002, relay_factor=1000)
    with pytest.raises(Throttled) as caught:
        for _ in range(10_000):
            spend(throttle, b"greedy")
    assert caught.value.seconds >= 1
    spend(throttle, b"modest")  # others do not pay for it
    spend(throttle, b"relay", "relay", 20)
    assert throttle.unwraps > 20
    with pytest.raises(Throttled), throttle.on_account_of(b"greedy", "agent"):
        try:
            with throttle.unwrapping():
                raise AssertionError("must not be unwrapped")
        except Throttled:
            pass  # an opener shows nobody why unwrapping failed: the account does
    with throttle.unwrapping():  # on nobody's account: a replay
        pass


def test_the_share_comes_back_with_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    throttle = Throttle(share=0.5, reserve=0.0005)
    with pytest.raises(Throttled):
        for _ in range(10_000):
            spend(throttle, b"h")
    clock[0] += 3600
    spend(throttle, b"h")


def test_accounts_of_threads_are_apart():
    throttle = Throttle(share=1e-6, reserve=1e-9)
    with pytest.raises(Throttled):
        spend(throttle, b"h", times=2)
    failed = []

    def other():
        try:
            spend(throttle, b"other")
        except Throttled as error:
            failed.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert failed == []


# -- results that are asked for -------------------------------------------------------------------


def test_results_are_bounded_in_number_and_time(store, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("upseal.fleet.server.answers.time.monotonic", lambda: clock[0])
    answers = Answers(store, most=3, kept=10)
    names = [bytes([n]) * 32 for n in range(5)]
    for name in names:
        answers.put(Result.done(name, [b"receipt"]))
    found = answers.get(names)
    assert [r.state for r in found] == [State.UNKNOWN] * 2 + [State.DONE] * 3
    assert len(answers) == 3
    clock[0] = 11
    assert answers.get(names[4:])[0].state is State.UNKNOWN
    answers.put(Result.failed(names[0], Problem("stale-key")))
    assert len(answers) == 1
    assert answers.get(names[:1])[0].problem.name == "stale-key"


def test_what_may_still_change_is_not_remembered(store):
    answers = Answers(store, 10)
    name = bytes(32)
    for result in (Result.pending(name), Result.failed(name, Problem("full", retry_after=1))):
        answers.put(result)
        assert answers.get([name])[0].state is State.UNKNOWN
    assert not answers.settled(name)


def test_dead_letters_answer_for_themselves(store):
    answers = Answers(store, 10)
    facts = {"body": b"x", "hop": b"h", "role": "agent", "key_id": None, "total_quota": 999,
             "hop_quota": 999}  # fmt: skip
    ages = {deadletters.MISSING_KEY: 10**9, deadletters.CANNOT_OPEN: 10**9, "malformed": 0}
    with store.writing() as db:
        for n, (reason, age) in enumerate(ages.items()):
            deadletters.put(db, id=bytes([n]) * 32, received=now_ms() - age, reason=reason, **facts)
        deadletters.put(
            db, id=b"\x09" * 32, received=now_ms(), reason=deadletters.CANNOT_OPEN, **facts
        )
    found = answers.get([b"\0" * 32, b"\1" * 32, b"\2" * 32, b"\x09" * 32])
    assert [r.state for r in found] == [
        State.PENDING, State.UNKNOWN, State.PROBLEM, State.PENDING,
    ]  # fmt: skip


# -- what stands behind another check ---------------------------------------------------------


@pytest.mark.parametrize("which", ["identity", "hop"])
def test_either_id_of_a_revoked_client_is_enough(which):
    identity, hop = SigningKey.generate(), SigningKey.generate()
    ids = {"identity": identity.public.agent_id, "hop": hop.public.agent_id}
    intake = Intake(bytes(16), None, None, None, None)
    said = make_unit(identity, bytes(16), b"e" * 16, 1, 1, Level.OPTIONAL, Reason.SEALED, [b"x"])
    known = Known(ids["identity"], identity.public, ids["hop"], "agent", "name")
    intake.manifest = SimpleNamespace(revoked_agents=frozenset())
    assert intake._refusal(said, known) is None
    intake.manifest = SimpleNamespace(revoked_agents=frozenset([ids[which]]))
    assert intake._refusal(said, known) == "revoked-agent"


def test_a_replay_is_on_nobodys_account():
    accounts = []

    class Opening:
        def open(self, raw, account):
            accounts.append(account)
            return Opened([], None, None)

    nobody = SimpleNamespace(find=lambda agents: {})
    intake = Intake(bytes(16), Opening(), nobody, None, Meters(Metrics("server")))
    sender = Sender(b"h" * 16, "relay")
    body = clear_body([b"row"])
    intake.open(body, sender)
    intake.open(body, sender, 1, replayed=True)
    assert accounts == [sender, None]


def test_what_is_malformed_has_a_part_of_the_room(writer, store):
    def kept(n, size, reason):
        letter = Letter(bytes([n]) * 32, bytes(size), b"h" * 16, "agent", 1, reason, None)
        return writer.submit(Job(letters=[letter])).result(30).letters == [True]

    assert kept(1, 125, deadletters.MALFORMED), "an eighth of 1,000"
    assert not kept(2, 1, deadletters.MALFORMED)
    assert kept(3, 800, deadletters.MISSING_KEY)
    with store.reading() as db:
        assert list(alarms.listing(db)) == [], "nobody is called for what is malformed"


def test_nothing_is_said_before_the_commit(writer, store):
    def fail(db):
        raise OSError("no room")

    sqlalchemy.event.listen(store.engine, "commit", fail)
    try:
        future = writer.submit(Job(units=[unit(0)]))
        with pytest.raises(OSError, match="no room"):
            future.result(30)
    finally:
        sqlalchemy.event.remove(store.engine, "commit", fail)
    assert writer.submit(Job(units=[unit(0)])).result(30).units == [Status.STORED]


def test_accounts_are_bounded(monkeypatch):
    monkeypatch.setattr("upseal.fleet.server.throttle._HOPS", 3)
    throttle = Throttle()
    for n in range(5):
        spend(throttle, b"%d" % n)
    spend(throttle, b"3")
    spend(throttle, b"5")
    assert list(throttle._spent) == [b"4", b"3", b"5"]


def test_a_relay_that_is_revoked_or_behind_announces_nothing(store):
    site = Fleet()
    relay = site.add_relay("r", decrypts=True)
    relayed = Relayed(store, lambda: site.manifest)

    def announce():
        said = {
            "relay": relay.relay.hex(), "generation": 1, "t": now_ms(),
            "public_key": PrivateKey.generate().public_key.to_pem().decode(),
        }  # fmt: skip
        return relayed.key(jws.sign(said, relay.identity, jws.RELAY).encode())

    assert announce()["key_id"]
    site.manifest = SimpleNamespace(
        relays=site.manifest.relays, revoked_agents=frozenset(), oldest_generation=2
    )
    with pytest.raises(Problem) as caught:
        announce()
    assert caught.value.name == "stale-key"
    site.manifest.oldest_generation = 0
    site.manifest.revoked_agents = frozenset([relay.relay])
    with pytest.raises(Problem) as caught:
        announce()
    assert caught.value.name == "revoked"

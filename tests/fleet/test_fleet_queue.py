# SPDX-License-Identifier: Apache-2.0
"""The relay's durable queue: what it has acknowledged it has, whatever happens."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from functools import partial

import fleet_support
import pytest

from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.relay import queue as queues
from upseal.fleet.relay import rows
from upseal.fleet.relay.groupcommit import GroupCommit, connect
from upseal.fleet.relay.queue import Full, Queue
from upseal.fleet.relay.rows import Stats

HOP = b"h" * 16
MANY = (1 << 30, 1000)
eventually = partial(fleet_support.eventually, seconds=30)


def named(*bodies):
    return {hashlib.sha256(body).digest(): body for body in bodies}


def put(queue, *bodies, hop=HOP, **options):
    return queue.put(named(*bodies), hop, **options).result(30)


def done(body, *receipts):
    return Result.done(ids(body)[0], receipts or (b"r",))


def ids(*bodies):
    return list(named(*bodies))


@pytest.fixture
def opened(tmp_path):
    made = []

    def make(**options):
        queue = Queue(tmp_path / "queue.db", **options)
        made.append(queue)
        return queue

    yield make
    for queue in made:
        queue.close()


# -- in and out ----------------------------------------------------------------------


def test_bodies_go_out_in_the_order_they_came(opened):
    queue = opened()
    bodies = [bytes([i]) * (i + 1) for i in range(20)]
    for body in bodies:
        assert put(queue, body) == {}
    claimed = queue.claim(*MANY, 0)
    assert [c.body for c in claimed] == bodies
    assert [c.id for c in claimed] == ids(*bodies)
    assert queue.claim(*MANY, 0) == [], "each is claimed once"
    assert queue.stats()[:3] == (20, sum(map(len, bodies)), 20)


def test_a_claim_keeps_to_its_bounds_but_takes_one_at_least(opened):
    queue = opened()
    for i in range(5):
        put(queue, bytes([i]) * 100)
    assert len(queue.claim(10, 100, 0)) == 1
    assert len(queue.claim(250, 100, 0)) == 2
    assert len(queue.claim(1000, 1, 0)) == 1
    assert len(queue.claim(1000, 100, 0)) == 1


def test_a_claim_waits_for_what_comes(opened):
    queue = opened()
    got = []
    thread = threading.Thread(target=lambda: got.extend(queue.claim(*MANY, 30)))
    thread.start()
    put(queue, b"late")
    thread.join(30)
    assert [c.body for c in got] == [b"late"]


def test_closing_ends_a_waiting_claim(opened):
    queue = opened()
    thread = threading.Thread(target=lambda: queue.claim(*MANY, 600))
    thread.start()
    queue.close()
    thread.join(30)
    assert not thread.is_alive()
    with pytest.raises(RuntimeError):
        put(queue, b"too late")
    assert queue.stats().bodies == 0, "what was refused is not counted"


def test_the_same_body_twice_is_one(opened):
    queue = opened()
    put(queue, b"a")
    put(queue, b"a", b"b")
    assert queue.stats()[:2] == (2, 2)
    (first, _) = queue.claim(*MANY, 0)
    put(queue, b"a")
    assert queue.claim(*MANY, 0) == []
    queue.finish([done(b"a")]).result(30)
    assert put(queue, b"a") == {first.id: done(b"a")}
    assert queue.stats()[:2] == (1, 1)


def test_many_threads_put_the_same_and_others(opened):
    queue = opened()
    bodies = [b"%d" % i for i in range(300)]
    threads = [
        threading.Thread(target=lambda: [put(queue, body) for body in bodies]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(c.body for c in queue.claim(*MANY, 0)) == sorted(bodies)
    assert queue.stats().bodies == 300


def test_results(opened):
    told = []
    queue = opened(on_done=told.extend)
    put(queue, b"a", b"b", b"c")
    a, b, c = ids(b"a", b"b", b"c")
    unknown = b"?" * 32
    assert queue.lookup([a, unknown]) == {a: None}
    queue.claim(*MANY, 0)
    problem = Problem("stale-key", "ä", retry_after=3)
    results = {a: done(b"a", b"r1", b"r2"), b: Result.failed(b, problem)}
    queue.finish([*results.values(), Result.done(unknown, ())]).result(30)
    assert [result for result, _ in told] == list(results.values())
    assert all(0 <= time.time() - received / 1000 < 60 for _, received in told)
    known = queue.lookup([a, b, c, unknown])
    assert list(known) == [c, a, b]
    assert (known[a], known[c]) == (results[a], None)
    assert str(known[b].problem) == str(problem)
    assert known[b].problem.retry_after == 3
    assert queue.stats()[:3] == (1, 1, 1)


def test_what_is_released_comes_again_after_its_delay(opened):
    queue = opened()
    put(queue, b"a", b"b")
    a, b = ids(b"a", b"b")
    queue.claim(*MANY, 0)
    queue.release([a], delay=600)
    queue.release([b], counts=False)
    (again,) = queue.claim(*MANY, 0)
    assert again == (b, b"b", 0, HOP)
    queue.release([b], delay=0.05)
    (again,) = queue.claim(*MANY, 30)
    assert again == (b, b"b", 1, HOP)
    queue.release([b, b, a, b"?" * 32])
    assert len(queue.claim(*MANY, 30)) == 1, "released twice, claimed once"


def test_who_is_released_again_and_again_waits_longer(opened):
    queue = opened()
    put(queue, b"a")
    for delay in (0, 0.05, 0.1):
        begun = time.monotonic()
        assert len(queue.claim(*MANY, 30)) == 1
        assert time.monotonic() - begun >= delay
        queue.release(ids(b"a"), delay=0.05, most=600)
    queue.claim(*MANY, 30)
    queue.release(ids(b"a"), delay=1e300, most=0.01)
    assert len(queue.claim(*MANY, 30)) == 1


def test_a_result_that_comes_after_the_release_counts(opened):
    queue = opened()
    put(queue, b"a")
    queue.claim(*MANY, 0)
    queue.release(ids(b"a"))
    queue.finish([done(b"a")]).result(30)
    assert queue.claim(*MANY, 0) == []
    assert queue.stats()[:3] == (0, 0, 0)


# -- bounds --------------------------------------------------------------------------


def test_a_full_queue_takes_nothing_of_a_bundle(opened):
    queue = opened(max_bytes=10)
    put(queue, b"12345")
    with pytest.raises(Full):
        put(queue, b"678", b"901")
    put(queue, b"67890")
    put(queue, b"67890"), "what it has needs no room"
    with pytest.raises(Full):
        put(queue, b"x")
    assert queue.stats()[:2] == (2, 10)
    queue.claim(*MANY, 0)
    queue.finish([done(b"12345")]).result(30)
    put(queue, b"x")


def test_the_count_is_bounded_too_and_holds_over_a_restart(opened):
    queue = opened(max_bodies=3)
    for body in (b"a", b"b", b"c"):
        put(queue, body)
    with pytest.raises(Full):
        put(queue, b"d")
    queue.close()
    queue = opened(max_bodies=3)
    assert queue.stats()[:2] == (3, 3)
    with pytest.raises(Full):
        put(queue, b"d")
    assert [c.body for c in queue.claim(*MANY, 0)] == [b"a", b"b", b"c"]


def test_one_hop_does_not_fill_it_for_all(opened):
    queue = opened(max_bytes=100, max_bodies=100, hop_share=0.2)
    put(queue, b"1" * 15, shared=True)
    with pytest.raises(Full):
        put(queue, b"2" * 15, shared=True)
    put(queue, b"3" * 15, hop=b"another", shared=True)
    put(queue, b"4" * 15, hop=b"a relay")
    queue.claim(*MANY, 0)
    queue.finish([done(b"1" * 15)]).result(30)
    put(queue, b"2" * 15, shared=True)


def test_room_is_left_on_the_disk(opened, tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    queue = opened(min_free=2 * free)
    with pytest.raises(Full):
        put(queue, b"a")
    queue.close()
    put(opened(min_free=0), b"a")


# -- the disk ------------------------------------------------------------------------


def test_a_restart_keeps_bodies_and_results(opened):
    queue = opened()
    put(queue, b"a", b"b")
    a, b = ids(b"a", b"b")
    queue.claim(*MANY, 0)
    queue.finish([done(b"a")]).result(30)
    queue.close()
    queue = opened()
    assert queue.lookup([a, b]) == {a: done(b"a"), b: None}
    assert [c.body for c in queue.claim(*MANY, 0)] == [b"b"], "claimed before, and free again"
    assert queue.stats().results == 1


def test_nobody_else_reads_the_file(opened, tmp_path):
    put(opened(), b"a")
    files = list(tmp_path.iterdir())
    assert len(files) == 3
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)


def test_what_is_done_is_kept_without_its_body(opened, tmp_path):
    queue = opened()
    body = os.urandom(40)
    put(queue, body)
    queue.claim(*MANY, 0)
    queue.finish([done(body)]).result(30)
    queue.close()
    assert body not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_result_that_the_disk_refuses_leaves_the_body_queued(opened, monkeypatch):
    monkeypatch.setattr(queues, "_DISK_PAUSE", 0.01)
    queue = opened()
    put(queue, b"a")
    queue.claim(*MANY, 0)
    queue._writer.submit(lambda db: db.execute("ALTER TABLE bodies RENAME TO away") and None)
    with pytest.raises(sqlite3.OperationalError):
        queue.finish([done(b"a")]).result(30)
    queue._writer.submit(lambda db: db.execute("ALTER TABLE away RENAME TO bodies") and None)
    put(queue, b"b")
    eventually(lambda: [c.body for c in queue.claim(*MANY, 30)])
    queue.finish([done(b"a")]).result(30)
    assert queue.lookup(ids(b"a")) == {ids(b"a")[0]: done(b"a")}


def test_another_version_is_refused(opened, tmp_path):
    opened().close()
    with sqlite3.connect(tmp_path / "queue.db") as db:
        db.execute("PRAGMA user_version=9")
    db.close()
    with pytest.raises(ValueError, match="version 9"):
        opened()


def test_old_results_go_and_so_does_their_room(opened, tmp_path):
    queue = opened(keep=0.2, tidy=0.05)
    bodies = [os.urandom(100_000) for _ in range(100)]
    put(queue, *bodies)
    queue.claim(*MANY, 0)
    queue.finish([done(body) for body in bodies]).result(30)
    put(queue, b"still queued")
    eventually(lambda: queue.stats().results == 0)
    assert queue.stats().result_bytes == 0
    assert queue.lookup(ids(*bodies, b"still queued")) == {ids(b"still queued")[0]: None}

    def pages():
        with connect(tmp_path / "queue.db") as db:
            total = db.execute("PRAGMA page_count").fetchone()[0]
        db.close()
        return total

    eventually(lambda: pages() < 1500)


def test_results_are_bounded_the_oldest_go(opened):
    queue = opened(result_bytes=1000, tidy=0.05)
    bodies = [b"%d" % i for i in range(10)]
    for body in bodies:
        put(queue, body)
        queue.claim(*MANY, 0)
        queue.finish([done(body, bytes(70))]).result(30)
        time.sleep(0.002)
    eventually(lambda: queue.stats().result_bytes <= 1000)
    known = queue.lookup(ids(*bodies))
    assert list(known) == ids(*bodies)[-len(known) :]
    assert len(known) == 5


@pytest.mark.parametrize("how", ["another body", "no body"])
def test_a_body_damaged_on_the_disk_is_not_passed_on(opened, tmp_path, how, caplog):
    queue = opened()
    put(queue, b"a", b"b")
    damage = {"another body": "body = x'00'", "no body": "body = NULL"}[how]
    with sqlite3.connect(tmp_path / "queue.db") as db:
        db.execute(f"UPDATE bodies SET {damage} WHERE id = ?", (ids(b"a")[0],))
    db.close()
    assert [c.body for c in queue.claim(*MANY, 0)] == [b"b"]
    assert "damaged" in caplog.text
    put(queue, b"c")  # after it, since one thread writes
    assert queue.lookup(ids(b"a")) == {}, "unknown: its sender sends it again"
    put(queue, b"a")
    assert [c.body for c in queue.claim(*MANY, 0)] == [b"c", b"a"]


def test_a_full_disk_refuses_and_loses_nothing(tmp_path):
    """In a process of its own, since the limit holds for every file it writes."""
    code = f"""
import hashlib, os, resource, signal, sys
from pathlib import Path
from upseal.fleet.http.results import Result
from upseal.fleet.relay.queue import Queue
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
queue = Queue(Path({str(tmp_path / "queue.db")!r}))
def put(body):
    queue.put({{hashlib.sha256(body).digest(): body}}, b"h").result(30)
put(b"first")
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
refused = 0
for i in range(20):
    try:
        put(bytes([i]) * 200_000)
    except Exception as error:
        refused += 1
assert 10 < refused < 20, refused
assert queue.stats().bodies == 21 - refused
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
put(b"last")
bodies = [c.body for c in queue.claim(1 << 30, 100, 0)]
assert bodies[0] == b"first" and bodies[-1] == b"last" and len(bodies) == 22 - refused
queue.finish([Result.done(hashlib.sha256(b"first").digest(), [b"r"])]).result(30)
queue.close()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert rows.inspect(tmp_path / "queue.db").results == 1


@pytest.mark.parametrize("moment", range(3))
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path, moment):
    code = f"""
import hashlib, os, sys
from pathlib import Path
from upseal.fleet.http.results import Result
from upseal.fleet.relay.queue import Queue
queue = Queue(Path({str(tmp_path / "queue.db")!r}))
for i in range(1_000_000):
    body = b"%d." % i * 500
    queue.put({{hashlib.sha256(body).digest(): body}}, b"h").result(30)
    os.write(1, b"%d\\n" % i)
    if i % 5 == 4:
        claimed = queue.claim(1, 1, 0)
        queue.finish([Result.done(c.id, [b"r"]) for c in claimed]).result(30)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        while int(child.stdout.readline()) < 20 + 37 * moment:
            pass
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
        child.wait(30)
    acknowledged = 20 + 37 * moment + rest.count(b"\n")
    queue = Queue(tmp_path / "queue.db")
    try:
        # One more may have been on the disk when the process was killed before it could say so.
        known = queue.lookup(ids(*(b"%d." % i * 500 for i in range(acknowledged + 2))))
        assert set(ids(*(b"%d." % i * 500 for i in range(acknowledged + 1)))) <= set(known)
        assert acknowledged // 5 - 1 <= sum(r is not None for r in known.values())
        claimed = queue.claim(*MANY, 0)
        assert {c.id for c in claimed} == {i for i, r in known.items() if r is None}
    finally:
        queue.close()


def test_inspect_reads_while_another_writes(opened, tmp_path):
    queue = opened()
    put(queue, b"a", b"bc")
    stats = rows.inspect(tmp_path / "queue.db")
    assert stats == Stats(2, 3, 0, queue.stats().oldest, 0, 0)
    with pytest.raises(sqlite3.OperationalError):
        rows.inspect(tmp_path / "none.db")


# -- group commit --------------------------------------------------------------------


def test_many_jobs_are_one_transaction_and_a_bad_one_fails_alone(tmp_path):
    db = connect(tmp_path / "db", writer=True)
    db.execute("CREATE TABLE t(x PRIMARY KEY)")
    begun, may_go_on = threading.Event(), threading.Event()
    commits = []
    db.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    writer = GroupCommit(db)

    def hold(_):
        begun.set()
        may_go_on.wait(30)

    def adding(x):
        return lambda db: db.execute("INSERT INTO t VALUES (?)", (x,)).rowcount

    first = writer.submit(hold)
    assert begun.wait(30)
    waiting = [writer.submit(adding(i)) for i in range(100)]
    may_go_on.set()
    first.result(30)
    assert [future.result(30) for future in waiting] == [1] * 100
    assert len(commits) == 2, "one for the first, one for all that came meanwhile"
    begun.clear()
    may_go_on.clear()
    first = writer.submit(hold)
    assert begun.wait(30)
    good, bad, better = (writer.submit(adding(x)) for x in (200, 7, 201))
    may_go_on.set()
    assert good.result(30) == better.result(30) == 1
    with pytest.raises(sqlite3.IntegrityError):
        bad.result(30)
    assert first.result(30) is None
    writer.close()
    with pytest.raises(RuntimeError):
        writer.submit(adding(300))


def test_who_no_longer_waits_stops_nobody(tmp_path):
    # A request whose connection is gone is cancelled, and its future with it.
    writer = GroupCommit(connect(tmp_path / "db", writer=True))
    held = threading.Event()
    writer.submit(lambda db: held.wait(60))
    given_up = writer.submit(lambda db: db.execute("CREATE TABLE t (x)"))
    given_up.cancel()
    held.set()
    assert writer.submit(lambda db: db.execute("SELECT * FROM t").fetchall()).result(60) == []
    writer.close()


def test_closing_writes_what_was_submitted(tmp_path):
    db = connect(tmp_path / "db", writer=True)
    db.execute("CREATE TABLE t(x)")
    writer = GroupCommit(db)
    for i in range(50):
        writer.submit(lambda db, i=i: db.execute("INSERT INTO t VALUES (?)", (i,)))
    writer.close()
    again = connect(tmp_path / "db")
    assert again.execute("SELECT count(*) FROM t").fetchone() == (50,)
    with pytest.raises(sqlite3.OperationalError):
        again.execute("INSERT INTO t VALUES (1)")
    again.close()


def test_chores_go_on_between(tmp_path):
    done = []

    def chores(_):
        done.append(1)
        if len(done) == 2:
            raise sqlite3.OperationalError("busy")
        return len(done) == 1

    writer = GroupCommit(connect(tmp_path / "db", writer=True), chores=chores, every=0.02)
    eventually(lambda: len(done) > 4)
    assert writer.submit(lambda _: 5).result(30) == 5
    writer.close()

# SPDX-License-Identifier: Apache-2.0
"""The spool: nothing acknowledged is lost or doubled, whatever dies, and nothing lies in clear."""

import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support import wait_for_children

from upseal import PrivateKey
from upseal.fleet.agent.intake import Intake
from upseal.fleet.agent.settings import Batch, SpoolLimits
from upseal.fleet.agent.spool import (
    Spool,
    SpoolDamaged,
    SpoolError,
    SpoolFull,
    SpoolUnusable,
    spool_context,
)

KEY = PrivateKey.generate()
CONTEXT = spool_context(b"d" * 16, b"a" * 16)
EPOCH = b"e" * 16
SEVERAL = Batch(reports=10, bytes=1 << 20, seconds=60)
MARK = b"sesame-plaintext-marker"


def notice(lost):
    return json.dumps({"lost": lost}).encode()


def spool_at(folder, key=KEY, context=CONTEXT, **limits):
    return Spool(
        folder / "spool.db", key, context, SpoolLimits(**{"min_free": 0, **limits}), notice
    )


@pytest.fixture
def spool(tmp_path):
    made = spool_at(tmp_path)
    yield made
    made.close()


def damage(folder, number):
    """Flips a bit in a stored report."""
    with sqlite3.connect(folder / "spool.db") as db:
        (sealed,) = db.execute("SELECT sealed FROM reports WHERE id = ?", (number,)).fetchone()
        flipped = sealed[:-1] + bytes([sealed[-1] ^ 1])
        db.execute("UPDATE reports SET sealed = ? WHERE id = ?", (flipped, number))
    db.close()


def balanced(spool):
    counters = spool.counters()
    with spool._reader.reading() as db:
        rows, size = db.execute(
            "SELECT count(*), coalesce(sum(length(sealed)), 0) FROM reports"
        ).fetchone()
    assert counters.depth == rows
    assert counters.bytes == size
    return counters


# -- what it keeps ------------------------------------------------------------------


def test_what_was_added_is_there_for_the_next_process(tmp_path):
    first = spool_at(tmp_path)
    assert list(first.add([b"one", b"two"])) == [1, 2]
    assert list(first.add([b"three"])) == [3]
    # Not closed: as after a crash.
    second = spool_at(tmp_path)
    unit, records = second.plan(SEVERAL, EPOCH, 1)
    assert records == [b"one", b"two", b"three"]
    assert (unit.epoch, unit.sequence, unit.count) == (EPOCH, 1, 3)
    first.close()
    second.close()


def test_nothing_lies_on_the_disk_in_clear(tmp_path):
    spool = spool_at(tmp_path)
    spool.add([MARK + bytes([i]) for i in range(50)])
    unit, records = spool.plan(SEVERAL, EPOCH, 1)
    digest = hashlib.sha256(b"".join(len(r).to_bytes(4, "big") + r for r in records)).digest()
    seen = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    spool.stored(unit)
    spool.close()
    seen += b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert len(seen) > 50 * len(MARK)
    assert MARK not in seen
    assert digest not in seen, "a digest of a short report would tell it to whoever can guess"
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


def test_a_deleted_report_is_overwritten(tmp_path):
    spool = spool_at(tmp_path)
    spool.add([b"x" * 3000])
    with spool._reader.reading() as db:
        (sealed,) = db.execute("SELECT sealed FROM reports").fetchone()
    unit, _ = spool.plan(SEVERAL, EPOCH, 1)
    spool.stored(unit)
    spool.close()  # copies the log over
    assert sealed[200:400] not in (tmp_path / "spool.db").read_bytes()


def test_a_unit_never_changes(tmp_path):
    spool = spool_at(tmp_path)
    spool.add([b"%d" % i for i in range(7)])
    unit, records = spool.plan(SEVERAL, EPOCH, 4)
    spool.add([b"later"])
    assert spool.records(unit) == (unit, records)
    spool.close()
    again = spool_at(tmp_path)
    assert again.units() == [unit]
    assert again.records(unit) == (unit, records)
    other, rest = again.plan(SEVERAL, EPOCH, 5)
    assert rest == [b"later"]
    assert again.units() == [unit, other]
    again.close()


def test_a_triple_is_used_once(spool):
    spool.add([b"a"])
    spool.plan(SEVERAL, EPOCH, 1)
    spool.add([b"b"])
    with pytest.raises(SpoolError):
        spool.plan(SEVERAL, EPOCH, 1)
    unit, records = spool.plan(SEVERAL, EPOCH, 2)
    assert records == [b"b"]


def test_batches_end_at_count_and_bytes(spool):
    spool.add([b"x" * 1000 for _ in range(25)])
    assert spool.plan(Batch(reports=10), EPOCH, 1)[0].count == 10
    assert spool.plan(Batch(bytes=3600), EPOCH, 2)[0].count == 3
    assert spool.plan(Batch(bytes=1), EPOCH, 3)[0].count == 1, "one goes alone, however long"
    assert spool.plan(Batch(), EPOCH, 4)[0].count == 11
    assert spool.plan(Batch(), EPOCH, 5) is None


def test_when_a_unit_is_due(spool, monkeypatch):
    from upseal.fleet.agent import intake
    from upseal.fleet.agent import spool as room

    clock = [1_000_000]
    monkeypatch.setattr(room, "now_ms", lambda: clock[0])
    monkeypatch.setattr(intake, "now_ms", lambda: clock[0])
    batch = Batch(reports=3, bytes=4000, seconds=5)
    assert spool.due(batch) is None
    spool.add([b"a"])
    assert spool.due(batch) == 5
    clock[0] += 2000
    assert spool.due(batch) == 3
    spool.add([b"b"])
    assert spool.due(batch) == 3, "the oldest counts"
    spool.add([b"c"])
    assert spool.due(batch) == 0, "there are enough"
    spool.plan(batch, EPOCH, 1)
    assert spool.due(batch) is None
    spool.add([b"x" * 4000])
    assert spool.due(batch) == 0, "they are long enough"
    spool.plan(batch, EPOCH, 2)
    spool.add([b"d"])
    clock[0] -= 10_000_000
    assert spool.due(batch) == 0, "a clock that was set back keeps nothing waiting"


def test_stored_takes_out_once(spool):
    spool.add([b"a", b"b", b"c"])
    unit, _ = spool.plan(SEVERAL, EPOCH, 1)
    assert spool.stored(unit)
    assert not spool.stored(unit)
    counters = balanced(spool)
    assert (counters.made, counters.stored, counters.depth, counters.bytes) == (3, 3, 0, 0)
    assert spool.records(unit) is None
    assert spool.add([b"d"])[0] == 4, "no number is used again"


def test_a_unit_made_again_has_the_same_reports(spool):
    spool.add([b"a", b"b"])
    unit, records = spool.plan(SEVERAL, EPOCH, 1)
    again = spool.remake(unit, b"f" * 16, 1)
    assert (again.epoch, again.sequence, again.remade) == (b"f" * 16, 1, True)
    assert spool.records(unit) == (again, records)
    assert spool.stored(again)
    assert spool.remake(again, b"g" * 16, 1) is None


# -- at the limit ---------------------------------------------------------------------


def test_refuses_when_full_and_says_how_many(tmp_path):
    spool = spool_at(tmp_path, max_bytes=1 << 16)
    taken = 0
    with pytest.raises(SpoolFull, match="65,536"):
        while True:
            spool.add([b"x" * 1000, b"y" * 1000])
            taken += 2
    counters = balanced(spool)
    assert (counters.made, counters.refused, counters.lost) == (taken, 2, 0)
    with pytest.raises(SpoolFull):
        spool.add([b"x" * (1 << 16)])
    assert spool.counters().refused == 3
    spool.stored(spool.plan(SEVERAL, EPOCH, 1)[0])
    spool.add([b"x" * 1000])
    spool.close()


def test_drops_the_oldest_and_tells(tmp_path):
    spool = spool_at(tmp_path, max_bytes=1 << 16, full="drop-oldest")
    spool.add([b"planned"])
    first, _ = spool.plan(SEVERAL, EPOCH, 1)
    for i in range(100):
        spool.add([b"%03d" % i + b"x" * 1000])
    counters = balanced(spool)
    assert counters.lost > 40
    assert counters.bytes <= 1 << 16
    assert spool.records(first)[1] == [b"planned"], "what may be at the server stays"
    seen = []
    sequence = 1
    while planned := spool.plan(SEVERAL, EPOCH, sequence := sequence + 1):
        seen += planned[1]
    assert [r[:3] for r in seen[:-1]] == [b"%03d" % i for i in range(counters.lost, 100)]
    assert json.loads(seen[-1]) == {"lost": counters.lost}
    assert balanced(spool).made == 102
    assert spool.counters().untold == 0
    spool.close()


def test_lost_ones_are_told_even_if_nothing_else_waits(tmp_path):
    spool = spool_at(tmp_path)
    spool.add([b"only"])
    damage(tmp_path, 1)
    assert spool.plan(SEVERAL, EPOCH, 1) is None
    assert spool.due(SEVERAL) == 0
    _, records = spool.plan(SEVERAL, EPOCH, 1)
    assert records == [notice(1)]
    balanced(spool)
    spool.close()


def test_leaves_room_on_the_disk(tmp_path):
    spool = spool_at(tmp_path, min_free=1 << 49)
    with pytest.raises(SpoolFull, match="nearly full"):
        spool.add([b"x"])
    assert spool.counters().refused == 1
    spool.close()


def test_a_full_database_loses_nothing(tmp_path):
    spool = spool_at(tmp_path)
    spool.add([b"first"])
    with spool._writer.alone() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages + 20}").fetchall()
    taken = 1
    with pytest.raises(SpoolFull):
        for _ in range(1000):
            spool.add([b"x" * 2000])
            taken += 1
    assert balanced(spool).made == taken
    spool.add([b"after"])  # a new connection: the disk has room again
    assert balanced(spool).made == taken + 1
    spool.close()


FULL_DISK = """
import sys, signal, resource
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_fleet_spool as t
spool = t.spool_at(Path(sys.argv[1]))
spool.add([b"first"])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
taken = 1
try:
    for _ in range(1000):
        spool.add([b"x" * 2000])
        taken += 1
except t.SpoolError as error:
    print(type(error).__name__, taken, spool.counters().made)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
spool.add([b"last"])
print(taken + 1, t.balanced(spool).made)
spool.close()
"""


def test_a_disk_that_fails_loses_nothing(tmp_path):
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path, here],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.path.dirname(here)},
    )
    assert done.returncode == 0, done.stderr
    failed, last = done.stdout.splitlines()
    name, taken, made = failed.split()
    assert name in ("SpoolUnusable", "SpoolFull")
    assert taken == made
    assert len(set(last.split())) == 1


# -- many at once ------------------------------------------------------------------------


def test_threads_share_the_disk_and_lose_nothing(spool):
    numbers = []

    def work(name):
        for i in range(40):
            numbers.extend(spool.add([b"%d %d" % (name, i)]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 321))
    _, records = spool.plan(Batch(reports=1000), EPOCH, 1)
    assert sorted(records) == sorted(b"%d %d" % (n, i) for n in range(8) for i in range(40))


def test_one_refused_call_takes_no_other_with_it(tmp_path, monkeypatch):
    spool = spool_at(tmp_path, max_bytes=1 << 16)
    held, go = threading.Event(), threading.Event()
    real = Intake._commit

    def slow(self, job):
        held.set()
        go.wait(20)
        real(self, job)

    monkeypatch.setattr(Intake, "_commit", slow)
    results = {}

    def add(name, data):
        try:
            results[name] = list(spool.add([data]))
        except SpoolError as error:
            results[name] = error

    threads = [threading.Thread(target=add, args=("a", b"a"))]
    threads[0].start()
    assert held.wait(20)
    for name, data in (("big", b"x" * 70_000), ("b", b"b")):
        threads.append(threading.Thread(target=add, args=(name, data)))
        threads[-1].start()
    end = time.monotonic() + 20
    while len(spool._intake._jobs) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    go.set()
    for thread in threads:
        thread.join()
    assert isinstance(results["big"], SpoolFull)
    assert sorted(results["a"] + results["b"]) == [1, 2]
    assert balanced(spool).refused == 1
    spool.close()


def test_an_error_reaches_everybody_in_the_group(tmp_path):
    spool = spool_at(tmp_path)
    spool.add([b"x"])
    spool.close()
    with pytest.raises(SpoolUnusable, match="closed"):
        spool.add([b"y"])
    with pytest.raises(SpoolUnusable):
        spool.counters()


def test_processes_share_one_spool(tmp_path):
    spool = spool_at(tmp_path)
    spool.add([b"parent"])
    pids = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                for i in range(25):
                    spool.add([b"%d %d" % (child, i)])
                os._exit(0)
            except BaseException:
                os._exit(1)
        pids.append(pid)
    for _ in range(25):
        spool.add([b"parent"])
    assert wait_for_children(pids) == [0, 0, 0, 0]
    assert balanced(spool).made == 126
    _, records = spool.plan(Batch(reports=1000), EPOCH, 1)
    assert {b"%d %d" % (c, i) for c in range(4) for i in range(25)} < set(records)
    spool.close()


def test_a_fork_while_other_threads_add(tmp_path):
    """A child must neither hang on its parent's locks, nor disturb its transactions."""
    spool = spool_at(tmp_path)
    stop = threading.Event()
    added = [0, 0]

    def work(place):
        while not stop.is_set():
            spool.add([b"thread"])
            added[place] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    pids = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            try:
                spool.add([b"child"])
                os._exit(0)
            except BaseException:
                os._exit(1)
        pids.append(pid)
    codes = wait_for_children(pids)
    stop.set()
    for thread in threads:
        thread.join()
    assert codes == [0] * 6
    assert balanced(spool).made == sum(added) + 6
    spool.close()


# -- damage ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to look like one" * 100, b"x"]
)
def test_a_file_that_is_no_database_is_left_alone(tmp_path, content):
    (tmp_path / "spool.db").write_bytes(content)
    spool = spool_at(tmp_path)
    for work in (lambda: spool.add([b"x"]), spool.counters, spool.units):
        with pytest.raises(SpoolDamaged):
            work()
    assert (tmp_path / "spool.db").read_bytes() == content
    spool.close()


def test_somebody_elses_database_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()
    before = (tmp_path / "spool.db").read_bytes()
    spool = spool_at(tmp_path)
    with pytest.raises(SpoolDamaged, match="no spool"):
        spool.add([b"x"])
    spool.close()
    assert (tmp_path / "spool.db").read_bytes() == before


@pytest.mark.parametrize(
    ("key", "context"),
    [(PrivateKey.generate(), CONTEXT), (KEY, spool_context(b"d" * 16, b"b" * 16))],
)
def test_another_key_or_agent_touches_nothing(tmp_path, key, context):
    spool = spool_at(tmp_path)
    spool.add([b"mine"])
    spool.close()
    other = spool_at(tmp_path, key=key, context=context)
    for work in (lambda: other.add([b"x"]), lambda: other.plan(SEVERAL, EPOCH, 1)):
        with pytest.raises(SpoolDamaged, match="another key"):
            work()
    other.close()
    again = spool_at(tmp_path)
    assert again.plan(SEVERAL, EPOCH, 1)[1] == [b"mine"]
    again.close()


def test_a_damaged_page_is_said_and_nothing_is_written(tmp_path):
    spool = spool_at(tmp_path)
    spool.add([os.urandom(1000) for _ in range(200)])
    spool.close()
    path = tmp_path / "spool.db"
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 4] = os.urandom(4096 * 2)  # the tables' roots
    path.write_bytes(data)
    spool = spool_at(tmp_path)
    with pytest.raises(SpoolDamaged):
        spool.add([b"x"])
    with pytest.raises(SpoolDamaged):
        while spool.plan(SEVERAL, EPOCH, random.getrandbits(60)):
            pass
    spool.close()
    assert path.read_bytes() == data


def test_a_damaged_report_costs_no_other(tmp_path):
    spool = spool_at(tmp_path)
    spool.add([b"%d" % i for i in range(5)])
    damage(tmp_path, 3)
    unit, records = spool.plan(SEVERAL, EPOCH, 1)
    assert records == [b"0", b"1", b"3", b"4"]
    assert (unit.count, unit.reduced) == (4, False)
    assert (balanced(spool).lost, spool.counters().untold) == (1, 1)
    assert spool.records(unit) == (unit, records)
    spool.stored(unit)
    assert balanced(spool).stored == 4
    spool.close()


def test_a_report_damaged_in_a_unit_reduces_it(tmp_path):
    spool = spool_at(tmp_path)
    spool.add([b"%d" % i for i in range(3)])
    unit, _ = spool.plan(SEVERAL, EPOCH, 1)
    damage(tmp_path, 2)
    now, records = spool.records(unit)
    assert records == [b"0", b"2"]
    assert (now.epoch, now.sequence, now.count, now.reduced) == (EPOCH, 1, 2, True)
    assert spool.records(now) == (now, records)
    for number in (1, 3):
        damage(tmp_path, number)
    assert spool.records(now) is None
    assert spool.units() == []
    assert balanced(spool).lost == 3
    spool.close()


def test_a_report_that_is_gone_from_a_unit_is_counted(tmp_path):
    spool = spool_at(tmp_path)
    spool.add([b"a", b"b"])
    unit, _ = spool.plan(SEVERAL, EPOCH, 1)
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("DELETE FROM reports WHERE id = 1")
    db.close()
    now, records = spool.records(unit)
    assert records == [b"b"]
    assert now.reduced
    assert spool.counters().lost == 1
    spool.close()


def test_reports_exchanged_on_the_disk_are_noticed(tmp_path):
    spool = spool_at(tmp_path)
    spool.add([b"a", b"b"])
    unit, _ = spool.plan(SEVERAL, EPOCH, 1)
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("UPDATE reports SET id = -1 WHERE id = 1")
        db.execute("UPDATE reports SET id = 1 WHERE id = 2")
        db.execute("UPDATE reports SET id = 2 WHERE id = -1")
    db.close()
    with pytest.raises(SpoolDamaged, match="not what it was made of"):
        spool.records(unit)
    assert spool.counters().depth == 2
    spool.close()


# -- a model, and a killer -----------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """Any order of acts and restarts: each report is in one unit, and leaves it for a receipt."""

    @initialize(full=st.sampled_from(["refuse", "drop-oldest"]))
    def begin(self, full):
        import tempfile
        from pathlib import Path

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.full = full
        self.spool = self.opened()
        self.acknowledged, self.units, self.stored = [], {}, []
        self.sequence = self.refused = self.notices = 0

    def opened(self):
        return spool_at(self.path, max_bytes=1 << 16, full=self.full)

    @rule(count=st.integers(1, 5), size=st.sampled_from([0, 10, 4000]))
    def add(self, count, size):
        reports = [b"%d|" % (len(self.acknowledged) + i) + bytes(size) for i in range(count)]
        try:
            self.spool.add(reports)
            self.acknowledged += reports
        except SpoolFull:
            self.refused += count

    @rule(reports=st.integers(1, 8))
    def plan(self, reports):
        self.sequence += 1
        self.notices += self.spool.counters().untold > 0  # which need not be in this unit
        planned = self.spool.plan(Batch(reports=reports), EPOCH, self.sequence)
        if planned is not None:
            unit, records = planned
            self.units[unit.id] = (unit, records)

    @rule(data=st.data())
    def receipt(self, data):
        if self.units:
            unit, records = self.units.pop(data.draw(st.sampled_from(sorted(self.units))))
            assert self.spool.stored(unit)
            self.stored += records

    @rule(data=st.data())
    def remake(self, data):
        if self.units:
            number = data.draw(st.sampled_from(sorted(self.units)))
            unit, records = self.units[number]
            self.units[number] = (self.spool.remake(unit, os.urandom(16), 1), records)

    @rule()
    def restart(self):
        self.spool.close()
        self.spool = self.opened()

    @invariant()
    def everything_is_accounted_for(self):
        if not hasattr(self, "spool"):
            return
        counters = balanced(self.spool)
        assert counters.refused == self.refused
        assert {u.id: u for u in self.spool.units()} == {i: u for i, (u, _) in self.units.items()}
        for unit, records in self.units.values():
            assert self.spool.records(unit) == (unit, records)
        mine = [r for _, records in self.units.values() for r in records] + self.stored
        own = [r for r in mine if r.startswith(b"{")]
        assert counters.made == len(self.acknowledged) + self.notices
        assert len(own) <= self.notices
        theirs = [r for r in mine if not r.startswith(b"{")]
        assert len(set(theirs)) == len(theirs)
        assert set(theirs) <= set(self.acknowledged)
        assert counters.stored == len(self.stored)

    def teardown(self):
        if hasattr(self, "spool"):
            self.spool.close()
            self.folder.cleanup()


TestModel = Model.TestCase
TestModel.settings = hypothesis_settings(max_examples=15, stateful_step_count=25, deadline=None)


KILLED = """
import os, sys
sys.path[:0] = [sys.argv[2], os.path.dirname(sys.argv[2])]
from pathlib import Path
import test_fleet_spool as t
folder = Path(sys.argv[1])
key = t.PrivateKey.from_pem((folder / "key.pem").read_bytes())
spool = t.spool_at(folder / "s", key=key)
acked = os.open(folder / "acked", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
server = os.open(folder / "server", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
epoch = os.urandom(16)
name = os.urandom(4).hex()
def send(unit, records):
    line = b"%s %d %s" % (unit.epoch.hex().encode(), unit.sequence, b",".join(records))
    os.write(server, line + b"\\n")
    assert spool.stored(unit)
for unit in spool.units():
    send(*spool.records(unit))
print("ready", flush=True)
sequence = number = 0
while True:
    reports = [b"%s-%d" % (name.encode(), number + i) for i in range(3)]
    number += 3
    spool.add(reports)
    os.write(acked, b"\\n".join(reports) + b"\\n")
    sequence += 1
    planned = spool.plan(t.Batch(reports=2 + sequence % 4), epoch, sequence)
    if planned and sequence % 3:
        send(*planned)
"""


def killed_at_random(tmp_path, rounds):
    """A process that reports and sends, killed again and again; then what the server has."""
    (tmp_path / "s").mkdir()
    (tmp_path / "key.pem").write_bytes(KEY.to_pem())
    here = os.path.dirname(__file__)
    for _ in range(rounds):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, tmp_path, here], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout.readline() == b"ready\n"
            time.sleep(random.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
    spool = spool_at(tmp_path / "s")
    sent = [line.split(b" ", 2) for line in (tmp_path / "server").read_bytes().splitlines()]
    units = {}
    for epoch, sequence, records in sent:
        assert units.setdefault((epoch, sequence), records) == records, "a unit has changed"
    for unit in spool.units():
        units[unit.epoch.hex().encode(), b"%d" % unit.sequence] = b",".join(spool.records(unit)[1])
    sequence = 0
    while planned := spool.plan(Batch(), b"z" * 16, sequence := sequence + 1):
        units[b"end", sequence] = b",".join(planned[1])
    stored = [report for records in units.values() for report in records.split(b",")]
    acknowledged = (tmp_path / "acked").read_bytes().split()
    assert len(acknowledged) > rounds
    assert len(set(stored)) == len(stored), "doubled"
    assert set(acknowledged) <= set(stored), "lost"
    # The last call of each process may have ended on the disk and not been acknowledged.
    assert len(stored) - len(acknowledged) <= 3 * rounds
    spool.close()


def test_killed_at_random_points(tmp_path):
    killed_at_random(tmp_path, 5)


@pytest.mark.slow
def test_killed_at_many_random_points(tmp_path):
    killed_at_random(tmp_path, 200)


def test_room_is_given_back(tmp_path):
    spool = spool_at(tmp_path)
    spool.add([os.urandom(1 << 20) for _ in range(12)])
    for sequence in range(12):
        spool.stored(spool.plan(Batch(bytes=1), EPOCH, sequence)[0])
    spool.tidy()
    spool.close()
    assert (tmp_path / "spool.db").stat().st_size < 9 << 20


def test_another_process_that_closes_the_spool_takes_nothing_away(tmp_path):
    """As `upseal agent status` does while the agent runs: the journal must stay where it is."""
    key = tmp_path / "key.pem"
    key.write_bytes(KEY.to_pem())
    look = (
        "import sys, pathlib\n"
        "from upseal import PrivateKey\n"
        "from upseal.fleet.agent.settings import SpoolLimits\n"
        "from upseal.fleet.agent.spool import Spool\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "key = PrivateKey.from_pem((folder / 'key.pem').read_bytes())\n"
        "limits, context = SpoolLimits(min_free=0), bytes.fromhex(sys.argv[2])\n"
        "spool = Spool(folder / 'spool.db', key, context, limits, lambda n: b'')\n"
        "print(spool.counters().made)\n"
        "spool.close()\n"
    )
    command = [sys.executable, "-c", look, tmp_path, CONTEXT.hex()]

    def seen_elsewhere():
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
        return int(done.stdout)

    spool = spool_at(tmp_path)
    try:
        spool.add([b"one"])
        assert spool.counters().made == 1, "a second connection of this process"
        assert seen_elsewhere() == 1
        spool.add([b"two"])
        assert seen_elsewhere() == 2
        spool.add([b"three"])
    finally:
        spool.close()
    assert seen_elsewhere() == 3


# -- promises that no kill -9 can show ------------------------------------------------------


def test_what_is_committed_is_flushed(spool):
    for database in (spool._writer, spool._reader):
        with database.alone() as db:
            assert db.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_name_of_a_new_spool_is_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(os.fstat(fd).st_ino))
    spool = spool_at(tmp_path)
    spool.add([b"x"])
    spool.close()
    assert tmp_path.stat().st_ino in flushed


def test_a_spool_of_a_newer_release_is_left_alone(tmp_path):
    spool = spool_at(tmp_path)
    spool.add([b"x"])
    spool.close()
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    before = (tmp_path / "spool.db").read_bytes()
    spool = spool_at(tmp_path)
    with pytest.raises(SpoolDamaged, match="newer"):
        spool.add([b"y"])
    spool.close()
    assert (tmp_path / "spool.db").read_bytes() == before


def test_a_receipt_that_comes_twice_is_not_about_the_next_unit(spool):
    spool.add([b"a"])
    unit, _ = spool.plan(SEVERAL, EPOCH, 1)
    assert spool.stored(unit)
    spool.add([b"b"])
    other, _ = spool.plan(SEVERAL, EPOCH, 2)
    assert other.id != unit.id
    assert not spool.stored(unit)
    assert spool.records(unit) is None
    assert spool.units() == [other]


def test_whatever_goes_wrong_ends_the_transaction(spool):
    with pytest.raises(ZeroDivisionError), spool._writer.writing() as db:
        db.execute("UPDATE state SET made = 7")
        raise ZeroDivisionError
    with spool._writer.alone() as db:
        assert not db.in_transaction
    assert spool.add([b"x"]) == range(1, 2)


def test_no_connection_goes_into_a_child(spool):
    spool.add([b"x"])
    spool.counters()
    databases = (spool._writer, spool._reader)
    pid = os.fork()
    if pid == 0:
        os._exit(sum(d._connection is not None or d._turn is not None for d in databases))
    assert wait_for_children([pid]) == [0]
    assert spool.add([b"y"]) == range(2, 3)

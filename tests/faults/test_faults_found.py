# SPDX-License-Identifier: Apache-2.0
"""What faults have found, each by itself: it must not come back."""

import hashlib
import io
import sqlite3
from contextlib import closing

import pytest
from cryptography.exceptions import InternalError

from upseal import Opener, PrivateKey, Sealer, open_file, seal_file
from upseal.core import positioned, suites
from upseal.engine.types import EngineError
from upseal.fleet import files
from upseal.fleet.agent.database import SpoolDamaged, SpoolUnusable, explained
from upseal.fleet.agent.settings import Batch, SpoolLimits, Uploads
from upseal.fleet.agent.spool import Spool, spool_context
from upseal.fleet.agent.uploads.manager import Manager
from upseal.fleet.malformed import damaged
from upseal.fleet.relay import queue as queues
from upseal.fleet.relay import rows, state
from upseal.fleet.relay.groupcommit import GroupCommit, connect
from upseal.fleet.relay.queue import Queue
from upseal.fleet.relay.settings import Settings
from upseal.fleet.relay.wrapping import Wrapped, Wraps
from upseal.fleet.server import keyring as keyrings
from upseal.fleet.server.keyring import Keyring
from upseal.fleet.server.store import keys
from upseal.fleet.uploads.ondisk import looks_sealed
from upseal.fleet.uploads.words import Ticket

HOP = b"h" * 16
BODY = b"a body"
BODY_ID = hashlib.sha256(BODY).digest()
KEY = PrivateKey.generate()


def malformed():
    """As SQLite says it of a page that the disk did not give (EIO)."""
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


class TestAQueuedBodyThatCannotBeRead:
    @pytest.fixture
    def queue(self, tmp_path, monkeypatch):
        monkeypatch.setattr(queues, "_DISK_PAUSE", 0.0)
        queue = Queue(tmp_path / "queue.db")
        queue.put({BODY_ID: BODY}, HOP).result(30)
        yield queue
        queue.close()

    def fails(self, monkeypatch, error, times):
        whole, left = rows.body, [times]

        def body(db, entry):
            left[0] -= 1
            if left[0] >= 0:
                raise error
            return whole(db, entry)

        monkeypatch.setattr(rows, "body", body)

    @pytest.mark.parametrize(
        "error", [sqlite3.OperationalError("disk I/O error"), malformed(), MemoryError()]
    )
    def test_is_queued_again(self, queue, monkeypatch, error):
        self.fails(monkeypatch, error, 3)
        for _ in range(3):
            assert queue.claim(1 << 20, 10, 0.0) == []
            assert queue.stats().in_flight == 0
        (claimed,) = queue.claim(1 << 20, 10, 0.0)
        assert claimed.body == BODY

    def test_is_lost_if_that_never_ends(self, queue, monkeypatch):
        self.fails(monkeypatch, malformed(), 1000)
        for _ in range(queues._UNREAD_MOST + 1):
            assert queue.lookup([BODY_ID]) == {BODY_ID: None}
            assert queue.claim(1 << 20, 10, 0.0) == []
        assert queue.stats().bodies == 0

    def test_of_other_bytes_is_lost_at_once(self, queue, tmp_path):
        with closing(sqlite3.connect(tmp_path / "queue.db")) as db, db:
            db.execute("UPDATE bodies SET body = x'00'")
        assert queue.claim(1 << 20, 10, 0.0) == []
        assert queue.stats().bodies == 0


class TestAFileThatSqliteCallsMalformed:
    @pytest.fixture
    def settings(self, tmp_path):
        table = {"parent": "http://127.0.0.1:1", "directory": str(tmp_path), "name": "relay"}
        return Settings.parse(table)

    def test_of_a_relay_stays_if_nothing_is_wrong_with_it(self, settings, tmp_path, monkeypatch):
        path = tmp_path / "queue.db"
        queue = Queue(path)
        queue.put({BODY_ID: BODY}, HOP).result(30)
        queue.close()

        def fails(*_, **__):
            raise malformed()

        with monkeypatch.context() as patch:
            patch.setattr(state, "Queue", fails)
            with pytest.raises(OSError, match=r"could not be read.*queue\.db"):
                state._queue(path, settings, None)
        assert not list(tmp_path.glob("*.damaged-*"))
        with closing(state._queue(path, settings, None)) as queue:
            assert queue.stats().bodies == 1

    def test_of_a_relay_goes_aside_if_it_is_damaged(self, settings, tmp_path):
        (tmp_path / "queue.db").write_bytes(b"no database, but long enough to be one" * 100)
        with closing(state._queue(tmp_path / "queue.db", settings, None)) as queue:
            assert queue.stats().bodies == 0
        assert len(list(tmp_path.glob("queue.db.damaged-*"))) == 1

    def test_of_an_agent_is_unusable_or_damaged(self, tmp_path):
        path = tmp_path / "spool.db"
        context = spool_context(b"d" * 16, b"a" * 16)
        with closing(Spool(path, KEY, context, SpoolLimits(min_free=0), lambda n: b"")) as spool:
            spool.add([b"report" * 2000])
        assert not damaged(path)
        assert isinstance(explained(malformed(), path), SpoolUnusable)
        data = bytearray(path.read_bytes())
        data[4096:8192] = bytes(4096)  # a page in the middle
        path.write_bytes(data)
        assert damaged(path)
        assert isinstance(explained(malformed(), path), SpoolDamaged)


class Dribbling(io.BytesIO):
    """Gives a few bytes at a time, and now and then nothing."""

    def read(self, size=-1):
        return super().read(min(size, 7) if size >= 0 else 7)


class TestShortReads:
    def test_are_gone_on_with(self):
        assert positioned.read_up_to(Dribbling(b"x" * 100), 50) == b"x" * 50
        assert positioned.read_up_to(Dribbling(b"x" * 20), 50) == b"x" * 20

    def test_nothing_yet_is_not_the_end(self, tmp_path):
        class Empty(io.RawIOBase):
            name = "empty"

            def read(self, size=-1):
                return None

            def readinto(self, buffer):
                return None

            def seek(self, *_):
                return 0

        with pytest.raises(BlockingIOError):
            positioned.read_up_to(Empty(), 10)
        with pytest.raises(BlockingIOError):
            files.file_sha256(Empty(), lambda: None)

    def test_a_sealed_body_is_not_taken_for_a_clear_one(self, tmp_path, monkeypatch):
        out = io.BytesIO()
        seal_file(io.BytesIO(b"x"), out, [KEY.public_key])
        (tmp_path / "body").write_bytes(out.getvalue())
        whole = files.os.pread
        monkeypatch.setattr(files.os, "pread", lambda fd, size, at: whole(fd, min(size, 2), at))
        assert looks_sealed(tmp_path / "body")


def test_errors_of_a_descriptor_name_the_file(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "plain").write_bytes(b"x" * 100)
    seal_file(tmp_path / "plain", tmp_path / "sealed", [KEY.public_key])
    monkeypatch.setattr(positioned.os, "pwrite", fails)
    for work in (
        lambda: seal_file(tmp_path / "plain", tmp_path / "other", [KEY.public_key]),
        lambda: open_file(tmp_path / "sealed", tmp_path / "other", [KEY]),
    ):
        with pytest.raises(OSError, match="No space") as caught:
            work()
        assert str(tmp_path) in str(caught.value)
    monkeypatch.setattr(files.os, "fsync", fails)
    for write in (files.write_private, files.write_new_private):
        with pytest.raises(OSError, match="No space") as caught:
            write(tmp_path / "key", b"bytes")
        assert str(tmp_path / "key") in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "sealed"]


def test_a_library_that_refuses_to_wrap_is_an_error_of_ours(monkeypatch):
    class Refuses:
        def encrypt(self, *_, **__):
            raise InternalError("Unknown OpenSSL error", [])

    monkeypatch.setattr(suites, "_hpke", lambda suite: Refuses())
    with pytest.raises(EngineError, match="cannot be wrapped"):
        Sealer([KEY.public_key]).seal(b"report")


def test_what_cannot_be_dropped_now_is_dropped_the_next_time(tmp_path, monkeypatch):
    wraps = Wraps(tmp_path)
    path = tmp_path / f"{BODY_ID.hex()}.sealed"
    wrapped = Wrapped(BODY_ID, Ticket(b"u" * 16, b"s" * 32, "sealed", 5), 1, path)
    path.write_bytes(b"bytes")
    path.with_suffix(".json").write_bytes(wrapped.encode())
    wraps = Wraps(tmp_path)

    def fails(*_, **__):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "unlink", fails)
        with pytest.raises(OSError, match="Input/output"):
            wraps.drop(BODY_ID)
    assert wraps.find(BODY_ID) is not None
    wraps.drop(BODY_ID)
    assert wraps.find(BODY_ID) is None
    assert not list(tmp_path.iterdir())


def test_a_key_file_that_could_not_be_read_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / f"1-{KEY.key_id.hex()}.pem"
    path.write_bytes(KEY.to_pem())
    path.chmod(0o600)
    known = [
        keys.Key(
            holder=keys.SERVER, generation=1, key_id=KEY.key_id, state=keys.ACTIVE,
            **dict.fromkeys(
                set(keys.Key.__dataclass_fields__) - {"holder", "generation", "key_id", "state"}
            ),
        )
    ]  # fmt: skip
    keyring = Keyring(tmp_path, 16)

    def fails(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(keyrings, "read_private", fails)
        assert keyring.refresh(known, 0) == []
    assert keyring.missing() == [KEY.key_id]
    assert keyring.refresh(known, 0) == [KEY.key_id]


def test_a_file_stays_while_its_row_may_come_back(tmp_path, monkeypatch):
    """SQLite has written a transaction, and the disk did not sync it: then nobody knows."""
    context = spool_context(b"d" * 16, b"a" * 16)
    with closing(Spool(tmp_path / "s.db", KEY, context, SpoolLimits(min_free=0), bytes)) as spool:
        manager = Manager(spool, tmp_path, Uploads(min_free=0), b"d" * 16)
        counters = manager.counters()
        assert manager.ledger.settled_files() == set()
        before = (tmp_path / "s.db-wal").stat().st_size
        assert manager.ledger.settled_files() == set()
        assert (tmp_path / "s.db-wal").stat().st_size > before, "nothing was written over it"
        assert manager.counters() == counters

        def unusable():
            raise SpoolUnusable("the disk does nothing more")

        folder = manager.folder
        monkeypatch.setattr(folder, "_settled", unusable)
        with pytest.raises(SpoolUnusable), folder.making(b"u" * 16) as (name, file):
            file.write(b"bytes")
            raise SpoolUnusable("not synced")
        assert [path.name for path in folder.path.iterdir()] == [name]
        assert folder.sweep() == 1
        monkeypatch.setattr(folder, "_settled", set)
        with pytest.raises(SpoolUnusable), folder.making(b"u" * 16) as (name, file):
            raise SpoolUnusable("not synced")
        assert not list(folder.path.iterdir())


def test_reports_are_not_lost_by_a_key_that_fails(tmp_path, monkeypatch):
    """As for want of memory: an opener says the same of that as of damage."""
    context = spool_context(b"d" * 16, b"a" * 16)

    class Failing:
        suite, key_id, fails = int(KEY.suite), KEY.key_id, False
        public_key = KEY.public_key

        def unwrap(self, wrapped):
            if self.fails:
                raise InternalError("Unknown OpenSSL error", [])
            return KEY.unwrap(wrapped)

    key, limits, batch = Failing(), SpoolLimits(min_free=0), Batch()
    with closing(Spool(tmp_path / "s.db", key, context, limits, bytes)) as spool:
        spool.add([b"one", b"two"])
        hidden = spool.hide(b"a secret", b"of ours")
    with closing(Spool(tmp_path / "s.db", key, context, limits, bytes)) as spool:
        with spool.writing(), spool.reading():
            key.fails = True
        for work in (
            lambda: spool.plan(batch, b"e" * 16, 1),
            lambda: Spool.show(spool, hidden, b"of ours"),
        ):
            spool._opener = Opener([key], cache=0)  # nothing is remembered
            with pytest.raises(SpoolUnusable, match="cannot be used now"):
                work()
        key.fails = False
        assert spool.plan(batch, b"e" * 16, 1)[1] == [b"one", b"two"]
        assert spool.show(hidden, b"of ours") == b"a secret"
        assert spool.counters().lost == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_that_ends_by_a_mistake_leaves_nobody_waiting(tmp_path):
    def fails(db):
        raise RecursionError

    writer = GroupCommit(connect(tmp_path / "g.db", writer=True), chores=fails, every=0.01)
    writer._thread.join(30)
    assert not writer._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        writer.submit(lambda db: None)

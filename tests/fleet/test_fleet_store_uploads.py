# SPDX-License-Identifier: Apache-2.0
"""The tables of uploads, on SQLite and on a real PostgreSQL."""

import hashlib
import os
import subprocess
import sys
import threading

import pytest
import sqlalchemy

from upseal.fleet.policy import Level
from upseal.fleet.server import tables, upload_tables
from upseal.fleet.server.store import Store, StoreError, clients, keys, units, uploads
from upseal.fleet.server.store.units import NewUnit
from upseal.fleet.server.store.uploads import StoredUpload
from upseal.fleet.units import Status, records_digest
from upseal.fleet.uploads.words import SIZE_MAX, Announcement

DEPLOYMENT = bytes(range(16))
A, B = b"A" * 16, b"B" * 16
NOW = 1_800_000_000_000
KEY = b"k" * 8


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return str(tmp_path / "server.db")
    return request.getfixturevalue("postgresql").database()


@pytest.fixture
def store(url):
    with Store.create(url, DEPLOYMENT) as made:
        yield made


def said(upload=b"u" * 16, form="sealed", body=b"body", size=4, name=b"file", modified=1):
    return Announcement(
        upload, form, size if form == "sealed" else len(body), len(body),
        hashlib.sha256(body).digest(), modified, name,
    )  # fmt: skip


def announce(store, agent, *announcements, received=NOW, level=Level.REQUIRED, extra=()):
    records = [one.encode() for one in announcements] + list(extra)
    unit = NewUnit(
        agent, os.urandom(16), 1, NOW, level.number, 0, records_digest(records), records, None,
        None, received,
    )  # fmt: skip
    with store.writing() as db:
        statuses = units.add(db, [unit])
        found = uploads.announced_in([unit], statuses)
        return uploads.note(db, DEPLOYMENT, found)


def file_of(agent, one, **other):
    facts = {
        "agent": agent, "upload": one.upload, "name": one.name, "size": one.size,
        "sha256": hashlib.sha256(b"file").digest(), "modified": one.modified, "form": one.form,
        "suite": 1, "key_id": KEY, "received": NOW,
        "path": f"{agent.hex()}/{one.upload.hex()}", "body_id": one.body_id,
        "announcement": one.digest(DEPLOYMENT, agent),
    }  # fmt: skip
    return StoredUpload(**facts | other)


def put(store, *files):
    with store.writing() as db:
        return [uploads.put(db, file) for file in files]


def candidates(store, one, *, sealed=True):
    with store.reading() as db:
        return uploads.candidates(db, one.upload, one.body_id, one.body_size, sealed=sealed)


def test_announcements_are_noted_once_with_all_they_say(store):
    one = said(name=b"\xff\0"[:1] + b"name", modified=SIZE_MAX)
    assert announce(store, A, one, extra=[b"a report", b"UPU\x01 no announcement"]) == [one.upload]
    assert announce(store, A, one, received=NOW + 5) == [one.upload]
    (found,) = candidates(store, one)
    assert found.digest == one.digest(DEPLOYMENT, A)
    assert (found.agent, found.upload, found.body_id) == (A, one.upload, one.body_id)
    assert (found.form, found.size, found.body_size) == ("sealed", 4, 4)
    assert (found.name, found.modified, found.received) == (one.name, SIZE_MAX, NOW)
    assert found.level == Level.REQUIRED.number
    with store.reading() as db:
        assert uploads.announcers(db, one.upload) == [A]
        assert uploads.announcers(db, b"x" * 16) == []


def test_duplicates_count_and_contradictions_do_not(store):
    one, other = said(), said(body=b"other")

    def unit(record):
        return NewUnit(A, b"e" * 16, 1, NOW, 1, 0, records_digest([record]), [record], None, None,
                       NOW)  # fmt: skip

    for record, names in ((one, 1), (one, 1), (other, 0)):
        with store.writing() as db:
            new = [unit(record.encode())]
            found = uploads.announced_in(new, units.add(db, new))
            assert len(uploads.note(db, DEPLOYMENT, found)) == names
    assert candidates(store, other) == []


def test_candidates_are_those_who_may_be_meant(store):
    exact, clear = said(), said(form="clear", body=b"plain")
    other = said(body=b"something else")
    announce(store, A, clear, other)
    announce(store, B, exact)
    elsewhere = said(upload=b"v" * 16)
    announce(store, B, elsewhere)
    assert {(c.agent, c.form) for c in candidates(store, exact)} == {(A, "clear"), (B, "sealed")}
    assert {c.agent for c in candidates(store, exact, sealed=False)} == {B}
    with store.reading() as db:  # of another length
        assert uploads.candidates(db, exact.upload, exact.body_id, 5, sealed=False) == []


def test_nobody_is_crowded_out(store):
    one = said()
    many = [said(name=b"%d" % i) for i in range(100)]
    announce(store, B, *many)
    announce(store, A, one)
    found = candidates(store, one)
    assert one.digest(DEPLOYMENT, A) in {c.digest for c in found}
    assert len(found) < 10
    with store.reading() as db:
        rows = db.execute(sqlalchemy.select(upload_tables.announcements.c.agent)).scalars()
        assert [bytes(row) for row in rows].count(B) == uploads.OF_ONE_UPLOAD
    # Of one agent, what names the very body goes before what is newer.
    announce(store, A, *(said(form="clear", body=b"%d" % i) for i in range(20)), received=NOW + 9)
    assert one.digest(DEPLOYMENT, A) in {c.digest for c in candidates(store, one)}


def test_so_many_at_once_and_no_more(store, monkeypatch):
    """The others are reports like all others, and are announced when they come again."""
    monkeypatch.setattr(uploads, "AT_ONCE", 5)
    many = [said(upload=bytes([n]) * 16) for n in range(8)]
    assert set(announce(store, A, *many)) == {one.upload for one in many[:5]}
    assert set(announce(store, A, *many[5:])) == {one.upload for one in many[5:]}
    with store.reading() as db:
        assert units.totals(db) == (2, 11)
        assert all(uploads.announcers(db, one.upload) == [A] for one in many)


def test_a_file_is_stored_once(store):
    one = said()
    first, second = file_of(A, one), file_of(A, one, sha256=b"s" * 32, path="other")
    assert put(store, first, second, file_of(B, one)) == [True, False, True]
    with store.reading() as db:
        assert uploads.find(db, A, one.upload) == first
        assert uploads.find(db, A, b"x" * 16) is None
        assert uploads.find_many(db, one.upload) == {A: first, B: file_of(B, one)}
        assert uploads.totals(db) == {"sealed": (2, 8), "clear": (0, 0)}


def test_key_use_counts_for_the_drain(store):
    with store.writing() as db:
        keys.add(db, key_id=KEY, generation=1, suite=1, public="", certificate=None, created=NOW)
    put(store, file_of(A, said()), file_of(A, said(upload=b"v" * 16), key_id=None, suite=None))
    put(store, file_of(A, said()))
    with store.reading() as db:
        (drain,) = keys.drain(db, NOW)
        assert (drain.last_hour, drain.key.last_used, drain.key.units) == (1, NOW, 0)


def test_receipts_say_what_is_stored(store):
    one, again, lost = said(), said(body=b"sealed anew"), said(upload=b"v" * 16)
    announce(store, A, one, again, lost)
    wrapped = said(upload=b"w" * 16, form="clear", body=b"plain")
    announce(store, A, wrapped)
    put(store, file_of(A, one), file_of(A, wrapped, body_id=b"r" * 32))
    with store.reading() as db:
        found = uploads.receipts(
            db, [one.body_id, again.body_id, lost.body_id, b"r" * 32, wrapped.body_id]
        )

    def status(announcement, value):
        return [(announcement.digest(DEPLOYMENT, A), value)]

    assert found == {
        one.body_id: status(one, Status.STORED),
        again.body_id: status(again, Status.DUPLICATE),
        b"r" * 32: status(wrapped, Status.STORED),
        wrapped.body_id: status(wrapped, Status.DUPLICATE),
    }
    with store.reading() as db:
        assert uploads.receipts(db, []) == {}
        assert len(uploads.receipts(db, [os.urandom(32) for _ in range(1000)] + [one.body_id])) == 1


def test_receipts_are_no_more_than_a_relay_takes(store):
    one = said()
    announce(store, A, one)
    put(store, file_of(A, one))
    for i in range(20):  # others who have overheard it, one of them in many words
        agent = bytes([i]) * 16
        announce(store, agent, one, *(said(name=b"%d" % n) for n in range(20 if i == 0 else 0)))
        put(store, file_of(agent, one, received=NOW + 1 + i))
    with store.reading() as db:
        found = uploads.receipts(db, [one.body_id])[one.body_id]
    assert len(found) == uploads.RECEIPTS
    assert found[0] == (one.digest(DEPLOYMENT, A), Status.STORED)


def test_a_body_is_stored_when_it_is_for_all_who_announced_it(store):
    one = said()

    def is_stored(body=one.body_id):
        with store.reading() as db:
            return uploads.is_stored(db, body)

    assert not is_stored()
    announce(store, A, one)
    assert not is_stored()
    put(store, file_of(A, one, body_id=b"r" * 32))
    assert is_stored()
    assert is_stored(b"r" * 32)
    announce(store, B, one)
    assert not is_stored()


def test_listing_goes_on_over_pages(store, monkeypatch):
    monkeypatch.setattr(uploads, "_PAGE", 3)
    files = [
        file_of(agent, said(upload=bytes([n]) * 16), received=NOW + n // 4)
        for n in range(10)
        for agent in (A, B)
    ]
    put(store, *files)
    with store.writing() as db:
        clients.add(db, clients.Agent(A, "web-1", b"i", b"h" * 16, "agent", "c", NOW), b"s")
    files.sort(key=lambda f: (f.received, f.agent, f.upload))
    names = {A: "web-1", B: ""}
    assert list(uploads.read(store)) == [(file, names[file.agent]) for file in files]
    assert [f for f, _ in uploads.read(store, A)] == [f for f in files if f.agent == A]
    assert [f for f, _ in uploads.read(store, B, NOW + 2)] == [
        f for f in files if f.agent == B and f.received >= NOW + 2
    ]


def test_tables_are_added_to_an_older_database(url):
    """As it was before there were uploads; also if several processes find it so at once."""
    with Store.create(url, DEPLOYMENT) as made, made.writing() as db:
        for table in (upload_tables.uploads, upload_tables.announcements):
            table.drop(db)
    failed = []

    def open_it():
        try:
            with Store.open(url) as store:
                assert put(store, file_of(os.urandom(16), said())) == [True]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    with Store.open(url) as store, store.reading() as db:
        assert uploads.totals(db)["sealed"] == (4, 16)
        names = set(sqlalchemy.inspect(db).get_table_names())
    assert names == set(tables.metadata.tables)


def test_nothing_is_added_to_what_is_not_ours(url):
    with Store.create(url, DEPLOYMENT) as made, made.writing() as db:
        db.execute(tables.meta.update().where(tables.meta.c.name == "schema").values(value="9"))
        upload_tables.uploads.drop(db)
    with pytest.raises(StoreError, match="version 9"):
        Store.open(url)


def test_the_tables_are_known_to_whoever_imports_the_store():
    code = (
        "from upseal.fleet.server.store import Store\n"
        "from upseal.fleet.server import tables\n"
        "assert {'uploads', 'upload_announcements'} <= set(tables.metadata.tables)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

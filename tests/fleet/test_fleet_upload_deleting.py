# SPDX-License-Identifier: Apache-2.0
"""Stored files are deleted, by hand or after `keep_upload_days`, and stay known; what may be stored
in all has a bound. On SQLite and PostgreSQL, and whatever is killed in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from fleet_server_support import Site, now_ms, until
from fleet_server_uploads_support import (
    LIMITS,
    Upload,
    announce,
    ask,
    content,
    finished,
    put,
    rows,
    send,
)

from upseal.cli import main
from upseal.fleet.http.results import State
from upseal.fleet.server import tables, upload_tables
from upseal.fleet.server.page.facts import Facts
from upseal.fleet.server.settings import read_settings
from upseal.fleet.server.store import alarms, audit, deletions, uploads
from upseal.fleet.server.uploads import bound, deleting, working
from upseal.fleet.server.uploads import content as contents
from upseal.fleet.server.uploads.content import incoming_folder, stored_folder
from upseal.fleet.server.uploads.deleting import Deleting
from upseal.fleet.settings import SettingsError
from upseal.fleet.units import Status
from upseal.fleet.uploads.shelf import Shelf

DAY = 86_400_000


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def made(request, tmp_path_factory):
    database = None
    if request.param == "postgresql":
        database = request.getfixturevalue("postgresql").database()
    made = Site(tmp_path_factory.mktemp("site") / "deployment", database)
    made.enable()
    with made.running():
        made.web = made.enrol("web-1")
    return made


@pytest.fixture
def site(made):
    """Not running, with the usual settings, and without files."""
    made.settings = read_settings(made.folder)
    with made.store() as store, store.writing() as db:
        for table in (upload_tables.uploads, upload_tables.deletions, tables.alarms):
            db.execute(table.delete())
    shutil.rmtree(stored_folder(made.settings), ignore_errors=True)
    made.acts = 0
    made.acts = len(acts(made))
    return made


def limited(site, **limits):
    site.settings = replace(site.settings, limits=replace(site.settings.limits, **limits))


@pytest.fixture
def cli(capsysbinary):
    def run(site, *arguments, code=0):
        capsysbinary.readouterr()
        assert main(["server", "uploads", *arguments, "-d", str(site.folder)]) == code
        out = capsysbinary.readouterr()
        assert bool(out.err) == bool(code)
        return (out.err if code else out.out).decode()

    return run


def which(sender, *files):
    return [f"{sender.name}/{file.announcement.upload.hex()}" for file in files]


def stored(site, sender, count=1, data=b"some bytes of a file", form="sealed"):
    """So many files, brought to a server that runs."""
    files = [Upload.make(site, data + b"%d" % i, form, name=b"file %d" % i) for i in range(count)]
    for file in files:
        assert send(sender, file).state is State.DONE
    return files


def path_of(site, sender, file):
    name = f"{sender.agent.hex()}/{file.announcement.upload.hex()}"
    return stored_folder(site.settings) / name


def there(site, sender, files):
    return [path_of(site, sender, file).exists() for file in files]


def acts(site, act=None):
    """Of the audit log, in this test."""
    with site.store() as store, store.reading() as db:
        audit.verify(db)
        found = list(audit.entries(db))[site.acts :]
        return [(e.actor, e.details) for e in found if act in (None, e.act)]


def left(site):
    """Deleted files of which the server has not seen that the bytes are gone."""
    with site.store() as store, store.reading() as db:
        return deletions.left(db)


def aged(site, sender, files, days):
    received = now_ms() - days * DAY
    with site.store() as store, store.writing() as db:
        for file in files:
            here = upload_tables.uploads.c
            db.execute(
                upload_tables.uploads.update()
                .where(here.agent == sender.agent, here.upload == file.announcement.upload)
                .values(received=received)
            )


# -- by hand --------------------------------------------------------------------------------


def test_deleting_beside_a_running_server(site, cli, tmp_path):
    with site.running():
        gone, stays = stored(site, site.web, 2)
        assert put(site.web, gone.ticket, gone.body) is False  # it has it
        assert cli(site, "--delete", *which(site.web, gone)) == "1 deleted\n"
        assert there(site, site.web, [gone, stays]) == [False, True]
        ((_, said),) = acts(site, "uploads-delete")
        ids = [f"{site.web.agent.hex()}/{gone.announcement.upload.hex()}"]
        assert said == {"count": 1, "bytes": len(gone.data), "uploads": ids}
        until(lambda: not left(site), "the server to see it")

        # It stays known: the same body, and one that was sealed anew, are duplicates.
        again = gone.again(site)
        for file in (gone, again):
            announce(site.web, file)
            assert put(site.web, file.ticket, file.body) is False
            result = finished(site.web, file.id)
            said = site.web.statuses(result)
            assert said == {file.digest(site.web): Status.DUPLICATE}
        assert site.web.statuses(ask(site.web, stays.id)) == {stays.digest(site.web): Status.STORED}
        assert there(site, site.web, [gone, stays]) == [False, True]

        # Once more is no error, and no act.
        assert json.loads(cli(site, "--delete", *which(site.web, gone), "--json")) == {
            "act": "delete", "count": 0,
        }  # fmt: skip
        assert len(acts(site, "uploads-delete")) == 1
        known = which(site.web, stays, stays)
        assert json.loads(cli(site, "--json", "--delete", *known))["count"] == 1
        assert there(site, site.web, [stays]) == [False]


def test_what_lists_say_of_them(site, cli, tmp_path):
    began = now_ms()
    with site.running():
        gone, stays = stored(site, site.web, 2)
    cli(site, "--delete", *which(site.web, gone))
    names = [file.announcement.upload.hex() for file in (gone, stays)]

    def listed(*how):
        found = map(json.loads, cli(site, "--json", *how).splitlines())
        return {one["upload"]: one["deleted"] for one in found if one["upload"] in names}

    assert listed() == {names[1]: None}
    everything = listed("--deleted")
    assert everything[names[1]] is None and everything[names[0]] >= began
    assert names[0] not in cli(site)
    (line,) = [line for line in cli(site, "--deleted").splitlines() if names[0] in line]
    assert "  deleted 20" in line.partition(names[0])[0] and line.endswith("  file 0")
    target = tmp_path / "copy"
    said = cli(site, "--get", *which(site.web, gone), "-o", str(target), code=1)
    assert "was deleted at 20" in said and not target.exists()
    with site.store() as store:
        facts = Facts(store, site.settings, site.manifest).status()["uploads"]
    present = rows(site)
    assert (facts["count"], facts["bytes"]) == (len(present), sum(row.size for row in present))
    shown = {one["upload"] for one in facts["newest"]}
    assert names[1] in shown and names[0] not in shown


def test_all_of_them_or_none(site, cli):
    with site.running():
        (file,) = stored(site, site.web)
    (known,) = which(site.web, file)
    assert "no upload" in cli(site, "--delete", known, "web-1/" + "0" * 32, code=1)
    assert "no client" in cli(site, "--delete", known, "nobody/" + "0" * 32, code=1)
    for wrong in ("web-1", "web-1/12", "/" + "0" * 32):
        assert "--delete takes CLIENT/UPLOAD" in cli(site, "--delete", known, wrong, code=2)
    for other in (["--get", known], ["-o", "x"], ["--client", "web-1"], ["--since", "1h"],
                  ["--deleted"]):  # fmt: skip
        assert "--" in cli(site, *other, "--delete", known, code=2)
    assert "--deleted" in cli(site, "--get", known, "--deleted", code=2)
    assert there(site, site.web, [file]) == [True]
    assert rows(site)[-1].deleted is None and not acts(site)


def test_from_another_machine_the_server_removes_them(site, cli, tmp_path):
    """Where the files do not lie here: only the database is the same."""
    with site.running():
        (file,) = stored(site, site.web)
    away = tmp_path / "away"
    away.mkdir()
    text = (site.folder / "deployment.toml").read_text()
    if not site.settings.database.startswith("postgresql"):
        assert 'database = "sqlite:///server.db"' in text
        text = text.replace("sqlite:///server.db", f"sqlite:///{site.settings.database}")
    (away / "deployment.toml").write_text(text)
    elsewhere = type("Elsewhere", (), {"folder": away})
    assert cli(elsewhere, "--delete", *which(site.web, file)) == "1 deleted\n"
    assert there(site, site.web, [file]) == [True]
    with site.running():
        until(lambda: there(site, site.web, [file]) == [False], "the server to remove it")
        until(lambda: not left(site), "it to be noted")
    assert not (away / "uploads").exists()


def test_a_body_that_was_still_on_the_shelf_is_not_stored_again(site, cli):
    """A server was killed when the file was stored and its body not yet removed."""
    with site.running():
        files = [*stored(site, site.web), *stored(site, site.web, form="clear")]
    cli(site, "--delete", *which(site.web, *files))
    shelf = Shelf(incoming_folder(site.settings), LIMITS)
    for file in files:
        held = shelf.create(site.web.hop_id, "agent", file.ticket)
        shelf.append(held, 0, file.body)
        assert shelf.complete(held)
    shelf.close()
    with site.running():
        for file in files:
            result = finished(site.web, file.id)
            assert site.web.statuses(result) == {file.digest(site.web): Status.DUPLICATE}
        until(lambda: not list(incoming_folder(site.settings).glob("*.whole")), "the shelf")
    assert there(site, site.web, files) == [False, False]


def test_what_cannot_be_removed_is_tried_again_and_holds_up_nothing(site, cli, monkeypatch):
    monkeypatch.setattr(deleting, "AGAIN", 0.05)
    with site.running():
        files = stored(site, site.web, 2)
        stuck = path_of(site, site.web, files[0])
        stuck.unlink()
        stuck.mkdir()  # what no unlink takes
        assert "cannot be removed" in cli(site, "--delete", *which(site.web, *files), code=4)
        assert there(site, site.web, files) == [True, False]
        until(lambda: len(left(site)) == 1, "the other one")
        assert site.get("/readyz").status == 200
        stuck.rmdir()
        stuck.write_bytes(files[0].data)
        until(lambda: not left(site), "this one as well")
        assert there(site, site.web, files) == [False, False]


def test_many_that_cannot_be_removed_are_looked_at_no_more_for_a_while(site, tmp_path, monkeypatch):
    monkeypatch.setattr(deleting, "_STUCK", 3)
    monkeypatch.setattr(deleting, "_STEP", 2)
    asked = []
    with site.running():
        files = stored(site, site.web, 6)
    with site.store() as store:
        with store.writing() as db:
            deletions.put(db, [(site.web.agent, f.announcement.upload) for f in files], now_ms())
        told = []
        kept = Deleting(store, stored_folder(site.settings), 0, told.extend)

        def refuse(folder, path):
            asked.append(path)
            raise PermissionError(13, "no")

        monkeypatch.setattr(deleting, "remove", refuse)
        for _ in range(5):
            kept.round()
        assert len(asked) == len(set(asked)) == 4 and not told
        monkeypatch.setattr(deleting, "remove", contents.remove)
        kept._stuck_until = 0.0
        kept.round()
        assert {row.path for row in told} >= set(asked) and len(told) == 6
    assert there(site, site.web, files) == [False] * 6


def test_two_at_once_delete_each_once(site):
    with site.running():
        files = stored(site, site.web, 8)
    ids = [(site.web.agent, file.announcement.upload) for file in files]

    now = now_ms()

    def delete(number):
        with site.store() as store, store.writing() as db:
            return deletions.put(db, ids, now + number)

    with ThreadPoolExecutor(4) as pool:
        done = [one for some in pool.map(delete, range(4)) for one in some]
    assert sorted(done) == sorted(ids)


# -- kill -9 --------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from upseal.cli import main
from upseal.cli import server_uploads as act

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

{patch}
main(sys.argv[1:])
"""


def killed(code, *words):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UPSEAL_")}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], env=environment, timeout=60,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""


@pytest.mark.parametrize(
    ("patch", "written", "files_left"),
    [
        ("act.audit.append = die", False, 2),  # in the transaction
        ("act._remove = die", True, 2),  # behind it
        (
            "real, done = act.remove, []\n"
            "act.remove = lambda *a: (done and die(), real(*a), done.append(a))",
            True, 1,
        ),  # between the first file and the second
    ],
)  # fmt: skip
def test_the_act_is_killed(site, cli, patch, written, files_left):
    with site.running():
        files = stored(site, site.web, 2)
    killed(
        _KILLED.format(patch=patch), "server", "uploads", "--delete", *which(site.web, *files),
        "-d", site.folder,
    )  # fmt: skip
    assert sum(there(site, site.web, files)) == files_left
    assert len(acts(site, "uploads-delete")) == written
    deleted = {row.upload for row in rows(site)}.isdisjoint(f.announcement.upload for f in files)
    assert deleted == written
    with site.running():
        if written:  # what is left over goes at the start
            until(lambda: not left(site), "the rest")
            assert there(site, site.web, files) == [False, False]
        result = send(site.web, files[1])
        status = Status.DUPLICATE if written else Status.STORED
        assert set(site.web.statuses(result).values()) == {status}
    assert sum(there(site, site.web, files)) == (0 if written else 2)


_ROUND_KILLED = """
import os, signal, sys
from pathlib import Path
from upseal.fleet.server.store import Store, deletions
from upseal.fleet.server.uploads import deleting

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

deletions._STEP, deleting._TURN = 3, 600.0
{patch}
with Store.open(sys.argv[1]) as store:
    deleting.Deleting(store, Path(sys.argv[2]), 30, len).round()
"""


@pytest.mark.parametrize(
    ("patch", "marked", "files_left"),
    [
        ("deletions.drop = die", 0, 8),  # the audit row says what goes, and nothing has gone
        ("deleting.remove = die", 3, 8),  # some are written down
        ("deletions.removed = die", 3, 5),  # their bytes are gone, and that is not written down
        (
            "real, n = deletions.drop, []\n"
            "deletions.drop = lambda *a: (len(n) == 2 and die(), n.append(1), real(*a))[2]",
            6, 2,
        ),
    ],
)  # fmt: skip
def test_upkeep_is_killed_while_old_files_go(site, patch, marked, files_left):
    with site.running():
        web = site.web
        old, new = stored(site, web, 8), stored(site, web, 2)
    aged(site, web, old, 31)
    killed(_ROUND_KILLED.format(patch=patch), site.settings.database, stored_folder(site.settings))
    assert sum(there(site, web, old)) == files_left
    assert len(rows(site)) == 10 - marked
    limited(site, keep_upload_days=30)
    with site.running():
        until(lambda: not any(there(site, web, old)) and not left(site), "the rest")
        assert set(web.statuses(send(web, old[0])).values()) == {Status.DUPLICATE}
    assert all(there(site, web, new)) and len(rows(site)) == 2
    said = [(actor, a["uploads"]) for actor, a in acts(site, "drop-old-uploads")]
    assert said == [("server", 8), ("server", 8 - marked)]


# -- after so many days -----------------------------------------------------------------------


def test_files_go_after_their_days_and_not_before(site, monkeypatch):
    now = now_ms()
    with site.running():
        web = site.web
        old, young = stored(site, web, 7), stored(site, web, 2)
    aged(site, web, old, 31)
    aged(site, web, young[:1], 29)
    with site.running():  # 0: for ever
        assert len(rows(site)) == 9
    monkeypatch.setattr(deletions, "_STEP", 2)
    monkeypatch.setattr(deleting, "_TURN", 0.0)
    with site.store() as store:
        kept = Deleting(store, stored_folder(site.settings), 30, lambda gone: None)
        counts = []
        for _ in range(20):
            kept.round()
            counts.append(sum(there(site, web, old)))
        steps = [a - b for a, b in zip([7, *counts], counts, strict=False)]
        assert counts[-1] == 0 and max(steps) <= 2
        assert all(there(site, web, young)) and len(rows(site)) == 2
        kept._look_at = 0.0
        kept.round()  # nothing is left to do, and nothing is written about it
    ((actor, said),) = acts(site, "drop-old-uploads")
    size = sum(len(file.data) for file in old)
    assert (actor, said["uploads"], said["bytes"]) == ("server", 7, size)
    assert abs(said["received_before"] - (now - 30 * DAY)) < 600_000


def test_those_deleted_by_hand_are_not_counted_again(site, cli):
    limited(site, keep_upload_days=30)
    with site.running():
        web = site.web
        files = stored(site, web, 3)
    aged(site, web, files, 31)
    cli(site, "--delete", *which(web, files[0]))
    with site.running():
        until(lambda: not rows(site) and not left(site), "the others")
    ((_, said),) = acts(site, "drop-old-uploads")
    assert said["uploads"] == 2


def test_a_database_from_before(site, cli):
    """The table comes when the store is opened."""
    with site.running():
        web = site.web
        (file,) = stored(site, web)
    with site.store() as store, store.writing() as db:
        upload_tables.deletions.drop(db)
    with site.store() as store, store.reading() as db:
        assert uploads.totals(db)["sealed"][0] == 1
    assert cli(site, "--delete", *which(web, file)) == "1 deleted\n"
    assert rows(site) == []


# -- how much in all --------------------------------------------------------------------------


def full_alarms(site):
    with site.store() as store, store.reading() as db:
        return [a for a in alarms.listing(db) if a.kind == "uploads-full"]


def test_new_files_wait_when_enough_is_stored(site, cli, capsysbinary, monkeypatch):
    monkeypatch.setattr(working, "KEY_AGAIN", 600.0)  # they are told when there is room
    limited(site, stored_upload_bytes=1000)
    with site.running():
        web, db = site.web, site.enrol("db-1")
        small, large = stored(site, web, 2, os.urandom(600))
        assert not full_alarms(site)
        waiting = [Upload.make(site, b"w%d" % i, ("sealed", "clear")[i % 2]) for i in range(4)]
        for file in waiting:
            announce(db, file)
            put(db, file.ticket, file.body)
        until(lambda: full_alarms(site), "the alarm")
        for file in waiting:
            assert ask(db, file.id).state is State.PENDING
        assert not any(there(site, db, waiting))
        (alarm,) = full_alarms(site)
        assert (alarm.times, alarm.subject) == (1, b""), "once, however many wait"
        assert alarm.details["stored_upload_bytes"] == 1000 <= alarm.details["bytes"]

        # What needs no room is answered: another body of what is stored.
        again = small.again(site)
        assert set(web.statuses(send(web, again)).values()) == {Status.DUPLICATE}

        # It is said like other alarms.
        capsysbinary.readouterr()
        assert main(["admin", "status", "-d", str(site.folder)]) == 0
        assert b"uploads-full" in capsysbinary.readouterr().out
        with site.store() as store:
            shown = Facts(store, site.settings, site.manifest).status()["alarms"]
        assert "uploads-full" in {one["kind"] for one in shown}

        cli(site, "--delete", *which(web, large))
        for file in waiting:
            result = until(lambda f=file: _done(db, f), "room")
            assert set(db.statuses(result).values()) == {Status.STORED}
        found = {row.upload: content(site, row) for row in rows(site, db.agent)}
        assert found == {file.announcement.upload: file.data for file in waiting}


def _done(sender, file):
    result = ask(sender, file.id)
    return result if result.state is State.DONE else None


def test_those_that_wait_wait_through_a_restart(site, cli, monkeypatch):
    monkeypatch.setattr(working, "KEY_AGAIN", 600.0)
    limited(site, stored_upload_bytes=10)
    with site.running():
        web = site.web
        (first,) = stored(site, web)
        second = Upload.make(site, b"second")
        announce(web, second)
        put(web, second.ticket, second.body)
        until(lambda: full_alarms(site), "the alarm")
    with site.running():
        assert ask(web, second.id).state is State.PENDING
        cli(site, "--delete", *which(web, first))
        until(lambda: _done(web, second), "room")


def test_a_file_counts_until_its_bytes_are_gone(site, monkeypatch):
    with site.running():
        web = site.web
        files = stored(site, web, 2, b"x" * 99)
    ids = [(web.agent, file.announcement.upload) for file in files]
    with site.store() as store:
        kept = bound.Bound(store, 150)
        assert kept.reached()
        with store.writing() as db:
            deletions.put(db, ids[:1], now_ms())
        kept.changed()
        assert kept.reached(), "it is there still"
        told = []
        Deleting(store, stored_folder(site.settings), 0, told.extend).round()
        assert kept.reached(), "nobody has said so"
        kept.changed()
        assert not kept.reached()
        kept.more(50)
        assert kept.reached()
        monkeypatch.setattr(bound, "_BELIEVED", 0.0)
        kept.changed()
        assert not kept.reached(), "it is added up again"
        assert not bound.Bound(store, 0).reached() and bound.Bound(store, 1).reached()
        assert [row.body_id for row in told] == [files[0].id]


# -- settings and pages -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["keep_upload_days", "stored_upload_bytes"])
def test_what_the_settings_may_be(tmp_path, name):
    site = Site(tmp_path / "site")
    page = site.folder / "deployment.toml"
    before = page.read_text()
    for said, good in (("0", True), ("3650", True), ("-1", False), ('"7"', False), ("1.5", False)):
        page.write_text(f"{before}\n[server]\n{name} = {said}\n")
        if good:
            assert getattr(read_settings(site.folder).limits, name) == int(said)
        else:
            with pytest.raises(SettingsError, match=name):
                read_settings(site.folder)
    docs = Path(__file__).parents[2] / "docs"
    assert f"\n{name} = " in (docs / "cli.md").read_text()
    assert f"| `{name}` |" in (docs / "administration.md").read_text()


def test_the_pages_name_the_options_and_the_alarm():
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "cli.md").read_text().partition("## upseal server")[2].partition("\n## ")[0]
    for word in ("`--delete CLIENT/UPLOAD...`", "`--deleted`", "`uploads-full`"):
        assert word in page, word
    assert "| `uploads-full` |" in (docs / "administration.md").read_text()


def test_a_stored_folder_that_is_gone_is_no_trouble(site, cli):
    """Somebody was there by hand."""
    with site.running():
        web = site.web
        (file,) = stored(site, web)
        shutil.rmtree(path_of(site, web, file).parent)
        assert cli(site, "--delete", *which(web, file)) == "1 deleted\n"
        until(lambda: not left(site), "the server")
        assert site.get("/readyz").status == 200

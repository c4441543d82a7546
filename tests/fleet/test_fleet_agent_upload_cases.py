# SPDX-License-Identifier: Apache-2.0
"""Files that are odd, disks that are full or lie, and processes that die in the middle."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
from itertools import product

import fleet_agent_uploads_support as common
import pytest
from fleet_agent_support import make_folder, settings_for
from fleet_agent_uploads_support import (
    PIECE,
    ROOM,
    agents_below,
    consistent,
    ended,
    eventually,
    pattern,
    row_of,
    salt_and_header,
)
from fleet_support import Site
from support import wait_for_children

from upseal import Opener, OpenError, Sealer
from upseal.cli import main
from upseal.core.files import seal_file_kept
from upseal.fleet.agent import SpoolError, SpoolFull
from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.parent import Believed
from upseal.fleet.agent.rows import SCHEMA
from upseal.fleet.agent.uploads import bodies, folder, ledger, rows
from upseal.fleet.agent.uploads.making import Travel, travel_of
from upseal.fleet.agent.uploads.rows import Row, UploadState
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.policy import Absent, Certificate, Level, Parent, decide

SIZE = 3 * PIECE + 17
quick, site, above, parent = common.quick, common.site, common.above, common.parent


@pytest.fixture
def run(site, parent, tmp_path):
    with agents_below(site, tmp_path, parent.url, started=False) as begin:
        yield begin


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(pattern(SIZE))
    return path


def moved(parent):
    return [size for name, size in parent.moves if name == "PATCH"]


def path_of(agent, upload):
    return agent.uploads.folder.path / row_of(agent, upload).file


# -- the file ------------------------------------------------------------


def test_every_name_that_a_file_system_takes(run, parent, tmp_path):
    agent = run()
    every = bytes(c for c in range(1, 256) if c != ord("/"))
    names = [every[:127], every[127:], b"\n", b" ", b"-rf", b".hidden", b"\xff\xfe", b"x" * 255]
    for name in names:
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "wb") as made:
            made.write(name)
        agent.upload(path)
    assert sorted(os.fsencode(u["name"]) for u in agent.uploads.listed({}, False)) == sorted(names)
    agent.start()
    ended(agent)
    assert parent.files == {name: name for name in names}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0b", b"x" * 1025])
def test_names_that_are_none(run, file, name):
    agent = run()
    with pytest.raises(ValueError, match="name"):
        agent.upload(file, name=name)
    assert consistent(agent).made == 0


def test_what_is_no_regular_file(run, tmp_path, file):
    agent = run()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/null", "/proc/self/status"):
        with pytest.raises(ValueError, match="file"):
            agent.upload(path)
    for error, path in ((FileNotFoundError, tmp_path / "none"), (NotADirectoryError, file / "x")):
        with pytest.raises(error):
            agent.upload(path)
    (tmp_path / "link").symlink_to(file)
    agent.upload(tmp_path / "link")
    assert consistent(agent).made == 1


def test_sparse(run, parent, tmp_path):
    """Two sizes: one that is sent, and one so large that it is only looked at here."""
    agent = run(uploads={"min_free": 0})
    for size in (24 << 20, 256 << 20):
        with open(tmp_path / str(size), "wb") as made:
            made.truncate(size - 4)
            made.seek(0, os.SEEK_END)
            made.write(b"end!")
        upload = agent.upload(tmp_path / str(size))
    row = row_of(agent, upload)
    with (
        agent.uploads.folder.open(row.file) as sealed,
        agent.uploads.maker._plaintext(row, sealed) as reader,
    ):
        assert reader.size == size
        for offset in (0, 99_999_999, size - 100_000):
            reader.seek(offset)
            assert not reader.read(99_990).strip(b"\0")
        reader.seek(-4, os.SEEK_END)
        assert reader.read() == b"end!"
    agent.uploads.cancel(upload)
    agent.start()
    ended(agent)
    ((said, data),) = parent.stored.values()
    assert (said.size, len(data)) == (24 << 20, 24 << 20)
    assert data.lstrip(b"\0") == b"end!"


def test_a_source_that_changes_afterwards_makes_no_difference(run, parent, file):
    agent = run()
    agent.upload(file)
    file.write_bytes(b"something else")
    agent.upload(file, name="second")
    file.unlink()
    agent.start()
    ended(agent)
    assert parent.files == {b"file": pattern(SIZE), b"second": b"something else"}


def test_a_log_that_grows_while_it_is_sealed(run, parent, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(pattern(3 << 20))
    agent = run()

    def grow(done, total):
        with open(path, "ab") as log:
            log.write(b"more")

    agent.upload(path, progress=grow)
    agent.start()
    ended(agent)
    assert parent.files == {b"log": pattern(3 << 20)}


def test_a_source_that_shrinks_is_not_taken(run, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(pattern(8 << 20))
    agent = run()
    with pytest.raises(OSError, match="shorter"):
        agent.upload(path, progress=lambda done, total: os.truncate(path, 1))
    counters = consistent(agent)
    assert (counters.made, counters.refused) == (0, 0)


def test_two_agents_with_the_same_file(run, parent, file):
    first, second = run("first"), run("second")
    ids = {first.upload(file), first.upload(file), second.upload(file)}
    for agent in (first, second):
        agent.start()
    assert (ended(first).stored, ended(second).stored) == (2, 1)
    assert len(ids) == len(parent.stored) == len(set(parent.bodies_seen.values())) == 3
    salts, sessions = zip(*map(salt_and_header, parent.bodies_seen.values()), strict=True)
    assert len(set(salts)) == len(set(sessions)) == 3


# -- room ------------------------------------------------------------


def test_a_full_folder_refuses_and_what_was_taken_stays(run, parent, file):
    agent = run(uploads={"min_free": 0, "max_bytes": 2 * SIZE + 20_000})
    for _ in range(2):
        agent.upload(file)
    with pytest.raises(SpoolFull, match="uploads"):
        agent.upload(file)
    counters = consistent(agent)
    assert (counters.made, counters.refused) == (2, 1)
    assert agent.spool.counters().made == 2
    agent.start()
    ended(agent)
    agent.upload(file)
    assert ended(agent).stored == 3


def test_the_limit_holds_for_two_at_once(run, file):
    """Both looked whether there is room before either was written down."""
    agent = run(uploads={"min_free": 0, "max_bytes": SIZE + 20_000})
    with pytest.raises(SpoolFull):
        agent.upload(file, progress=lambda done, total: agent.uploads.counters().made
                     or agent.upload(file, name="the quicker one"))  # fmt: skip
    assert consistent(agent).made == 1


def test_too_large_a_full_disk_and_no_room_for_the_announcement(run, file):
    agent = run(uploads={"min_free": 0, "max_size": SIZE - 1})
    with pytest.raises(ValueError, match="max_size"):
        agent.upload(file)
    scarce = run("scarce", uploads={"min_free": 1 << 59})
    with pytest.raises(SpoolFull, match="disk"):
        scarce.upload(file)
    full = run("full", spool={"max_bytes": 1 << 16, "min_free": 0})
    with pytest.raises(SpoolFull):
        for _ in range(1000):
            full.report(bytes(500))
    while True:
        with contextlib.suppress(SpoolFull):
            full.report(b"")
            continue
        break
    with pytest.raises(SpoolFull):
        full.upload(file)
    for one in (agent, scarce, full):
        assert consistent(one).made == 0
    assert full.uploads.counters().refused == scarce.uploads.counters().refused == 1


_NO_ROOM = """
import resource, sys
from upseal.fleet.agent import Agent, Settings, SpoolFull
agent = Agent(Settings.load(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    agent.upload(sys.argv[2])
except SpoolFull:
    print(agent.uploads.counters().refused)
agent.upload(sys.argv[3])
"""


def python(code, *args, code_wanted=0):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == code_wanted, done.stderr
    return done.stdout


def toml(agent):
    path = agent.settings.directory / "agent.toml"
    path.write_text(f'parent = "{agent.settings.parent}"\n[spool]\nmin_free = 0\n'
                    f"[uploads]\nmin_free = 0\npiece = {PIECE}\n")  # fmt: skip
    return path


def test_a_disk_that_is_full_in_the_middle(run, tmp_path, file):
    agent = run()
    (tmp_path / "large").write_bytes(bytes(4 << 20))
    assert python(_NO_ROOM, toml(agent), tmp_path / "large", file) == "1\n"
    counters = consistent(agent)
    assert (counters.made, counters.refused) == (1, 1)


def test_sealing_anew_waits_for_room(run, parent, file, site, monkeypatch):
    agent = run()
    upload = agent.upload(file)
    first = row_of(agent, upload)
    site.rotate()
    site.sign()
    del site.private[0]
    monkeypatch.setattr(agent.uploads.folder, "free", lambda: 0)
    agent.start()
    eventually(lambda: agent.tally.get("held") >= 3)
    assert (row_of(agent, upload).file, consistent(agent).waiting) == (first.file, 1)
    monkeypatch.undo()
    ended(agent)
    assert parent.files == {b"file": pattern(SIZE)}


@pytest.mark.parametrize("how", ["remake", "announce"])
def test_cancelled_while_its_body_is_made(run, parent, file, site, monkeypatch, how):
    """Sealed anew, or looked at for its digest: what comes of it is thrown away."""
    agent = run(level="none" if how == "announce" else "optional")
    upload = agent.upload(file)
    site.rotate()
    site.sign()
    del site.private[0]
    real, made = getattr(ledger.Ledger, how), agent.spool.counters().made

    def meanwhile(self, row, *args):
        assert agent.uploads.cancel(upload) == upload
        return real(self, row, *args)

    monkeypatch.setattr(ledger.Ledger, how, meanwhile)
    agent.start()
    counters = ended(agent)
    assert (counters.cancelled, counters.stored, counters.bytes) == (1, 0, 0)
    assert agent.spool.counters().made == made, "nothing more is announced"
    assert not parent.stored


def test_dropping_the_oldest_drops_no_announcement(run, parent, file):
    agent = run(spool={"max_bytes": 1 << 16, "min_free": 0, "full": "drop-oldest"})
    agent.upload(file)
    for number in range(300):
        agent.report(b"%d" % number + bytes(500))
    assert agent.spool.counters().lost > 100
    agent.start()
    ended(agent)
    assert parent.files == {b"file": pattern(SIZE)}


# -- a disk that lies ------------------------------------------------------------


def damage(path, how):
    match how:
        case "bit":
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        case "cut":
            os.truncate(path, path.stat().st_size - 1)
        case "gone":
            path.unlink()


@pytest.mark.parametrize("level", ["optional", "none"])
@pytest.mark.parametrize("how", ["bit", "cut", "gone"])
def test_a_damaged_file_is_lost_and_said(run, parent, file, level, how):
    agent = run(level=level)
    good, bad = agent.upload(file, name="good"), agent.upload(file, name="bad")
    damage(path_of(agent, bad), how)
    agent.start()
    eventually(lambda: not agent.uploads.counters().waiting)
    counters = consistent(agent)
    assert (counters.stored, counters.failed) == (1, 1)
    assert agent.uploads.state(bad) is UploadState.FAILED
    assert parent.files == {b"good": pattern(SIZE)}
    assert [alarm["what"] for alarm in agent.alarms.all() if "lost" in alarm["what"]]
    listed = {u["upload"]: u for u in agent.uploads.listed({}, False)}
    assert listed[bad]["why"]
    assert listed[good]["why"] is None
    eventually(lambda: not agent.spool.counters().depth)


@pytest.mark.parametrize("column", ["secret", "facts", "announcement"])
def test_a_damaged_row_is_lost_or_sent_as_it_is(run, parent, file, site, column):
    """What is not needed to send the sealed bytes keeps nobody from sending them."""
    agent = run(level="none" if column == "secret" else "optional")
    upload = agent.upload(file)
    value = bytearray(getattr(row_of(agent, upload), column))
    value[-1] ^= 1
    with agent.spool.writing() as db:
        db.execute(f"UPDATE uploads SET {column} = ?", (bytes(value),))
    agent.start()
    counters = ended(agent)
    assert (counters.stored, counters.failed) == ((1, 0) if column == "facts" else (0, 1))
    assert agent.uploads.listed({}, False)[0]["name"] == (None if column == "facts" else "file")


def test_malformed_says_a_liar_and_the_file_is_whole(run, parent, file):
    agent = run()
    lies = []

    def liar(ids):
        if len(lies) < 3:
            lies.append(ids)
            return [Result.failed(body_id, Problem("malformed")) for body_id in ids]
        return parent._of(ids)

    parent.results_of = liar
    agent.upload(file)
    agent.start()
    counters = ended(agent)
    assert (len(lies), counters.stored, counters.failed) == (3, 1, 0)
    assert agent.tally.get("problem_malformed") == 3


# -- processes that die ------------------------------------------------------------


def dies(agent, source, point):
    """In a child: takes a file, and ends at one point without another word."""

    def die(*_, **__):
        os._exit(9)

    def after(owner, name):
        real = getattr(owner, name)

        def then_die(*args, **named):
            real(*args, **named)
            die()

        setattr(owner, name, then_die)

    progress = None
    match point:
        case "while sealing":
            progress = die
        case "before the disk has it":
            folder.Folder.keep = die
        case "after the disk has it":
            after(folder.Folder, "keep")
        case "before the row is committed":
            rows.insert = die
        case "after the row is committed":
            after(ledger.Ledger, "add")
    agent.upload(source, progress=progress)


def child(work):
    """A forked child that ends with what this gives."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(work())
        finally:
            os._exit(70)
    return pid


@pytest.mark.parametrize(
    ("point", "made"),
    [
        ("while sealing", 0),
        ("before the disk has it", 0),
        ("after the disk has it", 0),
        ("before the row is committed", 0),
        ("after the row is committed", 1),
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_while_a_file_is_taken(run, parent, file, point, made):
    agent = run()
    assert wait_for_children([child(lambda: dies(agent, file, point))]) == [9]
    assert agent.uploads.counters().made == agent.spool.counters().made == made
    assert len(list(agent.uploads.folder.path.iterdir())) == 1, "what it was making lies there"
    agent.start()
    eventually(lambda: agent.uploads.counters().stored == made)
    eventually(lambda: not list(agent.uploads.folder.path.iterdir()))
    consistent(agent)
    assert len(parent.stored) == made


class Killed(BaseException):
    """As if the process had ended here: nothing that would tidy up is run."""


@pytest.mark.parametrize("point", ["keep", "remake", "before the row", "remove", "end"])
def test_dead_at_each_step_of_sending(run, parent, file, site, monkeypatch, point):
    """Sealed anew, then stored; the process ends at one point, and another one goes on."""
    agent = run()
    upload = agent.upload(file)
    bodies_made = [path_of(agent, upload).read_bytes()]
    site.rotate()
    site.sign()
    del site.private[0]
    reached = threading.Event()

    def dead(*_):
        reached.set()
        raise Killed

    def after(real):
        def call(*args, **named):
            real(*args, **named)
            dead()

        return call

    # A process that is killed takes nothing away any more.
    monkeypatch.setattr(folder.os, "unlink", dead if point == "remove" else lambda path: None)
    match point:
        case "keep":
            monkeypatch.setattr(folder.Folder, "keep", after(folder.Folder.keep))
        case "before the row":
            monkeypatch.setattr(ledger.Ledger, "remake", dead)
        case "remake":
            monkeypatch.setattr(ledger.Ledger, "remake", after(ledger.Ledger.remake))
        case "end":
            monkeypatch.setattr(ledger.Ledger, "end", after(ledger.Ledger.end))
    died = []
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(args.exc_type))
    agent.start()
    assert reached.wait(30)
    eventually(lambda: died)
    agent.stop()
    monkeypatch.undo()
    with Agent(agent.settings) as other:
        other.start()
        eventually(lambda: other.uploads.counters().stored == 1)
        eventually(lambda: not list(other.uploads.folder.path.iterdir()))
        ended(other)
        assert other.uploads.state(upload) is UploadState.STORED
    ((said, data),) = parent.stored.values()
    assert (said.upload.hex(), data) == (upload, pattern(SIZE))
    bodies_made += parent.bodies_seen.values()
    salts, sessions = zip(*map(salt_and_header, set(bodies_made)), strict=True)
    assert len(set(salts)) == len(set(sessions)) == len(set(bodies_made)) >= 2


def test_killed_again_and_again_while_it_sends(run, parent, site, tmp_path):
    """A real process, SIGKILL in the middle of its pieces; every file arrives once, as it was."""
    agent = run()
    files = {b"%d" % number: os.urandom(900_000 + number) for number in range(2)}
    for name, data in files.items():
        (tmp_path / os.fsdecode(name)).write_bytes(data)
        agent.upload(tmp_path / os.fsdecode(name))
    path = toml(agent)
    path.write_text(path.read_text() + "throttle = 2000000.0\n[gather]\ninterval = 0\n")
    command = [sys.executable, "-m", "upseal", "agent", "run", "-c", str(path)]
    for most in (3, 9, 20):  # pieces of about 28
        with (
            open(tmp_path / "log", "ab") as log,
            subprocess.Popen(command, stderr=log) as process,
        ):
            eventually(lambda most=most: sum(moved(parent)) >= most * PIECE)
            process.kill()
    assert len(parent.stored) < 2
    agent.start()
    ended(agent)
    assert parent.files == files
    salts = {salt_and_header(body)[0] for body in parent.bodies_seen.values()}
    assert len(salts) == len(parent.bodies_seen) == 2, "nothing was sealed twice"
    assert sum(moved(parent)) <= sum(map(len, parent.bodies_seen.values())) + 6 * PIECE


def test_what_is_being_made_is_nobody_elses_to_sweep(run, file, tmp_path):
    agent = run()
    swept = []
    with Agent(agent.settings) as other:

        def look(done, total):
            swept.append(other.uploads.folder.sweep())

        agent.upload(file, progress=look)
        assert swept
        assert not any(swept)
        foreign = agent.uploads.folder.path / "notes.txt"
        foreign.write_text("somebody's")
        left = agent.uploads.folder.path / f"{bytes(16).hex()}.00000000"
        left.write_bytes(b"left behind")
        assert other.uploads.folder.sweep() == 1
        assert (foreign.exists(), left.exists()) == (True, False)
        foreign.unlink()
    assert consistent(agent).waiting == 1


def test_an_interrupt_after_the_row_is_committed_takes_nothing_away(run, file, monkeypatch):
    agent = run()
    real = ledger.Ledger.add

    def interrupted(*args):
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger.Ledger, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        agent.upload(file)
    assert consistent(agent).waiting == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_children(run, parent, file):
    """One that uploads by itself; and one that is forked in the middle, which takes no part."""
    agent = run()

    def alone():
        agent.upload(file, name="of the child")
        return 3

    assert wait_for_children([child(alone)]) == [3]
    forked = []

    def fork(done, total):
        if not forked:
            forked.append(os.fork())
            if not forked[0]:
                forked[0] = -1

    try:
        agent.upload(file, name="of the parent", progress=fork)
    except RuntimeError:
        os._exit(4 if forked == [-1] else 5)
    except BaseException:
        os._exit(6)
    if forked == [-1]:
        os._exit(0)
    assert wait_for_children(forked) == [4], "it hears that it is not to go on"
    agent.start()
    ended(agent)
    assert parent.files.keys() >= {b"of the child", b"of the parent"}


_OTHER = """
import sys
from upseal.fleet.agent import Agent, Settings
with Agent(Settings.load(sys.argv[1])) as agent:
    for number in range(5):
        print(agent.upload(sys.argv[2], name=f"{sys.argv[3]} {number}"))
"""


def test_other_processes_give_files_while_this_one_sends(run, parent, file):
    agent = run(started=True)
    path = toml(agent)
    uploads = python(_OTHER, path, file, "a").split()
    ended(agent)
    assert len(set(uploads)) == 5
    assert parent.files == {b"a %d" % number: pattern(SIZE) for number in range(5)}


# -- the spool of an earlier release ------------------------------------------------------------


def test_a_spool_made_before_there_were_uploads(site, parent, tmp_path, file):
    home = make_folder(site, tmp_path / "agent")
    with Agent(settings_for(home, parent.url, **ROOM)) as agent:
        agent.report(b"an old report")
    with contextlib.closing(sqlite3.connect(home / "spool.db")) as db:
        for name in ("uploads", "upload_counters"):
            db.execute(f"DROP TABLE {name}")
        db.commit()
        tables = {n for (n,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        assert tables >= {"reports", "units", "state"} and "uploads" not in tables
        assert len(SCHEMA) == 4, "this is what the release before made"
    with Agent(settings_for(home, parent.url, **ROOM)) as agent:
        assert agent.spool.counters().depth == 1
        agent.upload(file)
        agent.start()
        ended(agent)
        assert agent.spool.counters().stored == 2
    assert parent.files == {b"file": pattern(SIZE)}


def test_a_table_of_the_beginning_is_not_made_again(site, parent, tmp_path):
    home = make_folder(site, tmp_path / "agent")
    with Agent(settings_for(home, parent.url)) as agent:
        agent.report(b"an old report")
    with contextlib.closing(sqlite3.connect(home / "spool.db")) as db:
        db.execute("DROP TABLE reports")
        db.execute("DROP TABLE uploads")
        db.commit()
    with Agent(settings_for(home, parent.url)) as agent, pytest.raises(SpoolError):
        agent.spool.oldest()


# -- the parts ------------------------------------------------------------


def test_the_kept_secret_opens_its_own_session_alone(tmp_path, site):
    public, private = site.private[-1].public_key, site.private[-1]
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(pattern(100_000))
    secrets = {}
    for name in ("a", "b"):
        with open(tmp_path / f"{name}.sealed", "wb") as out:
            size, secrets[name] = seal_file_kept(tmp_path / name, out, [public], b"ctx")
        assert size == 100_000
    assert secrets["a"] != secrets["b"]
    sealed = (tmp_path / "a.sealed").read_bytes()
    for opener in (Opener([private]),):
        assert opener.reader(open_bytes(sealed), b"ctx").read() == pattern(100_000)
    with open(tmp_path / "a.sealed", "rb", buffering=0) as raw:
        with bodies.opened(raw, secrets["a"], b"ctx") as reader:
            assert reader.read() == pattern(100_000)
        for secret, context in ((secrets["b"], b"ctx"), (secrets["a"], b"other")):
            with pytest.raises(bodies.Damaged), bodies.opened(raw, secret, context):
                pass


def open_bytes(data):
    import io

    return io.BytesIO(data)


def test_a_kept_session_is_in_no_sealer(site):
    sealer = Sealer([site.private[-1].public_key])
    session, secret = sealer._take_kept()
    again, other = sealer._take_kept()
    assert (session.header, secret) != (again.header, other)
    assert secret != other
    assert not session.take(1 << 20), "one of its messages is taken"
    envelope = sealer.seal(b"report")
    assert not envelope.startswith(session.header)
    assert not any(secret == getattr(session, name, None) for name in session.__slots__)
    with pytest.raises(OpenError):
        Opener([site.private[-1]]).open(session.header + b"x")


KEYS = Site()
KEYS.enable()
CERTIFICATE = Certificate((KEYS.private[0].public_key,))
KEYS.rotate()
NEWER = Certificate((KEYS.private[1].public_key,))


def test_how_each_goes():
    """The whole table, said a second time in other words."""
    certificates = [CERTIFICATE, NEWER, *Absent]
    for case in product(Level, certificates, [None, True, False], [True, False], [True, False]):
        goes_as_it_should(*case)


def goes_as_it_should(level, certificate, accepts, stale, own):
    believed = Believed(None, certificate, Parent(accepts))
    object.__setattr__(believed, "manifest", type("M", (), {"serial": 7})())
    keys = b"" if own else CERTIFICATE.recipients[0].key_id
    row = Row(1, bytes(16), "waiting", 0, None, None, 1, b"", "f", 1, None, b"", keys,
              -1 if own else 5, None, None, None, None)  # fmt: skip
    decision = decide(level, certificate, Parent(accepts))
    travel = travel_of(row, decision, believed, stale)
    usable = isinstance(certificate, Certificate)
    if level is Level.REQUIRED:
        assert travel is not Travel.CLEAR
        assert (travel is Travel.WAIT) == (not usable or accepts is False)
    else:
        assert travel is not Travel.WAIT
    if travel is Travel.SEALED:
        assert not own
    if travel is Travel.CLEAR:
        assert level is not Level.REQUIRED
        assert own or accepts is False or (stale and not usable)
    if travel is Travel.ANEW:
        assert usable
        assert own or (stale and certificate is NEWER)
    if own and level is Level.OPTIONAL and usable and accepts is not False:
        assert travel is Travel.ANEW


# -- the command line ------------------------------------------------------------


@pytest.fixture
def cli(capsys, monkeypatch):
    monkeypatch.setattr("upseal.fleet.http.logs.setup", lambda **how: None)

    def call(*args, code=0):
        got = main(["agent", *map(str, args)])
        out, err = capsys.readouterr()
        assert got == code, err
        return out if code == 0 else err

    return call


def test_command_line(run, parent, file, cli, tmp_path):
    agent = run()
    where = ("-c", toml(agent))
    (tmp_path / "other\nfile").write_bytes(b"other")
    line = cli("upload", file, *where)
    upload = line.split()[0]
    assert (line.split()[1], len(upload)) == (str(file), 32)
    found = json.loads(cli("upload", file, tmp_path / "other\nfile", "--json", *where))["uploads"]
    assert [one["state"] for one in found] == ["waiting"] * 2
    assert found[0]["file"] == str(file)
    assert "one" in cli("upload", file, file, "--name", "x", *where, code=2)
    told = cli("upload", file, tmp_path, *where, code=1)
    assert "not a regular file" in told
    assert "1 of 2" in told
    assert "check the path" in cli("upload", tmp_path / "none", *where, code=4)
    listing = cli("uploads", *where)
    assert listing.count("\n") == 5, "names do not break lines"
    assert upload in listing
    assert "'other\\nfile'" in listing
    assert json.loads(cli("uploads", "--json", *where))["uploads"][0]["upload"] == upload
    assert cli("cancel", upload[:8], *where) == ""
    assert "ended already" in cli("cancel", upload, *where, code=1)
    assert "no upload" in cli("cancel", "ffff" * 8, *where, code=2)
    agent.start()
    assert cli("upload", file, "--name", "waited for", "--wait", *where) == ""
    ended(agent)
    assert json.loads(cli("uploads", "--json", *where))["uploads"][-1]["state"] == "stored"
    status = json.loads(cli("status", "--json", *where))["uploads"]
    assert (status["made"], status["stored"], status["cancelled"]) == (5, 4, 1)
    assert "5 made, 4 stored" in cli("status", *where)
    assert parent.files.keys() == {b"file", b"other\nfile", b"waited for"}


def test_waiting_ends_when_it_is_cancelled(run, file, cli, monkeypatch):
    from upseal.cli import agent_uploads

    agent = run()
    monkeypatch.setattr(agent_uploads, "_LOOK", 0.01)
    show = agent_uploads._show

    def cancel(there, waiting, progress):
        show(there, waiting, progress)
        for upload in list(waiting):
            agent.uploads.cancel(upload)

    monkeypatch.setattr(agent_uploads, "_show", cancel)
    told = cli("upload", file, "--wait", "-c", toml(agent), code=4)
    assert "cancelled" in told
    assert "agent run" in told


def test_once_sends_files_as_well(run, parent, file, cli):
    agent = run()
    path = toml(agent)
    path.write_text(path.read_text() + "[gather]\ninterval = 0\n")
    agent.upload(file)
    agent.close()
    cli("run", "--once", "-c", path)
    assert parent.files == {b"file": pattern(SIZE)}

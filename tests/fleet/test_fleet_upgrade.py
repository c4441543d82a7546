# SPDX-License-Identifier: Apache-2.0
"""From one release to the next with queues full: this one goes on with folders of older ones.

What they left behind lies in `releases`, which says how it was made.
"""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from fleet_nodes import Node, eventually
from fleet_proxy import Proxy

from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.settings import Settings as AgentSettings
from upseal.fleet.agent.uploads.rows import SCHEMA as UPLOADS_SCHEMA
from upseal.fleet.relay.queue import Queue
from upseal.fleet.server import tables, upload_tables
from upseal.fleet.server.store import Store, StoreError
from upseal.fleet.trust import Trust, TrustError

RELEASES = Path(__file__).parent / "releases"
NAMES = sorted(path.name for path in RELEASES.iterdir() if (path / "reports.json").is_file())
AGENTS = ("clear", "seals")


class Left:
    """What a release has left, set up again."""

    def __init__(self, name, folder, stack):
        self.folder, self.stack = folder, stack
        self.reports = json.loads((RELEASES / name / "reports.json").read_text())
        shutil.copytree(RELEASES / name, folder)
        for path in folder.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        for path in folder.rglob("*.sql"):
            database = path.with_suffix("")
            with closing(sqlite3.connect(database, isolation_level=None)) as db:
                db.executescript(path.read_text())
            database.chmod(0o600)
            path.unlink()
        self.nodes = {
            name: Node(name, role, folder / name, folder / f"{name}.log")
            for name, role in (
                ("server", "server"), ("relay", "relay"), *((agent, "agent") for agent in AGENTS),
            )
        }  # fmt: skip
        stack.callback(lambda: [node.kill() for node in self.nodes.values() if node.running])
        url = self.proxy("server")
        self.point("relay", "relay", url)
        url = self.proxy("relay")
        for agent in AGENTS:
            self.point(agent, "agent", url)

    def proxy(self, name):
        return self.stack.enter_context(Proxy(self.nodes[name].address)).url

    def point(self, name, role, url):
        """Where its parent was is nobody any more."""
        path = self.folder / name / f"{role}.toml"
        text, count = re.subn(r'(?m)^parent = ".*"$', f'parent = "{url}"', path.read_text())
        assert count == 1
        path.write_text(text)

    def query(self, name, query):
        path = {"server": "server.db", "relay": "queue.db"}.get(name, "spool.db")
        with closing(sqlite3.connect(self.folder / name / path, timeout=30)) as db:
            return db.execute(query).fetchall()

    def stored(self):
        query = "SELECT a.name, r.body FROM reports r JOIN units u ON r.unit = u.id JOIN agents a USING (agent)"  # noqa: E501
        return Counter((name, bytes(body).decode()) for name, body in self.query("server", query))

    def made(self, *which):
        return Counter(
            (name, line) for step in which for name in AGENTS for line in self.reports[step][name]
        )

    def depth(self, name):
        return self.query(name, "SELECT made - stored - lost FROM state")[0][0]

    def report(self, lines):
        for name in AGENTS:
            with Agent(AgentSettings.load(self.folder / name / "agent.toml")) as agent:
                agent.report_many([line.encode() for line in lines])

    def empty(self):
        for name in AGENTS:
            eventually(lambda n=name: self.depth(n) == 0, f"the receipts of {name}")


@pytest.fixture(params=NAMES)
def left(request, tmp_path):
    with ExitStack() as stack:
        yield Left(request.param, tmp_path / "left", stack)


def test_there_are_such_releases():
    assert len(NAMES) >= 2


def test_everything_arrives_and_nothing_twice(left):
    """The server first, then the relay, then agents, as the page says."""
    assert left.stored() == left.made("first")
    hops = "SELECT count(DISTINCT hop) FROM bodies WHERE done IS NULL"
    assert left.query("relay", hops) == [(len(AGENTS),)]
    each = len(left.reports["third"]["clear"])
    assert [left.depth(name) for name in AGENTS] == [2 * each, 2 * each]

    left.nodes["server"].start()
    left.nodes["relay"].start()
    # The relay alone brings what it has: no agent runs yet.
    eventually(lambda: left.stored() == left.made("first", "second"), "what the relay held")
    for name in AGENTS:
        left.nodes[name].start()
    left.empty()
    assert left.stored() == left.made("first", "second", "third")
    assert [left.query(name, "SELECT lost, refused FROM state") for name in AGENTS] == [
        [(0, 0)], [(0, 0)],
    ]  # fmt: skip

    with Deployment.open(left.folder / "server") as admin:
        assert not admin.rotate(timeout=60).refusals
        assert admin.audit(verify=True)["rows"]
    left.report(["after it"])
    left.empty()
    assert left.stored() == left.made("first", "second", "third") + Counter(
        {(name, "after it"): 1 for name in AGENTS}
    )
    assert not left.query("server", "SELECT kind FROM alarms WHERE kind <> 'silent'")
    for node in left.nodes.values():
        assert not node.events("alarm")


def test_tables_that_came_later_are_made(left):
    """And what is there stays."""
    names = "SELECT name FROM sqlite_schema WHERE type = 'table'"
    before = left.stored()
    with Store.open(left.folder / "server" / "server.db"):
        pass
    assert {name for (name,) in left.query("server", names)} >= set(tables.metadata.tables)
    assert upload_tables.uploads.name in tables.metadata.tables
    assert left.stored() == before
    depths = {name: left.depth(name) for name in AGENTS}
    left.report(["one more"])
    later = set(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", " ".join(UPLOADS_SCHEMA)))
    for name in AGENTS:
        assert later and later <= {found for (found,) in left.query(name, names)}
        assert left.depth(name) == depths[name] + 1


# -- back to an older one: refused, and nothing is lost -------------------------------------


def newer(path):
    """As a release that is not made yet may leave it."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")
        db.commit()


def run(*words):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UPSEAL_")}
    return subprocess.run(
        [sys.executable, "-m", "upseal", *map(str, words)], env=environment, timeout=60,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def newest(tmp_path):
    with ExitStack() as stack:
        yield Left(NAMES[-1], tmp_path / "left", stack)


def test_a_newer_spool_is_refused(newest):
    folder = newest.folder / "seals"
    newer(folder / "spool.db")
    before = newest.query("seals", "SELECT * FROM reports")
    done = run("agent", "run", "-d", folder)
    assert done.returncode
    assert "was made by a newer release" in done.stdout + done.stderr
    assert newest.query("seals", "SELECT * FROM reports") == before
    assert newest.query("seals", "PRAGMA user_version") == [(2,)]


def test_a_newer_queue_is_refused_and_not_set_aside(newest):
    folder = newest.folder / "relay"
    newer(folder / "queue.db")
    before = newest.query("relay", "SELECT * FROM bodies")
    with pytest.raises(ValueError, match="newer release"):
        Queue(folder / "queue.db")
    done = run("relay", "run", "-d", folder)
    assert done.returncode
    assert "was made by a newer release" in done.stdout + done.stderr
    assert newest.query("relay", "SELECT * FROM bodies") == before
    assert newest.query("relay", "PRAGMA user_version") == [(2,)]
    assert not list(folder.glob("*.damaged*"))


def test_a_newer_store_is_refused(newest):
    folder = newest.folder / "server"
    with closing(sqlite3.connect(folder / "server.db")) as db:
        db.execute("UPDATE meta SET value = '2' WHERE name = 'schema'")
        db.commit()
    with pytest.raises(StoreError, match="newer release"):
        Store.open(folder / "server.db")
    done = run("server", "run", "-d", folder)
    assert done.returncode
    assert "was made by a newer release" in done.stdout + done.stderr


def test_newer_trust_is_refused(newest):
    path = newest.folder / "seals" / "trust.json"
    text = path.read_text().replace('"version":1', '"version":2', 1)
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(TrustError, match="version"):
        Trust.load(path)
    assert path.read_text() == text

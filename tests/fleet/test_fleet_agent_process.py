# SPDX-License-Identifier: Apache-2.0
"""The agent as a library and as a process, with a real server: enrolment, forks, signals, kills."""

import contextlib
import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest
from fleet_agent_support import agent_of, drained, eventually, make_folder, parent_above
from fleet_agent_support import settings_for as quick_settings
from fleet_server_support import Site as RealSite
from fleet_support import Site
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from support import wait_for_children

from upseal.cli import main
from upseal.fleet import Agent as Public
from upseal.fleet.agent import AlreadySending, NotEnrolled, Settings, SpoolError
from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.enrolment import EnrolmentRefused, enrol
from upseal.fleet.agent.onesender import OneSender
from upseal.fleet.http.client import Client
from upseal.fleet.policy import Level

MARK = "sesame-plaintext-marker"
QUICK = """
listen = "127.0.0.1:0"
[batch]
seconds = 0.0
[gather]
interval = 0
[spool]
min_free = 0
[send]
refresh = 0.2
retry = 0.05
retry_most = 0.1
beacon = 0.2
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    site = RealSite(tmp_path_factory.mktemp("site") / "d")
    site.enable()
    with site.running():
        yield site


def stored(server):
    """All reports at the server."""
    with contextlib.closing(sqlite3.connect(server.folder / "server.db")) as db:
        return [bytes(body) for (body,) in db.execute("SELECT body FROM reports")]


def upseal(*args, stdin="", monkeypatch=None, capsys=None, code=0):
    """The command line, in this process."""
    if monkeypatch is not None:
        reading, writing = os.pipe()
        os.write(writing, stdin if isinstance(stdin, bytes) else stdin.encode())
        os.close(writing)
        before = os.dup(0)
        os.dup2(reading, 0)
        os.close(reading)
    try:
        got = main(["agent", *map(str, args)])
    finally:
        if monkeypatch is not None:
            os.dup2(before, 0)
            os.close(before)
    out, err = capsys.readouterr()
    assert got == code, err
    return out if code == 0 else err


@pytest.fixture
def cli(monkeypatch, capsys):
    # A handler on the standard error of one test would be in the way of all that come after it.
    monkeypatch.setattr("upseal.fleet.http.logs.setup", lambda **how: None)

    def run(*args, stdin="", code=0):
        return upseal(*args, stdin=stdin, monkeypatch=monkeypatch, capsys=capsys, code=code)

    return run


@pytest.fixture
def folder(server, tmp_path, cli):
    """An agent that the command line has enrolled."""
    folder = tmp_path / "agent"
    args = ("enrol", "--parent", server.url, "--token-file", "-", "-d", folder, "--name", "web-1")
    facts = json.loads(cli(*args, "--json", stdin=server.token().encode()))
    assert (facts["name"], facts["level"]) == ("web-1", "optional")
    with open(folder / "agent.toml", "a") as file:
        file.write(QUICK)
    return folder


@contextlib.contextmanager
def process(folder, *args):
    """`upseal agent run`, for as long as the block."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "upseal", "agent", "run", "-d", str(folder), *args]
    with (
        open(folder.parent / "log", "ab") as log,
        subprocess.Popen(command, stderr=log, env=env) as child,
    ):
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def log_of(folder):
    return (folder.parent / "log").read_text()


# -- enrolment ------------------------------------------------------------------------------


def test_enrolment_makes_a_private_folder(folder, server):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    settings = Settings.load(folder / "agent.toml")
    assert (settings.parent, settings.name) == (server.url, "web-1")
    assert settings.level is Level.OPTIONAL


def test_enrolled_once(folder, server, cli):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    args = ("enrol", "--parent", server.url, "-d", folder, "--token", server.token().encode())
    assert "enrolled already" in cli(*args, code=4)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_enrolment_that_fails_can_be_run_again(server, tmp_path, cli, monkeypatch):
    folder = tmp_path / "agent"
    args = ("enrol", "--parent", server.url, "-d", folder)
    token = server.token()
    wrong = "upseal-token-1.AAAA"
    assert "token" in cli(*args, "--token", wrong, code=2)
    assert "token" in cli(*args, code=2)
    assert "both" in cli(*args, "--token", wrong, "--token-file", "x", code=2)
    assert not folder.exists(), "nothing is made for a token that is none"
    stranger = Site().token().encode()
    assert "vouches" in cli(*args, "--token", stranger, code=1)
    assert "no connection" in cli(
        "enrol", "--parent", "http://127.0.0.1:1", "-d", folder, "--token", stranger, code=4
    )
    assert not (folder / "enrolment.json").exists()
    with pytest.raises(NotEnrolled):
        Agent(Settings(parent=server.url, directory=folder))
    monkeypatch.setenv("UPSEAL_TOKEN", token.encode())
    cli(*args, "--level", "required")
    assert Settings.load(folder / "agent.toml").level is Level.REQUIRED
    other = ("enrol", "--parent", server.url, "-d", tmp_path / "other")
    assert "token" in cli(*other, code=1), "a token is used once"
    log = (tmp_path / "other").exists() and [p.name for p in (tmp_path / "other").iterdir()]
    assert "enrolment.json" not in (log or [])


def test_answers_to_enrolment_that_lie(tmp_path):
    """Another server, or somebody between, that answers with what it likes."""
    site = Site()
    site.enable()
    with parent_above(site) as parent:
        settings = quick_settings(tmp_path / "agent", parent.url)
        token = site.token().encode()
        for said in ("", "nonsense", site.credential(site.agent().hop), site.tokens[-1]):

            async def enrolled(request, said=said):
                return PlainTextResponse(said)

            parent.app.router.routes[4] = Route("/v1/enrol", enrolled, methods=["POST"])
            with pytest.raises(EnrolmentRefused):
                enrol(settings, token)
            assert not (tmp_path / "agent/enrolment.json").exists()
        for manifests in ([], ["x"], [Site().sign()]):
            parent.manifests = lambda manifests=manifests: manifests
            with pytest.raises(EnrolmentRefused):
                enrol(settings, token)


# -- the command line --------------------------------------------------------------------------


def test_report_run_once_status(folder, server, cli):
    before = len(stored(server))
    assert cli("report", "-d", folder, stdin="one report") == ""
    made = json.loads(cli("report", "-d", folder, "--lines", "--json", stdin=f"{MARK}\n\nb\nc"))
    assert made == {"made": 3, "first": 2, "last": 4}
    status = json.loads(cli("status", "-d", folder, "--json"))
    assert status["spool"]["depth"] == 4
    assert status["running"] is False
    assert (status["wanted"], status["actual"], status["why"]) == ("optional", "sealed", "sealed")
    seen = b"".join(path.read_bytes() for path in folder.iterdir())
    assert MARK.encode() not in seen
    assert cli("run", "-d", folder, "--once") == ""
    assert sorted(stored(server)[before:]) == sorted([b"one report", MARK.encode(), b"b", b"c"])
    words = cli("status", "-d", folder)
    assert "4 made, 4 stored, 0 withheld, 0 lost, 0 refused" in words
    assert "web-1" in words


def test_report_from_files_and_what_is_too_long(folder, cli, tmp_path):
    path = tmp_path / "report"
    path.write_bytes(b"x" * (1 << 20))
    cli("report", "-d", folder, path)
    path.write_bytes(b"x" * ((1 << 20) + 1))
    assert "1 MiB" in cli("report", "-d", folder, path, code=1)
    path.write_bytes(b"a\nb\n" + b"x" * ((1 << 20) + 1))
    assert "2 reports before it were taken" in cli("report", "-d", folder, "--lines", path, code=1)
    assert json.loads(cli("status", "-d", folder, "--json"))["spool"]["depth"] == 3
    cli("report", "-d", folder, tmp_path / "none", code=4)


def test_a_full_spool_is_said(folder, cli):
    text = (folder / "agent.toml").read_text()
    (folder / "agent.toml").write_text(
        text.replace("min_free = 0", "max_bytes = 65536\nmin_free = 0")
    )
    cli("report", "-d", folder, stdin="x" * 60_000)
    assert "max_bytes" in cli("report", "-d", folder, stdin="x" * 60_000, code=4)
    facts = json.loads(cli("status", "-d", folder, "--json"))
    assert facts["reports"]["refused"] == 1
    (folder / "spool.db").write_bytes(b"damaged" * 1000)
    assert "damaged" in cli("report", "-d", folder, stdin="x", code=1)
    assert "damaged" in cli("run", "-d", folder, code=1)


def test_gather_shows_and_reports_nothing(folder, cli):
    lines = cli("gather", "-d", folder, "--json", "--what", "cpu", "--what", "memory").splitlines()
    facts = [json.loads(line) for line in lines]
    assert {fact["client"] for fact in facts} == {"web-1"}
    assert {"cpu", "virtual_memory"} <= {fact["property"] for fact in facts}
    assert "virtual_memory" in cli("gather", "-d", folder, "--what", "memory")
    assert "no source" in cli("gather", "-d", folder, "--what", "weather", code=2)
    assert json.loads(cli("status", "-d", folder, "--json"))["spool"]["depth"] == 0


def test_once_beside_another_that_sends_gathers_nothing(folder, cli):
    text = (folder / "agent.toml").read_text()
    (folder / "agent.toml").write_text(
        text.replace("interval = 0", 'interval = 900\nwhat = ["cpu"]')
    )
    other = OneSender(folder / "sender.lock")
    assert other.take()
    try:
        assert "another process" in cli("run", "-d", folder, "--once", code=4)
    finally:
        other.release()
    assert json.loads(cli("status", "-d", folder, "--json"))["spool"]["depth"] == 0


def test_usage(folder, cli, tmp_path, capsys, monkeypatch):
    assert "enrol" in cli("status", "-d", tmp_path / "none", code=2)
    for args in ((), ("nonsense",), ("run", "-c", "a", "-d", "b"), ("run", "--level", "x"),
                 ("enrol",)):  # fmt: skip
        assert main(["agent", *args]) == 2
        assert capsys.readouterr().err.startswith("upseal: ")
    (folder / "agent.toml").write_text('parent = "http://x:1"\nlevle = "none"\n')
    assert "levle" in cli("status", "-d", folder, code=2)
    (folder / "agent.toml").write_text('parent = "http://x:1"\n')
    monkeypatch.setenv("UPSEAL_LEVEL", "loud")
    assert "UPSEAL_LEVEL" in cli("status", "-d", folder, code=2)
    monkeypatch.delenv("UPSEAL_LEVEL")
    (folder / "enrolment.json").write_text("{")
    assert "enrol" in cli("status", "-d", folder, code=2)


def test_levels_that_withhold_end_once_with_a_word(folder, server, tmp_path, cli):
    site = Site()  # a deployment without encryption
    own = make_folder(site, tmp_path / "other")
    with parent_above(site) as parent:
        (own / "agent.toml").write_text(f'parent = "{parent.url}"\n{QUICK}')
        cli("report", "-d", own, stdin=MARK)
        assert "encryption-disabled" in cli(
            "run", "-d", own, "--once", "--level", "required", code=4
        )
        assert parent.beacons
        assert parent.kinds == set()
        cli("run", "-d", own, "--once")
        assert parent.reports == [MARK.encode()]


# -- the process ---------------------------------------------------------------------------------


def test_a_process_sends_and_ends_when_told(folder, server, cli):
    before = len(stored(server))
    with process(folder) as child:
        for i in range(3):
            cli("report", "-d", folder, stdin=f"{MARK} {i}")
        eventually(lambda: len(stored(server)) == before + 3)
        status = eventually(
            lambda: (s := json.loads(cli("status", "-d", folder, "--json")))["tally"] and s
        )
        assert status["running"]
        assert status["pid"] == child.pid
        assert "process" in cli("status", "-d", folder)
        assert "another process" in cli("run", "-d", folder, "--once", code=4)

        serving = eventually(lambda: [line for line in log_of(folder).splitlines()
                                      if '"serving"' in line])  # fmt: skip
        with Client(json.loads(serving[0])["address"]) as client:
            assert client.request("GET", "/healthz").status == 200
            assert client.request("GET", "/readyz").status == 200
            metrics = client.request("GET", "/metrics").body.decode()
        assert "upseal_agent_reports_made_total 3.0" in metrics
        assert 'upseal_agent_events_total{event="sent_sealed"}' in metrics

        text = (folder / "agent.toml").read_text()
        (folder / "agent.toml").write_text(text.replace('"optional"', '"none"'))
        child.send_signal(signal.SIGHUP)
        eventually(lambda: json.loads(cli("status", "-d", folder, "--json"))["wanted"] == "none")
        child.terminate()
        assert child.wait(20) == 0
    log = log_of(folder)
    assert MARK not in log
    assert all(json.loads(line)["event"] for line in log.splitlines())
    assert (folder / "enrolment.json").read_text().split('"credential": "')[1][:40] not in log


def test_killed_and_begun_again(folder, server):
    killed_at_random(folder, server, 4)


@pytest.mark.slow
def test_killed_many_times(folder, server):
    killed_at_random(folder, server, 60)


def killed_at_random(folder, server, rounds):
    """Reports are made all the time, and the process that sends them dies again and again."""
    name = os.urandom(4).hex()
    made, stop = [], threading.Event()
    with Agent(Settings.load(folder / "agent.toml")) as agent:

        def report():
            while not stop.is_set():
                several = [f"{name} {len(made) + i}".encode() for i in range(5)]
                agent.report_many(several)
                made.extend(several)
                time.sleep(0.005)

        thread = threading.Thread(target=report)
        thread.start()
        for _ in range(rounds):
            seen = len(stored(server))
            with process(folder) as child:
                eventually(lambda seen=seen: len(stored(server)) > seen)
                time.sleep(random.uniform(0, 0.2))
                child.kill()
        stop.set()
        thread.join()
        agent.start()
        counters = drained(agent)
    mine = [report for report in stored(server) if report.startswith(name.encode())]
    assert len(mine) == len(made) == counters.made
    assert sorted(mine) == sorted(made)


# -- the library -------------------------------------------------------------------------------


@pytest.fixture
def site():
    made = Site()
    made.enable()
    return made


def test_what_is_no_report(site, tmp_path):
    with agent_of(site, tmp_path, "http://127.0.0.1:1", started=False) as agent:
        for wrong in ("text", None, 5, ["x"]):
            with pytest.raises(TypeError):
                agent.report(wrong)
        with pytest.raises(ValueError, match="1 MiB"):
            agent.report(bytes((1 << 20) + 1))
        with pytest.raises(ValueError, match="1 MiB"):
            agent.report_many([b"fine", bytes((1 << 20) + 1)])
        assert agent.spool.counters().made == 0, "mistakes first: nothing was taken"
        assert agent.report(bytearray(b"x")) == 1
        assert list(agent.report_many([b"", memoryview(b"y")])) == [2, 3]
        assert list(agent.report_many(iter([]))) == []
    with pytest.raises(SpoolError, match="closed"):
        agent.report(b"x")
    assert Public is Agent


def test_reporting_starts_no_thread(site, tmp_path):
    before = threading.active_count()
    with agent_of(site, tmp_path, "http://127.0.0.1:1", started=False) as agent:
        agent.report(b"x")
        agent.status()
        assert threading.active_count() == before


def test_one_sends_and_the_next_takes_over(site, tmp_path):
    with parent_above(site) as parent, agent_of(site, tmp_path, parent.url) as first:
        eventually(lambda: first.sender)
        with Agent(quick_settings(tmp_path / "agent", parent.url)) as second:
            with pytest.raises(AlreadySending):
                second.run(threading.Event())
            with pytest.raises(AlreadySending):
                first.start()
            second.start()
            second.report(b"of the second")
            drained(second)
            assert second.sender is None
            assert second.status()["running"]
            first.stop()
            eventually(lambda: second.sender)
            second.report(b"now its own")
            drained(second)
    assert parent.reports == [b"now its own", b"of the second"]


def test_a_child_reports_and_its_parent_sends(site, tmp_path):
    with parent_above(site) as parent, agent_of(site, tmp_path, parent.url) as agent:
        agent.report(b"before")
        pids = []
        for i in range(3):
            pid = os.fork()
            if pid == 0:
                try:
                    agent.report(b"child %d" % i)
                    assert agent.sender is None
                    agent.run(threading.Event())
                    os._exit(1)
                except AlreadySending:
                    os._exit(0)
                except BaseException:
                    os._exit(2)
            pids.append(pid)
        assert wait_for_children(pids) == [0, 0, 0]
        eventually(lambda: len(parent.reports) == 4)
        drained(agent)


def test_a_child_keeps_nobody_from_sending(site, tmp_path):
    """The lock of a parent that has ended must not live on in its child."""
    with parent_above(site) as parent, agent_of(site, tmp_path, parent.url) as agent:
        eventually(lambda: agent.sender)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
        agent.stop()
        try:
            with Agent(quick_settings(tmp_path / "agent", parent.url)) as second:
                assert second.one.holder() is None
                second.start()
                second.report(b"x")
                drained(second)
        finally:
            os.close(writing)
            os.waitpid(pid, 0)


def test_stopping_does_not_wait_for_the_parent(site, tmp_path):
    """A parent that takes the request and says nothing."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with agent_of(site, tmp_path, url, http={"timeout": 60}) as agent:
            agent.report(b"x")
            connection, _ = silent.accept()
            began = time.monotonic()
            agent.stop()
            assert time.monotonic() - began < 15
            connection.close()
            assert agent.spool.counters().depth == 1


def test_a_damaged_trust_is_said_and_sends_nothing(site, tmp_path, caplog):
    with (
        parent_above(site) as parent,
        agent_of(site, tmp_path, parent.url, started=False) as agent,
    ):
        path = tmp_path / "agent/trust.json"
        path.write_bytes(path.read_bytes()[:-40])
        agent.report(b"x")
        agent.start()
        eventually(lambda: agent.alarms.all())
        assert agent.sender is None
        assert not parent.posts


def test_send_all_says_what_remains(site, tmp_path):
    with agent_of(site, tmp_path, "http://127.0.0.1:1", started=False) as agent:
        agent.report(b"x")
        assert agent.send_all(0.3) == 1
    with parent_above(site) as parent:
        settings = quick_settings(tmp_path / "agent", parent.url, batch={"seconds": 3600})
        with Agent(settings) as agent:
            assert agent.send_all(60) == 0
    assert parent.reports == [b"x"]


def test_reload_takes_level_and_batch(site, tmp_path):
    with agent_of(site, tmp_path, "http://127.0.0.1:1", started=False) as agent:
        now = quick_settings(tmp_path / "agent", "http://127.0.0.1:1", level="required")
        assert agent.reload(now)
        assert agent.status()["wanted"] == "required"
        moved = quick_settings(tmp_path / "agent", "http://127.0.0.1:2", batch={"reports": 7})
        assert not agent.reload(moved)
        assert agent.settings.batch.reports == 7
        assert agent.settings.parent == "http://127.0.0.1:1"


def test_status_of_a_folder_that_was_tampered_with(site, tmp_path):
    with agent_of(site, tmp_path, "http://127.0.0.1:1", started=False) as agent:
        for said in ("[]", "{", '{"actual": null}', "null", "\0" * 100):
            (tmp_path / "agent/status.json").write_text(said)
            assert agent.status()["actual"] == "sealed"

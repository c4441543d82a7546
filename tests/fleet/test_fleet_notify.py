# SPDX-License-Identifier: Apache-2.0
"""What services say to their manager: ready, alive while they get on, stopping; its sockets."""

import http.client
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager

import pytest
from fleet_server_support import Site
from fleet_support import eventually
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from upseal.cli import main
from upseal.fleet.agent import Settings as AgentSettings
from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.signs import signs_of as agent_signs
from upseal.fleet.http.apps import application
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.serving import serve
from upseal.fleet.notify import Notifier, Service, Sign, Watchdog
from upseal.fleet.relay.relay import Relay
from upseal.fleet.relay.settings import Settings as RelaySettings
from upseal.fleet.relay.signs import signs_of as relay_signs
from upseal.fleet.server.running import Server
from upseal.fleet.server.signs import Canary
from upseal.fleet.server.signs import signs_of as server_signs
from upseal.fleet.sockets import inherited

PATIENCE = 60
UPSEAL = [sys.executable, "-m", "upseal"]


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address):
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self._sock.settimeout(PATIENCE)
        self.address, self.heard = address, []

    def next(self):
        text = self._sock.recv(1 << 16).decode()
        self.heard.append(dict(line.split("=", 1) for line in text.splitlines()))
        return self.heard[-1]

    def until(self, name, value=None):
        """The next message with this line."""
        while (found := self.next()).get(name, "") != (value or found.get(name)) or (
            name not in found
        ):
            pass
        return found

    def close(self):
        self._sock.close()


@pytest.fixture
def manager(tmp_path):
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return Site(tmp_path_factory.mktemp("site") / "d")


@pytest.fixture(scope="module")
def fleet(site, tmp_path_factory):
    """A relay's folder and an agent's, enrolled."""
    folder = tmp_path_factory.mktemp("members")
    with site.running():
        for role in ("relay", "agent"):
            token = folder / f"{role}.token"
            with open(token, "w") as file:
                subprocess.run(
                    [*UPSEAL, "admin", "token", "-d", site.folder, "--role", role],
                    stdout=file, check=True, timeout=PATIENCE,
                )  # fmt: skip
            assert not main(
                [
                    role,
                    "enrol",
                    "--parent",
                    site.url,
                    "--token-file",
                    str(token),
                    "--name",
                    role,
                    "-d",
                    str(folder / role),
                ]
            )
    return folder


@contextmanager
def run(role, folder, manager=None, *options, watchdog=2.0, sock=None):
    """A real process, told of a manager; and killed at the end if it still runs."""
    command = [sys.executable, "-m", "upseal", role, "run", "-d", str(folder), *options]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UPSEAL_")}
    before, passed = None, ()
    if manager is not None:
        environment |= {"NOTIFY_SOCKET": manager.address}
        environment |= {"WATCHDOG_USEC": str(int(watchdog * 1e6))}
    if sock is not None:
        command = ["sh", "-c", 'export LISTEN_PID=$$; exec "$@"', "sh", *command]
        environment |= {"LISTEN_FDS": "1"}
        before, passed = lambda: os.dup2(sock.fileno(), 3), (3,)
    child = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=before, pass_fds=passed,
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


def get(address, path="/healthz"):
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
    with closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


def listening():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    return sock


# -- processes ----------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["server", "relay"])
def test_it_says_that_it_is_ready_when_it_serves(role, site, fleet, manager):
    folder = site.folder if role == "server" else fleet / "relay"
    with run(role, folder, manager, "--listen", "127.0.0.1:0") as child:
        first = manager.next()
        assert first["READY"] == "1"
        address = first["STATUS"].rpartition("//")[2].split(":")
        assert get((address[0], int(address[1]))) == 200, "whoever is told may connect at once"
        manager.until("WATCHDOG", "1")
        manager.until("WATCHDOG", "1")
        child.send_signal(signal.SIGTERM)
        manager.until("STOPPING", "1")
        assert child.wait(PATIENCE) == 0


def test_an_agent_says_so_when_it_sends_and_when_it_reads_again(fleet, manager):
    with run("agent", fleet / "agent", manager) as child:
        assert manager.next()["READY"] == "1"
        manager.until("WATCHDOG", "1")
        child.send_signal(signal.SIGHUP)
        begun = manager.until("RELOADING", "1")
        assert int(begun["MONOTONIC_USEC"]) > 0
        assert manager.until("READY", "1")["STATUS"].startswith("sending to http://")
        child.send_signal(signal.SIGTERM)
        manager.until("STOPPING", "1")
        assert child.wait(PATIENCE) == 0


@pytest.mark.parametrize("role", ["server", "relay", "agent"])
def test_health_says_whether_the_process_of_a_folder_lives(role, site, fleet, manager, capsys):
    folder = site.folder if role == "server" else fleet / role
    ask = [role, "health", "-d", str(folder)]
    assert main(ask) == 4
    assert "no process" in capsys.readouterr().err
    options = [] if role == "agent" else ["--listen", "127.0.0.1:0"]
    with run(role, folder, manager, *options) as child:
        manager.until("READY", "1")
        assert main(ask) == 0
        assert capsys.readouterr() == ("", "")
        child.send_signal(signal.SIGSTOP)
        if role == "server":  # the others are asked in the same way, and waited for as long
            assert main(ask) == 4
            assert "does not answer" in capsys.readouterr().err
        child.send_signal(signal.SIGCONT)
    if role != "agent":
        assert (folder / "address").exists(), "it was killed"
        assert main(ask) == 4, "and an old address is no process"


def test_who_cannot_start_is_not_ready(site, manager, tmp_path):
    with run("server", tmp_path, manager) as child:
        assert child.wait(PATIENCE) == 1
    manager._sock.settimeout(0)
    with pytest.raises(BlockingIOError):
        manager.next()


def test_nobody_is_refused_while_a_process_is_replaced(site, manager):
    with listening() as sock, closing(socket.socket()) as waiting:
        with run("server", site.folder, manager, sock=sock) as child:
            assert manager.until("READY", "1")["STATUS"].endswith(str(sock.getsockname()[1]))
            assert get(sock.getsockname()) == 200
            child.send_signal(signal.SIGTERM)
            assert child.wait(PATIENCE) == 0
        waiting.settimeout(PATIENCE)
        waiting.connect(sock.getsockname())
        waiting.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        with run("server", site.folder, sock=sock):
            assert waiting.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.skipif(
    not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not here"
)
def test_it_takes_the_sockets_that_systemd_hands_over(fleet):
    with listening() as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "upseal", "relay", "run", "-d", str(fleet / "relay")]
    child = subprocess.Popen(
        ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", *command], stderr=subprocess.DEVNULL
    )

    def answered():
        try:
            return get(("127.0.0.1", port)) == 200
        except ConnectionRefusedError:
            return False

    try:
        eventually(answered, "systemd-socket-activate", PATIENCE)
    finally:
        child.terminate()
        assert child.wait(PATIENCE) == 0


# -- who is alive -------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def stuck_later(watchdog, clock, seconds=10_000):
    """Who is stuck, if nothing moves for so long."""
    watchdog.stuck()
    clock.now += seconds
    return watchdog.stuck()


def test_who_has_nothing_to_do_is_not_stuck_and_who_gets_on_neither():
    clock, work = Clock(), {"busy": False, "done": 0}
    watchdog = Watchdog([Sign("one", lambda: (work["busy"], work["done"]), 5)], 10, clock)
    assert stuck_later(watchdog, clock) == []
    work["busy"] = True
    assert watchdog.stuck() == [], "it has only just begun"
    clock.now += 15
    assert watchdog.stuck() == []
    clock.now += 0.1
    assert watchdog.stuck() == ["one"]
    work["done"] = 1
    assert watchdog.stuck() == []


def test_each_part_of_a_server_that_hangs_is_seen(site):
    server = Server(site.settings)
    service, clock = Service(Notifier({})), Clock()
    try:
        server.start()
        watchdog = Watchdog(server_signs(server, service), 1, clock)
        stuck_later(watchdog, clock)

        def moving():
            service.ticks += 1
            found = watchdog.stuck()
            clock.now += 10_000
            return not found

        eventually(moving, "all get on", PATIENCE, pause=1.5)  # rounds are one a second
        release, held = threading.Event(), threading.Semaphore(0)

        def hang():
            held.release()
            release.wait()

        for _ in range(site.settings.limits.threads):
            server.pool.submit(hang)
        for _ in range(site.settings.limits.threads):
            held.acquire()
        watchdog.stuck()
        eventually(lambda: "intake" in stuck_later(watchdog, clock), "the pool", PATIENCE)
        release.set()
        eventually(lambda: "intake" not in watchdog.stuck(), "the pool again", PATIENCE)

        with closing(sqlite3.connect(site.folder / "server.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # the writer waits for it
            from upseal.fleet.server.writer import Job

            done = server.writer.submit(Job(alarms={("test", b"x"): (1, {})}))
            assert "writer" in stuck_later(watchdog, clock)
            other.execute("ROLLBACK")
        done.result(PATIENCE)
        eventually(lambda: "writer" not in watchdog.stuck(), "the writer again", PATIENCE)
        assert "event loop" in stuck_later(watchdog, clock)
        server.upkeep.stop()
        assert "upkeep" in stuck_later(watchdog, clock)
    finally:
        server.close()
    assert Canary(server.pool).look() == (False, 0), "of a pool that is closed nobody waits"


def test_each_part_of_a_relay_that_hangs_is_seen(fleet):
    settings = RelaySettings.load(fleet / "relay" / "relay.toml")
    with Relay(settings) as relay:
        service, clock = Service(Notifier({})), Clock()
        names = [sign.name for sign in relay_signs(relay, service)]
        assert names == ["event loop", "queue", "control", "forward-0", "forward-1"]
        watchdog = Watchdog(relay_signs(relay, service), 1, clock)
        before = relay.control.turns, [*relay.forwarder.turns]
        # Nothing of it has been started but the queue's writer, and that is asked for nothing.
        assert set(names) - {"queue"} <= set(stuck_later(watchdog, clock))
        relay.start()
        eventually(lambda: relay.control.turns > before[0], "it looks upwards", PATIENCE)
        eventually(
            lambda: all(a > b for a, b in zip(relay.forwarder.turns, before[1], strict=True)),
            "they pass on", PATIENCE,
        )  # fmt: skip
        assert not {"control", "forward-0", "forward-1"} & set(watchdog.stuck())


def test_each_part_of_an_agent_that_hangs_is_seen(fleet):
    """One part, the loop that sends, hangs in its spool's lock; the others go on."""
    with Agent(AgentSettings.load(fleet / "agent" / "agent.toml")) as agent:
        signs = {sign.name: sign for sign in agent_signs(agent)}
        assert [signs[name].look()[0] for name in signs] == [False, False, False]
        clock = Clock()
        watchdog = Watchdog(signs.values(), 1, clock)
        agent.start()
        for name in ("sender", "uploads"):
            eventually(lambda name=name: signs[name].look()[1] > 2, name, PATIENCE)
        watchdog.stuck()
        held, release = threading.Event(), threading.Event()
        tidy = agent.spool.tidy

        def hang():
            held.set()
            release.wait()
            tidy()

        agent.spool.tidy = hang
        assert held.wait(PATIENCE)
        watchdog.stuck()
        passed = signs["uploads"].look()[1]
        eventually(lambda: signs["uploads"].look()[1] > passed, "uploads", PATIENCE)
        clock.now += 10_000
        assert watchdog.stuck() == ["sender"]
        release.set()
        eventually(lambda: "sender" not in watchdog.stuck(), "it gets on", PATIENCE)


def test_a_loop_that_hangs_is_not_said_to_live(manager):
    """Whatever other threads do: the manager hears nothing until the loop turns again."""
    hangs, release, stop = threading.Event(), threading.Event(), threading.Event()

    async def hang(request):
        hangs.set()
        release.wait()
        return PlainTextResponse("well again")

    app = application([Route("/hang", hang)], metrics=Metrics("test"))
    service = Service(
        Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "800000"}), [listening()]
    )
    address = service.sockets[0].getsockname()

    def started(_):
        service.ready("well", [Sign("event loop", lambda: (True, service.ticks))])

    def work():
        serve(app, on_started=started, stop=stop, service=service)

    threads = [threading.Thread(target=work)]
    threads[0].start()
    try:
        manager.until("WATCHDOG", "1")
        threads.append(threading.Thread(target=get, args=(address, "/hang")))
        threads[1].start()
        assert hangs.wait(PATIENCE)
        manager.until("STATUS", "no progress: event loop")
        assert not release.is_set()
        manager._sock.settimeout(1.0)  # two and more signs of life would have come
        with pytest.raises(TimeoutError):
            manager.next()
        manager._sock.settimeout(PATIENCE)
        release.set()
        assert manager.next() == {"STATUS": "well"}
        manager.until("WATCHDOG", "1")
    finally:
        release.set()
        stop.set()
        for thread in threads:
            thread.join()
        service.close()
    while "STOPPING" not in manager.heard[-1]:
        manager.next()


# -- the protocol -------------------------------------------------------------------------


def test_messages_are_as_systemd_reads_them(tmp_path):
    manager = Manager(f"@upseal-test-{os.getpid()}")
    try:
        notifier = Notifier({"NOTIFY_SOCKET": manager.address})
        assert notifier.say(READY=1, STATUS="two\nlines")
        assert manager.next() == {"READY": "1", "STATUS": "two lines"}
    finally:
        manager.close()
    assert not notifier.say(READY=1), "a manager that is gone ends nothing"
    assert not Notifier({}).heard
    assert not Notifier({"NOTIFY_SOCKET": "vsock:2:1234"}).heard


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "30000000"}, 30),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30),
        ({"WATCHDOG_USEC": "soon"}, 0),
    ],
)
def test_the_interval_is_for_this_process_alone(said, seconds):
    assert Notifier(said).interval == seconds


def test_sockets_for_another_process_are_left_alone():
    for said in ({}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}):
        environment = dict(said)
        assert inherited(environment) == []
        assert environment == {}, "and no child is told of them"


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM, None])
def test_what_is_no_listening_socket_is_refused(kind):
    script = (
        "import os, sys; from upseal.fleet.sockets import inherited\n"
        "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'}\n"
        "try: inherited()\n"
        "except ValueError as error: sys.exit(str(error))"
    )
    with socket.socket(socket.AF_INET, kind) if kind else open(os.devnull) as thing:
        child = subprocess.run(
            [sys.executable, "-c", script], preexec_fn=lambda: os.dup2(thing.fileno(), 3),
            pass_fds=(3,), capture_output=True, timeout=PATIENCE, text=True,
        )  # fmt: skip
    assert child.returncode == 1
    assert child.stderr.startswith("descriptor 3 is no ")

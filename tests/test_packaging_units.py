# SPDX-License-Identifier: Apache-2.0
"""The systemd units: systemd reads them, and what they forbid is nothing that is needed."""

import contextlib
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sandboxed

from upseal.cli.parser import build
from upseal.fleet.agent.settings import schema as agent_schema
from upseal.fleet.relay.settings import schema as relay_schema
from upseal.fleet.server.settings import schema as server_schema

ROOT = Path(__file__).parents[1]
UNITS = ROOT / "packaging" / "systemd"
ROLES = ("agent", "relay", "server")
PATIENCE = 60
EXPOSURE = 13  # tenths; one directive less is more

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd-analyze is not here"
)


def unit(role):
    return UNITS / f"upseal-{role}.service"


@needs_systemd
def test_systemd_reads_them(tmp_path):
    program = tmp_path / "upseal"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in UNITS.iterdir():
        text = path.read_text().replace("/usr/bin/upseal", str(program))
        (tmp_path / path.name).write_text(text)
    paths = sorted(tmp_path.glob("*.s*"))
    assert len(paths) == 5
    done = subprocess.run(
        ["systemd-analyze", "verify", *paths], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")
    broken = tmp_path / "upseal-agent.service"
    broken.write_text(broken.read_text().replace("WatchdogSec=60", "WatchdogSecs=60"))
    done = subprocess.run(
        ["systemd-analyze", "verify", broken], capture_output=True, text=True, timeout=PATIENCE
    )
    assert "WatchdogSecs" in done.stderr, "verify says what it does not know"


@needs_systemd
@pytest.mark.parametrize("role", ROLES)
def test_they_expose_little(role):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", unit(role)],
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.parametrize("role", ROLES)
def test_what_they_start_exists(role):
    (start,) = sandboxed.directives(unit(role))["ExecStart"]
    program, *arguments = shlex.split(start)
    assert program == "/usr/bin/upseal"
    build([role]).parse_args(arguments)
    (state,) = sandboxed.directives(unit(role))["StateDirectory"]
    assert arguments[-1] == f"/var/lib/{state}"


@pytest.mark.parametrize(
    ("role", "schema"), [*zip(ROLES, (agent_schema, relay_schema, server_schema), strict=True)]
)
def test_the_examples_in_etc_default_are_settings(role, schema):
    text = (ROOT / "packaging" / "debian" / f"{role}.default").read_text()
    named = set(re.findall(r"^#(UPSEAL_\w+)=", text, re.MULTILINE))
    assert named and named <= {one.variable for one in schema().settings.values()}


@pytest.mark.parametrize("role", ["relay", "server"])
def test_sockets_listen_where_the_settings_do(role):
    schema = {"relay": relay_schema, "server": server_schema}[role]().settings
    usual = schema["listen"].default if role == "relay" else None
    usual = usual or f"{schema['listen.host'].default}:{schema['listen.port'].default}"
    socket = sandboxed.directives(UNITS / f"upseal-{role}.socket")
    assert socket["ListenStream"] == [usual]


@needs_systemd
@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("import os; os.chown('.', 0, 0)", 1),
        ("import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", 1),
        ("import mmap; mmap.mmap(-1, 4096, prot=7)", 1),
        ("import socket; socket.socket()", 0),
    ],
)
def test_what_they_forbid_is_forbidden(what, code):
    done = subprocess.run(
        [sys.executable, sandboxed.__file__, unit("relay"), sys.executable, "-c", what],
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    if "was not tried" in done.stderr and "mmap" in what:
        pytest.skip("Linux before 6.3")
    assert done.returncode == code, done.stderr
    assert code == 0 or "PermissionError" in done.stderr


class Fleet:
    """A server, a relay and an agent, each under its unit's directives."""

    def __init__(self, folder):
        self.folder, self.children = folder, []
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("UPSEAL_")}
        self.environment |= {"PYTHONFAULTHANDLER": "1"}

    def upseal(self, *arguments):
        command = [sys.executable, "-m", "upseal", *map(str, arguments)]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, role, *options):
        command = [sys.executable, "-m", "upseal", role, "run", "-d", self.folder / role, *options]
        log = open(self.folder / f"{role}.log", "ab")  # noqa: SIM115 - closed with the child
        child = subprocess.Popen(
            [sys.executable, sandboxed.__file__, unit(role), *command],
            env=self.environment, stderr=log, stdout=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        log.close()
        self.children.append(child)

        def up():
            assert child.poll() is None, (self.folder / f"{role}.log").read_text()[-2000:]
            return role == "agent" or (self.folder / role / "address").exists()

        until(up)

    def address(self, role):
        return "http://" + (self.folder / role / "address").read_text().strip()

    def stop(self):
        for child in reversed(self.children):
            child.terminate()
        return [child.wait(PATIENCE) for child in self.children]


def until(holds):
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@needs_systemd
def test_all_works_under_what_they_forbid(tmp_path):
    """From enrolment to a sealed report and a file in the store, through a decrypting relay."""
    fleet = Fleet(tmp_path)
    server = tmp_path / "server"
    (tmp_path / "file").write_bytes(os.urandom(1 << 20))
    fleet.upseal("admin", "init", "-d", server)
    try:
        fleet.run("server", "--listen", "127.0.0.1:0")
        token = fleet.upseal("admin", "token", "--role", "relay", "-d", server)
        (tmp_path / "token").write_text(token)
        fleet.upseal(
            "relay", "enrol", "--parent", fleet.address("server"), "--decrypting",
            "--token-file", tmp_path / "token", "--name", "r", "-d", tmp_path / "relay",
        )  # fmt: skip
        fleet.run("relay", "--listen", "127.0.0.1:0", "--set", "refresh.manifest=0.1")
        fleet.upseal("admin", "relays", "add", "r", "--decrypts", "-d", server)
        for act in ("generate-key", "ready", "enable"):
            fleet.upseal("admin", act, "-d", server)
        (tmp_path / "token").write_text(fleet.upseal("admin", "token", "-d", server))
        fleet.upseal(
            "agent", "enrol", "--parent", fleet.address("relay"), "--level", "required",
            "--token-file", tmp_path / "token", "--name", "a", "-d", tmp_path / "agent",
        )  # fmt: skip
        fleet.upseal("agent", "upload", tmp_path / "file", "-d", tmp_path / "agent")
        fleet.run("agent", "--set", "batch.seconds=0", "--set", "send.refresh=0.2")

        def stored():
            with contextlib.closing(sqlite3.connect(server / "server.db")) as db:
                (reports,) = db.execute("SELECT count(*) FROM reports").fetchone()
                files = db.execute("SELECT count(*) FROM uploads")
                return reports > 10 and files.fetchone() == (1,)

        until(stored)
        (file,) = (server / "uploads" / "stored").glob("*/*")
        assert file.read_bytes() == (tmp_path / "file").read_bytes()
    finally:
        codes = fleet.stop()
    assert codes == [0, 0, 0]
    for role in ROLES:
        log = (tmp_path / f"{role}.log").read_text()
        assert "Traceback" not in log and '"error"' not in log, log[-2000:]
        assert "Operation not permitted" not in log, log[-2000:]

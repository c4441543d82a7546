# SPDX-License-Identifier: Apache-2.0
"""A nats-server for tests, with JetStream on the disk; and a site whose server is in two halves."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

FLEET = Path(__file__).parent.parent / "fleet"
if str(FLEET) not in sys.path:  # the parts of a fleet that its own tests are made of
    sys.path.insert(0, str(FLEET))

from fleet_nodes import Node, eventually  # noqa: E402

_CONFIG = """
listen: "127.0.0.1:{port}"
max_payload: {payload}
max_pending: 134217728
jetstream {{ store_dir: "{store}", max_file_store: {disk} }}
{more}
"""


def found(program):
    """The path of a program from Debian; where there is none, the test fails and says why."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        pytest.fail(f"{program} is not installed; scripts/test-companions gets it")
    return path


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class NatsServer:
    """One broker on loopback; killed and started again it has what it had."""

    def __init__(self, folder, payload=9 << 20, disk=1 << 30, more=""):
        folder.mkdir(exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.config = folder / "nats.conf"
        self.config.write_text(
            _CONFIG.format(
                port=self.port, payload=payload, store=folder / "store", disk=disk, more=more
            )
        )
        self.child = None

    @property
    def url(self):
        return f"nats://127.0.0.1:{self.port}"

    def start(self):
        with open(self.folder / "nats.log", "ab") as log:
            self.child = subprocess.Popen(
                [found("nats-server"), "-c", str(self.config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        eventually(self._answers, "nats-server")
        return self

    def _answers(self):
        assert self.child.poll() is None, (self.folder / "nats.log").read_text()[-2000:]
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as one:
                return one.recv(4) == b"INFO"
        except OSError:
            return False

    def kill(self):
        self.child.kill()
        self.child.wait()

    def stop(self):
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            self.child.wait(30)


@contextmanager
def broker(folder, **options):
    server = NatsServer(folder, **options).start()
    try:
        yield server
    finally:
        server.stop()


class Process(Node):
    """A front or an opener of a deployment's folder, as `upseal server` starts it."""

    log_level = "debug"

    def __init__(self, name, act, folder, log):
        super().__init__(name, "server", folder, log)
        self.act = act

    def start(self, *, wait=True):
        listen = ["--listen", "127.0.0.1:0"] if self.act == "front" else []
        if self.act == "front":
            (self.folder / "address").unlink(missing_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("UPSEAL_")}
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "upseal", "server", self.act, "-d", str(self.folder),
                 *listen, "--log-level", self.log_level],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**environment, **self.environment},
            )  # fmt: skip
        if wait:
            self.up()
        return self

    def up(self):
        if self.act == "front":
            super().up()
        else:
            eventually(
                lambda: self.events("opener ready") or self.child.poll() is not None, self.name
            )
            assert self.child.poll() is None, self.log.read_text()[-2000:]


def join(deployment, server, **more):
    """Writes nats.toml."""
    more = {"max_bytes": 64 << 20, "results_bytes": 16 << 20, **more}
    lines = [f'servers = ["{server.url}"]', *(f"{name} = {value}" for name, value in more.items())]
    (deployment / "nats.toml").write_text("\n".join(lines) + "\n")

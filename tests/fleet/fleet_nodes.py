# SPDX-License-Identifier: Apache-2.0
"""The processes of a fleet as the tests start, kill and read them; seeds and waits."""

import base64
import json
import os
import random
import signal
import subprocess
import sys
from functools import partial

import fleet_support

PATIENCE = 60


def seed_of(name):
    """The seed of a test: printed, and UPSEAL_TEST_SEED takes it again."""
    seed = int(os.environ.get("UPSEAL_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"{name}: UPSEAL_TEST_SEED={seed}")
    return random.Random(seed)


eventually = partial(fleet_support.eventually, pause=0.05)
"""Of processes: they need the machine meanwhile."""


class Node:
    """One process, its folder and its log."""

    def __init__(self, name, role, folder, log):
        self.name, self.role, self.folder, self.log = name, role, folder, log
        self.environment, self.child = {}, None

    def start(self, *, wait=True):
        options = ["--listen", "127.0.0.1:0"] if self.role == "server" else []
        command = [sys.executable, "-m", "upseal", self.role, "run", "-d", str(self.folder)]
        # Of a process that was killed it would be an old one.
        (self.folder / "address").unlink(missing_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("UPSEAL_")}
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen(
                [*command, *options, "--log-level", "debug"], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env={**environment, **self.environment},
            )  # fmt: skip
        if wait:
            self.up()
        return self

    def up(self):
        """Waits until it takes requests; an agent takes none."""
        if self.role != "agent":
            eventually(lambda: self.address() or self.child.poll() is not None, self.name)
            assert self.child.poll() is None, self.log.read_text()[-2000:]

    def address(self):
        """Where it listens, if it does."""
        try:
            host, _, port = (self.folder / "address").read_text().strip().rpartition(":")
        except FileNotFoundError:
            return None
        return (host, int(port)) if port else None

    @property
    def running(self):
        return self.child is not None and self.child.poll() is None

    def kill(self):
        """As the kernel would for want of memory."""
        self.child.kill()
        self.child.wait()

    def stop(self):
        """As an administrator would; gives the exit code."""
        if self.running:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def restart(self):
        self.stop()
        return self.start()

    def events(self, name=None):
        """What it has logged."""
        found = []
        for line in self.log.read_bytes().splitlines():
            if line.startswith(b"{") and line.endswith(b"}"):
                said = json.loads(line)
                if name is None or said.get("event") == name:
                    found.append(said)
        return found


def forms(marker):
    """A marker as it is, in hexadecimal, and inside base64."""
    yield marker
    yield marker.hex().encode()
    for shift in range(3):
        for alphabet in (base64.b64encode, base64.urlsafe_b64encode):
            yield alphabet(b"\0" * shift + marker)[4 if shift else 0 : -4]

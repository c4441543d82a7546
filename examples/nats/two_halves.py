#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A server in two halves: a front that takes sealed reports, and two openers that store them.

    python examples/nats/two_halves.py

needs `pip install 'upseal[fleet,nats]'` and the program `nats-server`. It makes a deployment in a
temporary folder, starts NATS, a front, two openers and an agent on 127.0.0.1, kills one opener with
-9 while reports come in, and counts what is stored. The database is SQLite here; in earnest use
PostgreSQL, so that openers can run on other hosts.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

REPORTS = 300
T = TypeVar("T")


def main() -> int:
    """Does it in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        return run(Path(folder), stack)


def run(folder: Path, stack: ExitStack) -> int:
    """All of it; the exit code."""
    deployment, agent = folder / "deployment", folder / "agent"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UPSEAL_")}
    environment["UPSEAL_DEPLOYMENT"] = str(deployment)

    def start(*command: str) -> subprocess.Popen[bytes]:
        with open(folder / "log", "ab") as log:
            child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603
        stack.callback(lambda: (child.kill(), child.wait()))
        return child

    def upseal(*words: str, **how: str) -> str:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "upseal", *words], env=environment, text=True,
            stdout=subprocess.PIPE, check=True, **how,
        )  # fmt: skip
        return done.stdout

    # A broker with JetStream on the disk. Relays send bodies of 8 MiB: max_payload must hold one.
    port = free_port()
    config = folder / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\nmax_payload: 9437184\n'
        f'jetstream {{ store_dir: "{folder / "nats"}", max_file_store: 1073741824 }}\n'
    )
    start(shutil.which("nats-server") or "/usr/sbin/nats-server", "-c", str(config))

    # A deployment, and where its broker is.
    upseal("admin", "init", "--name", "halves")
    (deployment / "nats.toml").write_text(
        f'servers = ["nats://127.0.0.1:{port}"]\nmax_bytes = 67108864\n'
        "results_bytes = 67108864\nack_wait = 2.0\n"
    )

    # One front, two openers.
    python = (sys.executable, "-m", "upseal", "server")
    start(*python, "front", "--listen", "127.0.0.1:0")
    openers = [start(*python, "open") for _ in range(2)]
    address = wait_for(lambda: (deployment / "address").read_text().strip(), "the front")

    # To an agent the front is the server.
    upseal("admin", "generate-key")
    upseal("admin", "ready")
    upseal("admin", "enable")
    token = upseal("admin", "token")
    upseal("agent", "enrol", "--parent", f"http://{address}", "--token-file", "-", "-d", str(agent),
           input=token)  # fmt: skip
    with open(agent / "agent.toml", "a") as settings:
        settings.write("\n[batch]\nseconds = 0.2\n")  # nobody waits for a full batch here
    start(sys.executable, "-m", "upseal", "agent", "run", "-d", str(agent))

    for number in range(0, REPORTS, 100):
        lines = "".join(f"report {number + i}\n" for i in range(100))
        upseal("agent", "report", "--lines", "-d", str(agent), input=lines)
        if number == 100:
            openers[0].send_signal(signal.SIGKILL)
            print("killed one opener with -9")

    def stored() -> list[str] | None:
        found = upseal("server", "reports").splitlines()
        found = [line.rpartition("report ")[2] for line in found if "report " in line]
        return found if len(set(found)) == REPORTS else None

    found = wait_for(stored, "the reports")
    assert sorted(map(int, found)) == list(range(REPORTS)), "something is stored twice"
    print(f"{REPORTS} reports made, {len(found)} stored once each")
    return 0


def wait_for(look: Callable[[], T], what: str) -> T:
    """What it gives, as soon as it gives something."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if found := look():
                return found
        except FileNotFoundError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"waited in vain for {what}")


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())

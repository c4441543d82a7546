# SPDX-License-Identifier: Apache-2.0
"""A deployment for `fleet.py`: a server, a passing and a decrypting relay, as real processes.

Everything is made as an administrator would make it, but for the identities of simulated agents:
they go into the store by the server's own functions, without 2,000 tokens and sealed requests.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import func, select

from upseal import PublicKey, Sealer
from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.agent.parent import known_parent, verified_hops
from upseal.fleet.credentials import issue_credential
from upseal.fleet.http.client import Client, Unreachable
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import Manifest
from upseal.fleet.policy import Certificate, Level, Seal, decide
from upseal.fleet.relay import state
from upseal.fleet.relay.settings import Settings as RelaySettings
from upseal.fleet.server import tables
from upseal.fleet.server.store import clients, now_ms
from upseal.fleet.units import fleet_context

WAYS = {"direct": "", "passing relay": "passing", "decrypting relay": "decrypting"}
"""Ways to the server, and the relay on each."""
STARTING, STOPPING = 30.0, 20.0


@dataclass
class SimAgent:
    """An enrolled identity. It keeps one session, as an agent does, for each set of recipients."""

    identity: SigningKey
    hop: SigningKey
    credential: str
    epoch: bytes = field(default_factory=lambda: os.urandom(16))
    sequence: int = 0
    sealers: dict[tuple[PublicKey, ...], Sealer] = field(default_factory=dict)

    def sealer(self, recipients: tuple[PublicKey, ...]) -> Sealer:
        if recipients not in self.sealers:
            self.sealers[recipients] = Sealer(recipients)
        return self.sealers[recipients]

    def next(self) -> int:
        self.sequence += 1
        return self.sequence


def wait_for(condition: Callable[[], Any], what: str, seconds: float = STARTING) -> Any:
    """What the condition gives, as soon as it gives something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:g} s for {what}")
        time.sleep(0.02)
    return found


class Process:
    """One process of ours, mostly of ``upseal``, and what it has used.

    ``pipes``: it is spoken to by its standard input and output.
    """

    def __init__(
        self, name: str, log: Path, *arguments: str, code: tuple[str, ...] = ("-m", "upseal"),
        pipes: bool = False,
    ) -> None:  # fmt: skip
        self.name, self.log = name, log
        self._cpu = 0.0
        with open(log, "ab") as out:
            self.child = subprocess.Popen(
                [sys.executable, *code, *arguments], stderr=out,
                stdin=subprocess.PIPE if pipes else None, text=True,
                stdout=subprocess.PIPE if pipes else out,
            )  # fmt: skip
        self._process = psutil.Process(self.child.pid)

    def check(self) -> None:
        if self.child.poll() is not None:
            words = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} ended with {self.child.returncode}:\n{words}")

    def listening(self, address: Path) -> str:
        """Its URL, once it serves."""

        def text() -> str:
            self.check()
            return address.read_text().strip() if address.exists() else ""

        return f"http://{wait_for(text, self.name)}"

    def cpu(self) -> float:
        """Seconds so far, user and system; it stays what it was once the process has ended."""
        with suppress(psutil.Error):
            used = self._process.cpu_times()
            self._cpu = max(self._cpu, used.user + used.system)
        return self._cpu

    def peak_reset(self) -> None:
        with suppress(OSError):
            Path(f"/proc/{self.child.pid}/clear_refs").write_text("5")

    def peak_mb(self) -> float:
        """The most memory since then (``VmHWM``); 0 where the system does not tell."""
        with suppress(OSError, IndexError, ValueError):
            status = Path(f"/proc/{self.child.pid}/status").read_text()
            return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
        return 0.0

    def terminate(self) -> None:
        """Asks it to end."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """In good order, or else at once."""
        self.terminate()
        if self.child.poll() is None:
            try:
                self.child.wait(STOPPING)
            except subprocess.TimeoutExpired:
                self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                pipe.close()


class Site:
    """The deployment, with so many agents on each way.

    ``poll``: seconds between a relay's looks for a newer manifest.
    """

    def __init__(self, folder: Path, agents: int, poll: float) -> None:
        self.folder, self.poll = folder, poll
        self.server_folder = folder / "server"
        Deployment.init(self.server_folder, name="benchmark")
        self.admin = Deployment.open(self.server_folder)
        self.deployment = self.admin.settings.deployment
        self.context = fleet_context(self.deployment)
        self.processes: dict[str, Process] = {}
        self.urls: dict[str, str] = {}
        self.agents = {way: self._enrol(way, agents) for way in WAYS}

    def __enter__(self) -> Site:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.stop()
        self.admin.close()

    # -- making it ----------------------------------------------------------------------

    def _enrol(self, way: str, count: int) -> list[SimAgent]:
        """Identities, straight into the store, and before the server looks."""
        receipt = SigningKey.from_pem((self.server_folder / "receipt.pem").read_bytes())
        made, now = [], now_ms()
        with self.admin.store.writing() as db:
            for number in range(count):
                identity, hop = SigningKey.generate(), SigningKey.generate()
                credential = issue_credential(self.deployment, hop.public, "agent", receipt, now)
                clients.add(
                    db,
                    clients.Agent(
                        identity.public.agent_id, f"{way} {number}", identity.public.der,
                        hop.public.agent_id, "agent", credential, now,
                    ),
                    hop.public.der,
                )  # fmt: skip
                made.append(SimAgent(identity, hop, credential))
        return made

    def _start(self) -> None:
        server = self._run("server", "server", "run", "-d", str(self.server_folder))
        self.urls[""] = server.listening(self.server_folder / "address")
        for name in ("passing", "decrypting"):
            self._enrol_relay(name)
        for name in ("passing", "decrypting"):
            self.admin.add_relay(name, decrypts=name == "decrypting")
            folder = str(self.folder / name)
            self._run(name, "relay", "run", "-d", folder, "--log-level", "warning")
        self.admin.generate_key()
        for name in ("passing", "decrypting"):
            self.urls[name] = self.processes[name].listening(self.folder / name / "address")
        outcome = self.admin.ready(timeout=STARTING + 4 * self.poll)
        if outcome.refusals:
            raise RuntimeError(f"not ready: {outcome.refusals[0]}")
        self.admin.enable()
        for way in WAYS:
            wait_for(lambda way=way: self.recipients(way), f"the way {way}", 60)

    def _enrol_relay(self, name: str) -> None:
        folder = self.folder / name
        settings = RelaySettings(
            parent=self.urls[""], directory=folder, name=name, decrypting=name == "decrypting"
        )
        state.enrol(settings, self.token("relay"))
        with open(folder / "relay.toml", "a") as file:
            file.write(f"\n[refresh]\nmanifest = {self.poll:g}\n")

    def _run(self, name: str, *arguments: str) -> Process:
        log = self.folder / f"{name}.log"
        process = Process(name, log, *arguments, "--listen", "127.0.0.1:0")
        self.processes[name] = process
        return process

    # -- what others ask -----------------------------------------------------------------

    def token(self, role: str) -> str:
        text: str = self.admin.token(role).result["tokens"][0]
        return text

    def manifest(self) -> Manifest:
        with self.admin.view() as view:
            return view.manifest

    def url(self, way: str) -> str:
        return self.urls[WAYS[way]]

    def recipients(self, way: str) -> tuple[PublicKey, ...] | None:
        """Whom an agent on that way seals to, by what its parent has signed; None: not yet."""
        manifest, now = self.manifest(), now_ms()
        with Client(self.url(way), 10.0) as client, suppress(Unreachable):
            tag = client.request("GET", "/v1/manifest?since=0").headers.get("etag", "")
            said = client.request("GET", "/v1/capabilities")
            usable = manifest.usable()
            if said.status != 200 or not tag.strip('"').startswith(f"{manifest.serial}-"):
                return None
            if not isinstance(usable, Certificate):
                return None
            parent = known_parent(verified_hops(said.body, manifest, now), now)
            decision = decide(Level.OPTIONAL, usable, parent)
            known = parent.accepts_sealed and (parent.recipient or WAYS[way] != "decrypting")
            if known and isinstance(decision, Seal):
                return decision.recipients
        return None

    def stored(self) -> int:
        """Reports in the server's database."""
        with self.admin.store.reading() as db:
            return int(db.execute(select(func.count()).select_from(tables.reports)).scalar_one())

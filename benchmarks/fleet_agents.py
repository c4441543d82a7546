# SPDX-License-Identifier: Apache-2.0
"""Real agents for `fleet.py`: what flushing a spool costs, and how soon a new key is everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from fleet_site import WAYS, Process, Site, wait_for

from upseal import Sealer
from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.enrolment import enrol
from upseal.fleet.agent.membership import Credentials
from upseal.fleet.agent.parent import Parent
from upseal.fleet.agent.settings import Settings
from upseal.fleet.agent.tally import Alarms
from upseal.fleet.http import results
from upseal.fleet.http.client import Client
from upseal.fleet.policy import Level, Reason, Seal, decide
from upseal.fleet.server.store import clients, now_ms
from upseal.fleet.trust import Trust
from upseal.fleet.units import Status, make_unit, open_receipt, unit_rows

FLUSH_MOST = 120.0
ROTATE_MOST = 120.0
CHUNK = 100
"""Reports that the benchmark puts into a spool by one call."""


def real_agent(site: Site, name: str, way: str, extra: str) -> Settings:
    """Enrols an agent as a user does, with more settings."""
    folder = site.folder / name
    enrol(Settings(parent=site.url(way), directory=folder, name=name), site.token("agent"))
    with open(folder / "agent.toml", "a") as file:
        file.write(f"\n{extra}\n")
    return Settings.load(folder / "agent.toml")


# -- flushing a spool ---------------------------------------------------------------------


def _once(site: Site, settings: Settings, level: str) -> dict[str, float]:
    """``upseal agent run --once``: CPU and wall seconds, and the most memory it needed."""
    command = [sys.executable, "-m", "upseal", "agent", "run", "-d", str(settings.directory),
               "--once", "--level", level, "--log-level", "warning"]  # fmt: skip
    begin, most = time.perf_counter(), 0
    with open(site.folder / "flush.log", "ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while True:
                pid, status, used = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    child.returncode = os.waitstatus_to_exitcode(status)
                    break
                if time.perf_counter() - begin > FLUSH_MOST:
                    raise RuntimeError("the agent did not come to its end")
                text = Path(f"/proc/{child.pid}/status")
                found = text.read_text().partition("VmHWM:")[2] if text.exists() else ""
                most = max(most, int(found.split()[0]) if found else 0)
                time.sleep(0.02)
        finally:
            if child.returncode is None:
                child.kill()
                child.wait()
    if child.returncode:
        raise RuntimeError((site.folder / "flush.log").read_text(errors="replace")[-2000:])
    return {"seconds": time.perf_counter() - begin, "cpu": used.ru_utime + used.ru_stime,
            "peak_mb": most * 1024 / 1e6}  # fmt: skip


def flush(site: Site, reports: int, size: int, turns: int) -> dict[str, Any]:
    """Fills the spool of a real agent and has its process send it, sealed and clear by turns."""
    settings = real_agent(site, "flushing", "direct", "[gather]\ninterval = 0")
    server = site.processes["server"]
    starts = [_once(site, settings, "optional") for _ in range(turns)]
    empty = {key: median(start[key] for start in starts) for key in starts[0]}
    rows = []
    for _ in range(turns):
        for level in ("optional", "none"):
            pool = [os.urandom(size) for _ in range(CHUNK)]
            with Agent(settings) as agent:
                begin, own = time.perf_counter(), time.process_time()
                for start in range(0, reports, CHUNK):
                    agent.report_many(pool[: min(CHUNK, reports - start)])
                spooled = {"spool_seconds": time.perf_counter() - begin,
                           "spool_cpu": time.process_time() - own}  # fmt: skip
            before, cpu = site.stored(), server.cpu()
            sent = _once(site, settings, level)
            stored = site.stored() - before
            if stored != reports:
                raise RuntimeError(f"{stored} of {reports} reports came in")
            rows.append({"sealed": level == "optional", "reports": stored, **spooled, **sent,
                         "server_cpu": server.cpu() - cpu})  # fmt: skip
    return {"unit": settings.batch.reports, "chunk": CHUNK, "empty": empty, "turns": rows}


# -- rotation -----------------------------------------------------------------------------


class Watcher:
    """A simulated agent that polls the manifest, and reports as soon as it has the new key."""

    def __init__(self, site: Site, number: int, way: str, old: bytes) -> None:
        self.site, self.number, self.way, self.old = site, number, way, old
        self.heard = self.receipted = 0.0
        self.failed: BaseException | None = None
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self._end = time.monotonic() + ROTATE_MOST

    def _run(self) -> None:
        try:
            self._watch()
        except BaseException as error:
            self.failed = error
        finally:
            self.ready.set()

    def _watch(self) -> None:
        site, me = self.site, self.site.agents[self.way][self.number]
        who = Credentials(site.deployment, me.identity.public.agent_id, me.credential, me.identity,
                          me.hop)  # fmt: skip
        pinned = site.manifest().signing_keys[0].fingerprint
        trust = Trust.start(site.folder / f"watch-{self.number}.json", pinned, site.deployment, 1)
        with Client(site.url(self.way), 20.0, connections=1) as client:
            parent = Parent(client, who, trust, Alarms())
            parent.refresh()
            self.ready.set()
            # As if they had started at different times: phases spread over one poll.
            time.sleep(site.poll * (self.number % 17) / 17)
            while time.monotonic() < self._end:
                parent.refresh()
                believed = parent.believed()
                decision = decide(Level.REQUIRED, believed.certificate, believed.parent)
                if isinstance(decision, Seal) and decision.recipients[0].key_id != self.old:
                    self.heard = time.perf_counter()
                    self._report(parent, decision)
                    self.receipted = time.perf_counter()
                    return
                time.sleep(site.poll)

    def _report(self, parent: Parent, decision: Seal) -> None:
        site, me = self.site, self.site.agents[self.way][self.number]
        unit = make_unit(me.identity, site.deployment, me.epoch, me.next(), now_ms(),
                         Level.REQUIRED, Reason.SEALED, [b"rotated"])  # fmt: skip
        body = Sealer(decision.recipients).seal_batch(unit_rows([unit]), site.context)
        answer = parent.post("/v1/units", body, wait=20, kind="application/octet-stream")
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.body[:300]!r}")
        (found,) = results.decode(answer.body)
        keys = parent.believed().receipt_keys()
        told = [open_receipt(receipt, keys, site.deployment) for receipt in found.receipts]
        if [r.status for r in told if r.statement_digest == unit.digest] != [Status.STORED]:
            raise RuntimeError(f"no receipt for a unit under the new key: {found.state}")


def rotate(site: Site, watchers: int, real: int) -> dict[str, Any]:
    """Seconds from the call of ``rotate`` until each client's first receipt under the new key."""
    old = site.manifest().encryption[0].public().key_id
    ways = list(WAYS)
    watching = [Watcher(site, i, ways[i % len(ways)], old) for i in range(watchers)]
    extra = (f"[gather]\ninterval = 0\n[batch]\nseconds = 0.2\n"
             f"[send]\nrefresh = {site.poll:g}")  # fmt: skip
    with ExitStack() as stack:
        agents: dict[Agent, float] = {}
        for number in range(real):
            settings = real_agent(site, f"real-{number}", ways[number % len(ways)], extra)
            agent = stack.enter_context(Agent(settings))
            agents[agent] = 0.0
            agent.report(b"before")
            process = Process(
                f"agent {number}", site.folder / f"real-{number}.log", "agent", "run", "-d",
                str(settings.directory), "--log-level", "warning",
            )  # fmt: skip
            stack.callback(process.stop)
        for agent in agents:
            wait_for(lambda agent=agent: _key(site, agent), "a real agent's first report")
        for watcher in watching:
            watcher.thread.start()
        for watcher in watching:
            watcher.ready.wait(ROTATE_MOST)
        time.sleep(min(1.0, site.poll))
        begin = time.perf_counter()
        outcome = site.admin.rotate(timeout=ROTATE_MOST / 2)
        done = time.perf_counter() - begin
        new = outcome.manifest.encryption[0].public().key_id
        _follow(site, agents, new, begin)
        for watcher in watching:
            watcher.thread.join(ROTATE_MOST)
            if watcher.failed is not None:
                raise watcher.failed
            if not watcher.receipted:
                raise RuntimeError("a client did not come to the new key")
    by_way = {
        way: {"clients": len(found), "last": max(w.receipted for w in found) - begin,
              "median": sorted(w.receipted for w in found)[len(found) // 2] - begin}
        for way in ways
        if (found := [w for w in watching if w.way == way])
    }  # fmt: skip
    return {"poll": site.poll, "watchers": watchers, "rotate": done, "ways": by_way,
            "last": max(w.receipted for w in watching) - begin,
            "real": sorted(agents.values())}  # fmt: skip


def _follow(site: Site, agents: dict[Agent, float], new: bytes, begin: float) -> None:
    """Real agents report now and then; the server says under which key that came in."""
    end = time.monotonic() + ROTATE_MOST
    while not all(agents.values()):
        if time.monotonic() > end:
            raise RuntimeError("a real agent did not come to the new key")
        for agent, took in agents.items():
            if not took and _key(site, agent) == new:
                agents[agent] = time.perf_counter() - begin
            elif not took:
                agent.report(b"still here")
        time.sleep(0.25)


def _key(site: Site, agent: Agent) -> bytes | None:
    with site.admin.store.reading() as db:
        return next(c.key_id for c in clients.listing(db, agent.member.agent))

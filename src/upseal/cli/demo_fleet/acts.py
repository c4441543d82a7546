# SPDX-License-Identifier: Apache-2.0
"""What happens in the demo, in order: report and upload, rotate, disable, enable again, look."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from upseal.cli.common import BAD, Failure
from upseal.cli.demo_fleet import page
from upseal.cli.demo_fleet.processes import Processes, milliseconds
from upseal.cli.demo_fleet.search import called
from upseal.cli.demo_fleet.site import HOPS, Site
from upseal.cli.demo_fleet.uploads import Uploads
from upseal.cli.demo_fleet.wire import Wire
from upseal.cli.progress import Steps
from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.admin.refusals import Refused
from upseal.fleet.agent.enrolment import EnrolmentRefused
from upseal.fleet.http.client import Unreachable
from upseal.fleet.policy import Level
from upseal.fleet.server.store.activity import SEALED
from upseal.fleet.server.store.base import now_ms
from upseal.fleet.server.tables import units

_LEAST_SPELL = 2.0
"""Seconds without encryption, once everybody has noticed."""
_SLOW = 0.25


@dataclass
class Played:
    """What was seen meanwhile; the rest is looked up when all has ended."""

    rotation: dict[str, Any] = field(default_factory=dict)
    foretold: list[str] = field(default_factory=list)
    """Who would be orphaned, by the dry run of `disable`."""
    refused: str = ""
    """What `disable` said without being forced."""
    orphans: list[dict[str, Any]] = field(default_factory=list)
    """Who was, while encryption was disabled."""
    disabled: tuple[int, int] = (0, 0)
    """From when to when."""
    during: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Each client as the server saw it then."""
    withheld: int = 0
    """Reports that waited when encryption was enabled again."""
    after_enable: float = 0.0
    """Seconds from `enable` until each of them sealed."""
    rest: int = 0
    """Agents that took in something while they were ending."""
    page: dict[str, Any] = field(default_factory=dict)
    """What the administrator's page said when all was over."""


class Play:
    """One demo. `play` does all of it."""

    def __init__(
        self, site: Site, deployment: Deployment, uploads: Uploads | None, say: Steps,
        seconds: float,
    ) -> None:  # fmt: skip
        self._site = site
        self._deployment = deployment
        self._uploads = uploads
        self._say = say
        self._seconds = seconds
        self.seen = Played()

    def all(self) -> Played:
        """The acts, one after the other; each fails if what it should bring about does not."""
        self._reporting()
        self._rotate()
        self._store()
        self._disable()
        self._enable()
        self._look()
        self._say("stopping agents")
        self._site.stop_agents()
        self.seen.rest = self._site.flush()
        self._say("stopping relays and server")
        self._site.stop_rest()
        return self.seen

    def _clients(self) -> dict[str, dict[str, Any]]:
        return {client["name"]: client for client in self._deployment.clients()}

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        self._site.processes.until(what, condition, pause=_SLOW)

    def _all_are(self, expected: dict[Level, str]) -> bool:
        clients = self._clients()
        wrong = [
            agent.name
            for agent in self._site.agents
            if clients[agent.name]["last_actual"] != expected[agent.level]
        ]
        return not wrong

    def _reporting(self) -> None:
        self._say("waiting until the server has heard from each agent")
        usual = {Level.REQUIRED: "sealed", Level.OPTIONAL: "sealed", Level.NONE: "clear"}
        self._until("the server has heard from each agent", lambda: self._all_are(usual))
        begin = time.monotonic()
        if self._uploads is not None:
            self._say("files go up, and each relay is killed twice while they pass through it")
            self._uploads.go()
        left = max(0.0, begin + self._seconds - time.monotonic())
        self._say(f"{len(self._site.agents)} agents report for {left:.3g} s")
        self._pause(left)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._site.processes.until("time has passed", lambda: time.monotonic() >= end, seconds + 60)

    # -- rotation --------------------------------------------------------------------------

    def _rotate(self) -> None:
        self._say("rotating the key while everything runs")
        (old,) = self._keys()
        if self._uploads is not None:
            self._uploads.while_rotated = len(self._uploads.under_way())
        began = now_ms()
        done = self._deployment.rotate(timeout=30)
        acted = now_ms()
        (new,) = self._keys()
        serial = done.manifest.serial
        sealing = self._site.at_level(Level.REQUIRED, Level.OPTIONAL)
        times: dict[str, int] = {}

        def all_under_it() -> bool:
            since = {agent.id: _heard(agent, serial) for agent in sealing}
            times.update(self._first_under(new, began, since))
            return len(times) == len(sealing)

        self._until("each client seals to the new key", all_under_it)
        self.seen.rotation = {
            "seconds": round((max(times.values()) - began) / 1000, 2),
            "median_seconds": round((statistics.median(times.values()) - began) / 1000, 2),
            "act_seconds": round((acted - began) / 1000, 2),
            "clients": len(times),
            "old_key_id": old.hex(),
            "key_id": new.hex(),
            "serial": serial,
        }

    def _keys(self) -> list[bytes]:
        with self._deployment.view() as view:
            return [key.key_id for key in view.manifest.encryption]

    def _first_under(self, key: bytes, since: int, heard: dict[str, int | None]) -> dict[str, int]:
        """When the first unit of each client was stored that it sealed for the new key.

        The key that the server opened with would not do: behind a decrypting relay that one is the
        relay's choice. So a unit counts if its agent signed it after having the new manifest.
        """
        query = select(units.c.agent, units.c.stated, units.c.received).where(
            units.c.received >= since, units.c.key_id == key, units.c.reason.in_(SEALED)
        )
        found: dict[str, int] = {}
        with self._deployment.view() as view:
            for agent, stated, received in view.db.execute(query):
                id_ = bytes(agent).hex()
                known = heard.get(id_)
                if known is not None and stated >= known:
                    found[id_] = min(received, found.get(id_, received))
        return found

    def _store(self) -> None:
        if self._uploads is not None:
            self._say("waiting until the server has all files")
            self._uploads.finish()

    # -- without encryption ------------------------------------------------------------------

    def _disable(self) -> None:
        self._say("asking what would happen without encryption")
        asked = self._deployment.disable(dry_run=True)
        self.seen.foretold = sorted(orphan.name for orphan in asked.orphans)
        try:
            self._deployment.disable()
        except Refused as refused:
            self.seen.refused = str(refused)
        self._say(f"disabling encryption all the same: it will orphan {len(self.seen.foretold)}")
        began = now_ms()
        self._deployment.disable(force=True)
        without = {Level.REQUIRED: "withheld", Level.OPTIONAL: "clear", Level.NONE: "clear"}
        self._until("each client has noticed", lambda: self._all_are(without))
        self._pause(max(_LEAST_SPELL, self._seconds / 2))
        self.seen.during = self._clients()
        self.seen.orphans = self._deployment.clients("orphaned")
        self.seen.disabled = (began, now_ms())

    def _enable(self) -> None:
        required = self._site.at_level(Level.REQUIRED)
        self.seen.withheld = sum(agent.counters().depth for agent in required)
        self._say(f"enabling it again: {self.seen.withheld} reports are withheld")
        began = now_ms()
        self._site.enable(self._deployment)
        self.seen.disabled = (self.seen.disabled[0], now_ms())
        again = {Level.REQUIRED: "sealed", Level.OPTIONAL: "sealed", Level.NONE: "clear"}
        self._until("each client seals again", lambda: self._all_are(again))
        self.seen.after_enable = round((now_ms() - began) / 1000, 2)

    def _look(self) -> None:
        names: list[str] = []
        if self._uploads is not None:
            self._say("waiting until the agents know that the server has their files")
            self._until("the agents have receipts for their files", self._uploads.receipted)
            names = [called(given.client) for given in self._uploads.given]
        self._say("looking at the administrator's page")
        self.seen.page = page.look(self._deployment, self._site.deployment_folder, names)


def _heard(agent: Any, serial: int) -> int | None:
    """When the agent had a manifest of that serial or a later one, by its own log."""
    times = [
        milliseconds(event["t"])
        for event in agent.process.events("new manifest")
        if event.get("serial", 0) >= serial
    ]
    return min(times, default=None)


def play(
    folder: Path, count: int, key_type: str, seconds: float, upload: int, say: Steps, *, keep: bool
) -> dict[str, Any]:
    """The whole fleet part.

    Args:
        folder: a new one.
        count: agents.
        key_type: of encryption keys.
        seconds: how long they report before the rotation, at least.
        upload: bytes of the files that go up; 0: none do.
        say: is told what happens.
        keep: everything stays, and so does what is needed to look at it.

    Raises:
        Failure: a process ended, or something did not come about.
    """
    from upseal.cli.demo_fleet.findings import findings

    begin = time.perf_counter()
    logs = folder / "logs"
    logs.mkdir(mode=0o700, parents=True)
    try:
        with (
            Wire(*HOPS, folder=folder / "wire") as wire,
            Processes(folder, logs) as processes,
            ExitStack() as stack,
        ):
            site = Site(folder, processes, wire, say.counting, upload)
            say("making a deployment: server, decrypting relay, passing relay")
            with site.begin(key_type) as deployment:
                uploads = None
                if upload:  # copied while the agents are being started
                    uploads = stack.enter_context(Uploads(site, upload, keep=keep))
                say(f"enrolling {count} agents")
                site.enrol(deployment, count)
                say(f"starting {count} agents, a few at a time")
                site.start_agents()
                seen = Play(site, deployment, uploads, say, seconds).all()
                say("searching for plaintext")
                found = findings(site, deployment, uploads, seen)
        if not keep:
            del found["page"]["password"]
    except (Refused, EnrolmentRefused, Unreachable) as error:
        raise Failure(BAD, f"the demo failed: {error}") from error
    return {**found, "seconds": round(time.perf_counter() - begin, 2)}

# SPDX-License-Identifier: Apache-2.0
"""The demo's deployment: a server, a decrypting relay, a passing relay below it, and agents.

What is not being shown is done by the library (`upseal.fleet.admin`, enrolment), since a process
for each act would take half a minute of this machine. Server, relays and agents are processes.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from upseal.cli import stopping
from upseal.cli.common import Failure
from upseal.cli.demo_fleet.processes import Process, Processes
from upseal.cli.demo_fleet.wire import HOST, Hop, Wire
from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.enrolment import enrol
from upseal.fleet.agent.rows import Counters
from upseal.fleet.agent.settings import FILE_NAME, Settings
from upseal.fleet.agent.uploads.rows import UploadCounters
from upseal.fleet.http.client import Client
from upseal.fleet.policy import Level
from upseal.fleet.relay import settings as relay_settings
from upseal.fleet.relay import state as relay_state

SERVER, DECRYPTING, PASSING = "server", "decrypting", "passing"
HOPS = (
    "agents -> passing", "agents -> decrypting", "passing -> decrypting", "decrypting -> server",
)  # fmt: skip
TO_PASSING, TO_DECRYPTING, BETWEEN, LAST = HOPS
LEVELS = (Level.REQUIRED, Level.OPTIONAL, Level.NONE)
_AT_ONCE = 4
"""Agents that are being started: each takes half a second of a core."""
_SECTIONS = """
[batch]
seconds = 0.5

[gather]
interval = {interval}
what = [{what}]

[send]
refresh = 1.5
beacon = 2.0
retry = 0.2
retry_most = 2.0

[http]
wait = 5.0

[uploads]
piece = {piece}
throttle = {throttle}
"""
_INTERVAL = 3.0
_WHAT = ("system", "networks", "cpu", "memory", "traffic", "disks")
_MORE = ("packages", "mounts", "users")
_MORE_EACH = 10
"""One agent in so many reports more: fifty that all do would be a load of their own."""
_RELAY = """
[forward]
retry = 0.2
retry_most = 2.0
wait = 5.0

[refresh]
manifest = 0.5

[uploads]
piece = {piece}
throttle = {throttle}
"""
_LEAST_SECONDS = 2
"""That a file is on its way through one hop, however small it is: so it can be interrupted."""
_PIECES = 64
_LEAST_PIECE, _MOST_PIECE = 64 << 10, 4 << 20
_BELOW = {DECRYPTING: (TO_DECRYPTING, BETWEEN), PASSING: (TO_PASSING,)}
_ABOVE = {DECRYPTING: LAST, PASSING: BETWEEN}


@dataclass
class DemoAgent:
    """One client: its folder, and the process while it runs."""

    name: str
    level: Level
    parent: str
    folder: Path
    id: str = ""
    process: Process | None = field(default=None, repr=False)

    def counters(self) -> Counters:
        """The spool's own, also while the process runs."""
        with self.opened() as agent:
            return agent.spool.counters()

    def uploads(self) -> UploadCounters:
        """The same of files."""
        with self.opened() as agent:
            return agent.uploads.counters()

    def opened(self) -> Agent:
        """Its folder, which another process may be using."""
        return Agent(Settings.load(self.folder / FILE_NAME))

    def without_gathering(self) -> Path:
        """Settings by which it only sends what it has."""
        path = self.folder / "flush.toml"
        text = (self.folder / FILE_NAME).read_text("utf-8")
        path.write_text(text.replace(f"interval = {_INTERVAL}", "interval = 0"), "utf-8")
        return path


class Site:
    """The deployment's folders below one folder, and its processes.

    Args:
        folder: of all of it.
        processes, wire: where they run, and what they talk through.
        say: is told how far things are.
        upload: bytes of the largest file that will go up.
    """

    def __init__(
        self, folder: Path, processes: Processes, wire: Wire, say: Callable[[str], object],
        upload: int,
    ) -> None:  # fmt: skip
        self.folder = folder
        self._uploads = {
            "piece": min(max(upload // _PIECES, _LEAST_PIECE), _MOST_PIECE),
            "throttle": float(upload // _LEAST_SECONDS),
        }
        self.processes = processes
        self.wire = wire
        self.say = say
        self.run = secrets.token_hex(3)
        """In each client's name, so that the name stands nowhere by chance."""
        self.agents: list[DemoAgent] = []
        self.server: Process | None = None
        self.relays: list[Process] = []

    @property
    def deployment_folder(self) -> Path:
        """The administrator's and the server's."""
        return self.folder / "deployment"

    def relay_folder(self, name: str) -> Path:
        """A relay's own."""
        return self.folder / "relays" / name

    def begin(self, key_type: str) -> Deployment:
        """Makes the deployment; server and relays run, and encryption is enabled."""
        Deployment.init(self.deployment_folder, name="demo", key_type=key_type)
        deployment = Deployment.open(self.deployment_folder)
        try:
            self.server = self._serve(SERVER, self.deployment_folder, self.wire[LAST])
            for name, above in _ABOVE.items():
                (token,) = deployment.token("relay").result["tokens"]
                folder = self.relay_folder(name)
                settings = relay_settings.Settings(
                    parent=self.wire[above].url, directory=folder, name=name,
                    listen=f"{HOST}:0", decrypting=name == DECRYPTING,
                )  # fmt: skip
                self._catch_up(deployment, self.wire[above])
                relay_state.enrol(settings, token)
                with open(folder / relay_settings.FILE_NAME, "a", encoding="utf-8") as file:
                    file.write(_RELAY.format(**self._uploads))
                deployment.add_relay(name, decrypts=name == DECRYPTING)
                self.relays.append(self._serve_relay(name))
            self.enable(deployment)
        except BaseException:
            deployment.close()
            raise
        return deployment

    def kill(self, name: str) -> None:
        """Ends a relay by SIGKILL; `restart` brings it back."""
        self.processes.kill(next(relay for relay in self.relays if relay.name == name))

    def restart(self, name: str) -> None:
        """Starts a relay that was killed. It has another port than before, as it happens."""
        at = next(number for number, relay in enumerate(self.relays) if relay.name == name)
        (self.relay_folder(name) / relay_state.ADDRESS).unlink(missing_ok=True)
        self.relays[at] = self._serve_relay(name)

    def _serve_relay(self, name: str) -> Process:
        hops = (self.wire[hop] for hop in _BELOW[name])
        return self._serve(name, self.relay_folder(name), *hops)

    def _serve(self, name: str, folder: Path, *hops: Hop) -> Process:
        """Starts the server or a relay; the hops below lead to it once it has a port."""
        if name == SERVER:
            words = [SERVER, "run", "-d", str(folder), "--listen", f"{HOST}:0"]
        else:
            words = ["relay", "run", "-d", str(folder)]
        process = self.processes.start(name, *words)
        address = folder / "address"
        self.processes.until(f"{name} serves", address.exists, culprit=process)
        host, _, port = address.read_text("ascii").strip().rpartition(":")
        for hop in hops:
            hop.target = (host, int(port))
        return process

    def _catch_up(self, deployment: Deployment, *hops: Hop) -> None:
        """Waits until the newest manifest is served there: a token asks for no older one."""
        with deployment.view() as view:
            serial = view.manifest.serial
        for hop in hops:
            with Client(hop.url) as client:

                def newest(client: Client = client) -> bool:
                    etag = client.request("GET", "/v1/manifest?since=0").headers.get("etag", "0")
                    return int(etag.strip('"').partition("-")[0]) >= serial

                self.processes.until(f"{hop.name} serves manifest {serial}", newest)

    def enable(self, deployment: Deployment) -> None:
        """A new key, its holders' proofs, and then it counts."""
        deployment.generate_key()
        asked = deployment.ready(timeout=30)
        if asked.refusals:
            for process in self.relays:
                if process.name in str(asked.refusals[0]):
                    raise process.failed("does not prove that it has its key")
            raise asked.refusals[0]
        deployment.enable()

    def enrol(self, deployment: Deployment, count: int) -> None:
        """Enrols so many agents, each through the relay that it will report to."""
        tokens = deployment.token("agent", uses=count).result["tokens"]
        for number in range(count):
            name = client_name(self.run, number)
            self.agents.append(
                DemoAgent(
                    name, LEVELS[number % 3], (PASSING, DECRYPTING)[number % 2],
                    self.folder / "agents" / name,
                )
            )  # fmt: skip
        self._catch_up(deployment, self.wire[TO_PASSING], self.wire[TO_DECRYPTING])
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(self._enrol, self.agents, tokens, range(count)))

    def _enrol(self, agent: DemoAgent, token: str, number: int) -> None:
        stopping.check()
        hop = self.wire[TO_PASSING if agent.parent == PASSING else TO_DECRYPTING]
        settings = Settings(
            parent=hop.url, directory=agent.folder, level=agent.level, name=agent.name
        )
        agent.id = enrol(settings, token).agent.hex()
        what = _WHAT + (_MORE if number % _MORE_EACH == 0 else ())
        quoted = ", ".join(f'"{name}"' for name in what)
        with open(agent.folder / FILE_NAME, "a", encoding="utf-8") as file:
            file.write(_SECTIONS.format(interval=_INTERVAL, what=quoted, **self._uploads))

    def start_agents(self) -> None:
        """A few at a time; all send when this returns."""
        for number, agent in enumerate(self.agents, 1):
            agent.process = self.processes.start(
                agent.name, "agent", "run", "-d", str(agent.folder)
            )
            self.say(f"starting agents: {number} of {len(self.agents)}")
            self._settle(_AT_ONCE - 1)
        self._settle(0)

    def _settle(self, most: int) -> None:
        """Waits until no more than so many are still on their way."""

        def few() -> bool:
            waiting = (a for a in self.agents if a.process is not None and not _sends(a))
            return sum(1 for _ in waiting) <= most

        self.processes.until("the agents send", few, pause=0.05)

    def stop_agents(self) -> None:
        """Each ends when its spool is empty; what one took in that moment is sent by `flush`."""
        left = list(self.agents)

        def none_left() -> bool:
            for agent in list(left):
                if agent.counters().depth == 0:
                    _process(agent).terminate()
                    left.remove(agent)
            self.say(f"stopping agents: {len(self.agents) - len(left)} of {len(self.agents)}")
            return not left

        try:
            self.processes.until("the agents' spools are empty", none_left)
        except Failure:
            self.processes.check()
            if left:  # no process is to blame alone; the first one's log says most
                depth = left[0].counters().depth
                raise _process(left[0]).failed(f"still holds {depth} reports") from None
            raise
        self.processes.reap(_process(agent) for agent in self.agents)

    def flush(self) -> int:
        """Sends what was taken while the agents were ending. Gives how many had some."""
        late = [agent for agent in self.agents if agent.counters().depth]
        for at in range(0, len(late), _AT_ONCE):
            self.say(f"sending the rest: {at} of {len(late)}")
            some = [self._flush(agent) for agent in late[at : at + _AT_ONCE]]

            def ended(some: Sequence[Process] = some) -> bool:
                return all(process.ended for process in some)

            self.processes.until("the last reports are sent", ended)
            self.processes.reap(some)
        return len(late)

    def _flush(self, agent: DemoAgent) -> Process:
        path = str(agent.without_gathering())
        process = self.processes.start(f"{agent.name}-rest", "agent", "run", "--once", "-c", path)
        process.expected = True
        return process

    def stop_rest(self) -> None:
        """From below: what stands above has nothing left to answer."""
        for process in (*reversed(self.relays), self.server):
            if process is not None:
                process.terminate()
                self.processes.reap([process])

    def at_level(self, *levels: Level) -> Sequence[DemoAgent]:
        """The clients of these levels."""
        return [agent for agent in self.agents if agent.level in levels]


def client_name(run: str, number: int) -> str:
    """What the search looks for."""
    return f"demo-{run}-{number:03}"


def _sends(agent: DemoAgent) -> bool:
    """Whether it has told its folder what it does."""
    return (agent.folder / "status.json").exists()


def _process(agent: DemoAgent) -> Process:
    assert agent.process is not None
    return agent.process

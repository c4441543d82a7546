# SPDX-License-Identifier: Apache-2.0
"""A whole fleet for the tests: real processes on loopback, with a recording proxy at each hop.

agents -> proxy "passing" -> passing relay -> proxy "decrypting" -> decrypting relay
       -> proxy "server" -> server

Reports are made through the agent library in the test's process, into the spools of the agents'
processes. Each begins with a marker that is nowhere else, so that it can be searched for.
"""

import os
import signal
import sqlite3
import subprocess
import threading
from collections import Counter
from contextlib import ExitStack, closing, contextmanager

from fleet_modes import Mode, toml
from fleet_nodes import PATIENCE, Node, eventually, forms, seed_of
from fleet_proxy import Proxy

from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.enrolment import EnrolmentRefused, enrol
from upseal.fleet.agent.settings import Http, Settings
from upseal.fleet.policy import Level
from upseal.fleet.relay.settings import Http as RelayHttp
from upseal.fleet.relay.settings import Settings as RelaySettings
from upseal.fleet.relay.state import enrol as enrol_relay
from upseal.fleet.uploads.words import is_announcement

AGENTS = {"must": "required", "may": "optional", "plain": "none"}
_AGENT = """
parent = "{url}"
name = "{name}"
level = "{level}"
fips = {fips}
[batch]
reports = 20
seconds = 0.1
[spool]
min_free = 0
[gather]
interval = 0
[http]
timeout = 5
wait = 2
{http}
[send]
refresh = 0.2
beacon = 0.4
resend = 3
{send}
"""
_RELAY = """
parent = "{url}"
name = "{name}"
listen = "127.0.0.1:0"
decrypting = {decrypting}
fips = {fips}
[queue]
min_free = 0
[forward]
retry = 0.05
retry_most = 0.5
wait = 2
[refresh]
manifest = 0.15
[repackage]
window = 0.05
unwrap_share = 64
unwrap_reserve = 1000
[http]
timeout = 5
{http}
"""
_SERVER = """
[server]
threads = 1
unwrap_share = 64.0
unwrap_reserve = 1000.0
"""


def enrolled(act):
    """Tries until the parent's manifest is as new as the token: relays look for it now and then."""

    def attempt():
        try:
            return act()
        except EnrolmentRefused as refused:
            assert "older" in str(refused)
            return None

    return eventually(attempt, "enrolment")


class Member:
    """An agent: its process, and the library by which the test reports into its spool."""

    def __init__(self, world, name, level, url):
        self.world, self.name, self.level = world, name, level
        self.folder = world.folder / name
        self.made = {}  # report -> marker
        self.unsure = set()  # somebody was killed while he reported them
        mode = world.mode
        settings = Settings(
            url, self.folder, Level.parse(level), name, mode.fips, http=Http(**mode.client(name))
        )
        token = world.token("agent")
        self.id = enrolled(lambda: enrol(settings, token)).agent
        self.configure(url=url)
        self.agent = Agent(Settings.load(self.folder / "agent.toml"))
        self.node = world.node(name, "agent", self.folder)

    def configure(self, extra="", **changes):
        """Writes its settings; the process has to be started again."""
        mode = self.world.mode
        said = {
            "name": self.name, "level": self.level, "fips": str(mode.fips).lower(),
            "http": toml(mode.client(self.name)), "send": self.world.extra.get("send", ""),
            **getattr(self, "said", {}), **changes,
        }  # fmt: skip
        self.said = said
        extra = extra or self.world.extra.get("agent", "")
        (self.folder / "agent.toml").write_text(_AGENT.format(**said) + extra)

    def report(self, count, marker):
        """Makes reports; they are in the spool when this returns."""
        start = len(self.made)
        reports = [
            b"%s %s %d %s" % (marker, self.name.encode(), start + i, b"." * ((start + i) % 300))
            for i in range(count)
        ]
        self.agent.report_many(reports)
        self.made.update(dict.fromkeys(reports, marker))

    def status(self):
        return self.agent.status()

    @property
    def depth(self):
        return self.agent.spool.counters().depth


class World:
    """See `make_world`."""

    def __init__(self, folder, stack, mode):
        self.folder, self.stack, self.mode = folder, stack, mode
        self.deployment = folder / "deployment"
        self.nodes, self.proxies, self.members = {}, {}, {}
        self.extra = {}  # more settings of each agent and relay, by role
        self.secret, self.public = [], []  # markers of sealed clients' reports, and of others
        self._lock = threading.Lock()

    # -- making it

    def node(self, name, role, folder):
        self.nodes[name] = Node(name, role, folder, self.folder / f"{name}.log")
        self.stack.callback(lambda: self.nodes[name].running and self.nodes[name].kill())
        return self.nodes[name]

    def proxy_to(self, name):
        node = self.nodes[name]
        self.proxies[name] = self.stack.enter_context(Proxy(node.address))
        return self.mode.url(self.proxies[name].url)

    @contextmanager
    def admin(self):
        with Deployment.open(self.deployment) as deployment:
            yield deployment

    def token(self, role):
        with self.admin() as admin:
            return admin.token(role).result["tokens"][0]

    def add_relay(self, name, url, *, decrypting):
        """Enrols, lists and starts it; gives the URL of the proxy in front of it."""
        folder = self.folder / name
        mode = self.mode
        settings = RelaySettings(
            url, folder, name, "127.0.0.1:0", decrypting, fips=mode.fips,
            http=RelayHttp(**mode.client(name)),
        )  # fmt: skip
        token = self.token("relay")
        enrolled(lambda: enrol_relay(settings, token))
        said = {"url": url, "name": name, "decrypting": str(decrypting).lower(),
                "fips": str(mode.fips).lower(), "http": toml(mode.client(name))}  # fmt: skip
        listener = mode.listener(name)
        text = _RELAY.format(**said) + (f"[tls]\n{toml(listener)}\n" if listener else "")
        (folder / "relay.toml").write_text(text + self.extra.get("relay", ""))
        with self.admin() as admin:
            admin.add_relay(name, decrypts=decrypting)
        self.node(name, "relay", folder).start()
        return self.proxy_to(name)

    def enable(self):
        """With a new key, from any state."""
        with self.admin() as admin:
            admin.generate_key()
            asked = admin.ready(PATIENCE)
            assert not asked.refusals, asked.refusals
            admin.enable()

    def add_agent(self, name, level, url):
        self.members[name] = Member(self, name, level, url)
        self.stack.callback(self.members[name].agent.close)
        return self.members[name]

    def start_agents(self):
        for member in self.members.values():
            member.node.start()

    def restart_agents(self):
        """Also ends whatever they were waiting for: the pauses after failures are long."""
        for member in self.members.values():
            member.node.child.send_signal(signal.SIGTERM)
        for member in self.members.values():
            member.node.restart()

    # -- reports

    def marker(self, *, secret):
        made = b"~%s~" % os.urandom(9).hex().encode()
        (self.secret if secret else self.public).append(made)
        return made

    def report(self, count=10, **secrets):
        """Each agent makes reports; whose are not secret is known by their level, or said."""
        for member in self.members.values():
            secret = secrets.get(member.name, member.level != "none")
            member.report(count, self.marker(secret=secret))

    def stored(self, member):
        """The reports that the server has of it, and how many times each; but for announcements,
        which it makes by itself."""
        query = "SELECT r.body FROM reports r JOIN units u ON r.unit = u.id WHERE u.agent = ?"
        found = (bytes(body) for (body,) in self.query(query, (member.id,)))
        return Counter(body for body in found if not is_announcement(body))

    def query(self, *words):
        if self.mode.database is not None:
            return self.mode.query(*words)
        with closing(sqlite3.connect(self.deployment / "server.db", timeout=60)) as db:
            return db.execute(*words).fetchall()

    def client(self, name):
        """What the server knows of a client: (wanted, actual, reason)."""
        rows = self.query(
            "SELECT wanted, actual, reason FROM clients WHERE agent = ?", (self.members[name].id,)
        )
        return rows[0] if rows else None

    def alarms(self):
        return {kind for (kind,) in self.query("SELECT kind FROM alarms")}

    # -- what must hold

    def arrived(self, member):
        return not member.depth

    def check(self, *, wire=True):
        """Stored is made, nothing twice, the spools are empty, and no secret is anywhere."""
        for member in self.members.values():
            eventually(lambda m=member: self.arrived(m), f"the receipts of {member.name}")
        for member in self.members.values():
            stored = self.stored(member)
            doubled = [report[:60] for report, times in stored.items() if times > 1]
            assert not doubled, doubled
            lost = set(member.made) - set(stored)
            assert not lost, (member.name, len(lost), sorted(lost)[:3])
            assert set(stored) <= set(member.made) | member.unsure
            state = member.agent.spool.counters()
            assert state.lost == 0
        if wire:
            self.search()

    def places(self):
        """All that must not know a secret: (where, bytes)."""
        for name, proxy in self.proxies.items():
            for data in proxy.recorded():
                yield f"the wire to {name}", data
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.name.startswith("server.db"):
                # Not read by this process, which has spools open: to close any other descriptor of
                # a database lets go of SQLite's locks on it, and the next process would break it.
                yield str(path), subprocess.run(["cat", path], capture_output=True).stdout

    def search(self):
        """No secret is found; what went in clear is, so the search is known to work."""
        if self.mode.tls is not None:
            self._search_all_but_the_store()
            return
        needles = {form: marker for marker in self.secret for form in forms(marker)}
        seen = set()
        for where, data in self.places():
            for form, marker in needles.items():
                assert form not in data, f"{marker} is in {where}"
            seen.update(marker for marker in self.public if marker in data)
        sent = {marker for m in self.members.values() for marker in m.made.values()}
        assert seen == set(self.public) & sent

    def _search_all_but_the_store(self):
        """Where TLS is on every hop, what is not sealed is not on the wire either."""
        secret = {form: marker for marker in self.secret for form in forms(marker)}
        public = {form: marker for marker in self.public for form in forms(marker)}
        for where, data in self.places():
            needles = {**secret, **public} if where.startswith("the wire") else secret
            for form, marker in needles.items():
                assert form not in data, f"{marker} is in {where}"
        names = [f"{self.deployment}/server.db", f"{self.deployment}/server.db-wal"]
        kept = subprocess.run(["cat", *names], capture_output=True).stdout
        sent = {marker for m in self.members.values() for marker in m.made.values()}
        # The same search finds them where they belong.
        assert {m for form, m in {**secret, **public}.items() if form in kept} == sent


@contextmanager
def reporting(world, pause=0.05):
    """All agents report on and on, from a thread of the test's."""
    markers = {m.name: world.marker(secret=m.level != "none") for m in world.members.values()}
    stop, failed = threading.Event(), []

    def work():
        try:
            while not stop.wait(pause):
                for member in world.members.values():
                    member.report(3, markers[member.name])
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="test-reporting")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


@contextmanager
def make_world(folder, *, agents=AGENTS, relays=True, passing=True, mode=None, extra=None):
    """A deployment with encryption enabled, all processes running. Ends them all.

    ``mode`` is a `fleet_modes.Mode`: TLS, FIPS, another database. ``extra`` are more settings, by
    role, as they stand in the file.
    """
    with ExitStack() as stack:
        folder.mkdir(exist_ok=True)
        mode = mode or Mode()
        world = World(folder, stack, mode)
        world.extra = extra or {}
        Deployment.init(world.deployment, name="world", fips=mode.fips, database=mode.database)
        with open(world.deployment / "deployment.toml", "a") as file:
            file.write(_SERVER + toml(mode.server()) + "\n" + world.extra.get("server", ""))
        world.node("server", "server", world.deployment).start()
        world.url = world.proxy_to("server")
        if relays:
            world.url = world.add_relay("decrypting", world.url, decrypting=True)
        if relays and passing:
            world.url = world.add_relay("passing", world.url, decrypting=False)
        world.enable()
        for name, level in agents.items():
            world.add_agent(name, level, world.url)
        world.start_agents()
        yield world


__all__ = ["AGENTS", "World", "enrolled", "eventually", "make_world", "reporting", "seed_of"]

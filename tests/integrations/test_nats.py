# SPDX-License-Identifier: Apache-2.0
"""A server in two halves with a real NATS between them, and a real PostgreSQL behind: whatever is
killed, each report is stored once, and its sender hears so by a signed receipt."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import nats
import pytest
from broker_support import Process, broker, eventually, join
from fleet_nodes import seed_of
from fleet_postgresql import PostgreSql
from fleet_server_support import Site, clear, sealed
from fleet_server_uploads_support import Upload, ask, content, finished, put, rows
from fleet_support import now_ms
from fleet_tls_support import TlsAuthority

from upseal import PrivateKey, Sealer
from upseal.fleet.credentials import prove
from upseal.fleet.http.client import Unreachable
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result, State
from upseal.fleet.identity import SigningKey
from upseal.fleet.server.settings import read_settings
from upseal.fleet.server.store import alarms, deadletters, units
from upseal.fleet.settings import SettingsError
from upseal.fleet.units import Status, bundle, unit_rows
from upseal.integrations.nats import Broker, NatsSettings, Unfit, link, read_nats, run_opener
from upseal.integrations.nats.opener import Opener
from upseal.integrations.nats.opening import Done
from upseal.integrations.nats.streams import connect, decode_results, encode_results
from upseal.integrations.nats.waiting import LATE, Waiting

EXAMPLE = Path(__file__).parents[2] / "examples" / "nats" / "two_halves.py"


@pytest.fixture(scope="module")
def postgresql():
    server = PostgreSql.start()
    yield server
    server.stop()


class Halves:
    """A deployment: its front, which has no key, and its openers, which have."""

    def __init__(self, folder, database, stack, server, **settings):
        self.folder, self.server, self.stack = folder, server, stack
        self.site = Site(folder / "site", database=database)
        self.site.configure("[server]\nunwrap_share = 64.0\nunwrap_reserve = 1000.0")
        join(self.site.folder, server, ack_wait=1.0, **settings)
        self.nodes = {}
        self.front = self.node("front", "front", self.site.folder)

    def node(self, name, act, folder):
        made = self.nodes[name] = Process(name, act, folder, self.folder / f"{name}.log")
        self.stack.callback(lambda: made.running and made.kill())
        return made

    def serve(self, openers=1):
        """All processes, and encryption enabled; then the front's folder loses its keys."""
        with self.site.admin() as admin:
            admin.generate_key()
            admin.enable(force=True)
        inner = self.folder / "inner"
        shutil.copytree(self.site.folder, inner)
        shutil.rmtree(self.site.folder / "keys")
        for name in ("enrol.pem", "signing.pem", "ca.key"):
            (inner / name).unlink()
        self.front.start(wait=False)
        made = [self.node(f"opener-{i}", "open", inner) for i in range(openers)]
        self.openers = [one.start(wait=False) for one in made]
        for one in [self.front, *made]:
            one.up()
        self.look()
        return self

    def look(self):
        """Where the front is now, once it is ready."""
        host, port = self.front.address()
        self.site.url = f"http://{host}:{port}"
        eventually(lambda: self.site.get("/readyz").status == 200, "a front that is ready")

    def stored(self):
        """How many times each record is in the database."""
        found = {}
        with self.site.store() as store:
            for report in units.read(store):
                found[report.body] = found.get(report.body, 0) + 1
        return found

    def letters(self):
        with self.site.store() as store, store.reading() as db:
            return {letter.id: letter.reason for letter in deadletters.listing(db)}

    def alarms(self):
        with self.site.store() as store, store.reading() as db:
            return {alarm.kind for alarm in alarms.listing(db)}

    def emptied(self):
        eventually(lambda: at_broker(self, depth) == 0, "an empty stream")


@contextmanager
def halves(folder, database, *, openers=1, server=None, **settings):
    with ExitStack() as stack:
        server = server or stack.enter_context(broker(folder / "nats"))
        yield Halves(folder, database, stack, server, **settings).serve(openers)


def at_broker(world, act, **options):
    """Something done at the broker by somebody who may."""

    async def run():
        connection = await nats.connect(world.server.url, **options)
        try:
            return await act(connection, read_nats(world.site.folder, world.site.deployment))
        finally:
            await connection.close()

    return asyncio.run(run())


async def depth(connection, place):
    return (await connection.jetstream().stream_info(place.units)).state.messages


def deliver(sender, body, patience=60):
    """As an agent does: again and again, until there are receipts that verify; their statuses."""
    end = time.monotonic() + patience
    again = True
    while True:
        assert time.monotonic() < end, "no receipt came"
        try:
            if again:
                (result,) = sender._results(sender.post("/v1/units", body, wait=2))
            else:
                (result,) = sender.ask(result.body, wait=2)
        except (Unreachable, Problem) as error:
            assert not isinstance(error, Problem) or error.temporary, error
            again = True
            time.sleep(0.1)
            continue
        if result.state is State.DONE:
            return set(sender.statuses(result).values())
        assert result.problem is None or result.problem.temporary, result
        again = result.state is not State.PENDING
        time.sleep(0.05 if again else 0)


def test_reports_reach_the_database_through_a_front_without_keys(tmp_path, postgresql):
    with halves(tmp_path, postgresql.database(), openers=2) as world:
        site = world.site
        agent, relay = site.enrol("agent"), site.enrol("relay", role="relay")
        body = sealed(site, agent.unit(b"one", b"two"))
        assert deliver(agent, body) == {Status.STORED}
        assert deliver(agent, clear(agent.unit(b"three", reason=1))) == {Status.STORED}
        assert deliver(agent, body) == {Status.DUPLICATE}
        # A relay's bundle: each body has its own result, in this order.
        parts = [sealed(site, agent.unit(b"%d" % i)) for i in range(5)]
        found = relay._results(relay.post("/v1/units", bundle([*parts, body]), wait=20))
        assert [result.state for result in found] == [State.DONE] * 6
        assert set(relay.statuses(found[5]).values()) == {Status.DUPLICATE}
        assert set(world.stored().values()) == {1} and len(world.stored()) == 8
        # The front's folder has no key, and the broker keeps nothing that is done.
        assert not (site.folder / "keys").exists()
        world.emptied()
        assert site.metrics()["upseal_server_broker_waiting"] == 0
        # What the front itself can refuse never gets to the broker.
        with pytest.raises(Problem, match="malformed"):
            agent.send(b"no body")
        stranger = site.enrol("stranger")
        stranger.hop = SigningKey.generate()
        with pytest.raises(Problem, match="unauthenticated"):
            stranger.send(body)


def test_a_file_goes_through_a_front_that_has_the_keys(tmp_path, postgresql):
    """The bytes do not go by the broker; their announcement does, and an opener tells of it."""
    with halves(tmp_path, postgresql.database()) as world:
        site, agent = world.site, world.site.enrol("agent")
        file = Upload.make(site, os.urandom(300_000))
        put(agent, file.ticket, file.body)
        assert ask(agent, file.id).state is State.PENDING  # no key, and nobody has announced it
        shutil.copytree(tmp_path / "inner" / "keys", site.folder / "keys")
        eventually(lambda: world.front.events("key in use"), "a key")
        announced = sealed(site, agent.unit(file.announcement.encode()))
        assert deliver(agent, announced) == {Status.STORED}
        result = finished(agent, file.id)
        assert agent.statuses(result) == {file.digest(agent): Status.STORED}
        (row,) = rows(site, agent.agent)
        assert content(site, row) == file.data


def test_without_the_package_it_says_what_to_install():
    code = "import sys; sys.modules['nats'] = None; import upseal.integrations.nats"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'upseal[nats]'" in done.stderr.splitlines()[-1]


def test_pending_is_said_and_no_more_while_nobody_opens(tmp_path, postgresql):
    """And what may never be stored is told to the agent as the server itself would."""
    with halves(tmp_path, postgresql.database()) as world:
        site, (opener,) = world.site, world.openers
        agent, other = site.enrol("agent"), site.enrol("other")
        assert opener.stop() == 0
        bodies = [sealed(site, agent.unit(b"%d" % i)) for i in range(3)]
        results = [agent.send(body)[0] for body in bodies]
        assert {result.state for result in results} == {State.PENDING}
        again = agent.send(bodies[0])  # it waits already: it is not put there twice
        assert again[0].state is State.PENDING
        assert at_broker(world, depth) == 3
        assert {r.state for r in agent.ask(*(r.body for r in results))} == {State.PENDING}
        world.front.restart()  # a front that has forgotten: sent again, stored once
        world.look()
        assert agent.ask(results[0].body)[0].state is State.UNKNOWN
        opener.start()
        assert [deliver(agent, body) <= {Status.STORED, Status.DUPLICATE} for body in bodies]
        assert world.stored() == {b"0": 1, b"1": 1, b"2": 1}
        with pytest.raises(AssertionError, match="not-enrolled"):
            deliver(other, sealed(site, agent.unit(b"of somebody else")))
        with pytest.raises(AssertionError, match="malformed"):
            deliver(agent, b"USL\x01" + os.urandom(400))
        stale = Sealer([PrivateKey.generate("x25519").public_key]).seal_batch(
            unit_rows([agent.unit(b"x")]), site.context
        )
        with pytest.raises(AssertionError, match="stale-key"):
            deliver(agent, stale)
        world.emptied()


def _restarted_postgresql(server):
    server._run("pg_ctl", "-D", server._folder / "data", "-w", "-m", "immediate", "restart",
                "-l", server._folder / "log")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", ["openers", "broker", "postgresql", "front"])
def test_what_is_killed_loses_nothing_and_doubles_nothing(tmp_path, postgresql, what):
    rng = seed_of(f"nats-kills-{what}")
    with halves(tmp_path, postgresql.database(), openers=2) as world:
        site = world.site
        manifest = site.manifest()
        site.manifest = lambda: manifest  # the agents' own copy: the database may be away
        agents = [site.enrol(f"agent-{i}") for i in range(3)]
        stop, failed, made = threading.Event(), [], []

        def work(agent):
            count = 0
            try:
                while not stop.is_set():
                    records = [b"%s %d %d" % (agent.name.encode(), count, i) for i in range(3)]
                    made.extend(records)
                    body = sealed(site, agent.unit(*records))
                    assert deliver(agent, body) <= {Status.STORED, Status.DUPLICATE}
                    count += 1
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(agent,)) for agent in agents]
        for thread in threads:
            thread.start()
        try:
            for _ in range(4 if what == "openers" else 2):
                time.sleep(rng.uniform(0.05, 0.6))
                if what == "openers":
                    one = rng.choice(world.openers)
                    one.kill()
                    one.start(wait=False)
                elif what == "broker":
                    world.server.kill()
                    time.sleep(rng.uniform(0, 0.3))
                    world.server.start()
                elif what == "postgresql":
                    _restarted_postgresql(postgresql)
                else:
                    world.front.kill()
                    world.front.start()
                    host, port = world.front.address()
                    site.url = f"http://{host}:{port}"
            time.sleep(0.3)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failed, failed
        stored = world.stored()
        assert set(stored) == set(made) and set(stored.values()) == {1}
        assert len(made) >= 9  # something was under way
        world.emptied()
        assert not world.letters()
        assert not world.alarms()


@pytest.mark.slow
def test_openers_lose_nothing_of_what_nobody_sends_again(tmp_path, postgresql):
    """Each body is sent once; openers are killed while they work it off."""
    rng = seed_of("nats-openers")
    with halves(tmp_path, postgresql.database(), openers=2) as world:
        site, agent = world.site, world.site.enrol("agent")
        for one in world.openers:
            one.stop()
        made, bodies = [], []
        for number in range(120):
            records = [b"%d %d" % (number, i) for i in range(20)]
            made += records
            body = sealed(site, agent.unit(*records))
            (found,) = agent.send(body)
            assert found.state is State.PENDING
            bodies.append(found.body)
        for one in world.openers:
            one.start()

        async def kill_now_and_then(connection, place):
            for bound in sorted((rng.randrange(10, 110) for _ in range(3)), reverse=True):
                while await depth(connection, place) > bound:
                    await asyncio.sleep(0.005)
                one = rng.choice(world.openers)
                one.kill()
                one.start(wait=False)

        at_broker(world, kill_now_and_then)
        world.emptied()
        stored = world.stored()
        assert set(stored) == set(made) and set(stored.values()) == {1}

        def told():
            found = agent.ask(*bodies)
            return found if {result.state for result in found} == {State.DONE} else None

        results = eventually(told, "the receipts of all")
        said = {status for result in results for status in agent.statuses(result).values()}
        assert said <= {Status.STORED, Status.DUPLICATE}
        assert not world.letters()


def _carried(agent, body, when=None):
    """The headers by which a front passes a request on."""
    said = prove(agent.credential, agent.hop, "POST", "/v1/units", body, when or now_ms())
    return {**said, "Upseal-Received": str(now_ms())}


def test_what_others_put_on_the_broker_is_not_believed_and_blocks_nothing(tmp_path, postgresql):
    with halves(tmp_path, postgresql.database()) as world:
        site = world.site
        agent, other = site.enrol("agent"), site.enrol("other")
        body = sealed(site, agent.unit(b"once"))
        forged = site.enrol("forged")
        forged.hop = SigningKey.generate()
        own = sealed(site, other.unit(b"as another's"))
        true = _carried(agent, body)

        async def attack(connection, place):
            js, subject = connection.jetstream(), place.subject("units")
            await js.publish(subject, os.urandom(1000))
            await js.publish(subject, b"")
            await js.publish(subject, body, headers={"Upseal-Received": "x" * 2000})
            await js.publish(subject, body, headers=_carried(forged, body))
            await js.publish(subject, own, headers=true)  # another's proof
            for status in ("404", "503"):  # as if the broker said that there is nothing
                await js.publish(subject, body, headers={"Status": status})
            old = {**_carried(agent, own), "Upseal-Received": "1"}
            await js.publish(subject, body, headers=_carried(agent, body, now_ms() - 700_000))
            await js.publish(subject, own, headers=old)
            for _ in range(5):  # overheard, and sent again
                await js.publish(subject, body, headers=true)
            await js.publish(place.subject("results"), b"no results")
            await js.publish(place.subject("results"), b'{"results": []}',
                             headers={"Upseal-Announced": "xx"})  # fmt: skip

        at_broker(world, attack)
        assert deliver(agent, body) <= {Status.STORED, Status.DUPLICATE}
        assert deliver(other, own) == {Status.STORED}
        world.emptied()
        assert world.stored() == {b"once": 1, b"as another's": 1}
        assert "foreign-message" in world.alarms()
        assert not world.letters()
        assert site.metrics()["upseal_server_foreign_results_total"] == 2


def test_what_does_not_open_is_a_dead_letter_and_can_be_replayed(tmp_path, postgresql):
    """Also what has been given out again and again, as if each that opened it had died of it."""
    with halves(tmp_path, postgresql.database(), deliveries=2) as world:
        site, (opener,) = world.site, world.openers
        agent = site.enrol("agent")
        keys = [key.public() for key in site.manifest().encryption]
        wrong = Sealer(keys).seal_batch(unit_rows([agent.unit(b"x")]), b"another context")
        (found,) = agent._results(agent.post("/v1/units", wrong, wait=3))
        assert found.state is State.PENDING
        eventually(lambda: list(world.letters().values()) == ["cannot-open"], "a dead letter")
        opener.stop()
        poison = sealed(site, agent.unit(b"poison"))
        (found,) = agent.send(poison)
        assert found.state is State.PENDING

        async def die_of_it(connection, place):
            js = connection.jetstream()
            messages = await js.pull_subscribe_bind(consumer="openers", stream=place.units)
            for number in (1, 2):
                (message,) = await messages.fetch(1, timeout=20)
                assert message.metadata.num_delivered == number

        at_broker(world, die_of_it)
        opener.start()
        eventually(lambda: world.letters().get(found.body) == "repeated", "what was set aside")
        world.emptied()
        assert agent.ask(found.body)[0].state is State.PENDING
        assert not world.stored()
        with site.store() as store, store.writing() as db:
            deadletters.ask(db, [found.body])
        done = eventually(
            lambda: (r := agent.ask(found.body)[0]).state is State.DONE and r, "its receipt"
        )
        assert set(agent.statuses(done).values()) == {Status.STORED}
        assert world.stored() == {b"poison": 1}


@pytest.mark.slow
def test_a_full_broker_takes_nothing_and_nothing_is_lost(tmp_path, postgresql):
    with halves(tmp_path, postgresql.database(), max_bytes=1 << 20) as world:
        site, (opener,) = world.site, world.openers
        agent = site.enrol("agent")
        opener.stop()
        bodies = [sealed(site, agent.unit(os.urandom(100_000))) for _ in range(12)]
        said = []
        for body in bodies:
            try:
                said.append(agent.send(body)[0].state)
            except Problem as problem:
                assert (problem.name, problem.status, problem.retry_after) == ("full", 503, 10)
                said.append(problem.name)
        taken = said.count(State.PENDING)
        assert 5 <= taken < 12 and said == [State.PENDING] * taken + ["full"] * (12 - taken)
        opener.start()
        assert all(deliver(agent, b) <= {Status.STORED, Status.DUPLICATE} for b in bodies)
        assert len(world.stored()) == 12


@pytest.mark.slow
def test_a_broker_that_is_away_or_too_small(tmp_path, postgresql):
    with halves(tmp_path, postgresql.database()) as world:
        agent = world.site.enrol("agent")
        body = sealed(world.site, agent.unit(b"x"))
        world.server.kill()
        eventually(lambda: world.site.get("/readyz").status == 503, "a front that is not ready")
        with pytest.raises(Problem, match="parent-away"):
            agent.send(body)
        world.server.start()
        assert deliver(agent, body) == {Status.STORED}
        with broker(tmp_path / "small", payload=1 << 20) as small:
            inner = tmp_path / "inner"
            join(inner, small)
            settings = read_settings(inner)
            with pytest.raises(Unfit, match="set max_payload to 9437184 or more"):
                run_opener(settings, read_nats(inner, settings.deployment))


@pytest.mark.slow
def test_tls_and_a_password(tmp_path, postgresql):
    authority = TlsAuthority(tmp_path / "tls")
    pem = authority.make("broker")  # certificate and key
    more = f"""
    tls {{ cert_file: "{pem}", key_file: "{pem}" }}
    authorization {{ users: [ {{ user: "upseal", password: "a b c" }} ] }}
    """
    (tmp_path / "password").write_text("a b c\n")
    settings = {
        "tls_ca": f'"{authority.file}"', "user": '"upseal"',
        "password_file": f'"{tmp_path / "password"}"',
    }  # fmt: skip
    with (
        broker(tmp_path / "nats", more=more) as one,
        halves(tmp_path, postgresql.database(), server=one, **settings) as world,
    ):
        agent = world.site.enrol("agent")
        assert deliver(agent, sealed(world.site, agent.unit(b"x"))) == {Status.STORED}
        (tmp_path / "password").write_text("another\n")
        assert world.front.restart()
        opener = world.openers[0]
        opener.stop()
        opener.start(wait=False)
        for node in (world.front, opener):
            eventually(lambda node=node: node.events("broker trouble"), "a refusal")
            assert "another" not in node.log.read_text()
            assert node.stop() == 0  # also while it waits to be let in


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("servers is empty", {}),
        ("no address|HOST:PORT", {"servers": ("http://127.0.0.1:4222",)}),
        ("no user and no password", {"servers": ("nats://me:secret@127.0.0.1",)}),
        ("nothing says who asks", {"servers": ("tls://nats.example:4222",)}),
        ("is not on this host", {"servers": ("nats://nats.example:4222",), "anonymous": True}),
        ("is not on this host", {"servers": ("nats://10.0.0.1:4222",), "credentials": "x"}),
        ("go together", {"servers": ("nats://127.0.0.1",), "user": "x"}),
        ("replicas", {"servers": ("nats://127.0.0.1",), "replicas": 2}),
        ("ack_wait", {"servers": ("nats://127.0.0.1",), "ack_wait": 0.1}),
    ],
)
def test_settings_that_cannot_be_meant(words, settings):
    with pytest.raises(SettingsError, match=words):
        NatsSettings(**settings)


def test_settings_that_can():
    NatsSettings(servers=("nats://localhost:4222", "nats://[::1]:4222"))
    NatsSettings(servers=("tls://nats.example",), credentials="x")
    NatsSettings(servers=("nats://nats.example",), anonymous=True, plain=True)


def test_what_a_front_waits_for_has_an_end(monkeypatch):
    """Where the broker is rid of a message, or was set up anew, its body is unknown again."""
    waiting = Waiting(3)
    done, lost, late, new = (bytes([n]) * 32 for n in range(4))
    for body, sequence in ((done, 4), (lost, 40), (late, 6)):
        waiting.begin([body])
        waiting.taken([body], sequence)
    waiting.prune(5, 9)
    assert len(waiting) == 3  # results may still come
    clock = time.monotonic() + LATE + 1
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    waiting.prune(5, 9)
    assert [waiting.waits(body) for body in (done, lost, late)] == [False, False, True]
    waiting.begin([new, done, lost])
    assert len(waiting) == 3 and waiting.get(late) is None


@contextmanager
def pretender(say):
    """Something that says it is a broker: ``say(reader, writer)`` of each connection, in turn."""
    started, loop = threading.Event(), asyncio.new_event_loop()

    async def said(reader, writer):
        try:
            await say(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = loop.run_until_complete(asyncio.start_server(said, "127.0.0.1", 0))

    def run():
        asyncio.set_event_loop(loop)
        loop.call_soon(started.set)
        loop.run_forever()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:

        async def end():
            server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _info(**more):
    said = {"server_id": "x", "version": "2.9.10", "max_payload": 9 << 20, "headers": True, **more}
    return b"INFO " + json.dumps(said).encode() + b"\r\n"


async def _lets_in(reader, writer, **more):
    writer.write(_info(**more))
    while (line := await reader.readline()) and line != b"PING\r\n":
        pass
    writer.write(b"PONG\r\n")


def test_who_takes_tls_away_is_told_nothing(tmp_path):
    """Somebody between us and the broker leaves it out of what the broker says."""
    heard = []

    async def say(reader, writer):
        writer.write(_info())
        writer.write(b"PONG\r\n")
        heard.append(await reader.read(1 << 16))

    (tmp_path / "password").write_text("a b c")
    authority = TlsAuthority(tmp_path / "tls")
    for scheme, more in (("nats", {"tls_ca": str(authority.file)}), ("tls", {})):
        with pretender(say) as port:
            settings = NatsSettings(
                servers=(f"{scheme}://127.0.0.1:{port}",), user="me",
                password_file="password", **more,
            )  # fmt: skip
            with pytest.raises(TimeoutError):
                asyncio.run(
                    asyncio.wait_for(connect(Broker(settings, tmp_path, bytes(16)), "x"), 1.5)
                )
    assert len(heard) >= 2 and set(heard) == {b""}


def test_only_brokers_that_the_settings_name_are_gone_to(tmp_path):
    """What a broker says of others comes before TLS, so anybody may have written it."""

    async def say(reader, writer):
        await _lets_in(reader, writer, connect_urls=["192.0.2.1:4222", "elsewhere.example:4222"])
        await reader.read()

    async def run(port):
        settings = NatsSettings(servers=(f"nats://127.0.0.1:{port}",))
        connection = await connect(Broker(settings, tmp_path, bytes(16)), "x")
        try:
            return [one.netloc for one in connection.servers], connection.discovered_servers
        finally:
            await connection.close()

    with pretender(say) as port:
        assert asyncio.run(run(port)) == ([f"127.0.0.1:{port}"], [])


def test_a_broker_that_ends_a_connection_with_an_error_is_come_back_to(tmp_path):
    """Such as to end all of them when its settings are read again."""
    times = []

    async def say(reader, writer):
        times.append(0)
        await _lets_in(reader, writer)
        if len(times) == 1:
            writer.write(b"-ERR 'Maximum Payload Violation'\r\n")
        else:
            await reader.read()

    async def run(port):
        settings = NatsSettings(servers=(f"nats://127.0.0.1:{port}",))
        connection = await connect(Broker(settings, tmp_path, bytes(16)), "x")
        try:
            for _ in range(100):
                await asyncio.sleep(0.1)
                if len(times) == 2 and connection.is_connected:
                    return True
            return False
        finally:
            await connection.close()

    with pretender(say) as port:
        assert asyncio.run(run(port))


def test_a_front_that_listens_anew_hears_each_result_once(tmp_path, monkeypatch):
    """It does so after each failure: what was subscribed before must not stay."""
    monkeypatch.setattr(link, "_AGAIN", 0.05)
    monkeypatch.setattr(link, "_LOOK", 0.1)
    told, looks = [], []
    with broker(tmp_path / "nats") as server:
        settings = NatsSettings(servers=(server.url,), max_bytes=1 << 20, results_bytes=1 << 20)
        place = Broker(settings, tmp_path, bytes(16))
        one = link.Link(place, lambda found, announced: told.append(found), lambda *_: None)
        look = one._look

        async def slow():
            looks.append(0)
            if len(looks) < 5:
                raise TimeoutError
            await look()

        monkeypatch.setattr(one, "_look", slow)
        one.start()
        try:
            eventually(lambda: len(looks) >= 5 and one.ready() is None, "a link")

            async def tell(afresh=False):
                connection = await nats.connect(server.url)
                if afresh:
                    await connection.jetstream().delete_stream(place.results)
                    before = len(looks)
                    while len(looks) < before + 3:
                        await asyncio.sleep(0.05)
                data, headers = encode_results([Result.unknown(bytes(32))], [])
                await connection.jetstream().publish(
                    place.subject("results"), data, headers=headers
                )
                await connection.close()

            asyncio.run(tell())
            eventually(lambda: told, "a result")
            time.sleep(0.5)
            assert len(told) == 1
            asyncio.run(tell(afresh=True))  # somebody has deleted the stream
            eventually(lambda: len(told) == 2, "a result by a stream that was made again")
        finally:
            one.stop()


def test_what_fronts_are_told_fits_the_broker_with_its_headers(tmp_path):
    """A relay's request can have so many results, and so many uploads announced in it."""
    site = Site(tmp_path / "site")
    with broker(tmp_path / "nats") as server:
        join(site.folder, server, max_bytes=1 << 20, results_bytes=64 << 20)
        settings = read_settings(site.folder)
        place = read_nats(site.folder, settings.deployment)
        each = len(encode_results([Result.pending(bytes(32))] * 2, [])[0]) - len(
            encode_results([Result.pending(bytes(32))], [])[0]
        )
        count = (9 << 20) // each - 1  # with no header it would fit
        bodies = [number.to_bytes(32, "big") for number in range(count)]
        announced = [number.to_bytes(16, "big") for number in range(5000)]

        async def run():
            opener = Opener(settings, place)
            connection = None
            try:
                connection = await opener._connected()
                heard = await connection.jetstream().subscribe(
                    place.subject("results"), ordered_consumer=True
                )
                for done in (
                    Done([Result.pending(body) for body in bodies], announced[:1000]),
                    Done([], announced[1000:]),
                ):
                    told = asyncio.ensure_future(opener._publish(opener._js, done))
                    await asyncio.wait_for(told, 20)
                found, uploads = [], []
                while len(found) < count or len(uploads) < len(announced):
                    results, some = decode_results(await heard.next_msg(timeout=10))
                    found += [result.body for result in results]
                    uploads += some
                assert found == bodies and sorted(uploads) == announced
            finally:
                if connection is not None:
                    await connection.close()
                opener.close()

        asyncio.run(run())


def test_the_example_runs():
    done = subprocess.run(
        [sys.executable, EXAMPLE], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "stored once each" in done.stdout

# SPDX-License-Identifier: Apache-2.0
"""What enrolled agents, lying parents and readers that do not read can make a hop spend: counts.

`test_fleet_floods` has what comes in too fast. Here is what is small on the wire and large behind
it, and what goes out and is not taken.
"""

import json
import os
import socket
import sqlite3
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from fleet_server_support import Site, clear, sealed
from fleet_support import eventually, readings
from sqlalchemy import event
from starlette.responses import Response
from starlette.routing import Route
from test_fleet_http_client import parent

from upseal.fleet.http import responses, results
from upseal.fleet.http.apps import application
from upseal.fleet.http.client import Client, Timeouts, Unreachable
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import MOST_IDS, MOST_RECEIPTS, Result, State
from upseal.fleet.http.serving import Limits, in_thread
from upseal.fleet.identity import VerifyKey
from upseal.fleet.policy import Reason
from upseal.fleet.relay import rows
from upseal.fleet.server.answers import Answers
from upseal.fleet.server.store import Store, alarms, deadletters, now_ms
from upseal.fleet.server.upkeep import Upkeep
from upseal.fleet.server.writer import Job, Letter, Quota, Writer
from upseal.fleet.units import bundle

MIB = 1 << 20
DEAD = 64 << 10
"""Bytes of dead letters of one hop."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A server with its key; no bound on requests, which `test_fleet_floods` is about."""
    made = Site(tmp_path_factory.mktemp("attacks") / "site")
    made.enable()
    made.configure(
        f"[server]\ndead_letter_bytes_per_hop = {DEAD}\n[rates]\nhop_requests = 0\n"
        "address_failures = 0\naddress_requests = 0\n"
    )
    with made.running():
        yield made


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "server.db", bytes(16)) as made:
        yield made


def spoiled(body):
    """Sealed to the server, and changed."""
    return body[:-1] + bytes([body[-1] ^ 1])


# -- dead letters -----------------------------------------------------------------------------


def letters(count, hop=b"H" * 16, size=200, start=0):
    return [
        Letter(
            n.to_bytes(32, "big"), bytes(size), hop, "agent", now_ms(), deadletters.CANNOT_OPEN,
            b"k" * 8,
        )
        for n in range(start, start + count)
    ]  # fmt: skip


def test_short_dead_letters_are_few(store):
    """A quota has one for each KiB, and 64 in any case: not five thousand of 200 bytes."""
    writer = Writer(store, 100, Quota(3 * MIB // 10, 100 << 10))
    try:
        kept = writer.submit(Job(letters=letters(1000))).result().letters
        assert kept == [True] * 100 + [False] * 900
        kept = writer.submit(Job(letters=letters(500, b"I" * 16, start=2000))).result().letters
        assert sum(kept) == 100
        kept = writer.submit(Job(letters=letters(500, b"J" * 16, start=4000))).result().letters
        assert sum(kept) == 100
        kept = writer.submit(Job(letters=letters(500, b"K" * 16, start=6000))).result().letters
        assert sum(kept) == 3 * MIB // 10 // 1024 - 300  # what is left in all
    finally:
        writer.close()


def test_quotas_are_counted_once_a_transaction(store):
    """To count for each letter anew is to look at all that are there, and everybody waits."""
    said = []
    event.listen(store.engine, "before_cursor_execute", lambda *args: said.append(args[2].lower()))
    writer = Writer(store, 100, Quota(1 << 30, 1 << 30))
    try:
        for start in (0, 400):
            said.clear()
            assert all(writer.submit(Job(letters=letters(400, start=start))).result().letters)
            assert len([text for text in said if "sum(" in text]) == 1
            assert len(said) < 400 * 2 + 50
    finally:
        writer.close()


def test_a_bundle_of_bodies_that_do_not_open(site):
    """What an agent sends in one request: as dead letters its quota, and 503 for the rest."""
    agent = site.enrol("dead")
    good = sealed(site, agent.unit(b"x"))
    bodies = []
    for n in range(300):
        bodies.append(good[:-40] + os.urandom(40))
        assert len(bodies[n]) < 500
    found = agent.send(bundle(bodies))
    states = [result.state for result in found]
    assert states.count(State.PENDING) == DEAD // 1024
    assert {r.problem.name for r in found if r.state is State.PROBLEM} == {"full"}
    with site.store() as store, store.reading() as db:
        assert deadletters.usage(db)[0] == DEAD // 1024


def test_replaying_holds_up_no_start():
    """The first round stands before the first request; what is left goes on in the next one."""
    ended = threading.Event()
    replay = SimpleNamespace(round=lambda: not ended.is_set())  # there is always more to do
    upkeep = Upkeep(*[None] * 4, replay, *[None] * 4)
    thread = threading.Thread(target=upkeep._replay_some)
    thread.start()
    thread.join(30)
    went_on = thread.is_alive()
    ended.set()
    thread.join()
    assert not went_on


def test_a_round_of_replay_reads_no_more_than_it_replays(store):
    with store.writing() as db:
        taken = deadletters.Taken(db)
        for letter in letters(300):
            facts = {**letter._asdict(), "total_quota": 1 << 30, "hop_quota": 1 << 30}
            assert deadletters.put(db, **facts, taken=taken)
        deadletters.ask(db)
        found = deadletters.listing(db, wanted=True, limit=64)
        assert [n.id for n in found] == [n.id for n in deadletters.listing(db)[:64]]


# -- one request, and what is in it -----------------------------------------------------------


def test_a_bundle_has_no_more_units_of_an_agent_than_a_body(site, monkeypatch):
    """1,024 are verified; what is behind them is to come again, by itself."""
    agent, counted = site.enrol("bundler"), []
    real = VerifyKey.verify

    def verify(self, message, signature):
        if message.startswith(b"upseal/v1 statement"):
            counted.append(1)
        return real(self, message, signature)

    bodies = [sealed(site, *[agent.unit(b"r") for _ in range(200)]) for _ in range(8)]
    monkeypatch.setattr(VerifyKey, "verify", verify)
    found = agent.send(bundle(bodies))
    assert [r.state for r in found] == [State.DONE] * 5 + [State.PROBLEM] * 3
    assert len(counted) == 1000
    assert {r.problem.name for r in found[5:]} == {"busy"}
    assert all(r.problem.temporary for r in found[5:])
    (again,) = agent.send(bodies[5])
    assert again.state is State.DONE


def test_a_bundle_of_an_agent_is_opened_up_to_its_thousandth_body(site):
    """What is behind it is named, and not looked at."""
    agent = site.enrol("pieces")
    before = site.metrics().get('upseal_server_bodies_total{kind="sealed"}', 0.0)
    bodies = [b"USL\x01" + n.to_bytes(4, "big") for n in range(3000)]
    found = agent.send(bundle(bodies))
    names = [r.problem.name for r in found]
    assert names == ["malformed"] * 1024 + ["busy"] * 1976
    assert site.metrics()['upseal_server_bodies_total{kind="sealed"}'] - before == 1024


@pytest.mark.parametrize("what", ["records", "bodies"])
def test_small_things_count_as_requests(tmp_path, what):
    """A hundred thousand empty records as ninety-seven; each body that is none as one."""
    made = Site(tmp_path / "site")
    made.enable()
    made.configure("[rates]\nhop_requests = 1\nreserve = 10\n")
    with made.running():
        agent = made.enrol("small")
        if what == "records":
            agent.send(sealed(made, agent.unit(*[b""] * 100_000)))
        else:
            agent.send(bundle([b"USL\x01" + n.to_bytes(4, "big") for n in range(98)]))
        with pytest.raises(Problem) as caught:
            agent.send(sealed(made, agent.unit(b"r")))
        assert caught.value.name == "busy"
        assert 60 < caught.value.retry_after < 98


def test_each_unit_of_an_agent_counts_as_a_request(tmp_path):
    """Each costs a signature and rows of its own; lent once, and then it is waited for."""
    made = Site(tmp_path / "site")
    made.enable()
    made.configure("[rates]\nhop_requests = 10\nreserve = 10\n")
    with made.running():
        agent, calm = made.enrol("heavy"), made.enrol("calm")
        (first,) = agent.send(sealed(made, *[agent.unit(b"r") for _ in range(1000)]))
        assert (first.state, len(first.receipts)) == (State.DONE, 1000)
        with pytest.raises(Problem) as caught:
            agent.send(sealed(made, agent.unit(b"r")))
        assert caught.value.name == "busy"
        assert caught.value.retry_after > 60  # 900 more than a full bucket had, at 10 a second
        assert calm.send(sealed(made, calm.unit(b"r")))[0].state is State.DONE


def test_what_an_agent_contradicts_makes_few_lines_and_one_alarm(site, caplog):
    """Two thousand contradictions: a line for each second, 20 at once, and how many were not."""
    agent = site.enrol("contrary")
    for body in (b"one", b"two"):
        for turn in range(2):
            units = [agent.unit(body, sequence=1000 * turn + n) for n in range(1000)]
            agent.send(sealed(site, *units))
    lines = [r for r in caplog.records if getattr(r, "upseal_event", "") == "contradiction"]
    assert 1 <= len(lines) < 60
    assert sum(r.upseal_fields["left_out"] + 1 for r in lines) <= 2000
    with site.store() as store, store.reading() as db:
        found = [a for a in alarms.listing(db) if a.subject == agent.agent]
    assert [(a.kind, a.times) for a in found] == [("contradiction", 2000)]


def test_an_agent_sounds_each_alarm_once_an_hour(site):
    """Alarms are never pruned: their rows must not be for whoever is enrolled to make up."""
    agent, other = site.enrol("loud"), site.enrol("other")

    def loud(turn):
        for n in range(6):
            agent.send(spoiled(sealed(site, agent.unit(os.urandom(20)))))
            agent.send(clear(agent.unit(b"%d" % n)))  # said to be sealed
            agent.send(clear(agent.unit(b"%d" % n, reason=Reason.LEVEL_NONE)))
            agent.send(sealed(site, agent.unit(b"x", deployment=os.urandom(16))))
            agent.send(sealed(site, agent.unit(b"x", sequence=1 << 63)))
            agent.send(sealed(site, agent.unit(b"%d %d" % (turn, n), sequence=7)))
            agent.send(sealed(site, other.unit(b"x")))
        with site.store() as store, store.reading() as db:
            mine = (agent.agent, agent.hop_id)
            return {(a.kind, a.subject): a.times for a in alarms.listing(db) if a.subject in mine}

    first = loud(0)
    assert 5 <= len(first) <= len(alarms.KINDS)
    second = loud(1)
    assert second.keys() == first.keys()
    assert all(second[kind] > first[kind] for kind in first)
    with site.store() as store, store.reading() as db:
        rows_of = [(a.kind, a.subject) for a in alarms.listing(db)]
    assert len(rows_of) == len(set(rows_of))


def test_nobody_makes_new_labels(site):
    """After some of each kind, 720 odd requests add no line to those of HTTP and bodies."""
    agent = site.enrol("labels")

    def odd(turn):
        with Client(site.url) as client:
            for n in range(30):
                name = f"{turn}-{n}-{os.urandom(4).hex()}"
                for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", name):
                    for path in (f"/{name}", f"/v1/units?{name}", f"/v1/uploads/{name}"):
                        client.request(method, path, headers={"user-agent": name, "x-up": name})
        agent.send(clear(agent.unit(os.urandom(9), reason=Reason.LEVEL_NONE)))
        agent.post("/v1/units", os.urandom(30))
        text = site.get("/metrics").body.decode()
        assert agent.agent.hex() not in text
        lines = {line.rpartition(" ")[0] for line in text.splitlines() if line[:1] != "#"}
        assert len(lines) < 2000
        # What stands in the database is counted now and then: by reasons, of which there are six.
        return {line for line in lines if "upseal_server_client" not in line}

    odd(0)
    first = odd(1)
    assert odd(2) == first


# -- answers that are long --------------------------------------------------------------------


def done(number, receipts):
    return Result.done(number.to_bytes(32, "big"), [os.urandom(139)] * receipts)


def test_an_answer_has_so_many_receipts_and_the_rest_later():
    """Six MiB of them, so that who asks about 4,096 full bodies gets no gigabyte at once."""
    known = {r.body: r for r in (done(n, 1024) for n in range(100))}
    asked, turns = list(known), 0
    while asked:
        body = responses.of_results([known[name] for name in asked]).body
        assert len(body) < 8 * MIB
        found = results.decode(body)
        assert [r.body for r in found] == asked
        assert sum(len(r.receipts) for r in found) <= MOST_RECEIPTS
        settled = [r for r in found if r.state is State.DONE]
        assert all(r == known[r.body] for r in settled)
        assert settled
        asked = [r.body for r in found if r.state is State.PENDING]
        turns += 1
    assert turns == -(-100 * 1024 // MOST_RECEIPTS)


def test_one_body_with_more_receipts_is_answered_alone():
    many = done(1, MOST_RECEIPTS + 5)
    small = [done(n, 2) for n in range(2, 5)]
    states = [r.state for r in results.bounded([many, *small, Result.unknown(bytes(32))])]
    assert states == [State.DONE] + [State.PENDING] * 3 + [State.UNKNOWN]
    states = [r.state for r in results.bounded([*small, many])]
    assert states == [State.DONE] * 3 + [State.PENDING]


def test_a_relay_reads_no_more_results_than_it_answers_with():
    db = sqlite3.connect(":memory:")
    rows.prepare(db)
    every = [done(n, 4096) for n in range(40)]
    for result in every:
        rows.keep(db, result.body, now_ms(), rows.encode(result))
    read = []
    db.set_trace_callback(read.append)
    found = rows.results(db, [r.body for r in every] + [b"?" * 32])
    db.close()
    most = MOST_RECEIPTS // 4096 + 1
    assert len(read) == most
    assert [found[r.body] for r in every] == every[:most] + [None] * (40 - most)


def test_more_ids_than_are_answered_are_refused(site):
    agent = site.enrol("asking")
    names = [os.urandom(32).hex() for _ in range(10_000)]
    for count, status in ((MOST_IDS, 200), (MOST_IDS + 1, 400), (7000, 400), (10_000, 413)):
        body = json.dumps({"bodies": names[:count]}, separators=(",", ":")).encode()
        assert agent.post("/v1/results", body).status == status, count
    twice = json.dumps({"bodies": names[:1] * MOST_IDS}).encode()
    assert len(results.decode(agent.post("/v1/results", twice).body)) == 1


def test_a_server_keeps_so_many_answers(store):
    answers = Answers(store, 5000)
    for n in range(300):
        answers.put(done(n, 1024))
        assert answers._receipts <= 5000
    assert len(answers) == 4


# -- readers that do not read -----------------------------------------------------------------

LONG = 16 * MIB
UNREAD = 40 * MIB


async def long(request):
    return Response(bytes(LONG))


def serving(limits):
    metrics = Metrics("relay")
    return in_thread(application([Route("/long", long)], metrics=metrics), limits=limits)


def measured(address):
    with Client(address.url, 20.0) as client:
        return readings(client.request("GET", "/metrics").body.decode())


def asking(address, stack):
    sock = stack.enter_context(socket.socket())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(20)
    sock.connect(address[:2])
    sock.sendall(b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n")
    return sock


def test_answers_that_nobody_reads_are_bounded():
    """All together, and beyond that whoever is last is cut off; then there is room again."""
    with serving(Limits(unread_bytes=UNREAD)) as address, ExitStack() as stack:
        for _ in range(12):
            asking(address, stack)

        def turned_away():
            found = measured(address)
            assert found["upseal_relay_http_unread_bytes"] <= UNREAD
            return found.get('upseal_relay_http_limited_total{limit="unread-answers"}', 0) >= 9

        eventually(turned_away, "cut off connections")
        eventually(lambda: measured(address)["upseal_relay_http_connections"] <= 4, "their end")
        assert measured(address)["upseal_relay_http_unread_bytes"] > 8 * MIB
        stack.close()
        eventually(lambda: measured(address)["upseal_relay_http_unread_bytes"] == 0, "room")
        with Client(address.url, 20.0) as client:
            assert len(client.request("GET", "/long", limit=LONG).body) == LONG


def test_one_address_has_its_share_of_them():
    limits = Limits(unread_bytes=2 * UNREAD, address_share=0.5)
    with serving(limits) as address, ExitStack() as stack:
        for _ in range(8):
            asking(address, stack)
        eventually(lambda: measured(address)["upseal_relay_http_connections"] <= 4, "their end")
        assert measured(address)["upseal_relay_http_unread_bytes"] <= UNREAD


@pytest.mark.parametrize("again", [False, True], ids=["one request", "two"])
def test_who_reads_a_byte_now_and_then_is_cut_off(again):
    """With a second request behind the first, which would wait for the first to be read."""
    with serving(Limits(keep_alive=1)) as address, ExitStack() as stack:
        sock = asking(address, stack)
        if again:
            sock.sendall(b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n")

        def gone():
            sock.recv(1)
            return measured(address)["upseal_relay_http_connections"] == 1

        eventually(gone, "its end", seconds=20, pause=0.1)
        assert measured(address)["upseal_relay_http_unread_bytes"] == 0


# -- parents that lie -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\na: ", b"a"),
        (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
        (b"HTTP", b"/"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"0"),
    ],
    ids=["go on", "a header", "headers", "the first line", "the length of a chunk"],
)
def test_an_answer_that_never_begins_is_given_up(begin, piece):
    """Each byte in time, and never an answer: a thread would wait for as long as somebody likes."""
    sent = []

    def drip(connection, stop):
        for _ in range(300):
            if stop.wait(0.1):
                return
            connection.sendall(piece)
            sent.append(piece)

    hasty = Timeouts(connect=20, read=5, total=1)
    with parent(begin, then=drip) as (url, _), Client(url, hasty) as client:
        with pytest.raises(Unreachable):
            client.request("GET", "/")
        assert len(sent) < 250


def test_headers_are_few_and_bounded():
    """A hundred of 64 KiB at most."""
    sent = []

    def pour(connection, stop):
        for _ in range(2000):
            connection.sendall(b"a: " + b"b" * 60_000 + b"\r\n")
            sent.append(1)

    with (
        parent(b"HTTP/1.1 200 OK\r\n", then=pour) as (url, _),
        Client(url, 20.0) as client,
        pytest.raises(Unreachable),
    ):
        client.request("GET", "/")
    assert len(sent) < 400  # what fits into the sockets' buffers, too


@pytest.mark.parametrize("asked", ["3153600000", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_century_away_is_an_hour_away(asked):
    head = f"HTTP/1.1 503 x\r\nretry-after: {asked}\r\ncontent-length: 0\r\n\r\n".encode()
    with parent(head) as (url, _), Client(url, 20.0) as client:
        answer = client.request("GET", "/")
    assert answer.retry_after is None or answer.retry_after <= 3600

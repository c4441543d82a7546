# SPDX-License-Identifier: Apache-2.0
"""What one hop and one address may ask for; and what a stranger's request costs: the buckets, the
gate before an application, and the count of public-key operations for whatever he may send.
"""

import asyncio
import hashlib
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
from fleet_relay_support import parent_of, relay_of
from fleet_relay_support import senders as relay_senders
from fleet_server_support import Sender, Site, clear, now_ms, sealed
from fleet_support import Site as Keys
from starlette.responses import JSONResponse
from starlette.routing import Route

from upseal import PrivateKey, Sealer
from upseal.fleet import jws
from upseal.fleet.credentials import Token, enrol_context, enrol_request, prove
from upseal.fleet.hops import Hop, HopCheck, issue_credential
from upseal.fleet.http.apps import application, read_body
from upseal.fleet.http.client import Client
from upseal.fleet.http.crowd import Crowd, Place
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.rates import Addresses, Buckets, Gate, Rates
from upseal.fleet.http.seldom import Seldom
from upseal.fleet.http.serving import in_thread
from upseal.fleet.identity import SigningKey, VerifyKey
from upseal.fleet.relay.queue import Queue
from upseal.fleet.relay.settings import Settings as RelaySettings
from upseal.fleet.settings import SettingsError


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


# -- buckets ----------------------------------------------------------------------------


def test_a_bucket_gives_its_reserve_and_then_its_rate():
    clock = Clock()
    buckets = Buckets(10, 2, clock=clock)
    assert [buckets.take("a") for _ in range(20)] == [0.0] * 20
    assert 0 < buckets.take("a") <= 0.1
    assert buckets.wait("b") == buckets.take("b") == 0, "another has its own"
    clock.now += 0.5
    assert [buckets.take("a") for _ in range(5)] == [0.0] * 5
    assert buckets.take("a") > 0
    clock.now += 3600
    assert [buckets.take("a") for _ in range(20)] == [0.0] * 20, "no more than its reserve"
    assert buckets.take("a") > 0


def test_what_was_lent_is_waited_for():
    """A large body is let in while there is anything, and the next one waits for it."""
    clock = Clock()
    buckets = Buckets(100, 1, clock=clock)
    assert buckets.take("a", 1000) == 0
    assert buckets.wait("a") == pytest.approx(9)
    assert buckets.take("a", 1) == pytest.approx(9)
    clock.now += 9.001
    assert buckets.take("a", 1) == 0


def test_a_factor_and_no_bound():
    clock = Clock()
    buckets = Buckets(1, 1, clock=clock)
    assert sum(buckets.take("relay", 1, 8) == 0 for _ in range(20)) == 8
    assert all(Buckets(0, 1).take("a", 1e9) == 0 for _ in range(1000))


def test_buckets_take_little_memory():
    clock = Clock()
    buckets = Buckets(1, 10, 500, clock=clock)
    for i in range(20_000):
        buckets.take(i)
    assert len(buckets) <= 500
    clock.now += 60  # all are full again
    for _ in range(1000):
        buckets.take("one")
    assert len(buckets) == 1


def test_who_is_turned_away_takes_no_seats():
    """One address holds its share, and as many again to be told so; the others have theirs."""
    crowd = Crowd(10, 0.5, ("10.0.0.1",))
    places = [crowd.enter("192.0.2.1") for _ in range(30)]
    assert Counter(places) == {Place.WELCOME: 5, Place.BUSY: 5, Place.AWAY: 20}
    assert [crowd.enter("10.0.0.1") for _ in range(5)] == [Place.WELCOME] * 5
    assert crowd.enter("192.0.2.2") is Place.CROWDED
    assert len(crowd) == 16
    for place in places:
        crowd.leave("192.0.2.1", place)
    assert len(crowd) == 6
    assert [crowd.enter("192.0.2.1") for _ in range(6)] == [Place.WELCOME] * 5 + [Place.CROWDED]


def test_addresses():
    key = Addresses(("10.0.0.0/8", "192.0.2.7", "2001:db8:1::/48")).key
    assert key("192.0.2.8") == "192.0.2.8"
    assert key("192.0.2.7") is key("10.1.2.3") is key("2001:db8:1:2::3") is None
    assert key("2001:db8:2:3::4") == key("2001:db8:2:3:4:5:6:7") != key("2001:db8:2:4::4")
    assert key("::ffff:192.0.2.8") == "192.0.2.8"
    assert key("::ffff:10.0.0.1") is None
    assert key("fe80::1%eth0") == key("fe80::2")
    assert key("") == ""


@pytest.mark.parametrize(
    "wrong",
    [{"exceptions": ("here",)}, {"hop_requests": -1.0}, {"address_share": 0.0},
     {"relay_factor": 0.5}, {"reserve": 0.0}],
)  # fmt: skip
def test_rates_that_cannot_be_meant(wrong):
    with pytest.raises(SettingsError):
        Rates(**wrong)


def test_rates_are_read_from_both_files(tmp_path):
    text = "[rates]\nhop_requests = 7\nexceptions = ['10.0.0.0/8']\n"
    found = RelaySettings.parse(
        {"parent": "http://x", "rates": {"hop_requests": 7, "exceptions": ["10.0.0.0/8"]}}
    )
    assert found.rates == Rates(hop_requests=7, exceptions=("10.0.0.0/8",))
    site = Site(tmp_path / "site")
    site.configure(text)
    assert site.settings.rates == found.rates
    with pytest.raises(SettingsError, match=r"rates\.none"):
        site.configure("none = 1")


def test_lines_that_a_stranger_causes():
    clock = Clock()
    seldom = Seldom(1, 5, clock)
    told = [seldom.tell() for _ in range(100)]
    assert told == [0] * 5 + [None] * 95
    clock.now += 1
    assert seldom.tell() == 95


# -- the gate ---------------------------------------------------------------------------

AGENT, RELAY = Hop(b"a" * 16, "agent"), Hop(b"r" * 16, "relay")
KNOWN = {"Upseal agent": AGENT, "Upseal relay": RELAY}
KNOWERS = ("agent", "relay", "nobody")


class Behind:
    """An application behind a gate; who shows a known credential is believed."""

    def __init__(self, **rates):
        self.clock, self.bodies = Clock(), []
        metrics = Metrics("relay")
        self.gate = Gate(Rates(**{"reserve": 1.0, **rates}), metrics, KNOWN.get, self.clock)

        async def take(request):
            self.bodies.append(len(await read_body(request, 1 << 20)))
            hop = KNOWN.get(request.headers.get("authorization"))
            if hop is None:
                raise Problem("unauthenticated")
            self.gate.passed(hop, request.url.path, self.bodies[-1])
            return JSONResponse({})

        async def enrol(request):
            raise Problem("token")

        routes = [
            Route("/v1/units", take, methods=["POST"]),
            Route("/v1/uploads/x", take, methods=["PATCH"]),
            Route("/v1/enrol", enrol, methods=["POST"]),
        ]
        self.app = application(routes, metrics=metrics, gate=self.gate)

    def __enter__(self):
        self.serving = in_thread(self.app)
        self.client = Client(self.serving.__enter__().url, 20.0)
        return self

    def __exit__(self, *error):
        self.client.close()
        self.serving.__exit__(*error)

    def ask(self, who=None, body=b"", path="/v1/units", method="POST"):
        headers = {} if who is None else {"authorization": f"Upseal {who}"}
        response = self.client.request(method, path, body, headers)
        problem = response.problem()
        if problem is not None and problem.name == "busy":
            assert response.status == 429
            assert response.retry_after >= 1
        return "done" if problem is None else problem.name

    def many(self, count, *what, **how):
        return Counter(self.ask(*what, **how) for _ in range(count))

    def limited(self, limit):
        found = self.client.request("GET", "/metrics").body.decode()
        name = f'upseal_relay_http_limited_total{{limit="{limit}"}} '
        return sum(
            float(line.removeprefix(name)) for line in found.splitlines() if line.startswith(name)
        )


def test_a_hop_over_its_requests_is_told_to_wait():
    with Behind(hop_requests=5, relay_factor=3) as behind:
        assert behind.many(9, "agent") == {"done": 5, "busy": 4}
        assert behind.many(18, "relay") == {"done": 15, "busy": 3}
        assert len(behind.bodies) == 20, "a hop that is known is refused before its body"
        behind.clock.now += 1
        assert behind.many(6, "agent") == {"done": 5, "busy": 1}
        assert behind.limited("hop-requests") == 8


def test_a_hop_over_its_bytes():
    with Behind(hop_bytes=1000) as behind:
        assert behind.ask("agent", b"x" * 5000) == "done"
        assert behind.ask("agent") == "busy"
        assert behind.bodies == [5000]
        assert behind.ask("agent", path="/v1/uploads/x", method="PATCH") == "busy"
        behind.clock.now += 5
        assert behind.many(3, "agent", b"x" * 9000, path="/v1/uploads/x", method="PATCH") == {
            "done": 3
        }, "uploads have a rate of their own"


def test_an_address_over_its_requests():
    with Behind(address_requests=6) as behind:
        assert behind.many(4, "agent") == {"done": 4}
        assert behind.many(3) == {"unauthenticated": 2, "busy": 1}
        assert behind.ask("agent") == "busy"
        behind.clock.now += 1
        assert behind.ask("agent") == "done"
    with Behind(address_requests=6, exceptions=("127.0.0.0/8",)) as behind:
        assert behind.many(20, "agent") == {"done": 20}


def test_who_proves_nothing_closes_the_door_for_strangers_alone():
    with Behind(address_failures=4) as behind:
        assert behind.many(6, "nobody") == {"unauthenticated": 4, "busy": 2}
        assert behind.many(20, "agent") == {"done": 20}, "from the same address"
        assert behind.ask(path="/v1/enrol") == "busy"
        assert behind.client.request("GET", "/healthz").status == 200
        behind.clock.now += 1
        assert behind.many(5, path="/v1/enrol") == {"token": 4, "busy": 1}
        assert behind.limited("address-failures") == 4


def test_an_overheard_credential_fails_as_seldom():
    """Its owner, who is elsewhere, is none the worse for it."""
    clock = Clock()
    gate = Gate(Rates(address_failures=3, reserve=1), Metrics("relay"), KNOWN.get, clock)

    def scope(host):
        headers = [(b"authorization", b"Upseal agent")]
        return {"client": (host, 1), "headers": headers, "path": "/v1/units"}

    for _ in range(3):
        gate.arrives(scope("192.0.2.1"))
        gate.answered(scope("192.0.2.1"), 401)
    with pytest.raises(Problem, match="busy"):
        gate.arrives(scope("192.0.2.1"))
    gate.arrives(scope("192.0.2.2"))
    gate.arrives({**scope("192.0.2.1"), "headers": []})


# -- memory for bodies ------------------------------------------------------------------


class Reading:
    """An application with 256 KiB for bodies, of which some come slowly."""

    def __init__(self, **rates):
        metrics = Metrics("relay")

        async def take(request):
            return JSONResponse(len(await read_body(request, 1 << 20)))

        routes = [Route("/v1/units", take, methods=["POST"])]
        gate = Gate(Rates(**rates), metrics, KNOWN.get)
        self.app = application(routes, metrics=metrics, gate=gate, budget=256 << 10)
        self.hanging = []

    async def ask(self, host, who, size, *, hangs=False):
        pieces, heard = [b"x" * size, b"x"], []

        async def receive():
            if hangs and len(pieces) == 1:
                await asyncio.sleep(3600)
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

        async def send(message):
            heard.append(message.get("status"))

        scope = {
            "type": "http", "method": "POST", "path": "/v1/units", "raw_path": b"/v1/units",
            "headers": [(b"authorization", f"Upseal {who}".encode())], "client": (host, 1),
            "query_string": b"", "scheme": "http", "http_version": "1.1", "root_path": "",
        }  # fmt: skip
        await self.app(scope, receive, send)
        return heard[0]

    async def hang(self, *what):
        """It holds what has come of its body."""
        self.hanging.append(asyncio.ensure_future(self.ask(*what, hangs=True)))
        await asyncio.sleep(0.05)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        for task in self.hanging:
            task.cancel()
        await asyncio.gather(*self.hanging, return_exceptions=True)


@pytest.mark.parametrize("who", ["nobody", "agent", "relay"])
def test_who_holds_memory_at_one_address_keeps_nobody_elsewhere_out(who):
    """By nothing, or by what he has overheard: others are heard, and its owner is."""

    async def run():
        async with Reading() as reading:
            for _ in range(4):
                await reading.hang("192.0.2.1", who, 64 << 10)
            assert await reading.ask("192.0.2.1", who, 1000) == 429
            found = {other: await reading.ask("192.0.2.2", other, 1000) for other in KNOWERS}
            assert found == dict.fromkeys(KNOWERS, 200)

    asyncio.run(run())


def test_one_address_does_not_hold_all_memory_by_many_names():
    async def run():
        async with Reading() as reading:
            for who in ("agent", "relay", "nobody", "agent", "relay"):
                await reading.hang("192.0.2.1", who, 60 << 10)
            assert await reading.ask("192.0.2.2", "agent", 20 << 10) == 200
        async with Reading(exceptions=("192.0.2.1",)) as reading:
            for who in ("agent", "relay", "nobody", "agent"):
                await reading.hang("192.0.2.1", who, 64 << 10)
            assert await reading.ask("192.0.2.2", "agent", 20 << 10) == 503, "as it was told"

    asyncio.run(run())


# -- what a request costs that proves nothing ---------------------------------------------


@pytest.fixture
def operations(monkeypatch):
    """Counts public-key operations in this process, by what they are."""
    counts = Counter()

    def count(where, name, what):
        real = getattr(where, name)

        def counted(*args, **options):
            counts[what] += 1
            return real(*args, **options)

        monkeypatch.setattr(where, name, counted)

    count(jws.jose, "deserialize_compact", "verify token")
    count(jws.jose, "serialize_compact", "sign token")
    count(VerifyKey, "verify", "verify")
    count(SigningKey, "sign", "sign")
    count(PrivateKey, "unwrap", "unwrap")
    return counts


def tampered(token):
    """The same words, and a signature that is none of theirs."""
    head, _, signature = token.rpartition(".")
    return f"{head}." + ("A" if signature[0] != "A" else "B") + signature[1:]


def kinds_of_strangers(credential, hop, deployment, manifest, used):
    """What somebody may send who is not enrolled, though he may have overheard a credential:
    (what, method, path, body, headers).
    """
    body = b"UPC\x01 whatever"
    stranger, now = SigningKey.generate(), now_ms()
    own = issue_credential(deployment, stranger.public, "agent", stranger, now)
    forged = jws.sign(jws.unverified(credential), stranger, jws.HOP)

    def proven(credential, key=stranger, path="/v1/units", said=body, at=now):
        return prove(credential, key, "POST", path, said, at)

    good = proven(credential, hop)
    for path in ("/v1/units", "/v1/results", "/v1/relay/key", "/v1/relay/answer"):
        right = proven(credential, hop, path)
        yield f"nothing {path}", "POST", path, body, {}
        yield f"no proof {path}", "POST", path, body, {"Authorization": right["Authorization"]}
        yield f"garbage {path}", "POST", path, body, {
            "Authorization": "Upseal a.b.c", "Upseal-Proof": "a.b.c",
        }  # fmt: skip
        yield f"own {path}", "POST", path, body, proven(own, path=path)
        yield f"forged {path}", "POST", path, body, proven(forged, path=path)
        changed = tampered(credential)
        yield f"tampered {path}", "POST", path, body, proven(changed, hop, path)
        yield f"overheard {path}", "POST", path, body, proven(credential, path=path)
        yield f"proof tampered {path}", "POST", path, body, {
            **right, "Upseal-Proof": tampered(right["Upseal-Proof"]),
        }  # fmt: skip
    yield "another body", "POST", "/v1/units", body + b"!", good
    yield "another path", "POST", "/v1/results", body, good
    yield "old", "POST", "/v1/units", body, proven(credential, hop, at=now - 3_600_000)
    yield "long", "POST", "/v1/units", body, {
        "Authorization": f"Upseal {'x' * 9000}", "Upseal-Proof": "y" * 9000,
    }  # fmt: skip
    # -- enrolments
    sealer, context = Sealer([manifest.enrolment.public()]), enrol_context(deployment)
    yield "enrol nothing", "POST", "/v1/enrol", b"", {}
    yield "enrol garbage", "POST", "/v1/enrol", b"USL\x01" + bytes(300), {}
    yield "enrol sealed garbage", "POST", "/v1/enrol", sealer.seal(b"garbage", context), {}
    yield "enrol another context", "POST", "/v1/enrol", sealer.seal(b"x", b"other"), {}
    others = Sealer([PrivateKey.generate().public_key]).seal(b"x", context)
    yield "enrol another key", "POST", "/v1/enrol", others, {}
    for what, secret in (("no token", bytes(16)), ("a used token", used)):
        token = Token(deployment, bytes(32), 1, secret)
        asked = enrol_request(
            token, manifest, SigningKey.generate(), stranger, name="x", now_ms=now
        )
        yield f"enrol {what}", "POST", "/v1/enrol", asked, {}
    for path in ("/v1/manifest?since=0", "/v1/capabilities", "/healthz", "/readyz", "/metrics"):
        yield path, "GET", path, b"", {}
    # -- uploads
    for method in ("POST", "HEAD", "PATCH", "DELETE", "OPTIONS"):
        path = "/v1/uploads" if method in ("POST", "OPTIONS") else "/v1/uploads/" + "0" * 64
        said = {"Tus-Resumable": "1.0.0", "Upload-Length": "10", "Upload-Offset": "0"}
        if method == "PATCH":
            said["Content-Type"] = "application/offset+octet-stream"
        at = now_ms()
        yield f"upload {method}, nothing", method, path, body, said
        for what, card in (("own", own), ("tampered", tampered(credential)), ("heard", credential)):
            shown = prove(card, stranger, method, path, body, at)
            yield f"upload {method}, {what}", method, path, body, {**said, **shown}


def contents(path):
    """Rows of every table but those that the server writes by itself, and the files beside it."""
    with closing(sqlite3.connect(path, timeout=30)) as db:
        names = [n for (n,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {
            name: db.execute(f"SELECT * FROM {name}").fetchall()
            for name in names if "coverage" not in name
        }  # fmt: skip
    own = {path.name + end for end in ("-wal", "-shm")} | {"status.json"}
    files = {f.relative_to(path.parent) for f in path.parent.rglob("*") if f.is_file()}
    return rows, {str(file) for file in files} - own


def all_at_most_once(url, strangers, operations):
    """Sends each, and holds that it caused no more than one operation."""
    answers = {}
    with Client(url, 20.0) as client:
        for what, method, path, body, headers in strangers:
            operations.clear()
            response = client.request(method, path, body, headers)
            assert operations.total() <= 1, (what, response.status, dict(operations))
            answers[what] = response
    assert {a.status for w, a in answers.items() if not w.startswith(("/", "upload OPT"))} <= {
        400, 401, 403, 404, 405, 409, 413,
    }, {w: a.status for w, a in answers.items()}  # fmt: skip
    return answers


def test_a_stranger_costs_the_server_one_operation_and_no_disk(tmp_path, operations):
    site = Site(tmp_path / "site")
    site.enable()
    site.configure("[rates]\naddress_failures = 0")  # here each is looked at
    with site.running():
        token = site.token()
        agent = Sender.enrol(site, "agent", token=token)
        agent.send(sealed(site, agent.unit(b"first")))
        site.get("/v1/capabilities")  # signed once in ten minutes, for all
        strangers = list(
            kinds_of_strangers(
                agent.credential, agent.hop, site.deployment, site.manifest(), token.secret
            )
        )
        before = contents(site.folder / "server.db")
        answers = all_at_most_once(site.url, strangers, operations)
        assert contents(site.folder / "server.db") == before
        refused = {what: answer.problem() for what, answer in answers.items()}
        names = {what: problem.name for what, problem in refused.items() if problem is not None}
        assert names["old"] == "clock"
        assert names["enrol no token"] == names["enrol a used token"] == "token"
        assert names["overheard /v1/units"] == "unauthenticated"
        # The count does count: an honest request costs its proof, its unit, and its receipt.
        honest = clear(agent.unit(b"second"))
        proof = prove(agent.credential, agent.hop, "POST", "/v1/units", honest, now_ms())
        operations.clear()
        with Client(site.url, 20.0) as client:
            assert client.request("POST", "/v1/units", honest, proof).status == 200
        assert operations == {"verify token": 1, "verify": 1, "sign": 1}


def test_a_stranger_costs_a_relay_one_operation_and_no_disk(tmp_path, operations):
    keys = Keys()
    keys.enable()
    # One that is not busy with anything else: what it does by itself would be counted as well.
    quiet = {"rates": {"address_failures": 0.0}, "refresh": {"manifest": 86400}}
    with (
        parent_of(keys) as parent,
        relay_of(keys, tmp_path, parent.url, **quiet) as relay,
        relay_senders(keys, relay.url) as (sender,),
    ):
        body = sender.sealed(sender.unit(b"first"))
        sender.post(body)
        sender.done(body)
        strangers = list(
            kinds_of_strangers(
                sender.me.credential, sender.me.hop, keys.deployment, keys.manifest, bytes(16)
            )
        )
        # These are the parent's affair, which enrols all here.
        strangers = [one for one in strangers if not one[0].endswith("token")]
        before = contents(tmp_path / "relay" / "queue.db")
        seen = len(parent.requests)
        all_at_most_once(relay.url, strangers, operations)
        assert contents(tmp_path / "relay" / "queue.db") == before
        assert len(parent.requests) == seen, "nothing of it was passed on"


def test_a_genuine_credential_is_verified_once(operations):
    """Whoever overheard one causes a second operation the first time it is seen, and no more."""
    keys = Keys()
    agent, other = keys.agent(), keys.agent()
    check = HopCheck(lambda: keys.manifest)
    headers = prove(agent.credential, other.hop, "POST", "/v1/units", b"", keys.now)
    digest = hashlib.sha256(b"").digest()

    def ask():
        operations.clear()
        with pytest.raises(Exception, match="unauthenticated"):
            check.check(headers, "POST", "/v1/units", digest, keys.now)
        return operations.total()

    assert check.remembered(headers["Authorization"]) is None
    assert ask() <= 2
    assert {ask() for _ in range(5)} <= {0, 1}
    assert check.remembered(headers["Authorization"]) == Hop(agent.hop.public.agent_id, "agent")
    good = keys.manifest
    keys.change(revoked_agents=(agent.hop.public.agent_id,))
    assert check.remembered(headers["Authorization"]) is None, "it is as good as a stranger"
    keys.manifest = good
    assert check.remembered(headers["Authorization"]) is not None
    keys.change(receipt_keys=(SigningKey.generate().public,))
    assert check.remembered(headers["Authorization"]) is None, "its issuer does not count any more"


# -- a relay's queue --------------------------------------------------------------------------


def test_hops_take_turns(tmp_path):
    """One that has filled its share of the queue does not have the others wait behind it."""
    with closing(Queue(tmp_path / "queue.db")) as queue:

        def put(hop, number):
            body = b"%c%d" % (hop, number)
            queue.put({hashlib.sha256(body).digest(): body}, bytes([hop]) * 16).result(20)

        def claim(count):
            return [claimed.body for claimed in queue.claim(1 << 20, count, 0)]

        for number in range(20):
            put(ord("a"), number)
        for hop in b"bc":
            for number in range(2):
                put(hop, number)
        assert claim(4) == [b"a0", b"b0", b"c0", b"a1"]
        put(ord("d"), 0)
        assert claim(4) == [b"b1", b"c1", b"a2", b"d0"]
        assert claim(100) == [b"a%d" % number for number in range(3, 20)]

# SPDX-License-Identifier: Apache-2.0
"""A deployment with something to look at, and a browser that is nothing but HTTP and cookies."""

import hashlib
import http.client
import math
import random
import re
from urllib.parse import urlencode, urlsplit

from fleet_server_support import now_ms
from sqlalchemy import insert

from upseal import PrivateKey
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Level, Reason
from upseal.fleet.readiness import answer_challenge, make_challenge
from upseal.fleet.server import tables
from upseal.fleet.server.store import (
    alarms,
    challenges,
    clients,
    coverage,
    deadletters,
    relays,
    uploads,
)
from upseal.fleet.server.store import keys as store_keys

HOUR = 3_600_000
MINUTE = 60_000
_FORM_TOKEN = re.compile(r'name="token" value="([0-9a-f]{64})"')


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def text(self):
        return self.body.decode()

    @property
    def cookies(self):
        """Name: the whole header, of those that are set."""
        return {c.partition("=")[0]: c for c in self.headers.get_all("set-cookie") or ()}


class Visitor:
    """Keeps cookies; follows nothing by itself."""

    def __init__(self, url):
        self.host = urlsplit(url).netloc
        self.cookies = {}

    def ask(self, method, path, body=None, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            headers["cookie"] = "; ".join(f"{n}={v}" for n, v in self.cookies.items())
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = Answer(connection.getresponse())
        finally:
            connection.close()
        for name, header in answer.cookies.items():
            value = header.partition("=")[2].partition(";")[0].strip('"')
            if "Max-Age=0" in header:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        return answer

    def get(self, path="/admin", **headers):
        return self.ask("GET", path, **headers)

    def post(self, path, headers=None, **fields):
        kind = {"content-type": "application/x-www-form-urlencoded", **(headers or {})}
        return self.ask("POST", path, urlencode(fields), **kind)

    def token(self, path="/admin/login"):
        """Of the form that stands there."""
        return _FORM_TOKEN.search(self.get(path).text)[1]

    def login(self, name, password, **headers):
        return self.post(
            "/admin/login", headers, token=self.token(), name=name, password=password
        )  # fmt: skip


def add_login(site, name="root"):
    """The password."""
    with site.admin() as deployment:
        return deployment.add_login(name).result["password"]


def add_client(db, name, role="agent", enrolled=None, agent=None, hop=None):
    """An enrolled one, that was never heard of; its id."""
    agent = agent or hashlib.sha256(f"agent {name}".encode()).digest()[:16]
    hop = hop or hashlib.sha256(f"hop {name}".encode()).digest()[:16]
    row = clients.Agent(agent, name, b"identity", hop, role, "-", enrolled or now_ms())
    clients.add(db, row, b"spki")
    return agent


def says(db, agent, actual, *, wanted=Level.OPTIONAL, reason=Reason.SEALED, seen=None, **more):
    """What the server would have written down of it."""
    db.execute(
        insert(tables.clients).values(
            agent=agent, wanted=wanted.number, actual=actual, reason=int(reason),
            last_seen=seen or now_ms(), stated=seen or now_ms(), **more,
        )
    )  # fmt: skip


def populate(site, count=240, days=30):
    """A deployment after a month: most seal, some do not, and a key is being rotated.

    Returns:
        The ids of the key that drains and of the one in force.
    """
    now = now_ms()
    site.enable()
    with site.admin() as deployment:
        for name, decrypts in (("berlin", True), ("hamburg", False), ("lisbon", True)):
            with deployment.store.writing() as db:
                identity = SigningKey.generate().public
                add_client(db, name, "relay", now - days * 24 * HOUR, identity.agent_id)
                relays.put(
                    db, relay=identity.agent_id, name=name, identity=identity.der,
                    accepts_sealed=True, decrypts=decrypts, enrolled=now - days * 24 * HOUR,
                )  # fmt: skip
                relays.seen(db, identity.agent_id, now - 4000)
            if name != "lisbon":
                deployment.add_relay(name, decrypts=decrypts)
            if name == "berlin":
                berlin = identity.agent_id
        deployment.generate_key()
        with deployment.store.writing() as db:
            _prove(db, berlin, 2, now)
        deployment.enable(force=True)
        with deployment.store.writing() as db:
            known = {key.generation: key for key in store_keys.listing(db, store_keys.SERVER)}
            old, new = known[1].key_id, known[2].key_id
            _clients(db, count, now, old, new)
            _history(db, count, days, now)
            _use(db, now, old, 3120, count * 9000)
            _use(db, now, new, 18240, 18240)
            _oddities(db, now)
    return old.hex(), new.hex()


def _prove(db, relay, generation, now):
    """A relay announces a key, and proves that it has it."""
    private = PrivateKey.generate("x25519")
    relays.put_key(
        db, relay=relay, generation=generation, key_id=private.key_id,
        spki=private.public_key.to_pem().decode(), received=now,
    )  # fmt: skip
    sealed, expected = make_challenge(private.public_key)
    challenges.put(
        db, holder=relay.hex(), generation=generation, key_id=private.key_id, challenge=sealed,
        expected=expected, created=now, expires=now + HOUR,
    )  # fmt: skip
    given = answer_challenge(private, sealed)
    proved = challenges.answer(db, relay.hex(), generation, given, now)
    relays.set_ready(db, relay, generation, proved, now)


def _clients(db, count, now, old, new):
    draw = random.Random(7)
    kinds = ("web", "db", "till", "cam", "edge")
    for number in range(count):
        name = f"{kinds[number % 5]}-{number // 5 + 1:03}.example.net"
        agent = add_client(db, name, enrolled=now - 40 * 24 * HOUR)
        key = {"suite": 0x20, "key_id": old if draw.random() < 0.12 else new}
        seen, total = now - draw.randrange(90_000), draw.randrange(5_000, 40_000)
        wanted = Level.REQUIRED if number % 3 == 0 else Level.OPTIONAL
        if number % 40 == 11:
            says(
                db, agent, "clear", wanted=Level.OPTIONAL, reason=Reason.PARENT_REFUSES_SEALED,
                seen=seen, sealed=total, clear=420,
            )  # fmt: skip
        elif number % 60 == 23:
            says(
                db, agent, "withheld", wanted=Level.REQUIRED,
                reason=Reason.PARENT_REFUSES_SEALED, seen=seen, sealed=total, **key,
            )  # fmt: skip
        elif number % 34 == 5:
            says(db, agent, "sealed", wanted=wanted, seen=now - 90 * HOUR, sealed=total, **key)
        elif number % 50 == 31:
            says(
                db, agent, "clear", wanted=Level.NONE, reason=Reason.LEVEL_NONE, seen=seen,
                clear=total,
            )  # fmt: skip
        elif number % 120 != 77:
            says(db, agent, "sealed", wanted=wanted, seen=seen, sealed=total, **key)


def _history(db, count, days, now):
    """Rolled out in a week, one bad afternoon, and a hole where the server was down."""
    minute, sealed_reports, clear_reports = now // MINUTE, 0, 0
    draw, noise = random.Random(3), 0.0
    for back in [*range(days * 1440, 2 * 1440, -60), *range(2 * 1440, 0, -1)]:
        step = 60 if back > 2 * 1440 else 1
        age = days * 1440 - back
        out = min(1.0, age / (7 * 1440)) ** 1.4
        silent = round(count * (0.03 + 0.02 * math.sin(age / 2000)))
        withheld = round(count * (0.016 + (0.11 if 480 < back < 640 else 0)))
        clear = round(count * (0.05 + 0.9 * (1 - out)))
        clear = min(clear, count - silent - withheld)
        sealed = count - silent - withheld - clear
        noise = 0.9 * noise + 0.1 * draw.uniform(-1, 1)
        wave = 1.0 + 0.4 * math.sin(2 * math.pi * (back / 1440)) + noise
        sealed_reports += round(sealed * wave * 1.3 * step)
        clear_reports += round(clear * wave * 1.1 * step)
        if 1010 < back < 1075:
            continue
        coverage.note(
            db,
            coverage.Sample(
                minute - back, sealed, clear, withheld, silent, sealed_reports, clear_reports
            ),
        )
    # The clients' own counts are what the next minute is compared with.
    total = tables.clients.c
    db.execute(tables.clients.update().values(sealed=0, clear=0))
    for column, value in ((total.sealed, sealed_reports), (total.clear, clear_reports)):
        some = tables.clients.update().where(total.actual == column.name)
        each = db.execute(some.values({column: 0})).rowcount
        db.execute(some.values({column: value // each + 1}))


def _use(db, now, key_id, last_hour, in_all):
    db.execute(
        insert(tables.key_use).values(key_id=key_id, minute=now // MINUTE - 3, reports=last_hour)
    )
    db.execute(
        tables.keys.update()
        .where(tables.keys.c.key_id == key_id)
        .values(last_used=now - 3000, first_used=now - 30 * 24 * HOUR, reports=in_all, units=1)
    )


def _oddities(db, now):
    for number, size in enumerate((18_412, 4_096)):
        deadletters.put(
            db, id=hashlib.sha256(b"letter %d" % number).digest(), body=bytes(size), hop=bytes(16),
            role="relay", received=now - (number + 2) * HOUR, reason=deadletters.MISSING_KEY,
            key_id=bytes.fromhex("5b1f0c9e77aa2301"), total_quota=1 << 30, hop_quota=1 << 30,
        )  # fmt: skip
    agent = hashlib.sha256(b"agent till-003.example.net").digest()[:16]
    alarms.sound(db, "clear-though-required", agent, {}, now - 2 * HOUR, times=3)
    for number, (client, name, size) in enumerate(
        (
            ("web-001.example.net", b"journal-2026-11-22.log.zst", 734_003_200),
            ("db-002.example.net", b"nightly.dump", 9_126_805_504),
            ("cam-004.example.net", "größte Aufnahme.mkv".encode(), 2_410_151_936),
        )
    ):
        add_upload(db, client, name, size, now - (number * 7 + 1) * 11 * MINUTE)


def add_upload(db, client, name, size, received):
    digest = hashlib.sha256(name).digest()
    agent = hashlib.sha256(f"agent {client}".encode()).digest()[:16]
    assert uploads.put(
        db,
        uploads.StoredUpload(
            agent, digest[:16], name, size, digest, 0, "sealed", 2, None, received, "-", digest,
            digest,
        ),
    )  # fmt: skip

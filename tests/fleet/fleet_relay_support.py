# SPDX-License-Identifier: Apache-2.0
"""For the tests of the relay: a parent that can be told to misbehave, relays, and who sends.

Everything a relay speaks to is real: HTTP on loopback, proofs, sealing, statements, receipts. Only
the parent is a small server of these tests, since an honest one cannot be made to lie.
"""

import contextlib
import hashlib
import json
import threading
from contextlib import contextmanager

from fleet_support import eventually, now_ms
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from upseal import OpenError, PublicKey, Sealer, UnknownRecipient
from upseal.fleet import jws
from upseal.fleet.agent.membership import TRUST, Membership
from upseal.fleet.credentials import (
    HopCheck,
    HopRefused,
    enrolled_answer,
    open_enrol_request,
)
from upseal.fleet.encoding import b64url, load_object
from upseal.fleet.http import results
from upseal.fleet.http.apps import application, read_body
from upseal.fleet.http.client import Client
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.http.serving import in_thread
from upseal.fleet.readiness import make_challenge
from upseal.fleet.relay.relay import Relay
from upseal.fleet.relay.settings import Settings
from upseal.fleet.relay.uplink import Uplink
from upseal.fleet.trust import Trust
from upseal.fleet.units import (
    Receipt,
    Status,
    body_id,
    body_kind,
    clear_body,
    fleet_context,
    open_receipt,
    parse_bundle,
    parse_clear,
    parse_rows,
    signed_receipt,
    unit_rows,
)

QUICK = {
    "forward": {"retry": 0.02, "retry_most": 0.06, "wait": 5},
    "refresh": {"manifest": 0.05},
    "repackage": {"window": 0.02},
    "http": {"timeout": 10},
}
"""Settings by which nothing is waited for long."""


def hop_of(hops, request, covered, ahead=0):
    """Who has sent a request, by its proof and a clock that is so many milliseconds ahead."""
    digest, now = hashlib.sha256(covered).digest(), now_ms() + ahead
    try:
        return hops.check(request.headers, request.method, request.url.path, digest, now)
    except HopRefused as refused:
        raise Problem(refused.problem) from None


class Parent:
    """A server: opens, verifies, keeps, receipts. ``answer`` and the like can be replaced."""

    def __init__(self, site, chain=None):
        self.site = site
        site.sign()
        self.hops = HopCheck(lambda: site.manifest)
        self.lock = threading.Lock()
        self.announced = {}
        self.posed = {}
        self.answers = []
        self.enrol_requests = []
        self.said = self.said_by = None
        self.reset()
        self.app = application(
            [
                Route("/v1/units", self._units, methods=["POST"]),
                Route("/v1/results", self._results, methods=["POST"]),
                Route("/v1/manifest", self._manifest),
                Route("/v1/capabilities", self._capabilities),
                Route("/v1/enrol", self._enrol, methods=["POST"]),
                Route("/v1/relay/{what}", self._relay, methods=["POST"]),
            ],
            metrics=Metrics("server"),
        )

    def reset(self):
        """Honest again, and without memory of bodies."""
        self.requests = []  # for each POST /v1/units, the bodies in it
        self.asked = []  # for each POST /v1/results, the ids
        self.units = {}  # triple -> records
        self.arrived = 0  # units, doubles too
        self.refuse = None  # callable(bodies) -> Problem | None, for a whole request
        self.judge = self.honest  # callable(body) -> Result
        self.results_of = lambda ids: [Result.unknown(i) for i in ids]

    # -- what it makes of a body

    def honest(self, body):
        manifest = self.site.manifest
        try:
            if body_kind(body) == "sealed":
                rows = self.site.opener().open_batch(body, fleet_context(manifest.deployment))
            else:
                rows = parse_clear(body)
            units = parse_rows(list(rows))
        except UnknownRecipient:
            return Result.failed(body_id(body), Problem("stale-key"))
        except (OpenError, ValueError) as error:
            return Result.failed(body_id(body), Problem("malformed", str(error)))
        return Result.done(body_id(body), [self.receipt(unit) for unit in units])

    def receipt(self, unit):
        with self.lock:
            self.arrived += 1
            known = self.units.setdefault(unit.triple, list(unit.records))
        status = Status.STORED if known == list(unit.records) else Status.CONTRADICTION
        said = Receipt(self.site.deployment, unit.digest, status)
        return signed_receipt(said, self.site.receipt)

    @property
    def reports(self):
        with self.lock:
            return sorted(record for records in self.units.values() for record in records)

    @property
    def bodies(self):
        with self.lock:
            return [body for bodies in self.requests for body in bodies]

    # -- HTTP

    async def _hop(self, request):
        body = await read_body(request, 64 << 20)
        assert hop_of(self.hops, request, body).role == "relay"
        return body

    async def _units(self, request):
        body = await self._hop(request)
        bundled = body_kind(body) == "bundle"
        bodies = [bytes(part) for part in parse_bundle(body)] if bundled else [body]
        with self.lock:
            self.requests.append(bodies)
        problem = self.refuse(bodies) if self.refuse is not None else None
        if problem is not None:
            raise problem
        answered = [self.judge(body) for body in bodies]
        if any(not isinstance(answer, Result) for answer in answered):
            return Response(answered[0])
        return Response(results.encode(answered), media_type="application/json")

    async def _results(self, request):
        ids = results.decode_ids(await self._hop(request))
        self.asked.append(ids)
        return Response(results.encode(self.results_of(ids)), media_type="application/json")

    async def _manifest(self, request):
        # Those that were signed; a change that was not signed yet is nobody's to see.
        since = int(request.query_params["since"])
        tokens = [t for t in self.site.tokens if jws.unverified(t)["serial"] > since]
        tokens = tokens or self.site.tokens[-1:]
        return PlainTextResponse("".join(f"{token}\n" for token in tokens))

    async def _capabilities(self, request):
        now = now_ms()
        claims = {
            "sub": "server", "accepts_sealed": True, "accepts_clear": True, "decrypts": True,
            "key_ids": [], "serial": 1, "iat": now, "exp": now + 3_600_000, "parent": None,
        }  # fmt: skip
        if self.site.receipt is not self.said_by:  # signed once, as a server does
            self.said = jws.sign(claims, self.site.receipt, jws.CAPABILITIES)
            self.said_by = self.site.receipt
        return PlainTextResponse(self.said)

    async def _enrol(self, request):
        body = await read_body(request, 1 << 20)
        self.enrol_requests.append(body)
        try:
            found = open_enrol_request(body, self.site.enrol_opener(), self.site.deployment)
        except (OpenError, ValueError):
            raise Problem("token", "used", retry_after=7) from None
        answer = enrolled_answer(found, self.site.receipt, now_ms())
        return PlainTextResponse(answer, media_type="application/jose")

    async def _relay(self, request):
        token = await self._hop(request)
        entry = {e.identity.key_id.hex(): e for e in self.site.manifest.relays}
        key = entry[jws.header(token)["kid"]].identity
        claims = jws.verify(token, key, jws.RELAY)
        assert claims["relay"] == key.agent_id.hex()
        generation, answer = claims["generation"], {}
        match request.path_params["what"]:
            case "key":
                self.announced[generation] = PublicKey.from_pem(claims["public_key"].encode())
            case "challenge":
                if generation in self.posed:
                    answer = {"challenge": b64url(self.posed[generation][0])}
                    answer["key_id"] = self.announced[generation].key_id.hex()
            case "answer":
                self.answers.append((generation, claims["answer"]))
                if b64url(self.posed[generation][1]) != claims["answer"]:
                    raise Problem("conflict")
                del self.posed[generation]
        return Response(json.dumps(answer), media_type="application/json")

    def pose(self, generation):
        """Challenges whoever announced a key of that generation."""
        self.posed[generation] = make_challenge(self.announced[generation])


@contextmanager
def parent_of(site):
    """A parent that is up: gives it, with ``url``."""
    parent = Parent(site)
    with in_thread(parent.app) as address:
        parent.url = address.url
        yield parent


def settings_for(folder, url, **changes):
    """Quick settings, with changes: sections as dicts."""
    table = {"parent": url, "directory": str(folder), "listen": "127.0.0.1:0"}
    for name, section in QUICK.items():
        table[name] = {**section, **changes.pop(name, {})}
    return Settings.parse({**table, **changes})


def make_folder(site, folder, member, *, trust=True):
    """The folder of an enrolled relay of `Site.add_relay`."""
    folder.mkdir(mode=0o700)
    (folder / "identity.pem").write_bytes(member.identity.to_pem())
    (folder / "hop.pem").write_bytes(member.hop.to_pem())
    (folder / "keys").mkdir(mode=0o700)
    for key in member.private:
        generation = max(1, site.manifest.generation)
        (folder / "keys" / f"{generation}-{key.key_id.hex()}.pem").write_bytes(key.to_pem())
    Membership(site.deployment, member.relay, member.credential).save(folder)
    site.trust(folder / TRUST)
    return folder


@contextmanager
def running(settings):
    """A relay that is up: gives it, with ``url``."""
    with Relay(settings) as relay, in_thread(relay.app()) as address:
        relay.url = address.url
        yield relay


@contextmanager
def relay_of(site, tmp_path, url, name="relay", *, decrypting=False, **changes):
    """A new relay below ``url``."""
    member = site.add_relay(name, decrypts=decrypting)
    folder = make_folder(site, tmp_path / name, member)
    settings = settings_for(folder, url, name=name, decrypting=decrypting, **changes)
    with running(settings) as relay:
        relay.member = member
        yield relay


class Sender:
    """An agent, as far as a relay sees one."""

    def __init__(self, site, url):
        self.site, self.me = site, site.agent()
        self.client = Client(url, 10.0)
        self.uplink = Uplink(self.client, self.me.credential, self.me.hop)
        self.sequence = 0

    def unit(self, *records):
        self.sequence += 1
        return self.site.unit(self.me, records, sequence=self.sequence)

    def sealed(self, *units, to=()):
        """A body sealed to the server, and to others."""
        keys = [key.public() for key in self.site.manifest.encryption] + list(to)
        context = fleet_context(self.site.deployment)
        return Sealer(keys).seal_batch(unit_rows(units), context)

    def clear(self, *units):
        return clear_body(unit_rows(units))

    def post(self, body, wait=0):
        """The results of the bodies in it."""
        response = self.uplink.post("/v1/units", body, wait=wait)
        return results.decode(response.body)

    def ask(self, *ids, wait=0):
        response = self.uplink.post("/v1/results", results.encode_ids(ids), wait=wait)
        return results.decode(response.body)

    def done(self, *bodies):
        """Waits for the results of bodies that were posted."""
        ids = [body_id(body) for body in bodies]

        def found():
            answers = self.ask(*ids, wait=5)
            states = {answer.state for answer in answers}
            return answers if results.State.PENDING not in states else None

        return eventually(found)

    def receipts(self, result):
        """Statuses by statement digest, every receipt verified."""
        keys = {key.key_id: key for key in self.site.manifest.receipt_keys}
        opened = [open_receipt(r, keys, self.site.deployment) for r in result.receipts]
        return {receipt.statement_digest: receipt.status for receipt in opened}


@contextmanager
def senders(site, url, count=1):
    """So many agents."""
    with contextlib.ExitStack() as stack:
        made = [Sender(site, url) for _ in range(count)]
        for sender in made:
            stack.enter_context(sender.client)
        yield made


__all__ = [
    "Parent", "Sender", "Status", "Trust", "b64url", "eventually", "hop_of", "load_object",
    "make_folder", "parent_of", "relay_of", "running", "senders", "settings_for",
]  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""A relay that lies: enrolled, so that its parent speaks to it, and under nobody's control.

It stands between agents and an honest parent, or between relays and the server. ``lie`` is what it
does with each body that comes, those of a bundle one by one (a method's name, or None for the
truth); ``manifest`` and ``capabilities`` replace what it says.
"""

import asyncio
import hashlib
import os
import threading
from collections import Counter
from contextlib import suppress

from fleet_world import enrolled, eventually
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from upseal.fleet.agent.membership import Credentials
from upseal.fleet.http import results
from upseal.fleet.http.apps import application, read_body
from upseal.fleet.http.client import Client, Unreachable
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result
from upseal.fleet.identity import SigningKey
from upseal.fleet.relay.settings import Settings as RelaySettings
from upseal.fleet.relay.state import enrol as enrol_relay
from upseal.fleet.relay.uplink import Uplink
from upseal.fleet.units import (
    Receipt,
    Status,
    body_id,
    body_kind,
    bundle,
    clear_body,
    parse_bundle,
    parse_clear,
    signed_receipt,
)

LIES = ("change", "drop", "double", "reorder", "replay", "forge", "garbage", "refuse")
REFUSAL = {
    "sub": "server", "accepts_sealed": False, "accepts_clear": True, "decrypts": False,
    "key_ids": [], "serial": 99, "iat": 1, "exp": 1 << 45, "parent": None,
}  # fmt: skip
"""Capabilities: the server takes no sealed reports."""


class Liar:
    """``app`` is what it serves. Everything that it was given stands in ``bodies``."""

    def __init__(self, folder, parent, chance):
        me = Credentials.load(folder)
        self.chance, self.key, self.deployment = chance, SigningKey.generate(), me.deployment
        self.identity = me.identity
        self.client = Client(parent, 10.0)
        self.uplink = self.honest = Uplink(self.client, me.credential, me.hop)
        self.lie = self.manifest = self.capabilities = None
        self.told, self.bodies, self.receipts = Counter(), [], []
        self._held = {}
        self._lock = threading.Lock()
        self.app = application(
            [
                Route("/v1/units", self._units, methods=["POST"]),
                Route("/v1/results", self._results, methods=["POST"]),
                Route("/v1/manifest", self._manifest),
                Route("/v1/capabilities", self._capabilities),
                Route("/v1/enrol", self._enrol, methods=["POST"]),
                *(
                    Route(f"/v1/relay/{name}", self._relay, methods=["POST"])
                    for name in ("key", "challenge", "answer")
                ),
            ],
            metrics=Metrics("relay"),
        )

    def close(self):
        self.client.close()

    def tell_the_truth(self):
        """From now on, by its own parent."""
        self.lie = self.manifest = self.capabilities = None
        self.uplink = self.honest

    def draw(self, body):
        """For ``lie``: one of all kinds, and rather one that was told less often."""
        fewest = min(self.told[lie] for lie in LIES)
        return self.chance.choice([lie for lie in LIES if self.told[lie] <= fewest + 1])

    # -- what agents ask for

    async def _units(self, request):
        return await self._read(request, self._take)

    async def _results(self, request):
        return await self._read(request, self._ask)

    async def _read(self, request, act):
        body = await read_body(request, 64 << 20)
        return await asyncio.to_thread(act, body)

    def _take(self, body):
        if body_kind(body) == "bundle":
            return self._answer([self._take_one(bytes(part)) for part in parse_bundle(body)])
        return self._answer([self._take_one(body)])

    def _take_one(self, body):
        with self._lock:
            self.bodies.append(body)
            lie = self.lie(body) if callable(self.lie) else self.lie
        if lie is None:
            return self._pass_on(body)
        with self._lock:
            self.told[lie] += 1
        return getattr(self, lie)(body)

    def _ask(self, body):
        ids = results.decode_ids(body)
        with self._lock:
            held = {i for i in ids if i in self._held} if self.lie is not None else set()
        answers = [Result.pending(i) for i in held]
        rest = [i for i in ids if i not in held]
        if rest:
            try:
                response = self.uplink.post("/v1/results", results.encode_ids(rest), wait=1)
                answers += results.decode(response.body)
            except (Unreachable, Problem):
                raise Problem("parent-away", retry_after=1) from None
        return self._answer(answers)

    @staticmethod
    def _answer(answers):
        return Response(results.encode(answers), media_type="application/json")

    def _pass_on(self, body, expected=None):
        try:
            response = self.uplink.post("/v1/units", body, wait=3)
        except (Unreachable, Problem):
            raise Problem("parent-away", retry_after=1) from None
        found = {result.body: result for result in results.decode(response.body)}
        result = found.get(expected or body_id(body))
        if result is None:
            raise Problem("parent-away", retry_after=1)
        with self._lock:
            self.receipts += result.receipts
        return result

    def _named(self, body, result):
        """Another body's result, said to be that of this one."""
        return Result(body_id(body), result.state, result.receipts, result.problem)

    async def _manifest(self, request):
        if self.manifest is not None:
            self.told["manifest"] += 1
            return PlainTextResponse(self.manifest)
        return await self._get(f"/v1/manifest?since={request.query_params['since']}")

    async def _capabilities(self, request):
        if self.capabilities is not None:
            self.told["capabilities"] += 1
            return PlainTextResponse(self.capabilities)
        return await self._get("/v1/capabilities")

    async def _get(self, path):
        with suppress(Unreachable):
            got = await asyncio.to_thread(self.client.request, "GET", path)
            return Response(got.body, got.status, media_type="text/plain")
        raise Problem("parent-away", retry_after=1)

    async def _enrol(self, request):
        body = await read_body(request, 1 << 20)
        answer = await asyncio.to_thread(self.uplink.plain, "/v1/enrol", body)
        return Response(answer.body, answer.status)

    async def _relay(self, request):
        """What a relay below says of its keys, signed by it: handed through."""
        body, path = await read_body(request, 1 << 16), request.url.path
        with suppress(Unreachable):
            got = await asyncio.to_thread(self.uplink.post, path, body, kind="text/plain")
            return Response(got.body, got.status, media_type="application/json")
        raise Problem("parent-away", retry_after=1)

    # -- lies about bodies: each gives a result for this body

    def change(self, body):
        """A byte is another one, anywhere behind the magic."""
        changed = bytearray(body)
        changed[self.chance.randrange(4, len(body))] ^= self.chance.randrange(1, 256)
        with suppress(Problem):
            return self._named(body, self._pass_on(bytes(changed)))
        raise Problem("parent-away", retry_after=1)

    def drop(self, body):
        """Says that it has it."""
        with self._lock:
            self._held[body_id(body)] = body
        return Result.pending(body_id(body))

    def double(self, body):
        """Three times, two of them at once."""
        with suppress(Problem):
            self._pass_on(bundle([body, body]), body_id(body))
        return self._pass_on(body)

    def reorder(self, body):
        """Rows in another order where it can see rows; else old bodies before new ones."""
        if body_kind(body) == "clear":
            rows = parse_clear(body)
            rows[1:] = rows[:0:-1]
            return self._named(body, self._pass_on(clear_body(rows)))
        with self._lock:
            before = self.bodies[-6:-1]
        for old in reversed(before):
            with suppress(Problem):
                self._pass_on(old)
        return self._pass_on(body)

    def replay(self, body):
        """Old bodies in place of this one, and their receipts as if they were for it."""
        with self._lock:
            old = self.chance.choice(self.bodies)
        return self._named(body, self._pass_on(old))

    def forge(self, body):
        """Receipts: signed by itself, made up, of others, and changed ones."""
        with self._lock:
            real = list(self.receipts[-8:])
        made = [os.urandom(len(real[0]) if real else 133)]
        if body_kind(body) == "clear":  # the statement can be seen, so the receipt names it
            statement = parse_clear(body)[0][:-64]
            digest = hashlib.sha256(statement).digest()
        else:
            digest = os.urandom(32)
        own = signed_receipt(Receipt(self.deployment, digest, Status.STORED), self.key)
        made.append(own)
        for receipt in real:
            # A true receipt's key id and signature, with other words between.
            made.append(receipt[:8] + own[8:-64] + receipt[-64:])
            flipped = bytearray(receipt)
            flipped[self.chance.randrange(len(receipt))] ^= 1
            made.append(bytes(flipped))
        return Result.done(body_id(body), [*made, *real])

    def garbage(self, body):
        """No answer at all."""
        raise Problem(self.chance.choice(["malformed", "conflict", "not-found"]))

    def refuse(self, body):
        """Not signed by anybody."""
        problem = Problem("sealed-not-accepted", "send it in clear, please")
        return Result.failed(body_id(body), problem)


def liar_of(world, stack, folder, chance, kind=Liar, *, url=None):
    """Enrols one, at the world's address for agents unless told otherwise."""
    url, token = url or world.url, world.token("relay")
    enrolled(lambda: enrol_relay(RelaySettings(url, folder, folder.name), token))
    liar = kind(folder, url, chance)
    stack.callback(liar.close)
    return liar


def tell_all(world, least, count):
    """Each kind of lie so often, drawn at random, while ``count`` reports come at a time."""
    liar = world.liar
    liar.told.clear()
    liar.lie = liar.draw
    round_ = 0
    while min(liar.told[lie] for lie in LIES) < least:
        round_ += 1
        assert round_ < 100, liar.told
        world.report(count)
        told = sum(liar.told.values())
        eventually(lambda told=told: sum(liar.told.values()) >= told + 3, "lies")
    print(dict(liar.told))

# SPDX-License-Identifier: Apache-2.0
"""Requests written down as text, and sent to an application in this process.

An input is one request or several, with a line ``%%`` between them::

    POST /v1/units agent seal
    prefer: wait=1

    the body

Behind the path stands who asks (``agent``, ``relay``, ``stranger``, or ``nobody``: without a proof)
and what is done with the body first: ``raw`` nothing; ``sign`` the statements of a clear body are
signed by who asks; ``seal`` and ``bundle`` likewise, and sealed to the server; ``jws`` claims in
JSON are signed; ``enrol`` likewise, and sealed. So an input is good in every run, whatever keys and
times it has. ``@`` in a path is the upload that the last request has created.
"""

import asyncio
import hashlib
import json
import logging
import shutil
import string
import time
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import unquote

from upfuzz import folder, world
from upfuzz.harness import Finding, attempt, check
from upfuzz.resign import sign_statement, statement_of
from upseal import OpenError, Sealer
from upseal.fleet import jws
from upseal.fleet.credentials import enrol_context, prove
from upseal.fleet.encoding import b64url
from upseal.fleet.http import results
from upseal.fleet.http.problems import MEDIA_TYPE, Problem
from upseal.fleet.identity import SigningKey
from upseal.fleet.statements import STATEMENT_LEN, fleet_context
from upseal.fleet.units import MalformedUnits, bundle, clear_body, parse_clear
from upseal.fleet.uploads.words import proven

SEPARATOR = b"\n%%\n"
MOST_REQUESTS = 6
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
FORMS = ("raw", "sign", "seal", "bundle", "jws", "enrol")
_NAME = frozenset((string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode())
_SECONDS = 20.0


class Asked(NamedTuple):
    """One request of an input."""

    method: str
    path: str
    who: str
    form: str
    headers: list
    body: bytes


class Answer(NamedTuple):
    """What came of it."""

    status: int
    headers: dict
    body: bytes


class Client(NamedTuple):
    """Keys and credential of who asks."""

    identity: SigningKey
    hop: SigningKey
    credential: str


def read_input(data):
    """The requests in an input, as far as a server of HTTP would hand them on."""
    return [_read_one(part) for part in data.split(SEPARATOR, MOST_REQUESTS)[:MOST_REQUESTS]]


def _read_one(part):
    head, _, body = part.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    words = first.decode("ascii", "replace").split(" ")
    method, path, who, form = (words + [""] * 4)[:4]
    headers = []
    for line in lines[:40]:
        name, found, value = line.partition(b":")
        clean = bytes(b for b in value.strip(b" \t") if b == 9 or (b >= 32 and b != 127))
        if found and name and _NAME.issuperset(name):
            headers.append((name.lower(), clean))
    path = "".join(c for c in path if c.isprintable() and c.isascii())
    return Asked(
        method if method in METHODS else "POST", path if path[:1] == "/" else "/" + path, who,
        form, headers, body,
    )  # fmt: skip


class _Noticed(logging.Handler):
    """Errors that the application has logged, and goes on after."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.errors = []

    def emit(self, record):
        self.errors.append(record)


class Application:
    """An application that is up in this process, on a folder of its own.

    A subclass starts and stops it and says what its world is.
    """

    most = 20_000
    """Inputs, after which it begins anew: its store would fill the memory."""
    deployment = world.DEPLOYMENT
    recipients = ()
    enrolment = None
    """An invitation."""
    enrol_key = None

    def __init__(self):
        self.folder = folder()
        self.loop = asyncio.new_event_loop()
        self.noticed = _Noticed()
        logger = logging.getLogger("upseal")
        logger.addHandler(self.noticed)
        logger.propagate = False
        self.clients = {}
        self.signed = set()
        """Digests of statements that were signed as they should be."""
        self.count = 0
        self.app = self.open()
        self._life = self.app.router.lifespan_context(self.app)
        self.loop.run_until_complete(self._life.__aenter__())
        self.sealer = None

    def open(self):
        """The application."""
        raise NotImplementedError

    def shut(self):
        """Closes what `open` has opened."""
        raise NotImplementedError

    def close(self):
        """Ends it, and removes its folder."""
        self.loop.run_until_complete(self._life.__aexit__(None, None, None))
        self.shut()
        self.loop.close()
        logging.getLogger("upseal").removeHandler(self.noticed)
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- an input

    def run(self, data):
        """All requests of an input; then what they have begun is taken away again."""
        self.count += 1
        self.noticed.errors.clear()
        created = []
        for asked in read_input(data):
            newest = created[-1][1].rpartition("/")[2] if created else "0" * 64
            path = asked.path.replace("@", newest)
            answer = self.ask(asked._replace(path=path))
            self.look_at(asked, answer)
            if answer.status == 201 and "location" in answer.headers:
                created.append((asked.who, answer.headers["location"]))
        for who, location in created:
            self.ask(Asked("DELETE", location, who, "raw", [(b"tus-resumable", b"1.0.0")], b""))
        if self.noticed.errors:
            record = self.noticed.errors[0]
            raise Finding(record.getMessage()) from (record.exc_info or (None, None))[1]

    def ask(self, asked):
        """One request through the application; its answer."""
        path, _, query = asked.path.partition("?")
        path = unquote(path)
        body, more = self._made(asked), []
        client = self.clients.get(asked.who)
        given = {name.decode(): value.decode("latin-1") for name, value in asked.headers}
        if client is not None and "upseal-proof" not in given:
            override = given.get("x-http-method-override", "").strip().upper()
            uploads = path.startswith("/v1/uploads") and asked.method == "POST"
            method = override if uploads and override in METHODS else asked.method
            covered, _ = attempt(lambda: proven(path, given, body), ValueError)
            made = prove(client.credential, client.hop, method, path, covered or b"", _now())
            more = [(name.lower().encode(), value.encode()) for name, value in made.items()]
        headers = [*more, *asked.headers]
        if "content-length" not in given:
            headers.append((b"content-length", str(len(body)).encode()))
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
            "method": asked.method, "path": path, "raw_path": path.encode("utf-8", "replace"),
            "query_string": query.encode(), "root_path": "", "headers": headers,
            "client": ("127.0.0.1", 40000), "server": ("127.0.0.1", 8450),
        }  # fmt: skip
        return self.loop.run_until_complete(asyncio.wait_for(self._send(scope, body), _SECONDS))

    async def _send(self, scope, body):
        pieces = [body[: len(body) // 2], body[len(body) // 2 :]]
        answer = {"status": 0, "headers": [], "body": b""}

        async def receive():
            if pieces:
                piece = pieces.pop(0)
                return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
            return {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == "http.response.start":
                check(not answer["status"], "two answers")
                answer["status"], answer["headers"] = message["status"], message["headers"]
            else:
                answer["body"] += message.get("body", b"")

        await self.app(scope, receive, send)
        headers = {name.decode(): value.decode("latin-1") for name, value in answer["headers"]}
        return Answer(answer["status"], headers, answer["body"])

    def look_at(self, asked, answer):
        """The oracle: an answer in our words, and never that something went wrong in here."""
        status = answer.status
        check(status == 0 or 200 <= status < 600, f"status {status}")
        check(status != 500, f"500 for {asked.method} {asked.path}")
        check(status < 500 or status == 503, f"{status} for {asked.method} {asked.path}")
        if answer.headers.get("content-type", "").startswith(MEDIA_TYPE) and answer.body:
            problem = Problem.from_response(status, answer.headers, answer.body)
            check(problem.name != "unknown", "a problem without a name")
        if status == 200 and asked.path in ("/v1/units", "/v1/results") and answer.body:
            self.look_at_results(results.decode(answer.body))

    def look_at_results(self, found):
        """Of a subclass: what receipts may say."""

    # -- bodies

    def _made(self, asked):
        form, body = asked.form, asked.body
        client = self.clients.get(asked.who)
        if form in ("sign", "seal", "bundle") and client is not None:
            return self._body(form, body, client)
        if form in ("jws", "enrol") and client is not None:
            return self._token(form, body, client)
        return body

    def _body(self, form, body, client):
        rows, _ = attempt(lambda: parse_clear(body), MalformedUnits)
        if rows is None:
            return body
        rows = [self._signed(row, client) for row in rows]
        clear = clear_body(rows)
        if form == "sign":
            return clear
        if self.sealer is None:
            self.sealer = Sealer(self.recipients)
        sealed = self.sealer.seal_batch(rows, fleet_context(self.deployment))
        return sealed if form == "seal" else bundle([sealed, clear, sealed])

    def _signed(self, row, client):
        """Of this deployment and client, where the seed's own signature was good."""
        said = statement_of(row)
        if said is None:
            return row
        good = any(
            key.public.verify(row[:STATEMENT_LEN], row[STATEMENT_LEN:])
            for key in (world.signing("agent"), world.signing("agent 2", "p256"))
        )
        agent = client.identity.public.agent_id
        encoded = row[:20] + self.deployment + agent + row[52:STATEMENT_LEN]
        if not good:
            return encoded + row[STATEMENT_LEN:]
        self.signed.add(hashlib.sha256(encoded).digest())
        return sign_statement(encoded, client.identity)

    def _token(self, form, body, client):
        claims, _ = attempt(lambda: json.loads(body), ValueError, RecursionError)
        if not isinstance(claims, dict):
            return body
        now = {"t": _now()} if claims.get("t") == "now" else {}
        if form == "jws":
            said = {"relay": client.identity.public.agent_id.hex(), **claims, **now}
            token, _ = attempt(lambda: jws.sign(said, client.identity, jws.RELAY), ValueError)
            return body if token is None else token.encode()
        identity, hop = SigningKey.generate(), SigningKey.generate()
        said = {
            "secret": b64url(self.enrolment.secret), "deployment": self.deployment.hex(),
            "identity": identity.public.jwk(), "hop": hop.public.jwk(), **claims, **now,
        }  # fmt: skip
        with suppress(ValueError, OpenError):
            token = jws.sign(said, identity, jws.ENROL, include_key=True)
            sealer = Sealer([self.enrol_key])
            return sealer.seal(token.encode(), enrol_context(self.deployment))
        return body


def _now():
    return time.time_ns() // 1_000_000

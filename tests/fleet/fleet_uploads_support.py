# SPDX-License-Identifier: Apache-2.0
"""For the tests of uploads: a hop that takes them over real sockets, and who sends.

with hop(tmp_path) as there:              # a shelf behind `Tus`, served on loopback
    sender = there.sender()               # enrolled; proves each request
    ticket = ticket_of(data)
    sender.create(ticket)
"""

import hashlib
import http.client
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import fleet_support
from fleet_relay_support import hop_of
from fleet_support import Site, now_ms

from upseal.fleet.credentials import HopCheck, prove
from upseal.fleet.http.apps import application
from upseal.fleet.http.client import Client
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.paths import UPLOADS
from upseal.fleet.http.serving import in_thread
from upseal.fleet.relay.uplink import Uplink
from upseal.fleet.uploads.shelf import Shelf, ShelfLimits
from upseal.fleet.uploads.tus import Tus
from upseal.fleet.uploads.words import Ticket, path_of, proven

PIECE = 64 << 10
TUS = {"tus-resumable": "1.0.0"}
AGENT, OTHER, RELAY = b"a" * 16, b"b" * 16, b"r" * 16
SITE = Site()
eventually = partial(fleet_support.eventually, seconds=20)


def limits(**changes):
    usual = {
        "max_bytes": 1 << 30, "max_size": 1 << 28, "open_per_hop": 8, "hop_share": 0.5,
        "expires": 3600.0, "min_free": 0,
    }  # fmt: skip
    return ShelfLimits(**{**usual, **changes})


def ticket_of(data, form="sealed", upload=None):
    return Ticket(upload or os.urandom(16), hashlib.sha256(data).digest(), form, len(data))


class There:
    """A hop that takes uploads."""

    def __init__(self, folder, site, shelf_limits, budget=1 << 24, **how):
        self.site, self.whole, self.heard = site, [], []
        self.shelf = Shelf(Path(folder), shelf_limits)
        self.pool = ThreadPoolExecutor(4)
        self.hops = HopCheck(lambda: site.manifest)
        usual = {
            "authenticate": self.authenticate, "unwelcome": lambda ticket: None,
            "max_piece": PIECE, "on_whole": self.whole.append, "pool": self.pool,
        }  # fmt: skip
        self.tus = Tus(self.shelf, **{**usual, **how})
        self.metrics = Metrics("relay")
        self.app = application(self.tus.routes(), metrics=self.metrics, budget=budget)

    async def authenticate(self, request, body):
        hop = hop_of(self.hops, request, body)
        self.heard.append((request.method, request.url.path))
        return hop

    def sender(self, role="agent", same=None):
        """A new one; or the ``same`` as another, by a connection of its own."""
        return Sender(self, role, same)

    def result(self, sender, ticket):
        return self.tus.result(sender.hop_id, ticket.body_id)

    def settled(self, sender, ticket):
        """Whether it is whole here, or gone."""

        def look():
            held = self.shelf.find(sender.hop_id, ticket.body_id)
            return held is None or held.state == "whole"

        return eventually(look)

    def close(self):
        self.shelf.close()
        self.pool.shutdown()


class Sender:
    """An enrolled agent, or relay, at that hop."""

    def __init__(self, there, role, same=None):
        site = there.site
        self.hop = site.agent().hop if same is None else same.hop
        self.hop_id = self.hop.public.agent_id
        self.credential = site.credential(self.hop, role)
        self.client = Client(there.address.url, 20.0)
        there.stack.enter_context(self.client)
        self.link = Uplink(self.client, self.credential, self.hop)

    def request(self, method, path, body=b"", headers=None, **more):
        """Proven; with what tus wants of every request."""
        return self.link.request(method, path, body, {**TUS, **(headers or {}), **more})

    def bare(self, method, path, body=b"", headers=None):
        """As it is: no proof."""
        return self.client.request(method, path, body, headers or {})

    def create(self, ticket, body=b"", **headers):
        said = {"upload-length": str(ticket.size), "upload-metadata": ticket.metadata()}
        return self.request("POST", UPLOADS, body, headers={**said, **headers})

    def proof(self, method, path, body=b"", headers=None):
        """The headers of one request."""
        said = proven(path, headers or {}, body)
        return prove(self.credential, self.hop, method, path, said, now_ms())

    def upload(self, ticket, data, piece=PIECE):
        """All of it."""
        assert self.create(ticket).status == 201
        for at in range(0, len(data), piece):
            assert self.patch(ticket, at, data[at : at + piece]).status == 204

    def patch(self, ticket, offset, data, **headers):
        said = {"upload-offset": str(offset), "content-type": "application/offset+octet-stream"}
        return self.request("PATCH", path_of(ticket.body_id), data, {**said, **headers})

    def head(self, ticket):
        return self.request("HEAD", path_of(ticket.body_id))

    def delete(self, ticket):
        return self.request("DELETE", path_of(ticket.body_id))

    def offset(self, ticket):
        return int(self.head(ticket).headers["upload-offset"])


@contextmanager
def hop(folder, *, site=SITE, shelf_limits=None, **how):
    """A hop that is up: gives it, with its ``address``."""
    there = There(folder, site, shelf_limits or limits(), **how)
    try:
        with ExitStack() as stack, in_thread(there.app) as there.address:
            there.stack = stack
            yield there
    finally:
        there.close()


class SigningProxy:
    """Between a tus client of others and a hop: adds the two headers of ours, and nothing else.

    ``cut``: asked with the number of each PATCH; True: the connection ends before an answer, and
    half of the bytes have not gone on. ``answerless``: as `cut`, but all bytes have gone on.
    """

    def __init__(self, there, same=None):
        self.sender = there.sender(same=same)
        self.target = urlsplit(there.address.url)
        self.cut = self.answerless = self.damage = lambda number: False
        self.seen = []
        self.patches = 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self):
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

            def answer(self):
                proxy.handle(self)

            do_POST = do_HEAD = do_PATCH = do_DELETE = do_OPTIONS = do_GET = answer

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    def __enter__(self):
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def handle(self, request):
        size = int(request.headers.get("content-length") or 0)
        body = request.rfile.read(size)
        # One request a connection: no thread of ours waits for a next one at the end.
        request.close_connection = True
        dropped = ("host", "connection", "content-length", "authorization")
        said = {n: v for n, v in request.headers.items() if n.lower() not in dropped}
        self.seen.append((request.command, request.path, said))
        number = -1
        if "PATCH" in (request.command, said.get("X-HTTP-Method-Override")):
            number, self.patches = self.patches, self.patches + 1
        if number >= 0 and self.cut(number):
            return
        if number >= 0 and self.damage(number):
            body = bytes([body[0] ^ 1]) + body[1:]
        answer = self.forward(request.command, request.path, said, body)
        if number >= 0 and self.answerless(number):
            return
        status, reason, headers, content = answer
        request.send_response(status, reason)
        for name, value in headers:
            if name.lower() not in ("date", "connection", "transfer-encoding"):
                request.send_header(name, value)
        request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(content)

    def forward(self, method, path, said, body):
        effective = next(
            (v for n, v in said.items() if n.lower() == "x-http-method-override"), method
        )
        proof = self.sender.proof(effective, path, body, said)
        link = http.client.HTTPConnection(self.target.hostname, self.target.port, timeout=20)
        try:
            link.request(method, path, body, {**said, **proof})
            answer = link.getresponse()
            return answer.status, answer.reason, answer.getheaders(), answer.read()
        finally:
            link.close()

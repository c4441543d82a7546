# SPDX-License-Identifier: Apache-2.0
"""Target: a whole server, in this process: requests in, SQLite behind."""

import tracemalloc

from upfuzz import world
from upfuzz.asgi import Application, Client
from upfuzz.harness import Target, check
from upfuzz.requests import mutate_requests, request_seeds
from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.credentials import Token, enrol_request, open_enrolled
from upseal.fleet.server.app import App
from upseal.fleet.server.running import Server
from upseal.fleet.server.settings import read_settings
from upseal.fleet.statements import Status, open_receipt

_SETTINGS = """
[server]
threads = 1
unwrap_share = 64.0
unwrap_reserve = 3600.0
uploads_min_free = 1
[rates]
hop_requests = 0.0
hop_bytes = 0.0
address_requests = 0.0
address_failures = 0.0
"""


class _Server(Application):
    def open(self):
        folder = self.folder / "site"
        Deployment.init(folder, name="fuzz")
        with Deployment.open(folder) as deployment:
            deployment.generate_key()
            manifest = deployment.enable(force=True).manifest
            tokens = {
                role: [Token.decode(t) for t in deployment.token(role, uses=2).result["tokens"]]
                for role in ("agent", "relay")
            }
        with open(folder / "deployment.toml", "a") as file:
            file.write(_SETTINGS)
        self.server = Server(read_settings(folder))
        self.deployment = manifest.deployment
        self.recipients = [key.public() for key in manifest.encryption]
        self.enrol_key = manifest.enrolment.public()
        self.keys = {key.key_id: key for key in manifest.receipt_keys}
        self.enrolment = tokens["agent"].pop()
        for role in ("agent", "relay"):
            self.clients[role] = self._enrolled(manifest, tokens[role].pop(), role)
        self.clients["stranger"] = Client(
            world.signing("stranger"), world.signing("hop"), self.clients["agent"].credential
        )
        return App(self.server).build()

    def _enrolled(self, manifest, token, role):
        identity, hop = world.signing(f"{role} at a server"), world.signing(f"hop of a {role}")
        request = enrol_request(
            token, manifest, identity, hop, name=role, role=role, now_ms=world.NOW
        )
        answer = self.server.enrolment.enrol(request)
        agent = identity.public.agent_id
        found = open_enrolled(answer, manifest.receivers(), self.deployment, agent)
        return Client(identity, hop, found.credential)

    def shut(self):
        self.server.close()

    def look_at_results(self, found):
        for result in found:
            for raw in result.receipts:
                receipt = open_receipt(raw, self.keys, self.deployment)
                held = receipt.status in (Status.STORED, Status.DUPLICATE)
                check(
                    not held or receipt.statement_digest in self.signed,
                    "stored, and nobody has signed it",
                )
        check(self.server.ready() is None, f"not ready: {self.server.ready()}")


_running = []


def _run(data):
    # Not while memory is measured: to start takes more than any request.
    if _running and _running[0].count >= _Server.most and not tracemalloc.is_tracing():
        _close()
    if not _running:
        _running.append(_Server())
    _running[0].run(data)


def _close():
    while _running:
        _running.pop().close()


TARGETS = {
    "server": Target(
        "server", _run, request_seeds, mutate_requests, "http.dict", longest=8192,
        memory=48 << 20, close=_close,
    )
}  # fmt: skip

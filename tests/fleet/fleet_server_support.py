# SPDX-License-Identifier: Apache-2.0
"""A deployment with a server in a thread, and agents that are nothing but their keys."""

import os
import threading
from contextlib import contextmanager
from functools import partial

from fleet_support import eventually, now_ms, readings

from upseal import Sealer
from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.credentials import Token, enrol_request, open_enrolled, prove
from upseal.fleet.http import results
from upseal.fleet.http.client import Client
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Level, Reason
from upseal.fleet.server import app
from upseal.fleet.server.settings import read_settings
from upseal.fleet.server.store import Store
from upseal.fleet.units import (
    Status,
    clear_body,
    fleet_context,
    make_unit,
    open_receipt,
    unit_rows,
)

PATIENCE = 30.0


until = partial(eventually, seconds=PATIENCE, pause=0.02)


class Site:
    """A deployment's folder and, while `running`, its server."""

    def __init__(self, folder, database=None, **options):
        self.folder = folder
        Deployment.init(folder, name="site", database=database, **options)
        self.settings = read_settings(folder)
        self.deployment = self.settings.deployment
        self.context = fleet_context(self.deployment)
        self.url = None

    def configure(self, text):
        """Adds to deployment.toml."""
        with open(self.folder / "deployment.toml", "a") as file:
            file.write(f"\n{text}\n")
        self.settings = read_settings(self.folder)

    @contextmanager
    def running(self):
        """The server, in a thread; what it raises is raised here."""
        stop, started, failed = threading.Event(), threading.Event(), []

        def on_started(address):
            self.url = address.url
            started.set()

        def run():
            try:
                app.run(self.settings, port=0, on_started=on_started, stop=stop)
            except BaseException as error:
                failed.append(error)
            finally:
                started.set()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert started.wait(PATIENCE)
            if not failed:
                yield self
        finally:
            stop.set()
            thread.join()
        if failed:
            raise failed[0]

    @contextmanager
    def admin(self):
        with Deployment.open(self.folder) as deployment:
            yield deployment

    @contextmanager
    def store(self):
        with Store.open(self.settings.database) as store:
            yield store

    def enable(self):
        """Makes a key and enables it, without a server to prove that it has it."""
        with self.admin() as deployment:
            deployment.generate_key()
            return deployment.enable(force=True).manifest.serial

    def wait_for(self, serial):
        until(lambda: self.serial() >= serial, f"manifest {serial}")

    def serial(self):
        return int(self.get("/v1/manifest").headers["etag"].strip('"').partition("-")[0])

    def manifest(self):
        with self.admin() as deployment, deployment.view() as view:
            return view.manifest

    def get(self, path, headers=None):
        with Client(self.url) as client:
            return client.request("GET", path, headers=headers)

    def metrics(self):
        """Name and labels: value."""
        return readings(self.get("/metrics").body.decode())

    def token(self, role="agent"):
        with self.admin() as deployment:
            return Token.decode(deployment.token(role).result["tokens"][0])

    def enrol(self, name="agent", **options):
        return Sender.enrol(self, name, **options)


class Sender:
    """An agent or relay: identity, hop, credential, and a way to send."""

    def __init__(self, site, name, identity, hop, credential, role):
        self.site, self.name, self.role = site, name, role
        self.identity, self.hop, self.credential = identity, hop, credential
        self.epoch = os.urandom(16)
        self.sequence = 0

    @classmethod
    def enrol(cls, site, name, role="agent", token=None, identity=None, hop=None, **options):
        identity = identity or SigningKey.generate()
        hop = hop or SigningKey.generate()
        manifest = site.manifest()
        request = enrol_request(
            token or site.token(role), manifest, identity, hop, name=name, role=role,
            now_ms=now_ms(), **options,
        )  # fmt: skip
        with Client(site.url) as client:
            answer = client.request("POST", "/v1/enrol", request)
        if answer.problem() is not None:
            raise answer.problem()
        found = open_enrolled(
            answer.body, manifest.receivers(), site.deployment, identity.public.agent_id
        )
        return cls(site, name, identity, hop, found.credential, role)

    @property
    def agent(self):
        return self.identity.public.agent_id

    @property
    def hop_id(self):
        return self.hop.public.agent_id

    def unit(self, *records, **other):
        """The next unit, or one of another place; sealed by default."""
        if "sequence" not in other:
            self.sequence += 1
        facts = {
            "deployment": self.site.deployment, "epoch": self.epoch, "sequence": self.sequence,
            "milliseconds": now_ms(), "level": Level.OPTIONAL, "reason": Reason.SEALED, **other,
        }  # fmt: skip
        return make_unit(self.identity, records=list(records), **facts)

    def post(self, path, body, method="POST", **options):
        headers = prove(self.credential, self.hop, method, path, body, now_ms())
        with Client(self.site.url) as client:
            return client.request(method, path, body, headers, **options)

    def send(self, body):
        """The results, or the problem of the whole request raised."""
        return self._results(self.post("/v1/units", body))

    def ask(self, *bodies, wait=0):
        return self._results(self.post("/v1/results", results.encode_ids(bodies), wait=wait))

    def _results(self, response):
        if response.problem() is not None:
            raise response.problem()
        assert response.status == 200
        return results.decode(response.body)

    def statuses(self, result):
        """Of a result that is done: statement digest and status of each receipt, verified."""
        keys = {key.key_id: key for key in self.site.manifest().receipt_keys}
        receipts = [open_receipt(r, keys, self.site.deployment) for r in result.receipts]
        return {receipt.statement_digest: Status(receipt.status) for receipt in receipts}


def sealed(site, *units, recipients=None):
    """A sealed body."""
    keys = recipients or [key.public() for key in site.manifest().encryption]
    return Sealer(keys).seal_batch(unit_rows(units), fleet_context(site.deployment))


def clear(*units):
    """A body in clear."""
    return clear_body(unit_rows(units))

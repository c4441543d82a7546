# SPDX-License-Identifier: Apache-2.0
"""A server's disk under faults: reports, dead letters and their replay, files, deletions."""

import collections
import hashlib
import io
import os
import time
from contextlib import suppress

import fleet_server_support as support
from faults_driver import Gave, Scenario
from sqlalchemy.exc import SQLAlchemyError

from upseal import Sealer, seal_file
from upseal.engine.types import EngineError
from upseal.fleet.http.results import Result, State
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Level, Reason
from upseal.fleet.server.opening import Sender
from upseal.fleet.server.running import Server
from upseal.fleet.server.settings import read_settings
from upseal.fleet.server.store import (
    StoreError,
    clients,
    deadletters,
    deletions,
    now_ms,
    units,
    uploads,
)
from upseal.fleet.server.uploads import working
from upseal.fleet.settings import SettingsError
from upseal.fleet.units import clear_body, fleet_context, make_unit, unit_rows
from upseal.fleet.uploads.shelf import Gone, NoRoom, WrongOffset
from upseal.fleet.uploads.words import Announcement, Ticket

FILE = b"sesame " * 20_000
IDENTITY, HOP = SigningKey.generate(), SigningKey.generate()
AGENT, HOP_ID = IDENTITY.public.agent_id, HOP.public.agent_id
EPOCH = b"e" * 16
RECORDS = {1: (b"first", b"second"), 2: (b"third", b"fourth"), 3: (b"fifth" * 900,)}
WHO = Sender(HOP_ID, "agent")
working.SOON, working.LATE = 0.02, 0.1
"""Seconds: here nobody waits for better days."""


class Serving(Scenario):
    """What all of a server's have: a deployment with a key, and one enrolled agent."""

    errors = (SQLAlchemyError, OSError, EngineError, StoreError, SettingsError)
    nameless = ("open", "make", "read", "write", "sync", "name", "gone", "size", "map")

    def prepare(self, folder):
        site = support.Site(folder / "site")
        site.enable()
        agent = clients.Agent(
            AGENT, "agent", IDENTITY.public.der, HOP_ID, "agent", "credential", now_ms()
        )
        with site.store() as store, store.writing() as db:
            clients.add(db, agent, HOP.public.der)
        manifest = site.manifest()
        self.keys = [key.public() for key in manifest.encryption]
        self.deployment = site.deployment
        (folder / "facts").write_text(
            "\n".join([self.deployment.hex(), *(k.to_pem().hex() for k in self.keys)])
        )
        self.make(folder)

    def make(self, folder):
        """What else there is before."""

    def facts(self, folder):
        from upseal import PublicKey

        deployment, *keys = (folder / "facts").read_text().split("\n")
        return bytes.fromhex(deployment), [PublicKey.from_pem(bytes.fromhex(key)) for key in keys]

    def server(self, folder):
        return Server(read_settings(folder / "site"))

    def up(self, folder, run):
        """A server that has its keys, without threads that look by themselves."""
        with run.quiet():  # an administrator's file, read once
            settings = read_settings(folder / "site")
        server = run.step(lambda: Server(settings))
        run.step(server.upkeep.round)
        return server

    @staticmethod
    def take(server, raw):
        """One request, as the application takes it through."""
        request = server.intake.open(raw, WHO)
        outcome = server.writer.submit(request.job).result(30)
        results = server.intake.finish(request, outcome)
        for result in results:
            server.answers.put(result)
        return results[0]


def unit_of(deployment, sequence, records, reason):
    return make_unit(
        IDENTITY, deployment, EPOCH, sequence, records=records, milliseconds=now_ms(),
        level=Level.OPTIONAL, reason=reason,
    )  # fmt: skip


class Reporting(Serving):
    """Units sealed and in clear; one that cannot be opened, until its key is back."""

    def make(self, folder):
        (folder / "site" / "keys").rename(folder / "aside")
        (folder / "site" / "keys").mkdir(0o700)
        deployment, keys = self.facts(folder)
        context, bodies = fleet_context(deployment), folder / "bodies"
        bodies.mkdir()
        sealer = Sealer(keys)
        for number in (1, 3):
            unit = unit_of(deployment, number, list(RECORDS[number]), Reason.SEALED)
            (bodies / str(number)).write_bytes(sealer.seal_batch(unit_rows([unit]), context))
        unit = unit_of(deployment, 2, list(RECORDS[2]), Reason.NO_CERTIFICATE)
        (bodies / "2").write_bytes(clear_body(unit_rows([unit])))

    def key_comes_back(self, folder):
        for path in (folder / "aside").iterdir():
            path.rename(folder / "site" / "keys" / path.name)

    def bodies(self, folder):
        return {int(path.name): path.read_bytes() for path in (folder / "bodies").iterdir()}

    def work(self, folder, run):
        with run.quiet():
            bodies = self.bodies(folder)
        server = self.up(folder, run)
        for number in (1, 2):
            result = run.step(lambda number=number: self.take(server, bodies[number]))
            if result.state is not (State.PENDING if number == 1 else State.DONE):
                raise Gave(f"{number} is {result}")
            run.ack("taken", number=number)
        with run.quiet():
            self.key_comes_back(folder)
        run.step(server.upkeep.round)
        # Where the key could not be read this time, it is read the next.
        run.step(lambda: self._until_here(server, run))
        run.step(server.upkeep.round)
        result = run.step(lambda: self.take(server, bodies[3]))
        if result.state is not State.DONE:
            raise Gave(f"3 is {result}")
        run.ack("taken", number=3)
        server.close()

    @staticmethod
    def _until_here(server, run):
        begun = time.monotonic()
        while server.keyring.missing():
            server.upkeep.round()
            if time.monotonic() > begun + 1:  # nobody has heard of a fault that lasts
                run.passes()
            if time.monotonic() > begun + 10:
                raise Gave("a key that could not be read once is never read again")
            time.sleep(0.01)

    def stored(self, server):
        found = collections.Counter()
        for report in units.read(server.store):
            found[report.sequence, report.position, report.body] += 1
        return found

    def recover(self, folder, run):
        self.key_comes_back(folder)
        server = self.server(folder)
        server.upkeep._replay.begin()
        server.upkeep.round()
        wanted = {
            n: {(n, i, body): 1 for i, body in enumerate(records)} for n, records in RECORDS.items()
        }
        stored = self.stored(server)
        for said in run.acked("taken"):
            if not wanted[said["number"]].items() <= stored.items():
                raise Gave(f"unit {said['number']} was taken, and is not stored")
        with server.store.reading() as db:
            if deadletters.listing(db):
                raise Gave("a dead letter stays")
        for number, body in self.bodies(folder).items():
            if self.take(server, body).state is not State.DONE:
                raise Gave(f"{number} is not taken")
        if self.stored(server) != {k: 1 for of in wanted.values() for k in of}:
            raise Gave(f"stored is {self.stored(server)}")
        server.close()


class Filing(Serving):
    """Files come, sealed and in clear, are stored and receipted; one of them is deleted."""

    errors = (*Serving.errors, Gone, NoRoom, WrongOffset)

    def make(self, folder):
        deployment, keys = self.facts(folder)
        out = io.BytesIO()
        seal_file(io.BytesIO(FILE), out, keys, fleet_context(deployment))
        (folder / "bodies").mkdir()
        (folder / "bodies" / "sealed").write_bytes(out.getvalue())
        (folder / "bodies" / "clear").write_bytes(FILE)
        server = self.server(folder)
        server.upkeep.round()
        said = [self._said(folder, form).encode() for form in ("sealed", "clear")]
        unit = unit_of(deployment, 1, said, Reason.NO_CERTIFICATE)
        if self.take(server, clear_body(unit_rows([unit]))).state is not State.DONE:
            raise Gave("not announced")
        server.close()

    @staticmethod
    def _said(folder, form):
        body = (folder / "bodies" / form).read_bytes()
        upload = hashlib.sha256(form.encode()).digest()[:16]
        return Announcement(
            upload, form, len(FILE), len(body), hashlib.sha256(body).digest(), 1, b"file"
        )

    def _ticket(self, folder, form):
        said = self._said(folder, form)
        return Ticket(said.upload, said.body_sha256, form, said.body_size)

    def _bring(self, server, ticket, body, run):
        """As who sends: creates it, goes on from where it is, waits for the result."""
        shelf, begun = server.uploads.shelf, time.monotonic()
        end = begun + 40
        while (state := self._result(server, ticket)) is not State.DONE:
            if time.monotonic() > end:
                raise Gave(f"a file is never stored: {state}")
            if state is State.PENDING:
                if time.monotonic() > begun + 1:  # its threads have met a fault that lasts
                    run.passes()
                time.sleep(0.002)
                continue
            with suppress(Gone):  # it was stored this moment
                held = shelf.create(HOP_ID, "agent", ticket)
                while held.offset < ticket.size:
                    shelf.append(held, held.offset, body[held.offset : held.offset + 50_000])
                if not shelf.complete(held):
                    raise Gave("good bytes were refused")
                server.uploads.working.add(held)
        while shelf.find(HOP_ID, ticket.body_id) is not None:
            if time.monotonic() > end:
                raise Gave("a body that is settled stays")
            if time.monotonic() > begun + 1:
                run.passes()
            time.sleep(0.002)

    @staticmethod
    def _result(server, ticket):
        (found,) = server.uploads.results(HOP_ID, [Result.unknown(ticket.body_id)])
        if found.state is State.UNKNOWN:  # settled a moment ago
            (found,) = server.answers.get([ticket.body_id])
        return found.state

    def work(self, folder, run):
        with run.quiet():
            bodies = {
                form: (self._ticket(folder, form), (folder / "bodies" / form).read_bytes())
                for form in ("sealed", "clear")
            }
        server = self.up(folder, run)
        run.step(server.uploads.start)
        for form, (ticket, body) in bodies.items():
            run.step(lambda ticket=ticket, body=body: self._bring(server, ticket, body, run))
            run.ack("file", form=form)
        run.say("deleting")
        which = (AGENT, bodies["clear"][0].upload)

        def delete():
            with server.store.writing() as db:
                deletions.put(db, [which], now_ms())

        run.step(delete)
        run.ack("deleted")
        run.step(lambda: server.uploads.round(keys_changed=False))
        server.close()

    def recover(self, folder, run):
        server = self.server(folder)
        server.upkeep.round()
        server.uploads.start()
        stored = folder / "site" / "uploads" / "stored"
        rows = {row.form: row for row, _ in uploads.read(server.store, deleted=True)}
        deleting = any(e["what"] == "deleting" for e in run.before)
        for said in run.acked("file"):
            form = said["form"]
            row = rows.get(form)
            if row is None:
                raise Gave(f"the {form} file was receipted, and is not stored")
            if form == "clear" and deleting and row.deleted is not None:
                continue
            if (stored / row.path).read_bytes() != FILE:
                raise Gave(f"the {form} file is stored with other bytes")
        if run.acked("deleted") and rows["clear"].deleted is None:
            raise Gave("a deletion is forgotten")
        for form in ("sealed", "clear"):
            ticket, body = self._ticket(folder, form), (folder / "bodies" / form).read_bytes()
            self._bring(server, ticket, body, run)
        rows = {row.form: row for row, _ in uploads.read(server.store, deleted=True)}
        server.uploads.round(keys_changed=False)
        wanted = {rows["sealed"].path}
        if rows["clear"].deleted is None:
            wanted.add(rows["clear"].path)
        there = {str(path.relative_to(stored)) for path in stored.rglob("*") if path.is_file()}
        if there != wanted:
            raise Gave(f"stored are {there}, and should be {wanted}")
        if any((stored / path).read_bytes() != FILE for path in wanted):
            raise Gave("stored with other bytes")
        server.close()
        left = set(os.listdir(folder / "site" / "uploads" / "incoming"))
        if left != {"lock"}:
            raise Gave(f"left: {left}")

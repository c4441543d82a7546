# SPDX-License-Identifier: Apache-2.0
"""An agent's disk under faults: the spool, waiting files, what it believes, its state."""

import collections
import hashlib
import io
import os

from faults_core import KEY as SERVER
from faults_core import leftovers
from faults_driver import Gave, Scenario
from fleet_support import Site, now_ms

from upseal import PrivateKey, open_file
from upseal.engine.types import EngineError
from upseal.fleet.agent.membership import Membership
from upseal.fleet.agent.parent import Believed
from upseal.fleet.agent.rows import read_counters
from upseal.fleet.agent.settings import Batch, SpoolLimits, Uploads
from upseal.fleet.agent.spool import Spool, SpoolError, spool_context
from upseal.fleet.agent.uploads.making import Travel
from upseal.fleet.agent.uploads.manager import Manager
from upseal.fleet.agent.uploads.rows import UploadState
from upseal.fleet.policy import Absent, Certificate, Level, Parent
from upseal.fleet.trust import Outcome, Trust
from upseal.fleet.units import fleet_context

KEY = PrivateKey.generate()
DEPLOYMENT, AGENT, EPOCH = b"d" * 16, b"a" * 16, b"e" * 16
CONTEXT = spool_context(DEPLOYMENT, AGENT)
SEVERAL = Batch(reports=10, bytes=1 << 20, seconds=60)
SPOOL_FILES = tuple(f"spool.db{suffix}" for suffix in ("", "-wal", "-shm", ".turn"))


def spool_at(folder):
    limits = SpoolLimits(min_free=0)
    return Spool(folder / "spool.db", KEY, CONTEXT, limits, lambda lost: b"lost %d" % lost)


def balanced(spool):
    """Counters and rows say the same, and nothing was lost."""
    with spool.reading() as db:
        counters = read_counters(db)
        rows, size = db.execute(
            "SELECT count(*), coalesce(sum(length(sealed)), 0) FROM reports"
        ).fetchone()
    if (counters.depth, counters.bytes) != (rows, size) or counters.lost:
        raise Gave(f"{counters} do not fit {rows} reports of {size} bytes")
    return counters


class Spooling(Scenario):
    """Reports in, units made and sent, receipts; then whatever is left goes the same way."""

    errors = (SpoolError, OSError, EngineError)
    odd = ("SpoolDamaged",)

    def __init__(self, new=True):
        self.new = new

    def prepare(self, folder):
        if not self.new:
            spool = spool_at(folder)
            spool.add([b"from before"])
            spool.close()

    def promise(self, spool, run, reports):
        run.step(lambda: spool.add(reports))
        run.ack("reports", hex=[report.hex() for report in reports])

    def work(self, folder, run):
        spool = spool_at(folder)
        for reports in ([b"one", b"two"], [b"three" * 2000], [b"four"]):
            self.promise(spool, run, reports)
        run.step(lambda: spool.due(SEVERAL))
        unit, records = run.step(lambda: spool.plan(SEVERAL, EPOCH, 1))
        run.ack("unit", id=unit.id, hex=[record.hex() for record in records])
        again, same = run.step(lambda: spool.records(unit))
        if (again, same) != (unit, records):
            raise Gave("a unit has other records than it was made of")
        self.promise(spool, run, [b"five"])
        run.say("receipted", id=unit.id)  # from here on its reports may be gone
        run.step(lambda: spool.stored(unit))
        run.ack("stored", id=unit.id)
        spool.tidy()
        run.step(spool.counters)
        spool.close()

    def recover(self, folder, run):
        spool = spool_at(folder)
        balanced(spool)
        sent = collections.Counter()
        planned = {unit.id: unit for unit in spool.units()}
        receipted = {e["id"] for e in run.before if e["what"] == "receipted"}
        for said in run.acked("unit"):
            unit = planned.get(said["id"])
            if unit is None:
                if said["id"] not in receipted:
                    raise Gave("a unit that was written down is gone")
                sent.update(said["hex"])
                continue
            if any(e["id"] == said["id"] for e in run.acked("stored")):
                raise Gave("a unit came back that was taken out")
            if [r.hex() for r in spool.records(unit)[1]] != said["hex"]:
                raise Gave("a unit has other records than it was sent with")
        triples = {(unit.epoch, unit.sequence) for unit in planned.values()}
        if len(triples) != len(planned):
            raise Gave("two units of one number")
        number = 0
        while spool.due(SEVERAL) is not None:
            number += 1
            spool.plan(SEVERAL, b"f" * 16, number)
        for unit in spool.units():
            found, records = spool.records(unit)
            if found.reduced or found.remade:
                raise Gave("a unit was changed")
            sent.update(record.hex() for record in records)
            if not spool.stored(unit):
                raise Gave("a unit cannot be taken out")
        if balanced(spool).depth:
            raise Gave("reports are left")
        said = collections.Counter(
            report for promise in run.acked("reports") for report in promise["hex"]
        )
        if not self.new:
            said[b"from before".hex()] += 1
        if said - sent:
            raise Gave(f"reports are lost: {said - sent}")
        tries = sum(e["what"] == "error" for e in run.before) + 1
        if any(count > said[report] + tries for report, count in sent.items()):
            raise Gave(f"reports come more often than they were tried: {sent}")
        if tries == 1 and sent != said and run.acked("stored"):
            raise Gave("reports are doubled")
        spool.close()
        leftovers(folder, run, *SPOOL_FILES)


class Waiting(Scenario):
    """A file is taken, made ready, sent half, sent whole, and receipted.

    Without a certificate it is sealed to the spool's own key first, and to the server when it goes.
    """

    errors = (SpoolError, OSError, EngineError)
    DATA = b"sesame " * 30_000

    def __init__(self, own):
        self.own = own
        if own:
            self.nameless = ("read", "write")  # it is opened and sealed in one stream

    def prepare(self, folder):
        (folder / "file").write_bytes(self.DATA)
        spool = spool_at(folder)
        spool.add([b"there"])
        spool.close()

    def _manager(self, folder):
        spool = spool_at(folder)
        return spool, Manager(spool, folder, Uploads(min_free=0), DEPLOYMENT)

    def work(self, folder, run):
        spool, manager = self._manager(folder)
        certificate = Certificate((SERVER.public_key,))
        nothing = Believed(None, Absent.NEVER_SEEN, Parent())
        now = Believed(None, certificate, Parent())

        def take():
            if self.own:
                return manager.take(folder / "file", None, None, nothing, Level.OPTIONAL)
            taker = manager._taker
            return taker.take(folder / "file", None, None, certificate, 3).hex()

        upload = run.step(take)
        run.ack("upload", id=upload)
        row = run.step(lambda: manager.ledger.find(bytes.fromhex(upload)))
        way = Travel.ANEW if self.own else Travel.SEALED
        body = run.step(lambda: manager.maker.body(row, way, now, _goes_on))
        got = bytearray()

        def send():
            # As the carrier does: goes on from what the parent has.
            with manager.maker.source(body) as source:
                while len(got) < body.ticket.size:
                    got.extend(source.read(len(got), min(65_536, body.ticket.size - len(got))))

        run.step(send)
        if hashlib.sha256(got).digest() != body.ticket.body_sha256:
            raise Gave("other bytes were sent than were announced")
        if not run.step(lambda: manager.maker.whole(body, _goes_on)):
            raise Gave("a good file is taken for a damaged one")
        run.say("receipted", id=upload)
        run.step(lambda: manager.ledger.end(body.row, UploadState.STORED))
        run.ack("stored", id=upload)
        run.step(lambda: manager.folder.sweep())
        spool.close()

    def recover(self, folder, run):
        spool, manager = self._manager(folder)
        manager.folder.sweep()
        balanced(spool)
        counters = manager.counters()
        waiting = [manager.ledger.one(number) for number in manager.ledger.waiting()]
        if counters.waiting != len(waiting) or counters.failed or counters.cancelled:
            raise Gave(f"{counters} do not fit {len(waiting)} rows")
        if counters.bytes != sum(row.file_size for row in waiting):
            raise Gave("bytes are counted wrongly")
        there = {}
        if manager.folder.path.exists():
            there = {path.name: path.stat().st_size for path in manager.folder.path.iterdir()}
        if there != {row.file: row.file_size for row in waiting}:
            raise Gave(f"the folder has {there}, and the rows {waiting}")
        receipted = {e["id"] for e in run.before if e["what"] == "receipted"}
        for said in run.acked("upload"):
            state = manager.state(said["id"])
            done = any(e["id"] == said["id"] for e in run.acked("stored"))
            fitting = [UploadState.STORED] if done else [UploadState.WAITING]
            if said["id"] in receipted and not done:
                fitting.append(UploadState.STORED)
            if state not in fitting:
                raise Gave(f"an upload is {state}")
        now = Believed(None, Certificate((SERVER.public_key,)), Parent())
        for row in waiting:
            way = Travel.ANEW if row.own else Travel.SEALED
            body = manager.maker.body(row, way, now, lambda: None)
            with manager.maker.source(body) as source:
                data = source.read(0, body.ticket.size)
            if hashlib.sha256(data).digest() != body.ticket.body_sha256:
                raise Gave("a body is not what was announced")
            out = io.BytesIO()
            open_file(io.BytesIO(data), out, [SERVER], fleet_context(DEPLOYMENT))
            if out.getvalue() != self.DATA:
                raise Gave("a body holds something else")
            if not manager.ledger.end(body.row, UploadState.STORED):
                raise Gave("an upload cannot be ended")
        if manager.folder.path.exists() and list(manager.folder.path.iterdir()):
            raise Gave("files are left")
        spool.close()
        leftovers(folder, run, *SPOOL_FILES, "file", "uploads")


def _goes_on():
    """For who would stop."""


SITE = Site()
FIRST = SITE.sign()
SITE.enable()
SECOND = SITE.sign()
SITE.rotate()
THIRD = SITE.sign()


class Believing(Scenario):
    """Manifests as they come, each written down before it counts; and the agent's membership."""

    def prepare(self, folder):
        trust = Trust.start(
            folder / "trust.json", SITE.signing.public.fingerprint, SITE.deployment, 1
        )
        if trust.offer([FIRST], now_ms()) is not Outcome.ACCEPTED:
            raise Gave("not believed")
        Membership(SITE.deployment, AGENT, "a credential").save(folder)

    def work(self, folder, run):
        trust = run.step(lambda: Trust.load(folder / "trust.json"))
        for token, serial in ((SECOND, 3), (THIRD, 5)):
            run.step(lambda token=token: trust.offer([token], now_ms()))
            if trust.manifest.serial != serial:
                raise Gave("the newest manifest does not count")
            run.ack("serial", serial=serial)
        member = Membership(SITE.deployment, AGENT, "another credential")
        run.step(lambda: member.save(folder))
        run.ack("member")

    def recover(self, folder, run):
        trust = Trust.load(folder / "trust.json")
        said = max([1, *(e["serial"] for e in run.acked("serial"))])
        if trust.manifest.serial < said:
            raise Gave(f"{trust.manifest.serial} is older than {said}, which counted already")
        member = Membership.load(folder).credential
        wanted = {"another credential", *(() if run.acked("member") else ("a credential",))}
        if member not in wanted:
            raise Gave("a membership that nobody has written")
        trust.offer([THIRD], now_ms())
        if Trust.load(folder / "trust.json").manifest.serial != 5:
            raise Gave("it does not go on")
        others = {name for name in os.listdir(folder) if "lock" in name}
        leftovers(folder, run, "trust.json", "enrolment.json", *others)

# SPDX-License-Identifier: Apache-2.0
"""A relay's disk under faults: the queue, the shelf, what is sealed again, keys."""

import hashlib
import io
import os
import sqlite3
import threading

from faults_core import DATA, leftovers
from faults_driver import Gave, Scenario
from fleet_support import Site

from upseal import open_file
from upseal.engine.types import EngineError
from upseal.fleet.http.results import Result, State
from upseal.fleet.relay.queue import Queue
from upseal.fleet.relay.source import Lost, Source
from upseal.fleet.relay.wrapping import DiskFull, Wraps
from upseal.fleet.units import fleet_context
from upseal.fleet.uploads.shelf import Gone, NoRoom, Shelf, ShelfLimits, WrongOffset
from upseal.fleet.uploads.words import Ticket

SITE = Site()
SITE.enable()
HOP = b"h" * 16
MANY = (1 << 30, 1000)
QUEUE_FILES = ("queue.db", "queue.db-wal", "queue.db-shm")
LIMITS = ShelfLimits(1 << 30, 1 << 30, 64, 1.0, 3600.0, 0)
BODY = DATA[:300_000]
TICKET = Ticket(b"u" * 16, hashlib.sha256(BODY).digest(), "clear", len(BODY))
STEP = 100_001


def named(*bodies):
    return {hashlib.sha256(body).digest(): body for body in bodies}


class Queueing(Scenario):
    """Bodies come, are passed on, and have results; the sweeper passes by."""

    errors = (sqlite3.Error, OSError)
    nameless = ("open", "make", "read", "write", "sync", "name", "gone", "size", "map")

    def prepare(self, folder):
        queue = Queue(folder / "queue.db")
        queue.put(named(b"from before"), HOP).result(30)
        queue.close()

    def promise(self, queue, run, bodies):
        run.step(lambda: queue.put(named(*bodies), HOP).result(30))
        run.ack("bodies", hex=[body.hex() for body in bodies])

    def work(self, folder, run):
        bodies = [b"one", b"two" * 5000, b"three", b"four"]
        queue = run.step(lambda: Queue(folder / "queue.db", tidy=0.0))
        for group in (bodies[:2], bodies[2:]):
            self.promise(queue, run, group)
        wanted = {b"from before", *bodies}
        claimed = {}

        def claim():
            for one in queue.claim(*MANY, 0.0):
                claimed[one.id] = one

        run.step(claim)
        for one in claimed.values():
            if one.body not in wanted or hashlib.sha256(one.body).digest() != one.id:
                raise Gave("another body than was put")
        ready = [one for one in claimed.values() if one.body in (b"from before", b"one")]
        results = [Result.done(one.id, [b"receipt"]) for one in ready]
        run.say("finished", hex=[one.body.hex() for one in ready])

        def finish():
            queue.finish(results).result(30)

        run.step(finish)
        run.ack("results", ids=[one.id.hex() for one in ready])
        queue.release(one.id for one in claimed.values() if one not in ready)
        run.step(lambda: queue.keep(Result.done(b"k" * 32, [b"kept"]), 1).result(30))
        run.ack("results", ids=[(b"k" * 32).hex()])
        run.step(lambda: queue.lookup([*named(*bodies), b"k" * 32]))
        self.promise(queue, run, [b"five"])
        queue.close()

    def recover(self, folder, run):
        queue = Queue(folder / "queue.db")
        said = {bytes.fromhex(x) for e in run.acked("bodies") for x in e["hex"]} | {b"from before"}
        finished = {
            bytes.fromhex(x) for e in run.before if e["what"] == "finished" for x in e["hex"]
        }
        done = {bytes.fromhex(i) for e in run.acked("results") for i in e["ids"]}
        there = {one.id: one.body for one in queue.claim(*MANY, 0.0)}
        found = queue.lookup([*named(*said), *done])
        for body in said:
            (body_id,) = named(body)
            if body_id in done or (body in finished and body_id not in there):
                result = found.get(body_id)
                if body_id in there or result is None or result.state is not State.DONE:
                    raise Gave(f"a result is lost: {body[:20]}")
            elif there.get(body_id) != body:
                raise Gave(f"a body is lost: {body[:20]}")
        if any(found.get(one) is None for one in done):
            raise Gave("a result is lost")
        if queue.stats().bodies != len(there):
            raise Gave("bodies are counted wrongly")
        queue.finish([Result.done(one, [b"r"]) for one in there]).result(30)
        if queue.stats().bodies:
            raise Gave("bodies are left")
        queue.close()
        leftovers(folder, run, *QUEUE_FILES)


class Shelving(Scenario):
    """A file in clear comes in pieces, is verified, sealed again, read to be sent, and goes."""

    errors = (OSError, EngineError, sqlite3.Error, Gone, NoRoom, WrongOffset, Lost, DiskFull)
    nameless = ("open", "make", "read", "write", "sync", "name", "gone", "size", "map")

    def prepare(self, folder):
        with self._shelf(folder):
            Wraps(folder / "sealed")
        Queue(folder / "queue.db").close()

    def _shelf(self, folder):
        return Shelf(folder / "shelf", LIMITS)

    def work(self, folder, run):
        shelf = run.step(lambda: self._shelf(folder))
        wraps = run.step(lambda: Wraps(folder / "sealed"))
        queue = run.step(lambda: Queue(folder / "queue.db"))
        stop = threading.Event()

        def bring():
            """As who sends does: asks where it is, and goes on from there."""
            held = shelf.create(HOP, "agent", TICKET)
            run.ack("created")
            while held.offset < TICKET.size:
                at = held.offset
                now = shelf.append(held, at, BODY[at : at + STEP])
                run.ack("offset", offset=now)
            return held if shelf.complete(held) else None

        held = run.step(bring)
        if held is None:
            raise Gave("good bytes were refused")
        run.ack("whole")
        if shelf.find(HOP, TICKET.body_id) is not held or shelf.usage().held != TICKET.size:
            raise Gave("the shelf's own count is wrong")

        def carry():
            wrapped = wraps.find(TICKET.body_id)
            if wrapped is None:
                wrapped = wraps.make(TICKET.body_id, TICKET, held.path, SITE.manifest, stop)
            with Source(wrapped.path, wrapped.ticket.size) as source:
                data = source.read(0, wrapped.ticket.size)
            if hashlib.sha256(data).digest() != wrapped.ticket.body_sha256:
                raise Gave("other bytes go up than were said")
            return data

        data = run.step(carry)
        with run.quiet():
            check_sealed(data)
        run.say("done")
        run.step(lambda: queue.keep(Result.done(TICKET.body_id, [b"r"]), 1).result(30))
        run.ack("result")

        def clear():
            wraps.drop(TICKET.body_id)
            shelf.remove(held)

        run.step(clear)
        if shelf.usage().bodies or wraps.size:
            raise Gave("it is still there")
        queue.close()
        shelf.close()

    def recover(self, folder, run):
        shelf, queue = self._shelf(folder), Queue(folder / "queue.db")
        wraps = Wraps(folder / "sealed")
        kept = queue.lookup([TICKET.body_id]).get(TICKET.body_id)
        if run.acked("result") and (kept is None or kept.state is not State.DONE):
            raise Gave("a result is lost")
        held = shelf.find(HOP, TICKET.body_id)
        if kept is None and run.acked("whole") and (held is None or held.state != "whole"):
            raise Gave("a body is lost that was said to be here")
        errors = [e for e in run.before if e["what"] == "error"]
        offsets = [e["offset"] for e in run.acked("offset")]
        if not errors and offsets and kept is None and (held is None or held.offset < offsets[-1]):
            raise Gave("bytes are lost without an error")
        if held is not None and held.state == "whole" and held.path.read_bytes() != BODY:
            raise Gave("a whole body of other bytes")
        if kept is None:
            held = shelf.create(HOP, "agent", TICKET)
            if held.state != "whole":
                while held.offset < TICKET.size:
                    shelf.append(held, held.offset, BODY[held.offset :])
                if not shelf.complete(held):
                    # What lay there was not what was declared: then it comes anew.
                    if not errors and run.fault.error != "KILL":
                        raise Gave("bytes were damaged without an error")
                    held = shelf.create(HOP, "agent", TICKET)
                    shelf.append(held, 0, BODY)
                    if not shelf.complete(held):
                        raise Gave("a body cannot be brought any more")
            if held.path.read_bytes() != BODY:
                raise Gave("a whole body of other bytes")
        wraps.keep_only({body.body_id for body in shelf.whole()})
        if kept is None:
            wrapped = wraps.find(TICKET.body_id)
            if wrapped is not None and not wraps.sound(wrapped, threading.Event()):
                raise Gave("half a sealed body under a final name")
            if wrapped is None:
                wrapped = wraps.make(
                    TICKET.body_id, TICKET, held.path, SITE.manifest, threading.Event()
                )
            check_sealed(wrapped.path.read_bytes())
        wraps.drop(TICKET.body_id)
        for body in shelf.by_body(TICKET.body_id):
            shelf.remove(body)
        shelf.close()
        queue.close()
        leftovers(folder, run, "shelf", "sealed", *QUEUE_FILES)
        # Strictly: the next process clears away whatever the one before it has left.
        self._shelf(folder).close()
        Wraps(folder / "sealed")
        if os.listdir(folder / "shelf") != ["lock"] or os.listdir(folder / "sealed"):
            raise Gave(f"left: {os.listdir(folder / 'shelf')} {os.listdir(folder / 'sealed')}")


def check_sealed(data):
    out = io.BytesIO()
    open_file(io.BytesIO(data), out, SITE.opener(), fleet_context(SITE.deployment))
    if out.getvalue() != BODY:
        raise Gave("what was sealed again holds something else")

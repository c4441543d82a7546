# SPDX-License-Identifier: Apache-2.0
"""Floods for the tests and the benchmark: bounded, on loopback alone, from an address of their own.

Each is a generator of work for one thread: it floods until told to stop, and counts what it was
answered. Linux lets a client be any address of 127.0.0.0/8.
"""

import base64
import itertools
import os
import random
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress

from upseal import Sealer
from upseal.fleet.credentials import prove
from upseal.fleet.hops import issue_credential
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Level, Reason
from upseal.fleet.units import clear_body, fleet_context, make_unit, unit_rows
from upseal.fleet.uploads.words import path_of, proven, upload_body_id

HERE, THERE = "127.0.0.1", "127.0.0.2"
"""Of honest agents, and of who floods."""


def now_ms():
    return time.time_ns() // 1_000_000


class Connection:
    """A bare one, from THERE."""

    def __init__(self, address, timeout=20.0):
        self.sock = socket.create_connection(address, timeout, (THERE, 0))

    def send(self, data):
        self.sock.sendall(data)

    def answer(self):
        """The status of one answer, and its body read away; 0 if the connection ended."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.sock.recv(65536)
            if not piece:
                return 0
            data += piece
        head, _, rest = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        while len(rest) < length:
            piece = self.sock.recv(65536)
            if not piece:
                return 0
            rest += piece
        return int(head.split()[1])

    def close(self):
        self.sock.close()


def request(path, headers=None, body=b"", *, length=None, method="POST"):
    """The bytes of one."""
    said = {"host": "x", "content-length": len(body) if length is None else length}
    lines = [f"{name}: {value}" for name, value in {**said, **(headers or {})}.items()]
    lines.insert(0, f"{method} {path} HTTP/1.1")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Enrolled:
    """An enrolled agent that does not behave."""

    def __init__(self, deployment, identity, hop, credential, recipients):
        self.deployment, self.identity, self.hop = deployment, identity, hop
        self.credential, self.recipients = credential, recipients
        self.epoch, self.sequence = os.urandom(16), 0
        self.sealer = Sealer(recipients)
        self.lock = threading.Lock()

    def unit(self, *records):
        with self.lock:
            self.sequence += 1
            sequence = self.sequence
        return make_unit(
            self.identity, self.deployment, self.epoch, sequence, now_ms(), Level.OPTIONAL,
            Reason.SEALED, list(records),
        )  # fmt: skip

    def sealed(self, *units, fresh=False):
        sealer = Sealer(self.recipients) if fresh else self.sealer
        return sealer.seal_batch(unit_rows(units), fleet_context(self.deployment))

    def request(self, path, body, method="POST", **headers):
        said = proven(path, headers, body)
        proof = prove(self.credential, self.hop, method, path, said, now_ms())
        return request(path, {**proof, **headers}, body, method=method)


class Flood:
    """Threads that flood one address until the block ends. ``answers`` counts statuses."""

    def __init__(self, address, work, threads=2):
        self.address, self._work, self._count = address, work, threads
        self.answers, self.failed = Counter(), []
        self.stop = threading.Event()

    def note(self, status):
        self.answers[status] += 1

    @property
    def total(self):
        return self.answers.total()

    def _run(self):
        try:
            while not self.stop.is_set():
                with suppress(OSError):  # turned away, as it should be
                    self._work(self)
                    continue
                self.note("closed")
                self.stop.wait(0.005)
        except BaseException as error:
            self.failed.append(error)

    @contextmanager
    def running(self):
        threads = [threading.Thread(target=self._run) for _ in range(self._count)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()
        assert not self.failed, self.failed


# -- without a credential -----------------------------------------------------------------


def held_connections(most):
    """Opens connections and holds them, as many as it can get up to so many."""

    def work(flood):
        held = []
        try:
            while not flood.stop.is_set():
                if len(held) < most:
                    with suppress(OSError):
                        held.append(Connection(flood.address))
                        flood.note("held")
                        continue
                for one in [one for one in held if closed(one.sock)]:  # they are opened again
                    held.remove(one)
                    one.close()
                flood.stop.wait(0.02)
        finally:
            for one in held:
                one.close()

    return work


def closed(sock):
    sock.setblocking(False)
    try:
        return sock.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def slow_heads(most):
    """Heads that come a byte at a time, on many connections."""

    def work(flood):
        held, head = [], request("/v1/units", {"x-long": "y" * 4000})
        at = 0
        try:
            while not flood.stop.is_set():
                while len(held) < most and not flood.stop.is_set():
                    try:
                        held.append(Connection(flood.address))
                    except OSError:
                        break
                for one in list(held):
                    try:
                        one.send(head[at : at + 1])
                        flood.note("byte")
                    except OSError:
                        held.remove(one)
                        one.close()
                at = (at + 1) % 3000
                flood.stop.wait(0.02)
        finally:
            for one in held:
                one.close()

    return work


def slow_bodies(most, size=1 << 20):
    """Bodies of somebody whose credential is none: half of each comes, and then a bit."""
    stranger = SigningKey.generate()
    own = issue_credential(bytes(16), stranger.public, "agent", stranger, now_ms())
    shown = prove(own, stranger, "POST", "/v1/units", b"", now_ms())

    def work(flood):
        held = []
        try:
            while not flood.stop.is_set():
                while len(held) < most and not flood.stop.is_set():
                    try:
                        one = Connection(flood.address)
                        held.append(one)
                        one.send(request("/v1/units", shown, bytes(size // 2), length=size))
                        flood.note("begun")
                    except OSError:
                        break
                for one in list(held):
                    try:
                        if closed(one.sock):
                            raise OSError
                        one.sock.setblocking(True)
                        one.send(b"x")
                    except OSError:
                        held.remove(one)
                        one.close()
                flood.stop.wait(0.05)
        finally:
            for one in held:
                one.close()

    return work


def garbage_credentials(real=None):
    """Requests with credentials that are none, or with a genuine one that was overheard."""
    stranger = SigningKey.generate()
    own = issue_credential(bytes(16), stranger.public, "agent", stranger, now_ms())
    cards = [own, "a.b.c", *([] if real is None else [real, real[:-6] + "AAAAAA"])]
    shown = [prove(card, stranger, "POST", "/v1/units", b"garbage", now_ms()) for card in cards]

    def work(flood):
        one = Connection(flood.address)
        try:
            while not flood.stop.is_set():
                for headers in shown:
                    one.send(request("/v1/units", headers, b"garbage"))
                    status = one.answer()
                    flood.note(status)
                    if status == 0:
                        return
        finally:
            one.close()

    return work


def oversized(most=1 << 21):
    """Bodies that say they are endless, or are; and enrolments that are far too long."""
    shown = {"authorization": "Upseal a.b.c", "upseal-proof": "a.b.c"}
    chunk = b"%x\r\n%b\r\n" % (1 << 16, bytes(1 << 16))

    def work(flood):
        for path, headers in (("/v1/units", shown), ("/v1/enrol", {})):
            one = Connection(flood.address)
            try:
                one.send(request(path, headers, length=10**15))
                flood.note(one.answer())
            finally:
                one.close()
            one = Connection(flood.address)
            try:
                head = f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
                lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                one.send((head + lines + "\r\n").encode())
                for _ in range(most >> 16):
                    one.send(chunk)
                flood.note(one.answer())
            finally:
                one.close()

    return work


def enrolments(sealed):
    """Requests to enrol: sealed as they should be, by somebody without a token."""

    def work(flood):
        one = Connection(flood.address)
        try:
            while not flood.stop.is_set():
                one.send(request("/v1/enrol", {}, sealed))
                status = one.answer()
                flood.note(status)
                if status == 0:
                    return
        finally:
            one.close()

    return work


# -- enrolled -------------------------------------------------------------------------------


def sends(agent, make):
    """An enrolled agent that sends what ``make`` makes, as fast as it can."""

    def work(flood):
        one = Connection(flood.address)
        try:
            while not flood.stop.is_set():
                one.send(make(agent))
                status = one.answer()
                flood.note(status)
                if status == 0:
                    return
        finally:
            one.close()

    return work


def small_units(agent):
    return agent.request("/v1/units", agent.sealed(agent.unit(b"x" * 100)))


def new_sessions(agent):
    return agent.request("/v1/units", agent.sealed(agent.unit(b"x"), fresh=True))


def in_clear(agent):
    return agent.request("/v1/units", clear_body(unit_rows([agent.unit(b"x" * 1000)])))


def undecryptable(agent):
    """Sealed to the server, and changed: it is kept as a dead letter, up to a quota."""
    body = bytearray(agent.sealed(agent.unit(os.urandom(60_000))))
    body[-40] ^= 1
    return agent.request("/v1/units", bytes(body))


def _text(data):
    return base64.b64encode(data).decode()


def _creation(length, upload=None, digest=None):
    """Headers of an upload, of random bytes unless said."""
    upload, digest = upload or os.urandom(16), digest or os.urandom(32)
    return {
        "Tus-Resumable": "1.0.0", "Upload-Length": str(length),
        "Upload-Metadata": f"upload {_text(upload)},sha256 {_text(digest)},form {_text(b'sealed')}",
    }  # fmt: skip


def creations(agent):
    """Announces one upload after the other, each of many bytes, and sends none."""
    return agent.request("/v1/uploads", b"", **_creation(1 << 24))


def sizes(agent):
    """Uploads that are empty, or without end, or of lengths that are no numbers."""
    length = random.choice(["0", "1", str(1 << 62), str(1 << 70), "-1", "1e9", "x" * 2000])
    return agent.request("/v1/uploads", b"", **_creation(length))


def empty_pieces():
    """One upload, and then pieces without a byte, on and on. To be given to `sends`."""
    upload, digest = b"one for all time", bytes(32)
    path, said = path_of(upload_body_id(upload, digest)), _creation(1 << 24, upload, digest)
    piece = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0",
             "Content-Type": "application/offset+octet-stream"}  # fmt: skip
    turn = itertools.count()

    def make(agent):
        if next(turn) % 100 < 2:  # there may be two hops
            return agent.request("/v1/uploads", b"", **said)
        return agent.request(path, b"", method="PATCH", **piece)

    return make


def strangers_uploads(real):
    """Creations, pieces and ends without a proof, or with one that is none."""
    stranger = SigningKey.generate()
    own = issue_credential(bytes(16), stranger.public, "agent", stranger, now_ms())
    tus = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
    path, piece = path_of(os.urandom(32)), {**tus, "Upload-Offset": "0"}
    asked = []
    for method, where, headers, body in (
        ("POST", "/v1/uploads", _creation(1 << 40), b""), ("PATCH", path, piece, bytes(1000)),
        ("DELETE", path, tus, b""),
    ):  # fmt: skip
        covered = proven(where, headers, body)
        for card in (None, own, real):
            proof = card and prove(card, stranger, method, where, covered, now_ms())
            asked.append(request(where, {**headers, **(proof or {})}, body, method=method))
    said = {**piece, "authorization": "Upseal a.b.c", "upseal-proof": "a.b.c"}
    endless = request(path, said, length=10**15, method="PATCH")

    def work(flood):
        for each in ([endless], asked):
            one = Connection(flood.address)
            try:
                for data in each:
                    one.send(data)
                    flood.note(one.answer())
            finally:
                one.close()

    return work

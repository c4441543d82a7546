# SPDX-License-Identifier: Apache-2.0
"""tus over real sockets: each of its statuses, and what strangers and liars get."""

import asyncio
import base64
import errno
import hashlib
import os
import socket
import threading
import time
from email.utils import parsedate_to_datetime

import pytest
from fleet_uploads_support import (
    PIECE,
    TUS,
    eventually,
    hop,
    limits,
    ticket_of,
)
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from upseal.fleet.http import apps
from upseal.fleet.http.paths import UPLOADS
from upseal.fleet.http.problems import MEDIA_TYPE, Problem
from upseal.fleet.http.results import State
from upseal.fleet.uploads import tus
from upseal.fleet.uploads.shelf import Shelf
from upseal.fleet.uploads.words import Ticket, path_of

DATA = os.urandom(PIECE * 2 + 1000)
OCTETS = "application/offset+octet-stream"


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    with hop(tmp_path_factory.mktemp("shelf")) as found:
        yield found


@pytest.fixture
def sender(there):
    return there.sender()


def refused(response, name, status):
    """A refusal as everywhere, and as tus wants it."""
    assert response.headers["tus-resumable"] == "1.0.0"
    assert response.headers["upseal-problem"] == name
    problem = response.problem()
    assert (problem.name, response.status) == (name, status), problem
    if response.body:
        assert response.headers["content-type"] == MEDIA_TYPE
    return response


def b64(data):
    return base64.b64encode(data).decode()


class TestAsTusSays:
    @pytest.mark.parametrize("path", [UPLOADS, UPLOADS + "/" + "00" * 32])
    def test_options_are_for_everybody(self, there, sender, path):
        response = sender.bare("OPTIONS", path)
        assert response.status == 204 and not response.body
        said = response.headers
        assert said["tus-version"] == said["tus-resumable"] == "1.0.0"
        assert said["tus-extension"] == "creation,checksum,expiration,termination"
        assert said["tus-checksum-algorithm"] == "sha256,sha1,md5"
        assert said["tus-max-size"] == str(1 << 28)
        assert said["upseal-max-piece"] == str(PIECE)

    def test_from_creation_to_the_end(self, there, sender):
        ticket = ticket_of(DATA, "clear")
        created = sender.create(ticket)
        assert created.status == 201 and not created.body
        assert created.headers["location"] == path_of(ticket.body_id)
        assert created.headers["tus-resumable"] == "1.0.0"
        until = parsedate_to_datetime(created.headers["upload-expires"]).timestamp()
        held = there.shelf.find(sender.hop_id, ticket.body_id)
        assert until == int(held.touched + 3600) and held.role == "agent"
        assert there.result(sender, ticket) is None
        for at in (0, PIECE, 2 * PIECE):
            where = sender.head(ticket)
            assert where.status == 200 and not where.body
            said = where.headers
            assert (said["upload-offset"], said["upload-length"]) == (str(at), str(len(DATA)))
            assert Ticket.parse(said["upload-length"], said["upload-metadata"]) == ticket
            assert said["cache-control"] == "no-store" and "upload-expires" in said
            piece = DATA[at : at + PIECE]
            taken = sender.patch(ticket, at, piece)
            assert taken.status == 204 and not taken.body
            assert taken.headers["upload-offset"] == str(at + len(piece))
        assert there.result(sender, ticket).state is State.PENDING
        there.settled(sender, ticket)
        assert held.path.read_bytes() == DATA
        eventually(lambda: held in there.whole)
        assert there.result(sender, ticket).state is State.PENDING
        where = sender.head(ticket).headers
        assert where["upload-offset"] == where["upload-length"] == str(len(DATA))
        assert "upload-expires" not in where
        assert sender.create(ticket).status == 201, "once more changes nothing"
        assert sender.offset(ticket) == len(DATA)
        assert sender.patch(ticket, len(DATA), b"").status == 204, (
            "nothing more, and none is missing"
        )
        refused(sender.patch(ticket, len(DATA), b"x"), "offset", 409)
        assert there.whole.count(held) == 1
        assert sender.delete(ticket).status == 204
        assert not held.path.exists()
        refused(sender.delete(ticket), "not-found", 404)
        assert there.result(sender, ticket) is None

    def test_a_relay_may_too(self, there):
        sender = there.sender("relay")
        ticket = ticket_of(b"x")
        sender.upload(ticket, b"x")
        assert there.shelf.find(sender.hop_id, ticket.body_id).role == "relay"

    def test_zero_bytes(self, there, sender):
        ticket = ticket_of(b"")
        assert sender.create(ticket).status == sender.create(ticket).status == 201
        there.settled(sender, ticket)
        held = there.shelf.find(sender.hop_id, ticket.body_id)
        eventually(lambda: held in there.whole)
        assert sender.create(ticket).status == 201
        assert there.whole.count(held) == 1
        assert sender.offset(ticket) == 0

    def test_other_keys_of_metadata(self, sender):
        ticket = ticket_of(b"abc")
        said = "filename Li4vLi4veA==,empty," + ticket.metadata()
        assert sender.create(ticket, **{"upload-metadata": said}).status == 201
        assert sender.offset(ticket) == 0

    @pytest.mark.parametrize("method", ["PATCH", "HEAD", "DELETE"])
    def test_a_method_that_is_overridden(self, sender, method):
        ticket = ticket_of(DATA[:5])
        sender.create(ticket)
        path, said = path_of(ticket.body_id), {**TUS, "x-http-method-override": method.lower()}
        body = DATA[:5] if method == "PATCH" else b""
        if method == "PATCH":
            said |= {"upload-offset": "0", "content-type": OCTETS}
        proof = sender.proof(method, path, body, said)
        response = sender.client.request("POST", path, body, {**said, **proof})
        assert response.status == (200 if method == "HEAD" else 204)
        if method == "DELETE":
            refused(sender.head(ticket), "not-found", 404)
        else:
            assert response.headers["upload-offset"] == str(len(body))
        refused(sender.bare("POST", path, body, {**said, **sender.proof("POST", path, body, said)}),
                "unauthenticated", 401)  # fmt: skip

    def test_a_body_that_comes_in_chunks(self, there, sender):
        ticket = ticket_of(DATA[:10])
        sender.create(ticket)
        path = path_of(ticket.body_id)
        said = {**TUS, "upload-offset": "0", "content-type": OCTETS}
        said |= sender.proof("PATCH", path, DATA[:10], said)
        with raw(there, "PATCH", path, {**said, "transfer-encoding": "chunked"}) as link:
            for at in range(0, 10, 2):
                link.sendall(b"2\r\n" + DATA[at : at + 2] + b"\r\n")
            link.sendall(b"0\r\n\r\n")
            assert link.recv(1000).startswith(b"HTTP/1.1 204")

    def test_a_body_that_comes_in_odd_pieces(self, there, sender):
        """Its proof shows whether it was put together right."""
        data = DATA[:PIECE]
        ticket = ticket_of(data)
        sender.create(ticket)
        path = path_of(ticket.body_id)
        said = {**TUS, "upload-offset": "0", "content-type": OCTETS}
        said |= sender.proof("PATCH", path, data, said)
        with raw(there, "PATCH", path, {**said, "transfer-encoding": "chunked"}) as link:
            at = 0
            for size in (1, 20_000, 2, 3, 16_384, 16_383, 1, 5, 1 << 20):
                piece = data[at : at + size]
                link.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
                at += len(piece)
            link.sendall(b"0\r\n\r\n")
            assert link.recv(1000).startswith(b"HTTP/1.1 204")
        there.settled(sender, ticket)
        held = there.shelf.find(sender.hop_id, ticket.body_id)
        assert held.path.read_bytes() == data


class TestRefusals:
    @pytest.fixture
    def ticket(self, sender):
        ticket = ticket_of(DATA)
        assert sender.create(ticket).status == 201
        assert sender.patch(ticket, 0, DATA[:100]).status == 204
        return ticket

    @pytest.mark.parametrize("offset", [0, 99, 101, 10**9])
    def test_409_another_offset(self, sender, ticket, offset):
        refused(sender.patch(ticket, offset, b"x"), "offset", 409)
        assert sender.offset(ticket) == 100

    @pytest.mark.parametrize("version", [None, "", "0.2.2", "1.0.1", "1.0.0, 1.0.0"])
    @pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH", "DELETE"])
    def test_412_another_version(self, sender, ticket, method, version):
        path = UPLOADS if method == "POST" else path_of(ticket.body_id)
        said = {} if version is None else {"tus-resumable": version}
        response = sender.link.request(method, path, b"", said)
        assert refused(response, "tus-version", 412).headers["tus-version"] == "1.0.0"

    def test_413_a_body_that_is_too_large(self, sender):
        most = 1 << 28
        ticket = Ticket(os.urandom(16), bytes(32), "sealed", most + 1)
        response = refused(sender.create(ticket), "too-large", 413)
        assert response.headers["tus-max-size"] == str(most)

    def test_413_a_piece_that_is_too_large(self, sender, ticket):
        response = refused(sender.patch(ticket, 100, bytes(PIECE + 1)), "too-large", 413)
        assert response.headers["upseal-max-piece"] == str(PIECE)
        assert sender.offset(ticket) == 100

    def test_413_a_creation_with_a_body(self, sender):
        refused(sender.create(ticket_of(b"x"), b"x"), "too-large", 413)

    @pytest.mark.parametrize("kind", [None, "", "application/octet-stream", "text/plain"])
    def test_415_another_type(self, sender, ticket, kind):
        said = {"upload-offset": "100", **({} if kind is None else {"content-type": kind})}
        response = sender.request("PATCH", path_of(ticket.body_id), b"x", said)
        refused(response, "media-type", 415)

    @pytest.mark.parametrize("name", tus.ALGORITHMS)
    def test_460_a_checksum_that_does_not_fit(self, sender, ticket, name):
        piece = DATA[100:200]
        wrong = hashlib.new(name, piece + b"x").digest()
        response = sender.patch(ticket, 100, piece, **{"upload-checksum": f"{name} {b64(wrong)}"})
        refused(response, "checksum", 460)
        assert sender.offset(ticket) == 100
        right = hashlib.new(name, piece).digest()
        response = sender.patch(ticket, 100, piece, **{"upload-checksum": f"{name} {b64(right)}"})
        assert response.status == 204 and sender.offset(ticket) == 200

    @pytest.mark.parametrize("text", ["", "crc32 AAAA", "sha512 AAAA", "sha1", "sha1 !", "SHA1 AA"])
    def test_400_a_checksum_that_is_none(self, sender, ticket, text):
        response = sender.patch(ticket, 100, b"x", **{"upload-checksum": text})
        assert response.status in (400, 460)
        assert text == "sha1" or response.status == 400
        assert sender.offset(ticket) == 100

    @pytest.mark.parametrize("offset", [None, "", "-1", "1e2", "0100", "100.0", "9" * 30])
    def test_400_an_offset_that_is_none(self, sender, ticket, offset):
        said = {"content-type": OCTETS, **({} if offset is None else {"upload-offset": offset})}
        refused(sender.request("PATCH", path_of(ticket.body_id), b"x", said), "malformed", 400)

    def test_400_more_than_was_declared(self, sender):
        ticket = ticket_of(b"abc")
        sender.create(ticket)
        refused(sender.patch(ticket, 0, b"abcd"), "malformed", 400)
        assert sender.offset(ticket) == 0

    @pytest.mark.parametrize(
        "said",
        [{"upload-length": "x"}, {"upload-metadata": ""}, {"upload-metadata": "upload AAAA"},
         {"upload-defer-length": "1"}, {"upload-concat": "partial"}],
    )  # fmt: skip
    def test_400_a_creation_that_says_too_little(self, there, sender, said):
        before = there.shelf.usage()
        refused(sender.create(ticket_of(DATA), **said), "malformed", 400)
        assert there.shelf.usage() == before

    def test_404_of_another_hop(self, there, ticket):
        other = there.sender()
        refused(other.head(ticket), "not-found", 404)
        refused(other.patch(ticket, 100, b"x"), "not-found", 404)
        refused(other.delete(ticket), "not-found", 404)
        assert there.result(other, ticket) is None

    @pytest.mark.parametrize("body", ["00" * 32, "00" * 31, "AA" * 32, "..%2f..%2fetc", "x"])
    def test_404_unknown(self, sender, body):
        for method in ("HEAD", "DELETE"):
            refused(sender.request(method, f"{UPLOADS}/{body}"), "not-found", 404)
        said = {"upload-offset": "0", "content-type": OCTETS}
        refused(sender.request("PATCH", f"{UPLOADS}/{body}", b"", said), "not-found", 404)

    @pytest.mark.parametrize("method", ["GET", "PUT", "TRACE", "POST"])
    def test_405(self, sender, method):
        response = refused(
            sender.request(method, UPLOADS + "/" + "00" * 32), "method-not-allowed", 405
        )
        assert "PATCH" in response.headers["allow"]
        if method != "POST":
            refused(sender.request(method, UPLOADS), "method-not-allowed", 405)

    def test_409_another_size_under_the_same_id(self, sender, ticket):
        wrong = Ticket(ticket.upload, ticket.body_sha256, "sealed", 7)
        refused(sender.create(wrong), "conflict", 409)

    def test_422_unwelcome(self, tmp_path):
        def unwelcome(ticket):
            return Problem("clear-not-accepted") if ticket.form == "clear" else None

        with hop(tmp_path, unwelcome=unwelcome) as there:
            sender = there.sender()
            refused(sender.create(ticket_of(DATA, "clear")), "clear-not-accepted", 422)
            assert sender.create(ticket_of(DATA)).status == 201
            assert there.shelf.usage().bodies == 1


def test_the_name_in_a_header_counts_where_there_is_no_body():
    def named(headers, body=b""):
        return Problem.from_response(404, headers, body).name

    assert named({"upseal-problem": "not-found"}) == "not-found"
    for odd in ("x", "", "unknown", "not-found\x00", "https://upseal.invalid/problems/full"):
        assert named({"upseal-problem": odd}) == "unknown"
    assert named({"upseal-problem": "full"}, b"<html>") == "unknown"
    said = {"upseal-problem": "full", "content-type": MEDIA_TYPE}
    assert named(said, Problem("busy").encode()) == "busy"


@given(st.lists(st.integers(0, 40_000), max_size=12))
def test_a_body_is_what_came(sizes):
    pieces = [DATA[size : 2 * size] for size in sizes]
    messages = [{"type": "http.request", "body": p, "more_body": True} for p in pieces]
    messages.append({"type": "http.request", "body": b"end"})

    async def receive():
        return messages.pop(0)

    request = Request({"type": "http", "headers": []}, receive)
    assert asyncio.run(apps.read_body(request, 1 << 20)) == b"".join([*pieces, b"end"])


def test_a_body_in_crumbs_costs_what_it_weighs():
    parts = []
    for _ in range(20_000):
        apps._keep(parts, b"ab")
    assert len(parts) == 3 and b"".join(parts) == b"ab" * 20_000


# -- who may ---------------------------------------------------------------------------


class raw:
    """A socket with the head of a request sent on it."""

    def __init__(self, there, method, path, headers):
        self.at, lines = there.address, [f"{method} {path} HTTP/1.1", "host: x"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.head = "\r\n".join([*lines, "", ""]).encode("latin-1")

    def __enter__(self):
        self.link = socket.create_connection((self.at.host, self.at.port), timeout=20)
        self.link.sendall(self.head)
        return self.link

    def __exit__(self, *_):
        self.link.close()


class TestWhoMay:
    def test_strangers_are_refused_before_their_body(self, there, sender):
        ticket = ticket_of(DATA)
        sender.create(ticket)
        path = path_of(ticket.body_id)
        said = {**TUS, "upload-offset": "0", "content-type": OCTETS, "content-length": "1000"}
        proof = sender.proof("PATCH", path, bytes(1000), said)
        for missing in proof:
            some = {name: value for name, value in proof.items() if name != missing}
            with raw(there, "PATCH", path, {**said, **some}) as link:  # and no byte of the body
                assert link.recv(1000).startswith(b"HTTP/1.1 401")
        for method in ("HEAD", "DELETE"):
            refused(sender.bare(method, path, headers=TUS), "unauthenticated", 401)
        refused(sender.bare("POST", UPLOADS, headers=TUS), "unauthenticated", 401)
        assert sender.offset(ticket) == 0

    def test_a_declared_length_is_refused_before_the_body(self, there, sender):
        said = {**TUS, "upload-offset": "0", "content-type": OCTETS,
                "content-length": str(PIECE + 1), "authorization": "Upseal x",
                "upseal-proof": "x"}  # fmt: skip
        with raw(there, "PATCH", UPLOADS + "/" + "00" * 32, said) as link:
            assert link.recv(1000).startswith(b"HTTP/1.1 413")

    def test_a_proof_is_for_these_bytes(self, there, sender):
        ticket = ticket_of(DATA)
        sender.create(ticket)
        path = path_of(ticket.body_id)
        said = {**TUS, "upload-offset": "0", "content-type": OCTETS}
        proof = sender.proof("PATCH", path, DATA[:100], said)
        for body in (DATA[:99], DATA[:99] + b"x", b""):
            refused(sender.bare("PATCH", path, body, {**said, **proof}), "unauthenticated", 401)
        held = there.shelf.find(sender.hop_id, ticket.body_id)
        assert held.path.read_bytes() == b""
        assert sender.bare("PATCH", path, DATA[:100], {**said, **proof}).status == 204

    def test_an_overheard_piece_is_for_its_offset(self, sender):
        """Its proof is still good: for the same request again, which changes nothing."""
        ticket = ticket_of(DATA)
        sender.create(ticket)
        path = path_of(ticket.body_id)
        said = {**TUS, "upload-offset": "0", "content-type": OCTETS}
        proof = sender.proof("PATCH", path, DATA[:100], said)
        assert sender.bare("PATCH", path, DATA[:100], {**said, **proof}).status == 204
        refused(sender.bare("PATCH", path, DATA[:100], {**said, **proof}), "offset", 409)
        moved = {**said, **proof, "upload-offset": "100"}
        refused(sender.bare("PATCH", path, DATA[:100], moved), "unauthenticated", 401)
        ended = {**TUS, **proof, "x-http-method-override": "DELETE"}
        refused(sender.bare("POST", path, DATA[:100], ended), "too-large", 413)
        refused(sender.bare("POST", path, b"", ended), "unauthenticated", 401)
        assert sender.offset(ticket) == 100

    def test_an_overheard_creation_is_for_its_body(self, there, sender):
        """Else a stranger could fill the sender's quota in its name."""
        ticket, other = ticket_of(b"abc"), ticket_of(b"def")
        said = {**TUS, "upload-length": "3", "upload-metadata": ticket.metadata()}
        proof = sender.proof("POST", UPLOADS, b"", said)
        before = there.shelf.usage()
        for change in (
            {"upload-length": "100000000"},
            {"upload-metadata": other.metadata()},
            {"upload-offset": "0"},
        ):
            response = sender.bare("POST", UPLOADS, b"", {**said, **proof, **change})
            refused(response, "unauthenticated", 401)
        assert there.shelf.usage() == before
        assert sender.bare("POST", UPLOADS, b"", {**said, **proof}).status == 201

    def test_a_header_that_is_there_twice(self, there, sender):
        said = {**TUS, "upload-length": "3", "upload-metadata": ticket_of(b"abc").metadata()}
        said |= sender.proof("POST", UPLOADS, b"", said)
        for extra in (b"upload-length: 100000000\r\n", b"Upload-Metadata: x\r\n"):
            for first in (True, False):
                request = raw(there, "POST", UPLOADS, {**said, "content-length": "0"})
                at = request.head.index(b"\r\n") + 2 if first else len(request.head) - 2
                request.head = request.head[:at] + extra + request.head[at:]
                with request as link:
                    assert link.recv(1000).startswith(b"HTTP/1.1 400")

    def test_revoked(self, tmp_path):
        from fleet_support import Site

        site = Site()
        with hop(tmp_path, site=site) as there:
            sender = there.sender()
            ticket = ticket_of(DATA)
            assert sender.create(ticket).status == 201
            site.change(revoked_agents=(sender.hop_id,))
            refused(sender.patch(ticket, 0, DATA[:10]), "revoked", 403)
            refused(sender.head(ticket), "revoked", 403)
            assert there.shelf.find(sender.hop_id, ticket.body_id).offset == 0


# -- room, and time --------------------------------------------------------------------


class TestRoom:
    def test_quotas(self, tmp_path):
        bounds = limits(max_bytes=1000, hop_share=0.6, open_per_hop=2)
        with hop(tmp_path, shelf_limits=bounds) as there:
            sender, other = there.sender(), there.sender()
            for _ in range(2):
                assert sender.create(ticket_of(bytes(200))).status == 201
            busy = refused(sender.create(ticket_of(bytes(100))), "busy", 429)
            assert int(busy.headers["retry-after"]) > 0
            assert other.create(ticket_of(bytes(500))).status == 201
            refused(other.create(ticket_of(bytes(101))), "busy", 429)
            full = refused(there.sender().create(ticket_of(bytes(101))), "full", 503)
            assert int(full.headers["retry-after"]) > 0
            assert there.sender().bare("OPTIONS", UPLOADS).headers["tus-max-size"] == "1000"
            refused(sender.create(ticket_of(bytes(601))), "too-large", 413)

    def test_what_has_expired_makes_room(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tus, "_EXPIRE_EVERY", 0)
        with hop(tmp_path, shelf_limits=limits(open_per_hop=1)) as there:
            sender = there.sender()
            old, new = ticket_of(DATA), ticket_of(DATA)
            sender.create(old)
            refused(sender.create(new), "busy", 429)
            there.shelf.find(sender.hop_id, old.body_id).touched -= 3700
            assert sender.create(new).status == 201
            refused(sender.head(old), "not-found", 404)
            assert sender.create(old).status == 429

    def test_a_flood_does_not_look_for_them_each_time(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tus, "_EXPIRE_EVERY", 3600)
        with hop(tmp_path, shelf_limits=limits(open_per_hop=1)) as there:
            sender, looked, real = there.sender(), [], there.shelf.expire
            monkeypatch.setattr(there.shelf, "expire", lambda: looked.append(1) or real())
            sender.create(ticket_of(DATA))
            for _ in range(5):
                refused(sender.create(ticket_of(DATA)), "busy", 429)
            assert len(looked) == 1

    def test_a_full_disk(self, tmp_path, monkeypatch):
        with hop(tmp_path) as there:
            sender, ticket = there.sender(), ticket_of(DATA)
            sender.create(ticket)

            def no_space(*_):
                raise OSError(errno.ENOSPC, "No space left on device")

            with monkeypatch.context() as patched:
                patched.setattr(os, "pwrite", no_space)
                refused(sender.patch(ticket, 0, DATA[:100]), "full", 503)
                assert sender.offset(ticket) == 0
            assert sender.patch(ticket, 0, DATA[:100]).status == 204

    def test_a_disk_that_fails_at_the_end(self, tmp_path, monkeypatch):
        with hop(tmp_path) as there:
            sender, ticket = there.sender(), ticket_of(b"abc")
            real = os.fsync

            def failing(file):
                if os.fstat(file).st_size == 3:
                    raise OSError(errno.EIO, "Input/output error")
                real(file)

            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", failing)
                sender.upload(ticket, b"abc")
                eventually(lambda: there.shelf.find(sender.hop_id, ticket.body_id) is None)
            assert there.result(sender, ticket) is None, "unknown: to be sent again"
            sender.upload(ticket, b"abc")
            there.settled(sender, ticket)
            assert len(there.shelf.whole()) == 1

    def test_no_more_in_memory_than_the_budget(self, tmp_path):
        with hop(tmp_path, budget=1000) as there:
            sender, ticket = there.sender(), ticket_of(DATA)
            sender.create(ticket)
            refused(sender.patch(ticket, 0, DATA[:2000]), "full", 503)
            assert sender.patch(ticket, 0, DATA[:900]).status == 204
            assert sender.patch(ticket, 900, DATA[900:1800]).status == 204

    def test_the_disk_holds_nobody_else_up(self, tmp_path, monkeypatch):
        begun, go = threading.Event(), threading.Event()
        real = os.pwrite

        def slow(*args):
            begun.set()
            assert go.wait(20)
            return real(*args)

        with hop(tmp_path) as there:
            sender, other, ticket = there.sender(), there.sender(), ticket_of(DATA)
            sender.create(ticket)
            monkeypatch.setattr(os, "pwrite", slow)
            answers = []
            thread = threading.Thread(
                target=lambda: answers.append(sender.patch(ticket, 0, DATA[:100]))
            )
            thread.start()
            assert begun.wait(20)
            assert other.bare("GET", "/healthz").status == 200
            assert other.create(ticket_of(DATA)).status == 201
            twin = there.sender(same=sender)
            refused(twin.patch(ticket, 0, DATA[:100]), "busy", 423)
            refused(twin.delete(ticket), "busy", 423)
            assert twin.offset(ticket) == 0
            go.set()
            thread.join()
            assert answers[0].status == 204

    def test_one_of_two_requests_at_once(self, there, sender):
        twin = there.sender(same=sender)
        for _ in range(10):
            ticket = ticket_of(DATA[:5000])
            sender.create(ticket)
            gate, came = threading.Barrier(2), []

            def send(who, ticket=ticket, gate=gate, came=came):
                gate.wait()
                came.append(who.patch(ticket, 0, DATA[:5000]).status)

            threads = [threading.Thread(target=send, args=(who,)) for who in (sender, twin)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(came)[0] == 204 and sorted(came)[1] in (409, 423)
            there.settled(sender, ticket)
            held = there.shelf.find(sender.hop_id, ticket.body_id)
            assert held.path.read_bytes() == DATA[:5000]

    def test_a_cut_request_leaves_nothing(self, there, sender):
        ticket = ticket_of(DATA)
        sender.create(ticket)
        path = path_of(ticket.body_id)
        said = {**TUS, "upload-offset": "0", "content-type": OCTETS, "content-length": "1000"}
        said |= sender.proof("PATCH", path, DATA[:1000], said)
        with raw(there, "PATCH", path, said) as link:
            link.sendall(DATA[:999])
        assert sender.offset(ticket) == 0
        assert sender.patch(ticket, 0, DATA[:1000]).status == 204


class TestRate:
    def test_an_answer_is_held_back(self, tmp_path, monkeypatch):
        held_back = []

        async def patience(request, future, seconds):
            held_back.append(seconds)
            name = "upseal_relay_http_body_bytes"
            assert there.metrics.registry.get_sample_value(name) == 0, "without its piece"
            return False

        monkeypatch.setattr(tus, "patience", patience)
        with hop(tmp_path, max_rate=1000) as there:
            sender, ticket = there.sender(), ticket_of(DATA)
            sender.create(ticket)
            assert sender.patch(ticket, 0, DATA[:10_000]).status == 204
            assert 9 < held_back[-1] <= 10
            assert sender.patch(ticket, 10_000, DATA[10_000:40_000]).status == 204
            assert held_back[-1] == 25, "no client waits for ever"
            busy = refused(sender.patch(ticket, 40_000, DATA[40_000:]), "busy", 429)
            assert 25 < int(busy.headers["retry-after"]) <= 41
            assert sender.offset(ticket) == 40_000

    def test_it_is_really_held(self, tmp_path):
        with hop(tmp_path, max_rate=20_000) as there:
            sender, ticket = there.sender(), ticket_of(DATA)
            sender.create(ticket)
            begun = time.monotonic()
            assert sender.patch(ticket, 0, DATA[:5000]).status == 204
            assert time.monotonic() - begun > 0.2, "a quarter of a second's bytes"

    def test_without_a_rate_nothing_is(self, tmp_path, monkeypatch):
        async def patience(*_):
            raise ClientDisconnect

        monkeypatch.setattr(tus, "patience", patience)
        with hop(tmp_path) as there:
            sender, ticket = there.sender(), ticket_of(DATA)
            sender.upload(ticket, DATA)


# -- behind the answer -----------------------------------------------------------------


class TestChecking:
    def test_other_bytes_than_declared(self, there, sender):
        ticket = ticket_of(DATA[:100])
        sender.create(ticket)
        assert sender.patch(ticket, 0, DATA[100:200]).status == 204
        there.settled(sender, ticket)
        result = eventually(lambda: there.result(sender, ticket))
        assert result.state is State.PROBLEM and result.problem.name == "malformed"
        refused(sender.head(ticket), "not-found", 404)
        assert there.result(there.sender(), ticket) is None, "of this hop alone"
        assert sender.create(ticket).status == 201
        assert sender.delete(ticket).status == 204
        assert there.result(sender, ticket) is None, "it was begun again"
        assert sender.create(ticket).status == 201
        assert sender.patch(ticket, 0, DATA[:100]).status == 204
        there.settled(sender, ticket)
        assert there.result(sender, ticket).state is State.PENDING

    def test_it_is_remembered_for_a_while(self, tmp_path, monkeypatch):
        from upseal.fleet.uploads import checking

        monkeypatch.setattr(checking, "_MOST_REMEMBERED", 2)
        with hop(tmp_path) as there:
            sender, made = there.sender(), [ticket_of(bytes([n])) for n in range(3)]
            for ticket in made:
                sender.upload(ticket, b"x")
                there.settled(sender, ticket)
                eventually(lambda ticket=ticket: there.result(sender, ticket))
            assert there.result(sender, made[0]) is None
            assert there.result(sender, made[2]).problem.name == "malformed"
            now = time.monotonic()
            monkeypatch.setattr(time, "monotonic", lambda: now + 3601)
            assert there.result(sender, made[2]) is None
            monkeypatch.undo()

    def test_an_owner_that_fails_does_not_stop_it(self, tmp_path):
        seen = []

        def on_whole(held):
            seen.append(held)
            raise RuntimeError("of the owner")

        with hop(tmp_path, on_whole=on_whole) as there:
            sender = there.sender()
            for number in range(5):
                sender.upload(ticket_of(bytes([number])), bytes([number]))
            eventually(lambda: len(seen) == 5)

    def test_each_is_told_once(self, tmp_path, monkeypatch):
        begun, go, real = threading.Event(), threading.Event(), os.fsync

        def slow(file):
            begun.set()
            assert go.wait(20)
            real(file)

        with hop(tmp_path) as there:
            sender, ticket = there.sender(), ticket_of(b"abc")
            sender.create(ticket)
            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", slow)
                sender.patch(ticket, 0, b"abc")
                assert begun.wait(20)
                assert there.tus.resume() == 1
                go.set()
                there.settled(sender, ticket)
            eventually(lambda: not there.tus._checking._known)
            assert len(there.whole) == 1 and not there.tus.resume()

    def test_what_was_left_is_verified_at_the_start(self, tmp_path):
        good, bad = ticket_of(DATA), ticket_of(DATA)
        with Shelf(tmp_path, limits()) as shelf:
            with hop(tmp_path / "other") as there:
                sender = there.sender()
            for ticket, data in ((good, DATA), (bad, DATA[::-1])):
                shelf.append(shelf.create(sender.hop_id, "agent", ticket), 0, data)
        with hop(tmp_path) as there:
            assert there.result(sender, good).state is State.PENDING
            assert there.tus.resume() == 2
            there.settled(sender, good)
            there.settled(sender, bad)
            assert eventually(lambda: there.result(sender, bad)).problem.name == "malformed"
            eventually(lambda: there.whole == there.shelf.whole())
            assert there.tus.resume() == 0

    def test_known_bodies_are_not_sent_again(self, tmp_path):
        ticket, asked = ticket_of(DATA), []

        def known(hop, body_id):
            asked.append((hop.hop_id, body_id))
            return body_id == ticket.body_id

        with hop(tmp_path, known=known) as there:
            sender = there.sender()
            assert sender.create(ticket).status == 201
            assert there.shelf.usage().bodies == 0
            where = sender.head(ticket)
            assert where.status == 200
            assert where.headers["upload-offset"] == where.headers["upload-length"]
            refused(sender.patch(ticket, 0, DATA[:10]), "offset", 409)
            refused(sender.delete(ticket), "not-found", 404)
            assert set(asked) == {(sender.hop_id, ticket.body_id)}
            assert sender.create(ticket_of(DATA)).status == 201
            assert there.shelf.usage().bodies == 1

    def test_when_it_stops(self, tmp_path):
        with hop(tmp_path) as there:
            sender, ticket = there.sender(), ticket_of(DATA)
            sender.create(ticket)
            there.shelf.close()
            refused(sender.patch(ticket, 0, DATA[:10]), "stopping", 503)
            refused(sender.create(ticket_of(DATA)), "stopping", 503)
            there.pool.shutdown()
            refused(sender.delete(ticket), "stopping", 503)
            refused(sender.create(ticket_of(DATA)), "stopping", 503)

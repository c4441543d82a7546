# SPDX-License-Identifier: Apache-2.0
"""Checks of the fleet that no other test would miss (scripts/mutations)."""

import asyncio
import hashlib
import json
import os
import stat
import threading
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from fleet_agent_support import capabilities
from fleet_support import Site, now_ms
from starlette.requests import Request

from upseal import OpenError, PrivateKey
from upseal.fleet import jws
from upseal.fleet.agent.deliveries import Answers, Heard
from upseal.fleet.agent.flights import Flight
from upseal.fleet.agent.settings import SpoolLimits
from upseal.fleet.agent.spool import Spool, spool_context
from upseal.fleet.agent.tally import Alarms, Tally
from upseal.fleet.capabilities import verified_hops
from upseal.fleet.encoding import b64url, dump_json
from upseal.fleet.files import make_private_directory, write_private
from upseal.fleet.hops import HopCheck, HopRefused, prove
from upseal.fleet.http.apps import read_body
from upseal.fleet.http.problems import Problem
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Certificate, Level, Parent, Reason, Seal, decide
from upseal.fleet.readiness import INFO, BadChallenge, answer_challenge
from upseal.fleet.relay.books import Books
from upseal.fleet.relay.repackage import Prepared, Upload
from upseal.fleet.server.uploads.settling import _fits
from upseal.fleet.server.uploads.unsealing import Unsealed
from upseal.fleet.statements import BadReceipt, Receipt, Status, open_receipt
from upseal.fleet.trust import Trust, TrustError
from upseal.fleet.uploads.shelf import Shelf, ShelfLimits
from upseal.fleet.uploads.words import NAME_MAX, Announcement, Ticket


def test_a_trust_file_with_a_manifest_of_a_stranger_is_damaged(tmp_path):
    """Its signature is right, by the key that it brings along: that key is nobody's here."""
    site, path = Site(), tmp_path / "trust.json"
    site.enable()
    site.trust(path)
    said = json.loads(path.read_text())
    stranger = SigningKey.generate()
    claims = jws.unverified(said["newest"]["token"])
    said["newest"]["token"] = jws.sign(claims, stranger, jws.MANIFEST, include_key=True)
    path.write_text(json.dumps(said))
    with pytest.raises(TrustError, match="another one"):
        Trust.load(path)


def test_what_a_spool_hides_is_shown_for_the_same_thing_alone(tmp_path):
    spool = Spool(
        tmp_path / "spool.db", PrivateKey.generate(), spool_context(b"d" * 16, b"a" * 16),
        SpoolLimits(min_free=0), lambda lost: b"{}",
    )  # fmt: skip
    hidden = spool.hide(b"a secret", b"upload 1")
    assert spool.show(hidden, b"upload 1") == b"a secret"
    for other in (b"upload 2", b"", b"upload 1 "):
        with pytest.raises(OpenError):
            spool.show(hidden, other)
    spool.close()


def test_folders_are_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        make_private_directory(tmp_path / "a/b")
    finally:
        os.umask(before)
    for path in (tmp_path / "a", tmp_path / "a/b"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_small_file_gets_its_name_when_it_is_whole(tmp_path, monkeypatch):
    """By nothing but a rename: until then the old bytes stand there."""
    path = tmp_path / "key.pem"
    write_private(path, b"old")

    def fail(*_):
        assert path.read_bytes() == b"old"
        raise OSError(5, "input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="input/output"):
        write_private(path, b"new, and longer")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["key.pem"]


@pytest.mark.parametrize(("server", "relay"), [("mlkem768-x25519", "x25519"),
                                               ("x25519", "mlkem768-x25519")])  # fmt: skip
def test_a_relay_of_another_strength_is_no_recipient(server, relay):
    ours, theirs = (PrivateKey.generate(kind).public_key for kind in (server, relay))
    decided = decide(Level.REQUIRED, Certificate((ours,)), Parent(recipient=theirs))
    assert decided == Seal((ours,), Reason.SEALED)


HOUR = 3_600_000


@pytest.fixture
def site():
    made = Site()
    made.enable()
    return made


def test_words_that_have_expired_count_for_nothing(site):
    relay, now = site.add_relay("relay"), now_ms()
    fresh = capabilities(relay, iat=now - 2 * HOUR, exp=now + HOUR)
    assert [hop.relay.name for hop in verified_hops(fresh, site.manifest, now)] == ["relay"]
    old = capabilities(relay, iat=now - 2 * HOUR, exp=now - HOUR)
    assert verified_hops(old, site.manifest, now) == ()


def test_words_about_another_count_for_nothing(site):
    relay, other = site.add_relay("relay"), site.add_relay("other")
    for subject in (other.relay.hex(), "server", None, ""):
        said = capabilities(relay, sub=subject)
        assert verified_hops(said, site.manifest, now_ms()) == ()


def test_what_does_not_say_that_it_is_a_receipt_is_none():
    """The same bytes otherwise, and signed by the same key."""
    key, deployment = SigningKey.generate(), b"d" * 16
    encoded = Receipt(deployment, b"s" * 32, Status.STORED).encode()
    keys = {key.public.key_id: key.public}

    def opened(said):
        return open_receipt(key.public.key_id + said + key.sign(said), keys, deployment)

    assert opened(encoded).status is Status.STORED
    for at in range(18):
        other = bytes([*encoded[:at], encoded[at] ^ 1, *encoded[at + 1 :]])
        with pytest.raises(BadReceipt):
            opened(other)


@pytest.mark.parametrize("name", [b"a/b", b"/", b"a\0b", b"..", b".", b"", b"x" * (NAME_MAX + 1)])
def test_a_name_that_is_none_of_a_file_is_announced_by_nobody(name):
    said = {"upload": b"u" * 16, "form": "clear", "size": 1, "body_size": 1,
            "body_sha256": b"h" * 32, "modified": 0}  # fmt: skip
    assert Announcement(**said, name=b"a.tar").name == b"a.tar"
    with pytest.raises(ValueError, match="name of a file"):
        Announcement(**said, name=name)


def test_what_rsa_wrapped_without_saying_what_it_is_is_no_challenge():
    key = PrivateKey.generate("rsa2048")
    public = key.parts[0].public_key()
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    assert len(answer_challenge(key, public.encrypt(INFO + bytes(32), oaep))) == 32
    with pytest.raises(BadChallenge):
        answer_challenge(key, public.encrypt(bytes(len(INFO)) + bytes(32), oaep))


@pytest.mark.parametrize("status", Status)
def test_an_agent_takes_out_what_the_server_holds_and_nothing_else(status):
    taken = []
    spool = SimpleNamespace(stored=lambda unit: bool(taken.append(unit)))
    flights = SimpleNamespace(done=lambda flight: None, again=lambda *_: None)
    answers = Answers(None, spool, flights, threading.Lock(), Tally(), Alarms(), os.urandom)
    unit = SimpleNamespace(id=1, reduced=False, remade=True)
    heard = Heard()
    answers._receipted(Flight(unit), status, heard)
    held = status in (Status.STORED, Status.DUPLICATE)
    assert (taken == [unit], heard.settled) == (held, held)


def test_a_proof_that_says_more_than_it_must_is_none(site):
    agent, digest, now = site.agent(), hashlib.sha256(b"body").digest(), now_ms()
    headers = prove(agent.credential, agent.hop, "POST", "/v1/units", b"body", now)
    check = HopCheck(lambda: site.manifest)
    assert check.check(headers, "POST", "/v1/units", digest, now).role == "agent"
    claims = jws.unverified(headers["Upseal-Proof"])
    for more in ({"host": "elsewhere"}, {"exp": now}):
        more_said = jws.sign(claims | more, agent.hop, jws.PROOF)
        with pytest.raises(HopRefused, match="unauthenticated"):
            check.check({**headers, "Upseal-Proof": more_said}, "POST", "/v1/units", digest, now)


def test_a_long_header_is_not_read_at_all():
    def token(kid):
        head = dump_json({"alg": "Ed25519", "typ": jws.PROOF, "kid": kid})
        return ".".join((b64url(head), b64url(b"{}"), "A" * 86))

    assert jws.header(token("x" * 500))["kid"] == "x" * 500
    with pytest.raises(jws.JwsError, match="not a token"):
        jws.header(token("x" * 1024))


@pytest.mark.parametrize(("data", "fits"), [(b"plain", True), (b"other", False), (b"long", False)])
def test_what_a_relay_sealed_is_the_very_file_that_was_announced(data, fits):
    """In clear to the relay: it can put in another one of the same length."""
    announced = SimpleNamespace(
        form="clear", size=5, body_sha256=hashlib.sha256(b"plain").digest(), body_id=b"b" * 32
    )
    held = SimpleNamespace(body_id=b"s" * 32)
    inside = Unsealed(len(data), hashlib.sha256(data).digest(), 1, b"k" * 8)
    assert _fits(announced, held, inside) is fits


@pytest.mark.parametrize("size", [4, 5, 6])
def test_a_file_has_the_size_that_was_announced_for_it(size):
    announced = SimpleNamespace(form="sealed", size=5, body_id=b"b" * 32)
    inside = Unsealed(size, bytes(32), 1, b"k" * 8)
    assert _fits(announced, SimpleNamespace(body_id=b"b" * 32), inside) is (size == 5)


def test_a_body_in_two_uploads_is_done_with_the_last_of_its_receipts():
    books, body, units = Books(), b"b" * 32, (b"unit 1", b"unit 2")
    first, second = (Upload(b"%d" % i, b"", {body: (units[i],)}, 1) for i in (0, 1))
    books.note(Prepared([first, second], {body: units}, []))
    assert books.delivered(first, {units[0]: b"receipt 1"}) == ([], [])
    (result,), again = books.delivered(second, {units[1]: b"receipt 2"})
    assert (result.receipts, again) == ((b"receipt 1", b"receipt 2"), [])


SHELF = ShelfLimits(
    max_bytes=1 << 20, max_size=1 << 20, open_per_hop=9, hop_share=1, expires=60, min_free=0
)


def test_a_whole_body_that_the_disk_has_shortened_is_none_any_more(tmp_path):
    data = os.urandom(5000)
    ticket = Ticket(b"u" * 16, hashlib.sha256(data).digest(), "sealed", len(data))
    with Shelf(tmp_path, SHELF) as shelf:
        held = shelf.create(b"h" * 16, "agent", ticket)
        shelf.append(held, 0, data)
        assert shelf.complete(held)
    with Shelf(tmp_path, SHELF) as shelf:
        (held,) = shelf.whole()
        os.truncate(held.path, len(data) - 1)
    with Shelf(tmp_path, SHELF) as shelf:
        assert shelf.find(b"h" * 16, ticket.body_id) is None
        assert shelf.whole() == []


@pytest.mark.parametrize("before", [1, 2500, 5000])
def test_bytes_of_an_earlier_process_are_verified_as_well(tmp_path, before):
    data = os.urandom(5000)
    ticket = Ticket(b"u" * 16, hashlib.sha256(data).digest(), "sealed", len(data))
    with Shelf(tmp_path, SHELF) as shelf:
        shelf.append(shelf.create(b"h" * 16, "agent", ticket), 0, data[:before])
    with Shelf(tmp_path, SHELF) as shelf:
        held = shelf.find(b"h" * 16, ticket.body_id)
        shelf.append(held, before, data[before:])
        assert shelf.complete(held)
        assert held.path.read_bytes() == data


@pytest.mark.parametrize("pieces", [[b"x" * 11], [b"x" * 10, b"y"], [b"x"] * 11])
def test_a_body_of_no_declared_length_stops_at_the_limit(pieces):
    def read(sent):
        messages = [{"type": "http.request", "body": one, "more_body": True} for one in sent]
        messages.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive():
            return messages.pop(0)

        return asyncio.run(read_body(Request({"type": "http", "headers": []}, receive), 10))

    assert read([b"x" * 5] * 2) == b"x" * 10
    with pytest.raises(Problem, match=r"too-large|at most 10 bytes"):
        read(pieces)

# SPDX-License-Identifier: Apache-2.0
"""A decrypting relay: opens what is its own, seals whole units to the server, and keeps no word."""

from __future__ import annotations

import dataclasses
import os

import pytest
from fleet_relay_support import (
    Status,
    eventually,
    make_folder,
    parent_of,
    relay_of,
    running,
    senders,
    settings_for,
)
from fleet_support import Site

from upseal import Opener, PrivateKey, Sealer, UnknownRecipient
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result, State
from upseal.fleet.relay.keys import RelayKeys
from upseal.fleet.relay.repackage import Repackager
from upseal.fleet.relay.rows import Claimed
from upseal.fleet.relay.settings import Repackage
from upseal.fleet.server.throttle import Throttle
from upseal.fleet.units import (
    Receipt,
    body_id,
    body_kind,
    bundle,
    fleet_context,
    parse_rows,
    signed_receipt,
    unit_rows,
)

HOP = b"h" * 16
MARK = b"plaintext that must not be found "


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    site = Site()
    site.enable()
    folder = tmp_path_factory.mktemp("house")
    with (
        parent_of(site) as parent,
        relay_of(site, folder, parent.url, decrypting=True) as relay,
    ):
        # The manifest that names the relay, and its key.
        eventually(lambda: relay.control.current().relay(relay.member.relay))
        yield site, parent, relay


@pytest.fixture
def site(house):
    return house[0]


@pytest.fixture
def parent(house):
    house[1].reset()
    return house[1]


@pytest.fixture
def relay(house):
    _, parent, relay = house
    parent.reset()
    yield relay
    parent.reset()
    eventually(lambda: relay.state.queue.stats().bodies == 0)


@pytest.fixture
def key(relay):
    """The relay's own, as agents seal to it."""
    return relay.member.private[0].public_key


def opened(site, body):
    """The units in a body that was sealed to the server."""
    return parse_rows(list(site.opener().open_batch(body, fleet_context(site.deployment))))


def test_many_clients_become_one_batch_to_the_server(site, parent, relay, key):
    with senders(site, relay.url, 8) as clients:
        parent.refuse = lambda bodies: Problem("full", retry_after=0)
        sent = []
        for i, client in enumerate(clients):
            units = [client.unit(MARK + b"%d.%d.%d" % (i, j, k)) for j in (1, 2) for k in (1,)]
            how = client.sealed(*units, to=[key]) if i % 2 else client.clear(*units)
            assert client.post(how)[0].state is State.PENDING
            sent.append((client, units, how))
        parent.reset()
        for client, units, body in sent:
            (result,) = client.done(body)
            statuses = client.receipts(result)
            assert list(statuses) == [unit.digest for unit in units], "all, in their order"
            assert set(statuses.values()) == {Status.STORED}
        assert len(parent.reports) == 16
        assert len(parent.bodies) <= 3, "many bodies in few"
        for body in parent.bodies:
            assert body_kind(body) == "sealed"
            assert MARK not in body
            with pytest.raises(UnknownRecipient):
                Opener([relay.member.private[0]]).open_batch(body)
    for path in relay.settings.directory.iterdir():
        if path.is_file():  # what came in clear stands there in clear, until it is passed on
            assert b"%d.1.1" % 1 not in path.read_bytes()


def test_nothing_that_came_sealed_is_ever_on_its_disk_in_clear(site, parent, relay, key):
    with senders(site, relay.url) as (client,):
        record = MARK + os.urandom(32)
        parent.judge = lambda body: Result.pending(body_id(body))
        body = client.sealed(client.unit(record), to=[key])
        client.post(body)
        eventually(lambda: parent.bodies)

        def everything():
            return b"".join(
                path.read_bytes() for path in relay.settings.directory.rglob("*") if path.is_file()
            )

        assert body[:64] in everything(), "it does lie there, sealed"
        assert record not in everything()
        parent.reset()
        client.done(body)
        assert record not in everything()
    assert parent.reports == [record]


def test_what_it_cannot_open_is_passed_on_as_it_is(site, parent, relay, key):
    with senders(site, relay.url) as (client,):
        closed = client.sealed(client.unit(b"to the server alone"))
        damaged = bytearray(client.sealed(client.unit(b"to both"), to=[key]))
        damaged[-1] ^= 1
        foreign = Sealer([key]).seal_batch(unit_rows([client.unit(b"x")]), b"another context")
        bodies = [closed, bytes(damaged), foreign]
        client.post(bundle(bodies))
        answers = client.done(*bodies)
        assert [answer.state for answer in answers] == [State.DONE, State.PROBLEM, State.PROBLEM]
        assert set(parent.bodies) == set(bodies)
        text = relay.meters.metrics.render().decode()
        assert 'bodies_unopened_total{why="unknown-recipient"} 1.0' in text
        assert 'bodies_unopened_total{why="damaged"} 2.0' in text


def test_malformed_units_are_a_problem_of_their_body_alone(site, parent, relay, key):
    context = fleet_context(site.deployment)
    with senders(site, relay.url) as (client,):
        good = client.unit(b"good")
        rows = unit_rows([client.unit(b"a", b"b")])
        bodies = [
            client.sealed(good, to=[key]),
            Sealer([key]).seal_batch(rows[:-1], context),  # cut off
            Sealer([key]).seal_batch([*rows, b"more"], context),
            Sealer([key]).seal_batch([b"no statement"], context),
            b"UPC\x01" + (1).to_bytes(4, "big") + (5).to_bytes(4, "big") + b"cut",
            b"UPC\x01" + bytes(4),
        ]
        client.post(bundle(bodies))
        answers = client.done(*bodies)
        assert [a.state for a in answers] == [State.DONE] + [State.PROBLEM] * 5
        assert {a.problem.name for a in answers[1:]} == {"malformed"}
        assert parent.reports == [b"good"]
        assert len(parent.bodies) == 1


def repackager(site, relay, **limits):
    """One like the relay's, with other limits."""
    return Repackager(relay.state.keys, lambda: site.manifest, Repackage(**limits), relay.meters)


def test_units_stay_whole_in_several_batches(site, relay):
    with senders(site, relay.url) as (client,):
        units = [client.unit(*(b"%d.%d" % (i, j) for j in range(i))) for i in range(1, 6)]
        units.append(client.unit(*(b"9.%d" % j for j in range(20))))  # larger than a batch
        body = client.clear(*units)
    prepared = repackager(site, relay, records=7).prepare([Claimed(body_id(body), body, 0, HOP)])
    found = [opened(site, upload.body) for upload in prepared.uploads]
    assert [[len(u.records) for u in units] for units in found] == [[1, 2], [3], [4], [5], [20]]
    assert prepared.units == {body_id(body): tuple(unit.digest for unit in units)}
    assert [unit for units in found for unit in units] == units
    for upload, units in zip(prepared.uploads, found, strict=True):
        assert upload.origins == {body_id(body): tuple(unit.digest for unit in units)}


def test_a_batch_keeps_within_its_bytes_even_sealed(site, relay):
    with senders(site, relay.url) as (client,):
        units = [client.unit(*(os.urandom(10) for _ in range(100))) for _ in range(20)]
        body = client.clear(*units)
    prepared = repackager(site, relay, bytes=20_000).prepare([Claimed(body_id(body), body, 0, HOP)])
    assert all(16_000 < len(upload.body) <= 20_000 for upload in prepared.uploads[:-1])
    assert sum(len(opened(site, upload.body)) for upload in prepared.uploads) == 20


def test_the_same_unit_by_two_ways_is_sealed_once(site, relay, key):
    with senders(site, relay.url) as (client,):
        unit = client.unit(b"a")
        bodies = [client.clear(unit), client.sealed(unit, to=[key]), client.sealed(unit, to=[key])]
    claimed = [Claimed(body_id(body), body, 0, HOP) for body in bodies]
    (upload,) = repackager(site, relay).prepare(claimed).uploads
    assert opened(site, upload.body) == [unit]
    assert upload.origins == {body_id(body): (unit.digest,) for body in bodies}


def test_a_hop_that_makes_up_sessions_does_not_keep_the_relay_busy(site, relay, key, tmp_path):
    (tmp_path / f"1-{key.key_id.hex()}.pem").write_bytes(relay.member.private[0].to_pem())
    keys = RelayKeys(tmp_path, throttle=Throttle(share=1e-6, reserve=1e-9))
    with senders(site, relay.url) as (client,):
        bodies = [client.sealed(client.unit(b"%d" % i), to=[key]) for i in range(4)]
    made = Repackager(keys, lambda: site.manifest, Repackage(), relay.meters)
    prepared = made.prepare([Claimed(body_id(body), body, 0, HOP) for body in bodies])
    assert [upload.body for upload in prepared.uploads[:3]] == bodies[1:], "passed on closed"
    assert not prepared.problems
    assert list(prepared.units) == [body_id(bodies[0])]
    others = made.prepare([Claimed(body_id(bodies[1]), bodies[1], 0, b"x" * 16)])
    assert list(others.units) == [body_id(bodies[1])], "another hop has its own account"


# -- answers from above ----------------------------------------------------------------


def test_a_body_waits_until_each_of_its_units_has_a_receipt(site, parent, relay, key):
    def forgetful(body):
        result = parent.honest(body)
        if len(parent.requests) < 3:
            return Result.done(result.body, result.receipts[1:])
        return result

    parent.judge = forgetful
    with senders(site, relay.url) as (client,):
        body = client.sealed(client.unit(b"a"), client.unit(b"b"), to=[key])
        assert client.post(body)[0].state is State.PENDING
        (result,) = client.done(body)
        assert len(client.receipts(result)) == 2
        assert len(parent.requests) == 3
        assert parent.reports == [b"a", b"b"]


def test_forged_receipts_do_not_count(site, parent, relay, key):
    def forging(body):
        result = parent.honest(body)
        (receipt,) = result.receipts
        forged = bytearray(receipt)
        forged[-1] ^= 1
        return Result.done(result.body, [bytes(forged), b"short", receipt[:-1]])

    parent.judge = forging
    with senders(site, relay.url) as (client,):
        body = client.sealed(client.unit(b"a"), to=[key])
        client.post(body)
        eventually(lambda: len(parent.requests) > 2)
        assert client.ask(body_id(body))[0].state is State.PENDING
        parent.reset()
        (result,) = client.done(body)
        assert set(client.receipts(result).values()) == {Status.STORED}


def test_receipts_of_another_unit_do_not_count(site, parent, relay, key):
    """A lying parent gives a genuine receipt, but for something else."""
    with senders(site, relay.url) as (client,):
        first = client.sealed(client.unit(b"first"), to=[key])
        (result,) = client.post(first, wait=20)
        parent.judge = lambda body: Result.done(body_id(body), result.receipts)
        second = client.sealed(client.unit(b"second"), to=[key])
        client.post(second)
        eventually(lambda: len(parent.requests) > 2)
        assert client.ask(body_id(second))[0].state is State.PENDING
        parent.reset()
        client.done(second)
        assert b"second" in parent.reports


def test_one_bad_body_does_not_spoil_the_batch_for_others(site, parent, relay, key):
    def picky(body):
        units = opened(site, body)
        if any(unit.records == [b"poison"] for unit in units):
            return Result.failed(body_id(body), Problem("malformed", "poison"))
        return parent.honest(body)

    parent.judge = picky
    with senders(site, relay.url) as (client,):
        bodies = [client.sealed(client.unit(b"%d" % i), to=[key]) for i in range(6)]
        poison = client.clear(client.unit(b"poison"))
        client.post(bundle([*bodies[:3], poison, *bodies[3:]]))
        assert {answer.state for answer in client.done(*bodies)} == {State.DONE}
        (result,) = client.done(poison)
        assert result.problem.name == "malformed"
        assert parent.reports == [b"%d" % i for i in range(6)]


def test_other_problems_between_relay_and_parent_leave_bodies_waiting(site, parent, relay, key):
    parent.judge = lambda body: Result.failed(body_id(body), Problem("sealed-not-accepted"))
    with senders(site, relay.url) as (client,):
        body = client.clear(client.unit(b"a"))
        client.post(body)
        eventually(lambda: len(parent.requests) > 2)
        assert client.ask(body_id(body))[0].state is State.PENDING, "its sender cannot help it"
        assert all(body_kind(body) == "sealed" for body in parent.bodies), "and never in clear"
        parent.reset()
        client.done(body)


def test_pending_batches_are_asked_for(site, parent, relay, key):
    kept = {}

    def slow(body):
        kept[body_id(body)] = body
        return Result.pending(body_id(body))

    parent.judge = slow
    parent.results_of = lambda ids: [parent.honest(kept[i]) for i in ids]
    with senders(site, relay.url, 2) as clients:
        bodies = [c.sealed(c.unit(b"a"), c.unit(b"b"), to=[key]) for c in clients]
        for client, body in zip(clients, bodies, strict=True):
            client.post(body)
            assert len(client.receipts(client.done(body)[0])) == 2
        assert len(parent.bodies) <= 2


# -- keys and states ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def changing(tmp_path_factory):
    """A deployment of its own, whose keys change from test to test."""
    site = Site()
    site.enable()
    folder = tmp_path_factory.mktemp("changing")
    with (
        parent_of(site) as parent,
        relay_of(site, folder, parent.url, decrypting=True) as relay,
        senders(site, relay.url) as (client,),
    ):
        yield site, parent, relay, client


@pytest.fixture
def own(changing):
    changing[1].reset()
    return changing


def test_a_stale_key_makes_it_seal_again(own):
    site, parent, relay, client = own
    parent.judge = lambda body: Result.failed(body_id(body), Problem("stale-key"))
    body = client.clear(client.unit(b"a"))
    client.post(body)
    eventually(lambda: len(parent.requests) > 1)
    assert client.ask(body_id(body))[0].state is State.PENDING
    old = site.private[0]
    site.rotate()
    site.private.remove(old)
    site.sign()
    parent.judge = parent.honest
    assert client.done(body)[0].state is State.DONE
    assert parent.reports == [b"a"]
    assert site.opener().key_ids == (site.private[0].key_id,), "it was the new key"


def test_receipts_by_a_new_key_make_it_look_for_the_manifest(own):
    site, _, relay, client = own
    new = site.signing.generate()
    site.change(receipt_keys=(*site.manifest.receipt_keys, new.public))
    site.sign()
    unit = client.unit(b"a")
    receipt = signed_receipt(Receipt(site.deployment, unit.digest, Status.STORED), new)
    relay._receipts([receipt])
    assert relay._receipts([receipt, b"nonsense"]) == {unit.digest: receipt}


def test_without_a_certificate_clear_stays_clear_and_sealed_stays_sealed(own):
    site, parent, relay, client = own
    sealed = client.sealed(client.unit(b"s"), to=[relay.member.private[0].public_key])
    site.disable()
    site.sign()
    eventually(lambda: not relay.control.current().active)
    clear = client.clear(client.unit(b"c"))
    client.post(bundle([sealed, clear]))
    assert {answer.state for answer in client.done(sealed, clear)} == {State.DONE}
    assert set(parent.bodies) == {sealed, clear}
    parent.reset()
    site.enable()
    site.sign()
    eventually(lambda: relay.control.current().active)
    clear = client.clear(client.unit(b"again"))
    client.post(clear)
    client.done(clear)
    assert [body_kind(body) for body in parent.bodies] == ["sealed"]


def test_a_hybrid_server_key(tmp_path):
    site = Site(suite="mlkem768-x25519")
    site.enable()
    with (
        parent_of(site) as parent,
        relay_of(site, tmp_path, parent.url, decrypting=True) as relay,
        senders(site, relay.url) as (client,),
    ):
        body = client.sealed(client.unit(b"a"), to=[relay.member.private[0].public_key])
        assert client.post(body, wait=20)[0].state is State.DONE
        assert parent.bodies != [body]
        assert parent.reports == [b"a"]


def test_getting_ready_for_a_pending_key(own):
    site, parent, relay, client = own
    folder = relay.settings.directory / "keys"
    site.pending()
    site.sign()
    generation = site.manifest.generation
    announced = eventually(lambda: parent.announced.get(generation))
    made = relay.state.keys.get(generation)
    assert made.public_key == announced
    assert made.public_key.name == site.manifest.pending[0].public().name
    assert (folder / f"{generation}-{made.key_id.hex()}.pem").stat().st_mode & 0o777 == 0o600
    for _ in range(2):  # as often as the administrator asks
        parent.pose(generation)
        eventually(lambda: not parent.posed)
    assert len(parent.answers) == 2
    # A challenge to another key is not answered, and the key announced again.
    parent.announced[generation] = PrivateKey.generate().public_key
    parent.pose(generation)
    eventually(lambda: parent.announced[generation] == made.public_key)
    assert len(parent.answers) == 2
    parent.pose(generation)
    eventually(lambda: not parent.posed)
    # Enabled: agents may seal to it, and it opens with both while the old one drains.
    entry = site.manifest.relay(relay.member.relay)
    new = site.key_entry(made.public_key, generation)
    site.change(relays=(dataclasses.replace(entry, keys=(new, *entry.keys)),))
    site.enable()
    site.sign()
    eventually(lambda: relay.control.current().serial == site.manifest.serial)
    old = relay.member.private[0].public_key
    bodies = [client.sealed(client.unit(b"%d" % i), to=[k]) for i, k in enumerate((old, announced))]
    client.post(bundle(bodies))
    client.done(*bodies)
    assert not set(bodies) & set(parent.bodies), "both were opened"
    # Retired: the old one is deleted, and what is sealed to it passes closed.
    site.change(oldest_generation=generation)
    site.sign()
    eventually(lambda: len(relay.state.keys.all()) == 1)
    # The files go a moment later.
    eventually(lambda: [path.name.split("-")[0] for path in folder.iterdir()] == [str(generation)])
    parent.reset()
    late = client.sealed(client.unit(b"late"), to=[old])
    client.post(late)
    client.done(late)
    assert parent.bodies == [late]


def test_a_relay_that_joins_late_makes_a_key_for_what_is_enabled(tmp_path):
    site = Site(suite="p256")
    site.enable()
    folder = make_folder(site, tmp_path / "relay", site.add_relay())
    with (
        parent_of(site) as parent,
        running(settings_for(folder, parent.url, decrypting=True)) as relay,
    ):
        generation = site.manifest.generation
        announced = eventually(lambda: parent.announced.get(generation))
        assert relay.state.keys.get(generation).public_key == announced
        assert announced.name == "p256"
        parent.pose(generation)
        eventually(lambda: not parent.posed)

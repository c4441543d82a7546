# SPDX-License-Identifier: Apache-2.0
"""Keys that come and go at the server: missing, back, draining, retired; readiness; restarts."""

import hashlib

import pytest
from fleet_server_support import Site, clear, sealed, until

from upseal import PrivateKey, Sealer
from upseal.fleet import jws
from upseal.fleet.encoding import b64url, from_b64url
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import State
from upseal.fleet.readiness import answer_challenge, make_challenge
from upseal.fleet.server import upkeep
from upseal.fleet.server.keyring import Keyring, Standing
from upseal.fleet.server.store import (
    challenges,
    deadletters,
    keys,
    now_ms,
    relays,
    units,
)
from upseal.fleet.units import Status, unit_rows


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(upkeep, "EVERY", 0.05)


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "deployment")
    made.enable()
    return made


def name_of(body):
    return hashlib.sha256(body).digest()


def only(found):
    (result,) = found
    return result


def stored(site, sender):
    with site.store() as store:
        return [report.body for report in units.read(store, sender.agent)]


def letters(site):
    with site.store() as store, store.reading() as db:
        return deadletters.listing(db)


def test_what_a_missing_key_would_open_waits_for_it(site):
    with site.running():
        agent = site.enrol()
        agent.send(sealed(site, agent.unit(b"before")))
        (path,) = (site.folder / "keys").iterdir()
        path.rename(site.folder / "away.pem")
        until(lambda: site.metrics()["upseal_server_keys_missing"] == 1)
        unit, more = agent.unit(b"waits"), agent.unit(b"waits too")
        body, other = sealed(site, unit), sealed(site, more)
        for _ in range(2):
            assert only(agent.send(body)).state is State.PENDING
        agent.send(other)
        assert only(agent.ask(name_of(body))).state is State.PENDING
        assert [(d.reason, d.size) for d in letters(site)] == [
            ("missing-key", len(body)), ("missing-key", len(other)),
        ]  # fmt: skip
        assert stored(site, agent) == [b"before"]
        (site.folder / "away.pem").rename(path)
        found = only(agent.ask(name_of(body), wait=20))
        assert agent.statuses(found) == {unit.digest: Status.STORED}
        until(lambda: not letters(site))
        assert stored(site, agent) == [b"before", b"waits", b"waits too"]
        assert agent.statuses(only(agent.send(body))) == {unit.digest: Status.DUPLICATE}


def test_dead_letters_are_replayed_at_the_start(site):
    (path,) = (site.folder / "keys").iterdir()
    path.rename(site.folder / "away.pem")
    with site.running():
        agent = site.enrol()
        unit = agent.unit(b"kept")
        body = sealed(site, unit)
        assert only(agent.send(body)).state is State.PENDING
    (site.folder / "away.pem").rename(path)
    with site.running():
        assert stored(site, agent) == [b"kept"]
        assert letters(site) == []
        assert agent.statuses(only(agent.ask(name_of(body)))) == {unit.digest: Status.STORED}


def test_a_replay_that_fails_throws_nothing_away(site):
    (path,) = (site.folder / "keys").iterdir()
    path.rename(site.folder / "away.pem")
    with site.running():
        agent = site.enrol()
        agent.send(sealed(site, agent.unit(b"kept")))
    with site.running():
        (letter,) = until(lambda: [one for one in letters(site) if one.attempts])
        assert letter.reason == "missing-key"
    (site.folder / "away.pem").rename(path)
    with site.running():
        assert stored(site, agent) == [b"kept"]


def test_after_a_restart_nothing_is_stored_twice(site):
    with site.running():
        agent = site.enrol()
        unit = agent.unit(b"x")
        body = sealed(site, unit)
        agent.send(body)
    with site.running():
        assert only(agent.ask(name_of(body))).state is State.UNKNOWN
        assert agent.statuses(only(agent.send(body))) == {unit.digest: Status.DUPLICATE}
        assert stored(site, agent) == [b"x"]


def test_an_old_key_drains_and_retires(site):
    with site.running():
        agent = site.enrol()
        old = [key.public() for key in site.manifest().encryption]
        agent.send(sealed(site, agent.unit(b"1", b"2")))
        with site.admin() as deployment:
            site.wait_for(deployment.rotate(timeout=20).manifest.serial)
        agent.send(sealed(site, agent.unit(b"3"), recipients=old))
        agent.send(sealed(site, agent.unit(b"4")))
        with site.store() as store, store.reading() as db:
            first, second = keys.drain(db, now_ms())
        assert (first.key.state, first.last_hour, first.clients) == ("draining", 3, 0)
        assert (second.key.state, second.last_hour, second.clients) == ("active", 1, 1)
        with site.admin() as deployment:
            deployment.retire(all_old=True, force=True)
        late = sealed(site, agent.unit(b"5"), recipients=old)

        def refused():
            result = only(agent.send(late))
            return result.state is State.PROBLEM and result.problem.name == "stale-key"

        until(refused, "the retired key to be forgotten")
        assert letters(site) == []


def test_the_server_proves_that_it_holds_a_pending_key(site):
    with site.running(), site.admin() as deployment:
        deployment.generate_key(replace=True)
        outcome = deployment.ready(timeout=20)
        assert [holder["ready"] for holder in outcome.result["holders"]] == [True]
        with site.store() as store, store.reading() as db:
            pending = [key for key in keys.listing(db) if key.state == keys.PENDING]
            assert pending[0].ready is not None


def test_a_challenge_to_another_key_is_not_answered(site):
    with site.running():
        with site.store() as store:
            with store.reading() as db:
                (key,) = keys.listing(db)
            with store.writing() as db:
                challenges.put(
                    db, holder="server", generation=1, key_id=key.key_id, challenge=bytes(80),
                    expected=bytes(32), created=now_ms(), expires=now_ms() + 60_000,
                )  # fmt: skip
        with site.admin() as deployment:  # and it does not keep the server from the next one
            deployment.generate_key()
            assert not deployment.ready(timeout=20).refusals
        with site.store() as store, store.reading() as db:
            assert challenges.find(db, "server", 1)[0].answered is None
        assert site.get("/readyz").status == 200


def test_a_decrypting_relay_announces_and_proves_its_key(site):
    with site.running():
        relay = site.enrol("relay-1", role="relay", decrypts=True)
        agent = site.enrol("agent")
        with site.admin() as deployment:
            site.wait_for(deployment.add_relay("relay-1", decrypts=True).manifest.serial)
        key, other = PrivateKey.generate(), PrivateKey.generate()

        def say(what, sender=relay, signer=None, via=None, **claims):
            said = {"relay": sender.agent.hex(), "generation": 1, "t": now_ms(), **claims}
            token = jws.sign(said, (signer or sender).identity, jws.RELAY).encode()
            return (via or relay).post(f"/v1/relay/{what}", token)

        pem = key.public_key.to_pem().decode()
        assert say("key", public_key=other.public_key.to_pem().decode()).status == 200
        assert say("key", public_key=pem).json() == {"key_id": key.key_id.hex()}
        assert say("challenge").json() == {}
        with site.store() as store, store.writing() as db:
            sealed_nonce, expected = make_challenge(key.public_key)
            challenges.put(
                db, holder=relay.agent.hex(), generation=1, key_id=key.key_id,
                challenge=sealed_nonce, expected=expected, created=now_ms(),
                expires=now_ms() + 60_000,
            )  # fmt: skip
        posed = say("challenge").json()
        assert posed["key_id"] == key.key_id.hex()
        assert say("challenge").json() == posed  # asking again voids nothing
        answer = b64url(answer_challenge(key, from_b64url(posed["challenge"])))
        assert say("answer", answer=b64url(bytes(32))).problem().name == "conflict"
        assert say("answer", answer=answer, generation=2).problem().name == "conflict"
        assert say("answer", answer=answer).json()["ready"] is True
        assert say("answer", answer=answer).problem().name == "conflict"
        assert say("challenge").json() == {}
        assert say("key", public_key=other.public_key.to_pem().decode()).status == 409
        with site.store() as store, store.reading() as db:
            assert relays.find_key(db, relay.agent, 1).ready_at is not None
        # Nobody says anything in another's name, and agents say nothing here.
        assert say("key", signer=agent, public_key=pem).status == 403
        assert say("key", via=agent, public_key=pem).problem().name == "not-enrolled"
        assert say("key", relay=agent.agent.hex(), public_key=pem).status == 400
        assert say("key", public_key=pem, t=now_ms() - 600_000).problem().name == "clock"
        for wrong in ({"generation": -1}, {"generation": "1"}, {"public_key": "x"}, {"t": None}):
            assert say("key", **{"public_key": pem, **wrong}).status == 400
        assert relay.post("/v1/relay/key", b"x.y.z").problem().name == "malformed"


def test_a_hop_that_floods_with_new_sessions_is_slowed_down(site):
    site.configure("[server]\nunwrap_share = 1e-6\nunwrap_reserve = 1e-6\nrelay_factor = 1e6")
    with site.running():
        agent, relay = site.enrol(), site.enrol("relay", role="relay")
        recipients = [key.public() for key in site.manifest().encryption]
        sealer = Sealer(recipients)
        same = [
            sealer.seal_batch(unit_rows([agent.unit(b"%d" % i)]), site.context) for i in range(3)
        ]
        for body in same:  # one session: unwrapped once
            assert only(agent.send(body)).state is State.DONE
        with pytest.raises(Problem) as caught:
            agent.send(sealed(site, agent.unit(b"another")))
        assert (caught.value.name, caught.value.status) == ("busy", 429)
        assert caught.value.retry_after >= 1
        assert letters(site) == []
        for _ in range(3):
            assert only(relay.send(sealed(site, agent.unit(b"by relay")))).state is State.DONE
        assert only(agent.send(clear(agent.unit(b"in clear")))).state is State.DONE
        assert site.metrics()["upseal_server_throttled_total"] == 1


# -- the keyring alone ------------------------------------------------------------------------


@pytest.fixture
def ring(tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    return folder, Keyring(folder, 100)


def known(key, generation=1, state=keys.ACTIVE, holder=keys.SERVER):
    return keys.Key(
        key.key_id, generation, holder, state, int(key.suite), "", None, 0, None, None, None, None,
        None, None, 0, 0,
    )  # fmt: skip


def write(folder, key, generation=1, key_id=None, pem=None):
    path = folder / f"{generation}-{(key_id or key.key_id).hex()}.pem"
    path.write_bytes(key.to_pem() if pem is None else pem)
    path.chmod(0o600)
    return path


def test_the_keyring_follows_store_and_folder(ring):
    folder, keyring = ring
    key, next_key = PrivateKey.generate(), PrivateKey.generate("p256")
    assert keyring.opener is None
    write(folder, key)
    assert keyring.refresh([], 0) == []  # a file that the store does not know is not used
    assert keyring.standing(key.key_id) is Standing.UNKNOWN
    assert keyring.refresh([known(key), known(next_key, 2, keys.PENDING)], 0) == [key.key_id]
    assert keyring.standing(next_key.key_id) is Standing.MISSING
    assert keyring.missing() == [next_key.key_id]
    write(folder, next_key, 2)
    both = [known(key), known(next_key, 2)]
    assert keyring.refresh(both, 0) == [next_key.key_id]
    assert keyring.refresh(both, 0) == []
    assert set(keyring.opener.key_ids) == {key.key_id, next_key.key_id}
    assert keyring.refresh(both, 2) == []  # generation 1 is below the oldest of the manifest
    assert keyring.standing(key.key_id) is Standing.RETIRED
    assert keyring.opener.key_ids == (next_key.key_id,)
    keyring.refresh([known(key), known(next_key, 2, keys.RETIRED)], 0)
    assert keyring.standing(key.key_id) is Standing.HERE
    assert keyring.standing(next_key.key_id) is Standing.RETIRED


def test_files_that_are_no_keys_are_passed_over_until_they_are(ring):
    folder, keyring = ring
    key, other = PrivateKey.generate(), PrivateKey.generate()
    (folder / "notes.txt").write_text("x")
    (folder / f".1-{key.key_id.hex()}.pem.0123.part").write_bytes(b"half")
    for pem in (b"", b"garbage", other.to_pem(), key.to_pem("passphrase"), bytes(1 << 17)):
        path = write(folder, key, pem=pem)
        assert keyring.refresh([known(key)], 0) == []
        assert keyring.standing(key.key_id) is Standing.MISSING
    path.unlink()
    write(folder, key)
    assert keyring.refresh([known(key)], 0) == [key.key_id]
    assert keyring.private(key.key_id).key_id == key.key_id


def test_an_encrypted_key_opens_with_the_passphrase_of_the_environment(ring, monkeypatch):
    folder, keyring = ring
    key = PrivateKey.generate()
    write(folder, key, pem=key.to_pem("open sesame"))
    monkeypatch.setenv("UPSEAL_PASSPHRASE", "open sesame")
    assert keyring.refresh([known(key)], 0) == [key.key_id]


def test_escrow_keys_are_not_ours_to_miss(ring):
    _, keyring = ring
    key = PrivateKey.generate()
    keyring.refresh([known(key, holder="escrow")], 0)
    assert keyring.missing() == []
    assert keyring.standing(key.key_id) is Standing.UNKNOWN

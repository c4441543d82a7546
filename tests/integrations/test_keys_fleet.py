# SPDX-License-Identifier: Apache-2.0
"""A fleet's server whose key is in a token, or in a process of its own: it may be away."""

import hashlib

import pytest
from keys_support import Process, Tokens, upseal

from upseal import KeyUnavailable, PrivateKey, Sealer
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import State
from upseal.fleet.policy import Reason
from upseal.fleet.readiness import answer_challenge, make_challenge
from upseal.fleet.relay.keys import RelayKeys, listing
from upseal.fleet.relay.meters import Meters
from upseal.fleet.relay.repackage import Repackager
from upseal.fleet.relay.settings import Repackage
from upseal.fleet.server import replay, upkeep
from upseal.fleet.server.opening import KEY_RETRY
from upseal.fleet.server.store import deadletters, units
from upseal.fleet.units import Status, fleet_context
from upseal.integrations.keys import open_key
from upseal.integrations.pkcs11 import module as pkcs11_module

# isort: split
from fleet_server_support import Site, clear, sealed, until


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(upkeep, "EVERY", 0.05)
    monkeypatch.setattr(pkcs11_module, "_RENEW", 0.2)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return Tokens(tmp_path_factory.mktemp("softhsm"))


class Away:
    """Takes the key away, and gives it back."""

    def __init__(self, kind, tokens, folder):
        self.kind, self.tokens, self.folder = kind, tokens, folder
        if kind == "token":
            self.reference = tokens.uri()
            return
        self.file = folder / "server.pem"
        self.file.write_bytes(PrivateKey.generate("p256").to_pem())
        self.file.chmod(0o600)
        self.process = Process(folder, self.file).ready()
        self.reference = self.process.address

    def __enter__(self):
        if self.kind == "token":
            self.unplugged = self.tokens.unplugged()
            self.unplugged.__enter__()
        else:
            self.process.stop(kill=True)

    def __exit__(self, *exc):
        if self.kind == "token":
            self.unplugged.__exit__(*exc)
        else:
            self.process = Process(self.folder, self.file).ready()

    def end(self):
        if self.kind == "process":
            self.process.stop()


@pytest.fixture(params=["token", "process"])
def away(request, tokens, tmp_path):
    made = Away(request.param, tokens, tmp_path)
    yield made
    made.end()


@pytest.fixture
def site(tmp_path, away):
    made = Site(tmp_path / "deployment")
    public = open_key(away.reference).public_key
    with made.admin() as deployment:
        deployment.generate_key(kept=(away.reference, public))
    return made


def ready(site):
    """The server proves that it holds the key, and it is enabled without --force."""
    with site.admin() as deployment:
        assert not deployment.ready(20).refusals
        serial = deployment.enable().manifest.serial
    site.wait_for(serial)


def stored(site, sender):
    with site.store() as store:
        return [report.body for report in units.read(store, sender.agent)]


def letters(site):
    with site.store() as store, store.reading() as db:
        return deadletters.listing(db)


def away_count(site):
    return site.metrics().get('upseal_server_open_failures_total{reason="key-unavailable"}', 0)


def only(found):
    (result,) = found
    return result


def refused(agent, body):
    """That the server has not taken it, and when to send it again."""
    with pytest.raises(Problem, match="the key is not available") as caught:
        agent.send(body)
    problem = caught.value
    assert (problem.name, problem.status, problem.temporary) == ("busy", 503, True)
    assert problem.retry_after == KEY_RETRY


def done(ask):
    """The result of a body, once it is done."""

    def look():
        try:
            result = only(ask())
        except Problem as problem:
            assert problem.name == "busy"
            return None
        return result if result.state is State.DONE else None

    return until(look)


def test_a_key_that_is_away_costs_nobody_a_report(site, away):
    (path,) = (site.folder / "keys").iterdir()
    assert path.suffix == ".ref"
    assert b"PRIVATE" not in path.read_bytes()
    with site.running():
        ready(site)
        agent = site.enrol()
        unit = agent.unit(b"before")
        assert agent.statuses(only(agent.send(sealed(site, unit)))) == {unit.digest: Status.STORED}
        damaged = bytearray(sealed(site, agent.unit(b"x")))
        damaged[damaged.index(open_key(away.reference).key_id) + 80] ^= 1
        assert only(agent.send(bytes(damaged))).state is State.PENDING
        assert [one.reason for one in letters(site)] == ["cannot-open"]  # as with a key in a file

        unit = agent.unit(b"while it was away")
        body = sealed(site, unit)
        with away:
            for _ in range(2):
                refused(agent, body)
            refused(agent, bytes(damaged))  # nobody can tell now
            assert only(
                agent.send(clear(agent.unit(b"c", reason=Reason.ENCRYPTION_DISABLED)))
            ).receipts
            assert len(letters(site)) == 1
            assert away_count(site) == 3
        assert agent.statuses(done(lambda: agent.send(body))) == {unit.digest: Status.STORED}
        assert len(letters(site)) == 1
    assert stored(site, agent) == [b"before", b"c", b"while it was away"]
    with site.admin() as deployment:  # a retired key's reference goes as its file would
        deployment.generate_key()
        deployment.enable(force=True)
        deployment.retire(all_old=True, force=True)
    assert [path.suffix for path in (site.folder / "keys").iterdir()] == [".pem"]


def test_a_server_starts_without_its_key_and_dead_letters_wait_for_it(site, away):
    with site.running():
        ready(site)
        agent = site.enrol()
    first, second = agent.unit(b"first"), agent.unit(b"second")
    body, other = sealed(site, first), sealed(site, second)
    (path,) = (site.folder / "keys").iterdir()
    path.rename(site.folder / "away.ref")
    with site.running():  # without a reference it is a missing key
        assert only(agent.send(other)).state is State.PENDING
    (site.folder / "away.ref").rename(path)
    with away, site.running():
        refused(agent, body)
        until(lambda: away_count(site) > 1)  # the dead letter was tried, too
        assert [one.reason for one in letters(site)] == ["missing-key"]
    with site.running():
        assert agent.statuses(done(lambda: agent.send(body))) == {first.digest: Status.STORED}
        asked = done(lambda: agent.ask(hashlib.sha256(other).digest()))
        assert agent.statuses(asked) == {second.digest: Status.STORED}
        until(lambda: not letters(site))
        path.rename(site.folder / "away.ref")
        until(lambda: site.metrics()["upseal_server_keys_missing"] == 1)
        third = agent.unit(b"third")
        last = sealed(site, third)
        assert only(agent.send(last)).state is State.PENDING
        count = away_count(site)
        with away:  # its reference is back before the key is
            (site.folder / "away.ref").rename(path)
            until(lambda: away_count(site) > count + 1)  # it stays asked for
            assert len(letters(site)) == 1
        asked = done(lambda: agent.ask(hashlib.sha256(last).digest()))
        assert agent.statuses(asked) == {third.digest: Status.STORED}


def test_dead_letters_of_another_key_do_not_wait_for_one_that_is_away(site, away, monkeypatch):
    monkeypatch.setattr(replay, "_ROUND", 1)
    with site.running():
        ready(site)
        agent = site.enrol()
    old = sealed(site, agent.unit(b"old"))
    with site.admin() as deployment:
        deployment.generate_key()
        deployment.enable(force=True)
    new = sealed(site, agent.unit(b"new"))
    paths = sorted((site.folder / "keys").iterdir())
    assert [path.suffix for path in paths] == [".ref", ".pem"]
    for path in paths:
        path.rename(site.folder / path.name)
    with site.running():
        for body in (old, new):
            assert only(agent.send(body)).state is State.PENDING
    for path in paths:
        (site.folder / path.name).rename(path)
    with away, site.running():
        until(lambda: stored(site, agent) == [b"new"])
        assert [one.reason for one in letters(site)] == ["missing-key"]
    with site.running():
        until(lambda: stored(site, agent) == [b"new", b"old"])


def test_the_command_line_takes_a_kept_key(tmp_path):
    (tmp_path / "server.pem").write_bytes(PrivateKey.generate("p256").to_pem())
    (tmp_path / "server.pem").chmod(0o600)
    folder = tmp_path / "deployment"
    Site(folder)
    with Process(tmp_path, tmp_path / "server.pem") as process:
        make = ("admin", "generate-key", "-d", folder, "--key")
        assert b"no reference to a key" in upseal(*make, tmp_path / "server.pem", code=2).stderr
        assert b"leave --type away" in upseal(*make, process.address, "-t", "p256", code=2).stderr
        upseal(*make, process.address)
        key_id = open_key(process.address).key_id.hex()
        (path,) = (folder / "keys").iterdir()
        assert path.name == f"1-{key_id}.ref"
        assert path.read_text().startswith(f"{process.address}#{key_id}\n-----BEGIN PUBLIC KEY")
        upseal("admin", "generate-key", "-d", folder, "--cancel")
        assert list((folder / "keys").iterdir()) == []


def test_a_relay_takes_a_kept_key_and_passes_bodies_on_while_it_is_away(away, tmp_path):
    public = open_key(away.reference).public_key
    folder = tmp_path / "relay"
    folder.mkdir(mode=0o700)
    path = folder / f"3-{public.key_id.hex()}.ref"
    path.write_bytes(f"{away.reference}\n".encode() + public.to_pem())
    relay_keys = RelayKeys(folder)
    kept = relay_keys.make(3, "p256")
    assert kept.public_key == public
    assert relay_keys.make(4, "p256").public_key != public
    assert listing(folder)[0] == (3, public.key_id.hex(), "p256")
    challenge, answer = make_challenge(public)
    assert answer_challenge(kept, challenge) == answer
    sealer, meters = Sealer([public]), Meters()
    repackager = Repackager(relay_keys, lambda: None, Repackage(), meters)
    context = fleet_context(bytes(16))
    assert repackager._open(sealer.seal_batch([b"a"], context), context) == [b"a"]
    body = Sealer([public]).seal_batch([b"b"], context)
    with away:
        assert repackager._open(body, context) is None
        with pytest.raises(KeyUnavailable):
            answer_challenge(kept, challenge)
    assert until(lambda: repackager._open(body, context)) == [b"b"]
    assert relay_keys.retire(4) == [3]
    assert not path.exists()

# SPDX-License-Identifier: Apache-2.0
"""Any sequence of acts, of clocks set forth and back, and of what clients hear and do not hear.

The library, the SQLite store, `Trust` and `decide` are the real ones. Whatever happens: a client
that must seal never sends in clear; no serial goes down; of one serial there is one manifest; what
clients seal to, the server can open; nobody is orphaned unless somebody has said so; and everybody,
however long away, finds the way to the newest manifest.
"""

import shutil
import tempfile
from pathlib import Path

import pytest
from fleet_admin_support import DAY, HOUR, World, dump
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from upseal import PrivateKey
from upseal.fleet.admin.refusals import Refused
from upseal.fleet.manifest import State
from upseal.fleet.policy import Clear, Level, Seal, Withhold, decide
from upseal.fleet.server.store import keys as store_keys
from upseal.fleet.trust import Outcome as Seen

LEVELS = st.sampled_from([None, *Level])
NAMES = st.sampled_from(["must", "may", "never"])


class Fleet(RuleBasedStateMachine):
    """One deployment, three clients, one relay."""

    template = None

    def __init__(self):
        super().__init__()
        if Fleet.template is None:
            Fleet.template = tempfile.TemporaryDirectory()
            World(Path(Fleet.template.name) / "deployment").close()
        self.scratch = Path(tempfile.mkdtemp())
        self.world = World(self.scratch / "deployment", Path(Fleet.template.name) / "deployment")
        self.deployment = self.world.deployment
        self.must = self.world.client("must", "required")
        self.everyone = {
            "must": self.must, "may": self.world.client("may"),
            "never": self.world.client("never", "none"),
        }  # fmt: skip
        self.relay = self.world.relay("relay")
        self.seen = dict.fromkeys(self.everyone.values(), 0)
        self.accepted = {}  # serial: the manifest that somebody believed
        self.published = list(self.world.chain(-1))
        self.last_serial = self.world.manifest.serial
        self.current = set()  # clients of which the server knows all

    def teardown(self):
        self.world.close()
        shutil.rmtree(self.scratch)

    # -- the administrator

    def act(self, do, *, force=False):
        """Does it, or is refused; then nothing has changed."""
        before = self.world.manifest
        content = dump(self.world.folder)
        sealing = {client for client in self.current if isinstance(self.told(client, before), Seal)}
        try:
            outcome = do()
        except Refused:
            assert dump(self.world.folder) == content
            return None
        after = self.world.manifest
        self.published.append(self.world.newest())
        if outcome.changed:
            assert after.serial == before.serial + 1
        else:
            assert after == before
        if not force:
            for client in sealing:
                assert not isinstance(self.told(client, after), Withhold), "orphaned without force"
        self.current.clear()
        return outcome

    def told(self, client, manifest):
        """What a client would do under that manifest."""
        level = client.override or manifest.level_for(client.agent) or client.own_level
        return decide(level, manifest.usable(), client.parent)

    @rule(force=st.booleans(), replace=st.booleans())
    def generate_key(self, force, replace):
        self.act(lambda: self.deployment.generate_key(replace=replace, force=force))

    @rule()
    def cancel_key(self):
        self.act(self.deployment.cancel_key)

    @rule(relay_up=st.booleans())
    def ready(self, relay_up):
        self.relay.up = relay_up
        self.relay.announce()
        try:
            self.world.ready()
        except Refused:
            assert not self.world.manifest.pending

    @rule(force=st.booleans())
    def enable(self, force):
        self.act(lambda: self.deployment.enable(force=force))

    @rule()
    def enable_properly(self):
        """The way to where most things happen."""
        self.act(self.deployment.generate_key)
        self.ready(True)
        self.act(self.deployment.enable)

    @rule(force=st.booleans(), all_old=st.booleans())
    def retire(self, force, all_old):
        self.act(lambda: self.deployment.retire(all_old=all_old, force=force))

    @rule(force=st.booleans())
    def disable(self, force):
        self.act(lambda: self.deployment.disable(force=force), force=force)

    @rule(level=LEVELS, name=st.none() | NAMES, force=st.booleans())
    def set_level(self, level, name, force):
        whom = {"everyone": True} if name is None else {"clients": [name]}
        self.act(lambda: self.deployment.set_level(level, force=force, **whom), force=force)

    @rule(decrypts=st.booleans())
    def add_relay(self, decrypts):
        self.act(lambda: self.deployment.add_relay("relay", decrypts=decrypts))

    @rule()
    def remove_relay(self):
        self.act(lambda: self.deployment.remove_relay("relay"))

    @rule(undo=st.booleans())
    def revoke_relay(self, undo):
        self.act(lambda: self.deployment.revoke("relay", undo=undo))

    @rule(force=st.booleans())
    def renew(self, force):
        self.act(lambda: self.deployment.renew(force=force))

    @rule(replace=st.booleans())
    def announce_signing_key(self, replace):
        self.act(lambda: self.deployment.announce_signing_key(replace=replace))

    @rule(force=st.booleans())
    def switch_signing_key(self, force):
        self.act(lambda: self.deployment.switch_signing_key(force=force))

    @rule()
    def cancel_signing_key(self):
        self.act(self.deployment.cancel_signing_key)

    @rule()
    def dry_runs(self):
        content, deployment = dump(self.world.folder), self.deployment
        for act in (
            deployment.generate_key, deployment.enable, deployment.disable, deployment.retire,
            deployment.renew, deployment.announce_signing_key,
        ):  # fmt: skip
            try:
                act(dry_run=True)
            except Refused:
                continue
        assert dump(self.world.folder) == content

    @rule()
    def another_process(self):
        """The command line opens the folder anew for each act."""
        self.deployment.close()
        self.deployment = self.world.deployment = self.world.open()

    # -- time

    @rule(hours=st.sampled_from([1, 23, 25, 24 * 30, 24 * 100]))
    def later(self, hours):
        self.world.now += hours * HOUR

    @rule(back=st.sampled_from([60_000, HOUR, 40 * DAY]))
    def clock_goes_back(self, back):
        self.world.now -= back

    # -- clients

    @rule(name=NAMES)
    def sync(self, name):
        client = self.everyone[name]
        client.sync()
        assert client.trust.manifest.serial == self.world.manifest.serial

    @rule(name=NAMES)
    def report(self, name):
        client = self.everyone[name]
        client.sync()
        client.report()
        self.current.add(client)

    @rule(name=NAMES, data=st.data())
    def hears_something_else(self, name, data):
        """Whoever is in the middle hands out what he has: old ones, a part, in any order."""
        tokens = data.draw(st.lists(st.sampled_from(self.published), max_size=4))
        client = self.everyone[name]
        before = client.trust.manifest
        if client.trust.offer(tokens, self.world.now) is not Seen.ACCEPTED:
            assert client.trust.manifest == before

    @precondition(lambda self: self.must.trust.manifest is not None)
    @rule(flip=st.integers(0, 10_000))
    def hears_something_forged(self, flip):
        token = bytearray(self.world.newest().encode())
        token[flip % len(token)] ^= 1
        before = self.must.trust.manifest
        seen = self.must.trust.offer([bytes(token)], self.world.now)
        assert seen is not Seen.ACCEPTED
        assert self.must.trust.manifest == before

    # -- what always holds

    @invariant()
    def who_must_seal_sends_nothing_in_clear(self):
        for client in self.everyone.values():
            if client.level is Level.REQUIRED:
                assert not isinstance(client.decision(), Clear)

    @invariant()
    def serials_only_go_up(self):
        serial = self.world.manifest.serial
        assert serial >= self.last_serial
        self.last_serial = serial
        for client in self.everyone.values():
            manifest = client.trust.manifest
            if manifest is not None:
                assert self.seen[client] <= manifest.serial <= serial
                self.seen[client] = manifest.serial

    @invariant()
    def of_one_serial_there_is_one_manifest(self):
        for client in self.everyone.values():
            token = client.trust.token
            if token is not None:
                serial = client.trust.manifest.serial
                assert self.accepted.setdefault(serial, token) == token
            assert client.trust.alarms == []

    @invariant()
    def the_server_has_what_it_needs_to_open(self):
        manifest = self.world.manifest
        for keys in (manifest.encryption, manifest.pending):
            for key in keys:
                path = self.world.folder / "keys" / f"{key.generation}-{key.key_id.hex()}.pem"
                assert PrivateKey.from_pem(path.read_bytes()).public_key == key.public()
        with self.deployment.store.reading() as db:
            states = {key.key_id: key.state for key in store_keys.listing(db)}
        now = {key.key_id for key in manifest.encryption}
        assert {key for key, state in states.items() if state == "active"} == now
        pending = {key.key_id for key in manifest.pending}
        assert {key for key, state in states.items() if state == "pending"} == pending

    @invariant()
    def the_state_is_one_of_four(self):
        manifest = self.world.manifest
        assert manifest.state is {
            (False, False): State.DISABLED, (False, True): State.PENDING,
            (True, False): State.ENABLED, (True, True): State.PENDING_ROTATION,
        }[bool(manifest.encryption), bool(manifest.pending)]  # fmt: skip

    @invariant()
    def a_newcomer_finds_the_way(self):
        for client in self.everyone.values():
            known = client.trust.manifest
            since = 0 if known is None else known.serial
            copy = client.trust.path.with_name("copy.json")
            shutil.copy(client.trust.path, copy)
            trust = type(client.trust).load(copy)
            trust.offer(self.world.chain(since), self.world.now)
            assert trust.manifest.serial == self.world.manifest.serial


Fleet.TestCase.settings = settings(
    max_examples=max(4, settings.default.max_examples // 6), stateful_step_count=25, deadline=None
)
TestFleet = Fleet.TestCase


@pytest.fixture(scope="module", autouse=True)
def template():
    yield
    if Fleet.template is not None:
        Fleet.template.cleanup()
        Fleet.template = None

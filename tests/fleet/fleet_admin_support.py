# SPDX-License-Identifier: Apache-2.0
"""A deployment with a clock of its own, and clients and relays that are real where it counts.

What they believe is the library's own `Trust`, what they do is `policy.decide`, and what the server
would write down of it goes into the real store by the server's own functions. Only the network and
the processes are left out.
"""

import os
import shutil
import sqlite3
from contextlib import closing

from cryptography.hazmat.primitives import serialization

from upseal import PrivateKey
from upseal.core.keys import PublicKey
from upseal.fleet.admin import readying
from upseal.fleet.admin.authority import make_ca
from upseal.fleet.admin.deployment import Deployment
from upseal.fleet.credentials import Token
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Clear, Level, Parent, Seal, Withhold, decide
from upseal.fleet.readiness import answer_challenge
from upseal.fleet.server.store import activity, challenges, clients, manifests, relays, tokens
from upseal.fleet.server.store import keys as store_keys
from upseal.fleet.server.store.units import NewUnit
from upseal.fleet.trust import Trust
from upseal.fleet.units import Status

START = 1_790_000_000_000
HOUR = 3_600_000
DAY = 24 * HOUR


def snapshot(folder):
    """All that a dry run must leave alone: every file, and what is in the database."""
    files = {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("server.db")
    }
    return files, dump(folder)


def dump(folder):
    """The database's content as SQL."""
    with closing(sqlite3.connect(folder / "server.db")) as db:
        return "\n".join(db.iterdump())


def new_ca(folder, name, now):
    """Certificate and key of a company's CA, in files."""
    pem, key = make_ca(name, now)
    (folder / "company.pem").write_bytes(pem)
    (folder / "company.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )  # fmt: skip
    return folder / "company.pem", folder / "company.key"


class World:
    """A deployment."""

    def __init__(self, folder, template=None, **options):
        self.folder = folder
        self.now = START
        if template is None:
            Deployment.init(folder, name="world", clock=self.clock, **options)
        else:  # a copy of one that was just made: faster
            shutil.copytree(template, folder)
        self.deployment = self.open()
        self.clients, self.relays = [], []

    def clock(self):
        return self.now

    def open(self, **options):
        return Deployment.open(self.folder, clock=self.clock, **options)

    def close(self):
        self.deployment.close()

    @property
    def manifest(self):
        with self.deployment.view() as view:
            return view.manifest

    @property
    def state(self):
        return self.manifest.state.value

    def chain(self, since=0):
        with self.deployment.store.reading() as db:
            return [stored.jws for stored in manifests.chain(db, since)]

    def newest(self):
        return self.chain(1 << 40)[-1]

    # -- who is there

    def client(self, name, level="optional"):
        made = SimClient(self, name, Level.parse(level))
        self.clients.append(made)
        return made

    def relay(self, name, *, decrypts=True, add=True, **options):
        made = SimRelay(self, name, decrypts=decrypts)
        self.relays.append(made)
        if add:
            self.deployment.add_relay(name, decrypts=decrypts, **options)
        return made

    def answer(self, *_):
        """What the server process and the relays do about challenges: for `progress`."""
        with self.deployment.store.writing() as db:
            for posed in challenges.unanswered(db, "server", self.now):
                row = store_keys.find(db, posed.key_id)
                path = self.folder / "keys" / f"{row.generation}-{posed.key_id.hex()}.pem"
                private = PrivateKey.from_pem(path.read_bytes())
                given = answer_challenge(private, posed.challenge)
                proved = challenges.answer(db, "server", posed.generation, given, self.now)
                assert proved == posed.key_id
                store_keys.set_ready(db, proved, self.now)
        for relay in self.relays:
            relay.answer()

    # -- acts, done the short way

    def ready(self):
        """Asks, has it answered, and gives those who are not ready: waits for nobody."""
        self.deployment.ready(timeout=0)
        self.answer()
        with self.deployment.view() as view:
            return [h for h in readying.holders(self.deployment, view) if not h.ready]

    def enable(self, **options):
        """From wherever it is to enabled, with a new key."""
        if not self.manifest.pending:
            self.deployment.generate_key(**options)
        for relay in self.relays:
            relay.announce()
        self.ready()
        return self.deployment.enable()


class SimClient:
    """An agent."""

    def __init__(self, world, name, level):
        self.world, self.name, self.own_level = world, name, level
        self.identity, self.hop = SigningKey.generate(), SigningKey.generate()
        self.agent = self.identity.public.agent_id
        self.epoch, self.beacon_epoch, self.sequence = os.urandom(16), os.urandom(16), 0
        self.override = None  # as UPSEAL_LEVEL would be
        self.parent = Parent()
        token = Token.decode(world.deployment.token().result["tokens"][0])
        self.trust = Trust.start(
            world.folder.parent / f"trust-{self.agent.hex()}.json", token.fingerprint,
            token.deployment, token.least_serial,
        )  # fmt: skip
        with world.deployment.store.writing() as db:
            redeemed = tokens.redeem(db, token.secret, self.agent, "agent", world.now)
            assert redeemed is tokens.Redeemed.OK
            clients.add(db, _row(self, name, "agent", world.now), self.hop.public.der)

    def sync(self):
        """Asks for manifests, as agents do."""
        known = self.trust.manifest
        since = 0 if known is None else known.serial
        return self.trust.offer(self.world.chain(since), self.world.now)

    @property
    def level(self):
        if self.override is not None:
            return self.override
        manifest = self.trust.manifest
        found = manifest.level_for(self.agent) if manifest is not None else None
        return self.own_level if found is None else found

    def decision(self):
        return decide(self.level, self.trust.certificate(self.world.now), self.parent)

    def report(self):
        """Decides, and the server writes down what it would have got."""
        self.sequence += 1
        decision = self.decision()
        sealed = isinstance(decision, Seal)
        recipient: PublicKey | None = decision.recipients[0] if sealed else None
        epoch = self.beacon_epoch if isinstance(decision, Withhold) else self.epoch
        unit = NewUnit(
            agent=self.agent, epoch=epoch, sequence=self.sequence, stated=self.world.now,
            level=self.level.number, reason=int(decision.reason), digest=bytes(32),
            records=() if isinstance(decision, Withhold) else (b"report",),
            suite=int(recipient.suite) if sealed else None,
            key_id=recipient.key_id if sealed else None, received=self.world.now,
        )  # fmt: skip
        with self.world.deployment.store.writing() as db:
            if isinstance(decision, Withhold):
                activity.note_beacons(db, [unit], self.world.now)
            else:
                assert sealed or isinstance(decision, Clear)
                activity.note_units(db, [unit], [Status.STORED], self.world.now)
        return decision


class SimRelay:
    """A relay: its identity, its keys by generation."""

    def __init__(self, world, name, *, decrypts, accepts_sealed=True):
        self.world, self.name = world, name
        self.identity, self.hop = SigningKey.generate(), SigningKey.generate()
        self.agent = self.relay = self.identity.public.agent_id
        self.keys = {}
        self.up = True
        with world.deployment.store.writing() as db:
            clients.add(db, _row(self, name, "relay", world.now), self.hop.public.der)
            relays.put(
                db, relay=self.relay, name=name, identity=self.identity.public.der,
                accepts_sealed=accepts_sealed, decrypts=decrypts, enrolled=world.now,
            )  # fmt: skip

    def announce(self, kind=None):
        """Makes the keys that the manifest asks for, and says so."""
        manifest = self.world.manifest
        if not self.up:
            return
        for found in (manifest.encryption, manifest.pending):
            if found and found[0].generation not in self.keys:
                private = PrivateKey.generate(kind or found[0].public().name)
                self.keys[found[0].generation] = private
                with self.world.deployment.store.writing() as db:
                    relays.put_key(
                        db, relay=self.relay, generation=found[0].generation,
                        key_id=private.key_id, spki=private.public_key.to_pem().decode(),
                        received=self.world.now,
                    )  # fmt: skip

    def answer(self):
        if not self.up:
            return
        holder = self.relay.hex()
        with self.world.deployment.store.writing() as db:
            for posed in challenges.unanswered(db, holder, self.world.now):
                given = answer_challenge(self.keys[posed.generation], posed.challenge)
                proved = challenges.answer(db, holder, posed.generation, given, self.world.now)
                assert proved is not None
                relays.set_ready(db, self.relay, posed.generation, proved, self.world.now)


def _row(who, name, role, now):
    return clients.Agent(
        who.agent, name, who.identity.public.der, who.hop.public.agent_id, role, "-", now
    )

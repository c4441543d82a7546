# SPDX-License-Identifier: Apache-2.0
"""Target: a whole decrypting relay, in this process, whose parent is away."""

import tracemalloc

from upfuzz import world
from upfuzz.asgi import Application, Client
from upfuzz.harness import Target, check
from upfuzz.requests import mutate_requests, request_seeds
from upseal.fleet.agent.membership import TRUST, Membership
from upseal.fleet.credentials import Token, issue_credential
from upseal.fleet.relay.relay import Relay
from upseal.fleet.relay.settings import Settings
from upseal.fleet.trust import Outcome, Trust

_NOWHERE = "http://127.0.0.1:9"
"""The port of `discard`: nobody answers there."""
_OFF = {"hop_requests": 0, "hop_bytes": 0, "address_requests": 0, "address_failures": 0}


class _Relay(Application):
    def open(self):
        folder = self.folder / "relay"
        (folder / "keys").mkdir(parents=True, mode=0o700)
        folder.chmod(0o700)
        identity, hop = world.signing("relay 2", "p256"), world.signing("hop 2", "p256")
        (folder / "identity.pem").write_bytes(identity.to_pem())
        (folder / "hop.pem").write_bytes(hop.to_pem())
        key = world.private("p256-b")
        (folder / "keys" / f"2-{key.key_id.hex()}.pem").write_bytes(key.to_pem())
        for file in (*folder.glob("*.pem"), *folder.glob("keys/*.pem")):
            file.chmod(0o600)
        manifest = world.manifest()
        credential = self._credential(hop, "relay")
        Membership(world.DEPLOYMENT, identity.public.agent_id, credential).save(folder)
        first = world.signing("manifest")
        trust = Trust.start(folder / TRUST, first.public.fingerprint, world.DEPLOYMENT, 1)
        assert trust.offer([manifest.sign(first)], world.NOW) is Outcome.ACCEPTED
        settings = {
            "parent": _NOWHERE, "directory": str(folder), "decrypting": True, "rates": _OFF,
            "queue": {"max_bytes": 64 << 20, "min_free": 0}, "uploads": {"min_free": 0},
            "forward": {"retry": 60.0}, "refresh": {"manifest": 3600.0},
        }  # fmt: skip
        self.relay = Relay(Settings.parse(settings))
        self.recipients = [key.public() for key in manifest.encryption]
        self.enrol_key = manifest.enrolment.public()
        self.enrolment = Token(world.DEPLOYMENT, first.public.fingerprint, 7, b"s" * 16)
        agent, below = world.signing("hop of an agent"), world.signing("hop of a relay")
        self.clients = {
            "agent": Client(world.signing("agent"), agent, self._credential(agent, "agent")),
            "relay": Client(world.signing("relay 1"), below, self._credential(below, "relay")),
            "stranger": Client(
                world.signing("stranger"), world.signing("hop"), self._credential(agent, "agent")
            ),
        }
        return self.relay.app()

    @staticmethod
    def _credential(hop, role):
        return issue_credential(
            world.DEPLOYMENT, hop.public, role, world.signing("receipt"), world.NOW
        )

    def shut(self):
        self.relay.close()

    def look_at_results(self, found):
        for result in found:
            check(not result.receipts, "a receipt that no server has given")
        check(self.relay.control.current() is not None, "the manifest is gone")


_running = []


def _run(data):
    # Not while memory is measured: to start takes more than any request.
    if _running and _running[0].count >= _Relay.most and not tracemalloc.is_tracing():
        _close()
    if not _running:
        _running.append(_Relay())
    _running[0].run(data)


def _close():
    while _running:
        _running.pop().close()


TARGETS = {
    "relay": Target(
        "relay", _run, request_seeds, mutate_requests, "http.dict", longest=8192,
        memory=48 << 20, close=_close,
    )
}  # fmt: skip

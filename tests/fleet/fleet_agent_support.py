# SPDX-License-Identifier: Apache-2.0
"""For the tests of the agent: folders of enrolled agents, and a parent that can be told to lie."""

import threading
import time
from contextlib import contextmanager

from fleet_relay_support import Parent, eventually, hop_of
from fleet_support import Site
from starlette.responses import PlainTextResponse, Response

from upseal import PrivateKey
from upseal.fleet import jws
from upseal.fleet.agent.agent import Agent
from upseal.fleet.agent.membership import SPOOL_KEY, TRUST, Membership
from upseal.fleet.agent.settings import Settings
from upseal.fleet.credentials import HopCheck
from upseal.fleet.http import results
from upseal.fleet.http.apps import read_body
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.serving import in_thread
from upseal.fleet.units import body_id, body_kind, parse_clear, parse_rows

QUICK = {
    "batch": {"seconds": 0.0},
    "gather": {"interval": 0},
    "spool": {"min_free": 0},
    "http": {"timeout": 10, "wait": 2},
    "send": {"refresh": 0.1, "resend": 0.2, "beacon": 0.1, "retry": 0.02, "retry_most": 0.05},
}
"""Settings by which nothing is waited for long."""


class AgentParent(Parent):
    """As a relay or server looks from below. Whatever it says can be replaced."""

    def adopt(self, site):
        """Speaks for this deployment from now on, honestly."""
        self.site = site
        self.said_by = None
        site.sign()
        self.hops = HopCheck(lambda: site.manifest)
        self.reset()

    def reset(self):
        super().reset()
        self.raw = None  # callable(path) -> Response | None: said in place of all else
        self.manifests = None  # callable() -> list of tokens
        self.capable = None  # callable() -> capabilities
        self.clock = 0  # milliseconds that this parent is ahead
        self.posts = []  # times of POST /v1/units

    @property
    def beacons(self):
        """Statements of the beacons that came, all of them."""
        units = [unit for body in self.bodies if body_kind(body) == "clear"
                 for unit in parse_rows(parse_clear(body))]  # fmt: skip
        return [unit.statement for unit in units if unit.beacon]

    def opened(self, body):
        """The units in a body."""
        if body_kind(body) == "clear":
            return parse_rows(parse_clear(body))
        context = b"upseal/v1 fleet\0" + self.site.deployment
        return parse_rows(list(self.site.opener().open_batch(body, context)))

    @property
    def kinds(self):
        """Of the bodies that came with reports in them."""
        return {
            kind for body in self.bodies
            if (kind := body_kind(body)) == "sealed" or not parse_rows(parse_clear(body))[0].beacon
        }  # fmt: skip

    async def _hop(self, request):
        body = await read_body(request, 64 << 20)
        hop_of(self.hops, request, body, self.clock)
        return body

    def _said(self, path):
        return self.raw(path) if self.raw is not None else None

    def _dated(self, response):
        response.headers["date"] = time.strftime(
            "%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + self.clock / 1000)
        )
        return response

    async def _units(self, request):
        self.posts.append(time.monotonic())
        try:
            return self._said("units") or self._dated(await super()._units(request))
        except Problem as problem:
            return self._dated(problem.to_response())

    async def _results(self, request):
        return self._said("results") or await super()._results(request)

    async def _manifest(self, request):
        said = self._said("manifest")
        if said is not None:
            return said
        if self.manifests is not None:
            return PlainTextResponse("".join(f"{token}\n" for token in self.manifests()))
        return await super()._manifest(request)

    async def _capabilities(self, request):
        said = self._said("capabilities")
        if said is not None:
            return said
        if self.capable is not None:
            return PlainTextResponse(self.capable())
        return await super()._capabilities(request)


@contextmanager
def parent_above(site):
    """A parent that is up: gives it, with ``url``."""
    parent = AgentParent(site)
    with in_thread(parent.app) as address:
        parent.url = address.url
        yield parent


def capabilities(relay, key=None, parent=None, typ=jws.CAPABILITIES, **changes):
    """What a relay of `Site.add_relay` signs about itself."""
    now = int(time.time() * 1000)
    claims = {
        "sub": relay.relay.hex(), "accepts_sealed": True, "accepts_clear": True,
        "decrypts": bool(relay.private), "key_ids": [k.key_id.hex() for k in relay.private],
        "serial": 1, "iat": now, "exp": now + 3_600_000, "parent": parent,
    }  # fmt: skip
    return jws.sign(claims | changes, key or relay.identity, typ)


def make_folder(site, folder, name="agent"):
    """The folder of a newly enrolled agent."""
    member = site.agent()
    folder.mkdir(mode=0o700)
    (folder / "identity.pem").write_bytes(member.identity.to_pem())
    (folder / "hop.pem").write_bytes(member.hop.to_pem())
    (folder / SPOOL_KEY).write_bytes(PrivateKey.generate().to_pem())
    Membership(site.deployment, member.agent, member.credential).save(folder)
    site.trust(folder / TRUST)
    return folder


def settings_for(folder, url, **changes):
    """Quick settings, with changes: sections as dicts."""
    table = {"parent": url, "directory": str(folder), "name": "agent"}
    for name, section in QUICK.items():
        table[name] = {**section, **changes.pop(name, {})}
    return Settings.parse({**table, **changes})


@contextmanager
def agent_of(site, tmp_path, url, *, started=True, name="agent", **changes):
    """A new agent below ``url``."""
    folder = make_folder(site, tmp_path / name)
    with Agent(settings_for(folder, url, **changes)) as agent:
        if started:
            agent.start()
        yield agent


def drained(agent):
    """Waits until all is receipted."""
    eventually(lambda: agent.spool.counters().depth == 0)
    counters = agent.spool.counters()
    assert counters.made == counters.stored + counters.lost
    return counters


__all__ = [
    "AgentParent", "PrivateKey", "Response", "Site", "agent_of", "body_id", "capabilities",
    "drained", "eventually", "make_folder", "parent_above", "results", "settings_for",
    "threading",
]  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""The parent, and what is believed about it and about the deployment.

Whatever the parent says counts only if it is signed: by the deployment's signing key (manifests),
or by a relay's or receipt key that a verified manifest names (capabilities). Anything else it may
say changes how long we stay away, and nothing more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile

from upseal import PublicKey
from upseal.fleet.agent.membership import Credentials
from upseal.fleet.agent.rows import now_ms
from upseal.fleet.agent.settings import Http
from upseal.fleet.agent.tally import Alarms
from upseal.fleet.capabilities import SKEW_MS, Hop, Way, certified, verified_hops
from upseal.fleet.credentials import prove
from upseal.fleet.http.client import Client, ClientTls, Response, Timeouts, Unreachable
from upseal.fleet.http.logs import event
from upseal.fleet.identity import VerifyKey
from upseal.fleet.manifest import Manifest
from upseal.fleet.policy import Absent, Certificate
from upseal.fleet.policy import Parent as Known
from upseal.fleet.trust import Outcome, Trust
from upseal.fleet.uploads.words import proven

_TOKENS = 256
_MANIFEST_MAX = 16 << 20
_CAPABILITIES_MAX = 1 << 18
_OFFSET_LEAST_MS = 2_000
_OFFSET_PAUSE = 10.0
"""Seconds before a parent may correct our clock again, or one that plays with it would have every
request sent twice. Not long: its clock may jump, and its `Date` lag behind when it does."""
_log = logging.getLogger("upseal.agent")


@dataclass(frozen=True, slots=True)
class Believed:
    """What a decision rests on, at one moment."""

    manifest: Manifest | None
    certificate: Certificate | Absent
    parent: Known

    @property
    def serial(self) -> int:
        """Of the manifest; -1 if there is none."""
        return -1 if self.manifest is None else self.manifest.serial

    def receipt_keys(self) -> dict[bytes, VerifyKey]:
        """By key id."""
        keys = () if self.manifest is None else self.manifest.receipt_keys
        return {key.key_id: key for key in keys}


def client_for(url: str, settings: Http, connections: int = 4) -> Client:
    """Speaks to a parent as the settings say."""
    tls = None
    if url.startswith("https://"):
        tls = ClientTls(settings.ca, settings.certificate, settings.key)
    times = Timeouts(min(10.0, settings.timeout), settings.timeout, max(60.0, settings.timeout * 4))
    return Client(url, times, tls, limit=4 << 20, connections=connections)


class Parent:
    """Safe to share between threads.

    Args:
        client: speaks to it.
        credentials: who we are at this hop.
        trust: what we believe, on the disk.
        alarms: where contradictions go.
        way: whose word counts at the parent's address; None: of who answers first, in memory.
    """

    def __init__(
        self,
        client: Client,
        credentials: Credentials,
        trust: Trust,
        alarms: Alarms,
        way: Way | None = None,
    ) -> None:
        self.client = client
        self._credentials = credentials
        self._trust = trust
        self._alarms = alarms
        self._way = way if way is not None else Way(None, "")
        self._lock = threading.Lock()
        self._etag: str | None = None
        self._hops: tuple[Hop, ...] = ()
        self._offset = 0
        self._corrected: float | None = None

    # -- requests --------------------------------------------------------------------

    def post(
        self,
        path: str,
        body: bytes,
        *,
        wait: float = 0,
        kind: str,
        still: Callable[[], bool] = lambda: True,
    ) -> Response:
        """An authenticated request; again, once, if our clock was off and could be corrected.

        ``still`` is asked before it goes again: a parent may have taken minutes to answer.

        Raises:
            Unreachable: no answer came.
        """
        return self.request("POST", path, body, {"content-type": kind}, wait=wait, still=still)

    def request(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        wait: float = 0,
        still: Callable[[], bool] = lambda: True,
    ) -> Response:
        """As `post`, with any method: what an upload's `Carrier` speaks through."""
        response = self._request(method, path, body, headers, wait)
        problem = response.problem()
        clock = problem is not None and problem.name == "clock"
        if clock and self._correct(response.date) and still():
            response = self._request(method, path, body, headers, wait)
        return response

    def _request(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], wait: float
    ) -> Response:
        now = now_ms() + self._offset
        mine, bare = self._credentials, path.partition("?")[0]
        said = proven(bare, headers, body)
        proof = prove(mine.credential, mine.hop, method, bare, said, now)
        return self.client.request(method, path, body, {**headers, **proof}, wait=wait)

    def _correct(self, date: int | None) -> bool:
        """Takes the other side's clock for our proofs. Nothing else goes by it."""
        now = time.monotonic()
        with self._lock:
            if date is None or (
                self._corrected is not None and now - self._corrected < _OFFSET_PAUSE
            ):
                return False
            offset = date - now_ms()
            if abs(offset - self._offset) < _OFFSET_LEAST_MS:
                return False
            self._offset, self._corrected = offset, now
        event(_log, "clock corrected for proofs", level=logging.WARNING, milliseconds=offset)
        return True

    # -- manifest and capabilities -----------------------------------------------------

    def refresh(self) -> bool:
        """Asks for a newer manifest, and what the parent can. True if the manifest is a new one.

        Raises:
            Unreachable: no answer came.
            OSError: what is believed cannot be written down, and so is not believed.
            TrustError: somebody has damaged what was believed.
        """
        changed = self._refresh_manifest()
        self._refresh_capabilities()
        return changed

    def _refresh_manifest(self) -> bool:
        known = self._trust.manifest
        etag = self._etag
        since = 0 if known is None else known.serial
        headers = {} if etag is None else {"if-none-match": etag}
        response = self.client.request(
            "GET", f"/v1/manifest?since={since}", headers=headers, limit=_MANIFEST_MAX
        )
        if response.status != 200:
            if response.status != 304:
                event(_log, "no manifest from the parent", status=response.status)
            return False
        try:
            tokens = response.body.decode("ascii").split()
        except UnicodeDecodeError:
            tokens = []
        if not 0 < len(tokens) <= _TOKENS:
            event(_log, "the parent's manifest is none", level=logging.WARNING)
            return False
        outcome = self._trust.offer(tokens, now_ms())
        now = self._trust.manifest
        good = outcome in (Outcome.ACCEPTED, Outcome.SAME)
        self._etag = _etag(response.headers) if good else None
        if outcome is Outcome.ACCEPTED and now is not None:
            event(_log, "new manifest", serial=now.serial, state=now.state.value)
            return True
        if outcome is Outcome.CONTRADICTION:
            self._alarms.add("manifest", "two manifests of the same serial")
        elif not good:
            event(_log, "manifest ignored", level=logging.WARNING, outcome=outcome)
        return False

    def _refresh_capabilities(self) -> None:
        response = self.client.request("GET", "/v1/capabilities", limit=_CAPABILITIES_MAX)
        hops: tuple[Hop, ...] = ()
        manifest = self._trust.manifest
        if response.status == 200 and manifest is not None:
            hops = self._way.hear(response.body, manifest, now_ms())
            if self._way.stranger is not None:
                self._alarms.add(
                    "parent", f"another one answers: {self._way.stranger}; `agent forget-parent`"
                )
        if not hops and manifest is not None:
            # What was verified counts until it expires, or is replaced by what is verified too.
            hops = tuple(takewhile(lambda hop: certified(hop, manifest), self._hops))
        self._hops = hops

    def believed(self) -> Believed:
        """What counts now."""
        now = now_ms()
        manifest, certificate = self._trust.counting(now)
        return Believed(manifest, certificate, known_parent(self._hops, now))

    def stale(self) -> bool:
        """Whether the manifest is past its expiry."""
        return self._trust.stale(now_ms())

    def facts(self) -> dict[str, float]:
        """For whoever watches: times in seconds; the clock's is 0 until the parent minds it."""
        manifest = self._trust.manifest
        return {
            "manifest_serial": 0 if manifest is None else manifest.serial,
            "manifest_expires": 0 if manifest is None else manifest.expires / 1000,
            "clock_offset": self._offset / 1000,
        }

    def names(self) -> list[str]:
        """The relays above, nearest first, as far as they have said so themselves."""
        return ["server" if hop.relay is None else hop.relay.name for hop in self._hops]


def known_parent(hops: tuple[Hop, ...], now: int) -> Known:
    """What `decide` needs to know of the way up."""
    hops = tuple(takewhile(lambda hop: hop.expires + SKEW_MS >= now, hops))
    if not hops:
        return Known()
    return Known(all(hop.accepts_sealed for hop in hops), _nearest(hops))


def _nearest(hops: tuple[Hop, ...]) -> PublicKey | None:
    """The key of the nearest relay that decrypts, the newest that it says it holds."""
    for hop in hops:
        if hop.relay is not None and hop.decrypts and hop.relay.decrypts:
            for entry in hop.relay.keys:
                if entry.public().key_id.hex() in hop.key_ids:
                    return entry.public()
    return None


def _etag(headers: Mapping[str, str]) -> str | None:
    etag = headers.get("etag")
    return etag if etag and len(etag) <= 200 and etag.isprintable() and etag.isascii() else None


__all__ = ["Believed", "Hop", "Parent", "Unreachable", "client_for", "verified_hops"]

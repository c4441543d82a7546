# SPDX-License-Identifier: Apache-2.0
"""What a relay believes, and what it tells those below: manifest and capabilities.

One thread looks upwards every few seconds. What it finds lies ready for whoever asks, so that a
request from below costs no signature.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from typing import Any

from upseal.fleet import jws
from upseal.fleet.capabilities import FILE, SKEW_MS, Way, verified_hops
from upseal.fleet.http.client import Unreachable
from upseal.fleet.http.logs import event
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import MANIFEST_MAX, Manifest
from upseal.fleet.relay.keys import RelayKeys
from upseal.fleet.relay.proving import Proving
from upseal.fleet.relay.settings import Settings
from upseal.fleet.relay.uplink import Uplink
from upseal.fleet.trust import Outcome, Trust

_log = logging.getLogger(__name__)

LIFE_MS = 3_600_000
"""How long signed capabilities hold."""
_CAPABILITIES_MAX = 128 << 10
_ANSWER_MAX = MANIFEST_MAX + (16 << 20)


class Control:
    """Safe for threads."""

    def __init__(
        self,
        settings: Settings,
        trust: Trust,
        identity: SigningKey,
        keys: RelayKeys,
        uplink: Uplink,
    ) -> None:
        self._settings, self._trust, self._identity = settings, trust, identity
        self._keys, self._uplink = keys, uplink
        self.proving = Proving(
            identity, keys, uplink.post, uplink.now_ms, decrypting=settings.decrypting
        )
        self._looking = threading.Lock()
        self._etag: str | None = None
        self._served: dict[int, tuple[str, bytes]] = {}
        self._served_etag: str | None = None
        self._above: str | None = None
        self._way = Way(settings.directory / FILE, settings.parent, settings.parent_ids)
        self._capabilities: tuple[str, bytes] | None = None
        self._signed_claims: dict[str, Any] = {}
        self._signed_at = 0.0
        self._issued = 0
        self.after: Callable[[], None] = lambda: None
        """Called after each look."""
        self._stop = threading.Event()
        self.turns = 0
        """Looks upwards, also those that came to nothing."""
        self._thread = threading.Thread(target=self._run, name="relay-control", daemon=True)
        self._sign()

    # -- what others ask ---------------------------------------------------------------

    def current(self) -> Manifest | None:
        """The newest verified manifest."""
        return self._trust.manifest

    def manifest(self, since: int) -> tuple[str, bytes] | None:
        """ETag and answer of ``GET /v1/manifest``."""
        etag = self._trust.etag
        if etag is None:
            return None
        if etag != self._served_etag:
            self._served, self._served_etag = {}, etag
        # Agents are at few serials: mostly at the one before, or at the newest.
        served = self._served.get(since)
        if served is None:
            text = "".join(f"{token}\n" for token in self._trust.since(since))
            served = (etag, text.encode("ascii"))
            if len(self._served) < 8:
                self._served[since] = served
        return served

    def capabilities(self) -> tuple[str, bytes] | None:
        """ETag and answer of ``GET /v1/capabilities``."""
        return self._capabilities

    @property
    def parent_accepts_sealed(self) -> bool | None:
        """What the relays above have signed; None if nothing was heard."""
        manifest = self._trust.manifest
        if self._above is None or manifest is None:
            return None
        hops = verified_hops(self._above, manifest, _now())
        return all(hop.accepts_sealed for hop in hops) if hops else None

    # -- looking upwards -----------------------------------------------------------------

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it."""
        self._stop.set()

    def join(self, timeout: float | None = None) -> bool:
        """Waits for the end; whether it is there."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def serial(self) -> int | None:
        """Fetches the manifest; the serial that holds then."""
        with suppress(Unreachable), self._looking:
            self._refresh_manifest()
        manifest = self._trust.manifest
        return None if manifest is None else manifest.serial

    def look(self) -> None:
        """Looks once for all there is.

        Raises:
            Unreachable: the parent is away.
        """
        try:
            with self._looking:
                self._refresh_manifest()
                manifest = self._trust.manifest
                if manifest is not None:
                    self._refresh_above(manifest)
                    self.proving.look(manifest)
        finally:
            self._sign()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with suppress(Unreachable):  # the uplink has said so
                    self.look()
                self.after()
            except Exception as error:
                event(_log, "looking upwards failed", level=logging.ERROR, exc=error)
            self.turns += 1
            self._stop.wait(self._settings.refresh.manifest)

    def _refresh_manifest(self) -> None:
        known = self._trust.manifest
        since = 0 if known is None else known.serial
        headers = {} if self._etag is None else {"if-none-match": self._etag}
        response = self._uplink.get(f"/v1/manifest?since={since}", headers, limit=_ANSWER_MAX)
        if response.status != 200:
            return
        try:
            tokens = response.body.decode("ascii").split()
        except UnicodeDecodeError:
            tokens = ["?"]
        outcome = self._trust.offer(tokens, int(time.time() * 1000))
        good = tokens and outcome in (Outcome.ACCEPTED, Outcome.SAME)
        self._etag = _etag(response.headers.get("etag")) if good else None
        newest = self._trust.manifest
        if outcome is Outcome.ACCEPTED and newest is not None:
            event(_log, "new manifest", serial=newest.serial, state=newest.state)
        elif outcome is Outcome.CONTRADICTION:
            event(_log, "two manifests of one serial", level=logging.ERROR, serial=since)
        elif not good:
            event(_log, "manifest not believed", level=logging.WARNING, outcome=outcome)

    def _refresh_above(self, manifest: Manifest) -> None:
        """The parent's words, if they are signed by whom the manifest names."""
        response = self._uplink.get("/v1/capabilities", limit=_CAPABILITIES_MAX)
        if response.status != 200:
            return
        try:
            token = response.body.decode("ascii").strip()
        except UnicodeDecodeError:
            return
        if token != self._above and self._way.hear(token, manifest, _now()):
            self._above = token

    # -- our own words ---------------------------------------------------------------------

    def _claims(self) -> dict[str, Any]:
        manifest = self._trust.manifest
        keys = [key.key_id.hex() for _, key in reversed(self._keys.all())]
        settings = self._settings
        return {
            "sub": self._identity.public.agent_id.hex(),
            "accepts_sealed": settings.accepts_sealed,
            "accepts_clear": settings.accepts_clear,
            "decrypts": settings.decrypting,
            "key_ids": keys if settings.decrypting else [],
            "serial": 0 if manifest is None else manifest.serial,
            "parent": self._above,
        }

    def _sign(self) -> None:
        """Signs our capabilities if they have changed, or were signed a while ago."""
        claims = self._claims()
        age = time.monotonic() - self._signed_at
        if claims == self._signed_claims and age < self._settings.refresh.capabilities:
            return
        now = self._uplink.now_ms()
        if self._issued - SKEW_MS <= now <= self._issued:
            # The clock was set back a little: who has heard our last words takes no older ones.
            now = self._issued + 1
        self._issued = now
        times = {"iat": now, "exp": now + LIFE_MS}
        token = jws.sign({**claims, **times}, self._identity, jws.CAPABILITIES).encode()
        self._capabilities = (sha256(token).hexdigest()[:16], token)
        self._signed_claims, self._signed_at = claims, time.monotonic()


def _now() -> int:
    """Our own clock: the parent's `Date`, which nobody has signed, is for proofs."""
    return time.time_ns() // 1_000_000


def _etag(text: str | None) -> str | None:
    return text if text and len(text) <= 200 and text.isprintable() and text.isascii() else None

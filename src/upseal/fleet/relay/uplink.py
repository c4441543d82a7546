# SPDX-License-Identifier: Apache-2.0
"""The way up: requests to the parent, each proven with this relay's own credential."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from upseal.fleet.credentials import prove
from upseal.fleet.http.client import Client, Response, Unreachable
from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.identity import SigningKey
from upseal.fleet.uploads.words import proven

_log = logging.getLogger(__name__)

REFUSED = frozenset({"unauthenticated", "clock", "revoked", "not-enrolled"})
"""Problems that say something about this relay, and nothing about what it sent."""
PER_BODY = frozenset(
    {"malformed", "too-large", "conflict", "stale-key", "sealed-not-accepted", "clear-not-accepted"}
)
"""Problems of one body, also where they are the answer to a whole request."""
HANDED_DOWN = frozenset({"malformed", "too-large", "conflict"})
"""Those of a body made here that whoever sent what is in it can do something about."""


class Uplink:
    """Safe for threads. Knows whether the parent is there, and how far its clock is off ours."""

    def __init__(self, client: Client, credential: str, hop_key: SigningKey) -> None:
        self.client = client
        self._credential, self._hop_key = credential, hop_key
        self._lock = threading.Lock()
        self._offset = 0
        self._away_since: float | None = None
        self._refusal: str | None = None

    def now_ms(self) -> int:
        """Unix milliseconds, by the parent's clock if that differs."""
        return time.time_ns() // 1_000_000 + self._offset

    def get(self, path: str, headers: dict[str, str] | None = None, *, limit: int) -> Response:
        """An unauthenticated GET; whatever the status.

        Raises:
            Unreachable: no whole answer came.
        """
        try:
            response = self.client.request("GET", path, headers=headers, limit=limit)
        except Unreachable:
            self._heard(None)
            raise
        self._heard(response)
        return response

    def plain(self, path: str, body: bytes) -> Response:
        """A POST that proves itself (an enrolment), handed through; whatever the status.

        Raises:
            Unreachable: no whole answer came.
        """
        headers = {"content-type": "application/octet-stream"}
        return self.client.request("POST", path, body, headers, limit=1 << 20)

    def post(
        self, path: str, body: bytes, *, wait: float = 0, kind: str = "application/octet-stream"
    ) -> Response:
        """A POST with our proof.

        Raises:
            Unreachable: no whole answer came.
            Problem: the parent refuses.
        """
        response = self.request("POST", path, body, {"content-type": kind}, wait=wait)
        problem = response.problem()
        if problem is not None:
            raise problem
        return response

    def request(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        wait: float = 0,
    ) -> Response:
        """With our proof, and any method; whatever the status. An upload's `Carrier` uses it.

        Raises:
            Unreachable: no whole answer came.
        """
        response = self._request(method, path, body, headers, wait)
        problem = response.problem()
        if problem is not None and problem.name == "clock" and self._set_clock(response):
            response = self._request(method, path, body, headers, wait)
            problem = response.problem()
        self._heard(response, problem, proven=True)
        return response

    def _request(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], wait: float
    ) -> Response:
        bare = path.partition("?")[0]
        said = proven(bare, headers, body)
        proof = prove(self._credential, self._hop_key, method, bare, said, self.now_ms())
        try:
            return self.client.request(method, path, body, {**headers, **proof}, wait=wait)
        except Unreachable:
            self._heard(None)
            raise

    def _set_clock(self, response: Response) -> bool:
        """Takes the parent's clock for the proofs: whether that can be expected to help."""
        if response.date is None:
            return False
        offset = response.date - time.time_ns() // 1_000_000
        with self._lock:
            changed = abs(offset - self._offset) > 5000
            self._offset = offset
        if changed:
            event(_log, "clock differs from the parent's", level=logging.WARNING, ms=offset)
        return changed

    def _heard(
        self, response: Response | None, problem: Problem | None = None, *, proven: bool = False
    ) -> None:
        """Notes what an answer (None: no answer) says about the parent, and about us there."""
        with self._lock:
            was_away, was_refused = self._away_since is not None, self._refusal
            if response is None:
                self._away_since = self._away_since or time.time()
            else:
                self._away_since = None
            if proven and problem is None:
                self._refusal = None
            elif problem is not None and problem.name in REFUSED:
                self._refusal = problem.name
            refusal = self._refusal
        if response is None and not was_away:
            event(_log, "parent away", level=logging.WARNING, parent=self.client.base_url)
        elif response is not None and was_away:
            event(_log, "parent back", parent=self.client.base_url)
        if refusal is not None and refusal != was_refused:
            event(_log, "parent refuses this relay", level=logging.ERROR, problem=refusal)

    @property
    def away(self) -> bool:
        """Whether the last request found no parent."""
        return self._away_since is not None

    @property
    def away_since(self) -> float | None:
        """When that began, in unix seconds."""
        return self._away_since

    @property
    def offset(self) -> float:
        """Seconds that the parent's clock is before ours; 0 until the parent has minded it."""
        return self._offset / 1000

    @property
    def refusal(self) -> str | None:
        """The name of the problem the parent has with this relay itself."""
        return self._refusal

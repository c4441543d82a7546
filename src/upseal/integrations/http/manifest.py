# SPDX-License-Identifier: Apache-2.0
"""The policy that follows a deployment of the fleet: its signed manifest, its levels, its parent.

trust = Trust.start("trust.json", fingerprint, deployment, least_serial)  # Trust.load later
policy = FollowManifest.at("https://relay.example:8451", trust)

Whatever the source answers counts only if it is signed, by the key that `Trust` has pinned, or by
one that a verified manifest names (docs/protocol.md, "Manifest" and "Capabilities").
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Self, TypeAlias

from upseal.core.forks import renew_in_children
from upseal.fleet.policy import Decision, Level, decide

try:
    from upseal.fleet.agent.parent import known_parent
    from upseal.fleet.capabilities import Hop, Way, certified
    from upseal.fleet.http.client import Client, ClientTls, Timeouts
    from upseal.fleet.http.logs import event
    from upseal.fleet.trust import Outcome, Trust
except ImportError as error:
    raise ImportError(
        "what follows a deployment is not installed: pip install 'upseal[fleet]'"
    ) from error

__all__ = ["FollowManifest", "Level", "Trust"]

_MANIFEST_MAX = 16 << 20
_CAPABILITIES_MAX = 1 << 18
_TOKENS = 256
_log = logging.getLogger("upseal.integrations")

Source: TypeAlias = Callable[[int], Sequence[str | bytes]]
"""Gives the manifests since a serial, oldest first; OSError if it cannot."""
Words: TypeAlias = Callable[[], bytes | None]
"""Gives the parent's signed capabilities, or None; OSError if it cannot."""


class FollowManifest:
    """Seals to the keys of the newest verified manifest, by its level. Safe for threads.

    Args:
        trust: what is believed, and the pinned key.
        source: where manifests come from; it need not be believed.
        level: where the manifest says none; `Level.REQUIRED`: sealed or not at all.
        agent: who we are in the deployment, 16 bytes, if the manifest may give us a level of our
            own; None: its default level counts.
        capabilities: of the parent, if requests go through relays of the deployment.
        way: whose capabilities count there; None: of who answers first, in memory.
        refresh: seconds between two looks.
        pause: seconds before another ``stale-key`` makes us look again, after a look in vain.

    Raises:
        ValueError: a time is not positive, or ``agent`` has not 16 bytes.
    """

    def __init__(
        self,
        trust: Trust,
        source: Source,
        *,
        level: Level | str = Level.REQUIRED,
        agent: bytes | None = None,
        capabilities: Words | None = None,
        way: Way | None = None,
        refresh: float = 300.0,
        pause: float = 5.0,
    ) -> None:
        if refresh <= 0 or pause <= 0:
            raise ValueError("refresh and pause are seconds above 0")
        if agent is not None and len(agent) != 16:
            raise ValueError("an agent's id has 16 bytes")
        self._trust, self._source, self._words = trust, source, capabilities
        self._level, self._agent = Level.parse(level), agent
        self._way = way if way is not None else Way(None, "")
        self._refresh, self._pause = refresh, pause
        self._hops: tuple[Hop, ...] = ()
        self._next = self._in_vain = float("-inf")
        self._lock = threading.Lock()
        renew_in_children(self)

    def after_fork(self) -> None:
        """For the child of a fork: a lock of its own."""
        self._lock = threading.Lock()

    @classmethod
    def at(
        cls,
        url: str,
        trust: Trust,
        *,
        tls: ClientTls | None = None,
        way: Way | None = None,
        level: Level | str = Level.REQUIRED,
        agent: bytes | None = None,
        refresh: float = 300.0,
        pause: float = 5.0,
    ) -> Self:
        """Follows what a relay or the server of the deployment publishes at a URL."""
        client = Client(url, Timeouts(5.0, 10.0, 30.0), tls)

        def manifests(since: int) -> Sequence[str]:
            path = f"/v1/manifest?since={since}"
            answer = client.request("GET", path, limit=_MANIFEST_MAX)
            return answer.body.decode("ascii", "replace").split() if answer.status == 200 else []

        def capabilities() -> bytes | None:
            answer = client.request("GET", "/v1/capabilities", limit=_CAPABILITIES_MAX)
            return answer.body if answer.status == 200 else None

        return cls(
            trust,
            manifests,
            level=level,
            agent=agent,
            capabilities=capabilities,
            way=way,
            refresh=refresh,
            pause=pause,
        )

    def decide(self) -> Decision:
        """What counts now, by the table of `upseal.fleet.policy`."""
        now = _now_ms()
        manifest, certificate = self._trust.counting(now)
        level: Level | None = None
        if manifest is not None:
            mine = self._agent
            level = manifest.default_level if mine is None else manifest.level_for(mine)
        return decide(level or self._level, certificate, known_parent(self._hops, now))

    @property
    def due(self) -> bool:
        """Whether the last look is ``refresh`` seconds ago, or in vain and ``pause`` ago."""
        return time.monotonic() >= self._next

    def renew(self, *, stale: bool = False) -> None:
        """Looks for a newer manifest, unless another thread just does or has.

        Raises:
            TrustError: somebody has damaged what was believed.
        """
        before = self._serial()
        # Who has something to go by need not wait for a look that is only due.
        if not self._lock.acquire(blocking=stale or before < 0):
            return
        try:
            now = time.monotonic()
            early = now - self._in_vain < self._pause if stale else not self.due
            if self._serial() != before or early:
                return
            self._next = now + min(self._pause, self._refresh)
            try:
                self._look()
            except OSError as error:
                event(_log, "no manifest", level=logging.WARNING, error=str(error))
            else:
                self._next = now + self._refresh
            if stale and self._serial() == before:
                self._in_vain = now
        finally:
            self._lock.release()

    def _serial(self) -> int:
        manifest = self._trust.manifest
        return -1 if manifest is None else manifest.serial

    def _look(self) -> None:
        tokens = self._source(max(0, self._serial()))
        outcome = self._trust.offer(list(tokens)[:_TOKENS], _now_ms())
        if outcome not in (Outcome.ACCEPTED, Outcome.SAME):
            event(_log, "manifest ignored", level=logging.WARNING, outcome=outcome.value)
        manifest = self._trust.manifest
        if self._words is None or manifest is None:
            return
        said = self._words()
        hops = () if said is None else self._way.hear(said, manifest, _now_ms())
        # What was verified counts until it expires, or is replaced by what is verified too.
        self._hops = hops or tuple(takewhile(lambda hop: certified(hop, manifest), self._hops))


def _now_ms() -> int:
    return int(time.time() * 1000)

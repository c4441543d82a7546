# SPDX-License-Identifier: Apache-2.0
"""What one hop may make the server spend on public-key operations.

Unwrapping a session costs 50 us (X25519) to 4.5 ms (RSA-4096), and whoever is enrolled can make up
sessions at no cost of his own. So the time spent on each hop's new sessions is counted, and a hop
that is over its share is told to come back.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from upseal.errors import KeyUnavailable

_HOPS = 65_536
_LONGEST = 300.0


class Throttled(Exception):  # noqa: N818 - a state of affairs
    """A hop has spent its share; ``seconds`` until it has some again."""

    def __init__(self, seconds: float) -> None:
        super().__init__("too many new sessions")
        self.seconds = seconds


class Throttle:
    """Seconds of unwrapping for each hop: so many a second, and a reserve for a burst.

    ``share`` is a part of one core. A relay carries many agents and gets ``relay_factor`` times it.
    """

    def __init__(self, share: float = 0.05, reserve: float = 5.0, relay_factor: float = 10) -> None:
        """The defaults: 1,000 new X25519 sessions a second of one agent, 100,000 at once."""
        self.share, self.reserve, self.relay_factor = share, reserve, relay_factor
        self.unwraps = 0
        self.seconds = 0.0
        self._spent: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()
        self._local = threading.local()

    @contextmanager
    def on_account_of(self, hop: bytes, role: str) -> Iterator[None]:
        """What this thread unwraps inside is this hop's.

        Raises:
            Throttled: at the end, if something was not unwrapped for that reason.
        """
        factor = self.relay_factor if role == "relay" else 1.0
        self._local.account = (hop, factor)
        self._local.refused = None
        try:
            yield
        finally:
            self._local.account = None
            refused: float | None = self._local.refused
            self._local.refused = None
            if refused is not None:
                # Whatever the opener made of it: it was never asked to look.
                raise Throttled(refused)

    @contextmanager
    def unwrapping(self, clock: Callable[[], float] = time.thread_time) -> Iterator[None]:
        """Round one unwrap.

        Args:
            clock: what it costs is measured by: a key that is kept elsewhere takes no time of ours.
        """
        account: tuple[bytes, float] | None = getattr(self._local, "account", None)
        if account is not None:
            over = self._owed(account) - self.reserve * account[1]
            if over > 0:
                self._local.refused = min(_LONGEST, max(1.0, over / (self.share * account[1])))
                raise Throttled(self._local.refused)
        begun = clock()
        unavailable = False
        try:
            yield
        except KeyUnavailable:  # that was nobody's doing
            unavailable = True
            raise
        finally:
            cost = 0.0 if unavailable else clock() - begun
            with self._lock:
                self.unwraps += 1
                self.seconds += cost
            if account is not None:
                self._charge(account, cost)

    def _owed(self, account: tuple[bytes, float]) -> float:
        hop, factor = account
        with self._lock:
            spent, when = self._spent.get(hop, (0.0, 0.0))
        return max(0.0, spent - (time.monotonic() - when) * self.share * factor)

    def _charge(self, account: tuple[bytes, float], cost: float) -> None:
        owed = self._owed(account) + cost
        with self._lock:
            self._spent[account[0]] = (owed, time.monotonic())
            self._spent.move_to_end(account[0])
            while len(self._spent) > _HOPS:
                self._spent.popitem(last=False)

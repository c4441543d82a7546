# SPDX-License-Identifier: Apache-2.0
"""How much one hop and one address may ask for: token buckets, few of them and small.

An address is looked at before anything is known of who asks, a hop when it has proven itself. The
defaults are far above what an honest fleet does, even many agents behind one address; who is over
them is told `busy`, and when to come back.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from upseal.fleet.http.paths import ENROL, UPLOADS
from upseal.fleet.http.problems import MOST_DELAY, Problem
from upseal.fleet.settings import SettingsError, within

if TYPE_CHECKING:  # settings are read by commands that serve nothing
    from starlette.types import Scope

    from upseal.fleet.http.metrics import Metrics

MOST_KEYS = 32_768
"""Buckets of one kind; beyond it the one that was asked least lately is forgotten."""
_V6_PREFIX = 64
_HOP_PART, _STRANGERS_PART, _STRANGERS_THERE_PART = 0.5, 0.5, 0.125
"""Of the memory for bodies: one hop at one address; all whose credential was not seen before, and
those of them at one address."""
_KNOWN_ADDRESSES = 4096
LIMITS = (
    "address-connections", "address-failures", "address-requests", "connections", "hop-bytes",
    "hop-requests", "unread-answers",
)  # fmt: skip
"""What requests and connections are turned away by."""
_LEAST, _ROUNDED = 0.001, 1e-6
"""Seconds: the shortest wait, and how far sums of fractions may be off."""


Account = tuple[str, float]
"""Who holds memory for bodies, and what part of it they may have together."""


class Asking(Protocol):
    """Who asks, as `upseal.fleet.hops.Hop` says it."""

    @property
    def hop_id(self) -> bytes:
        """16 bytes."""

    @property
    def role(self) -> str:
        """``agent`` or ``relay``."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The table ``[rates]`` of a relay or server. A rate of 0 is no bound."""

    hop_requests: float = 500.0
    """A second, of one agent."""
    hop_bytes: float = 256.0 * (1 << 20)
    """A second, of one agent's bodies; uploads have a rate of their own."""
    relay_factor: float = 32.0
    """A relay carries many agents, and may do so many times as much."""
    address_requests: float = 5000.0
    """A second, from one address, whoever asks."""
    address_failures: float = 50.0
    """A second, from one address: requests that prove nothing. Beyond it only credentials that
    were verified before are looked at; with one of those that somebody has overheard, so many
    fail there as well."""
    address_share: float = 0.8
    """Of all connections, and of the memory for bodies, for one address."""
    reserve: float = 20.0
    """Seconds of each rate that may be used at once after a pause."""
    exceptions: tuple[str, ...] = ()
    """Addresses and networks that none of the bounds on addresses hold for: a proxy, a NAT."""

    def __post_init__(self) -> None:
        for name in ("hop_requests", "hop_bytes", "address_requests", "address_failures"):
            within(f"rates.{name}", getattr(self, name), 0, 1 << 50)
        within("rates.relay_factor", self.relay_factor, 1, 1 << 20)
        within("rates.address_share", self.address_share, 0.001, 1)
        within("rates.reserve", self.reserve, 0.001, 86400)
        for text in self.exceptions:
            try:
                ipaddress.ip_network(text, strict=False)
            except ValueError:
                raise SettingsError(
                    f"rates.exceptions are addresses and networks, not {text!r}"
                ) from None


class Buckets:
    """Token buckets by key, safe for threads. What is full again takes no memory.

    Args:
        rate: tokens a second; 0 for no bound at all.
        reserve: seconds of them that a full bucket holds.
        most: buckets that are remembered.
        clock: seconds that only go up.
    """

    def __init__(
        self,
        rate: float,
        reserve: float,
        most: int = MOST_KEYS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate, self._reserve, self._most, self._clock = rate, reserve, most, clock
        self._full_at: OrderedDict[object, float] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, key: object) -> float:
        """Seconds until there is something in it again; 0 if there is. Takes nothing."""
        full_at = self._full_at.get(key) if self._rate else None
        return 0.0 if full_at is None else self._over(full_at, self._clock())

    def _over(self, full_at: float, now: float) -> float:
        over = full_at - now - self._reserve
        return max(over, _LEAST) if over > -_ROUNDED else 0.0

    def take(self, key: object, amount: float = 1.0, factor: float = 1.0) -> float:
        """Takes tokens: 0. Or none, and gives the seconds until there are some again.

        As long as there is one, more are lent than there are: what a request costs is known when
        it is there, and the next one waits for it.
        """
        if not self._rate:
            return 0.0
        now = self._clock()
        with self._lock:
            self._forget(now)
            full_at = max(now, self._full_at.get(key, now))
            over = self._over(full_at, now)
            if over:
                return over
            self._full_at[key] = full_at + amount / (self._rate * factor)
            self._full_at.move_to_end(key)
        return 0.0

    def owe(self, key: object, amount: float) -> None:
        """Takes tokens, whether there are some or not: for work that is done already."""
        if self._rate:
            now = self._clock()
            with self._lock:
                self._forget(now)
                self._full_at[key] = max(now, self._full_at.get(key, now)) + amount / self._rate
                self._full_at.move_to_end(key)

    def _forget(self, now: float) -> None:
        """Whoever may add one takes two away, if it is time."""
        for _ in range(2):
            oldest = next(iter(self._full_at), None)
            if oldest is None:
                return
            if len(self._full_at) < self._most and self._full_at[oldest] > now:
                return
            del self._full_at[oldest]


class Addresses:
    """What is one address: an IPv6 network of 64 bits is, and exceptions are none."""

    def __init__(self, exceptions: tuple[str, ...] = ()) -> None:
        networks = [ipaddress.ip_network(text, strict=False) for text in exceptions]

        @lru_cache(_KNOWN_ADDRESSES)
        def key(host: str) -> str | None:
            try:
                address = ipaddress.ip_address(host.partition("%")[0])
            except ValueError:
                return host
            if isinstance(address, ipaddress.IPv6Address):
                address = address.ipv4_mapped or address
            if any(address.version == net.version and address in net for net in networks):
                return None
            if address.version == 6:
                return str(ipaddress.ip_network((int(address), _V6_PREFIX), strict=False))
            return str(address)

        self.key = key
        """The name that an address is counted under; None: it is not counted."""


class Gate:
    """Asked by the application: of each request before its body, and of each hop that is proven.

    Args:
        rates: the bounds.
        metrics: where refusals are counted.
        remembered: from the header ``Authorization`` to the hop whose credential was verified
            before, or None; it costs no public-key operation and proves nothing.
        clock: seconds that only go up.
    """

    def __init__(
        self,
        rates: Rates,
        metrics: Metrics,
        remembered: Callable[[str], Asking | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rates, self._remembered = rates, remembered
        self._addresses = Addresses(rates.exceptions)
        reserve = rates.reserve
        self._requests = Buckets(rates.address_requests, reserve, clock=clock)
        self._failures = Buckets(rates.address_failures, reserve, clock=clock)
        self._hop_requests = Buckets(rates.hop_requests, reserve, clock=clock)
        self._hop_bytes = Buckets(rates.hop_bytes, reserve, clock=clock)
        self._limited = limited(metrics)
        metrics.gauge(
            "http_buckets",
            "Hops and addresses whose rates are remembered",
            function=lambda: sum(map(len, self._all())),
        )

    def _all(self) -> tuple[Buckets, ...]:
        return self._requests, self._failures, self._hop_requests, self._hop_bytes

    def arrives(self, scope: Scope) -> list[Account]:
        """A request's head: before its body, and before any public-key operation.

        Returns:
            Who it is counted with while its body is read. Nothing is proven by then, so a hop at
            one address is somebody else than the same at another.

        Raises:
            Problem: ``busy``.
        """
        address = self._address(scope)
        if address is not None:
            self._refuse("address-requests", self._requests.take(address))
        there = [] if address is None else [(f"at {address}", self._rates.address_share)]
        said = _authorization(scope)
        hop = self._remembered(said) if said else None
        if hop is not None:
            self._refuse("hop-requests", self._hop_requests.wait(hop.hop_id))
            self._refuse("hop-bytes", self._hop_bytes.wait(hop.hop_id))
            if address is not None:  # somebody there may have overheard it
                self._refuse("address-failures", self._failures.wait((address, hop.hop_id)))
            return [*there, (f"{hop.hop_id.hex()} at {address}", _HOP_PART)]
        if address is not None and (said or scope["path"] == ENROL):
            self._refuse("address-failures", self._failures.wait(address))
        if address is not None:
            there.append((f"strangers at {address}", _STRANGERS_THERE_PART))
        return [*there, ("strangers", _STRANGERS_PART)]

    def answered(self, scope: Scope, status: int) -> None:
        """What came of it: who proves nothing is counted."""
        enrolling = scope["path"] == ENROL and 400 <= status < 500 and status != 429
        if status not in (401, 408) and not enrolling:
            return
        address = self._address(scope)
        if address is not None:
            hop = self._remembered(_authorization(scope))
            self._failures.take(address if hop is None else (address, hop.hop_id))

    def passed(self, hop: Asking, path: str, size: int) -> None:
        """A hop that has proven itself, with a body of so many bytes. For any thread.

        Raises:
            Problem: ``busy``.
        """
        factor = self._rates.relay_factor if hop.role == "relay" else 1.0
        self._refuse("hop-requests", self._hop_requests.take(hop.hop_id, 1, factor))
        if size and not path.startswith(UPLOADS):
            self._refuse("hop-bytes", self._hop_bytes.take(hop.hop_id, size, factor))

    def contained(self, hop_id: bytes, weight: int) -> None:
        """An agent's request cost as much as so many: each beyond the first is owed as well.

        Else a few a second, each full of the smallest things there are, would be all that is done.
        """
        if weight > 1:
            self._hop_requests.owe(hop_id, weight - 1)

    def _refuse(self, limit: str, seconds: float) -> None:
        if seconds > 0:
            self._limited(limit)
            wait = min(MOST_DELAY, max(1.0, seconds))
            raise Problem("busy", f"over the limit {limit}", retry_after=wait)

    def _address(self, scope: Scope) -> str | None:
        client = scope.get("client")
        return self._addresses.key(client[0]) if client else None


def limited(metrics: Metrics) -> Callable[[str], None]:
    """Counts what a limit has turned away."""
    counter = metrics.counter("http_limited", "Requests and connections turned away", ("limit",))
    for limit in LIMITS:
        counter.labels(limit)  # from 0 on: to Prometheus what begins at 1 has never risen
    return lambda limit: counter.labels(limit).inc()


def _authorization(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization":
            return bytes(value).decode("latin-1")
    return ""

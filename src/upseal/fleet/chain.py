# SPDX-License-Identifier: Apache-2.0
"""The manifests that lead from an old pinned key to the newest manifest.

Whoever was away while the signing key was changed trusts the old key alone: he needs each manifest
that changed the keys, in order, since each is signed by what the one before it named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from upseal.fleet.identity import VerifyKey

LINKS_MAX = 256
"""Changes of the signing key that are remembered; whoever missed more must enrol again."""


class Link(NamedTuple):
    """A manifest as it was signed."""

    serial: int
    token: str


class Chain:
    """Signed manifests in the order of their serials, of which it keeps those that matter."""

    def __init__(self) -> None:
        self._links: list[Link] = []
        self._keys: frozenset[VerifyKey] | None = None
        self._newest: Link | None = None

    @property
    def newest(self) -> Link | None:
        """The last that was added."""
        return self._newest

    @property
    def links(self) -> tuple[Link, ...]:
        """Those that changed the signing keys, oldest first."""
        return tuple(self._links)

    def add(self, serial: int, token: str, signing_keys: Iterable[VerifyKey]) -> None:
        """The next manifest, which was verified.

        Raises:
            ValueError: its serial is not above the newest.
        """
        if self._newest is not None and serial <= self._newest.serial:
            raise ValueError(f"serial {serial} is not above {self._newest.serial}")
        keys = frozenset(signing_keys)
        self._newest = Link(serial, token)
        if keys != self._keys:
            self._links = [*self._links, self._newest][-LINKS_MAX:]
            self._keys = keys

    def copy(self) -> Chain:
        """Another that goes on from here."""
        other = Chain()
        other._links, other._keys, other._newest = list(self._links), self._keys, self._newest
        return other

    def restore(
        self, links: Iterable[Link], newest: Link, signing_keys: Iterable[VerifyKey]
    ) -> None:
        """As it was when `links` and `newest` were read from another chain."""
        self._links, self._newest = list(links), newest
        self._keys = frozenset(signing_keys)

    def put_before(self, links: Iterable[Link]) -> None:
        """Links that lead to the first one here; those that do not come before it are left out."""
        first = min((link.serial for link in (*self._links[:1], self._newest) if link), default=0)
        earlier = {link.serial: link for link in links if link.serial < first}
        self._links = [*(earlier[serial] for serial in sorted(earlier)), *self._links][-LINKS_MAX:]

    def since(self, serial: int) -> list[str]:
        """As ``GET /v1/manifest?since=`` gives it: what somebody at that serial needs.

        Oldest first; the newest is always the last, even if it is not above ``serial``.
        """
        if self._newest is None:
            return []
        last = self._newest
        tokens = [link.token for link in self._links if serial < link.serial < last.serial]
        return [*tokens, last.token]

    @property
    def etag(self) -> str | None:
        """Changes with the newest manifest."""
        if self._newest is None:
            return None
        digest = hashlib.sha256(self._newest.token.encode()).hexdigest()
        return f"{self._newest.serial}-{digest[:16]}"

# SPDX-License-Identifier: Apache-2.0
"""Sealed request bodies over HTTP: what both sides agree on (docs/integrations/http.md).

A sealed body is a content coding (RFC 9110, section 8.4), as RFC 8188 made one of its encryption:
``Content-Encoding: upseal``. What it is bound to is its context. Needs no HTTP library, and of the
fleet the pure tables of policy and problems alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable
from urllib.parse import unquote_to_bytes

from upseal.core.keys import PublicKey
from upseal.fleet.http import problems
from upseal.fleet.http.problems import Problem
from upseal.fleet.policy import Clear, Decision, Reason, Seal, Withheld, Withhold

__all__ = [
    "CODING",
    "Bound",
    "Clear",
    "Context",
    "Decision",
    "Policy",
    "Problem",
    "Recipients",
    "Seal",
    "Withheld",
    "Withhold",
    "codings",
    "is_stale_key",
    "target_of",
]

CODING = "upseal"
"""The name of the coding."""
STALE = "stale-key"
PROBLEM = problems.NAME
"""The header that has the name of a refusal, whatever becomes of the body of the answer."""
_CONTEXT = b"upseal/v1 http request\0"
SEALED_WHEN_EMPTY = frozenset({"POST", "PUT", "PATCH"})
"""Methods whose body is sealed also when it has no bytes: to leave it out would say something."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a sealed body is bound to: moved to a request where one of these differs, it is refused.

    Args:
        method: as in the request line.
        path: of the target, percent-decoded once; ``/`` if it is empty.
        query: of the target as it was sent, without the question mark; empty if there is none.
        content_type: the header's value without white space round it; empty without the header.
        coding: the content codings of the body inside, as `codings` gives them.
        header: the value of another header of the request, or None. Bound only by a `Context` of
            your own.
    """

    method: str
    path: bytes
    query: bytes = b""
    content_type: bytes = b""
    coding: bytes = b""
    header: Callable[[str], str | None] = field(default=lambda _: None, repr=False, compare=False)

    def context(self) -> bytes:
        """The context of the sealed body, in the words of docs/format.md.

        ``"upseal/v1 http request" 00``, then of method, path, query, content type and coding each
        its length as u32, big-endian, and its bytes.
        """
        parts = (
            self.method.encode("latin-1"), self.path or b"/", self.query, self.content_type,
            self.coding,
        )  # fmt: skip
        return _CONTEXT + b"".join(len(part).to_bytes(4, "big") + part for part in parts)


Context: TypeAlias = Callable[[Bound], bytes]
"""Gives the context, for whose proxies rewrite what is bound: the same on both sides."""


def target_of(target: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request's target as it goes over the wire, as `Bound` takes them."""
    path, _, query = target.partition(b"#")[0].partition(b"?")
    return unquote_to_bytes(path) or b"/", query


def codings(values: Iterable[str]) -> tuple[bool, str]:
    """Whether a body is sealed, and the codings of the body inside, from ``Content-Encoding``.

    Args:
        values: of every such header, in order.

    Raises:
        Problem: ``media-type``: sealed, but not on the outside, or twice.
    """
    found = [word.strip().lower() for value in values for word in value.split(",")]
    found = [word for word in found if word]
    sealed = bool(found) and found[-1] == CODING
    inside = found[:-1] if sealed else found
    if CODING in inside:
        raise Problem("media-type", "upseal is the last content coding, and there only once")
    return sealed, ", ".join(inside)


def is_stale_key(status: int, problem: str | None) -> bool:
    """Whether an answer says that the body was sealed to a key that is not there (any more).

    Args:
        status: of the answer.
        problem: its header ``Upseal-Problem``.

    Nobody has signed it: it may cost one look at the manifest, and nothing else.
    """
    return status == 409 and problem is not None and problem.strip() == STALE


@runtime_checkable
class Policy(Protocol):
    """Whether bodies are sealed, and to whom. Safe for threads."""

    def decide(self) -> Decision:
        """What counts now. Quick: no network."""

    @property
    def due(self) -> bool:
        """Whether it is time to look for something newer."""

    def renew(self, *, stale: bool = False) -> None:
        """Looks for something newer; what it finds is verified before it counts. May block.

        Args:
            stale: somebody has said that a key is, and so this is not too early.

        Nothing is raised because the network fails: what counted counts on.
        """


class Recipients:
    """The simple policy: every body is sealed, to these keys. Needs the core alone.

    Args:
        keys: public keys; each holder can open.
        fetch: gives the keys that count now, when a server says that one is stale. Whoever writes
            it verifies them: what it gives is believed. None: the keys stay.

    Raises:
        ValueError: no keys.
        TypeError: one of them is none.
    """

    due = False

    def __init__(
        self, keys: Sequence[PublicKey], fetch: Callable[[], Sequence[PublicKey]] | None = None
    ) -> None:
        self._fetch = fetch
        self._decision = _to(keys)

    def decide(self) -> Decision:
        """Seal."""
        return self._decision

    def renew(self, *, stale: bool = False) -> None:
        """Asks ``fetch``; its errors are the caller's to see."""
        if stale and self._fetch is not None:
            self._decision = _to(self._fetch())


def _to(keys: Sequence[PublicKey]) -> Seal:
    if isinstance(keys, PublicKey):
        raise TypeError("the recipients are a sequence of public keys, not one of them")
    for key in keys:
        if not isinstance(key, PublicKey):
            raise TypeError(f"a recipient is a PublicKey, not {type(key).__name__}")
    if not keys:
        raise ValueError("a policy without recipients seals to nobody")
    return Seal(tuple(keys), Reason.SEALED)

# SPDX-License-Identifier: Apache-2.0
"""Refusals that both sides understand: problem details for HTTP APIs (RFC 9457).

A problem's name says what the other side should do; the detail is for people and never decides
anything. What comes from the network is cut to size and stripped of control characters, since it
ends up in logs and on terminals.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.responses import Response

BASE = "https://upseal.invalid/problems/"
MEDIA_TYPE = "application/problem+json"
NAME = "upseal-problem"
"""The header that has the name where an answer may have no body."""
MOST_BYTES = 64 * 1024
MOST_TEXT = 500
MOST_DELAY = 3600.0
"""Seconds: nobody can send us away for longer than an hour."""

UNKNOWN = "unknown"
"""The name of a problem whose type is not ours, or that has none."""

NAMES: dict[str, tuple[int, str]] = {
    "malformed": (400, "The request is not what this address takes"),
    "unauthenticated": (401, "No valid credential came with the request"),
    "clock": (401, "The proof's time is too far from this clock"),
    "revoked": (403, "This credential has been revoked"),
    "not-enrolled": (403, "This client is not enrolled here"),
    "token": (403, "The enrolment token is unknown, used or past its time"),
    "not-found": (404, "There is nothing at this address"),
    "unknown-body": (404, "This body is not known here; send it again"),
    "method-not-allowed": (405, "This address does not take this method"),
    "slow": (408, "The request came too slowly"),
    "conflict": (409, "This contradicts what is already stored"),
    "offset": (409, "Other bytes than these are next"),
    "stale-key": (409, "Sealed to a key that is retired here; fetch the manifest and seal again"),
    "tus-version": (412, "Another version of tus is spoken here"),
    "too-large": (413, "The request is longer than this address takes"),
    "media-type": (415, "The body is not of the type that this address takes"),
    "sealed-not-accepted": (422, "Sealed reports are not accepted here"),
    "clear-not-accepted": (422, "Reports in clear are not accepted here"),
    "busy": (429, "Too many requests from this client"),
    "checksum": (460, "The bytes that came are not those that were sent"),
    "internal": (500, "Something went wrong here"),
    "full": (503, "There is no room here at the moment"),
    "parent-away": (503, "The parent of this relay cannot be reached"),
    "stopping": (503, "This process is stopping"),
    UNKNOWN: (500, "A problem of unknown type"),
}
"""Status and title of each problem of ours."""


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """A refusal: raised by whoever answers, and by whoever was answered so.

    ``name`` is one of `NAMES`; ``retry_after`` is in seconds.
    """

    def __init__(
        self,
        name: str,
        detail: str | None = None,
        *,
        retry_after: float | None = None,
        status: int | None = None,
        title: str | None = None,
    ) -> None:
        if name not in NAMES:
            raise ValueError(f"{name!r} is no problem of ours")
        if retry_after is not None and not (math.isfinite(retry_after) and retry_after >= 0):
            raise ValueError("retry_after is a number of seconds, 0 or more")
        usual_status, usual_title = NAMES[name]
        if status is not None and not 400 <= status <= 599:
            raise ValueError("the status of a problem is between 400 and 599")
        self.name = name
        self.status = usual_status if status is None else status
        self.title = usual_title if title is None else _clean(title)
        self.detail = None if detail is None else _clean(detail)
        self.retry_after = retry_after
        super().__init__(name)

    def __str__(self) -> str:
        return f"{self.name} ({self.status}): {self.detail or self.title}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.name, self.detail, self.retry_after, self.status, self.title)

    @property
    def type(self) -> str:
        """The URI that names it on the wire."""
        return "about:blank" if self.name == UNKNOWN else BASE + self.name

    @property
    def temporary(self) -> bool:
        """True if the same request may do better later."""
        return self.status in (408, 423, 429, 460) or self.status >= 500

    def to_dict(self) -> dict[str, Any]:
        """The members of RFC 9457."""
        out: dict[str, Any] = {"type": self.type, "title": self.title, "status": self.status}
        if self.detail is not None:
            out["detail"] = self.detail
        return out

    def encode(self) -> bytes:
        """The body of an answer."""
        return json.dumps(self.to_dict(), separators=(",", ":")).encode()

    def headers(self) -> dict[str, str]:
        """What goes with it. The server itself adds the date, by which a client sets its clock."""
        out = {"content-type": MEDIA_TYPE, "cache-control": "no-store"}
        if self.retry_after is not None:
            out["retry-after"] = str(math.ceil(self.retry_after))
        if self.status == 401:
            out["www-authenticate"] = "Upseal"
        return out

    def to_response(self) -> Response:
        """An answer for an ASGI application."""
        from starlette.responses import Response

        return Response(self.encode(), self.status, self.headers())

    @classmethod
    def from_dict(cls, value: Any, status: int | None = None) -> Problem:
        """From what the other side said, whatever that is. A ``status`` of HTTP's goes first."""
        said: Mapping[str, Any] = value if isinstance(value, dict) else {}
        if status is None:
            status = said.get("status")
        if type(status) is not int or not 400 <= status <= 599:
            status = None
        kind, detail, title = said.get("type"), said.get("detail"), said.get("title")
        name = kind.removeprefix(BASE) if isinstance(kind, str) else UNKNOWN
        if name not in NAMES or name == kind:
            name = UNKNOWN
        return cls(
            name,
            detail if isinstance(detail, str) else None,
            status=status,
            title=title if isinstance(title, str) and name == UNKNOWN else None,
        )

    @classmethod
    def from_response(cls, status: int, headers: Mapping[str, str], body: bytes) -> Problem:
        """From a whole answer; one that is no problem document gives a problem named `UNKNOWN`."""
        value: Any = None
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if not body and NAME in headers:  # of HEAD
            value = {"type": BASE + headers[NAME]}
        elif kind == MEDIA_TYPE and len(body) <= MOST_BYTES:
            try:
                value = json.loads(body)
            except (ValueError, RecursionError):
                value = None
        problem = cls.from_dict(value, status)
        problem.retry_after = delay(headers.get("retry-after"))
        return problem


def delay(text: str | None, now: float | None = None) -> float | None:
    """Seconds of a ``Retry-After`` header, at most `MOST_DELAY`; None if it says nothing clear."""
    text = (text or "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text[:9]), MOST_DELAY)
    if not text or len(text) > 64:
        return None
    try:
        until = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(until - (time.time() if now is None else now), 0.0), MOST_DELAY)


def _clean(text: str) -> str:
    """One printable line of bounded length."""
    line = "".join(c if c.isprintable() else " " for c in text[:MOST_TEXT])
    return " ".join(line.split())


def _again(
    name: str, detail: str | None, retry_after: float | None, status: int, title: str
) -> Problem:
    """For pickle and copy, which cannot call with keywords."""
    return Problem(name, detail, retry_after=retry_after, status=status, title=title)

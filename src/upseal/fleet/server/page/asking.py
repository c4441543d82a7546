# SPDX-License-Identifier: Apache-2.0
"""What a request asks for: which clients, in which order, which part of them, and which time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from upseal.fleet.http.problems import Problem
from upseal.fleet.server.overview.census import Choice

HOUR, DAY = 60, 1440
RANGES = {
    "1h": (HOUR, 1, "the last hour"),
    "24h": (DAY, 6, "the last 24 hours"),
    "7d": (7 * DAY, 60, "the last 7 days"),
    "30d": (30 * DAY, 180, "the last 30 days"),
    "1y": (400 * DAY, 2880, "the last 400 days"),
}
"""Minutes, minutes from one point to the next, and in words."""
DEFAULT_RANGE = "24h"
SIZE = 50
SIZE_MAX = 1000
_PAGE_MAX = 1_000_000
_SEARCH_MAX = 128


@dataclass(frozen=True)
class Asked:
    """A request's query."""

    choice: Choice = field(default_factory=Choice)
    page: int = 1
    size: int = SIZE
    range: str = DEFAULT_RANGE

    @property
    def offset(self) -> int:
        """Clients before this page."""
        return (self.page - 1) * self.size

    @classmethod
    def read(cls, query: Mapping[str, str]) -> Asked:
        """From a URL.

        Raises:
            Problem: malformed.
        """
        sort = query.get("sort", "name")
        search = query.get("q", "").strip()
        if len(search) > _SEARCH_MAX or not search.isprintable():
            raise Problem("malformed", f"q is a text of at most {_SEARCH_MAX} characters")
        span = query.get("range", DEFAULT_RANGE)
        if span not in RANGES:
            raise Problem("malformed", f"range is one of {', '.join(RANGES)}")
        try:
            choice = Choice(
                query.get("filter") or None, search, sort.removeprefix("-"), sort.startswith("-")
            )
        except ValueError as error:
            raise Problem("malformed", str(error)) from None
        page, size = _number(query, "page", 1, _PAGE_MAX), _number(query, "size", SIZE, SIZE_MAX)
        return cls(choice, page, size, span)

    def link(self, **changed: str | int | None) -> str:
        """The same query, but for what is changed: what begins with ``?``, and has no defaults.

        Another choice or order begins at its first page.
        """
        choice = self.choice
        sort = f"-{choice.sort}" if choice.descending else choice.sort
        now: dict[str, str | int | None] = {
            "filter": choice.only, "q": choice.search, "sort": sort, "size": self.size,
            "range": self.range, "page": self.page,
        }  # fmt: skip
        if changed.keys() & {"filter", "q", "sort", "size"}:
            now["page"] = 1
        now |= changed
        usual = {"q": "", "sort": "name", "size": SIZE, "range": DEFAULT_RANGE, "page": 1}
        pairs = {
            name: value for name, value in now.items() if value not in (usual.get(name), None, "")
        }
        return "?" + urlencode(pairs)

    def sorted_by(self, sort: str) -> str:
        """The link of a column's head: by it, or the other way round."""
        choice = self.choice
        up = not (choice.sort == sort and not choice.descending)
        return self.link(sort=sort if up else f"-{sort}")


def _number(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= most):
        raise Problem("malformed", f"{name} is a number from 1 to {most}")
    return int(text)

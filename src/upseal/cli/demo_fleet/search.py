# SPDX-License-Identifier: Apache-2.0
"""Looks for the bodies of stored reports in all that was recorded, and in what lies on the disk.

Every report carries its client's name, which stands nowhere else by chance. So the search finds
each place where a name stands, and compares the report around it byte by byte with what the server
has stored. A client that must seal has no business on the wire at all: of such a one the bare name
counts as a match, also where no whole report stands around it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_OPENING = b'{"property":'
_LONGEST = 1 << 20
Buffer = bytes | bytearray


class Stored(NamedTuple):
    """A report as the server has it."""

    client: str
    body: bytes
    sealed: bool
    """By the server's record of its unit."""
    unit: int
    received: int


@dataclass
class Found:
    """What a search came to, in matches: a report that stands at three places is three."""

    sealed: int = 0
    """Of reports that the server recorded as sealed, and anything of a client that must seal."""
    clear: int = 0
    distinct: set[tuple[str, bytes]] = field(default_factory=set)
    """Reports recorded as clear that were found at least once."""
    by_place: Counter[str] = field(default_factory=Counter)
    """Clear ones."""
    examples: list[str] = field(default_factory=list)
    """Where sealed ones stood, the first few; never what they say."""
    early: int = 0
    """Clear ones at a place and of a time where nothing may be clear."""


class Search:
    """For one set of stored reports.

    Args:
        run: what all clients' names begin with.
        stored: all reports.
        required: the clients that must seal.
    """

    def __init__(self, run: str, stored: Iterable[Stored], required: Iterable[str]) -> None:
        self._reports: dict[tuple[str, bytes], Stored] = {}
        self._unnamed: list[Stored] = []
        for report in stored:
            if _marker(report.client) in report.body and report.body.startswith(_OPENING):
                # Of equal ones the sealed one: it must not stand anywhere.
                known = self._reports.setdefault((report.client, report.body), report)
                if report.sealed and not known.sealed:
                    self._reports[report.client, report.body] = report
            else:
                self._unnamed.append(report)
        self._required = frozenset(required)
        self._names = re.compile(re.escape(run.encode()) + rb"-\d{3,}")

    def wire(
        self, place: str, streams: Iterable[Buffer], found: Found, *, sealed_until: int = 0
    ) -> None:
        """Looks through what a hop has carried.

        Nothing that the server had before ``sealed_until`` may stand there in clear.
        """
        for stream in streams:
            for name, report in self._in(stream):
                if report is None and name not in self._required:
                    continue  # a report that was cut off: it stands whole where it was sent again
                self._count(place, name, report, found)
                if report is not None and report.received < sealed_until:
                    found.early += 1

    def files(self, folders: Iterable[Path], found: Found) -> int:
        """Looks through all files below; gives how many. Only reports count, not bare names."""
        number = 0
        for path in _files(folders):
            data = path.read_bytes()
            number += 1
            for name, report in self._in(data):
                marked = report is not None or (name in self._required and _marker(name) in data)
                if marked:
                    self._count(path.name, name, report, found)
        return number

    def _count(self, place: str, name: str, report: Stored | None, found: Found) -> None:
        if report is None or report.sealed or name in self._required:
            found.sealed += 1
            if len(found.examples) < 5:
                found.examples.append(f"{name} at {place}")
            return
        found.clear += 1
        found.by_place[place] += 1
        found.distinct.add((name, report.body))

    def _in(self, data: Buffer) -> Iterator[tuple[str, Stored | None]]:
        """Each place where a client's name stands, with the report around it if it is one."""
        for match in self._names.finditer(data):
            name = match.group().decode()
            yield name, self._around(data, name, match.start(), match.end())
        for report in self._unnamed:  # none, unless a plug-in makes reports of another form
            at = data.find(report.body)
            while at >= 0:
                yield report.client, report
                at = data.find(report.body, at + 1)

    def _around(self, data: Buffer, name: str, start: int, end: int) -> Stored | None:
        first = data.rfind(_OPENING, max(0, start - _LONGEST), start)
        last = data.find(b"}", end)
        if first < 0 or last < 0:
            return None
        return self._reports.get((name, bytes(data[first : last + 1])))


def _marker(client: str) -> bytes:
    return b'"client":"' + client.encode() + b'"'


def _files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(path for path in folder.rglob("*") if path.is_file())

# SPDX-License-Identifier: Apache-2.0
"""Looks for stored reports and uploaded files in all that was recorded, and on the disk.

Every report carries its client's name, which stands nowhere else by chance. So the search finds
each place where a name stands, and compares the report around it byte by byte with what the server
has stored. A client that must seal has no business on the wire at all: of such a one the bare name
counts as a match, also where no whole report stands around it.

What is uploaded carries a mark with its client's name at its beginning and at every MiB, and is
called by that mark: one of a file that was sealed is a match wherever it stands.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_OPENING = b'{"property":'
_LONGEST = 1 << 20
_MARK = b"upload of "
_NUMBER = re.compile(rb": (\d{1,9})\n")
Buffer = bytes | bytearray | mmap.mmap


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
    """Of reports and files that the server recorded as sealed, and anything of a client that must
    seal."""
    clear: int = 0
    distinct: set[tuple[str, bytes]] = field(default_factory=set)
    """Reports recorded as clear that were found at least once."""
    marks: set[tuple[str, int]] = field(default_factory=set)
    """Of files that were uploaded in clear, by client and number."""
    by_place: Counter[str] = field(default_factory=Counter)
    """Clear ones."""
    examples: list[str] = field(default_factory=list)
    """Where sealed ones stood, the first few; never what they say."""
    early: int = 0
    """Clear ones at a place and of a time where nothing may be clear."""


class _Place(NamedTuple):
    """Where a client's name stands."""

    client: str
    report: Stored | None
    """Around it."""
    mark: bool
    """It is the mark of a file, or its name."""
    number: int | None
    """Of the mark."""


class Search:
    """For one set of stored reports.

    Args:
        run: what all clients' names begin with.
        stored: all reports.
        required: the clients that must seal.
        clear_uploads: the clients whose file went up in clear, and when the server had it.
    """

    def __init__(
        self,
        run: str,
        stored: Iterable[Stored],
        required: Iterable[str],
        clear_uploads: Mapping[str, int] | None = None,
    ) -> None:
        self._reports: dict[tuple[str, bytes], Stored] = {}
        self._odd: dict[str, list[tuple[int, Stored]]] = defaultdict(list)
        self._unnamed: list[Stored] = []
        for report in stored:
            at = report.body.find(report.client.encode())
            if _marker(report.client) in report.body and report.body.startswith(_OPENING):
                # Of equal ones the sealed one: it must not stand anywhere.
                known = self._reports.setdefault((report.client, report.body), report)
                if report.sealed and not known.sealed:
                    self._reports[report.client, report.body] = report
            elif at >= 0:  # of another form, as what announces a file
                self._odd[report.client].append((at, report))
            else:
                self._unnamed.append(report)
        self._required = frozenset(required)
        self._clear_uploads = clear_uploads or {}
        self._names = re.compile(re.escape(run.encode()) + rb"-\d{3,}")

    def wire(
        self, place: str, streams: Iterable[Path], found: Found, *, sealed_until: int = 0
    ) -> None:
        """Looks through what a hop has carried.

        Nothing that the server had before ``sealed_until`` may stand there in clear.
        """
        for path in streams:
            with _opened(path) as data:
                for at in self._in(data):
                    # A report that was cut off stands whole where it was sent again.
                    if at.report is not None or at.mark or at.client in self._required:
                        self._count(place, at, found, sealed_until)

    def files(self, folders: Iterable[Path], found: Found) -> int:
        """Looks through all files below; gives how many. Bare names do not count here."""
        number = 0
        for path in _files(folders):
            number += 1
            with _opened(path) as data:
                for at in self._in(data):
                    if at.report is not None or at.mark or self._in_a_report(at.client, data):
                        self._count(path.name, at, found)
        return number

    def _in_a_report(self, client: str, data: Buffer) -> bool:
        return client in self._required and data.find(_marker(client)) >= 0

    def _count(self, place: str, at: _Place, found: Found, sealed_until: int = 0) -> None:
        name, report = at.client, at.report
        clear = not report.sealed if report is not None else name in self._clear_uploads
        if not clear or name in self._required:
            found.sealed += 1
            if len(found.examples) < 5:
                found.examples.append(f"{name} at {place}")
            return
        found.clear += 1
        found.by_place[place] += 1
        if report is not None:
            found.distinct.add((name, report.body))
        elif at.number is not None:
            found.marks.add((name, at.number))
        received = self._clear_uploads[name] if report is None else report.received
        if received < sealed_until:
            found.early += 1

    def _in(self, data: Buffer) -> Iterator[_Place]:
        """Each place where a client's name stands, with the report around it if it is one."""
        for match in self._names.finditer(data):
            name, start, end = match.group().decode(), match.start(), match.end()
            report = self._around(data, name, start, end)
            mark = data[max(0, start - len(_MARK)) : start] == _MARK
            number = _NUMBER.match(data[end : end + 16]) if mark else None
            yield _Place(name, report, mark, int(number[1]) if number else None)
        for report in self._unnamed:  # none, unless a plug-in makes reports of another form
            at = data.find(report.body)
            while at >= 0:
                yield _Place(report.client, report, False, None)
                at = data.find(report.body, at + 1)

    def _around(self, data: Buffer, name: str, start: int, end: int) -> Stored | None:
        for before, odd in self._odd.get(name, ()):
            at = start - before
            if at >= 0 and data[at : at + len(odd.body)] == odd.body:
                return odd
        first = data.rfind(_OPENING, max(0, start - _LONGEST), start)
        last = data.find(b"}", end)
        if first < 0 or not 0 <= last - first < _LONGEST:
            return None
        return self._reports.get((name, bytes(data[first : last + 1])))


def mark(client: str, number: int) -> bytes:
    """A line that stands in a file of a client."""
    return _MARK + client.encode() + b": %d\n" % number


def called(client: str) -> str:
    """What its file is called, so that its name is looked for as well."""
    return _MARK.decode() + client


def count_marks(folders: Iterable[Path], clients: Iterable[str]) -> tuple[int, int, int]:
    """Marks of files of these clients in all files below; how many files, and their bytes."""
    names = b"|".join(re.escape(client.encode()) for client in clients)
    pattern = re.compile(re.escape(_MARK) + b"(?:" + names + rb")(?!\d)")
    found = files = size = 0
    for path in _files(folders):
        try:
            with _opened(path) as data:
                found += sum(1 for _ in pattern.finditer(data))
                files, size = files + 1, size + len(data)
        except FileNotFoundError:  # passed on a moment ago
            continue
    return found, files, size


def _marker(client: str) -> bytes:
    return b'"client":"' + client.encode() + b'"'


@contextmanager
def _opened(path: Path) -> Iterator[Buffer]:
    """A file's bytes, whatever their number: they are not in memory all at once."""
    with open(path, "rb") as file:
        try:
            data: Buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty one cannot be had so
            yield b""
            return
        try:
            yield data
        finally:
            if isinstance(data, mmap.mmap):
                with suppress(BufferError):  # broken off in the middle: it goes with the search
                    data.close()


def _files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(path for path in folder.rglob("*") if path.is_file())

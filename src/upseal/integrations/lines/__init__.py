# SPDX-License-Identifier: Apache-2.0
"""Lines of logs as sealed batches: what a batch holds, and how lines come back in order.

A batch's first report is JSON: the stream (random, 16 bytes), the batch's number in it, and where
the bytes stood: file and offset. Each other report is a line with its end, or a piece of a line
that is too long, so all of them together are the bytes of the file.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from upseal.core.opener import Opener
from upseal.core.sealer import Sealer
from upseal.errors import OpenError

_FORM = "lines/1"
_HELD_MAX = 64 << 20
_REMEMBERED = 1 << 20
_STREAMS_MAX = 1 << 18
_STREAM = re.compile("[0-9a-f]{32}")
_SEQUENCE_MAX = 1 << 63


@dataclass(frozen=True, slots=True)
class Limits:
    """When lines become a batch.

    Args:
        count: so many lines.
        bytes: so many bytes of lines; a longer line is cut into pieces.
        seconds: since its first line was read.
    """

    count: int = 1000
    bytes: int = 32768
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if not 1 <= self.count < 1 << 20:
            raise ValueError(f"count must be 1 to 2^20 - 1, not {self.count}")
        if not 1 <= self.bytes <= 8 << 20:
            raise ValueError(f"bytes must be 1 to 8 MiB, not {self.bytes}")
        if not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, not {self.seconds}")

    def ready(self, held: bytearray, *, all_of_it: bool = False) -> int:
        """How many of the bytes make a full batch; 0: wait for more.

        With ``all_of_it`` whatever is there is enough, an unfinished line as well.
        """
        window = held[: self.bytes]
        lines = window.count(b"\n")
        if lines >= self.count:
            at = -1
            for _ in range(self.count):
                at = window.index(b"\n", at + 1)
            return at + 1
        if len(held) >= self.bytes:
            return window.rfind(b"\n") + 1 or len(window)
        return len(held) if all_of_it else 0


@dataclass(frozen=True, slots=True)
class Lines:
    """What one batch held."""

    stream: str
    """Whose batches are numbered in a row."""
    sequence: int
    source: str
    """Name of the file, empty for standard input."""
    file: str
    """Another one after each rotation."""
    offset: int
    """Where the bytes begin in it."""
    records: list[bytes]
    """Lines with their ends."""


class LineSealer:
    """Numbers and seals the batches of one stream. For one thread.

    Args:
        sealer: whose recipients may read.
        context: bytes that the opener must name as well; not sent.
        stream: to go on with one; None for a new one.
        sequence: of the next batch.

    Raises:
        ValueError: the stream is not 32 hexadecimal digits.
    """

    def __init__(
        self, sealer: Sealer, context: bytes = b"", stream: str | None = None, sequence: int = 0
    ) -> None:
        self._sealer = sealer
        self._context = context
        if stream is not None and not _STREAM.fullmatch(stream):
            raise ValueError(f"a stream is 32 hexadecimal digits, not {stream!r}")
        self.stream = stream if stream is not None else secrets.token_hex(16)
        self.sequence = sequence

    def seal(self, data: bytes, source: str = "", file: str = "", offset: int = 0) -> bytes:
        """The next batch.

        Args:
            data: whole lines, or the end of a file, or a piece of a long line.
            source: name of the file.
            file: which file of that name.
            offset: where the data begin in it.

        Raises:
            ValueError: there are no data, or too many.
        """
        if not data:
            raise ValueError("there is nothing to seal")
        front = {
            "upseal": _FORM,
            "stream": self.stream,
            "sequence": self.sequence,
            "source": source,
            "file": file,
            "offset": offset,
        }
        records = [line + b"\n" for line in data.split(b"\n")]
        records[-1] = records[-1][:-1]
        if not records[-1]:
            records.pop()
        sealed = self._sealer.seal_batch([json.dumps(front).encode(), *records], self._context)
        self.sequence += 1
        return sealed


def open_lines(sealed: bytes, opener: Opener, context: bytes = b"") -> Lines:
    """Opens one batch.

    Raises:
        OpenError: it is not genuine, of another context, or holds no lines.
    """
    front, *records = opener.open_batch(sealed, context)
    try:
        said = json.loads(front)
        form, stream, source, file = (said[k] for k in ("upseal", "stream", "source", "file"))
        sequence, offset = said["sequence"], said["offset"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise OpenError("a sealed batch, but not of lines") from None
    texts = all(isinstance(v, str) for v in (stream, source, file))
    numbers = all(type(v) is int and 0 <= v < _SEQUENCE_MAX for v in (sequence, offset))
    # Names of streams are shown to people, and remembered: whoever sealed it has chosen this one.
    if form != _FORM or not texts or not numbers or not _STREAM.fullmatch(stream):
        raise OpenError("a sealed batch, but not of lines")
    return Lines(stream, sequence, source, file, offset, records)


@dataclass(slots=True)
class _Stream:
    """What is known of one stream."""

    expected: int
    held: dict[int, tuple[Lines, int]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    """The numbers in `held`, as a heap."""
    size: int = 0
    """Sealed bytes of what is held."""


class LineOpener:
    """Opens batches, drops doubles, and gives lines back in the order of each stream.

    A batch that comes too early is held back until those before it are there, 64 MiB at most.

    Args:
        opener: with a recipient's key.
        context: as they were sealed with.
    """

    def __init__(self, opener: Opener, context: bytes = b"") -> None:
        self._opener = opener
        self._context = context
        self._streams: dict[str, _Stream] = {}
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._held = 0
        self._many = _STREAMS_MAX
        self.doubles = 0
        """Batches that came again, and were dropped."""
        self.problems: list[str] = []
        """What is missing or contradicts itself, for people; the caller may empty it."""
        self.problem_count = 0

    def add(self, sealed: bytes) -> Iterator[Lines]:
        """Takes one batch; gives what can be given out now.

        Raises:
            OpenError: as `open_lines`; nothing is changed by it.
        """
        digest = hashlib.sha256(sealed).digest()
        if digest in self._seen:
            self.doubles += 1
            return
        lines = open_lines(sealed, self._opener, self._context)
        self._seen[digest] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        stream = self._streams.pop(lines.stream, None) or _Stream(lines.sequence)
        self._streams[lines.stream] = stream  # the last one heard of
        self._forget_streams()
        if lines.sequence < stream.expected or lines.sequence in stream.held:
            # Not the same bytes again: two machines with one state file, or a late arrival.
            self._problem(
                f"batch {lines.sequence} of stream {lines.stream} comes late, or twice with "
                "different bytes; its lines are out of order"
            )
            yield lines
            return
        size = len(sealed)
        stream.held[lines.sequence] = (lines, size)
        heapq.heappush(stream.order, lines.sequence)
        self._held += size
        stream.size += size
        yield from self._run(stream)
        if self._held > _HELD_MAX:
            # Some more at once, for finding the fullest takes a look at all.
            fullest = sorted(self._streams.values(), key=lambda s: s.size, reverse=True)
            for stream in fullest:
                while stream.held and self._held > _HELD_MAX // 4 * 3:
                    yield from self._skip(stream)

    def finish(self) -> Iterator[Lines]:
        """What is still held back; gaps before it are problems."""
        for stream in self._streams.values():
            while stream.held:
                yield from self._skip(stream)

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        self.problem_count += 1

    def _forget_streams(self) -> None:
        """Of too many streams, those heard of longest ago, if nothing of them is held back."""
        if len(self._streams) <= self._many:
            return
        oldest = islice(self._streams.items(), len(self._streams) // 2)
        for name in [name for name, stream in oldest if not stream.held]:
            del self._streams[name]
        # So that half of them are always more than those that wait.
        self._many = _STREAMS_MAX + 2 * sum(bool(s.held) for s in self._streams.values())

    def _run(self, stream: _Stream) -> Iterator[Lines]:
        while stream.expected in stream.held:
            lines, size = stream.held.pop(stream.expected)
            self._held -= size
            stream.size -= size
            stream.expected += 1
            heapq.heappop(stream.order)
            yield lines

    def _skip(self, stream: _Stream) -> Iterator[Lines]:
        """Gives up on what is missing before the first batch held back."""
        first = stream.order[0]
        name = stream.held[first][0].stream
        missing = range(stream.expected, first)
        which = (
            f"batch {missing[0]}" if len(missing) == 1 else f"batches {missing[0]} to {first - 1}"
        )
        self._problem(f"missing from stream {name}: {which}")
        stream.expected = first
        yield from self._run(stream)

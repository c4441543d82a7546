# SPDX-License-Identifier: Apache-2.0
"""What HTTP servers share: which bodies are let in, and opening them as they arrive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Literal, cast

from upseal.core import header as headers
from upseal.core.bodies import UPLOAD_FRONT, Kind, read_kind
from upseal.core.opener import Opener
from upseal.core.reader import OpeningReader
from upseal.core.uploads import FRONT_MAX, plain_size
from upseal.engine.sizes import CHUNK, NONCE, RECORD_MAX, SEALED_CHUNK, TAG
from upseal.errors import KeyUnavailable, OpenError, Truncated, UnknownRecipient
from upseal.integrations.http.bodies import (
    PROBLEM,
    SEALED_WHEN_EMPTY,
    Bound,
    Context,
    Problem,
    codings,
)

ENVELOPE_MAX = 4 << 20
UPLOAD_MAX = 1 << 30
KEY_RETRY = 10
"""Seconds until a key that is away may be back."""
DRAIN = 1 << 20
"""Bytes of a refused body that are read and thrown away, so that its sender hears why."""
_ENVELOPE_MOST = FRONT_MAX + NONCE + RECORD_MAX + TAG


@dataclass(frozen=True, slots=True)
class Received:
    """What the application is told about the body of a request.

    Args:
        sealed: it came sealed, and is handed out opened; False: it came in clear, or there is none.
        kind: ``envelope``, verified as a whole before the application is called; ``upload``,
            verified chunk by chunk while it is read; None if it was not sealed.
        key_id: of the key that opens it, 8 bytes.
    """

    sealed: bool
    kind: Literal["envelope", "upload"] | None = None
    key_id: bytes | None = None


CLEAR = Received(False)


def refusal(error: OpenError | KeyUnavailable) -> Problem:
    """What a sender hears. All that is wrong with a body is one answer, and one sentence."""
    if isinstance(error, KeyUnavailable):  # nothing is wrong with the body
        return Problem("busy", "the key is not available", retry_after=KEY_RETRY, status=503)
    if isinstance(error, UnknownRecipient):
        return Problem("stale-key")
    return Problem("malformed", "the sealed body cannot be opened")


def answer(problem: Problem) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body of a refusal."""
    body = problem.encode()
    fields = {**problem.headers(), PROBLEM: problem.name, "content-length": str(len(body))}
    return problem.status, list(fields.items()), body


class Rules:
    """What is let in. Safe for threads.

    Args:
        opener: has the private keys, or what stands for them.
        clear: paths whose bodies may come in clear, with everything below them: ``"/healthz"``.
            Elsewhere every body is sealed, and so is an empty one of POST, PUT and PATCH.
        context: as in docs/integrations/http.md; None: `Bound.context`.
        envelope_max: longest sealed body that is opened as a whole, in memory; bytes.
        upload_max: longest sealed body that is opened as it comes; bytes. None: as long as it is.

    Raises:
        TypeError: no opener.
        ValueError: a limit is not positive, or a path does not begin with a slash.
    """

    def __init__(
        self,
        opener: Opener,
        *,
        clear: Iterable[str] = (),
        context: Context | None = None,
        envelope_max: int = ENVELOPE_MAX,
        upload_max: int | None = UPLOAD_MAX,
    ) -> None:
        if not isinstance(opener, Opener):
            raise TypeError(f"an Opener is needed, not {type(opener).__name__}")
        if isinstance(clear, str):
            raise TypeError("clear is a list of paths, not one of them")
        self._clear = tuple(path.encode() for path in clear)
        if not all(path.startswith(b"/") for path in self._clear):
            raise ValueError("each path in clear begins with a slash")
        if envelope_max < 1 or (upload_max is not None and upload_max < 1):
            raise ValueError("a limit is a number of bytes above 0")
        self.opener = opener
        self.envelope_max = min(envelope_max, _ENVELOPE_MOST)
        self.upload_max = upload_max
        self._context = context if context is not None else Bound.context

    def context(self, bound: Bound) -> bytes:
        """Of this request."""
        return self._context(bound)

    def admit(
        self, method: str, path: bytes, values: Sequence[str], has_body: bool
    ) -> tuple[bool, str]:
        """Looks at a request's head.

        Args:
            method: of the request.
            path: as in `Bound`.
            values: of ``Content-Encoding``.
            has_body: the head announces one.

        Returns:
            Whether the body is sealed, and the codings inside.

        Raises:
            Problem: it is not let in: ``clear-not-accepted``, ``media-type``.
        """
        sealed, inside = codings(values)
        must = has_body or method.upper() in SEALED_WHEN_EMPTY
        if not sealed and must and not self.may_be_clear(path):
            raise Problem("clear-not-accepted", "the body must be sealed: Content-Encoding: upseal")
        return sealed, inside

    def may_be_clear(self, path: bytes) -> bool:
        """Whether bodies may come in clear there."""
        parts = path.split(b"/")[1:]
        if any(part in (b".", b"..") for part in parts) or b"" in parts[:-1]:
            return False  # an application might see another path in it
        return any(
            path == prefix or path.startswith(prefix.rstrip(b"/") + b"/") for prefix in self._clear
        )


class Incoming:
    """A sealed body as it arrives. Not for two threads at once; one after the other is fine.

    Args:
        rules: what is let in, and by which keys it opens.
        bound: the request.
        length: of the sealed body, in bytes, if that is known.

    Raises:
        Problem: it is too long.
    """

    def __init__(self, rules: Rules, bound: Bound, length: int | None) -> None:
        self._rules, self._bound, self._length = rules, bound, length
        self._feed = _Feed()
        self._reader: OpeningReader | None = None
        self._seen = self._opened = self._front = 0
        self._held = b""
        self._check(length or 0, rules.upload_max)
        self.received: Received | None = None
        """What it is; None until enough of it has come."""

    @property
    def size(self) -> int:
        """Bytes that wait to be opened."""
        return self._feed.size

    @property
    def plain_length(self) -> int | None:
        """Bytes of an upload's plaintext, as its sealed length has it; None if that is not known.

        Raises:
            Problem: no upload has that sealed length.
        """
        if self._length is None:
            return None
        try:
            return plain_size(max(0, self._length - self._front))
        except Truncated as error:
            raise refusal(error) from None

    def take(self, data: bytes, last: bool) -> None:
        """The next bytes, until `received` is there; then those of an envelope.

        Raises:
            Problem: it is damaged where anybody can see it, too long, or for keys not here.
        """
        self._put(data, last)
        if self.received is None and (last or self._feed.size >= FRONT_MAX):
            try:
                self.received = self._look()
            except OpenError as error:
                raise refusal(error) from None
        if self.received is not None and self.received.kind == "envelope":
            self._check(max(self._seen, self._length or 0), self._rules.envelope_max)

    def report(self) -> bytes:
        """The body inside an envelope, when all of it is there.

        Raises:
            Problem: it cannot be opened.
        """
        try:
            return self._rules.opener.open(self._feed.read(), self._rules.context(self._bound))
        except (OpenError, KeyUnavailable) as error:
            raise refusal(error) from None

    def open(self, data: bytes, last: bool) -> bytes:
        """Verified plaintext of an upload: what is ready.

        The newest piece is held back until the next one has verified, or the end: so whoever counts
        the bytes has not got them all before the end is known to be genuine.

        Args:
            data: the next bytes of the body.
            last: nothing follows.

        Raises:
            Problem: it cannot be opened, or is too long. After that, nothing more comes.
        """
        self._put(data, last)
        try:
            if self._reader is None:
                feed = cast(IO[bytes], self._feed)
                self._reader = self._rules.opener.reader(feed, self._rules.context(self._bound))
            if last:
                rest = self._reader.read()
                self._reader.close()
                out, self._held = self._held + rest, b""
                return out
            whole = (self._seen - self._front) // SEALED_CHUNK - self._opened
            if whole <= 0:
                return b""
            plain = self._reader.read(whole * CHUNK)
            self._opened += whole
            if len(plain) != whole * CHUNK:
                raise OpenError
        except (OpenError, KeyUnavailable) as error:
            self.close()
            raise refusal(error) from None
        out, self._held = self._held, plain
        return out

    def close(self) -> None:
        """Forgets what is held."""
        self._held = b""
        if self._reader is not None:
            self._reader.close()

    def _put(self, data: bytes, last: bool) -> None:
        self._seen += len(data)
        self._check(self._seen, self._rules.upload_max)
        if self._length is not None and (
            self._seen > self._length or (last and self._seen < self._length)
        ):
            raise refusal(Truncated())
        self._feed.put(data, last)

    @staticmethod
    def _check(size: int, most: int | None) -> None:
        if most is not None and size > most:
            raise Problem("too-large", f"a sealed body of at most {most} bytes is taken here")

    def _look(self) -> Received:
        """Reads the public part."""
        data = self._feed.peek(FRONT_MAX)
        header = headers.parse(data)
        kind = read_kind(data, len(header.raw))
        mine = set(self._rules.opener.key_ids)
        key_id = next((entry.key_id for entry in header.entries if entry.key_id in mine), None)
        if key_id is None:
            raise UnknownRecipient([(int(e.suite), e.key_id) for e in header.entries])
        if kind in (Kind.ENVELOPE, Kind.PADDED_ENVELOPE):
            return Received(True, "envelope", key_id)
        if kind is not Kind.UPLOAD:
            raise OpenError(f"a {kind.label} is no body of a request", len(header.raw))
        self._front = len(header.raw) + 1 + UPLOAD_FRONT
        return Received(True, "upload", key_id)


class _Feed:
    """A file that has what has come so far, and never blocks."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ended = False

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return len(self._data)

    def seekable(self) -> bool:
        return False

    def put(self, data: bytes, ended: bool) -> None:
        """What has come."""
        self._data += data
        self._ended = ended

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay."""
        return bytes(self._data[:size])

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        taken = bytes(self._data if size < 0 else self._data[:size])
        del self._data[: len(taken)]
        return taken

    def readinto(self, target: memoryview) -> int | None:
        """Fills what it can; None, and so an error, if it was asked too early."""
        taken = self.read(len(target))
        target[: len(taken)] = taken
        return None if not taken and not self._ended and len(target) else len(taken)

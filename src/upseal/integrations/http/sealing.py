# SPDX-License-Identifier: Apache-2.0
"""What HTTP clients share: decide, seal, and seal again, once, when the key is stale."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, cast

from upseal.core.forks import renew_in_children
from upseal.core.keys import PublicKey
from upseal.core.sealer import Sealer
from upseal.core.uploads import sealed_size
from upseal.engine.buffers import Buffer
from upseal.integrations.http.bodies import (
    CODING,
    SEALED_WHEN_EMPTY,
    Bound,
    Clear,
    Context,
    Policy,
    Problem,
    Seal,
    Withheld,
    Withhold,
    codings,
)

ENVELOPE_MAX = 1 << 20
"""Bodies up to this many bytes become an envelope, if they are in memory as a whole."""
_PART = 1 << 18

LENGTH, ENCODING, TRANSFER = "content-length", "content-encoding", "transfer-encoding"
SealerMaker = Callable[[Sequence[PublicKey]], Sealer]
NOT_AGAIN = (
    "the body had to be sent a second time (its key was stale, or there was a redirect or a "
    "retry), and it is a stream that can be read once only: make the request again, a newer key "
    "is known now if there is one; or send bytes, or a file that seeks"
)


class BodyChanged(ValueError):  # noqa: N818 - what happened
    """A body gave more or fewer bytes than its ``Content-Length``; what was sent is cut off."""


class Sealing:
    """Decides and seals for one client. Safe for threads.

    Args:
        policy: whether, and to whom.
        context: as in docs/integrations/http.md; None: `Bound.context`.
        envelope_max: longer bodies are uploads, sealed and opened chunk by chunk; at most 16 MiB.
        sealer: makes the sealer for some recipients; one with padding, say.

    Raises:
        TypeError: that is no policy.
        ValueError: ``envelope_max`` is negative or too large.
    """

    def __init__(
        self,
        policy: Policy,
        context: Context | None = None,
        envelope_max: int = ENVELOPE_MAX,
        sealer: SealerMaker = Sealer,
    ) -> None:
        if not isinstance(policy, Policy):
            raise TypeError(f"{type(policy).__name__} is no policy: give Recipients([key]), say")
        if not 0 <= envelope_max < 1 << 24:
            raise ValueError(f"envelope_max is 0 to 2^24 - 1 bytes, not {envelope_max}")
        self.policy, self.envelope_max = policy, envelope_max
        self._context = context if context is not None else Bound.context
        self._make = sealer
        self._kept: tuple[tuple[PublicKey, ...], Sealer] | None = None
        self._lock = threading.Lock()
        renew_in_children(self)

    def after_fork(self) -> None:
        """For the child of a fork: a lock of its own."""
        self._lock = threading.Lock()

    def decide(self) -> Seal | Clear:
        """What to do with a body.

        Raises:
            Withheld: it must not leave.
        """
        decision = self.policy.decide()
        if isinstance(decision, Withhold):
            raise Withheld(decision.reason)
        return decision

    def again(self, used: Seal) -> Seal | None:
        """After ``stale-key``: to whom to seal instead; None if nothing newer is known.

        Never clear text: the answer that brought us here is nobody's word.

        Raises:
            Withheld: what is newer says that it must not leave.
        """
        known = self.policy.decide()
        if not isinstance(known, Seal) or known.recipients == used.recipients:
            self.policy.renew(stale=True)  # else another request has found out already
        decision = self.decide()
        if isinstance(decision, Clear) or decision.recipients == used.recipients:
            return None
        return decision

    def sealer(self, decision: Seal) -> Sealer:
        """For these recipients: one session serves many requests."""
        with self._lock:
            if self._kept is None or self._kept[0] != decision.recipients:
                self._kept = decision.recipients, self._make(decision.recipients)
            return self._kept[1]

    def envelope(self, decision: Seal, bound: Bound, body: Buffer) -> bytes:
        """A whole body, sealed."""
        return self.sealer(decision).seal(body, self._context(bound))

    def upload(self, decision: Seal, bound: Bound, length: int | None) -> Upload:
        """A body to be sealed as it comes; ``length`` in bytes, if that is known."""
        return Upload(self.sealer(decision), self._context(bound), length)


class Upload:
    """One upload, sealed as its bytes come; nothing of it is kept.

    Args:
        sealer: for its recipients.
        context: of the request.
        length: bytes that must come, if that is known.
    """

    def __init__(self, sealer: Sealer, context: bytes, length: int | None) -> None:
        self._out = _Out()
        self._writer = sealer.writer(cast(IO[bytes], self._out), context)
        self._length, self._seen = length, 0
        self.sealed_length = None if length is None else len(self._out.data) + sealed_size(length)
        """Bytes that go over the wire, if that is known."""

    def feed(self, data: Buffer) -> bytes:
        """Sealed bytes that are ready now; perhaps none.

        Raises:
            BodyChanged: more bytes than were to come.
        """
        self._seen += memoryview(data).nbytes
        if self._length is not None and self._seen > self._length:
            raise BodyChanged(f"the body is longer than the {self._length} bytes it declares")
        self._writer.write(data)
        return self._out.take()

    def end(self) -> bytes:
        """The rest, with the last chunk.

        Raises:
            BodyChanged: fewer bytes than were to come.
        """
        if self._length is not None and self._seen != self._length:
            raise BodyChanged(
                f"the body gave {self._seen} of the {self._length} bytes it declares: a file or "
                "iterator that was read before cannot be sent again"
            )
        self._writer.close()
        return self._out.take()

    def abort(self) -> None:
        """Ends it: what was sent stays visibly cut off."""
        self._writer.abort()


class _Out:
    """Where sealed bytes wait to be sent."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Buffer) -> int:
        self.data += data
        return memoryview(data).nbytes

    def take(self) -> bytes:
        taken = bytes(self.data)
        self.data.clear()
        return taken


def parts_of(data: bytes) -> Iterator[memoryview]:
    """Bounded pieces, so that what is sealed at once stays small."""
    whole = memoryview(data)
    return (whole[at : at + _PART] for at in range(0, len(whole), _PART))


def sealed_pieces(upload: Upload, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """An upload's sealed bytes; if the body fails, they end without a last chunk."""
    try:
        for piece in pieces:
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise TypeError(f"a body gives bytes, not {type(piece).__name__}")
            for part in parts_of(bytes(piece)):
                if sealed := upload.feed(part):
                    yield sealed
        yield upload.end()
    finally:
        upload.abort()


def to_be_sealed(method: str, empty: bool) -> bool:
    """Whether the policy is asked about this request at all."""
    return not empty or method.upper() in SEALED_WHEN_EMPTY


def inside_coding(headers: Mapping[str, str]) -> str:
    """The content codings that the application has applied itself.

    Raises:
        ValueError: one of them is ours.
    """
    value = headers.get(ENCODING)
    try:
        sealed, inside = codings([] if value is None else [value])
    except Problem:
        sealed, inside = True, ""
    if sealed:
        raise ValueError(
            "the request says Content-Encoding: upseal, which is for the policy to say"
        )
    return inside


def coded(inside: str) -> str:
    """The value of ``Content-Encoding`` for a sealed body."""
    return f"{inside}, {CODING}" if inside else CODING


def declared(headers: Mapping[str, str]) -> int | None:
    """``Content-Length``, if there is one that says something."""
    text = headers.get(LENGTH, "").strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None

# SPDX-License-Identifier: Apache-2.0
"""The answers of ``POST /v1/units`` and ``POST /v1/results``: what became of each body.

``{"results": [{"body": hex, "state": "done", "receipts": [base64url...]}, ...]}``. Receipts are
bytes here; whoever wants to believe one verifies it.
"""

from __future__ import annotations

import base64
import binascii
import enum
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from upseal.fleet.http.problems import MOST_DELAY, Problem

ID_LEN = 32
LONGEST_RECEIPT = 1024
MOST_IDS = 4096
"""Bodies that one request may ask about."""
MOST_RECEIPTS = 32_768
"""In one answer (6 MiB), but for those of its first body: what comes behind is still pending."""


class MalformedResults(ValueError):  # noqa: N818 - reads as what it is
    """Not an answer of this form."""


class State(enum.Enum):
    """What became of a body."""

    DONE = "done"
    PENDING = "pending"
    """Durable here, and on its way."""
    PROBLEM = "problem"
    UNKNOWN = "unknown"
    """Not known here: send it again."""


@dataclass(frozen=True)
class Result:
    """Of one body. ``problem`` is there if, and only if, the state is PROBLEM."""

    body: bytes
    state: State
    receipts: tuple[bytes, ...] = ()
    problem: Problem | None = None

    def __post_init__(self) -> None:
        if len(self.body) != ID_LEN:
            raise ValueError(f"the id of a body has {ID_LEN} bytes")
        if (self.state is State.PROBLEM) != (self.problem is not None):
            raise ValueError("a problem belongs to the state PROBLEM, and to no other")
        if self.receipts and self.state is not State.DONE:
            raise ValueError("receipts belong to the state DONE")

    @classmethod
    def done(cls, body: bytes, receipts: Iterable[bytes]) -> Result:
        """Stored by the server, or refused by it in a signed receipt, unit by unit."""
        return cls(body, State.DONE, tuple(receipts))

    @classmethod
    def pending(cls, body: bytes) -> Result:
        """Durable here; ask again."""
        return cls(body, State.PENDING)

    @classmethod
    def unknown(cls, body: bytes) -> Result:
        """Not here."""
        return cls(body, State.UNKNOWN)

    @classmethod
    def failed(cls, body: bytes, problem: Problem) -> Result:
        """Refused, and not stored."""
        return cls(body, State.PROBLEM, problem=problem)

    def to_dict(self) -> dict[str, Any]:
        """As in JSON."""
        out: dict[str, Any] = {"body": self.body.hex(), "state": self.state.value}
        if self.state is State.DONE:
            out["receipts"] = [to_text(receipt) for receipt in self.receipts]
        elif self.problem is not None:
            out["problem"] = self.problem.to_dict()
            if self.problem.retry_after is not None:
                out["retry_after"] = round(self.problem.retry_after, 3)
        return out

    @classmethod
    def from_dict(cls, value: Any) -> Result:
        """From JSON; MalformedResults. Members that are not known are left out (they may come)."""
        if not isinstance(value, dict):
            raise MalformedResults("a result is an object")
        body = _id(value.get("body"))
        try:
            state = State(value.get("state"))
        except ValueError:
            raise MalformedResults("a result has an unknown state") from None
        if state is State.DONE:
            receipts = value.get("receipts")
            if not isinstance(receipts, list):
                raise MalformedResults("a result that is done has a list of receipts")
            return cls(body, state, tuple(from_text(text) for text in receipts))
        if state is State.PROBLEM:
            problem = Problem.from_dict(value.get("problem"))
            wait = value.get("retry_after")
            if isinstance(wait, int | float) and 0 <= wait < float("inf"):
                problem.retry_after = float(min(wait, MOST_DELAY))
            return cls(body, state, problem=problem)
        return cls(body, state)


def bounded(results: Iterable[Result]) -> Iterator[Result]:
    """The same, with no more than `MOST_RECEIPTS`: who asks for the rest again gets the rest."""
    count = 0
    for result in results:
        count += len(result.receipts)
        late = count > MOST_RECEIPTS and len(result.receipts) < count
        yield Result.pending(result.body) if late and result.receipts else result


def encode(results: Iterable[Result]) -> bytes:
    """The body of the answer."""
    return _dump({"results": [result.to_dict() for result in results]})


def decode(data: bytes) -> list[Result]:
    """The results of an answer, in its order; MalformedResults for anything else."""
    value = _load(data)
    results = value.get("results") if isinstance(value, dict) else None
    if not isinstance(results, list):
        raise MalformedResults("there is no list of results")
    return [Result.from_dict(result) for result in results]


def encode_ids(bodies: Sequence[bytes]) -> bytes:
    """The body of ``POST /v1/results``."""
    if not 1 <= len(bodies) <= MOST_IDS:
        raise ValueError(f"ask about 1 to {MOST_IDS} bodies at once")
    if any(len(body) != ID_LEN for body in bodies):
        raise ValueError(f"the id of a body has {ID_LEN} bytes")
    return _dump({"bodies": [body.hex() for body in bodies]})


def decode_ids(data: bytes) -> list[bytes]:
    """The ids asked about, each once; MalformedResults for anything else."""
    value = _load(data)
    bodies = value.get("bodies") if isinstance(value, dict) else None
    if not isinstance(bodies, list) or not 1 <= len(bodies) <= MOST_IDS:
        raise MalformedResults(f"there is no list of 1 to {MOST_IDS} bodies")
    return list(dict.fromkeys(_id(body) for body in bodies))


def to_text(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_text(text: Any) -> bytes:
    """The bytes of one receipt. One spelling for each value: nothing else is taken."""
    if not isinstance(text, str) or not 0 < len(text) <= LONGEST_RECEIPT * 4 // 3 + 1:
        raise MalformedResults("a receipt is a text of bounded length")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise MalformedResults("a receipt is not base64url") from None
    if to_text(data) != text:
        raise MalformedResults("a receipt is not base64url as it is written here")
    return data


def _id(text: Any) -> bytes:
    if isinstance(text, str) and len(text) == 2 * ID_LEN and text == text.lower():
        try:
            return bytes.fromhex(text)
        except ValueError:
            pass
    raise MalformedResults(f"the id of a body has {2 * ID_LEN} lower-case hexadecimal digits")


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _load(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise MalformedResults("this is not JSON") from None

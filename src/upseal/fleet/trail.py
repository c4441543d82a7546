# SPDX-License-Identifier: Apache-2.0
"""How logs name what is on its way, so that a report can be followed from agent to store.

A body is named at every hop that it passes, a unit wherever it may be read: an agent's log says
which unit went out in which body, a decrypting relay's which units and bodies went into which
other body, the server's which reports they became. `upseal server trace` reads such a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

LINE = 50
"""Names in one line of a log at most; what is longer is cut there."""
_EPOCH_DIGITS = 12
_UNIT = re.compile(r"([0-9a-f]{8,32})-([0-9]{1,19})")
_T = TypeVar("_T")


def unit_name(epoch: bytes, sequence: int) -> str:
    """The beginning of its epoch, and its sequence."""
    return f"{epoch.hex()[:_EPOCH_DIGITS]}-{sequence}"


def body_name(body_id: bytes) -> str:
    """The beginning of its id."""
    return body_id.hex()[:16]


def parse_unit(text: str) -> tuple[str, int] | None:
    """The beginning of an epoch in hexadecimal, and a sequence; None if it is no unit's name."""
    found = _UNIT.fullmatch(text.strip().lower())
    return None if found is None else (found[1], int(found[2]))


def in_lines(names: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """As many as a line takes, and the next."""
    for at in range(0, len(names), LINE):
        yield names[at : at + LINE]

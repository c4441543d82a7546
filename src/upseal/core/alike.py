# SPDX-License-Identifier: Apache-2.0
"""Opening envelopes of one session in one call, without a Python object for any of them."""

from __future__ import annotations

from typing import NamedTuple

from upseal.core import header as headers
from upseal.core.opener import Opener
from upseal.engine.buffers import Buffer, as_bytes
from upseal.engine.records import packed

OTHER = 1


class Opened(NamedTuple):
    """What came of packed envelopes."""

    values: memoryview
    """The reports behind one another."""
    offsets: memoryview
    """int64, from 0; a report that did not open is empty."""
    status: bytes
    """One byte each: 0, it is genuine; `OTHER`, it is not of the first one's session and kind, and
    nothing was tried; anything else, it does not open."""


def open_alike(opener: Opener, values: Buffer, offsets: Buffer, context: Buffer = b"") -> Opened:
    """Opens, of packed envelopes, those that begin as the first does.

    Args:
        opener: whose keys.
        values: the envelopes behind one another.
        offsets: int32 or int64, one more than there are envelopes.
        context: as they were sealed with.

    Raises:
        OpenError: the first one's public part is none, or for none of the opener's keys. With
            ``problem`` None that holds for all that have its `front`.
        ValueError: the offsets fall, or leave the values, or there are no envelopes.
    """
    envelopes = packed(values, offsets)
    if not envelopes.total:
        raise ValueError("no envelopes")
    first = envelopes.values[: max(0, envelopes.offsets[1] - envelopes.offsets[0])]
    route = opener._route(first)
    aad = route.kind + as_bytes(context, "context")
    [(reports, status)] = opener._engine.open_envelopes(
        route.key, route.prefix, aad, envelopes, route.padded
    )
    return Opened(reports.values[: reports.offsets[-1]], reports.offsets, status)


def front(envelope: Buffer) -> int:
    """How many bytes envelopes of one session and kind have in common, if this is one."""
    return headers.size(envelope) + 1

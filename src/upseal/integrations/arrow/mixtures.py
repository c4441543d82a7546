# SPDX-License-Identifier: Apache-2.0
"""Opening envelopes of many sessions: sorted by session, so that C gets each session at once."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from upseal.core.alike import OTHER, front, open_alike
from upseal.errors import OpenError
from upseal.integrations.arrow.layout import array_of, buffers, bytes_of, flat

if TYPE_CHECKING:
    from upseal.core.opener import Opener

_ROUNDS = 4
"""So often rows are sorted by session; what is then left goes through `Opener.open_many`."""
_SAMPLES = 16
"""So many rows are asked how long their header is."""
_REFUSED = b"\xff"


def open_mixture(
    opener: Opener, envelopes: pa.Array, context: bytes
) -> tuple[pa.Array, pa.Array | None]:
    """Opens a large-binary array without nulls; says which rows did not open, if any."""
    if not len(envelopes):
        return envelopes, None
    pieces: list[pa.Array] = []
    statuses: list[pa.Array] = []
    places: list[pa.Array] = []
    left = None  # rows still to be opened; None for all of them
    for turn in range(_ROUNDS):
        order, ends, size, rows = _by_session(envelopes, left, turn == 0)
        values, offsets = buffers(rows)
        runs = [
            _open_run(opener, values, offsets[start : end + 1], context, size)
            for start, end in pairwise([0, *ends])
        ]
        piece = pa.concat_arrays([run for run, _ in runs]) if len(runs) > 1 else runs[0][0]
        status = flat(pa.int8(), b"".join(status for _, status in runs))
        decided = pc.not_equal(status, OTHER)
        if order is None:
            if decided.true_count == len(rows):
                bad = pc.not_equal(status, 0)
                return piece, bad if bad.true_count else None
            order = pc.indices_nonzero(rows.is_valid())
        pieces.append(piece.filter(decided))
        statuses.append(status.filter(decided))
        places.append(order.filter(decided))
        left = order.filter(pc.invert(decided))
        if not len(left):
            break
    else:
        piece, status = _open_each(opener, envelopes.take(left).to_pylist(), context)
        pieces.append(piece)
        statuses.append(status)
        places.append(left)
    back = pc.array_sort_indices(pa.concat_arrays(places))
    bad = pc.not_equal(pa.concat_arrays(statuses).take(back), 0)
    return pa.concat_arrays(pieces).take(back), bad if bad.true_count else None


def _by_session(
    envelopes: pa.Array, left: pa.Array | None, first: bool
) -> tuple[pa.Array | None, list[int], int, pa.Array]:
    """Rows sorted by the session they say they are of.

    Returns:
        Which rows these are, None for all as they stand; where each session ends among them; how
        many bytes those of one have in common; and the rows.
    """
    rows = envelopes if left is None else envelopes.take(left)
    count = len(rows)
    if first:
        one = bytes_of(rows[0])
        size = front(one)
        if one[:size] == bytes_of(rows[count - 1])[:size]:
            return None, [count], 0, rows
    # Of several rows: one may be garbage, whose length says nothing of the others.
    sizes = [front(bytes_of(rows[i * count // _SAMPLES])) for i in range(_SAMPLES)]
    size = max(sizes, key=sizes.count)
    fronts = pc.binary_slice(rows, 0, size).dictionary_encode().indices
    by = pc.array_sort_indices(fronts)
    ends = pc.run_end_encode(fronts.take(by), run_end_type=pa.int64()).run_ends.to_pylist()
    return by if left is None else left.take(by), ends, size, rows.take(by)


def _open_run(
    opener: Opener, values: memoryview, offsets: memoryview, context: bytes, size: int
) -> tuple[pa.Array, bytes]:
    """Opens rows of which the first ``size`` bytes are the same; the status of each."""
    try:
        opened = open_alike(opener, values, offsets, context)
    except OpenError as error:
        count = len(offsets) - 1
        # What is wrong with a whole header is wrong with all that have it; else with this row only.
        header = front(values[offsets[0] : offsets[1]]) - 1
        others = _REFUSED if error.problem is None and header <= size else bytes([OTHER])
        return array_of(b"", bytes(8 * count + 8)), _REFUSED + others * (count - 1)
    return array_of(opened.values, opened.offsets), opened.status


def _open_each(opener: Opener, envelopes: list[bytes], context: bytes) -> tuple[pa.Array, pa.Array]:
    """What is left of a mixture made to be slow: in linear time, with objects."""
    opened = opener.open_many(envelopes, context)
    status = b"".join(_REFUSED if isinstance(one, OpenError) else b"\0" for one in opened)
    reports = [b"" if isinstance(one, OpenError) else one for one in opened]
    return pa.array(reports, pa.large_binary()), flat(pa.int8(), status)

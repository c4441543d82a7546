# SPDX-License-Identifier: Apache-2.0
"""Arrow arrays as the buffers that the C core takes, and back; and their parts among threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from upseal.engine.machine import cores
from upseal.engine.threads import share

Column: TypeAlias = "pa.Array | pa.ChunkedArray"

_SMALL_MAX = 2**31 - 1
_SHARE = 4 * 1024 * 1024
"""What a thread must have to do before it is worth starting, in bytes."""
_ZERO = pa.array([0], pa.int64())


def compact(part: pa.Array) -> tuple[pa.Array, pa.Array | None]:
    """The elements that are not null, as large binary; which of all those are, if not all are."""
    if isinstance(part, pa.ExtensionArray):
        part = part.storage
    if isinstance(part, pa.DictionaryArray):
        part = part.dictionary_decode()
    part = part.cast(pa.large_binary())
    if not part.null_count:
        return part, None
    return part.drop_null(), part.is_valid()


def buffers(array: pa.Array) -> tuple[memoryview, memoryview]:
    """Values and offsets of large binary, as they lie in memory."""
    if not len(array):
        return memoryview(b""), memoryview(bytes(8)).cast("q")
    _, offsets, values = array.buffers()
    table = memoryview(offsets.slice(8 * array.offset, 8 * len(array) + 8)).cast("B").cast("q")
    return memoryview(values if values is not None else b""), table


def array_of(values: Any, offsets: Any, valid: pa.Array | None = None) -> pa.Array:
    """Large binary of these buffers, without copying them."""
    ends = pa.py_buffer(offsets)
    parts = [None if valid is None else bitmap(valid), ends, pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.large_binary(), ends.size // 8 - 1, parts)


def spread(values: Any, offsets: Any, valid: pa.Array | None) -> pa.Array:
    """The same with its nulls again: they move offsets only."""
    if valid is None:
        return array_of(values, offsets)
    ends = flat(pa.int64(), offsets).take(pa.concat_arrays([_ZERO, counts(valid, 0)]))
    return array_of(values, ends.buffers()[1], valid)


def counts(valid: pa.Array, more: int) -> pa.Array:
    """How many up to and with each row are valid, and so many more; at least 0."""
    return pc.max_element_wise(pc.add(pc.cumulative_sum(valid.cast(pa.int64())), more), 0)


def flat(kind: pa.DataType, data: Any) -> pa.Array:
    """Numbers without nulls, over the memory given."""
    buffer = pa.py_buffer(data)
    return pa.Array.from_buffers(kind, 8 * buffer.size // kind.bit_width, [None, buffer])


def bitmap(valid: pa.Array) -> pa.Buffer:
    """Booleans as a validity bitmap that begins at its first bit."""
    return pc.invert(pc.invert(valid)).buffers()[1] if valid.offset else valid.buffers()[1]


def bytes_of(scalar: Any) -> memoryview:
    """What an element holds, where it lies."""
    buffer = scalar.as_buffer()  # None for a null
    return memoryview(buffer).cast("B") if buffer else memoryview(b"")


def row_of(array: Column, row: int) -> pa.Array:
    """One row, as an array of it alone."""
    one = array.slice(row, 1)
    return one.combine_chunks() if isinstance(one, pa.ChunkedArray) else one


def is_small(kind: pa.DataType) -> bool:
    """Whether what comes of this type has 32-bit offsets.

    Raises:
        TypeError: it is of no type that holds bytes.
    """
    inner = kind
    while isinstance(inner, (pa.BaseExtensionType, pa.DictionaryType)):
        whole = isinstance(inner, pa.BaseExtensionType)
        inner = inner.storage_type if whole else inner.value_type
    types = pa.types
    if types.is_binary(inner) or types.is_string(inner) or types.is_fixed_size_binary(inner):
        return True
    large = (types.is_large_binary, types.is_large_string, types.is_binary_view)
    if any(of(inner) for of in (*large, types.is_string_view, types.is_null)):
        return False
    raise TypeError(f"a column of binary or string is sealed and opened, not of {kind}")


def narrow(array: pa.Array) -> pa.Array:
    """Binary of large binary, over the same values."""
    bits, offsets, values = array.buffers()
    ends = flat(pa.int64(), offsets)
    if ends[len(array)].as_py() > _SMALL_MAX:
        raise ValueError(
            "what comes out is longer than the 2 GiB that a chunk of binary can hold: cast the "
            "column to large_binary, or pass it in smaller chunks"
        )
    small = ends.slice(0, len(array) + 1).cast(pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.binary(), len(array), [bits, small, values])


def each(
    work: Callable[[pa.Array, int], pa.Array],
    array: Column,
    threads: int | None,
    most: int | None = None,
) -> Column:
    """``work`` on each chunk, or on shares of an array; parts have at most so many rows."""
    if not isinstance(array, (pa.Array, pa.ChunkedArray)):
        raise TypeError(f"expected an Arrow array, not {type(array).__name__}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads is 1 or more, not {threads}")
    small = is_small(array.type)
    chunked = isinstance(array, pa.ChunkedArray)
    chunks = array.chunks if chunked else [array]
    workers = (cores() if chunked else 1) if threads is None else threads
    workers = max(1, min(workers, array.nbytes // _SHARE))
    jobs: list[tuple[int, int, pa.Array]] = []
    at = 0
    for number, chunk in enumerate(chunks):
        step = len(chunk) if chunked else -(-len(chunk) // workers)
        step = max(1, min(step, most or step))
        starts = range(0, max(len(chunk), 1), step)
        jobs += ((number, at + start, chunk.slice(start, step)) for start in starts)
        at += len(chunk)
    done: dict[int, pa.Array] = {}
    left = list(enumerate(jobs))[::-1]

    def run() -> None:
        while True:
            try:
                job, (_, at, part) = left.pop()
            except IndexError:  # none left, or another thread was quicker
                return
            done[job] = work(part, at)

    share(run, min(workers, len(jobs)), left.clear)
    results = []
    for number in range(len(chunks)):
        parts = [done[job] for job, (of, _, _) in enumerate(jobs) if of == number]
        whole = pa.concat_arrays(parts) if len(parts) > 1 else parts[0]
        results.append(narrow(whole) if small else whole)
    kind = pa.binary() if small else pa.large_binary()
    return pa.chunked_array(results, kind) if chunked else results[0]

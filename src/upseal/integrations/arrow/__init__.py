# SPDX-License-Identifier: Apache-2.0
"""Arrow: columns of reports sealed and opened without a Python object per row.

Arrow's buffers go into the C core's packed calls as they are, and what comes out becomes an Arrow
array as it is. Each element is an envelope of its own, so rows may be filtered, sorted and split
while they are sealed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from upseal.core.bodies import BATCH_MAX
from upseal.engine.buffers import as_bytes
from upseal.engine.sizes import RECORD_MAX
from upseal.errors import OpenError

try:
    import pyarrow as pa
    import pyarrow.compute as pc
except ImportError as error:
    raise ImportError("Arrow columns need pyarrow: pip install 'upseal[arrow]'") from error

from upseal.integrations.arrow.layout import (
    Column,
    array_of,
    buffers,
    bytes_of,
    compact,
    counts,
    each,
    is_small,
    row_of,
    spread,
)
from upseal.integrations.arrow.mixtures import open_mixture

if TYPE_CHECKING:
    from upseal.core.opener import Opener
    from upseal.core.sealer import Sealer
    from upseal.engine.buffers import Buffer

__all__ = [
    "Column",
    "Errors",
    "RowsError",
    "open_array",
    "open_batches",
    "open_column",
    "seal_array",
    "seal_batches",
    "seal_column",
]

Errors: TypeAlias = Literal["raise", "null"]
_Table = TypeVar("_Table", "pa.Table", "pa.RecordBatch")


class RowsError(OpenError):
    """Some rows of a column do not open.

    ``rows`` (int64) says which, ``total`` of how many; ``first`` is what `Opener.open` says of the
    first of them. They are None where an engine has made the exception anew from its text.
    """

    def __init__(
        self,
        message: str,
        rows: pa.Array | None = None,
        total: int | None = None,
        first: OpenError | None = None,
    ) -> None:
        super().__init__(
            None if first is None else first.problem, None if first is None else first.offset
        )
        self.args = (message,)
        self.rows, self.total, self.first = rows, total, first
        self.__cause__ = first

    def __str__(self) -> str:
        return str(self.args[0])


def seal_array(
    sealer: Sealer, array: Column, context: Buffer = b"", *, threads: int | None = None
) -> Column:
    """Each element as an envelope of its own; nulls stay null, and nothing is sealed for them.

    Args:
        sealer: to whom.
        array: of binary, string, their large and view forms, fixed-size binary, or a dictionary
            of these.
        context: as in `Sealer.seal`, for every row.
        threads: how many at most. None: as many as there are cores for the chunks of a
            ChunkedArray, and one for an Array: joining its parts again takes a copy.

    Returns:
        Binary for binary, string and fixed-size binary; large binary for the others. A
        ChunkedArray for a ChunkedArray, of the same chunks.

    Raises:
        TypeError: the array is of another type.
        ValueError: a report is longer than 16 MiB, or the envelopes of one chunk are longer than
            the 2 GiB that binary can hold.
    """
    bound = as_bytes(context, "context")

    def seal(part: pa.Array, _: int) -> pa.Array:
        reports, valid = compact(part)
        longest = pc.max(pc.binary_length(reports)).as_py() or 0
        if longest > RECORD_MAX:
            raise ValueError(f"a report is {longest} bytes long, and at most 16 MiB can be sealed")
        values, offsets = sealer.seal_many_packed(*buffers(reports), bound)
        return spread(values, offsets, valid)

    return each(seal, array, threads, BATCH_MAX)


def open_array(
    opener: Opener,
    array: Column,
    context: Buffer = b"",
    *,
    errors: Errors = "raise",
    threads: int | None = None,
) -> Column:
    """The report in each envelope, of any mix of sessions; nulls stay null.

    Args:
        opener: whose keys.
        array: as in `seal_array`, of what that or `Sealer.seal` gave.
        context: as they were sealed with.
        errors: what rows that do not open become: "raise" gives nothing of the column out, "null"
            makes them null. Whatever they hold, other rows are opened and stay where they are.
        threads: as in `seal_array`.

    Returns:
        As `seal_array`: cast it to a string type where the reports are text.

    Raises:
        RowsError: rows do not open, with ``errors="raise"``. It is an `OpenError`.
        TypeError, ValueError: as `seal_array`; ``errors`` is neither.
    """
    bound = as_bytes(context, "context")
    if errors not in ("raise", "null"):
        raise ValueError(f"errors is 'raise' or 'null', not {errors!r}")
    refused: dict[int, pa.Array] = {}

    def open_(part: pa.Array, at: int) -> pa.Array:
        envelopes, valid = compact(part)
        opened, bad = open_mixture(opener, envelopes, bound)
        values, offsets = buffers(opened)
        opened = spread(values, offsets, valid)
        if bad is None:
            return opened
        if valid is not None:
            bad = pc.and_(valid, bad.take(counts(valid, -1)))
        refused[at] = pc.add(pc.indices_nonzero(bad).cast(pa.int64()), at)
        _, offsets, values = opened.buffers()
        return array_of(values, offsets, pc.and_not(opened.is_valid(), bad))

    result = each(open_, array, threads)
    if refused and errors == "raise":
        rows = pa.concat_arrays([refused[at] for at in sorted(refused)])
        raise _refusal(rows, len(array), _why(opener, array, rows[0].as_py(), bound))
    return result


def seal_column(
    sealer: Sealer,
    table: _Table,
    name: str,
    context: Buffer = b"",
    *,
    threads: int | None = None,
) -> _Table:
    """The table, or record batch, with one column sealed: `seal_array`.

    Raises:
        KeyError: there is no such column, or more than one.
        TypeError, ValueError: as `seal_array`.
    """
    return _replaced(table, name, partial(seal_array, sealer, context=context, threads=threads))


def open_column(
    opener: Opener,
    table: _Table,
    name: str,
    context: Buffer = b"",
    *,
    errors: Errors = "raise",
    threads: int | None = None,
) -> _Table:
    """The table, or record batch, with one column opened: `open_array`.

    Raises:
        KeyError: there is no such column, or more than one.
        RowsError, TypeError, ValueError: as `open_array`.
    """
    opening = partial(open_array, opener, context=context, errors=errors, threads=threads)
    return _replaced(table, name, opening)


def seal_batches(
    sealer: Sealer, array: Column, context: Buffer = b"", *, rows: int = 65536
) -> pa.Array:
    """A column as sealed batches: one blob (large binary) for so many rows.

    Inside one no report can be moved, dropped or added unseen, and there is one header instead of
    one per row; but a batch opens only as a whole.

    Raises:
        TypeError: the array is of another type.
        ValueError: it has nulls, which a batch cannot tell from empty reports; ``rows`` is not 1 to
            2^20; a report is longer than 16 MiB, or a batch would be longer than 1 GiB.
    """
    is_small(array.type)
    if not 1 <= rows <= BATCH_MAX:
        raise ValueError(f"rows is 1 to 2^20, not {rows}")
    if array.null_count:
        raise ValueError(f"a batch has no nulls, and here are {array.null_count}: drop_null()")
    whole = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    parts = (whole.slice(at, rows) for at in range(0, len(whole), rows))
    blobs = [sealer.seal_packed(*buffers(compact(part)[0]), context) for part in parts]
    return pa.array(blobs, pa.large_binary())


def open_batches(opener: Opener, blobs: Column, context: Buffer = b"") -> pa.ChunkedArray:
    """All reports of sealed batches, a chunk (large binary) for each batch.

    Raises:
        RowsError: a batch is not genuine, whole and of this context; its ``rows`` has that batch.
    """
    chunks = []
    for at, blob in enumerate(blobs):
        try:
            values, offsets = opener.open_packed(bytes_of(blob), context)
        except OpenError as error:
            raise _refusal(pa.array([at], pa.int64()), len(blobs), error) from error
        chunks.append(array_of(values, offsets))
    return pa.chunked_array(chunks, pa.large_binary())


def _refusal(rows: pa.Array, total: int, first: OpenError) -> RowsError:
    message = f"{len(rows)} of {total} rows did not open; row {rows[0]} {first}"
    return RowsError(message, rows, total, first)


def _why(opener: Opener, array: Column, row: int, context: bytes) -> OpenError:
    try:
        opener.open(bytes_of(compact(row_of(array, row))[0][0]), context)
    except OpenError as error:
        return error
    return OpenError()


def _replaced(table: _Table, name: str, work: Callable[[Column], Column]) -> _Table:
    """With one column made anew; its place, name and metadata stay."""
    places = table.schema.get_all_field_indices(name)
    if len(places) != 1:
        raise KeyError(f"{len(places)} columns are called {name!r}")
    column = work(table.column(places[0]))
    field = table.schema.field(places[0]).with_type(column.type)
    if column.null_count:
        field = field.with_nullable(True)
    return table.set_column(places[0], field, column)

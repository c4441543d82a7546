# SPDX-License-Identifier: Apache-2.0
"""Polars: ``upseal`` as a namespace of expressions and of series."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

try:
    import polars as pl
except ImportError as error:
    raise ImportError("Polars expressions need polars: pip install 'upseal[polars]'") from error

import pyarrow as pa

from upseal.integrations.arrow import Column, Errors, open_array, seal_array

if TYPE_CHECKING:
    from upseal.core.opener import Opener
    from upseal.core.sealer import Sealer
    from upseal.engine.buffers import Buffer


def seal_series(sealer: Sealer, series: pl.Series, context: Buffer = b"") -> pl.Series:
    """Each element of a binary or string series as an envelope; nulls stay null.

    Raises:
        TypeError, ValueError: as `upseal.integrations.arrow.seal_array`.
    """
    return _back(series, seal_array(sealer, _column(series), context, threads=1))


def open_series(
    opener: Opener, series: pl.Series, context: Buffer = b"", *, errors: Errors = "raise"
) -> pl.Series:
    """The report in each envelope, as a binary series; nulls stay null.

    Raises:
        RowsError: rows do not open, with ``errors="raise"``.
        TypeError, ValueError: as `upseal.integrations.arrow.open_array`.
    """
    opened = open_array(opener, _column(series), context, errors=errors, threads=1)
    return _back(series, opened)


@pl.api.register_series_namespace("upseal")
class SeriesNamespace:
    """``series.upseal``."""

    def __init__(self, series: pl.Series) -> None:
        self._series = series

    def seal(self, sealer: Sealer, context: Buffer = b"") -> pl.Series:
        """As `seal_series`."""
        return seal_series(sealer, self._series, context)

    def open(self, opener: Opener, context: Buffer = b"", *, errors: Errors = "raise") -> pl.Series:
        """As `open_series`."""
        return open_series(opener, self._series, context, errors=errors)


@pl.api.register_expr_namespace("upseal")
class ExprNamespace:
    """``pl.col("report").upseal``, in eager, lazy and streaming queries.

    They work row by row, so that the optimizer may filter first and the streaming engine may go
    batch by batch.
    """

    def __init__(self, expr: pl.Expr) -> None:
        self._expr = expr

    def seal(self, sealer: Sealer, context: Buffer = b"") -> pl.Expr:
        """As `seal_series`.

        Raises:
            TypeError, ValueError: in the query, as `seal_series`.
        """
        return self._each(partial(_seal, sealer, context))

    def open(self, opener: Opener, context: Buffer = b"", *, errors: Errors = "raise") -> pl.Expr:
        """As `open_series`.

        Raises:
            RowsError: in the query; its ``rows`` count from the start of a batch.
            ValueError: ``errors`` is neither.
        """
        if errors not in ("raise", "null"):
            raise ValueError(f"errors is 'raise' or 'null', not {errors!r}")
        return self._each(partial(_open, opener, context, errors))

    def _each(self, work: Callable[[pl.Series], pl.Series]) -> pl.Expr:
        return self._expr.map_batches(work, return_dtype=pl.Binary, is_elementwise=True)


def _seal(sealer: Sealer, context: Buffer, series: pl.Series) -> pl.Series:
    return seal_series(sealer, series, context)


def _open(opener: Opener, context: Buffer, errors: Errors, series: pl.Series) -> pl.Series:
    return open_series(opener, series, context, errors=errors)


def _column(series: pl.Series) -> Column:
    if series.dtype not in (pl.Binary, pl.String, pl.Null):
        raise TypeError(f"a series of Binary or String is sealed and opened, not of {series.dtype}")
    return pa.chunked_array([chunk.to_arrow() for chunk in series.get_chunks()])


def _back(series: pl.Series, column: Column) -> pl.Series:
    made = pl.from_arrow(column)
    assert isinstance(made, pl.Series)
    return made.alias(series.name)

# SPDX-License-Identifier: Apache-2.0
"""DuckDB: sealed columns opened, and sealed, in SQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

try:
    import duckdb
    import numpy  # noqa: F401 - DuckDB wants it before it calls any function
except ImportError as error:
    raise ImportError(
        "DuckDB functions need duckdb and numpy: pip install 'upseal[duckdb]'"
    ) from error

from upseal.errors import OpenError
from upseal.integrations.arrow import Column, Errors, open_array, seal_array

if TYPE_CHECKING:
    from upseal.core.opener import Opener
    from upseal.core.sealer import Sealer
    from upseal.engine.buffers import Buffer

_Function: TypeAlias = Callable[[Column], Column]


def register(
    connection: duckdb.DuckDBPyConnection,
    *,
    opener: Opener | None = None,
    sealer: Sealer | None = None,
    context: Buffer = b"",
    errors: Errors = "raise",
    unseal: str = "unseal",
    seal: str = "seal",
) -> None:
    """Gives a connection the SQL functions ``unseal(BLOB)`` and ``seal(BLOB)``, both to BLOB.

    They are called with 2048 rows at a time, as Arrow arrays. NULL stays NULL. More contexts or
    keys are more functions: register again, under other names.

    Args:
        connection: only here and on its cursors they are known; nothing is written to a database.
        opener: for ``unseal``; without, there is no such function.
        sealer: for ``seal``; without, there is no such function.
        context: as in `Sealer.seal`, for every row.
        errors: what a report that does not open does: "raise" ends the query, "null" is NULL.
        unseal: another name for it.
        seal: another name for it.

    Raises:
        ValueError: neither an opener nor a sealer; or ``errors`` is neither.
        duckdb.Error: a function of that name is there already.
    """
    if opener is None and sealer is None:
        raise ValueError("an opener or a sealer is needed, or both")
    if errors not in ("raise", "null"):
        raise ValueError(f"errors is 'raise' or 'null', not {errors!r}")
    # Volatile, or equal reports would be sealed once and the envelope repeated: that would tell.
    if sealer is not None:
        _create(connection, seal, _sealing(sealer, context), volatile=True)
    if opener is not None:
        _create(connection, unseal, _opening(opener, context, errors, unseal), volatile=False)


def _create(
    connection: duckdb.DuckDBPyConnection, name: str, function: _Function, volatile: bool
) -> None:
    create: Any = connection.create_function  # names of its enums moved between releases
    create(
        name,
        function,
        ["BLOB"],
        "BLOB",
        type="arrow",
        null_handling="special",
        side_effects=volatile,
    )


def _sealing(sealer: Sealer, context: Buffer) -> _Function:
    def seal(reports: Column) -> Column:
        return seal_array(sealer, reports, context, threads=1)

    return seal


def _opening(opener: Opener, context: Buffer, errors: Errors, name: str) -> _Function:
    def unseal(envelopes: Column) -> Column:
        try:
            return open_array(opener, envelopes, context, errors=errors, threads=1)
        except OpenError as error:
            # DuckDB shows the text alone; and which rows of 2048 it was says nothing to its user.
            raise ValueError(
                f"{name}: a report {getattr(error, 'first', error)}; to find such rows, register "
                "with errors='null' and ask where it is NULL and the envelope is not"
            ) from None

    return unseal

# SPDX-License-Identifier: Apache-2.0
"""Ray Data: columns of sealed reports, opened and sealed in the workers.

One line of a job: ``open_column(ds, "report", keys="file:/etc/upseal/server.pem")``. Blocks are
Arrow tables and stay so; no row becomes a Python object, and no key becomes part of the job
(`upseal.integrations.worker_keys`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from upseal.engine.buffers import as_bytes

try:
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy
except ImportError as error:
    raise ImportError("columns of Ray Data need ray: pip install 'upseal[ray]'") from error

from upseal.integrations import arrow, worker_keys

if TYPE_CHECKING:
    from ray.data import Dataset

    from upseal.core.keys import PublicKey
    from upseal.core.options import Padding
    from upseal.engine.buffers import Buffer

__all__ = ["OpenColumn", "SealColumn", "open_column", "seal_column"]


class OpenColumn:
    """A callable for `Dataset.map_batches`, with ``batch_format="pyarrow"``; see `open_column`."""

    def __init__(
        self,
        column: str,
        keys: worker_keys.References,
        context: Buffer = b"",
        errors: arrow.Errors = "raise",
        into: str | None = None,
    ) -> None:
        self._keys = worker_keys.references(keys)
        self._column, self._into = column, into
        self._context = as_bytes(context, "context")
        if errors not in ("raise", "null"):
            raise ValueError(f"errors is 'raise' or 'null', not {errors!r}")
        self._errors = errors

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The batch with its column opened."""
        opener = worker_keys.opener(self._keys)
        opened = arrow.open_array(
            opener, _column(batch, self._column), self._context, errors=self._errors, threads=1
        )
        return _placed(batch, self._column, self._into, opened)


class SealColumn:
    """A callable for `Dataset.map_batches`, with ``batch_format="pyarrow"``; see `seal_column`."""

    def __init__(
        self,
        column: str,
        recipients: PublicKey | bytes | Sequence[PublicKey | bytes],
        context: Buffer = b"",
        padding: Padding | None = None,
        into: str | None = None,
    ) -> None:
        self._recipients = worker_keys.public_pems(recipients)
        self._column, self._into = column, into
        self._context, self._padding = as_bytes(context, "context"), padding

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The batch with its column sealed."""
        sealer = worker_keys.sealer(self._recipients, self._padding)
        sealed = arrow.seal_array(sealer, _column(batch, self._column), self._context, threads=1)
        return _placed(batch, self._column, self._into, sealed)


def open_column(
    ds: Dataset,
    column: str,
    *,
    keys: worker_keys.References,
    context: Buffer = b"",
    errors: arrow.Errors = "raise",
    into: str | None = None,
    compute: ActorPoolStrategy | TaskPoolStrategy | None = None,
    **options: Any,
) -> Dataset:
    """The dataset with a column of sealed reports opened; lazily, as all of Ray Data.

    Args:
        ds: any dataset.
        column: of binary: what agents sealed, or `seal_column`. Nulls stay null.
        keys: where each worker finds the private keys; one reference, or several, as in
            `upseal.integrations.worker_keys`.
        context: what the reports were sealed with. Part of the job, and so no secret.
        errors: what becomes of rows that do not open: "raise" fails the task, and with it the job;
            "null" makes them null.
        into: a name for a new column, last; the sealed one then stays as it is. None: in its place.
        compute: None for actors, from one to as many as there is room for;
            ``ActorPoolStrategy(size=8)`` for so many; ``TaskPoolStrategy()`` for tasks, which Ray
            fuses with tasks that follow. Either way a worker process keeps its opener.
        **options: what else `Dataset.map_batches` takes: ``batch_size``, ``num_cpus``, ...

    Returns:
        The dataset. All other columns are as they were.

    Raises:
        TypeError: ``keys`` is a private key.
        ValueError: there is no such column, where that is known already, or ``into`` is there; no
            reference; a key would be in the settings of the job.
    """
    found = worker_keys.references(keys)
    _check_settings(found, options)
    given = {"column": column, "keys": found, "context": as_bytes(context, "context")}
    return _mapped(ds, OpenColumn, {**given, "errors": errors, "into": into}, compute, options)


def seal_column(
    ds: Dataset,
    column: str,
    *,
    recipients: PublicKey | bytes | Sequence[PublicKey | bytes],
    context: Buffer = b"",
    padding: Padding | None = None,
    into: str | None = None,
    compute: ActorPoolStrategy | TaskPoolStrategy | None = None,
    **options: Any,
) -> Dataset:
    """The dataset with a column sealed, each row an envelope of its own. Nulls stay null.

    A block that Ray computes again is sealed anew, to other bytes.

    Args:
        ds: any dataset.
        column: of binary or string (sealed as UTF-8).
        recipients: public keys, or their PEM; 1 to 16.
        context: bytes that the opener must name as well. Part of the job, and so no secret.
        padding: as in `upseal.Sealer`.
        into: as in `open_column`.
        compute: as in `open_column`.
        **options: as in `open_column`.

    Raises:
        TypeError: a recipient is no public key.
        ValueError: there is no such column, where that is known already, or ``into`` is there; no
            recipients.
    """
    pems = worker_keys.public_pems(recipients)
    worker_keys.sealer(pems, padding)  # what is wrong with them is said here and now
    given = {"column": column, "recipients": pems, "context": as_bytes(context, "context")}
    return _mapped(ds, SealColumn, {**given, "padding": padding, "into": into}, compute, options)


def _mapped(
    ds: Dataset,
    work: type[OpenColumn | SealColumn],
    given: dict[str, Any],
    compute: ActorPoolStrategy | TaskPoolStrategy | None,
    options: dict[str, Any],
) -> Dataset:
    callable_ = work(**given)
    schema = ds.schema(fetch_if_missing=False)  # to look into the data would run the job
    if schema is not None:
        _check_names(list(schema.names), given["column"], given["into"])
    settings = {
        "batch_format": "pyarrow",
        "batch_size": None,
        "udf_modifying_row_count": False,
        **options,
    }
    if isinstance(compute, TaskPoolStrategy):
        return ds.map_batches(partial(_call, callable_), compute=compute, **settings)
    actors = compute or ActorPoolStrategy(min_size=1, max_size=None)
    return ds.map_batches(work, fn_constructor_kwargs=given, compute=actors, **settings)


def _call(work: OpenColumn | SealColumn, batch: pa.Table) -> pa.Table:
    return work(batch)


def _check_names(names: list[str], column: str, into: str | None) -> None:
    if names.count(column) != 1:
        raise ValueError(f"{names.count(column)} columns are called {column!r}; there are {names}")
    if into in names:
        raise ValueError(f"there is a column {into!r} already")


def _column(batch: pa.Table, column: str) -> pa.ChunkedArray:
    _check_names(batch.schema.names, column, None)
    return batch.column(column)


def _placed(batch: pa.Table, column: str, into: str | None, made: pa.ChunkedArray) -> pa.Table:
    if into is not None:
        _check_names(batch.schema.names, column, into)
        return batch.append_column(into, made)
    place = batch.schema.names.index(column)
    return batch.set_column(place, pa.field(column, made.type), made)


def _check_settings(found: tuple[str, ...], options: dict[str, Any]) -> None:
    """Ray keeps the environment that a job asks for with the job, and shows it in its page."""
    asked = dict((options.get("runtime_env") or {}).get("env_vars") or {})
    if ray.is_initialized():
        asked.update(ray.get_runtime_context().runtime_env.get("env_vars") or {})
    for name in worker_keys.environment_names(found):
        if name in asked:
            raise ValueError(
                f"{name} in runtime_env writes the key into the job's settings: set it where the "
                "nodes are started"
            )

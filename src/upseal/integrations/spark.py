# SPDX-License-Identifier: Apache-2.0
"""Spark: columns of sealed reports, opened and sealed in the workers.

One line of a job: ``open_column(df, "report", keys="file:/etc/upseal/server.pem")``. Arrow's
buffers go from Spark into the C core and back; no row becomes a Python object, and no key becomes
part of the job (`upseal.integrations.worker_keys`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from upseal.engine.buffers import as_bytes

try:
    import pyarrow as pa
    from pyspark.sql.types import BinaryType, StringType, StructField, StructType
except ImportError as error:
    raise ImportError("Spark columns need pyspark: pip install 'upseal[spark]'") from error

from upseal.integrations import arrow, worker_keys

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from upseal.core.keys import PublicKey
    from upseal.core.options import Padding
    from upseal.engine.buffers import Buffer

__all__ = ["open_column", "seal_column"]

_Work = Callable[[Any], Any]


def open_column(
    df: DataFrame,
    column: str,
    *,
    keys: worker_keys.References,
    context: Buffer = b"",
    errors: arrow.Errors = "raise",
    into: str | None = None,
) -> DataFrame:
    """The frame with a column of sealed reports opened; lazily, as all of Spark.

    Args:
        df: any frame.
        column: of binary: what agents sealed, or `seal_column`. Nulls stay null.
        keys: where each worker finds the private keys; one reference, or several, as in
            `upseal.integrations.worker_keys`.
        context: what the reports were sealed with. Part of the plan, and so no secret.
        errors: what becomes of rows that do not open: "raise" fails the task, and with it the job;
            "null" makes them null.
        into: a name for a new column, last; the sealed one then stays as it is. None: in its place.

    Returns:
        The frame. All other columns are as they were.

    Raises:
        TypeError: ``keys`` is a private key; the column is not binary.
        ValueError: there is no such column, or ``into`` is there already; no reference; a key would
            be in the settings of the job.
    """
    found = worker_keys.references(keys)
    _check_settings(df, found)
    if errors not in ("raise", "null"):
        raise ValueError(f"errors is 'raise' or 'null', not {errors!r}")
    work = partial(_open, keys=found, context=as_bytes(context, "context"), errors=errors)
    return _mapped("open_column", df, column, into, (BinaryType,), work, nullable=errors == "null")


def seal_column(
    df: DataFrame,
    column: str,
    *,
    recipients: PublicKey | bytes | Sequence[PublicKey | bytes],
    context: Buffer = b"",
    padding: Padding | None = None,
    into: str | None = None,
) -> DataFrame:
    """The frame with a column sealed, each row an envelope of its own. Nulls stay null.

    A partition that Spark computes again is sealed anew, to other bytes: write the frame out before
    sealed columns are compared.

    Args:
        df: any frame.
        column: of binary or string (sealed as UTF-8).
        recipients: public keys, or their PEM; 1 to 16.
        context: bytes that the opener must name as well. Part of the plan, and so no secret.
        padding: as in `upseal.Sealer`.
        into: as in `open_column`.

    Raises:
        TypeError: a recipient is no public key; the column is neither binary nor string.
        ValueError: there is no such column, or ``into`` is there already; no recipients.
    """
    pems = worker_keys.public_pems(recipients)
    worker_keys.sealer(pems, padding)  # what is wrong with them is said here and now
    work = partial(_seal, pems=pems, padding=padding, context=as_bytes(context, "context"))
    return _mapped("seal_column", df, column, into, (BinaryType, StringType), work, nullable=False)


# -- in the worker ---------------------------------------------------------------------


def _open(column: pa.Array, *, keys: tuple[str, ...], context: bytes, errors: arrow.Errors) -> Any:
    return arrow.open_array(worker_keys.opener(keys), column, context, errors=errors)


def _seal(
    column: pa.Array, *, pems: tuple[bytes, ...], padding: Padding | None, context: bytes
) -> Any:
    return arrow.seal_array(worker_keys.sealer(pems, padding), column, context)


def _batches(
    batches: Iterator[pa.RecordBatch], *, work: _Work, place: int, names: list[str]
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        columns = list(batch.columns)
        made = work(columns[place])
        if len(names) > len(columns):
            columns.append(made)
        else:
            columns[place] = made
        yield pa.RecordBatch.from_arrays(columns, names)


# -- in the driver ---------------------------------------------------------------------


def _mapped(
    name: str,
    df: DataFrame,
    column: str,
    into: str | None,
    types: tuple[type[BinaryType | StringType], ...],
    work: _Work,
    *,
    nullable: bool,
) -> DataFrame:
    schema = df.schema
    places = [i for i, name in enumerate(schema.names) if name == column]
    if len(places) != 1:
        raise ValueError(f"{len(places)} columns are called {column!r}; there are {schema.names}")
    (place,) = places
    old = schema.fields[place]
    if not isinstance(old.dataType, types):
        raise TypeError(
            f"the column {column!r} is {old.dataType.simpleString()}, not "
            f"{' or '.join(kind.typeName() for kind in types)}: cast it, or unbase64() it, before"
        )
    if into is not None and into.lower() in (name.lower() for name in schema.names):
        raise ValueError(f"there is a column {into!r} already")
    new = StructField(into or old.name, BinaryType(), old.nullable or nullable, old.metadata)
    fields = [*schema.fields, new]
    if into is None:
        fields = [new if i == place else field for i, field in enumerate(schema.fields)]
    # Partials of functions of this module are pickled by their names: nothing else goes along.
    mapping = partial(_batches, work=work, place=place, names=[field.name for field in fields])
    mapping.__name__ = f"{name}({column})"  # type: ignore[attr-defined]  # as Spark shows it
    # mapInArrow looks its columns up by name, and fails where one has a dot in it.
    numbered = df.toDF(*(str(i) for i in range(len(schema))))
    return numbered.mapInArrow(mapping, StructType(fields))


def _check_settings(df: DataFrame, found: tuple[str, ...]) -> None:
    """Spark logs the environment that a job asks for, and shows it in its page."""
    for name in worker_keys.environment_names(found):
        setting = f"spark.executorEnv.{name}"
        if df.sparkSession.conf.get(setting, None) is not None:
            raise ValueError(
                f"{setting} writes the key into the job's settings and event log: have the cluster "
                f"set {name} (on Kubernetes: spark.kubernetes.executor.secretKeyRef.{name})"
            )

# SPDX-License-Identifier: Apache-2.0
"""Sealed columns in Polars: eager, lazy, streaming."""

import subprocess
import sys

import polars as pl
import pytest
import support

from upseal import Opener, Sealer
from upseal.integrations import polars
from upseal.integrations.arrow import RowsError

ENGINES = ["in-memory", "streaming"]


@pytest.fixture
def frame():
    texts = [None if i % 5 == 0 else f'{{"disk": {i}}}' for i in range(2000)]
    frame = pl.DataFrame({"id": range(2000), "text": texts})
    return frame.with_columns(data=pl.col("text").cast(pl.Binary))


@pytest.fixture
def ours(key):
    return Sealer([key.public_key]), Opener([key])


def test_expressions_seal_and_open_text_and_bytes(frame, ours):
    sealer, opener = ours
    sealed = frame.with_columns(pl.col("text", "data").upseal.seal(sealer, b"c"))
    assert sealed.schema == {"id": pl.Int64, "text": pl.Binary, "data": pl.Binary}
    for row, envelope in enumerate(sealed["text"].to_list()):
        text = frame["text"][row]
        assert (envelope is None) == (text is None)
        assert text is None or opener.open(envelope, b"c").decode() == text
    opened = sealed.with_columns(pl.col("text", "data").upseal.open(opener, b"c"))
    assert opened.with_columns(pl.col("text").cast(pl.String)).equals(frame)
    empty = frame.clear().with_columns(pl.col("data").upseal.seal(sealer))
    assert empty.with_columns(pl.col("data").upseal.open(opener)).equals(frame.clear())


@pytest.mark.parametrize("engine", ENGINES)
def test_lazy_queries_over_parquet_open_what_the_filter_leaves(frame, key, engine, tmp_path):
    path = tmp_path / "sealed.parquet"
    sealers = [Sealer([key.public_key]) for _ in range(3)]
    parts = [
        frame[i * 700 : (i + 1) * 700].with_columns(pl.col("data").upseal.seal(sealer))
        for i, sealer in enumerate(sealers)
    ]
    pl.concat(parts).select("id", "data").write_parquet(path, row_group_size=300)
    assert b"disk" not in path.read_bytes()
    reports = pl.col("data").upseal.open(Opener([key])).cast(pl.String)
    disk = reports.str.json_decode(pl.Struct({"disk": pl.Int64})).struct.field("disk")
    query = pl.scan_parquet(path).filter(pl.col("id") < 1500).select(disk.alias("disk").sum())
    assert query.collect(engine=engine).item() == sum(i for i in range(1500) if i % 5)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_does_not_open_ends_the_query_or_is_null(frame, ours, engine):
    sealer, opener = ours
    rows = frame["data"].upseal.seal(sealer).to_list()
    rows[1234] = rows[1234][:-1] + bytes([rows[1234][-1] ^ 1])
    forged = frame.with_columns(data=pl.Series(rows)).lazy()
    with pytest.raises(RowsError, match=r"1 of [0-9]+ rows did not open"):
        forged.select(pl.col("data").upseal.open(opener)).collect(engine=engine)
    opened = forged.with_columns(pl.col("data").upseal.open(opener, errors="null"))
    want = frame["data"].to_list()
    want[1234] = None
    assert opened.collect(engine=engine)["data"].to_list() == want


def test_series_of_several_chunks_keep_their_name_and_say_which_rows(frame, ours):
    sealer, opener = ours
    data = frame["data"]
    series = pl.concat([data[:99], data[99:100], data[100:]], rechunk=False)
    assert series.n_chunks() == 3
    for sealed in (series.upseal.seal(sealer), polars.seal_series(sealer, series)):
        assert (sealed.name, sealed.dtype) == ("data", pl.Binary)
        assert polars.open_series(opener, sealed).equals(data)
        assert sealed.upseal.open(opener).name == "data"
    forged = pl.concat([sealed[:150], pl.Series("data", [b"junk"]), sealed[151:]])
    with pytest.raises(RowsError) as caught:
        forged.upseal.open(opener)
    assert caught.value.rows.to_pylist() == [150]
    assert forged.upseal.open(opener, errors="null")[151:].equals(data[151:])


def test_mistakes_are_named(frame, ours):
    _, opener = ours
    with pytest.raises(TypeError, match="Binary or String is sealed and opened, not of Int64"):
        frame["id"].upseal.open(opener)
    with pytest.raises(ValueError, match="'raise' or 'null', not 'skip'"):
        pl.col("data").upseal.open(opener, errors="skip")


def test_the_example_runs(tmp_path):
    command = [sys.executable, support.ROOT / "examples/polars/frames.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "host 3: 100 reports, fullest disk 93%" in done.stdout

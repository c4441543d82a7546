# SPDX-License-Identifier: Apache-2.0
"""A lazy query over the JSON inside sealed reports, in a Parquet file that stays sealed."""

import json
import tempfile
from pathlib import Path

import polars as pl

import upseal.integrations.polars  # noqa: F401 - gives expressions and series their .upseal
from upseal import Opener, PrivateKey, Sealer
from upseal.integrations.arrow import RowsError

server = PrivateKey.generate("x25519")
sealer, opener = Sealer([server.public_key]), Opener([server])

reports = [json.dumps({"host": i % 10, "disk": i % 100}) for i in range(1000)]
frame = pl.DataFrame({"id": range(1000), "report": reports})

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "reports.parquet")
    frame.with_columns(pl.col("report").upseal.seal(sealer, b"reports")).write_parquet(path)
    print(f"plaintext in the file: {b'disk' in path.read_bytes()}")

    # Opened batch by batch, and only for this query.
    report = pl.Struct({"host": pl.Int64, "disk": pl.Int64})
    rows = (
        pl.scan_parquet(path)
        .select(pl.col("report").upseal.open(opener, b"reports").cast(pl.String))
        .select(pl.col("report").str.json_decode(report))
        .unnest("report")
        .group_by("host")
        .agg(pl.len(), pl.col("disk").max())
        .sort("host")
        .collect(engine="streaming")
    )
    for host, count, fullest in rows.iter_rows():
        print(f"host {host}: {count} reports, fullest disk {fullest}%")

try:
    pl.Series("report", [b"forged"]).upseal.open(opener)
except RowsError as error:
    print(f"refused: {error}")

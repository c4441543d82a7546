# SPDX-License-Identifier: Apache-2.0
"""A column of reports sealed in a Parquet file, and opened where it is used."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from upseal import Opener, PrivateKey, Sealer
from upseal.integrations.arrow import RowsError, open_array, open_column, seal_column

server = PrivateKey.generate("x25519")  # whoever may read; writers need its public key alone
sealer, opener = Sealer([server.public_key]), Opener([server])

reports = [None if i == 7 else f'{{"host": {i}, "disk": {i % 100}}}' for i in range(10_000)]
table = pa.table({"id": range(10_000), "report": reports})

with tempfile.TemporaryDirectory() as folder:
    # The column lies sealed on the disk; the others, and which reports are null, stay readable.
    path = Path(folder, "reports.parquet")
    pq.write_table(seal_column(sealer, table, "report", context=b"reports"), path)
    print(f"sealed {table.num_rows} rows; plaintext in the file: {b'disk' in path.read_bytes()}")

    # Filter first, on what is not sealed: only those rows are opened.
    few = pq.read_table(path, filters=pc.field("id") < 1000)
    opened = open_column(opener, few, "report", context=b"reports")
    text = opened.column("report").cast(pa.string())
    print(f"opened {opened.num_rows} rows, {text.null_count} of them null; the last: {text[-1]}")

    # A forged row is named; or it becomes null, and the others stay where they are.
    column = few.column("report").combine_chunks()
    forged = pa.concat_arrays([column[:3], pa.array([b"forged"]), column[4:]])
    try:
        open_array(opener, forged, context=b"reports")
    except RowsError as error:
        print(f"refused: {error}")
    kept = open_array(opener, forged, context=b"reports", errors="null")
    print(f"with errors='null': {len(kept) - kept.null_count} of {len(kept)} rows")

# SPDX-License-Identifier: Apache-2.0
"""SQL over the JSON inside sealed reports, in a Parquet file that stays sealed."""

import tempfile
from pathlib import Path

import duckdb

from upseal import Opener, PrivateKey, Sealer
from upseal.integrations.duckdb import register

server = PrivateKey.generate("x25519")
sealer, opener = Sealer([server.public_key]), Opener([server])

with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
    register(connection, opener=opener, sealer=sealer, context=b"reports")
    path = Path(folder, "reports.parquet")

    # Sealing in SQL: from here on the file can lie anywhere.
    connection.sql(
        """
        SELECT i AS id, seal(encode(to_json({host: i % 10, disk: i % 100}))) AS report
        FROM range(1000) AS numbers(i)
        """
    ).write_parquet(str(path))
    print(f"plaintext in the file: {b'disk' in path.read_bytes()}")

    # Opening in SQL, for this query only.
    rows = connection.execute(
        """
        SELECT report.host, count(*), max(report.disk::INT)
        FROM (SELECT decode(unseal(report))::JSON AS report FROM read_parquet(?))
        GROUP BY 1 ORDER BY 1
        """,
        [str(path)],
    ).fetchall()
    for host, count, fullest in rows:
        print(f"host {host}: {count} reports, fullest disk {fullest}%")

    try:
        connection.execute("SELECT unseal('forged'::BLOB)").fetchall()
    except duckdb.Error as error:
        print(f"refused: {error}")

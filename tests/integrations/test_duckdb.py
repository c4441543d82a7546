# SPDX-License-Identifier: Apache-2.0
"""SQL over sealed columns, in DuckDB itself."""

import subprocess
import sys

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import support

from upseal import Opener, Sealer
from upseal.integrations.arrow import seal_column
from upseal.integrations.duckdb import register

ROWS = 20_000


@pytest.fixture
def connection():
    with duckdb.connect() as connection:
        yield connection


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """Reports of 10 hosts, every 50th null, in row groups for several threads."""
    key = support.key("x25519-a")
    reports = [None if i % 50 == 0 else f'{{"host": {i % 10}, "disk": {i}}}' for i in range(ROWS)]
    table = pa.table({"id": range(ROWS), "report": reports})
    path = tmp_path_factory.mktemp("sealed") / "reports.parquet"
    sealed = seal_column(Sealer([key.public_key]), table, "report", b"reports")
    pq.write_table(sealed, path, row_group_size=3000)
    return path


def test_json_inside_sealed_reports_is_asked_by_sql(connection, key, parquet):
    register(connection, opener=Opener([key]), context=b"reports")
    connection.execute("SET threads = 4")
    found = connection.execute(
        """
        SELECT (report ->> 'host')::INT AS host, count(*), sum((report ->> 'disk')::INT)
        FROM (SELECT decode(unseal(report))::JSON AS report FROM read_parquet(?) WHERE id < 10000)
        WHERE report IS NOT NULL GROUP BY host ORDER BY host
        """,
        [str(parquet)],
    ).fetchall()
    kept = [i for i in range(10000) if i % 50]
    mine = [[i for i in kept if i % 10 == host] for host in range(10)]
    assert found == [(host, len(ids), sum(ids)) for host, ids in enumerate(mine)]


def test_a_column_is_sealed_by_sql(connection, key, tmp_path):
    sealer, opener = Sealer([key.public_key]), Opener([key])
    register(connection, opener=opener, sealer=sealer)
    path = tmp_path / "sealed.parquet"
    connection.execute(
        f"""
        COPY (SELECT i, seal(CASE WHEN i % 7 > 0 THEN encode('report ' || i) END) AS report
              FROM range(5000) AS numbers(i)) TO '{path}'
        """
    )
    rows = pq.read_table(path).column("report").to_pylist()
    want = [b"report %d" % i if i % 7 else None for i in range(5000)]
    assert [None if row is None else opener.open(row) for row in rows] == want
    (got,) = connection.execute(f"SELECT list(unseal(report) ORDER BY i) FROM '{path}'").fetchone()
    assert got == want


def test_equal_reports_do_not_become_equal_envelopes(connection, key, tmp_path):
    # A constant, and what Parquet and DuckDB hold as a dictionary: each would be sealed but once.
    register(connection, sealer=Sealer([key.public_key]))
    path = tmp_path / "same.parquet"
    connection.execute(f"COPY (SELECT encode('same') AS r FROM range(9000)) TO '{path}'")
    for column, table in (("encode('same')", "range(9000)"), ("r", f"'{path}'")):
        query = f"SELECT count(DISTINCT seal({column})) FROM {table}"
        assert connection.execute(query).fetchone() == (9000,)


def test_what_does_not_open_ends_the_query_or_is_null(connection, key):
    sealer, opener = Sealer([key.public_key]), Opener([key])
    rows = sealer.seal_many([b"%d" % i for i in range(5000)])
    rows[4321] = rows[4321][:-1] + bytes([rows[4321][-1] ^ 1])
    forged = pa.table({"id": range(5000), "report": rows})
    connection.register("forged", forged)
    register(connection, opener=opener)
    register(connection, opener=opener, errors="null", unseal="try_unseal")
    with pytest.raises(duckdb.Error, match=r"unseal: a report cannot be opened.*errors='null'"):
        connection.execute("SELECT sum(octet_length(unseal(report))) FROM forged").fetchall()
    query = "SELECT id FROM forged WHERE try_unseal(report) IS NULL AND report IS NOT NULL"
    assert connection.execute(query).fetchall() == [(4321,)]
    got = connection.execute("SELECT try_unseal(report) FROM forged ORDER BY id").fetchall()
    assert got == [(None if i == 4321 else b"%d" % i,) for i in range(5000)]
    assert connection.execute("SELECT unseal(NULL), try_unseal(NULL)").fetchone() == (None, None)


def test_only_what_was_asked_for_is_there_and_mistakes_are_named(connection, key):
    opener = Opener([key])
    register(connection, opener=opener)
    with pytest.raises(duckdb.Error, match="seal"):
        connection.execute("SELECT seal('x'::BLOB)")
    with pytest.raises(duckdb.Error, match="unseal"):
        register(connection, opener=opener)
    with pytest.raises(ValueError, match="an opener or a sealer is needed"):
        register(connection)
    with pytest.raises(ValueError, match="'raise' or 'null', not 'skip'"):
        register(connection, opener=opener, errors="skip")


def test_the_example_runs(tmp_path):
    command = [sys.executable, support.ROOT / "examples/duckdb/sql.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "host 3: 100 reports, fullest disk 93%" in done.stdout

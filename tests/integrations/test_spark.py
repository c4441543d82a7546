# SPDX-License-Identifier: Apache-2.0
"""Sealed columns in a real Spark: opened and sealed in its workers, with no key in the job."""

import base64
import datetime
import decimal
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from workers_support import (
    COUNTING,
    descendants,
    files_with,
    fleet_reports,
    forms,
    in_memory,
    key_file,
)

from upseal import Opener, PrivateKey

pytest.importorskip("pyspark", reason="`make analytics` installs it")

pytestmark = [
    # Of pyspark 4.3 with pandas 3, at each use of Arrow.
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
]
EXAMPLE = ROOT / "examples/spark/open_reports.py"


class Engine:
    """A Spark session, and the folder where all that it writes goes."""

    def __init__(self, folder, example):
        self.folder, self.example = folder, example
        self.key, self.keys = key_file(folder)
        os.environ.update(
            COUNTED=str(folder / "counted"),
            COUNTED_KEY=str(folder / "server.pem"),
            SPARK_TEST_KEY=PrivateKey.generate().to_pem().decode(),
            SPARK_LOCAL_IP="127.0.0.1",
            PYSPARK_PYTHON=sys.executable,
            PYTHONPATH=str(folder / "modules"),
        )
        (folder / "modules").mkdir()
        (folder / "modules" / "counting_keys.py").write_text(COUNTING)
        from pyspark.sql import SparkSession

        settings = {
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.eventLog.enabled": "true",
            "spark.eventLog.compress": "false",
            "spark.eventLog.dir": f"file://{folder}/events",
            "spark.local.dir": f"{folder}/local",
            "spark.sql.warehouse.dir": f"{folder}/warehouse",
            "spark.sql.shuffle.partitions": "2",
            "spark.python.worker.reuse": "true",
        }
        (folder / "events").mkdir()
        builder = SparkSession.builder.master("local[2]").appName("upseal's tests")
        for name, value in settings.items():
            builder = builder.config(name, value)
        self.spark = builder.getOrCreate()
        self.spark.sparkContext.setLogLevel("OFF")

    def frame(self, reports, **options):
        rows = list(enumerate(reports))
        return self.spark.createDataFrame(rows, "id long, report binary").repartition(4)

    def jvm(self):
        return next(pid for pid, what in descendants(os.getpid()).items() if "SparkSubmit" in what)

    def stop(self):
        from pyspark import SparkContext

        self.spark.stop()
        gateway = SparkContext._gateway
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait()
        SparkContext._gateway = SparkContext._jvm = None


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    before = dict(os.environ)
    # Starts now, to be ready when its test comes.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    example = subprocess.Popen(
        [sys.executable, EXAMPLE], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    found = Engine(tmp_path_factory.mktemp("spark"), example)
    yield found
    found.stop()
    os.environ.clear()
    os.environ.update(before)
    if example.poll() is None:
        example.kill()
    example.communicate()


def opened(frame, name="report"):
    return {row.id: row[name] if row[name] is None else bytes(row[name]) for row in frame.collect()}


def test_a_column_of_many_sessions_is_opened(engine):
    from upseal.integrations.spark import open_column

    reports, sealed = fleet_reports(engine.key, 500, context=b"deployment 7")
    sealed[3] = reports[3] = None
    frame = open_column(engine.frame(sealed), "report", keys=engine.keys, context=b"deployment 7")
    assert opened(frame) == dict(enumerate(reports))


def test_all_other_columns_stay_as_they_are(engine):
    from upseal.integrations.spark import open_column, seal_column

    schema = (
        "id long not null, `a b.c` string, at timestamp, day date, local timestamp_ntz, "
        "price decimal(20,4), tags array<string>, of map<string,int>, "
        "inner struct<x:double,y:binary>, report binary, small tinyint, real float, yes boolean"
    )
    when = datetime.datetime(2026, 3, 29, 1, 59, 59, 123456)
    rows = [
        (1, "ä", when, when.date(), when, decimal.Decimal("-1.5000"), ["x", None], {"k": 1},
         (0.1, b"\0"), b"one", -3, 0.5, True),
        (2, *[None] * 8, b"two", None, None, None),
        (3, "", when, None, when, None, [], {}, (None, None), None, 127, float("inf"), False),
    ]  # fmt: skip
    clear = engine.spark.createDataFrame(rows, schema)
    sealed = seal_column(clear, "report", recipients=engine.key.public_key)
    back = open_column(sealed, "report", keys=engine.keys)
    assert sealed.schema == back.schema == clear.schema
    assert back.orderBy("id").collect() == clear.orderBy("id").collect()
    assert (
        sealed.drop("report").orderBy("id").collect()
        == clear.drop("report").orderBy("id").collect()
    )
    beside = open_column(sealed, "report", keys=engine.keys, into="clear text")
    assert beside.columns == [*clear.columns, "clear text"]
    assert opened(beside, "clear text") == {1: b"one", 2: b"two", 3: None}
    assert Opener([engine.key]).open(bytes(opened(beside)[1])) == b"one"


def test_what_does_not_open_fails_the_job_or_becomes_null(engine):
    from pyspark.errors import PySparkException

    from upseal.integrations.spark import open_column

    reports, sealed = fleet_reports(engine.key, 100)
    forged = bytearray(sealed[40])
    forged[-1] ^= 1
    other = fleet_reports(PrivateKey.generate(), 1)[1][0]
    for place, bad in ((40, bytes(forged)), (41, b""), (42, b"garbage"), (43, other)):
        sealed[place], reports[place] = bad, None
    frame = engine.frame(sealed)
    with pytest.raises(PySparkException, match="rows did not open") as caught:
        open_column(frame, "report", keys=engine.keys).collect()
    assert b"secret report" not in str(caught.value).encode()
    kept = open_column(frame, "report", keys=engine.keys, errors="null", into="clear")
    assert opened(kept, "clear") == dict(enumerate(reports))
    dead = kept.where("clear is null and report is not null").select("id").collect()
    assert sorted(row.id for row in dead) == [40, 41, 42, 43]


def test_sealed_at_rest_by_spark_and_read_by_anybody_with_the_key(engine, tmp_path):
    import pyarrow.parquet as pq

    from upseal.integrations.arrow import open_array
    from upseal.integrations.spark import open_column, seal_column

    texts = [f"secret text {i}" for i in range(200)]
    clear = engine.spark.createDataFrame(list(enumerate(texts)), "id long, report string")
    folder = str(tmp_path / "sealed")
    recipients = [engine.key.public_key, PrivateKey.generate().public_key.to_pem()]
    sealed = seal_column(clear, "report", recipients=recipients, context=b"c")
    sealed.write.option("compression", "none").parquet(folder)
    assert files_with(folder, [b"secret"]) == []
    assert files_with(folder, [b"report"])  # the column's name: so one can find things there
    table = pq.read_table(folder).sort_by("id")
    found = open_array(Opener([engine.key]), table["report"], b"c").to_pylist()
    assert found == [text.encode() for text in texts]
    read = engine.spark.read.parquet(folder)
    back = open_column(read, "report", keys=engine.keys, context=b"c")
    assert opened(back) == {i: text.encode() for i, text in enumerate(texts)}


def test_no_key_is_in_the_job_nor_in_what_spark_keeps(engine):
    from pyspark import cloudpickle

    from upseal.integrations.spark import open_column

    secrets, control = forms(engine.key), b"the context is found"
    assert files_with(engine.folder, secrets) == [str(engine.folder / "server.pem")]
    reports, sealed = fleet_reports(engine.key, 300, context=control)
    frame = open_column(engine.frame(sealed), "report", keys=engine.keys, context=control)
    # An aggregation: its rows go through a shuffle, and so to disk.
    assert frame.groupBy("report").count().count() == len(set(reports))
    query = frame._jdf.queryExecution()
    pickled = query.analyzed().functionExpr().func().command()  # a sequence of signed numbers
    command = bytes(int(number) & 255 for number in pickled.mkString(",").split(","))
    assert control in command
    plan = query.toString().encode()
    told = [command, plan, cloudpickle.dumps(frame.schema)]
    assert not any(secret in text for text in told for secret in secrets)
    reference = engine.keys.encode()
    assert reference in command
    assert b"open_column(report)" in plan
    # The event log, shuffled blocks, all else that Spark wrote: the key file alone has the key.
    assert any("events" in name for name in files_with(engine.folder, [b"MapInArrow"]))
    assert files_with(engine.folder, secrets) == [str(engine.folder / "server.pem")]
    # And in the memory of driver and executor, which are one JVM here.
    assert in_memory(engine.jvm(), [reference, *secrets]) == {reference}


def test_a_worker_process_reads_the_key_once_and_remembers_sessions(engine):
    from upseal.integrations.spark import open_column

    counted = Path(os.environ["COUNTED"])
    _, sealed = fleet_reports(engine.key, 400, sessions=5)
    frame = engine.frame(sealed)
    for _ in range(3):  # jobs of four tasks
        open_column(frame, "report", keys="counting_keys:key").agg({"report": "count"}).collect()
    told = [line.split() for line in counted.read_text().splitlines()]
    workers = {pid for pid, _ in told}
    assert 1 <= len(workers) <= 4
    assert len([what for _, what in told if what == "read"]) == len(workers)
    assert len([what for _, what in told if what == "unwrap"]) <= 5 * len(workers)


def test_a_key_of_the_workers_environment_and_none_in_settings(engine):
    from upseal.integrations.spark import open_column

    key = PrivateKey.from_pem(os.environ["SPARK_TEST_KEY"].encode())
    reports, sealed = fleet_reports(key, 20)
    frame = engine.frame(sealed)
    both = [engine.keys, "env:SPARK_TEST_KEY"]
    assert opened(open_column(frame, "report", keys=both)) == dict(enumerate(reports))
    engine.spark.conf.set("spark.executorEnv.SPARK_TEST_KEY", "not a real one")
    try:
        with pytest.raises(ValueError, match=r"event log.*secretKeyRef"):
            open_column(frame, "report", keys=both)
    finally:
        engine.spark.conf.unset("spark.executorEnv.SPARK_TEST_KEY")


def test_a_key_that_a_worker_may_not_use_is_named_with_the_worker(engine):
    from pyspark.errors import PySparkException

    from upseal.integrations.spark import open_column

    _, reference = key_file(engine.folder, "open.pem")
    (engine.folder / "open.pem").chmod(0o644)
    frame = open_column(engine.frame([b"x"]), "report", keys=reference)
    with pytest.raises(
        PySparkException, match=r"open\.pem cannot be used by the worker on .*chmod"
    ):
        frame.collect()
    (engine.folder / "open.pem").unlink()


def test_mistakes_are_said_before_there_is_a_job(engine):
    from upseal.integrations.spark import open_column, seal_column

    frame = engine.spark.createDataFrame([(1, b"x", "y")], "id long, report binary, text string")
    for keys in (engine.key, engine.key.to_pem(), [engine.key.to_pem().decode()]):
        with pytest.raises(TypeError, match="give a reference") as caught:
            open_column(frame, "report", keys=keys)
        assert base64.b64encode(b"0") not in str(caught.value).encode()
    with pytest.raises(ValueError, match="0 columns are called 'missing'"):
        open_column(frame, "missing", keys=engine.keys)
    with pytest.raises(TypeError, match="is string, not binary"):
        open_column(frame, "text", keys=engine.keys)
    with pytest.raises(ValueError, match="there is a column 'Text' already"):
        open_column(frame, "report", keys=engine.keys, into="Text")
    with pytest.raises(ValueError, match="errors is"):
        open_column(frame, "report", keys=engine.keys, errors="ignore")
    with pytest.raises(TypeError, match="is bigint, not binary or string"):
        seal_column(frame, "id", recipients=engine.key.public_key)
    with pytest.raises(TypeError, match="public_key"):
        seal_column(frame, "report", recipients=engine.key)
    with pytest.raises(ValueError, match="1 to 16 recipients"):
        seal_column(frame, "report", recipients=[])


def test_the_example_runs(engine):
    said, errors = engine.example.communicate(timeout=120)
    assert engine.example.returncode == 0, errors
    assert "machine 4: 2000 reports, fullest disk 96%" in said

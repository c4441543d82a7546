# SPDX-License-Identifier: Apache-2.0
"""Sealed reports in Parquet, opened by Spark's workers: python examples/spark/open_reports.py.

Needs pip install 'upseal[spark]' and Java 17. Nothing leaves 127.0.0.1.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # or whatever python3 is

from pyspark.sql import SparkSession
from pyspark.sql.functions import col, count, get_json_object
from pyspark.sql.functions import max as max_

from upseal import PrivateKey
from upseal.integrations.spark import open_column, seal_column


def main() -> None:
    """Seals, writes, reads, opens and counts."""
    with tempfile.TemporaryDirectory() as folder:
        # In a real cluster each worker has this file already; the job only names it.
        key, key_file, reports = (
            PrivateKey.generate(),
            Path(folder, "server.pem"),
            f"{folder}/sealed",
        )
        key_file.touch(mode=0o600)
        key_file.write_bytes(key.to_pem())

        spark = (
            SparkSession.builder.master("local[2]")
            .config("spark.ui.enabled", "false")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.driver.host", "127.0.0.1")
            .getOrCreate()
        )
        spark.sparkContext.setLogLevel("ERROR")

        # Sealed at rest: the public key is enough.
        reported = [(i, f'{{"machine": {i % 5}, "disk": {i % 97}}}') for i in range(10_000)]
        clear = spark.createDataFrame(reported, "id long, report string")
        seal_column(clear, "report", recipients=key.public_key).write.parquet(reports)
        size = sum(path.stat().st_size for path in Path(reports).rglob("*.parquet"))
        print(f"10000 reports are sealed in {size} bytes of Parquet")

        # Opened where they are used: one line, and the key is not part of the job.
        opened = open_column(spark.read.parquet(reports), "report", keys=f"file:{key_file}")
        text = col("report").cast("string")
        machine = get_json_object(text, "$.machine").alias("machine")
        disk = get_json_object(text, "$.disk").cast("int").alias("disk")
        found = opened.select(machine, disk).groupBy("machine").agg(count("*"), max_("disk"))
        for name, rows, fullest in sorted(found.collect()):
            print(f"machine {name}: {rows} reports, fullest disk {fullest}%")
        spark.stop()


if __name__ == "__main__":
    main()

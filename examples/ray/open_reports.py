# SPDX-License-Identifier: Apache-2.0
"""Sealed reports in Parquet, opened by Ray Data's workers: python examples/ray/open_reports.py.

Needs pip install 'upseal[ray]'. Nothing leaves 127.0.0.1.
"""

import json
import logging
import os
import tempfile
from pathlib import Path

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # one machine: listen there only
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pyarrow as pa
import ray
import ray.data

from upseal import PrivateKey
from upseal.integrations.ray import open_column, seal_column


def fullest(batch: pa.Table) -> pa.Table:
    """The fullest disk of each machine in a batch of opened reports."""
    reports = pa.Table.from_pylist([json.loads(report) for report in batch["report"].to_pylist()])
    return reports.group_by("machine").aggregate([("disk", "max"), ("disk", "count")])


def main() -> None:
    """Seals, writes, reads, opens and counts."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        ignore_reinit_error=True,  # where there is one already, it is used
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel("ERROR")
    with tempfile.TemporaryDirectory() as folder:
        # In a real cluster each worker has this file already; the job only names it.
        key, key_file, sealed = (
            PrivateKey.generate(),
            Path(folder, "server.pem"),
            f"{folder}/sealed",
        )
        key_file.touch(mode=0o600)
        key_file.write_bytes(key.to_pem())

        # Sealed at rest: the public key is enough.
        reported = [json.dumps({"machine": i % 5, "disk": i % 97}) for i in range(10_000)]
        clear = ray.data.from_arrow(pa.table({"id": range(10_000), "report": reported}))
        seal_column(clear, "report", recipients=key.public_key).write_parquet(sealed)
        size = sum(path.stat().st_size for path in Path(sealed).rglob("*.parquet"))
        print(f"10000 reports are sealed in {size} bytes of Parquet")

        # Opened where they are used: one line, and the key is not part of the job.
        opened = open_column(ray.data.read_parquet(sealed), "report", keys=f"file:{key_file}")
        found = opened.map_batches(fullest, batch_format="pyarrow").to_pandas()
        found = found.groupby("machine").agg({"disk_count": "sum", "disk_max": "max"})
        for name, rows, disk in found.itertuples():
            print(f"machine {name}: {rows} reports, fullest disk {disk}%")


if __name__ == "__main__":
    main()

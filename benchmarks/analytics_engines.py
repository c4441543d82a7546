# SPDX-License-Identifier: Apache-2.0
"""One engine, one number of workers, one way: a process of its own, which says what it measured.

Started by `analytics.py`. The process and all that it starts are bound to as many cores as there
are workers, so that one worker is one core's worth: the engine's own threads (a JVM's compiler and
collector, Ray's store) would else take the second core, and two workers would bring little.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import analytics_worker
import psutil
import pyarrow as pa

REFERENCE = "analytics_worker:keys"
Job = Callable[[list[str]], dict[str, int]]
"""Reads these files; gives ``rows``, ``bytes`` and a sum over all of them."""


def summed(array: pa.Array | pa.ChunkedArray) -> tuple[int, int, int]:
    """Rows, bytes, and the sum of all 8-byte words of reports that are whole words long."""
    import numpy as np

    rows = length = words = 0
    for chunk in array.chunks if isinstance(array, pa.ChunkedArray) else [array]:
        _, offsets, values = chunk.buffers()
        width = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
        ends = np.frombuffer(offsets, width)[chunk.offset : chunk.offset + len(chunk) + 1]
        begin, end = int(ends[0]), int(ends[-1])
        rows, length = rows + len(chunk), length + end - begin
        if not (end - begin) % 8:
            whole = np.frombuffer(values, np.uint8)[begin:end].view(np.uint64)
            words += int(whole.sum(dtype=np.uint64))
    return rows, length, words % 2**64


def spark(workers: int, way: str, scratch: Path) -> tuple[Job, Callable[[], None], str]:
    """Executors in processes of their own, each with one core and one Python worker."""
    import pyspark

    home = scratch / "spark"  # executors leave their files in SPARK_HOME/work
    home.mkdir()
    for part in Path(pyspark.__file__).parent.iterdir():
        (home / part.name).symlink_to(part)
    os.environ.update(
        SPARK_HOME=str(home),
        SPARK_LOCAL_IP="127.0.0.1",
        SPARK_LOCAL_HOSTNAME="127.0.0.1",
        PYSPARK_PYTHON=sys.executable,
    )
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import col, count, crc32, length
    from pyspark.sql.functions import sum as sum_

    from upseal.integrations.spark import open_column

    session = (
        SparkSession.builder.master(f"local-cluster[{workers},1,2048]")
        .config("spark.executor.memory", "2g")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.local.dir", str(scratch))
        .config("spark.sql.warehouse.dir", str(scratch / "warehouse"))
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")

    def passed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from batches

    def job(files: list[str]) -> dict[str, int]:
        frame = session.read.parquet(*files).select("report")
        if way == "pass":
            frame = frame.mapInArrow(passed, frame.schema)
        elif way == "open":
            frame = open_column(frame, "report", keys=REFERENCE)
        wanted = [count("*"), sum_(length(col("report")))]
        # Of what is only read, no sum is known: it would be one of sealed bytes.
        wanted += [sum_(crc32(col("report")))] if way == "open" else []
        row = frame.agg(*wanted).first()
        return dict(zip(("rows", "bytes", "crc32"), row, strict=False))

    return job, session.stop, pyspark.__version__


def ray(workers: int, way: str, scratch: Path) -> tuple[Job, Callable[[], None], str]:
    """Tasks, as many at once as there are workers; each reads, opens and sums up a block."""
    os.environ.update(
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # to listen on 127.0.0.1 alone
        RAY_USAGE_STATS_ENABLED="0",
        RAY_AUTH_MODE="disabled",
    )
    import ray as engine
    import ray.data as data

    from upseal.integrations.ray import open_column

    for last in (False, False, True):  # Ray gives itself 30 seconds
        try:
            engine.init(
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=str(scratch / "r"),
            )
            break
        except Exception as error:
            if last or "timed out during startup" not in str(error):
                raise
            engine.shutdown()
    context = data.DataContext.get_current()
    context.enable_progress_bars = False

    def total(batch: pa.Table) -> pa.Table:
        rows, length, words = summed(batch["report"])
        # As text: the sum has 64 bits, and Ray's types are signed.
        return pa.table({"rows": [rows], "bytes": [length], "words": [str(words)]})

    def passed(batch: pa.Table) -> pa.Table:
        return batch

    def job(files: list[str]) -> dict[str, int]:
        frame = data.read_parquet(files, columns=["report"])
        settings: dict[str, Any] = {"batch_size": 10_000, "batch_format": "pyarrow"}
        tasks = data.TaskPoolStrategy()
        if way == "pass":
            frame = frame.map_batches(passed, compute=tasks, **settings)
        elif way == "open":
            frame = open_column(frame, "report", keys=REFERENCE, compute=tasks, batch_size=10_000)
        parts = frame.map_batches(total, **settings).take_all()
        return {
            "rows": sum(part["rows"] for part in parts),
            "bytes": sum(part["bytes"] for part in parts),
            "words": sum(int(part["words"]) for part in parts) % 2**64,
        }

    return job, engine.shutdown, engine.__version__


def bare(workers: int, way: str, scratch: Path) -> tuple[Job, Callable[[], None], str]:
    """No engine: pyarrow reads, a thread for each worker, files in turn."""
    import pyarrow.parquet as pq

    from upseal.integrations import arrow, worker_keys

    def one(file: str) -> tuple[int, int, int]:
        rows = length = words = 0
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(10_000, columns=["report"], use_threads=False):
                column = batch.column(0)
                if way == "open":
                    column = arrow.open_array(worker_keys.opener((REFERENCE,)), column)
                more = summed(column)
                rows, length, words = (rows + more[0], length + more[1], words + more[2])
        return rows, length, words

    def job(files: list[str]) -> dict[str, int]:
        if way == "open":
            worker_keys.opener((REFERENCE,))  # and so the clock
        with ThreadPoolExecutor(workers) as pool:
            rows, length, words = (sum(part) for part in zip(*pool.map(one, files), strict=True))
        return {"rows": rows, "bytes": length, "words": words % 2**64}

    return job, lambda: None, pa.__version__


ENGINES = {"spark": spark, "ray": ray, "bare": bare}


class CpuClock:
    """CPU seconds of this process and of all that it starts, from now until it is read.

    Looked at twice a second, each process by itself: what one of them used stays counted when it is
    gone. To subtract two sums over whoever is alive would take off what the dead have used, and
    Ray ends and starts workers as it likes.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, float], float] = {}
        self._look()
        self._first = dict(self._last)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def read(self) -> float:
        """So many until now; it watches no longer."""
        self._stop.set()
        self._thread.join()
        self._look()
        return sum(used - self._first.get(which, 0) for which, used in self._last.items())

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self._look()

    def _look(self) -> None:
        this = psutil.Process()
        for process in [this, *this.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                self._last[process.pid, process.create_time()] = times.user + times.system


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("workers", type=int)
    parser.add_argument("way", choices=("read", "pass", "open"))
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.workers])
    pa.set_cpu_count(args.workers)
    files = sorted(str(path) for path in args.data.resolve().glob("*.parquet"))
    times = Path(os.environ[analytics_worker.FOLDER])
    with tempfile.TemporaryDirectory(prefix="analytics-", ignore_cleanup_errors=True) as scratch:
        begun = time.perf_counter()
        job, stop, version = ENGINES[args.engine](args.workers, args.way, Path(scratch))
        # One file a worker first: processes start, code is compiled, modules are imported.
        job(files[: args.workers])
        ready = time.perf_counter() - begun
        before, clock, begun = analytics_worker.told(times), CpuClock(), time.perf_counter()
        print(json.dumps({"ready": ready, "before": before["rows"]}), flush=True)
        try:
            found = job(files)
        finally:
            seconds, used = time.perf_counter() - begun, clock.read()
        after = analytics_worker.told(times)
        ours = {name: after[name] - before[name] for name in after}
        ours["unwrapped"] = after["unwrapped"]
        stop()
    result = {"seconds": seconds, "cpu": used, "ready": ready, "version": version, "ours": ours}
    print(json.dumps({**result, "found": found}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

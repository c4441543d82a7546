# SPDX-License-Identifier: Apache-2.0
"""Sealed Arrow columns: against loops, against the bare packed calls, against reading Parquet.

Everything runs by turns in one process, so the ratios are good on any machine; times are by row.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from machine import facts, heading, save, say
from timing import Times, Work, alternate, ratio

from upseal import Limits, Opener, PrivateKey, Sealer
from upseal.integrations.arrow import open_array, open_column, seal_array, seal_batches
from upseal.integrations.arrow.layout import buffers

SESSIONS = 1000
GROUP = 8192
"""Rows of a Parquet row group, of a sealed batch, and of what is compressed together."""


def reports(rows: int, size: int) -> pa.Array:
    """JSON of a made-up agent: some of it repeats, some of it is hexadecimal and random."""
    words = ["nominal", "degraded", "restarted", "timeout", "retried", "disk", "memory", "network"]
    draw = random.Random(1)  # the same column each time
    made = []
    for i in range(rows):
        events = []
        text = ""
        while len(text) < size:
            events.append({"event": draw.choice(words), "value": draw.randrange(10**6)})
            if len(events) % 4 == 0:
                events.append({"trace": draw.randbytes(8).hex()})
            text = json.dumps({"host": f"agent-{i % SESSIONS}", "at": i, "events": events})
        made.append(text[:size])
    return pa.array(made, pa.large_string()).cast(pa.large_binary())


def contestants(column: pa.Array, path: Path) -> dict[str, Work]:
    """What runs by turns. The file is made here."""
    rows = len(column)
    key = PrivateKey.generate("x25519")
    sealer, opener = Sealer([key.public_key], Limits(max_messages=2**32)), Opener([key])
    sealed = seal_array(sealer, column)
    of_each = [Sealer([key.public_key]) for _ in range(min(SESSIONS, rows))]
    listed = column.to_pylist()
    mixed = pa.array(
        [of_each[i % len(of_each)].seal(report) for i, report in enumerate(listed)],
        pa.large_binary(),
    )
    envelopes = sealed.to_pylist()
    pq.write_table(pa.table({"report": sealed}), path, row_group_size=GROUP, compression="none")

    def read() -> pa.Table:
        return pq.read_table(path, use_threads=False)

    calls: dict[str, tuple[Callable[[], object], str]] = {
        "seal_array": (lambda: seal_array(sealer, column), ""),
        "seal_many_packed": (lambda: sealer.seal_many_packed(*buffers(column)), "buffers only"),
        "loop of seal": (lambda: [sealer.seal(one) for one in listed], "bytes in, list out"),
        "open_array": (lambda: open_array(opener, sealed), "one session"),
        "open_array, sessions mixed": (lambda: open_array(opener, mixed), f"{len(of_each)} known"),
        "open_many_packed": (lambda: opener.open_many_packed(*buffers(sealed)), "buffers only"),
        "loop of open": (lambda: [opener.open(one) for one in envelopes], "bytes in, list out"),
        "loop of open, Arrow to Arrow": (
            lambda: pa.array([opener.open(one.as_py()) for one in sealed], pa.large_binary()),
            "",
        ),
        "read Parquet": (read, "sealed column, uncompressed, one thread, from the page cache"),
        "read Parquet, open": (
            lambda: open_column(opener, read(), "report", threads=1),
            "the same, then open_column in one thread",
        ),
    }
    return {name: Work(call, rows, note) for name, (call, note) in calls.items()}


def sizes(column: pa.Array, folder: Path) -> dict[str, int]:
    """Bytes on the disk of the same column, clear and sealed, in several ways."""
    key = PrivateKey.generate("x25519")
    sealer = Sealer([key.public_key])
    ways: dict[str, tuple[pa.Array, str]] = {
        "clear": (column, "none"),
        "clear, zstd": (column, "zstd"),
        "envelopes": (seal_array(sealer, column), "none"),
        "envelopes, zstd": (seal_array(sealer, column), "zstd"),
        "sealed batches": (seal_batches(sealer, column, rows=GROUP), "none"),
        "compressed batches, sealed": (packed_small(sealer, column), "none"),
    }
    found = {}
    for name, (made, compression) in ways.items():
        path = folder / "size.parquet"
        table = pa.table({"report": made})
        pq.write_table(table, path, GROUP, compression=compression, use_dictionary=False)
        found[name] = path.stat().st_size
    return found


def packed_small(sealer: Sealer, column: pa.Array) -> pa.Array:
    """Each group of rows as an Arrow stream compressed with zstd, and that as one report."""
    made = []
    for at in range(0, len(column), GROUP):
        batch = pa.record_batch({"report": column.slice(at, GROUP)})
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
            writer.write_batch(batch)
        made.append(sealer.seal(sink.getvalue()))
    return pa.array(made, pa.large_binary())


def compared(times: dict[str, Times]) -> dict[str, float]:
    """What is promised or asked, as ratios."""
    opened, whole = times["open_array"], times["read Parquet, open"]
    return {
        "open_array, times faster than a loop of open": ratio(times["loop of open"], opened),
        "open_array, times faster than a loop from Arrow to Arrow": ratio(
            times["loop of open, Arrow to Arrow"], opened
        ),
        "open_array, of open_many_packed's time": ratio(opened, times["open_many_packed"]),
        "open_array of mixed sessions, of one session's time": ratio(
            times["open_array, sessions mixed"], opened
        ),
        "seal_array, times faster than a loop of seal": ratio(
            times["loop of seal"], times["seal_array"]
        ),
        "seal_array, of seal_many_packed's time": ratio(
            times["seal_array"], times["seal_many_packed"]
        ),
        "opening, share of reading Parquet and opening": 1
        - 1 / ratio(whole, times["read Parquet"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=1024, help="bytes of a report")
    parser.add_argument("--budget", type=float, default=60, help="seconds of timing, about")
    parser.add_argument("--json", help="a file for the result")
    asked = parser.parse_args()
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        say("making the columns")
        column = reports(asked.rows, asked.size)
        works = contestants(column, Path(folder, "sealed.parquet"))
        say("timing")
        times = alternate(works, 200, asked.budget)
        say("sizes")
        bytes_of = sizes(column, Path(folder))
    ratios = compared(times)
    command = shlex.join(["python", *sys.argv])
    result = {"host": facts(), "parts": {"pyarrow": version("pyarrow")}, "load": load}
    print("\n".join(heading({**result, "command": command})))
    print(f"\n{asked.rows} reports of {asked.size} bytes; ns for one row, median and best round")
    for name, time in times.items():
        print(f"  {name:32} {time.median:8.0f} {time.best:8.0f}  {time.note}")
    print()
    for name, value in ratios.items():
        print(f"  {name:58} {value:6.2f}")
    print("\n  bytes in Parquet, and of the clear reports'")
    whole = asked.rows * asked.size
    for name, size in bytes_of.items():
        print(f"  {name:32} {size:12} {size / whole:6.2f}")
    rows = {name: {"median": time.median, "best": time.best} for name, time in times.items()}
    save(asked.json, "arrow", **result, command=command, times=rows, ratios=ratios, sizes=bytes_of)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow: with reports in a batch, bytes of an upload, and recipients.

    python benchmarks/scaling.py [--quick | --full] [--json FILE]

Each point is a process of its own, for its peak memory. Exponents are least squares in log-log over
the upper half of a series, where fixed costs no longer show: 1 is linear, 0 constant. Last comes
the steady state of an upload: between marks it must allocate nothing. Only that can fail.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tracemalloc
from functools import cache
from itertools import pairwise
from math import log
from pathlib import Path
from time import perf_counter
from typing import Any

import machine

MIB, GIB = 1 << 20, 1 << 30
REPORT = 256
"""Bytes of a report: a million of them are a batch of 256 MiB."""
MARK = GIB
"""Bytes of an upload between two looks at its memory."""


def points(scope: str) -> dict[str, list[int]]:
    """Of each series."""
    most = {"quick": 4, "normal": 6, "full": 6}[scope]
    top = {"quick": 256 * MIB, "normal": GIB, "full": 64 * GIB}[scope]
    uploads = [size for size in (MIB << 2 * i for i in range(9)) if size <= top]
    batches = [10**i for i in range(most + 1)]
    return {
        "batch-seal": batches,
        "batch-open": batches,
        "upload-seal": uploads,
        "upload-pipe": uploads,
        "recipients-seal": [1, 2, 4, 8, 16],
        "recipients-open": [1, 2, 4, 8, 16],
    }


TITLES = {
    "batch-seal": ("seal_packed of so many reports of 256 B", "reports"),
    "batch-open": ("open_packed of so many reports of 256 B", "reports"),
    "upload-seal": ("a writer fed with so many bytes", "bytes"),
    "upload-pipe": ("a writer, a pipe and a reader, so many bytes", "bytes"),
    "recipients-seal": ("a fresh session to so many recipients", "recipients"),
    "recipients-open": ("first contact, among so many recipients", "recipients"),
}


# -- one point, in a process of its own -----------------------------------------


def point(series: str, size: int) -> dict[str, Any]:
    """Seconds (the best of some runs), and MiB more than before."""
    kind, _, verb = series.partition("-")
    call = {"batch": _batch, "upload": _upload, "recipients": _recipients}[kind](verb, size)
    if size < GIB:
        call()  # imports, and first contact
    gc.collect()
    machine.peak_reset()
    before, times = machine.peak_kib(), []
    end = perf_counter() + 0.4
    while len(times) < (3 if size <= GIB else 1) or (len(times) < 5000 and perf_counter() < end):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return {"seconds": min(times), "peak_mib": (machine.peak_kib() - before) / 1024}


def _batch(verb: str, count: int):
    import subjects

    sealer, opener = subjects.pair(subjects.best())
    values, offsets = subjects.packed(REPORT, count)
    if verb == "seal":
        return lambda: sealer.seal_packed(values, offsets)
    sealed = sealer.seal_packed(values, offsets)
    return lambda: opener.open_packed(sealed)


def _upload(verb: str, size: int):
    import subjects

    sealer, opener = subjects.pair(subjects.best())
    if verb == "seal":
        return lambda: feed(sealer, subjects.Source(size), subjects.Sink())

    def through_a_pipe() -> None:
        from threading import Thread

        out, into = os.pipe()
        with open(out, "rb", 0) as reading, open(into, "wb", 0) as writing:

            def seal() -> None:
                feed(sealer, subjects.Source(size), writing)
                writing.close()

            sealing = Thread(target=seal)
            sealing.start()
            buffer, total = memoryview(bytearray(MIB)), 0
            reader = opener.reader(reading)
            while got := reader.readinto(buffer):
                total += got
            sealing.join()
            assert total == size

    return through_a_pipe


@cache
def _buffer() -> memoryview:
    """One for all runs: the pages of a new one would cost more than sealing what is in it."""
    return memoryview(bytearray(MIB))


def feed(sealer, source, sink, at_marks=None, mark: int = MARK) -> None:
    """An upload from a file that costs nothing, through one buffer."""
    buffer, done = _buffer(), 0
    with sealer.writer(sink) as writer:
        while got := source.readinto(buffer):
            writer.write(buffer[:got])
            done += got
            if at_marks and done % mark == 0:
                at_marks()


def _recipients(verb: str, count: int):
    from upseal import Limits, Opener, PrivateKey, Sealer

    keys = [PrivateKey.generate("x25519") for _ in range(count)]
    sealer = Sealer([key.public_key for key in keys], Limits(max_messages=1))
    if verb == "seal":
        return lambda: sealer.seal(b"report")
    sealed, opener = sealer.seal(b"report"), Opener([keys[-1]], cache=0)
    return lambda: opener.open(sealed)


def steady(marks: int, mark: int) -> dict[str, Any]:
    """What an upload allocates between marks: Python's objects, and pages of the system."""
    import subjects

    sealer, _ = subjects.pair(subjects.best())
    faults: list[int] = []
    traced: list[int] = []

    def fault() -> None:
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

    def trace() -> None:
        traced.append(tracemalloc.get_traced_memory()[0])

    gc.collect()
    gc.disable()
    feed(sealer, subjects.Source(2 * mark), subjects.Sink(), fault, mark)  # warm
    faults.clear()
    feed(sealer, subjects.Source(marks * mark), subjects.Sink(), fault, mark)
    tracemalloc.start()
    feed(sealer, subjects.Source(marks * mark), subjects.Sink(), trace, mark)
    tracemalloc.stop()
    new_pages = [b - a for a, b in pairwise(faults)]
    new_bytes = [b - a for a, b in pairwise(traced)]
    # A few pages are the interpreter's and the lists above; one buffer of a piece would be 128.
    nothing = max(new_pages) < 16 and max(new_bytes) < 1024
    return {
        "mark_mib": mark // MIB, "minor_faults": new_pages, "traced_bytes": new_bytes,
        "ok": nothing,
    }  # fmt: skip


# -- fits --------------------------------------------------------------------------


def exponent(rows: list[dict[str, Any]], what: str = "seconds") -> float | None:
    """The slope in log-log over the upper half of the points."""
    least = 1 if what == "peak_mib" else 0  # less than a MiB is the interpreter's
    upper = [row for row in rows[len(rows) // 2 :] if row[what] > least]
    if len(upper) < 2:
        return None
    xs, ys = [log(row["size"]) for row in upper], [log(row[what]) for row in upper]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / over


def apart(*arguments: str) -> dict[str, Any]:
    """Runs this file in another process."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *arguments],
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def series(name: str, sizes: list[int]) -> dict[str, Any]:
    """Runs and prints one."""
    title, unit = TITLES[name]
    print(f"\n{title}\n{unit:>16}{'seconds':>14}{'ns each':>12}{'peak MiB':>10}")
    rows = []
    for size in sizes:
        row = {"size": size, **apart("--point", name, str(size))}
        rows.append(row)
        each = row["seconds"] / size * 1e9
        print(f"{size:16,}{row['seconds']:14.6f}{each:12,.3f}{row['peak_mib']:10.1f}", flush=True)
    time, memory = exponent(rows), exponent(rows, "peak_mib")
    print(f"  exponent of time {_told(time)}, of memory {_told(memory)}")
    return {
        "name": name, "title": title, "unit": unit, "rows": rows, "exponent": time,
        "memory_exponent": memory,
    }  # fmt: skip


def _told(value: float | None) -> str:
    return "none: nothing to fit" if value is None else f"{value:.2f}"


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="to 10^4 reports and 256 MiB")
    parser.add_argument("--full", action="store_true", help="uploads to 64 GiB")
    parser.add_argument("--json", help="where to write the result")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--steady", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(point(options.point[0], int(options.point[1]))))
        return 0
    if options.steady:
        print(json.dumps(steady(*options.steady)))
        return 0
    scope = "quick" if options.quick else "full" if options.full else "normal"
    told = [series(name, sizes) for name, sizes in points(scope).items()]
    mark = 128 * MIB if options.quick else MARK
    state = apart("--steady", str(8 if options.full else 4), str(mark))
    print(
        f"\nsteady state of an upload, between marks of {state['mark_mib']} MiB: "
        f"{state['minor_faults']} page faults, {state['traced_bytes']} bytes of Python objects: "
        + ("nothing is allocated" if state["ok"] else "FAILED, it allocates")
    )
    machine.save(options.json, "scaling", series=told, steady=state)
    return 0 if state["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Opening sealed reports at scale: Parquet, Spark and Ray at several workers, and no engine at all.

    python benchmarks/analytics.py --data /var/tmp/sealed --json analytics.json --write-doc
    python benchmarks/analytics.py --data /var/tmp/small --reports 100000   # minutes: only a look

The first makes, once, 10 million sealed reports of 1 KiB (12 GB). For each engine and number of
workers a fresh process reads the column without opening it (``read``: the engine alone), takes it
through Python and back (``pass``: what the engine asks for handing a column to us), and opens it
(``open``). All of what is read is in memory before it is measured, so no disk is; starting the
engine and one file for each worker come before the clock. Everything an engine starts shares as
many cores as there are workers. Reports opened are counted and summed up, and the sum is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import analytics_data
import analytics_worker
import machine
from capacity_doc import rewrite
from machine import say

from upseal.cli.common import table

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs/sizing.md"
BEGIN, END = "<!-- analytics:begin -->\n", "<!-- analytics:end -->"
NAMES = {"spark": "Spark", "ray": "Ray Data", "bare": "pyarrow alone"}
WAYS = {
    "spark": ("read", "pass", "open"),
    "ray": ("read", "pass", "open"),
    "bare": ("read", "open"),
}
MEANING = {"read": "read", "pass": "through Python", "open": "opened"}


def measured(
    data: Path, made: dict[str, Any], engine: str, workers: int, way: str
) -> dict[str, Any]:
    """One engine, one way, in a process of its own."""
    command = [sys.executable, str(HERE / "analytics_engines.py"), engine, str(workers), way]
    with tempfile.TemporaryDirectory(prefix="analytics-times-") as times:
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "PYTHONWARNINGS": "ignore",
            analytics_worker.FOLDER: times,
            analytics_worker.KEY: str(data.resolve() / "key.pem"),
        }
        stop = threading.Event()
        with tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(
                [*command, str(data)], env=environment, text=True,
                stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
            telling = threading.Thread(target=_tell, args=(Path(times), made["reports"], stop))
            telling.start()
            try:
                said, _ = child.communicate()
            finally:
                stop.set()
                telling.join()
            if child.returncode:
                errors.seek(0)
                raise SystemExit(f"{shlex.join(command)} failed:\n{errors.read()[-4000:]}")
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    _check(made, way, result["found"])
    return {"engine": engine, "workers": workers, "way": way, **result}


def _tell(times: Path, reports: int, stop: threading.Event) -> None:
    while not stop.wait(10):
        rows = analytics_worker.told(times)["rows"]
        say(f"  {int(rows):,} opened, {reports:,} and the first files" if rows else "  at work")


def _check(made: dict[str, Any], way: str, found: dict[str, int]) -> None:
    """That all was read, and all was opened."""
    wanted = {"rows": made["reports"], "bytes": made["sealed_bytes"]}
    if way == "open":
        wanted["bytes"] = made["reports"] * made["bytes"]
        wanted |= {name: made[name] for name in ("crc32", "words") if name in found}
        if len(wanted) < 3:
            raise SystemExit("no sum over what was opened came back")
    if {name: found[name] for name in wanted} != wanted:
        raise SystemExit(f"wrong: {found} came back, and there are {wanted}")


def into_memory(data: Path) -> None:
    """Reads all files once, so that none is read from disk later, if there is room for them."""
    size = sum(path.stat().st_size for path in data.glob("*.parquet"))
    say(f"reading {size / 1e9:.1f} GB into memory")
    if size > 0.7 * machine.memory() * 2**30:
        say("there is not enough memory to keep them: the disk is measured as well")
    buffer = bytearray(1 << 22)
    for path in sorted(data.glob("*.parquet")):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def runs(args: argparse.Namespace, made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All of them, by turns, as often as asked for."""
    for turn in range(args.rounds):
        for workers in args.workers:
            for engine in args.engines:
                for way in ways(engine, args.ways):
                    say(f"round {turn + 1}: {NAMES[engine]}, {workers} workers, {MEANING[way]}")
                    result = measured(args.data, made, engine, workers, way)
                    say(f"  {result['seconds']:.2f} s, after {result['ready']:.1f} s to start")
                    yield result


def ways(engine: str, asked: Iterable[str]) -> list[str]:
    """Those of an engine that were asked for."""
    return [way for way in WAYS[engine] if way in asked]


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What is shown: medians over the rounds, and what follows from them."""
    reports, size = result["data"]["reports"], result["data"]["bytes"]
    found = []
    for engine in result["engines"]:
        for way in ways(engine, result.get("ways", MEANING)):
            one = None
            for workers in result["workers"]:
                these = [
                    run for run in result["runs"]
                    if (run["engine"], run["workers"], run["way"]) == (engine, workers, way)
                ]  # fmt: skip
                seconds = median(run["seconds"] for run in these)
                one = one or (workers, seconds)
                ours = {
                    name: median(run["ours"][name] for run in these) for name in ("wall", "cpu")
                }
                cpu = median(run["cpu"] for run in these)
                found.append({
                    "engine": engine, "way": way, "workers": workers, "seconds": seconds,
                    "reports_s": reports / seconds, "mb_s": reports * size / seconds / 1e6,
                    "scaling": one[1] / seconds, "per": workers / one[0], "cpu": cpu,
                    # Opening threads have so many seconds in all as there are workers.
                    "ours_wall": ours["wall"] / (seconds * workers), "ours_cpu": ours["cpu"] / cpu,
                    "opening": ours["cpu"],
                    "unwrapped": median(run["ours"]["unwrapped"] for run in these),
                })  # fmt: skip
    return found


def cells(row: dict[str, Any]) -> list[str]:
    """A row, for people."""
    opened = row["way"] == "open"
    return [
        NAMES[row["engine"]],
        MEANING[row["way"]],
        str(row["workers"]),
        f"{row['seconds']:,.2f}",
        f"{row['reports_s']:,.0f}",
        f"{row['mb_s']:,.0f}",
        f"{row['scaling']:.2f}",
        f"{row['cpu']:,.1f}",
        f"{row['ours_cpu']:.0%}" if opened else "",
        f"{row['ours_wall']:.0%}" if opened else "",
    ]


HEADS = ["engine", "column", "workers", "s", "reports/s", "MB/s", "scaling", "CPU s",
         "ours, of CPU", "ours, of time"]  # fmt: skip


def told(result: dict[str, Any]) -> list[str]:
    """The result's lines in words."""
    data = result["data"]
    lines = [
        f"{data['reports']:,} reports of {data['bytes']} bytes, sealed in {data['sessions']:,} "
        f"sessions, {data['together']} of one after another; {result['rounds']} round(s), medians",
    ]
    for row in rows(result):
        if row["way"] == "open":
            lines.append(
                f"{NAMES[row['engine']]}, {row['workers']} workers: opening took "
                f"{row['opening'] / data['reports'] * 1e6:.2f} us of CPU a report; "
                f"{row['unwrapped']:,.0f} sessions unwrapped"
            )
    return lines


def document(result: dict[str, Any]) -> str:
    """The block of docs/sizing.md."""
    head, *rest = machine.heading(result)
    lines = [f"{head}; {'; '.join(rest[:-1])}.", "", f"`{rest[-1]}`", ""]
    lines += ["| " + " | ".join(HEADS) + " |", "|---|---|" + "---:|" * (len(HEADS) - 2)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows(result)]
    lines += ["", *(f"{line}.  " for line in told(result))]
    return "\n".join(lines) + "\n"


def numbers(text: str) -> list[int]:
    """``1,2``."""
    return [int(part) for part in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the dataset, made if it is not there")
    parser.add_argument("--reports", type=int, default=10_000_000)
    parser.add_argument("--sessions", type=int, default=5000, help="how many agents' (5000)")
    parser.add_argument(
        "--together", type=int, default=1, metavar="N",
        help="reports of one session that follow one another: what an agent sends at once (1)",
    )  # fmt: skip
    parser.add_argument("--workers", type=numbers, default=[1, 2], help="such as 1,2,4 (1,2)")
    parser.add_argument("--engines", type=lambda text: text.split(","), default=list(NAMES))
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(MEANING))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", help="also write the result there")
    parser.add_argument("--from", dest="earlier", help="measure nothing: take this --json")
    parser.add_argument("--write-doc", action="store_true", help=f"put it into {PAGE.name}")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.earlier:
        result = json.loads(Path(args.earlier).read_text(encoding="utf-8"))
    elif args.data is None:
        parser.error("--data is missing: a folder with room for the dataset")
    elif unknown := set(args.engines) - set(NAMES):
        parser.error(f"no engine {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    elif unknown := set(args.ways) - set(MEANING):
        parser.error(f"no way {', '.join(sorted(unknown))}: there are {', '.join(MEANING)}")
    elif max(args.workers) > machine.cores():
        parser.error(f"a worker has a core to itself, and there are {machine.cores()}")
    else:
        result = _run(args)
    print("\n".join(machine.heading(result)))
    print()
    print(table([HEADS, *map(cells, rows(result))], tuple(range(2, len(HEADS)))))
    print()
    print("\n".join(told(result)))
    if args.write_doc:
        page = args.page.read_text(encoding="utf-8")
        args.page.write_text(rewrite(page, document(result), BEGIN, END), encoding="utf-8")
    return 0


def _run(args: argparse.Namespace) -> dict[str, Any]:
    load = list(os.getloadavg())
    made = analytics_data.dataset(args.data, args.reports, args.sessions, args.together)
    into_memory(args.data)
    found = list(runs(args, made))
    packages = {"spark": "pyspark", "ray": "ray", "bare": "pyarrow"}
    result = {
        "host": machine.facts(),
        "parts": {
            packages[name]: version(packages[name])
            for name in {**dict.fromkeys(args.engines), "bare": None}
        },
        "load": load,
        "command": shlex.join(["python", "benchmarks/analytics.py", *sys.argv[1:]]),
        "data": made,
        "engines": args.engines,
        "workers": args.workers,
        "ways": args.ways,
        "rounds": args.rounds,
        "runs": found,
    }
    machine.save(args.json, "analytics", **result)
    return result


if __name__ == "__main__":
    sys.exit(main())

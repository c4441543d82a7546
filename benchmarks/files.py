# SPDX-License-Identifier: Apache-2.0
"""Whole files: upseal, ``cp`` and everybody else by turns, in one run.

    python benchmarks/files.py [--size MIB] [--rounds N] [--folder DIR ...] [--json FILE]

Before every timed run the source is read and a file of the output's size is written and deleted in
the same folder: a virtual machine that has handed idle pages back to its host would else pay for
them at somebody's expense. Everybody has a process of its own, for its peak memory; what is a
program is timed from start to end.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import machine
import peers

BLOCK = 1 << 20


class Contestant:
    """A worker process, and what it has needed."""

    def __init__(self, name: str, where: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("files_worker.py")), where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self._answer()
        self.wrong: str | None = self.about.get("missing")
        self.seconds: dict[str, list[float]] = {"seal": [], "open": []}
        self.peak = {"seal": 0, "open": 0}

    def run(self, operation: str, source: Path, target: Path) -> bool:
        """One timed run; False if it failed, now or before."""
        if self.wrong is None:
            assert self._process.stdin
            self._process.stdin.write(json.dumps([operation, str(source), str(target)]) + "\n")
            self._process.stdin.flush()
            answer = self._answer()
            self.wrong = answer.get("error")
            if self.wrong is None:
                self.seconds[operation].append(answer["seconds"])
                self.peak[operation] = max(self.peak[operation], answer["peak_kib"])
        return self.wrong is None

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"missing": "ended early", "error": "ended early"}


def contestants(only: str) -> tuple[list[Contestant], dict[str, str]]:
    """Everybody who can take part, and why the others do not."""
    names = {"cp": "cp_program:Copy", "upseal, 1 thread": "upseal:1"}
    count = 2
    while count <= machine.cores():
        names[f"upseal, {count} threads"] = f"upseal:{count}"
        count *= 2
    names["upseal (program)"] = "upseal-program"
    found, missing = peers.load()
    names |= {peer.name: peers.where(peer) for peer in found if peer.files and peer.name != "cp"}
    made = [
        Contestant(name, where)
        for name, where in names.items()
        if only in name or name == "cp" or (not only)
    ]
    missing |= {c.name: c.wrong for c in made if c.wrong}
    return [c for c in made if not c.wrong], missing


def warm(source: Path, like: int, folder: Path) -> None:
    """Puts the source into the page cache, and has pages ready for the output."""
    buffer = bytearray(BLOCK)
    with source.open("rb", buffering=0) as reading:
        while reading.readinto(buffer):
            pass
    scratch = folder / "scratch"
    with scratch.open("wb", buffering=0) as writing:
        for _ in range(like // BLOCK + 1):
            writing.write(buffer)
    scratch.unlink()


def rounds(people: list[Contestant], folder: Path, size: int, count: int) -> None:
    """All of them by turns, each sealing and then opening what it sealed."""
    plain, sealed, opened = folder / "plain", folder / "sealed", folder / "opened"
    block = os.urandom(16 * BLOCK)
    with plain.open("wb") as writing:
        for at in range(0, size, len(block)):
            writing.write(block[: size - at])
    order = list(people)
    for number in range(count):
        for person in order:
            warm(plain, size, folder)
            if person.run("seal", plain, sealed):
                warm(sealed, size, folder)
                if person.run("open", sealed, opened) and number == 0:
                    same = filecmp.cmp(plain, opened, shallow=False)
                    person.wrong = None if same else "gave another file back"
            for path in (sealed, opened):
                path.unlink(missing_ok=True)
        order.append(order.pop(0))


def result(people: list[Contestant], size: int) -> list[dict[str, Any]]:
    """Medians, best runs, and ratios to ``cp`` of the same round."""
    copy = next((p for p in people if p.name == "cp"), None)
    rows = []
    for person in people:
        for operation in ("seal", "open"):
            seconds = person.seconds[operation]
            if not seconds:
                continue
            row: dict[str, Any] = {
                "name": person.name, "operation": operation, **person.about,
                "seconds": seconds, "median_gb_s": size / median(seconds) / 1e9,
                "best_gb_s": size / min(seconds) / 1e9, "peak_mib": person.peak[operation] / 1024,
                "wrong": person.wrong,
            }  # fmt: skip
            if copy and copy.seconds[operation]:
                pairs = zip(copy.seconds[operation], seconds, strict=False)
                row["to_cp"] = median(a / b for a, b in pairs)
                row["best_to_cp"] = min(copy.seconds[operation]) / min(seconds)
            rows.append(row)
    return rows


def show(folder: str, rows: list[dict[str, Any]]) -> None:
    """For people."""
    ours = [name for name in dict.fromkeys(r["name"] for r in rows) if name.startswith("upseal, ")]
    print(
        f"\n{folder}  (GB/s; to cp: speed as a multiple of cp's; then upseal's speed over theirs)"
    )
    head = "".join(f"{name:>19}" for name in ours)
    print(f"{'':32}{'':6}{'median':>8}{'best':>8}{'to cp':>8}{'best':>8}{'peak MiB':>10}{head}")
    for row in rows:
        print(
            f"{row['name']:32}{row['operation']:6}{row['median_gb_s']:8.2f}{row['best_gb_s']:8.2f}"
            f"{row.get('to_cp', 0):8.2f}{row.get('best_to_cp', 0):8.2f}{row['peak_mib']:10.1f}",
            end="",
        )
        for name in ours:
            same = [r for r in rows if (r["name"], r["operation"]) == (name, row["operation"])]
            times = same[0]["median_gb_s"] / row["median_gb_s"] if same else 0
            print(f"{times:18.2f}x", end="")
        print(f"  {row['wrong'] or ''}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=1024, help="MiB (default: 1024)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--folder", action="append", help="may be given several times; default: memory and disk"
    )
    parser.add_argument("--only", default="", help="besides cp, those whose name contains this")
    parser.add_argument("--json", help="where to write the result")
    options = parser.parse_args()
    shared = Path("/dev/shm")
    folders = options.folder or [*([str(shared)] if shared.is_dir() else []), "."]
    size, told, missing = options.size * BLOCK, [], {}
    for folder in folders:
        people, missing = contestants(options.only)
        for name, why in missing.items():
            print(f"left out: {name} ({why})")
        with tempfile.TemporaryDirectory(prefix=".upseal-bench-", dir=folder) as inside:
            kind = filesystem(inside)
            rounds(people, Path(inside), size, options.rounds)
        for person in people:
            person.end()
        rows = result(people, size)
        show(f"{options.size} MiB on {kind}, {options.rounds} rounds", rows)
        told.append({"filesystem": kind, "rows": rows})
    machine.save(
        options.json, "files", size=size, rounds=options.rounds, folders=told, missing=missing
    )


def filesystem(folder: str) -> str:
    """What it is called: no path of this machine stands in a result."""
    done = subprocess.run(
        ["stat", "--file-system", "--format=%T", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip().replace("ext2/ext3", "ext4") or "a folder"


if __name__ == "__main__":
    main()

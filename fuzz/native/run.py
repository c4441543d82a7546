# SPDX-License-Identifier: Apache-2.0
"""Fuzzes the C core: ``run.py SECONDS [TARGET ...]``, by way of scripts/fuzz-native.

Each target runs SECONDS.  The environment may say FUZZ_SEED (a number, to begin a run again as it
was: with the same corpus), FUZZ_JOBS (targets at a time, 1) and CLANG.  Exit code 1 if a target
failed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from programs import HERE, OUT, ROOT, TARGETS, build, clang, command

CRASHES, CORPUS, LOGS = OUT / "crashes", OUT / "corpus", OUT / "logs"


@dataclass
class Run:
    """What a target's run came to."""

    name: str
    failed: bool
    executions: int
    rate: int
    edges: int
    cases: int
    found: list[Path]


def last_number(text: str, form: str) -> int:
    """The last number that ``form``, a regular expression with one group, finds; 0 if none."""
    found = re.findall(form, text)
    return int(found[-1]) if found else 0


def fuzz(name: str, seconds: int, seed: int) -> Run:
    """Runs one target."""
    corpus, log = CORPUS / name, LOGS / f"{name}.log"
    line = command(TARGETS[name], OUT / "bin" / name, corpus, CRASHES, seed)
    environment = os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"}
    with log.open("w") as out:
        code = subprocess.run(  # noqa: S603
            [*line, f"-max_total_time={seconds}"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
            timeout=seconds + 600,
        ).returncode
    text = log.read_text(errors="replace")
    return Run(
        name=name,
        failed=code != 0,
        executions=last_number(text, r"stat::number_of_executed_units: (\d+)")
        or last_number(text, r"(?m)^#(\d+)\s"),
        rate=last_number(text, r"stat::average_exec_per_sec:\s+(\d+)")
        or last_number(text, r"exec/s: (\d+)"),
        edges=last_number(text, r"cov: (\d+)"),
        cases=sum(1 for _ in corpus.iterdir()),
        found=[Path(path) for path in re.findall(r"Test unit written to (\S+)", text)],
    )


def tool(name: str) -> str | None:
    """A tool of LLVM, also under the name that says its version."""
    versions = range(25, 13, -1)
    names = (name, *(f"{name}-{version}" for version in versions))
    return next(filter(None, map(shutil.which, names)), None)


def coverage(cc: str, names: list[str]) -> None:
    """Lines and branches of native/*.c that the cases found so far, and the seeds, run through."""
    merge, report = tool("llvm-profdata"), tool("llvm-cov")
    if merge is None or report is None:
        print("coverage left out: no llvm-profdata and llvm-cov here (Debian: llvm)")
        return
    programs, raw, merged = OUT / "coverage", OUT / "profiles", OUT / "merged.profdata"
    build(cc, names, coverage=True, native=ROOT / "native", out=programs)
    shutil.rmtree(raw, ignore_errors=True)
    for name in names:
        subprocess.run(  # noqa: S603
            [programs / name, "-runs=0", CORPUS / name, HERE / "seeds" / name],
            env=os.environ | {"LLVM_PROFILE_FILE": str(raw / f"{name}.profraw")},
            stderr=subprocess.DEVNULL,
            check=True,
        )
    subprocess.run([merge, "merge", *raw.glob("*.profraw"), "-o", merged], check=True)  # noqa: S603
    objects = [word for name in names[1:] for word in ("-object", str(programs / name))]
    sources = sorted((ROOT / "native").glob("*.c"))
    answer = subprocess.run(  # noqa: S603
        [
            *(report, "export", "-summary-only", f"-instr-profile={merged}"),
            *(programs / names[0], *objects, *sources),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    data = json.loads(answer.stdout)["data"][0]
    print(f"\n{'native/':20}{'lines':>14}{'branches':>22}")
    rows = [(Path(f["filename"]).name, f["summary"]) for f in data["files"]]
    for name, summary in [*rows, ("together", data["totals"])]:
        lines, branches = summary["lines"], summary["branches"]
        print(
            f"{name:20}{lines['covered']:5}/{lines['count']:<4}{lines['percent']:5.1f}%"
            f"{branches['covered']:12}/{branches['count']:<4}{branches['percent']:5.1f}%"
        )


def main(arguments: list[str]) -> int:
    """Builds, fuzzes, reports."""
    seconds, names = int(arguments[0]), arguments[1:] or list(TARGETS)
    if unknown := set(names) - TARGETS.keys():
        print(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
        return 2
    cc = clang()
    if cc is None:
        print("C fuzzing left out: no clang with libFuzzer, or no OpenSSL headers, is here")
        return 0
    for folder in (CRASHES, CORPUS, LOGS):
        folder.mkdir(parents=True, exist_ok=True)
    build(cc, names, coverage=False, native=ROOT / "native", out=OUT / "bin")
    seed = int(os.environ.get("FUZZ_SEED") or secrets.randbelow(2**31 - 1) + 1)
    print(f"{seconds} s each, FUZZ_SEED={seed}, {', '.join(names)}", flush=True)
    print(f"{'target':12}{'executions':>12}{'per second':>12}{'edges':>8}{'corpus':>8}  crashes")
    failed = False
    with ThreadPoolExecutor(int(os.environ.get("FUZZ_JOBS", "1"))) as pool:
        for run in pool.map(lambda name: fuzz(name, seconds, seed), names):
            failed |= run.failed
            print(
                f"{run.name:12}{run.executions:12}{run.rate:12}{run.edges:8}{run.cases:8}"
                f"  {len(run.found)}",
                flush=True,
            )
            if run.failed:
                print((LOGS / f"{run.name}.log").read_text(errors="replace")[-3000:])
                for case in run.found:
                    print(f"to repeat: build/fuzz/bin/{run.name} {case.relative_to(ROOT)}")
    if failed:
        return 1
    coverage(cc, names)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

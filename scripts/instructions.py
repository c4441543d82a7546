# SPDX-License-Identifier: Apache-2.0
"""What scripts/instructions does in Python: runs the paths to be counted, and reads the counts.

``instructions.py count MARKS_SO``, under callgrind
``instructions.py report FOLDER CC [--update]``
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from collections import defaultdict
from itertools import repeat
from pathlib import Path

BASELINES = Path(__file__).parent.parent / "tests" / "instructions.json"
OWN = ("core.c", "records.c", "chunks.c", "aead_openssl.c", "aead.h")
MADE_BY = {  # what a figure depends on: without the same, there is no comparing
    "own C": ("machine", "compiler"),
    "all C": ("machine", "compiler", "libcrypto", "libc", "valgrind"),
    "Python": ("machine", "compiler", "libcrypto", "libc", "valgrind", "python", "cffi"),
}
MAY_RISE = {"own C": 0.03, "all C": 0.03, "Python": 0.03}
CALLS = 100


def count(marks_path: str) -> None:
    """Calls of the public names, N and then 2N: the difference is N calls and nothing else."""
    import upseal

    key = upseal.PrivateKey.generate("x25519")
    sealer, opener = upseal.Sealer([key.public_key]), upseal.Opener([key])
    report, small = bytes(1024), [bytes(256)] * 1000
    values, offsets = bytes(1000 * 1024), bytearray()
    for i in range(1001):
        offsets += (1024 * i).to_bytes(8, sys.byteorder)
    packed = memoryview(offsets).cast("q")
    envelope, batch = sealer.seal(report), sealer.seal_packed(values, packed)
    paths = {
        "Sealer.seal, 1 KiB": (lambda: sealer.seal(report), CALLS),
        "Opener.open, 1 KiB": (lambda: opener.open(envelope), CALLS),
        "Sealer.seal_batch, 1,000 x 256 B": (lambda: sealer.seal_batch(small), 2),
        "Sealer.seal_packed, 1,000 x 1 KiB": (lambda: sealer.seal_packed(values, packed), 2),
        "Opener.open_packed, 1,000 x 1 KiB": (lambda: opener.open_packed(batch), 2),
    }
    marks = ctypes.CDLL(marks_path)
    gc.disable()
    for path, calls in paths.values():
        for _ in repeat(None, calls):
            path()
    marks.mark_start()
    for name, (path, calls) in paths.items():
        for times in (1, 2):
            for _ in repeat(None, calls):  # as warm as the last ones
                path()
            marks.mark_zero()
            for _ in repeat(None, times * calls):
                path()
            marks.mark_dump(f"{times}*{calls} {name}".encode())


def read(dump: Path) -> tuple[str, int, dict[str, int]]:
    """(the mark, all instructions, those of each source file or library) of a dump."""
    name, total, by = "", 0, defaultdict(int)
    file = library = ""
    skip = False
    for line in dump.read_text().splitlines():
        if line.startswith("desc: Trigger: Client Request: "):
            name = line.removeprefix("desc: Trigger: Client Request: ")
        elif line.startswith(("fl=", "fi=", "fe=")):
            file = Path(line[3:]).name
        elif line.startswith("ob="):
            library = Path(line[3:]).name
        elif line.startswith("calls="):
            skip = True  # the next line is what the callee spent
        elif re.match(r"[0-9+*-]", line):
            spent = int(line.split()[-1])
            if not skip:
                total += spent
                by[file] += spent
                by[library] += spent
            skip = False
    return name, total, by


def figures(folder: Path) -> dict[str, dict[str, int]]:
    """Instructions by kind and path."""
    found: dict[str, dict[str, int]] = {kind: {} for kind in MADE_BY}
    dumps = sorted(folder.glob("c.out.*"), key=lambda p: int(p.suffix[1:]))
    for name, total, by in map(read, dumps):
        found["own C"][name] = sum(by[file] for file in OWN)
        found["all C"][name] = total
    once: dict[str, int] = {}
    dumps = sorted(folder.glob("python.out.*"), key=lambda p: int(p.suffix[1:]))
    for mark, total, _ in map(read, dumps):
        times, calls, name = re.fullmatch(r"(\d)\*(\d+) (.*)", mark).groups()
        if times == "1":
            once[name] = total
        else:
            found["Python"][name] = round((total - once[name]) / int(calls))
    return found


def toolchain(compiler: str) -> dict[str, str]:
    """What the figures depend on."""

    def first_line(*command: str) -> str:
        ran = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - named below
        return ran.stdout.partition("\n")[0]

    from upseal.engine.native import backends

    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    wide = "with" if re.search(r"\bavx2\b", flags) else "without"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {
        "machine": platform.machine(),
        "compiler": first_line(compiler, "--version"),
        "libcrypto": next(version for name, version, _ in backends() if name == "openssl"),
        "libc": " ".join(platform.libc_ver()),
        "valgrind": f"{first_line('valgrind', '--version')} {wide} AVX2",
        "python": f"{python}, {platform.python_compiler()}",
        "cffi": importlib.metadata.version("cffi"),
    }


def report(folder: Path, compiler: str, update: bool) -> int:
    """Prints the table; 1 if a figure rose."""
    found, tools = figures(folder), toolchain(compiler)
    baselines = json.loads(BASELINES.read_text()) if BASELINES.exists() else []
    if update:
        baselines = [b for b in baselines if b["toolchain"] != tools]
        baselines.append({"toolchain": tools, "instructions": found})
        BASELINES.write_text(json.dumps(baselines, indent=1) + "\n")
    risen = 0
    for kind, paths in found.items():
        known = next(
            (
                b["instructions"].get(kind, {})
                for b in reversed(baselines)
                if all(b["toolchain"].get(k) == tools[k] for k in MADE_BY[kind])
            ),
            None,
        )
        print(f"\n{kind:36} {'instructions':>14} {'committed':>14}")
        if known is None:
            print(f"not comparable: no figures for {', '.join(tools[k] for k in MADE_BY[kind])}")
        for name, number in paths.items():
            before = (known or {}).get(name)
            if before is None:
                print(f"  {name:34} {number:14,}")
                continue
            change = number / before - 1
            verdict = ""
            if change > MAY_RISE[kind]:
                risen, verdict = risen + 1, "  RISEN"
            elif change < -MAY_RISE[kind]:
                verdict = "  fallen: make instructions UPDATE=1"
            print(f"  {name:34} {number:14,} {before:14,} {change:+8.2%}{verdict}")
    if risen:
        print(f"\n{risen} figures rose by more than they may. If that is meant: UPDATE=1")
    return min(risen, 1)


if __name__ == "__main__":
    if sys.argv[1] == "count":
        count(sys.argv[2])
    else:
        sys.exit(report(Path(sys.argv[2]), sys.argv[3], "--update" in sys.argv))

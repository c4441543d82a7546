# SPDX-License-Identifier: Apache-2.0
"""All targets, one after the other: python fuzz/python/campaign.py SECONDS [TARGET ...]

Prints for each the executions, executions a second, the coverage (edges of the product's Python
that atheris has seen, at the beginning and at the end) and what was found. Ends with 1 if anything
was.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

import upfuzz
from upfuzz import ROOT

LOGS = ROOT / "build" / "fuzz" / "python" / "logs"
CRASHES = ROOT / "build" / "fuzz" / "crashes"
_STATUS = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)", re.M)
_DONE = re.compile(r"^Done (\d+) runs in (\d+) second", re.M)
_GRACE = 300


def crashes(name):
    """The findings kept so far."""
    return set(CRASHES.glob(f"python-{name}-*")) if CRASHES.is_dir() else set()


def run(name, seconds):
    """One line of the table; whether it was clean."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log, before = LOGS / f"{name}.log", crashes(name)
    command = [sys.executable, str(Path(__file__).with_name("run.py")), name, str(seconds)]
    begun = time.monotonic()
    with open(log, "wb") as out:
        try:
            code = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, timeout=seconds + _GRACE
            ).returncode
        except subprocess.TimeoutExpired:
            code = "no end"
    text = log.read_text("utf-8", "replace")
    lines, done = _STATUS.findall(text), _DONE.search(text)
    count = int(done[1]) if done else int(lines[-1][0]) if lines else 0
    took = int(done[2]) if done and int(done[2]) else max(1, round(time.monotonic() - begun))
    edges = f"{lines[0][1]} -> {lines[-1][1]}" if lines else "-"
    found = sorted(crashes(name) - before)
    clean = code == 0 and not found
    print(f"{name:14} {count:>10} {count / took:>9.0f} {edges:>14}  "
          f"{'clean' if clean else f'FOUND ({code}): see {log.relative_to(ROOT)}'}")  # fmt: skip
    for path in found:
        again = f"{sys.executable} fuzz/python/run.py {name} {path.relative_to(ROOT)}"
        print(f"{'':14} repeat: {again}")
    sys.stdout.flush()
    return clean


def main(seconds, names):
    unknown = set(names) - set(upfuzz.TARGETS)
    if unknown:
        raise SystemExit(f"no such target: {', '.join(sorted(unknown))}")
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is not installed: mutations without coverage")
    print(f"{'target':14} {'executions':>10} {'a second':>9} {'edges':>14}")
    results = [run(name, seconds) for name in names or upfuzz.TARGETS]
    raise SystemExit(0 if all(results) else 1)


if __name__ == "__main__":
    if len(sys.argv) < 2 or not sys.argv[1].isdecimal():
        raise SystemExit(__doc__)
    main(int(sys.argv[1]), sys.argv[2:])

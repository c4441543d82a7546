# SPDX-License-Identifier: Apache-2.0
"""Everything, one after the other, and the page: ``make bench`` and ``make bench-full``.

    python benchmarks/run.py [--full] [--folder DIR] [--output FOLDER]

Nothing here decides anything: a part that fails is named at the end, and the others still run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from time import perf_counter

HERE = Path(__file__).parent


def parts(full: bool, out: Path, folder: str) -> dict[str, list[str]]:
    """Arguments of each part."""
    shared = "/dev/shm"
    folders = [*(["--folder", shared] if Path(shared).is_dir() else []), "--folder", folder]
    files = ["--size", "1024", "--rounds", "7"] if full else ["--size", "128", "--rounds", "3"]
    rows = [
        "-m", "pytest", str(HERE), "-q", "-p", "no:cacheprovider", "--benchmark-enable",
        "--benchmark-only", "--benchmark-max-time", "0.3" if full else "0.1",
        "--benchmark-columns", "min,median,max,rounds", "--bench-scope",
        "full" if full else "quick", "--benchmark-json", str(out / "rows.json"),
    ]  # fmt: skip
    quick = [] if full else ["--quick"]
    ratios = str(HERE / "ratios.py")
    one_core = [ratios, "--one-core", "--json", str(out / "ratios-one-core.json")]
    return {
        "ratios": [ratios, *quick, "--json", str(out / "ratios.json")],
        **({"one-core": one_core} if full else {}),
        "rows": rows,
        "files": [str(HERE / "files.py"), *files, *folders, "--json", str(out / "files.json")],
        "scaling": [
            str(HERE / "scaling.py"), "--full" if full else "--quick", "--json",
            str(out / "scaling.json"),
        ],
    }  # fmt: skip


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="all rows, large sizes, many rounds")
    parser.add_argument(
        "--folder", default=str(HERE.parent / ".benchmarks"), help="on a disk, for files"
    )
    parser.add_argument("--output", default=str(HERE.parent / ".benchmarks" / "results"))
    parser.add_argument("--only", action="append", help="this part; may be given several times")
    options = parser.parse_args()
    out = Path(options.output)
    for needed in (out, Path(options.folder)):
        needed.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, arguments in parts(options.full, out, options.folder).items():
        if options.only and name not in options.only:
            continue
        print(f"\n==== {name}", flush=True)
        start = perf_counter()
        if subprocess.run([sys.executable, *arguments], check=False).returncode:
            failed.append(name)
        print(f"==== {name}: {perf_counter() - start:.0f} s", flush=True)
    results = [str(path) for path in sorted(out.glob("*.json"))]
    page = out / "report.html"
    command = [sys.executable, str(HERE / "report.py"), *results, "--output", str(page)]
    if subprocess.run(command, check=False).returncode:
        failed.append("report")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

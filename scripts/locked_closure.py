# SPDX-License-Identifier: Apache-2.0
"""``python scripts/locked_closure.py WHEEL EXTRAS``: of the lock, what a wheel with extras needs.

Prints requirements with hashes for pip. pip says which packages are needed, without installing any;
versions and hashes are those of requirements/setup.txt.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements" / "setup.txt"


def canonical(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def blocks(lock: str) -> dict[str, str]:
    """Each requirement of a lock, with its hashes, by name."""
    found = re.finditer(r"^([\w.-]+)==.*(?:\n {4}.*)*", lock, re.MULTILINE)
    return {canonical(match[1]): match[0] for match in found}


def constraints(lock: str) -> str:
    """The same without hashes: pip takes none beside a wheel that has none."""
    return "\n".join(block.partition("\\")[0].strip() for block in blocks(lock).values()) + "\n"


def needed(wheel: str, extras: str, lock: str) -> list[tuple[str, str]]:
    """Names and versions of all that it comes to."""
    with tempfile.TemporaryDirectory() as folder:
        pinned, report = Path(folder, "pinned.txt"), Path(folder, "report.json")
        pinned.write_text(constraints(lock))
        subprocess.run(  # noqa: S603 - pip, of this Python
            [
                sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed",
                "--only-binary", ":all:", "--constraint", pinned, "--report", report,
                f"{wheel}[{extras}]",
            ],
            check=True,
        )  # fmt: skip
        said = json.loads(report.read_text())
    return [(item["metadata"]["name"], item["metadata"]["version"]) for item in said["install"]]


def main(wheel: str, extras: str) -> int:
    """Prints them."""
    lock = LOCK.read_text("utf-8")
    known = blocks(lock)
    for name, version in needed(wheel, extras, lock):
        if canonical(name) == "upseal":
            continue
        block = known.get(canonical(name), "")
        if not re.match(rf"[\w.-]+=={re.escape(version)}[ \\\n]", block):
            raise SystemExit(f"upseal: {name} {version} is not in {LOCK}; run `make lock`")
        print(block)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))

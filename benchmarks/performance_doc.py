# SPDX-License-Identifier: Apache-2.0
"""Puts the figures of a whole run into docs/performance.md, between its markers.

make bench-full; python benchmarks/performance_doc.py .benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from capacity_doc import rewrite
from figures import SCALE, amount

PAGE = Path(__file__).parents[1] / "docs/performance.md"
BEGIN, END = "<!-- benchmarks:begin -->\n", "<!-- benchmarks:end -->"
SEVERAL_CORES = ("seal a packed batch, 10,000", "open a packed batch, 10,000", "two uploads")
"""Rows that are read where both cores may be used: packed batches of 8 MiB share them."""
INTRO = """## Against peers, and against what was aimed at

`make bench-full`, {when}: upseal {upseal} (revision {revision}) on {cpu}, 2 cores, {os}; Python
{python}, engine {engine}, backend {backend}; {peers}. Subject and peer took turns; a ratio is the
median over the rounds, and beside it that of the best rounds, which says what the machine can do
when it is left alone. "Loop" is a list comprehension over `cryptography`'s AESGCM with the key
schedule paid once: with a random nonce a message, as anybody would write it, and with a counter,
the strictest peer there is. All of it, with pictures, is in [one page](benchmarks.html).

On one core:

"""


def cells(claim: dict[str, Any]) -> str:
    """A row of the table of promises."""
    value = amount(claim["value"], claim["unit"])
    best = claim.get("best")
    told = "" if best is None or claim["unit"] in SCALE else amount(best, claim["unit"])
    aim = amount(claim["target"], claim["unit"])
    met = "yes" if claim["met"] else "best rounds" if best and best >= claim["target"] else "no"
    return f"| {claim['text']} | {value} | {told} | {aim} | {met} |"


def promises(result: dict[str, Any], several: bool) -> list[str]:
    """Those that are promised; either those that use several cores, or the others."""
    claims = [claim for contest in result["contests"] for claim in contest["claims"]]
    rows = ["| work | median | of best rounds | aim | met |", "|---|---:|---:|---:|---|"]
    for claim in claims:
        wanted = claim["text"].startswith(SEVERAL_CORES) or not several
        if claim["counts"] and claim["value"] is not None and wanted:
            rows.append(cells(claim))
    return rows


def files(result: dict[str, Any]) -> list[str]:
    """GB/s of everybody, by operation and file system."""
    columns = [(op, folder) for op in ("seal", "open") for folder in result["folders"]]
    heads = [f"{op}, {folder['filesystem']}" for op, folder in columns]
    names = dict.fromkeys(row["name"] for folder in result["folders"] for row in folder["rows"])
    lines = [f"| | {' | '.join(heads)} | peak MiB |", "|---" + "|---:" * (len(heads) + 1) + "|"]
    for name in names:
        told, peak = [], 0.0
        for operation, folder in columns:
            row = next(
                (r for r in folder["rows"] if (r["name"], r["operation"]) == (name, operation)),
                None,
            )
            if row is None:
                told.append("")
                continue
            told.append(f"{row['median_gb_s']:.2f} ({row['best_gb_s']:.2f})")
            peak = max(peak, row["peak_mib"])
        lines.append(f"| {name} | {' | '.join(told)} | {peak:.0f} |")
    return lines


def growth(result: dict[str, Any]) -> list[str]:
    """Exponents, and how far they reach."""
    rows = [
        "| as it grows | from | to | exponent of time | peak MiB |",
        "|---|---:|---:|---:|---:|",
    ]
    for series in result["series"]:
        first, last = series["rows"][0], series["rows"][-1]
        peak = max(row["peak_mib"] for row in series["rows"])
        rows.append(
            f"| {series['title']} | {first['size']:,} | {last['size']:,} "
            f"| {series['exponent']:.2f} | {peak:.0f} |"
        )
    return rows


def block(folder: Path) -> str:
    """All of it, in Markdown."""

    def read(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return found

    ratios, whole = read("ratios"), read("files")
    machine = ratios["machine"]
    peers = ", ".join(sorted({about for about in ratios["peers"].values() if about}))
    text = INTRO.format(
        when=machine["when"], upseal=machine["versions"]["upseal"], revision=machine["revision"],
        cpu=machine["cpu"], os=machine["os"], python=machine["versions"]["Python"],
        engine=machine["engine"]["engine"], backend=machine["engine"]["backend"], peers=peers,
    )  # fmt: skip
    lines = [
        *promises(read("ratios-one-core"), several=False),
        "",
        'Where both cores may be used (the loops, and the C core in "share of bare C", use one):',
        "",
        *promises(ratios, several=True),
        "",
        'What falls short of its aim, and why, is said [below](#what-falls-short). "Best rounds":',
        "the aim is reached there, and not in the median.",
        "",
        f"Files of {whole['size'] >> 30} GiB, warm page cache, {whole['rounds']} rounds, medians"
        " in GB/s (and of the best round):",
        "",
        *files(whole),
        "",
        "How cost grows (memory is beyond what the process had before; 256 B a report):",
        "",
        *growth(read("scaling")),
    ]
    return text + "\n".join(lines) + "\n"


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with the JSON that `make bench-full` left")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    page = args.page.read_text(encoding="utf-8")
    args.page.write_text(rewrite(page, block(args.folder), BEGIN, END), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

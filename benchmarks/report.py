# SPDX-License-Identifier: Apache-2.0
"""Makes one page of what was measured: self-contained HTML, nothing fetched from anywhere.

    python benchmarks/report.py RESULT.json ... --output report.html

Takes the JSON of `ratios.py`, `files.py`, `scaling.py` and of pytest-benchmark, in any order; what
is missing is left out of the page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import sections

ORDER: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    ("ratios", sections.promises),
    ("ratios-one-core", sections.one_core),
    ("ratios", sections.reports),
    ("ratios", sections.sizes),
    ("ratios", sections.threads),
    ("files", sections.files),
    ("scaling", sections.scaling),
    ("rows", sections.rows),
]
"""A section is made by a function from a result of that kind: add one there, and here."""


def read(paths: list[str]) -> dict[str, dict[str, Any]]:
    """The results by their kind."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        content = json.loads(Path(path).read_text())
        if "benchmarks" in content:  # pytest-benchmark's own
            content = {**content, "kind": "rows", "machine": content["machine_info"]["upseal"]}
        if content["kind"] in found:  # one would hide the other, rows and peers would be mixed
            raise SystemExit(f"{path}: there is a result of kind {content['kind']} already")
        found[content["kind"]] = content
    return found


def page(results: dict[str, dict[str, Any]]) -> str:
    """The whole of it."""
    machine = next(iter(results.values()))["machine"]
    peers = results.get("ratios", {}).get("peers", {})
    made = [make(results[kind]) for kind, make in ORDER if kind in results]
    body = "\n".join(f"<section>{part}</section>" for part in made if part)
    css = Path(__file__).with_name("page.css").read_text()
    title = f"upseal {machine['versions'].get('upseal', '')}: benchmarks"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        '</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{css}</style></head><body><main><h1>{escape(title)}</h1>"
        f"<p>{escape(_where(machine))}</p>\n{body}\n"
        f"<section>{sections.machine(machine, peers)}</section></main></body></html>\n"
    )


def _where(machine: dict[str, Any]) -> str:
    engine = machine["engine"]
    cores = machine["cores"]
    return (
        f"{machine['cpu']}, {cores} core{'s' if cores > 1 else ''}, {machine['os']}; engine "
        f"{engine['engine']}, backend {engine['backend']}; {machine['when']}"
        + (f"; revision {machine['revision']}" if machine["revision"] else "")
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", nargs="+", help="JSON files")
    parser.add_argument("--output", default="report.html")
    options = parser.parse_args()
    Path(options.output).write_text(page(read(options.results)))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()

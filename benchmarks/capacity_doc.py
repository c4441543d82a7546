# SPDX-License-Identifier: Apache-2.0
"""Puts the figures of a measured run into docs/capacity.md, between its markers.

upseal bench --json > bench.json; python benchmarks/capacity_doc.py bench.json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from upseal.cli.capacity import Costs, Load, percent, plan

PAGE = Path(__file__).parents[1] / "docs/capacity.md"
BEGIN, END = "<!-- capacity:begin -->\n", "<!-- capacity:end -->"
CLIENTS = (1_000, 50_000, 200_000)
HEARTBEATS = (4, 60)
MEANING = {
    "seal": "seal an agent's call",
    "session": "new session, one recipient",
    "wrap": "each further recipient",
    "open": "open an agent's call",
    "first": "first contact, beyond that",
    "seal_batch": "seal a relay's batch",
    "open_batch": "open it, an object for each report",
    "upload_seal": "seal 1 GB of uploads",
    "upload_open": "open 1 GB of uploads",
    "sign": "Ed25519 signature (not counted)",
    "verify": "verifying it (not counted)",
}


def block(facts: dict[str, Any]) -> str:
    """Costs, and the plan for `CLIENTS`, in Markdown."""
    measured = facts["capacity"]
    load, costs = Load(**measured["load"]), Costs(**measured["costs"])
    host = facts["machine"]
    lines = [
        f"`upseal bench --json` of upseal {facts['version']}, {facts['engine']} engine, backend "
        f"{facts['backend']}, on {host['cpu']} ({host['usable_cores']} cores), {host['os']}, "
        f"{host['python']}. The clock drifted by {facts['drift']:.0%} in {facts['rounds']} rounds.",
        "",
        f"Reports of {load.report_bytes:,} bytes, {load.agent_batch} in an agent's call, "
        f"{load.batch} in a relay's batch, {load.suite}:",
        "",
        "| symbol | CPU time for | |",
        "|---|---|---:|",
    ]
    for name, meaning in MEANING.items():
        took = measured["costs"][name]
        shown = f"{took * 1e9:.3f} s" if name.startswith("upload") else f"{took * 1e6:,.1f} µs"
        lines.append(f"| `{name}` | {meaning} | {shown} |")
    for clients in CLIENTS:
        for hourly in HEARTBEATS:
            lines += _example(replace(load, clients=clients, reports_per_hour=hourly), costs)
    return "\n".join(lines) + "\n"


def _example(load: Load, costs: Costs) -> list[str]:
    lines = [
        "",
        f"**{load.clients:,} clients, {load.reports_per_hour:g} reports an hour, "
        f"{load.upload_bytes_per_day / 1e6:g} MB of uploads a day**",
        "",
        "| each | number | reports/s | sessions/s | µs a report | of a core | cores |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for role in plan(load, costs):
        lines.append(
            f"| {role.name} | {role.count:,} | {role.reports_per_second:,.4g} "
            f"| {role.first_per_second:,.3g} | {role.seconds_per_report * 1e6:,.1f} "
            f"| {percent(role.share)} | {role.cores} |"
        )
    return lines


def rewrite(page: str, new: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with another block."""
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError("the page has not both markers")
    return before + begin + new + end + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("facts", help="what `upseal bench --json` wrote")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    facts = json.loads(Path(args.facts).read_text(encoding="utf-8"))
    page = args.page.read_text(encoding="utf-8")
    args.page.write_text(rewrite(page, block(facts)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

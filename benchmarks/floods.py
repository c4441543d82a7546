# SPDX-License-Identifier: Apache-2.0
"""What a flood costs the honest: an agent's reports/s and waits, with and without each flood.

    python benchmarks/floods.py                      # about six minutes, on a quiet machine
    python benchmarks/floods.py --quick              # under a minute: only a look
    python benchmarks/floods.py --only garbage,sessions --json floods.json

A server and a passing relay run as `upseal server|relay run` with the limits they have by default.
One simulated honest agent, with four units under way at once, sends from 127.0.0.1; another process
floods the same hop from 127.0.0.2. Turns without and with the flood go by turns; medians. All of it
shares this machine's cores: the flood's own work is part of what it takes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import machine
from fleet_load import Load, Turn
from fleet_site import Site
from machine import say

from upseal import PublicKey
from upseal.cli.common import table
from upseal.fleet.credentials import Token, enrol_request
from upseal.fleet.identity import SigningKey

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fleet"))
import fleet_flood_support as floods

WAYS = ("direct", "passing relay")
STRANGERS = {
    "connections": lambda _: floods.held_connections(5000),
    "heads": lambda _: floods.slow_heads(2000),
    "bodies": lambda _: floods.slow_bodies(200),
    "garbage": lambda given: floods.garbage_credentials(given.credential),
    "oversized": lambda _: floods.oversized(),
    "enrolments": lambda given: floods.enrolments(given.enrolment),
    "strangers' uploads": lambda given: floods.strangers_uploads(given.credential),
}
ENROLLED = {
    "units": floods.small_units,
    "sessions": floods.new_sessions,
    "dead letters": floods.undecryptable,
    "empty pieces": floods.empty_pieces(),
    "sizes": floods.sizes,
    "creations": floods.creations,
}
KINDS = (*STRANGERS, *ENROLLED)


@dataclass(frozen=True)
class Given:
    """What a flood is made with; goes to another process."""

    address: tuple[str, int]
    deployment: bytes
    identity: bytes
    hop: bytes
    credential: str
    recipients: tuple[bytes, ...]
    enrolment: bytes
    threads: int


def flooding(kind: str, given: Given, begun: Any, stop: Any, answers: Any) -> None:
    """Floods, in a process of its own, until told to stop."""
    if kind in STRANGERS:
        work = STRANGERS[kind](given)
    else:
        keys = tuple(PublicKey.from_pem(pem) for pem in given.recipients)
        rogue = floods.Enrolled(
            given.deployment, SigningKey.from_pem(given.identity), SigningKey.from_pem(given.hop),
            given.credential, keys,
        )  # fmt: skip
        work = floods.sends(rogue, ENROLLED[kind])
    flood = floods.Flood(given.address, work, given.threads)
    with flood.running():
        while not flood.total and not stop.wait(0.02):
            pass
        begun.set()
        stop.wait()
    answers.put({str(status): count for status, count in flood.answers.items()})


def given(site: Site, way: str, threads: int) -> Given:
    """For a flood of that way's hop, by the last of its agents, which does nothing else."""
    rogue, manifest = site.agents[way][-1], site.manifest()
    parts = urlsplit(site.url(way))
    assert parts.hostname is not None
    assert parts.port is not None
    token = Token(site.deployment, bytes(32), 1, bytes(16))
    stranger, hop = SigningKey.generate(), SigningKey.generate()
    asked = enrol_request(token, manifest, stranger, hop, name="flood", now_ms=floods.now_ms())
    return Given(
        (parts.hostname, parts.port), site.deployment, rogue.identity.to_pem(), rogue.hop.to_pem(),
        rogue.credential, tuple(key.public().to_pem() for key in manifest.encryption), asked,
        threads,
    )  # fmt: skip


def with_flood(
    load: Load, site: Site, way: str, kind: str, args: argparse.Namespace
) -> tuple[Turn, dict[str, int]]:
    """One turn while it floods."""
    context = multiprocessing.get_context("spawn")
    begun, stop, answers = context.Event(), context.Event(), context.Queue()
    what = (kind, given(site, way, args.threads), begun, stop, answers)
    child = context.Process(target=flooding, args=what, daemon=True)
    child.start()
    try:
        if not begun.wait(60):
            raise RuntimeError(f"the flood {kind} did not begin")
        time.sleep(args.lead)
        turn = load.turn(way, 1, True, args.reports, args.seconds)
    finally:
        stop.set()
        said = answers.get(timeout=60)
        child.join(60)
    return turn, said


def measure(site: Site, args: argparse.Namespace) -> list[dict[str, Any]]:
    load = Load(site, args.size, args.unit, 4)
    rows = []
    for way in WAYS:
        load.turn(way, 1, True, args.reports, args.seconds / 2)  # warm
        for kind in args.only:
            say(f"{kind}, {way}")
            without, within, answers = [], [], []
            for _ in range(args.turns):
                without.append(load.turn(way, 1, True, args.reports, args.seconds))
                turn, said = with_flood(load, site, way, kind, args)
                within.append(turn)
                answers.append(said)
            rows.append({
                "way": way, "flood": kind, "without": facts(without), "with": facts(within),
                "ratio": median(a.rate / b.rate for a, b in zip(within, without, strict=True)),
                "answers": answers[-1],
            })  # fmt: skip
    return rows


def facts(turns: list[Turn]) -> dict[str, Any]:
    """Medians; CPU as a part of one core, memory the most there was."""
    who = turns[0].peak_mb
    return {
        "rate": median(turn.rate for turn in turns),
        "p50_ms": median(turn.median_ms for turn in turns),
        "p99_ms": median(turn.p99_ms for turn in turns),
        "again": sum(turn.again for turn in turns),
        "cpu": {name: median(t.cpu.get(name, 0) / t.seconds for t in turns) for name in who},
        "peak_mb": {name: max(turn.peak_mb[name] for turn in turns) for name in who},
    }


def in_words(result: dict[str, Any]) -> str:
    head = [["way", "flood", "reports/s", "with", "ratio", "p99 ms", "with", "hop CPU", "with",
             "hop MB", "with", "what it was answered"]]  # fmt: skip
    for row in result["rows"]:
        hop = "relay" if row["way"] != "direct" else "server"
        a, b = row["without"], row["with"]
        answers = ", ".join(f"{n:,} x {status}" for status, n in sorted(row["answers"].items()))
        head.append([
            row["way"], row["flood"], f"{a['rate']:,.0f}", f"{b['rate']:,.0f}",
            f"{row['ratio']:.2f}", f"{a['p99_ms']:.0f}", f"{b['p99_ms']:.0f}",
            f"{a['cpu'][hop]:.2f}", f"{b['cpu'][hop]:.2f}", f"{a['peak_mb'][hop]:.0f}",
            f"{b['peak_mb'][hop]:.0f}", answers,
        ])  # fmt: skip
    return "\n".join([*machine.heading(result), "", table(head, tuple(range(2, 11)))])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--json", metavar="FILE", help="also write the result to this file")
    add("--quick", action="store_true", help="one short turn each: only a look")
    add("--only", metavar="NAME,NAME", help=f"these alone, of {', '.join(KINDS)}")
    add("--turns", type=int, help="of each, with and without (3)")
    add("--seconds", type=float, help="of one turn (3)")
    add("--reports", type=int, default=1_000_000, help="of one turn, at most")
    add("--unit", type=int, default=50, help="reports in a unit (50)")
    add("--size", type=int, default=1000, help="bytes of a report (1000)")
    add("--threads", type=int, default=2, help="that flood (2)")
    add("--lead", type=float, default=1.0, help="seconds that the flood is ahead (1)")
    args = parser.parse_args()
    args.turns = args.turns or (1 if args.quick else 3)
    args.seconds = args.seconds or (1.0 if args.quick else 3.0)
    args.only = args.only.split(",") if args.only else list(KINDS)
    if not set(args.only) <= set(KINDS) or not 1 <= args.turns <= 20 or args.threads > 16:
        parser.error(f"--only names some of {', '.join(KINDS)}; --turns 1 to 20; --threads to 16")
    return args


def main() -> int:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="upseal-floods-") as folder, \
            Site(Path(folder), 3, 5.0) as site:  # fmt: skip
        result = {
            "host": machine.facts(), "load": os.getloadavg(), "parts": {},
            "command": " ".join(["python", *sys.argv]), "rows": measure(site, args),
        }  # fmt: skip
    print(in_words(result))
    machine.save(args.json, "floods", **result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

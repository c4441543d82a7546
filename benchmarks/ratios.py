# SPDX-License-Identifier: Apache-2.0
"""upseal beside its peers, by turns: one table of what is promised and what was measured.

    python benchmarks/ratios.py [--quick] [--one-core] [--only NAME] [--json FILE]

A ratio is the median of the ratios of all rounds; the times beside it are medians. Nothing fails
when a promise is not met: a measurement decides no test.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias

import machine
import peers
from contests import REPORTS, Claim, Contest, Setup
from contests_uploads import UPLOADS
from figures import SCALE, amount, number
from subjects import ENGINES, best
from timing import Times, alternate, ratio

Build: TypeAlias = Callable[[Setup], Iterator[Contest]]
NOISE = 0.15
"""A ratio that differs so much from that of the best rounds was disturbed, and says nothing."""


def judge(claim: Claim, times: dict[str, Times], per: str) -> dict[str, Any]:
    """What was measured of a promise."""
    told: dict[str, Any] = {
        "text": claim.text, "subject": claim.subject, "peer": claim.peer, "unit": claim.unit,
        "target": claim.target, "counts": claim.counts, "per": per, "value": None, "met": None,
    }  # fmt: skip
    subject, peer = times.get(claim.subject), times.get(claim.peer or "")
    if subject is None or (claim.peer and peer is None):
        return told
    told["subject_ns"] = subject.median
    told["peer_ns"] = peer.median if peer else None
    if claim.unit in SCALE:
        if peer:
            pairs = zip(subject.rounds, peer.rounds, strict=True)
            value = median(a - b for a, b in pairs) / SCALE[claim.unit]
        else:
            value = subject.median / SCALE[claim.unit]
        told["value"], told["met"] = value, value <= claim.target
    elif peer:
        told["value"], told["best"] = ratio(peer, subject), peer.best / subject.best
        told["met"] = told["value"] >= claim.target
        told["noisy"] = abs(told["value"] / told["best"] - 1) > NOISE
    return told


def run(contest: Contest, rounds: int, budget: float) -> dict[str, Any]:
    """Times one contest."""
    start = perf_counter()
    times = alternate(contest.works, rounds, budget * len(contest.works))
    return {
        "name": contest.name, "title": contest.title, "per": contest.per, "size": contest.size,
        "rounds": len(next(iter(times.values())).rounds), "seconds": perf_counter() - start,
        "times": [
            {"name": name, "note": t.note, "median_ns": t.median, "best_ns": t.best,
             "worst_ns": max(t.rounds)}
            for name, t in times.items()
        ],
        "claims": [judge(claim, times, contest.per) for claim in contest.claims],
    }  # fmt: skip


def apart(build: Build, setup: Setup, only: str, rounds: int, budget: float) -> list[Any]:
    """Runs a group of contests in a process of its own.

    What the C library's heap has been through before decides how many pages it must ask for
    again at every large output: no contest may leave that to the next.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            results = []
            for contest in build(setup):
                if only in contest.name:
                    results.append(run(contest, rounds, budget))
                    show(results[-1])
            sys.stdout.flush()
            with open(writing, "w") as pipe:
                json.dump(results, pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading) as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"{build.__name__} failed")
    return list(json.loads(told))


def show(result: dict[str, Any]) -> None:
    """One contest, for people."""
    print(f"\n{result['title']}  ({result['rounds']} rounds, ns a {result['per']})")
    for t in result["times"]:
        note = f"  [{t['note']}]" if t["note"] else ""
        print(
            f"  {t['name']:36}{number(t['median_ns']):>14}  best {number(t['best_ns']):>14}{note}"
        )


def table(claims: list[dict[str, Any]]) -> None:
    """All promises."""
    wide = max((len(claim["text"]) for claim in claims), default=0) + 2
    print(
        f"\n{'':{wide}}{'subject':>12}{'peer':>12}{'ratio':>10}{'of bests':>10}{'target':>12}  met"
    )
    for claim in claims:
        print(f"{claim['text']:{wide}}", end="")
        if claim["value"] is None:
            print("  not measured: a peer or the C core is missing")
            continue
        peer = number(claim["peer_ns"]) if claim["peer_ns"] else ""
        sign = "<=" if claim["unit"] in SCALE else ">="
        target = f"{sign} {amount(claim['target'], claim['unit'])}"
        met = ("yes" if claim["met"] else "NO") if claim["counts"] else "(to know)"
        met += ", noisy" if claim.get("noisy") else ""
        value = amount(claim["value"], claim["unit"])
        best = amount(claim["best"], claim["unit"]) if "best" in claim else ""
        numbers = f"{number(claim['subject_ns']):>12}{peer:>12}{value:>10}{best:>10}"
        print(f"{numbers}{target:>12}  {met}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller data")
    parser.add_argument("--only", default="", help="contests whose name contains this")
    parser.add_argument("--rounds", type=int, help="default: 200, quick 40")
    parser.add_argument(
        "--seconds", type=float, help="for each contestant, about (default: 4, quick 0.3)"
    )
    parser.add_argument("--engine", choices=ENGINES, default=best())
    parser.add_argument(
        "--one-core", action="store_true", help="keep to one core: large batches use several"
    )
    parser.add_argument("--json", help="where to write the result")
    options = parser.parse_args()
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rounds = options.rounds or (40 if options.quick else 200)
    seconds = options.seconds or (0.3 if options.quick else 4.0)
    if os.getloadavg()[0] > 0.5:
        print("something else is running here: these figures will be noisy")
    found, missing = peers.load()
    for name, why in missing.items():
        print(f"left out: {name} ({why})")
    setup = Setup(not options.quick, found, options.engine)
    results = []
    for build in [*REPORTS, *UPLOADS]:
        results += apart(build, setup, options.only, rounds, seconds)
    claims = [claim for result in results for claim in result["claims"]]
    table(claims)
    missed = sum(claim["counts"] and claim["met"] is False for claim in claims)
    print(f"\n{sum(c['counts'] and bool(c['met']) for c in claims)} met, {missed} not met")
    kind = "ratios-one-core" if options.one_core else "ratios"
    machine.save(
        options.json, kind, engine=options.engine, quick=options.quick, contests=results,
        peers={peer.name: peer.version() for peer in found}, missing=missing,
    )  # fmt: skip


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""``upseal agent status`` and ``gather``: what an agent does, and what it would report."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from upseal.cli.agent import MEMBER, open_agent, settings_of
from upseal.cli.common import OK, USAGE, Failure, complain, printable_size, say, say_json, table


def show_status(args: argparse.Namespace) -> int:
    """Wanted, actual, why; what waits; whom it believes."""
    with open_agent(args) as agent:
        found = agent.status()
    if args.json:
        say_json(found)
        return OK
    reports, spool, manifest = found["reports"], found["spool"], found["manifest"]
    oldest = spool["oldest_seconds"]
    rows = [
        ["client", f"{found['name']}, {found['agent']}"],
        ["wanted", found["wanted"]],
        ["actual", found["actual"]],
        ["why", found["why"]],
        ["sending", f"process {found['pid']}" if found["running"] else "no process runs"],
        ["parent", found["parent"]["url"] + "".join(f" -> {r}" for r in found["parent"]["relays"])],
        ["trouble", found["parent"]["trouble"] or "none"],
        ["reports", ", ".join(f"{reports[k]:,} {k}" for k in reports)],
        [
            "spool",
            f"{spool['depth']:,} reports, {printable_size(spool['bytes'])}"
            + ("" if oldest is None else f", the oldest {oldest:,.0f} s old"),
        ],
        ["uploads", _uploads_words(found["uploads"])],
        ["manifest", "none" if manifest is None else _manifest_words(manifest)],
        ["last receipt", when(found["last_receipt"])],
    ]
    rows += [["alarm", f"{a['what']} ({a['count']}, {when(a['last'])})"] for a in found["alarms"]]
    say(table(rows))
    return OK


def _uploads_words(uploads: dict[str, Any]) -> str:
    counts = ("made", "stored", "waiting", "failed", "cancelled", "refused")
    text = (
        ", ".join(f"{uploads[k]:,} {k}" for k in counts) + f"; {printable_size(uploads['bytes'])}"
    )
    return text + (f", {uploads['trouble']}" if uploads["trouble"] else "")


def _manifest_words(manifest: dict[str, Any]) -> str:
    until = (
        f"stale since {when(manifest['expires'])}"
        if manifest["stale"]
        else (f"until {when(manifest['expires'])}")
    )
    return f"serial {manifest['serial']}, {manifest['state']}, {until}"


def when(milliseconds: int | None) -> str:
    """A time for people, by this host's clock."""
    if milliseconds is None:
        return "never"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(milliseconds / 1000))


def show_gathered(args: argparse.Namespace) -> int:
    """Looks once, and reports nothing."""
    from upseal.fleet.agent.gathering import Gatherer, sources
    from upseal.fleet.agent.settings import Gather
    from upseal.fleet.settings import host_name

    named = args.config is not None or args.directory is not None
    if named or (MEMBER.folder(args) / MEMBER.file).exists():
        settings = settings_of(args)
        gather, name = settings.gather, settings.name
    else:  # it needs no enrolment to see what an agent would say
        gather, name = Gather(), host_name()
    found = sources(args.what or gather.what)
    if args.what and (unknown := set(args.what) - set(found)):
        names = ", ".join(sources())
        raise Failure(USAGE, f"there is no source {sorted(unknown)[0]!r}; there are {names}")
    counts: dict[str, list[int]] = {}

    def take(reports: list[bytes]) -> None:
        for report in reports:
            if args.json:
                say(report.decode() + "\n")
            count = counts.setdefault(json.loads(report)["property"], [0, 0])
            count[0] += 1
            count[1] += len(report)

    outcomes = Gatherer(gather, name, take, found).look()
    if not args.json:
        rows = [["property", "reports", "bytes"]]
        rows += [[k, f"{n:,}", f"{size:,}"] for k, (n, size) in sorted(counts.items())]
        say(table(rows, right=(1, 2)))
    for source, outcome in outcomes.items():
        if outcome.problem is not None:
            complain(f"warning: source {source!r} {outcome.problem}")
    return OK

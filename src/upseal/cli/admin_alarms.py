# SPDX-License-Identifier: Apache-2.0
"""``upseal admin alarms``: what somebody should look at, and who has."""

from __future__ import annotations

import argparse
from typing import Any

from upseal.cli.admin_common import add_act, columns, moment, opened, tell
from upseal.cli.common import OK, USAGE, Failure, positive, say, say_json


def add(acts: Any) -> None:
    """The command."""
    show = add_act(
        acts, "alarms", "list alarms that nobody has acknowledged, or acknowledge them", _alarms,
        signs=False,
    )  # fmt: skip
    which = show.add_mutually_exclusive_group()
    which.add_argument(
        "--acknowledge", metavar="ID", type=positive, nargs="+", action="extend", default=[],
        help="say that these have been looked at",
    )  # fmt: skip
    which.add_argument("--all", action="store_true", help="say so of all that are open")
    which.add_argument("--acknowledged", action="store_true", help="list those as well")


def _alarms(args: argparse.Namespace) -> int:
    changes = bool(args.all or args.acknowledge)
    if args.dry_run and not changes:
        raise Failure(USAGE, "--dry-run goes with --acknowledge or --all; leave it away")
    with opened(args) as deployment:
        if changes:
            numbers = None if args.all else args.acknowledge
            return tell(args, deployment.acknowledge(numbers, dry_run=args.dry_run))
        found = deployment.alarms(everything=args.acknowledged)
    if args.json:
        say_json({"alarms": found})
        return OK
    if not found:
        say("no alarms\n")
        return OK
    rows = [
        [
            str(alarm["id"]),
            moment(alarm["last"]),
            alarm["kind"],
            str(alarm["times"]),
            alarm["client"] or alarm["subject"] or "-",
            " ".join(f"{name}={value}" for name, value in alarm["details"].items()) or "-",
            *([_seen(alarm)] if args.acknowledged else []),
        ]
        for alarm in found
    ]
    head = ["id", "last", "alarm", "times", "about", "details"]
    say(columns([*head, *(["acknowledged"] if args.acknowledged else [])], rows))
    return OK


def _seen(alarm: dict[str, Any]) -> str:
    if alarm["acknowledged"] is None:
        return "no"
    return f"{moment(alarm['acknowledged'])} by {alarm['acknowledged_by']}"

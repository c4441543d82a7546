# SPDX-License-Identifier: Apache-2.0
"""``upseal admin`` on clients and relays: token, clients, set-level, relays, revoke."""

from __future__ import annotations

import argparse
import time
from typing import Any

from upseal.cli.admin_common import add_act, ago, columns, duration, moment, opened, tell
from upseal.cli.common import OK, USAGE, Failure, positive, say, say_json

# As `upseal.fleet.server.overview.census.FILTERS`, which would import the database.
FILTERS = ("orphaned", "clear", "withheld", "silent", "sealed", "gaps")
LEVELS = ("required", "optional", "none", "default")


def add(acts: Any) -> None:
    """The commands."""
    make = add_act(acts, "token", "make tokens, each good for one enrolment", _token, signs=False)
    make.add_argument("--role", choices=("agent", "relay"), default="agent", help="whose (agent)")
    make.add_argument("--uses", type=positive, default=1, metavar="N", help="how many (1)")
    make.add_argument(
        "--expires", type=duration, default=86400.0, metavar="TIME", help="after (24h)"
    )
    make.add_argument("--note", default="", help="what it is for")

    show = add_act(
        acts, "clients", "list clients: wanted, actual, and why", _clients, changes=False
    )
    show.add_argument("--filter", choices=FILTERS, help="only these")

    level = add_act(
        acts, "set-level", "set the level of clients", _set_level,
        force="although clients would be orphaned",
    )  # fmt: skip
    level.add_argument("level", choices=LEVELS, metavar="LEVEL", help=", ".join(LEVELS))
    who = level.add_mutually_exclusive_group(required=True)
    who.add_argument(
        "--client", metavar="NAME|ID", nargs="+", action="extend", default=[], help="these clients"
    )
    who.add_argument(
        "--all", action="store_true", help="the default, for all without a level of their own here"
    )

    relays = add_act(
        acts, "relays", "list relays, or say which belong to the deployment", _relays,
        force="although clients would be orphaned",
    )  # fmt: skip
    relays.add_argument("what", nargs="?", choices=("list", "add", "set", "remove"), default="list")
    relays.add_argument("name", nargs="?", metavar="NAME|ID", help="to add, set or remove")
    relays.add_argument(
        "--decrypts",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="it gets a certificate of its own, and may open what passes it",
    )
    relays.add_argument(
        "--accepts-sealed", choices=("yes", "no"), help="(default: what it said of itself)"
    )

    gone = add_act(acts, "revoke", "revoke a client, a relay or a certificate", _revoke)
    gone.add_argument("target", metavar="CLIENT|RELAY|SERIAL", help="name, id or serial number")
    gone.add_argument("--undo", action="store_true", help="let a client or relay in again")


def _token(args: argparse.Namespace) -> int:
    with opened(args) as deployment:
        outcome = deployment.token(
            args.role, uses=args.uses, lifetime=args.expires, note=args.note, dry_run=args.dry_run
        )
    if args.json or args.dry_run:
        return tell(args, outcome)
    say("".join(f"{token}\n" for token in outcome.result["tokens"]))
    return OK


def _clients(args: argparse.Namespace) -> int:
    with opened(args) as deployment:
        found = deployment.clients(args.filter)
    if args.json:
        say_json({"clients": found})
        return OK
    now = time.time_ns() // 1_000_000
    rows = [
        [
            client["name"],
            client["agent"][:12],
            _wanted(client),
            client["actual"],
            client["why"] or "-",
            ago(client["last_seen"], now),
            str(client["missing_units"] or "-"),
            client["suite"] or "-",
            client["key_id"] or "-",
        ]
        for client in found
    ]
    say(columns(["client", "id", "wanted", "actual", "why", "seen", "gaps", "suite", "key"], rows))
    return OK


def _wanted(client: dict[str, Any]) -> str:
    """What it said last; and what the manifest says, where that is something else."""
    wanted = client["wanted"] or "?"
    return f"{wanted} (set: {client['set']})" if client["set"] not in (None, wanted) else wanted


def _set_level(args: argparse.Namespace) -> int:
    with opened(args) as deployment:
        outcome = deployment.set_level(
            None if args.level == "default" else args.level,
            clients=args.client,
            everyone=args.all,
            dry_run=args.dry_run,
            force=args.force,
        )
    return tell(args, outcome)


def _relays(args: argparse.Namespace) -> int:
    changing = args.what != "list"
    if changing and args.name is None:
        raise Failure(USAGE, f"which relay? give `relays {args.what} NAME|ID`")
    if not changing and args.name is not None:
        raise Failure(USAGE, "`relays list` lists all of them; leave the name away")
    accepts = None if args.accepts_sealed is None else args.accepts_sealed == "yes"
    if args.what in ("list", "remove") and (args.decrypts is not None or accepts is not None):
        raise Failure(USAGE, f"--decrypts and --accepts-sealed do not go with {args.what}")
    with opened(args) as deployment:
        if args.what == "list":
            return _list_relays(args, deployment.relays())
        if args.what == "remove":
            return tell(args, deployment.remove_relay(args.name, dry_run=args.dry_run))
        outcome = deployment.add_relay(
            args.name, decrypts=args.decrypts, accepts_sealed=accepts, dry_run=args.dry_run,
            force=args.force,
        )  # fmt: skip
    return tell(args, outcome)


def _list_relays(args: argparse.Namespace, found: list[dict[str, Any]]) -> int:
    if args.json:
        say_json({"relays": found})
        return OK
    rows = [
        [
            relay["name"],
            relay["relay"][:12],
            "yes"
            if relay["in_manifest"]
            else "revoked"
            if relay["revoked"]
            else "no: `relays add`",
            "yes" if relay["decrypts"] else "no",
            "yes" if relay["accepts_sealed"] else "no",
            ", ".join(f"{key['generation']}: {key['key_id']}" for key in relay["keys"]) or "-",
            moment(relay["last_seen"]),
        ]
        for relay in found
    ]
    head = ["relay", "id", "in manifest", "decrypts", "accepts sealed", "keys", "seen"]
    say(columns(head, rows))
    return OK


def _revoke(args: argparse.Namespace) -> int:
    with opened(args) as deployment:
        return tell(args, deployment.revoke(args.target, undo=args.undo, dry_run=args.dry_run))

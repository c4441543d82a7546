# SPDX-License-Identifier: Apache-2.0
"""``upseal admin login``: who may look at the server's page."""

from __future__ import annotations

import argparse
from typing import Any

from upseal.cli.admin_common import add_act, columns, moment, opened, tell
from upseal.cli.common import OK, USAGE, Failure, say, say_json


def add(acts: Any) -> None:
    """The command."""
    login = add_act(
        acts, "login", "say who may look at the server's page, /admin", _login, signs=False
    )
    login.add_argument("what", nargs="?", choices=("list", "add", "remove"), default="list")
    login.add_argument("name", nargs="?", metavar="NAME", help="to add or remove")


def _login(args: argparse.Namespace) -> int:
    if args.what != "list" and args.name is None:
        raise Failure(USAGE, f"which login? give `login {args.what} NAME`")
    if args.what == "list" and args.name is not None:
        raise Failure(USAGE, "`login list` lists all of them; leave the name away")
    with opened(args) as deployment:
        if args.what == "list":
            return _list(args, deployment.logins())
        if args.what == "remove":
            return tell(args, deployment.remove_login(args.name, dry_run=args.dry_run))
        outcome = deployment.add_login(args.name, dry_run=args.dry_run)
    code = tell(args, outcome)
    if not (args.json or args.dry_run):
        say(f"password, shown this once: {outcome.result['password']}\n")
    return code


def _list(args: argparse.Namespace, found: list[dict[str, Any]]) -> int:
    if args.json:
        say_json({"logins": found})
        return OK
    rows = [[one["name"], moment(one["created"]), moment(one["last_login"])] for one in found]
    say(columns(["login", "made", "last used"], rows))
    return OK

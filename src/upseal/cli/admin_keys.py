# SPDX-License-Identifier: Apache-2.0
"""``upseal admin`` on encryption keys: generate-key, ready, enable, rotate, retire, disable."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from upseal.cli.admin_common import add_act, duration, opened, tell
from upseal.cli.common import USAGE, Failure, shown
from upseal.cli.keyfiles import kept_key, recipient
from upseal.cli.keygen import KINDS


def add(acts: Any) -> None:
    """The commands."""
    clock = "sign although the clock stands before the newest manifest"
    make = add_act(acts, "generate-key", "make the next encryption key", _generate, force=clock)
    make.add_argument("-t", "--type", choices=KINDS, help="kind of key (default: as at init)")
    make.add_argument(
        "--key", metavar="REFERENCE",
        help="make none: take the key that is kept there, unix:PATH[#ID] or pkcs11:...",
    )  # fmt: skip
    make.add_argument(
        "--escrow",
        metavar="FILE",
        action="append",
        help="a public key or certificate that may open everything as well; may be repeated "
        "(default: as now)",
    )
    make.add_argument("--no-escrow", action="store_true", help="none from now on")
    make.add_argument("--replace", action="store_true", help="drop the key that is pending")
    make.add_argument("--cancel", action="store_true", help="make none: take the pending key back")

    ask = add_act(
        acts, "ready", "ask the server and the relays to prove that they have the new key",
        _ready, signs=False,
    )  # fmt: skip
    _add_timeout(ask)

    unready = "go on without those who have not proven the key"
    add_act(acts, "enable", "let clients seal to the pending key", _enable, force=unready)

    turn = add_act(acts, "rotate", "generate-key, ready and enable in one", _rotate, force=unready)
    turn.add_argument("-t", "--type", choices=KINDS, help="kind of key (default: as at init)")
    _add_timeout(turn)

    old = add_act(
        acts, "retire", "let an old key go, with all older ones", _retire,
        force="although reports still come in under it",
    )  # fmt: skip
    old.add_argument(
        "key_id", nargs="?", metavar="KEY-ID", help="as `upseal admin status` names it"
    )
    old.add_argument("--all-old", action="store_true", help="all old keys")

    add_act(
        acts, "disable", "turn encryption off", _disable,
        force="although clients would be orphaned",
    )  # fmt: skip


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=duration, default=60.0, metavar="TIME", help="how long to wait (60s)"
    )


def _generate(args: argparse.Namespace) -> int:
    if args.key and args.type:
        raise Failure(USAGE, "--key is of the type it is; leave --type away")
    if args.cancel and (args.type or args.key or args.escrow or args.no_escrow or args.replace):
        raise Failure(USAGE, "--cancel makes no key; leave the other options away")
    if args.escrow and args.no_escrow:
        raise Failure(USAGE, "--escrow and --no-escrow exclude each other; give one")
    escrow = None
    if args.no_escrow:
        escrow = []
    elif args.escrow:
        escrow = [(Path(name).stem, recipient(name)) for name in args.escrow]
    kept = None
    if args.key:
        key = kept_key(args.key)
        reference = args.key
        if reference.startswith("unix:"):  # it may have others besides, now or later
            reference = f"{reference.partition('#')[0]}#{key.key_id.hex()}"
        kept = (reference, key.public_key)
    with opened(args) as deployment:
        if args.cancel:
            return tell(args, deployment.cancel_key(dry_run=args.dry_run, force=args.force))
        outcome = deployment.generate_key(
            args.type, escrow=escrow, replace=args.replace, dry_run=args.dry_run,
            force=args.force, kept=kept,
        )  # fmt: skip
    return tell(args, outcome)


def _ready(args: argparse.Namespace) -> int:
    with opened(args) as deployment, _Watch(args) as watch:
        outcome = deployment.ready(args.timeout, progress=watch, dry_run=args.dry_run)
    return tell(args, outcome)


def _enable(args: argparse.Namespace) -> int:
    with opened(args) as deployment:
        return tell(args, deployment.enable(dry_run=args.dry_run, force=args.force))


def _rotate(args: argparse.Namespace) -> int:
    with opened(args) as deployment, _Watch(args) as watch:
        outcome = deployment.rotate(
            args.type, timeout=args.timeout, progress=watch, dry_run=args.dry_run, force=args.force
        )
    return tell(args, outcome)


def _retire(args: argparse.Namespace) -> int:
    if args.key_id and args.all_old:
        raise Failure(USAGE, f"{shown(args.key_id)} and --all-old exclude each other; give one")
    with opened(args) as deployment:
        outcome = deployment.retire(
            args.key_id, all_old=args.all_old, dry_run=args.dry_run, force=args.force
        )
    return tell(args, outcome)


def _disable(args: argparse.Namespace) -> int:
    with opened(args) as deployment:
        return tell(args, deployment.disable(dry_run=args.dry_run, force=args.force))


class _Watch:
    """Who is ready and who is awaited, on a line of a terminal that updates itself."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._on = not args.json and sys.stderr is not None and sys.stderr.isatty()
        self._width = 0

    def __call__(self, holders: list[Any]) -> None:
        from upseal.cli import stopping

        stopping.check()
        if not self._on:
            return
        waiting = [holder.name for holder in holders if not holder.ready]
        text = f"ready: {len(holders) - len(waiting)} of {len(holders)}"
        if waiting:
            more = f" and {len(waiting) - 3} more" if len(waiting) > 3 else ""
            text += f", waiting for {', '.join(waiting[:3])}{more}"
        self._show(text)

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._on and self._width:
            self._show("")
            sys.stderr.write("\r")
            sys.stderr.flush()

    def _show(self, text: str) -> None:
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)

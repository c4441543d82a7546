# SPDX-License-Identifier: Apache-2.0
"""What the acts of ``upseal admin`` share: options, the deployment, answers and refusals."""

from __future__ import annotations

import argparse
import datetime
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from upseal.cli.common import IO, OK, USAGE, Failure, say, say_json
from upseal.cli.keyfiles import passphrase_of

if TYPE_CHECKING:
    from upseal.fleet.admin.acting import Outcome
    from upseal.fleet.admin.deployment import Deployment
    from upseal.fleet.admin.refusals import Refused

REFUSED = 6
ORPHANS = 7
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SHOWN = 20

Do = Callable[[argparse.Namespace], int]


def add_act(
    acts: Any,
    name: str,
    about: str,
    do: Do,
    *,
    changes: bool = True,
    force: str | None = None,
    signs: bool = True,
) -> argparse.ArgumentParser:
    """One act with the options that all have.

    Args:
        acts: the group of commands it belongs to.
        name: of the command.
        about: one line of help.
        do: called with what was parsed.
        changes: it has ``--dry-run``.
        force: what ``--force`` overrides, if there is anything.
        signs: it makes a manifest, so it needs the signing key and perhaps the CA's.
    """
    parser: argparse.ArgumentParser = acts.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(do=do, signing_key=None, ca_key=None, passphrase_file=None)
    parser.add_argument(
        "-d", "--deployment", metavar="DIR", help="its folder (else UPSEAL_DEPLOYMENT, or .)"
    )
    parser.add_argument("--json", action="store_true", help="one object, for machines")
    if changes:
        parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    if force is not None:
        parser.add_argument("--force", action="store_true", help=force)
    if changes and signs:
        parser.add_argument("--signing-key", metavar="FILE", help="where it is not in the folder")
        parser.add_argument("--ca-key", metavar="FILE", help="likewise")
        parser.add_argument(
            "--passphrase-file",
            metavar="FILE",
            help="passphrase of these keys, in the first line (else UPSEAL_PASSPHRASE, or asked)",
        )
    return parser


def folder_of(args: argparse.Namespace) -> str:
    """The deployment's folder."""
    return str(args.deployment or os.environ.get("UPSEAL_DEPLOYMENT") or ".")


def deployment_class() -> type[Deployment]:
    """`Deployment`, if what it needs is installed."""
    try:
        from upseal.fleet.admin.deployment import Deployment
    except ModuleNotFoundError as error:
        if (error.name or "upseal").startswith("upseal"):
            raise
        raise Failure(
            USAGE, f"this needs the package {error.name}; pip install 'upseal[fleet]'"
        ) from error
    return Deployment


@contextmanager
def opened(args: argparse.Namespace) -> Iterator[Deployment]:
    """The deployment."""
    asked: dict[str, bytes] = {}

    def passphrase(path: Any) -> bytes:
        name = str(path)
        if name not in asked:
            asked[name] = passphrase_of(name, args.passphrase_file)
        return asked[name]

    # A file named on the command line is meant from where the command was given.
    names = {
        name: os.path.abspath(value)
        for name in ("signing_key", "ca_key")
        if (value := getattr(args, name)) is not None
    }
    with deployment_class().open(folder_of(args), passphrase=passphrase, **names) as deployment:
        yield deployment


@contextmanager
def answering(args: argparse.Namespace) -> Iterator[None]:
    """Turns what the library raises into one line and an exit code."""
    try:
        yield
    except Failure:
        raise
    except Exception as error:
        raise_for(error, for_machines=args.json)
        raise


def raise_for(error: Exception, *, for_machines: bool) -> None:
    """Raises the `Failure` for an error of the fleet's; returns if it is another."""
    if isinstance(error, ValueError):
        raise Failure(USAGE, f"{error}; see `upseal admin --help`") from error
    from sqlalchemy.exc import SQLAlchemyError

    from upseal.fleet.admin.refusals import Refused

    if isinstance(error, Refused):
        if for_machines:
            say_json(error.facts())
        raise refusal(error) from error
    if isinstance(error, SQLAlchemyError):
        # The driver's words only: SQLAlchemy's own have the parameters in them.
        words = str(getattr(error, "orig", None) or type(error).__name__)
        raise Failure(IO, f"the database failed: {words}; nothing was changed") from error


def tell(args: argparse.Namespace, outcome: Outcome) -> int:
    """Prints what came of an act; returns the exit code.

    Raises:
        Failure: it was a dry run, and the act would be refused.
    """
    forced = getattr(args, "force", False)
    _print(args, outcome, forced)
    if outcome.refusals and not forced:
        raise refusal(outcome.refusals[0])
    return OK


def refusal(refused: Refused) -> Failure:
    """As the command says it."""
    from upseal.fleet.admin.refusals import WouldOrphan

    code = ORPHANS if isinstance(refused, WouldOrphan) else REFUSED
    return Failure(code, str(refused))


def _print(args: argparse.Namespace, outcome: Outcome, forced: bool) -> None:
    if args.json:
        say_json(
            {
                "act": args.act,
                "changed": outcome.changed and not outcome.dry_run,
                "dry_run": outcome.dry_run,
                "would_change": outcome.changed,
                "state": outcome.manifest.state.value,
                "serial": outcome.manifest.serial,
                "orphans": [orphan.facts() for orphan in outcome.orphans],
                "refusals": [refusal.facts() for refusal in outcome.refusals],
                "messages": list(outcome.messages),
                **outcome.result,
            }
        )
        return
    lines = list(outcome.messages)
    if outcome.dry_run:
        verb = "would change" if outcome.changed else "would change nothing"
        lines = [f"dry run: {verb}" + (":" if lines else ""), *lines]
    if outcome.orphans:
        lines.append(f"{'would be ' if outcome.dry_run else ''}orphaned:")
        lines += [f"  {o.name} ({o.agent.hex()}): {o.why}" for o in outcome.orphans[:_SHOWN]]
        if len(outcome.orphans) > _SHOWN:
            lines.append(f"  and {len(outcome.orphans) - _SHOWN} more: see --json")
    if forced:
        lines += [f"overridden: {refused.why}" for refused in outcome.refusals]
    say("".join(f"{line}\n" for line in lines))


def duration(text: str) -> float:
    """An argument type: ``90``, ``30m``, ``24h``, ``7d``; in seconds."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw]?)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; 30m, 24h and 7d are")
    return float(match[1]) * _UNITS[match[2] or "s"]


def moment(milliseconds: int | None) -> str:
    """A time for people, in UTC."""
    if milliseconds is None:
        return "never"
    try:
        when = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)
    return when.strftime("%Y-%m-%d %H:%MZ")


def ago(milliseconds: int | None, now_ms: int) -> str:
    """How long since, for people."""
    if milliseconds is None:
        return "never"
    seconds = max(0, (now_ms - milliseconds) // 1000)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def columns(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table; its head alone where there is nothing."""
    from upseal.cli.common import table

    return table([head, *rows])

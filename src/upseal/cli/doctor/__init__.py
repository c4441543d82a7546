# SPDX-License-Identifier: Apache-2.0
"""``upseal doctor``: what is wrong on this machine, and what to do next (docs/doctor.md).

It reads, and asks the configured parent two public questions. It changes nothing, prints no secret,
and works where the installation does not: each check stands alone.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

from upseal.cli.common import BAD, OK, say, say_json, table
from upseal.cli.doctor.lines import Check, Line, State
from upseal.cli.doctor.lines import run as run_checks

WARNED = 8
_SECONDS = 5.0
_NOTE = """\
exit codes of its own:
  0  all is well
  1  something has failed
  8  nothing has failed, and something is to be looked at or could not be found out

examples:
  upseal doctor
  upseal doctor --agent /var/lib/upseal
  upseal doctor --server /srv/upseal --json
  UPSEAL_FIPS=1 upseal doctor --fips
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.epilog = _NOTE
    whose = parser.add_mutually_exclusive_group()
    for role in ("agent", "relay"):
        whose.add_argument(
            f"--{role}", metavar="DIR", help=f"also look at this {role}'s folder, or settings file"
        )
    whose.add_argument("--server", metavar="DIR", help="also look at this deployment's folder")
    parser.add_argument(
        "--fips", action="store_true", help="FIPS mode is what is wanted: it fails where it is not"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=_SECONDS,
        help="for the parent, or a database elsewhere, to answer in (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="one object, for machines")


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not (math.isfinite(number) and 0 < number <= 600):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0, to 600")
    return number


def run(args: argparse.Namespace) -> int:
    """Looks, and says it."""
    lines = list(run_checks(_checks(args)))
    states = {line.state for line in lines}
    if args.json:
        say_json(_for_machines(lines))
    else:
        say(_for_people(lines))
    if State.FAIL in states:
        return BAD
    return WARNED if states - {State.OK} else OK


def _checks(args: argparse.Namespace) -> Iterator[tuple[str, Check]]:
    from upseal.cli.doctor import machine

    yield from machine.checks(fips=args.fips)
    yield "role", lambda: _role(args)


def _role(args: argparse.Namespace) -> Iterator[Line]:
    """The rest: in a check of its own, since without the fleet's packages it cannot be imported."""
    if args.server is not None:
        from upseal.cli.doctor import server

        yield from run_checks(server.checks(server.Server(Path(args.server), args.timeout)))
        return
    for role in ("agent", "relay"):
        path = getattr(args, role)
        if path is not None:
            from upseal.cli.doctor import member

            found = member.Member(role, Path(path), args.timeout)
            yield from run_checks(member.checks(found))


def _for_machines(lines: list[Line]) -> dict[str, object]:
    from upseal import __version__

    counts = {state.value: sum(line.state is state for line in lines) for state in State}
    return {
        "version": __version__,
        "counts": counts,
        "lines": [
            {"check": one.check, "state": one.state.value, "what": one.what, "do": one.do or None}
            for one in lines
        ],
    }


def _for_people(lines: list[Line]) -> str:
    rows = [[one.state.value, one.check, _one_line(one.what)] for one in lines]
    text = table(rows).splitlines()
    said = []
    for shown, line in zip(text, lines, strict=True):
        said.append(shown)
        if line.do:
            said.append(f"         -> {_one_line(line.do)}")
    return "\n".join(said) + "\n"


def _one_line(text: str) -> str:
    """Names of files and words of others may hold anything."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())

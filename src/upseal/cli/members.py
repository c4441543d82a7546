# SPDX-License-Identifier: Apache-2.0
"""What ``upseal agent`` and ``upseal relay`` have in common: both join, and live in a folder."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upseal.cli.common import BAD, OK, USAGE, Failure, complain, doing, read_all, reading, shown

TOKEN_VARIABLE = "UPSEAL_TOKEN"  # noqa: S105 - the variable's name
LOG_LEVELS = ("debug", "info", "warning", "error")
_TOKEN_MAX = 4096


def acts_of(
    parser: argparse.ArgumentParser, note: str
) -> Callable[[str, str], argparse.ArgumentParser]:
    """Makes ``parser`` one of several acts; what is given back adds one: its name, and about it."""
    parser.epilog = note
    acts = parser.add_subparsers(dest="act", metavar="ACT", title="acts", required=True)

    def act(name: str, about: str) -> argparse.ArgumentParser:
        text = about[0].upper() + about[1:] + "."
        made: argparse.ArgumentParser = acts.add_parser(
            name, help=about, description=text, allow_abbrev=False
        )
        return made

    return act


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="for machines")


@dataclass(frozen=True)
class Member:
    """One of the two kinds.

    Args:
        command: ``agent`` or ``relay``.
        client: what its own name names.
        directory: where it lives unless told otherwise.
        file: its settings, there.
    """

    command: str
    client: str
    directory: str
    file: str

    # -- options

    def add_directory(self, parser: Any) -> None:
        """``-d``."""
        text = f"the {self.command}'s folder (default: {self.directory})"
        parser.add_argument("-d", "--directory", metavar="DIR", help=text)

    def add_settings(self, parser: argparse.ArgumentParser) -> None:
        """``-c`` or ``-d``."""
        group = parser.add_mutually_exclusive_group()
        text = f"settings (default: DIR/{self.file})"
        group.add_argument("-c", "--config", metavar="FILE", help=text)
        self.add_directory(group)

    def add_joining(self, parser: argparse.ArgumentParser, parent: str) -> None:
        """What both say when they enrol; ``parent`` is what may stand above."""
        parser.add_argument("--parent", metavar="URL", required=True, help=parent)
        parser.add_argument(
            "--token",
            metavar="TOKEN",
            help="from `upseal admin token`; others see it here: better "
            f"{TOKEN_VARIABLE}, or a file",
        )
        parser.add_argument("--token-file", metavar="FILE", help="the token; - for standard input")
        text = f"what the {self.client} is called (default: this host's name)"
        parser.add_argument("--name", help=text)
        parser.add_argument("--fips", action="store_true", help="keys of P-256 only")
        text = "authorities for the parent's TLS certificate"
        parser.add_argument("--ca", metavar="FILE", help=text)
        text = "our own TLS certificate, where the parent asks for one"
        parser.add_argument("--certificate", metavar="FILE", help=text)
        text = "its private key, if that is in another file"
        parser.add_argument("--certificate-key", metavar="FILE", help=text)
        self.add_directory(parser)
        add_json(parser)

    # -- what they say

    def folder(self, args: argparse.Namespace) -> Path:
        """Of ``-d``, else of the environment."""
        there = os.environ.get(f"UPSEAL_{self.command.upper()}_DIRECTORY")
        return Path(args.directory or there or self.directory)

    def settings_file(self, args: argparse.Namespace) -> Path:
        """Of ``-c``, or in the folder of ``-d``."""
        if args.config is not None:
            return Path(args.config)
        path = self.folder(args) / self.file
        if not path.exists() and not self.without_file():
            make = f"`upseal {self.command} enrol -d DIR` makes one"
            raise Failure(USAGE, f"{shown(path)} is missing; {make}")
        return path

    def without_file(self) -> bool:
        """Whether the environment says all that has no default."""
        return bool(os.environ.get(f"UPSEAL_{self.command.upper()}_PARENT"))


FORGET = ("forget-parent", "let the next relay count that answers at the parent's address")


def forget_parent(directory: Path) -> int:
    """Whose capabilities count is found out anew; works beside a process that runs."""
    from upseal.fleet.agent.membership import Membership
    from upseal.fleet.capabilities import forget

    Membership.load(directory)
    with doing(f"change {shown(directory)}"):
        if not forget(directory):
            complain("nothing to forget: no relay has answered yet")
    return OK


def tls_of(args: argparse.Namespace) -> dict[str, Any]:
    """The files of ``--ca`` and ``--certificate``, wherever they will be read from."""
    given = {"ca": args.ca, "certificate": args.certificate, "key": args.certificate_key}
    return {name: None if file is None else os.path.abspath(file) for name, file in given.items()}


def token_of(args: argparse.Namespace) -> str:
    """The token of ``--token``, ``--token-file`` or the environment."""
    given = [args.token, args.token_file]
    if all(given):
        raise Failure(USAGE, "--token and --token-file are both given; leave one away")
    if args.token_file is not None:
        name = None if args.token_file == "-" else args.token_file  # noqa: S105
        with reading(name) as file, doing(f"read {shown(name)}"):
            text = read_all(file, _TOKEN_MAX).decode("ascii", "replace")
    else:
        text = args.token or os.environ.get(TOKEN_VARIABLE, "")
    if not text.strip():
        raise Failure(USAGE, f"no token; give --token-file FILE, or set {TOKEN_VARIABLE}")
    return str(text.strip())


@contextmanager
def enrolling(directory: Path) -> Iterator[None]:
    """Says why not, if it comes to nothing."""
    from upseal.fleet.agent.enrolment import EnrolmentRefused

    try:
        with doing(f"enrol {shown(directory)}"):
            yield
    except EnrolmentRefused as error:
        raise Failure(BAD, f"not enrolled: {error}; ask for a new token if it was used") from error
    except ValueError as error:
        raise Failure(USAGE, f"the token cannot be used: {error}") from error

# SPDX-License-Identifier: Apache-2.0
"""The tree of commands. A command's module is imported only when its options are needed."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from importlib import import_module
from typing import NoReturn

from upseal.cli.common import EXIT_CODES, USAGE, Failure, complain

COMMANDS = {
    "keygen": ("upseal.cli.keygen", "make a key pair, or show the public key of a private one"),
    "keys": ("upseal.cli.keys", "keep private keys in a process of their own; split one"),
    "cert": ("upseal.cli.cert", "put a public key into an X.509 certificate for encryption"),
    "seal": ("upseal.cli.seal", "encrypt a file, a pipe or reports to recipients"),
    "open": ("upseal.cli.opening", "decrypt and verify"),
    "lines": ("upseal.cli.lines", "seal lines of logs in batches that log shippers can carry"),
    "explain": ("upseal.cli.explain", "say what sealed data is, without a key"),
    "bench": ("upseal.cli.bench", "measure this machine"),
    "capacity": ("upseal.cli.fleet_capacity", "count what a fleet takes, and what is full first"),
    "demo": ("upseal.cli.demo", "show all of it on this host's own data, checked byte by byte"),
    "admin": ("upseal.cli.admin", "make a deployment, and manage its keys, clients and relays"),
    "agent": ("upseal.cli.agent", "join a deployment, take reports, send them"),
    "relay": ("upseal.cli.relay", "take reports from below, keep them, pass them on"),
    "server": ("upseal.cli.server", "run a deployment's server, and look at what it has stored"),
    "doctor": ("upseal.cli.doctor", "say what is wrong on this machine, and what to do next"),
    "completion": ("upseal.cli.completion", "print completions for bash, zsh or fish"),
}
"""Name: module (with ``arguments(parser)`` and ``run(args)``) and help. Add a command here."""

_ABOUT = "Seals reports and files to public keys: only the holders of the private keys open them."
_ENVIRONMENT = """
environment:
  UPSEAL_ENGINE      native or portable; otherwise the best here
  UPSEAL_BACKEND     ippcp or openssl, of the native engine
  UPSEAL_FIPS        1: approved algorithms alone, in a FIPS provider, or none; 0: not so
  UPSEAL_PASSPHRASE  passphrase of private keys, in place of a prompt
  UPSEAL_DEBUG       1: full tracebacks

example:
  upseal keygen -o server.pem
  tar c /var/log | upseal seal -r server.pub.pem > logs.sealed
  upseal open -i server.pem logs.sealed | tar t
"""


class Parser(argparse.ArgumentParser):
    """Says usage errors in one line."""

    def error(self, message: str) -> NoReturn:
        """As every other error."""
        complain(f"{message}; see `{self.prog} --help`")
        raise SystemExit(USAGE)


def build(names: Collection[str]) -> Parser:
    """The parser, with the options of the commands ``names``."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="upseal",
        description=_ABOUT,
        epilog=EXIT_CODES + _ENVIRONMENT,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="version, engine and backend")
    parser.add_argument(
        "--json", action="store_true", dest="version_json", help="with --version: for machines"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, (module, about) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            formatter_class=formatter,
            allow_abbrev=False,
        )
        if name in names:
            import_module(module).arguments(command)
    return parser


def run(arguments: list[str]) -> int:
    """Parses, and runs the command."""
    name = next((a for a in arguments if not a.startswith("-")), None)
    parser = build([name] if name in COMMANDS else [])
    args = parser.parse_args(arguments)
    if args.version:
        from upseal.cli.version import show

        return show(for_machines=args.version_json or getattr(args, "json", False))
    if args.command is None:
        raise Failure(USAGE, "no command given; see `upseal --help`")
    if args.version_json:
        raise Failure(USAGE, f"--json stands behind the command: upseal {args.command} --json")
    return int(import_module(COMMANDS[args.command][0]).run(args))

# SPDX-License-Identifier: Apache-2.0
"""``upseal lines``: lines of logs, as sealed batches that today's shippers carry."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from upseal.cli.common import (
    BAD,
    IO,
    NO_KEY,
    OK,
    USAGE,
    Failure,
    add_context,
    check_engine,
    complain,
    context_of,
    doing,
    positive,
    say_json,
    shown,
    standard_output,
    warn,
)
from upseal.cli.keyfiles import add_passphrase_file, check_one_stdin, identity
from upseal.cli.seal import CIPHERS, sealer_of

if TYPE_CHECKING:
    from upseal.integrations.lines.outputs import Output

_NOTE = """\
examples:
  journalctl -f -o json | upseal lines -r server.pub.pem -o /var/spool/sealed.log
  upseal lines -r server.pub.pem --follow --state app.state -o sealed.log /var/log/app.log
  upseal lines --open -i server.pem sealed.log
"""
_SEALING = ("recipient", "follow", "state", "output", "folder", "folder_max", "padding", "cipher")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.epilog = _NOTE
    parser.add_argument(
        "-r",
        "--recipient",
        metavar="FILE",
        action="append",
        help="may open it: a public key (PEM) or certificate; up to 16 of them",
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "-o", "--output", metavar="FILE", help="append a line of base64 a batch; default: stdout"
    )
    target.add_argument(
        "--folder", metavar="DIR", help="put a sealed file a batch into this folder"
    )
    parser.add_argument(
        "--folder-max", metavar="BYTES", type=positive, help="wait while the folder holds so much"
    )
    parser.add_argument("--follow", action="store_true", help="wait for more, through rotation")
    parser.add_argument(
        "--state", metavar="FILE", help="how far files were read; a restart goes on from there"
    )
    parser.add_argument("--count", type=positive, default=1000, help="lines of a batch (1000)")
    parser.add_argument("--bytes", type=positive, default=32768, help="bytes of a batch (32768)")
    parser.add_argument(
        "--seconds", type=_seconds, default=5.0, help="a line waits for others at most (5)"
    )
    parser.add_argument(
        "--rotate-wait", type=_seconds, default=5.0, help="seconds until a renamed file ends (5)"
    )
    add_context(parser)
    parser.add_argument("--cipher", choices=CIPHERS, help="default: what is fast on this CPU")
    parser.add_argument(
        "--allow-mixed",
        action="store_true",
        help="let a post-quantum recipient stand beside a classical one",
    )
    parser.add_argument("--padding", action="store_true", help="hide exact lengths of lines")
    parser.add_argument("--open", action="store_true", help="turn sealed batches back into lines")
    parser.add_argument(
        "-i",
        "--identity",
        metavar="FILE",
        action="append",
        help="with --open: a private key (PEM); may be given several times",
    )
    add_passphrase_file(parser)
    parser.add_argument("--source", metavar="NAME", help="with --open: lines of this file alone")
    parser.add_argument("--json", action="store_true", help="a summary at the end, on stderr")
    parser.add_argument("file", metavar="FILE", nargs="*", help="default: standard input")


def run(args: argparse.Namespace) -> int:
    """Seals or opens."""
    if args.open:
        return _open(args)
    return _seal(args)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number


# -- sealing ------------------------------------------------------------------------


def _seal(args: argparse.Namespace) -> int:
    _check_sealing(args)
    context = context_of(args)
    files = [os.path.abspath(name) for name in args.file if name != "-"]
    check_one_stdin([*(["-"] if not files else []), *args.recipient])
    check_engine()
    from upseal.integrations.lines import Limits
    from upseal.integrations.lines.outputs import BadState, StateFile
    from upseal.integrations.lines.sealing import Sealing, Stop

    try:
        limits = Limits(args.count, args.bytes, args.seconds)
    except ValueError as error:
        raise Failure(USAGE, f"{error}; check --count, --bytes and --seconds") from error
    sealer = sealer_of(args)
    where = shown(args.output or args.folder)
    output = _output(args)
    state = None
    try:
        if args.state is not None:
            with doing(f"use the state file {shown(args.state)}"):
                state = StateFile(args.state)
        with Stop() as stop:
            try:
                with doing(f"seal lines into {where if where != 'standard input' else 'stdout'}"):
                    sealing = Sealing(sealer, context, limits, output, state, stop)
                    if files:
                        sealing.files(files, follow=args.follow, wait=args.rotate_wait, warn=warn)
                    else:
                        sealing.pipe(0)
            except BadState as error:
                hint = "move it away to begin anew; what was sealed before is sealed again"
                raise Failure(BAD, f"{error}; {hint}") from error
            if args.json:
                say_json(sealing.counts, on_stderr=True)
            return 128 + stop.number if stop.number and not args.follow else OK
    finally:
        output.close()
        if state is not None:
            state.close()


def _check_sealing(args: argparse.Namespace) -> None:
    for name in ("identity", "source", "passphrase_file"):
        if getattr(args, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise Failure(USAGE, f"{flag} goes with --open; add it or leave {flag} away")
    if not args.recipient:
        raise Failure(USAGE, "nobody could open it; give a recipient with -r, or --open")
    if "-" in args.file and len(args.file) > 1:
        raise Failure(USAGE, "standard input and files together; seal them one by one")
    from_stdin = args.file in ([], ["-"])
    if from_stdin and (args.follow or args.state):
        raise Failure(USAGE, "--follow and --state are for files; name a FILE, or leave them away")
    if args.follow and args.state is None:
        raise Failure(USAGE, "--follow needs --state FILE, so that a restart goes on where it was")
    if args.folder_max is not None and args.folder is None:
        raise Failure(USAGE, "--folder-max goes with --folder; add it or leave --folder-max away")


def _output(args: argparse.Namespace) -> Output:
    from upseal.integrations.lines.outputs import Files, Pipe, TextFile
    from upseal.integrations.sealed_folder import SealedFolder

    if args.folder is not None:
        with doing(f"use the folder {shown(args.folder)}"):
            return Files(SealedFolder(args.folder, args.folder_max))
    if args.output not in (None, "-"):
        with doing(f"append to {shown(args.output)}"):
            return TextFile(args.output)
    standard_output(sealed=False, explicit=True)
    return Pipe(1)


# -- opening ------------------------------------------------------------------------


def _open(args: argparse.Namespace) -> int:
    for name in _SEALING:
        if getattr(args, name):
            flag = "--" + name.replace("_", "-")
            raise Failure(USAGE, f"{flag} is for sealing; leave it away with --open")
    if not args.identity:
        raise Failure(USAGE, "nothing to open it with; give a private key with -i")
    context = context_of(args)
    check_one_stdin([*(args.file or ["-"]), *args.identity])
    check_engine()
    from upseal.core.opener import Opener
    from upseal.errors import OpenError, UnknownRecipient
    from upseal.integrations.lines import LineOpener
    from upseal.integrations.lines.reading import sealed_in

    opener = LineOpener(Opener([identity(i, args.passphrase_file) for i in args.identity]), context)
    writer = _Writer(args.source)
    damaged = skipped = foreign = 0
    for name in args.file or ["-"]:
        with doing(f"read {shown(name)}"):
            for place, sealed in sealed_in(name):
                if sealed is None:
                    skipped += 1
                    continue
                try:
                    for lines in opener.add(sealed):
                        writer.write(lines)
                except UnknownRecipient:
                    foreign += 1
                    complain(f"{place} of {shown(name)} is sealed to none of the keys given")
                except OpenError as error:
                    damaged += 1
                    complain(f"{place} of {shown(name)} {error}; its lines are missing")
                _tell(opener)
    for lines in opener.finish():
        writer.write(lines)
    _tell(opener)
    if skipped:
        warn(f"{skipped} lines hold nothing sealed, and were passed over")
    counts = {**writer.counts, "doubles": opener.doubles, "missing": opener.problem_count}
    counts |= {"damaged": damaged, "foreign": foreign, "skipped": skipped}
    if args.json:
        say_json(counts, on_stderr=True)
    if foreign and not writer.counts["batches"] and not damaged:
        return NO_KEY
    return BAD if damaged or foreign or opener.problem_count else OK


def _tell(opener: Any) -> None:
    for problem in opener.problems:
        complain(problem)
    opener.problems.clear()


class _Writer:
    """Lines to standard output."""

    def __init__(self, source: str | None) -> None:
        self._source = source
        self._target = standard_output(sealed=False, explicit=False)
        self.counts = {"batches": 0, "lines": 0, "bytes": 0}

    def write(self, lines: Any) -> None:
        """Those of the source asked for."""
        from upseal.core.writer import write_all

        self.counts["batches"] += 1
        if self._source is not None and lines.source != self._source:
            return
        data = b"".join(lines.records)
        try:
            write_all(self._target, data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Failure(IO, f"cannot write to standard output: {error.strerror}") from error
        self.counts["lines"] += data.count(b"\n") + (not data.endswith(b"\n"))
        self.counts["bytes"] += len(data)

# SPDX-License-Identifier: Apache-2.0
"""``upseal seal``: an upload from a file or pipe, or one report, or a batch of lines."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from upseal.cli.common import (
    BAD,
    OK,
    USAGE,
    Failure,
    add_context,
    check_engine,
    context_of,
    doing,
    input_name,
    positive,
    read_all,
    reading,
    say_json,
    shown,
    target_of,
    writing,
)
from upseal.cli.keyfiles import check_one_stdin, recipients
from upseal.cli.progress import Progress

if TYPE_CHECKING:
    from upseal.core.sealer import Sealer

CIPHERS = ("aes-256-gcm", "chacha20-poly1305")

_NOTE = """\
examples:
  tar c /var/log | upseal seal -r server.pub.pem > logs.sealed
  upseal seal -r server.crt -r escrow.pub.pem -o disk.sealed disk.img
  upseal seal -r server.pub.pem --batch -o events.sealed events.ndjson
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.epilog = _NOTE
    parser.add_argument(
        "-r",
        "--recipient",
        metavar="FILE",
        action="append",
        required=True,
        help="may open it: a public key (PEM) or certificate; up to 16 of them",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="written whole or not at all; default: stdout"
    )
    add_context(parser)
    parser.add_argument("--cipher", choices=CIPHERS, help="default: what is fast on this CPU")
    parser.add_argument(
        "--allow-mixed",
        action="store_true",
        help="let a post-quantum recipient stand beside a classical one",
    )
    parser.add_argument("--threads", type=positive, help="for file to file; default: up to 4")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--report", action="store_true", help="seal the input as one envelope")
    shape.add_argument("--batch", action="store_true", help="seal its lines as one batch")
    parser.add_argument(
        "-0", "--null", action="store_true", help="with --batch: records end with NUL, not newline"
    )
    parser.add_argument(
        "--padding", action="store_true", help="with --report, --batch: hide exact lengths"
    )
    parser.add_argument(
        "--json", action="store_true", help="a summary, on stdout with -o, else on stderr"
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="default: standard input")


def run(args: argparse.Namespace) -> int:
    """Seals."""
    if args.null and not args.batch:
        raise Failure(USAGE, "--null goes with --batch; add it or leave --null away")
    if args.padding and not (args.batch or args.report):
        raise Failure(USAGE, "--padding goes with --report or --batch; an upload is not padded")
    context = context_of(args)
    source_name = input_name(args)
    check_one_stdin([source_name, *args.recipient])
    check_engine()
    sealer = sealer_of(args)
    target = target_of(args.output, source_name, sealed=True)
    to_file = isinstance(target, str)
    with (
        doing(f"seal {shown(source_name)}" + (f" into {shown(target)}" if to_file else "")),
        reading(source_name) as source,
    ):
        if args.report or args.batch:
            count, size, sealed = _seal_records(args, sealer, source, target, context)
        else:
            count, size, sealed = None, _seal_upload(args, sealer, source, target, context), None
    if args.json:
        if sealed is None and isinstance(target, str) and os.path.isfile(target):
            sealed = os.path.getsize(target)
        say_json(
            {
                "kind": "envelope" if args.report else "batch" if args.batch else "upload",
                "cipher": str(sealer.cipher),
                "recipients": [
                    {"suite": r.name, "key_id": r.key_id.hex()} for r in sealer.recipients
                ],
                "count": count,
                "plaintext_size": size,
                "size": sealed,
                "output": target if isinstance(target, str) else None,
            },
            on_stderr=not isinstance(target, str),
        )
    return OK


def sealer_of(args: argparse.Namespace) -> Sealer:
    """Of ``-r``, ``--padding``, ``--cipher`` and ``--allow-mixed``."""
    keys = recipients(args.recipient)
    from upseal.core.options import Padding
    from upseal.core.sealer import Sealer

    try:
        return Sealer(
            keys,
            padding=Padding.PADME if args.padding else None,
            cipher=args.cipher,
            allow_mixed=args.allow_mixed,
        )
    except ValueError as error:
        text = str(error).replace("pass allow_mixed=True if that is meant", "")
        hint = "add --allow-mixed if that is meant" if text != str(error) else "check -r"
        raise Failure(
            USAGE, f"cannot seal to these recipients: {text.rstrip('; ')}; {hint}"
        ) from error


def _seal_upload(
    args: argparse.Namespace, sealer: Sealer, source: Any, target: Any, context: bytes
) -> int:
    from upseal.core.files import seal_file

    with Progress("sealed") as progress:
        return seal_file(source, target, sealer, context, args.threads, progress)


def _seal_records(
    args: argparse.Namespace, sealer: Sealer, source: Any, target: Any, context: bytes
) -> tuple[int, int, int]:
    """(records, bytes of them, bytes sealed)."""
    from upseal.core.bodies import BATCH_BYTES_MAX, BATCH_MAX
    from upseal.core.writer import write_all
    from upseal.engine.sizes import RECORD_MAX

    if args.report:
        data = read_all(source, RECORD_MAX)
        if len(data) > RECORD_MAX:
            raise Failure(BAD, "a report is at most 16 MiB; leave --report away for an upload")
        count, size, sealed = 1, len(data), sealer.seal(data, context)
    else:
        end = b"\0" if args.null else b"\n"
        data = read_all(source, BATCH_BYTES_MAX + BATCH_MAX)
        records = data.removesuffix(end).split(end)
        if not data:
            raise Failure(BAD, "there is nothing to put into a batch; give at least one record")
        try:
            sealed = sealer.seal_batch(records, context)
        except ValueError as error:
            raise Failure(BAD, f"{error}; split the input, or seal it as an upload") from error
        count, size = len(records), len(data) - len(records) + (not data.endswith(end))
    with writing(target) as file:
        write_all(file, sealed)
    return count, size, len(sealed)

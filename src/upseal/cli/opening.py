# SPDX-License-Identifier: Apache-2.0
"""``upseal open``: whatever was sealed; which kind it is, the data says."""

from __future__ import annotations

import argparse
import base64
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from upseal.cli.common import (
    BAD,
    NO_KEY,
    OK,
    USAGE,
    Failure,
    Prefixed,
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
    warn,
    writing,
)
from upseal.cli.keyfiles import add_passphrase_file, check_one_stdin, openers
from upseal.cli.progress import Progress

if TYPE_CHECKING:
    from upseal.core.opener import Opener
    from upseal.errors import UnknownRecipient

_NOTE = """\
examples:
  upseal open -i server.pem logs.sealed | tar t
  upseal open -i server.pem -o disk.img disk.sealed
  upseal open -i server.pem --json events.sealed
"""
_AT_ONCE = 4096


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.epilog = _NOTE
    parser.add_argument(
        "-i",
        "--identity",
        metavar="KEY",
        action="append",
        required=True,
        help="a private key (PEM), or where one is kept: unix:PATH[#ID] or pkcs11:...; "
        "may be repeated",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="written when all has verified; default: stdout"
    )
    add_context(parser)
    add_passphrase_file(parser)
    parser.add_argument("--threads", type=positive, help="for file to file; default: up to 4")
    parser.add_argument(
        "-0", "--null", action="store_true", help="end a batch's records with NUL, not newline"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="a report or batch: an object a line, data in base64; an upload: a summary",
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="default: standard input")


def run(args: argparse.Namespace) -> int:
    """Opens."""
    if args.null and args.json:
        raise Failure(USAGE, "--null and --json exclude each other; choose one")
    context = context_of(args)
    source_name = input_name(args)
    check_one_stdin([source_name, *args.identity])
    check_engine()
    from upseal.core.opener import Opener
    from upseal.errors import OpenError, UnknownRecipient

    target = target_of(args.output, source_name, sealed=False)
    with doing(f"read {shown(source_name)}"), reading(source_name, sealed=True) as source:
        opener = Opener(openers(args.identity, args.passphrase_file))
        try:
            into = f" into {shown(target)}" if isinstance(target, str) else ""
            with doing(f"open {shown(source_name)}{into}"):
                _open(args, opener, source, target, context)
        except UnknownRecipient as error:
            raise Failure(NO_KEY, _not_ours(source_name, opener, error)) from error
        except OpenError as error:
            raise Failure(BAD, _not_opened(source_name, target, error)) from error
    return OK


def _open(
    args: argparse.Namespace, opener: Opener, source: Any, target: Any, context: bytes
) -> None:
    from upseal.core import header as headers
    from upseal.core.bodies import BATCH_BYTES_MAX, BATCH_MAX, read_kind
    from upseal.core.files import open_file
    from upseal.core.uploads import FRONT_MAX
    from upseal.engine.sizes import TAG

    start = source.tell() if source.seekable() else None
    front = read_all(source, FRONT_MAX)
    kind = read_kind(front, len(headers.parse(front).raw))
    if kind.label == "upload":
        if start is not None:
            source.seek(start)
        else:
            source = Prefixed(front, source)
        looking = isinstance(target, str) or not os.isatty(1)
        with Progress("opened", wanted=looking) as progress:
            size = open_file(source, target, opener, context, args.threads, progress)
        if args.json:
            to_file = isinstance(target, str)
            facts = {"kind": "upload", "plaintext_size": size}
            say_json({**facts, "output": target if to_file else None}, on_stderr=not to_file)
        return
    data = front + read_all(source, BATCH_BYTES_MAX + (TAG + 4) * BATCH_MAX)
    if kind.label == "envelope":
        report = opener.open(data, context)
        _write(target, _as_json([report]) if args.json else iter([report]))
        return
    batch = opener.open_batch(data, context)
    if args.json:
        _write(target, _as_json(batch))
        return
    end = b"\0" if args.null else b"\n"
    if end in bytes(batch.values):
        name = "NUL" if args.null else "newline"
        warn(f"a record has a {name} in it, so their ends cannot be told apart; use --json")
    _write(target, (record + end for record in batch))


def _write(target: Any, pieces: Iterator[bytes]) -> None:
    from upseal.core.writer import write_all

    with writing(target) as file:
        held: list[bytes] = []
        for piece in pieces:
            held.append(piece)
            if len(held) == _AT_ONCE:
                write_all(file, b"".join(held))
                held.clear()
        write_all(file, b"".join(held))


def _as_json(records: Sequence[bytes]) -> Iterator[bytes]:
    for index, record in enumerate(records):
        value = {"index": index, "size": len(record), "data": base64.b64encode(record).decode()}
        yield json.dumps(value).encode() + b"\n"


def _not_ours(name: str | None, opener: Opener, error: UnknownRecipient) -> str:
    from upseal.core.suites import Suite

    sealed_to = ", ".join(f"{Suite(suite).label} {key.hex()}" for suite, key in error.recipients)
    ours = ", ".join(key.hex() for key in opener.key_ids)
    return (
        f"cannot open {shown(name)}: it is sealed to {sealed_to}, and the keys given are {ours}; "
        "give one of its own with -i"
    )


def _not_opened(name: str | None, target: Any, error: Any) -> str:
    text = str(error).replace("cannot be opened", f"cannot open {shown(name)}", 1)
    if error.problem is not None:
        text += f" ({error.problem}" + (f", at byte {error.offset})" if error.offset else ")")
    hint = "get it again, or check --context"
    if not isinstance(target, str):
        hint += ", and throw away what was written"
    return f"{text}; {hint}"

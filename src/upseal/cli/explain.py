# SPDX-License-Identifier: Apache-2.0
"""``upseal explain``: the public part of sealed data, in words."""

from __future__ import annotations

import argparse
import io
from typing import TYPE_CHECKING

from upseal.cli.common import BAD, OK, doing, input_name, reading, say, say_json, shown, table

if TYPE_CHECKING:
    from upseal.core.explain import Explanation


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("file", metavar="FILE", nargs="?", help="default: standard input")


def run(args: argparse.Namespace) -> int:
    """Explains; exit code 1 if something is wrong with it."""
    from upseal.core.explain import explain

    name = input_name(args)
    with doing(f"read {shown(name)}"), reading(name, sealed=True) as source:
        found = explain(io.BufferedReader(source))
    if args.json:
        say_json(found.as_dict())
    else:
        say(_in_words(found))
    return BAD if found.problem is not None else OK


def _in_words(found: Explanation) -> str:
    rows: list[tuple[str, object]] = [
        ("kind", found.kind),
        ("cipher", found.cipher),
        *(("recipient", f"{r['suite']} {r['key_id']}") for r in found.recipients),
        ("reports", found.count),
        ("padded", None if found.padded is None else "yes" if found.padded else "no"),
        ("size", f"{found.size} bytes"),
        ("header", _bytes(found.header_size)),
        ("plaintext", _bytes(found.plaintext_size)),
        ("overhead", _bytes(found.overhead)),
        ("problem", found.problem),
        ("at byte", found.offset if found.problem is not None else None),
        ("verified", "nothing: that needs a key"),
    ]
    return table([[name, str(value)] for name, value in rows if value is not None])


def _bytes(count: int | None) -> str | None:
    return None if count is None else f"{count} bytes"

# SPDX-License-Identifier: Apache-2.0
"""Finds sealed batches in what a shipper has left: lines with base64 in them, files, folders."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterator
from typing import Any

from upseal.integrations.sealed_folder import SUFFIX

_MAGIC = b"USL\x01"
_TEXT = re.compile(rb"VVNMAQ[A-Za-z0-9+/]*={0,2}")
"""Base64 of what every sealed batch begins with. Shippers put a time or JSON around it, and some
writers of JSON a backslash before each slash."""
_LINE_MAX = 64 << 20
_FILE_MAX = 64 << 20


def sealed_in(name: str) -> Iterator[tuple[str, bytes | None]]:
    """Where each sealed batch stands, and the batch; None for a line without one.

    Nothing is verified here. A line or file over 64 MiB is none of ours, and comes cut off there.

    Args:
        name: a file, a folder, or ``-`` for standard input.

    Raises:
        OSError: it cannot be read.
    """
    if name == "-":
        with open(0, "rb", closefd=False) as file:
            yield from _in_file(file)
        return
    if os.path.isdir(name):
        for entry in sorted(os.listdir(name)):
            if entry.endswith(SUFFIX) and not entry.startswith("."):
                with open(os.path.join(name, entry), "rb") as file:
                    yield f"file {entry!r}", file.read(_FILE_MAX)
        return
    with open(name, "rb") as file:
        yield from _in_file(file)


def _in_file(file: io.BufferedReader | Any) -> Iterator[tuple[str, bytes | None]]:
    if file.peek(len(_MAGIC))[: len(_MAGIC)] == _MAGIC:
        yield "the whole", file.read(_FILE_MAX)
        return
    number = 0
    while line := file.readline(_LINE_MAX):
        number += 1
        found = [match.group() for match in _TEXT.finditer(line.replace(b"\\/", b"/"))]
        for text in found:
            yield f"line {number}", _decoded(text)
        if not found and line.strip():
            yield f"line {number}", None


def _decoded(text: bytes) -> bytes:
    """The bytes, also of a text that was cut off anywhere."""
    digits = text.rstrip(b"=")
    digits = digits[: len(digits) - (len(digits) % 4 == 1)]
    return base64.b64decode(digits + b"=" * (-len(digits) % 4))

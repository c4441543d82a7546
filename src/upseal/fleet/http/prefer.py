# SPDX-License-Identifier: Apache-2.0
"""``Prefer: wait=N`` (RFC 7240): how long a client is willing to wait for a result."""

from __future__ import annotations

import re

MOST_WAIT = 30
"""Seconds that a request is held at most."""

_PREFERENCE = re.compile(r'[^\s=;,"]+(?:\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s;,"]*))?')


def wait(header: str | None, most: int = MOST_WAIT) -> int:
    """Seconds to wait, 0 to ``most``. A preference that cannot be read is none: never an error."""
    if not header or len(header) > 1024:
        return 0
    for part in _split(header):
        # Parameters of a preference follow behind a semicolon; `wait` has none.
        found = _PREFERENCE.match(part.strip())
        name, _, value = (found.group() if found else "").partition("=")
        if name.strip().lower() == "wait":  # the first one counts
            text = value.strip().strip('"')
            return min(int(text[:9]), most) if text.isascii() and text.isdecimal() else 0
    return 0


def header(seconds: float) -> dict[str, str]:
    """The header that asks for it, if there is anything to ask."""
    whole = min(int(seconds), MOST_WAIT)
    return {"prefer": f"wait={whole}"} if whole > 0 else {}


def applied(seconds: float) -> dict[str, str]:
    """The header that says it was honoured."""
    return {"preference-applied": f"wait={int(seconds)}"} if seconds >= 1 else {}


def _split(header: str) -> list[str]:
    """By commas that do not stand in a quoted string."""
    parts, start, quoted, escaped = [], 0, False, False
    for at, char in enumerate(header):
        if escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            parts.append(header[start:at])
            start = at + 1
    return [*parts, header[start:]]

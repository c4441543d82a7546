# SPDX-License-Identifier: Apache-2.0
"""Text forms of bytes on the wire, with one spelling for each value."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any


def b64url(data: bytes) -> str:
    """Base64url without padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_b64url(text: str, size: int | None = None) -> bytes:
    """What `b64url` wrote, and nothing else: no padding, no stray bits, no other alphabet.

    Raises:
        ValueError: it is not that, or not ``size`` bytes.
    """
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError, TypeError):
        raise ValueError("not base64url") from None
    if b64url(data) != text:  # the decoder skips what it does not know
        raise ValueError("not base64url")
    if size is not None and len(data) != size:
        raise ValueError(f"{len(data)} bytes where {size} belong")
    return data


def from_hex(text: Any, size: int) -> bytes:
    """``size`` bytes from lower-case hex.

    Raises:
        ValueError: it is not that.
    """
    if not isinstance(text, str) or len(text) != 2 * size:
        raise ValueError(f"not {size} bytes in hex")
    data = bytes.fromhex(text)
    if data.hex() != text:  # upper case, white space
        raise ValueError(f"not {size} bytes in lower-case hex")
    return data


def load_json(data: bytes | str) -> Any:
    """JSON as RFC 8259 has it: no NaN, no name twice, nothing nested beyond reason.

    Raises:
        ValueError: it is not that.
    """
    try:
        return json.loads(data, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None


def load_object(data: bytes | str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is not that.
    """
    value = load_json(data)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def dump_json(value: Any) -> bytes:
    """JSON without needless spaces."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):  # parsers differ in which one they take
        raise ValueError("a JSON object names a member twice")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")

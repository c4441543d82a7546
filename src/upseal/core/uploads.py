# SPDX-License-Identifier: Apache-2.0
"""How an upload is laid out, and how its key is found (docs/format.md, "Uploads").

header | 03 | salt 24 | commitment 32 | chunk 0 | chunk 1 | ... | short last chunk
"""

from __future__ import annotations

import os
from collections.abc import Callable
from hmac import compare_digest
from typing import Any, NamedTuple

from upseal.core import header as headers
from upseal.core.bodies import UPLOAD_FRONT, Kind, read_kind
from upseal.core.header import Header
from upseal.core.session import SALT, SessionKeys
from upseal.engine.sizes import CHUNK, SEALED_CHUNK, TAG
from upseal.errors import OpenError, Truncated

PIECE = 16
"""Chunks sealed or opened in one go: 256 KiB: with what comes out they fit the L2 cache."""

FRONT_MAX = 6 + 16 * (12 + 1168) + 32 + 1 + UPLOAD_FRONT
"""Bytes before the first chunk at most: sixteen hybrid recipients, the longest entries."""


class Front(NamedTuple):
    """What stands before an upload's chunks has been read, and these opened it."""

    size: int
    """Bytes before the first chunk."""
    keys: SessionKeys
    key: Any
    """The engine's, for the chunks."""


def sealed_size(plain: int) -> int:
    """Bytes of the chunks of an upload of ``plain`` bytes."""
    return plain + TAG * (plain // CHUNK + 1)


def plain_size(sealed: int) -> int:
    """Bytes of plaintext in ``sealed`` bytes of chunks.

    Raises:
        Truncated: no upload has that many.
    """
    whole, rest = divmod(sealed, SEALED_CHUNK)
    if rest < TAG:
        raise Truncated
    return whole * CHUNK + rest - TAG


def start_upload(header: bytes, keys: SessionKeys, context: bytes) -> tuple[bytes, Any]:
    """The front of a new upload, up to its first chunk, and the key of its chunks.

    The salt is drawn here, once for each upload, and with it everything that must not repeat.
    """
    salt, kind = os.urandom(SALT), Kind.UPLOAD.mark
    key, commitment = keys.upload(salt, kind + context)
    return header + kind + salt + commitment, key


def find_upload(data: bytes, session: Callable[[Header], SessionKeys], context: bytes) -> Front:
    """Reads the front of an upload and finds its key. ``data`` may end anywhere behind it."""
    header = headers.parse(data)
    at = len(header.raw)
    kind = read_kind(data, at, "upload")
    front = data[at + 1 : at + 1 + UPLOAD_FRONT]
    if len(front) < UPLOAD_FRONT:
        raise Truncated("ends before the first chunk", len(data))
    keys = session(header)
    key, commitment = keys.upload(front[:SALT], kind.mark + context)
    if not compare_digest(commitment, front[SALT:]):
        raise OpenError
    return Front(at + 1 + UPLOAD_FRONT, keys, key)

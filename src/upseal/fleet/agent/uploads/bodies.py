# SPDX-License-Identifier: Apache-2.0
"""Bodies: sealed bytes as they lie in the folder, or what they hold, piece by piece.

Sealed bytes are made once and sent as they are. What is sealed for the server is in a session of
its own, whose secret the agent keeps: with its own key among the recipients, everybody on the way
could see by the key's id whose upload it is.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, cast

from upseal import Opener, PublicKey
from upseal.core import header as headers
from upseal.core.files import Progress, seal_file_kept
from upseal.core.positioned import naming
from upseal.core.reader import OpeningReader
from upseal.core.uploads import FRONT_MAX
from upseal.errors import OpenError
from upseal.fleet.files import file_sha256, read_at

_PIECE = 1 << 20


class Damaged(Exception):  # noqa: N818 - what is the case
    """What lies in the folder is not what was put there: it cannot be sent, now or later."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What has been sealed into a file."""

    size: int
    """Bytes of plaintext."""
    file_size: int
    file_sha256: bytes | None
    secret: bytes


class KeptKey:
    """Opens one session, whose secret is known (`upseal.core.opener.KeyOpener`)."""

    __slots__ = ("_secret", "key_id", "suite")

    def __init__(self, suite: int, key_id: bytes, secret: bytes) -> None:
        self.suite = suite
        self.key_id = key_id
        self._secret = secret

    def unwrap(self, wrapped: bytes) -> bytes:
        """The secret, whatever it is wrapped in. Of another session it opens nothing."""
        return self._secret


def seal_into(
    target: io.FileIO,
    source: IO[bytes] | OpeningReader,
    recipients: Sequence[PublicKey],
    context: bytes,
    *,
    digest: bool,
    progress: Progress,
) -> Sealed:
    """Seals all of a source into a new file, under a new session and salt.

    Args:
        target: new, readable and writable.
        source: a file, or the reader of another body.
        recipients: who can open it, besides who has the secret.
        context: what it is bound to.
        digest: whether the SHA-256 of the sealed bytes will be asked for.
        progress: as in `upseal.seal_file`; what it raises ends the work.

    Raises:
        OpenError: the source is a body that is damaged.
        OSError: the source or the disk failed.
    """
    size, secret = seal_file_kept(
        cast(IO[bytes], source), target, recipients, context, progress=progress
    )
    file_size = os.fstat(target.fileno()).st_size
    sha256 = file_sha256(target, lambda: progress(size, size)) if digest else None
    return Sealed(size, file_size, sha256, secret)


@contextmanager
def opened(file: io.FileIO, secret: bytes, context: bytes) -> Iterator[OpeningReader]:
    """The plaintext of a body, at any offset.

    Raises:
        Damaged: it does not open, here or inside the block.
        OSError: the disk failed.
    """
    try:
        entry = headers.parse(read_at(file.fileno(), 0, FRONT_MAX)).entries[0]
        file.seek(0)
        key = KeptKey(int(entry.suite), entry.key_id, secret)
        with Opener([key], cache=0).reader(file, context) as reader:
            yield reader
    except OpenError as error:
        raise Damaged("a sealed file in the folder does not open") from error


class SealedSource:
    """The bytes of a file as they are."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from there; fewer only at the end."""
        with naming(self._file.name):
            return read_at(self._file.fileno(), offset, length)


class ClearSource:
    """What a sealed file holds; opened as it is read, and never written down."""

    def __init__(self, reader: OpeningReader) -> None:
        self._reader = reader

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from there; fewer only at the end."""
        self._reader.seek(offset)
        piece = self._reader.read(length)
        if len(piece) < length:  # by its end; or by damage, which is said the next time
            piece += self._reader.read(length - len(piece))
        return piece


def clear_sha256(reader: OpeningReader, check: Callable[[], None]) -> bytes:
    """Of the plaintext, in one pass.

    Args:
        reader: of a body.
        check: called now and then; what it raises ends the work.
    """
    digest = hashlib.sha256()
    reader.seek(0)
    while piece := reader.read(_PIECE):
        digest.update(piece)
        check()
    return digest.digest()

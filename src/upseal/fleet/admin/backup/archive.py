# SPDX-License-Identifier: Apache-2.0
"""What a backup is made of: an upload (docs/format.md, 6) with a tar archive in it.

Each file is one POSIX header of 512 bytes, its bytes, and zeros up to the next 512: no extensions,
so that a reader needs no memory for what somebody else has written, and `tar` reads it all the
same. The last two are ``contents``, a line for each file as ``sha256sum`` writes it, and
``backup.jws``, which the server's receipt key has signed, with the digest of the former.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Protocol

from upseal.errors import OpenError

CONTEXT = b"upseal/v1 backup\0"
"""What the upload is bound to: no other upload is taken for a backup."""
VERSION = 1
TYPE = "upseal-backup+jwt"
FOLDER, UPLOADS, DATABASE, CONTENTS, SIGNED = (
    "folder/", "uploads/", "database", "contents", "backup.jws",
)  # fmt: skip
SMALL_MAX = 64 << 20
"""Bytes of one file of the folder, and of what is signed."""
_BLOCK = 512
_PIECE = 1 << 20
_NAME_MAX = 100
_NAMES = re.compile(
    r"folder/(?:[\w.@+-]+/){0,8}[\w.@+-]+"
    r"|uploads/[0-9a-f]{32}/[0-9a-f]{32}|database|contents|backup\.jws",
    re.ASCII,
)

Progress = Callable[[int, int | None], None]


class Source(Protocol):
    """What bytes come out of."""

    def read(self, size: int = -1, /) -> bytes:
        """So many, or fewer at the end."""


class Target(Protocol):
    """What bytes go into: all of them."""

    def write(self, data: bytes, /) -> object:
        """All of these."""


class Damaged(OpenError):  # noqa: N818 - what it is
    """It opens, and is no whole backup of ours; ``problem`` says why, to who has its key."""


def fits(name: str) -> bool:
    """Whether a file can have this name in a backup: nothing leads out of the folder."""
    parts = name.split("/")
    return (
        len(name) <= _NAME_MAX
        and _NAMES.fullmatch(name) is not None
        and not any(part in (".", "..") for part in parts)
    )


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a backup."""

    name: str
    size: int
    mode: int


class Writing:
    """Puts files into an archive, and notes the digest of each.

    Args:
        target: what takes the bytes.
        lines: a file for ``contents``, until all is there: there may be millions.
        progress: called with the bytes so far.
    """

    def __init__(self, target: Target, lines: IO[bytes], total: int, progress: Progress) -> None:
        self._target, self._lines = target, lines
        self._total, self._progress = total, progress
        self.files = self.bytes = 0
        self._contents = hashlib.sha256()

    def add(self, name: str, source: Source, size: int, mode: int = 0o600) -> None:
        """So many bytes of a file.

        Raises:
            OSError: it cannot be read, or it ends before.
        """
        digest = self._put(name, source, size, mode)
        line = f"{digest.hex()}  {name}\n".encode()
        self._lines.write(line)
        self._contents.update(line)
        self.files, self.bytes = self.files + 1, self.bytes + size
        self._progress(self.bytes, self._total)

    def finish(self, sign: Callable[[dict[str, Any]], str], facts: dict[str, Any]) -> None:
        """Adds what says what is there."""
        size = self._lines.tell()
        self._lines.seek(0)
        self._put(CONTENTS, self._lines, size, 0o600)
        claims = {
            **facts, "version": VERSION, "files": self.files, "bytes": self.bytes,
            "contents": self._contents.hexdigest(),
        }  # fmt: skip
        token = sign(claims).encode()
        self._put(SIGNED, io.BytesIO(token), len(token), 0o600)
        self._target.write(bytes(2 * _BLOCK))

    def _put(self, name: str, source: Source, size: int, mode: int) -> bytes:
        if not fits(name):
            raise ValueError(f"no file of a backup can have the name {name!r}")
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, mode
        self._target.write(info.tobuf(tarfile.GNU_FORMAT, "ascii"))
        digest, left = hashlib.sha256(), size
        while left:
            piece = source.read(min(_PIECE, left))
            if not piece:
                raise OSError(f"{name} became shorter while it was read")
            digest.update(piece)
            self._target.write(piece)
            left -= len(piece)
            self._progress(self.bytes + size - left, self._total)
        self._target.write(bytes(-size % _BLOCK))
        return digest.digest()


class Reading:
    """Goes through an archive. Nothing it gives out counts before `members` has ended well.

    What is signed is for the caller to verify: who may have signed it stands in the archive.
    """

    def __init__(self, source: Source, total: int | None, progress: Progress) -> None:
        self._source, self._total, self._progress = source, total, progress
        self._left = self._done = 0
        self._contents = hashlib.sha256()
        self.files = self.bytes = 0
        self.signed = b""
        """What stands in ``backup.jws``."""

    @property
    def contents(self) -> str:
        """SHA-256 of a line for each file that was read."""
        return self._contents.hexdigest()

    def members(self) -> Iterator[tuple[Member, Source]]:
        """The files, but for the last two; each is read before the next one comes.

        Raises:
            Damaged: what stands there is nothing that `Writing` writes.
            OpenError: the bytes are not what was sealed.
        """
        stated = None
        while True:
            member = self._header()
            if member is None:
                break
            if self.signed or (stated is not None and member.name != SIGNED):
                raise Damaged("a file stands behind its end")
            if member.name == SIGNED:
                if member.size > SMALL_MAX:
                    raise Damaged("what is signed is too long")
                self.signed = self._body(member).read()
                self._padding(member)
                continue
            body = self._body(member)
            if member.name == CONTENTS:
                # A line for each file as it came, so the digest of the lines is all to compare.
                stated = _digest(body)
                if stated != self._contents.digest():
                    raise Damaged("a file in it is not what its list of contents says")
                self._padding(member)
                continue
            yield member, body
            digest = body.digest.digest()
            if body.left:
                raise AssertionError("a file was not read to its end")
            self._padding(member)
            self._contents.update(f"{digest.hex()}  {member.name}\n".encode())
            self.files, self.bytes = self.files + 1, self.bytes + member.size
        if stated is None or not self.signed:
            raise Damaged("its list of contents is missing")
        if self._source.read(1):
            raise Damaged("something stands behind its end")

    def _header(self) -> Member | None:
        block = self._exactly(_BLOCK)
        if block == bytes(_BLOCK):
            if self._exactly(_BLOCK) != bytes(_BLOCK):
                raise Damaged("its end is none")
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise Damaged("what should be a file's name and size is not") from error
        if not info.isreg() or not fits(info.name) or info.size < 0:
            raise Damaged("there is something in it that no backup has")
        return Member(info.name, info.size, info.mode & 0o700)

    def _body(self, member: Member) -> _Body:
        return _Body(self._source, member.size, self._more)

    def _more(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self._total)

    def _padding(self, member: Member) -> None:
        if any(self._exactly(-member.size % _BLOCK)):
            raise Damaged("something stands between its files")

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._source.read(size - len(data))
            if not piece:
                raise Damaged("it ends too early")
            data += piece
        self._more(size)
        return data


class _Body:
    """One file's bytes."""

    def __init__(self, source: Source, size: int, more: Callable[[int], None]) -> None:
        self._source, self.left, self._report = source, size, more
        self.digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        """So many, or fewer at the end."""
        most = self.left if size < 0 else min(size, self.left)
        parts = []
        while most:
            piece = self._source.read(min(_PIECE, most))
            if not piece:
                raise Damaged("it ends within a file")
            self.digest.update(piece)
            self.left, most = self.left - len(piece), most - len(piece)
            self._report(len(piece))
            parts.append(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _digest(body: _Body) -> bytes:
    while body.read(_PIECE):
        pass
    return body.digest.digest()

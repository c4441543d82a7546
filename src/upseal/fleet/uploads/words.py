# SPDX-License-Identifier: Apache-2.0
"""What is said about a file on its way up, in bytes and in headers (docs/protocol.md, "Uploads").

An *announcement* is a record in a unit that its agent has signed: it names the file, and the digest
of the *body*, which is the file's bytes, sealed or in clear. The body itself goes by tus, hop by
hop, under a *ticket*, which tells a relay no more than it must know.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self

from upseal.engine.buffers import Buffer, view
from upseal.fleet.http.paths import UPLOADS

UPLOAD_LEN: Final = 16
NAME_MAX: Final = 1024
SIZE_MAX: Final = 2**63 - 1
"""Bytes and milliseconds that are not refused out of hand: what a database takes as a number."""
METADATA_MAX: Final = 4096
"""Characters of ``Upload-Metadata``."""

Form = Literal["sealed", "clear"]

_MARK: Final = b"UPU\x01"
_HEAD = struct.Struct(">4s16sBQQ32sQH")
_FORMS: tuple[Form, Form] = ("clear", "sealed")
_ANNOUNCED: Final = b"upseal/v1 upload\0"
_BODY: Final = b"upseal/v1 upload body\0"
_COVERED: Final = ("upload-length", "upload-metadata", "upload-offset")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Announcement:
    """A file that is coming, in the words of its agent.

    Args:
        upload: 16 random bytes, the agent's name for this file.
        form: of the body.
        size: bytes of the file.
        body_size: bytes of the body; in clear the same.
        body_sha256: 32 bytes, of the body.
        modified: unix milliseconds of the file's last change, 0 if not known.
        name: the last part of the file's path as the file system has it (`os.fsencode`), 1 to 1,024
            bytes, without NUL and ``/``, and neither ``.`` nor ``..``.

    Raises:
        ValueError: something is out of its range.
    """

    upload: bytes
    form: Form
    size: int
    body_size: int
    body_sha256: bytes
    modified: int
    name: bytes

    def __post_init__(self) -> None:
        _check_ids(self.upload, self.body_sha256)
        if self.form not in _FORMS:
            raise ValueError("a body is sealed or clear")
        if not all(0 <= n <= SIZE_MAX for n in (self.size, self.body_size, self.modified)):
            raise ValueError("sizes and times are between 0 and 2^63 - 1")
        if self.form == "clear" and self.size != self.body_size:
            raise ValueError("a body in clear is as long as its file")
        check_name(self.name)

    @property
    def body_id(self) -> bytes:
        """The id of the body it announces, 32 bytes."""
        return upload_body_id(self.upload, self.body_sha256)

    def encode(self) -> bytes:
        """The record."""
        head = _HEAD.pack(
            _MARK, self.upload, _FORMS.index(self.form), self.size, self.body_size,
            self.body_sha256, self.modified, len(self.name),
        )  # fmt: skip
        return head + self.name

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """What `encode` gave, and nothing else.

        Raises:
            ValueError: it is not that.
        """
        record = bytes(view(data, "an announcement"))
        if len(record) < _HEAD.size or record[:4] != _MARK:
            raise ValueError("not an announcement")
        _, upload, form, size, body_size, digest, modified, length = _HEAD.unpack_from(record)
        if form >= len(_FORMS) or len(record) != _HEAD.size + length:
            raise ValueError("not an announcement, or not a whole one")
        return cls(upload, _FORMS[form], size, body_size, digest, modified, record[_HEAD.size :])

    def digest(self, deployment: bytes, agent: bytes) -> bytes:
        """What the receipt of this upload names in place of a statement's digest, 32 bytes.

        Args:
            deployment: 16 bytes.
            agent: whose it is, 16 bytes.
        """
        if len(deployment) != 16 or len(agent) != 16:
            raise ValueError("the id of a deployment, or of an agent, has 16 bytes")
        return hashlib.sha256(_ANNOUNCED + deployment + agent + self.encode()).digest()


def check_name(name: bytes) -> None:
    """Raises ValueError if an announcement cannot have it as the name of a file."""
    if not 1 <= len(name) <= NAME_MAX or name in (b".", b"..") or b"\0" in name or b"/" in name:
        raise ValueError(f"the name of a file has 1 to {NAME_MAX} bytes, and no NUL or slash")


def is_announcement(record: Buffer) -> bool:
    """Whether a record is meant as one: by its first four bytes."""
    if type(record) is bytes:  # the server asks this of every report
        return record.startswith(_MARK)
    return bytes(view(record, "a record")[:4]) == _MARK


def upload_body_id(upload: bytes, body_sha256: bytes) -> bytes:
    """The id of an upload's body, 32 bytes: in its path, and in ``/v1/results``."""
    _check_ids(upload, body_sha256)
    return hashlib.sha256(_BODY + upload + body_sha256).digest()


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a creation says of a body.

    Args:
        upload: 16 bytes.
        body_sha256: 32 bytes.
        form: of the body.
        size: of the body, in bytes.

    Raises:
        ValueError: something is out of its range.
    """

    upload: bytes
    body_sha256: bytes
    form: Form
    size: int

    def __post_init__(self) -> None:
        _check_ids(self.upload, self.body_sha256)
        if self.form not in _FORMS:
            raise ValueError("a body is sealed or clear")
        if not 0 <= self.size <= SIZE_MAX:
            raise ValueError("the size of a body is between 0 and 2^63 - 1")

    @property
    def body_id(self) -> bytes:
        """32 bytes."""
        return upload_body_id(self.upload, self.body_sha256)

    def metadata(self) -> str:
        """``Upload-Metadata``; the size is ``Upload-Length``."""
        said = {"upload": self.upload, "sha256": self.body_sha256, "form": self.form.encode()}
        return ",".join(f"{key} {base64.b64encode(said[key]).decode()}" for key in said)

    @classmethod
    def parse(cls, length: str | None, metadata: str | None) -> Self:
        """From ``Upload-Length`` and ``Upload-Metadata``; keys that are not ours are let be.

        Raises:
            ValueError: one is missing, or not what it should be.
        """
        size = parse_number(length, "Upload-Length")
        said = _metadata(metadata or "")
        try:
            upload, digest, form = said["upload"], said["sha256"], said["form"]
        except KeyError as error:
            raise ValueError(f"Upload-Metadata lacks {error.args[0]}") from None
        for name in _FORMS:
            if form == name.encode():
                return cls(upload, digest, name, size)
        raise ValueError("a body is sealed or clear")


def path_of(body_id: bytes) -> str:
    """Where a body is: ``/v1/uploads/`` and its id in hex."""
    return f"{UPLOADS}/{body_id.hex()}"


def proven(path: str, headers: Mapping[str, str], body: Buffer) -> bytes:
    """What the proof of a request covers in place of its body.

    Where a proof elsewhere has SHA-256 of the body, below `UPLOADS` it has SHA-256 of these bytes:
    whoever overhears a request must not be able to use its proof for another length, another body
    or another offset. Elsewhere they are the body itself.

    Args:
        path: of the request, without query.
        headers: that go with it, names in any case.
        body: of the request.
    """
    if path != UPLOADS and not path.startswith(UPLOADS + "/"):
        return bytes(body)
    return covered(headers, hashlib.sha256(body).digest())


def covered(headers: Mapping[str, str], body_digest: bytes) -> bytes:
    """As `proven`, below `UPLOADS`, with SHA-256 of the body already at hand.

    Raises:
        ValueError: one of the headers is there twice: it must not be read in two ways.
    """
    said: dict[str, str] = {}
    for name, value in headers.items():  # of ASGI frameworks: with those that are there twice
        if name.lower() in _COVERED:
            if name.lower() in said:
                raise ValueError(f"{name} is there twice")
            said[name.lower()] = value.strip(" \t")
    lines = [f"{name}: {said[name]}" for name in _COVERED if name in said]
    return "\n".join([body_digest.hex(), *lines, ""]).encode("latin-1", "replace")


def parse_number(text: str | None, what: str) -> int:
    """A header that is a number of bytes, in its one spelling.

    Raises:
        ValueError: it is missing, or none, or beyond 2^63 - 1.
    """
    if text is None or not _NUMBER.fullmatch(text) or int(text) > SIZE_MAX:
        raise ValueError(f"{what} is a number of bytes")
    return int(text)


def _check_ids(upload: bytes, body_sha256: bytes) -> None:
    if len(upload) != UPLOAD_LEN or len(body_sha256) != 32:
        raise ValueError("an upload has an id of 16 bytes, and its body a digest of 32")


def _metadata(text: str) -> dict[str, bytes]:
    """The pairs of ``Upload-Metadata``; `ValueError` if it is not what tus says."""
    if len(text) > METADATA_MAX:
        raise ValueError(f"Upload-Metadata has at most {METADATA_MAX} characters")
    said: dict[str, bytes] = {}
    for pair in text.split(","):
        key, _, value = pair.strip(" ").partition(" ")
        if not key or not key.isascii() or not key.isprintable() or key in said:
            raise ValueError("Upload-Metadata has keys, each once, and a value behind each")
        try:
            said[key] = base64.b64decode(value.encode("ascii"), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("a value of Upload-Metadata is not base64") from None
    return said

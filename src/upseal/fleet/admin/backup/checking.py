# SPDX-License-Identifier: Apache-2.0
"""Reads a backup and says what it is; nothing is written.

Whoever has the public key that backups are sealed to can make a file that opens. So the list of
contents must be signed by a receipt key that the newest manifest in the backup names; and who wants
to know that it is not all somebody else's compares the signing key's fingerprint, which only its
owner has.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upseal.core.opener import Opener
from upseal.fleet import jws
from upseal.fleet.admin.backup import archive, databases
from upseal.fleet.admin.backup.archive import CONTEXT, Damaged, Member, Progress, Reading, Source
from upseal.fleet.admin.folder import SETTINGS
from upseal.fleet.admin.opened import TRUST
from upseal.fleet.admin.refusals import Refused
from upseal.fleet.manifest import MANIFEST_MAX, Manifest
from upseal.fleet.manifest_claims import ManifestError, Reader
from upseal.fleet.trust_file import Kept

_KINDS = (databases.SQLITE, databases.POSTGRESQL)


@dataclass(frozen=True, slots=True)
class Found:
    """What a backup says of itself, and who has signed it."""

    id: str
    name: str
    deployment: bytes
    made: int
    """Unix milliseconds."""
    serial: int
    """Of the newest manifest in its database."""
    database: str
    upseal: str
    """The release that made it."""
    clients: int
    reports: int
    uploads: int
    gone: tuple[tuple[bytes, bytes], ...]
    """Files that were deleted while it was taken: agent and upload."""
    files: int
    bytes: int
    fingerprint: str
    """Of the key that signs manifests: SHA-256 of its public half, in hexadecimal."""
    table: dict[str, Any]
    """deployment.toml."""

    def facts(self) -> dict[str, Any]:
        """For machines."""
        names = ("id", "name", "made", "serial", "database", "upseal", "clients", "reports",
                 "uploads", "files", "bytes", "fingerprint")  # fmt: skip
        return {
            "deployment": self.deployment.hex(), **{name: getattr(self, name) for name in names},
            "missing_uploads": len(self.gone),
        }  # fmt: skip


Take = Callable[[Member, Source], None]


def check(
    path: Path,
    opener: Opener,
    *,
    fingerprint: str | None = None,
    progress: Progress = lambda done, total: None,
    take: Take | None = None,
) -> Found:
    """Goes through all of a backup.

    Args:
        path: the file.
        opener: with the private key.
        fingerprint: what the signing key's must be, in hexadecimal; its beginning will do.
        progress: called with bytes and how many there are.
        take: given each file; it reads it to its end.

    Raises:
        OpenError: it is damaged, cut off, forged, for another key, or no backup.
        Refused: it is another deployment's than ``fingerprint`` says.
        OSError: it cannot be read.
    """
    small: dict[str, bytes] = {}
    wanted = {archive.FOLDER + name: name for name in (SETTINGS, TRUST)}
    with open(path, "rb", buffering=0) as file, closing(opener.reader(file, CONTEXT)) as reader:
        reading = Reading(reader, reader.size, progress)
        seen: set[str] = set()
        for member, body in reading.members():
            if member.name in seen:
                raise Damaged("a file is in it twice")
            seen.add(member.name)
            if member.name.startswith(archive.FOLDER) and member.size > archive.SMALL_MAX:
                raise Damaged("a file of its folder is too long")
            if member.name in wanted:
                data = body.read()
                small[wanted[member.name]] = data
                if take is not None:
                    take(member, _Again(data))
            elif take is not None:
                take(member, body)
            while body.read(1 << 20):
                pass
    if not (small.keys() == {SETTINGS, TRUST} and archive.DATABASE in seen):
        raise Damaged("its settings, what it trusts or its database is missing")
    return _found(reading, small, fingerprint)


class _Again:
    """Bytes that were read already, as a file."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int = -1, /) -> bytes:
        """As a file's."""
        end = len(self._data) if size < 0 else size
        part, self._data = self._data[:end], self._data[end:]
        return part


def _found(reading: Reading, small: dict[str, bytes], fingerprint: str | None) -> Found:
    try:
        newest = Kept.decode(small[TRUST], TRUST).newest
        if newest is None:
            raise Damaged("it trusts no manifest")
        signer = jws.key_in(newest.token, limit=MANIFEST_MAX)
        manifest = Manifest.open(newest.token, signer)
        if signer not in manifest.signing_keys:
            raise Damaged("its newest manifest does not name who signed it")
        claims = jws.verify(
            reading.signed, manifest.receivers(), archive.TYPE, limit=archive.SMALL_MAX
        )
        table = tomllib.loads(small[SETTINGS].decode())
    except (ValueError, ManifestError) as error:
        raise Damaged(f"what is signed in it does not verify: {error}") from error
    found = _claims(claims, signer.fingerprint.hex(), table)
    counted = (reading.contents, reading.files, reading.bytes)
    if (claims.get("contents"), found.files, found.bytes) != counted:
        raise Damaged("what is in it is not what was signed")
    if not found.deployment == manifest.deployment:
        raise Damaged("its parts are of two deployments")
    if fingerprint is not None and not found.fingerprint.startswith(fingerprint.lower()):
        raise Refused(
            "use this backup",
            f"its manifests are signed by {found.fingerprint}, not by {fingerprint}",
            "it is another deployment's, or somebody has made it to look like yours",
        )
    return found


def _claims(claims: dict[str, Any], fingerprint: str, table: dict[str, Any]) -> Found:
    try:
        reader = Reader(claims, "the backup")
        if reader.number("version", 2**31) != archive.VERSION:
            raise Damaged("it was made by a newer upseal; use that one")
        kind = reader.text("database", 32)
        if kind not in _KINDS:
            raise ManifestError("no such database")
        for name in ("contents", "schema"):
            reader.text(name, 64)
        return Found(
            id=reader.text("id", 32),
            name=reader.text("name", 1024),
            deployment=reader.hex("deployment", 16),
            made=reader.number("made", 2**53),
            serial=reader.number("serial", 2**53),
            database=kind,
            upseal=reader.text("upseal", 64),
            clients=reader.number("clients", 2**53),
            reports=reader.number("reports", 2**53),
            uploads=reader.number("uploads", 2**53),
            gone=tuple(_pair(one) for one in reader.items("gone", 1 << 20)),
            files=reader.number("files", 2**53),
            bytes=reader.number("bytes", 2**53),
            fingerprint=fingerprint,
            table=table,
        )
    except ValueError as error:
        raise Damaged(f"what is signed in it is wrong: {error}") from error


def _pair(value: Any) -> tuple[bytes, bytes]:
    if not isinstance(value, str) or len(value) != 65 or value[32] != "/":
        raise ManifestError("no such upload")
    return bytes.fromhex(value[:32]), bytes.fromhex(value[33:])


__all__ = ["Found", "Take", "check"]

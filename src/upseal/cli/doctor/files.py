# SPDX-License-Identifier: Apache-2.0
"""Folders, key files, TLS files and disks: what agents', relays' and servers' have in common."""

from __future__ import annotations

import datetime
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from upseal.cli.common import printable_size
from upseal.cli.doctor.lines import Line, fail, ok, warn

_SOON_DAYS = 21
_PEM_MAX = 1 << 20
_LOW = 2
"""Free room below so many times what is kept free is soon none."""


def folder(path: Path) -> Iterator[Line]:
    """Whose it is, and who else may look into it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        yield fail("folder", f"{path} is missing", "check the path, or enrol")
        return
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o022:
        yield fail("folder", f"others may write in {path} ({mode:04o})", f"chmod 700 {path}")
    elif mode & 0o055:
        yield warn("folder", f"others may look into {path} ({mode:04o})", f"chmod 700 {path}")
    else:
        yield ok("folder", f"{path}, mode {mode:04o}")
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        yield warn(
            "folder",
            f"{path} is user {found.st_uid}'s, and this is user {os.geteuid()}",
            "run this as the user the process runs as",
        )


def private(path: Path, kind: str, owner: int) -> Iterator[Line]:
    """One private key: its permissions, its owner, and whether it is a key at all.

    Args:
        path: the file.
        kind: ``signing`` or ``encryption``.
        owner: the user whose folder it is in.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        yield fail("keys", f"{path} is missing", "restore it from a backup, or enrol again")
        return
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        yield fail(
            "keys",
            f"{path} may be used by others than its owner ({mode:04o})",
            f"chmod 600 {path}; if anybody was there to read it, replace the key",
        )
        return
    if found.st_uid != owner:
        yield warn(
            "keys",
            f"{path} is user {found.st_uid}'s, and the folder user {owner}'s",
            f"chown {owner} {path}",
        )
        return
    data = path.read_bytes()[:_PEM_MAX]
    if b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data:
        yield ok("keys", f"{path}, mode {mode:04o}, under a passphrase: not opened")
        return
    try:
        name = _name(data, kind)
    except (ValueError, TypeError):
        yield fail("keys", f"{path} holds no {kind} key", "restore it from a backup")
    else:
        yield ok("keys", f"{path}: {name}, mode {mode:04o}")


def references(folder: Path) -> Iterator[Line]:
    """Private keys that are kept elsewhere, as their files say; nobody is asked for them."""
    from upseal.integrations.keys import kept_elsewhere

    for path in sorted(folder.glob("*-*.ref")):
        try:
            key = kept_elsewhere(path.read_bytes()[:_PEM_MAX])
        except (ValueError, TypeError):
            yield fail("keys", f"{path} names no key that is kept", "restore it from a backup")
        else:
            name = f"{key.public_key.name} {key.key_id.hex()}"
            yield ok("keys", f"{path}: {name}, kept elsewhere: not asked for")


def _name(data: bytes, kind: str) -> str:
    if kind == "encryption":
        from upseal.core.keys import PrivateKey

        key = PrivateKey.from_pem(data)
        return f"{key.public_key.name} {key.key_id.hex()}"
    from upseal.fleet.identity import SigningKey

    signing = SigningKey.from_pem(data)
    return f"{signing.algorithm} {signing.public.key_id.hex()}"


def disk(path: Path, least: int, what: str, setting: str) -> Iterator[Line]:
    """Free room.

    Args:
        path: somewhere on it.
        least: bytes that are left free, at which nothing is taken any more.
        what: what is not taken then.
        setting: which one says how much.
    """
    from upseal.fleet.files import free_bytes

    free = free_bytes(path)
    said = (
        f"{printable_size(free)} of {printable_size(shutil.disk_usage(path).total)} free for "
        f"{path}, and {printable_size(least)} are to stay so ({setting})"
    )
    if free <= least:
        yield fail("disk", f"{said}: {what} not taken", "make room, or move the folder")
    elif free < _LOW * least:
        yield warn("disk", f"{said}: soon {what} not taken", "make room")
    else:
        yield ok("disk", said)


def tls(name: str, certificate: str | Path | None, key: str | Path | None) -> Iterator[Line]:
    """A certificate for TLS and its key: dates, permissions, whether they belong together."""
    if certificate is None:
        return
    import ssl

    from cryptography import x509

    where = Path(certificate)
    try:
        first = x509.load_pem_x509_certificate(where.read_bytes())
    except (OSError, ValueError) as error:
        yield fail("tls", f"{name} {where} cannot be used: {_why(error)}", "replace the file")
        return
    yield from _dates(f"{name} {where}", first.not_valid_before_utc, first.not_valid_after_utc)
    file = where if key is None else Path(key)
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        # A function, so that OpenSSL never asks on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(where, file, lambda: "")
    except (OSError, ValueError) as error:
        yield fail("tls", f"the key {file} of {where} cannot be used: {_why(error)}", "replace it")
        return
    if mode & 0o077:
        yield fail("tls", f"{file} may be read by others ({mode:04o})", f"chmod 600 {file}")


def authorities(name: str, file: str | Path | None) -> Iterator[Line]:
    """Certificates that others are believed by."""
    if file is None:
        return
    from cryptography import x509

    where = Path(file)
    try:
        found = x509.load_pem_x509_certificates(where.read_bytes())
    except (OSError, ValueError) as error:
        yield fail("tls", f"{name} {where} cannot be used: {_why(error)}", "replace the file")
        return
    last = max(found, key=lambda one: one.not_valid_after_utc)
    yield from _dates(f"{name} {where}", last.not_valid_before_utc, last.not_valid_after_utc)


def _dates(what: str, begins: datetime.datetime, ends: datetime.datetime) -> Iterator[Line]:
    now = datetime.datetime.now(datetime.UTC)
    days = (ends - now).total_seconds() / 86400
    until = f"{ends:%Y-%m-%d %H:%M} UTC"
    if begins > now:
        yield fail("tls", f"{what} holds from {begins:%Y-%m-%d %H:%M} UTC on", "set the clock")
    elif days <= 0:
        yield fail("tls", f"{what} has expired: {until}", "replace it; it is read again by itself")
    elif days < _SOON_DAYS:
        yield warn("tls", f"{what} expires in {days:.0f} days: {until}", "have it renewed")
    else:
        yield ok("tls", f"{what} holds until {until}")


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

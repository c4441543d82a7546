# SPDX-License-Identifier: Apache-2.0
"""Takes a backup of a deployment, whether its server runs or not.

The order is what makes it whole. A private key is on the disk before the database names it, and a
file of an upload likewise: so the database is copied first. And the folder is read before and
after that, since administrators change both: where it has changed, all begins again.
"""

from __future__ import annotations

import fcntl
import io
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import upseal
from upseal.core.keys import PublicKey
from upseal.core.sealer import Sealer
from upseal.fleet import jws
from upseal.fleet.admin.backup import archive, databases
from upseal.fleet.admin.backup.archive import CONTEXT, SMALL_MAX, Progress, Writing
from upseal.fleet.admin.backup.databases import Facts, Upload
from upseal.fleet.admin.folder import SETTINGS, key_files
from upseal.fleet.admin.opened import TRUST
from upseal.fleet.admin.refusals import Refused, Unusable
from upseal.fleet.files import sync_directory
from upseal.fleet.identity import SigningKey
from upseal.fleet.server.settings import Settings
from upseal.fleet.server.store import now_ms
from upseal.fleet.server.uploads.content import stored_folder
from upseal.fleet.trust_file import Kept

_WHAT = "take a backup"
_LOCK = "backup.lock"
_WORK = ".backup-"
_TRIES = 5
_PAUSE = 0.5
_FILES_MAX = 4096
_PASSING = (".lock", "-wal", "-shm", "-journal", "-turn", "-door", ".part")


@dataclass(frozen=True, slots=True)
class Taken:
    """What is in a backup."""

    name: str
    deployment: str
    made: int
    """Unix milliseconds, of the copy of the database."""
    serial: int
    """Of the newest manifest."""
    database: str
    files: int
    bytes: int
    """Of all that is in it."""
    size: int
    """Of the file."""
    clients: int
    reports: int
    uploads: int
    elsewhere: tuple[str, ...]
    """What the settings name outside of the folder: it is not in the backup."""


def take(
    settings: Settings,
    target: Path,
    recipients: Sequence[PublicKey],
    *,
    work: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Taken:
    """Makes a backup.

    Args:
        settings: of the deployment.
        target: a new file; it is there when it is whole and on the disk, or not at all.
        recipients: whose private keys open it. None of them may lie in the deployment's folder.
        work: where the copy of the database lies meanwhile; in the folder unless given.
        progress: called with bytes and how many there will be.

    Raises:
        Refused: it cannot be taken, and why. There is no file.
        ValueError: there is no recipient.
        OSError: reading or writing failed. There is no file.
    """
    sealer = Sealer(recipients)
    if os.path.lexists(target):
        raise Refused(_WHAT, f"there is {str(target)!r} already", "name another file")
    _not_our_own(settings, recipients)
    with (
        _alone(settings.folder),
        _work(work or settings.folder) as folder,
        _settled(settings, folder, progress) as (copy, facts, files, made),
    ):
        size = copy.stat().st_size
        total = (
            sum(len(data) for data, _ in files.values()) + size
            + sum(upload.size for upload in facts.uploads)
        )  # fmt: skip
        signer = SigningKey.from_pem(files[settings.receipt_key.name][0])
        with (
            _whole(target) as out,
            tempfile.TemporaryFile(dir=folder) as lines,
            sealer.writer(out, CONTEXT) as sealing,
        ):
            writing = Writing(sealing, lines, total, progress)
            for name, (data, mode) in files.items():
                writing.add(archive.FOLDER + name, io.BytesIO(data), len(data), mode)
            gone = _uploads(settings, facts, writing)
            with open(copy, "rb") as source:
                writing.add(archive.DATABASE, source, size)
            said = {
                "id": secrets.token_hex(16), "name": settings.name,
                "deployment": facts.deployment, "made": made, "serial": facts.serial,
                "database": _kind(settings), "schema": facts.schema,
                "upseal": upseal.__version__, "clients": facts.clients,
                "reports": facts.reports, "uploads": len(facts.uploads) - len(gone),
                "gone": [f"{one.agent.hex()}/{one.upload.hex()}" for one in gone],
            }  # fmt: skip
            writing.finish(lambda claims: jws.sign(claims, signer, archive.TYPE), said)
    return Taken(
        settings.name, facts.deployment, made, facts.serial, _kind(settings), writing.files,
        writing.bytes, target.stat().st_size, facts.clients, facts.reports,
        len(facts.uploads) - len(gone), _elsewhere(settings),
    )  # fmt: skip


def _kind(settings: Settings) -> str:
    postgresql = databases.is_postgresql(settings.database)
    return databases.POSTGRESQL if postgresql else databases.SQLITE


def _not_our_own(settings: Settings, recipients: Sequence[PublicKey]) -> None:
    """A backup that only what it has in it can open is none."""
    ours = {key_id for _, key_id in key_files(settings.folder)}
    for key in recipients:
        if key.key_id.hex() in ours:
            raise Refused(
                _WHAT,
                f"the private key of {key.key_id.hex()} lies in the folder itself, and would be "
                "lost with it",
                "make a key for backups with `upseal keygen`, and keep it elsewhere",
            )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One backup at a time: what a killed one has left is thrown away."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                _WHAT, "another one is being taken", "wait until that has ended"
            ) from None
        yield
    finally:
        os.close(lock)


@contextmanager
def _work(folder: Path) -> Iterator[Path]:
    for left in folder.glob(f"{_WORK}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_WORK, dir=folder) as name:
        yield Path(name)


@contextmanager
def _whole(target: Path) -> Iterator[IO[bytes]]:
    """The file under a temporary name, until it is whole and on the disk; never over another."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            yield file
            os.fsync(file.fileno())
        os.link(temporary, target)  # unlike a rename, this never replaces
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    sync_directory(target.parent)


Files = dict[str, tuple[bytes, int]]
"""Name: bytes and mode."""


@contextmanager
def _settled(
    settings: Settings, work: Path, progress: Progress
) -> Iterator[tuple[Path, Facts, Files, int]]:
    """Copy of the database, what it says, and the folder's files, all of one moment."""
    for attempt in range(_TRIES):
        before, made = _files(settings), now_ms()
        with databases.copied(settings.database, work, lambda: progress(0, None)) as (copy, facts):
            if facts.deployment != settings.deployment.hex():
                raise Unusable(_WHAT, "the database is of another deployment", "check `database`")
            files = _files(settings)
            seen = _seen(files)
            if seen > facts.serial and files == before:
                raise Refused(
                    _WHAT,
                    f"the folder has seen manifest {seen}, and the database has {facts.serial}",
                    "bring it forward with `upseal admin recover` first",
                )
            # Who has just acted writes down last what he has seen; where he was killed it stays.
            if files == before and (seen == facts.serial or attempt == _TRIES - 1):
                yield copy, facts, files, made
                return
        time.sleep(_PAUSE)
    raise Refused(_WHAT, "the folder has changed all the time", "try again when nobody acts")


def _files(settings: Settings) -> Files:
    """All small files of the folder, but for the database, uploads and what passes."""
    found: Files = {}
    base = Path(settings.database.removeprefix("sqlite:///")).name
    for path in _walk(settings.folder, settings.uploads):
        name = str(path.relative_to(settings.folder))
        if name == "address" or name.endswith(_PASSING) or name == base:
            continue
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                data = file.read(SMALL_MAX + 1)
        except FileNotFoundError:
            continue
        if len(data) > SMALL_MAX or not archive.fits(archive.FOLDER + name):
            raise Refused(
                _WHAT,
                f"{str(path)!r} is nothing that belongs into the folder: its size or name",
                "move it elsewhere",
            )
        found[name] = (data, stat.S_IMODE(status.st_mode))
        if len(found) > _FILES_MAX:
            raise Refused(_WHAT, "there are too many files in the folder", "move some elsewhere")
    for needed in (SETTINGS, TRUST, settings.receipt_key.name, settings.enrol_key.name):
        if needed not in found:
            raise Unusable(_WHAT, f"there is no file {needed!r} in the folder", "restore it first")
    return found


def _walk(folder: Path, uploads: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path == uploads or path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path, uploads)
        elif path.is_file() and not path.is_symlink():
            yield path


def _seen(files: Files) -> int:
    newest = Kept.decode(files[TRUST][0], TRUST).newest
    return 0 if newest is None else newest.serial


def _uploads(settings: Settings, facts: Facts, writing: Writing) -> list[Upload]:
    """Puts the stored files there; those that somebody has deleted since."""
    gone = []
    for one in facts.uploads:
        path = stored_folder(settings) / one.path
        try:
            file = open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")  # noqa: SIM115
        except FileNotFoundError:
            gone.append(one)
            continue
        with file:
            size = os.fstat(file.fileno()).st_size
            if size != one.size:
                raise Unusable(
                    _WHAT, f"{str(path)!r} has {size} bytes, and {one.size} were stored",
                    "find out who has changed it; delete it by `upseal server uploads --delete`",
                )  # fmt: skip
            name = f"{archive.UPLOADS}{one.agent.hex()}/{one.upload.hex()}"
            writing.add(name, file, size)
    if gone:
        deleted = databases.deleted(settings.database)
        for one in gone:
            if (one.agent, one.upload) not in deleted:
                raise Unusable(
                    _WHAT, f"the stored file {one.path!r} is missing",
                    "restore it, or delete it by `upseal server uploads --delete`",
                )  # fmt: skip
    return gone


def _elsewhere(settings: Settings) -> tuple[str, ...]:
    """What is named in the settings, and lies where nobody backs it up here."""
    import tomllib

    table: dict[str, Any] = tomllib.loads((settings.folder / SETTINGS).read_text())
    admin, limits = table.get("admin", {}), settings.limits
    named = [
        admin.get("signing_key", "signing.pem"), admin.get("ca_cert", "ca.pem"),
        admin.get("ca_key", "ca.key"), limits.tls_certificate, limits.tls_key,
        limits.tls_client_ca,
    ]  # fmt: skip
    folder = settings.folder.resolve()
    return tuple(
        name for name in dict.fromkeys(named)
        if name and not (settings.folder / name).resolve().is_relative_to(folder)
    )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""Puts a backup into an empty folder.

All of it is read and verified first, and nothing written. Then it is read again and written, the
settings last, without which nothing starts; what fails half-way is taken away again. What may have
been taken back since the backup was made (tokens, logins) is void afterwards: the copy of the
database does not know of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select

from upseal.core.opener import Opener
from upseal.fleet.admin.acting import who
from upseal.fleet.admin.backup import archive, databases
from upseal.fleet.admin.backup.archive import Damaged, Member, Progress, Source
from upseal.fleet.admin.backup.checking import Found, check
from upseal.fleet.admin.folder import SETTINGS, own
from upseal.fleet.admin.opened import TRUST
from upseal.fleet.admin.refusals import Refused, Unusable
from upseal.fleet.files import sync_directory, write_private
from upseal.fleet.server.settings import Settings
from upseal.fleet.server.store import Store, StoreError, audit, deletions, get_meta, now_ms
from upseal.fleet.server.tables import page_logins, tokens
from upseal.fleet.server.uploads.content import stored_folder
from upseal.fleet.trust_file import Kept

_WHAT = "restore the backup"
_IGNORED = "lost+found"
_COPY = ".database"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of it."""

    found: Found
    newest: int
    """The newest manifest that the folder knows."""
    tokens: int
    """That were not used yet, and are void now."""
    logins: int
    dry_run: bool

    @property
    def to_recover(self) -> bool:
        """Whether the database is behind the folder."""
        return self.newest > self.found.serial

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {
            **self.found.facts(), "newest_serial": self.newest, "void_tokens": self.tokens,
            "void_logins": self.logins, "recover": self.to_recover, "dry_run": self.dry_run,
        }  # fmt: skip


def restore(
    path: Path,
    opener: Opener,
    settings_of: Any,
    folder: Path,
    *,
    fingerprint: str | None = None,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> Restored:
    """Makes the deployment's folder, and its database, from a backup.

    Args:
        path: the backup.
        opener: with its private key.
        settings_of: gives the settings of a table as deployment.toml has it, and of the
            environment.
        folder: a new one, or an empty one.
        fingerprint: as `check` takes it.
        dry_run: only verify, and look whether there is room for it.
        progress: called with bytes and how many there are; from 0 again when they are written.

    Raises:
        OpenError: as `check`. Nothing was written.
        Refused: something is in the way, and what. Nothing was written, or it was taken away.
        OSError: reading or writing failed. What was written was taken away.
    """
    _check_empty(folder, "the folder")
    found = check(path, opener, fingerprint=fingerprint, progress=progress)
    settings: Settings = settings_of(folder / SETTINGS, found.table)
    kind = databases.is_postgresql(settings.database)
    if kind != (found.database == databases.POSTGRESQL):
        raise Refused(
            _WHAT,
            f"it has a {found.database} database, and the settings name another kind",
            "name one of that kind (UPSEAL_SERVER_DATABASE)",
        )
    if settings.deployment != found.deployment:
        raise Damaged("its settings are of another deployment")
    _check_empty(settings.uploads, "the folder of uploads")
    databases.check_empty(settings.database)
    if dry_run:
        return Restored(found, found.serial, 0, 0, True)
    with _all_or_nothing(settings):
        writer = _Writer(settings)
        again = check(path, opener, fingerprint=fingerprint, progress=progress, take=writer.take)
        if again != found:
            raise Refused(_WHAT, "the file has changed while it was read", "try again")
        if kind:
            databases.put_back(writer.database, settings.database, lambda: progress(0, None))
            writer.database.unlink()
        counted = _settle(settings, found)
        newest = Kept.decode((folder / TRUST).read_bytes(), TRUST).newest
        for directory in writer.directories:
            sync_directory(directory)
        write_private(folder / SETTINGS, writer.settings)
        _give(settings)
    return Restored(found, newest.serial if newest is not None else 0, *counted, False)


def _check_empty(folder: Path, what: str) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise Refused(_WHAT, f"{str(folder)!r} is no folder", "name another with -d")
    if left := sorted({path.name for path in folder.iterdir()} - {_IGNORED}):
        raise Refused(
            _WHAT,
            f"{what} {str(folder)!r} is not empty: {left[0]!r} is in it",
            "nothing is ever written over: move it away first, or name another with -d",
        )


class _Writer:
    """Puts each file where it belongs, but for the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.settings = b""
        """deployment.toml."""
        self.directories = {settings.folder}
        sqlite = not databases.is_postgresql(settings.database)
        self.database = (
            Path(settings.database.removeprefix("sqlite:///")) if sqlite
            else settings.folder / _COPY
        )  # fmt: skip

    def take(self, member: Member, body: Source) -> None:
        """As `check` gives it."""
        name = member.name
        if name == archive.FOLDER + SETTINGS:
            self.settings = body.read()
            return
        if name == archive.DATABASE:
            target = self.database
        elif name.startswith(archive.UPLOADS):
            target = stored_folder(self._settings) / name.removeprefix(archive.UPLOADS)
        else:
            target = self._settings.folder / name.removeprefix(archive.FOLDER)
        self._directory(target.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(target, flags, 0o600), "wb") as file:
            while piece := body.read(_PIECE):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    def _directory(self, path: Path) -> None:
        if path not in self.directories:
            if not path.is_dir():
                self._directory(path.parent)
                path.mkdir(0o700)
            self.directories.add(path)


def _settle(settings: Settings, found: Found) -> tuple[int, int]:
    """In the database: what was taken back since may not count again; how many of each."""
    try:
        store = Store.open(settings.database)
    except StoreError as error:
        raise Unusable(_WHAT, str(error), "restore it by the release that made it") from error
    now = now_ms()
    with store, store.writing() as db:
        if get_meta(db, "deployment") != found.deployment.hex():
            raise Damaged("its database is of another deployment")
        void = db.execute(delete(tokens).where(tokens.c.used.is_(None))).rowcount
        logins = db.execute(select(func.count()).select_from(page_logins)).scalar_one()
        db.execute(delete(page_logins))
        deletions.put(db, found.gone, now)
        details = {
            "backup": found.id, "made": found.made, "serial": [found.serial, found.serial],
            "void_tokens": void, "void_logins": logins, "forced": [],
        }  # fmt: skip
        audit.append(db, who(), "restore", details, now)
    return void, logins


@contextmanager
def _all_or_nothing(settings: Settings) -> Iterator[None]:
    """What is made in the block goes again if that fails. All places were empty before."""
    folder = settings.folder
    new = [path for path in (folder, settings.uploads) if not path.exists()]
    folder.mkdir(0o700, parents=True, exist_ok=True)
    try:
        os.chmod(folder, 0o700)
        yield
    except BaseException:
        for place in (settings.uploads, folder):
            for path in place.iterdir() if place.is_dir() else ():
                if path.name != _IGNORED:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not databases.is_postgresql(settings.database):
            for end in ("", "-wal", "-shm", "-turn", "-door"):
                Path(settings.database.removeprefix("sqlite:///") + end).unlink(missing_ok=True)
        for path in new:
            if path.is_dir():
                path.rmdir()
        raise


def _give(settings: Settings) -> None:
    """Where root restores into a folder of the server's user, the server must read it."""
    for place in (settings.folder, settings.uploads):
        for top, _, names in os.walk(place):
            for path in (Path(top), *(Path(top) / name for name in names)):
                if path != settings.folder:
                    own(path, settings.folder)
    if not databases.is_postgresql(settings.database):
        own(Path(settings.database.removeprefix("sqlite:///")), settings.folder)

# SPDX-License-Identifier: Apache-2.0
"""The deployment's folder: what lies in it, its settings, and how its files are written.

    deployment.toml   settings, read by the server as well
    signing.pem       signs manifests; the next one, while it is announced: signing-<key id>.pem
    ca.pem, ca.key    the authority that certifies encryption keys
    keys/             the server's private keys: <generation>-<key id>.pem, or .ref where one is
                      kept elsewhere
    enrol.pem         private key that enrolment requests are sealed to
    receipt.pem       signs receipts
    server.db         unless the database is elsewhere

signing.pem and ca.key are the administrator's alone: the server never reads them, and they may be
kept somewhere else.
"""

from __future__ import annotations

import errno
import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from upseal.core.keys import KINDS
from upseal.fleet.admin.refusals import Unusable
from upseal.fleet.configuration import secret
from upseal.fleet.files import sync_directory, write_new_private, write_private
from upseal.fleet.server.settings import DATABASE, FILE, FIPS_KINDS, HOST, PORT, Calendar, schema

SETTINGS = FILE
SQLITE = "sqlite:///"
_HEAD = "# Made by `upseal admin init`. The server reads it too: restart it after a change.\n"
_FILE_MAX = 1 << 20


@dataclass(frozen=True)
class Settings:
    """deployment.toml. Those below ``fips`` stand in its table ``[admin]``."""

    name: str
    deployment: bytes
    database: str = DATABASE
    host: str = HOST
    port: int = PORT
    fips: bool = False
    key_type: str = "x25519"
    """Of the next encryption key: `x25519`, `p256`, `mlkem768-x25519`, `rsa2048`, `rsa3072` or
    `rsa4096`."""
    signing_key: str = "signing.pem"
    """The key that signs manifests; a relative path begins at the folder."""
    ca_cert: str = "ca.pem"
    """The certificate of what certifies encryption keys."""
    ca_key: str = "ca.key"
    """Its key."""
    manifest_days: int = Calendar.manifest_days
    certificate_days: int = 825
    """How long a certificate of an encryption key is good."""
    warn_days: int = Calendar.warn_days
    silent_hours: int = Calendar.silent_hours
    drain_hours: int = Calendar.drain_hours
    proof_hours: int = Calendar.proof_hours
    signing_wait_hours: int = Calendar.signing_wait_hours

    @property
    def calendar(self) -> Calendar:
        """What the server's page counts by as well."""
        names = (field.name for field in fields(Calendar))
        return Calendar(**{name: getattr(self, name) for name in names})

    def check(self) -> None:
        """Raises `ValueError` for what cannot be."""
        if not self.name or len(self.name) > 48 or not self.name.isprintable():
            raise ValueError("the name must be 1 to 48 printable characters")
        if len(self.deployment) != 16:
            raise ValueError("the deployment's id must be 16 bytes (32 hexadecimal digits)")
        if self.key_type not in KINDS:
            raise ValueError(f"no key type {self.key_type!r}: choose one of {', '.join(KINDS)}")
        if self.fips and self.key_type not in FIPS_KINDS:
            raise ValueError(f"{self.key_type} is not for FIPS: choose {', '.join(FIPS_KINDS)}")
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"there is no port {self.port}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(("_days", "_hours")) and not 0 <= value <= 36500:
                raise ValueError(f"{field.name} must be from 0 to 36500, not {value}")
        if not self.manifest_days or not self.certificate_days:
            raise ValueError("manifest_days and certificate_days must be at least 1")

    def to_toml(self) -> str:
        """As `from_toml` reads it."""
        admin = "".join(
            f"{field.name} = {_toml(getattr(self, field.name))}\n"
            for field in fields(self)
            if field.name not in _TOP
        )
        return (
            f"{_HEAD}\nname = {_toml(self.name)}\ndeployment = {_toml(self.deployment.hex())}\n"
            f"database = {_toml(self.database)}  # a relative path of SQLite begins here\n"
            f"fips = {_toml(self.fips)}\n"
            f"\n[listen]\nhost = {_toml(self.host)}\nport = {self.port}\n"
            f"\n[admin]\n{admin}"
        )

    @classmethod
    def from_toml(cls, text: str) -> Settings:
        """Reads deployment.toml; tables that are not ours are for the server.

        Raises:
            ValueError: it is not TOML, or a setting is wrong or unknown.
        """
        found = tomllib.loads(text)
        listen, admin = found.get("listen", {}), found.get("admin", {})
        if not isinstance(listen, dict) or not isinstance(admin, dict):
            raise ValueError("[listen] and [admin] must be tables")
        values: dict[str, Any] = {k: found[k] for k in ("name", "database", "fips") if k in found}
        values |= {k: listen[k] for k in ("host", "port") if k in listen}
        known = {field.name for field in fields(cls)} - _TOP
        if unknown := sorted(set(admin) - known):
            raise ValueError(f"[admin] has no setting {unknown[0]!r}")
        values |= admin
        values["deployment"] = _id(found.get("deployment"))
        types = {field.name: field.type for field in fields(cls)}
        for name, value in values.items():
            if type(value).__name__ != types[name]:
                raise ValueError(f"{name} must be of type {types[name]}")
        if "name" not in values:
            raise ValueError("it has no name")
        settings = cls(**values)
        settings.check()
        return settings

    def database_of(self, folder: Path) -> str:
        """A URL, or the path of SQLite's file: a relative one begins at the folder."""
        rest = self.database.removeprefix(SQLITE)
        return str(folder / rest) if rest != self.database else self.database


_TOP = {"name", "deployment", "database", "host", "port", "fips"}


def _toml(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    plain = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in plain) + '"'


def _id(text: Any) -> bytes:
    try:
        return bytes.fromhex(text)
    except (TypeError, ValueError):
        raise ValueError("the deployment's id must be 32 hexadecimal digits") from None


def load_settings(folder: Path) -> Settings:
    """The settings of a deployment's folder.

    Raises:
        Unusable: there are none, or they are wrong.
    """
    path = folder / SETTINGS
    try:
        text = read_file(path).decode("utf-8")
    except FileNotFoundError:
        raise Unusable(
            "open the deployment",
            f"there is no {SETTINGS} in {str(folder)!r}",
            "name its folder with -d or UPSEAL_DEPLOYMENT, or make one with `upseal admin init`",
        ) from None
    except UnicodeDecodeError as error:
        raise _wrong(path, error) from error
    try:
        settings = Settings.from_toml(text)
        elsewhere = secret(schema(), "database")
    except ValueError as error:  # of tomllib as well
        raise _wrong(path, error) from error
    return settings if elsewhere is None else replace(settings, database=elsewhere)


def update_settings(folder: Path, **values: str) -> None:
    """Changes settings of the table ``[admin]``; all else in the file stays as it is written.

    Raises:
        Unusable: the file is written in another way than `Settings.to_toml` does it.
    """
    path = folder / SETTINGS
    text = read_file(path).decode("utf-8")
    wanted = replace(Settings.from_toml(text), **values)  # type: ignore[arg-type]
    for name, value in values.items():
        line = f"{name} = {_toml(value)}".replace("\\", "\\\\")  # as `re.sub` reads it
        text = re.sub(rf"(?m)^{name}[ \t]*=.*$", line, text)
    if Settings.from_toml(text) != wanted:
        lines = ", ".join(f"{name} = {_toml(value)}" for name, value in values.items())
        raise Unusable(
            "change the settings", f"{str(path)!r} is written by hand", f"put in {lines}"
        )
    write_private(path, text.encode())
    own(path, folder)


def _wrong(path: Path, error: Exception) -> Unusable:
    return Unusable("open the deployment", f"{str(path)!r} is wrong: {error}", "mend that file")


def read_file(path: Path) -> bytes:
    """A key, a certificate or settings: small.

    Raises:
        OSError: it cannot be read.
        ValueError: it is far too long.
    """
    with open(path, "rb") as file:
        data = file.read(_FILE_MAX + 1)
    if len(data) > _FILE_MAX:
        raise ValueError(f"{str(path)!r} is far too long")
    return data


def check_folder(path: Path) -> None:
    """Whether a deployment can be made there.

    Raises:
        Unusable: it is no folder, or others may enter it and it is not empty: it is not closed
            behind their backs.
    """
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise Unusable("make the deployment", f"{str(path)!r} is no folder", "name another, -d")
    if path.stat().st_mode & 0o077 and any(path.iterdir()):
        raise Unusable(
            "make the deployment",
            f"{str(path)!r} has other files in it, and others may enter it",
            "name a new folder with -d, or close this one with chmod 700",
        )


def make_folder(path: Path) -> None:
    """A folder that nobody else may enter.

    Raises:
        Unusable: as `check_folder`.
    """
    check_folder(path)
    os.makedirs(path.parent, exist_ok=True)
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    os.chmod(path, 0o700)
    sync_directory(path.parent)


def write_new(path: Path, data: bytes, *, owner: Path | None = None) -> None:
    """A file of mode 0600 that is there with all its bytes or not at all; never over another.

    ``owner``: it belongs to the owner of that folder, as `own` does it.

    Raises:
        FileExistsError: there is one already.
    """
    if not write_new_private(path, data):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    if owner is not None:
        own(path, owner)


def own(path: Path, folder: Path) -> None:
    """Where root works in the folder of the server's user, the server must read what is made."""
    if os.geteuid() == 0:
        status = os.stat(folder)
        os.chown(path, status.st_uid, status.st_gid)


def rename(path: Path, by: Path) -> None:
    """Renames ``by`` to ``path``, durably."""
    os.replace(by, path)
    sync_directory(path.parent)


def remove(path: Path) -> None:
    """Deletes a file, durably; it may be gone already."""
    with suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(path.parent)


def key_files(folder: Path) -> Mapping[tuple[int, str], Path]:
    """The server's private keys, by generation and key id, as their names say."""
    found = {}
    for path in sorted((folder / "keys").glob("*-*.*")):
        if path.suffix not in (".pem", ".ref"):
            continue
        generation, _, key_id = path.stem.partition("-")
        if generation.isdecimal() and len(key_id) == 16:
            found[int(generation), key_id] = path
    return found


def key_file(folder: Path, generation: int, key_id: bytes) -> Path:
    """Where the server's private key of that generation lies."""
    return folder / "keys" / f"{generation}-{key_id.hex()}.pem"


def sweep(folder: Path, oldest_generation: int) -> None:
    """Deletes the server's private keys of retired generations."""
    for (generation, _), path in key_files(folder).items():
        if generation < oldest_generation:
            remove(path)

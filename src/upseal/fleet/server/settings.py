# SPDX-License-Identifier: Apache-2.0
"""The deployment's folder as the server reads it: ``deployment.toml`` and the files beside it.

::

    name = "Example"
    deployment = "00112233445566778899aabbccddeeff"
    database = "sqlite:///server.db"  # a relative path begins at the folder; or postgresql://...
    fips = false

    [listen]
    host = "127.0.0.1"
    port = 8450

    [server]                          # all of it optional
    opener_sessions = 262144
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from upseal.fleet.http.rates import Rates
from upseal.fleet.settings import (
    FILE_ONLY,
    LEVELS,
    SECRET,
    SettingsError,
    one_of,
    read_toml,
    section,
)

if TYPE_CHECKING:
    from upseal.fleet.configuration import Schema
    from upseal.fleet.http.serving import ServerTls

_T = TypeVar("_T")

FILE = "deployment.toml"
_OR_NONE = frozenset({"keep_days", "keep_upload_days", "stored_upload_bytes", "upload_rate"})
"""Numbers of ``[server]`` that may be 0."""
DATABASE = "sqlite:///server.db"
HOST, PORT = "127.0.0.1", 8450
FIPS_KINDS = ("p256", "rsa2048", "rsa3072", "rsa4096")
"""Encryption keys for FIPS. The hybrid has X25519 in it, which is not approved."""


@dataclass(frozen=True, slots=True)
class Top:
    """What stands in no table. Whoever acts as administrator reads it in the file as well."""

    deployment: str = field(metadata={FILE_ONLY: True})
    """32 hexadecimal digits that `upseal admin init` has drawn; never change them."""
    name: str = field(default="", metadata={FILE_ONLY: True})
    """1 to 48 printable characters."""
    database: str = field(default=DATABASE, metadata={SECRET: True})
    """A URL of SQLite (a relative path begins at the folder) or ``postgresql://...``. `upseal
    admin` follows the environment in this, too."""
    fips: bool = field(default=False, metadata={FILE_ONLY: True})
    """Keys of P-256 and RSA alone."""


@dataclass(frozen=True, slots=True)
class Listen:
    """The table ``[listen]``."""

    host: str = HOST
    """A name or an address; ``0.0.0.0`` or ``::`` for all."""
    port: int = PORT
    """0 takes a free one; the file ``address`` says which."""


@dataclass(frozen=True)
class Calendar:
    """Of the table ``[admin]``, what the server's page counts by as well: days and hours."""

    manifest_days: int = 90
    """How long a manifest is good."""
    warn_days: int = 21
    """How early `upseal admin status` warns."""
    silent_hours: int = 24
    """Who was not heard for so long is silent."""
    drain_hours: int = 24
    """From the last use of an old key until it is safe to retire."""
    proof_hours: int = 24
    """How long the proof of a key counts for `upseal admin enable`."""
    signing_wait_hours: int = 24
    """From the announcement of a signing key to the switch."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The table ``[server]``: bounds, all with defaults that hold for 100,000 clients."""

    threads: int = 2
    """That open and verify."""
    opener_sessions: int = 262_144
    """Sessions remembered: more than there are clients, or each body costs an unwrap again."""
    max_body: int = 64 << 20
    """Bytes of one request."""
    queue_bytes: int = 256 << 20
    """Bodies in hand at once; beyond it 503 with Retry-After."""
    group_units: int = 8192
    """Units in one transaction."""
    dead_letter_bytes: int = 1 << 30
    """Bytes of bodies that wait for a key whose file is missing."""
    dead_letter_bytes_per_hop: int = 64 << 20
    """Of those, from one agent or relay."""
    unwrap_share: float = 0.05
    """Part of a core that one agent's new sessions may cost; see `Throttle`."""
    unwrap_reserve: float = 5.0
    """Seconds of that at once."""
    relay_factor: float = 10.0
    """A relay gets so many times that."""
    results: int = 262_144
    """Answers, and receipts in them, kept for an hour for /v1/results."""
    uploads_folder: str = ""
    """Where uploads come in and lie; a relative path begins at the folder. "": ``uploads``."""
    upload_bytes: int = 256 << 30
    """Of bodies that are coming in or wait to be opened, by the sizes they declare."""
    upload_size: int = 1 << 40
    """Of one body."""
    uploads_open_per_hop: int = 8
    """Bodies that one agent may have begun and not ended."""
    uploads_hop_share: float = 0.5
    """Part of ``upload_bytes`` that one agent may have."""
    uploads_relay_factor: int = 32
    """A relay may have so many times more begun."""
    uploads_unannounced_hours: float = 24.0
    """How long a whole body waits for the report that announces it."""
    uploads_min_free: int = 256 << 20
    """Bytes that uploads leave free on their disks."""
    upload_expires_hours: float = 24.0
    """Without a byte; then what came of an upload goes."""
    upload_rate: int = 0
    """Bytes a second that are taken in all; 0: no bound."""
    stored_upload_bytes: int = 0
    """Of stored files; beyond it new ones wait. 0: no bound. See `uploads.bound`."""
    connections: int = 8192
    """At once; fewer, with a warning, where the system allows too few open files."""
    grace: int = 20
    """Seconds that running requests get when the server is asked to stop."""
    keep_days: int = 0
    """How long reports are kept after they came in; 0: for ever. See `store.retention`."""
    keep_upload_days: int = 0
    """How long stored files are kept after they came in; 0: for ever. See `uploads.deleting`."""
    log_level: str = "info"
    """``debug``, ``info``, ``warning`` or ``error``."""
    page: bool = True
    """The administrator's page, below ``/admin``."""
    page_session_hours: int = 12
    """From a login until it has to be done again."""
    tls_certificate: str = ""
    """A PEM file, without which the server speaks HTTP; relative paths begin at the folder."""
    tls_key: str = ""
    """Of the certificate, if the private key is in another file."""
    tls_client_ca: str = ""
    """Authorities: only who has a certificate of theirs may connect."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A deployment's folder."""

    folder: Path
    name: str
    deployment: bytes
    database: str
    """SQLite's file (an absolute path), or a URL."""
    host: str = HOST
    port: int = PORT
    fips: bool = False
    limits: Limits = field(default_factory=Limits)
    rates: Rates = field(default_factory=Rates)
    calendar: Calendar = field(default_factory=Calendar)

    @property
    def keys(self) -> Path:
        """The folder of the server's private keys: ``<generation>-<key id>.pem``."""
        return self.folder / "keys"

    @property
    def enrol_key(self) -> Path:
        """The private key that enrolment requests are sealed to."""
        return self.folder / "enrol.pem"

    @property
    def receipt_key(self) -> Path:
        """The key that signs receipts, credentials and capabilities."""
        return self.folder / "receipt.pem"

    @property
    def address(self) -> Path:
        """Where a running server writes its real address: ``HOST:PORT``."""
        return self.folder / "address"

    @property
    def uploads(self) -> Path:
        """The folder of uploads: what comes in, and what is stored."""
        return self.folder / (self.limits.uploads_folder or "uploads")

    def tls(self) -> ServerTls | None:
        """What to serve by TLS with, if the settings say so."""
        from upseal.fleet.http.serving import ServerTls

        limits = self.limits
        if not limits.tls_certificate:
            return None
        names = (limits.tls_certificate, limits.tls_key, limits.tls_client_ca)
        certificate, key, authority = (self.folder / name if name else None for name in names)
        assert certificate is not None
        return ServerTls(certificate, key, authority)


_SECTIONS: Mapping[str, type[Any]] = MappingProxyType(
    {"listen": Listen, "server": Limits, "rates": Rates}
)

_OTHERS = ("admin", "nats")
"""Tables that others read, and check."""


def schema() -> Schema:
    """What can be set, and by which names, but for the tables of others."""
    from upseal.fleet.configuration import schema_of

    return schema_of("server", Top, _SECTIONS, loose=_OTHERS)


def read_settings(folder: str | Path) -> Settings:
    """Reads a deployment's folder.

    Raises:
        SettingsError: something in it is not right.
    """
    return settings_of(*read_table(folder))


def read_table(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """The path of the folder's file, and what stands in it.

    Raises:
        SettingsError: it cannot be read, or is not TOML.
    """
    path = Path(folder).absolute() / FILE
    try:
        return path, read_toml(path)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error


def settings_of(path: Path, found: Mapping[str, Any]) -> Settings:
    """Settings of a table as TOML gives it.

    Args:
        path: the file; its folder is the deployment's.
        found: what counts.

    Raises:
        SettingsError: something in it is not right.
    """
    _known(path, found, {f.name for f in fields(Top)} | {*_SECTIONS, *_OTHERS}, "it")
    deployment = _hex(path, found.get("deployment"))
    listen = found.get("listen", {})
    if not isinstance(listen, dict):
        raise SettingsError(f"{path}: [listen] must be a table")
    _known(path, listen, {f.name for f in fields(Listen)}, "[listen]")
    host, port = _value(path, listen, "host", HOST), _value(path, listen, "port", PORT)
    if not 0 <= port < 1 << 16:
        raise SettingsError(f"{path}: a port is a number from 0 to 65535")
    return Settings(
        path.parent,
        _value(path, found, "name", ""),
        deployment,
        _database(path.parent, _value(path, found, "database", DATABASE)),
        host,
        port,
        _value(path, found, "fips", False),
        _limits(path, found.get("server", {})),
        section(found.get("rates", {}), Rates, "rates"),
        _calendar(path, found.get("admin", {})),
    )


def _known(path: Path, found: Mapping[str, Any], names: set[str], where: str) -> None:
    for name in found:
        if name not in names:
            here = ", ".join(sorted(names))
            raise SettingsError(f"{path}: {where} has no setting {name!r}; here are {here}")


def _database(folder: Path, url: str) -> str:
    if "://" not in url:
        return str(folder / url)
    kind, found, rest = url.partition(":///")
    return str(folder / rest) if kind.startswith("sqlite") and found and rest else url


def _hex(path: Path, value: Any) -> bytes:
    try:
        deployment = bytes.fromhex(value)
    except (TypeError, ValueError):
        deployment = b""
    if len(deployment) != 16:
        raise SettingsError(f"{path}: deployment must be 32 hexadecimal digits")
    return deployment


def _value(path: Path, found: Mapping[str, Any], name: str, default: _T) -> _T:
    value = found.get(name, default)
    if type(value) is not type(default):
        raise SettingsError(f"{path}: {name} must be of type {type(default).__name__}")
    return value


def _limits(path: Path, found: Any) -> Limits:
    if not isinstance(found, dict):
        raise SettingsError(f"{path}: [server] must be a table")
    known: dict[str, type[Any]] = {f.name: type(f.default) for f in fields(Limits)}
    for name, value in found.items():
        if name not in known:
            raise SettingsError(f"{path}: [server] has no {name!r}")
        if type(value) is not known[name]:
            raise SettingsError(f"{path}: {name} must be of type {known[name].__name__}")
        if type(value) is float and not math.isfinite(value):
            raise SettingsError(f"{path}: {name} must be a number with an end")
        if type(value) in (int, float) and (value < 0 or (value == 0 and name not in _OR_NONE)):
            least = "at least 0" if name in _OR_NONE else "above 0"
            raise SettingsError(f"{path}: {name} must be {least}")
    limits = Limits(**found)
    one_of(f"{path}: log_level", limits.log_level, LEVELS)
    return limits


def _calendar(path: Path, found: Any) -> Calendar:
    """The rest of that table is the administrator's alone, who also checks it."""
    if not isinstance(found, dict):
        raise SettingsError(f"{path}: [admin] must be a table")
    defaults: dict[str, Any] = {f.name: f.default for f in fields(Calendar)}
    return Calendar(**{name: _value(path, found, name, usual) for name, usual in defaults.items()})

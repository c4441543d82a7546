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

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from upseal.fleet.settings import SettingsError

if TYPE_CHECKING:
    from upseal.fleet.http.serving import ServerTls

_T = TypeVar("_T")

FILE = "deployment.toml"
DATABASE = "sqlite:///server.db"
HOST, PORT = "127.0.0.1", 8450


@dataclass(frozen=True, slots=True)
class Limits:
    """The table ``[server]``: bounds, all with defaults that hold for 100,000 clients."""

    threads: int = 2
    """That open and verify."""
    opener_sessions: int = 262_144
    """Sessions remembered: more than there are clients, or each body costs an unwrap again."""
    max_body: int = 64 << 20
    queue_bytes: int = 256 << 20
    """Bodies in hand at once; beyond it 503 with Retry-After."""
    group_units: int = 8192
    """Units in one transaction."""
    dead_letter_bytes: int = 1 << 30
    dead_letter_bytes_per_hop: int = 64 << 20
    unwrap_share: float = 0.05
    """Part of a core that one agent's new sessions may cost; see `Throttle`."""
    unwrap_reserve: float = 5.0
    relay_factor: float = 10.0
    results: int = 262_144
    """Answers, and receipts in them, kept for an hour for /v1/results."""
    connections: int = 8192
    grace: int = 20
    """Seconds that running requests get when the server is asked to stop."""
    log_level: str = "info"
    tls_certificate: str = ""
    """PEM files; relative paths begin at the folder."""
    tls_key: str = ""
    tls_client_ca: str = ""


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


def read_settings(folder: str | Path) -> Settings:
    """Reads a deployment's folder.

    Raises:
        SettingsError: something in it is not right.
    """
    path = Path(folder).absolute() / FILE
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    deployment = _hex(path, found.get("deployment"))
    listen = found.get("listen", {})
    if not isinstance(listen, dict):
        raise SettingsError(f"{path}: [listen] must be a table")
    host, port = _value(path, listen, "host", HOST), _value(path, listen, "port", PORT)
    if not 0 <= port < 1 << 16:
        raise SettingsError(f"{path}: there is no port {port}")
    return Settings(
        path.parent,
        _value(path, found, "name", ""),
        deployment,
        _database(path.parent, _value(path, found, "database", DATABASE)),
        host,
        port,
        _value(path, found, "fips", False),
        _limits(path, found.get("server", {})),
    )


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


def _value(path: Path, found: dict[str, Any], name: str, default: _T) -> _T:
    value = found.get(name, default)
    if type(value) is not type(default):
        raise SettingsError(f"{path}: {name} must be of type {type(default).__name__}")
    return value


def _limits(path: Path, found: Any) -> Limits:
    if not isinstance(found, dict):
        raise SettingsError(f"{path}: [server] must be a table")
    known = {f.name: type(f.default) for f in fields(Limits)}
    for name, value in found.items():
        if name not in known:
            raise SettingsError(f"{path}: [server] has no {name!r}")
        if type(value) is not known[name]:
            raise SettingsError(f"{path}: {name} must be of type {known[name].__name__}")
        if isinstance(value, int | float) and value <= 0:
            raise SettingsError(f"{path}: {name} must be above 0")
    return Limits(**found)

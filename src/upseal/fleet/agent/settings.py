# SPDX-License-Identifier: Apache-2.0
"""What an administrator sets for one agent: ``agent.toml``.

Every key has a default but ``parent`` and ``directory``; a key that nobody knows is an error, since
a mistyped one would otherwise be a setting that silently does not hold.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from upseal.fleet.policy import Level

DEFAULT_DIRECTORY = Path("/var/lib/upseal")
FILE_NAME = "agent.toml"
LEVEL_VARIABLE = "UPSEAL_LEVEL"
REPORT_MAX = 1 << 20
"""Bytes of one report; what is longer is an upload."""
NAME_MAX = 128
_SETTINGS_MAX = 1 << 20
_UNIT_REPORTS_MAX = 1 << 16
_UNIT_BYTES_MAX = 4 << 20
_NUMBERS = {"int": (int,), "float": (int, float)}
T = TypeVar("T")


class SettingsError(ValueError):
    """A setting that cannot be meant; says which."""


def _within(where: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise SettingsError(f"{where} must be {least:,g} to {most:,g}, not {value:,g}")


@dataclass(frozen=True, slots=True)
class Batch:
    """When what was reported becomes a unit, and how large one gets."""

    reports: int = 1000
    bytes: int = 1 << 20
    seconds: float = 5.0

    def __post_init__(self) -> None:
        _within("batch.reports", self.reports, 1, _UNIT_REPORTS_MAX)
        _within("batch.bytes", self.bytes, 1, _UNIT_BYTES_MAX)
        _within("batch.seconds", self.seconds, 0, 86400)


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """How much waits on the disk, and what happens at the limit."""

    max_bytes: int = 256 << 20
    full: str = "refuse"
    """``refuse``: `report` raises. ``drop-oldest``: the oldest go, counted and told upwards."""
    min_free: int = 8 << 20
    """Bytes that the spool leaves free on its disk: to take a stored report out needs room too."""

    def __post_init__(self) -> None:
        _within("spool.max_bytes", self.max_bytes, 1 << 16, 1 << 50)
        _within("spool.min_free", self.min_free, 0, 1 << 50)
        if self.full not in ("refuse", "drop-oldest"):
            raise SettingsError(f'spool.full is "refuse" or "drop-oldest", not {self.full!r}')


@dataclass(frozen=True, slots=True)
class Gather:
    """What the agent looks at by itself."""

    interval: float = 900.0
    """Seconds from one look to the next; 0 for none at all."""
    what: tuple[str, ...] | None = None
    """Names of sources; None for all there are."""
    timeout: float = 60.0
    """Seconds that one source may take."""

    def __post_init__(self) -> None:
        _within("gather.interval", self.interval, 0, 30 * 86400)
        _within("gather.timeout", self.timeout, 0.1, 3600)


@dataclass(frozen=True, slots=True)
class Http:
    """How the parent is spoken to."""

    timeout: float = 30.0
    wait: float = 10.0
    """Seconds that the parent may hold an answer back until the receipt is there."""
    ca: str | None = None
    """A PEM file of authorities for the parent's TLS certificate, in place of the system's."""
    certificate: str | None = None
    """A PEM file with our own TLS certificate, where the parent asks for one."""
    key: str | None = None
    """Its private key, if that stands in another file."""

    def __post_init__(self) -> None:
        _within("http.timeout", self.timeout, 0.1, 600)
        _within("http.wait", self.wait, 0, 30)
        if self.key is not None and self.certificate is None:
            raise SettingsError("http.key goes with http.certificate; give both or none")


@dataclass(frozen=True, slots=True)
class Send:
    """The pace of sending."""

    units: int = 4
    """Units on their way to the parent at once."""
    pending: int = 64
    """Units that the parent may have taken and not yet answered for."""
    resend: float = 120.0
    """Seconds without a receipt, growing from try to try, before a unit is sent again."""
    retry: float = 1.0
    """Seconds until something that failed is tried again, growing from failure to failure..."""
    retry_most: float = 300.0
    """...up to this."""
    refresh: float = 60.0
    """Seconds between two looks for a new manifest."""
    beacon: float = 60.0
    """Seconds between two beacons of an agent that withholds."""

    def __post_init__(self) -> None:
        _within("send.units", self.units, 1, 64)
        _within("send.pending", self.pending, 1, 4096)
        _within("send.resend", self.resend, 0.1, 86400)
        _within("send.retry", self.retry, 0.01, 3600)
        _within("send.retry_most", self.retry_most, self.retry, 86400)
        _within("send.refresh", self.refresh, 0.1, 86400)
        _within("send.beacon", self.beacon, 0.1, 86400)


def host_name() -> str:
    """What a client is called unless somebody says otherwise."""
    return socket.gethostname() or "unnamed"


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it. A folder belongs to one agent: keys, spool and what it believes live there."""

    parent: str
    directory: Path = DEFAULT_DIRECTORY
    level: Level = Level.OPTIONAL
    name: str = field(default_factory=host_name)
    fips: bool = False
    """Keys of P-256 instead of X25519 and Ed25519."""
    listen: str | None = None
    """``host:port`` for health and metrics; None for neither."""
    batch: Batch = Batch()
    spool: SpoolLimits = SpoolLimits()
    gather: Gather = Gather()
    http: Http = Http()
    send: Send = Send()
    source: Path | None = field(default=None, compare=False)
    """The file it was read from."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))
        object.__setattr__(self, "parent", checked_url(self.parent))
        checked_name(self.name)
        if self.listen is not None:
            split_listen(self.listen)

    @property
    def kind(self) -> str:
        """Of signing keys."""
        return "p256" if self.fips else "ed25519"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a file. Without ``directory`` in it, the folder is the file's own.

        Raises:
            OSError: it cannot be read.
            SettingsError: something in it is wrong.
        """
        where = Path(path)
        with open(where, "rb") as file:
            data = file.read(_SETTINGS_MAX + 1)
        if len(data) > _SETTINGS_MAX:
            raise SettingsError(f"{where} is longer than any settings")
        try:
            table = tomllib.loads(data.decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{where} is not TOML: {error}") from error
        table.setdefault("directory", str(where.resolve().parent))
        return replace(cls.parse(table), source=where)

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Self:
        """From a table as TOML gives it.

        Raises:
            SettingsError: a key is unknown, missing, of the wrong type or out of bounds.
        """
        given = dict(table)
        for name, section in _SECTIONS.items():
            if name in given:
                given[name] = _read(section, given[name], f"{name}.")
        if "level" in given:
            given["level"] = parse_level(given["level"], "level")
        known = {f.name for f in fields(cls)} - {"source"}
        _check_names(given, known, "")
        for name in ("parent", "directory", "name", "listen"):
            if name in given and not isinstance(given[name], str):
                raise SettingsError(f"{name} must be text")
        if not isinstance(given.get("fips", False), bool):
            raise SettingsError("fips must be true or false")
        if "parent" not in given:
            raise SettingsError('parent is missing; give parent = "https://..."')
        return cls(**given)


_SECTIONS: Mapping[str, type[Any]] = MappingProxyType(
    {"batch": Batch, "spool": SpoolLimits, "gather": Gather, "http": Http, "send": Send}
)


def _check_names(given: Mapping[str, Any], known: set[str], prefix: str) -> None:
    for name in given:
        if name not in known:
            names = ", ".join(sorted(known))
            raise SettingsError(f"there is no setting {prefix}{name}; here are {names}")


def _read(section: type[T], table: Any, prefix: str) -> T:
    """A section's dataclass from its table, every value of the type that the default has."""
    if not isinstance(table, Mapping):
        raise SettingsError(f"{prefix[:-1]} must be a table: [{prefix[:-1]}]")
    types = {f.name: str(f.type) for f in fields(section)}  # type: ignore[arg-type]
    _check_names(table, set(types), prefix)
    values: dict[str, Any] = {}
    for name, value in table.items():
        wanted = types[name]
        if wanted in _NUMBERS:
            right = isinstance(value, _NUMBERS[wanted]) and not isinstance(value, bool)
        elif wanted.startswith("tuple"):
            right = isinstance(value, list) and all(isinstance(v, str) for v in value)
            value = tuple(value) if right else value
        else:
            right = isinstance(value, str)
        if not right:
            raise SettingsError(f"{prefix}{name} must be {_words(wanted)}, not {value!r}")
        values[name] = value
    return section(**values)


def _words(wanted: str) -> str:
    names = {"int": "a whole number", "float": "a number"}
    return names.get(wanted, "a list of texts" if wanted.startswith("tuple") else "text")


def parse_level(value: Any, where: str) -> Level:
    """A level's name.

    Raises:
        SettingsError: there is no such level.
    """
    try:
        if not isinstance(value, str):
            raise ValueError
        return Level.parse(value.strip().lower())
    except ValueError:
        raise SettingsError(f"{where} is required, optional or none, not {value!r}") from None


def level_of_environment() -> Level | None:
    """What ``UPSEAL_LEVEL`` says for this process, if anything.

    Raises:
        SettingsError: it says something else than a level.
    """
    value = os.environ.get(LEVEL_VARIABLE)
    return parse_level(value, LEVEL_VARIABLE) if value else None


def checked_url(url: str) -> str:
    """A parent's address, without a slash at its end.

    Raises:
        SettingsError: it is none that an agent can speak to.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError as error:
        raise SettingsError(f"parent is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"parent must be http://HOST:PORT or https://HOST:PORT, not {url!r}")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise SettingsError("parent is an address alone: no user, query or fragment")
    return url.rstrip("/")


def checked_name(name: str) -> str:
    """A client's name.

    Raises:
        SettingsError: it is empty, too long, or would garble a table of names.
    """
    if not name or len(name) > NAME_MAX or not name.isprintable():
        raise SettingsError(f"name must be 1 to {NAME_MAX} printable characters")
    return name


def split_listen(listen: str) -> tuple[str, int]:
    """``host:port``, also ``[::1]:port``.

    Raises:
        SettingsError: it is not.
    """
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f"listen must be HOST:PORT, not {listen!r}")
    return host, int(port)


def toml_of(settings: Settings) -> str:
    """The file that enrolment writes: what it was told, and nothing that is a default."""
    lines = [f"parent = {_quoted(settings.parent)}", f"name = {_quoted(settings.name)}"]
    lines.append(f"level = {_quoted(settings.level.value)}")
    if settings.fips:
        lines.append("fips = true")
    if settings.http.ca is not None:
        lines += ["", "[http]", f"ca = {_quoted(settings.http.ca)}"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML basic string; names and addresses have no control characters."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

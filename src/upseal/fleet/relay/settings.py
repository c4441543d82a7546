# SPDX-License-Identifier: Apache-2.0
"""What an administrator sets for one relay: ``relay.toml``.

As an agent's settings: every key has a default but ``parent`` and ``directory``, and a key that
nobody knows is an error.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar

from upseal.fleet.agent.settings import (
    SettingsError,
    checked_name,
    checked_url,
    host_name,
    split_listen,
)

DEFAULT_DIRECTORY = Path("/var/lib/upseal-relay")
FILE_NAME = "relay.toml"
_SETTINGS_MAX = 1 << 20
_KINDS: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "str | None": (str,)}
)
_WORDS = MappingProxyType(
    {"int": "a whole number", "float": "a number", "bool": "true or false"}
)  # else it is text
T = TypeVar("T")


def _within(where: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise SettingsError(f"{where} must be {least:,g} to {most:,g}, not {value:,g}")


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much waits on the disk."""

    max_bytes: int = 1 << 30
    max_bodies: int = 200_000
    hop_share: float = 0.5
    """How much of that one agent may hold: one gone wrong must not close the relay for the rest."""
    keep_results: float = 3600.0
    """Seconds that an answer stays for who asks late."""
    result_bytes: int = 256 << 20
    min_free: int = 64 << 20
    """Bytes left free on the disk: to take a body out needs room too."""

    def __post_init__(self) -> None:
        _within("queue.max_bytes", self.max_bytes, 1 << 12, 1 << 50)
        _within("queue.max_bodies", self.max_bodies, 1, 1 << 32)
        _within("queue.hop_share", self.hop_share, 0.001, 1)
        _within("queue.keep_results", self.keep_results, 1, 30 * 86400)
        _within("queue.result_bytes", self.result_bytes, 1 << 12, 1 << 50)
        _within("queue.min_free", self.min_free, 0, 1 << 50)


@dataclass(frozen=True, slots=True)
class Forward:
    """How bodies go up."""

    workers: int = 2
    """Requests to the parent at once."""
    bundle_bytes: int = 4 << 20
    bundle_bodies: int = 256
    pending: int = 10_000
    """Bodies that the parent may have taken and not yet answered for."""
    wait: float = 10.0
    """Seconds that the parent may hold an answer back until the receipts are there."""
    retry: float = 1.0
    """Seconds until something is tried again, growing from try to try."""
    retry_most: float = 60.0

    def __post_init__(self) -> None:
        _within("forward.workers", self.workers, 1, 64)
        _within("forward.bundle_bytes", self.bundle_bytes, 1, 1 << 30)
        _within("forward.bundle_bodies", self.bundle_bodies, 1, 1 << 16)
        _within("forward.pending", self.pending, 1, 1 << 20)
        _within("forward.wait", self.wait, 0, 30)
        _within("forward.retry", self.retry, 0.01, 3600)
        _within("forward.retry_most", self.retry_most, self.retry, 86400)


@dataclass(frozen=True, slots=True)
class Repackage:
    """How a decrypting relay bundles what it opens."""

    records: int = 10_000
    bytes: int = 8 << 20
    """Of one batch, sealed. Not more than the parent takes as one body."""
    window: float = 0.2
    """Seconds that the first body of a batch waits for others."""
    cache: int = 65_536
    """Sessions that the opener remembers: more than there are clients below, or each report costs
    a public-key operation."""
    unwrap_share: float = 0.2
    """Of one core: what new sessions from one hop may cost. Beyond it they are passed on closed."""
    unwrap_reserve: float = 10.0
    """Seconds of that at once."""

    def __post_init__(self) -> None:
        _within("repackage.unwrap_share", self.unwrap_share, 0.0001, 64)
        _within("repackage.unwrap_reserve", self.unwrap_reserve, 0.001, 86400)
        _within("repackage.records", self.records, 1, 1 << 19)
        _within("repackage.bytes", self.bytes, 1 << 10, 1 << 29)
        _within("repackage.window", self.window, 0, 60)
        _within("repackage.cache", self.cache, 0, 1 << 26)


@dataclass(frozen=True, slots=True)
class Http:
    """Above, how the parent is spoken to; below, what is taken."""

    timeout: float = 30.0
    ca: str | None = None
    """A PEM file of authorities for the parent's TLS certificate, in place of the system's."""
    certificate: str | None = None
    """A PEM file with our own TLS certificate, where the parent asks for one."""
    key: str | None = None
    """Its private key, if that stands in another file."""
    max_body: int = 8 << 20
    """Bytes of one request from below."""
    receiving: int = 64 << 20
    """Bytes of all requests that are being read at once."""
    connections: int = 4000
    """From below: one for each agent that waits for its receipts, and some more."""

    def __post_init__(self) -> None:
        _within("http.timeout", self.timeout, 0.1, 600)
        _within("http.max_body", self.max_body, 1 << 10, 1 << 30)
        _within("http.receiving", self.receiving, self.max_body, 1 << 40)
        _within("http.connections", self.connections, 1, 1 << 20)
        if self.key is not None and self.certificate is None:
            raise SettingsError("http.key goes with http.certificate; give both or none")


@dataclass(frozen=True, slots=True)
class Tls:
    """The relay's own listener."""

    certificate: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if self.key is not None and self.certificate is None:
            raise SettingsError("tls.key goes with tls.certificate; give both or none")


@dataclass(frozen=True, slots=True)
class Refresh:
    """How often the relay looks upwards, in seconds."""

    manifest: float = 5.0
    capabilities: float = 600.0
    """Until the relay's own are signed again; any change of them is signed at once."""

    def __post_init__(self) -> None:
        _within("refresh.manifest", self.manifest, 0.05, 86400)
        _within("refresh.capabilities", self.capabilities, 1, 3000)


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it. A folder belongs to one relay: keys, queue and what it believes live there."""

    parent: str
    directory: Path = DEFAULT_DIRECTORY
    name: str = field(default_factory=host_name)
    listen: str = "127.0.0.1:8441"
    decrypting: bool = False
    accepts_sealed: bool = True
    accepts_clear: bool = True
    fips: bool = False
    """Signing keys of P-256 instead of Ed25519."""
    queue: QueueLimits = QueueLimits()
    forward: Forward = Forward()
    repackage: Repackage = Repackage()
    http: Http = Http()
    tls: Tls = Tls()
    refresh: Refresh = Refresh()
    source: Path | None = field(default=None, compare=False)
    """The file it was read from."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))
        object.__setattr__(self, "parent", checked_url(self.parent))
        checked_name(self.name)
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
                part = given.pop(name)
                if not isinstance(part, Mapping):
                    raise SettingsError(f"{name} must be a table: [{name}]")
                given[name] = section(**_checked(part, section, f"{name}."))
        own = {name: value for name, value in given.items() if name not in _SECTIONS}
        own = _checked(own, cls, "")
        if "parent" not in own:
            raise SettingsError('parent is missing; give parent = "https://..."')
        sections = {name: value for name, value in given.items() if name in _SECTIONS}
        return cls(**own, **sections)


_SECTIONS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "queue": QueueLimits,
        "forward": Forward,
        "repackage": Repackage,
        "http": Http,
        "tls": Tls,
        "refresh": Refresh,
    }
)


def _checked(table: Mapping[str, Any], section: type[T], prefix: str) -> dict[str, Any]:
    """The values, each known and of the type that the section has it."""
    types = {
        f.name: "str" if f.type == "Path" else str(f.type)
        for f in fields(section)  # type: ignore[arg-type]
        if f.name != "source"
    }
    for name, value in table.items():
        if name not in types:
            names = ", ".join(sorted(types))
            raise SettingsError(f"there is no setting {prefix}{name}; here are {names}")
        kinds = _KINDS[types[name]]
        # True is an int to Python, and to nobody else.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = _WORDS.get(types[name], "text")
            raise SettingsError(f"{prefix}{name} must be {wanted}, not {value!r}")
    return dict(table)


def toml_of(settings: Settings) -> str:
    """The file that enrolment writes: what it was told, and nothing that is a default."""
    lines = [f"parent = {_quoted(settings.parent)}", f"name = {_quoted(settings.name)}"]
    lines.append(f"listen = {_quoted(settings.listen)}")
    lines += [f"{name} = true" for name in ("decrypting", "fips") if getattr(settings, name)]
    lines += [
        f"{name} = false"
        for name in ("accepts_sealed", "accepts_clear")
        if not getattr(settings, name)
    ]
    if settings.http.ca is not None:
        lines += ["", "[http]", f"ca = {_quoted(settings.http.ca)}"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML basic string: what JSON writes is one, names and addresses being printable."""
    return json.dumps(text, ensure_ascii=False)

# SPDX-License-Identifier: Apache-2.0
"""What an administrator sets for one agent: ``agent.toml``.

Every key has a default but ``parent`` and ``directory``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from upseal.fleet.policy import Level
from upseal.fleet.settings import (
    LEVELS,
    SettingsError,
    checked,
    checked_name,
    checked_parents,
    checked_url,
    host_name,
    one_of,
    quoted,
    read_table,
    split_listen,
    within,
    written,
)

if TYPE_CHECKING:
    from upseal.fleet.configuration import Schema

DEFAULT_DIRECTORY = Path("/var/lib/upseal")
FILE_NAME = "agent.toml"
LEVEL_VARIABLE = "UPSEAL_LEVEL"
REPORT_MAX = 1 << 20
"""Bytes of one report; what is longer is an upload."""
_UNIT_REPORTS_MAX = 1 << 16
_UNIT_BYTES_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class Batch:
    """When what was reported becomes a unit, and how large one gets."""

    reports: int = 1000
    """A unit is made of so many."""
    bytes: int = 1 << 20
    """Or of so many bytes, sealed."""
    seconds: float = 5.0
    """Or so many seconds after the oldest was reported."""

    def __post_init__(self) -> None:
        within("batch.reports", self.reports, 1, _UNIT_REPORTS_MAX)
        within("batch.bytes", self.bytes, 1, _UNIT_BYTES_MAX)
        within("batch.seconds", self.seconds, 0, 86400)


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """How much waits on the disk, and what happens at the limit."""

    max_bytes: int = 256 << 20
    """Sealed bytes that wait."""
    full: str = "refuse"
    """``refuse``: `report` raises. ``drop-oldest``: the oldest go, counted and told upwards."""
    min_free: int = 8 << 20
    """Bytes that the spool leaves free on its disk: to take a stored report out needs room too."""

    def __post_init__(self) -> None:
        within("spool.max_bytes", self.max_bytes, 1 << 16, 1 << 50)
        within("spool.min_free", self.min_free, 0, 1 << 50)
        if self.full not in ("refuse", "drop-oldest"):
            raise SettingsError(f'spool.full is "refuse" or "drop-oldest", not {self.full!r}')


@dataclass(frozen=True, slots=True)
class Uploads:
    """Whole files: how much of them waits on the disk, and how they are sent."""

    max_bytes: int = 16 << 30
    """Sealed bytes that wait in the folder."""
    max_size: int = 1 << 40
    """Bytes of one file."""
    piece: int = 4 << 20
    """Bytes of one request; fewer where the parent takes fewer."""
    throttle: float = 0.0
    """Bytes a second that are sent at most; 0 for no limit."""
    min_free: int = 256 << 20
    """Bytes that are left free on the disk."""

    def __post_init__(self) -> None:
        within("uploads.max_bytes", self.max_bytes, 1 << 16, 1 << 60)
        within("uploads.max_size", self.max_size, 0, 1 << 52)
        within("uploads.piece", self.piece, 1 << 16, 1 << 28)
        within("uploads.throttle", self.throttle, 0, 1 << 50)
        within("uploads.min_free", self.min_free, 0, 1 << 60)


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
        within("gather.interval", self.interval, 0, 30 * 86400)
        within("gather.timeout", self.timeout, 0.1, 3600)


@dataclass(frozen=True, slots=True)
class Http:
    """How the parent is spoken to."""

    timeout: float = 30.0
    """Seconds that the parent may be silent."""
    wait: float = 10.0
    """Seconds that the parent may hold an answer back until the receipt is there."""
    ca: str | None = None
    """A PEM file of authorities for the parent's TLS certificate, in place of the system's."""
    certificate: str | None = None
    """A PEM file with our own TLS certificate, where the parent asks for one."""
    key: str | None = None
    """Its private key, if that stands in another file."""

    def __post_init__(self) -> None:
        within("http.timeout", self.timeout, 0.1, 600)
        within("http.wait", self.wait, 0, 30)
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
        within("send.units", self.units, 1, 64)
        within("send.pending", self.pending, 1, 4096)
        within("send.resend", self.resend, 0.1, 86400)
        within("send.retry", self.retry, 0.01, 3600)
        within("send.retry_most", self.retry_most, self.retry, 86400)
        within("send.refresh", self.refresh, 0.1, 86400)
        within("send.beacon", self.beacon, 0.1, 86400)


@dataclass(frozen=True, slots=True)
class MetricsFile:
    """Metrics in a file, for node_exporter's textfile collector; `Settings.listen` serves them."""

    textfile: str | None = None
    """It ends in ``.prom``; None for no file."""
    interval: float = 15.0
    """Seconds from one writing to the next."""

    def __post_init__(self) -> None:
        within("metrics.interval", self.interval, 0.1, 86400)


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it. A folder belongs to one agent: keys, spool and what it believes live there."""

    parent: str
    """``http://HOST:PORT`` or ``https://HOST:PORT`` of the relay or server above."""
    directory: Path = DEFAULT_DIRECTORY
    """The folder of keys, spool and what is believed. Of a file: the folder that it lies in."""
    level: Level = Level.OPTIONAL
    """``required``, ``optional`` or ``none``. The manifest may say otherwise, and UPSEAL_LEVEL."""
    name: str = field(default_factory=host_name)
    """1 to 128 printable characters; the host's name unless it is set."""
    fips: bool = False
    """Keys of P-256 instead of X25519 and Ed25519."""
    listen: str | None = None
    """``host:port`` for health and metrics; None for neither."""
    log_level: str = "info"
    """``debug``, ``info``, ``warning`` or ``error``."""
    parent_ids: tuple[str, ...] | None = None
    """Whose capabilities count: relay ids, ``server``, or ``any``; None: of who answers first."""
    batch: Batch = Batch()
    spool: SpoolLimits = SpoolLimits()
    uploads: Uploads = Uploads()
    gather: Gather = Gather()
    http: Http = Http()
    send: Send = Send()
    metrics: MetricsFile = MetricsFile()
    source: Path | None = field(default=None, compare=False)
    """The file it was read from."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))
        object.__setattr__(self, "parent", checked_url(self.parent))
        checked_name(self.name)
        one_of("log_level", self.log_level, LEVELS)
        checked_parents(self.parent_ids)
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
        return replace(cls.parse(read_table(where)), source=where)

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Self:
        """From a table as TOML gives it.

        Raises:
            SettingsError: a key is unknown, missing, of the wrong type or out of bounds.
        """
        values = checked({n: v for n, v in table.items() if n != "level"}, cls, _SECTIONS)
        if "level" in table:
            values["level"] = parse_level(table["level"], "level")
        return cls(**values)


_SECTIONS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "batch": Batch,
        "spool": SpoolLimits,
        "uploads": Uploads,
        "gather": Gather,
        "http": Http,
        "send": Send,
        "metrics": MetricsFile,
    }
)


def schema() -> Schema:
    """What can be set, and by which names."""
    from upseal.fleet.configuration import schema_of

    return schema_of("agent", Settings, _SECTIONS)


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


def toml_of(settings: Settings) -> str:
    """The file that enrolment writes: what it was told, and nothing that is a default."""
    lines = [f"parent = {quoted(settings.parent)}", f"name = {quoted(settings.name)}"]
    lines.append(f"level = {quoted(settings.level.value)}")
    if settings.fips:
        lines.append("fips = true")
    http = settings.http
    return written(lines, http.ca, http.certificate, http.key)

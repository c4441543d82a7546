# SPDX-License-Identifier: Apache-2.0
"""What an administrator sets for one relay: ``relay.toml``.

As in an agent's, every key has a default but ``parent`` and ``directory``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from upseal.fleet.http.rates import Rates
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
    from upseal.fleet.http.serving import ServerTls

DEFAULT_DIRECTORY = Path("/var/lib/upseal-relay")
FILE_NAME = "relay.toml"


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much waits on the disk."""

    max_bytes: int = 1 << 30
    """Of bodies that wait; beyond it 503."""
    max_bodies: int = 200_000
    """Likewise."""
    hop_share: float = 0.5
    """How much of that one agent may hold: one gone wrong must not close the relay for the rest."""
    keep_results: float = 3600.0
    """Seconds that an answer stays for who asks late."""
    result_bytes: int = 256 << 20
    """Of answers that stay."""
    min_free: int = 64 << 20
    """Bytes left free on the disk: to take a body out needs room too."""

    def __post_init__(self) -> None:
        within("queue.max_bytes", self.max_bytes, 1 << 12, 1 << 50)
        within("queue.max_bodies", self.max_bodies, 1, 1 << 32)
        within("queue.hop_share", self.hop_share, 0.001, 1)
        within("queue.keep_results", self.keep_results, 1, 30 * 86400)
        within("queue.result_bytes", self.result_bytes, 1 << 12, 1 << 50)
        within("queue.min_free", self.min_free, 0, 1 << 50)


@dataclass(frozen=True, slots=True)
class Forward:
    """How bodies go up."""

    workers: int = 2
    """Requests to the parent at once."""
    bundle_bytes: int = 4 << 20
    """Of one request to the parent."""
    bundle_bodies: int = 256
    """Bodies in one request to the parent."""
    pending: int = 10_000
    """Bodies that the parent may have taken and not yet answered for."""
    wait: float = 10.0
    """Seconds that the parent may hold an answer back until the receipts are there."""
    retry: float = 1.0
    """Seconds until something is tried again, growing from try to try."""
    retry_most: float = 60.0
    """Seconds: up to this."""

    def __post_init__(self) -> None:
        within("forward.workers", self.workers, 1, 64)
        within("forward.bundle_bytes", self.bundle_bytes, 1, 1 << 30)
        within("forward.bundle_bodies", self.bundle_bodies, 1, 1 << 16)
        within("forward.pending", self.pending, 1, 1 << 20)
        within("forward.wait", self.wait, 0, 30)
        within("forward.retry", self.retry, 0.01, 3600)
        within("forward.retry_most", self.retry_most, self.retry, 86400)


@dataclass(frozen=True, slots=True)
class Repackage:
    """How a decrypting relay bundles what it opens."""

    records: int = 10_000
    """Of one batch."""
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
        within("repackage.unwrap_share", self.unwrap_share, 0.0001, 64)
        within("repackage.unwrap_reserve", self.unwrap_reserve, 0.001, 86400)
        within("repackage.records", self.records, 1, 1 << 19)
        within("repackage.bytes", self.bytes, 1 << 10, 1 << 29)
        within("repackage.window", self.window, 0, 60)
        within("repackage.cache", self.cache, 0, 1 << 26)


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Whole files on their way: how much waits on the disk, and how it goes up."""

    max_bytes: int = 64 << 30
    """Of all bodies, as declared. A decrypting relay counts those in clear twice: it seals them."""
    max_size: int = 1 << 40
    """Of one body."""
    open_per_hop: int = 8
    """Bodies that one agent may have begun and not ended."""
    hop_share: float = 0.5
    """How much of ``max_bytes`` one agent may hold."""
    expires: float = 86_400.0
    """Seconds until a body that nobody sends on is thrown away."""
    piece: int = 4 << 20
    """Bytes of one request to the parent. What is taken from below at once is `Http.max_body`."""
    throttle: float = 0.0
    """Bytes a second that go up; 0: no bound."""
    rate: float = 0.0
    """Bytes a second that are taken from below; 0: no bound."""
    workers: int = 2
    """Bodies that go up at once."""
    min_free: int = 256 << 20
    """Bytes left free on the disk."""

    def __post_init__(self) -> None:
        within("uploads.max_bytes", self.max_bytes, 1 << 12, 1 << 60)
        within("uploads.max_size", self.max_size, 1, 1 << 60)
        within("uploads.open_per_hop", self.open_per_hop, 1, 1 << 16)
        within("uploads.hop_share", self.hop_share, 0.001, 1)
        within("uploads.expires", self.expires, 1, 30 * 86400)
        within("uploads.piece", self.piece, 1 << 16, 1 << 28)
        within("uploads.throttle", self.throttle, 0, 1e12)
        within("uploads.rate", self.rate, 0, 1e12)
        within("uploads.workers", self.workers, 1, 64)
        within("uploads.min_free", self.min_free, 0, 1 << 50)


@dataclass(frozen=True, slots=True)
class Http:
    """Above, how the parent is spoken to; below, what is taken."""

    timeout: float = 30.0
    """Seconds that the parent may be silent."""
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
        within("http.timeout", self.timeout, 0.1, 600)
        within("http.max_body", self.max_body, 1 << 10, 1 << 30)
        within("http.receiving", self.receiving, self.max_body, 1 << 40)
        within("http.connections", self.connections, 1, 1 << 20)
        if self.key is not None and self.certificate is None:
            raise SettingsError("http.key goes with http.certificate; give both or none")


@dataclass(frozen=True, slots=True)
class Tls:
    """The relay's own listener."""

    certificate: str | None = None
    """A PEM file; without it the relay speaks HTTP."""
    key: str | None = None
    """A PEM file, if the private key is not in that of the certificate."""
    client_ca: str | None = None
    """A PEM file of authorities: only who has a certificate of theirs may connect."""

    def __post_init__(self) -> None:
        if self.client_ca is not None and self.certificate is None:
            raise SettingsError("tls.client_ca goes with tls.certificate; give both or none")
        if self.key is not None and self.certificate is None:
            raise SettingsError("tls.key goes with tls.certificate; give both or none")


@dataclass(frozen=True, slots=True)
class Refresh:
    """How often the relay looks upwards, in seconds."""

    manifest: float = 5.0
    """Between two looks for a new manifest."""
    capabilities: float = 600.0
    """Until the relay's own are signed again; any change of them is signed at once."""

    def __post_init__(self) -> None:
        within("refresh.manifest", self.manifest, 0.05, 86400)
        within("refresh.capabilities", self.capabilities, 1, 3000)


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it. A folder belongs to one relay: keys, queue and what it believes live there."""

    parent: str
    """``http://HOST:PORT`` or ``https://HOST:PORT`` of the relay or server above."""
    directory: Path = DEFAULT_DIRECTORY
    """The folder of keys, queue and what is believed. Of a file: the folder that it lies in."""
    name: str = field(default_factory=host_name)
    """1 to 128 printable characters; the host's name unless it is set."""
    listen: str = "127.0.0.1:8441"
    """``HOST:PORT``; port 0 takes a free one, and the file ``address`` says which."""
    decrypting: bool = False
    """Opens what comes, and seals it to the server again."""
    accepts_sealed: bool = True
    """Takes sealed reports, and says so, signed."""
    accepts_clear: bool = True
    """Takes reports in clear."""
    fips: bool = False
    """Signing keys of P-256 instead of Ed25519."""
    parent_ids: tuple[str, ...] | None = None
    """Whose capabilities count: relay ids, ``server``, or ``any``; None: of who answers first."""
    log_level: str = "info"
    """``debug``, ``info``, ``warning`` or ``error``."""
    queue: QueueLimits = QueueLimits()
    forward: Forward = Forward()
    repackage: Repackage = Repackage()
    uploads: UploadLimits = UploadLimits()
    http: Http = Http()
    tls: Tls = Tls()
    rates: Rates = field(default_factory=Rates)
    refresh: Refresh = Refresh()
    source: Path | None = field(default=None, compare=False)
    """The file it was read from."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))
        object.__setattr__(self, "parent", checked_url(self.parent))
        checked_name(self.name)
        checked_parents(self.parent_ids)
        one_of("log_level", self.log_level, LEVELS)
        split_listen(self.listen)

    @property
    def kind(self) -> str:
        """Of signing keys."""
        return "p256" if self.fips else "ed25519"

    def server_tls(self) -> ServerTls | None:
        """What to serve by TLS with, if the settings say so."""
        from upseal.fleet.http.serving import ServerTls

        tls = self.tls
        if tls.certificate is None:
            return None
        return ServerTls(tls.certificate, tls.key, tls.client_ca)

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
        return cls(**checked(table, cls, _SECTIONS))


_SECTIONS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "queue": QueueLimits,
        "forward": Forward,
        "repackage": Repackage,
        "uploads": UploadLimits,
        "http": Http,
        "tls": Tls,
        "rates": Rates,
        "refresh": Refresh,
    }
)


def schema() -> Schema:
    """What can be set, and by which names."""
    from upseal.fleet.configuration import schema_of

    return schema_of("relay", Settings, _SECTIONS)


def toml_of(settings: Settings) -> str:
    """The file that enrolment writes: what it was told, and nothing that is a default."""
    lines = [f"parent = {quoted(settings.parent)}", f"name = {quoted(settings.name)}"]
    lines.append(f"listen = {quoted(settings.listen)}")
    lines += [f"{name} = true" for name in ("decrypting", "fips") if getattr(settings, name)]
    lines += [
        f"{name} = false"
        for name in ("accepts_sealed", "accepts_clear")
        if not getattr(settings, name)
    ]
    http = settings.http
    return written(lines, http.ca, http.certificate, http.key)

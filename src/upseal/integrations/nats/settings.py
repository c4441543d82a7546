# SPDX-License-Identifier: Apache-2.0
"""``nats.toml`` of a deployment's folder: which broker, as whom, and how much it may hold.

::

    servers = ["tls://nats-1.example:4222", "tls://nats-2.example:4222"]
    tls_ca = "nats-ca.pem"          # relative paths begin at the deployment's folder
    credentials = "upseal.creds"
    replicas = 3
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from upseal.fleet.settings import SettingsError, read_table, section, within

FILE = "nats.toml"
_SCHEMES = ("nats", "tls")
_SECRET_MAX = 4096


@dataclass(frozen=True, slots=True)
class NatsSettings:
    """What fronts and openers must agree on, and how each gets in."""

    servers: tuple[str, ...] = ()
    """``nats://`` or ``tls://``, host and port; no user and no password."""
    credentials: str = ""
    """A ``.creds`` file, as ``nsc`` writes it."""
    nkey: str = ""
    """A file with an nkey's seed."""
    user: str = ""
    password_file: str = ""
    token_file: str = ""
    tls_ca: str = ""
    """Who has certified the broker; without it, whom the system trusts."""
    tls_certificate: str = ""
    """Shown to the broker."""
    tls_key: str = ""
    anonymous: bool = False
    """Go to a broker that is not on this host without showing who asks."""
    plain: bool = False
    """Go to a broker that is not on this host without TLS."""
    replicas: int = 1
    """Of each message, in a cluster of brokers: 1, 3 or 5."""
    max_bytes: int = 4 << 30
    """That may wait; beyond it agents are told to come back."""
    results_bytes: int = 256 << 20
    """Of results of the last hour, for the fronts."""
    ack_wait: float = 30.0
    """Seconds after which what an opener has not finished goes to another."""
    deliveries: int = 10
    """Of one message; then its bodies become dead letters, unopened."""
    in_hand: int = 64
    """Messages that one opener works on at once."""
    patience: float = 5.0
    """Seconds that a front waits for the broker's word that it has a message."""

    def __post_init__(self) -> None:
        if self.replicas not in (1, 3, 5):
            raise SettingsError(f"nats.replicas is 1, 3 or 5, not {self.replicas}")
        within("nats.max_bytes", self.max_bytes, 1 << 20, 1 << 50)
        within("nats.results_bytes", self.results_bytes, 1 << 20, 1 << 50)
        within("nats.ack_wait", self.ack_wait, 1, 3600)
        within("nats.deliveries", self.deliveries, 2, 1000)
        within("nats.in_hand", self.in_hand, 1, 1000)
        within("nats.patience", self.patience, 0.1, 60)
        if not self.servers:
            raise SettingsError('nats.servers is empty; give servers = ["tls://HOST:4222"]')
        if bool(self.user) != bool(self.password_file):
            raise SettingsError("nats.user and nats.password_file go together")
        if bool(self.tls_key) and not self.tls_certificate:
            raise SettingsError("nats.tls_key has no nats.tls_certificate")
        for url in self.servers:
            self._check(url)

    @property
    def known(self) -> bool:
        """Whether anything says who asks."""
        ways = (self.credentials, self.nkey, self.user, self.token_file, self.tls_certificate)
        return any(ways)

    @property
    def tls(self) -> bool:
        """Whether every connection is by TLS."""
        return bool(self.tls_ca or self.tls_certificate) or all(
            url.startswith("tls:") for url in self.servers
        )

    def _check(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise SettingsError(f"nats.servers: {url!r} is no address: {error}") from None
        if parts.scheme not in _SCHEMES or not host:
            raise SettingsError(f"nats.servers are nats://HOST:PORT or tls://HOST:PORT: {url!r}")
        if parts.username or parts.password:
            raise SettingsError(
                "nats.servers have no user and no password in them; use user and password_file"
            )
        if _is_loopback(host):
            return
        if not self.known and not self.anonymous:
            raise SettingsError(
                f"nats: nothing says who asks at {host}; give credentials, nkey, user, token_file "
                "or tls_certificate, or say anonymous = true"
            )
        if not self.tls and not self.plain:
            raise SettingsError(
                f"nats: {host} is not on this host; use tls://, or say plain = true"
            )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Broker:
    """A deployment's place at its broker: the settings, and the names that follow from its id."""

    settings: NatsSettings
    folder: Path
    deployment: bytes

    @property
    def units(self) -> str:
        """The stream that openers work off."""
        return f"upseal-{self.deployment.hex()}-units"

    @property
    def results(self) -> str:
        """The stream that fronts read."""
        return f"upseal-{self.deployment.hex()}-results"

    def subject(self, what: Literal["units", "results"]) -> str:
        """Of what is published."""
        return f"upseal.{self.deployment.hex()}.{what}"

    def options(self) -> dict[str, Any]:
        """For ``nats.connect``: who we are, and by TLS or not.

        Raises:
            SettingsError: a file cannot be used.
        """
        said = self.settings
        found: dict[str, Any] = {"servers": list(said.servers)}
        if said.credentials:
            found["user_credentials"] = str(self._there("credentials", said.credentials))
        if said.nkey:
            found["nkeys_seed"] = str(self._there("nkey", said.nkey))
        if said.user:
            found["user"] = said.user
            found["password"] = self._secret("password_file", said.password_file)
        if said.token_file:
            found["token"] = self._secret("token_file", said.token_file)
        if said.tls:
            found["tls"] = self._context()
        return found

    def _context(self) -> ssl.SSLContext:
        said = self.settings
        try:
            context = ssl.create_default_context(
                cafile=str(self.folder / said.tls_ca) if said.tls_ca else None
            )
            if said.tls_certificate:
                key = str(self.folder / said.tls_key) if said.tls_key else None
                context.load_cert_chain(str(self.folder / said.tls_certificate), key)
        except OSError as error:  # ssl.SSLError is one
            raise SettingsError(f"nats: the files for TLS cannot be used: {error}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def _there(self, name: str, file: str) -> Path:
        path = self.folder / file
        if not path.is_file():
            raise SettingsError(f"nats.{name}: there is no file {path}")
        return path

    def _secret(self, name: str, file: str) -> str:
        try:
            with open(self.folder / file, encoding="utf-8") as source:
                return source.read(_SECRET_MAX).strip()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise SettingsError(f"nats.{name}: cannot read {self.folder / file}: {why}") from error


def read_nats(folder: Path, deployment: bytes) -> Broker:
    """``nats.toml`` of a deployment's folder.

    Raises:
        SettingsError: it is not there, or something in it is not right.
    """
    path = folder / FILE
    try:
        found = read_table(path)
    except OSError as error:
        raise SettingsError(
            f'cannot read {path}: {error.strerror}; it needs servers = ["tls://HOST:4222"]'
        ) from error
    del found["directory"]
    return Broker(section(found, NatsSettings, "nats"), folder, deployment)

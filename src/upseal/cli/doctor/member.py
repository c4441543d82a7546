# SPDX-License-Identifier: Apache-2.0
"""What ``upseal doctor`` asks of an agent's folder, and of a relay's."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from upseal.cli.common import printable_size
from upseal.cli.doctor import files, manifests, parent
from upseal.cli.doctor.lines import Check, Line, fail, ok, unknown, warn

_STALLED_SECONDS = 900
"""Reports go up within seconds, and a parent may be away for a while."""
_NEARLY_FULL = 0.8
_STATUS_MAX = 1 << 20
_RENEW = "`upseal admin renew` on the server; if that was done, see `parent`: it has not come here"


@dataclass
class Waiting:
    """What waits to be passed on."""

    count: int
    bytes: int
    oldest: int | None
    """Unix milliseconds."""


@dataclass
class Member:
    """One agent's or relay's folder, or its settings file."""

    role: str
    """``agent`` or ``relay``."""
    path: Path
    seconds: float
    """For the parent to answer in."""

    @cached_property
    def settings(self) -> Any:
        """Read once; whoever needs them when they cannot be read has the reason as its line."""
        if self.role == "agent":
            from upseal.fleet.agent.settings import FILE_NAME as AGENT_FILE
            from upseal.fleet.agent.settings import Settings

            return Settings.load(self.path if self.path.is_file() else self.path / AGENT_FILE)
        from upseal.fleet.relay.settings import FILE_NAME as RELAY_FILE
        from upseal.fleet.relay.settings import Settings as RelaySettings

        return RelaySettings.load(self.path if self.path.is_file() else self.path / RELAY_FILE)

    @cached_property
    def folder(self) -> Path:
        """Where it lives: found also where the settings are broken."""
        try:
            return Path(self.settings.directory)
        except (OSError, ValueError):
            return self.path.parent if self.path.is_file() else self.path

    @cached_property
    def asked(self) -> parent.Asked:
        """The parent's answers, asked for once."""
        from upseal.fleet.agent.membership import TRUST
        from upseal.fleet.trust import Trust

        try:
            manifest = Trust.load(self.folder / TRUST).manifest
        except (OSError, ValueError):
            manifest = None
        return parent.ask(self.settings, 0 if manifest is None else manifest.serial, self.seconds)

    @property
    def lock(self) -> Path:
        """Held by the process that runs."""
        return self.folder / ("sender.lock" if self.role == "agent" else "lock")

    @cached_property
    def told(self) -> dict[str, Any]:
        """What the process that runs has written down of itself."""
        try:
            with open(self.folder / "status.json", "rb") as file:
                found = json.loads(file.read(_STATUS_MAX))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def running(self) -> bool:
        """Whether a process runs from this folder."""
        from upseal.fleet.agent.onesender import OneSender

        return OneSender(self.lock).holder() is not None


def checks(member: Member) -> Iterator[tuple[str, Check]]:
    """All of them, for one folder."""
    yield "settings", lambda: _settings(member)
    yield "folder", lambda: files.folder(member.folder)
    yield "enrolment", lambda: _enrolment(member)
    yield "keys", lambda: _keys(member)
    yield "manifest", lambda: _manifest(member)
    yield "parent", _with_settings(member, "parent", _reached)
    yield "clock", _with_settings(member, "clock", lambda m: parent.clock(m.asked))
    yield "parent-manifest", _with_settings(member, "parent-manifest", _believed)
    yield "process", lambda: _process(member)
    yield "queue", _with_settings(member, "queue", _waiting)
    yield "disk", _with_settings(member, "disk", _disk)
    yield "tls", _with_settings(member, "tls", _tls)
    yield "fips", _with_settings(member, "fips", _fips)


def _with_settings(member: Member, name: str, check: Callable[[Member], Iterator[Line]]) -> Check:
    """Without settings it cannot be found out; why not stands in the line about them."""

    def checked() -> Iterator[Line]:
        try:
            member.settings  # noqa: B018 - read here
        except (OSError, ValueError):
            yield unknown(name, "the settings cannot be read", "see `settings`")
            return
        yield from check(member)

    return checked


def _settings(member: Member) -> Iterator[Line]:
    make = f"check the path; `upseal {member.role} enrol -d DIR` makes one"
    try:
        found = member.settings
    except OSError as error:
        yield fail("settings", f"{error.filename}: {error.strerror}", make)
    except ValueError as error:
        yield fail("settings", f"cannot be used: {error}", "mend the file")
    else:
        yield ok("settings", f"{found.source}: {found.name}, parent {found.parent}")


def _enrolment(member: Member) -> Iterator[Line]:
    from upseal.fleet.agent.membership import Credentials, NotEnrolled

    try:
        me = Credentials.load(member.folder)
    except NotEnrolled as error:
        yield fail("enrolment", str(error), f"`upseal {member.role} enrol`")
    except (ValueError, TypeError) as error:
        yield fail("enrolment", f"a key of it cannot be used: {error}", "see `keys`")
    else:
        yield ok("enrolment", f"{me.agent.hex()} of deployment {me.deployment.hex()}")


def _keys(member: Member) -> Iterator[Line]:
    owner = member.folder.stat().st_uid
    for name in ("identity.pem", "hop.pem"):
        yield from files.private(member.folder / name, "signing", owner)
    if member.role == "agent":
        yield from files.private(member.folder / "spool.pem", "encryption", owner)
        return
    for path in sorted((member.folder / "keys").glob("*-*.pem")):
        yield from files.private(path, "encryption", owner)
    yield from files.references(member.folder / "keys")


def _manifest(member: Member) -> Iterator[Line]:
    from upseal.fleet.agent.membership import TRUST
    from upseal.fleet.trust import Trust, TrustError

    try:
        trust = Trust.load(member.folder / TRUST)
    except FileNotFoundError:
        yield fail(
            "manifest", f"{member.folder / TRUST} is missing", f"`upseal {member.role} enrol`"
        )
        return
    except TrustError as error:
        yield fail("manifest", str(error), "restore trust.json from a backup, or enrol again")
        return
    if trust.manifest is not None:
        yield from manifests.lines(trust.manifest, _RENEW)
    yield from manifests.pinned(dict(trust.pinned()))
    for alarm in trust.alarms:
        yield fail(
            "manifest",
            f"two manifests of serial {alarm.serial} were signed: seen "
            f"{manifests.day(alarm.milliseconds)}",
            "ask who holds the signing key; `upseal admin audit` has its acts",
        )


def _reached(member: Member) -> Iterator[Line]:
    return parent.reached(member.settings, member.asked)


def _believed(member: Member) -> Iterator[Line]:
    return parent.believed(member.settings, member.asked)


def _process(member: Member) -> Iterator[Line]:
    if not member.running:
        yield warn(
            "process",
            "no process runs from this folder",
            f"start it: systemctl start upseal-{member.role}, or `upseal {member.role} run`",
        )
        return
    trouble = member.told.get("trouble") or member.told.get("why_not_ready")
    if trouble:
        yield warn("process", f"it runs, and says: {trouble}", "see `parent`, and its log")
    elif member.told.get("actual") == "withheld":
        yield warn(
            "process",
            f"it runs, and withholds: {member.told.get('why')}",
            "a `required` client sends only what it can seal: see `certificate`, `capabilities`",
        )
    else:
        yield ok("process", "it runs")


def _waiting(member: Member) -> Iterator[Line]:
    agent = member.role == "agent"
    limits = member.settings.spool if agent else member.settings.queue
    path = member.folder / ("spool.db" if agent else "queue.db")
    if not path.exists():
        yield ok("queue", "nothing was ever kept here")
        return
    try:
        found = _spooled(path) if agent else _queued(path)
    except sqlite3.DatabaseError as error:
        yield fail("queue", f"{path} cannot be read: {error}", "move it away, and look at it")
        return
    age = 0.0 if found.oldest is None else max(0.0, time.time() - found.oldest / 1000)
    room = f"{printable_size(found.bytes)} of {printable_size(limits.max_bytes)}"
    what = f"{found.count:,} waiting, {room}"
    if found.count:
        what += f", the oldest {age:,.0f} s old"
    if found.bytes >= limits.max_bytes:
        yield fail("queue", f"{what}: full, and nothing more is taken", "see `parent`")
    elif found.count and age > _STALLED_SECONDS:
        yield fail("queue", f"{what}: nothing goes up", "see `process` and `parent`")
    elif found.bytes >= _NEARLY_FULL * limits.max_bytes:
        yield warn("queue", f"{what}: soon full", "see `parent`, or raise max_bytes")
    elif found.count and not member.running:
        yield warn("queue", f"{what}, and nobody sends them", "see `process`")
    else:
        yield ok("queue", what)


def _spooled(path: Path) -> Waiting:
    with _looking(path) as db:
        made, stored, lost, size = db.execute(
            "SELECT made, stored, lost, bytes FROM state"
        ).fetchone()
        (oldest,) = db.execute("SELECT min(made) FROM reports").fetchone()
    return Waiting(made - stored - lost, size, oldest)


def _queued(path: Path) -> Waiting:
    with _looking(path) as db:
        return Waiting(
            *db.execute(
                "SELECT count(*), coalesce(sum(size), 0), min(received) FROM bodies "
                "WHERE done IS NULL"
            ).fetchone()
        )


@contextmanager
def _looking(path: Path) -> Iterator[sqlite3.Connection]:
    """A database that is only looked at: not even SQLite's own files beside it are made."""
    used = path.with_name(path.name + "-wal").exists()
    uri = f"{path.absolute().as_uri()}?{'mode=ro' if used else 'immutable=1'}"
    with closing(sqlite3.connect(uri, uri=True, timeout=5)) as db:
        yield db


def _disk(member: Member) -> Iterator[Line]:
    settings = member.settings
    if member.role == "agent":
        least = max(settings.spool.min_free, settings.uploads.min_free)
        name = "spool.min_free, uploads.min_free"
        return files.disk(member.folder, least, "reports or files are", name)
    least = max(settings.queue.min_free, settings.uploads.min_free)
    return files.disk(
        member.folder, least, "what agents send is", "queue.min_free, uploads.min_free"
    )


def _tls(member: Member) -> Iterator[Line]:
    http = member.settings.http
    yield from files.authorities("http.ca", http.ca)
    yield from files.tls("http.certificate", http.certificate, http.key)
    if member.role == "relay":
        own = member.settings.tls
        yield from files.tls("tls.certificate", own.certificate, own.key)
        yield from files.authorities("tls.client_ca", own.client_ca)


def _fips(member: Member) -> Iterator[Line]:
    from upseal.engine import fips

    if member.settings.fips and fips.mode() is None:
        yield warn(
            "fips",
            "`fips = true` gives keys of approved kinds, and no work is in a FIPS provider",
            f"set {fips.VARIABLE}=1 for its process as well; docs/fips.md says how",
        )
    elif fips.mode() is not None and not member.settings.fips:
        yield warn(
            "fips",
            "FIPS mode is on, and `fips = true` is not set: keys made here may be of other kinds",
            "set fips = true; enrol anew if a key above is no ES256 or p256",
        )

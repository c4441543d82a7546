# SPDX-License-Identifier: Apache-2.0
"""What ``upseal doctor`` asks of a deployment's folder: keys, database, manifest, disk, TLS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from upseal.cli.doctor import files, manifests
from upseal.cli.doctor.lines import Check, Line, fail, ok, unknown, warn

_DAY_MS = 86_400_000
_RENEW = "`upseal admin renew`"


class _DatabaseError(Exception):
    """What is wrong with it, in words that hold no password."""


@dataclass
class Server:
    """A deployment's folder."""

    path: Path
    seconds: float
    """For a database elsewhere to answer in."""

    @cached_property
    def settings(self) -> Any:
        """Read once."""
        from upseal.fleet.server.settings import read_settings

        return read_settings(self.path)


def checks(server: Server) -> Iterator[tuple[str, Check]]:
    """All of them."""
    yield "settings", lambda: _settings(server)
    yield "folder", lambda: files.folder(server.path)
    yield "keys", lambda: _keys(server)
    yield "database", lambda: _database(server)
    yield "manifest", lambda: _manifest(server)
    yield "alarms", lambda: _alarms(server)
    yield "disk", lambda: _disk(server)
    yield "tls", lambda: _tls(server)
    yield "fips", lambda: _fips(server)


def _readable(server: Server) -> bool:
    try:
        server.settings  # noqa: B018 - read here
    except ValueError:
        return False
    return True


def _settings(server: Server) -> Iterator[Line]:
    try:
        found = server.settings
    except ValueError as error:
        yield fail(
            "settings",
            str(error),
            "name the deployment's folder, or mend its deployment.toml",
        )
        return
    yield ok("settings", f"{found.name}, {found.deployment.hex()}, at {found.host}:{found.port}")
    if found.address.exists():
        yield ok("process", f"a server says it listens at {found.address.read_text().strip()}")
    else:
        yield warn("process", "no server runs from this folder", "`upseal server run -d DIR`")


def _keys(server: Server) -> Iterator[Line]:
    owner = server.path.stat().st_uid
    yield from files.private(server.path / "enrol.pem", "encryption", owner)
    yield from files.private(server.path / "receipt.pem", "signing", owner)
    for path in sorted((server.path / "keys").glob("*-*.pem")):
        yield from files.private(path, "encryption", owner)
    yield from files.references(server.path / "keys")
    for name in ("signing.pem", "ca.key"):  # the administrator may keep them elsewhere
        if (server.path / name).exists():
            yield from files.private(server.path / name, "signing", owner)


@contextmanager
def _connected(server: Server) -> Iterator[Any]:
    """The database, to look at: SQLite's file is opened so that nothing can be written."""
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    database = server.settings.database
    if "://" not in database:
        path = Path(database)
        if not path.is_file():
            raise _DatabaseError(f"there is no file {path}")
        used = path.with_name(path.name + "-wal").exists()
        how = "mode=ro" if used else "immutable=1"
        file = f"sqlite+pysqlite:///{path.absolute().as_uri()}?{how}&uri=true"
        engine = sqlalchemy.create_engine(file, hide_parameters=True)
    else:
        try:
            url = sqlalchemy.make_url(database).set(drivername="postgresql+psycopg")
        except (sqlalchemy.exc.ArgumentError, ValueError):  # the latter of what it takes for a port
            raise _DatabaseError("`database` is no URL") from None  # it may hold a password
        seconds = max(1, round(server.seconds))
        engine = sqlalchemy.create_engine(
            url,
            hide_parameters=True,
            connect_args={
                "connect_timeout": seconds,
                "options": f"-c default_transaction_read_only=on -c statement_timeout={seconds}s",
            },
        )
    try:
        with engine.connect() as db:
            yield db
    except SQLAlchemyError as error:
        words = " ".join(str(getattr(error, "orig", None) or type(error).__name__).split())
        raise _DatabaseError(words[:300]) from None
    finally:
        engine.dispose()


def _asked(server: Server, check: str, seen: Any) -> Iterator[Line]:
    """What ``seen`` says of a connection; an unusable database is a line of `_database` alone."""
    if not _readable(server):
        yield unknown(check, "the settings cannot be read", "see `settings`")
        return
    try:
        with _connected(server) as db:
            found = list(seen(db))
    except _DatabaseError:
        yield unknown(check, "the database cannot be read", "see `database`")
        return
    yield from found


def _database(server: Server) -> Iterator[Line]:
    from sqlalchemy import select

    from upseal.fleet.server import tables

    if not _readable(server):
        yield unknown("database", "the settings cannot be read", "see `settings`")
        return
    rows: dict[str, str] = {}
    try:
        with _connected(server) as db:
            columns = select(tables.meta.c.name, tables.meta.c.value)
            rows = {row.name: row.value for row in db.execute(columns)}
            kind = db.dialect.name
    except _DatabaseError as error:
        yield fail("database", f"cannot be used: {error}", "check `database` in deployment.toml")
        return
    version = rows.get("schema")
    if version != str(tables.SCHEMA):
        yield fail(
            "database",
            f"{kind}: tables of version {version}, and this upseal knows {tables.SCHEMA}",
            "use the release that made it, or restore its backup",
        )
    elif rows.get("deployment") != server.settings.deployment.hex():
        yield fail("database", f"{kind}: another deployment's", "check `database`")
    else:
        yield ok("database", f"{kind}, tables of version {version}")


def _manifest(server: Server) -> Iterator[Line]:
    from sqlalchemy import select

    from upseal.fleet.server import tables
    from upseal.fleet.server.published import read_manifest

    def seen(db: Any) -> Iterator[Line]:
        newest = select(tables.manifests.c.jws).order_by(tables.manifests.c.serial.desc()).limit(1)
        token = db.execute(newest).scalar_one_or_none()
        if token is None:
            yield fail("manifest", "there is none", "`upseal admin recover`")
            return
        try:
            manifest = read_manifest(token)
        except ValueError as error:
            yield fail("manifest", f"the newest is none: {error}", "`upseal admin recover`")
            return
        yield from manifests.lines(manifest, _RENEW)
        yield from manifests.pinned(dict(manifest.signers()))
        for key in manifest.encryption:
            path = server.settings.keys / f"{key.generation}-{key.public().key_id.hex()}.pem"
            if not path.is_file() and not path.with_suffix(".ref").is_file():
                yield fail(
                    "keys",
                    f"{path} is missing: what clients seal now waits as dead letters",
                    "restore it from a backup; the server takes it up by itself",
                )

    return _asked(server, "manifest", seen)


def _alarms(server: Server) -> Iterator[Line]:
    from sqlalchemy import func, select

    from upseal.fleet.server import tables

    def seen(db: Any) -> Iterator[Line]:
        since = time.time_ns() // 1_000_000 - _DAY_MS
        last = tables.alarms.c.last >= since
        kinds = db.execute(select(tables.alarms.c.kind).where(last).distinct()).scalars().all()
        if kinds:
            yield warn(
                "alarms",
                f"within a day: {', '.join(sorted(kinds))}",
                "`upseal server alarms` says whose, and docs/cli.md what each means",
            )
        else:
            yield ok("alarms", "none within a day")
        letters = db.execute(select(func.count()).select_from(tables.dead_letters)).scalar_one()
        if letters:
            yield warn(
                "dead-letters",
                f"{letters:,} bodies wait for a key, or cannot be opened",
                "`upseal server deadletters` lists them",
            )
        else:
            yield ok("dead-letters", "none")

    return _asked(server, "alarms", seen)


def _disk(server: Server) -> Iterator[Line]:
    if not _readable(server):
        yield unknown("disk", "the settings cannot be read", "see `settings`")
        return
    limits, folder = server.settings.limits, server.settings.uploads
    where = folder if folder.exists() else server.path
    name = "server.uploads_min_free"
    yield from files.disk(where, limits.uploads_min_free, "reports or files are", name)


def _tls(server: Server) -> Iterator[Line]:
    if not _readable(server):
        yield unknown("tls", "the settings cannot be read", "see `settings`")
        return
    limits = server.settings.limits
    named = (limits.tls_certificate, limits.tls_key, limits.tls_client_ca)
    certificate, key, authority = (server.settings.folder / n if n else None for n in named)
    yield from files.tls("server.tls_certificate", certificate, key)
    yield from files.authorities("server.tls_client_ca", authority)
    if (server.path / "ca.pem").exists():
        yield from files.authorities("the deployment's CA", server.path / "ca.pem")


def _fips(server: Server) -> Iterator[Line]:
    from upseal.engine import fips

    if not _readable(server):
        return
    if server.settings.fips and fips.mode() is None:
        yield warn(
            "fips",
            "`fips = true` takes keys of approved kinds alone, and no work is in a FIPS provider",
            f"set {fips.VARIABLE}=1 for the server as well; docs/fips.md says how",
        )
    elif fips.mode() is not None and not server.settings.fips:
        yield warn(
            "fips",
            "FIPS mode is on, and the deployment takes keys of every kind",
            "set fips = true in deployment.toml",
        )

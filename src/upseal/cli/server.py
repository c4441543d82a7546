# SPDX-License-Identifier: Apache-2.0
"""``upseal server``: runs a deployment's server, and looks at what it has stored."""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upseal.cli import health, server_backup, server_nats
from upseal.cli.common import BAD, IO, OK, USAGE, Failure, complain, doing, positive
from upseal.cli.configured import (
    add_configuration,
    asked_only,
    blaming,
    flags_of,
    service_of_process,
    show_or_check,
    tried,
)
from upseal.cli.members import LOG_LEVELS, acts_of

if TYPE_CHECKING:
    from upseal.fleet.configuration import Layers
    from upseal.fleet.server.settings import Settings

_NOTE = """\
environment:
  UPSEAL_DEPLOYMENT  the deployment's folder, in place of -d

examples:
  upseal server run -d /srv/upseal --listen 0.0.0.0:8450
  upseal server front -d /srv/upseal     # and, as often as you like, also on other hosts:
  upseal server open -d /srv/upseal
  upseal server reports -d /srv/upseal --client web-1 --since 1h
  upseal server reports -d /srv/upseal --json > reports.jsonl
  upseal server deadletters replay -d /srv/upseal
  upseal server trace 3f2a9c0d51e7-17 -d /srv/upseal
  upseal server alarms -d /srv/upseal
  upseal server backup -d /srv/upseal -r backup.pub.pem /backup/today.sealed
  upseal server restore -d /srv/upseal -i backup.pem /backup/today.sealed
  upseal server uploads -d /srv/upseal --client web-1
  upseal server uploads -d /srv/upseal --get web-1/0123456789abcdef0123456789abcdef -o file
  upseal server uploads -d /srv/upseal --delete web-1/0123456789abcdef0123456789abcdef
"""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its acts."""
    add = acts_of(parser, _NOTE)

    def act(name: str, about: str) -> argparse.ArgumentParser:
        made = add(name, about)
        made.add_argument(
            "-d", "--deployment", metavar="DIR", help="its folder (else UPSEAL_DEPLOYMENT, or .)"
        )
        return made

    run = act("run", "serve, until told to stop")
    run.add_argument(
        "--listen", metavar="HOST:PORT", help="in place of the settings'; port 0: a free one"
    )
    run.add_argument("--log-level", choices=LOG_LEVELS)
    add_configuration(run)

    server_nats.arguments(act)
    server_backup.arguments(act)

    health.add_ready(act(*health.ABOUT))

    reports = act("reports", "print stored reports, in the order they came in")
    reports.add_argument("--client", metavar="NAME", help="of this client: its name or id")
    for name, about in (("--since", "received at or after"), ("--until", "received before")):
        reports.add_argument(name, metavar="WHEN", type=_moment, help=f"{about}: 2h, 7d, a date")
    reports.add_argument("--after", metavar="ID", type=int, default=0, help="behind this report")
    reports.add_argument("--limit", metavar="N", type=positive, help="so many at most")
    reports.add_argument("--json", action="store_true", help="one object a line")

    letters = act("deadletters", "list, replay or drop what came in and could not be opened")
    letters.add_argument("what", nargs="?", choices=("list", "replay", "drop"), default="list")
    letters.add_argument(
        "--id", metavar="ID", action="append", help="of these: the beginning will do"
    )
    letters.add_argument("--all", action="store_true", help="with drop: all of them")
    letters.add_argument("--json", action="store_true", help="one object, for machines")

    trace = act("trace", "show what is known of a report, or of the unit it came in")
    trace.add_argument(
        "what", metavar="REPORT-ID|UNIT", help="a report's id, or EPOCH-SEQUENCE as logs name it"
    )
    trace.add_argument("--json", action="store_true", help="one object, for machines")

    alarms = act("alarms", "list what somebody should look at, newest first")
    alarms.add_argument(
        "--since", metavar="WHEN", type=_moment, help="last seen at or after: 2h, 7d, a date"
    )
    alarms.add_argument("--limit", metavar="N", type=positive, help="so many at most")
    alarms.add_argument("--json", action="store_true", help="one object, for machines")

    uploads = act("uploads", "list files that are stored, as they came in; copy one; delete some")
    uploads.add_argument("--client", metavar="NAME", help="of this client: its name or id")
    uploads.add_argument(
        "--since", metavar="WHEN", type=_moment, help="received at or after: 2h, 7d, a date"
    )
    uploads.add_argument(
        "--get", metavar="CLIENT/UPLOAD", help="copy this one: a client's name or id, and its id"
    )
    uploads.add_argument("-o", "--output", metavar="FILE", help="where to; default: stdout")
    uploads.add_argument(
        "--delete", metavar="CLIENT/UPLOAD", nargs="+", action="extend",
        help="delete these files; that they were stored stays known",
    )  # fmt: skip
    uploads.add_argument("--deleted", action="store_true", help="list those that are gone as well")
    uploads.add_argument("--json", action="store_true", help="one object a line")


def run(args: argparse.Namespace) -> int:
    """Does one of them."""
    try:
        from sqlalchemy.exc import SQLAlchemyError

        from upseal.fleet.server.store import Store, StoreError
        from upseal.fleet.settings import SettingsError
    except ModuleNotFoundError as error:
        raise Failure(
            USAGE, f"this needs the package {error.name}; pip install 'upseal[fleet]'"
        ) from error
    try:
        if args.act == "run":
            return _looked_at(args) if asked_only(args) else _run(args)
        if args.act == "health":
            found = _settings(args)
            tls = found.tls() is not None
            return health.serving(found.folder, tls=tls, ready=args.ready)
        if args.act in server_nats.ACTS:
            return server_nats.run(args, _settings(args), _more_files)
        if args.act in server_backup.ACTS:
            return server_backup.run(args, _settings)
        from upseal.cli import server_queries as queries
        from upseal.cli.server_trace import trace
        from upseal.cli.server_uploads import uploads

        acts = {
            "reports": queries.reports, "deadletters": queries.dead_letters,
            "alarms": queries.alarms, "trace": trace,
        }  # fmt: skip
        settings = _settings(args)
        with Store.open(settings.database) as store:
            if args.act == "uploads":
                return uploads(args, store, settings)
            return acts[args.act](args, store)
    except SettingsError as error:
        raise Failure(
            BAD, f"{error}; name the deployment's folder with -d, or mend its deployment.toml"
        ) from error
    except StoreError as error:
        raise Failure(IO, f"{error}; check `database` in deployment.toml") from error
    except SQLAlchemyError as error:
        words = str(getattr(error, "orig", None) or type(error).__name__).partition("\n")[0]
        raise Failure(IO, f"the database failed: {words}; try again") from error


def _settings(args: argparse.Namespace) -> Settings:
    """Those of the folder, of the environment, and of ``run``'s options."""
    return _configured(args)[0]


def _configured(args: argparse.Namespace) -> tuple[Settings, Layers, Path]:
    from upseal.fleet.configuration import Flag, layered
    from upseal.fleet.server.settings import read_table, schema, settings_of
    from upseal.fleet.settings import split_listen

    flags = [*flags_of(args, {"log_level": "server.log_level"})]
    if getattr(args, "listen", None) is not None:
        try:
            host, port = split_listen(args.listen)
        except ValueError as error:
            raise Failure(USAGE, f"--listen: {error}") from error
        flags += [Flag("listen.host", host, "--listen"), Flag("listen.port", str(port), "--listen")]
    path, found = read_table(args.deployment or os.environ.get("UPSEAL_DEPLOYMENT") or ".")
    layers = layered(schema(), found, flags=flags)
    with blaming(layers):
        return settings_of(path, layers.table), layers, path


def _looked_at(args: argparse.Namespace) -> int:
    from upseal.fleet.settings import SettingsError

    try:
        settings, layers, path = _configured(args)
    except SettingsError as error:
        raise Failure(USAGE, f"the settings cannot be used: {error}") from error
    if (tls := settings.tls()) is not None:
        tried("tls", (tls.certificate, tls.key, tls.client_ca), tls.context)
    show_or_check(args, layers, path)
    return OK


def _run(args: argparse.Namespace) -> int:
    from upseal.fleet.http import logs
    from upseal.fleet.server import app

    settings = _settings(args)
    handler = logs.setup(level=settings.limits.log_level)
    service = service_of_process()
    try:
        _more_files(settings.limits.connections)
        with doing(f"serve at {settings.host}:{settings.port}"):
            app.run(settings, service=service)
    except app.AlreadyRunning as error:
        raise Failure(IO, f"{error}; stop it first") from error
    finally:
        service.close()
        logging.getLogger().removeHandler(handler)
    return OK


def _more_files(connections: int) -> None:
    """Each connection is an open file, and the usual limit of 1024 is for other programs."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 256
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        complain(f"warning: only {most} files may be open, for {connections} connections")


def _moment(text: str) -> int:
    """An argument type: ``2h`` ago, or a date with or without a time; in unix milliseconds."""
    now = datetime.datetime.now(datetime.UTC)
    match = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip())
    try:
        if match is not None:
            when = now - datetime.timedelta(seconds=int(match[1]) * _UNITS[match[2]])
        else:
            when = datetime.datetime.fromisoformat(text.strip()).astimezone()
        return max(0, int(when.timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; 30m, 7d, 2026-11-23 and 2026-11-23T10:00 are"
        ) from None


__all__: list[Any] = ["arguments", "run"]

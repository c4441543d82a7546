# SPDX-License-Identifier: Apache-2.0
"""``upseal relay``: takes bodies from below, keeps them, passes them on or repackages them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upseal.cli.agent import TOKEN_VARIABLE, token_of
from upseal.cli.common import (
    BAD,
    IO,
    OK,
    USAGE,
    Failure,
    doing,
    printable_size,
    say,
    say_json,
    shown,
    table,
)

if TYPE_CHECKING:
    from upseal.fleet.relay.settings import Settings

DIRECTORY = "/var/lib/upseal-relay"  # as upseal.fleet.relay.settings.DEFAULT_DIRECTORY
_NOTE = """\
examples:
  upseal relay enrol --parent https://server.example:8450 --token-file token --decrypting
  upseal relay run -d /var/lib/upseal-relay --listen 0.0.0.0:8441
  upseal relay status --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.epilog = _NOTE
    acts = parser.add_subparsers(dest="act", metavar="ACT", title="acts", required=True)

    def act(name: str, about: str) -> argparse.ArgumentParser:
        text = about[0].upper() + about[1:] + "."
        return acts.add_parser(name, help=about, description=text, allow_abbrev=False)

    enrol = act("enrol", "join a deployment by a token")
    enrol.add_argument("--parent", metavar="URL", required=True, help="the next relay, or server")
    enrol.add_argument(
        "--token",
        metavar="TOKEN",
        help=f"from `upseal admin token`; others see it here: better {TOKEN_VARIABLE}, or a file",
    )
    enrol.add_argument("--token-file", metavar="FILE", help="the token; - for standard input")
    enrol.add_argument("--name", help="what the relay is called (default: this host's name)")
    enrol.add_argument(
        "--decrypting", action="store_true", help="open what comes, and seal it to the server again"
    )
    enrol.add_argument(
        "--refuse-sealed", action="store_true", help="take no sealed reports (and say so, signed)"
    )
    enrol.add_argument("--listen", metavar="HOST:PORT", help="where it will take requests")
    enrol.add_argument("--fips", action="store_true", help="keys of P-256 only")
    enrol.add_argument("--ca", metavar="FILE", help="authorities for the parent's TLS certificate")
    _add_directory(enrol)
    _add_json(enrol)

    run = act("run", "take, keep and pass on, until told to stop")
    _add_settings(run)
    run.add_argument(
        "--listen", metavar="HOST:PORT", help="in place of the settings'; port 0 takes a free one"
    )
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")

    status = act("status", "say what waits, which keys there are, and what is wrong")
    _add_settings(status)
    _add_json(status)


def _add_directory(parser: Any) -> None:
    parser.add_argument(
        "-d", "--directory", metavar="DIR", help=f"the relay's folder (default: {DIRECTORY})"
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-c", "--config", metavar="FILE", help="settings (default: DIR/relay.toml)")
    _add_directory(group)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """Does one of them."""
    try:
        from upseal.fleet.agent.membership import NotEnrolled
        from upseal.fleet.agent.settings import SettingsError
        from upseal.fleet.relay.state import AlreadyRunning
    except ImportError as error:
        raise Failure(USAGE, f"{error.name} is not installed; pip install upseal[fleet]") from error
    try:
        return {"enrol": _enrol, "run": _run, "status": _status}[args.act](args)
    except SettingsError as error:
        raise Failure(USAGE, f"the settings cannot be used: {error}") from error
    except NotEnrolled as error:
        raise Failure(USAGE, f"{error}; `upseal relay enrol` makes one") from error
    except AlreadyRunning as error:
        raise Failure(IO, f"{error}; stop it first") from error


def _settings(args: argparse.Namespace) -> Settings:
    """Those of ``-c`` or ``-d``."""
    from upseal.fleet.relay.settings import FILE_NAME, Settings

    if args.config is not None:
        path = Path(args.config)
    else:
        path = Path(args.directory or DIRECTORY) / FILE_NAME
        if not path.exists():
            raise Failure(USAGE, f"{shown(path)} is missing; `upseal relay enrol -d DIR` makes one")
    with doing(f"read {shown(path)}"):
        return Settings.load(path)


# -- enrol ------------------------------------------------------------------------------


def _enrol(args: argparse.Namespace) -> int:
    from upseal.fleet.agent.enrolment import EnrolmentRefused
    from upseal.fleet.agent.settings import host_name
    from upseal.fleet.relay.settings import Http, Settings
    from upseal.fleet.relay.state import enrol

    directory = Path(args.directory or DIRECTORY)
    settings = Settings(
        parent=args.parent,
        directory=directory,
        name=args.name or host_name(),
        decrypting=args.decrypting,
        accepts_sealed=not args.refuse_sealed,
        fips=args.fips,
        http=Http(ca=None if args.ca is None else os.path.abspath(args.ca)),
        **({} if args.listen is None else {"listen": args.listen}),
    )
    token = token_of(args)
    try:
        with doing(f"enrol {shown(directory)}"):
            member = enrol(settings, token)
    except EnrolmentRefused as error:
        raise Failure(BAD, f"not enrolled: {error}; ask for a new token if it was used") from error
    except ValueError as error:
        raise Failure(USAGE, f"the token cannot be used: {error}") from error
    if args.json:
        say_json(
            {
                "relay": member.agent.hex(),
                "deployment": member.deployment.hex(),
                "name": settings.name,
                "decrypting": settings.decrypting,
                "directory": str(directory),
            }
        )
    return OK


# -- run and status -----------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from upseal.fleet.http import logs
    from upseal.fleet.relay.relay import Relay

    settings = _settings(args)
    logs.setup(level=args.log_level)
    if args.listen is not None:
        settings = replace(settings, listen=args.listen)
    try:
        relay = Relay(settings)
    except ValueError as error:
        raise Failure(BAD, f"the relay's folder cannot be used: {error}") from error
    with relay, doing(f"take requests at {settings.listen}"):
        relay.serve()
    return OK


def _status(args: argparse.Namespace) -> int:
    from upseal.fleet.relay.status import status

    settings = _settings(args)
    try:
        found = status(settings)
    except ValueError as error:
        raise Failure(BAD, f"the relay's folder cannot be used: {error}") from error
    if args.json:
        say_json(found)
        return OK
    queue, manifest, parent = found["queue"], found["manifest"], found["parent"]
    oldest = "" if queue["age"] is None else f", the oldest {queue['age']:,.0f} s old"
    state = "no process runs" if not found["running"] else f"at {found['address'] or '?'}"
    rows = [
        ["relay", f"{found['name']}, {found['relay']}"],
        ["does", "decrypts and repackages" if found["decrypting"] else "passes on"],
        ["running", state],
        ["ready", found["why_not_ready"] or ("yes" if found["running"] else "no")],
        ["parent", parent["url"] + (" (away)" if parent["away_since"] else "")],
        ["queue", f"{queue['depth']:,} bodies, {printable_size(queue['bytes'])}{oldest}"],
        ["limits", f"{queue['max_bodies']:,} bodies, {printable_size(queue['max_bytes'])}"],
        [
            "manifest",
            "none" if manifest is None else f"serial {manifest['serial']}, {manifest['state']}",
        ],
    ]
    rows += [
        ["key", f"generation {key['generation']}, {key['suite']} {key['key_id']}: {key['state']}"]
        for key in found["keys"]
    ]
    rows += [["alarm", f"two manifests of serial {alarm['serial']}"] for alarm in found["alarms"]]
    say(table(rows))
    return OK

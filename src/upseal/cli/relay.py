# SPDX-License-Identifier: Apache-2.0
"""``upseal relay``: takes bodies from below, keeps them, passes them on or repackages them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

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
from upseal.cli.members import (
    FORGET,
    LOG_LEVELS,
    Member,
    acts_of,
    add_json,
    enrolling,
    forget_parent,
    level_of_logs,
    tls_of,
    token_of,
)

if TYPE_CHECKING:
    from upseal.fleet.relay.settings import Settings

# As upseal.fleet.relay.settings has them, which takes longer to import.
MEMBER = Member("relay", "relay", "/var/lib/upseal-relay", "relay.toml")
_NOTE = """\
examples:
  upseal relay enrol --parent https://server.example:8450 --token-file token --decrypting
  upseal relay run -d /var/lib/upseal-relay --listen 0.0.0.0:8441
  upseal relay status --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    act = acts_of(parser, _NOTE)

    enrol = act("enrol", "join a deployment by a token")
    MEMBER.add_joining(enrol, "the next relay, or server")
    enrol.add_argument(
        "--decrypting", action="store_true", help="open what comes, and seal it to the server again"
    )
    enrol.add_argument(
        "--refuse-sealed", action="store_true", help="take no sealed reports (and say so, signed)"
    )
    enrol.add_argument("--listen", metavar="HOST:PORT", help="where it will take requests")

    run = act("run", "take, keep and pass on, until told to stop")
    MEMBER.add_settings(run)
    run.add_argument(
        "--listen", metavar="HOST:PORT", help="in place of the settings'; port 0 takes a free one"
    )
    run.add_argument("--log-level", choices=LOG_LEVELS)

    MEMBER.add_settings(act(*FORGET))

    status = act("status", "say what waits, which keys there are, and what is wrong")
    MEMBER.add_settings(status)
    add_json(status)


def run(args: argparse.Namespace) -> int:
    """Does one of them."""
    try:
        from upseal.fleet.agent.membership import NotEnrolled
        from upseal.fleet.relay.state import AlreadyRunning
        from upseal.fleet.settings import SettingsError
    except ImportError as error:
        raise Failure(USAGE, f"{error.name} is not installed; pip install upseal[fleet]") from error
    try:
        return _ACTS[args.act](args)
    except SettingsError as error:
        raise Failure(USAGE, f"the settings cannot be used: {error}") from error
    except NotEnrolled as error:
        raise Failure(USAGE, f"{error}; `upseal relay enrol` makes one") from error
    except AlreadyRunning as error:
        raise Failure(IO, f"{error}; stop it first") from error


def _settings(args: argparse.Namespace) -> Settings:
    """Those of ``-c`` or ``-d``."""
    from upseal.fleet.relay.settings import Settings

    path = MEMBER.settings_file(args)
    with doing(f"read {shown(path)}"):
        return Settings.load(path)


# -- enrol ------------------------------------------------------------------------------


def _enrol(args: argparse.Namespace) -> int:
    from upseal.fleet.relay.settings import Http, Settings
    from upseal.fleet.relay.state import enrol
    from upseal.fleet.settings import host_name

    directory = MEMBER.folder(args)
    settings = Settings(
        parent=args.parent,
        directory=directory,
        name=args.name or host_name(),
        decrypting=args.decrypting,
        accepts_sealed=not args.refuse_sealed,
        fips=args.fips,
        http=Http(**tls_of(args)),
        **({} if args.listen is None else {"listen": args.listen}),
    )
    token = token_of(args)
    with enrolling(directory):
        member = enrol(settings, token)
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
    logs.setup(level=level_of_logs(args, settings))
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
        ["uploads", _uploads(found["uploads"])],
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


def _uploads(found: dict[str, Any]) -> str:
    """Whole files on their way, in words."""
    text = f"{found['whole']:,} to pass on, {found['open']:,} begun"
    if found["sealed"]:
        text += f", {found['sealed']:,} sealed here"
    oldest = "" if found["age"] is None else f", the oldest {found['age']:,.0f} s old"
    size, most = printable_size(found["bytes"]), printable_size(found["max_bytes"])
    return f"{text}, {size} of {most}{oldest}"


def _forget(args: argparse.Namespace) -> int:
    return forget_parent(_settings(args).directory)


_ACTS = {"enrol": _enrol, "run": _run, "status": _status, "forget-parent": _forget}

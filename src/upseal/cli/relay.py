# SPDX-License-Identifier: Apache-2.0
"""``upseal relay``: takes bodies from below, keeps them, passes them on or repackages them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upseal.cli import health
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
    table,
)
from upseal.cli.configured import (
    add_configuration,
    asked_only,
    blaming,
    member_layers,
    service_of_process,
    show_or_check,
    tried,
)
from upseal.cli.members import (
    FORGET,
    LOG_LEVELS,
    Member,
    acts_of,
    add_json,
    enrolling,
    forget_parent,
    tls_of,
    token_of,
)

if TYPE_CHECKING:
    from upseal.fleet.configuration import Layers
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
    add_configuration(run)

    MEMBER.add_settings(act(*FORGET))

    healthy = act(*health.ABOUT)
    MEMBER.add_settings(healthy)
    health.add_ready(healthy)

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
    """Those of ``-c`` or ``-d``, of the environment, and of ``run``'s options."""
    return _configured(args)[0]


def _configured(args: argparse.Namespace) -> tuple[Settings, Layers, Path | None]:
    from upseal.fleet.relay.settings import Settings, schema

    options = {"listen": "listen", "log_level": "log_level"}
    path, layers = member_layers(MEMBER, schema(), args, options)
    with blaming(layers):
        return replace(Settings.parse(layers.table), source=path), layers, path


def _looked_at(args: argparse.Namespace) -> int:
    from upseal.fleet.relay.state import client_of

    settings, layers, path = _configured(args)
    http = settings.http
    files = (http.ca, http.certificate, http.key)
    tried("http", files, lambda: client_of(settings).close())
    if (own := settings.server_tls()) is not None:
        tried("tls", (own.certificate, own.key, own.client_ca), own.context)
    show_or_check(args, layers, path)
    return OK


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
    from upseal.fleet.http import logs
    from upseal.fleet.relay.relay import Relay

    if asked_only(args):
        return _looked_at(args)
    settings = _settings(args)
    logs.setup(level=settings.log_level)
    try:
        relay = Relay(settings)
    except ValueError as error:
        raise Failure(BAD, f"the relay's folder cannot be used: {error}") from error
    service = service_of_process()
    try:
        with relay, doing(f"take requests at {settings.listen}"):
            relay.serve(service=service)
    finally:
        service.close()
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


def _health(args: argparse.Namespace) -> int:
    settings = _settings(args)
    tls = settings.tls.certificate is not None
    return health.serving(settings.directory, tls=tls, ready=args.ready)


_ACTS = {
    "enrol": _enrol,
    "run": _run,
    "status": _status,
    "forget-parent": _forget,
    "health": _health,
}

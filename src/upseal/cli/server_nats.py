# SPDX-License-Identifier: Apache-2.0
"""``upseal server front`` and ``open``: a server in two halves, with a broker between them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from upseal.cli.common import IO, OK, USAGE, Failure, doing
from upseal.cli.members import LOG_LEVELS

if TYPE_CHECKING:
    from upseal.fleet.server.settings import Settings

ACTS = ("front", "open")


def arguments(act: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Their options."""
    front = act("front", "serve, but put reports on the broker of nats.toml and open none")
    front.add_argument(
        "--listen", metavar="HOST:PORT", help="in place of the settings'; port 0: a free one"
    )
    opener = act("open", "open and store what fronts have put on the broker of nats.toml")
    opener.add_argument(
        "--listen", metavar="HOST:PORT", help="where to answer /healthz, /readyz and /metrics"
    )
    for one in (front, opener):
        one.add_argument("--log-level", choices=LOG_LEVELS)


def run(args: argparse.Namespace, settings: Settings, more_files: Callable[[int], None]) -> int:
    """One of them, until told to stop."""
    nats = _nats()
    from upseal.fleet.http import logs
    from upseal.fleet.server.app import AlreadyRunning
    from upseal.fleet.settings import split_listen

    listen: tuple[str, int] | None = None
    if args.listen is not None:
        try:
            listen = split_listen(args.listen)
        except ValueError as error:
            raise Failure(USAGE, f"--listen: {error}") from error
    broker = nats.read_nats(settings.folder, settings.deployment)
    handler = logs.setup(level=args.log_level or settings.limits.log_level)
    try:
        more_files(settings.limits.connections)
        if args.act == "open":
            with doing("open reports"):
                nats.run_opener(settings, broker, listen=listen)
        else:
            with doing(f"serve at {args.listen or f'{settings.host}:{settings.port}'}"):
                host, port = listen or (None, None)
                nats.run_front(settings, broker, host=host, port=port)
    except AlreadyRunning as error:
        raise Failure(IO, f"{error}; stop it first") from error
    except nats.Unfit as error:
        raise Failure(IO, f"{error}; mend the broker, then start again") from error
    finally:
        logging.getLogger().removeHandler(handler)
    return OK


def _nats() -> Any:
    try:
        from upseal.integrations import nats
    except ImportError as error:
        raise Failure(USAGE, str(error)) from error
    return nats

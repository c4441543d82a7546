# SPDX-License-Identifier: Apache-2.0
"""Settings of ``upseal agent``, ``relay`` and ``server``: ``--set``, and to check and show them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upseal.cli.common import USAGE, Failure, doing, say, say_json, shown, table
from upseal.cli.members import Member

if TYPE_CHECKING:
    from upseal.fleet.configuration import Flag, Layers, Schema
    from upseal.fleet.notify import Service

_UNUSABLE = "the settings cannot be used"


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Of ``run``: ``--set``, ``--check-config``, ``--show-config``."""
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a setting, as queue.max_bytes=1048576; goes before environment and file",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--check-config",
        action="store_true",
        help="only say whether the settings are right: exit code 0 and no word, or 2",
    )
    group.add_argument(
        "--show-config",
        action="store_true",
        help="only print all settings, and where each comes from; no secrets",
    )
    parser.add_argument("--json", action="store_true", help="with --show-config: for machines")


def asked_only(args: argparse.Namespace) -> bool:
    """Whether the settings are to be looked at, and nothing is to be done."""
    return bool(args.check_config or args.show_config)


def flags_of(args: argparse.Namespace, options: Mapping[str, str]) -> Iterator[Flag]:
    """What ``--set`` and other options say.

    Args:
        args: of the act; only ``run`` has ``--set``.
        options: which of its options is which setting: ``{"listen": "listen"}``.
    """
    from upseal.fleet.configuration import Flag

    for text in getattr(args, "set", None) or []:
        name, found, value = text.partition("=")
        if not found:
            raise Failure(USAGE, f"--set takes KEY=VALUE, not {text!r}")
        yield Flag(name.strip(), value, "--set")
    for option, setting in options.items():
        value = getattr(args, option, None)
        if value is not None:
            yield Flag(setting, value, "--" + option.replace("_", "-"))


def member_layers(
    member: Member, schema: Schema, args: argparse.Namespace, options: Mapping[str, str]
) -> tuple[Path | None, Layers]:
    """What counts for an agent or a relay; and its file, if there is one.

    Raises:
        SettingsError: something in it, or in the environment, is unknown or of a wrong type.
    """
    from upseal.fleet.configuration import layered
    from upseal.fleet.settings import read_toml

    path = member.settings_file(args)
    folder = str(path.resolve().parent)
    if args.config is None and not path.exists():
        found: dict[str, Any] = {}
    else:
        with doing(f"read {shown(path)}"):
            found = read_toml(path)
    environment = dict(os.environ)
    if args.directory is not None:  # where it lives was said already
        environment.pop(f"{schema.prefix}DIRECTORY", None)
    layers = layered(schema, found, environment, flags_of(args, options))
    layers.table.setdefault("directory", folder)
    return (path if path.exists() else None), layers


@contextmanager
def blaming(layers: Layers) -> Iterator[None]:
    """Says of a setting that cannot be meant also where it came from, if not from the file."""
    from upseal.fleet.settings import SettingsError

    try:
        yield
    except SettingsError as error:
        raise layers.blamed(error) from error


def show_or_check(args: argparse.Namespace, layers: Layers, path: Path | None) -> None:
    """Of ``--show-config``: all of them. Whoever got here has checked them."""
    if not args.show_config:
        return
    found = layers.effective()
    if args.json:
        file = None if path is None else str(path)
        say_json({"role": layers.schema.role, "file": file, "settings": found})
        return
    from upseal.fleet.configuration import printable

    rows = [[name, printable(one["value"]), one["from"]] for name, one in found.items()]
    say(table([["setting", "value", "from"], *rows]))


def service_of_process() -> Service:
    """What the service manager has given us, and how to tell it how it goes."""
    from upseal.fleet.notify import Service

    try:
        return Service.of_process()
    except ValueError as error:
        raise Failure(USAGE, f"the service manager's sockets cannot be used: {error}") from error


def tried(
    what: str, files: Iterable[str | os.PathLike[str] | None], make: Callable[[], object]
) -> None:
    """Files for TLS: whether they are there, and what they should be."""
    try:
        for name in files:
            if name is not None:
                with open(name, "rb"):
                    pass
        make()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        name = getattr(error, "filename", None)
        where = f" {shown(name)}" if name else ""
        raise Failure(USAGE, f"{_UNUSABLE}: {what}{where}: {reason}") from error

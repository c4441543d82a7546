# SPDX-License-Identifier: Apache-2.0
"""``upseal demo``: the main job of the whole product, on this machine and its own data.

First the core alone (`demo_core`), then a fleet of real processes (`demo_fleet`).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upseal.cli import demo_core
from upseal.cli.common import (
    BAD,
    OK,
    USAGE,
    Failure,
    check_engine,
    complain,
    doing,
    say,
    say_json,
    shown,
)
from upseal.cli.inventory import load_psutil
from upseal.cli.keygen import KINDS
from upseal.cli.progress import Steps
from upseal.cli.version import engine_facts

_LEAST_AGENTS = 3
"""One at each level."""
_MOST_AGENTS = 1000
_FLEET = (
    "reports", "uploads", "plaintext_on_wire", "plaintext_on_disk", "rotation", "orphans", "page",
    "clients", "checks",
)  # fmt: skip
"""What the fleet part puts at the top of the object."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--json", action="store_true", help="one object, for machines")
    parser.add_argument("--keep", metavar="DIR", help="a new folder that keeps everything")
    parser.add_argument("-t", "--type", choices=KINDS, default="x25519", help="kind of keys")
    fleet = parser.add_argument_group("the fleet")
    fleet.add_argument("--skip-fleet", action="store_true", help="the core's part alone")
    fleet.add_argument(
        "--agents", metavar="N", type=_whole, default=50, help="how many (default: 50; 3 to 1,000)"
    )
    fleet.add_argument(
        "--seconds",
        metavar="N",
        type=_whole,
        default=5,
        help="how long they report before the key is rotated (default: 5)",
    )
    fleet.add_argument(
        "--fleet-upload-mib",
        metavar="N",
        type=_whole,
        default=512,
        help="size of each of two files that go up through the relays (default: 512; 0: none)",
    )
    fleet.add_argument(
        "--clients", action="store_true", help="a line for each client, also where they are many"
    )
    core = parser.add_argument_group("the core")
    core.add_argument("--skip-core", action="store_true", help="the fleet alone")
    core.add_argument(
        "--reports",
        metavar="N",
        type=_whole,
        default=10_000,
        help="how many (default: 10000; at least 1)",
    )
    core.add_argument(
        "--upload-mib",
        metavar="N",
        type=_whole,
        default=256,
        help="least size of the upload (default: 256)",
    )


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) > 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number up to 1048576")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Runs it; exit code 1 if anything did not come out as it should."""
    if args.reports < 1:
        raise Failure(USAGE, "the demo needs at least one report; give --reports 1 or more")
    if not _LEAST_AGENTS <= args.agents <= _MOST_AGENTS:
        raise Failure(USAGE, f"the demo needs {_LEAST_AGENTS} to {_MOST_AGENTS} agents")
    if args.skip_core and args.skip_fleet:
        raise Failure(USAGE, "nothing is left to show; leave --skip-core or --skip-fleet away")
    check_engine()
    load_psutil()
    if not args.skip_fleet:
        _check_fleet()
    begin = time.perf_counter()
    core = fleet = None
    with _folder(args.keep) as folder, doing(f"work in {shown(folder)}"):
        if not args.skip_core:
            demo_core.check_room(args.upload_mib, folder)
        if not args.skip_fleet:
            _check_room(args, folder)
        with Steps(quiet=args.json) as steps:
            if not args.skip_core:
                core = demo_core.demonstrate(args, folder, steps)
            if not args.skip_fleet:
                fleet = _fleet(args, folder, steps)
    match = all(part["match"] for part in (core, fleet) if part is not None)
    seconds = round(time.perf_counter() - begin, 2)
    if args.json:
        say_json(_facts(core, fleet, match, seconds))
    else:
        say(_words(args, core, fleet, match, seconds))
    if match:
        return OK
    complain("something is not as it should be; this is a bug: report it")
    return BAD


def _check_fleet() -> None:
    try:
        import upseal.cli.demo_fleet.acts
        import upseal.fleet.relay.relay  # noqa: F401 - the processes need it
    except ImportError as error:
        raise Failure(
            USAGE,
            f"the demo's fleet needs {error.name}; pip install upseal[demo], or use --skip-fleet",
        ) from error


def _check_room(args: argparse.Namespace, folder: Path) -> None:
    """Says at once if the disk is too full for the files that go up, and all copies of them."""
    from upseal.cli.demo_fleet.uploads import MOST_KEPT_FREE, OPTION, ROOM

    need = ROOM * (args.fleet_upload_mib << 20) + MOST_KEPT_FREE
    if args.keep and not args.skip_core:
        need += demo_core.KEPT * (args.upload_mib << 20)
    demo_core.need_room(need, folder, OPTION)


def _fleet(args: argparse.Namespace, folder: Path, steps: Steps) -> dict[str, Any]:
    from upseal.cli.demo_fleet.acts import play

    place, upload = folder / "fleet", args.fleet_upload_mib << 20
    return play(place, args.agents, args.type, args.seconds, upload, steps, keep=bool(args.keep))


def _facts(
    core: dict[str, Any] | None, fleet: dict[str, Any] | None, match: bool, seconds: float
) -> dict[str, Any]:
    from upseal import __version__

    found: dict[str, Any] = dict(fleet) if fleet is not None else dict.fromkeys(_FLEET)
    found |= {"fleet_seconds": found.pop("seconds", None), "core": core}
    return {"version": __version__, **engine_facts(), **found, "match": match, "seconds": seconds}


def _words(
    args: argparse.Namespace,
    core: dict[str, Any] | None,
    fleet: dict[str, Any] | None,
    match: bool,
    seconds: float,
) -> str:
    parts = []
    if core is not None:
        parts.append(demo_core.in_words(core))
    if fleet is not None:
        from upseal.cli.demo_fleet.words import how_to_look, in_words

        parts.append(in_words(fleet, each=args.clients))
    if args.keep:
        kept = f"kept in {shown(args.keep)}\n"
        if fleet is not None:
            kept += how_to_look(fleet, shown(os.path.join(args.keep, "fleet", "deployment")))
        parts.append(kept)
    verdict = "everything as it should be"
    return "\n".join([*parts, f"{verdict}: {demo_core.same(match)}; {seconds} s\n"])


@contextmanager
def _folder(keep: str | None) -> Iterator[Path]:
    if keep is None:
        with (
            doing("make a temporary folder"),
            tempfile.TemporaryDirectory(prefix="upseal-demo-") as made,
        ):
            yield Path(made)
        return
    with doing(f"make the folder {shown(keep)}"):
        os.mkdir(keep, 0o700)
    yield Path(keep).absolute()

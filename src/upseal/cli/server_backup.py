# SPDX-License-Identifier: Apache-2.0
"""``upseal server backup``, ``verify`` and ``restore``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upseal.cli.admin_common import answering, moment
from upseal.cli.common import BAD, NO_KEY, OK, Failure, check_engine, doing, say, say_json, shown
from upseal.cli.keyfiles import add_passphrase_file, openers, recipients
from upseal.cli.progress import Progress

if TYPE_CHECKING:
    from upseal.core.opener import Opener
    from upseal.fleet.admin.backup.checking import Found
    from upseal.fleet.admin.backup.restoring import Restored
    from upseal.fleet.server.settings import Settings

ACTS = ("backup", "verify", "restore")


def arguments(act: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Their options."""
    take = act("backup", "put the folder and the database into one sealed file; it may run")
    take.add_argument("target", metavar="TARGET", help="a new file")
    take.add_argument(
        "-r", "--recipient", metavar="KEY", action="append", required=True,
        help="who can open it: a public key or certificate, not of a key in the folder; "
        "may be repeated",
    )  # fmt: skip
    take.add_argument(
        "--work", metavar="DIR", help="where a copy of the database lies meanwhile (the folder)"
    )
    verify = act("verify", "read a whole backup, and say what it is; writes nothing")
    back = act("restore", "put a backup into an empty folder; the server must not run")
    for one in (verify, back):
        one.add_argument("backup", metavar="BACKUP", help="the file")
        one.add_argument(
            "-i", "--identity", metavar="KEY", action="append", required=True,
            help="its private key (PEM), or where it is kept: unix:PATH[#ID] or pkcs11:...",
        )  # fmt: skip
        one.add_argument(
            "--fingerprint", metavar="HEX",
            help="of the key that signs manifests: another deployment's backup is refused",
        )  # fmt: skip
        add_passphrase_file(one)
    back.add_argument(
        "--dry-run", action="store_true", help="verify it, and see what is in the way"
    )
    for one in (take, verify, back):
        one.add_argument("--json", action="store_true", help="one object, for machines")


def run(args: argparse.Namespace, settings: Callable[[argparse.Namespace], Settings]) -> int:
    """One of them; ``settings`` reads those of the folder."""
    check_engine()
    with answering(args):
        if args.act == "backup":
            return _backup(args, settings(args))
        return _verify(args) if args.act == "verify" else _restore(args)


def _backup(args: argparse.Namespace, settings: Settings) -> int:
    from upseal.fleet.admin.backup.taking import take

    keys = recipients(args.recipient)
    with (
        doing(f"back up {shown(settings.folder)} into {shown(args.target)}"),
        Progress("backed up") as progress,
    ):
        taken = take(
            settings, Path(args.target), keys,
            work=None if args.work is None else Path(args.work), progress=progress,
        )  # fmt: skip
    if args.json:
        facts = {name: getattr(taken, name) for name in taken.__slots__}
        say_json({"act": "backup", "target": args.target, **facts})
    elif taken.elsewhere:
        from upseal.cli.common import warn

        warn(
            "not in the backup, since the settings name places outside of the folder: "
            + ", ".join(taken.elsewhere)
        )
    return OK


def _verify(args: argparse.Namespace) -> int:
    from upseal.fleet.admin.backup.checking import check

    with _explained(args), Progress("verified") as progress:
        found = check(
            Path(args.backup), _opener(args), fingerprint=args.fingerprint, progress=progress
        )
    if args.json:
        say_json({"act": "verify", **found.facts()})
    else:
        say(_said(found))
    return OK


def _restore(args: argparse.Namespace) -> int:
    from upseal.fleet.admin.backup.restoring import restore

    folder = Path(args.deployment or os.environ.get("UPSEAL_DEPLOYMENT") or ".").absolute()
    with _explained(args), Progress("verified and restored") as progress:
        done = restore(
            Path(args.backup), _opener(args), _settings_of, folder,
            fingerprint=args.fingerprint, dry_run=args.dry_run, progress=progress,
        )  # fmt: skip
    if args.json:
        say_json({"act": "restore", **done.facts()})
    else:
        say(_said(done.found) + ("" if args.dry_run else _next(done)))
    return OK


def _settings_of(path: Path, table: Mapping[str, Any]) -> Settings:
    """As the server will read them."""
    from upseal.fleet.configuration import layered
    from upseal.fleet.server.settings import schema, settings_of

    return settings_of(path, layered(schema(), dict(table)).table)


def _opener(args: argparse.Namespace) -> Opener:
    from upseal.core.opener import Opener

    return Opener(openers(args.identity, args.passphrase_file))


@contextmanager
def _explained(args: argparse.Namespace) -> Iterator[None]:
    from upseal.errors import OpenError, UnknownRecipient

    try:
        with doing(f"read {shown(args.backup)}"):
            yield
    except UnknownRecipient as error:
        keys = ", ".join(key.hex() for _, key in error.recipients)
        raise Failure(
            NO_KEY, f"cannot open {shown(args.backup)}: it is sealed to {keys}; give that with -i"
        ) from error
    except OpenError as error:
        why = error.problem or "it is damaged, cut off or no backup"
        raise Failure(
            BAD, f"cannot use {shown(args.backup)}: {why}; nothing was written: get it again, or "
            "take an older one",
        ) from error  # fmt: skip


def _said(found: Found) -> str:
    return (
        f"{found.name} ({found.deployment.hex()}) as of {moment(found.made)}, by upseal "
        f"{found.upseal}: whole\n"
        f"manifest {found.serial}, signed by {found.fingerprint}\n"
        f"{found.clients} clients and relays, {found.reports} reports, {found.uploads} uploads, "
        f"{found.files} files, {found.bytes} bytes\n"
    )


def _next(done: Restored) -> str:
    lines = []
    if done.to_recover:
        lines.append(
            f"next: `upseal admin recover`: this folder has seen manifest {done.newest}, and the "
            f"database has {done.found.serial}"
        )
    else:
        lines.append(
            "next: see whether clients have seen a newer manifest (`upseal agent status`); if so, "
            "`upseal admin recover --trust` with trust.json of one of them"
        )
    lines += [
        f"reports and files receipted after {moment(done.found.made)} are gone; whose units are "
        "missing shows, as they report again, `upseal admin clients --filter gaps`",
        "who enrolled after that must enrol again; who was revoked after that is so again once "
        "the manifest is recovered",
    ]
    if done.tokens or done.logins:
        lines.append(f"void: {done.tokens} unused tokens, {done.logins} logins of the page")
    return "".join(f"{line}\n" for line in lines)

# SPDX-License-Identifier: Apache-2.0
"""``upseal admin``: what the administrator of a deployment does (docs/cli.md)."""

from __future__ import annotations

import argparse

from upseal.cli import admin_alarms, admin_clients, admin_keys, admin_logins, admin_manifest
from upseal.cli.admin_common import ORPHANS, REFUSED, answering
from upseal.cli.common import USAGE, Failure

_NOTE = f"""\
exit codes of its own:
  {REFUSED}  refused: nothing was changed; the message says why, and what to do next
  {ORPHANS}  refused: clients would be orphaned; --force does it all the same
  A dry run ends with the code that the act itself would end with.

environment:
  UPSEAL_DEPLOYMENT  the deployment's folder, in place of -d
  UPSEAL_PASSPHRASE  passphrase of the signing key and of the CA's, in place of a prompt

example:
  upseal admin init -d /srv/upseal && export UPSEAL_DEPLOYMENT=/srv/upseal
  upseal server run &
  upseal admin generate-key && upseal admin ready && upseal admin enable
  upseal admin token
  upseal admin set-level required --all --dry-run
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its commands."""
    parser.epilog = _NOTE
    acts = parser.add_subparsers(dest="act", metavar="ACT", title="acts")
    for module in (admin_manifest, admin_keys, admin_clients, admin_alarms, admin_logins):
        module.add(acts)


def run(args: argparse.Namespace) -> int:
    """Does one act."""
    if args.act is None:
        raise Failure(USAGE, "no act given; see `upseal admin --help`")
    with answering(args):
        return int(args.do(args))

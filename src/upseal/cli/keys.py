# SPDX-License-Identifier: Apache-2.0
"""``upseal keys``: a process that keeps private keys, and shares of one (docs/integrations)."""

from __future__ import annotations

import argparse
import contextlib

from upseal.cli.common import USAGE, Failure, positive
from upseal.cli.keyfiles import add_passphrase_file

_NOTE = """\
examples:
  upseal keys serve --socket /run/upseal/keys.sock --allow-user upseal -i /etc/upseal/server.pem
  upseal open -i unix:/run/upseal/keys.sock logs.sealed
  upseal keys status --socket /run/upseal/keys.sock --json
  upseal keys escrow --shares 5 --threshold 3 -o vault server.pem
  upseal keys recover -o server.pem vault/safe.json vault/share-1 vault/share-4 vault/share-5
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its acts."""
    parser.epilog = _NOTE
    acts = parser.add_subparsers(dest="act", metavar="ACT", title="acts")

    def act(name: str, about: str) -> argparse.ArgumentParser:
        return acts.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    serve = act("serve", "keep private keys, and unwrap with them for local users")
    serve.add_argument(
        "--socket", metavar="PATH", help="a Unix socket; not with systemd's (LISTEN_FDS)"
    )
    serve.add_argument(
        "-i", "--identity", metavar="KEY", action="append", required=True,
        help="a private key (PEM) or a pkcs11: reference; may be repeated",
    )  # fmt: skip
    for kind in ("user", "group"):
        serve.add_argument(
            f"--allow-{kind}", metavar="NAME|ID", action="append", default=[],
            help=f"this {kind} may use the keys; may be repeated",
        )  # fmt: skip
    serve.add_argument(
        "--same-user", action="store_true",
        help="the user that this runs as may use them: he could read the keys as well",
    )  # fmt: skip
    serve.add_argument(
        "--mode", metavar="OCTAL", type=_mode,
        help="of the socket (0666; 0660 with groups alone; 0600 with --same-user alone)",
    )  # fmt: skip
    serve.add_argument(
        "--rate", metavar="N", type=positive, default=5000,
        help="unwraps a second by one user (5000)",
    )  # fmt: skip
    serve.add_argument(
        "--connections", metavar="N", type=positive, default=256,
        help="in all; one user gets half of them (256)",
    )  # fmt: skip
    add_passphrase_file(serve)

    status = act("status", "say how a key process does")
    status.add_argument("--socket", metavar="PATH", required=True)
    status.add_argument("--json", action="store_true", help="one object, for machines")

    escrow = act("escrow", "split a key into shares, of which some recover it")
    escrow.add_argument("--shares", metavar="N", type=positive, required=True)
    escrow.add_argument("--threshold", metavar="K", type=positive, required=True)
    escrow.add_argument(
        "-o", "--output", metavar="DIR", required=True, help="a new folder, for all of it"
    )
    escrow.add_argument("--json", action="store_true", help="say what was made, for machines")
    add_passphrase_file(escrow)
    escrow.add_argument("key", metavar="KEY", help="a private key (PEM)")

    recover = act("recover", "put a key together again")
    recover.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="the private key (mode 0600)"
    )
    recover.add_argument(
        "--passphrase", action="store_true", help="encrypt it: UPSEAL_PASSPHRASE, or asked for"
    )
    recover.add_argument("safe", metavar="SAFE", help="the escrow file")
    recover.add_argument("share", metavar="SHARE", nargs="+", help="a file with one share or more")


def run(args: argparse.Namespace) -> int:
    """Does one of them."""
    if args.act is None:
        raise Failure(USAGE, "no act given; see `upseal keys --help`")
    if args.act in ("serve", "status"):
        from upseal.cli import keys_serve

        return keys_serve.serve(args) if args.act == "serve" else keys_serve.status(args)
    from upseal.cli import keys_escrow

    return keys_escrow.escrow(args) if args.act == "escrow" else keys_escrow.recover(args)


def _mode(text: str) -> int:
    with contextlib.suppress(ValueError):
        mode = int(text, 8)
        if 0o600 & ~mode == 0 and mode & ~0o666 == 0:
            return mode
    raise argparse.ArgumentTypeError(f"{text!r} is not a mode from 0600 to 0666")

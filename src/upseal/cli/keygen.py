# SPDX-License-Identifier: Apache-2.0
"""``upseal keygen``: makes keys. A private key never goes over an existing file."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

from upseal.cli.common import IO, OK, USAGE, Failure, say, say_json, shown, warn, write_new
from upseal.cli.keyfiles import check_one_stdin, openers, passphrase_of

# As `upseal.core.keys.KINDS`, which would import all of the cryptography.
KINDS = ("x25519", "p256", "mlkem768-x25519", "rsa2048", "rsa3072", "rsa4096")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument(
        "-t", "--type", choices=KINDS, default=None, help="kind of key (default: x25519)"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="private key (mode 0600); default: standard output"
    )
    parser.add_argument(
        "--public", metavar="FILE", help="public key; default with -o key.pem: key.pub.pem"
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--passphrase", action="store_true", help="encrypt it: UPSEAL_PASSPHRASE, or asked for"
    )
    group.add_argument(
        "--passphrase-file", metavar="FILE", help="encrypt it: the file's first line"
    )
    parser.add_argument(
        "-y",
        "--from",
        dest="source",
        metavar="FILE",
        help="make nothing: the public key of this private key, to standard output or -o",
    )
    parser.add_argument("--json", action="store_true", help="say what was made, for machines")


def run(args: argparse.Namespace) -> int:
    """Makes a key pair."""
    if args.source is not None:
        return _show_public(args)
    private = None if args.output in (None, "-") else str(args.output)
    if args.json and private is None:
        raise Failure(USAGE, "--json goes to standard output, so the key must not; add -o FILE")
    public = args.public
    if public is None and private is not None:
        path = Path(private)
        public = str(path.with_name(f"{path.stem}.pub.pem"))
    if public == "-":
        if private is None or args.json:
            raise Failure(USAGE, "standard output cannot take both; name a FILE for one of them")
    elif public is not None and private is not None and _same(private, public):
        raise Failure(USAGE, "-o and --public are the same file; name two")
    for name in (private, public):
        if name not in (None, "-") and os.path.lexists(str(name)):
            raise Failure(IO, f"{shown(name)} exists; name another file, or move it away first")
    passphrase = None
    if args.passphrase or args.passphrase_file is not None:
        passphrase = passphrase_of(private or "the new key", args.passphrase_file, new=True)
    elif os.environ.get("UPSEAL_PASSPHRASE"):
        warn("UPSEAL_PASSPHRASE is set, but this key is not encrypted; add --passphrase for that")

    from upseal.core.keys import PrivateKey

    key = PrivateKey.generate(args.type or "x25519")
    try:
        pem = key.to_pem(passphrase)
    except ValueError as error:
        raise Failure(USAGE, f"cannot encrypt the key: {error}; choose another one") from error
    if private is None:
        _warn_if_open()
        _write_public(public, key.public_key.to_pem())
        say(pem.decode())
    else:
        write_new(private, pem, 0o600)
        try:
            _write_public(public, key.public_key.to_pem())
        except BaseException:  # both or none
            with suppress(OSError):
                os.unlink(private)
            raise
    if args.json:
        facts = {"key_id": key.key_id.hex(), "suite": key.public_key.name}
        say_json({**facts, "private": private, "public": public})
    return OK


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _write_public(name: str | None, pem: bytes) -> None:
    if name == "-":
        say(pem.decode())
    elif name is not None:
        write_new(name, pem, 0o666)


def _warn_if_open() -> None:
    """A private key sent to a file by the shell gets the shell's permissions."""
    with suppress(OSError, AttributeError, ValueError):
        status = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_mode & 0o044:
            warn("others can read the file this private key goes to; use -o FILE, or chmod 600 it")


def _show_public(args: argparse.Namespace) -> int:
    if args.type or args.public or args.passphrase:
        raise Failure(USAGE, "--from makes no key; leave -t, --public and --passphrase away")
    check_one_stdin([args.source, args.passphrase_file or ""])
    found = openers([args.source], args.passphrase_file)
    if len(found) > 1:
        raise Failure(USAGE, f"{shown(args.source)} names several keys; add # and a key id")
    key = found[0].public_key
    pem = key.to_pem().decode()
    public = None if args.output in (None, "-") else args.output
    if public is not None:
        write_new(public, pem.encode(), 0o666)
    if args.json:
        facts = {"key_id": key.key_id.hex(), "suite": key.name, "private": args.source}
        say_json({**facts, "public": public, "pem": pem})
    elif public is None:
        say(pem)
    return OK

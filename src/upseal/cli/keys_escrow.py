# SPDX-License-Identifier: Apache-2.0
"""``upseal keys escrow`` and ``recover``."""

from __future__ import annotations

import argparse
import os
import shutil
from typing import Any

from upseal.cli.common import (
    BAD,
    IO,
    OK,
    USAGE,
    Failure,
    doing,
    say_json,
    shown,
    warn,
    write_new,
)
from upseal.cli.keyfiles import check_one_stdin, identity, passphrase_of, read_small


def escrow(args: argparse.Namespace) -> int:
    """A folder with the safe, and a file for each share. All or nothing."""
    made = _made()
    key = identity(args.key, args.passphrase_file)
    try:
        safe, shares = made.escrow(key, threshold=args.threshold, shares=args.shares)
    except ValueError as error:
        raise Failure(USAGE, f"cannot split the key: {error}; change --shares, --threshold") from (
            error
        )
    if os.path.lexists(args.output):
        raise Failure(IO, f"{shown(args.output)} exists; name a new folder")
    with doing(f"make the folder {shown(args.output)}"):
        os.mkdir(args.output, 0o700)
    files = {"safe.json": safe.to_bytes()}
    for share in shares:
        files[f"share-{share.index}"] = share.to_text().encode() + b"\n"
    try:
        for name, data in files.items():
            write_new(os.path.join(args.output, name), data, 0o600)
    except BaseException:
        shutil.rmtree(args.output, ignore_errors=True)
        raise
    warn("together the shares are the key: give each to another person, and delete them here")
    if args.json:
        names = [os.path.join(args.output, name) for name in files]
        say_json({
            "key_id": key.key_id.hex(), "set": safe.set.hex(), "threshold": safe.threshold,
            "safe": names[0], "shares": names[1:],
        })  # fmt: skip
    return OK


def recover(args: argparse.Namespace) -> int:
    """The key, into a new file."""
    made = _made()
    check_one_stdin([args.safe, *args.share])
    if os.path.lexists(args.output):
        raise Failure(IO, f"{shown(args.output)} exists; name another file")
    try:
        safe = made.Safe.from_bytes(read_small(args.safe))
    except ValueError as error:
        raise Failure(BAD, f"cannot use {shown(args.safe)}: {error}") from error
    shares, wrong = [], []
    for name in args.share:
        for line in read_small(name).decode("utf-8", "replace").splitlines():
            if line.strip():
                try:
                    shares.append(made.Share.from_text(line))
                except ValueError as error:
                    wrong.append(f"{shown(name)}: {error}")
    if wrong:
        raise Failure(BAD, f"cannot recover the key: {'; '.join(wrong)}")
    try:
        key = made.recover(safe, shares)
    except made.BadShares as error:
        raise Failure(BAD, f"cannot recover the key: {error}") from error
    passphrase = passphrase_of(args.output, None, new=True) if args.passphrase else None
    write_new(args.output, key.to_pem(passphrase), 0o600)
    return OK


def _made() -> Any:
    try:
        from upseal.integrations import escrow
    except ImportError as error:
        raise Failure(USAGE, str(error)) from error
    return escrow

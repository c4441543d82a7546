# SPDX-License-Identifier: Apache-2.0
"""``upseal server uploads``: files that are stored, copies of them, and an end to them."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

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
    target_of,
    why,
    writing,
)
from upseal.cli.server_queries import client_named, stream, when
from upseal.core.writer import write_all
from upseal.fleet.admin.acting import who
from upseal.fleet.server.settings import Settings
from upseal.fleet.server.store import Store, audit, deletions, now_ms
from upseal.fleet.server.store import uploads as stored
from upseal.fleet.server.store.uploads import StoredUpload
from upseal.fleet.server.uploads.content import remove, stored_folder

_PIECE = 1 << 20
_NAMED = 1000


def uploads(args: argparse.Namespace, store: Store, settings: Settings) -> int:
    """Lists them as they are read, copies one out, or deletes some."""
    lists = args.client is not None or args.since is not None or args.deleted
    if args.get is not None:
        if lists or args.json:
            raise Failure(
                USAGE,
                "--get names one upload; leave --client, --since, --deleted and --json away",
            )
        if args.delete is not None:
            raise Failure(USAGE, "--get and --delete are both given; leave one away")
        return _copy(args, store, settings)
    if args.output is not None:
        raise Failure(USAGE, "-o is for --get CLIENT/UPLOAD")
    if args.delete is not None:
        if lists:
            raise Failure(
                USAGE, "--delete names uploads; leave --client, --since and --deleted away"
            )
        return _delete(args, store, settings)
    agent = None if args.client is None else client_named(store, args.client)
    found = stored.read(store, agent, args.since, deleted=args.deleted)
    if args.json:
        stream(json.dumps(_facts(row, name, settings), ensure_ascii=False) for row, name in found)
    else:
        stream(_line(row, name) for row, name in found)
    return OK


def _facts(row: StoredUpload, client: str, settings: Settings) -> dict[str, Any]:
    try:
        encoding, name = "utf-8", row.name.decode()
    except UnicodeDecodeError:
        encoding, name = "base64", base64.b64encode(row.name).decode()
    return {
        "client": client,
        "agent": row.agent.hex(),
        "upload": row.upload.hex(),
        "encoding": encoding,
        "name": name,
        "size": row.size,
        "sha256": row.sha256.hex(),
        "modified": row.modified,
        "received": row.received,
        "sealed": row.form == "sealed",
        "suite": row.suite,
        "key_id": None if row.key_id is None else row.key_id.hex(),
        "path": os.fspath(stored_folder(settings) / row.path),
        "deleted": row.deleted,
    }


def _line(row: StoredUpload, client: str) -> str:
    """For people: when, who, how, how much, until when, which, and its name, on one line."""
    name = row.name.decode("utf-8", "replace")
    # A file's name must not play tricks with a terminal.
    name = "".join(c if c.isprintable() else "?" for c in name)
    facts = [when(row.received), client or row.agent.hex(), row.form, printable_size(row.size)]
    if row.deleted is not None:
        facts.append(f"deleted {when(row.deleted)}")
    return "  ".join([*facts, row.upload.hex(), name])


def _named(store: Store, option: str, text: str) -> StoredUpload:
    """The one that CLIENT/UPLOAD names.

    Raises:
        Failure: there is none.
    """
    client, _, name = text.rpartition("/")
    try:
        upload = bytes.fromhex(name)
    except ValueError:
        upload = b""
    if len(upload) != 16 or not client:
        raise Failure(USAGE, f"{option} takes CLIENT/UPLOAD, as `upseal server uploads` lists them")
    agent = client_named(store, client)
    with store.reading() as db:
        row = stored.find(db, agent, upload)
    if row is None:
        raise Failure(BAD, f"{client!r} has no upload {name}; see `upseal server uploads`")
    return row


def _delete(args: argparse.Namespace, store: Store, settings: Settings) -> int:
    """All of them, or none if one is not known. What is gone already is not counted."""
    chosen: dict[deletions.Which, StoredUpload] = {}
    for text in args.delete:
        row = _named(store, "--delete", text)
        chosen[row.agent, row.upload] = row
    with store.writing() as db:
        now = now_ms()
        new = deletions.put(db, chosen, now)
        if new:
            details = {
                "count": len(new),
                "bytes": sum(chosen[which].size for which in new),
                "uploads": [f"{agent.hex()}/{upload.hex()}" for agent, upload in new[:_NAMED]],
            }
            audit.append(db, who(), "uploads-delete", details, now)
    # Only now: a file that is gone must be known to be. What is left after a kill, and where the
    # files do not lie here, the server removes.
    _remove(list(chosen.values()), settings)
    if args.json:
        say_json({"act": "delete", "count": len(new)})
    else:
        say(f"{len(new)} deleted\n")
    return OK


def _remove(rows: Sequence[StoredUpload], settings: Settings) -> None:
    folder = stored_folder(settings)
    failed: OSError | None = None
    for row in rows:
        try:
            remove(folder, row.path)
        except OSError as error:
            failed = failed or error
    if failed is not None:
        raise Failure(
            IO,
            f"{why(failed, 'written down, but a file cannot be removed')}; the server tries it"
            " as well, now and then",
        )


def _copy(args: argparse.Namespace, store: Store, settings: Settings) -> int:
    row = _named(store, "--get", args.get)
    if row.deleted is not None:
        raise Failure(BAD, f"{args.get} was deleted at {when(row.deleted)}; it is not here")
    source = stored_folder(settings) / row.path
    target = target_of(args.output, os.fspath(source), sealed=True)
    with doing(f"read {shown(source)}"):
        file = open(source, "rb", buffering=0)  # noqa: SIM115 - closed below
    with file, doing(f"copy to {shown(args.output)}"), writing(target) as out:
        digest = hashlib.sha256()
        while piece := file.read(_PIECE):
            digest.update(piece)
            write_all(out, piece)
        if digest.digest() != row.sha256:
            raise Failure(
                BAD, f"{shown(source)} is not what was stored: its SHA-256 is another; restore it"
            )
    return OK

# SPDX-License-Identifier: Apache-2.0
"""``upseal agent upload``, ``uploads`` and ``cancel``: whole files."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from upseal.cli import stopping
from upseal.cli.agent import MEMBER, open_agent
from upseal.cli.common import (
    BAD,
    IO,
    OK,
    USAGE,
    Failure,
    complain,
    doing,
    printable_size,
    say,
    say_json,
    shown,
    table,
)
from upseal.cli.members import add_json
from upseal.cli.progress import Progress

if TYPE_CHECKING:
    from upseal.fleet.agent.agent import Agent

_LOOK = 0.5
"""Seconds between two looks whether it is stored."""


def arguments(act: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Their options; ``act`` adds one."""
    upload = act("upload", "put whole files into the spool; they are on the disk when it ends")
    upload.add_argument("files", metavar="FILE", nargs="+")
    upload.add_argument("--name", help="what the server is to call it; for one FILE")
    upload.add_argument("--wait", action="store_true", help="until the server has stored them")
    MEMBER.add_settings(upload)
    add_json(upload)

    uploads = act("uploads", "list the files that wait, and what has become of the others")
    MEMBER.add_settings(uploads)
    add_json(uploads)

    cancel = act("cancel", "give up a file that waits")
    cancel.add_argument("upload", metavar="UPLOAD", help="its id, or how it alone begins")
    MEMBER.add_settings(cancel)
    add_json(cancel)


def run(args: argparse.Namespace) -> int:
    """Does one of them."""
    return {"upload": _upload, "uploads": _uploads, "cancel": _cancel}[args.act](args)


# -- upload -----------------------------------------------------------------------------


def _upload(args: argparse.Namespace) -> int:
    from upseal.fleet.agent.database import SpoolError

    if args.name is not None and len(args.files) > 1:
        raise Failure(USAGE, "--name is for one FILE; leave it away, or name one")
    taken: list[dict[str, Any]] = []
    code = OK
    with open_agent(args) as agent:
        try:
            for file in args.files:
                taken.append(_take(agent, file, args))
            if args.wait:
                code = _wait(agent, taken)
        except (Failure, SpoolError):
            if taken:
                complain(f"{len(taken)} of {len(args.files)} files were taken before that")
            raise
        finally:
            if args.json:
                say_json({"uploads": taken})
    return code


def _take(agent: Agent, file: str, args: argparse.Namespace) -> dict[str, Any]:
    name = None if args.name is None else os.fsencode(args.name)
    try:
        with (
            doing(f"upload {shown(file)}"),
            Progress("sealed", wanted=not args.json) as progress,
        ):
            upload = agent.upload(os.fsencode(file), name=name, progress=progress)
    except ValueError as error:
        raise Failure(BAD, f"{shown(file)} is not taken: {error}") from error
    if not args.json and not args.wait:
        say(f"{upload}  {_plain(file)}\n")
    return {"upload": upload, "file": file, "state": "waiting"}


def _wait(agent: Agent, taken: list[dict[str, Any]]) -> int:
    """Until each has come to an end, whatever that is."""
    from upseal.fleet.agent.uploads.rows import UploadState

    if agent.one.holder() is None:
        complain("warning: no process sends from this folder; start `upseal agent run`")
    waiting = {found["upload"]: found for found in taken}
    with Progress("sent") as progress:
        while True:
            stopping.check()
            for upload, found in list(waiting.items()):
                state = agent.uploads.state(upload)
                if state is not UploadState.WAITING:
                    # One that is forgotten had ended long ago, in whatever way.
                    found["state"] = "forgotten" if state is None else state.value
                    del waiting[upload]
            if not waiting:
                break
            _show(agent, waiting, progress)
            time.sleep(_LOOK)
    bad = [found for found in taken if found["state"] != UploadState.STORED.value]
    for found in bad:
        complain(f"{shown(found['file'])} is not stored: {found['state']}")
    return IO if bad else OK


def _show(agent: Agent, waiting: dict[str, Any], progress: Progress) -> None:
    """How far they are, as far as the sending process has said so."""
    from upseal.fleet.agent.status import uploads_of

    listed = [found for found in uploads_of(agent) if found["upload"] in waiting]
    sent = sum(found["percent"] * found["size"] // 100 for found in listed)
    progress(sent, sum(found["size"] for found in listed))


# -- the others ---------------------------------------------------------------------------


def _uploads(args: argparse.Namespace) -> int:
    from upseal.cli.agent_status import when
    from upseal.fleet.agent.status import uploads_of

    with open_agent(args) as agent:
        found = uploads_of(agent)
    if args.json:
        say_json({"uploads": found})
        return OK
    if not found:
        return OK
    rows = [["upload", "state", "sent", "size", "given", "name"]]
    rows += [
        [
            one["upload"],
            one["state"] + (f" ({one['why']})" if one["why"] else ""),
            f"{one['percent']} %",
            printable_size(one["size"]),
            when(one["made"]),
            "?" if one["name"] is None else _plain(one["name"]),
        ]
        for one in found
    ]
    say(table(rows, right=(2, 3)))
    return OK


def _cancel(args: argparse.Namespace) -> int:
    from upseal.fleet.agent.uploads.manager import NoSuchUpload

    with open_agent(args) as agent:
        try:
            upload = agent.uploads.cancel(args.upload)
        except NoSuchUpload as error:
            raise Failure(USAGE, f"{error}; `upseal agent uploads` lists them") from error
    if args.json:
        say_json({"upload": upload, "cancelled": upload is not None})
    if upload is None:
        raise Failure(BAD, "it had ended already; `upseal agent uploads` says how")
    return OK


def _plain(name: str) -> str:
    """A file's name for people: as it is, or quoted if it would garble the line."""
    return name if name.isprintable() and not name.startswith((" ", "'", '"')) else repr(name)

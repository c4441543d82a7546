# SPDX-License-Identifier: Apache-2.0
"""``upseal server``'s views of the database: reports, dead letters, alarms."""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from upseal.cli.common import (
    BAD,
    OK,
    USAGE,
    Failure,
    printable_size,
    say,
    say_json,
    table,
)
from upseal.fleet.admin.acting import who
from upseal.fleet.policy import Level, Reason
from upseal.fleet.server.overview.alarms import facts
from upseal.fleet.server.store import Store, audit, clients, deadletters, units
from upseal.fleet.server.store import alarms as store_alarms
from upseal.fleet.server.store.activity import SEALED

_TOGETHER = 1 << 16
_SHOWN = 200


# -- reports --------------------------------------------------------------------------


def reports(args: argparse.Namespace, store: Store) -> int:
    """Prints stored reports as they are read: there may be more than memory holds."""
    agent = None if args.client is None else client_named(store, args.client)
    found = units.read(store, agent, args.since, args.until, args.after, args.limit)
    if args.json:
        stream(json.dumps(_facts(report), ensure_ascii=False) for report in found)
    else:
        stream(_line(report) for report in found)
    return OK


def client_named(store: Store, name: str) -> bytes:
    """A client's id by its name, or its id.

    Raises:
        Failure: there is none, or more than one.
    """
    with store.reading() as db:
        found = clients.named(db, name)
    if not found:
        raise Failure(BAD, f"no client has the name or id {name!r}; see `upseal admin clients`")
    if len(found) > 1:
        ids = ", ".join(agent.agent.hex() for agent in found)
        raise Failure(BAD, f"{len(found)} clients are called {name!r}; give an id: {ids}")
    return found[0].agent


def _facts(report: units.Report) -> dict[str, Any]:
    text = _text(report.body)
    return {
        "id": report.id,
        "client": report.name,
        "agent": report.agent.hex(),
        "epoch": report.epoch.hex(),
        "sequence": report.sequence,
        "position": report.position,
        "stated": report.stated,
        "received": report.received,
        "level": Level.parse(report.level).value,
        "sealed": report.reason in SEALED,
        "reason": Reason(report.reason).label,
        "suite": report.suite,
        "key_id": None if report.key_id is None else report.key_id.hex(),
        "encoding": "base64" if text is None else "utf-8",
        "body": base64.b64encode(report.body).decode() if text is None else text,
    }


def _line(report: units.Report) -> str:
    """For people: when, who, how, and the beginning of it, on one line."""
    text = _text(report.body)
    shown = f"({printable_size(len(report.body))})" if text is None else text[: _SHOWN + 1]
    if len(shown) > _SHOWN:
        shown = shown[:_SHOWN] + "..."
    # What an agent reports must not play tricks with a terminal.
    shown = "".join(c if c.isprintable() else " " for c in shown)
    how = "sealed" if report.reason in SEALED else "clear"
    name = report.name or report.agent.hex()
    return f"{when(report.received)}  {name}  {how}  {shown}"


def _text(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def stream(lines: Iterable[str]) -> None:
    """Prints lines as they come, many at once."""
    together: list[str] = []
    size = 0
    for line in lines:
        together.append(line)
        size += len(line)
        if size >= _TOGETHER:
            say("\n".join(together) + "\n")
            together, size = [], 0
    if together:
        say("\n".join(together) + "\n")


# -- dead letters -----------------------------------------------------------------------


def dead_letters(args: argparse.Namespace, store: Store) -> int:
    """Lists them, asks the server for another try, or throws them away."""
    with store.reading() as db:
        found = deadletters.listing(db)
    if args.id:
        found = _chosen(found, args.id)
    if args.what == "list":
        return _list(args, found)
    if args.what == "drop" and not (args.id or args.all):
        raise Failure(USAGE, "say which with --id, or --all; what is dropped cannot come back")
    if args.all and args.id:
        raise Failure(USAGE, "--id and --all are both given; leave one away")
    ids = [letter.id for letter in found]
    with store.writing() as db:
        change = deadletters.ask if args.what == "replay" else deadletters.drop
        done = sum(change(db, ids[at : at + 500]) for at in range(0, len(ids), 500))
        if done:
            details = {"count": done, "ids": [i.hex() for i in ids[:1000]]}
            now = time.time_ns() // 1_000_000
            audit.append(db, who(), f"deadletters-{args.what}", details, now)
    if args.json:
        say_json({"act": args.what, "count": done})
    elif args.what == "replay":
        say(f"{done} asked for: the server takes them through within a second, or when it starts\n")
    else:
        say(f"{done} dropped\n")
    return OK


def _chosen(
    found: Sequence[deadletters.DeadLetter], ids: list[str]
) -> list[deadletters.DeadLetter]:
    chosen = {}
    for start in ids:
        fitting = [letter for letter in found if letter.id.hex().startswith(start.lower())]
        if len(fitting) != 1:
            why = "no dead letter has" if not fitting else f"{len(fitting)} dead letters have"
            raise Failure(BAD, f"{why} the id {start!r}; see `upseal server deadletters`")
        chosen[fitting[0].id] = fitting[0]
    return list(chosen.values())


def _list(args: argparse.Namespace, found: Sequence[deadletters.DeadLetter]) -> int:
    if args.json:
        say_json(
            {
                "dead_letters": [
                    {
                        "id": letter.id.hex(),
                        "received": letter.received,
                        "reason": letter.reason,
                        "key_id": None if letter.key_id is None else letter.key_id.hex(),
                        "hop": letter.hop.hex(),
                        "role": letter.role,
                        "size": letter.size,
                        "attempts": letter.attempts,
                        "replaying": letter.wanted,
                    }
                    for letter in found
                ]
            }
        )
        return OK
    if not found:
        say("no dead letters\n")
        return OK
    head = ["id", "received", "reason", "key", "from hop", "size", "tries"]
    rows = [
        [
            letter.id.hex()[:16], when(letter.received), letter.reason,
            letter.key_id.hex() if letter.key_id else "-", letter.hop.hex()[:16],
            printable_size(letter.size), str(letter.attempts),
        ]
        for letter in found
    ]  # fmt: skip
    say(table([head, *rows], right=(5, 6)))
    return OK


# -- alarms -----------------------------------------------------------------------------


def alarms(args: argparse.Namespace, store: Store) -> int:
    """Lists alarms, with the names of the clients they are about."""
    with store.reading() as db:
        found = facts(db, store_alarms.listing(db, args.since, args.limit))
    if args.json:
        say_json({"alarms": found})
        return OK
    if not found:
        say("no alarms\n")
        return OK
    rows = [
        [
            when(alarm["last"]), alarm["kind"], str(alarm["times"]),
            alarm["client"] or alarm["subject"] or "-",
            " ".join(f"{name}={value}" for name, value in alarm["details"].items()),
        ]
        for alarm in found
    ]  # fmt: skip
    say(table([["last", "alarm", "times", "about", "details"], *rows], right=(2,)))
    return OK


def when(milliseconds: int) -> str:
    """A time for people, in UTC."""
    try:  # clients state what they like
        seconds = datetime.datetime.fromtimestamp(milliseconds // 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)
    return seconds.strftime("%Y-%m-%d %H:%M:%SZ")

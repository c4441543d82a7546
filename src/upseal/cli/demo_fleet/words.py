# SPDX-License-Identifier: Apache-2.0
"""The fleet part for people: a table of clients, and what it came to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from upseal.cli.common import printable_size, table

_MANY = 12
_HEAD = ["clients", "below", "wanted", "actual", "why", "while disabled", "made", "stored",
         "sealed", "clear"]  # fmt: skip
_NUMBERS = ("made", "stored", "sealed_reports", "clear_reports")
_ORDER = ("required", "optional", "none")
_SHOWN = 3


def in_words(found: dict[str, Any], *, each: bool) -> str:
    """The report; ``each`` client gets a line, or each level and relay where they are many."""
    clients = found["clients"]
    if each or len(clients) <= _MANY:
        groups = [(client["name"], [client]) for client in clients]
    else:
        by_kind: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
        for client in clients:
            by_kind[_ORDER.index(client["wanted"]), client["parent"]].append(client)
        groups = [(str(len(by_kind[kind])), by_kind[kind]) for kind in sorted(by_kind)]
    rows = [_HEAD, *(_row(name, some) for name, some in groups)]
    right = (0, 6, 7, 8, 9) if len(groups) < len(clients) else (6, 7, 8, 9)
    return table(rows, right=right) + "\n" + table(_lines(found))


def _row(name: str, some: list[dict[str, Any]]) -> list[str]:
    return [
        name,
        some[0]["parent"],
        _counted(client["wanted"] for client in some),
        _counted(client["actual"] for client in some),
        _counted(client["why"] for client in some),
        _counted(
            f"{client['while_disabled']['actual']} ({client['while_disabled']['why']})"
            for client in some
        ),
        *(f"{sum(client[number] for client in some):,}" for number in _NUMBERS),
    ]


def _counted(words: Iterable[str | None]) -> str:
    """One word, or each with how many."""
    counts = Counter(word or "?" for word in words)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {word}" for word, count in counts.most_common())


def _lines(found: dict[str, Any]) -> list[list[str]]:
    reports, plain, disk = (
        found[name] for name in ("reports", "plaintext_on_wire", "plaintext_on_disk")
    )
    rotation, orphans = found["rotation"], found["orphans"]
    carried = sum(hop["bytes"] for hop in found["wire"].values())
    names = [orphan["name"] for orphan in orphans["withheld"]]
    few = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    uploads = found["uploads"]
    return [
        [
            "reports",
            f"{reports['made']:,} made, {reports['stored']:,} stored, "
            f"{reports['lost']:,} lost, {reports['doubled']:,} doubled",
        ],
        *([] if uploads is None else [["uploads", _uploads(uploads)]]),
        [
            "plaintext on the wire",
            f"{plain['sealed_clients']:,} of sealed clients, {plain['clear_clients']:,} of clear "
            f"ones, in {printable_size(carried)} over {len(found['wire'])} hops",
        ],
        [
            "clear reports found",
            f"{plain['clear_reports_found']:,} of {plain['clear_reports']:,}: the search works",
        ],
        [
            "plaintext on disk",
            f"{disk['sealed_clients']:,} of sealed clients, in {disk['files']:,} files: "
            "spools, queues, logs",
        ],
        [
            "rotation",
            f"{rotation['seconds']:.1f} s from `rotate` to the last of {rotation['clients']} "
            f"clients under the new key (half of them in {rotation['median_seconds']:.1f} s)",
        ],
        [
            "without encryption",
            f"orphans for {orphans['seconds_disabled']:.1f} s: {len(names)} ({few}); "
            f"foretold by the dry run: {len(orphans['foretold'])}",
        ],
        [
            "enabled again",
            f"{orphans['withheld_reports']:,} withheld reports went out; all sealed after "
            f"{orphans['seconds_until_all_sealed_again']:.1f} s",
        ],
        ["page", _page(found["page"], uploads)],
        *([["NOT SO", name] for name, held in found["checks"].items() if not held]),
    ]


def _uploads(uploads: dict[str, Any]) -> str:
    kills = Counter(kill["relay"] for kill in uploads["kills"])
    killed = ", ".join(f"{name} {count}" for name, count in sorted(kills.items()))
    return (
        f"{uploads['made']:,} made, {uploads['stored']:,} stored, {uploads['damaged']:,} damaged; "
        f"{printable_size(uploads['bytes'])} at {uploads['mib_per_s']:,.1f} MiB/s, with "
        f"{uploads['relay_kills']} kills of relays ({killed})"
    )


def _page(page: dict[str, Any], uploads: dict[str, Any] | None) -> str:
    coverage = ", ".join(f"{count} {word}" for word, count in page["coverage"].items())
    files = "" if uploads is None else f"{page['uploads_shown']} of {uploads['made']} files; "
    return f"status {page['status']}, shows {files}{coverage}"


def how_to_look(found: dict[str, Any], folder: str) -> str:
    """At the page of a deployment that was kept in ``folder``."""
    page = found["page"]
    return (
        f"to look at the page: upseal server run -d {folder}, then {page['address']} "
        f"as {page['login']}, password {page['password']}\n"
    )

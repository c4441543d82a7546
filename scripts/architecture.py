# SPDX-License-Identifier: Apache-2.0
"""The rooms of the house, which of them may import which, and a picture of what they do import.

``python scripts/architecture.py`` writes docs/img/architecture.svg; with ``--check`` it only says
whether that is as it should be. tests/test_architecture.py holds the rules. The imports are read
from the source (grimp): also those inside functions, but not those for type checkers alone.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "img" / "architecture.svg"

WIDTH, HEIGHT, GAP = 1000, 92, 34
"""Of the picture, a box, and the space between two rows of boxes."""


@dataclass(frozen=True)
class Room:
    """A part of the house: one job, and what it must not know to do it.

    Args:
        name: as people say it.
        package: a package, or a module; what lies in another room's package is not in this one.
        knows: in a few words.
        never: what it never knows; docs/architecture.md says which test holds it.
        left, right: of its box.
    """

    name: str
    package: str
    knows: str
    never: str
    left: int = 20
    right: int = WIDTH - 20


ROWS: tuple[tuple[Room, ...], ...] = (
    (
        Room(
            "cli",
            "upseal.cli",
            "people: options, words, exit codes",
            "used by any other room",
        ),
    ),
    (
        Room(
            "integrations",
            "upseal.integrations",
            "other people's interfaces, each in its own file",
            "loaded unless asked for; optional packages stay here",
            20,
            500,
        ),
        Room(
            "fleet/admin",
            "upseal.fleet.admin",
            "signing key, CA key, the deployment",
            "listens on the network",
            520,
            830,
        ),
    ),
    (
        Room(
            "fleet/agent",
            "upseal.fleet.agent",
            "its spool, its level",
            "the server's keys, its database",
            20,
            330,
        ),
        Room(
            "fleet/server",
            "upseal.fleet.server",
            "private keys, the database",
            "the keys of fleet/admin",
            345,
            655,
        ),
        Room(
            "fleet/relay",
            "upseal.fleet.relay",
            "its queue; a key of its own, perhaps",
            "the server's database",
            670,
            980,
        ),
    ),
    (
        Room(
            "fleet/uploads",
            "upseal.fleet.uploads",
            "files on their way, piece by piece (tus)",
            "a key, or what is in a file: it imports no opener",
        ),
    ),
    (
        Room(
            "fleet/http",
            "upseal.fleet.http",
            "connections, TLS, rates, problems; logs and metrics",
            "keys and plaintext: it imports nothing that seals or opens",
        ),
    ),
    (
        Room(
            "fleet",
            "upseal.fleet",
            "what all members agree on: policy, manifest, identity, statements, settings",
            "HTTP, a database, which member it is",
        ),
    ),
    (
        Room(
            "core",
            "upseal.core",
            "recipients, sessions, headers, envelopes, batches, files",
            "a socket, or who sent it",
        ),
    ),
    (
        Room(
            "engine",
            "upseal.engine",
            "bulk work under keys it is given: native (C) or portable, the same bytes",
            "a public key",
        ),
    ),
    (
        Room(
            "native",
            "upseal.engine._native",
            "bytes and keys: AES-GCM, ChaCha20-Poly1305, many records in one call",
            "a recipient, a Python object, a file, a clock, a thread of its own",
        ),
    ),
)
"""From top to bottom. A room may import those below it, and none beside or above it."""

ROOMS = [room for row in ROWS for room in row]

OUTSIDE = ("upseal", "upseal.__main__", "upseal.errors")
"""Two front doors, and the errors that every room may raise."""

EXCEPTIONS: Mapping[tuple[str, str], str] = {
    **{
        (f"upseal.fleet.{user}", "upseal.integrations.keys"): (
            "a reference to a key that is kept elsewhere is followed where keys are read"
        )
        for user in ("relay.keys", "server.keyring", "admin.recovering")
    },
    **{
        (f"upseal.fleet.relay.{user}", f"upseal.fleet.agent.{used}"): (
            "a relay joins as an agent does, and keeps the same files about it"
        )
        for user, used in (
            ("state", "enrolment"),
            ("state", "membership"),
            ("status", "membership"),
        )
    },
    **{
        (f"upseal.fleet.relay.{user}", "upseal.fleet.server.throttle"): (
            "whoever opens counts what each hop makes it unwrap"
        )
        for user in ("keys", "meters", "repackage", "state")
    },
    **{
        (f"upseal.fleet.{user}", "upseal.fleet.http.logs"): "a log line, which is not HTTP"
        for user in ("capabilities", "notify")
    },
}
"""Imports that go up or sideways all the same, and why. One that is gone must go from here too."""


def graph_of(source: Path) -> grimp.ImportGraph:
    """The imports of the package below a folder (`src`), other people's packages included."""
    sys.path.insert(0, str(source))
    try:
        graph = grimp.build_graph(
            "upseal",
            include_external_packages=True,
            exclude_type_checking_imports=True,
            cache_dir=None,
        )
    finally:
        sys.path.remove(str(source))
    # The C core is no source file: it is asked for by name.
    graph.add_module("upseal.engine._native")
    for module in sorted(graph.modules):
        path = source.joinpath(*module.split(".")).with_suffix(".py")
        if path.is_file() and re.search(
            r"^\s*from upseal\.engine\._native ", path.read_text(), re.M
        ):
            graph.add_import(importer=module, imported="upseal.engine._native")
    return graph


def room_of(module: str) -> Room | None:
    """Where a module of ours is; None for what is outside the rooms, and for other people's."""
    if module in OUTSIDE:
        return None
    best: Room | None = None
    for room in ROOMS:
        inside = module == room.package or module.startswith(room.package + ".")
        if inside and (best is None or len(room.package) > len(best.package)):
            best = room
    return best


def imports(graph: grimp.ImportGraph) -> list[tuple[str, str]]:
    """Who imports whom, by module, from one room to another."""
    found = []
    for module in sorted(graph.modules):
        room = room_of(module)
        if room is None:
            continue
        for other in sorted(graph.find_modules_directly_imported_by(module)):
            there = room_of(other)
            if there is not None and there is not room:
                found.append((module, other))
    return found


def wrong(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """The imports that go up or sideways and are no exception."""
    row = {room.name: number for number, row in enumerate(ROWS) for room in row}
    found = []
    for module, other in pairs:
        here, there = room_of(module), room_of(other)
        assert here is not None and there is not None
        if row[here.name] >= row[there.name] and (module, other) not in EXCEPTIONS:
            found.append(
                f"{module} imports {other}: {here.name} is not above {there.name}"
                " (docs/architecture.md)"
            )
    return found


def downward(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Which rooms each room imports, exceptions left out."""
    found: dict[str, set[str]] = {room.name: set() for room in ROOMS}
    for module, other in pairs:
        here, there = room_of(module), room_of(other)
        if here is not None and there is not None and (module, other) not in EXCEPTIONS:
            found[here.name].add(there.name)
    return found


def arrows(below: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The fewest arrows from which all the others follow (the transitive reduction)."""

    def reaches(start: str, end: str) -> bool:
        return any(step == end or reaches(step, end) for step in below[start])

    return [
        (room, other)
        for room in below
        for other in sorted(below[room])
        if not any(step != other and reaches(step, other) for step in below[room])
    ]


STYLE = """
.bg{fill:#fff}.box{fill:#e6edfa;stroke:#2b5cb8;stroke-width:1.5}.c{fill:#e3f3e6;stroke:#2c7a3f}
text{fill:#1c2530}.head{font-weight:600;font-size:16px}.small{font-size:12.5px}.never{fill:#9a1b1b}
.line{stroke:#5b6b7b;stroke-width:2;fill:none}.tip{fill:#5b6b7b}
@media (prefers-color-scheme: dark){.bg{fill:#14181d}.box{fill:#1a2c50;stroke:#86aef2}
.c{fill:#173a20;stroke:#66c27c}text{fill:#e8eef4}.never{fill:#ffaaa5}.line{stroke:#9fb0c0}
.tip{fill:#9fb0c0}}
"""


def draw(pairs: list[tuple[str, str]]) -> str:
    """The picture.

    Raises:
        ValueError: an arrow has no way past the boxes: they are to be placed anew in `ROWS`.
    """
    below = downward(pairs)
    top = {
        room.name: 50 + number * (HEIGHT + GAP) for number, row in enumerate(ROWS) for room in row
    }
    by_name = {room.name: room for room in ROOMS}
    legend = 50 + len(ROWS) * (HEIGHT + GAP) + 4
    reasons: dict[str, dict[str, list[str]]] = {}
    for (module, other), why in EXCEPTIONS.items():
        reasons.setdefault(why, {}).setdefault(_short(other), []).append(_short(module))
    height = legend + 24 + len(reasons) * 42
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-labelledby="t d" font-family="system-ui, sans-serif" font-size="14">',
        "<!-- Written by scripts/architecture.py from the imports. -->",
        '<title id="t">The rooms of upseal, and what imports what</title>',
        f'<desc id="d">{html.escape(_words(below))}</desc>',
        f"<style>{STYLE}</style>",
        '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path class="tip" d="M0 0 10 5 0 10z"/></marker></defs>',
        f'<rect class="bg" width="{WIDTH}" height="{height}" rx="8"/>',
        '<text class="small" x="20" y="30">An arrow: imports. Only downwards, '
        "and of what lies below an arrow anything may be used.</text>",
    ]
    taken: list[tuple[int, int, int]] = []
    for room, other in arrows(below):
        start, end = top[room] + HEIGHT, top[other]
        x = _way(by_name[room], by_name[other], top, start, end, taken)
        taken.append((x, start, end))
        out.append(f'<path class="line" d="M{x} {start + 1}V{end - 2}" marker-end="url(#a)"/>')
    for room_ in ROOMS:
        x, y, width = room_.left, top[room_.name], room_.right - room_.left
        kind = "box c" if room_.name == "native" else "box"
        out.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="6"/>'
        )
        lines = (
            ("head", room_.name),
            ("small", f"knows: {room_.knows}"),
            ("small never", f"never: {room_.never}"),
            (
                "small",
                f"imports: {', '.join(_beside(room_, below[room_.name])) or 'nothing of ours'}",
            ),
        )
        out += [
            f'<text class="{css}" x="{x + 12}" y="{at}">{html.escape(text)}</text>'
            for at, (css, text) in zip(range(y + 22, y + HEIGHT, 20), lines, strict=True)
        ]
    out.append(f'<text class="head" x="20" y="{legend + 12}">Exceptions, by name</text>')
    for number, (why, by_target) in enumerate(reasons.items()):
        which = [f"{', '.join(users)} → {used}" for used, users in by_target.items()]
        y = legend + 34 + number * 42
        out.append(f'<text class="small" x="20" y="{y}">{html.escape("; ".join(which))}</text>')
        out.append(f'<text class="small" x="40" y="{y + 17}">{html.escape(why)}</text>')
    return "\n".join([*out, "</svg>", ""])


def _way(
    room: Room,
    other: Room,
    top: Mapping[str, int],
    start: int,
    end: int,
    taken: list[tuple[int, int, int]],
) -> int:
    """Where an arrow can go straight down."""
    left, right = max(room.left, other.left) + 20, min(room.right, other.right) - 20
    middle = (left + right) // 2
    between = [one for one in ROOMS if start < top[one.name] < end]
    for x in sorted(range(left, right + 1, 5), key=lambda x: abs(x - middle)):
        free = all(not one.left - 8 < x < one.right + 8 for one in between)
        apart = all(abs(x - at) > 25 or bottom < start or head > end for at, head, bottom in taken)
        if free and apart:
            return x
    raise ValueError(f"no way for an arrow from {room.name} to {other.name}")


def _short(module: str) -> str:
    return module.removeprefix("upseal.").replace("fleet.", "fleet/", 1)


def _ordered(names: Iterable[str]) -> list[str]:
    order = [room.name for room in ROOMS]
    return sorted(names, key=order.index)


def _beside(room: Room, names: Iterable[str]) -> list[str]:
    """Names, without the house that they and this room are in."""
    house = "fleet/" if room.name.startswith("fleet/") else "?"
    return [name.removeprefix(house) for name in _ordered(names)]


def _words(below: Mapping[str, set[str]]) -> str:
    """The picture for those who do not see it."""
    return " ".join(
        f"{room} imports {', '.join(_ordered(others))}." for room, others in below.items() if others
    )


def main(arguments: list[str]) -> int:
    """Writes the picture, or with ``--check`` compares it."""
    pairs = imports(graph_of(ROOT / "src"))
    for line in (found := wrong(pairs)):
        print(line, file=sys.stderr)
    if found:
        return 1
    picture = draw(pairs)
    if "--check" in arguments:
        if not PICTURE.is_file() or PICTURE.read_text() != picture:
            print(f"{PICTURE.name} is not as the imports are: run {sys.argv[0]}", file=sys.stderr)
            return 1
    else:
        PICTURE.write_text(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

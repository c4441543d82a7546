# SPDX-License-Identifier: Apache-2.0
"""Patches that each take one check away, and how they are put into a copy of the tree.

    Takes away: two entries of a header for one key are refused.
    Killed-by: tests/test_vectors.py::test_every_hostile_vector_is_refused_with_its_own_error
    --- a/src/upseal/core/header.py
    +++ b/src/upseal/core/header.py
    @@ -115,4 +115,2 @@
    ...

``Killed-by`` names tests that pass on the tree and must each fail with the patch in it: a test of
pytest, or ``ctest`` for native/tests. The places are found by their lines, whatever their numbers:
they may move, but must stand there exactly once, so that a patch is never put somewhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
TITLE, KILLED_BY = "Takes away: ", "Killed-by: "
CTEST = "ctest"
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


class PatchError(ValueError):
    """A patch that is none, or that does not fit the tree."""


@dataclass(frozen=True)
class Hunk:
    """Lines that stand in a file, and those that take their place."""

    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class Patch:
    """One of them. ``name``: as in ``core/header-twice``; ``changes``: by path in the tree."""

    name: str
    title: str
    killers: tuple[str, ...]
    changes: dict[str, tuple[Hunk, ...]]

    @property
    def of_c(self) -> bool:
        """Whether the C core has to be built for it."""
        return any(path.startswith("native/") for path in self.changes)


def read(path: Path) -> Patch:
    """A patch from its file.

    Raises:
        PatchError: it has no title, no killer, or no unified diff.
    """
    name = path.relative_to(FOLDER).with_suffix("").as_posix()
    title, killers = "", []
    changes: dict[str, list[Hunk]] = {}
    lines = iter(path.read_text().splitlines())
    here = None
    for line in lines:
        if line.startswith(TITLE):
            title = line.removeprefix(TITLE)
        elif line.startswith(KILLED_BY):
            killers.append(line.removeprefix(KILLED_BY))
        elif line.startswith("--- a/"):
            continue
        elif line.startswith("+++ b/"):
            here = changes.setdefault(line.removeprefix("+++ b/"), [])
        elif (numbers := _HUNK.match(line)) and here is not None:
            here.append(_hunk(name, lines, int(numbers[2] or 1), int(numbers[4] or 1)))
        else:
            raise PatchError(f"{name}: this is no line of a patch: {line!r}")
    if not title or not killers or not changes or not all(changes.values()):
        raise PatchError(f"{name}: it lacks a title, a killer or a diff")
    return Patch(name, title, tuple(killers), {at: tuple(some) for at, some in changes.items()})


def _hunk(name: str, lines: object, before: int, after: int) -> Hunk:
    old: list[str] = []
    new: list[str] = []
    for line in lines:  # type: ignore[attr-defined]
        sign, text = line[:1] or " ", line[1:]
        if sign in " -":
            old.append(text)
        if sign in " +":
            new.append(text)
        if sign not in " -+":
            raise PatchError(f"{name}: this is no line of a hunk: {line!r}")
        if (len(old), len(new)) == (before, after):
            return Hunk(tuple(old), tuple(new))
    raise PatchError(f"{name}: its last hunk is cut off")


def every() -> list[Patch]:
    """All of them, by name."""
    return sorted(map(read, FOLDER.rglob("*.patch")), key=lambda patch: patch.name)


def patched(patch: Patch, root: Path) -> dict[str, str]:
    """What its files are with it in; nothing is written.

    Raises:
        PatchError: a place is not there, or more than once, or nothing changes.
    """
    made = {}
    for at, hunks in patch.changes.items():
        lines = (root / at).read_text().splitlines()
        for hunk in hunks:
            size = len(hunk.before)
            places = [
                i for i in range(len(lines)) if tuple(lines[i : i + size]) == hunk.before
            ]  # fmt: skip
            if len(places) != 1 or hunk.before == hunk.after:
                where = "\n".join(hunk.before)
                raise PatchError(f"{patch.name}: {len(places)} places in {at} for\n{where}")
            lines[places[0] : places[0] + size] = hunk.after
        made[at] = "\n".join(lines) + "\n"
    return made

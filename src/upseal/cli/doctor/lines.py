# SPDX-License-Identifier: Apache-2.0
"""The lines of ``upseal doctor``, and how checks are run: each stands alone.

A check is a function that yields lines. One that raises is itself a line, and the next one is run
all the same: what is asked for help on a broken host must not break with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """How it stands, worst last."""

    OK = "ok"
    UNKNOWN = "unknown"
    """It could not be found out."""
    WARN = "warn"
    """It works, and somebody should look at it."""
    FAIL = "fail"
    """Something does not work, or soon will not."""


@dataclass(frozen=True, slots=True)
class Line:
    """One finding.

    Args:
        check: its name, for machines: stable from release to release.
        state: how it stands.
        what: what was found.
        do: what to do next; empty where there is nothing to do.
    """

    check: str
    state: State
    what: str
    do: str = ""


Check = Callable[[], Iterable[Line]]


def ok(check: str, what: str) -> Line:
    """All is well."""
    return Line(check, State.OK, what)


def unknown(check: str, what: str, do: str = "") -> Line:
    """It could not be found out."""
    return Line(check, State.UNKNOWN, what, do)


def warn(check: str, what: str, do: str) -> Line:
    """Somebody should look."""
    return Line(check, State.WARN, what, do)


def fail(check: str, what: str, do: str) -> Line:
    """It does not work."""
    return Line(check, State.FAIL, what, do)


def run(checks: Iterable[tuple[str, Check]]) -> Iterator[Line]:
    """The lines of all of them, in order."""
    for name, check in checks:
        try:
            yield from check()
        except ImportError as error:
            yield unknown(
                name,
                f"{error.name or 'a package'} cannot be imported: {error}",
                "pip install 'upseal[fleet]', or install upseal again",
            )
        except PermissionError as error:
            yield unknown(
                name,
                f"{error.filename or 'a file'} may not be read",
                "run this as root, or as the user the process runs as",
            )
        except Exception as error:
            yield unknown(
                name,
                f"cannot be looked at: {type(error).__name__}: {error}",
                "if nothing above explains it, report this as a bug",
            )

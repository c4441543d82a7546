# SPDX-License-Identifier: Apache-2.0
"""What a shelf does not do, in the words of HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upseal.fleet.http.problems import NAME, Problem
from upseal.fleet.uploads.held import (
    Contradiction,
    Gone,
    Locked,
    NoRoom,
    TooLarge,
    WrongOffset,
)

if TYPE_CHECKING:
    from starlette.responses import Response

_ALLOWED = "OPTIONS, POST, HEAD, PATCH, DELETE"


def problem_of(error: Exception, closed: bool = False) -> Problem | None:
    """The refusal that this is, or None: something that should not happen.

    Args:
        error: of a shelf, or of the pool that it was asked in.
        closed: whether the shelf is.
    """
    match error:
        case WrongOffset():
            return Problem("offset", str(error))
        case Locked():
            return Problem("busy", str(error), status=423, retry_after=1)
        case Gone():
            return Problem("stopping", retry_after=5) if closed else Problem("not-found")
        case TooLarge():
            return Problem("too-large", str(error))
        case NoRoom():
            # The name says whose fault it is: another client may still find room.
            return Problem("busy" if error.own else "full", str(error), retry_after=15)
        case Contradiction():
            return Problem("conflict", str(error))
        case OSError():
            return Problem("full", "the disk takes nothing", retry_after=10)
        case ValueError():
            return Problem("malformed", str(error))
        case RuntimeError() if closed:  # the pool's, which is shut down after the shelf
            return Problem("stopping", retry_after=5)
    return None


def refused(problem: Problem) -> Response:
    """The answer, with what tus wants in it. The name is in a header too: HEAD has no body."""
    response = problem.to_response()
    response.headers[NAME] = problem.name
    if problem.name == "tus-version":
        response.headers["tus-version"] = "1.0.0"
    if problem.name == "method-not-allowed":
        response.headers["allow"] = _ALLOWED
    return response

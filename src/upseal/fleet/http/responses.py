# SPDX-License-Identifier: Apache-2.0
"""The answers that a server and a relay give in the same words."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from upseal.fleet.http import prefer, results
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result


def of_results(answers: Sequence[Result], seconds: int = 0) -> Response:
    """What became of bodies; ``seconds`` is how long it was waited for, as asked."""
    headers = {"cache-control": "no-store", **prefer.applied(seconds)}
    body = results.encode(results.bounded(answers))
    return Response(body, 200, headers, "application/json")


def of_notice(request: Request, found: tuple[str, bytes] | None, absent: Problem) -> Response:
    """What everybody may read, or 304 for whoever has it.

    Args:
        request: may name what it has by If-None-Match.
        found: ETag and text.
        absent: raised where there is none yet.
    """
    if found is None:
        raise absent
    tag, text = found
    headers = {"etag": f'"{tag}"', "cache-control": "no-cache"}
    known = request.headers.get("if-none-match", "")
    if tag in (part.strip().removeprefix("W/").strip('"') for part in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(text, 200, headers, "text/plain")


def since(request: Request) -> int:
    """The serial after which manifests are asked for.

    Raises:
        Problem: it is none.
    """
    asked = request.query_params.get("since", "0")
    if not (asked.isascii() and asked.isdecimal() and len(asked) <= 20):
        raise Problem("malformed", "since is a serial: a whole number")
    return int(asked)

# SPDX-License-Identifier: Apache-2.0
"""Lines that a report is followed by: which units a body held, and which reports they became."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from upseal.fleet.http.logs import event
from upseal.fleet.http.results import Result
from upseal.fleet.trail import body_name, in_lines, unit_name

if TYPE_CHECKING:
    from upseal.fleet.server.intake import Body


def follow(log: logging.Logger, body: Body, result: Result, ids: Iterator[int]) -> None:
    """Says at debug level what became of a body; asked only if that is heard.

    Args:
        log: where.
        body: with its units.
        result: what its sender is told.
        ids: for the units of all bodies, in order, the first report's id; 0 for none stored now.
    """
    name = body_name(body.id)
    if body.letter is not None:
        reason = body.letter.reason
        event(log, "body not opened", level=logging.DEBUG, body=name, why=reason)
        return
    if result.problem is not None:
        event(log, "body refused", level=logging.DEBUG, body=name, problem=result.problem.name)
        return
    stored, others, reports = [], [], []
    for unit in body.units:
        first, called = next(ids, 0), unit_name(unit.epoch, unit.sequence)
        if first:
            stored.append(called)
            reports.append(f"{first}-{first + max(1, len(unit.records)) - 1}")
        else:
            others.append(called)
    for some, of_them in zip(in_lines(stored), in_lines(reports), strict=True):
        event(log, "units stored", level=logging.DEBUG, body=name, units=some, reports=of_them)
    for some in in_lines(others):  # duplicates and contradictions: `trace` shows what is there
        event(log, "units here before", level=logging.DEBUG, body=name, units=some)

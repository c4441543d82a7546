# SPDX-License-Identifier: Apache-2.0
"""Stacked areas over time: the numbers of an SVG, which a template writes.

Where nobody wrote anything down (the server did not run) there is a hole, and not a line across it.
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from upseal.fleet.server.page.asking import RANGES
from upseal.fleet.server.store.coverage import Sample

CLIENTS = ("sealed", "clear", "withheld", "silent")
"""From the bottom up."""
REPORTS = ("sealed", "clear")
_TICKS = {"1h": 15, "24h": 240, "7d": 1440, "30d": 7200, "1y": 57_600}
_HOLE = 3
"""Steps without a sample that make a hole."""
_ROWS = 24
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 8, 8, 22

Point = tuple[float, tuple[float, ...]]
"""A minute, and a value for each layer."""


@dataclass(frozen=True)
class Tick:
    """A line of the grid, and what stands beside it."""

    at: float
    label: str


@dataclass(frozen=True)
class Drawing:
    """One SVG."""

    width: int
    height: int
    layers: tuple[tuple[str, str], ...]
    """Name, and the ``d`` of a path."""
    across: tuple[Tick, ...]
    """Heights."""
    along: tuple[Tick, ...]
    """Times."""
    left: int = _LEFT
    right: int = _RIGHT
    top: int = _TOP
    bottom: int = _BOTTOM


@dataclass(frozen=True)
class Chart:
    """A chart in two sizes, and as a table."""

    wide: Drawing
    narrow: Drawing
    names: tuple[str, ...]
    rows: tuple[tuple[int, tuple[float, ...]], ...]
    """Unix milliseconds and values, newest first."""
    span: str
    """The time it is about, in words."""


def clients(samples: Sequence[Sample], span: str, now_minute: int) -> Chart:
    """Clients by what they did."""
    points = [(s.minute, (s.sealed, s.clear, s.withheld, s.silent)) for s in samples]
    return _chart(points, CLIENTS, span, now_minute, 720)


def reports(samples: Sequence[Sample], span: str, now_minute: int) -> Chart:
    """Reports a minute, from one sample to the next."""
    points: list[Point] = []
    for before, after in itertools.pairwise(samples):
        minutes = after.minute - before.minute
        if minutes > _HOLE * RANGES[span][1]:
            continue  # who knows when they came
        sealed = max(0, after.sealed_reports - before.sealed_reports)
        clear = max(0, after.clear_reports - before.clear_reports)
        points.append((after.minute, (sealed / minutes, clear / minutes)))
    return _chart(points, REPORTS, span, now_minute, 470)


def _chart(
    points: Sequence[Point], names: tuple[str, ...], span: str, now: int, width: int
) -> Chart:
    every = max(1, -(-len(points) // _ROWS))
    rows = points[::-1][::every]
    return Chart(
        _draw(points, names, span, now, width, 240, 1),
        _draw(points, names, span, now, 340, 200, 2),
        names,
        tuple((int(minute * 60_000), values) for minute, values in rows),
        RANGES[span][2],
    )


def _draw(
    points: Sequence[Point], names: tuple[str, ...], span: str, now: int,
    width: int, height: int, sparse: int,
) -> Drawing:  # fmt: skip
    minutes, step, _ = RANGES[span]
    begin = now - minutes
    highest = max((sum(values) for _, values in points), default=0)
    ticks = _round_steps(highest)
    top = ticks[-1]
    tall, long = height - _TOP - _BOTTOM, width - _LEFT - _RIGHT

    def x(minute: float) -> float:
        return _LEFT + long * min(1.0, max(0.0, (minute - begin) / minutes))

    def y(value: float) -> float:
        return _TOP + tall * (1 - value / top)

    runs = list(_runs(points, step))
    layers = []
    for index, name in enumerate(names):
        path = []
        for run in runs:
            upper = [(x(m), y(sum(v[: index + 1]))) for m, v in run]
            lower = [(x(m), y(sum(v[:index]))) for m, v in reversed(run)]
            if any(a[1] != b[1] for a, b in zip(upper, reversed(lower), strict=True)):
                path.append("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in (*upper, *lower)) + "Z")
        layers.append((name, "".join(path)))
    return Drawing(
        width,
        height,
        tuple(layers),
        tuple(Tick(round(y(value), 1), _short(value)) for value in ticks),
        tuple(Tick(round(x(m), 1), _time(m, span)) for m in _times(begin, now, span, sparse)),
    )


def _runs(points: Sequence[Point], step: int) -> Iterator[list[Point]]:
    """Points without a hole between them; one that stands alone is as wide as a step."""
    run: list[Point] = []
    for index, point in enumerate(points, 1):
        run.append(point)
        if index == len(points) or points[index][0] - point[0] > _HOLE * step:
            yield run if len(run) > 1 else [(point[0] - step, point[1]), point]
            run = []


def _round_steps(highest: float) -> list[float]:
    """Four or so round numbers from 0 to above the highest."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= rough * 0.999)
    if highest >= 4:
        step = max(1.0, float(math.ceil(step)))
    return [step * i for i in range(math.ceil(highest / step - 1e-9) + 1)]


def _times(begin: int, now: int, span: str, sparse: int) -> Iterator[int]:
    tick = _TICKS[span] * sparse
    first = -(-begin // tick) * tick
    for minute in range(first, now + 1, tick):
        # Beside the edges a label would be cut off.
        if (now - begin) * 0.04 < minute - begin < (now - begin) * 0.96:
            yield minute


def _time(minute: int, span: str) -> str:
    when = datetime.datetime.fromtimestamp(minute * 60, datetime.UTC)
    if span in ("1h", "24h"):
        return when.strftime("%H:%M")
    return f"{when.day} {when.strftime('%b')}"


def _short(value: float) -> str:
    for size, word in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:g}{word}"
    return f"{value:g}"

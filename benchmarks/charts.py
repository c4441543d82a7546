# SPDX-License-Identifier: Apache-2.0
"""Bars and curves as inline SVG. Colours are the page's (`page.css`), so both themes fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

WIDTH = 920
LABEL = 250
"""Room left of the bars."""
COLOURS = 8


class Bar(NamedTuple):
    """One bar; ``kind`` is ``ours``, ``peer`` or ``limit``."""

    label: str
    value: float
    text: str
    kind: str
    note: str = ""


class Line(NamedTuple):
    """One curve: points by x; dashed for a ceiling."""

    label: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


Format = Callable[[float], str]


def bars(items: Sequence[Bar], logarithmic: bool = False) -> str:
    """Horizontal bars, each with its value behind it and its note as a tooltip."""
    if not items:
        return ""
    high, low = max(item.value for item in items), min(item.value for item in items)
    step = 26
    room = WIDTH - LABEL - 20 - 7.4 * max(len(item.text) for item in items)
    height = step * len(items) + 8
    start = 10 ** (floor(log10(low)) - 0.3) if logarithmic else 0

    def length(value: float) -> float:
        if logarithmic:
            return room * (log10(value) - log10(start)) / (log10(high) - log10(start))
        return room * value / high

    parts = [_open(WIDTH, height)]
    for i, item in enumerate(items):
        y, wide = 4 + i * step, max(2.0, length(item.value))
        parts.append(
            f"<g><title>{escape(item.label)}: {escape(item.text)}"
            f"{escape(f' ({item.note})' if item.note else '')}</title>"
            f'<text class="label" x="{LABEL - 8}" y="{y + 15}" text-anchor="end">'
            f"{escape(item.label)}</text>"
            f'<rect class="{item.kind}" x="{LABEL}" y="{y + 2}" width="{wide:.1f}" height="18" '
            f'rx="3"/><text class="value" x="{LABEL + wide + 7:.1f}" y="{y + 15}">'
            f"{escape(item.text)}</text></g>"
        )
    return "".join([*parts, "</svg>"])


def curves(
    series: Sequence[Line],
    x_axis: tuple[str, Format, bool],
    y_axis: tuple[str, Format, bool],
    x_ticks: Sequence[float] | None = None,
) -> str:
    """Curves with their names at their ends. An axis is (title, format, logarithmic)."""
    series = [line for line in series if line.points]
    if not series:
        return ""
    height, left, right, top, bottom = 340, 74, 240, 30, 46
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    x_marks = list(x_ticks) if x_ticks else _ticks(min(xs), max(xs), x_axis[2])
    y_marks = _ticks(min(ys) if y_axis[2] else 0, max(ys), y_axis[2])
    if not x_axis[2] and len(x_marks) == 1:
        x_marks = [x_marks[0], x_marks[0] + 1]
    x_low, x_high = min([*x_marks, *xs]), max([*x_marks, *xs])
    place_x = _scale(x_low, x_high, left, WIDTH - right, x_axis[2])
    place_y = _scale(min([*y_marks, *ys]), max([*y_marks, *ys]), height - bottom, top, y_axis[2])
    parts = [_open(WIDTH, height)]
    for mark in y_marks:
        y = place_y(mark)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escape(y_axis[1](mark))}</text>"
        )
    for mark in x_marks:
        parts.append(
            f'<text class="tick" x="{place_x(mark):.1f}" y="{height - bottom + 19}" '
            f'text-anchor="middle">{escape(x_axis[1](mark))}</text>'
        )
    parts.append(
        f'<text class="axis" x="{left}" y="14">{escape(y_axis[0])}</text>'
        f'<text class="axis" x="{WIDTH - right}" y="{height - 6}" text-anchor="end">'
        f"{escape(x_axis[0])}</text>"
    )
    ends = _apart([place_y(line.points[-1][1]) for line in series], 17, top, height - bottom)
    for i, line in enumerate(series):
        spots = [(place_x(x), place_y(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        colour = f"c{i % COLOURS}{' dashed' if line.dashed else ''}"
        parts.append(f'<polyline class="{colour}" points="{path}"/>')
        parts += [
            f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>'
            f"{escape(line.label)}, {escape(x_axis[1](px))}: {escape(y_axis[1](py))}"
            "</title></circle>"
            for (x, y), (px, py) in zip(spots, line.points, strict=True)
        ]
        x, y = spots[-1]
        parts.append(
            f'<line class="{colour} lead" x1="{x + 5:.1f}" x2="{WIDTH - right + 14}" '
            f'y1="{y:.1f}" y2="{ends[i]:.1f}"/>'
            f'<text class="label c{i % COLOURS}" x="{WIDTH - right + 18}" y="{ends[i] + 4:.1f}">'
            f"{escape(line.label)}</text>"
        )
    return "".join([*parts, "</svg>"])


def _open(width: int, height: int) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg">'


def _scale(
    low: float, high: float, start: float, end: float, logarithmic: bool
) -> Callable[[float], float]:
    if logarithmic:
        low, high = log10(low), log10(high)
    over = (high - low) or 1

    def place(value: float) -> float:
        at = log10(value) if logarithmic else value
        return start + (end - start) * (at - low) / over

    return place


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round numbers: powers of ten, or 1, 2 or 5 of them."""
    if logarithmic:
        first, last = floor(log10(low)), ceil(log10(high))
        every = max(1, (last - first) // 8 + 1)
        return [10.0**i for i in range(first, last + 1, every)]
    rough = (high - low or 1) / 5
    power = 10 ** floor(log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough)
    return [step * i for i in range(floor(low / step), ceil(high / step) + 1)]


def _apart(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Moves labels so that none covers another, as little as that needs."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    placed = list(wanted)
    above = low - gap
    for i in order:
        placed[i] = above = max(wanted[i], above + gap)
    below = high + gap
    for i in reversed(order):
        placed[i] = below = min(placed[i], below - gap)
    return placed

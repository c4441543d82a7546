# SPDX-License-Identifier: Apache-2.0
"""How figures are written, in tables and on the page."""

from __future__ import annotations

SCALE = {"us": 1e3, "ms": 1e6}
"""Nanoseconds in units of claims about a time as such."""
NAMES = {"us": "\u00b5s"}


def number(value: float) -> str:
    """Nanoseconds, as long as needed."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.4f}"


def amount(value: float, unit: str) -> str:
    """A ratio, share or time."""
    if unit == "x":
        return f"{value:.2f}x"
    if unit == "%":
        return f"{100 * value:.1f} %"
    return f"{value:.2f} {NAMES.get(unit, unit)}"


def nanoseconds(value: float) -> str:
    """With a unit that suits it."""
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("\u00b5s", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g} ns"


def size(value: float) -> str:
    """Bytes with a unit."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g} B"


def gigabytes(value: float) -> str:
    """A rate, from nanoseconds a byte."""
    return f"{1 / value:.2f} GB/s"

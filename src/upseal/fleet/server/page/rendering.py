# SPDX-License-Identifier: Apache-2.0
"""Templates and assets: read once, served by ourselves. All that is put in is escaped."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2

_PACKAGE = "upseal.fleet.server.page"
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class Asset:
    """A file for the browser."""

    data: bytes
    media_type: str
    digest: str
    """In its address, so that a browser never has the one of another version."""


class Templates:
    """All of them."""

    def __init__(self) -> None:
        loader = jinja2.FunctionLoader(lambda name: _read("templates", name).decode("utf-8"))
        self._environment = jinja2.Environment(
            loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
            lstrip_blocks=True, auto_reload=False,
        )  # fmt: skip
        self._environment.filters.update(
            ago=ago, moment=moment, clock=clock, number=number, size=size, share=share, iso=iso
        )
        self.assets = {
            name: _asset(name, media_type)
            for name, media_type in (
                ("page.css", "text/css; charset=utf-8"),
                ("page.js", "text/javascript; charset=utf-8"),
                ("icon.svg", "image/svg+xml"),
            )
        }
        self._environment.globals["asset"] = {n: a.digest for n, a in self.assets.items()}

    def render(self, template: str, **given: Any) -> bytes:
        """A page, or a part of one."""
        return self._environment.get_template(template).render(**given).encode("utf-8", "replace")


def _read(folder: str, name: str) -> bytes:
    return resources.files(_PACKAGE).joinpath(folder, name).read_bytes()


def _asset(name: str, media_type: str) -> Asset:
    data = _read("assets", name)
    return Asset(data, media_type, hashlib.sha256(data).hexdigest()[:12])


# -- for people ---------------------------------------------------------------------------


def moment(milliseconds: int | None) -> str:
    """A time, in UTC."""
    return _written(milliseconds, "%Y-%m-%d %H:%M UTC", "never")


def clock(milliseconds: int | None) -> str:
    """The time of the day, in UTC."""
    return _written(milliseconds, "%H:%M:%S UTC", "never")


def iso(milliseconds: int | None) -> str:
    """For the attribute ``datetime``."""
    return _written(milliseconds, "%Y-%m-%dT%H:%M:%SZ", "")


def _written(milliseconds: int | None, form: str, never: str) -> str:
    if milliseconds is None:
        return never
    try:
        when = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return str(milliseconds)
    return when.strftime(form)


def ago(milliseconds: int | None, now_ms: int) -> str:
    """How long since, or until."""
    if milliseconds is None:
        return "never"
    seconds = (now_ms - milliseconds) // 1000
    form = "{} ago" if seconds >= 0 else "in {}"
    for long, unit in _UNITS:
        if abs(seconds) >= 2 * long:
            return form.format(f"{abs(seconds) // long} {unit}")
    return form.format(f"{abs(seconds)} s")


def number(value: float | None) -> str:
    """With commas."""
    if value is None:
        return "-"
    return f"{value:,.1f}" if value % 1 and value < 100 else f"{round(value):,}"


def size(count: int) -> str:
    """Bytes."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_SIZES) - 1:
        value, unit = value / 1024, unit + 1
    return (
        f"{value:.0f} {_SIZES[unit]}"
        if unit == 0 or value >= 100
        else f"{value:.1f} {_SIZES[unit]}"
    )


def share(part: float, whole: float) -> str:
    """In percent; what is not all is never said to be."""
    if not whole:
        return "0 %"
    percent = 100 * part / whole
    if 0 < percent < 1:
        return "< 1 %"
    if 99 < percent < 100:
        return "> 99 %"
    return f"{percent:.0f} %"

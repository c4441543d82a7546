# SPDX-License-Identifier: Apache-2.0
"""Logs: one JSON object a line on stderr, or one line for people where stderr is a terminal.

Nothing here is ever given plaintext, keys or tokens. To keep it so, `event` refuses what could be
some: bytes, and fields whose name sounds like a secret. It raises with UPSEAL_DEBUG=1 and under
test; elsewhere, and with UPSEAL_DEBUG=0, it drops the field: a log line must not end a process.
"""

from __future__ import annotations

import enum
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import PurePath
from types import TracebackType
from typing import Any, TextIO

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
RESERVED = frozenset({"t", "level", "event", "logger", "trace"})
LONGEST = 1000
DROPPED = "(dropped)"

_SECRET = frozenset(
    {"key", "secret", "token", "passphrase", "password", "plaintext", "plain", "credential"}
    | {"authorization", "proof", "payload", "pem", "private", "cookie"}
)
_LOOKS_SECRET = re.compile(
    r"-----BEGIN |upseal-token-|\bUpseal ey|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]{16,}"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Refused(ValueError):  # noqa: N818 - reads as what it is
    """A field that must not be logged."""


def setup(
    json: bool | None = None, level: str | int = "info", stream: TextIO | None = None
) -> logging.Handler:
    """Sends this process's logs to stderr. Twice is once; the handler is returned for tests.

    ``json=None`` asks whether the stream is a terminal. Other people's loggers are heard from
    WARNING on.
    """
    number = level if isinstance(level, int) else LEVELS.get(level.lower())
    if number is None:
        raise ValueError(f"level is one of {', '.join(LEVELS)}")
    out = sys.stderr if stream is None else stream
    if json is None:
        json = not (out is not None and out.isatty())
    handler = _Handler(out)
    handler.setFormatter(_Json() if json else _Line())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("upseal").setLevel(number)
    # It warns of a pool that was too small for a moment, and of heads that strangers made odd.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    return handler


def event(
    log: logging.Logger, what: str, /, *, level: int = logging.INFO, exc: Any = None, **fields: Any
) -> None:
    """Logs that ``what`` happened, in a few constant words; what varies goes into fields.

    ``exc`` adds where an exception came from: types, files and lines, never its words, which may
    quote what was being worked on.
    """
    strict = _strict()
    if not (strict or log.isEnabledFor(level)):
        return
    safe = {}
    for name, value in fields.items():
        try:
            safe[name] = _checked(name, value)
        except Refused:
            if strict:
                raise
            safe[name if name not in RESERVED else f"_{name}"] = DROPPED
    if not log.isEnabledFor(level):
        return
    info = (type(exc), exc, exc.__traceback__) if isinstance(exc, BaseException) else None
    log.log(level, "%s", what, exc_info=info, extra={"upseal_event": what, "upseal_fields": safe})


def _strict() -> bool:
    # pytest hands its variable down to the processes that a test starts.
    debug = os.environ.get("UPSEAL_DEBUG")
    return debug == "1" or (debug is None and "PYTEST_CURRENT_TEST" in os.environ)


def _checked(name: str, value: Any) -> Any:
    """The value as JSON knows it; Refused if it must not be logged."""
    if name in RESERVED:
        raise Refused(f"{name} is a field of every line")
    last = name.lower().rsplit("_", 1)[-1]
    number = value is None or isinstance(value, bool | float) or _small(value)
    # A plural with a number is a count ("keys": 3), and tells nothing.
    if last in _SECRET or (last.removesuffix("s") in _SECRET and not number):
        raise Refused(f"{name} sounds like a secret")
    return _value(value, 0)


def _small(value: Any) -> bool:
    return isinstance(value, int) and -(1 << 63) <= value < 1 << 64


def _value(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return value.name.lower().replace("_", "-")
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # JSON knows no infinity
    if _small(value):
        return int(value)
    if isinstance(value, BaseException):
        return _exception(value)
    if isinstance(value, str | PurePath):
        text = str(value)
        if _LOOKS_SECRET.search(text):
            raise Refused("a value looks like a secret")
        return text if len(text) <= LONGEST else text[:LONGEST] + "..."
    if isinstance(value, Mapping) and depth < 3:
        return {str(k): _inside(str(k), v, depth) for k, v in [*value.items()][:100]}
    if isinstance(value, list | tuple | set | frozenset) and depth < 3:
        return [_value(item, depth + 1) for item in [*value][:100]]
    raise Refused(f"a {type(value).__name__} is not logged")


def _inside(name: str, value: Any, depth: int) -> Any:
    if isinstance(value, str | list | tuple | Mapping):
        _checked(name if name not in RESERVED else "", "")
    return _value(value, depth + 1)


def _exception(error: BaseException) -> str:
    """An operating system's words are its own; those of others may quote data."""
    kind = type(error).__name__
    if isinstance(error, OSError):
        return _value(f"{kind}: {error}", 0)  # type: ignore[no-any-return]
    name = getattr(error, "name", None)  # a Problem's name says it all
    if isinstance(name, str) and hasattr(error, "retry_after"):
        return f"{kind}: {name}"
    return kind


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to a stream, and shrugs if that is gone: logs must not end a process."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.addFilter(_no_bytes)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if _strict() and not isinstance(sys.exc_info()[1], OSError):
            raise


def _no_bytes(record: logging.LogRecord) -> bool:
    """Replaces bytes in what other libraries log."""
    if isinstance(record.args, tuple):
        record.args = tuple(_shy(arg) for arg in record.args)
    elif isinstance(record.args, Mapping):
        record.args = {name: _shy(arg) for name, arg in record.args.items()}
    if not isinstance(record.msg, str):
        record.msg = _shy(record.msg)
    return True


def _shy(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, BaseException):
        return _exception(value)
    return value if isinstance(value, int | float | None) else str(value)[:LONGEST]


def _parts(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    what = getattr(record, "upseal_event", None)
    if what is not None:
        return what, dict(getattr(record, "upseal_fields", {}))
    text = record.getMessage()
    return ("(withheld)" if _LOOKS_SECRET.search(text) else text[: 4 * LONGEST]), {}


def trace(error: BaseException | None, most: int = 30) -> list[str]:
    """Where an exception came from, oldest first, and where those came from that led to it."""
    out: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen and len(seen) < 5:
        seen.add(id(error))
        words = f": {error}" if os.environ.get("UPSEAL_DEBUG") == "1" else ""
        here = [f"{type(error).__module__}.{type(error).__qualname__}{words}"[:LONGEST]]
        here += _frames(error.__traceback__, most)
        out = here + out
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return out


def _frames(tb: TracebackType | None, most: int) -> list[str]:
    frames = traceback.extract_tb(tb)[-most:]
    return [f"  {frame.filename}:{frame.lineno} {frame.name}" for frame in frames]


class _Json(logging.Formatter):
    """``{"t", "level", "event", ...}``; other people's lines carry the name of their logger."""

    def format(self, record: logging.LogRecord) -> str:
        what, fields = _parts(record)
        line: dict[str, Any] = {
            "t": _when(record.created),
            "level": record.levelname.lower(),
            "event": what,
        }
        if not record.name.startswith("upseal"):
            line["logger"] = record.name
        line.update(fields)
        if record.exc_info and record.exc_info[1] is not None:
            line["trace"] = trace(record.exc_info[1])
        return json.dumps(line, default=str)


class _Line(logging.Formatter):
    """For people: ``10:31:07 info   unit stored  agent=1f2e count=3``."""

    def format(self, record: logging.LogRecord) -> str:
        what, fields = _parts(record)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        shown = "  ".join(f"{name}={_plain(value)}" for name, value in fields.items())
        line = f"{clock} {record.levelname.lower():<7} {what}" + (f"  {shown}" if shown else "")
        lines = [_CONTROL.sub("?", line)]
        if record.exc_info and record.exc_info[1] is not None:
            lines += [_CONTROL.sub("?", part) for part in trace(record.exc_info[1])]
        return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, str) and value and not re.search(r"[\s\"=]", value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _when(seconds: float) -> str:
    millis = round(seconds * 1000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(millis // 1000))
    return f"{stamp}.{millis % 1000:03d}Z"

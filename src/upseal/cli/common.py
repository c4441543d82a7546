# SPDX-License-Identifier: Apache-2.0
"""What the commands share: exit codes, messages, standard input and output.

Nothing here imports the library at the top: ``upseal --help`` must be quick.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

OK = 0
BAD = 1
USAGE = 2
NO_KEY = 3
IO = 4
ENGINE = 5
BUG = 70
BROKEN_PIPE = 141

EXIT_CODES = """\
exit codes:
  0  fine
  1  cannot be opened, or the data or a key file is bad
  2  wrong usage
  3  sealed to none of the keys given
  4  input or output failed: a file is missing, exists, is not permitted, the disk is full
  5  the engine cannot run here, or there is no memory for it
"""

_NEXT = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check its permissions and those of its folder",
    errno.EPERM: "check its permissions and those of its folder",
    errno.EEXIST: "it is never written over: choose another name, or move it away first",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "check the path",
    errno.ENOSPC: "make room on the disk, or write elsewhere",
    errno.EDQUOT: "make room on the disk, or write elsewhere",
    errno.EROFS: "write elsewhere",
}


class Failure(Exception):  # noqa: N818 - not every one is an error of ours
    """What happened, to what, and what to do next; and the exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def complain(message: str) -> None:
    """One line on stderr."""
    if sys.stderr is not None:
        print("upseal: " + " ".join(message.split()), file=sys.stderr)


def warn(message: str) -> None:
    """A line on stderr that ends nothing."""
    complain(f"warning: {message}")


def why(error: OSError, doing: str = "") -> str:
    """An operating system's error, in our form."""
    reason = error.strerror or str(error)
    if not doing and error.filename is not None:
        doing = f"cannot use {shown(error.filename)}"
    hint = _NEXT.get(error.errno or 0, "")
    return (f"{doing}: " if doing else "") + reason + (f"; {hint}" if hint else "")


def shown(name: Any) -> str:
    """A file's name for a message: quoted, on one line."""
    return "standard input" if name in (None, "-") else repr(os.fsdecode(name))


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Says of an `OSError` inside what was being done."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failure(IO, why(error, f"cannot {what}")) from error


def say(text: str) -> None:
    """Text on stdout."""
    if sys.stdout is None:
        raise Failure(IO, "standard output is closed; open it or use -o")
    encoding = sys.stdout.encoding or "ascii"
    try:
        with doing("write to standard output"):
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
            sys.stdout.flush()
    except Failure:
        quiet_stdout()
        raise


def quiet_stdout() -> None:
    """What still stands in the buffer goes nowhere, so that Python has nothing to say at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        pass


def say_json(value: Any, *, on_stderr: bool = False) -> None:
    """One object on one line; on stderr where stdout carries data."""
    line = json.dumps(value) + "\n"
    if on_stderr:
        sys.stderr.write(line)
    else:
        say(line)


def printable_size(count: float) -> str:
    """For people: ``1.5 MiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def table(rows: list[list[str]], right: tuple[int, ...] = ()) -> str:
    """Columns of equal width, two blanks between; those in ``right`` end at the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(cells)
        ).rstrip()
        for cells in ([*zip(row, widths, strict=True)] for row in rows)
    ]
    return "\n".join(lines) + "\n"


# -- options that several commands have -------------------------------------------


def add_context(parser: argparse.ArgumentParser) -> None:
    """``--context`` and ``--context-hex``."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--context", metavar="STRING", help="bytes bound into the seal, not sent: UTF-8"
    )
    group.add_argument("--context-hex", metavar="HEX", help="the same, in hexadecimal")


def context_of(args: argparse.Namespace) -> bytes:
    """The bytes of `add_context`."""
    if args.context_hex is not None:
        try:
            return bytes.fromhex(args.context_hex)
        except ValueError:
            raise Failure(
                USAGE, "--context-hex is not hexadecimal; give two digits for each byte"
            ) from None
    return (args.context or "").encode("utf-8", "surrogateescape")


def positive(text: str) -> int:
    """An argument type: a whole number above 0."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def check_engine() -> Any:
    """The engine and why; a wrong environment is said before any file is touched."""
    from upseal.engine import choose
    from upseal.engine.types import EngineError

    try:
        return choose()
    except (EngineError, ValueError) as error:
        hint = "unset UPSEAL_ENGINE and UPSEAL_BACKEND to let upseal choose"
        raise Failure(ENGINE, f"no engine: {error}; {hint}") from error


# -- files --------------------------------------------------------------------


class _Patient(io.RawIOBase):
    """A descriptor that somebody made non-blocking: waits instead of taking less for the end."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, target: Any, /) -> int:
        while True:
            try:
                return os.readv(self._descriptor, [target])
            except BlockingIOError:
                select.select([self._descriptor], [], [])

    def write(self, data: Any, /) -> int:
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                select.select([], [self._descriptor], [])


class Prefixed(io.RawIOBase):
    """A pipe of which the beginning has been read, put together again."""

    def __init__(self, front: bytes, rest: Any) -> None:
        super().__init__()
        self._front = memoryview(front)
        self._rest = rest

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, target: Any, /) -> int:
        """From the front while it lasts, then from the pipe."""
        out = memoryview(target).cast("B")
        if not len(self._front):
            return int(self._rest.readinto(out) or 0)
        count = min(len(out), len(self._front))
        out[:count] = self._front[:count]
        self._front = self._front[count:]
        return count


class _ToTerminal(io.RawIOBase):
    """Shows text on a terminal, and refuses what could play tricks with it."""

    _CONTROL = bytes(c for c in range(32) if c not in b"\t\n\r") + b"\x7f"

    def __init__(self, target: Any) -> None:
        super().__init__()
        self._target = target

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        raw = bytes(data)
        if len(raw.translate(None, self._CONTROL)) < len(raw):
            raise Failure(
                USAGE, 'this is binary, and standard output a terminal; use -o FILE, or "-o -"'
            )
        return int(self._target.write(raw) or 0)


def input_name(args: argparse.Namespace) -> str | None:
    """FILE, or None for standard input."""
    return None if args.file in (None, "-") else str(args.file)


@contextmanager
def reading(name: str | None, *, sealed: bool = False) -> Iterator[Any]:
    """FILE or standard input, unbuffered. Sealed data nobody types: a terminal is refused."""
    if name is not None:
        with doing(f"read {shown(name)}"):
            file = open(name, "rb", buffering=0)  # noqa: SIM115 - closed below
        with file:
            if os.path.isdir(name):
                raise Failure(IO, f"{shown(name)} is a folder; put it into a pipe with tar")
            yield file
        return
    if sys.stdin is None:
        raise Failure(IO, "standard input is closed; name a FILE")
    if sealed and os.isatty(0):
        raise Failure(USAGE, "standard input is a terminal; name a FILE, or use a pipe")
    if os.get_blocking(0):
        yield open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - it stays open
    else:
        yield _Patient(0)


def standard_output(*, sealed: bool, explicit: bool) -> Any:
    """Standard output for data. A terminal takes binary only if ``-o -`` says so."""
    if sys.stdout is None:
        raise Failure(IO, "standard output is closed; open it or use -o FILE")
    sys.stdout.flush()
    terminal = os.isatty(1)
    if terminal and sealed and not explicit:
        raise Failure(
            USAGE, 'sealed data is binary, and standard output a terminal; use -o FILE, or "-o -"'
        )
    target: Any = (
        open(1, "wb", buffering=0, closefd=False)  # noqa: SIM115 - it stays open
        if os.get_blocking(1)
        else _Patient(1)
    )
    return _ToTerminal(target) if terminal and not explicit else target


def target_of(output: str | None, source: str | None, *, sealed: bool) -> Any:
    """The path of ``-o``, or standard output as a file."""
    if output in (None, "-"):
        return standard_output(sealed=sealed, explicit=output == "-")
    if source is not None:
        try:
            same = os.path.samefile(source, str(output))
        except OSError:
            same = False
        if same and os.path.isfile(source):
            raise Failure(USAGE, f"{shown(source)} is input and output; name another with -o")
    return output


@contextmanager
def writing(target: Any) -> Iterator[BinaryIO]:
    """A path's file, put in place when all is written, or the file itself."""
    from upseal.core.files import replacing

    with replacing(target) as file:
        yield file


def write_new(name: str, data: bytes, mode: int) -> None:
    """A new file, never over an existing one."""
    with doing(f"write {shown(name)}"):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
        except BaseException:
            os.unlink(name)
            raise


def read_all(file: Any, limit: int) -> bytes:
    """Everything, but no more than one byte over ``limit``: the caller sees that it is too long."""
    out = bytearray()
    while len(out) <= limit and (piece := file.read(min(1 << 20, limit + 1 - len(out)))):
        out += piece
    return bytes(out)

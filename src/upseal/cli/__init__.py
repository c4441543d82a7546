# SPDX-License-Identifier: Apache-2.0
"""The command line: one module for each command, imported when it is asked for (docs/cli.md)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from upseal.cli import stopping
from upseal.cli.common import (
    BAD,
    BROKEN_PIPE,
    BUG,
    ENGINE,
    IO,
    NO_KEY,
    Failure,
    complain,
    quiet_stdout,
    why,
)

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. Never a traceback, unless UPSEAL_DEBUG=1."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with stopping.caught():
        try:
            code = _run(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
        except SystemExit as stop:  # argparse: --help, or a usage error that it has printed
            return stop.code if isinstance(stop.code, int) else 0
        except BaseException as error:
            if os.environ.get("UPSEAL_DEBUG") == "1":
                raise
            return _explained(error)


def _run(arguments: list[str]) -> int:
    from upseal.cli.parser import run

    return run(arguments)


def _explained(error: BaseException) -> int:
    """One line on stderr, and the exit code."""
    if isinstance(error, stopping.Stopped):
        quiet_stdout()
        return 128 + error.number
    if isinstance(error, KeyboardInterrupt):
        quiet_stdout()
        return 130
    if isinstance(error, BrokenPipeError):
        quiet_stdout()
        return BROKEN_PIPE
    if isinstance(error, Failure):
        complain(str(error))
        return error.code
    from upseal.engine.types import EngineError
    from upseal.errors import KeyUnavailable, OpenError, UnknownRecipient

    if isinstance(error, UnknownRecipient):
        complain(f"{error}; give a key it was sealed to with -i")
        return NO_KEY
    if isinstance(error, OpenError):
        complain(f"{error}; look at it with `upseal explain`")
        return BAD
    if isinstance(error, KeyUnavailable):
        complain(str(error))
        return IO
    if isinstance(error, OSError):
        complain(why(error))
        quiet_stdout()
        return IO
    if isinstance(error, EngineError):
        complain(f"{error}; see `upseal bench`, or set UPSEAL_ENGINE=portable")
        return ENGINE
    if isinstance(error, MemoryError):
        complain("not enough memory; seal or open it as an upload, or in smaller parts")
        return ENGINE
    complain(
        f"unexpected {type(error).__name__}: {error}; this is a bug: run it again with "
        "UPSEAL_DEBUG=1 and report what that prints"
    )
    return BUG

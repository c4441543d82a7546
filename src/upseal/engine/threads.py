# SPDX-License-Identifier: Apache-2.0
"""Threads that write to memory, or to files, which somebody else holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def share(work: Callable[[], None], threads: int, stop: Callable[[], None] | None = None) -> None:
    """Calls ``work`` in this thread and in ``threads - 1`` others at once; ends when all have.

    Where there are no more threads to be had, those there are will do: whatever is left to do,
    each call of ``work`` must find by itself.

    Args:
        work: called once in every thread.
        threads: how many in all.
        stop: called when something is raised in this thread: the others are to end soon.

    Raises:
        BaseException: the first that was raised in any of them.
    """
    others: list[threading.Thread] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    try:
        for _ in range(threads - 1):
            others.append(threading.Thread(target=run, name="upseal"))
            try:
                others[-1].start()
            except RuntimeError:  # at a limit; from Python 3.12 on also while Python shuts down
                break
            except BaseException:
                work = _nothing  # for a thread that is only now beginning, and not waited for
                raise
        work()
    except BaseException:
        if stop is not None:
            stop()
        raise
    finally:
        try:
            wait_for(others)
        except BaseException:  # a second interrupt, as it began to wait
            wait_for(others)
            raise
        finally:
            work = _nothing  # which Python may keep with a thread that never began
    if errors:
        raise errors.pop(0)


def wait_for(threads: list[threading.Thread]) -> None:
    """Waits for all of them whatever comes: they write to memory that their caller would let go."""
    interrupt: BaseException | None = None
    while True:
        try:
            for thread in threads:
                if interrupt is None and thread.is_alive():
                    thread.join()
                # In Python 3.11 and 3.12, after an interrupted join the thread says that it has
                # stopped, while it runs on.
                while thread.ident is not None and thread in threading.enumerate():
                    time.sleep(0.001)
            break
        except BaseException as error:  # Ctrl-C: a share takes milliseconds, it can wait
            # In a circle with its traceback it would keep what these frames have: callers' memory.
            interrupt = error.with_traceback(None)
    if interrupt is not None:
        try:
            raise interrupt
        finally:
            del interrupt


def _nothing() -> None:
    """Instead of work that is over."""

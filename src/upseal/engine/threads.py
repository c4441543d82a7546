# SPDX-License-Identifier: Apache-2.0
"""Threads that write to memory which somebody else holds."""

from __future__ import annotations

import threading


def wait_for(threads: list[threading.Thread]) -> None:
    """Waits for all of them whatever comes: they write to memory that their caller would let go."""
    interrupt: BaseException | None = None
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join()
            except BaseException as error:  # Ctrl-C: a share takes milliseconds, it can wait
                interrupt = error
    if interrupt is not None:
        raise interrupt

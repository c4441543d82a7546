# SPDX-License-Identifier: Apache-2.0
"""What a status of the C core is in Python."""

from __future__ import annotations

import os
from typing import NoReturn

from upseal.engine._native import lib
from upseal.engine.types import EngineError


def check_forged(status: int) -> None:
    """Raises if it is anything but a forgery: that is no fault of the data."""
    if status != lib.UPSEAL_EFORGED:
        failed(status)


def failed(status: int) -> NoReturn:
    """Raises what a failure is called here."""
    if status == lib.UPSEAL_EARGUMENT:
        raise ValueError("a report is longer than 16 MiB, or its offsets are wrong")
    raise EngineError(f"the C core failed with status {status} (pid {os.getpid()})")

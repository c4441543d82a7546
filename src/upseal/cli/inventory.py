# SPDX-License-Identifier: Apache-2.0
"""As many real reports about this host as the demo asks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from upseal.cli.common import USAGE, Failure
from upseal.fleet.agent.inventory import encode, live, once


def load_psutil() -> Any:
    """The module, or how to get it."""
    try:
        import psutil
    except ImportError:
        raise Failure(
            USAGE, "the demo needs psutil to look at this host; pip install upseal[demo]"
        ) from None
    return psutil


def gather(count: int, progress: Callable[[int, int | None], None]) -> list[bytes]:
    """So many JSON reports: first each thing once, then live values again and again."""
    load_psutil()
    reports: list[bytes] = []
    for fact in (*once(), *live()):
        reports.append(encode(fact))
    sequence = 0
    while len(reports) < count:
        sequence += 1
        now = time.time()
        before = len(reports)
        for fact in live():
            reports.append(encode({**fact, "sequence": sequence, "time": now}))
        progress(min(len(reports), count), count)
        if len(reports) == before:
            raise Failure(
                USAGE, "psutil finds nothing on this host to report; give fewer --reports"
            )
    return reports[:count]

# SPDX-License-Identifier: Apache-2.0
"""Lines in a log that a stranger can cause: some of them, so that he does not fill the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from upseal.fleet.http.rates import Buckets


class Seldom:
    """Says which are written. Safe for threads.

    Args:
        rate: lines a second.
        reserve: seconds of them at once after a pause.
        clock: seconds that only go up.
    """

    def __init__(
        self,
        rate: float = 1.0,
        reserve: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bucket = Buckets(rate, reserve, 1, clock)
        self._lock = threading.Lock()
        self._left_out = 0

    def tell(self) -> int | None:
        """None: leave this one out. Else how many were left out before it."""
        with self._lock:
            if self._bucket.take(None) > 0:
                self._left_out += 1
                return None
            left_out, self._left_out = self._left_out, 0
        return left_out

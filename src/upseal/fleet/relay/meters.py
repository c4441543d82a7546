# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of a relay on ``/metrics``."""

from __future__ import annotations

import time
from collections.abc import Callable

from upseal.fleet.http.metrics import SIZES, Metrics
from upseal.fleet.relay.queue import Queue


class Meters:
    """The counters of one relay."""

    def __init__(self) -> None:
        self.metrics = Metrics("relay")
        counter, histogram = self.metrics.counter, self.metrics.histogram
        self.bodies_in = counter("bodies_in", "Bodies taken into the queue", ("kind",))
        self.bytes_in = counter("bytes_in", "Bytes of those")
        self.refused = counter("bodies_refused", "Bodies not taken, by problem", ("problem",))
        self.finished = counter("bodies_finished", "Bodies answered for", ("state",))
        self.problems = counter("bodies_problems", "Bodies that ended in a problem", ("problem",))
        self.requests = counter("parent_requests", "Requests to the parent", ("outcome",))
        self.sent = counter("sent_bodies", "Bodies sent to the parent", ("how",))
        self.sent_bytes = counter("sent_bytes", "Bytes of those")
        self.opened = counter("bodies_opened", "Sealed bodies opened")
        self.unopened = counter("bodies_unopened", "Sealed bodies passed on closed", ("why",))
        self.repackaged = counter("units_repackaged", "Units sealed to the server again")
        self.missing = counter("receipts_missing", "Units without a good receipt; sent again")
        self.resent = counter("bodies_queued_again", "Bodies to be sent again", ("why",))
        self.package_bytes = histogram("sent_body_bytes", "Length of what was sent", (), SIZES)
        self.latency = histogram("body_seconds", "From taking a body to its result")
        self.parent_seconds = histogram("parent_seconds", "Time of requests to the parent")

    def watch(self, queue: Queue, away: Callable[[], bool], outstanding: Callable[[], int]) -> None:
        """Gauges, asked when they are read."""
        gauge = self.metrics.gauge
        gauge("queue_bodies", "Bodies in the queue", function=lambda: queue.stats().bodies)
        gauge("queue_bytes", "Bytes in the queue", function=lambda: queue.stats().bytes)
        gauge("queue_age_seconds", "Age of the oldest body in it", function=lambda: age(queue))
        gauge("queue_in_flight", "Bodies on their way", function=lambda: queue.stats().in_flight)
        gauge("results_kept", "Results for who asks late", function=lambda: queue.stats().results)
        gauge("parent_away", "1 while the parent cannot be reached", function=lambda: float(away()))
        gauge("parent_pending", "Bodies the parent has not answered for", function=outstanding)


def age(queue: Queue) -> float:
    """Seconds that the oldest body has been waiting; 0 if there is none."""
    oldest = queue.stats().oldest
    return 0.0 if oldest is None else max(0.0, time.time() - oldest / 1000)

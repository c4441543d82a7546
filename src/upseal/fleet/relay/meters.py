# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of a relay on ``/metrics``."""

from __future__ import annotations

import time
from collections.abc import Callable

from upseal.core.opener import Sessions
from upseal.fleet.http.metrics import SIZES, Metrics
from upseal.fleet.manifest import Manifest
from upseal.fleet.relay.queue import Queue
from upseal.fleet.server.throttle import Throttle
from upseal.fleet.uploads.shelf import Usage

LONG = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)
"""Seconds that files take."""


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
        # From 0 on: to Prometheus what begins at 1 has never risen.
        for problem in ("full", "parent-away"):
            self.refused.labels(problem)
        for why in ("damaged", "key-unavailable", "no-key", "throttled", "unknown-recipient"):
            self.unopened.labels(why)
        self.repackaged = counter("units_repackaged", "Units sealed to the server again")
        self.missing = counter("receipts_missing", "Units without a good receipt; sent again")
        self.resent = counter("bodies_queued_again", "Bodies to be sent again", ("why",))
        self.package_bytes = histogram("sent_body_bytes", "Length of what was sent", (), SIZES)
        self.latency = histogram("body_seconds", "From taking a body to its result")
        self.parent_seconds = histogram("parent_seconds", "Time of requests to the parent")
        self.uploads_in = counter("uploads_in", "Whole files taken", ("form",))
        self.upload_bytes_in = counter("upload_bytes_in", "Bytes of those")
        self.uploads_expired = counter("uploads_expired", "Files begun that nobody sent on")
        self.uploads_sealed = counter("uploads_sealed", "Files that came in clear, sealed here")
        self.uploads_sent = counter("uploads_sent", "Files that the parent has", ("how",))
        self.upload_bytes_sent = counter("upload_bytes_sent", "Bytes of files sent, also again")
        self.uploads_finished = counter("uploads_finished", "Files answered for", ("state",))
        self.uploads_again = counter("uploads_again", "Files to be tried again", ("why",))
        self.sealing_seconds = histogram("upload_sealing_seconds", "Time to seal a file", (), LONG)
        self.upload_seconds = histogram("upload_seconds", "From begun to answered for", (), LONG)

    def watch_uploads(
        self, usage: Callable[[], Usage], waiting: Callable[[], int], sealed: Callable[[], int]
    ) -> None:
        """Gauges about files, asked when they are read."""
        gauge = self.metrics.gauge
        gauge("uploads_open", "Files that lack bytes", function=lambda: usage().open)
        gauge("uploads_waiting", "Whole files without an answer", function=waiting)
        gauge("uploads_held_bytes", "Bytes of files held", function=lambda: usage().held)
        gauge("uploads_reserved_bytes", "The same, declared", function=lambda: usage().reserved)
        gauge("uploads_sealed_bytes", "Bytes of files sealed here", function=sealed)
        gauge(
            "uploads_age_seconds",
            "Age of the oldest file",
            function=lambda: since(usage().oldest),
        )

    def watch(
        self, queue: Queue, most: int, away: Callable[[], bool], outstanding: Callable[[], int]
    ) -> None:
        """Gauges, asked when they are read; ``most`` bytes fit into the queue."""
        gauge = self.metrics.gauge
        gauge("queue_bodies", "Bodies in the queue", function=lambda: queue.stats().bodies)
        gauge("queue_bytes", "Bytes in the queue", function=lambda: queue.stats().bytes)
        gauge("queue_limit_bytes", "Where it is full", function=lambda: most)
        gauge("queue_age_seconds", "Age of the oldest body in it", function=lambda: age(queue))
        gauge("queue_in_flight", "Bodies on their way", function=lambda: queue.stats().in_flight)
        gauge("results_kept", "Results for who asks late", function=lambda: queue.stats().results)
        gauge("parent_away", "1 while the parent cannot be reached", function=lambda: float(away()))
        gauge("parent_pending", "Bodies the parent has not answered for", function=outstanding)

    def watch_above(
        self, manifest: Callable[[], Manifest | None], offset: Callable[[], float]
    ) -> None:
        """What it believes, and how far its clock is off the parent's, in seconds."""
        gauge = self.metrics.gauge
        gauge("manifest_serial", "Serial of its manifest", function=lambda: serial(manifest()))
        gauge(
            "manifest_expires_seconds",
            "When its manifest expires, unix time",
            function=lambda: expires(manifest()),
        )
        gauge("clock_offset_seconds", "The parent's clock before ours", function=offset)

    def watch_sessions(self, sessions: Callable[[], Sessions], throttle: Throttle) -> None:
        """Of a decrypting relay's opener."""
        self.metrics.gauge(
            "sessions", "Sessions remembered", function=lambda: sessions().remembered
        )
        counted = self.metrics.counted
        counted("session_hits", "Sessions that were remembered", lambda: sessions().known)
        counted("unwraps", "Sessions opened for the first time", lambda: throttle.unwraps)


def age(queue: Queue) -> float:
    """Seconds that the oldest body has been waiting; 0 if there is none."""
    return since(queue.stats().oldest)


def serial(manifest: Manifest | None) -> float:
    """Of that manifest; 0 while there is none."""
    return 0.0 if manifest is None else float(manifest.serial)


def expires(manifest: Manifest | None) -> float:
    """Unix seconds; 0 while there is none."""
    return 0.0 if manifest is None else manifest.expires / 1000


def since(moment: int | None) -> float:
    """Seconds since then, in unix milliseconds; 0 if it never was."""
    return 0.0 if moment is None else max(0.0, time.time() - moment / 1000)

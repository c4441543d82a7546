# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of the server: counters by what happened, gauges of what is."""

from __future__ import annotations

from collections.abc import Callable

from upseal.fleet.http.metrics import Metrics

_LONG = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)


class Meters:
    """The server's metrics. Labels have few values; no client or hop is ever one."""

    def __init__(self, metrics: Metrics) -> None:
        """Makes them."""
        self.metrics = metrics
        counter, gauge = metrics.counter, metrics.gauge
        self.reports = counter("reports", "Reports stored, by how they were sent", ("how",))
        self.units = counter("units", "Units by what became of them", ("status",))
        self.beacons = counter("beacons", "Beacons of clients that cannot send", ("status",))
        self.clear = counter("clear_reports", "Reports stored that were not sealed", ("reason",))
        self.bodies = counter("bodies", "Bodies by kind", ("kind",))
        self.body_bytes = counter("body_bytes", "Bytes of bodies, by kind", ("kind",))
        self.opened = counter("bodies_opened", "Sealed bodies opened")
        self.failures = counter("open_failures", "Sealed bodies that were not opened", ("reason",))
        self.refused = counter("refused_units", "Units that were refused", ("reason",))
        self.throttled = counter("throttled", "Bodies of hops with too many new sessions")
        self.replayed = counter("replayed", "Dead letters taken through again", ("result",))
        self.enrolments = counter("enrolments", "Enrolments by what became of them", ("result",))
        self.seconds = metrics.histogram(
            "intake_seconds", "Time that a body's request takes, by step", ("step",)
        )
        self.uploads = counter(
            "uploads", "Bodies of uploads by form and what became of them", ("form", "status")
        )
        self.upload_bytes = counter("upload_bytes", "Bytes of bodies that were stored", ("form",))
        self.upload_seconds = metrics.histogram(
            "upload_seconds", "Time until a whole body is stored, by step", ("step",), _LONG
        )
        self.letters = gauge("dead_letters", "Dead letters kept")
        self.letter_age = gauge("dead_letter_age_seconds", "Age of the oldest dead letter")
        self.letter_bytes = gauge("dead_letter_bytes", "Bytes of dead letters kept")
        self.serial = gauge("manifest_serial", "Serial of the newest manifest")
        self.expires = gauge(
            "manifest_expires_seconds", "When the newest manifest expires, unix time"
        )
        self.drain = gauge(
            "key_reports_last_hour", "Reports of the last hour by key", ("generation", "state")
        )
        self.on_key = gauge(
            "key_clients", "Clients whose last sealed body was under a key", ("generation", "state")
        )
        self.keys_missing = gauge("keys_missing", "Keys in use that have no file here")
        self.clients = gauge("clients", "Enrolled clients by what they do", ("actual",))

        self.reasons = gauge(
            "client_reasons", "Enrolled clients by what they do and why", ("actual", "reason")
        )

    def watch(self, name: str, about: str, function: Callable[[], float]) -> None:
        """A gauge that is asked when it is read."""
        self.metrics.gauge(name, about, function=function)

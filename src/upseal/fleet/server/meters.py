# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of the server: counters by what happened, gauges of what is."""

from __future__ import annotations

from collections.abc import Callable

from upseal.fleet.http.metrics import Metrics
from upseal.fleet.policy import Reason
from upseal.fleet.server.store import alarms, deadletters
from upseal.fleet.server.store.activity import SEALED

_UNOPENED = (
    deadletters.CANNOT_OPEN, deadletters.MALFORMED, deadletters.MISSING_KEY,
    "key-unavailable", "retired-key", "unknown-key",
)  # fmt: skip
_REFUSED = (
    "bad-signature", "bad-statement", "foreign-deployment", "revoked-agent", "unknown-agent",
)  # fmt: skip
_UPLOADS = ("cannot-open", "malformed", "refused", "trouble", "unannounced", "wrong-agent")
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
        self.letter_limit = gauge("dead_letter_limit_bytes", "Quota of dead letters")
        self.serial = gauge("manifest_serial", "Serial of the newest manifest")
        self.expires = gauge(
            "manifest_expires_seconds", "When the newest manifest expires, unix time"
        )
        self.enabled = gauge("encryption_enabled", "1 while the manifest has encryption enabled")
        self.certificates = gauge(
            "key_certificate_expires_seconds",
            "When the first certificate of a generation of keys ends, unix time",
            ("generation",),
        )
        self.used = gauge(
            "key_last_used_seconds", "When a key was last used, unix time", ("generation", "state")
        )
        self.drain = gauge(
            "key_reports_last_hour", "Reports of the last hour by key", ("generation", "state")
        )
        self.on_key = gauge(
            "key_clients", "Clients whose last sealed body was under a key", ("generation", "state")
        )
        self.keys_missing = gauge("keys_missing", "Keys in use that have no file here")
        self.clients = gauge("clients", "Enrolled clients by what they do", ("actual",))
        self.members = gauge(
            "members", "Agents by what they do, the silent and the revoked apart", ("does",)
        )
        self.orphaned = gauge("orphaned_clients", "Agents that must seal and cannot")
        self.alarms = gauge("alarms_open", "Alarms that nobody has acknowledged", ("kind",))
        self.reasons = gauge(
            "client_reasons", "Enrolled clients by what they do and why", ("actual", "reason")
        )
        # From 0 on: to Prometheus what begins at 1 has never risen.
        for reason in Reason:
            if int(reason) not in SEALED:
                self.clear.labels(reason.label)
        for why in _UNOPENED:
            self.failures.labels(why)
        for why in _REFUSED:
            self.refused.labels(why)
        for status in _UPLOADS:
            for form in ("sealed", "clear"):
                self.uploads.labels(form, status)
        for kind in alarms.KINDS:
            self.alarms.labels(kind)

    def watch(self, name: str, about: str, function: Callable[[], float]) -> None:
        """A gauge that is asked when it is read."""
        self.metrics.gauge(name, about, function=function)

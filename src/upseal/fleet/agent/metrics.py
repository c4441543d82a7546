# SPDX-License-Identifier: Apache-2.0
"""An agent's metrics: for its own port (`watching`), or in a file for node_exporter."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from upseal.fleet.agent.rows import now_ms
from upseal.fleet.agent.spool import SpoolError
from upseal.fleet.http.logs import event
from upseal.fleet.http.metrics import Metrics

if TYPE_CHECKING:
    from pathlib import Path

    from prometheus_client import Metric

    from upseal.fleet.agent.agent import Agent

_COUNTERS = {
    "made": "Reports acknowledged to whoever made them",
    "stored": "Reports receipted by the server",
    "lost": "Reports dropped at the spool's limit, or damaged on the disk",
    "refused": "Reports that there was no room for",
}
_GAUGES = {"depth": "Reports that wait in the spool", "bytes": "Sealed bytes in the spool"}
_UPLOADS = {
    "made": "Files acknowledged to whoever gave them",
    "stored": "Files receipted by the server",
    "failed": "Files that the disk damaged before they were stored",
    "cancelled": "Files that were given up",
    "refused": "Files that there was no room for",
}
_WAITING = {"waiting": "Files that wait", "bytes": "Sealed bytes of files that wait"}
_HOW = ("sealed", "clear")
_ABOVE = {
    "manifest_serial": ("manifest_serial", "Serial of its manifest; 0 while there is none"),
    "manifest_expires": ("manifest_expires_seconds", "When its manifest expires, unix time"),
    "clock_offset": ("clock_offset_seconds", "The parent's clock before ours"),
}
"""What the sender says of the way up, and what that is called here."""
_log = logging.getLogger("upseal.agent")


class Collected(Collector):
    """Read when they are asked for: the spool is the truth, also about other processes' reports."""

    def __init__(self, agent: Agent, prefix: str) -> None:
        self._agent = agent
        self._prefix = prefix

    def describe(self) -> Iterator[Metric]:
        """Nothing is known before."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        depth = 0
        try:
            counters, oldest = self._agent.spool.counters(), self._agent.spool.oldest()
        except SpoolError:
            pass
        else:
            depth = counters.depth
            for name, text in _COUNTERS.items():
                yield self._counter(f"reports_{name}", text, getattr(counters, name))
            for name, text in _GAUGES.items():
                yield self._gauge(f"spool_{name}", text, getattr(counters, name))
            most = self._agent.settings.spool.max_bytes
            yield self._gauge("spool_limit_bytes", "Where the spool is full", most)
            age = 0.0 if oldest is None else max(0, now_ms() - oldest) / 1000
            yield self._gauge("spool_age_seconds", "Age of the oldest report in the spool", age)
        yield from self._sending(depth)
        with suppress(SpoolError):
            uploads = self._agent.uploads.counters()
            for name, text in _UPLOADS.items():
                yield self._counter(f"uploads_{name}", text, getattr(uploads, name))
            for name, text in _WAITING.items():
                yield self._gauge(f"uploads_{name}", text, getattr(uploads, name))
        # Their names are all of our own making: no stranger chooses a label.
        tally = self._agent.tally.all()
        events = CounterMetricFamily(f"{self._prefix}_events", "What happened", labels=["event"])
        for name, number in tally.items():
            events.add_metric([name], number)
        yield events
        sent = CounterMetricFamily(f"{self._prefix}_units_sent", "Units sent", labels=["how"])
        for how in _HOW:
            sent.add_metric([how], tally.get(f"sent_{how}", 0))
        yield sent
        yield self._counter("sent_bytes", "Bytes of bodies sent", tally.get("bytes_sent", 0))
        times, total = self._agent.tally.times()
        yield HistogramMetricFamily(
            f"{self._prefix}_receipt_seconds", "From a unit's first sending to its receipt",
            times, total,
        )  # fmt: skip
        alarms = sum(alarm["count"] for alarm in self._agent.alarms.all())
        yield self._counter("alarms", "Lies and damage seen", alarms)

    def _sending(self, depth: int) -> Iterator[Metric]:
        """What is done with reports now, and why."""
        sender = self._agent.sender
        withheld = sender is not None and sender.withheld
        yield self._gauge("withholds", "1 if it withholds", float(withheld))
        said = {} if sender is None else sender.snapshot()
        labels = ["wanted", "actual", "why"]
        decision = GaugeMetricFamily(
            f"{self._prefix}_decision", "1 for what is done with reports now", labels=labels
        )
        reports = GaugeMetricFamily(
            f"{self._prefix}_reports_withheld", "Reports withheld", labels=["reason"]
        )
        if said.get("actual") is not None:
            decision.add_metric([str(said[name]) for name in labels], 1.0)
            if withheld:
                reports.add_metric([str(said["why"])], depth)
        yield decision
        yield reports
        units = GaugeMetricFamily(
            f"{self._prefix}_units", "Units on their way, by stage", labels=["stage"]
        )
        for stage, number in said.get("units", {}).items():
            units.add_metric([stage], number)
        yield units
        for key, (name, text) in _ABOVE.items():
            if key in said:
                yield self._gauge(name, text, said[key])

    def _counter(self, name: str, text: str, value: float) -> Metric:
        return CounterMetricFamily(f"{self._prefix}_{name}", text, value=value)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        return GaugeMetricFamily(f"{self._prefix}_{name}", text, value=value)


def metrics_of(agent: Agent) -> Metrics:
    """All metrics of an agent."""
    metrics = Metrics("agent")
    metrics.registry.register(Collected(agent, metrics.prefix))
    if agent.settings.http.certificate is not None:
        metrics.certificates["client"] = agent.settings.http.certificate
    return metrics


@contextmanager
def written(agent: Agent, path: Path, interval: float) -> Iterator[None]:
    """Writes them into a file every ``interval`` seconds while the block runs, and at its end.

    The file is replaced as a whole. One that cannot be written is said so once.
    """
    metrics, stop = metrics_of(agent), threading.Event()
    well = True

    def write() -> None:
        nonlocal well
        try:
            metrics.write(path)
            well = True
        except OSError as error:
            if well:
                event(_log, "metrics cannot be written", level=logging.WARNING, error=error)
            well = False

    def run() -> None:
        write()
        while not stop.wait(interval):
            write()

    thread = threading.Thread(target=run, name="upseal-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        write()

# SPDX-License-Identifier: Apache-2.0
"""Health and metrics of a running agent, on a local port if the settings name one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.applications import Starlette

from upseal.fleet.agent.spool import SpoolError
from upseal.fleet.http.apps import application
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.serving import in_thread
from upseal.fleet.settings import split_listen

if TYPE_CHECKING:
    from prometheus_client import Metric

    from upseal.fleet.agent.agent import Agent

_COUNTERS = {
    "made": "Reports acknowledged to whoever made them",
    "stored": "Reports receipted by the server",
    "lost": "Reports dropped at the spool's limit, or damaged on the disk",
    "refused": "Reports that there was no room for",
}
_GAUGES = {"depth": "Reports that wait in the spool", "bytes": "Sealed bytes in the spool"}


class _Collected(Collector):
    """Read when they are asked for: the spool is the truth, also about other processes' reports."""

    def __init__(self, agent: Agent, prefix: str) -> None:
        self._agent = agent
        self._prefix = prefix

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        try:
            counters = self._agent.spool.counters()
        except SpoolError:
            counters = None
        if counters is not None:
            for name, text in _COUNTERS.items():
                full = f"{self._prefix}_reports_{name}"
                yield CounterMetricFamily(full, text, value=getattr(counters, name))
            for name, text in _GAUGES.items():
                full = f"{self._prefix}_spool_{name}"
                yield GaugeMetricFamily(full, text, value=getattr(counters, name))
        # Their names are all of our own making: no stranger chooses a label.
        events = CounterMetricFamily(f"{self._prefix}_events", "What happened", labels=["event"])
        for name, number in self._agent.tally.all().items():
            events.add_metric([name], number)
        yield events
        alarms = sum(alarm["count"] for alarm in self._agent.alarms.all())
        yield CounterMetricFamily(f"{self._prefix}_alarms", "Lies and damage seen", value=alarms)
        sender = self._agent.sender
        withheld = float(sender is not None and sender.withheld)
        yield GaugeMetricFamily(f"{self._prefix}_withholds", "1 if it withholds", value=withheld)


def app_for(agent: Agent) -> Starlette:
    """``/healthz``, ``/readyz`` and ``/metrics`` of an agent."""
    metrics = Metrics("agent")
    metrics.registry.register(_Collected(agent, metrics.prefix))
    return application([], metrics=metrics, ready=_ready(agent))


def _ready(agent: Agent) -> Callable[[], str | None]:
    def ready() -> str | None:
        sender = agent.sender
        if sender is None:
            return "not sending"
        return "withholding" if sender.withheld else None

    return ready


@contextmanager
def watched(agent: Agent) -> Iterator[str | None]:
    """Serves them while the block runs, if the settings say where; gives the address."""
    if agent.settings.listen is None:
        yield None
        return
    host, port = split_listen(agent.settings.listen)
    with in_thread(app_for(agent), host, port) as address:
        yield address.url

# SPDX-License-Identifier: Apache-2.0
"""Metrics in Prometheus' text form. A registry for each application: tests have many of them.

Names are ``upseal_<room>_<what>_<unit>``, counters end in ``_total``. Labels must have few values:
never an agent's id, a path as it was asked for, or anything else that a stranger can choose.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    generate_latest,
    write_to_textfile,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from upseal.fleet.http.process import File, Process

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = tuple(float(1 << power) for power in range(8, 25, 2))
"""Buckets for durations, and for bytes from 256 to 16 Mi."""

_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


class _Counted(Collector):
    """See `Metrics.counted`."""

    def __init__(self, name: str, text: str, function: Callable[[], float]) -> None:
        self._name, self._text, self._function = name, text, function
        self._most = 0.0

    def describe(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._text)

    def collect(self) -> Iterator[Metric]:
        self._most = max(self._most, self._function())
        yield CounterMetricFamily(self._name, self._text, value=self._most)


class Metrics:
    """The metrics of one room: "agent", "relay" or "server". Asking twice gives the same one."""

    def __init__(self, room: str) -> None:
        if not room.isidentifier():
            raise ValueError("a room's name is a word")
        self.registry = CollectorRegistry()
        self.prefix = f"upseal_{room}"
        self._made: dict[str, MetricWrapperBase] = {}
        self._lock = threading.Lock()
        # CPU seconds, memory and open files of the process, as every dashboard knows them.
        ProcessCollector(registry=self.registry)
        self.certificates: dict[str, File] = {}
        """Of TLS, as PEM files, by what they are for; their ends are shown."""
        self.registry.register(Process(self.prefix, self.certificates))

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        """Only goes up; its name gets ``_total``."""
        return self._get(Counter, name, lambda full: Counter(full, text, labels, registry=self._at))

    def gauge(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        function: Callable[[], float] | None = None,
    ) -> Gauge:
        """Goes up and down; with a ``function`` it is asked when it is read."""
        if function is not None and labels:
            raise ValueError("a gauge with labels takes no function")
        found = self._get(Gauge, name, lambda full: Gauge(full, text, labels, registry=self._at))
        if function is not None:
            found.set_function(function)
        return found

    def counted(self, name: str, text: str, function: Callable[[], float]) -> None:
        """A counter that somebody else keeps: asked when it is read, and never seen to go back."""
        self.registry.register(_Counted(f"{self.prefix}_{name}", text, function))

    def histogram(
        self, name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS
    ) -> Histogram:
        """How often a value lay in each bucket."""
        return self._get(
            Histogram,
            name,
            lambda full: Histogram(full, text, labels, buckets=buckets, registry=self._at),
        )

    def render(self) -> bytes:
        """All of them, as ``GET /metrics`` answers."""
        return generate_latest(self.registry)

    def write(self, path: Path) -> None:
        """Into a file, atomically, for node_exporter's textfile collector."""
        write_to_textfile(str(path), self.registry)

    @property
    def _at(self) -> CollectorRegistry:
        return self.registry

    def _get(self, kind: type[_Metric], name: str, make: Callable[[str], _Metric]) -> _Metric:
        with self._lock:
            found = self._made.get(name)
            if found is None:
                found = self._made[name] = make(f"{self.prefix}_{name}")
        if not isinstance(found, kind):
            raise ValueError(f"{name} is already a {type(found).__name__.lower()}")
        return found

# SPDX-License-Identifier: Apache-2.0
"""What every process says of itself in its metrics, whatever its work is.

Its version and engine, the memory that holds keys, and when its TLS certificates end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cryptography import x509
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

import upseal
from upseal.engine import choose

File = str | os.PathLike[str]
_LONGEST = 1 << 20


@dataclass(frozen=True)
class _Read:
    """A file as it was, and when the first certificate in it ends."""

    stamp: tuple[int, int, int]
    ends: float


class Process(Collector):
    """Read when it is asked for.

    Args:
        prefix: of the names.
        certificates: PEM files by what they are for; whoever has some adds them.
    """

    def __init__(self, prefix: str, certificates: Mapping[str, File]) -> None:
        self._prefix = prefix
        self._certificates = certificates
        self._read: dict[str, _Read] = {}

    def describe(self) -> Iterator[Metric]:
        """Nothing is known before."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        engine = choose().engine
        said = engine.describe()
        build = self._gauge(
            "build_info", "1: version, engine and backend", ["version", "engine", "backend"]
        )
        build.add_metric([upseal.__version__, said["engine"], said["backend"]], 1.0)
        yield build
        memory = self._gauge(
            "key_memory_bytes", "Memory set aside for keys: used, in all, and locked", ["part"]
        )
        for part, size in engine.key_memory()._asdict().items():
            memory.add_metric([part], float(size))
        yield memory
        ends = self._gauge(
            "tls_certificate_expires_seconds", "When a TLS certificate ends, unix time", ["use"]
        )
        for use, file in self._certificates.items():
            if (moment := self._ends(use, file)) is not None:
                ends.add_metric([use], moment)
        yield ends

    def _ends(self, use: str, file: File) -> float | None:
        """Unix seconds; None for what is no certificate: who serves it says so in the log."""
        try:
            facts = os.stat(file)
            stamp = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
            known = self._read.get(use)
            if known is None or known.stamp != stamp:
                with open(file, "rb") as pem:
                    chain = x509.load_pem_x509_certificates(pem.read(_LONGEST))
                first = min(one.not_valid_after_utc for one in chain)
                known = self._read[use] = _Read(stamp, first.timestamp())
        except (OSError, ValueError):
            return None
        return known.ends

    def _gauge(self, name: str, text: str, labels: list[str]) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{self._prefix}_{name}", text, labels=labels)

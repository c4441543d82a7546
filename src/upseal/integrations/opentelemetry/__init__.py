# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry: exporters of logs and spans that hand on sealed batches, and what opens them.

Each export is encoded as the OTLP request that the SDK's own exporter would send, and sealed as a
batch: ``b"upseal otlp 1 logs"`` (or ``traces``), then the request. A sink takes the sealed batch
away: a `SealedFolder`, any callable, or `Collector`, which wraps it into an OTLP log record so that
collectors, queues and stores of today carry it like any other.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

try:
    from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
except ImportError as error:
    raise ImportError(
        f"{error}; do `pip install 'upseal[opentelemetry]'`", name=error.name
    ) from error

from upseal.core.forks import renew_in_children
from upseal.core.opener import Opener
from upseal.core.sealer import Sealer
from upseal.engine.sizes import RECORD_MAX
from upseal.errors import OpenError
from upseal.integrations.opentelemetry.carrier import Collector, NotExported, sealed_in
from upseal.integrations.sealed_folder import SealedFolder

__all__ = [
    "Collector",
    "NotExported",
    "Otlp",
    "SealedFolder",
    "SealedLogExporter",
    "SealedSpanExporter",
    "open_otlp",
    "sealed_in",
]

Sink = Callable[[bytes], None]
Signal = Literal["logs", "traces"]

_logger = logging.getLogger(__name__)
_FRONT: dict[bytes, Signal] = {b"upseal otlp 1 logs": "logs", b"upseal otlp 1 traces": "traces"}
_FRONT_OF = {signal: front for front, signal in _FRONT.items()}
_Item = TypeVar("_Item")


# -- exporting ------------------------------------------------------------------


class _Exporter:
    """What both exporters share: cutting, sealing, the lock, the end."""

    signal: Signal

    def __init__(
        self,
        sealer: Sealer,
        sink: Sink,
        context: bytes = b"",
        *,
        max_bytes: int = 1 << 20,
    ) -> None:
        """Exports to ``sink``, sealed.

        Args:
            sealer: whose recipients may read.
            sink: takes one sealed batch a call, and keeps or delivers it before it returns; raises
                `OSError` if it cannot. A `SealedFolder`, a `Collector`, or a function.
            context: bytes that the opener must name as well; not sent.
            max_bytes: of one request before it is sealed; what is longer becomes several.

        Raises:
            TypeError: the sink cannot be called.
            ValueError: ``max_bytes`` is not 1024 to 8 MiB.
        """
        if not callable(sink):
            raise TypeError(f"a sink is called with a sealed batch; {sink!r} cannot be called")
        if not 1024 <= max_bytes <= 8 << 20:
            raise ValueError(f"max_bytes must be 1024 to 8 MiB, not {max_bytes}")
        self._sealer = sealer
        self._sink = sink
        self._context = bytes(context)
        self._max_bytes = max_bytes
        self._closed = False
        self._failing = False
        # Re-entrant: a sink may log, and a processor that exports at once comes back here with it.
        self._busy = threading.RLock()
        renew_in_children(self)

    def after_fork(self) -> None:
        """For the child of a fork: a lock of its own."""
        self._busy = threading.RLock()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Waits for an export that runs; nothing is held back between two.

        Args:
            timeout_millis: how long to wait, in milliseconds.

        Returns:
            False: it was still running then.
        """
        done = self._busy.acquire(timeout=max(0, timeout_millis) / 1000)
        if done:
            self._busy.release()
        return done

    def shutdown(self, timeout_millis: float = 30_000) -> None:
        """Ends tries that still run, waits for them, and closes the sink if that can be closed.

        Args:
            timeout_millis: how long to wait, in milliseconds.
        """
        if self._closed:
            return
        self._closed = True
        stop = getattr(self._sink, "stop", None)
        if stop is not None:
            stop()
        if self._busy.acquire(timeout=max(0, timeout_millis) / 1000):
            self._busy.release()
        close = getattr(self._sink, "close", None)
        if close is not None:
            close()

    def _export(self, items: Sequence[_Item], encode: Callable[[Sequence[_Item]], bytes]) -> bool:
        """Seals and hands on; whether all of it got through."""
        if self._closed:
            return False
        problem: str | None = None
        with self._busy:
            for request in _cut(items, encode, self._max_bytes):
                if len(request) >= RECORD_MAX:
                    problem = f"a record of {len(request)} bytes; at most 16 MiB can be sealed"
                    continue
                # Sealed once: whatever the sink tries again, it tries with these bytes.
                sealed = self._sealer.seal_batch([_FRONT_OF[self.signal], request], self._context)
                try:
                    self._sink(sealed)
                except OSError as error:
                    problem = f"{type(error).__name__}: {error}"
                    break
        # Behind the lock, and once for a row of failures: the message may itself be exported.
        if problem is not None and not self._failing:
            self._failing = True
            _logger.warning("sealed %s are not exported: %s", self.signal, problem)
        elif problem is None and self._failing:
            self._failing = False
            _logger.info("sealed %s are exported again", self.signal)
        return problem is None


class SealedLogExporter(_Exporter, LogRecordExporter):
    """For `BatchLogRecordProcessor`: log records as sealed batches."""

    signal = "logs"

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Seals these records and hands them on.

        Returns:
            FAILURE if any did not get through; the SDK then drops them.
        """
        fine = self._export(batch, lambda some: encode_logs(some).SerializeToString())
        return LogRecordExportResult.SUCCESS if fine else LogRecordExportResult.FAILURE


class SealedSpanExporter(_Exporter, SpanExporter):
    """For `BatchSpanProcessor`: spans as sealed batches."""

    signal = "traces"

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Seals these spans and hands them on.

        Returns:
            FAILURE if any did not get through; the SDK then drops them.
        """
        fine = self._export(spans, lambda some: encode_spans(some).SerializeToString())
        return SpanExportResult.SUCCESS if fine else SpanExportResult.FAILURE


def _cut(
    items: Sequence[_Item], encode: Callable[[Sequence[_Item]], bytes], most: int
) -> Iterator[bytes]:
    """Requests of at most so many bytes, in order; one item that is longer stays whole."""
    if not items:
        return
    request = encode(items)
    if len(request) <= most or len(items) == 1:
        yield request
        return
    middle = len(items) // 2
    yield from _cut(items[:middle], encode, most)
    yield from _cut(items[middle:], encode, most)


# -- opening ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Otlp:
    """What was in a sealed batch."""

    signal: Signal
    """``logs``: of type ExportLogsServiceRequest; ``traces``: ExportTraceServiceRequest."""
    request: bytes
    """The OTLP request in protobuf, byte for byte as it was sealed."""


def open_otlp(sealed: bytes, opener: Opener, context: bytes = b"") -> Otlp:
    """Opens what the exporters have sealed.

    Args:
        sealed: one sealed batch.
        opener: with a recipient's key.
        context: as the exporter was given.

    Raises:
        OpenError: it is not genuine, not of this context, or not telemetry.
    """
    reports = list(opener.open_batch(sealed, context))
    signal = _FRONT.get(reports[0])
    if signal is None or len(reports) != 2:
        raise OpenError("a sealed batch, but not of telemetry")
    return Otlp(signal, reports[1])

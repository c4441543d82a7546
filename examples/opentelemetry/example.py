# SPDX-License-Identifier: Apache-2.0
"""An application's logs and spans, sealed before they leave it, and opened at the other end.

python examples/opentelemetry/example.py
"""

import tempfile

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from upseal import Opener, PrivateKey, Sealer
from upseal.integrations.opentelemetry import (
    SealedFolder,
    SealedLogExporter,
    SealedSpanExporter,
    open_otlp,
)

server = PrivateKey.generate("x25519")  # stays where telemetry is read
sealer = Sealer([server.public_key])

with tempfile.TemporaryDirectory() as place:
    # Sealed files for a shipper. `Collector("http://127.0.0.1:4318/v1/logs")` would send them
    # through an OpenTelemetry collector instead.
    folder = SealedFolder(place)

    # The lines that an application has with any other exporter.
    logs = LoggerProvider()
    logs.add_log_record_processor(BatchLogRecordProcessor(SealedLogExporter(sealer, folder)))
    traces = TracerProvider()
    traces.add_span_processor(BatchSpanProcessor(SealedSpanExporter(sealer, folder)))

    with traces.get_tracer("shop").start_as_current_span("checkout of ada"):
        record = LogRecord(body="ada pays 93 EUR", severity_number=SeverityNumber.INFO)
        logs.get_logger("shop").emit(record)
    logs.shutdown()
    traces.shutdown()

    opener = Opener([server])
    for file in folder.files():
        sealed = file.read_bytes()
        assert b"ada" not in sealed
        otlp = open_otlp(sealed, opener)
        if otlp.signal == "logs":
            (found,) = ExportLogsServiceRequest.FromString(otlp.request).resource_logs
            print("log: ", found.scope_logs[0].log_records[0].body.string_value)
        else:
            (spans,) = ExportTraceServiceRequest.FromString(otlp.request).resource_spans
            print("span:", spans.scope_spans[0].spans[0].name)

# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401 - the page uses these names
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from upseal import Opener, PrivateKey, Sealer

key = PrivateKey.generate("x25519")
sealer, opener = Sealer([key.public_key]), Opener([key])
logs, traces = LoggerProvider(), TracerProvider()
body = b""

# SPDX-License-Identifier: Apache-2.0
"""The SDK's own processors, sealed, through a real collector, and opened byte for byte."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToJson
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    InMemoryLogRecordExporter,
    LogRecordExportResult,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from upseal import Opener, OpenError, PrivateKey, Sealer, UnknownRecipient
from upseal.integrations.opentelemetry import (
    Collector,
    NotExported,
    SealedFolder,
    SealedLogExporter,
    SealedSpanExporter,
    open_otlp,
    sealed_in,
)

ROOT = Path(__file__).parent.parent.parent
KEY = PrivateKey.generate("x25519")
RESOURCE = Resource({"service.name": "shop", "host.name": "secret-host"})


def sealer():
    return Sealer([KEY.public_key])


def some_logs(count):
    """Records as the SDK gives them to exporters."""
    memory = InMemoryLogRecordExporter()
    provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(memory))
    for n in range(count):
        record = LogRecord(
            body=f"customer ada pays {n}",
            severity_number=SeverityNumber.INFO,
            attributes={"card": "4711", "n": n},
        )
        provider.get_logger("till").emit(record)
    provider.shutdown()
    return list(memory.get_finished_logs())


class Receiver:
    """An OTLP/HTTP server: keeps bodies, answers what it is told to, then 200."""

    def __init__(self, answers=()):
        self.bodies, self.answers = [], list(answers)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                outer.bodies.append((self.path, body))
                answer = outer.answers.pop(0) if outer.answers else (200, {}, b"")
                if answer is None:
                    self.close_connection = True
                    return
                code, headers, content = answer
                self.send_response(code)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.endpoint = self.address + "/v1/logs"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def sealed(self):
        return [sealed for _, body in self.bodies for sealed in sealed_in(body)]


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# -- byte for byte ---------------------------------------------------------------------------


def test_logs_and_spans_come_back_byte_for_byte(tmp_path):
    folder = SealedFolder(tmp_path)
    memory, spans = InMemoryLogRecordExporter(), InMemorySpanExporter()
    logs = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    traces = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    logs.add_log_record_processor(BatchLogRecordProcessor(memory))
    logs.add_log_record_processor(
        BatchLogRecordProcessor(SealedLogExporter(sealer(), folder, b"shop 1"))
    )
    traces.add_span_processor(BatchSpanProcessor(spans))
    traces.add_span_processor(BatchSpanProcessor(SealedSpanExporter(sealer(), folder, b"shop 1")))
    with traces.get_tracer("shop").start_as_current_span("checkout") as span:
        span.set_attribute("customer", "ada")
        for n in range(100):
            logs.get_logger("till").emit(LogRecord(body=f"ada pays {n}", timestamp=n))
    assert logs.force_flush() and traces.force_flush()
    wanted = {
        "logs": encode_logs(memory.get_finished_logs()).SerializeToString(),
        "traces": encode_spans(spans.get_finished_spans()).SerializeToString(),
    }
    logs.shutdown()
    traces.shutdown()
    found = {}
    for file in folder.files():
        assert b"ada" not in file.read_bytes()
        otlp = open_otlp(file.read_bytes(), Opener([KEY]), b"shop 1")
        found[otlp.signal] = otlp.request
    assert found == wanted
    for name in os.listdir(tmp_path):
        assert name.endswith(".upseal") and not name.startswith(".")


def test_large_exports_are_cut_in_order():
    kept = []
    exporter = SealedLogExporter(sealer(), kept.append, max_bytes=4096)
    records = some_logs(200)
    assert exporter.export(records) is LogRecordExportResult.SUCCESS
    assert len(kept) > 2
    requests = [open_otlp(sealed, Opener([KEY])).request for sealed in kept]
    assert all(len(request) <= 4096 for request in requests)
    bodies = [
        record.body.string_value
        for request in requests
        for record in ExportLogsServiceRequest.FromString(request)
        .resource_logs[0]
        .scope_logs[0]
        .log_records
    ]
    assert bodies == [f"customer ada pays {n}" for n in range(200)]
    assert exporter.export([]) is LogRecordExportResult.SUCCESS


# -- through a collector -----------------------------------------------------------------------


def collector(receiver):
    """Rotel, a collector of somebody else, in front of ``receiver``; and its address."""
    import rotel

    program = Path(rotel.__file__).with_name("rotel-agent")
    for _ in range(5):  # it cannot be asked which port it took
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", 0))
            grpc, http = first.getsockname()[1], second.getsockname()[1]
        command = [str(program), "start", "--exporter", "otlp", "--batch-timeout", "100ms"]
        command += ["--otlp-exporter-endpoint", receiver.address]
        command += ["--otlp-exporter-protocol", "http"]
        command += ["--otlp-grpc-endpoint", f"127.0.0.1:{grpc}"]
        command += ["--otlp-http-endpoint", f"127.0.0.1:{http}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", http)) == 0:
                    return process, f"http://127.0.0.1:{http}/v1/logs"
            time.sleep(0.05)
    raise AssertionError(f"the collector ends with {process.returncode}")


@pytest.mark.parametrize("text", [False, True])
def test_a_collector_passes_sealed_batches_on(text):
    records = some_logs(50)
    spans = InMemorySpanExporter()
    traces = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    traces.add_span_processor(BatchSpanProcessor(spans))
    traces.get_tracer("shop").start_span("checkout of ada").end()
    traces.shutdown()
    with Receiver() as receiver:
        process, endpoint = collector(receiver)
        try:
            sink = Collector(endpoint, {"service.name": "shop"}, text=text)
            logs_out = SealedLogExporter(sealer(), sink, b"c")
            assert logs_out.export(records) is LogRecordExportResult.SUCCESS
            spans_out = SealedSpanExporter(sealer(), sink, b"c")
            assert spans_out.export(spans.get_finished_spans()) is SpanExportResult.SUCCESS
            until(lambda: len(receiver.sealed()) == 2)
            logs_out.shutdown()
            spans_out.shutdown()
        finally:
            process.terminate()
            process.wait(60)
    on_the_wire = b"".join(body for _, body in receiver.bodies)
    for hidden in (b"ada", b"4711", b"secret-host", b"till", b"checkout"):
        assert hidden not in on_the_wire
    assert b"service.name" in on_the_wire and b"shop" in on_the_wire
    assert {path for path, _ in receiver.bodies} == {"/v1/logs"}
    opened = [open_otlp(sealed, Opener([KEY]), b"c") for sealed in receiver.sealed()]
    assert {o.signal: o.request for o in opened} == {
        "logs": encode_logs(records).SerializeToString(),
        "traces": encode_spans(spans.get_finished_spans()).SerializeToString(),
    }


def test_what_file_exporters_write_is_read_as_well():
    sealed = b"USL whatever"
    as_json = {
        "resourceLogs": [
            {
                "scopeLogs": [
                    {
                        "scope": {"name": "upseal"},
                        "logRecords": [
                            {"body": {"bytesValue": base64.b64encode(sealed).decode()}},
                            {"eventName": "other", "body": {"stringValue": "clear"}},
                        ],
                    },
                    {"logRecords": [{"body": {"stringValue": "clear"}}]},
                ]
            }
        ]
    }
    assert list(sealed_in(json.dumps(as_json).encode() + b"\n")) == [sealed]
    clear = encode_logs(some_logs(3)).SerializeToString()
    assert list(sealed_in(clear)) == []


# -- what goes wrong ----------------------------------------------------------------------------


def test_tries_again_with_the_same_bytes():
    again = (503, {"Retry-After": "0"}, b"")
    with Receiver([None, again, (429, {"Retry-After": "0"}, b"")]) as receiver:
        exporter = SealedLogExporter(sealer(), Collector(receiver.endpoint, timeout=30))
        assert exporter.export(some_logs(1)) is LogRecordExportResult.SUCCESS
        exporter.shutdown()
    assert len(receiver.bodies) == 4
    assert len(set(receiver.bodies)) == 1


def partial(rejected, message=""):
    answer = ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records = rejected
    answer.partial_success.error_message = message
    return answer.SerializeToString()


@pytest.mark.parametrize(
    ("answers", "tries", "fine"),
    [
        ([(400, {}, b"no")], 1, False),
        ([(302, {"Location": "/elsewhere"}, b"")], 1, False),
        ([(200, {}, partial(1, "too large"))], 1, False),
        ([(200, {}, partial(0, "a warning"))], 1, True),
        ([(200, {}, b"not protobuf")], 1, True),
        ([(503, {"Retry-After": "3600"}, b"")], 1, False),
    ],
)
def test_answers(answers, tries, fine):
    with Receiver(answers) as receiver:
        exporter = SealedLogExporter(sealer(), Collector(receiver.endpoint))
        result = exporter.export(some_logs(1))
        exporter.shutdown()
    assert result is (LogRecordExportResult.SUCCESS if fine else LogRecordExportResult.FAILURE)
    assert len(receiver.bodies) == tries


def test_nobody_there_is_a_failure_in_time_said_once(caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        sink = Collector(f"http://127.0.0.1:{taken.getsockname()[1]}/v1/logs", timeout=0.2)
        exporter = SealedLogExporter(sealer(), sink)
        for _ in range(3):
            assert exporter.export(some_logs(1)) is LogRecordExportResult.FAILURE
        exporter.shutdown()
    said = [r for r in caplog.records if r.name == "upseal.integrations.opentelemetry"]
    assert len(said) == 1 and "cannot be reached" in said[0].getMessage()


def test_shutdown_ends_a_row_of_tries():
    with Receiver([(503, {"Retry-After": "50"}, b"")] * 9) as receiver:
        exporter = SealedLogExporter(sealer(), Collector(receiver.endpoint, timeout=600))
        results = []
        records = some_logs(1)
        thread = threading.Thread(target=lambda: results.append(exporter.export(records)))
        thread.start()
        until(lambda: receiver.bodies)
        exporter.shutdown()
        thread.join(30)
        assert results == [LogRecordExportResult.FAILURE]
        assert exporter.export(records) is LogRecordExportResult.FAILURE
        exporter.shutdown()
    assert len(receiver.bodies) == 1


def test_force_flush_waits_for_what_runs_and_a_fork_does_not():
    """The lock of the parent's running export must not hold up its children."""
    entered, go = threading.Event(), threading.Event()
    parent = os.getpid()

    def sink(_):
        if os.getpid() == parent:
            entered.set()
            assert go.wait(60)

    exporter = SealedLogExporter(sealer(), sink)
    records = some_logs(1)
    thread = threading.Thread(target=exporter.export, args=(records,))
    thread.start()
    assert entered.wait(60)
    assert exporter.force_flush(10) is False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads: what we test
        child = os.fork()
    if child == 0:
        code = 9
        try:
            flushed = exporter.force_flush(1000)
            done = flushed and exporter.export(records) is LogRecordExportResult.SUCCESS
            code = 0 if done else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go.set()
    thread.join(60)
    assert exporter.force_flush(10) is True


def test_a_sink_that_logs_does_not_lock_itself_out():
    provider = LoggerProvider(shutdown_on_exit=False)
    kept, logger = [], provider.get_logger("till")

    def sink(sealed):
        if len(kept) < 3:
            kept.append(sealed)
            logger.emit(LogRecord(body="sending"))

    provider.add_log_record_processor(SimpleLogRecordProcessor(SealedLogExporter(sealer(), sink)))
    logger.emit(LogRecord(body="hello"))
    provider.shutdown()
    assert len(kept) == 3


def test_a_full_folder_and_a_monster_are_failures(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = SealedFolder(tmp_path, max_bytes=10)
    exporter = SealedLogExporter(sealer(), folder)
    assert exporter.export(some_logs(1)) is LogRecordExportResult.SUCCESS
    assert exporter.export(some_logs(1)) is LogRecordExportResult.FAILURE
    for file in folder.files():
        file.unlink()
    assert exporter.export(some_logs(1)) is LogRecordExportResult.SUCCESS
    assert "exported again" in caplog.text
    kept = []
    exporter = SealedLogExporter(sealer(), kept.append)
    large, small = some_logs(2)
    large.log_record.body = "x" * (17 << 20)
    assert exporter.export([large, small]) is LogRecordExportResult.FAILURE
    assert len(kept) == 1  # it costs no other


def test_hostile_input_is_an_open_error():
    opener = Opener([KEY])
    good = []
    SealedLogExporter(sealer(), good.append, b"c").export(some_logs(1))
    for sealed, context in [
        (good[0], b"d"),
        (good[0][:-1], b"c"),
        (b"", b""),
        (sealer().seal_batch([b"upseal otlp 1 logs"]), b""),
        (sealer().seal_batch([b"other", b"x"]), b""),
        (sealer().seal_batch([b"upseal otlp 1 logs", b"x", b"y"]), b""),
    ]:
        with pytest.raises(OpenError):
            open_otlp(sealed, opener, context)
    with pytest.raises(UnknownRecipient):
        open_otlp(good[0], Opener([PrivateKey.generate("x25519")]), b"c")
    for request in (
        b"\xff\xff\xff",
        b"{",
        b'{"resourceLogs": 5}',
        b'{"resourceLogs": [5]}',
        b'{"resourceLogs": [{"scopeLogs": [{"scope": {"name": "upseal"}, "logRecords": '
        b'[{"body": {"bytesValue": "!"}}]}]}]}',
        b'{"a":' * 100_000,
    ):
        with pytest.raises(OpenError):
            list(sealed_in(request))


@pytest.mark.parametrize("as_json", [False, True])
def test_a_strangers_record_takes_no_other_along(as_json):
    """A collector puts records of many senders into one request."""
    request = ExportLogsServiceRequest()
    scope = request.resource_logs.add().scope_logs.add()
    for text in ("!!", base64.b64encode(b"good").decode(), "\u00e4"):
        scope.log_records.add(event_name="upseal.batch").body.string_value = text
    body = MessageToJson(request).encode() if as_json else request.SerializeToString()
    found = sealed_in(body)
    assert next(found) == b"good"
    with pytest.raises(OpenError):
        next(found)


@pytest.mark.parametrize("front", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_an_answer_that_drips_is_cut_off(front):
    """Each byte comes in time, and the answer never ends."""
    ended, heard_out = threading.Event(), []

    def drip(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            with suppress(OSError):
                connection.sendall(front)
                for _ in range(400):
                    connection.sendall(b"x")
                    if ended.wait(0.05):
                        break
                else:
                    heard_out.append(True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        sink = Collector(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/logs", timeout=0.5)
        try:
            with pytest.raises(NotExported):
                sink(b"sealed")
        finally:
            ended.set()
            thread.join(30)
            sink.close()
    assert heard_out == []


def test_messages_hold_no_secret_and_no_line_of_the_collectors(caplog):
    answer = (200, {}, partial(1, "no\nERROR root logged in\x1b[2J" + "x" * 9000))
    with Receiver([answer]) as receiver:
        endpoint = receiver.endpoint.replace("://", "://ada:pw1@") + "?token=pw2"
        exporter = SealedLogExporter(sealer(), Collector(endpoint))
        assert exporter.export(some_logs(1)) is LogRecordExportResult.FAILURE
        exporter.shutdown()
    (said,) = [r.getMessage() for r in caplog.records if "opentelemetry" in r.name]
    assert "rejects the record" in said and receiver.endpoint in said
    assert said.isprintable() and len(said) < 500
    assert "pw1" not in said and "pw2" not in said


def test_mistakes_are_said_at_once():
    with pytest.raises(TypeError, match="cannot be called"):
        SealedLogExporter(sealer(), "folder")
    with pytest.raises(ValueError, match="max_bytes"):
        SealedLogExporter(sealer(), print, max_bytes=5)
    for wrong in ("127.0.0.1:4318", "ftp://x/", "http://"):
        with pytest.raises(ValueError, match="no address"):
            Collector(wrong)
    with pytest.raises(ValueError, match="timeout"):
        Collector("http://127.0.0.1/", timeout=0)


@pytest.mark.parametrize("missing", ["opentelemetry", "urllib3"])
def test_without_the_package_it_says_what_to_install(missing):
    script = (
        f"import sys; sys.modules[{missing!r}] = None; import upseal.integrations.opentelemetry"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == 1
    assert b"pip install 'upseal[opentelemetry]'" in done.stderr


def test_the_example():
    script = ROOT / "examples/opentelemetry/example.py"
    done = subprocess.run([sys.executable, script], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert b"ada pays 93 EUR" in done.stdout and b"checkout of ada" in done.stdout

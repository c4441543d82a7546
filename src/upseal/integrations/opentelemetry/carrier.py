# SPDX-License-Identifier: Apache-2.0
"""Sealed batches inside OTLP log records, so that collectors of today pass them on.

Public names are those of `upseal.integrations.opentelemetry`.
"""

from __future__ import annotations

import base64
import binascii
import json
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

try:
    import urllib3
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
        ExportLogsServiceRequest,
        ExportLogsServiceResponse,
    )
except ImportError as error:
    raise ImportError(
        f"{error}; do `pip install 'upseal[opentelemetry]'`", name=error.name
    ) from error

from upseal.core.forks import renew_in_children
from upseal.errors import OpenError

_EVENT = "upseal.batch"
_TRY_AGAIN = (429, 502, 503, 504)  # OTLP/HTTP, "Retryable Response Codes"
_FIRST_PAUSE = 1.0
_PAUSE_MAX = 30.0
_ANSWER_MAX = 1 << 16
_SAID_MAX = 200
"""Characters of a collector's own words that a message repeats."""


class _Waiting(threading.local):
    """Sockets on which this thread waits for an answer, and whether its time is up."""

    now: tuple[list[Any], threading.Event] | None = None


_waiting = _Waiting()


class _Connection(urllib3.connection.HTTPConnection):
    """One whose socket can be shut down from outside: urllib3's times are for one read each."""

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3's own
        if _waiting.now is not None:
            sockets, late = _waiting.now
            sockets.append(self.sock)
            if late.is_set():  # while it connected, so that nobody will cut this off
                raise TimeoutError
        return super().getresponse()


class _TlsConnection(_Connection, urllib3.connection.HTTPSConnection):
    """The same over TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class NotExported(OSError):  # noqa: N818 - says what happened
    """A sink has not got rid of a sealed batch."""


class Collector:
    """A sink: sends each sealed batch over OTLP/HTTP, as the body of one log record.

    Collectors that know nothing of upseal pass it on. Logs and traces both take the way of logs.

    Args:
        endpoint: the whole address, as ``https://collector.example:4318/v1/logs``.
        resource: attributes of the resource in clear, for who routes; nothing else of the
            application is readable. Values are strings.
        headers: of each request, such as ``{"Authorization": "..."}``.
        timeout: seconds for one batch, all tries together.
        text: the body is a string in base64 instead of bytes, for stores that take no bytes.
        ca: file with authorities for the collector's certificate; the system's unless set.
        certificate: file with our own certificate, where the collector asks for one.
        key: its private key, if that is in another file.

    Raises:
        ValueError: the endpoint is no address of HTTP, or the timeout not above 0.
    """

    def __init__(
        self,
        endpoint: str,
        resource: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        *,
        text: bool = False,
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
    ) -> None:
        parsed = urllib3.util.parse_url(endpoint)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(
                f"{endpoint!r} is no address of HTTP; as http://127.0.0.1:4318/v1/logs"
            )
        if not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, not {timeout}")
        self._endpoint = endpoint
        # For messages: what else stands in it may be a secret.
        self._shown = parsed._replace(auth=None, query=None, fragment=None).url
        self._resource = dict(resource or {})
        self._headers = {**(headers or {}), "Content-Type": "application/x-protobuf"}
        self._timeout = timeout
        self._text = text
        self._tls = {"ca_certs": ca, "cert_file": certificate, "key_file": key}
        self._stopping = threading.Event()
        self._pool = self._new_pool()
        renew_in_children(self)

    def after_fork(self) -> None:
        """For the child of a fork: connections and an event of its own."""
        stopped = self._stopping.is_set()
        self._stopping = threading.Event()
        if stopped:
            self._stopping.set()
        self._pool = self._new_pool()

    def __call__(self, sealed: bytes) -> None:
        """Delivers one batch; tries again, with the same bytes, what may get through later.

        Raises:
            NotExported: the collector refused it, or the time was up.
        """
        body = self._wrapped(sealed)
        end = time.monotonic() + self._timeout
        pause = _FIRST_PAUSE
        while True:
            left = end - time.monotonic()
            problem, asked = self._try(body, max(left, 0.001))
            if problem is None:
                return
            wait = asked if asked is not None else pause * random.uniform(0.8, 1.2)  # noqa: S311
            if time.monotonic() + wait >= end or self._stopping.is_set():
                raise NotExported(f"{self._shown} {problem}")
            if self._stopping.wait(wait):
                raise NotExported(f"{self._shown} {problem}; stopped")
            pause = min(pause * 2, _PAUSE_MAX)

    def stop(self) -> None:
        """A try that runs is the last one."""
        self._stopping.set()

    def close(self) -> None:
        """Closes the connections."""
        self.stop()
        self._pool.clear()

    def _try(self, body: bytes, timeout: float) -> tuple[str | None, float | None]:
        """One request: what went wrong, if it may get right; and the pause asked for, in seconds.

        Raises:
            NotExported: it will not get right.
        """
        sockets: list[Any] = []
        late = threading.Event()
        clock = threading.Timer(timeout, _cut_off, (sockets, late))
        clock.daemon = True
        with suppress(RuntimeError):  # none can be started while the interpreter ends
            clock.start()
        # One inside the other: a message of urllib3 may be exported meanwhile.
        before, _waiting.now = _waiting.now, (sockets, late)
        try:
            answer = self._pool.request(
                "POST",
                self._endpoint,
                body=body,
                headers=self._headers,
                timeout=urllib3.Timeout(total=timeout),
                redirect=False,
                preload_content=False,
            )
            with answer:  # closed with what is left of an endless answer
                said = answer.read(_ANSWER_MAX)
                if len(said) < _ANSWER_MAX:
                    answer.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return f"cannot be reached: {type(error).__name__}", None
        finally:
            _waiting.now = before
            clock.cancel()
        if late.is_set():  # what was cut off may look like a whole answer
            return "does not answer in time", None
        if answer.status in _TRY_AGAIN:
            asked = answer.headers.get("Retry-After", "")
            return f"answers {answer.status}", float(asked) if asked.isdecimal() else None
        if not 200 <= answer.status < 300:
            raise NotExported(f"{self._shown} answers {answer.status}")
        if said and (rejected := _rejected(said)):
            raise NotExported(f"{self._shown} rejects the record: {rejected}")
        return None, None

    def _wrapped(self, sealed: bytes) -> bytes:
        """The OTLP request that carries it."""
        request = ExportLogsServiceRequest()
        resource = request.resource_logs.add()
        for name, value in self._resource.items():
            resource.resource.attributes.add(key=name).value.string_value = value
        scope = resource.scope_logs.add()
        scope.scope.name = "upseal"
        record = scope.log_records.add(event_name=_EVENT)
        record.time_unix_nano = record.observed_time_unix_nano = time.time_ns()
        if self._text:
            record.body.string_value = base64.b64encode(sealed).decode()
        else:
            record.body.bytes_value = sealed
        return bytes(request.SerializeToString())

    def _new_pool(self) -> urllib3.PoolManager:
        pool = urllib3.PoolManager(retries=False, maxsize=1, **self._tls)  # type: ignore[arg-type]
        pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return pool


def _cut_off(sockets: list[Any], late: threading.Event) -> None:
    late.set()
    for each in sockets:
        with suppress(OSError):
            socket.socket.shutdown(each, socket.SHUT_RDWR)  # not TLS's own: that is in use


def _rejected(answer: bytes) -> str:
    """What a collector says of a record that it has not taken, although it answers 200."""
    try:
        partial = ExportLogsServiceResponse.FromString(answer).partial_success
    except DecodeError:
        return ""  # an answer in another form says nothing about records
    if not partial.rejected_log_records:
        return ""
    return ascii(partial.error_message[:_SAID_MAX]) if partial.error_message else "no reason given"


# -- at the other end ---------------------------------------------------------------


def sealed_in(request: bytes) -> Iterator[bytes]:
    """The sealed batches among the log records that came out of a pipeline.

    Records that are not `Collector`'s are passed over. Nothing here is verified: `open_otlp` does.

    Args:
        request: an ExportLogsServiceRequest (or LogsData), in protobuf as collectors send it, or in
            JSON as their file exporters write it, a line.

    Raises:
        OpenError: neither of them; or, after all others, that records of ours are not base64.
    """
    if request.lstrip()[:1] == b"{":
        yield from _sealed_in_json(request)
        return
    try:
        parsed = ExportLogsServiceRequest.FromString(request)
    except DecodeError:
        raise OpenError("no OTLP request") from None
    texts: list[str] = []
    for resource in parsed.resource_logs:
        for scope in resource.scope_logs:
            for record in scope.log_records:
                if _is_ours(record.event_name, scope.scope.name):
                    which = record.body.WhichOneof("value")
                    if which == "bytes_value":
                        yield record.body.bytes_value
                    elif which == "string_value":
                        texts.append(record.body.string_value)
    yield from _decoded(texts)


def _sealed_in_json(line: bytes) -> Iterator[bytes]:
    texts: list[str] = []
    try:
        parsed = json.loads(line)
        for resource in parsed.get("resourceLogs", []):
            for scope in resource.get("scopeLogs", []):
                name = scope.get("scope", {}).get("name", "")
                for record in scope.get("logRecords", []):
                    if _is_ours(record.get("eventName", ""), name):
                        body: dict[str, Any] = record.get("body", {})
                        value = body.get("bytesValue", body.get("stringValue", ""))
                        texts.append(str(value))
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise OpenError("no OTLP request") from None
    yield from _decoded(texts)


def _is_ours(event: str, scope: str) -> bool:
    """Older collectors drop an event's name, so the scope's counts as well."""
    return event == _EVENT or (not event and scope == "upseal")


def _decoded(texts: list[str]) -> Iterator[bytes]:
    """What is in them; one of a stranger's takes none of the others along."""
    wrong = 0
    for text in texts:
        try:
            sealed = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            wrong += 1
            continue
        yield sealed
    if wrong:
        raise OpenError(f"{wrong} records of ours whose body is not base64")

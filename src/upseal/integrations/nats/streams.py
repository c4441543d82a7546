# SPDX-License-Identifier: Apache-2.0
"""The two streams of a deployment, and what their messages say.

``units`` is a work queue: a front puts a request there as it came, with the two headers by which
its sender was authenticated, and an opener takes it away once its outcome is in the database.
Nothing in a message is believed for being there: openers verify the sender's proof as the front
did, and agents verify receipts. ``results`` tells all fronts what became of bodies.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    Header,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, NotFoundError

from upseal.fleet.hops import AUTHORIZATION, PROOF, SKEW_MS
from upseal.fleet.http import results
from upseal.fleet.http.logs import event
from upseal.fleet.http.results import MalformedResults, Result
from upseal.fleet.http.seldom import Seldom
from upseal.integrations.nats.settings import Broker

CONSUMER = "openers"
LEAST_PAYLOAD = 9 << 20
"""Bytes of one message that a broker must take: relays send bodies of 8 MiB."""
NO_ROOM = 10047
"""JetStream's error where what is reserved for streams is given away."""
_HEADERS = 16 << 10
ANNOUNCED_MOST = 256
"""Uploads in the header of one message: a broker counts headers as well, and takes 64 KiB."""
LINES = (1 / 30, 90.0)
"""Of a log while a broker is away, for `Seldom`."""
_RESULTS_AGE = 3600.0
_RECEIVED = "Upseal-Received"
_ANNOUNCED = "Upseal-Announced"
_UPLOAD_LEN = 16
_log = logging.getLogger("upseal.nats")


class Unfit(Exception):  # noqa: N818 - what the broker is
    """The broker cannot carry this deployment, as it is set up."""


class Foreign(Exception):  # noqa: N818 - what the message is
    """Not a message that a front of ours has written."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A request on its way through the broker."""

    body: bytes
    headers: Mapping[str, str]
    """``Authorization`` and ``Upseal-Proof``."""
    received: int
    """When a front took it, unix milliseconds."""

    def to_headers(self) -> dict[str, str]:
        """With an id made of the proof: the same request again, by whichever front, is one message.

        A sender proves each request anew, so a body that is sent again is not taken for that.
        """
        proof = self.headers[PROOF]
        return {
            AUTHORIZATION: self.headers[AUTHORIZATION],
            PROOF: proof,
            _RECEIVED: str(self.received),
            Header.MSG_ID.value: hashlib.sha256(proof.encode()).hexdigest(),
        }

    @classmethod
    def of(cls, message: Msg) -> Carried:
        """From a message of the stream.

        Its own word on when it was taken holds within five minutes of the broker's: the proof is
        held against it, and is good no longer than that.

        Raises:
            Foreign: it is none of a front's.
        """
        headers = message.headers or {}
        text = headers.get(_RECEIVED, "")
        if not (text.isascii() and text.isdecimal() and len(text) <= 15):
            raise Foreign("it does not say when it was taken")
        if AUTHORIZATION not in headers or PROOF not in headers:
            raise Foreign("it does not say who sent it")
        try:
            there = int(message.metadata.timestamp.timestamp() * 1000)
        except (NatsError, ValueError, OverflowError, OSError):
            raise Foreign("it does not come from the stream") from None
        received = min(max(int(text), there - SKEW_MS), there + SKEW_MS)
        return cls(bytes(message.data), headers, received)


def encode_results(
    found: Sequence[Result], announced: Sequence[bytes]
) -> tuple[bytes, dict[str, str]]:
    """A message for the fronts: what became of bodies, and which uploads they have announced."""
    headers = {_ANNOUNCED: ",".join(upload.hex() for upload in announced)} if announced else {}
    return results.encode(found), headers


def decode_results(message: Msg) -> tuple[list[Result], list[bytes]]:
    """The same from a message.

    Raises:
        Foreign: it is none of an opener's.
    """
    text = (message.headers or {}).get(_ANNOUNCED, "")
    try:
        announced = [bytes.fromhex(part) for part in text.split(",")] if text else []
        found = results.decode(bytes(message.data))
    except (MalformedResults, ValueError) as error:
        raise Foreign(str(error)) from None
    if any(len(upload) != _UPLOAD_LEN for upload in announced):
        raise Foreign("an upload's id has 16 bytes")
    return found, announced


class _Client(Nats):
    """As nats-py has it, but for four things in which it does what anybody tells it to.

    What a broker says of itself comes before TLS: whoever is in between may have written it.
    """

    def _connect_command(self) -> bytes:
        """Says who we are, before anything else: so not without TLS where that is wanted."""
        server, writer = self._current_server, getattr(self._transport, "_io_writer", None)
        wanted = "tls" in self.options or server is None or server.uri.scheme == "tls"
        if wanted and (writer is None or writer.get_extra_info("ssl_object") is None):
            raise NatsError("the broker does not ask for TLS, and the settings do")
        return super()._connect_command()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Goes to no brokers but those that the settings name."""
        info.pop("connect_urls", None)
        await super()._process_info(info, initial_connection)

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Any:
        """A message of a stream is none of the broker's own, whatever its writer put into it."""
        if headers and reply.startswith(b"$JS.ACK."):
            headers.pop(Header.STATUS.value, None)
        return super()._build_message(sid, subject, reply, data, headers)

    async def _process_err(self, err_msg: str) -> None:
        """Comes back, where nats-py would close for good and all."""
        error = NatsError(f"the broker says {err_msg}")
        await self._error_cb(error)
        if "permissions violation" not in err_msg.lower():
            await self._process_op_err(error)


async def connect(
    broker: Broker, name: str, on_reconnected: Callable[[], Awaitable[None]] | None = None
) -> Nats:
    """A connection that comes back by itself, for as long as the process wants it.

    Raises:
        SettingsError: a file that the settings name cannot be used.
        NatsError, OSError: the broker cannot be reached, or does not let us in.
    """
    lines = Seldom(*LINES)

    async def failed(error: Exception) -> None:
        if (left_out := lines.tell()) is not None:
            event(_log, "broker trouble", level=logging.WARNING, why=why(error), left_out=left_out)

    connection = _Client()
    await connection.connect(
        **broker.options(),
        name=name,
        allow_reconnect=True,
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        connect_timeout=5,
        ping_interval=10,
        error_cb=failed,
        reconnected_cb=on_reconnected,
    )
    return connection


def most(connection: Nats) -> int:
    """Bytes that one message holds beside its headers."""
    return int(connection.max_payload) - _HEADERS


async def prepare(connection: Nats, broker: Broker) -> JetStreamContext:
    """Makes the streams and the consumer, or finds them as they must be.

    Raises:
        Unfit: the broker has them otherwise, or its bounds are too small.
        NatsError: it cannot be asked.
    """
    if connection.max_payload < LEAST_PAYLOAD:
        raise Unfit(
            f"the broker takes messages of {connection.max_payload} bytes; "
            f"set max_payload to {LEAST_PAYLOAD} or more"
        )
    said = broker.settings
    js = connection.jetstream(timeout=said.patience)
    await _stream(
        js,
        StreamConfig(
            name=broker.units, subjects=[broker.subject("units")],
            retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.FILE,
            discard=DiscardPolicy.NEW, max_bytes=said.max_bytes, num_replicas=said.replicas,
            duplicate_window=120,
        ),
    )  # fmt: skip
    await _stream(
        js,
        StreamConfig(
            name=broker.results, subjects=[broker.subject("results")],
            retention=RetentionPolicy.LIMITS, storage=StorageType.FILE,
            discard=DiscardPolicy.OLD, max_bytes=said.results_bytes, max_age=_RESULTS_AGE,
            num_replicas=said.replicas, duplicate_window=1,
        ),
    )  # fmt: skip
    try:
        consumer = (await js.consumer_info(broker.units, CONSUMER)).config
    except NotFoundError:
        consumer = ConsumerConfig(
            durable_name=CONSUMER, ack_policy=AckPolicy.EXPLICIT, ack_wait=said.ack_wait,
            max_deliver=-1, max_ack_pending=100_000, filter_subject=broker.subject("units"),
        )  # fmt: skip
        await js.add_consumer(broker.units, consumer)
    if consumer.ack_policy != AckPolicy.EXPLICIT or (consumer.max_deliver or -1) > 0:
        raise Unfit(f"the consumer {CONSUMER} must ack explicitly, and deliver without an end")
    return js


async def _stream(js: JetStreamContext, wanted: StreamConfig) -> None:
    name = str(wanted.name)
    try:
        found = (await js.stream_info(name)).config
    except NotFoundError:
        try:
            await js.add_stream(wanted)
        except APIError as error:
            if error.err_code != NO_ROOM:
                raise
            raise Unfit(
                f"the broker has no room for a stream of {wanted.max_bytes} bytes; lower max_bytes "
                "and results_bytes in nats.toml, or raise max_file_store"
            ) from None
        return
    for what in ("retention", "storage", "discard", "subjects"):
        if getattr(found, what) != getattr(wanted, what):
            raise Unfit(f"the stream {name} has another {what} than upseal needs; see its page")
    if found.no_ack or (found.max_age and wanted.retention is RetentionPolicy.WORK_QUEUE):
        raise Unfit(f"the stream {name} loses messages: no_ack or max_age is set")
    for what in ("max_bytes", "num_replicas"):
        if getattr(found, what) != getattr(wanted, what):
            event(
                _log, "stream has other bounds than the settings", level=logging.WARNING,
                stream=name, which=what, there=getattr(found, what), wanted=getattr(wanted, what),
            )  # fmt: skip


def why(error: BaseException) -> str:
    """What went wrong at the broker: its words have no body and no secret in them."""
    return f"{type(error).__name__}: {error}"[:200]


__all__ = [
    "ANNOUNCED_MOST",
    "CONSUMER",
    "LEAST_PAYLOAD",
    "LINES",
    "Carried",
    "Foreign",
    "JetStreamContext",
    "Msg",
    "Nats",
    "NatsError",
    "Unfit",
    "connect",
    "decode_results",
    "encode_results",
    "most",
    "prepare",
    "why",
]

# SPDX-License-Identifier: Apache-2.0
"""What a key process and its clients say to each other over a Unix socket.

A frame is its length (u32, big-endian) and so many bytes. A client sends one request and waits for
one answer; then it may send the next.

::

    request = version u8 (1) || what u8 || payload
    'L'  nothing                                       -> public keys, each length u16 || PEM
    'U'  suite u16 || key id (8) || wrapped secret     -> what was wrapped
    'R'  suite u16 || key id (8) || challenge          -> the answer (32): it holds the key
    'S'  nothing                                       -> JSON: how it does

    answer = code u8 || payload                           (see `Code`)
"""

from __future__ import annotations

import enum
import socket
import struct
import time
from collections.abc import Iterable

VERSION = 1
REQUEST_MAX = 4096
"""Bytes. The longest wrapped secret has 1,168."""
ANSWER_MAX = 1 << 17
KEYS_MAX = 32
LIST, UNWRAP, READY, STATUS = b"LURS"

_LENGTH = struct.Struct(">I")
_WHICH = struct.Struct(">H8s")
_PEM = struct.Struct(">H")


class Code(enum.IntEnum):
    """How a request was answered."""

    DONE = 0
    REFUSED = 1
    """It was not wrapped for this key."""
    NO_KEY = 2
    BUSY = 3
    """Too many unwraps by this user; milliseconds until there is room (u32)."""
    UNAVAILABLE = 4
    """The key is in a token, say, and that is away; why, in words."""
    MALFORMED = 5
    """Then the connection is closed."""
    DENIED = 6
    """This user may not; then the connection is closed."""


class Ended(ConnectionError):  # noqa: N818 - a state of affairs
    """The other side has closed, in good order: between two frames."""


def request(what: int, which: tuple[int, bytes] | None = None, data: bytes = b"") -> bytes:
    """A request, without its length."""
    return bytes([VERSION, what]) + (b"" if which is None else _WHICH.pack(*which)) + data


def parse_request(body: bytes) -> tuple[int, tuple[int, bytes] | None, bytes]:
    """What is asked, of which key, and the rest.

    Raises:
        ValueError: it is no request.
    """
    if len(body) < 2 or body[0] != VERSION or body[1] not in (LIST, UNWRAP, READY, STATUS):
        raise ValueError("no request of this version")
    if body[1] in (LIST, STATUS):
        if len(body) != 2:
            raise ValueError("this request has no payload")
        return body[1], None, b""
    if len(body) <= 2 + _WHICH.size:
        raise ValueError("the request is too short")
    suite, key_id = _WHICH.unpack_from(body, 2)
    return body[1], (suite, key_id), body[2 + _WHICH.size :]


def join_keys(pems: Iterable[bytes]) -> bytes:
    """The payload of a list."""
    return b"".join(_PEM.pack(len(pem)) + pem for pem in pems)


def split_keys(payload: bytes) -> list[bytes]:
    """Of `join_keys`.

    Raises:
        ValueError: it is not.
    """
    found: list[bytes] = []
    at = 0
    while at < len(payload):
        if at + _PEM.size > len(payload):
            raise ValueError("a list of keys is cut off")
        (length,) = _PEM.unpack_from(payload, at)
        at += _PEM.size
        if at + length > len(payload) or len(found) == KEYS_MAX:
            raise ValueError("a list of keys is cut off, or too long")
        found.append(payload[at : at + length])
        at += length
    return found


def send(sock: socket.socket, body: bytes | bytearray, seconds: float) -> None:
    """A frame.

    Raises:
        OSError: it cannot be sent within so many seconds.
    """
    sock.settimeout(seconds)
    frame = bytearray(_LENGTH.pack(len(body)))
    frame += body
    try:
        sock.sendall(frame)
    finally:
        frame[:] = bytes(len(frame))


def receive(sock: socket.socket, limit: int, wait: float, seconds: float) -> bytearray:
    """A frame's body.

    Args:
        sock: to read from.
        limit: bytes that it may have.
        wait: seconds until its first byte.
        seconds: for the rest of it, all together.

    Raises:
        Ended: the other side has closed.
        ValueError: it is longer than that, or empty.
        OSError: it did not come in time, or was cut off.
    """
    sock.settimeout(wait)
    first = sock.recv(_LENGTH.size)
    if not first:
        raise Ended("closed by the other side")
    until = time.monotonic() + seconds
    head = bytearray(_LENGTH.size)
    head[: len(first)] = first
    _fill(sock, memoryview(head)[len(first) :], until)
    (length,) = _LENGTH.unpack(head)
    if not 0 < length <= limit:
        raise ValueError(f"a frame of {length} bytes")
    body = bytearray(length)
    _fill(sock, memoryview(body), until)
    return body


def _fill(sock: socket.socket, target: memoryview, until: float) -> None:
    while len(target):
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("a frame came too slowly")
        sock.settimeout(left)
        count = sock.recv_into(target)
        if not count:
            raise ConnectionError("a frame was cut off")
        target = target[count:]

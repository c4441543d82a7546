# SPDX-License-Identifier: Apache-2.0
"""Sockets that the service manager has opened for us: systemd's LISTEN_FDS.

They stay open while a process is replaced, so whoever connects meanwhile waits and is not refused.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

_FIRST = 3
_NAMES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_USER_TIMEOUT_MS = 60_000


def inherited(environment: MutableMapping[str, str] | None = None) -> list[socket.socket]:
    """Listening sockets that were handed to this process; none if they are for another.

    The variables are taken away with it: they are not for our children.

    Args:
        environment: None for the process's own.

    Raises:
        ValueError: what was handed over is no listening TCP socket.
    """
    env = os.environ if environment is None else environment
    said = {name: env.pop(name) for name in _NAMES if name in env}
    pid, count = said.get("LISTEN_PID", ""), said.get("LISTEN_FDS", "")
    if not (pid.isdecimal() and count.isdecimal()) or int(pid) != os.getpid():
        return []
    out: list[socket.socket] = []
    try:
        for number in range(_FIRST, _FIRST + int(count)):
            out.append(_listening(number))
    except BaseException:
        for sock in out:
            sock.close()
        raise
    return out


def prepare(sock: socket.socket) -> None:
    """What is accepted inherits it: a peer that is gone, or reads nothing, is noticed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)


def _listening(number: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=number)
    except OSError as error:
        raise ValueError(f"descriptor {number} is no socket: {error.strerror}") from None
    inet = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
    if not inet or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()  # it is not ours to close
        raise ValueError(f"descriptor {number} is no listening TCP socket; use ListenStream=PORT")
    sock.set_inheritable(False)
    prepare(sock)
    return sock

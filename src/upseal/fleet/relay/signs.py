# SPDX-License-Identifier: Apache-2.0
"""Signs of life of a running relay, for the service manager's watchdog."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from upseal.fleet.notify import Service, Sign

if TYPE_CHECKING:
    from upseal.fleet.relay.forward import Forwarder
    from upseal.fleet.relay.relay import Relay

_DISK = 60.0
"""Seconds that one transaction may take, on a disk that has much to do."""
_REQUESTS = 5
"""That one look upwards makes at most."""


def signs_of(relay: Relay, service: Service) -> list[Sign]:
    """Of the event loop, the queue's writer, the look upwards, and each of those who pass on."""
    http, forward = relay.settings.http, relay.settings.forward
    request = max(60.0, 4 * http.timeout) + http.timeout + forward.wait
    return [
        Sign("event loop", lambda: (True, service.ticks)),
        Sign("queue", lambda: (True, relay.state.queue.turns), _DISK),
        Sign("control", lambda: (True, relay.control.turns), _REQUESTS * request),
        *(
            Sign(f"forward-{i}", partial(_turns, relay.forwarder, i), request + _DISK)
            for i in range(forward.workers)
        ),
    ]


def _turns(forwarder: Forwarder, which: int) -> tuple[bool, int]:
    return True, forwarder.turns[which]

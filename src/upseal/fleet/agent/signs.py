# SPDX-License-Identifier: Apache-2.0
"""Signs of life of a running agent, for the service manager."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from upseal.fleet.notify import Service, Sign

if TYPE_CHECKING:
    from upseal.fleet.agent.agent import Agent

_LOOK = 0.05
_DISK = 60.0
"""Seconds that one transaction may take, on a disk that has much to do."""


@contextmanager
def told(agent: Agent, service: Service) -> Iterator[None]:
    """While the block runs the agent: says that it sends, once it does; and that it ends."""
    if not service.notifier.heard:
        yield
        return
    ended = threading.Event()

    def wait() -> None:
        while not ended.wait(_LOOK):
            sender = agent.sender
            if sender is not None and sender.turns:
                service.ready(status_of(agent), signs_of(agent))
                return

    thread = threading.Thread(target=wait, name="upseal-service", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        service.close()


def status_of(agent: Agent) -> str:
    """For people who ask the manager."""
    return f"sending to {agent.settings.parent}"


def signs_of(agent: Agent) -> list[Sign]:
    """Of the loop that sends, the one for whole files, and those who wait on the network."""
    http = agent.settings.http
    request = max(60.0, 4 * http.timeout) + http.timeout + http.wait

    def sender() -> tuple[bool, int]:
        sends = agent.sender
        return sends is not None, 0 if sends is None else sends.turns

    def workers() -> tuple[bool, int]:
        sends = agent.sender
        return (False, 0) if sends is None else sends.progress

    def uploads() -> tuple[bool, int]:
        carries = agent.uploading
        return carries is not None, 0 if carries is None else carries.pulse.count

    return [
        Sign("sender", sender, _DISK),
        Sign("requests", workers, request),
        Sign("uploads", uploads, 2 * request + _DISK),
    ]

# SPDX-License-Identifier: Apache-2.0
"""Health and metrics of a running agent, on a local port if the settings name one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from upseal.fleet.agent.metrics import metrics_of
from upseal.fleet.http.apps import application
from upseal.fleet.http.serving import in_thread
from upseal.fleet.settings import split_listen

if TYPE_CHECKING:
    from upseal.fleet.agent.agent import Agent


def app_for(agent: Agent) -> Starlette:
    """``/healthz``, ``/readyz`` and ``/metrics`` of an agent."""
    return application([], metrics=metrics_of(agent), ready=_ready(agent))


def _ready(agent: Agent) -> Callable[[], str | None]:
    def ready() -> str | None:
        sender = agent.sender
        if sender is None:
            return "not sending"
        return "withholding" if sender.withheld else None

    return ready


@contextmanager
def watched(agent: Agent) -> Iterator[str | None]:
    """Serves them while the block runs, if the settings say where; gives the address."""
    if agent.settings.listen is None:
        yield None
        return
    host, port = split_listen(agent.settings.listen)
    with in_thread(app_for(agent), host, port) as address:
        yield address.url

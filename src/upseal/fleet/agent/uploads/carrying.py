# SPDX-License-Identifier: Apache-2.0
"""What ends the way of a body to the parent, besides its arrival."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from upseal.fleet.agent.parent import Parent, Unreachable
from upseal.fleet.agent.tally import Tally
from upseal.fleet.http.client import Response
from upseal.fleet.uploads.words import path_of

_LONGEST_STOP = 2.0


class Stopped(Exception):  # noqa: N818 - what is the case
    """The thread that works on it is to end."""


class Changed(Exception):  # noqa: N818 - what is the case
    """It may not go as it is going: the decision is another one now, or it has been cancelled."""


class CheckedLink:
    """The parent, spoken to only as long as the body may go to it (`carrier.Link`).

    Args:
        parent: where to.
        still: asked before anything of the body goes out, also before it goes out again.
        tally: where bytes are counted.
    """

    def __init__(self, parent: Parent, still: Callable[[], bool], tally: Tally) -> None:
        self._parent = parent
        self._still = still
        self._tally = tally

    def request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Response:
        """As the parent's. Raises `Changed` if what it is about may not go any more."""
        if method in ("POST", "PATCH"):
            if not self._still():
                raise Changed
            self._tally.add("bytes_sent", len(body))
        return self._parent.request(method, path, body, headers, still=self._still)


def take_back(parent: Parent, body_id: bytes) -> None:
    """Ends a body at the parent, if that can be done now; else it expires there."""
    with suppress(Unreachable):
        parent.request("DELETE", path_of(body_id), b"", {"tus-resumable": "1.0.0"})


@contextmanager
def beside(
    run: Callable[[threading.Event], None], wake: Callable[[], None], name: str
) -> Iterator[None]:
    """Runs it in a thread of its own while the block runs; what hangs then is left behind."""
    ended = threading.Event()
    thread = threading.Thread(target=run, args=(ended,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        wake()
        thread.join(_LONGEST_STOP)


class Pulse:
    """Signs of life of a loop one turn of which may take days."""

    def __init__(self) -> None:
        self.count = 0

    def beat(self, stop: threading.Event | None = None) -> None:
        """It gets on; raises `Stopped` if ``stop`` is set."""
        self.count += 1
        unless(stop)


def unless(stop: threading.Event | None) -> None:
    """Raises `Stopped` if that is set."""
    if stop is not None and stop.is_set():
        raise Stopped

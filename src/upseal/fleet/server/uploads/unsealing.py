# SPDX-License-Identifier: Apache-2.0
"""From a sealed body to a file's bytes, by the server's keys."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from upseal.core.files import open_file
from upseal.core.uploads import FRONT_MAX
from upseal.errors import OpenError, UnknownRecipient
from upseal.fleet.files import read_at
from upseal.fleet.http.problems import Problem
from upseal.fleet.server.keyring import Keyring
from upseal.fleet.server.opening import Failed, Opening
from upseal.fleet.server.store import deadletters
from upseal.fleet.server.throttle import Throttle
from upseal.fleet.server.uploads.content import Sink
from upseal.fleet.statements import fleet_context

_THREADS = 1
"""A second one to write behind would copy every byte, and there are several files at once. (Of CPU
a GiB, opening takes 0.26 s, hashing 0.62 s, handing over 0.24 s.)"""


@dataclass(frozen=True, slots=True)
class Unsealed:
    """What was in a body."""

    size: int
    sha256: bytes
    suite: int | None
    """None: it came in clear."""
    key_id: bytes | None


class Unsealing:
    """Opens bodies into files. Safe to share between threads."""

    def __init__(
        self, deployment: bytes, opening: Opening, keyring: Keyring, throttle: Throttle
    ) -> None:
        """Opens nothing yet."""
        self._context = fleet_context(deployment)
        self._opening = opening
        self._keyring = keyring
        self._throttle = throttle

    def key_of(self, body: Path) -> tuple[int, bytes]:
        """Suite and id of the key of ours that opens a body. No key is used for that.

        Raises:
            Failed: there is none, or it is no sealed body.
            OSError: it cannot be read.
        """
        return self._opening.key_of(_front(body))

    def open(
        self, body: Path, target: Path, hop: bytes, role: str, stop: threading.Event
    ) -> Unsealed:
        """Opens a body into a new file, durable when this returns; a new session costs its hop.

        Whatever the header holds, one of our keys is used once at most. On an error the caller
        removes the file.

        Raises:
            Failed: no key of ours opens it.
            Throttled: this hop has made the server open too many new sessions.
            Stopped: the server stops.
            OSError: a disk failed.
        """
        suite, key_id = self.key_of(body)
        opener = self._keyring.opener
        with Sink(target, stop) as sink:
            try:
                if opener is None:
                    raise UnknownRecipient([])
                out = cast("IO[bytes]", sink)
                with self._throttle.on_account_of(hop, role):
                    open_file(body, out, opener, self._context, threads=_THREADS)
            except UnknownRecipient:  # the key was retired this moment
                raise Failed("retired-key", Problem("stale-key"), keep=False) from None
            except OpenError as error:
                reason = deadletters.CANNOT_OPEN if error.problem is None else deadletters.MALFORMED
                problem = Problem("malformed", "the body does not open")
                raise Failed(reason, problem, keep=False, key_id=key_id) from None
            return Unsealed(sink.size, sink.sync(), suite, key_id)


def _front(body: Path) -> bytes:
    with open(body, "rb", buffering=0) as file:
        return read_at(file.fileno(), 0, FRONT_MAX)

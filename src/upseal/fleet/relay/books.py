# SPDX-License-Identifier: Apache-2.0
"""What is on its way to the parent, and which bodies are done when it has arrived."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from upseal.fleet.http.results import Result
from upseal.fleet.relay.repackage import Prepared, Upload


@dataclass
class _Origin:
    """A body from below that was opened."""

    units: tuple[bytes, ...]
    """Digests of its units, in order."""
    uploads: int = 0
    """How many uploads that carry some of them are not settled."""
    receipts: dict[bytes, bytes] = field(default_factory=dict)


class Books:
    """Safe for threads. A body of several units may travel in several uploads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._origins: dict[bytes, _Origin] = {}
        self._pending: OrderedDict[bytes, Upload] = OrderedDict()
        self._waiting = 0

    def note(self, prepared: Prepared) -> None:
        """What is about to be sent."""
        with self._lock:
            for body_id, units in prepared.units.items():
                self._origins[body_id] = _Origin(units)
            for upload in prepared.uploads:
                for body_id in upload.origins:
                    origin = self._origins.get(body_id)
                    if origin is not None:
                        origin.uploads += 1

    # -- what the parent has, and has not answered for ----------------------------------

    def pending(self, upload: Upload) -> None:
        """The parent has it on its disk: the body itself is needed no more."""
        with self._lock:
            if upload.id not in self._pending:
                self._pending[upload.id] = Upload(upload.id, b"", upload.origins, upload.serial)
                self._waiting += len(upload.origins)

    def ask(self, most: int) -> list[Upload]:
        """Pending uploads, those first that were not asked about for the longest time."""
        with self._lock:
            chosen = list(self._pending.values())[:most]
            for upload in chosen:
                self._pending.move_to_end(upload.id)
            return chosen

    def answered(self, upload: Upload) -> bool:
        """It is pending no more; False if another has seen to that."""
        with self._lock:
            if self._pending.pop(upload.id, None) is None:
                return False
            self._waiting -= len(upload.origins)
            return True

    @property
    def waiting(self) -> int:
        """Bodies from below whose uploads are pending."""
        return self._waiting

    # -- settling ----------------------------------------------------------------------

    def delivered(
        self, upload: Upload, receipts: Mapping[bytes, bytes]
    ) -> tuple[list[Result], list[bytes]]:
        """An upload's receipts by the digests of its units.

        Returns:
            Results of the bodies that are done by it, and bodies that must be sent again.
        """
        done, again = [], []
        with self._lock:
            for body_id, digests in upload.origins.items():
                origin = self._origins.get(body_id)
                if origin is None:
                    continue
                origin.receipts.update((d, receipts[d]) for d in digests if d in receipts)
                origin.uploads -= 1
                if all(digest in origin.receipts for digest in origin.units):
                    del self._origins[body_id]
                    done.append(Result.done(body_id, [origin.receipts[d] for d in origin.units]))
                elif origin.uploads <= 0:
                    del self._origins[body_id]
                    again.append(body_id)
        return done, again

    def failed(self, uploads: Iterable[Upload]) -> list[bytes]:
        """Uploads that did not arrive: the bodies that must be sent again, now or in the end."""
        again: list[bytes] = []
        for upload in uploads:
            if upload.repackaged:
                again += self.delivered(upload, {})[1]
            else:
                again += upload.origins
        return again

    def give_up(self, bodies: Collection[bytes]) -> None:
        """Bodies that got a problem as their result: nothing more is expected of them."""
        with self._lock:
            for body_id in bodies:
                self._origins.pop(body_id, None)


def bundles(uploads: Sequence[Upload], size: int, bodies: int) -> Iterable[list[Upload]]:
    """Uploads that go up in one request."""
    group: list[Upload] = []
    total = 0
    for upload in uploads:
        if group and (total + len(upload.body) > size or len(group) >= bodies):
            yield group
            group, total = [], 0
        group.append(upload)
        total += len(upload.body)
    if group:
        yield group

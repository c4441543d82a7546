# SPDX-License-Identifier: Apache-2.0
"""Uploads as the server's application uses them: routes, results, a start and an end."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.routing import Route

from upseal.fleet.hops import Hop
from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import Result, State
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import Manifest
from upseal.fleet.server.answers import KEPT, Answers
from upseal.fleet.server.directory import Directory
from upseal.fleet.server.keyring import Keyring
from upseal.fleet.server.meters import Meters
from upseal.fleet.server.opening import Opening, Sender
from upseal.fleet.server.settings import Settings
from upseal.fleet.server.store import Store, uploads
from upseal.fleet.server.store.deletions import Left
from upseal.fleet.server.throttle import Throttle
from upseal.fleet.server.uploads.bound import Bound
from upseal.fleet.server.uploads.content import Content, incoming_folder, stored_folder
from upseal.fleet.server.uploads.deleting import Deleting
from upseal.fleet.server.uploads.settling import Settled, Settling
from upseal.fleet.server.uploads.unsealing import Unsealing
from upseal.fleet.server.uploads.working import Working
from upseal.fleet.settings import SettingsError
from upseal.fleet.uploads.shelf import Held, Shelf, ShelfError, ShelfLimits
from upseal.fleet.uploads.tus import Tus

_PIECE = 16 << 20
_THREADS = 4
"""That write what comes in: not those that open reports, which must not wait for a disk."""
_PROBLEMS = 65_536
_EXPIRE_EVERY = 60.0
_HOUR = 3600.0
Authenticate = Callable[[Mapping[str, str], str, str, bytes], Sender]


class Uploads:
    """All parts of it.

    Args:
        settings: of the deployment.
        store: its database, which the caller closes.
        directory: who is who.
        keyring: opens.
        opening: says which key does.
        throttle: what one hop's new sessions may cost.
        receipt_key: signs.
        answers: where settled results are kept.
        meters: counts.
        manifest: gives the newest.
        authenticate: who asks, by headers, method, path and the digest that the proof covers.

    Raises:
        SettingsError: the folder of uploads cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        directory: Directory,
        keyring: Keyring,
        opening: Opening,
        throttle: Throttle,
        receipt_key: SigningKey,
        answers: Answers,
        meters: Meters,
        manifest: Callable[[], Manifest | None],
        authenticate: Authenticate,
    ) -> None:
        limits = settings.limits
        self._store, self._answers, self._authenticate = store, answers, authenticate
        self._problems: OrderedDict[tuple[bytes, bytes], tuple[float, Problem]] = OrderedDict()
        self._lock = threading.Lock()
        self._expire_at = 0.0
        try:
            self._content = Content(stored_folder(settings), limits.uploads_min_free)
            self.shelf = Shelf(incoming_folder(settings), _shelf_limits(settings))
        except (OSError, ShelfError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise SettingsError(f"cannot use the folder {settings.uploads}: {why}") from error
        self._bound = Bound(store, limits.stored_upload_bytes)
        self._settling = Settling(
            settings.deployment, store, directory, self._content,
            Unsealing(settings.deployment, opening, keyring, throttle), receipt_key, manifest,
            self._bound.reached,
        )  # fmt: skip
        self.working = Working(
            self.shelf, self._settling, self._settled, meters,
            limits.uploads_unannounced_hours * _HOUR,
        )  # fmt: skip
        self._deleting = Deleting(
            store, self._content.folder, limits.keep_upload_days, self._are_gone
        )
        self._pool = ThreadPoolExecutor(_THREADS, "upseal-uploads")
        self._tus = Tus(
            self.shelf,
            authenticate=self._who,
            unwelcome=lambda ticket: None,
            max_piece=min(_PIECE, limits.max_body),
            on_whole=self.working.add,
            known=self._known,
            max_rate=limits.upload_rate,
            pool=self._pool,
        )
        meters.watch("uploads_open", "Uploads that lack bytes", lambda: self.shelf.usage().open)
        meters.watch(
            "uploads_held_bytes", "Bytes of uploads that are not stored yet",
            lambda: self.shelf.usage().held,
        )  # fmt: skip
        meters.watch("uploads_waiting", "Whole bodies of uploads that wait", self.working.__len__)

    def routes(self) -> list[Route]:
        """For the application."""
        return self._tus.routes()

    def start(self) -> None:
        """Goes on with what a process before this one has left."""
        self._content.clear()
        self.working.start()
        self._tus.resume()

    def close(self) -> None:
        """Ends in good order; what is half done is done again at the next start."""
        self.working.close()
        self.shelf.close()
        self._pool.shutdown()

    def round(self, *, keys_changed: bool) -> None:
        """What is to be done now and then."""
        if keys_changed:
            self.working.keys_changed()
        now = time.monotonic()
        if now >= self._expire_at:
            self._expire_at = now + _EXPIRE_EVERY
            self.shelf.expire()
            self.working.prune()
        self._deleting.round()

    # -- who asks what became of bodies ------------------------------------------------------

    def results(self, hop: bytes, found: Sequence[Result]) -> list[Result]:
        """Results with those of uploads in the places of what was not known otherwise."""
        asked = [result.body for result in found if result.state is State.UNKNOWN]
        if not asked:
            return list(found)
        here = {body: result for body in asked if (result := self._here(hop, body)) is not None}
        others = [body for body in asked if body not in here]
        if others:
            with self._store.reading() as db:
                said = uploads.receipts(db, others)
            for body, receipts in said.items():
                here[body] = Result.done(body, self._settling.sign(receipts))
                self._answers.put(here[body])  # signing is not free
        return [here.get(r.body, r) if r.state is State.UNKNOWN else r for r in found]

    def settled(self, hop: bytes, body: bytes) -> bool:
        """Whether there is a problem to be told of a body; what is done, `Answers` knows."""
        return self._problem(hop, body) is not None

    def _here(self, hop: bytes, body: bytes) -> Result | None:
        """Without the database."""
        result = self._tus.result(hop, body)
        if result is not None:
            return result
        if self.shelf.find(hop, body) is not None:
            return Result.unknown(body)  # bytes are missing
        problem = self._problem(hop, body)
        return None if problem is None else Result.failed(body, problem)

    def _problem(self, hop: bytes, body: bytes) -> Problem | None:
        with self._lock:
            when, problem = self._problems.get((hop, body), (0.0, None))
        return problem if problem is not None and when > time.monotonic() - KEPT else None

    def _settled(self, held: Held, settled: Settled) -> None:
        """Of a body by its worker. What one hop did wrong is told to nobody else."""
        self._bound.more(sum(row.size for row in settled.stored))
        if settled.problem is None:
            self._answers.put(Result.done(held.body_id, settled.receipts))
            return
        with self._lock:
            self._problems.pop((held.hop, held.body_id), None)
            self._problems[held.hop, held.body_id] = (time.monotonic(), settled.problem)
            while len(self._problems) > _PROBLEMS:
                self._problems.popitem(last=False)
        self._answers.changes += 1  # for those who wait

    def _are_gone(self, gone: Sequence[Left]) -> None:
        """Files that were deleted: what their bodies' receipts say is another thing now."""
        self._answers.forget(row.body_id for row in gone)
        self._bound.changed()
        self.working.room()

    # -- for tus -----------------------------------------------------------------------------

    async def _who(self, request: Request, covered: bytes) -> Hop:
        digest = hashlib.sha256(covered).digest()
        headers, method, path = request.headers, request.method, request.url.path

        def check() -> Hop:
            sender = self._authenticate(headers, method, path, digest)
            return Hop(sender.hop, "relay" if sender.role == "relay" else "agent")

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, check)
        except RuntimeError:
            raise Problem("stopping", retry_after=5) from None

    def _known(self, hop: Hop, body: bytes) -> bool:
        """Whether everybody who has announced a body has its file stored: nobody needs it again."""
        try:
            with self._store.reading() as db:
                return uploads.is_stored(db, body)
        except SQLAlchemyError:
            raise Problem("full", "the database cannot be used", retry_after=10) from None


def _shelf_limits(settings: Settings) -> ShelfLimits:
    limits = settings.limits
    try:
        return ShelfLimits(
            max_bytes=limits.upload_bytes,
            max_size=limits.upload_size,
            open_per_hop=limits.uploads_open_per_hop,
            hop_share=limits.uploads_hop_share,
            expires=limits.upload_expires_hours * _HOUR,
            min_free=limits.uploads_min_free,
            relay_factor=limits.uploads_relay_factor,
        )
    except ValueError as error:
        raise SettingsError(f"[server] has limits of uploads that cannot be: {error}") from error

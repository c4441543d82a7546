# SPDX-License-Identifier: Apache-2.0
"""One relay, put together: folder, way up, queue, the requests from below."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from starlette.applications import Starlette

from upseal.fleet.credentials import HopCheck
from upseal.fleet.files import write_private
from upseal.fleet.http.logs import event
from upseal.fleet.http.results import Result
from upseal.fleet.http.serving import Address, Limits, serve
from upseal.fleet.manifest import Manifest
from upseal.fleet.notify import Service
from upseal.fleet.relay.app import RelayApp
from upseal.fleet.relay.carrying import Carrying
from upseal.fleet.relay.control import Control
from upseal.fleet.relay.forward import Forwarder
from upseal.fleet.relay.meters import Meters
from upseal.fleet.relay.repackage import Repackager
from upseal.fleet.relay.settings import Settings
from upseal.fleet.relay.signs import signs_of
from upseal.fleet.relay.state import ADDRESS, State, client_of
from upseal.fleet.relay.status import note
from upseal.fleet.relay.uplink import Uplink
from upseal.fleet.relay.uploads import Uploads
from upseal.fleet.relay.waiters import Waiters
from upseal.fleet.settings import split_listen
from upseal.fleet.trail import body_name
from upseal.fleet.units import BadReceipt, open_receipt

_log = logging.getLogger(__name__)
_PATIENCE = 2.0
"""Seconds that requests to the parent under way get at the end, all of them together."""


class Relay:
    """Opens the folder when it is made; to be closed, or used as a context manager."""

    def __init__(self, settings: Settings) -> None:
        """Opens the folder.

        Raises:
            NotEnrolled, AlreadyRunning, ValueError, OSError: as `State.open`.
        """
        self.settings = settings
        self.meters = Meters()
        self.waiters = Waiters()
        self.state = State.open(settings, self._done)
        try:
            state, me = self.state, self.state.me
            self.client = client_of(settings)
            self.uplink = Uplink(self.client, me.credential, me.hop)
            self.control = Control(settings, state.trust, me.identity, state.keys, self.uplink)
            repackager = None
            if settings.decrypting:
                repackager = Repackager(
                    state.keys, self.control.current, settings.repackage, self.meters
                )
            carrying = Carrying(
                settings,
                state.shelf,
                state.wraps,
                state.queue,
                self.uplink,
                self.meters,
                self.control,
                receipts=self._receipts,
                told=self.waiters.finished,
            )
            self.uploads = Uploads(
                settings, state.shelf, state.wraps, state.queue, self.meters, carrying
            )
            self.forwarder = Forwarder(
                state.queue,
                self.uplink,
                settings,
                self.meters,
                repackager=repackager,
                receipts=self._receipts,
                refresh=self.control.serial,
                others=carrying,
            )
            carrying.wake = self.forwarder.wake
            self.control.after = self._note
            self.hops = HopCheck(self.control.current, cache=settings.repackage.cache)
        except BaseException:
            self.state.close()
            raise
        self.meters.watch(
            state.queue, settings.queue.max_bytes, lambda: self.uplink.away,
            lambda: self.forwarder.books.waiting,
        )  # fmt: skip
        self.meters.watch_above(self.control.current, lambda: self.uplink.offset)
        certificates = self.meters.metrics.certificates
        if (tls := settings.server_tls()) is not None:
            certificates["listener"] = tls.certificate
        if settings.http.certificate is not None:
            certificates["client"] = settings.http.certificate
        if settings.decrypting:
            self.meters.watch_sessions(lambda: state.keys.sessions, state.keys.throttle)
        self._running = False
        self._facts: dict[str, Any] = {}

    def app(self) -> Starlette:
        """The application; while it is served, bodies are passed on."""
        endpoints = RelayApp(
            self.settings,
            self.state.queue,
            self.hops,
            self.control,
            self.uplink,
            self.meters,
            self.waiters,
            self.uploads,
        )
        return endpoints.build(self.why_not_ready, self._life())

    def serve(
        self,
        *,
        stop: threading.Event | None = None,
        on_started: Callable[[Address], object] | None = None,
        service: Service | None = None,
    ) -> None:
        """Serves until a signal comes, or ``stop``. The address is written into the folder.

        A ``service`` may have sockets to serve on, and is told how it goes.
        """
        host, port = split_listen(self.settings.listen)
        where = self.settings.directory / ADDRESS

        def started(address: Address) -> None:
            host = f"[{address.host}]" if ":" in address.host else address.host
            write_private(where, f"{host}:{address.port}\n".encode())
            if service is not None:
                service.ready(f"serving at {address.url}", signs_of(self, service))
            if on_started is not None:
                on_started(address)

        where.unlink(missing_ok=True)  # of a process that was killed
        try:
            serve(
                self.app(),
                host,
                port,
                tls=self.settings.server_tls(),
                limits=Limits(
                    connections=self.settings.http.connections,
                    address_share=self.settings.rates.address_share,
                    exceptions=self.settings.rates.exceptions,
                ),
                on_started=started,
                stop=stop,
                service=service,
            )
        finally:
            where.unlink(missing_ok=True)

    # -- life --------------------------------------------------------------------------

    @asynccontextmanager
    async def _life(self) -> AsyncIterator[None]:
        self.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self.stop)

    def start(self) -> None:
        """Starts to look upwards and to pass on."""
        stats = self.state.queue.stats()
        files = self.state.shelf.usage().bodies
        decrypting = self.settings.decrypting
        event(_log, "relay starts", queued=stats.bodies, uploads=files, decrypting=decrypting)
        self._running = True
        self.control.start()
        self.forwarder.start()
        self.uploads.start()

    def stop(self) -> None:
        """Ends both; what is not done stays in the queue."""
        if not self._running:
            return
        self._running = False
        self.control.stop()
        self.forwarder.stop()
        self.uploads.stop()
        end = time.monotonic() + _PATIENCE
        ended = [part.join(max(0.0, end - time.monotonic())) for part in self._threads()]
        if not all(ended):
            # A parent that holds its answer: results that come now are asked for the next time.
            event(_log, "requests to the parent are given up", level=logging.WARNING)

    def _threads(self) -> tuple[Forwarder | Control | Uploads, ...]:
        """What may have a request to the parent under way."""
        return (self.forwarder, self.control, self.uploads)

    def close(self) -> None:
        """Lets go of the folder."""
        self.stop()
        self.client.close()
        self.state.close()
        self.uploads.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- what its parts ask of each other --------------------------------------------------

    def _done(self, finished: Sequence[tuple[Result, int]]) -> None:
        """In the thread of the queue's writer, after the commit."""
        now = time.time()
        following = _log.isEnabledFor(logging.DEBUG)
        for result, received in finished:
            if following:
                name = body_name(result.body)
                event(_log, "body answered", level=logging.DEBUG, body=name, state=result.state)
            self.meters.finished.labels(result.state.value).inc()
            if result.problem is not None:
                self.meters.problems.labels(result.problem.name).inc()
            self.meters.latency.observe(max(0.0, now - received / 1000))
        self.waiters.finished([result for result, _ in finished])

    def _receipts(self, receipts: Iterable[bytes]) -> dict[bytes, bytes]:
        """Receipts that verify, by the statement that each is for."""
        manifest = self.control.current()
        if manifest is None:
            return {}
        good: dict[bytes, bytes] = {}
        forged = 0
        keys = {key.key_id: key for key in manifest.receipt_keys}
        for receipt in receipts:
            try:
                opened = open_receipt(receipt, keys, manifest.deployment)
            except BadReceipt:
                forged += 1
            else:
                good[opened.statement_digest] = receipt
        if forged:
            # Forged on the way down, or by a key of a newer manifest: that is looked for at once.
            event(_log, "receipts do not verify", level=logging.WARNING, count=forged)
            self.control.serial()
        return good

    # -- how it is -------------------------------------------------------------------------

    def why_not_ready(self) -> str | None:
        """One sentence for ``/readyz``; None if it can take bodies.

        A parent that is away is none: to keep bodies until it is back is what a relay is for, and
        a balancer that heard it of one would hear it of all, and send to nobody.
        """
        manifest = self.control.current()
        if manifest is None:
            return "there is no manifest yet"
        if self._revoked(manifest):
            return "this relay is revoked"
        if self.uplink.refusal is not None:
            return f"the parent refuses this relay: {self.uplink.refusal}"
        if self.state.queue.refusing:
            return "the queue is full"
        return None

    def _revoked(self, manifest: Manifest) -> bool:
        me = self.state.me
        mine = {me.identity.public.agent_id, me.hop.public.agent_id}
        return not mine.isdisjoint(manifest.revoked_agents)

    def _note(self) -> None:
        """For `status`: what only this process knows, if it is not what it was."""
        why = self.why_not_ready()
        facts = {
            "ready": why is None,
            "why_not_ready": why,
            "parent_away_since": self.uplink.away_since,
            "refusal": self.uplink.refusal,
            "parent_accepts_sealed": self.control.parent_accepts_sealed,
            "answered": {str(g): t for g, t in self.control.proving.answered.items()},
        }
        if facts != self._facts:
            note(self.settings.directory, facts)
            self._facts = facts

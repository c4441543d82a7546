# SPDX-License-Identifier: Apache-2.0
"""Opening reports, and finding the keys of uploads."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING

from upseal.core import header as headers
from upseal.core.batch import Batch
from upseal.core.bodies import Kind, check_envelope, parse_batch, read_kind
from upseal.core.copies import refuse
from upseal.core.forks import renew_in_children
from upseal.core.header import Header
from upseal.core.known import KeyOpener, KeySet, Known, Route, Sessions
from upseal.core.session import SessionKeys, open_session
from upseal.core.suites import SECRET_LEN
from upseal.engine import resolve
from upseal.engine.buffers import Buffer, as_bytes, view
from upseal.engine.records import Listed, Packed, check_offsets, pack, packed, split
from upseal.engine.types import Engine
from upseal.errors import KeyUnavailable, OpenError, UnknownRecipient

if TYPE_CHECKING:
    from upseal.core.reader import OpeningReader

__all__ = ["KeyOpener", "Opener", "Sessions"]


class Opener:
    """Opens what was sealed to one of its keys. Safe to share between threads.

    Args:
        keys: `PrivateKey`, or any object with ``suite``, ``key_id`` and ``unwrap(wrapped)``.
        cache: how many sessions to remember, so that their next report costs no public-key
            operation. Only sessions whose commitment held are put in, the oldest go first, and
            those of a removed key go with it. 0 for none. About 0.7 KB each (4.4 KB on the portable
            engine): a server whose clients reach it directly wants room for all of them, or it
            unwraps at every report.
        engine: ``"native"``, ``"portable"`` or an `Engine`; None for the best here.

    Raises:
        ValueError: no keys, or the cache is negative.
    """

    def __init__(
        self, keys: Iterable[KeyOpener], cache: int = 65536, *, engine: Engine | str | None = None
    ) -> None:
        if cache < 0:
            raise ValueError(f"the cache cannot hold {cache} sessions")
        self._keys: KeySet = {}
        self._cache_size = cache
        # Ordered: a plain dict walks over the holes of all it has forgotten to find the oldest.
        self._cache: OrderedDict[bytes, Known] = OrderedDict()
        self._lock = threading.RLock()  # as the Sealer's
        self._opened_sessions = self._known_sessions = 0
        self._last: Route | None = None
        self._engine = resolve(engine)
        for key in keys:
            self.add_key(key)
        if not self._keys:
            raise ValueError("an opener needs at least one key")
        renew_in_children(self)

    __reduce_ex__ = refuse

    def after_fork(self) -> None:
        """For the child of a fork: a lock of its own."""
        self._lock = threading.RLock()

    def add_key(self, key: KeyOpener) -> None:
        """Opens with this key as well from now on."""
        if not isinstance(key, KeyOpener):
            raise TypeError(f"{type(key).__name__} has no suite, key_id and unwrap")
        with self._lock:
            self._keys = {**self._keys, (int(key.suite), bytes(key.key_id)): key}

    def remove_key(self, key_id: bytes) -> None:
        """Forgets a key and every session it opened.

        Raises:
            KeyError: there is no key of that id.
        """
        with self._lock:
            kept = {which: key for which, key in self._keys.items() if which[1] != key_id}
            if len(kept) == len(self._keys):
                raise KeyError(key_id.hex())
            # In this order: whoever sees the new keys must see the new cache as well.
            kept_sessions = ((d, k) for d, k in self._cache.items() if k.opened_by in kept)
            self._cache = OrderedDict(kept_sessions)
            self._keys = kept

    @property
    def key_ids(self) -> tuple[bytes, ...]:
        """Of the keys it opens with."""
        return tuple(key_id for _, key_id in self._keys)

    @property
    def sessions(self) -> Sessions:
        """How well it remembers; two threads in the same instant may count as one."""
        return Sessions(len(self._cache), self._opened_sessions, self._known_sessions)

    # -- reports ---------------------------------------------------------------

    def open(self, envelope: Buffer, context: Buffer = b"") -> bytes:
        """The report in an envelope.

        Raises:
            OpenError: it is not genuine, or of another context; see `upseal.errors`.
        """
        data = envelope if type(envelope) is bytes else as_bytes(envelope, "an envelope")
        if type(context) is not bytes:
            context = as_bytes(context, "context")
        return self._open_one(self._route(data), data, context)

    def _open_one(self, route: Route, data: bytes, context: bytes) -> bytes:
        prefix, kind, padded, key, _ = route
        report = self._engine.open_envelope(key, len(prefix), kind + context, data, padded)
        if report is None:
            raise route.error(data)
        return report

    def open_many(
        self, envelopes: Sequence[Buffer], context: Buffer = b""
    ) -> list[bytes | OpenError]:
        """For each envelope its report, or the error why not: one bad one costs no other.

        Envelopes of one session are opened together, wherever they stand.
        """
        listed = Listed(envelopes)
        aad_end = as_bytes(context, "context")
        results: list[bytes | OpenError] = [OpenError()] * listed.total
        places: Sequence[int] = range(listed.total)
        refused: dict[bytes, OpenError] = {}  # what the first one's key has refused already
        # Mostly all are of one session. What is not is sorted by session, and opened so: at once if
        # the last is not of the first one's, since then most are not.
        if listed.total:
            try:
                route = self._route(listed.reports[0])
            except OpenError as error:
                results[0], places = error, range(1, listed.total)
                if error.problem is None:
                    refused[_alike(listed.reports[0])] = error
            else:
                if listed.reports[-1][: len(route.prefix)] == route.prefix:
                    places = self._open_listed(route, listed, aad_end, places, results)
        alike: dict[bytes, list[int]] = {}
        for i in places:
            alike.setdefault(_alike(listed.reports[i]), []).append(i)
        for front, members in alike.items():
            known = refused.get(front)
            try:
                if len(members) == 1 and known is None:
                    results[members[0]] = self.open(listed.reports[members[0]], aad_end)
                else:
                    self._open_alike(listed.reports, aad_end, members, results, known)
            except OpenError as error:
                for i in members:
                    results[i] = error
        return results

    def _open_alike(
        self,
        envelopes: Sequence[Buffer],
        aad_end: bytes,
        places: Sequence[int],
        results: list[bytes | OpenError],
        refused: OpenError | None,
    ) -> None:
        """Opens envelopes that begin alike, up to their kind, into ``results``.

        ``refused``: what came of another that begins so, and needs no second unwrap.
        """
        whole = []
        for i in places:  # what is cut off must cost no public-key operation
            try:
                header, kind = _front(envelopes[i])
                whole.append(i)
            except OpenError as error:
                results[i] = error
        if whole:
            try:
                if refused is not None:
                    raise refused
                route = self._route_of(header, kind, hashlib.sha256(header.raw).digest())
            except OpenError as error:
                for i in whole:
                    results[i] = error
            else:
                group = Listed([envelopes[i] for i in whole])
                self._open_listed(route, group, aad_end, whole, results)

    def _open_listed(
        self,
        route: Route,
        envelopes: Listed,
        aad_end: bytes,
        places: Sequence[int],
        results: list[bytes | OpenError],
    ) -> list[int]:
        """Opens by this route what it can, into ``results``; the places of all others."""
        others = []
        prefix, kind, padded, key, _ = route
        at = 0
        for opened, status in self._engine.open_envelopes(
            key, prefix, kind + aad_end, envelopes, padded
        ):
            reports: list[bytes | OpenError] = split(opened)  # type: ignore[assignment]
            if status.count(0) < len(status):
                for i, bad in enumerate(status):
                    if bad == 1:
                        others.append(places[at + i])
                    elif bad:
                        reports[i] = route.error(envelopes.reports[at + i])
            if isinstance(places, range):
                results[at : at + len(reports)] = reports
            else:
                for place, report in zip(places[at:], reports, strict=False):
                    results[place] = report
            at += len(reports)
        return others

    def open_many_packed(
        self, values: Buffer, offsets: Buffer, context: Buffer = b""
    ) -> tuple[memoryview, memoryview, dict[int, OpenError]]:
        """As `open_many`, in Arrow's layout.

        Returns:
            The reports behind one another; their int64 offsets (a report that did not open is
            empty); and the error of each that did not, by its place.
        """
        envelopes = packed(values, offsets)
        if envelopes.total:
            try:
                route = self._route(envelopes.values[: envelopes.offsets[1] - envelopes.offsets[0]])
            except OpenError:
                pass
            else:
                aad = route.kind + as_bytes(context, "context")
                # To its end, where the engine takes its work space back.
                [(reports, status)] = self._engine.open_envelopes(
                    route.key, route.prefix, aad, envelopes, route.padded
                )
                if status.count(0) == len(status):
                    return reports.values[: reports.offsets[-1]], reports.offsets, {}
        # Something is forged, or of another session: one by one, then.
        check_offsets(envelopes)
        opened = self.open_many(split(envelopes), context)
        errors = {i: r for i, r in enumerate(opened) if isinstance(r, OpenError)}
        packed_again = pack([b"" if isinstance(r, OpenError) else r for r in opened])
        return packed_again.values, packed_again.offsets, errors

    def open_batch(self, batch: Buffer, context: Buffer = b"") -> Batch:
        """All reports of a batch, or none.

        Raises:
            OpenError: it is not genuine, whole and of this context.
        """
        return Batch(self._open_batch(batch, context))

    def open_packed(
        self, batch: Buffer, context: Buffer = b"", out: bytearray | None = None
    ) -> tuple[memoryview, memoryview]:
        """As `open_batch`, as (values, int64 offsets).

        Args:
            batch: what `Sealer.seal_batch` or `Sealer.seal_packed` gave.
            context: as it was sealed with.
            out: where to put the values, as in `Sealer.seal_packed`. After an error it holds zeros.
        """
        values, offsets = self._open_batch(batch, context, out)
        return values, offsets

    def _open_batch(self, batch: Buffer, context: Buffer, out: bytearray | None = None) -> Packed:
        data = view(batch, "a batch")
        header = headers.parse(data)
        at = len(header.raw)
        kind = read_kind(data, at, "batch")
        nonce, count, ends, records = parse_batch(data, at, kind.padded, self._engine.sealed_ends)
        keys = self._session_of(header)
        aad = kind.mark + bytes(4) + count.to_bytes(4, "big") + as_bytes(context, "context")
        opened = self._engine.open_batch(keys.batch, nonce, aad, ends, records, kind.padded, out)
        if opened is None:
            raise OpenError
        return opened

    # -- uploads ---------------------------------------------------------------

    def reader(self, fileobj: IO[bytes], context: Buffer = b"") -> OpeningReader:
        """A file-like object that opens the upload in ``fileobj``; seekable if that is.

        Raises:
            OpenError: it is not one for our keys, or of another context.
        """
        from upseal.core.reader import OpeningReader

        return OpeningReader(fileobj, self._session_of, as_bytes(context, "context"))

    # -- sessions --------------------------------------------------------------

    def _route(self, data: Buffer) -> Route:
        """How to open this envelope: as the last one, mostly."""
        last = self._last
        if (
            last is not None
            and data[: len(last.prefix)] == last.prefix
            and last.key_set is self._keys
        ):
            return last
        key_set = self._keys  # before the cache is read: see remove_key
        size = headers.size(data)
        front = bytes(data[:size])
        digest = hashlib.sha256(front).digest()
        known = self._cache.get(digest)
        if known is None:
            header, kind = _front(data)
            if header.raw != front:  # a buffer that somebody writes to meanwhile
                digest = hashlib.sha256(header.raw).digest()
            return self._route_of(header, kind, digest)
        self._known_sessions += 1
        kind = read_kind(data, size, "envelope")
        check_envelope(len(data), size, kind.padded)
        mark, padded = kind.mark, kind.padded
        route = self._last = Route(front + mark, mark, padded, known.keys.report, key_set)
        return route

    def _route_of(self, header: Header, kind: Kind, digest: bytes) -> Route:
        key_set = self._keys
        known = self._remembered(digest) or self._first_contact(header, key_set, digest)
        mark = kind.mark
        route = Route(header.raw + mark, mark, kind.padded, known.keys.report, key_set)
        if self._cache_size:
            self._last = route
        return route

    def _session_of(self, header: Header) -> SessionKeys:
        digest = hashlib.sha256(header.raw).digest()
        known = self._remembered(digest) or self._first_contact(header, self._keys, digest)
        return known.keys

    def _remembered(self, digest: bytes) -> Known | None:
        known = self._cache.get(digest)
        if known is not None:
            self._known_sessions += 1
        return known

    def _first_contact(self, header: Header, keys: KeySet, digest: bytes) -> Known:
        for entry in header.entries:
            which = (int(entry.suite), entry.key_id)
            key = keys.get(which)
            if key is not None:
                break
        else:
            raise UnknownRecipient([(int(e.suite), e.key_id) for e in header.entries])
        secret: bytearray | None = None
        try:
            unwrapped = key.unwrap(entry.wrapped)
            secret = bytearray(memoryview(unwrapped))
            # Of another length it is no secret, and may be anybody's: OAEP carries what a sender
            # likes, and Python has one object for all bytes of length 1.
            if len(secret) == SECRET_LEN and getattr(key, "unwraps_afresh", False):
                self._engine.wipe(unwrapped)
        except (MemoryError, RecursionError, KeyUnavailable):  # these say nothing about the data
            raise
        except Exception:  # whatever an HSM may raise: only the commitment is seen to fail
            pass
        self._opened_sessions += 1
        try:
            session = open_session(self._engine, header, secret)
        finally:
            if secret is not None:
                self._engine.wipe(secret)
        known = Known(session, which)
        if self._cache_size:
            with self._lock:
                if which in self._keys:  # not removed meanwhile
                    while len(self._cache) >= self._cache_size:
                        self._cache.popitem(last=False)
                    self._cache[digest] = known
        return known

    def __repr__(self) -> str:
        return f"<Opener with keys {', '.join(k.hex() for k in self.key_ids)}>"


def _alike(envelope: Buffer) -> bytes:
    """What envelopes of one session and kind have in common, if this is one."""
    return bytes(envelope[: headers.size(envelope) + 1])


def _front(envelope: Buffer) -> tuple[Header, Kind]:
    """The public part of an envelope, checked."""
    header = headers.parse(envelope)
    at = len(header.raw)
    kind = read_kind(envelope, at, "envelope")
    check_envelope(len(envelope), at, kind.padded)
    return header, kind

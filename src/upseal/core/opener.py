# SPDX-License-Identifier: Apache-2.0
"""Opening reports, and finding the keys of uploads."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from upseal.core import header as headers
from upseal.core.batch import Batch
from upseal.core.bodies import Kind, check_envelope, parse_batch, read_kind
from upseal.core.header import Header
from upseal.core.session import SessionKeys, open_session
from upseal.engine import resolve
from upseal.engine.records import Packed, as_bytes, pack, packed, split, view
from upseal.engine.types import Buffer, Engine
from upseal.errors import OpenError, UnknownRecipient

if TYPE_CHECKING:
    from upseal.core.reader import OpeningReader


@runtime_checkable
class KeyOpener(Protocol):
    """What an `Opener` needs of a key: a `PrivateKey`, an HSM, or a process that keeps the key."""

    @property
    def suite(self) -> int:
        """The suite's number (docs/format.md)."""

    @property
    def key_id(self) -> bytes:
        """8 bytes."""

    def unwrap(self, wrapped: bytes) -> bytes:
        """The 32-byte session secret, or any exception."""


class _Known(NamedTuple):
    """A session whose commitment held."""

    header: bytes
    keys: SessionKeys
    opened_by: tuple[int, bytes]
    """Suite and id of the key that unwrapped it."""


class Opener:
    """Opens what was sealed to one of its keys. Safe to share between threads.

    Args:
        keys: `PrivateKey`, or any object with ``suite``, ``key_id`` and ``unwrap(wrapped)``.
        cache: how many sessions to remember, so that their next report costs no public-key
            operation. Only sessions whose commitment held are put in, the oldest go first, and
            those of a removed key go with it. 0 for none.
        engine: ``"native"``, ``"portable"`` or an `Engine`; None for the best here.

    Raises:
        ValueError: no keys, or the cache is negative.
    """

    def __init__(
        self, keys: Iterable[KeyOpener], cache: int = 65536, *, engine: Engine | str | None = None
    ) -> None:
        if cache < 0:
            raise ValueError(f"the cache cannot hold {cache} sessions")
        self._keys: dict[tuple[int, bytes], KeyOpener] = {}
        self._cache_size = cache
        self._cache: dict[bytes, _Known] = {}
        self._lock = threading.Lock()
        # The session opened last, and the set of keys it was opened under.
        self._last: tuple[_Known, dict[tuple[int, bytes], KeyOpener]] | None = None
        self._engine = resolve(engine)
        for key in keys:
            self.add_key(key)
        if not self._keys:
            raise ValueError("an opener needs at least one key")

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
            self._keys = kept
            self._cache = {d: k for d, k in self._cache.items() if k.opened_by in kept}

    @property
    def key_ids(self) -> tuple[bytes, ...]:
        """Of the keys it opens with."""
        return tuple(key_id for _, key_id in self._keys)

    # -- reports ---------------------------------------------------------------

    def open(self, envelope: Buffer, context: Buffer = b"") -> bytes:
        """The report in an envelope.

        Raises:
            OpenError: it is not genuine, or of another context; see `upseal.errors`.
        """
        data = as_bytes(envelope, "an envelope")
        known = self._remembered(data)
        header = known.header if known else headers.parse(data).raw
        at = len(header)
        kind = read_kind(data, at, "envelope")
        check_envelope(len(data), at, kind.padded)
        keys = known.keys if known else self._session(header)
        report = self._engine.open_envelope(
            keys.report, at + 1, data[at : at + 1] + as_bytes(context, "context"), data, kind.padded
        )
        if report is None:
            raise OpenError
        return report

    def open_many(
        self, envelopes: Sequence[Buffer], context: Buffer = b""
    ) -> list[bytes | OpenError]:
        """For each envelope its report, or the error why not: one bad one costs no other.

        Envelopes of one session are opened together, wherever they stand.
        """
        results: list[bytes | OpenError] = [OpenError()] * len(envelopes)
        groups: dict[tuple[bytes, Kind], list[int]] = {}
        sessions: dict[bytes, SessionKeys | OpenError] = {}
        blobs = [as_bytes(envelope, "an envelope") for envelope in envelopes]
        header = None
        for i, data in enumerate(blobs):
            try:
                if header is None or not data.startswith(header):
                    header = headers.parse(data).raw
                at = len(header)
                kind = read_kind(data, at, "envelope")
                check_envelope(len(data), at, kind.padded)
            except OpenError as error:
                results[i], header = error, None
                continue
            groups.setdefault((header, kind), []).append(i)
        aad_end = as_bytes(context, "context")
        for (header, kind), places in groups.items():
            try:
                if header not in sessions:
                    sessions[header] = self._session(header)
            except OpenError as error:
                sessions[header] = error
            keys = sessions[header]
            if isinstance(keys, OpenError):
                for i in places:
                    results[i] = keys
                continue
            opened, bad = self._engine.open_envelopes(
                keys.report,
                len(header) + 1,
                bytes([kind]) + aad_end,
                pack([blobs[i] for i in places]),
                kind.padded,
            )
            for i, report, status in zip(places, split(opened), bad, strict=True):
                results[i] = OpenError() if status else report
        return results

    def open_many_packed(
        self, values: Buffer, offsets: Buffer, context: Buffer = b""
    ) -> tuple[memoryview, memoryview, dict[int, OpenError]]:
        """As `open_many`, in Arrow's layout.

        Returns:
            The reports behind one another; their int64 offsets (a report that did not open is
            empty); and the error of each that did not, by its place.
        """
        envelopes = packed(values, offsets)
        if not envelopes.total:
            return memoryview(b""), memoryview(bytes(8)).cast("q"), {}
        opened = self.open_many(split(envelopes), context)
        errors = {i: r for i, r in enumerate(opened) if isinstance(r, OpenError)}
        reports = pack([b"" if isinstance(r, OpenError) else r for r in opened])
        return reports.values, reports.offsets, errors

    def open_batch(self, batch: Buffer, context: Buffer = b"") -> Batch:
        """All reports of a batch, or none.

        Raises:
            OpenError: it is not genuine, whole and of this context.
        """
        return Batch(self._open_batch(batch, context))

    def open_packed(self, batch: Buffer, context: Buffer = b"") -> tuple[memoryview, memoryview]:
        """As `open_batch`, as (values, int64 offsets)."""
        values, offsets = self._open_batch(batch, context)
        return values, offsets

    def _open_batch(self, batch: Buffer, context: Buffer) -> Packed:
        data = view(batch, "a batch")
        header = headers.parse(data).raw
        at = len(header)
        kind = read_kind(data, at, "batch")
        nonce, count, table, records = parse_batch(data, at, kind.padded)
        keys = self._session(header)
        aad = bytes([kind]) + bytes(4) + count.to_bytes(4, "big") + as_bytes(context, "context")
        opened = self._engine.open_batch(keys.batch, nonce, aad, table, records, kind.padded)
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

    def _remembered(self, data: bytes) -> _Known | None:
        """The session opened last, if this blob is of it: most are."""
        last = self._last
        if last is not None and last[1] is self._keys and data.startswith(last[0].header):
            return last[0]
        return None

    def _session(self, raw: bytes) -> SessionKeys:
        """The keys for the header ``raw``, from memory or by a public-key operation."""
        return self._session_of(headers.parse(raw))

    def _session_of(self, header: Header) -> SessionKeys:
        keys = self._keys
        digest = hashlib.sha256(header.raw).digest()
        known = self._cache.get(digest)
        if known is None:
            known = self._first_contact(header, keys, digest)
        if self._cache_size:
            self._last = (known, keys)
        return known.keys

    def _first_contact(
        self, header: Header, keys: dict[tuple[int, bytes], KeyOpener], digest: bytes
    ) -> _Known:
        ours = next((e for e in header.entries if (e.suite, e.key_id) in keys), None)
        if ours is None:
            raise UnknownRecipient([(int(e.suite), e.key_id) for e in header.entries])
        which = (int(ours.suite), ours.key_id)
        try:
            secret = keys[which].unwrap(ours.wrapped)
        except Exception:  # whatever an HSM may raise: only the commitment is seen to fail
            secret = None
        session = open_session(self._engine, header, secret)
        known = _Known(header.raw, session, which)
        if self._cache_size:
            with self._lock:
                if which in self._keys:  # not removed meanwhile
                    while len(self._cache) >= self._cache_size:
                        del self._cache[next(iter(self._cache))]
                    self._cache[digest] = known
        return known

    def __repr__(self) -> str:
        return f"<Opener with keys {', '.join(k.hex() for k in self.key_ids)}>"

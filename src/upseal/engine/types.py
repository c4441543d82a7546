# SPDX-License-Identifier: Apache-2.0
"""The one small interface between the core and the bulk work.

An engine seals and opens under keys that the core has derived. It sees no public key, no header and
no file. Two of them give the same bytes: ``native`` (C) and ``portable`` (no C of ours).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upseal.engine.buffers import Buffer
    from upseal.engine.records import Packed, Reports

SealOne: TypeAlias = Callable[[bytes, bytes, bytes], bytes]
"""Nonce, AAD and report to an envelope."""


class EngineError(RuntimeError):
    """The engine could not do its work: no memory, or a library refused. Not the data's fault."""


class KeyMemory(NamedTuple):
    """Memory set aside for keys, in bytes."""

    used: int
    size: int
    locked: int
    """So much of ``size`` goes to no swap; the rest the system would not lock (``ulimit -l``)."""


class Room(Protocol):
    """Bytes in the making, which nobody else has seen."""

    @property
    def view(self) -> memoryview:
        """Where to write them, and drop before `take`. What is not written may be anything."""

    def take(self, size: int) -> bytes:
        """The first ``size`` of them: from now on they are like all bytes."""


class Engine(Protocol):
    """Bulk sealing and opening. Safe to use from any number of threads at once.

    ``padded`` means the Padmé padding of docs/format.md. Keys are what ``record_key`` and
    ``chunk_key`` gave. Whatever cannot be opened comes back as None, or in ``results``.
    """

    name: str

    def describe(self) -> dict[str, str]:
        """What this engine runs on, for people: ``engine``, ``backend``, ``version``."""

    def record_key(self, cipher: int, material: Buffer) -> Any:
        """A key for records, from 32 bytes."""

    def chunk_key(self, cipher: int, material: Buffer) -> Any:
        """A key for chunks, from 44 bytes: the key and the base nonce."""

    def session_key(self, cipher: int, keys: Buffer) -> Any:
        """The keys of a session in one: what begins with ``report_key | batch_key | upload_key``.

        For records it is the first of them; `batch_key` and `upload_key` find the others.
        """

    def batch_key(self, session: Any) -> Any:
        """The key for the records of a session's batches."""

    def upload_key(self, session: Any, info: bytes) -> tuple[Any, bytes]:
        """The key for chunks and the commitment that `expand` makes of a session's upload key."""

    def expand(self, secret: Buffer, info: bytes, length: int) -> bytearray:
        """HKDF-Expand (RFC 5869) with SHA-512 of 32 bytes, for the caller to `wipe`."""

    def wipe(self, secret: bytes | bytearray) -> None:
        """Overwrites a secret that nobody else has, as far as this engine can.

        The native one does so in ``bytes`` as well. The portable one leaves those to the memory
        allocator: see docs/security.md.
        """

    def key_memory(self) -> KeyMemory:
        """How much memory is set aside for keys, and locked: none of it by the portable engine."""

    def measure(self, reports: Reports, padded: bool) -> int:
        """Bytes that these reports take when sealed: themselves, their padding and tags.

        Raises:
            ValueError: one is longer than 16 MiB with its padding, or the offsets are wrong.
        """

    def sealing(self, key: Any, prefix: bytes, padded: bool) -> SealOne:
        """What seals single reports of a session: nonce, AAD and report to an envelope.

        That is ``prefix | nonce | ciphertext | tag``.
        """

    def open_envelope(
        self, key: Any, prefix_len: int, aad: bytes, envelope: bytes, padded: bool
    ) -> bytes | None:
        """The report, if the envelope is genuine."""

    def seal_envelopes(
        self, key: Any, nonce: bytes, prefix: bytes, aad: bytes, reports: Reports, padded: bool
    ) -> Iterable[Packed]:
        """An envelope for each report, number i under ``nonce XOR i``; at most 2^20.

        They come group by group, as they are made; a group is good until the next is asked for.
        """

    def open_envelopes(
        self, key: Any, prefix: bytes, aad: bytes, envelopes: Reports, padded: bool
    ) -> Iterable[tuple[Packed, bytes]]:
        """The reports, group by group as above, and for each a byte: 0 if it is genuine.

        Otherwise the report is empty: 1, the envelope does not begin with ``prefix`` and is of
        another session or kind; anything else, it is forged.
        """

    def seal_batch(
        self,
        key: Any,
        nonce: bytes,
        head: bytes,
        aad: bytes,
        reports: Reports,
        padded: bool,
        out: bytearray | None = None,
    ) -> bytes | memoryview:
        """``head | table of sealed lengths | sealed records``, in ``out`` if there is one.

        ``aad`` is ``kind | 4 bytes | u32 count | context``; a record's index goes into the 4 bytes.
        """

    def sealed_ends(self, table: memoryview, padded: bool) -> memoryview | None:
        """As `upseal.engine.records.sealed_ends`."""

    def open_batch(
        self,
        key: Any,
        nonce: bytes,
        aad: bytes,
        ends: memoryview,
        records: memoryview,
        padded: bool,
        out: bytearray | None = None,
    ) -> Packed | None:
        """All reports, or None; in ``out`` if there is one. ``ends`` fit the ``records``."""

    def seal_chunks(
        self, key: Any, first: int, last: bool, data: memoryview, out: memoryview
    ) -> None:
        """Seals ``data`` as chunks ``first``, ``first + 1``, ... into ``out`` (exactly as long).

        Without ``last``, data is a multiple of CHUNK; with it, the rest is the short last chunk.
        """

    def open_chunks(
        self,
        key: Any,
        first: int,
        last: bool,
        data: memoryview,
        out: memoryview,
        private: bool = False,
    ) -> bool:
        """Opens sealed chunks into ``out`` (exactly as long), or says False and leaves zeros.

        Nothing is written to ``out`` before its tag has been checked: it may be the caller's.
        With ``private`` it is, which saves a copy: only for memory that nobody else can see yet.
        """

    def room(self, size: int) -> Room:
        """Memory for ``size`` bytes: private, for `open_chunks`, until they are taken."""

# SPDX-License-Identifier: Apache-2.0
"""Sealing reports, and starting uploads."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import cache
from os import urandom
from typing import IO, TYPE_CHECKING, overload

from upseal.core.bodies import BATCH_BYTES_MAX, BATCH_MAX, Kind
from upseal.core.copies import refuse
from upseal.core.forks import renew_in_children
from upseal.core.header import RECIPIENTS_MAX
from upseal.core.keys import PublicKey
from upseal.core.options import Cipher, Limits, Padding
from upseal.core.session import Session, seconds
from upseal.core.suites import SECRET_LEN
from upseal.engine import default_cipher, fips, resolve
from upseal.engine.buffers import Buffer, as_bytes
from upseal.engine.records import Listed, Packed, Reports, packed, split
from upseal.engine.sizes import NONCE, RECORD_MAX, TAG
from upseal.engine.types import Engine

if TYPE_CHECKING:
    from upseal.core.writer import SealingWriter

_LIMITS = Limits()


class Sealer:
    """Seals reports and uploads to a set of recipients. Safe to share between threads.

    One random session secret is wrapped for every recipient, and reports are sealed under keys
    derived from it until its `Limits` are reached; then a new session begins by itself. Every call
    draws a fresh 24-byte nonce from the kernel, so neither threads nor forked processes nor a
    restored snapshot can seal two reports alike.

    Args:
        recipients: 1 to 16 public keys; whoever holds one of the private keys can open.
        limits: when a session ends.
        padding: `Padding.PADME` hides exact lengths of reports (not of uploads).
        cipher: None for what is fast on this CPU; else a `Cipher`, its number or its name.
        allow_mixed: let a post-quantum recipient stand beside a classical one. A session is only
            as strong as its weakest recipient, so this is refused unless asked for.
        engine: ``"native"``, ``"portable"`` or an `Engine`; None for the best here.

    Raises:
        ValueError: no recipients, too many, one of them twice, or a mix that was not allowed.
    """

    def __init__(
        self,
        recipients: Sequence[PublicKey],
        limits: Limits | None = None,
        padding: Padding | None = None,
        cipher: Cipher | int | str | None = None,
        *,
        allow_mixed: bool = False,
        engine: Engine | str | None = None,
    ) -> None:
        if isinstance(recipients, PublicKey):
            raise TypeError("recipients must be a sequence of public keys, not one of them")
        self.recipients = tuple(recipients)
        for recipient in self.recipients:
            if not isinstance(recipient, PublicKey):
                raise TypeError(f"a recipient is a PublicKey, not {type(recipient).__name__}")
        if not 1 <= len(self.recipients) <= RECIPIENTS_MAX:
            raise ValueError(f"1 to {RECIPIENTS_MAX} recipients, not {len(self.recipients)}")
        if len(self.recipients) > 1:
            _check_together(self.recipients, allow_mixed)
        if padding is not None and not isinstance(padding, Padding):
            raise TypeError(f"padding is a Padding or None, not {type(padding).__name__}")
        self.limits = limits if limits is not None else _LIMITS
        self.padding = padding
        self.cipher = _default_cipher() if cipher is None else Cipher.parse(cipher)
        if fips.mode() is not None and self.cipher is not Cipher.AES_256_GCM:
            raise ValueError(f"{self.cipher} is not for FIPS mode, which is on ({fips.mode()})")
        self._engine = resolve(engine)
        self._padded = padding is not None
        self._longest = RECORD_MAX - self._padded
        self._envelope_kind = (Kind.PADDED_ENVELOPE if self._padded else Kind.ENVELOPE).mark
        self._batch_kind = (Kind.PADDED_BATCH if self._padded else Kind.BATCH).mark
        self._session: Session | None = None
        self._lock = threading.RLock()  # a signal's handler may seal in the middle of a `seal`
        renew_in_children(self)

    __reduce_ex__ = refuse

    def after_fork(self) -> None:
        """For the child of a fork: it begins a session of its own, under a lock of its own."""
        self._lock = threading.RLock()
        self._session = None

    def seal(self, report: Buffer, context: Buffer = b"") -> bytes:
        """One report as an envelope, which opens on its own.

        Args:
            report: at most 16 MiB.
            context: bytes that the opener must name as well; not sent.

        Raises:
            ValueError: the report is too long.
        """
        if type(report) is not bytes:
            report = as_bytes(report, "a report")
        if type(context) is not bytes:
            context = as_bytes(context, "context")
        if len(report) > self._longest:
            raise ValueError("a report is longer than 16 MiB")
        session = self._session
        # Without the lock: a session that another thread replaces meanwhile is still good for the
        # message that was taken from it (see Session.set_aside).
        try:
            if session is None or session.ends <= seconds():
                session = self._take(1)
            else:
                session.spend()
        except IndexError:
            session = self._take(1, True)
        kind = self._envelope_kind
        return session.seal(urandom(NONCE), kind + context if context else kind, report)

    def seal_many(self, reports: Sequence[Buffer], context: Buffer = b"") -> list[bytes]:
        """Reports as independent envelopes of one session: as `seal` on each, far faster.

        Raises:
            ValueError: a report is longer than 16 MiB.
        """
        sealed = []
        for group in self._envelopes(Listed(reports), context):
            sealed += split(group)
        return sealed

    def seal_many_packed(
        self, values: Buffer, offsets: Buffer, context: Buffer = b""
    ) -> tuple[memoryview, memoryview]:
        """As `seal_many`, without a Python object per report: Arrow's layout in and out.

        Args:
            values: the reports behind one another.
            offsets: int32 or int64, one more than there are reports.
            context: as in `seal`.

        Returns:
            The envelopes behind one another, and their int64 offsets.
        """
        # To its end, where the engine takes its work space back.
        for envelopes in list(self._envelopes(packed(values, offsets), context)):
            return envelopes.values, envelopes.offsets
        return memoryview(b""), memoryview(bytes(8)).cast("q")

    def seal_batch(self, reports: Sequence[Buffer], context: Buffer = b"") -> bytes:
        """1 to 2^20 reports as one batch: none can be moved, dropped or added unseen.

        Raises:
            ValueError: no reports, too many, one over 16 MiB, or over 1 GiB in all.
        """
        return self._batch(Listed(reports), context, None)  # type: ignore[return-value]

    @overload
    def seal_packed(
        self, values: Buffer, offsets: Buffer, context: Buffer = b"", out: None = None
    ) -> bytes: ...

    @overload
    def seal_packed(
        self, values: Buffer, offsets: Buffer, context: Buffer = b"", *, out: bytearray
    ) -> memoryview: ...

    def seal_packed(
        self,
        values: Buffer,
        offsets: Buffer,
        context: Buffer = b"",
        out: bytearray | None = None,
    ) -> bytes | memoryview:
        """As `seal_batch`, from Arrow's layout.

        Args:
            values: the reports behind one another.
            offsets: int32 or int64, one more than there are reports.
            context: as in `seal`.
            out: where to put the batch, made longer if it must be. Using one again and again
                saves the system the work of finding memory, which is more than the sealing.

        Returns:
            The batch; with ``out``, a view of it there.
        """
        return self._batch(packed(values, offsets), context, out)

    def writer(self, fileobj: IO[bytes], context: Buffer = b"") -> SealingWriter:
        """A file-like object that seals what is written to it, as one upload, into ``fileobj``."""
        from upseal.core.writer import SealingWriter

        bound = as_bytes(context, "context")
        session = self._take(1)
        return SealingWriter(fileobj, session.header, session.keys, bound)

    def _envelopes(self, reports: Reports, context: Buffer) -> Iterable[Packed]:
        if not reports.total:
            return ()
        if reports.total > BATCH_MAX:
            raise ValueError(f"{reports.total} reports in one call, allowed are 2^20")
        kind = self._envelope_kind
        aad = kind + as_bytes(context, "context")
        self._engine.measure(reports, self._padded)  # mistakes first: they must spend nothing
        session = self._take(reports.total)
        return self._engine.seal_envelopes(
            session.keys.report,
            urandom(NONCE),
            session.envelope_prefix,
            aad,
            reports,
            self._padded,
        )

    def _batch(
        self, reports: Reports, context: Buffer, out: bytearray | None
    ) -> bytes | memoryview:
        total = reports.total
        if not 1 <= total <= BATCH_MAX:
            raise ValueError(f"a batch has 1 to 2^20 reports, not {total}")
        if self._engine.measure(reports, self._padded) - TAG * total > BATCH_BYTES_MAX:
            raise ValueError("the reports of a batch are at most 1 GiB, padding included")
        if out is not None and not isinstance(out, bytearray):
            raise TypeError(f"out must be a bytearray, not {type(out).__name__}")
        kind, count = self._batch_kind, total.to_bytes(4, "big")
        aad = kind + bytes(4) + count + as_bytes(context, "context")
        session = self._take(total)
        nonce = urandom(NONCE)
        return self._engine.seal_batch(
            session.keys.batch,
            nonce,
            session.header + kind + nonce + count,
            aad,
            reports,
            self._padded,
            out,
        )

    def _take(self, messages: int, more: bool = False) -> Session:
        """The session for so many messages, a new one if the present one has no room or is old.

        With ``more`` it also gets some to spend without asking here.
        """
        with self._lock:
            session = self._session
            if session is None or session.ends <= seconds() or not session.take(messages):
                session = self._session = self._renew()
                session.take_alone(messages)
            if more:
                session.set_aside()
            return session

    def _renew(self, secret: bytes | None = None) -> Session:
        return Session(
            self._engine,
            self.cipher,
            self.recipients,
            self.limits,
            self._envelope_kind,
            self._padded,
            secret,
        )

    def _take_kept(self) -> tuple[Session, bytes]:
        """A session for one upload and nothing else, and its secret.

        For who seals to others what it must be able to open itself: the agent, whose own key among
        the recipients would say whose upload it is.
        """
        secret = urandom(SECRET_LEN)
        session = self._renew(secret)
        session.take_alone(1)
        return session, secret

    def __repr__(self) -> str:
        return f"<Sealer {self.cipher} to {', '.join(repr(r) for r in self.recipients)}>"


@cache
def _default_cipher() -> Cipher:
    return Cipher.parse(default_cipher())


def _check_together(recipients: Sequence[PublicKey], allow_mixed: bool) -> None:
    """Checks what more than one recipient can get wrong."""
    if len({(r.suite, r.key_id) for r in recipients}) < len(recipients):
        raise ValueError("a recipient is named twice")
    if len({r.suite.post_quantum for r in recipients}) > 1 and not allow_mixed:
        raise ValueError(
            "post-quantum and classical recipients together are only as strong as the "
            "classical ones; pass allow_mixed=True if that is meant"
        )

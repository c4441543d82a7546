# SPDX-License-Identifier: Apache-2.0
"""From a session secret to the keys of a session (docs/format.md, "Session keys").

report_key 32 | batch_key 32 | upload_key 32 | commitment 32 =
    HKDF-Expand-SHA-512(secret, "upseal/v1 keys" || SHA-512(header up to the commitment), 128)
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from hmac import compare_digest
from typing import Any

from upseal.core import header as headers
from upseal.core.header import Entry, Header
from upseal.core.keys import PublicKey
from upseal.core.options import Cipher, Limits
from upseal.core.suites import SECRET_LEN
from upseal.engine import fips, resolve
from upseal.engine.buffers import Buffer
from upseal.engine.types import Engine
from upseal.errors import OpenError

_KEYS_INFO = b"upseal/v1 keys"
_CHUNKED_INFO = b"c2sp.org/chunked-encryption@v1+"
_AEAD_NAMES = {
    Cipher.AES_256_GCM: b"AEAD_AES_256_GCM",
    Cipher.CHACHA20_POLY1305: b"AEAD_CHACHA20_POLY1305",
}
SALT = 24
_ASIDE = 64
"""How many messages are set aside at a time."""


def derive(secret: Buffer, bound: bytes, engine: Engine | None = None) -> bytearray:
    """``report_key | batch_key | upload_key | commitment``, 128 bytes, for the caller to wipe."""
    info = _KEYS_INFO + hashlib.sha512(bound).digest()
    return resolve(engine).expand(secret, info, 128)


class SessionKeys:
    """The keys of one session, for one engine: that has them, Python does not."""

    __slots__ = ("_batch", "cipher", "engine", "report")

    def __init__(self, engine: Engine, cipher: Cipher, derived: Buffer) -> None:
        """Copies what `derive` gave, so that it can be wiped."""
        self.engine = engine
        self.cipher = cipher
        self.report = engine.session_key(cipher, derived)
        """For envelopes."""
        self._batch: Any = None

    @property
    def batch(self) -> Any:
        """For the records of batches."""
        # Made when first used, without a lock: functools.cached_property has one for all sessions
        # together, which a forked child may find taken for ever. Making a key twice does no harm.
        if self._batch is None:
            self._batch = self.engine.batch_key(self.report)
        return self._batch

    def upload(self, salt: bytes, context: bytes) -> tuple[Any, bytes]:
        """The key of one upload, and its commitment (c2sp.org/chunked-encryption)."""
        info = _CHUNKED_INFO + _AEAD_NAMES[self.cipher] + b"\0" + salt + context
        return self.engine.upload_key(self.report, info)


class Session:
    """A sealer's side: a header, its keys, and how much of its life is left."""

    __slots__ = ("_aside", "_left", "ends", "envelope_prefix", "header", "keys", "seal", "spend")

    def __init__(
        self,
        engine: Engine,
        cipher: Cipher,
        recipients: Sequence[PublicKey],
        limits: Limits,
        envelope_kind: bytes,
        padded: bool,
        secret: bytes | None = None,
    ) -> None:
        """Makes a random session secret and wraps it for every recipient.

        ``secret`` is one just drawn, by a caller that keeps it beside the session; it is in no
        other session, and never stays in this object. One that is drawn here is wiped.
        """
        drawn = os.urandom(SECRET_LEN) if secret is None else secret
        try:
            entries = [Entry(r.suite, r.key_id, r.wrap(drawn)) for r in recipients]
            bound = headers.encode(cipher, entries)
            derived = derive(drawn, bound, engine)
        finally:
            if secret is None:
                engine.wipe(drawn)
        try:
            self.header = bound + bytes(derived[96:])
            self.envelope_prefix = self.header + envelope_kind
            self.keys = SessionKeys(engine, cipher, derived)
        finally:
            engine.wipe(derived)
        self.seal = engine.sealing(self.keys.report, self.envelope_prefix, padded)
        self.ends = seconds() + limits.max_age
        self._left = limits.max_messages
        self._aside: list[None] = []
        self.spend = self._aside.pop
        """Takes one of the messages set aside, without a lock: IndexError if there is none."""

    def take(self, messages: int) -> bool:
        """Takes so many messages if there is room for them. Under the sealer's lock."""
        while self._left < messages and self._aside:
            try:
                self.spend()
            except IndexError:  # another thread was quicker
                break
            self._left += 1
        if self._left < messages:
            return False
        self._left -= messages
        return True

    def take_alone(self, messages: int) -> None:
        """Takes so many messages of a new session, even if it has not as many."""
        self._left -= messages

    def set_aside(self) -> None:
        """Lets the next few messages be taken by `spend`. Under the sealer's lock.

        A lock round each message costs more than all other Python of `Sealer.seal`. A message is an
        entry of a list instead, and whoever pops it has it: CPython pops under the GIL, and in its
        free-threaded builds under a lock of the list's own. So no message is taken twice, and no
        session seals more than its limit.
        """
        several = max(0, min(self._left, _ASIDE))
        self._left -= several
        self._aside.extend([None] * several)


def open_session(engine: Engine, header: Header, secret: Buffer | None) -> SessionKeys:
    """The keys of a received session.

    Args:
        engine: opens with them.
        header: as received.
        secret: what the recipient's key unwrapped; None if it could not. The work done is the same
            in both cases, and the commitment is all that can be seen to fail.

    Raises:
        OpenError: the header, or the secret, is not what the sealer's was; or the cipher is not for
            FIPS mode, which is on.
    """
    if header.cipher is not Cipher.AES_256_GCM and fips.mode() is not None:
        from upseal.core.fips import NotApproved

        raise NotApproved
    if secret is None or len(secret) != SECRET_LEN:
        secret = os.urandom(SECRET_LEN)
    derived = derive(secret, header.bound, engine)
    try:
        if not compare_digest(derived[96:], header.commitment):
            raise OpenError
        return SessionKeys(engine, header.cipher, derived)
    finally:
        engine.wipe(derived)


def _clock() -> Callable[[], float]:
    """Seconds that pass also while the machine sleeps, where it can tell."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    return time.monotonic


seconds = _clock()

# SPDX-License-Identifier: Apache-2.0
"""Where a private key is: a file, a token (PKCS#11), or a process that keeps it.

A *key reference* names one, wherever the product takes a private key::

    /etc/upseal/server.pem                            a PEM file
    pkcs11:token=vault;object=server?module-path=...  a key in a token (RFC 7512)
    unix:/run/upseal/keys.sock                        the key that `upseal keys serve` keeps there
    unix:/run/upseal/keys.sock#0123456789abcdef       the one of that id, if it keeps several
"""

from __future__ import annotations

import os
import re
import threading
import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from upseal.core.forks import renew_in_children
from upseal.core.keys import PrivateKey, PublicKey
from upseal.core.known import KeyOpener
from upseal.errors import KeyUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "HeldKey",
    "KeyUnavailable",
    "LazyKey",
    "is_reference",
    "kept_elsewhere",
    "open_key",
    "open_keys",
]

PIN = "UPSEAL_PASSPHRASE"
"""The environment's PIN of a token whose reference has no ``pin-source``."""
_FILE_MAX = 1 << 16
_PAUSE = 1.0
"""Seconds after a key was not found in which it is not looked for."""
_KEY_ID = re.compile(r"[0-9a-f]{16}")


@runtime_checkable
class HeldKey(KeyOpener, Protocol):
    """A private key that is kept elsewhere. Safe to share between threads, and usable after a fork.

    Both methods raise `KeyUnavailable` when it cannot be used at the moment.
    """

    @property
    def public_key(self) -> PublicKey:
        """Its public half."""

    def answer_challenge(self, sealed: bytes) -> bytes:
        """Proof that it is there, as `upseal.fleet.readiness.answer_challenge` gives it.

        Raises:
            upseal.fleet.readiness.BadChallenge: it was not made for this key.
        """


def is_reference(text: str) -> bool:
    """Whether it names a key that is in no file."""
    return text.startswith(("unix:", "pkcs11:"))


def open_keys(
    reference: str, *, passphrase: str | bytes | None = None
) -> list[PrivateKey | HeldKey]:
    """The keys that a reference names: one, or all of a process's.

    Args:
        reference: see above.
        passphrase: of an encrypted file; of a token whose reference has no ``pin-source``, its PIN.

    Raises:
        ValueError: the reference, or what it names, is not one for upseal.
        TypeError: a file is encrypted and no passphrase was given, or the other way round.
        OSError: the file cannot be read.
        KeyUnavailable: the token or process cannot be used at the moment.
        ImportError: the package it needs is not installed.
    """
    if reference.startswith("pkcs11:"):
        from upseal.integrations.pkcs11 import Pkcs11Key

        return [Pkcs11Key(reference, pin=passphrase)]
    if reference.startswith("unix:"):
        from upseal.integrations.keyprocess import KeyProcess

        address, _, wanted = reference.partition("#")
        if wanted and not _KEY_ID.fullmatch(wanted):
            raise ValueError(
                f"what stands behind # is no key id of 16 hexadecimal digits: {wanted}"
            )
        found = KeyProcess(address).keys()
        if wanted:
            found = [key for key in found if key.key_id.hex() == wanted]
            if not found:
                raise ValueError(f"the key process at {address} has no key {wanted}")
        return list(found)
    with open(reference, "rb") as file:
        data = file.read(_FILE_MAX + 1)
    if len(data) > _FILE_MAX:
        raise ValueError("the file is far too long for a key")
    return [PrivateKey.from_pem(data, passphrase)]


def open_key(reference: str, *, passphrase: str | bytes | None = None) -> PrivateKey | HeldKey:
    """The one key that a reference names. It goes into `upseal.Opener` as it is.

    ``upseal.Opener([open_key("unix:/run/upseal/keys.sock")])``

    Args:
        reference: see above.
        passphrase: as `open_keys`.

    Raises:
        ValueError: as `open_keys`; also where a process has several keys and none is named.
        TypeError, OSError, KeyUnavailable, ImportError: as `open_keys`.
    """
    found = open_keys(reference, passphrase=passphrase)
    if len(found) != 1:
        ids = ", ".join(key.key_id.hex() for key in found)
        raise ValueError(f"{reference} names {len(found)} keys; add # and one of: {ids}")
    return found[0]


def kept_elsewhere(data: bytes) -> LazyKey:
    """The key that a ``.ref`` file means: its reference in the first line, then the public key.

    Raises:
        ValueError: that is not what it has.
    """
    line, _, rest = data.partition(b"\n")
    reference = line.decode("utf-8").strip()
    if not is_reference(reference):
        raise ValueError("its first line is no reference to a key: unix:... or pkcs11:...")
    return LazyKey(
        reference, PublicKey.from_pem(rest), passphrase=lambda: os.environ.get(PIN) or None
    )


class LazyKey:
    """A key whose public half is known: it is looked for when it is first used.

    So a server starts, and knows what is sealed to it, while the token or process is away.
    """

    def __init__(
        self,
        reference: str,
        public_key: PublicKey,
        *,
        passphrase: Callable[[], str | bytes | None] = lambda: None,
    ) -> None:
        """Looks for nothing yet.

        Args:
            reference: as `open_keys` takes it; a process may have others besides.
            public_key: of the key that is meant.
            passphrase: gives what `open_keys` takes.
        """
        self._reference, self.public_key, self._passphrase = reference, public_key, passphrase
        self.suite, self.key_id = int(public_key.suite), public_key.key_id
        self._found: PrivateKey | HeldKey | None = None
        self._why, self._again = "", 0.0
        self._lock = threading.Lock()
        renew_in_children(self)

    unwraps_afresh = True
    """All keys that `open_keys` finds do: see `upseal.core.known.KeyOpener`."""

    def after_fork(self) -> None:
        """For the child of a fork: a lock of its own."""
        self._lock = threading.Lock()

    def unwrap(self, wrapped: bytes) -> bytes:
        """See `upseal.core.known.KeyOpener`.

        Raises:
            ValueError: it was not wrapped for this key.
            KeyUnavailable: it cannot be used at the moment.
        """
        return self._key().unwrap(wrapped)

    def answer_challenge(self, sealed: bytes) -> bytes:
        """See `HeldKey`."""
        key = self._key()
        if isinstance(key, PrivateKey):
            from upseal.fleet.readiness import answer_challenge

            return answer_challenge(key, sealed)
        return key.answer_challenge(sealed)

    def _key(self) -> PrivateKey | HeldKey:
        if self._found is None:
            with self._lock:
                if self._found is None:
                    self._found = self._look_seldom()
        return self._found

    def _look_seldom(self) -> PrivateKey | HeldKey:
        """Who waited for the lock meanwhile has the same answer: a process may hang for seconds."""
        if time.monotonic() < self._again:
            raise KeyUnavailable(self._why)
        try:
            return self._look()
        except KeyUnavailable as error:
            self._why, self._again = str(error), time.monotonic() + _PAUSE
            raise

    def _look(self) -> PrivateKey | HeldKey:
        """None of what may go wrong depends on what is to be opened."""
        try:
            keys = open_keys(self._reference, passphrase=self._passphrase())
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise KeyUnavailable(f"{self._reference} cannot be used: {error}") from error
        for key in keys:
            if key.public_key == self.public_key:
                return key
        raise KeyUnavailable(f"{self._reference} does not have the key {self.key_id.hex()}")

    def __repr__(self) -> str:
        return f"<LazyKey {self.public_key.name} {self.key_id.hex()} at {self._reference}>"

# SPDX-License-Identifier: Apache-2.0
"""What an `Opener` has: keys, the sessions it remembers, and the way it opened the last report."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from upseal.core.bodies import check_envelope
from upseal.core.session import SessionKeys
from upseal.engine.buffers import Buffer
from upseal.errors import OpenError


@runtime_checkable
class KeyOpener(Protocol):
    """What an `Opener` needs of a key: a `PrivateKey`, an HSM, or a process that keeps the key.

    What `unwrap` raises says that the secret was not wrapped for this key, with one exception:
    `KeyUnavailable` says that the key cannot be used now, whatever the data are, and goes through
    to the caller. Raise it for what cannot depend on the bytes to be unwrapped alone: whoever may
    send data would else learn from it how unwrapping fails, and could keep his data from ever being
    settled. A token's error is of that kind only if it also fails on bytes of your own.

    It may have ``unwraps_afresh``: True says that what `unwrap` gives are ``bytes`` that nobody
    else has or will ever get, so that the opener can wipe them.
    """

    @property
    def suite(self) -> int:
        """The suite's number (docs/format.md)."""

    @property
    def key_id(self) -> bytes:
        """8 bytes."""

    def unwrap(self, wrapped: bytes) -> bytes:
        """The 32-byte session secret, or any exception: see above."""


KeySet: TypeAlias = dict[tuple[int, bytes], KeyOpener]


class Sessions(NamedTuple):
    """How an opener's memory of sessions does."""

    remembered: int
    """Now."""
    opened: int
    """So far: each was a public-key operation."""
    known: int
    """So far: how often one was looked for and was remembered. Envelopes that follow one of their
    own session are not looked for."""


class Known(NamedTuple):
    """A session whose commitment held."""

    keys: SessionKeys
    opened_by: tuple[int, bytes]
    """Suite and id of the key that unwrapped it."""


class Route(NamedTuple):
    """How to open envelopes that begin with ``prefix``."""

    prefix: bytes
    """Header and kind."""
    kind: bytes
    padded: bool
    key: Any
    """The engine's."""
    key_set: KeySet
    """The opener's keys when this was found: void once they change."""

    def error(self, envelope: Buffer) -> OpenError:
        """Why an envelope of this route does not open."""
        try:
            check_envelope(len(memoryview(envelope)), len(self.prefix) - 1, self.padded)
        except OpenError as error:
            return error
        return OpenError()

# SPDX-License-Identifier: Apache-2.0
"""Whether the parts of a manifest go together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING

from upseal.fleet.manifest_claims import ManifestError

if TYPE_CHECKING:
    from upseal.fleet.manifest import EncryptionKey, Manifest, RelayEntry


def check_consistency(manifest: Manifest) -> None:
    """Refuses a manifest that contradicts itself.

    Raises:
        ManifestError: what is wrong.
    """
    state = manifest.state
    _check(manifest.serial >= 1, "the serial begins at 1")
    _check(manifest.expires > manifest.issued, "it expires before it is issued")
    _check(bool(manifest.encryption) == state.active, f"{state.value}, with or without active keys")
    _check(
        bool(manifest.pending) == state.has_pending, f"{state.value}, with or without a next key"
    )
    _check(manifest.oldest_generation <= manifest.generation, "all generations would be retired")
    _check(bool(manifest.receipt_keys), "there is no receipt key")
    _check(bool(manifest.signing_keys), "nobody could sign the next one")
    _distinct((key.key_id for key in manifest.signing_keys), "signing keys")
    _distinct((key.key_id for key in manifest.receipt_keys), "receipt keys")
    _distinct((relay.relay for relay in manifest.relays), "relays")
    _check(all(serial >= 0 for serial in manifest.revoked_certificates), "a serial below 0")
    for signer in manifest.signing_keys:
        # Else a server that is broken into could sign manifests with what it signs receipts with.
        _check(signer not in manifest.receipt_keys, "a signing key signs receipts as well")
    for keys in (manifest.encryption, manifest.pending):
        _check_recipients(keys, manifest.generation)
    manifest.enrolment.public()
    for relay in manifest.relays:
        _check_relay(relay)


def _check_recipients(keys: tuple[EncryptionKey, ...], newest: int) -> None:
    """Keys that would be recipients of one session."""
    _distinct((key.key_id for key in keys), "encryption keys")
    _check(all(key.generation <= newest for key in keys), "a key of a generation not made yet")
    strengths = {key.public().suite.post_quantum for key in keys}
    _check(len(strengths) < 2, "a post-quantum key beside a classical one, which undoes it")


def _check_relay(relay: RelayEntry) -> None:
    _check(relay.relay == relay.identity.agent_id, "a relay's id is not that of its key")
    _check(relay.name.isprintable(), "a relay's name cannot be shown")
    _check(relay.decrypts or not relay.keys, "a relay that does not decrypt has keys")
    _distinct((key.key_id for key in relay.keys), "keys of a relay")
    generations = [key.generation for key in relay.keys]
    _check(
        generations == sorted(generations, reverse=True), "a relay's keys: the newest goes first"
    )


def _distinct(values: Iterable[Hashable], what: str) -> None:
    every = list(values)
    _check(len(set(every)) == len(every), f"{what}: one of them twice")


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ManifestError(f"a manifest that contradicts itself: {what}")

# SPDX-License-Identifier: Apache-2.0
"""Who must have the key in question, and whether that is proven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from upseal.core.keys import PublicKey
from upseal.fleet.manifest import Manifest, RelayEntry
from upseal.fleet.server.settings import FIPS_KINDS
from upseal.fleet.server.store import challenges, relays
from upseal.fleet.server.store.challenges import SERVER


@dataclass(frozen=True)
class Holder:
    """Who must have the new key, and whether that is proven."""

    id: str
    """``server``, or the relay's id in hexadecimal."""
    name: str
    generation: int
    public: PublicKey | None
    """None: it has announced none yet."""
    proven: int | None
    """When it answered, in unix milliseconds."""
    why: str = ""
    """Why it is not ready."""
    usable: bool = True
    """False: its key is of a kind that cannot be used here."""

    @property
    def ready(self) -> bool:
        """Whether nothing stands in the way of its key."""
        return not self.why

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {
            "holder": self.id,
            "name": self.name,
            "generation": self.generation,
            "key_id": self.public.key_id.hex() if self.public is not None else None,
            "ready": self.ready,
            "proven": self.proven,
            "why": self.why or None,
        }


def holders(db: Connection, manifest: Manifest, since: int, *, fips: bool) -> list[Holder]:
    """The server and the decrypting relays that need the key in question.

    That is the pending one; or, where none is pending, the present one, for relays that came
    later. Only proofs since ``since`` count.
    """
    found = []
    if manifest.pending:
        key = manifest.pending[0]
        found.append(_proven(db, SERVER, "the server", key.generation, key.public(), since))
        beside, generation = key.public(), key.generation
    elif manifest.encryption:
        beside, generation = manifest.encryption[0].public(), manifest.encryption[0].generation
    else:
        return []
    for entry in manifest.relays:
        have = any(key.generation == generation for key in entry.keys)
        if entry.decrypts and not have:
            found.append(_relay(db, entry, generation, beside, since, fips))
    return found


def _relay(
    db: Connection,
    entry: RelayEntry,
    generation: int,
    beside: PublicKey,
    since: int,
    fips: bool,
) -> Holder:
    holder = entry.relay.hex()
    row = relays.find_key(db, entry.relay, generation)
    if row is None:
        why = f"it has announced no key of generation {generation} (is it running?)"
        return Holder(holder, entry.name, generation, None, None, why)
    why = ""
    try:
        public = PublicKey.from_pem(row.spki.encode())
    except ValueError:
        why = "what it announced is no public key"
        return Holder(holder, entry.name, generation, None, None, why, usable=False)
    if public.suite.post_quantum != beside.suite.post_quantum:
        # An agent seals to both, and a session is as strong as its weakest recipient.
        why = f"its key is {public.name}, which cannot stand beside the server's {beside.name}"
    elif fips and public.name not in FIPS_KINDS:
        why = f"its key is {public.name}, which is not for FIPS"
    if why:
        return Holder(holder, entry.name, generation, public, None, why, usable=False)
    return _proven(db, holder, entry.name, generation, public, since)


def _proven(
    db: Connection, holder: str, name: str, generation: int, public: PublicKey, since: int
) -> Holder:
    found = [
        challenge
        for challenge in challenges.find(db, holder, generation)
        if challenge.key_id == public.key_id
    ]
    if not found:
        return Holder(holder, name, generation, public, None, "it was not asked yet")
    answered = found[0].answered
    if answered is None:
        return Holder(holder, name, generation, public, None, "it has not answered (is it up?)")
    why = "its proof is too old" if answered < since else ""
    return Holder(holder, name, generation, public, answered, why)

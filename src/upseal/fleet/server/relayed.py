# SPDX-License-Identifier: Apache-2.0
"""What decrypting relays say of their keys: announced, challenged, proved. All signed by them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from upseal.core.keys import PublicKey
from upseal.fleet import jws
from upseal.fleet.encoding import b64url, from_b64url
from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.identity import VerifyKey
from upseal.fleet.manifest import Manifest
from upseal.fleet.server.store import Store, challenges, now_ms, relays

STATEMENT_MAX = 16 << 10
_SKEW_MS = 300_000
_GENERATION_MAX = 2**31 - 1
_log = logging.getLogger("upseal.server.relays")


class Relayed:
    """Safe to share between threads."""

    def __init__(self, store: Store, manifest: Callable[[], Manifest | None]) -> None:
        """Hears nothing yet."""
        self._store = store
        self._manifest = manifest

    def key(self, token: bytes) -> dict[str, Any]:
        """A relay announces a key it has made."""
        relay, generation, claims = self._verified(token)
        pem = claims.get("public_key")
        try:
            if not isinstance(pem, str):
                raise ValueError
            public = PublicKey.from_pem(pem.encode())
        except ValueError:
            raise Problem("malformed", "this is no public key") from None
        manifest = self._manifest()
        if manifest is not None and generation < manifest.oldest_generation:
            raise Problem("stale-key", "this generation is retired")
        now = now_ms()
        with self._store.writing() as db:
            taken = relays.put_key(
                db, relay=relay, generation=generation, key_id=public.key_id,
                spki=public.to_pem().decode(), received=now,
            )  # fmt: skip
            relays.seen(db, relay, now)
        if not taken:
            raise Problem("conflict", "another key of this generation is proved already")
        event(_log, "relay key announced", relay=relay.hex(), generation=generation,
              key_id=public.key_id.hex())  # fmt: skip
        return {"key_id": public.key_id.hex()}

    def challenge(self, token: bytes) -> dict[str, Any]:
        """The challenge that the administrator has posed to it, if there is one."""
        relay, generation, _ = self._verified(token)
        now = now_ms()
        with self._store.reading() as db:
            posed = [
                one
                for one in challenges.unanswered(db, relay.hex(), now)
                if one.generation == generation
            ]
        if not posed:
            return {}
        newest = max(posed, key=lambda one: one.created)
        return {"challenge": b64url(newest.challenge), "key_id": newest.key_id.hex()}

    def answer(self, token: bytes) -> dict[str, Any]:
        """A relay answers its challenge: once."""
        relay, generation, claims = self._verified(token)
        try:
            given = from_b64url(claims.get("answer", ""), 32)
        except (ValueError, TypeError):
            raise Problem("malformed", "an answer has 32 bytes") from None
        now = now_ms()
        with self._store.writing() as db:
            proved = challenges.answer(db, relay.hex(), generation, given, now)
            if proved is not None:
                relays.set_ready(db, relay, generation, proved, now)
                relays.seen(db, relay, now)
        if proved is None:
            raise Problem("conflict", "no open challenge has this answer")
        event(_log, "relay is ready", relay=relay.hex(), generation=generation)
        return {"ready": True, "key_id": proved.hex()}

    def _verified(self, token: bytes) -> tuple[bytes, int, Mapping[str, Any]]:
        """Relay, generation and all that it has signed, not long ago."""
        try:
            key = self._identity(jws.header(token).get("kid"))
            claims = jws.verify(token, key, jws.RELAY)
            relay, generation, t = (claims.get(n) for n in ("relay", "generation", "t"))
        except (ValueError, KeyError, TypeError):
            raise Problem("malformed", "not what a relay signs") from None
        if relay != key.agent_id.hex():
            raise Problem("malformed", "signed by another relay")
        if type(generation) is not int or not 0 <= generation <= _GENERATION_MAX:
            raise Problem("malformed", "there is no such generation")
        if type(t) is not int:
            raise Problem("malformed", "it does not say when it was signed")
        if abs(t - now_ms()) > _SKEW_MS:
            raise Problem("clock")
        return key.agent_id, generation, claims

    def _identity(self, kid: object) -> VerifyKey:
        """A relay's identity key: of the manifest, or of one that has enrolled."""
        manifest = self._manifest()
        revoked = manifest.revoked_agents if manifest is not None else frozenset()
        listed = [] if manifest is None else [entry.identity for entry in manifest.relays]
        for key in listed:
            if key.key_id.hex() == kid:
                break
        else:
            with self._store.reading() as db:
                found = relays.by_key_id(db, bytes.fromhex(str(kid)))
            if found is None:
                raise Problem("not-enrolled", "no relay of this deployment has this key")
            key = VerifyKey.from_der(found.identity)
        if key.agent_id in revoked:
            raise Problem("revoked")
        return key

# SPDX-License-Identifier: Apache-2.0
"""A decrypting relay gets ready: makes the key of each generation, announces it, proves it.

What it says goes up through all relays above, signed by its identity key. No private key is sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from upseal.errors import KeyUnavailable
from upseal.fleet import jws
from upseal.fleet.encoding import b64url, from_b64url, load_object
from upseal.fleet.http.client import Response, Unreachable
from upseal.fleet.http.logs import event
from upseal.fleet.http.problems import Problem
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import EncryptionKey, Manifest
from upseal.fleet.readiness import BadChallenge, answer_challenge
from upseal.fleet.relay.keys import RelayKey, RelayKeys

_log = logging.getLogger(__name__)
_ANNOUNCED_AGAIN = 60.0
"""Seconds after which a key is announced again that the manifest does not name yet."""


class Post(Protocol):
    """Part of `Uplink`."""

    def __call__(self, path: str, body: bytes, *, kind: str = ...) -> Response:
        """Posts."""


class Proving:
    """What there is to say about keys. One thread at a time."""

    def __init__(
        self,
        identity: SigningKey,
        keys: RelayKeys,
        post: Post,
        now_ms: Callable[[], int],
        *,
        decrypting: bool,
    ) -> None:
        self._identity, self._keys, self._post, self._now_ms = identity, keys, post, now_ms
        self._decrypting = decrypting
        self._announced: dict[bytes, float] = {}
        self._answered: dict[int, int] = {}
        self._refused: set[tuple[int, str]] = set()

    @property
    def answered(self) -> dict[int, int]:
        """Generations for which a challenge was answered well, and when (unix milliseconds)."""
        return dict(self._answered)

    def look(self, manifest: Manifest) -> None:
        """Does what the newest manifest asks for.

        Raises:
            Unreachable: the parent is away; it is tried again with the next look.
        """
        self._keys.retire(manifest.oldest_generation)
        if not self._decrypting:
            return
        entry = manifest.relay(self._identity.public.agent_id)
        certified = {key.key_id for key in entry.keys} if entry is not None else set()
        for wanted in _wanted(manifest):
            if wanted.generation < manifest.oldest_generation:
                continue
            key = self._keys.make(wanted.generation, wanted.public().name)
            if key.key_id in certified:
                continue
            try:
                self._announce(wanted.generation, key)
                self._prove(wanted.generation, key)
            except Problem as problem:
                self._announced.pop(key.key_id, None)
                if (wanted.generation, problem.name) not in self._refused:
                    self._refused.add((wanted.generation, problem.name))
                    event(
                        _log,
                        "relay key not taken",
                        level=logging.WARNING,
                        generation=wanted.generation,
                        problem=problem.name,
                        detail=problem.detail,
                    )

    def _announce(self, generation: int, key: RelayKey) -> None:
        """Tells the server of a key. Again after a while: who lost it gets it back so."""
        now = time.monotonic()
        if now - self._announced.get(key.key_id, -_ANNOUNCED_AGAIN) < _ANNOUNCED_AGAIN:
            return
        self._say("key", generation, public_key=key.public_key.to_pem().decode())
        if key.key_id not in self._announced:
            event(_log, "announced a key", generation=generation, key_id=key.key_id.hex())
        self._announced[key.key_id] = now
        self._refused = {refused for refused in self._refused if refused[0] != generation}

    def _prove(self, generation: int, key: RelayKey) -> None:
        """Answers the challenge, if one is posed."""
        posed = self._say("challenge", generation)
        sealed = posed.get("challenge")
        if not isinstance(sealed, str):
            return
        if posed.get("key_id") != key.key_id.hex():
            event(_log, "challenge to a key that is not ours", level=logging.WARNING)
            self._announced.pop(key.key_id, None)
            return
        try:
            answer = answer_challenge(key, from_b64url(sealed))
        except KeyUnavailable as error:  # it is posed again
            event(_log, "key not available", level=logging.WARNING, why=str(error))
            return
        except (BadChallenge, ValueError):
            event(_log, "challenge does not open", level=logging.WARNING, generation=generation)
            return
        self._say("answer", generation, answer=b64url(answer))
        self._answered[generation] = self._now_ms()
        event(_log, "challenge answered", generation=generation, key_id=key.key_id.hex())

    def _say(self, what: str, generation: int, **more: Any) -> dict[str, Any]:
        claims = {
            "relay": self._identity.public.agent_id.hex(),
            "generation": generation,
            "t": self._now_ms(),
            **more,
        }
        token = jws.sign(claims, self._identity, jws.RELAY)
        response = self._post(f"/v1/relay/{what}", token.encode(), kind="text/plain")
        try:
            return load_object(response.body)
        except ValueError:
            raise Unreachable("the answer is not JSON") from None


def _wanted(manifest: Manifest) -> list[EncryptionKey]:
    """The server's keys beside which there must be one of ours: of the same generation and kind."""
    return [keys[0] for keys in (manifest.encryption, manifest.pending) if keys]

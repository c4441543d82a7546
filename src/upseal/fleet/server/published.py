# SPDX-License-Identifier: Apache-2.0
"""What the server says to anybody who asks: the manifests, and its own capabilities."""

from __future__ import annotations

import hashlib
import threading

from sqlalchemy import Connection

from upseal.fleet import jws
from upseal.fleet.identity import SigningKey
from upseal.fleet.manifest import Manifest
from upseal.fleet.server.store import manifests

_MANIFEST_MAX = 64 << 20
_LIFE_MS = 3_600_000
_RENEWED_MS = 600_000


class Published:
    """Safe to share between threads. Who reads costs the store nothing."""

    def __init__(self, receipt_key: SigningKey) -> None:
        """Has nothing before the first `refresh`."""
        self._receipt_key = receipt_key
        self._chain: tuple[manifests.Stored, ...] = ()
        self._etag = ""
        self._capabilities: tuple[int, str, int] | None = None
        self._lock = threading.Lock()
        self.manifest: Manifest | None = None
        """The newest."""

    def refresh(self, db: Connection) -> bool:
        """Looks for a newer manifest; True if there is one.

        Raises:
            ValueError: what the administrator wrote is no manifest.
        """
        newest = manifests.newest_serial(db)
        if newest is None or (self._chain and newest <= self._chain[-1].serial):
            return False
        chain = tuple(manifests.chain(db, -1))
        manifest = read_manifest(chain[-1].jws)
        digest = hashlib.sha256(chain[-1].jws.encode()).hexdigest()[:16]
        with self._lock:
            self._chain = chain
            self.manifest = manifest
            self._etag = f"{manifest.serial}-{digest}"
        return True

    def chain(self, since: int) -> tuple[str, bytes] | None:
        """ETag, and the manifests that lead from that serial to the newest, one a line."""
        with self._lock:
            chain, etag = self._chain, self._etag
        if not chain:
            return None
        lines = [one.jws for one in chain[:-1] if one.serial > since] + [chain[-1].jws]
        return etag, "".join(line + "\n" for line in lines).encode()

    def capabilities(self, now_ms: int) -> tuple[str, bytes] | None:
        """ETag, and what this server takes, signed by its receipt key."""
        with self._lock:
            manifest, made = self.manifest, self._capabilities
            if manifest is None:
                return None
            if (
                made is None
                or made[0] != manifest.serial
                or not made[2] <= now_ms < made[2] + _RENEWED_MS
            ):
                claims = {
                    "sub": "server",
                    "accepts_sealed": True,
                    "accepts_clear": True,
                    "decrypts": True,
                    "key_ids": [key.key_id.hex() for key in manifest.encryption],
                    "serial": manifest.serial,
                    "iat": now_ms,
                    "exp": now_ms + _LIFE_MS,
                    "parent": None,
                }
                token = jws.sign(claims, self._receipt_key, jws.CAPABILITIES)
                made = self._capabilities = (manifest.serial, token, now_ms)
        return f"{made[0]}-{made[2]}", made[1].encode()


def read_manifest(token: str) -> Manifest:
    """A manifest from the store: the administrator's word, which agents verify and we repeat.

    Raises:
        ValueError: it is none.
    """
    key = jws.key_in(token, limit=_MANIFEST_MAX)
    return Manifest.from_claims(jws.verify(token, key, jws.MANIFEST, limit=_MANIFEST_MAX))

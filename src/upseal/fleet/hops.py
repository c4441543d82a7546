# SPDX-License-Identifier: Apache-2.0
"""Who asks at a hop: a credential, and a proof for each request.

The credential is the server's word that a hop key belongs to this deployment. It does not say whose
it is: a relay learns that the same somebody asks, and not who. The proof is made by the hop key for
one method, path, body and time, so a credential that was overheard is good for nothing, and a proof
only for the same request again, which changes nothing there.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from upseal.core.forks import renew_in_children
from upseal.fleet import jws
from upseal.fleet.encoding import b64url
from upseal.fleet.identity import SigningKey, VerifyKey
from upseal.fleet.jws import JwsError
from upseal.fleet.manifest import Manifest
from upseal.fleet.manifest_claims import Reader

AUTHORIZATION = "Authorization"
PROOF = "Upseal-Proof"
SCHEME = "Upseal"
SKEW_MS = 5 * 60_000
"""How far a caller's clock may be off."""
CREDENTIAL_MAX = 4096
PROOF_MAX = 4096
_CACHE = 65536

Role = Literal["agent", "relay"]
RefusedName = Literal["unauthenticated", "clock", "revoked", "parent-away"]


class HopRefused(Exception):  # noqa: N818 - what happened
    """The request is not to be looked at any further.

    ``problem`` is the problem's name: ``unauthenticated``; ``clock`` (right but for its time);
    ``revoked``; ``parent-away`` (there is no manifest here yet to judge it by).
    """

    def __init__(self, problem: RefusedName) -> None:
        super().__init__(problem)
        self.problem: RefusedName = problem


class Hop(NamedTuple):
    """Who asks."""

    hop_id: bytes
    """16 bytes."""
    role: Role


class _Known(NamedTuple):
    """A credential that verified."""

    hop: Hop
    key: VerifyKey
    issuer: VerifyKey


def issue_credential(
    deployment: bytes, hop: VerifyKey, role: Role, receipt_key: SigningKey, now_ms: int
) -> str:
    """The server's word that this hop key is one of the deployment's."""
    claims = {
        "dep": deployment.hex(),
        "hop": hop.agent_id.hex(),
        "jwk": hop.jwk(),
        "role": role,
        "iat": now_ms,
    }
    return jws.sign(claims, receipt_key, jws.HOP)


def prove(
    credential: str, hop_key: SigningKey, method: str, path: str, body: bytes, now_ms: int
) -> dict[str, str]:
    """The headers of one request.

    Args:
        credential: the server's.
        hop_key: the one in it.
        method: ``POST``.
        path: of the request, without host and query.
        body: of the request.
        now_ms: unix time, as the other side has it.
    """
    claims = {
        "m": method,
        "p": path,
        "t": now_ms,
        "b": b64url(hashlib.sha256(body).digest()),
    }
    return {
        AUTHORIZATION: f"{SCHEME} {credential}",
        PROOF: jws.sign(claims, hop_key, jws.PROOF),
    }


class HopCheck:
    """Says who asks, for one public-key operation a request. Safe for threads.

    A second one checks a credential that was not seen before, and only if it was issued is the
    proof looked at as well: a stranger causes one.

    Args:
        manifest_source: gives the manifest that counts, or None as long as there is none.
        cache: how many verified credentials to remember.
    """

    def __init__(self, manifest_source: Callable[[], Manifest | None], cache: int = _CACHE) -> None:
        self._source = manifest_source
        self._size = cache
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.Lock()
        renew_in_children(self)

    def after_fork(self) -> None:
        """For the child of a fork: a lock of its own."""
        self._lock = threading.Lock()

    def check(
        self, headers: Mapping[str, str], method: str, path: str, body_digest: bytes, now_ms: int
    ) -> Hop:
        """Who asks.

        Args:
            headers: of the request; names in any case, as ASGI frameworks have them.
            method: of the request.
            path: of the request, without query.
            body_digest: SHA-256 of the body.
            now_ms: unix time.

        Raises:
            HopRefused: nobody who may.
        """
        manifest = self._source()
        if manifest is None:
            raise HopRefused("parent-away")
        scheme, _, credential = _header(headers, AUTHORIZATION).partition(" ")
        proof = _header(headers, PROOF)
        if scheme.lower() != SCHEME.lower() or len(credential) > CREDENTIAL_MAX:
            raise HopRefused("unauthenticated")
        known = self._credential(credential, manifest)
        # Before any public-key operation that the caller could make us pay for.
        if known.hop.hop_id in manifest.revoked_agents:
            raise HopRefused("revoked")
        try:
            claims = jws.verify(proof, known.key, jws.PROOF, limit=PROOF_MAX)
        except JwsError:
            raise HopRefused("unauthenticated") from None
        when = claims.get("t")
        if (
            claims.get("m") != method
            or claims.get("p") != path
            or claims.get("b") != b64url(body_digest)
            or not isinstance(when, int)
            or isinstance(when, bool)
            or len(claims) != 4
        ):
            raise HopRefused("unauthenticated")
        if abs(when - now_ms) > SKEW_MS:
            raise HopRefused("clock")
        return known.hop

    def remembered(self, authorization: str) -> Hop | None:
        """Whose credential that header shows, if it verified before and still counts.

        It costs no public-key operation, and proves nothing: others may have overheard it.
        """
        known = self._known.get(authorization.partition(" ")[2])
        manifest = self._source() if known is not None else None
        if known is None or manifest is None or known.issuer not in manifest.receipt_keys:
            return None
        return None if known.hop.hop_id in manifest.revoked_agents else known.hop

    def _credential(self, credential: str, manifest: Manifest) -> _Known:
        with self._lock:
            known = self._known.get(credential)
            if known is not None:
                self._known.move_to_end(credential)
        if known is not None:
            if known.issuer in manifest.receipt_keys:
                return known
            with self._lock:  # its issuer does not count any more
                self._known.pop(credential, None)
            raise HopRefused("unauthenticated")
        try:
            known = _verified(credential, manifest)
        except ValueError:
            raise HopRefused("unauthenticated") from None
        with self._lock:
            self._known[credential] = known
            while len(self._known) > self._size:
                self._known.popitem(last=False)
        return known


def _verified(credential: str, manifest: Manifest) -> _Known:
    """A credential, verified; `ValueError` otherwise."""
    keys = manifest.receivers()
    claims = jws.verify(credential, keys, jws.HOP, limit=CREDENTIAL_MAX)
    reader = Reader(claims, "a credential")
    key = reader.key("jwk")
    role: Any = reader.value("role")
    reader.number("iat", 2**53)
    if (
        reader.hex("dep", 16) != manifest.deployment
        or reader.hex("hop", 16) != key.agent_id
        or role not in ("agent", "relay")
    ):
        raise ValueError("not a credential of this deployment")
    reader.finish()
    issuer = keys[jws.header(credential, limit=CREDENTIAL_MAX)["kid"]]
    return _Known(Hop(key.agent_id, role), key, issuer)


def _header(headers: Mapping[str, str], name: str) -> str:
    return headers.get(name) or headers.get(name.lower()) or ""

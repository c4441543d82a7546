# SPDX-License-Identifier: Apache-2.0
"""Signed claims: compact JWS (RFC 7515) by ``joserfc``, with the choices taken out.

The algorithm follows from the key that is known beforehand, never from the message. Each purpose
has a ``typ`` of its own, ``kid`` must name the key, and no other header member is understood: so
nothing signed for one thing is taken for another, and ``crit``, ``b64`` or ``jku`` are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from joserfc import jws as jose
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey

from upseal.fleet.encoding import dump_json, from_b64url, load_object
from upseal.fleet.identity import SigningKey, VerifyKey

MANIFEST = "upseal-manifest+jwt"
CAPABILITIES = "upseal-capabilities+jwt"
ENROL = "upseal-enrol+jwt"
ENROLLED = "upseal-enrolled+jwt"
HOP = "upseal-hop+jwt"
PROOF = "upseal-proof+jwt"
RELAY = "upseal-relay+jwt"

SIZE_MAX = 1 << 20
"""Longest token unless the caller says otherwise."""
_HEADER_MAX = 1024
_SIGNATURE_TEXT = 86  # 64 bytes in base64url
_MEMBERS = frozenset({"alg", "typ", "kid", "jwk"})


class JwsError(ValueError):
    """Not a token, not for this purpose, or not signed by the key."""


def sign(claims: Mapping[str, Any], key: SigningKey, typ: str, include_key: bool = False) -> str:
    """Claims, signed.

    Args:
        claims: what JSON can say.
        key: its id becomes ``kid``.
        typ: what it is for.
        include_key: put the public key into the header, for whoever knows its fingerprint alone.

    Raises:
        ValueError: the claims are not for JSON.
    """
    head: dict[str, Any] = {
        "alg": key.algorithm, "typ": typ, "kid": key.public.key_id.hex(),
    }  # fmt: skip
    if include_key:
        head["jwk"] = key.public.jwk()
    payload = dump_json(dict(claims))
    return jose.serialize_compact(
        head, payload, _private(key), registry=_registry(key.algorithm, 4 * len(payload))
    )


def verify(
    token: str | bytes,
    keys: VerifyKey | Mapping[str, VerifyKey],
    typ: str,
    *,
    limit: int = SIZE_MAX,
) -> dict[str, Any]:
    """The claims of a token that one of these keys has signed for this purpose.

    Args:
        token: from anywhere.
        keys: the one key, or keys by their id in hex, of which ``kid`` selects one.
        typ: what it must be for.
        limit: longest token, in bytes.

    Raises:
        JwsError: it is anything else.
    """
    raw = _raw(token, limit)
    head = _header(raw)
    kid = head["kid"]
    key = keys if isinstance(keys, VerifyKey) else keys.get(kid)
    if key is None or key.key_id.hex() != kid:
        raise JwsError("signed by none of the keys that count")
    if head["alg"] != key.algorithm:
        raise JwsError("its algorithm is not the key's")
    if head["typ"] != typ:
        raise JwsError(f"not of the type {typ}")
    if "jwk" in head and head["jwk"] != key.jwk():
        raise JwsError("the key in its header is not the one that signed it")
    try:
        found = jose.deserialize_compact(raw, _public(key), registry=_registry(head["alg"], limit))
    except (JoseError, ValueError, TypeError):  # TypeError: a header of an unexpected shape
        raise JwsError("its signature does not verify") from None
    try:
        return load_object(found.payload)
    except ValueError as error:
        raise JwsError(f"signed, but: {error}") from None


def header(token: str | bytes, *, limit: int = SIZE_MAX) -> dict[str, Any]:
    """The header, unverified: ``alg``, ``typ``, ``kid``, and ``jwk`` if it is there.

    Raises:
        JwsError: there is none of ours.
    """
    return _header(_raw(token, limit))


def key_in(token: str | bytes, *, limit: int = SIZE_MAX) -> VerifyKey:
    """The public key that the header brings along. It proves nothing but what it signs.

    Raises:
        JwsError: there is none.
    """
    try:
        return VerifyKey.from_jwk(header(token, limit=limit).get("jwk"))
    except JwsError:
        raise
    except ValueError as error:
        raise JwsError(f"no key in its header: {error}") from None


def unverified(token: str | bytes, *, limit: int = SIZE_MAX) -> dict[str, Any]:
    """The claims of a token that nobody has verified: good for looking, not for believing.

    Raises:
        JwsError: there are none.
    """
    raw = _raw(token, limit)
    _header(raw)
    try:
        return load_object(from_b64url(raw.split(b".")[1].decode("ascii")))
    except ValueError as error:
        raise JwsError(f"not a token: {error}") from None


def signed_part(token: str | bytes) -> bytes:
    """What the signature is over: for ECDSA, one text has many valid signatures."""
    raw = token.encode("ascii", "replace") if isinstance(token, str) else token
    return raw.rpartition(b".")[0]


def _raw(token: str | bytes, limit: int) -> bytes:
    if not isinstance(token, str | bytes):
        raise JwsError("not a token")
    if len(token) > limit:
        raise JwsError(f"longer than {limit} bytes")
    try:
        raw = token.encode("ascii") if isinstance(token, str) else token
    except UnicodeEncodeError:
        raise JwsError("not a token") from None
    parts = raw.split(b".", 3)
    if len(parts) != 3 or len(parts[0]) > _HEADER_MAX or len(parts[2]) != _SIGNATURE_TEXT:
        raise JwsError("not a token")
    return raw


def _header(raw: bytes) -> dict[str, Any]:
    try:
        head = load_object(from_b64url(raw.partition(b".")[0].decode("ascii")))
    except ValueError:
        raise JwsError("not a token") from None
    if not head.keys() <= _MEMBERS:
        raise JwsError("its header has members that are not understood")
    if not all(isinstance(head.get(name), str) for name in ("alg", "typ", "kid")):
        raise JwsError("its header lacks alg, typ or kid")
    return head


def _registry(algorithm: str, longest: int) -> jose.JWSRegistry:
    registry = jose.JWSRegistry(algorithms=[algorithm])
    registry.max_header_length = _HEADER_MAX
    registry.max_payload_length = longest
    return registry


@lru_cache(256)
def _public(key: VerifyKey) -> Any:
    return _imported(key.public, key.algorithm)


def _private(key: SigningKey) -> Any:
    return _imported(key.private, key.algorithm)


def _imported(key: Any, algorithm: str) -> Any:
    kind: Any = OKPKey if algorithm == "Ed25519" else ECKey
    return kind.import_key(key)

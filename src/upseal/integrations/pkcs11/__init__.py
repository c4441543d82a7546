# SPDX-License-Identifier: Apache-2.0
"""A key in a token (HSM, smart card, SoftHSM2) by PKCS#11: RSA-OAEP, or P-256 (docs/integrations).

The private key never leaves the token. For RSA the token does RSA-OAEP with SHA-256
(CKM_RSA_PKCS_OAEP). For P-256 it derives the shared secret of Diffie-Hellman (CKM_ECDH1_DERIVE),
which it must let us read.

A token's error does not say by itself whether the token or what it was given is bad. So after an
error the token is given something that we wrapped ourselves: does it fail as well, the key is
unavailable; otherwise what came was not wrapped for this key.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from upseal.core.copies import refuse
from upseal.core.keys import PublicKey
from upseal.core.suites import INFO, SECRET_LEN, Suite
from upseal.errors import KeyUnavailable
from upseal.integrations.pkcs11 import dhkem
from upseal.integrations.pkcs11.uri import KeyUri, parse

try:
    import pkcs11 as p11
    from pkcs11.exceptions import PKCS11Error
    from pkcs11.util.ec import encode_named_curve_parameters
except ImportError as error:
    raise ImportError("keys in tokens need python-pkcs11: pip install 'upseal[pkcs11]'") from error

from upseal.integrations.pkcs11.module import Module, module_of, said

if TYPE_CHECKING:
    from upseal.integrations.pkcs11.module import Session

__all__ = ["Pkcs11Key"]

_PAUSE = 1.0
"""Seconds after a failure to reach the key in which nothing is tried."""
_OAEP = {
    "mechanism": p11.Mechanism.RSA_PKCS_OAEP,
    "mechanism_param": (p11.Mechanism.SHA256, p11.MGF.SHA256, None),
}


class Pkcs11Key:
    """A private key in a token: see `upseal.KeyOpener`. Safe to share between threads.

    All calls into one PKCS#11 library happen one at a time: python-pkcs11 initializes it so. Where
    one at a time is too slow, run several processes.
    """

    unwraps_afresh = True
    """See `upseal.core.known.KeyOpener`."""

    __reduce_ex__ = refuse

    def __init__(self, uri: str, *, pin: str | bytes | None = None) -> None:
        """Looks for the key, logs in, and tries it on a secret of our own.

        Args:
            uri: RFC 7512, such as ``pkcs11:token=vault;object=server?module-path=/usr/lib/x.so&``
                ``pin-source=file:/etc/upseal/pin``.
            pin: where the URI has no ``pin-source``; without both there is no login.

        Raises:
            ValueError: the URI is not one, or the key in the token is not one for upseal.
            KeyUnavailable: the token is not there, the PIN is wrong, or the key cannot do it.
        """
        self._uri: KeyUri = parse(uri)
        self._pin = pin.decode() if isinstance(pin, bytes) else pin
        self._module: Module = module_of(self._uri.module)
        self._session: Session | None = None
        self._key: Any = None
        self._again = 0.0
        self._why: KeyUnavailable | None = None
        self._der_point = False
        self._public: PublicKey | None = None
        with self._module.held():
            self._connect()

    @property
    def public_key(self) -> PublicKey:
        """As it is in the token."""
        assert self._public is not None
        return self._public

    @property
    def suite(self) -> int:
        """See `upseal.core.known.KeyOpener`."""
        return int(self.public_key.suite)

    @property
    def key_id(self) -> bytes:
        """See `upseal.core.known.KeyOpener`."""
        return self.public_key.key_id

    def unwrap(self, wrapped: bytes) -> bytes:
        """The session secret wrapped for this key.

        Raises:
            ValueError: it was not.
            KeyUnavailable: the token cannot be used at the moment.
        """
        return self._decrypt(bytes(wrapped), INFO)

    def answer_challenge(self, sealed: bytes) -> bytes:
        """Proof that the key is there: see `upseal.fleet.readiness`.

        Raises:
            upseal.fleet.readiness.BadChallenge: it was not made for this key.
            KeyUnavailable: the token cannot be used at the moment.
        """
        from upseal.fleet import readiness

        return readiness.answer_with(
            self.public_key, lambda data: self._decrypt(data, readiness.INFO), sealed
        )

    # -- the token --------------------------------------------------------------------

    def _decrypt(self, sealed: bytes, info: bytes) -> bytes:
        """``info`` is HPKE's; OAEP has none."""
        if self.public_key.suite is Suite.RSA_OAEP:
            if len(sealed) != (self.public_key.parts[0].key_size + 7) // 8:
                raise ValueError("not wrapped for this key")
            return self._ask(lambda key: bytes(key.decrypt(sealed, **_OAEP)))
        enc = dhkem.check_point(sealed[: dhkem.POINT])  # before the token sees it
        dh = self._ask(lambda key: self._derive(key, enc))
        return dhkem.open_base(enc, dh, self._point(), sealed[dhkem.POINT :], info)

    def _ask(self, operation: Callable[[Any], bytes]) -> bytes:
        """What the token makes of it.

        Raises:
            ValueError: the token works, and not with this.
            KeyUnavailable: it does not work.
        """
        with self._module.held():
            if not self._usable():
                self._connect()
            try:
                return operation(self._key)
            except PKCS11Error:
                pass
            if not self._proves():
                self._connect()  # again, from the start; a probe of ours stands at its end
            try:
                return operation(self._key)
            except PKCS11Error:
                raise ValueError("not wrapped for this key") from None

    def _derive(self, key: Any, enc: bytes) -> bytes:
        """The x of the shared point. It stays in the token no longer than it takes to read it."""
        point = b"\x04\x41" + enc if self._der_point else enc
        derived = key.derive_key(
            p11.KeyType.GENERIC_SECRET,
            256,
            mechanism=p11.Mechanism.ECDH1_DERIVE,
            mechanism_param=(p11.KDF.NULL, None, point),
            store=False,
            template={p11.Attribute.SENSITIVE: False, p11.Attribute.EXTRACTABLE: True},
        )
        try:
            secret = bytes(derived[p11.Attribute.VALUE])
        finally:
            derived.destroy()
        if len(secret) != 32:
            raise PKCS11Error("the token derived a secret of another length")
        return secret

    def _usable(self) -> bool:
        return self._session is not None and self._module.current(self._session)

    def _connect(self) -> None:
        """Finds the key, and tries it. Under the module's lock."""
        if self._why is not None and time.monotonic() < self._again:
            raise KeyUnavailable(str(self._why))
        had, self._session, self._key = self._session, None, None
        try:
            try:
                self._find(had)
            except (PKCS11Error, KeyUnavailable):
                if not self._module.renew():  # some libraries see a token that came back only so
                    raise
                self._find(None)
        except KeyUnavailable as error:
            self._later(error)
            raise
        except (PKCS11Error, ValueError) as error:
            if isinstance(error, ValueError) and self._public is None:
                raise  # it never was one; a key that was is not for what came to be blamed for
            what = KeyUnavailable(f"the key {self._name()} cannot be used: {said(error)}")
            self._later(what)
            raise what from error
        self._why = None

    def _later(self, why: KeyUnavailable) -> None:
        self._why, self._again = why, time.monotonic() + _PAUSE

    def _find(self, had: Session | None) -> None:
        session = self._module.session(self._uri, self._pin, instead_of=had)
        wanted = {"label": self._uri.label, "id": self._uri.id}
        key = session.opened.get_key(
            object_class=p11.ObjectClass.PRIVATE_KEY,
            **{name: value for name, value in wanted.items() if value is not None},
        )
        public = _public_key(session.opened, key)
        if self._public is not None and public != self._public:
            raise KeyUnavailable(f"there is another key at {self._name()} now: {public!r}")
        self._public = public
        self._key = key
        self._try()
        self._session = session

    def _try(self) -> None:
        """Unwraps a secret of our own: says why if it fails."""
        if self.public_key.suite is Suite.RSA_OAEP:
            try:
                works = self._probe()
            except PKCS11Error as error:
                raise KeyUnavailable(
                    f"the token does not do RSA-OAEP with SHA-256 and MGF1-SHA-256 with the key "
                    f"{self._name()} ({said(error)}); SoftHSM 2.6 knows SHA-1 only: use a P-256 "
                    "key there"
                ) from error
        else:
            try:
                works = self._probe()
            except PKCS11Error:  # some want the point as a DER OCTET STRING
                self._der_point = not self._der_point
                try:
                    works = self._probe()
                except PKCS11Error as error:
                    raise KeyUnavailable(
                        f"the token does not derive a readable secret (CKM_ECDH1_DERIVE) with the "
                        f"key {self._name()} ({said(error)}); the key needs CKA_DERIVE"
                    ) from error
        if not works:
            raise KeyUnavailable(f"the private key {self._name()} is not that of its public key")

    def _probe(self) -> bool:
        """Whether the token unwraps what we wrapped.

        Raises:
            PKCS11Error: it says that it cannot.
        """
        secret = os.urandom(SECRET_LEN)
        wrapped = self.public_key.wrap(secret)
        if self.public_key.suite is Suite.RSA_OAEP:
            return bytes(self._key.decrypt(wrapped, **_OAEP)) == secret
        enc = wrapped[: dhkem.POINT]
        dh = self._derive(self._key, enc)
        try:
            return dhkem.open_base(enc, dh, self._point(), wrapped[dhkem.POINT :], INFO) == secret
        except ValueError:
            return False

    def _proves(self) -> bool:
        try:
            return self._probe()
        except PKCS11Error:
            return False

    def _point(self) -> bytes:
        part = self.public_key.parts[0]
        return bytes(part.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))

    def _name(self) -> str:
        return self._uri.text.partition("?")[0]

    def __repr__(self) -> str:
        return f"<Pkcs11Key {self.public_key.name} {self.key_id.hex()} at {self._name()}>"


def _public_key(session: Any, key: Any) -> PublicKey:
    """Of a private key: from its own attributes, or from the public key beside it.

    Raises:
        ValueError: it is not one for upseal.
        PKCS11Error: the token does not tell.
    """
    if key.key_type == p11.KeyType.RSA:
        numbers = [
            int.from_bytes(key[name], "big")
            for name in (p11.Attribute.PUBLIC_EXPONENT, p11.Attribute.MODULUS)
        ]
        return PublicKey(rsa.RSAPublicNumbers(*numbers).public_key())
    if key.key_type != p11.KeyType.EC:
        raise ValueError(
            f"a key of type {key.key_type.name} in a token is not for upseal: RSA, P-256"
        )
    if key[p11.Attribute.EC_PARAMS] != encode_named_curve_parameters("secp256r1"):
        raise ValueError("a key in a token must be RSA or P-256, and this is another curve")
    public = session.get_key(object_class=p11.ObjectClass.PUBLIC_KEY, id=key[p11.Attribute.ID])
    point = bytes(public[p11.Attribute.EC_POINT])
    if len(point) == dhkem.POINT + 2:  # a DER OCTET STRING, as PKCS#11 says; some give it bare
        point = point[2:]
    return PublicKey(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))

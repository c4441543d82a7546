# SPDX-License-Identifier: Apache-2.0
"""Encryption certificates: X.509 round a recipient's public key (RFC 5280)."""

from __future__ import annotations

import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_TLS = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
_SIGNERS = (
    rsa.RSAPrivateKey,
    ec.EllipticCurvePrivateKey,
    ed25519.Ed25519PrivateKey,
    ed448.Ed448PrivateKey,
)


def load(data: bytes) -> x509.Certificate:
    """A certificate in DER or PEM.

    Raises:
        ValueError: it is neither.
    """
    try:
        if b"-----BEGIN CERTIFICATE-----" in data:
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except x509.InvalidVersion as error:
        raise ValueError(f"a certificate of an unknown version: {error}") from None


def encryption_key(data: bytes) -> Any:
    """The public key of a certificate meant for encryption.

    Raises:
        ValueError: it is meant for something else, or is no certificate.
    """
    certificate = load(data)
    try:
        extensions = certificate.extensions
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(f"this certificate's extensions cannot be read: {error}") from None
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        allowed = usage.key_encipherment or usage.key_agreement
    except x509.ExtensionNotFound:
        allowed = False
    if not allowed:
        raise ValueError(
            "this certificate is not for encryption: its key usage has neither "
            "keyEncipherment nor keyAgreement (make one with `upseal cert`)"
        )
    try:
        purposes = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        purposes = set()
    if purposes & _TLS:
        raise ValueError(
            "this certificate is for TLS; a key used for TLS must not be used here as well"
        )
    return certificate.public_key()


def issue(
    public_key: Any,
    subject: str,
    issuer_key: Any,
    issuer: x509.Certificate | None = None,
    days: int = 825,
    now: datetime.datetime | None = None,
) -> bytes:
    """An encryption certificate in PEM, self-signed if there is no ``issuer``.

    Args:
        public_key: the recipient's, a ``cryptography`` object.
        subject: its common name.
        issuer_key: signs; without ``issuer`` it must belong to ``public_key``.
        issuer: the certificate of the CA.
        days: how long it is valid, from ``now`` on.
        now: the present unless given.

    Raises:
        ValueError: the key cannot sign (X25519 cannot sign itself: give a CA), or the CA's
            certificate does not allow it or belongs to another key.
    """
    if not isinstance(issuer_key, _SIGNERS):
        raise ValueError("this key cannot sign a certificate: name a CA's key and certificate")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    if issuer is None and issuer_key.public_key() != public_key:
        raise ValueError("a self-signed certificate must be signed by its own key")
    if issuer is not None:
        _check_ca(issuer, issuer_key)
    start = now or datetime.datetime.now(datetime.UTC)
    encipher = isinstance(public_key, rsa.RSAPublicKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject if issuer is not None else name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - datetime.timedelta(minutes=5))  # clocks differ
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=encipher,
                data_encipherment=False,
                key_agreement=not encipher,
                key_cert_sign=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    edwards = isinstance(issuer_key, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey))
    certificate = builder.sign(issuer_key, None if edwards else hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM)


def issue_ca(
    key: Any,
    subject: str,
    days: int,
    now: datetime.datetime | None = None,
    slack: datetime.timedelta = datetime.timedelta(minutes=5),
) -> bytes:
    """A self-signed certificate in PEM of a CA that may issue end certificates only.

    Args:
        key: the CA's, ECDSA or RSA.
        subject: its common name.
        days: how long it is valid, from ``now`` on.
        now: the present unless given.
        slack: how long before ``now`` it is valid already, since clocks differ.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
         "key_agreement", "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    start = now or datetime.datetime.now(datetime.UTC)
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - slack)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _check_ca(issuer: x509.Certificate, issuer_key: Any) -> None:
    if issuer.public_key() != issuer_key.public_key():
        raise ValueError("the CA's certificate and the CA's key do not belong together")
    try:
        if not issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise ValueError("the CA's certificate is not one of a CA")
    except x509.ExtensionNotFound:
        raise ValueError("the CA's certificate is not one of a CA") from None

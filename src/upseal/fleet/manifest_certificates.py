# SPDX-License-Identifier: Apache-2.0
"""Checks the certificates of a manifest (RFC 5280).

The manifest's signature vouches for its authorities: each of them is trusted to issue, an
intermediate CA of a company as well as a root. So a path is one step long: authority, certificate.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from upseal.core.certificates import load
from upseal.fleet.manifest_claims import ManifestError

if TYPE_CHECKING:
    from upseal.fleet.manifest import EncryptionKey, Manifest

_BROKEN = (hashes.MD5, hashes.SHA1)
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises for certificates that somebody made to hurt."""
_KNOWN_CRITICAL = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectAlternativeName,
    x509.CertificatePolicies,
)
"""What may be marked critical in an encryption certificate: the rest must be understood, or the
certificate refused (RFC 5280, section 4.2)."""


def check(manifest: Manifest) -> None:
    """As `upseal.fleet.manifest.check_certificates`."""
    try:
        moment = datetime.datetime.fromtimestamp(manifest.issued / 1000, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        raise ManifestError("issued at a time that no certificate can have") from None
    authorities = _Authorities(manifest, moment)
    for key in _keys(manifest):
        public = key.public()  # key usage, and a suite of ours
        if key.certificate is None:
            continue
        try:
            certificate = load(key.certificate.encode())
            _check_one(certificate, manifest, moment)
            authorities.check_issued(certificate)
        except _UNREADABLE as error:
            raise ManifestError(f"the certificate of key {public.key_id.hex()}: {error}") from None


def _keys(manifest: Manifest) -> Iterator[EncryptionKey]:
    yield manifest.enrolment
    yield from manifest.encryption
    yield from manifest.pending
    for relay in manifest.relays:
        yield from relay.keys


class _Authorities:
    """The CAs of a manifest, by subject."""

    def __init__(self, manifest: Manifest, moment: datetime.datetime) -> None:
        self._by_subject: dict[x509.Name, list[x509.Certificate]] = defaultdict(list)
        for pem in manifest.authorities:
            try:
                authority = load(pem.encode())
                _check_authority(authority)
                subject = authority.subject
            except _UNREADABLE as error:
                raise ManifestError(f"an authority: {error}") from None
            # One that is out of date or revoked issues nothing more; another may go on.
            if not _outdated(authority, moment) and not _revoked(authority, manifest):
                self._by_subject[subject].append(authority)

    def check_issued(self, certificate: x509.Certificate) -> None:
        for authority in self._by_subject.get(certificate.issuer, ()):
            try:
                certificate.verify_directly_issued_by(authority)
            except InvalidSignature:
                continue  # CAs may share a name, after a renewal say
            return
        raise ValueError("issued by no authority of the manifest that is valid")


def _check_authority(authority: x509.Certificate) -> None:
    extensions = authority.extensions
    try:
        is_ca = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    if not is_ca:
        raise ValueError("not the certificate of a CA")
    try:
        may_sign = extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        may_sign = True  # RFC 5280, section 4.2.1.3: without it there is no restriction
    if not may_sign:
        raise ValueError("its key usage does not allow it to sign certificates")


def _check_one(
    certificate: x509.Certificate, manifest: Manifest, moment: datetime.datetime
) -> None:
    if _outdated(certificate, moment):
        raise ValueError("not valid at the time the manifest was issued")
    if _revoked(certificate, manifest):
        raise ValueError("revoked")
    if isinstance(certificate.signature_hash_algorithm, _BROKEN):
        raise ValueError("signed with a broken hash")
    for extension in certificate.extensions:
        if extension.critical and not isinstance(extension.value, _KNOWN_CRITICAL):
            raise ValueError(f"a critical extension not known here: {extension.oid.dotted_string}")
        if isinstance(extension.value, x509.BasicConstraints) and extension.value.ca:
            raise ValueError("a CA's own certificate, where one for encryption belongs")


def _outdated(certificate: x509.Certificate, moment: datetime.datetime) -> bool:
    return not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc


def _revoked(certificate: x509.Certificate, manifest: Manifest) -> bool:
    return certificate.serial_number in manifest.revoked_certificates

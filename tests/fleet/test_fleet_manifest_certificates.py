# SPDX-License-Identifier: Apache-2.0
"""Certificates of a manifest: one bad one, and nobody believes the manifest."""

import base64
import datetime
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fleet_support import DAY_MS, Authority, Site, moment
from hypothesis import given
from hypothesis import strategies as st

from upseal import PrivateKey
from upseal.core.certificates import load
from upseal.fleet.manifest import (
    EncryptionKey,
    Manifest,
    ManifestError,
    State,
    check_certificates,
)

SITE = Site()
SITE.enable()
PLAIN = Site()


def with_certificate(pem, authority=None, **changes):
    """A manifest whose server key comes with this certificate."""
    site = Site(authority=authority)
    site.change(
        state=State.ENABLED, encryption=(EncryptionKey(pem, None, 1),), generation=1, **changes
    )
    return site.manifest


def leaf(authority, *, public=None, days=10, before=1, encipher=True, extensions=(), ca=False,
         digest=None, issuer=None):  # fmt: skip
    """A certificate, good unless told otherwise."""
    public = public or PrivateKey.generate("rsa2048").public_key.parts[0]
    start = moment(Site().now) - datetime.timedelta(days=before)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "leaf")])
    usage = dict.fromkeys(
        ("content_commitment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only",
         "decipher_only", "key_cert_sign"), False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder().subject_name(name).public_key(public)
        .issuer_name(issuer or load(authority.certificate.encode()).subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start).not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
        .add_extension(
            x509.KeyUsage(key_encipherment=encipher, digital_signature=not encipher, **usage), True
        )
    )  # fmt: skip
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    made = builder.sign(authority.key, digest or hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


class TestCertificates:
    CA = Authority.make("Company CA")

    def check(self, pem, **changes):
        changes.setdefault("authority", self.CA)
        manifest = with_certificate(pem, **changes)
        try:
            check_certificates(Manifest.from_claims(manifest.claims()))
        except ManifestError as error:
            return str(error)
        return None

    def test_a_good_one(self):
        assert self.check(leaf(self.CA)) is None
        assert self.check(self.CA.certify(PrivateKey.generate("x25519").public_key)) is None

    def test_of_an_intermediate_ca(self):
        middle = Authority.make("Middle", issuer=self.CA)
        pem = leaf(middle)
        both = (self.CA.certificate, middle.certificate)
        assert "no authority" in self.check(pem)
        assert self.check(pem, authorities=both) is None
        assert "no authority" in self.check(leaf(middle), authority=Authority.make("Middle"))
        revoked = frozenset({middle.serial})
        assert "no authority" in self.check(pem, authorities=both, revoked_certificates=revoked)

    def test_of_a_stranger(self):
        assert "no authority" in self.check(leaf(Authority.make("Stranger")))

    def test_of_a_stranger_with_the_same_name(self):
        assert "no authority" in self.check(leaf(Authority.make("Company CA")))

    def test_of_one_of_two_authorities_with_the_same_name(self):
        other = Authority.make("Company CA")
        both = (other.certificate, self.CA.certificate)
        for authority in (self.CA, other):
            site = Site(authority=authority)
            site.enable()
            site.change(authorities=both)
            assert site.sign()

    def test_signed_by_a_leaf(self):
        # A certificate of ours is not an authority, whatever it signs.
        key = rsa.generate_private_key(65537, 2048)
        pem = leaf(self.CA, public=key.public_key())
        below = leaf(Authority(pem, key))
        assert "no authority" in self.check(below)
        assert "not the certificate of a CA" in self.check(
            below, authorities=(self.CA.certificate, pem)
        )

    @pytest.mark.parametrize(
        ("authority", "words"),
        [(Authority.make(is_ca=False), "not the certificate of a CA"),
         (Authority.make(signs=False), "key usage")],
    )  # fmt: skip
    def test_an_authority_that_may_not_sign(self, authority, words):
        assert words in self.check(leaf(authority), authorities=(authority.certificate,))

    @pytest.mark.parametrize("pem", ["x", "-----BEGIN CERTIFICATE-----\nAAAA\n", "\ud800"])
    def test_an_authority_that_is_none(self, pem):
        assert self.check(leaf(self.CA), authorities=(self.CA.certificate, pem)) is not None

    @pytest.mark.parametrize(("before", "days"), [(1, 0.9), (-1, 5), (400, 399)])
    def test_not_valid_when_the_manifest_was_issued(self, before, days):
        assert "not valid" in self.check(leaf(self.CA, before=before, days=days))

    def test_the_present_does_not_matter(self):
        # What was good when it was signed stays good: an agent seals on to a stale manifest.
        site = Site(now=Site().now - 2000 * DAY_MS)
        site.enable()
        check_certificates(site.manifest)
        site.change(issued=Site().now, expires=Site().now + 1)
        with pytest.raises(ManifestError, match="not valid"):
            check_certificates(site.manifest)

    def test_an_authority_not_valid_then(self):
        old = Authority.make("Old", now=Site().now - 100 * DAY_MS, days=50)
        pem = leaf(old)
        both = (old.certificate, self.CA.certificate)
        assert "no authority" in self.check(pem, authorities=both)
        assert self.check(leaf(self.CA), authorities=both) is None

    def test_revoked(self):
        pem = leaf(self.CA)
        serial = load(pem.encode()).serial_number
        assert "revoked" in self.check(pem, revoked_certificates=frozenset({serial}))
        assert self.check(pem, revoked_certificates=frozenset({serial + 1})) is None

    def test_its_authority_revoked(self):
        assert "no authority" in self.check(
            leaf(self.CA), revoked_certificates=frozenset({self.CA.serial})
        )

    def test_for_signing(self):
        assert "not for encryption" in self.check(leaf(self.CA, encipher=False))

    @pytest.mark.parametrize("usage", ["SERVER_AUTH", "CLIENT_AUTH"])
    def test_for_tls(self, usage):
        extension = x509.ExtendedKeyUsage([getattr(x509.ExtendedKeyUsageOID, usage)])
        assert "TLS" in self.check(leaf(self.CA, extensions=[(extension, False)]))

    def test_of_a_ca(self):
        assert "a CA's own" in self.check(leaf(self.CA, ca=True))

    def test_with_a_broken_hash(self):
        # Nobody here signs with SHA-1 any more, so the certificate only says that it was.
        authority = Authority.make("RSA", key=rsa.generate_private_key(65537, 2048))
        assert self.check(leaf(authority), authority=authority) is None
        der = load(leaf(authority).encode()).public_bytes(serialization.Encoding.DER)
        sha256, sha1 = (bytes.fromhex("2a864886f70d0101") + bytes([n]) for n in (11, 5))
        assert der.count(sha256) == 2
        assert "broken hash" in self.check(_pem(der.replace(sha256, sha1)), authority=authority)

    def test_with_a_critical_extension_that_nobody_knows(self):
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
        assert "critical" in self.check(leaf(self.CA, extensions=[(unknown, True)]))
        assert self.check(leaf(self.CA, extensions=[(unknown, False)])) is None

    def test_with_a_key_of_no_suite(self):
        small = rsa.generate_private_key(65537, 1024).public_key()
        assert self.check(leaf(self.CA, public=small)) is not None

    def test_swapped_or_stripped_everywhere(self):
        good = Site()
        good.enable()
        good.add_relay(decrypts=True)
        good.pending()
        check_certificates(good.manifest)
        bad = EncryptionKey(leaf(Authority.make("Stranger")), None, 1)
        relay = replace(good.manifest.relays[0], keys=(bad,))
        for changes in (
            {"encryption": (bad,)}, {"encryption": (*good.manifest.encryption, bad)},
            {"pending": (bad,)}, {"enrolment": bad}, {"relays": (relay,)}, {"authorities": ()},
        ):  # fmt: skip
            with pytest.raises(ManifestError):
                check_certificates(replace(good.manifest, **changes))

    @given(st.integers(0, 2000), st.integers(1, 255))
    def test_a_changed_certificate_is_refused(self, at, change):
        der = bytearray(load(SITE.manifest.encryption[0].certificate.encode()).public_bytes(
            serialization.Encoding.DER))  # fmt: skip
        der[at % len(der)] ^= change
        pem = _pem(bytes(der))
        with pytest.raises(ManifestError):
            check_certificates(replace(SITE.manifest, encryption=(EncryptionKey(pem, None, 1),)))

    def test_a_time_that_is_none(self):
        with pytest.raises(ManifestError):
            check_certificates(replace(PLAIN.manifest, issued=2**53 - 2, expires=2**53 - 1))


def _pem(der):
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"

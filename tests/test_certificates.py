# SPDX-License-Identifier: Apache-2.0
"""Encryption certificates: which are taken as recipients, and those we issue."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support import Opener, Sealer, key

from upseal import PublicKey
from upseal.core import certificates

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
FOR_ENCRYPTION = ["x25519", "p256", "rsa2048", "rsa3072"]


@pytest.fixture(scope="module")
def ca():
    """A CA's key and certificate."""
    return make_ca(ec.generate_private_key(ec.SECP256R1()))


def make_ca(signer, ca=True):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
    edwards = isinstance(signer, ed25519.Ed25519PrivateKey)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(signer.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(signer, None if edwards else hashes.SHA256())
    )
    return signer, certificate


def certificate(public_key, ca, usage=(), extended=()):
    """One with just these usages."""
    signer, issuer = ca
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Somebody")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(2)
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=365))
    )
    if usage is not None:
        flags = {u: u in usage for u in USAGES}
        builder = builder.add_extension(x509.KeyUsage(**flags), critical=True)
    if extended:
        builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    return builder.sign(signer, hashes.SHA256())


def pem(made):
    return made.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("suite", FOR_ENCRYPTION)
def test_a_certificate_of_a_ca_names_a_recipient(ca, suite):
    recipient = key(f"{suite}-a")
    issued = certificates.issue(recipient.public_key.parts[0], "server", *ca, now=NOW)
    der = x509.load_pem_x509_certificate(issued).public_bytes(serialization.Encoding.DER)
    for data in (issued, der, bytearray(issued), memoryview(der)):
        public = PublicKey.from_certificate(data)
        assert (public.key_id, public.suite) == (recipient.key_id, recipient.suite)
    assert Opener([recipient]).open(Sealer([public]).seal(b"r")) == b"r"


def test_an_issued_certificate_says_what_it_is_for(ca):
    signer, issuer = ca
    for suite, wanted in (("rsa2048", "key_encipherment"), ("x25519", "key_agreement")):
        data = certificates.issue(
            key(f"{suite}-a").public_key.parts[0], "server", signer, issuer, days=10, now=NOW
        )
        made = x509.load_pem_x509_certificate(data)
        made.verify_directly_issued_by(issuer)
        usage = made.extensions.get_extension_for_class(x509.KeyUsage).value
        plain = [u for u in USAGES[:7] if getattr(usage, u)]
        assert plain == [wanted]
        assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert made.not_valid_after_utc == NOW + datetime.timedelta(days=10)
        assert made.not_valid_before_utc <= NOW


def test_an_rsa_key_can_sign_its_own_certificate():
    recipient = key("rsa2048-a")
    issued = certificates.issue(recipient.public_key.parts[0], "server", recipient.parts[0])
    made = x509.load_pem_x509_certificate(issued)
    made.verify_directly_issued_by(made)
    assert PublicKey.from_certificate(issued) == recipient.public_key


def test_an_ed25519_ca_can_issue(ca):
    signer, issuer = make_ca(ed25519.Ed25519PrivateKey.generate())
    recipient = key("x25519-a")
    issued = certificates.issue(recipient.public_key.parts[0], "server", signer, issuer)
    assert PublicKey.from_certificate(issued) == recipient.public_key


def test_what_cannot_be_issued_is_a_value_error(ca):
    signer, issuer = ca
    public = key("x25519-a").public_key.parts[0]
    other = ec.generate_private_key(ec.SECP256R1())
    for args in (
        (public, "x", key("x25519-a").parts[0]),  # X25519 cannot sign
        (public, "x", signer),  # not self-signed, and no CA
        (public, "x", other, issuer),  # not the CA's key
        (public, "x", *make_ca(other, ca=False)),  # not a CA
    ):
        with pytest.raises(ValueError, match=r".+"):
            certificates.issue(*args)


@pytest.mark.parametrize("usage", ["key_encipherment", "key_agreement"])
def test_either_usage_for_encryption_is_enough(ca, usage):
    public = key("rsa2048-a").public_key
    assert PublicKey.from_certificate(pem(certificate(public.parts[0], ca, [usage]))) == public


@pytest.mark.parametrize(
    "usage",
    [None, (), ("digital_signature",), ("data_encipherment",), ("key_cert_sign", "crl_sign")],
)
def test_a_certificate_that_is_not_for_encryption_is_refused(ca, usage):
    made = certificate(key("rsa2048-a").public_key.parts[0], ca, usage)
    with pytest.raises(ValueError, match="keyEncipherment"):
        PublicKey.from_certificate(pem(made))


@pytest.mark.parametrize(
    "purpose", [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
)
def test_a_certificate_for_tls_is_refused(ca, purpose):
    public = key("rsa2048-a").public_key.parts[0]
    purposes = [ExtendedKeyUsageOID.EMAIL_PROTECTION, purpose]
    made = certificate(public, ca, ["key_encipherment"], purposes)
    with pytest.raises(ValueError, match="TLS"):
        PublicKey.from_certificate(pem(made))
    mail_only = certificate(public, ca, ["key_encipherment"], purposes[:1])
    assert PublicKey.from_certificate(pem(mail_only)).key_id == key("rsa2048-a").key_id


def test_a_certificate_for_a_key_of_no_suite_is_refused(ca):
    for raw in (ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()):
        with pytest.raises(ValueError, match="not a key upseal can use"):
            PublicKey.from_certificate(pem(certificate(raw.public_key(), ca, ["key_agreement"])))


def test_what_is_no_certificate_is_a_value_error(ca):
    good = pem(certificate(key("rsa2048-a").public_key.parts[0], ca, ["key_encipherment"]))
    for data in (b"", b"junk", good[:-40], good[:300], key("rsa2048-a").public_key.to_pem()):
        with pytest.raises(ValueError, match=r".+"):
            PublicKey.from_certificate(data)
    with pytest.raises(TypeError):
        PublicKey.from_certificate("text")

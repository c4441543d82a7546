# SPDX-License-Identifier: Apache-2.0
"""Certificates that the CA of the targets has issued, and that are wrong in something else."""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from upfuzz import world

_DAY = datetime.timedelta(days=1)
_EXTENSIONS = (
    (x509.BasicConstraints(True, 0), True),
    (x509.BasicConstraints(False, None), True),
    (x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), False),
    (x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.EMAIL_PROTECTION]), True),
    (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),
    (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), False),
    (x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"0\x04\xa3\x020\x00"), False),
    (x509.NameConstraints([x509.DNSName("a")], None), True),
    (x509.SubjectAlternativeName([x509.DNSName("a")]), True),
)
_USES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
    "key_agreement", "key_cert_sign", "crl_sign",
)  # fmt: skip
_KEYS = ("x25519-a", "x25519-b", "p256-a")
_REVOKED = 2**80 + 5  # as `world.manifest` says


def certificate(rnd):
    """In PEM."""
    key, pem = world.authority()
    ca = x509.load_pem_x509_certificate(pem)
    start = world.moment() + _DAY * rnd.choice((-900, -1, -1, -1, 0, 1))
    other = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "another")])
    hashed = rnd.choice((hashes.SHA256(), hashes.SHA256(), hashes.SHA384(), hashes.SHA3_256()))
    builder = (
        x509.CertificateBuilder()
        .subject_name(other)
        .issuer_name(rnd.choice((ca.subject, ca.subject, ca.subject, other)))
        .public_key(
            world.private(rnd.choice(("x25519-a", "x25519-b", "p256-a"))).public_key.parts[0]
        )
        .serial_number(rnd.choice((1, 2**159 - 1, _REVOKED)))
        .not_valid_before(start)
        .not_valid_after(start + _DAY * rnd.choice((1, 800, 2000)))
    )
    extensions = rnd.sample(_EXTENSIONS, rnd.choice((0, 0, 1, 1, 2)))
    if rnd.randrange(6):
        used = {use: bool(rnd.randrange(8) == 0) for use in _USES}
        used["key_agreement"] = bool(rnd.randrange(6))
        extensions.append((x509.KeyUsage(**used, encipher_only=False, decipher_only=False), True))
    seen = set()
    for extension, critical in extensions:
        if extension.oid not in seen:
            seen.add(extension.oid)
            builder = builder.add_extension(extension, critical)
    signer = key if rnd.randrange(5) else world.signing("hop 2", "p256").private
    return builder.sign(signer, hashed).public_bytes(serialization.Encoding.PEM)

# SPDX-License-Identifier: Apache-2.0
"""Authorities and TLS certificates for the tests of the hops, as files."""

import datetime
import ipaddress
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class TlsAuthority:
    """Makes certificates; its own is ``file``."""

    def __init__(self, folder, name="ca"):
        folder.mkdir(exist_ok=True)
        self.folder, self.name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        certificate = self._sign(
            self.name, self.key, (x509.BasicConstraints(True, 0), True),
            (x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False),
            (usage, True),
        )  # fmt: skip
        self.file = folder / f"{name}.pem"
        replace(self.file, certificate)

    def _sign(self, subject, key, *extensions):
        day, now = datetime.timedelta(days=1), datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self.name)
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now - day).not_valid_after(now + day)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False
            )
        )  # fmt: skip
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def make(self, name, *, key_file=None):
        """A new certificate for 127.0.0.1, as server and as client, with its key, in place of one
        of that name."""
        key = ec.generate_private_key(ec.SECP256R1())
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )  # fmt: skip
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = self._sign(
            subject, key, (here, False), (x509.ExtendedKeyUsage(usages), False)
        )
        file = self.folder / f"{name}.pem"
        if key_file is None:
            replace(file, certificate + private)
        else:
            replace(file, certificate)
            replace(key_file, private)
        return file


def replace(file, data):
    """As whoever renews certificates does."""
    part = file.with_name(file.name + ".part")
    part.write_bytes(data)
    os.replace(part, file)


def serial_of(file):
    return x509.load_pem_x509_certificate(file.read_bytes()).serial_number

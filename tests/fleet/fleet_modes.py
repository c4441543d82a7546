# SPDX-License-Identifier: Apache-2.0
"""What a world of the tests may have besides: TLS on every hop, FIPS, another database."""

import datetime
import ipaddress
import json
from contextlib import closing

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from fleet_support import Authority


class Certificates:
    """An authority for TLS, and a certificate for each who asks: as server and as client."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder, self._authority = folder, Authority.make("TLS")
        self.ca = folder / "ca.pem"
        self.ca.write_text(self._authority.certificate)

    def of(self, name):
        """Paths of certificate and key; made once."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        if not key.exists():
            private = ec.generate_private_key(ec.SECP256R1())
            now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
            here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            made = (
                x509.CertificateBuilder()
                .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
                .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "TLS")]))
                .public_key(private.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - day)
                .not_valid_after(now + day)
                .add_extension(x509.SubjectAlternativeName([here]), False)
                .add_extension(x509.ExtendedKeyUsage(usages), False)
                .sign(self._authority.key, hashes.SHA256())
            )
            certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
            key.write_bytes(
                private.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
        return str(certificate), str(key)


class Mode:
    """``tls``: `Certificates`; ``database``: a URL of PostgreSQL; ``fips``: P-256 everywhere."""

    def __init__(self, *, tls=None, database=None, fips=False):
        self.tls, self.database, self.fips = tls, database, fips

    def url(self, url):
        """Of a proxy, as it is to be spoken to."""
        return url if self.tls is None else url.replace("http://", "https://")

    def client(self, name):
        """Settings of ``[http]``."""
        if self.tls is None:
            return {}
        certificate, key = self.tls.of(name)
        return {"ca": str(self.tls.ca), "certificate": certificate, "key": key}

    def listener(self, name):
        """Settings of a relay's ``[tls]``: who connects must have a certificate, too."""
        if self.tls is None:
            return {}
        certificate, key = self.tls.of(name)
        return {"certificate": certificate, "key": key, "client_ca": str(self.tls.ca)}

    def server(self):
        """Of the server's ``[server]``."""
        listener = self.listener("server")
        return {f"tls_{name}": value for name, value in listener.items()}

    def query(self, query, parameters=()):
        """What PostgreSQL answers."""
        import psycopg

        with closing(psycopg.connect(self.database)) as db:
            return db.execute(query.replace("?", "%s"), parameters).fetchall()


def toml(settings):
    """Lines of a table: JSON's strings are TOML's."""
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())

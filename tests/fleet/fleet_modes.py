# SPDX-License-Identifier: Apache-2.0
"""What a world of the tests may have besides: TLS on every hop, FIPS, another database."""

import json
from contextlib import closing

from fleet_tls_support import TlsAuthority


class Certificates:
    """An authority for TLS, and a certificate for each who asks: as server and as client."""

    def __init__(self, folder):
        self._authority = TlsAuthority(folder)
        self.folder, self.ca = folder, self._authority.file

    def of(self, name):
        """Paths of certificate and key; made once."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        if not key.exists():
            self._authority.make(name, key_file=key)
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

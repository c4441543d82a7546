# SPDX-License-Identifier: Apache-2.0
"""Client and server over TLS, each with a certificate of a common authority."""

import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.responses import JSONResponse
from starlette.routing import Route

from upseal.fleet.http.apps import application, read_body
from upseal.fleet.http.client import Client, ClientTls, Unreachable
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.serving import ServerTls, in_thread, serve


async def count(request):
    return JSONResponse({"bytes": len(await read_body(request, 100_000))})


def build():
    return application([Route("/count", count, methods=["POST"])], metrics=Metrics("relay"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Files: an authority's certificate; certificate and key of a server, and of an agent."""
    folder = tmp_path_factory.mktemp("authority")
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)

    def certify(name, key, issuer, signer, *extensions):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
            )
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def named(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = folder / "ca.pem"
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    ca.write_bytes(
        certify(
            named("ca"),
            ca_key,
            named("ca"),
            ca_key,
            (x509.BasicConstraints(True, 0), True),
            (x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False),
            (usage, True),
        )
    )
    files = [ca]
    for who in ("server", "agent"):
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        file = folder / f"{who}.pem"
        file.write_bytes(
            certify(named(who), key, named("ca"), ca_key, (names, False))
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        files.append(file)
    return files


def test_tls_and_client_certificates(authority):
    ca, server, agent = authority
    tls = ServerTls(server, client_ca=ca)
    with in_thread(build(), tls=tls) as address:
        assert address.url.startswith("https://127.0.0.1:")
        with Client(address.url, 20.0, ClientTls(ca=ca, certificate=agent)) as client:
            assert client.request("POST", "/count", bytes(70_000)).json() == {"bytes": 70_000}
        for wrong in (ClientTls(ca=ca), ClientTls(), ClientTls(certificate=agent)):
            with Client(address.url, 20.0, wrong) as client, pytest.raises(Unreachable):
                client.request("GET", "/healthz")
        name = address.url.replace("127.0.0.1", "localhost")
        right = ClientTls(ca=ca, certificate=agent)
        with (
            Client(name, 20.0, right) as client,
            pytest.raises(Unreachable, match=r"TLS failed .*localhost"),
        ):
            client.request("GET", "/healthz")


def test_tls_files_that_are_none(tmp_path, authority):
    (tmp_path / "junk.pem").write_text("junk")
    for wrong in (
        ServerTls(tmp_path / "none.pem"),
        ServerTls(tmp_path / "junk.pem"),
        ServerTls(authority[1], client_ca=tmp_path / "none.pem"),
    ):
        with pytest.raises(OSError):
            serve(build(), tls=wrong)

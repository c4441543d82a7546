# SPDX-License-Identifier: Apache-2.0
"""Client and server over TLS, each with a certificate of a common authority."""

import pytest
from fleet_tls_support import TlsAuthority
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
    made = TlsAuthority(tmp_path_factory.mktemp("authority"))
    return made.file, made.make("server"), made.make("agent")


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

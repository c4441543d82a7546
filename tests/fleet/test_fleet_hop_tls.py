# SPDX-License-Identifier: Apache-2.0
"""TLS on every hop: renewed files, client certificates, handshakes that hang."""

import json
import logging
import socket
import ssl
import threading
from contextlib import ExitStack, contextmanager

import pytest
from cryptography import x509
from fleet_nodes import eventually
from fleet_relay_support import parent_of, relay_of, senders
from fleet_support import Site
from fleet_tls_support import TlsAuthority, replace, serial_of
from starlette.responses import JSONResponse
from starlette.routing import Route

from upseal.cli import main
from upseal.fleet.http.apps import application, read_body
from upseal.fleet.http.client import Client, ClientTls, Unreachable
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.http.serving import Limits, ServerTls, in_thread
from upseal.fleet.relay.relay import Relay
from upseal.fleet.relay.settings import Settings, SettingsError


async def count(request):
    return JSONResponse({"bytes": len(await read_body(request, 1 << 20))})


@contextmanager
def serving(tls, **limits):
    app = application([Route("/count", count, methods=["POST"])], metrics=Metrics("relay"))
    with in_thread(app, tls=tls, limits=Limits(**limits)) as address:
        yield address


def shown(address, context=None):
    """The serial number of the certificate that a server shows."""
    context = context or unverified()
    with (
        socket.create_connection(address[:2], 20) as sock,
        context.wrap_socket(sock, server_hostname="127.0.0.1") as tls,
    ):
        return x509.load_der_x509_certificate(tls.getpeercert(True)).serial_number


def unverified():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@pytest.fixture
def authority(tmp_path):
    return TlsAuthority(tmp_path / "tls")


# -- renewed files ------------------------------------------------------------------------


def test_a_renewed_certificate_holds_for_the_next_connection(authority, caplog):
    server = authority.make("server")
    with (
        serving(ServerTls(server)) as address,
        Client(address.url, 20.0, ClientTls(authority.file)) as client,
    ):
        assert client.request("POST", "/count", b"x" * 70_000).json() == {"bytes": 70_000}
        before = serial_of(server)
        assert shown(address) == before
        authority.make("server")
        assert shown(address) == serial_of(server) != before
        assert client.request("POST", "/count", b"1").json() == {"bytes": 1}, "a kept connection"


def test_files_that_are_written_one_after_the_other(authority, tmp_path, caplog):
    """Between the two they do not fit: the last ones that did go on, and one line says so."""
    caplog.set_level(logging.INFO, "upseal.http")
    key = tmp_path / "server.key"
    server = authority.make("server", key_file=key)
    with serving(ServerTls(server, key)) as address:
        old, old_key = serial_of(server), key.read_bytes()
        assert shown(address) == old
        authority.make("server", key_file=key)
        new_key = key.read_bytes()
        replace(key, old_key)
        for _ in range(3):
            assert shown(address) == old
        key.unlink()
        assert shown(address) == old
        replace(key, new_key)
        assert shown(address) == serial_of(server) != old
    said = [record.getMessage() for record in caplog.records]
    assert said.count("TLS files cannot be used; the last ones still are") == 2
    assert said.count("TLS files read again") == 1


def test_a_client_ca_that_is_replaced(authority, tmp_path):
    """Whom the old one has certified is out, with a session of its own to resume as well."""
    other = TlsAuthority(tmp_path / "other", "other")
    allowed = tmp_path / "clients.pem"
    replace(allowed, authority.file.read_bytes())
    tls = ServerTls(authority.make("server"), client_ca=allowed)
    ours = ClientTls(authority.file, authority.make("agent"))
    theirs = ClientTls(authority.file, other.make("agent"))
    with serving(tls) as address:

        def works(how):
            with Client(address.url, 20.0, how) as client:
                try:
                    return client.request("GET", "/healthz").status == 200
                except Unreachable:
                    return False

        assert works(ours)
        assert not works(theirs)
        context = ours.context()
        with (
            socket.create_connection(address[:2], 20) as sock,
            context.wrap_socket(sock, server_hostname="127.0.0.1") as first,
        ):
            first.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert first.recv(100)
            session = first.session
        replace(allowed, other.file.read_bytes())
        assert works(theirs)
        assert not works(ours)
        assert not resumed(address, context, session)


def resumed(address, context, session):
    """Whether a session that was had before opens the door again."""
    try:
        with (
            socket.create_connection(address[:2], 20) as sock,
            context.wrap_socket(sock, server_hostname="127.0.0.1", session=session) as tls,
        ):
            tls.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return tls.recv(100) != b""
    except OSError:
        return False


def test_a_client_takes_its_renewed_certificate_and_authority(authority, tmp_path):
    other = TlsAuthority(tmp_path / "other", "other")
    trusted, mine = tmp_path / "trusted.pem", tmp_path / "mine.pem"
    replace(trusted, authority.file.read_bytes())
    replace(mine, other.make("agent").read_bytes())  # of an authority that does not count there
    server = authority.make("server")
    with (
        serving(ServerTls(server, client_ca=authority.file)) as address,
        Client(address.url, 20.0, ClientTls(trusted, mine)) as client,
    ):
        with pytest.raises(Unreachable):
            client.request("GET", "/healthz")
        replace(mine, authority.make("agent").read_bytes())
        assert client.request("GET", "/healthz").status == 200
        failed = []

        def ask():
            try:
                for _ in range(20):
                    assert client.request("GET", "/healthz").status == 200
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):  # while it is being used
            replace(mine, authority.make("agent").read_bytes())
        for thread in threads:
            thread.join()
        assert not failed
        replace(trusted, other.file.read_bytes())
        with pytest.raises(Unreachable, match="TLS failed"):
            client.request("GET", "/healthz")


# -- handshakes that hang -------------------------------------------------------------------


def test_handshakes_that_hang_are_connections(authority):
    """They take places, and are closed without a handshake where there is none."""
    server = authority.make("server")
    with (
        serving(ServerTls(server), connections=6, head_seconds=60.0) as address,
        ExitStack() as held,
    ):
        where = address[:2]
        hanging = [held.enter_context(socket.create_connection(where, 20)) for _ in range(5)]
        with Client(address.url, 20.0, ClientTls(authority.file)) as client:
            eventually(lambda: open_connections(client) == 6)
            # One place was left, and this client has it.
            extra = [held.enter_context(socket.create_connection(where, 20)) for _ in range(3)]
            for sock in extra:
                sock.settimeout(20)
                assert gone(sock), "there was no place"
            assert client.request("POST", "/count", b"12").json() == {"bytes": 2}
            for sock in hanging:
                sock.close()
            eventually(lambda: open_connections(client) == 1)
        assert eventually(lambda: shown(address)) == serial_of(server)


def test_garbage_in_place_of_a_handshake(authority):
    with serving(ServerTls(authority.make("server")), connections=4) as address:
        for _ in range(20):  # more than there are places for, one after the other
            with socket.create_connection(address[:2], 20) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                assert gone(sock)
        with Client(address.url, 20.0, ClientTls(authority.file)) as client:
            eventually(lambda: open_connections(client) == 1)


def test_a_server_stops_while_handshakes_hang(authority):
    tls = ServerTls(authority.make("server"))
    with ExitStack() as held, serving(tls) as address:  # it ends first
        for _ in range(3):
            held.enter_context(socket.create_connection(address[:2], 20))
        shown(address)


def test_a_request_right_behind_the_handshake(authority):
    """What comes with the last bytes of the handshake is not lost; nor is a large body."""
    with serving(ServerTls(authority.make("server"))) as address:
        for size in (0, 1, 60_000, 900_000):
            context = unverified()
            with (
                socket.create_connection(address[:2], 20) as sock,
                context.wrap_socket(sock, server_hostname="x") as tls,
            ):
                head = f"POST /count HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n"
                tls.sendall(head.encode() + b"x" * size)
                data = b""
                while b"}" not in data:
                    data += tls.recv(65536)
                assert json.loads(data.partition(b"\r\n\r\n")[2]) == {"bytes": size}


def gone(sock):
    """Waits until the other side has closed it; it may say why by TLS."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def open_connections(client):
    lines = client.request("GET", "/metrics").body.decode().splitlines()
    (found,) = (line for line in lines if line.startswith("upseal_relay_http_connections "))
    return float(found.split()[1])


# -- agents, relays -----------------------------------------------------------------------


def test_a_relay_asks_for_certificates_and_shows_its_own(authority, tmp_path):
    """Both of its sides: a parent that wants a certificate, and its own listener that does."""
    keys = Site()
    keys.enable()
    mine, client = authority.make("relay"), authority.make("agent")
    with parent_of(keys) as parent:
        tls = ServerTls(authority.make("parent"), client_ca=authority.file)
        with in_thread(parent.app, tls=tls) as above:
            http = {"ca": str(authority.file), "certificate": str(mine)}
            with relay_of(keys, tmp_path, above.url, http=http) as relay:
                path = relay.settings.directory
                eventually(lambda: relay.control.current() is not None and not relay.uplink.away)
                settings = relay.settings
            served = Settings.parse(
                {
                    "parent": settings.parent, "directory": str(path), "listen": "127.0.0.1:0",
                    "http": http, "forward": {"retry": 0.02, "wait": 1},
                    "tls": {"certificate": str(mine), "client_ca": str(authority.file)},
                }
            )  # fmt: skip
            started, stop, heard = threading.Event(), threading.Event(), []
            with Relay(served) as relay:

                def on_started(address):
                    heard.append(address)
                    started.set()

                thread = threading.Thread(
                    target=relay.serve, kwargs={"stop": stop, "on_started": on_started}
                )
                thread.start()
                try:
                    assert started.wait(30)
                    url = heard[0].url
                    assert url.startswith("https://")
                    nobody = Client(url, 20.0, ClientTls(authority.file))
                    with nobody, pytest.raises(Unreachable):
                        nobody.request("GET", "/healthz")
                    with senders(keys, "http://x") as (sender,):
                        sender.uplink.client = Client(url, 20.0, ClientTls(authority.file, client))
                        with sender.uplink.client:
                            body = sender.sealed(sender.unit(b"by way of two certificates"))
                            sender.post(body)
                            sender.done(body)
                finally:
                    stop.set()
                    thread.join()
        assert parent.reports == [b"by way of two certificates"]


def test_settings_of_tls(tmp_path):
    with pytest.raises(SettingsError, match="client_ca"):
        Settings.parse({"parent": "http://x", "tls": {"client_ca": "ca.pem"}})


@pytest.mark.parametrize("who", ["agent", "relay"])
def test_enrolling_with_a_certificate(authority, tmp_path, who, monkeypatch, capsys):
    """What is named while enrolling is used for it, and stands in the settings after it."""
    from fleet_server_support import Site as Deployment

    certificate, key = tmp_path / "me.pem", tmp_path / "me.key"
    replace(certificate, authority.make("me", key_file=key).read_bytes())
    site = Deployment(tmp_path / "site")
    server = authority.make("server")
    site.configure(f'[server]\ntls_certificate = "{server}"\ntls_client_ca = "{authority.file}"')
    monkeypatch.setenv("UPSEAL_TOKEN", site.token(who).encode())
    with site.running():
        options = ["--parent", site.url, "-d", str(tmp_path / who), "--ca", str(authority.file)]
        assert main([who, "enrol", *options]) == 4, "without a certificate nobody is let in"
        capsys.readouterr()
        options += ["--certificate", str(certificate), "--certificate-key", str(key)]
        assert main([who, "enrol", *options]) == 0, capsys.readouterr()
    text = (tmp_path / who / f"{who}.toml").read_text()
    assert f'certificate = "{certificate}"' in text
    assert f'key = "{key}"' in text

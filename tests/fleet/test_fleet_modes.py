# SPDX-License-Identifier: Apache-2.0
"""The whole chain with TLS and client certificates on every hop, on PostgreSQL, and with FIPS."""

import json

import pytest
from fleet_modes import Certificates, Mode
from fleet_world import eventually, make_world, reporting

from upseal import PrivateKey
from upseal.core.suites import Suite
from upseal.fleet.http.client import Client, ClientTls, Unreachable
from upseal.fleet.identity import SigningKey
from upseal.fleet.policy import Reason

SEALED, CLEAR = "sealed", "clear"


def sent(world, how):
    """Bodies that the decrypting relay has sent up."""
    mine = world.mode.client("decrypting")
    tls = ClientTls(**mine) if mine else None
    with Client(world.mode.url(world.proxies["decrypting"].url), 5, tls) as client:
        text = client.request("GET", "/metrics").body.decode()
    start = f'upseal_relay_sent_bodies_total{{how="{how}"}} '
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return float(line.removeprefix(start))


def chain(world):
    """Reports at all levels, a rotation while they come, and all of it once at the server."""
    world.report(20)
    world.check()
    with world.admin() as admin, reporting(world):
        admin.rotate(timeout=60)
        with admin.view() as view:
            new = view.manifest.encryption[0].key_id
        for name in ("must", "may"):
            eventually(
                lambda n=name: world.query(
                    "SELECT 1 FROM units WHERE agent = ? AND key_id = ?",
                    (world.members[n].id, new),
                ),
                "the new key at the server",
            )
    world.check()
    assert world.client("must") == (2, SEALED, Reason.SEALED)
    assert world.client("may") == (1, SEALED, Reason.SEALED)
    assert world.client("plain") == (0, CLEAR, Reason.LEVEL_NONE)
    assert not world.alarms()
    with world.admin() as admin:
        assert admin.audit(verify=True)["rows"] > 5
        status = admin.status()
    # The decrypting relay has opened what came, and sealed it to the server anew.
    (keys,) = [relay.keys for relay in status.manifest.relays if relay.decrypts]
    assert keys
    assert sent(world, "repackaged") > 0
    return status


def asked(url, tls):
    with Client(url, 5, tls) as client:
        return client.request("GET", "/v1/manifest?since=0").status


def test_tls_with_client_certificates_on_every_hop(tmp_path):
    tls = Certificates(tmp_path / "tls")
    with make_world(tmp_path / "world", mode=Mode(tls=tls)) as world:
        chain(world)
        # Each listener asks: nobody gets an answer without a certificate of that authority.
        stranger = Certificates(tmp_path / "stranger")
        for name, proxy in world.proxies.items():
            url = world.mode.url(proxy.url)
            mine, others = tls.of(name), stranger.of(name)
            for certificate, key in ((None, None), others):
                with pytest.raises(Unreachable):
                    asked(url, ClientTls(tls.ca, certificate, key))
            assert asked(url, ClientTls(tls.ca, *mine)) == 200
            # And who listens must be known: nobody speaks to another.
            with pytest.raises(Unreachable, match="TLS"):
                asked(url, ClientTls(stranger.ca, *mine))
        for proxy in world.proxies.values():
            assert not any(b"HTTP/1.1" in data for data in proxy.recorded())


def test_postgresql(tmp_path, postgresql):
    with make_world(tmp_path / "world", mode=Mode(database=postgresql.database())) as world:
        chain(world)
        assert not (world.deployment / "server.db").exists()
        assert world.nodes["server"].events("server ready")[0]["postgresql"] is True


def test_fips(tmp_path):
    """P-256 everywhere: signatures, what is sealed to, and each one's own keys."""
    with make_world(tmp_path / "world", mode=Mode(fips=True)) as world:
        status = chain(world)
        manifest = status.manifest
        signing = [*manifest.signing_keys, *manifest.receipt_keys]
        signing += [relay.identity for relay in manifest.relays]
        assert {key.algorithm for key in signing} == {"ES256"}
        keys = [*manifest.encryption, manifest.enrolment]
        keys += [key for relay in manifest.relays for key in relay.keys]
        assert {key.public().name for key in keys} == {"p256"}
        suites = world.query("SELECT DISTINCT suite FROM units WHERE suite IS NOT NULL")
        assert [Suite(suite).label for (suite,) in suites] == ["p256"]
        for folder in [member.folder for member in world.members.values()] + [
            world.nodes[name].folder for name in ("passing", "decrypting")
        ]:
            for name in ("identity.pem", "hop.pem"):
                key = SigningKey.from_pem((folder / name).read_bytes())
                assert key.public.algorithm == "ES256", folder
        for member in world.members.values():
            key = PrivateKey.from_pem((member.folder / "spool.pem").read_bytes())
            assert key.public_key.name == "p256"
            credential = json.loads((member.folder / "enrolment.json").read_text())["credential"]
            assert credential.count(".") == 2

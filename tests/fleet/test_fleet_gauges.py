# SPDX-License-Identifier: Apache-2.0
"""Gauges by themselves: who must seal and cannot, open alarms, what ends when, what runs."""

import time

import pytest
from cryptography import x509
from fleet_page_support import add_client, says
from fleet_server_support import Site
from fleet_support import DAY_MS, now_ms, readings
from fleet_tls_support import TlsAuthority

import upseal
from upseal.engine import choose
from upseal.fleet.http.metrics import Metrics
from upseal.fleet.server import gauges
from upseal.fleet.server.headcount import Headcount
from upseal.fleet.server.meters import Meters
from upseal.fleet.server.store import alarms


@pytest.fixture
def meters():
    return Meters(Metrics("server"))


def shown(meters):
    metrics = getattr(meters, "metrics", meters)
    return readings(metrics.render().decode())


def test_alarms_are_open_until_somebody_has_looked(tmp_path, meters):
    with Site(tmp_path / "site").store() as store, store.writing() as db:
        now = now_ms()

        def count():
            gauges.note(db, meters, now)
            found = shown(meters)
            return [
                found[f'upseal_server_alarms_open{{kind="{kind}"}}']
                for kind in ("cannot-open", "contradiction")
            ]

        assert count() == [0, 0]
        for subject in (b"a" * 16, b"b" * 16):
            alarms.sound(db, "contradiction", subject, {}, now)
        assert count() == [0, 2]
        alarms.acknowledge(db, list(alarms.listing(db, limit=1)), "ada", now)
        assert count() == [0, 1]
        for subject in (b"a" * 16, b"b" * 16):
            alarms.sound(db, "contradiction", subject, {}, now)
        assert count() == [0, 2], "it has come again"


def test_clients_are_counted_as_the_manifest_sees_them(tmp_path, meters):
    site = Site(tmp_path / "site")
    with site.store() as store:
        now = now_ms()
        with store.writing() as db:
            says(db, add_client(db, "a"), "sealed", seen=now)
            says(db, add_client(db, "b"), "withheld", seen=now)
            says(db, add_client(db, "c"), "sealed", seen=now - 2 * DAY_MS)
        made = Headcount(store, meters, 24)
        assert not made.round(None)
        assert made.round(site.manifest())
        assert not made.round(site.manifest()), "not again at once"
    found = shown(meters)
    assert found["upseal_server_orphaned_clients"] == 1
    does = {d: found[f'upseal_server_members{{does="{d}"}}'] for d in ("sealed", "silent", "clear")}
    assert does == {"sealed": 1, "silent": 1, "clear": 0}


def test_a_manifest_says_what_ends_when(tmp_path, meters):
    site = Site(tmp_path / "site")
    gauges.of_manifest(meters, site.manifest())
    assert shown(meters)["upseal_server_encryption_enabled"] == 0
    with site.running():
        site.enable()
    manifest = site.manifest()
    gauges.of_manifest(meters, manifest)
    found = shown(meters)
    assert found["upseal_server_encryption_enabled"] == 1
    assert found["upseal_server_manifest_expires_seconds"] == manifest.expires / 1000
    (key,) = manifest.encryption
    certificate = x509.load_pem_x509_certificate(key.certificate.encode())
    name = f'upseal_server_key_certificate_expires_seconds{{generation="{key.generation}"}}'
    assert found[name] == certificate.not_valid_after_utc.timestamp() > time.time()


def test_a_process_says_what_it_is_and_when_its_certificates_end(tmp_path):
    metrics = Metrics("relay")
    engine = choose().engine
    said = engine.describe()
    found = shown(metrics)
    assert (
        found[
            f'upseal_relay_build_info{{backend="{said["backend"]}",engine="{said["engine"]}",'
            f'version="{upseal.__version__}"}}'
        ]
        == 1
    )
    assert found['upseal_relay_key_memory_bytes{part="size"}'] == engine.key_memory().size
    name = 'upseal_relay_tls_certificate_expires_seconds{use="listener"}'
    assert name not in found
    authority = TlsAuthority(tmp_path / "tls")
    file = tmp_path / "chain.pem"
    metrics.certificates["listener"] = file
    assert name not in shown(metrics), "there is no file yet"
    authority.make("relay")
    leaf = (tmp_path / "tls/relay.pem").read_bytes()
    ends = x509.load_pem_x509_certificate(leaf).not_valid_after_utc.timestamp()
    file.write_bytes(b"no certificate")
    assert name not in shown(metrics)
    file.write_bytes(leaf + authority.file.read_bytes())
    root = x509.load_pem_x509_certificate(authority.file.read_bytes()).not_valid_after_utc
    assert shown(metrics)[name] == min(ends, root.timestamp())

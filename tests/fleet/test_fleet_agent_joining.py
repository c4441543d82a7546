# SPDX-License-Identifier: Apache-2.0
"""A newcomer whose parent has not heard of the newest manifest yet."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fleet_support import Site

from upseal.fleet.agent.enrolment import EnrolmentRefused, _spool_key, first_manifest
from upseal.fleet.http.client import Client


@contextmanager
def serving(answers):
    """Gives these manifests, one a request, and the last again and again."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            token = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(200)
            self.send_header("content-length", str(len(token)))
            self.end_headers()
            self.wfile.write(token.encode())

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            with Client(f"http://127.0.0.1:{server.server_port}") as client:
                yield client
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def older_and_newest():
    site = Site()
    older = site.sign()
    site.enable()
    return site, older, site.sign()


def test_an_older_manifest_is_asked_about_again(older_and_newest, tmp_path):
    site, older, newest = older_and_newest
    with serving([older, newest]) as client:
        manifest = first_manifest(client, site.token(site.manifest.serial), tmp_path)
    assert manifest.serial == site.manifest.serial


def test_a_parent_that_stays_behind_is_refused(older_and_newest, tmp_path, monkeypatch):
    monkeypatch.setattr("upseal.fleet.agent.enrolment._PATIENCE", 0.0)
    site, older, _ = older_and_newest
    with serving([older]) as client, pytest.raises(EnrolmentRefused, match="older"):
        first_manifest(client, site.token(site.manifest.serial), tmp_path)


def test_a_spool_key_that_is_there_stays(tmp_path):
    path = tmp_path / "spool.pem"
    _spool_key(path, False)
    before = path.read_bytes()
    _spool_key(path, False)
    assert path.read_bytes() == before

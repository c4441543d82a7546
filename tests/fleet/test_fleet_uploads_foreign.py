# SPDX-License-Identifier: Apache-2.0
"""Clients that are not ours: `tuspy`, and `tus-js-client` run by node.

A small proxy on loopback adds the two headers of ours; all the rest is as they made it.
`scripts/test-companions` puts the second one where it is looked for.
"""

import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fleet_uploads_support import PIECE, SigningProxy, hop, limits, ticket_of

from upseal.fleet.http.paths import UPLOADS
from upseal.fleet.uploads.words import path_of

DATA = os.urandom(4 * PIECE + 4321)
MODULE = Path(__file__).parents[2] / "build/npm/node_modules/tus-js-client"
SCRIPT = Path(__file__).with_name("fleet_uploads_client.cjs")


@pytest.fixture(autouse=True)
def no_proxies_of_the_environment(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    with hop(tmp_path_factory.mktemp("shelf")) as found:
        yield found


@pytest.fixture
def proxy(there):
    with SigningProxy(there) as proxy:
        yield proxy


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "report.bin"
    path.write_bytes(DATA)
    return path


def arrived(there, proxy, ticket, data=DATA):
    there.settled(proxy.sender, ticket)
    held = there.shelf.find(proxy.sender.hop_id, ticket.body_id)
    return held.state == "whole" and held.path.read_bytes() == data


def methods(proxy):
    return [method for method, _, _ in proxy.seen]


class TestTuspy:
    """The Python client."""

    @pytest.fixture
    def tusclient(self):
        return pytest.importorskip("tusclient.client")

    def uploader(self, tusclient, proxy, file, ticket, **how):
        client = tusclient.TusClient(proxy.url + UPLOADS)
        # Latin-1 has a character for each byte.
        metadata = {
            "upload": ticket.upload.decode("latin-1"),
            "sha256": ticket.body_sha256.decode("latin-1"),
            "form": ticket.form,
            "filename": "report.bin",
        }
        how.setdefault("chunk_size", PIECE)
        how.setdefault("retry_delay", 0)
        stream = io.BytesIO(file.read_bytes())  # it would not close a file that it opens
        return client.uploader(
            file_stream=stream, metadata=metadata, metadata_encoding="latin-1", **how
        )

    @pytest.mark.parametrize("checksum", [False, True])
    def test_all_of_it(self, tusclient, there, proxy, file, checksum):
        ticket = ticket_of(DATA)
        uploader = self.uploader(tusclient, proxy, file, ticket, upload_checksum=checksum)
        uploader.upload()
        assert uploader.url == proxy.url + path_of(ticket.body_id)
        assert methods(proxy) == ["POST"] + ["PATCH"] * 5
        assert all(("upload-checksum" in said) is checksum for _, _, said in proxy.seen[1:])
        assert arrived(there, proxy, ticket)

    def test_zero_bytes(self, tusclient, there, proxy, tmp_path):
        (tmp_path / "empty").touch()
        ticket = ticket_of(b"")
        self.uploader(tusclient, proxy, tmp_path / "empty", ticket).upload()
        assert methods(proxy) == ["POST"]
        assert arrived(there, proxy, ticket, b"")

    @pytest.mark.parametrize("how", ["cut", "answerless"])
    def test_a_cut_connection(self, tusclient, there, proxy, file, how):
        ticket = ticket_of(DATA)
        setattr(proxy, how, lambda number: number in (1, 4))
        self.uploader(tusclient, proxy, file, ticket, retries=3).upload()
        assert methods(proxy).count("HEAD") == 2
        assert arrived(there, proxy, ticket)

    def test_a_piece_that_was_damaged(self, tusclient, there, proxy, file):
        """The proxy signs what it damaged: the checksum is all that shows it."""
        ticket = ticket_of(DATA)
        proxy.damage = lambda number: number == 2
        self.uploader(tusclient, proxy, file, ticket, upload_checksum=True, retries=1).upload()
        assert methods(proxy).count("PATCH") == 6
        assert arrived(there, proxy, ticket)

    def test_it_is_resumed_by_another_process_at_another_one(self, tusclient, tmp_path, file):
        ticket = ticket_of(DATA)
        with hop(tmp_path / "shelf") as there, SigningProxy(there) as proxy:
            first = self.uploader(tusclient, proxy, file, ticket)
            first.upload(stop_at=2 * PIECE)
            sender, path = proxy.sender, first.url.removeprefix(proxy.url)
        with hop(tmp_path / "shelf") as there, SigningProxy(there, sender) as proxy:
            later = self.uploader(tusclient, proxy, file, ticket, url=proxy.url + path)
            assert later.offset == 2 * PIECE
            later.upload()
            assert methods(proxy)[0] == "HEAD" and "POST" not in methods(proxy)
            assert methods(proxy).count("PATCH") == 3
            assert arrived(there, proxy, ticket)

    def test_what_is_refused(self, tusclient, tmp_path, file):
        from tusclient.exceptions import TusCommunicationError, TusUploadFailed

        with (
            hop(tmp_path / "shelf", shelf_limits=limits(max_size=1000)) as there,
            SigningProxy(there) as proxy,
        ):
            with pytest.raises(TusCommunicationError) as caught:
                self.uploader(tusclient, proxy, file, ticket_of(DATA)).upload()
            assert caught.value.status_code == 413
        with hop(tmp_path / "shelf") as there, SigningProxy(there) as proxy:
            uploader = self.uploader(tusclient, proxy, file, ticket_of(DATA), chunk_size=PIECE * 2)
            with pytest.raises(TusUploadFailed) as failed:
                uploader.upload()
            assert failed.value.status_code == 413

    def test_the_proxy_is_needed(self, tusclient, there, file):
        from tusclient.exceptions import TusCommunicationError

        class Plain:
            url = there.address.url

        with pytest.raises(TusCommunicationError) as caught:
            self.uploader(tusclient, Plain, file, ticket_of(DATA)).upload()
        assert caught.value.status_code == 401


class TestTusJsClient:
    """The JavaScript client."""

    @pytest.fixture
    def run(self, proxy, file):
        node = shutil.which("node")
        if node is None:
            pytest.skip("there is no node")
        if not MODULE.is_dir():
            pytest.skip("tus-js-client is not there: see scripts/test-companions")

        def run(ticket, through=proxy, **job):
            job = {
                "endpoint": through.url + UPLOADS, "file": str(file), "chunk": PIECE,
                "metadata": ticket.metadata(), **job,
            }  # fmt: skip
            done = subprocess.run(
                [node, str(SCRIPT), str(MODULE), json.dumps(job)],
                capture_output=True, check=False, timeout=60, text=True,
            )  # fmt: skip
            assert done.returncode == 0 and done.stdout, done.stderr
            return json.loads(done.stdout)

        return run

    def test_all_of_it(self, there, proxy, run):
        ticket = ticket_of(DATA)
        said = run(ticket)
        assert said["outcome"] == "success"
        assert said["url"] == proxy.url + path_of(ticket.body_id)
        assert said["statuses"] == [["POST", 201]] + [["PATCH", 204]] * 5
        assert said["chunks"][-1] == [4321, len(DATA)]
        assert arrived(there, proxy, ticket)

    def test_from_a_stream(self, there, proxy, run):
        ticket = ticket_of(DATA)
        assert run(ticket, stream=True)["outcome"] == "success"
        assert arrived(there, proxy, ticket)

    def test_zero_bytes(self, there, proxy, run, file):
        file.write_bytes(b"")
        ticket = ticket_of(b"")
        assert run(ticket)["outcome"] == "success"
        assert arrived(there, proxy, ticket, b"")

    @pytest.mark.parametrize("algorithm", ["sha256", "md5"])
    def test_checksums(self, there, proxy, run, algorithm):
        ticket = ticket_of(DATA)
        proxy.damage = lambda number: number == 1
        said = run(ticket, checksum=algorithm)
        assert said["outcome"] == 460 and said["statuses"][-1] == ["PATCH", 460]
        said = run(ticket, checksum=algorithm, url=proxy.url + path_of(ticket.body_id))
        assert said["outcome"] == "success"
        assert said["statuses"] == [["HEAD", 200]] + [["PATCH", 204]] * 4
        assert arrived(there, proxy, ticket)

    def test_the_method_overridden(self, there, proxy, run):
        ticket = ticket_of(DATA)
        assert run(ticket, override=True)["outcome"] == "success"
        assert set(methods(proxy)) == {"POST"}
        assert arrived(there, proxy, ticket)

    @pytest.mark.parametrize("how", ["cut", "answerless"])
    def test_a_cut_connection(self, there, proxy, run, how):
        ticket = ticket_of(DATA)
        setattr(proxy, how, lambda number: number in (1, 3))
        said = run(ticket, retries=[0, 0, 0])
        assert said["outcome"] == "success" and methods(proxy).count("HEAD") == 2
        assert arrived(there, proxy, ticket)

    def test_it_is_resumed_by_another_process_at_another_one(self, run, tmp_path):
        ticket = ticket_of(DATA)
        with hop(tmp_path / "shelf") as there, SigningProxy(there) as proxy:
            said = run(ticket, proxy, abort=2 * PIECE)
            assert said["outcome"] == "aborted"
            sender = proxy.sender
        with hop(tmp_path / "shelf") as there, SigningProxy(there, sender) as proxy:
            said = run(ticket, proxy, url=proxy.url + path_of(ticket.body_id))
            assert said["outcome"] == "success" and said["statuses"][0] == ["HEAD", 200]
            assert "POST" not in methods(proxy)
            assert arrived(there, proxy, ticket)

    def test_termination(self, there, proxy, run):
        ticket = ticket_of(DATA)
        said = run(ticket, abort=PIECE, terminate=True)
        assert said["outcome"] == "aborted" and said["statuses"][-1] == ["DELETE", 204]
        assert there.shelf.find(proxy.sender.hop_id, ticket.body_id) is None
        # It is told that there is nothing, and by itself begins anew.
        said = run(ticket, url=proxy.url + path_of(ticket.body_id))
        assert said["outcome"] == "success"
        assert said["statuses"][:2] == [["HEAD", 404], ["POST", 201]]
        assert arrived(there, proxy, ticket)

    def test_what_is_refused(self, run, tmp_path):
        with (
            hop(tmp_path / "shelf", shelf_limits=limits(max_size=1000)) as there,
            SigningProxy(there) as proxy,
        ):
            assert run(ticket_of(DATA), proxy)["outcome"] == 413

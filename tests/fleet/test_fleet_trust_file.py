# SPDX-License-Identifier: Apache-2.0
"""Trust on the disk: over restarts, several processes, and files that somebody put there."""

import json
import os
import signal
import stat
import threading

import pytest
from fleet_support import Site, start_trust

from upseal.fleet.identity import KINDS
from upseal.fleet.trust import Outcome, Trust, TrustError


@pytest.fixture(params=KINDS)
def site(request):
    return Site(request.param, "p256" if request.param == "p256" else "x25519")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trust.json"


class TestFile:
    def test_it_is_private(self, site, path):
        site.trust(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert sorted(os.listdir(path.parent)) == ["trust.json", "trust.json.lock"]

    def test_it_goes_on_where_it_stopped(self, site, path):
        started = start_trust(path, site, least=1)
        assert Trust.load(path).manifest is None
        site.enable()
        started.offer([site.sign()], 0)
        loaded = Trust.load(path)
        assert loaded.manifest == started.manifest
        assert loaded.token == started.token
        assert loaded.etag == started.etag
        assert loaded.fingerprint == started.fingerprint
        assert loaded.offer([site.tokens[-1]], 0) is Outcome.SAME

    def test_what_cannot_be_written_is_not_believed(self, site, path, monkeypatch):
        site.enable()
        trust = site.trust(path)
        before = trust.manifest
        site.disable()
        token = site.sign()
        with monkeypatch.context() as patch:

            def fail(*_):
                raise OSError(28, "no space left")

            patch.setattr(os, "fsync", fail)
            with pytest.raises(OSError):
                trust.offer([token], 0)
        assert trust.manifest == before == Trust.load(path).manifest
        assert trust.offer([token], 0) is Outcome.ACCEPTED

    @pytest.mark.parametrize("size", [0, 1, 50, -1])
    def test_cut_off(self, site, path, size):
        site.trust(path)
        data = path.read_bytes()
        path.write_bytes(data[:size])
        with pytest.raises(TrustError):
            Trust.load(path)

    @pytest.mark.parametrize(
        "change",
        [{"version": 2}, {"deployment": "00" * 16}, {"least_serial": 2}, {"least_serial": -1},
         {"newest": {}}, {"newest": {"serial": 1, "token": "x"}}, {"links": 5}, {"alarms": [5]},
         {"alarms": [{"t": 1, "serial": 1, "sha256": "x"}]}, {"more": 1}, {"fingerprint": "x"}],
        ids=str,
    )  # fmt: skip
    def test_damaged(self, site, path, change):
        site.trust(path)
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | change))
        with pytest.raises(TrustError):
            Trust.load(path)

    def test_a_flipped_bit_in_the_manifest(self, site, path):
        site.enable()
        site.trust(path)
        data = bytearray(path.read_bytes())
        at = data.index(site.tokens[-1].encode()) + len(site.tokens[-1]) // 2
        data[at] = ord("A") if data[at] != ord("A") else ord("B")
        path.write_bytes(data)
        with pytest.raises(TrustError):
            Trust.load(path)

    def test_there_is_none(self, path):
        with pytest.raises(FileNotFoundError):
            Trust.load(path)

    def test_another_process_is_heard(self, site, path):
        mine = site.trust(path)
        theirs = Trust.load(path)
        site.enable()
        older = site.sign()
        site.disable()
        assert theirs.offer([site.sign()], 0) is Outcome.ACCEPTED
        assert mine.manifest.serial == 1
        assert mine.offer([older], 0) is Outcome.OLDER  # and the file does not go back
        assert mine.manifest == theirs.manifest == Trust.load(path).manifest
        site.enable()
        theirs.offer([site.sign()], 0)
        mine.refresh()
        assert mine.manifest == site.manifest

    def test_an_old_file_put_there_does_not_lead_back(self, site, path):
        trust = site.trust(path)
        old, one = path.read_bytes(), site.tokens[-1]
        site.enable()
        newest = site.sign()
        trust.offer([newest], 0)
        for act in (lambda: path.write_bytes(old), path.unlink):
            act()
            assert trust.offer([one], 0) is Outcome.OLDER
            assert trust.manifest == site.manifest == Trust.load(path).manifest

    def test_the_file_of_another_deployment_put_there(self, site, path, tmp_path):
        trust = site.trust(path)
        Site().trust(tmp_path / "other")
        os.replace(tmp_path / "other", path)
        site.enable()
        with pytest.raises(TrustError):
            trust.offer([site.sign()], 0)
        assert trust.manifest.serial == 1

    def test_many_at_once(self, site, path):
        site.trust(path)
        tokens = [site.change() and site.sign() for _ in range(12)]
        barrier = threading.Barrier(4)
        errors = []

        def run(order):
            try:
                trust = Trust.load(path)
                barrier.wait()
                for token in order:
                    before = trust.manifest.serial
                    trust.offer([token], 0)
                    assert trust.manifest.serial >= before
            except BaseException as error:
                errors.append(error)

        orders = (tokens, tokens[::-1], tokens[::2], tokens[1::2])
        threads = [threading.Thread(target=run, args=(order,)) for order in orders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert Trust.load(path).manifest == site.manifest

    def test_in_a_forked_child(self, site, path):
        trust = site.trust(path)
        site.enable()
        token = site.sign()
        with trust._lock:  # another thread's, at the moment of the fork
            child = os.fork()
            if child == 0:
                signal.alarm(30)  # else a child that waits for that lock would wait for ever
                done = 1
                try:
                    done = 0 if trust.offer([token], 0) is Outcome.ACCEPTED else 2
                finally:
                    os._exit(done)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert trust.offer([token], 0) is Outcome.SAME

# SPDX-License-Identifier: Apache-2.0
"""A relay that is told to stop ends soon, whatever its parent does."""

import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from types import SimpleNamespace

from fleet_relay_support import eventually, make_folder, parent_of, relay_of, senders, settings_for
from fleet_support import Site

from upseal.fleet.http.client import Client, Unreachable
from upseal.fleet.relay import relay as relays
from upseal.fleet.relay.settings import toml_of

LONGEST = 5.0
TIMEOUT = 60.0
"""Seconds that a request to the parent may take."""


class Silent:
    """A parent that takes connections and says nothing."""

    def __init__(self, stack):
        self.socket = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.taken = []
        threading.Thread(target=self._run, daemon=True).start()
        stack.callback(lambda: [connection.close() for connection in self.taken])

    def _run(self):
        with suppress(OSError):
            while True:
                self.taken.append(self.socket.accept()[0])


def test_sigterm_while_the_parent_hangs(tmp_path):
    """Requests of its own, and one that it hands through, are under way: nobody waits for them."""
    site = Site()
    site.enable()
    with ExitStack() as stack:
        folder = make_folder(site, tmp_path / "relay", site.add_relay("r"))
        site.sign()
        # It has a manifest by now, so it takes bodies; then its parent hangs.
        parent = Silent(stack)
        settings = settings_for(folder, parent.url, http={"timeout": TIMEOUT})
        (folder / "relay.toml").write_text(toml_of(settings) + f"[http]\ntimeout = {TIMEOUT}\n")
        log = stack.enter_context(open(tmp_path / "log", "wb"))
        child = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "upseal", "relay", "run", "-d", folder], stderr=log
            )
        )
        stack.callback(lambda: child.poll() is None and child.kill())
        address = eventually(
            lambda: (folder / "address").exists() and (folder / "address").read_text().strip(),
            seconds=30,
        )
        url = f"http://{address}"
        sender = stack.enter_context(senders(site, url))[0]
        (result,) = sender.post(sender.sealed(sender.unit(b"waits")))
        assert result.state.value == "pending"

        def enrol():
            with suppress(Unreachable), Client(url, 30) as client:
                client.request("POST", "/v1/enrol", b"x" * 100)

        handed = threading.Thread(target=enrol)
        before = len(parent.taken)
        handed.start()
        eventually(lambda: len(parent.taken) > before)
        child.send_signal(signal.SIGTERM)
        assert child.wait(TIMEOUT / 2) == 0, "it has not waited for them to time out"
        handed.join(30)
    assert b'"stopped"' in (tmp_path / "log").read_bytes()


def test_all_that_hangs_has_one_patience_together(tmp_path, monkeypatch):
    """Whatever number of threads has a request under way: by a clock of the test's."""
    now, waited = [100.0], []

    class Hanging:
        def join(self, timeout):
            waited.append(timeout)
            now[0] += timeout
            return False

    site = Site()
    site.enable()
    with parent_of(site) as parent, relay_of(site, tmp_path, parent.url) as relay:
        with monkeypatch.context() as patched:
            patched.setattr(relays, "time", SimpleNamespace(monotonic=lambda: now[0]))
            patched.setattr(relay, "_threads", lambda: [Hanging() for _ in range(4)])
            relay.stop()
        assert len(waited) == 4
        assert sum(waited) <= LONGEST
        assert relay.forwarder.join(30)
        assert relay.control.join(30)


def test_what_is_handed_through_is_answered(tmp_path):
    """Many at once, each by a thread of its own: bounded, and all of them answered."""
    site = Site()
    site.enable()
    with parent_of(site) as parent, relay_of(site, tmp_path, parent.url) as relay:
        statuses = []

        def enrol():
            with Client(relay.url, 30) as client:
                statuses.append(client.request("POST", "/v1/enrol", b"x" * 100).status)

        threads = [threading.Thread(target=enrol) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(statuses) == 12
        with Client(relay.url, 30) as client:  # and each place is free again
            assert client.request("POST", "/v1/enrol", b"x" * 100).status != 429

# SPDX-License-Identifier: Apache-2.0
"""Whole files through real relays to the real server, which opens and receipts them."""

from __future__ import annotations

import contextlib
import os

import pytest
from fleet_relay_support import running, settings_for
from fleet_relay_uploads_support import UPLOADS_QUICK, settled
from fleet_server_support import Site, until
from fleet_server_uploads_support import (
    Upload,
    alarmed,
    announce,
    ask,
    content,
    create,
    finished,
    put,
    rows,
)

from upseal.fleet.http.problems import Problem
from upseal.fleet.http.results import State
from upseal.fleet.relay.state import enrol
from upseal.fleet.units import Status


class Below:
    """The site, as who is below a relay sees it."""

    def __init__(self, site, url):
        self._site, self.url = site, url

    def __getattr__(self, name):
        return getattr(self._site, name)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A server, a decrypting relay below it, and a passing one below that."""
    folder = tmp_path_factory.mktemp("house")
    site = Site(folder / "site")
    with contextlib.ExitStack() as stack:
        stack.enter_context(site.running())
        site.wait_for(site.enable())
        relays, url = [], site.url
        for name in ("decrypting", "passing"):
            settings = settings_for(
                folder / name, url, name=name, decrypting=name == "decrypting",
                uploads=UPLOADS_QUICK,
            )  # fmt: skip
            enrol(settings, site.token("relay").encode())
            relays.append(stack.enter_context(running(settings)))
            url = relays[-1].url
        yield site, relays


@pytest.mark.parametrize("form", ["sealed", "clear"])
@pytest.mark.parametrize("first", ["announcement", "body"])
def test_a_file_goes_through_two_relays(house, form, first):
    site, relays = house
    sender = site.enrol(f"{form}-{first}")
    file = Upload.make(site, os.urandom(3_000_001), form)
    below = Below(site, relays[1].url)
    if first == "announcement":
        announce(sender, file)
    sender.site = below
    assert put(sender, file.ticket, file.body)
    if first == "body":
        assert ask(sender, file.id).state is State.PENDING
        sender.site = site
        announce(sender, file)
        sender.site = below
    result = finished(sender, file.id)
    assert sender.statuses(result) == {file.digest(sender): Status.STORED}
    for relay in relays:
        settled(relay)
    (row,) = rows(site, sender.agent)
    assert content(site, row) == file.data
    assert row.form == form, "as its agent has sent it"
    assert row.key_id is not None, "the last hop is always sealed"
    # The same file once more, by another body: the server has it.
    if form == "sealed":
        again = file.again(site)
        sender.site = site
        announce(sender, again)
        sender.site = below
        assert put(sender, again.ticket, again.body)
        assert sender.statuses(finished(sender, again.id)) == {
            again.digest(sender): Status.DUPLICATE
        }
        assert len(rows(site, sender.agent)) == 1
    # And the same body: nobody wants its bytes.
    assert not put(sender, file.ticket, file.body)
    for relay in relays:
        settled(relay)


def test_what_the_server_refuses_comes_back(house):
    site, relays = house
    sender = site.enrol("refused")
    stranger = Upload.make(site, b"sealed to nobody here", context=b"another context")
    announce(sender, stranger)
    sender.site = Below(site, relays[1].url)
    assert put(sender, stranger.ticket, stranger.body)
    result = finished(sender, stranger.id)
    assert result.state is State.PROBLEM and result.problem.name == "malformed"
    for relay in relays:
        settled(relay)
    assert {kind for kind, _ in alarmed(site)} == {"cannot-open"}


def test_a_revoked_client_is_refused_at_the_relay(house):
    site, relays = house
    sender = site.enrol("revoked")
    file = Upload.make(site, os.urandom(10_000))
    sender.site = Below(site, relays[1].url)
    with site.admin() as deployment:
        serial = deployment.revoke(sender.agent.hex()).manifest.serial
    until(lambda: relays[1].control.current().serial >= serial)
    with pytest.raises(Problem) as refused:
        put(sender, file.ticket, file.body)
    assert refused.value.name == "revoked"
    assert create(sender, file.ticket).status == 403
    assert not relays[1].state.shelf.usage().bodies

# SPDX-License-Identifier: Apache-2.0
"""Whose capabilities count at a parent's address: of one relay, and never older ones."""

import dataclasses
import json
import os
import stat

import pytest
from fleet_agent_support import agent_of, capabilities, drained, eventually, parent_above
from fleet_relay_support import parent_of, relay_of
from fleet_support import Site, now_ms

from upseal.cli import main
from upseal.fleet import jws
from upseal.fleet.agent.parent import known_parent
from upseal.fleet.capabilities import FILE, Way, forget, verified_hops
from upseal.fleet.http.client import Client
from upseal.fleet.settings import SettingsError, checked_parents

URL = "http://parent:1"
HOUR = 3_600_000


@pytest.fixture
def site():
    made = Site()
    made.enable()
    return made


@pytest.fixture
def way(tmp_path):
    return Way(tmp_path / FILE, URL)


def names(hops):
    return ["server" if hop.relay is None else hop.relay.name for hop in hops]


def takes_sealed(hops):
    return known_parent(hops, now_ms()).accepts_sealed


def test_who_answers_first_counts_and_nobody_else(site, way, tmp_path):
    ours, other = site.add_relay("ours"), site.add_relay("other")
    now = now_ms()
    assert names(way.hear(capabilities(ours), site.manifest, now)) == ["ours"]
    assert way.stranger is None
    for said in (
        capabilities(other, accepts_sealed=False),
        capabilities(other),
        capabilities(other, parent=capabilities(ours)),
        jws.sign({**jws.unverified(capabilities(other)), "sub": "server"}, site.receipt,
                 jws.CAPABILITIES),
    ):  # fmt: skip
        assert way.hear(said, site.manifest, now) == ()
        assert way.stranger in (other.relay.hex(), "server")
    refusal = capabilities(ours, accepts_sealed=False, iat=now + 1)
    assert not takes_sealed(way.hear(refusal, site.manifest, now))
    assert way.stranger is None
    # It stands on the disk, for nobody else, and the next process goes by it.
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    again = Way(tmp_path / FILE, URL)
    assert again.hear(capabilities(other, accepts_sealed=False), site.manifest, now) == ()
    assert names(again.hear(capabilities(ours, iat=now + 2), site.manifest, now)) == ["ours"]


def test_older_words_of_the_same_relay_do_not_count(site, way, tmp_path):
    ours, above = site.add_relay("ours"), site.add_relay("above")
    now = now_ms()
    old = capabilities(ours, accepts_sealed=False, iat=now - 1000)
    assert not takes_sealed(way.hear(old, site.manifest, now))
    new = capabilities(ours, iat=now, parent=capabilities(above, iat=now))
    assert names(way.hear(new, site.manifest, now)) == ["ours", "above"]
    assert way.hear(old, site.manifest, now) == ()
    assert Way(tmp_path / FILE, URL).hear(old, site.manifest, now) == (), "after a restart as well"
    assert names(way.hear(new, site.manifest, now)) == ["ours", "above"], "the same again"
    # Of each relay by itself: an old word inside a new one ends the way there.
    stale = capabilities(above, accepts_sealed=False, iat=now - 1)
    hops = way.hear(capabilities(ours, iat=now + 1, parent=stale), site.manifest, now)
    assert names(hops) == ["ours"]
    assert takes_sealed(hops)


@pytest.mark.parametrize("time", [{"iat": None}, {"iat": True}, {"iat": "1"}, {"exp": None}])
def test_words_without_a_time_do_not_count(site, way, time):
    relay = site.add_relay("r")
    assert way.hear(capabilities(relay, **time), site.manifest, now_ms()) == ()


def test_words_of_the_future_do_not_count(site, way):
    """They would make all that comes after them old."""
    relay, now = site.add_relay("r"), now_ms()
    early = capabilities(relay, iat=now + HOUR, exp=now + 2 * HOUR, accepts_sealed=False)
    assert way.hear(early, site.manifest, now) == ()
    assert names(way.hear(capabilities(relay, iat=now), site.manifest, now)) == ["r"]
    within = capabilities(relay, iat=now + 200_000)
    assert names(way.hear(within, site.manifest, now)) == ["r"], "clocks differ a little"


def test_another_address_begins_anew_and_so_does_forgetting(site, way, tmp_path):
    ours, other = site.add_relay("ours"), site.add_relay("other")
    now = now_ms()
    way.hear(capabilities(ours), site.manifest, now)
    moved = Way(tmp_path / FILE, "http://elsewhere:1")
    assert names(moved.hear(capabilities(other), site.manifest, now)) == ["other"]
    assert moved.hear(capabilities(ours), site.manifest, now) == ()
    assert forget(tmp_path)
    assert not forget(tmp_path)
    # A process that runs needs no restart for that.
    assert names(moved.hear(capabilities(ours), site.manifest, now)) == ["ours"]


def test_a_relay_that_the_manifest_does_not_name_is_still_the_one(site, way):
    """Its own words count for nothing; that does not make room for another's."""
    unlisted, other = site.add_relay("unlisted"), site.add_relay("other")
    relays = tuple(entry for entry in site.manifest.relays if entry.name != "unlisted")
    full, fewer = site.manifest, dataclasses.replace(site.manifest, relays=relays)
    now = now_ms()
    assert way.hear(capabilities(unlisted, accepts_sealed=False), fewer, now) == ()
    assert way.stranger is None
    for accepts in (True, False):
        assert way.hear(capabilities(other, accepts_sealed=accepts), fewer, now) == ()
        assert way.stranger == other.relay.hex()
    assert names(way.hear(capabilities(unlisted), full, now)) == ["unlisted"]


@pytest.mark.parametrize("how", ["removed", "revoked"])
def test_when_the_administrator_takes_it_out_another_may_follow(site, way, how):
    ours, other = site.add_relay("ours"), site.add_relay("other")
    now = now_ms()
    way.hear(capabilities(ours), site.manifest, now)
    if how == "removed":
        left = tuple(entry for entry in site.manifest.relays if entry.name == "other")
        after = site.change(relays=left)
    else:
        after = site.change(revoked_agents=frozenset({ours.relay}))
    no = capabilities(other, accepts_sealed=False, iat=now)
    assert way.hear(no, after, now) == (), "it does not begin with a no"
    assert names(way.hear(capabilities(other, iat=now), after, now)) == ["other"]
    no = capabilities(other, accepts_sealed=False, iat=now + 1)
    assert not takes_sealed(way.hear(no, after, now))


def test_settings_may_name_whose_words_count(site, tmp_path):
    one, two, other = (site.add_relay(name) for name in ("one", "two", "other"))
    now = now_ms()
    either = Way(tmp_path / FILE, URL, (one.relay.hex(), two.relay.hex()))
    for relay in (one, two, one):
        no = capabilities(relay, accepts_sealed=False, iat=now)
        assert not takes_sealed(either.hear(no, site.manifest, now))
    assert either.hear(capabilities(other, accepts_sealed=False), site.manifest, now) == ()
    assert either.hear(capabilities(two, iat=now - 1), site.manifest, now) == (), "older"
    everybody = Way(tmp_path / FILE, URL, ("any",))
    assert names(everybody.hear(capabilities(other), site.manifest, now)) == ["other"]
    assert everybody.hear(capabilities(one, iat=now - 1), site.manifest, now) == ()


@pytest.mark.parametrize(
    "ids", [(), ("",), ("any", "server"), ("AA" * 16,), ("aa" * 15,), ("berlin",), ("Any",)]
)
def test_what_parent_ids_may_not_be(ids):
    with pytest.raises(SettingsError):
        checked_parents(ids)


@pytest.mark.parametrize("ids", [None, ("any",), ("server",), ("aa" * 16, "server")])
def test_what_parent_ids_may_be(ids):
    checked_parents(ids)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"parent": "http://parent:1"}',
             '{"parent": "http://parent:1", "relay": 5, "listed": true, "newest": {}}',
             '{"parent": "http://parent:1", "relay": null, "listed": true, "newest": {"x": "y"}}',
             "\0" * 50, "[" * 100_000],
)  # fmt: skip
def test_a_damaged_file_makes_room_for_nobody(site, tmp_path, text):
    relay = site.add_relay("r")
    (tmp_path / FILE).write_text(text)
    way = Way(tmp_path / FILE, URL)
    assert way.hear(capabilities(relay, accepts_sealed=False), site.manifest, now_ms()) == ()
    assert way.stranger == relay.relay.hex()
    forget(tmp_path)
    assert way.hear(capabilities(relay), site.manifest, now_ms())


def test_what_cannot_be_written_down_does_not_count(site, tmp_path, monkeypatch):
    relay = site.add_relay("r")
    way = Way(tmp_path / FILE, URL)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("upseal.fleet.capabilities.write_private", full)
    with pytest.raises(OSError, match="space"):
        way.hear(capabilities(relay, accepts_sealed=False), site.manifest, now_ms())


@pytest.mark.parametrize("said", [b"", b"nonsense", b"\xff\xfe", b"a.b.c"])
def test_nonsense_pins_nobody(site, way, said):
    relay = site.add_relay("r")
    assert way.hear(said, site.manifest, now_ms()) == ()
    assert names(way.hear(capabilities(relay), site.manifest, now_ms())) == ["r"]


# -- at an agent, and at a relay -------------------------------------------------------------------


def test_an_optional_agent_hears_its_own_parent_alone(site, tmp_path, capsys):
    """Words of a relay that takes nothing sealed, shown to clients of another one."""
    ours, refusing = site.add_relay("ours"), site.add_relay("refusing")
    with parent_above(site) as parent:
        parent.capable = lambda: capabilities(ours)
        with agent_of(site, tmp_path, parent.url, level="optional") as agent:
            agent.report(b"first")
            drained(agent)
            heard = []

            def replayed():
                heard.append(1)
                return capabilities(refusing, accepts_sealed=False)

            parent.capable = replayed
            eventually(lambda: len(heard) > 3)
            agent.report(b"second")
            drained(agent)
            assert parent.kinds == {"sealed"}
            assert {alarm["kind"] for alarm in agent.status()["alarms"]} == {"parent"}
            # The administrator has put another relay there, and says so.
            folder = tmp_path / "agent"
            (folder / "agent.toml").write_text(f'parent = "{parent.url}"\n')
            assert main(["agent", "forget-parent", "-d", str(folder)]) == 0
            eventually(lambda: agent.status()["actual"] == "clear")
            agent.report(b"third")
            drained(agent)
            assert parent.kinds == {"sealed", "clear"}
    assert main(["agent", "forget-parent", "-d", str(tmp_path / "nobody")]) == 2
    capsys.readouterr()


def test_named_in_the_settings_it_is_heard_from_the_beginning(site, tmp_path):
    ours, refusing = site.add_relay("ours"), site.add_relay("refusing")
    with parent_above(site) as parent:
        heard = []

        def replayed():
            heard.append(1)
            return capabilities(refusing, accepts_sealed=False)

        parent.capable = replayed
        ids = [ours.relay.hex()]
        with agent_of(site, tmp_path, parent.url, parent_ids=ids) as agent:
            eventually(lambda: len(heard) > 2)
            agent.report(b"x")
            drained(agent)
        assert parent.kinds == {"sealed"}


def test_a_relay_hands_down_its_own_parents_words_alone(site, tmp_path):
    """What lies above a relay is guarded by the relay: its clients see its word alone."""
    refusing = site.add_relay("refusing")
    with parent_of(site) as parent, relay_of(site, tmp_path, parent.url) as relay:
        above = eventually(lambda: relay.control._above)
        assert jws.unverified(above)["sub"] == "server"
        heard = []
        parent_says = capabilities(refusing, accepts_sealed=False)
        looked = relay.control._uplink.get

        def get(path, *rest, **how):
            answer = looked(path, *rest, **how)
            if path == "/v1/capabilities":
                heard.append(path)
                answer = dataclasses.replace(answer, status=200, body=parent_says.encode())
            return answer

        relay.control._uplink.get = get
        eventually(lambda: len(heard) > 2)
        with Client(relay.url, 10) as client:
            said = client.request("GET", "/v1/capabilities").body.strip()
        assert [hop.accepts_sealed for hop in verified_hops(said, site.manifest, now_ms())] == [
            True, True,
        ]  # fmt: skip
        kept = json.loads((relay.settings.directory / FILE).read_text())
        assert kept["relay"] == "server"
        assert os.stat(relay.settings.directory / FILE).st_mode & 0o077 == 0

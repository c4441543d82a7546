# SPDX-License-Identifier: Apache-2.0
"""Trust: upwards only, by signed words only, over restarts too."""

import hashlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from fleet_support import Site, raw_token, start_trust, twin, unsigned
from hypothesis import given
from hypothesis import strategies as st

from upseal.core.certificates import load
from upseal.fleet import jws
from upseal.fleet.chain import LINKS_MAX, Chain, Link
from upseal.fleet.identity import KINDS, SigningKey
from upseal.fleet.manifest import State
from upseal.fleet.policy import Absent, Certificate
from upseal.fleet.trust import Outcome, Trust


@pytest.fixture(params=KINDS)
def site(request):
    return Site(request.param, "p256" if request.param == "p256" else "x25519")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trust.json"


class TestFirstContact:
    def test_by_the_fingerprint(self, site, path):
        trust = start_trust(path, site)
        assert trust.manifest is None
        assert trust.certificate(0) is Absent.NEVER_SEEN
        assert not trust.stale(2**60)
        assert trust.since(0) == []
        assert trust.etag is None
        site.enable()
        assert trust.offer([site.sign()], 0) is Outcome.ACCEPTED
        assert trust.manifest == site.manifest
        assert trust.certificate(site.now) == site.manifest.usable()

    def test_another_key_is_a_forger(self, site, path):
        trust = start_trust(path, site)
        other = SigningKey.generate()
        site.change(signing_keys=(other.public,))
        assert trust.offer([site.sign(other)], 0) is Outcome.FORGED
        assert trust.manifest is None

    def test_below_the_least_serial(self, site, path):
        trust = start_trust(path, site, least=3)
        one = site.sign()
        site.enable()  # two steps: 3
        three = site.sign()
        assert trust.offer([one], 0) is Outcome.OLDER
        assert trust.manifest is None
        assert trust.offer([one, three], 0) is Outcome.ACCEPTED
        assert trust.manifest.serial == 3

    def test_past_its_expiry(self, site, path):
        site.enable()
        trust = start_trust(path, site)
        late = site.manifest.expires + 1
        assert trust.offer([site.sign()], late) is Outcome.ACCEPTED
        assert trust.certificate(late).stale

    def test_mistakes_are_seen_at_once(self, path, site):
        for fingerprint, deployment, least in (
            (b"", bytes(16), 1), (bytes(32), b"", 1), (bytes(32), bytes(16), -1),
        ):  # fmt: skip
            with pytest.raises(ValueError):
                Trust.start(path, fingerprint, deployment, least)
        assert not path.exists()

    def test_what_is_believed_is_not_thrown_away(self, site, path):
        site.trust(path)
        before = path.read_bytes()
        with pytest.raises(FileExistsError):
            start_trust(path, Site())
        assert path.read_bytes() == before


class TestWhatIsUsable:
    def test_a_stale_manifest_counts(self, site, path):
        site.enable()
        trust = site.trust(path)
        recipients = site.manifest.usable().recipients
        end = site.manifest.expires
        assert trust.certificate(end - 1) == Certificate(recipients)
        assert not trust.stale(end - 1)
        assert trust.certificate(end) == Certificate(recipients, stale=True)
        assert trust.stale(end)
        assert trust.certificate(2**60) == Certificate(recipients, stale=True)

    def test_only_a_newer_manifest_turns_encryption_off(self, site, path):
        off = site.sign()
        site.enable()
        trust = site.trust(path)
        assert trust.offer([off], 0) is Outcome.OLDER
        site.disable()
        for forged in (
            unsigned(site),
            unsigned(site, "Ed25519"),
            raw_token(site, SigningKey.generate()),
        ):
            assert trust.offer([forged], 0) is Outcome.FORGED
            assert isinstance(trust.certificate(0), Certificate)
        assert trust.offer([site.sign()], 0) is Outcome.ACCEPTED
        assert trust.certificate(0) is Absent.DISABLED

    def test_a_key_not_enabled_yet_is_for_nobody(self, site, path):
        site.pending()
        assert site.trust(path).certificate(0) is Absent.DISABLED


class TestOffers:
    def test_the_same_again(self, site, path):
        trust = site.trust(path)
        token = site.tokens[-1]
        before = path.stat()
        for offer in ([token], [token.encode()], [token, token], []):
            assert trust.offer(offer, 0) is Outcome.SAME
        assert path.stat() == before
        assert trust.alarms == []

    def test_of_another_deployment(self, site, path):
        trust = site.trust(path)
        site.change(deployment=os.urandom(16))
        assert trust.offer([site.sign()], 0) is Outcome.FOREIGN
        assert trust.manifest.serial == 1

    def test_of_another_type(self, site, path):
        trust = site.trust(path)
        site.enable()
        for typ in (jws.CAPABILITIES, jws.HOP, "JWT", jws.MANIFEST.upper()):
            assert trust.offer([raw_token(site, typ=typ)], 0) is Outcome.FORGED

    @pytest.mark.parametrize(
        "changes",
        [{"state": "disabled"}, {"version": 2}, {"more": 1}, {"serial": "9"}, {"serial": None},
         {"authorities": []}, {"expires": 0}, {"relays": {}},
         {"issued": 2**52, "expires": 2**52 + 1}],
        ids=lambda changes: next(iter(changes)),
    )  # fmt: skip
    def test_signed_and_yet_no_manifest(self, site, path, changes):
        trust = site.trust(path)
        site.enable()
        assert trust.offer([raw_token(site, **changes)], 0) is Outcome.INVALID
        assert trust.manifest.serial == 1

    @pytest.mark.parametrize("how", ["swapped", "expired", "revoked", "stripped"])
    def test_with_a_bad_certificate(self, site, path, how):
        site.enable()
        trust = site.trust(path)
        good = trust.certificate(0)
        claims = site.change().claims()
        other = Site(site.kind, site.suite, now=site.now - 3000 * 86_400_000)
        if how == "swapped":
            claims["encryption"] = other.enable().claims()["encryption"]
        elif how == "expired":
            stranger = Site(site.kind, site.suite, now=site.now - 900 * 86_400_000,
                            authority=other.authority)  # fmt: skip
            claims["encryption"] = stranger.enable().claims()["encryption"]
            claims["authorities"].append(other.authority.certificate)
        elif how == "revoked":
            serial = load(claims["encryption"][0]["certificate"].encode()).serial_number
            claims["revoked_certificates"] = [f"{serial:x}"]
        else:
            public = site.private[0].public_key.to_pem().decode()
            claims["encryption"] = [{"public_key": public, "generation": 1}]
        assert trust.offer([raw_token(site, claims=claims)], 0) is Outcome.INVALID
        assert trust.certificate(0) == good

    def test_the_key_that_signs_must_be_named(self, site, path):
        trust = site.trust(path)
        site.change(signing_keys=(SigningKey.generate().public,))
        assert trust.offer([raw_token(site)], 0) is Outcome.INVALID

    @given(st.one_of(st.text(max_size=99), st.binary(max_size=99)))
    def test_no_input_crashes(self, token):
        assert NEUTRAL.offer([token], 0) is Outcome.FORGED

    def test_too_long(self, site, path):
        trust = site.trust(path)
        site.change(revoked_agents=frozenset(os.urandom(16) for _ in range(200_000)))
        assert trust.offer([raw_token(site)], 0) is Outcome.FORGED


class TestContradiction:
    def test_it_is_an_alarm_and_changes_nothing(self, site, path):
        site.enable()
        trust = site.trust(path)
        good = trust.manifest
        site.disable()
        site.change(serial=good.serial)
        token = site.sign()
        for now in (5, 6):
            assert trust.offer([token], now) is Outcome.CONTRADICTION
        assert trust.manifest == good
        (alarm,) = trust.alarms
        assert (alarm.serial, alarm.milliseconds) == (good.serial, 5)
        assert alarm.digest == hashlib.sha256(jws.signed_part(token)).digest()
        again = Trust.load(path)
        assert again.alarms == [alarm]
        assert again.manifest == good
        assert again.offer([token], 9) is Outcome.CONTRADICTION
        assert len(again.alarms) == 1

    def test_alarms_are_bounded(self, site, path):
        trust = site.trust(path)
        for n in range(70):
            site.change(expires=site.manifest.expires + n + 1, serial=1)
            assert trust.offer([site.sign()], n) is Outcome.CONTRADICTION
        assert len(trust.alarms) == 64
        assert trust.alarms[0].milliseconds == 0

    def test_it_is_told_though_a_newer_one_does_not_come(self, site, path):
        trust = site.trust(path)
        mine = site.tokens[-1]
        site.change(expires=site.manifest.expires + 1, serial=1)
        assert trust.offer([site.sign(), mine], 0) is Outcome.CONTRADICTION

    def test_it_does_not_hold_up_a_newer_one(self, site, path):
        trust = site.trust(path)
        site.change(expires=site.manifest.expires + 1, serial=1)
        other = site.sign()
        site.enable()
        assert trust.offer([other, site.sign()], 0) is Outcome.ACCEPTED
        assert len(trust.alarms) == 1

    def test_a_forger_cannot_bring_one_about(self, path):
        site = Site("p256")
        trust = site.trust(path)
        token = site.tokens[-1]
        assert trust.offer([twin(token)], 0) is Outcome.SAME
        site.change(expires=site.manifest.expires + 1, serial=1)
        assert trust.offer([raw_token(site, SigningKey.generate("p256"))], 0) is Outcome.FORGED
        assert trust.alarms == []

    def test_a_manifest_signed_again_is_the_same(self, path):
        site = Site("p256")
        trust = site.trust(path)
        assert site.sign() != site.tokens[0]
        assert trust.offer([site.tokens[-1]], 0) is Outcome.SAME
        assert trust.token == site.tokens[0]


class TestSigningKeys:
    def test_a_change_in_two_steps(self, site, path):
        trust = site.trust(path)
        following = site.announce()
        announced = site.sign()
        site.switch(following)
        switched = site.sign()
        assert trust.offer([switched], 0) is Outcome.FORGED  # it does not know that key yet
        assert trust.offer([announced, switched], 0) is Outcome.ACCEPTED
        assert list(trust.pinned().values()) == [following.public]

    def test_the_old_key_counts_no_more(self, site, path):
        trust = site.trust(path)
        old = site.signing
        site.switch(site.announce())
        site.manifest = replace(site.manifest, signing_keys=(old.public, site.signing.public))
        announced = site.sign(old)
        site.change(signing_keys=(site.signing.public,))
        assert trust.offer([announced, site.sign()], 0) is Outcome.ACCEPTED
        site.change(signing_keys=(old.public,), state=State.DISABLED)
        for one in (trust, Trust.load(path)):
            assert one.offer([site.sign(old)], 0) is Outcome.FORGED

    def test_who_was_away_for_long(self, site, path, tmp_path):
        site.enable()
        away = site.trust(path)
        near = Trust.start(tmp_path / "near", away.fingerprint, site.deployment, 1)
        near.offer([away.token], 0)
        tokens = [away.token]
        for _ in range(4):
            following = site.announce()
            announced = site.sign()
            site.switch(following)
            switched = site.sign()
            site.rotate()
            rotated = site.sign()
            for token in (announced, switched, rotated):
                assert near.offer([token], 0) is Outcome.ACCEPTED
            tokens += [announced, switched, rotated]
        chain = near.since(away.manifest.serial)
        assert len(chain) == 9  # four changes of two steps, and the newest
        assert chain == [token for token in tokens if token in chain]
        assert away.offer(chain, 0) is Outcome.ACCEPTED
        assert away.manifest == near.manifest == site.manifest
        assert Trust.load(tmp_path / "near").since(0) == near.since(0)
        assert near.since(near.manifest.serial) == [near.token]
        assert near.since(2**60) == [near.token]

    def test_a_late_relay_hands_on_what_it_cannot_verify(self, site, path, tmp_path):
        early = site.trust(path)
        following = site.announce()
        announced = site.sign()
        site.switch(following)
        switched = site.sign()
        chain = [early.token, announced, switched]
        junk = ["x", unsigned(site), raw_token(Site()), raw_token(site, serial=99)]
        late = start_trust(tmp_path / "late", site, least=3)
        assert late.offer([*junk[:3], *chain, junk[3]], 0) is Outcome.ACCEPTED
        for one in (late, Trust.load(tmp_path / "late")):
            handed = one.since(early.manifest.serial)
            assert set(chain[1:]) <= set(handed)
            assert handed[-1] == one.token
            assert not set(handed) & set(junk[:3])
        assert early.offer(late.since(1), 0) is Outcome.ACCEPTED
        assert early.manifest == late.manifest

    def test_a_relay_that_knows_more_is_not_told_what_came_before(self, site, path):
        trust = site.trust(path)
        other = SigningKey.generate(site.kind)
        stray = raw_token(site, other, serial=0)
        assert trust.offer([stray], 0) is Outcome.FORGED
        assert trust.since(0) == [trust.token]


class TestChain:
    def test_it_keeps_what_changed_the_keys(self):
        a, b = (SigningKey.generate().public for _ in range(2))
        chain = Chain()
        assert chain.since(0) == []
        for serial, keys in enumerate([[a], [a], [a, b], [b, a], [b], [b]], 1):
            chain.add(serial, f"t{serial}", keys)
        assert chain.since(0) == ["t1", "t3", "t5", "t6"]
        assert chain.since(3) == ["t5", "t6"]
        assert chain.since(5) == chain.since(99) == ["t6"]
        with pytest.raises(ValueError):
            chain.add(6, "t6", [b])
        assert chain.etag.startswith("6-")

    def test_it_is_bounded(self):
        keys = [SigningKey.generate().public for _ in range(2)]
        chain = Chain()
        for serial in range(LINKS_MAX + 20):
            chain.add(serial + 1, f"t{serial}", [keys[serial % 2]])
        assert len(chain.links) == LINKS_MAX
        chain.put_before([Link(1, "x")])
        assert len(chain.links) == LINKS_MAX


_FOLDER = tempfile.TemporaryDirectory()
NEUTRAL = Site().trust(Path(_FOLDER.name) / "trust.json")


def teardown_module():
    _FOLDER.cleanup()

# SPDX-License-Identifier: Apache-2.0
"""Trust: whatever is offered in whatever order, it goes upwards only, by signed words only."""

import tempfile
from pathlib import Path

from fleet_support import Site, raw_token, start_trust, unsigned
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from upseal.fleet import jws
from upseal.fleet.identity import KINDS, SigningKey
from upseal.fleet.trust import Outcome, Trust


class Offers(RuleBasedStateMachine):
    """Whatever is offered, in whatever order, over restarts."""

    @initialize(kind=st.sampled_from(KINDS))
    def begin(self, kind):
        self.folder = tempfile.TemporaryDirectory()
        self.site = Site(kind, "p256" if kind == "p256" else "x25519")
        self.stranger = Site(kind)
        self.path = Path(self.folder.name) / "trust.json"
        self.trust = start_trust(self.path, self.site)
        self.genuine = {}  # by text: every manifest that the deployment has signed
        self.serial = 0
        self.retired = []
        self.sign()

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def sign(self, key=None):
        token = self.site.sign(key)
        self.genuine[token] = self.site.manifest
        return token

    # -- what the administrator does

    @rule(act=st.sampled_from(["enable", "pending", "disable", "rotate", "change"]))
    def administrate(self, act):
        if act == "pending" and self.site.manifest.pending:
            act = "enable"
        getattr(self.site, act)()
        self.sign()

    @rule()
    def change_the_signing_key(self):
        following = self.site.announce()
        self.sign()
        self.retired.append(self.site.signing)
        self.site.switch(following)
        self.sign()

    # -- what is offered

    def offer(self, tokens, *, may_change):
        before = (self.trust.manifest, self.trust.token, self.trust.pinned())
        outcome = self.trust.offer(tokens, 0)
        after = (self.trust.manifest, self.trust.token, self.trust.pinned())
        assert (outcome is Outcome.ACCEPTED) == (before != after)
        if not may_change:
            assert before == after
        return outcome

    @rule(picks=st.lists(st.integers(0, 10**6), min_size=1, max_size=4))
    def genuine_in_any_order(self, picks):
        tokens = list(self.genuine)
        self.offer([tokens[pick % len(tokens)] for pick in picks], may_change=True)

    @rule()
    def the_whole_chain(self):
        tokens = list(self.genuine)
        outcome = self.offer(tokens, may_change=True)
        assert outcome in (Outcome.ACCEPTED, Outcome.SAME)
        assert self.trust.manifest == self.site.manifest

    @rule(alg=st.sampled_from(["none", "Ed25519", "ES256", "HS256", "None"]))
    def unsigned(self, alg):
        assert self.offer([unsigned(self.site, alg)], may_change=False) is Outcome.FORGED

    @rule(step=st.integers(0, 3), old=st.booleans())
    def signed_by_another_key(self, step, old):
        """A stranger's, or one that was retired: with what it would like to be true."""
        key = SigningKey.generate(self.site.kind)
        if old and self.retired and self.trust.manifest is not None:
            key = self.retired[-1]
            if key.public in self.trust.manifest.signing_keys:
                return
        token = raw_token(
            self.site, key, serial=self.site.manifest.serial + step,
            signing_keys=[key.public.jwk()], state="disabled", encryption=[], pending=[],
        )  # fmt: skip
        if key.public.fingerprint == self.trust.fingerprint and self.trust.manifest is None:
            return  # the pinned key itself, at first contact
        assert self.offer([token], may_change=False) is Outcome.FORGED

    @rule()
    def of_another_deployment(self):
        self.offer([self.stranger.sign()], may_change=False)
        mine = raw_token(self.site, deployment="00" * 16, serial=10**6)
        assert self.offer([mine], may_change=False) in (Outcome.FOREIGN, Outcome.FORGED)

    @rule(typ=st.sampled_from([jws.CAPABILITIES, jws.HOP, jws.RELAY, "JWT"]))
    def of_another_type(self, typ):
        token = raw_token(self.site, typ=typ, serial=10**6)
        assert self.offer([token], may_change=False) is Outcome.FORGED

    @rule(change=st.sampled_from([{"more": 1}, {"authorities": []}, {"version": 9}]))
    def signed_and_no_manifest(self, change):
        token = raw_token(self.site, **(change | {"serial": 10**6}))
        assert self.offer([token], may_change=False) in (Outcome.INVALID, Outcome.FORGED)

    @rule()
    def the_same_serial_with_other_words(self):
        manifest = self.trust.manifest
        if manifest is None or self.site.signing.public not in manifest.signing_keys:
            return
        claims = manifest.claims() | {"expires": manifest.expires + 1}
        alarms = len(self.trust.alarms)
        token = raw_token(self.site, claims=claims)
        assert self.offer([token], may_change=False) is Outcome.CONTRADICTION
        assert len(self.trust.alarms) == len(Trust.load(self.path).alarms) >= max(1, alarms)

    @rule(at=st.floats(0, 1, exclude_max=True), new=st.sampled_from("AB_."))
    def changed_on_the_way(self, at, new):
        token = self.site.tokens[-1]
        place = int(at * len(token))
        changed = token[:place] + new + token[place + 1 :]
        if changed != token:
            assert self.offer([changed], may_change=False) is Outcome.FORGED

    @rule(junk=st.text(max_size=30))
    def junk(self, junk):
        assert self.offer([junk], may_change=False) is Outcome.FORGED

    @rule()
    def restart(self):
        before = self.trust
        self.trust = Trust.load(self.path)
        assert self.trust.manifest == before.manifest
        assert self.trust.token == before.token
        assert self.trust.alarms == before.alarms
        assert self.trust.since(0) == before.since(0)

    # -- what must hold

    @invariant()
    def it_never_goes_down(self):
        if not hasattr(self, "trust"):
            return
        manifest = self.trust.manifest
        serial = 0 if manifest is None else manifest.serial
        assert serial >= self.serial
        self.serial = serial

    @invariant()
    def only_what_was_signed_is_believed(self):
        if hasattr(self, "trust") and self.trust.manifest is not None:
            assert self.genuine[self.trust.token] == self.trust.manifest


TestAnyOrder = Offers.TestCase

# SPDX-License-Identifier: Apache-2.0
"""Who asks at a hop: its credential, and its proof for one request."""

import hashlib
import json
import os
from dataclasses import replace

import pytest
from fleet_support import Site
from hypothesis import given
from hypothesis import strategies as st

from upseal.fleet import jws
from upseal.fleet.credentials import (
    HopCheck,
    HopRefused,
    issue_credential,
    prove,
)
from upseal.fleet.hops import SKEW_MS
from upseal.fleet.identity import KINDS, SigningKey
from upseal.fleet.manifest import Manifest

SITES = {kind: Site(kind, "p256" if kind == "p256" else "x25519") for kind in KINDS}
SITE = SITES["ed25519"]
IDENTITY, HOP = SigningKey.generate(), SigningKey.generate()


PATH, BODY = "/v1/units", b"USL\x01 body"


def check(site=SITE, headers=None, method="POST", path=PATH, body=BODY, now=None, checker=None):
    checker = checker or HopCheck(lambda: site.manifest)
    digest = hashlib.sha256(body).digest()
    return checker.check(headers, method, path, digest, site.now if now is None else now)


def refusal(*args, **kwargs):
    with pytest.raises(HopRefused) as caught:
        check(*args, **kwargs)
    return caught.value.problem


class TestHop:
    @pytest.fixture
    def agent(self):
        return SITE.agent()

    def headers(self, agent, method="POST", path=PATH, body=BODY, now=SITE.now):
        return prove(agent.credential, agent.hop, method, path, body, now)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("role", ["agent", "relay"])
    def test_a_good_one(self, kind, role):
        site = SITES[kind]
        hop = SigningKey.generate(kind)
        headers = prove(site.credential(hop, role), hop, "POST", PATH, BODY, site.now)
        found = check(site, headers)
        assert (found.hop_id, found.role) == (hop.public.agent_id, role)
        lower = {name.lower(): value for name, value in headers.items()}
        assert check(site, lower) == found

    def test_it_is_for_one_request(self, agent):
        headers = self.headers(agent)
        assert check(headers=headers)
        assert refusal(headers=headers, method="GET") == "unauthenticated"
        assert refusal(headers=headers, path="/v1/results") == "unauthenticated"
        assert refusal(headers=headers, body=BODY + b"x") == "unauthenticated"
        assert refusal(headers=headers, body=b"") == "unauthenticated"

    def test_it_is_for_a_time(self, agent):
        for off in (0, SKEW_MS, -SKEW_MS):
            assert check(headers=self.headers(agent, now=SITE.now + off))
        for off in (SKEW_MS + 1, -SKEW_MS - 1, 10**12):
            assert refusal(headers=self.headers(agent, now=SITE.now + off)) == "clock"

    def test_a_wrong_clock_is_said_to_its_owner_only(self, agent):
        late = self.headers(agent, now=0)
        assert refusal(headers=late, body=b"other") == "unauthenticated"

    def test_nothing_or_nonsense(self, agent):
        good = self.headers(agent)
        bad = [{}, {"Authorization": good["Authorization"]}, {"Upseal-Proof": good["Upseal-Proof"]}]
        for name in good:
            for value in ("", "x", "Upseal", "Upseal ", "Bearer x", "Upseal a.b.c", "a.b.c", "é",
                          good[name] + "x", good[name][:-2], good[name] * 20):  # fmt: skip
                bad.append(good | {name: value})
        for headers in bad:
            assert refusal(headers=headers) == "unauthenticated"

    @given(st.text(max_size=60), st.text(max_size=60))
    def test_no_input_crashes(self, credential, proof):
        headers = {"authorization": "Upseal " + credential, "upseal-proof": proof}
        assert refusal(headers=headers) == "unauthenticated"

    def test_a_credential_that_was_overheard(self, agent):
        thief = SigningKey.generate()
        headers = prove(agent.credential, thief, "POST", PATH, BODY, SITE.now)
        assert refusal(headers=headers) == "unauthenticated"

    def test_a_credential_that_nobody_issued(self):
        hop = SigningKey.generate()
        for issuer in (hop, SITE.signing, SigningKey.generate()):
            credential = issue_credential(SITE.deployment, hop.public, "agent", issuer, 1)
            headers = prove(credential, hop, "POST", PATH, BODY, SITE.now)
            assert refusal(headers=headers) == "unauthenticated"

    def test_of_another_deployment(self):
        hop = SigningKey.generate()
        credential = issue_credential(os.urandom(16), hop.public, "agent", SITE.receipt, 1)
        assert refusal(headers=prove(credential, hop, "POST", PATH, BODY, SITE.now)) == (
            "unauthenticated"
        )

    @pytest.mark.parametrize(
        "changes",
        [{"hop": "00" * 16}, {"jwk": {}}, {"role": "server"}, {"role": None}, {"iat": -1},
         {"iat": None}, {"more": 1}, {"dep": 5}, {"jwk": IDENTITY.public.jwk()}, {"role": []}],
        ids=lambda changes: next(iter(changes)),
    )  # fmt: skip
    def test_signed_nonsense(self, changes):
        hop = SigningKey.generate()
        good = jws.unverified(SITE.credential(hop))
        credential = jws.sign(good | changes, SITE.receipt, jws.HOP)
        headers = prove(credential, hop, "POST", PATH, BODY, SITE.now)
        assert refusal(headers=headers) == "unauthenticated"

    @pytest.mark.parametrize("t", [None, "1", True, 1.5, ..., -(2**70), 10**4000])
    def test_a_proof_of_another_form(self, agent, t):
        good = jws.unverified(self.headers(agent)["Upseal-Proof"])
        claims = {name: v for name, v in (good | {"t": t}).items() if v is not ...}
        headers = self.headers(agent) | {"Upseal-Proof": jws.sign(claims, agent.hop, jws.PROOF)}
        problem = refusal(headers=headers)
        assert problem == ("clock" if type(t) is int and t < 0 else "unauthenticated")

    def test_a_credential_is_no_proof_and_a_proof_no_credential(self, agent):
        headers = self.headers(agent)
        proof, credential = headers["Upseal-Proof"], agent.credential
        swapped = {"Authorization": f"Upseal {proof}", "Upseal-Proof": credential}
        assert refusal(headers=swapped) == "unauthenticated"

    def test_revoked(self, agent):
        now = SITE.manifest
        checker = HopCheck(lambda: now)
        assert check(headers=self.headers(agent), checker=checker)
        now = replace(now, revoked_agents=frozenset({agent.hop.public.agent_id}))
        assert refusal(headers=self.headers(agent), checker=checker) == "revoked"
        now = replace(now, revoked_agents=frozenset())
        assert check(headers=self.headers(agent), checker=checker)

    def test_an_issuer_that_no_longer_counts(self, agent):
        now = SITE.manifest
        checker = HopCheck(lambda: now)
        assert check(headers=self.headers(agent), checker=checker)
        now = replace(now, receipt_keys=(SigningKey.generate().public,))
        assert refusal(headers=self.headers(agent), checker=checker) == "unauthenticated"
        now = SITE.manifest
        assert check(headers=self.headers(agent), checker=checker)

    def test_before_there_is_a_manifest(self, agent):
        checker = HopCheck(lambda: None)
        assert refusal(headers=self.headers(agent), checker=checker) == "parent-away"

    def test_a_credential_is_verified_once(self, agent, monkeypatch):
        seen = []
        real = jws.verify
        monkeypatch.setattr(
            jws, "verify", lambda *args, **kw: seen.append(args[2]) or real(*args, **kw)
        )
        checker = HopCheck(lambda: SITE.manifest)
        for _ in range(3):
            check(headers=self.headers(agent), checker=checker)
        assert seen.count(jws.HOP) == 1
        assert seen.count(jws.PROOF) == 3

    def test_what_is_remembered_is_bounded(self):
        checker = HopCheck(lambda: SITE.manifest, cache=3)
        agents = [SITE.agent() for _ in range(8)]
        for _ in range(2):
            for one in agents:
                assert check(headers=self.headers(one), checker=checker)
        assert len(checker._known) == 3

    def test_a_credential_does_not_say_who_reports(self, agent):
        text = json.dumps(jws.unverified(agent.credential))
        assert agent.identity.public.agent_id.hex() not in text
        assert isinstance(SITE.manifest, Manifest)

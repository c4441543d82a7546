# SPDX-License-Identifier: Apache-2.0
"""Manifests: one form for each, nothing that contradicts itself, and no bad certificate."""

import copy
import json
from dataclasses import replace

import pytest
from fleet_support import Site
from hypothesis import given
from hypothesis import strategies as st

from upseal import PrivateKey
from upseal.fleet import jws
from upseal.fleet.identity import KINDS, SigningKey
from upseal.fleet.jws import JwsError
from upseal.fleet.manifest import (
    EncryptionKey,
    Manifest,
    ManifestError,
    State,
)
from upseal.fleet.policy import Absent, Certificate, Level


def full_site():
    """A deployment in which every part of a manifest is there."""
    site = Site()
    site.enable()
    site.add_relay("r1", decrypts=True)
    site.add_relay("r2", accepts_sealed=False)
    site.pending()
    site.announce()
    site.change(
        revoked_agents=frozenset({b"a" * 16, b"b" * 16}),
        revoked_certificates=frozenset({5, 2**159}),
        default_level=Level.OPTIONAL, levels={b"c" * 16: Level.REQUIRED, b"a" * 16: Level.NONE},
    )  # fmt: skip
    return site


SITE = full_site()
CLAIMS = SITE.manifest.claims()
PLAIN = Site()


def changed(**changes):
    claims = copy.deepcopy(CLAIMS)
    claims.update(changes)
    return claims


def refused(claims):
    with pytest.raises(ManifestError):
        Manifest.from_claims(claims)


class TestForm:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("suite", ["x25519", "p256", "mlkem768-x25519", "rsa2048"])
    def test_it_leads_back(self, kind, suite):
        site = Site(kind, suite)
        for act in (
            lambda: None,
            site.pending,
            site.enable,
            site.rotate,
            site.pending,
            site.disable,
        ):
            act()
            manifest = site.manifest
            claims = json.loads(json.dumps(manifest.claims()))
            assert Manifest.from_claims(claims) == manifest
            assert Manifest.from_claims(claims).claims() == claims
            assert Manifest.open(site.sign(), site.signing.public) == manifest

    def test_with_every_part(self):
        assert Manifest.from_claims(json.loads(json.dumps(CLAIMS))) == SITE.manifest
        assert Manifest.open(SITE.sign(), SITE.manifest.signers()) == SITE.manifest

    def test_the_forms_of_values(self):
        assert CLAIMS["state"] == "pending-rotation"
        assert CLAIMS["deployment"] == SITE.deployment.hex()
        assert CLAIMS["revoked_agents"] == [(b"a" * 16).hex(), (b"b" * 16).hex()]
        assert CLAIMS["revoked_certificates"] == ["5", f"{2**159:x}"]
        assert CLAIMS["levels"] == {(b"a" * 16).hex(): "none", (b"c" * 16).hex(): "required"}
        assert set(CLAIMS["encryption"][0]) == {"certificate", "generation"}

    @pytest.mark.parametrize("name", sorted(CLAIMS))
    def test_every_member_must_be_there(self, name):
        claims = changed()
        del claims[name]
        refused(claims)

    @pytest.mark.parametrize("name", sorted(CLAIMS))
    @pytest.mark.parametrize(
        "value",
        [..., None, True, -1, 1.5, "", "x", "\ud800", [], [None], [[]], [{}], {}, {"a": None},
         2**80, [1], ["x"], [True], {"": ""}],
        ids=lambda value: str(value).encode("ascii", "backslashreplace").decode(),
    )  # fmt: skip
    def test_of_another_type(self, name, value):
        same = {"default_level": [None], "revoked_agents": [[]], "levels": [{}], "relays": [[]],
                "revoked_certificates": [[]]}  # fmt: skip
        if value is ... or value in same.get(name, []):
            return
        if name == "authorities" and value in ([], ["x"]):
            return  # TestCertificates: whether it can be used is found out there
        refused(changed(**{name: value}))

    @pytest.mark.parametrize(
        "changes",
        [{"more": 1}, {"version": 2}, {"deployment": CLAIMS["deployment"].upper() + "A"},
         {"revoked_agents": CLAIMS["revoked_agents"][::-1]},
         {"revoked_agents": CLAIMS["revoked_agents"] * 2},
         {"revoked_agents": [("b" * 15 + "B") * 2]},
         {"revoked_certificates": ["A"]}, {"revoked_certificates": ["0x5"]},
         {"revoked_certificates": ["05"]}, {"revoked_certificates": ["-5"]},
         {"revoked_certificates": ["5 "]}, {"revoked_certificates": ["1_0"]},
         {"levels": {"C" * 32: "none"}}, {"levels": {"c" * 32: "None"}},
         {"default_level": "Required"}, {"state": "ENABLED"}, {"serial": "7"}, {"serial": 7.0},
         {"serial": True}, {"encryption": CLAIMS["encryption"] * 2},
         {"encryption": CLAIMS["encryption"] * 16}, {"relays": CLAIMS["relays"][:1] * 2},
         {"signing_keys": CLAIMS["signing_keys"] * 2}, {"receipt_keys": CLAIMS["receipt_keys"] * 2},
         {"receipt_keys": CLAIMS["signing_keys"]}, {"serial": 0}, {"expires": CLAIMS["issued"]},
         {"oldest_generation": CLAIMS["generation"] + 1}, {"generation": 0},
         {"receipt_keys": []}, {"signing_keys": []},
         {"enrolment": CLAIMS["enrolment"] | {"public_key": None}},
         {"enrolment": {"certificate": None, "public_key": None, "generation": 0}},
         {"enrolment": {"generation": 0}}, {"enrolment": {"certificate": "x", "generation": 0}}],
        ids=lambda changes: next(iter(changes)),
    )  # fmt: skip
    def test_another_form(self, changes):
        refused(changed(**changes))

    @pytest.mark.parametrize(
        "changes",
        [{"relay": "00" * 16}, {"name": ""}, {"name": "a\nb"}, {"name": "\x1b[2J"}, {"name": 5},
         {"name": "x" * 257}, {"identity": SITE.receipt.public.jwk()}, {"identity": {}},
         {"accepts_sealed": 1}, {"decrypts": False}, {"decrypts": None}, {"keys": {}},
         {"keys": CLAIMS["relays"][0]["keys"] * 2}, {"more": 1}],
        ids=lambda changes: next(iter(changes)),
    )  # fmt: skip
    def test_another_form_of_a_relay(self, changes):
        claims = changed()
        claims["relays"][0].update(changes)
        refused(claims)

    @pytest.mark.parametrize("state", State)
    def test_a_state_goes_with_its_keys(self, state):
        for encryption in ([], CLAIMS["encryption"]):
            for pending in ([], CLAIMS["pending"]):
                claims = changed(state=state.value, encryption=encryption, pending=pending)
                fits = {
                    State.DISABLED: (False, False), State.PENDING: (False, True),
                    State.ENABLED: (True, False), State.PENDING_ROTATION: (True, True),
                }[state] == (bool(encryption), bool(pending))  # fmt: skip
                if fits:
                    assert Manifest.from_claims(claims).state is state
                else:
                    refused(claims)

    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
        ),
        max_leaves=8,
    )

    @given(st.sampled_from(sorted(CLAIMS)), json_values)
    def test_no_claims_crash(self, name, value):
        for claims in (value, changed(**{name: value})):
            try:
                read = Manifest.from_claims(claims)
            except ManifestError:
                continue
            assert read.claims() == claims

    def test_the_newest_key_of_a_relay_goes_first(self):
        relay = SITE.manifest.relays[0]
        entry = SITE.key_entry(PrivateKey.generate().public_key, 2)
        rest = SITE.manifest.relays[1:]
        good = replace(SITE.manifest, relays=(replace(relay, keys=(entry, *relay.keys)), *rest))
        assert Manifest.from_claims(good.claims()) == good
        refused(
            replace(
                SITE.manifest, relays=(replace(relay, keys=(*relay.keys, entry)), *rest)
            ).claims()
        )


class TestMeaning:
    def test_what_agents_seal_to(self):
        site = Site()
        assert site.manifest.usable() is Absent.DISABLED
        site.pending()  # a key is there, and not yet for use
        assert site.manifest.usable() is Absent.DISABLED
        site.enable()
        first = site.private[0].public_key
        assert site.manifest.usable() == Certificate((first,))
        site.pending()
        assert site.manifest.usable() == Certificate((first,))
        site.enable()
        assert site.manifest.usable() == Certificate((site.private[1].public_key,))
        site.disable()
        assert site.manifest.usable() is Absent.DISABLED

    def test_levels(self):
        assert SITE.manifest.level_for(b"c" * 16) is Level.REQUIRED
        assert SITE.manifest.level_for(b"a" * 16) is Level.NONE
        assert SITE.manifest.level_for(b"z" * 16) is Level.OPTIONAL
        assert PLAIN.manifest.level_for(b"z" * 16) is None

    def test_relays(self):
        for entry in SITE.manifest.relays:
            assert SITE.manifest.relay(entry.relay) is entry
        assert SITE.manifest.relay(bytes(16)) is None

    def test_a_post_quantum_key_does_not_stand_beside_a_classical_one(self):
        site = Site()
        hybrid = site.key_entry(PrivateKey.generate("mlkem768-x25519").public_key, 1)
        site.enable()
        site.change(encryption=(*site.manifest.encryption, hybrid))
        with pytest.raises(ManifestError, match="post-quantum"):
            site.sign()

    def test_a_classical_key_comes_with_a_certificate(self):
        public = PrivateKey.generate("x25519").public_key.to_pem().decode()
        with pytest.raises(ManifestError, match="hybrid"):
            EncryptionKey(None, public, 1).public()

    @pytest.mark.parametrize(
        "key",
        [EncryptionKey(None, None, 1), EncryptionKey("x", "y", 1), EncryptionKey("", None, 1)],
    )
    def test_no_key(self, key):
        with pytest.raises(ManifestError):
            key.public()

    def test_something_else_in_the_pem_of_a_hybrid(self):
        pem = PrivateKey.generate("mlkem768-x25519").public_key.to_pem().decode()
        assert EncryptionKey(None, pem, 1).public()
        for other in (pem + "x", "x" + pem, pem + "\n"):
            with pytest.raises(ManifestError):
                EncryptionKey(None, other, 1).public()


class TestSigning:
    def test_only_by_a_signing_key(self):
        with pytest.raises(ManifestError, match="among"):
            PLAIN.manifest.sign(SigningKey.generate())

    @pytest.mark.parametrize(
        "changes",
        [{"authorities": [PLAIN.authority.certificate]}, {"serial": 0}, {"state": "disabled"},
         {"signing_keys": [PLAIN.signing.public]},
         {"revoked_agents": frozenset({b"short"})}, {"levels": {bytes(16): "none"}},
         {"state": State.ENABLED}, {"authorities": ()}],
        ids=lambda changes: next(iter(changes)),
    )  # fmt: skip
    def test_never_what_agents_would_refuse(self, changes):
        with pytest.raises(ManifestError):
            replace(PLAIN.manifest, **changes).sign(PLAIN.signing)

    def test_the_token_names_type_and_key(self):
        head = jws.header(PLAIN.sign())
        assert head["typ"] == "upseal-manifest+jwt"
        assert jws.key_in(PLAIN.sign()) == PLAIN.signing.public

    def test_opened_by_others(self):
        token = PLAIN.sign()
        with pytest.raises(JwsError):
            Manifest.open(token, SITE.signing.public)
        with pytest.raises(JwsError):
            Manifest.open(token, {})
        other = jws.sign(PLAIN.manifest.claims(), PLAIN.signing, jws.CAPABILITIES)
        with pytest.raises(JwsError):
            Manifest.open(other, PLAIN.signing.public)

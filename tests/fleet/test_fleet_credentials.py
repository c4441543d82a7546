# SPDX-License-Identifier: Apache-2.0
"""Tokens, enrolment, and who asks at a hop."""

import base64
import hashlib
import os
from dataclasses import replace

import pytest
from fleet_support import Site
from hypothesis import given
from hypothesis import strategies as st

from upseal import Opener, OpenError, PrivateKey, Sealer, UnknownRecipient
from upseal.fleet import jws
from upseal.fleet.credentials import (
    ENROL_MAX,
    BadEnrolment,
    HopCheck,
    Token,
    enrol_request,
    enrolled_answer,
    open_enrol_request,
    open_enrolled,
    prove,
)
from upseal.fleet.identity import KINDS, SigningKey

SITES = {kind: Site(kind, "p256" if kind == "p256" else "x25519") for kind in KINDS}
SITE = SITES["ed25519"]
IDENTITY, HOP = SigningKey.generate(), SigningKey.generate()


class TestToken:
    TOKEN = SITE.token(7)

    def test_it_leads_back(self):
        for token in (self.TOKEN, Token(bytes(16), bytes(32), 2**53 - 1, bytes(16))):
            text = token.encode()
            assert text.startswith("upseal-token-1.")
            assert Token.decode(text) == Token.decode(f"\n {text} ") == token
            assert Token.decode(text).encode() == text

    def test_a_typing_error_is_seen(self):
        text = self.TOKEN.encode()
        for at in range(len(text)):
            for new in "A_é. ":
                changed = text[:at] + new + text[at + 1 :]
                if changed.strip() not in (text, text[:-1]):
                    with pytest.raises(ValueError):
                        Token.decode(changed)
            with pytest.raises(ValueError):
                Token.decode(text[:at])

    @given(st.text(max_size=150))
    def test_no_input_crashes(self, text):
        for word in (text, "upseal-token-1." + text):
            with pytest.raises(ValueError):
                Token.decode(word)

    def test_its_secret_is_not_shown(self):
        shown = repr(self.TOKEN)
        for form in (self.TOKEN.secret.hex(), repr(self.TOKEN.secret)):
            assert form not in shown

    @pytest.mark.parametrize(
        "changes",
        [{"deployment": b""}, {"fingerprint": bytes(31)}, {"secret": bytes(17)},
         {"least_serial": -1}, {"least_serial": 2**53}],
    )  # fmt: skip
    def test_mistakes_are_seen_at_once(self, changes):
        with pytest.raises(ValueError):
            replace(self.TOKEN, **changes)


def claims_of(site=SITE, **changes):
    token = site.token()
    said = {
        "secret": base64.urlsafe_b64encode(token.secret).decode().rstrip("="),
        "deployment": site.deployment.hex(), "identity": IDENTITY.public.jwk(),
        "hop": HOP.public.jwk(), "name": "host", "role": "agent", "decrypts": False,
        "accepts_sealed": True, "t": 1,
    }  # fmt: skip
    return {name: value for name, value in {**said, **changes}.items() if value is not ...}


def sealed(text, site=SITE, context=None, recipient=None):
    """As a request is sealed, whatever is in it."""
    context = b"upseal/v1 enrol\0" + site.deployment if context is None else context
    return Sealer([recipient or site.enrol.public_key]).seal(text.encode(), context)


def forged(claims, key=IDENTITY, typ=jws.ENROL, include_key=True):
    return sealed(jws.sign(claims, key, typ, include_key=include_key))


class TestEnrolment:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("role", ["agent", "relay"])
    def test_from_token_to_credential(self, kind, role):
        site = SITES[kind]
        token = site.token()
        identity, hop = SigningKey.generate(kind), SigningKey.generate(kind)
        body = enrol_request(
            token, site.manifest, identity, hop, name="höst 1", role=role, now_ms=5,
            decrypts=role == "relay", accepts_sealed=False,
        )  # fmt: skip
        assert len(body) <= ENROL_MAX
        for part in (token.secret, identity.public.der[-32:], b"role", b"eyJ"):
            assert part not in body
        asked = open_enrol_request(body, site.enrol_opener(), site.deployment)
        assert (asked.secret, asked.deployment) == (token.secret, site.deployment)
        assert (asked.identity, asked.hop) == (identity.public, hop.public)
        assert (asked.agent, asked.hop_id) == (identity.public.agent_id, hop.public.agent_id)
        assert (asked.name, asked.role, asked.milliseconds) == ("höst 1", role, 5)
        assert (asked.decrypts, asked.accepts_sealed) == (role == "relay", False)
        assert token.secret.hex() not in repr(asked)
        assert repr(token.secret) not in repr(asked)

        answer = enrolled_answer(asked, site.receipt, site.now)
        keys = site.manifest.receivers()
        enrolled = open_enrolled(answer, keys, site.deployment, identity.public.agent_id)
        assert enrolled.credential not in repr(enrolled)
        headers = prove(enrolled.credential, hop, "POST", "/v1/units", b"body", site.now)
        found = HopCheck(lambda: site.manifest).check(
            headers, "POST", "/v1/units", hashlib.sha256(b"body").digest(), site.now
        )
        assert found == (hop.public.agent_id, role)

        for bad in (
            lambda: open_enrolled(answer, keys, bytes(16), asked.agent),
            lambda: open_enrolled(answer, keys, site.deployment, bytes(16)),
            lambda: open_enrolled(answer, {}, site.deployment, asked.agent),
            lambda: open_enrolled(answer[:-1], keys, site.deployment, asked.agent),
            lambda: open_enrolled(enrolled.credential, keys, site.deployment, asked.agent),
            lambda: open_enrolled(
                jws.sign({"deployment": 1}, site.receipt, jws.ENROLLED), keys, site.deployment,
                asked.agent,
            ),
        ):  # fmt: skip
            with pytest.raises(BadEnrolment):
                bad()

    def test_the_forger_of_these_tests_can_make_a_good_one(self):
        asked = open_enrol_request(forged(claims_of()), SITE.enrol_opener(), SITE.deployment)
        assert asked.identity == IDENTITY.public

    def test_each_bit_counts(self):
        body = forged(claims_of())
        opener = SITE.enrol_opener()
        for at in [*range(0, len(body), 5), len(body) - 1]:
            changed = bytearray(body)
            changed[at] ^= 1
            with pytest.raises(OpenError):
                open_enrol_request(bytes(changed), opener, SITE.deployment)
        for end in range(0, len(body), 9):
            with pytest.raises(OpenError):
                open_enrol_request(body[:end], opener, SITE.deployment)

    def test_sealed_to_another_key_or_for_another_purpose(self):
        text = jws.sign(claims_of(), IDENTITY, jws.ENROL, include_key=True)
        other = PrivateKey.generate()
        opener = SITE.enrol_opener()
        with pytest.raises(UnknownRecipient):
            open_enrol_request(sealed(text, recipient=other.public_key), opener, SITE.deployment)
        for context in (b"", SITE.deployment, b"upseal/v1 enrol\0" + bytes(16)):
            with pytest.raises(OpenError):
                open_enrol_request(sealed(text, context=context), opener, SITE.deployment)

    def test_signed_by_another_key_than_the_one_named(self):
        stranger = SigningKey.generate()
        for key in (stranger, HOP):
            with pytest.raises(BadEnrolment):
                open_enrol_request(forged(claims_of(), key), SITE.enrol_opener(), SITE.deployment)

    def test_without_its_key_or_of_another_type(self):
        for body in (
            forged(claims_of(), include_key=False), forged(claims_of(), typ=jws.RELAY),
            sealed("nonsense"), sealed(""), sealed("a.b.c"),
        ):  # fmt: skip
            with pytest.raises(BadEnrolment):
                open_enrol_request(body, SITE.enrol_opener(), SITE.deployment)

    @pytest.mark.parametrize(
        "changes",
        [{"secret": "AA"}, {"secret": 5}, {"deployment": "00" * 16}, {"deployment": None},
         {"hop": {}}, {"hop": IDENTITY.public.jwk()}, {"identity": None}, {"name": ""},
         {"name": "a\nb"}, {"name": "\x1b[1m"}, {"name": "x" * 129}, {"name": ["x"]},
         {"role": "server"}, {"role": None}, {"role": ["agent"]}, {"decrypts": 1},
         {"accepts_sealed": None}, {"t": -1}, {"t": "1"}, {"t": True}, {"more": 1},
         *({name: ...} for name in claims_of())],
        ids=lambda changes: str(next(iter(changes))),
    )  # fmt: skip
    def test_signed_nonsense(self, changes):
        with pytest.raises(BadEnrolment):
            open_enrol_request(forged(claims_of(**changes)), SITE.enrol_opener(), SITE.deployment)

    def test_of_another_deployment(self):
        # Sealed to us, and yet meant for others: the claims say so.
        with pytest.raises(BadEnrolment, match="another deployment"):
            open_enrol_request(
                forged(claims_of(deployment=os.urandom(16).hex())), SITE.enrol_opener(),
                SITE.deployment,
            )  # fmt: skip

    def test_too_long(self):
        with pytest.raises(BadEnrolment, match="longer"):
            open_enrol_request(
                forged(claims_of(name="x" * ENROL_MAX)), SITE.enrol_opener(), SITE.deployment
            )

    def test_too_long_is_found_out_before_it_is_opened(self):
        with pytest.raises(BadEnrolment, match="longer"):
            open_enrol_request(bytes(ENROL_MAX + 1), SITE.enrol_opener(), SITE.deployment)

    @given(st.binary(max_size=100))
    def test_no_input_crashes(self, data):
        with pytest.raises((OpenError, BadEnrolment)):
            open_enrol_request(data, SITE.enrol_opener(), SITE.deployment)

    def test_mistakes_are_seen_at_once(self):
        ask = {"name": "x", "now_ms": 1}
        token, manifest = SITE.token(), SITE.manifest
        for call in (
            lambda: enrol_request(Site().token(), manifest, IDENTITY, HOP, **ask),
            lambda: enrol_request(token, manifest, IDENTITY, IDENTITY, **ask),
            lambda: enrol_request(token, manifest, IDENTITY, HOP, name="", now_ms=1),
            lambda: enrol_request(token, manifest, IDENTITY, HOP, role="x", **ask),
        ):
            with pytest.raises(ValueError):
                call()

    @pytest.mark.parametrize("suite", ["mlkem768-x25519", "rsa4096"])
    def test_every_suite_fits(self, suite):
        key = PrivateKey.generate(suite)
        entry = SITE.key_entry(key.public_key, 0)
        manifest = replace(SITE.manifest, enrolment=entry)
        identity, hop = SigningKey.generate("p256"), SigningKey.generate("p256")
        body = enrol_request(
            SITE.token(), manifest, identity, hop, name="ü" * 128, role="relay", now_ms=2**52
        )
        assert len(body) <= ENROL_MAX
        assert open_enrol_request(body, Opener([key]), SITE.deployment).hop == hop.public

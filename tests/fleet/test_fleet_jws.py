# SPDX-License-Identifier: Apache-2.0
"""Signed claims: nothing about how they are verified is up to whoever sends them."""

import base64
import hashlib
import hmac
import json

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws as jose
from joserfc.jwk import OKPKey

from upseal.fleet import jws
from upseal.fleet.encoding import b64url
from upseal.fleet.identity import KINDS, SigningKey
from upseal.fleet.jws import JwsError

KEYS = {kind: SigningKey.generate(kind) for kind in KINDS}
KEY, OTHER = KEYS["ed25519"], SigningKey.generate()
CLAIMS = {"a": 1, "b": ["x", None, True, {"c": "ü"}]}
TYP = jws.HOP
TOKEN = jws.sign(CLAIMS, KEY, TYP)
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def decoded(part):
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def forge(key=KEY, payload=b'{"a":1}', **header):
    """A token whose signature is right, with any header."""
    head = {"alg": key.algorithm, "typ": TYP, "kid": key.public.key_id.hex()} | header
    text = json.dumps({name: value for name, value in head.items() if value is not ...})
    return signed(key, b64url(text.encode()), b64url(payload))


def signed(key, head, payload):
    return f"{head}.{payload}." + b64url(key.sign(f"{head}.{payload}".encode()))


def refused(token, keys=KEY.public, typ=TYP, **options):
    with pytest.raises(JwsError):
        jws.verify(token, keys, typ, **options)
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("include", [False, True])
def test_it_leads_back(kind, include):
    key = KEYS[kind]
    token = jws.sign(CLAIMS, key, TYP, include_key=include)
    known = {k.public.key_id.hex(): k.public for k in KEYS.values()}
    for keys in (key.public, known):
        assert jws.verify(token, keys, TYP) == CLAIMS
        assert jws.verify(token.encode(), keys, TYP) == CLAIMS
    head = jws.header(token)
    assert (head["alg"], head["typ"], head["kid"]) == (
        key.algorithm, TYP, key.public.key_id.hex(),
    )  # fmt: skip
    assert ("jwk" in head) == include
    assert jws.unverified(token) == CLAIMS


def test_another_library_reads_it():
    pem = KEY.public.to_pem()
    key = OKPKey.import_key(serialization.load_pem_public_key(pem))
    assert json.loads(jose.deserialize_compact(TOKEN, key, ["Ed25519"]).payload) == CLAIMS


def test_the_forger_of_these_tests_can_make_a_good_one():
    # Else the tests below would pass whatever happened.
    for key in KEYS.values():
        assert jws.verify(forge(key), key.public, TYP) == {"a": 1}


class TestAlgorithm:
    @pytest.mark.parametrize(
        "alg", ["none", "None", "NONE", "HS256", "ES256", "RS256", "EdDSA", ""]
    )
    def test_it_follows_from_the_key(self, alg):
        assert refused(forge(alg=alg))

    def test_unsigned(self):
        head, payload, _ = forge(alg="none").split(".")
        for token in (f"{head}.{payload}.", f"{head}.{payload}.{'A' * 86}"):
            assert refused(token)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_mac_under_the_public_key_is_none(self, kind):
        key = KEYS[kind].public
        for secret in (key.der, key.to_pem(), decoded(key.jwk()["x"])):
            for alg in ("HS256", "HS512", key.algorithm):
                head, payload, _ = forge(KEYS[kind], alg=alg).split(".")
                mac = hmac.digest(secret, f"{head}.{payload}".encode(), hashlib.sha512)
                assert refused(f"{head}.{payload}.{b64url(mac)}", key)

    def test_the_other_kind_of_key_under_its_own_name(self):
        other = KEYS["p256"]
        assert refused(forge(other), KEY.public)
        assert refused(forge(other, kid=KEY.public.key_id.hex()), KEY.public)
        assert refused(forge(other, kid=KEY.public.key_id.hex(), alg="Ed25519"), KEY.public)


class TestHeader:
    @pytest.mark.parametrize("typ", [jws.PROOF, "", TYP.upper(), TYP + " ", None, ..., 5, [TYP]])
    def test_the_type_must_be_the_one(self, typ):
        assert refused(forge(typ=typ))

    def test_signed_for_another_purpose(self):
        purposes = (
            jws.MANIFEST, jws.CAPABILITIES, jws.ENROL, jws.ENROLLED, jws.HOP, jws.PROOF, jws.RELAY,
        )  # fmt: skip
        assert len(set(purposes)) == 7
        for typ in purposes:
            for other in purposes:
                token = jws.sign(CLAIMS, KEY, typ)
                assert typ == other or refused(token, typ=other)

    @pytest.mark.parametrize(
        "kid", ["", "00" * 8, None, ..., 5, {}, KEY.public.key_id.hex().upper()], ids=range(7)
    )
    def test_the_key_id_must_be_the_keys(self, kid):
        if kid == KEY.public.key_id.hex():
            pytest.skip("this id has digits only")
        assert refused(forge(kid=kid))
        assert refused(forge(kid=kid), {KEY.public.key_id.hex(): KEY.public})

    def test_a_mapping_that_is_wrong_does_not_help(self):
        assert refused(TOKEN, {OTHER.public.key_id.hex(): KEY.public})
        assert refused(forge(kid="aa"), {"aa": KEY.public})
        assert refused(TOKEN, {})

    @pytest.mark.parametrize(
        "more",
        [{"crit": ["exp"], "exp": 1}, {"crit": []}, {"crit": ["b64"], "b64": False}, {"b64": False},
         {"b64": True}, {"jku": "https://example.org"}, {"x5u": "https://example.org"},
         {"x5c": []}, {"zip": "DEF"}, {"cty": "JWT"}, {"anything": None}],
    )  # fmt: skip
    def test_what_is_not_understood_is_refused(self, more):
        assert refused(forge(**more))

    def test_the_key_in_it_is_the_one_that_signed(self):
        assert jws.verify(forge(jwk=KEY.public.jwk()), KEY.public, TYP)
        for jwk in (OTHER.public.jwk(), {}, None, "x", KEY.public.jwk() | {"use": "sig"}):
            assert refused(forge(jwk=jwk))

    @pytest.mark.parametrize(
        "text",
        ["", "{}", "[]", '"alg typ kid"', "5", "null", "nonsense", "[" * 700,
         f'{{"alg":"Ed25519","alg":"Ed25519","typ":"{TYP}","kid":"{KEY.public.key_id.hex()}"}}',
         "\ud800"],
        ids=range(10),
    )  # fmt: skip
    def test_what_is_no_header(self, text):
        data = b64url(text.encode("utf-8", "surrogatepass"))
        token = signed(KEY, data, b64url(b"{}"))
        assert refused(token)
        with pytest.raises(JwsError):
            jws.header(token)


class TestKeyInHeader:
    @pytest.mark.parametrize("kind", KINDS)
    def test_it_is_found(self, kind):
        token = jws.sign(CLAIMS, KEYS[kind], TYP, include_key=True)
        assert jws.key_in(token) == KEYS[kind].public

    @pytest.mark.parametrize("jwk", [..., None, {}, [], "x", KEY.public.jwk() | {"d": "x"}])
    def test_there_is_none(self, jwk):
        with pytest.raises(JwsError):
            jws.key_in(forge(jwk=jwk))


class TestPayload:
    @pytest.mark.parametrize(
        "payload",
        [b"", b"[]", b"5", b'"x"', b"null", b"{", b'{"a":1,"a":2}', b'{"a":NaN}', b"\xff",
         b"[" * 100_000, b'{"a":' * 100_000],
    )  # fmt: skip
    def test_signed_nonsense_is_no_claims(self, payload):
        assert refused(forge(payload=payload))

    def test_claims_that_json_cannot_say(self):
        for claims in ({"a": float("nan")}, {"a": float("inf")}):
            with pytest.raises(ValueError):
                jws.sign(claims, KEY, TYP)


class TestText:
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_character_counts(self, kind):
        token = jws.sign({"a": 1}, KEYS[kind], TYP)
        for at in range(len(token)):
            for new in "A_.= é":
                changed = token[:at] + new + token[at + 1 :]
                assert changed == token or refused(changed, KEYS[kind].public)
            assert refused(token[:at], KEYS[kind].public)

    @pytest.mark.parametrize("more", ["A", ".", "=", " ", "\n", ".x"])
    def test_something_after_or_before_it(self, more):
        assert refused(TOKEN + more)
        assert refused(more + TOKEN)

    def test_stray_bits_in_the_last_character(self):
        # 64 bytes leave four bits of the last character unused: they must be zero.
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        accepted = [c for c in alphabet if not _refuses(TOKEN[:-1] + c)]
        assert accepted == [TOKEN[-1]]

    def test_no_longer_than_allowed(self):
        assert jws.verify(TOKEN, KEY.public, TYP, limit=len(TOKEN)) == CLAIMS
        assert refused(TOKEN, limit=len(TOKEN) - 1)
        assert refused("A" * (jws.SIZE_MAX + 1))
        big = jws.sign({"a": "x" * 3_000_000}, KEY, TYP)
        assert refused(big)
        assert len(jws.verify(big, KEY.public, TYP, limit=8 << 20)["a"]) == 3_000_000

    def test_a_long_header(self):
        assert refused(forge(jwk={"x": "y" * 2000}))

    @given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
    def test_no_input_crashes(self, token):
        assert refused(token)
        for look in (jws.header, jws.key_in, jws.unverified):
            with pytest.raises(JwsError):
                look(token)

    @given(st.binary(max_size=60), st.binary(max_size=60))
    def test_no_signed_input_crashes(self, head, payload):
        assert refused(signed(KEY, b64url(head), b64url(payload)))

    @pytest.mark.parametrize("token", [None, 5, [], {}, ("a", "b", "c")])
    def test_what_is_no_text(self, token):
        assert refused(token)

    def test_a_second_signature_for_the_same_words(self):
        # Anybody can make one from the first: what is compared is `signed_part`.
        key = KEYS["p256"]
        token = jws.sign(CLAIMS, key, TYP)
        head, _, tail = token.rpartition(".")
        raw = decoded(tail)
        s = ORDER - int.from_bytes(raw[32:], "big")
        twin = f"{head}." + b64url(raw[:32] + s.to_bytes(32, "big"))
        assert twin != token
        assert jws.verify(twin, key.public, TYP) == CLAIMS
        assert jws.signed_part(twin) == jws.signed_part(token.encode())


def _refuses(token):
    try:
        jws.verify(token, KEY.public, TYP)
    except JwsError:
        return True
    return False

# SPDX-License-Identifier: Apache-2.0
"""When a session ends, who may be in it, and what a caller's mistake does to it: nothing."""

import io
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import Opener, Sealer, key, upload

from upseal import Cipher, Limits, Padding
from upseal.core import header as headers

CLOCK = "upseal.core.sealer.seconds"


def header_of(data):
    return headers.parse(data).raw


@pytest.fixture
def limited(engine, key):
    def make(**limits):
        return Sealer([key.public_key], Limits(**limits), engine=engine)

    return make


def test_a_session_lasts_exactly_its_number_of_messages(limited, opener):
    sealer = limited(max_messages=3)
    made = [sealer.seal(b"%d" % i) for i in range(10)]
    seen = [header_of(e) for e in made]
    assert [seen.index(h) // 3 for h in seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert [opener.open(e) for e in made] == [b"%d" % i for i in range(10)]


def test_messages_set_aside_for_single_reports_are_there_for_other_calls(limited):
    sealer = limited(max_messages=10)
    first = header_of(sealer.seal(b""))
    assert header_of(sealer.seal(b"")) == first  # sets the other eight aside
    assert header_of(sealer.seal_batch([b""] * 8)) == first
    assert header_of(sealer.seal(b"")) != first


def test_threads_never_take_more_than_a_session_has(limited):
    sealer = limited(max_messages=100)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(sealer.seal, [b""] * 3000))
        batches = list(pool.map(sealer.seal_batch, [[b""] * 7] * 50))
    used = Counter(map(header_of, made))
    for batch in batches:
        used[header_of(batch)] += 7
    assert max(used.values()) <= 100
    assert sum(used.values()) == 3350


def test_records_envelopes_and_uploads_all_count_as_messages(limited):
    sealer = limited(max_messages=10)
    first = header_of(sealer.seal(b""))
    assert header_of(sealer.seal_batch([b""] * 3)) == first
    assert header_of(sealer.seal_many([b""] * 3)[0]) == first
    assert header_of(upload(sealer, b"")) == first
    assert header_of(sealer.seal_many([b""] * 2)[0]) == first  # ten now
    assert header_of(sealer.seal(b"")) != first


def test_a_call_that_does_not_fit_into_what_is_left_gets_a_new_session(limited):
    sealer = limited(max_messages=5)
    first = header_of(sealer.seal_batch([b""] * 3))
    second = header_of(sealer.seal_batch([b""] * 3))
    assert second != first
    assert header_of(sealer.seal_batch([b""] * 2)) == second


def test_a_call_larger_than_the_limit_has_a_session_alone(limited, opener):
    sealer = limited(max_messages=2)
    first = header_of(sealer.seal(b""))
    many = sealer.seal_many([b"r"] * 5)
    assert len({header_of(e) for e in many}) == 1
    assert opener.open_many(many) == [b"r"] * 5
    after = header_of(sealer.seal(b""))
    assert len({first, header_of(many[0]), after}) == 3


def test_a_session_ends_with_its_age(limited, monkeypatch):
    now = 1000.0
    sealer = limited(max_age=60)
    monkeypatch.setattr(CLOCK, lambda: now)
    monkeypatch.setattr("upseal.core.session.seconds", lambda: now)
    first = header_of(sealer.seal(b""))
    now = 1059.9
    assert header_of(sealer.seal(b"")) == first
    now = 1060.0
    second = header_of(sealer.seal(b""))
    assert second != first
    now = 1119.9
    assert header_of(sealer.seal(b"")) == second


def test_a_running_upload_outlives_its_session(limited, opener):
    sealer = limited(max_messages=1)
    out = io.BytesIO()
    with sealer.writer(out) as writer:
        writer.write(b"before ")
        sealer.seal(b"another session")
        writer.write(b"and after")
    assert opener.reader(io.BytesIO(out.getvalue())).read() == b"before and after"


def test_every_session_wraps_a_secret_of_its_own(limited, key):
    sealer = limited(max_messages=1)
    entries = [headers.parse(sealer.seal(b"")).entries[0] for _ in range(20)]
    assert len({key.unwrap(e.wrapped) for e in entries}) == 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_age": 0},
        {"max_age": -1},
        {"max_age": math.nan},
        {"max_messages": 0},
        {"max_messages": -1},
        {"max_messages": 2**32 + 1},
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


def test_limits_at_their_own_limits_are_taken():
    assert Limits(max_age=math.inf, max_messages=2**32).max_messages == 2**32
    assert (Limits().max_age, Limits().max_messages) == (3600, 2**20)
    with pytest.raises(AttributeError):
        Limits().max_age = 7


def test_mistakes_of_the_caller_spend_nothing_of_the_session(limited):
    sealer = limited(max_messages=6)
    first = header_of(sealer.seal(b""))
    strided = memoryview(bytes(10))[::2]
    for call in (
        lambda: sealer.seal("text"),
        lambda: sealer.seal(strided),
        lambda: sealer.seal(b"", context="text"),
        lambda: sealer.seal(bytes((1 << 24) + 1)),
        lambda: sealer.seal_many([b"", "text"]),
        lambda: sealer.seal_many([b""] * 5, context="text"),
        lambda: sealer.seal_many([b"", bytes((1 << 24) + 1)]),
        lambda: sealer.seal_batch([]),
        lambda: sealer.seal_batch([b""] * 5, context="text"),
        lambda: sealer.seal_batch([b"", b"", bytes((1 << 24) + 1)]),
        lambda: sealer.seal_packed(b"abc", memoryview(b"\5\0\0\0\0\0\0\0" * 5).cast("q")),
        lambda: sealer.writer(io.BytesIO(), context="text"),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()
    assert header_of(sealer.seal_batch([b""] * 5)) == first


def test_a_batch_of_nothing_is_a_mistake_and_many_of_nothing_is_nothing(sealer):
    with pytest.raises(ValueError, match="1 to 2"):
        sealer.seal_batch([])
    with pytest.raises(ValueError, match="1 to 2"):
        sealer.seal_packed(b"", memoryview(bytes(8)).cast("q"))
    assert sealer.seal_many([]) == []


def test_more_than_2_to_the_20_reports_in_a_call_are_refused(sealer):
    too_many = [b""] * (2**20 + 1)
    with pytest.raises(ValueError, match="2\\^20"):
        sealer.seal_batch(too_many)
    with pytest.raises(ValueError, match="2\\^20"):
        sealer.seal_many(too_many)


def test_recipients_are_checked(engine):
    ours = key("x25519-a").public_key
    for wrong, error in (
        ([], ValueError),
        ([ours, ours], ValueError),
        ([ours, key("x25519-a").public_key], ValueError),
        ([key(f"x25519-r{i:02}").public_key for i in range(1, 18)], ValueError),
        (ours, TypeError),
        ([key("x25519-a")], TypeError),  # a private key: a likely mistake
        ([ours.to_pem()], TypeError),
        ("x25519", TypeError),
    ):
        with pytest.raises(error):
            Sealer(wrong, engine=engine)


def test_a_hybrid_recipient_beside_a_classical_one_must_be_asked_for(engine):
    mixed = [key("mlkem768-x25519-a"), key("x25519-a"), key("rsa2048-a")]
    public = [k.public_key for k in mixed]
    with pytest.raises(ValueError, match="allow_mixed"):
        Sealer(public, engine=engine)
    sealed = Sealer(public, allow_mixed=True, engine=engine).seal(b"r")
    assert {Opener([k], engine=engine).open(sealed) for k in mixed} == {b"r"}
    Sealer([public[0], key("mlkem768-x25519-b").public_key], engine=engine).seal(b"r")


@pytest.mark.parametrize(
    ("given", "byte"),
    [
        (1, 1),
        (2, 2),
        ("aes-256-gcm", 1),
        ("AES_256_GCM", 1),
        ("chacha20-poly1305", 2),
        (Cipher.CHACHA20_POLY1305, 2),
    ],
)
def test_the_cipher_can_be_named_in_three_ways(engine, given, byte):
    assert Sealer([key("x25519-a").public_key], cipher=given, engine=engine).seal(b"")[4] == byte


@pytest.mark.parametrize("wrong", [0, 3, "aes", "", 1.5])
def test_an_unknown_cipher_is_refused(engine, wrong):
    with pytest.raises(ValueError, match="no cipher"):
        Sealer([key("x25519-a").public_key], cipher=wrong, engine=engine)


def test_padding_and_engine_must_be_what_they_are():
    with pytest.raises(TypeError, match="padding"):
        Sealer([key("x25519-a").public_key], padding="padme")
    with pytest.raises(ValueError, match="no engine"):
        Sealer([key("x25519-a").public_key], engine="fast")
    assert Padding.PADME.value == "padme"

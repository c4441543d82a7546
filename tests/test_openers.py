# SPDX-License-Identifier: Apache-2.0
"""Which sessions an Opener remembers, and what it asks of its keys."""

import io

import pytest
from support import CountingKey, Opener, Pipe, Sealer, key, upload

from upseal import KeyOpener, OpenError, UnknownRecipient
from upseal.core import header as headers


@pytest.fixture
def counting(key):
    return CountingKey(key)


def sessions(count, name="x25519-a", engine=None):
    """An envelope of each of so many sessions."""
    public = key(name).public_key
    return [Sealer([public], engine=engine).seal(b"%d" % i) for i in range(count)]


def forged(envelope):
    """With another commitment: it can never hold."""
    size = len(headers.parse(envelope).raw)
    return envelope[: size - 1] + bytes([envelope[size - 1] ^ 1]) + envelope[size:]


def test_a_session_costs_one_unwrap_whatever_is_opened(engine, counting, key):
    sealer, opener = Sealer([key.public_key], engine=engine), Opener([counting], engine=engine)
    opener.open(sealer.seal(b""))
    opener.open_many(sealer.seal_many([b""] * 5))
    opener.open_batch(sealer.seal_batch([b""]))
    opener.reader(io.BytesIO(upload(sealer, b""))).read()
    opener.reader(Pipe(upload(sealer, b""))).read()
    assert counting.unwrapped == 1


def test_many_envelopes_of_mixed_sessions_cost_one_unwrap_for_each(engine, counting):
    made = sessions(3, engine=engine)
    Opener([counting], engine=engine).open_many(made * 4)
    assert counting.unwrapped == 3


def test_the_oldest_session_goes_first_and_no_more_are_kept(engine, counting):
    a, b, c = sessions(3, engine=engine)
    opener = Opener([counting], cache=2, engine=engine)
    for data in (a, b, a, b):
        opener.open(data)
    assert counting.unwrapped == 2
    opener.open(c)  # a goes
    assert counting.unwrapped == 3
    opener.open(b)
    opener.open(c)
    assert counting.unwrapped == 3
    opener.open(a)  # b goes
    opener.open(c)
    assert counting.unwrapped == 4
    opener.open(b)
    assert counting.unwrapped == 5


def test_the_cache_never_holds_more_than_its_size(engine, counting):
    opener = Opener([counting], cache=4, engine=engine)
    made = sessions(30, engine=engine)
    for data in made:
        opener.open(data)
        assert len(opener._cache) <= 4
    counting.unwrapped = 0
    opener.open_many(made[-4:])
    assert counting.unwrapped == 0
    opener.open_many(made[:26])
    assert counting.unwrapped == 26


def test_a_cache_of_0_remembers_nothing(engine, counting):
    opener = Opener([counting], cache=0, engine=engine)
    (data,) = sessions(1, engine=engine)
    for _ in range(5):
        opener.open(data)
    assert counting.unwrapped == 5
    with pytest.raises(ValueError, match="-1"):
        Opener([counting], cache=-1)


def test_a_failed_commitment_is_never_remembered(engine, counting):
    # Otherwise anybody could push every genuine session out.
    good, other = sessions(2, engine=engine)
    opener = Opener([counting], cache=1, engine=engine)
    opener.open(good)
    for _ in range(5):
        with pytest.raises(OpenError):
            opener.open(forged(other))
    assert counting.unwrapped == 6
    opener.open(good)
    assert counting.unwrapped == 6
    assert len(opener._cache) == 1


def test_a_removed_key_takes_its_sessions_along(engine):
    mine, other = CountingKey(key("x25519-a")), CountingKey(key("x25519-b"))
    opener = Opener([mine, other], engine=engine)
    both = Sealer([key("x25519-a").public_key, key("x25519-b").public_key], engine=engine)
    (a,), (b,) = sessions(1, "x25519-a", engine), sessions(1, "x25519-b", engine)
    shared = both.seal(b"both")
    for data in (a, b, shared):
        opener.open(data)
    assert (mine.unwrapped, other.unwrapped) == (2, 1)
    opener.open(a)  # also the one opened last, which has a short cut of its own
    opener.remove_key(mine.key_id)
    with pytest.raises(UnknownRecipient) as caught:
        opener.open(a)
    assert caught.value.recipients == ((0x0020, mine.key_id),)
    assert opener.open(shared) == b"both"  # by the other key, which must do its work
    opener.open(b)
    assert (mine.unwrapped, other.unwrapped) == (2, 2)
    with pytest.raises(KeyError):
        opener.remove_key(mine.key_id)
    assert opener.key_ids == (other.key_id,)


def test_a_key_can_be_added_later(engine):
    (data,) = sessions(1, "p256-a", engine)
    opener = Opener([key("x25519-a")], engine=engine)
    with pytest.raises(UnknownRecipient):
        opener.open(data)
    opener.add_key(key("p256-a"))
    assert opener.open(data) == b"0"
    assert set(opener.key_ids) == {key("x25519-a").key_id, key("p256-a").key_id}


def test_a_key_removed_while_it_unwraps_leaves_nothing_behind(engine):
    class Leaving(CountingKey):
        def unwrap(self, wrapped):
            opener.remove_key(self.key_id)
            return super().unwrap(wrapped)

    leaving = Leaving(key("x25519-a"))
    opener = Opener([leaving, key("x25519-b")], engine=engine)
    (data,) = sessions(1, engine=engine)
    opener.open(data)
    assert not opener._cache
    with pytest.raises(UnknownRecipient):
        opener.open(data)


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("the HSM is gone"),
        OSError(5, "I/O"),
        ValueError("oracle"),
        OpenError("told"),
        KeyError("x"),
        StopIteration(),
        AssertionError(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_whatever_a_key_raises_is_the_one_plain_error(engine, fault):
    class Failing(CountingKey):
        def unwrap(self, wrapped):
            raise fault

    opener = Opener([Failing(key("x25519-a"))], engine=engine)
    (data,) = sessions(1, engine=engine)
    for call in (opener.open, lambda d: opener.open_many([d])[0]):
        try:
            error = call(data)
        except OpenError as caught:
            error = caught
        assert type(error) is OpenError
        assert (str(error), error.problem, error.offset) == (OpenError.message, None, None)
        assert error.__cause__ is None
        assert error.__context__ is None or error.__suppress_context__


@pytest.mark.parametrize(
    "secret",
    [b"", bytes(31), bytes(33), None, "x" * 32, 32],
    ids=["empty", "31", "33", "None", "text", "number"],
)
def test_a_key_that_gives_no_32_bytes_opens_nothing(engine, secret):
    class Odd(CountingKey):
        def unwrap(self, wrapped):
            return secret

    opener = Opener([Odd(key("x25519-a"))], engine=engine)
    (data,) = sessions(1, engine=engine)
    with pytest.raises(OpenError) as caught:
        opener.open(data)
    assert type(caught.value) is OpenError


def test_a_key_may_give_its_secret_in_another_buffer(engine):
    class Hsm(CountingKey):
        def unwrap(self, wrapped):
            return bytearray(super().unwrap(wrapped))

    opener = Opener([Hsm(key("x25519-a"))], engine=engine)
    (data,) = sessions(1, engine=engine)
    assert opener.open(data) == b"0"


def test_any_object_of_the_right_shape_is_a_key(engine, counting):
    assert isinstance(counting, KeyOpener)
    assert isinstance(key("rsa2048-a"), KeyOpener)
    (data,) = sessions(1, engine=engine)
    assert Opener([counting], engine=engine).open(data) == b"0"
    for wrong in (key("x25519-a").public_key, b"key", None):
        with pytest.raises(TypeError):
            Opener([wrong], engine=engine)
    with pytest.raises(ValueError, match="at least one"):
        Opener([], engine=engine)


def test_only_the_own_entry_is_unwrapped(engine, counting):
    names = ["x25519-b", "x25519-r01", "x25519-a", "p256-a"]
    envelope = Sealer([key(n).public_key for n in names], engine=engine).seal(b"r")
    assert Opener([counting], engine=engine).open(envelope) == b"r"
    assert counting.unwrapped == 1
    (foreign,) = sessions(1, "x25519-b", engine)
    with pytest.raises(UnknownRecipient):
        Opener([counting], engine=engine).open(foreign)
    assert counting.unwrapped == 1


def test_nothing_public_that_is_wrong_costs_an_unwrap(engine, counting):
    opener = Opener([counting], engine=engine)
    sealer = Sealer([key("x25519-a").public_key], engine=engine)
    envelope, batch, stream = sealer.seal(b"r"), sealer.seal_batch([b"r"]), upload(sealer, b"r")
    for call, data in (
        (opener.open, batch),
        (opener.open, envelope[:170]),
        (opener.open, envelope[:100]),
        (opener.open, envelope[:130] + b"\x07" + envelope[131:]),
        (opener.open_batch, batch + b"x"),
        (opener.open_batch, batch[:-1]),
        (opener.open_batch, envelope),
        (lambda d: opener.reader(io.BytesIO(d)), stream[:180]),
        (lambda d: opener.reader(io.BytesIO(d)), envelope),
    ):
        with pytest.raises(OpenError):
            call(data)
    assert counting.unwrapped == 0

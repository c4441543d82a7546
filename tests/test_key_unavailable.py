# SPDX-License-Identifier: Apache-2.0
"""A key that is away is no fault of the data: `KeyUnavailable` goes through, all else does not."""

import io

import pytest

from upseal import KeyUnavailable, Opener, OpenError, PrivateKey, Sealer

KEY = PrivateKey.generate()


class Remote:
    """A key elsewhere: it works, or raises what it is told to."""

    suite, key_id = KEY.suite, KEY.key_id
    raises = None

    def unwrap(self, wrapped):
        if self.raises is not None:
            raise self.raises
        return KEY.unwrap(wrapped)


def sealed(data):
    """Of a new session each."""
    return Sealer([KEY.public_key]).seal(data)


def test_every_way_of_opening_lets_it_through_and_works_again():
    remote = Remote()
    opener = Opener([remote])
    known = sealed(b"known")
    assert opener.open(known) == b"known"
    batch = Sealer([KEY.public_key]).seal_batch([b"a"])
    upload = io.BytesIO()
    with Sealer([KEY.public_key]).writer(upload) as writer:
        writer.write(b"upload")
    one, two = sealed(b"1"), sealed(b"2")
    ways = [
        (lambda: opener.open(one), b"1"),
        (lambda: opener.open_many([one, known, two]), [b"1", b"known", b"2"]),
        (lambda: opener.open_many([known, two]), [b"known", b"2"]),
        (lambda: list(opener.open_batch(batch)), [b"a"]),
        (lambda: opener.reader(io.BytesIO(upload.getvalue())).read(), b"upload"),
    ]
    for way, expected in ways:
        opener = Opener([remote])
        opener.open(known)
        remote.raises = KeyUnavailable("away")
        with pytest.raises(KeyUnavailable, match="away"):
            way()
        assert opener.open(known) == b"known"
        remote.raises = None
        assert way() == expected


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), RuntimeError("x"), KeyError(1)])
def test_whatever_else_a_key_raises_is_an_open_error(error):
    remote = Remote()
    remote.raises = error
    with pytest.raises(OpenError):
        Opener([remote]).open(sealed(b"x"))
    (found,) = Opener([remote]).open_many([sealed(b"x")])
    assert isinstance(found, OpenError)


def test_it_is_no_open_error_itself():
    assert not issubclass(KeyUnavailable, OpenError)

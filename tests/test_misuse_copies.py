# SPDX-License-Identifier: Apache-2.0
"""What must not be there twice is neither copied nor pickled, and says so."""

import copy
import io
import pickle

import pytest
from support import Opener, Sealer, drain, pattern, upload

from upseal import (
    Limits,
    OpenError,
    Padding,
    PublicKey,
    Truncated,
    UnknownRecipient,
    UnsupportedFormat,
)
from upseal.engine.sizes import CHUNK

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {n}": lambda thing, n=n: pickle.dumps(thing, n) for n in range(6)},
}


@pytest.fixture
def things(engine, key):
    sealer, opener = Sealer([key.public_key], engine=engine), Opener([key], engine=engine)
    sealer.seal(b"")  # a session is there
    return {
        "sealer": sealer,
        "opener": opener,
        "writer": sealer.writer(io.BytesIO()),
        "reader": opener.reader(io.BytesIO(upload(sealer, b""))),
        "key": key,
    }


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["sealer", "opener", "writer", "reader", "key"])
def test_what_has_keys_is_not_copied(things, name, how):
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        COPIES[how](things[name])
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        COPIES[how]({"deep": [things[name]]}) if how != "copy" else copy.copy(things[name])


def test_a_copied_writer_would_seal_other_bytes_under_a_used_nonce(sealer, opener):
    """So there is none: a copy had the key and the place of the first one."""
    out = io.BytesIO()
    writer = sealer.writer(out)
    with pytest.raises(TypeError):
        twin = copy.copy(writer)
        twin.write(bytes(16 * CHUNK))
    writer.write(pattern(16 * CHUNK))
    writer.close()
    assert drain(opener, out.getvalue(), step=CHUNK) == (pattern(16 * CHUNK), None)


def test_subclasses_are_no_way_round(key):
    class Mine(Sealer):
        def __getstate__(self):
            return {}

    with pytest.raises(TypeError, match="a Mine cannot be copied"):
        copy.copy(Mine([key.public_key]))


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    "error",
    [
        OpenError(),
        OpenError("what is wrong", 17),
        Truncated("ends inside the header", 3),
        UnsupportedFormat("no", 0),
        UnknownRecipient([(32, b"8 bytes.")]),
    ],
    ids=repr,
)
def test_errors_come_back_from_other_processes_as_they_were(error, protocol):
    for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_what_is_only_settings_is_copied(sealer):
    limits = Limits(5, 6)
    for thing in (limits, Padding.PADME, sealer.cipher):
        assert pickle.loads(pickle.dumps(thing)) == copy.deepcopy(thing) == thing


def test_a_public_key_goes_elsewhere_as_pem(key):
    assert PublicKey.from_pem(pickle.loads(pickle.dumps(key.public_key.to_pem()))) == key.public_key

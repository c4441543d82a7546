# SPDX-License-Identifier: Apache-2.0
"""Genuine parts, put together in another way, are refused.

`generate` and `reference` of tests/vectors build the forgeries, with all that depends on the
changed part made again to fit: they share no code with the product.
"""

import io
import struct
from itertools import pairwise

import generate
import pytest
import reference
from support import Opener, Sealer, drain, key, load, open_any, pattern, upload

from upseal import OpenError, UnknownRecipient
from upseal.core import header as headers
from upseal.core.bodies import parse_batch
from upseal.engine.sizes import SEALED_CHUNK

SECRET = bytes(range(32))
NONCE = bytes(range(100, 124))


def public(name):
    stored = load("keys")[name]
    return reference.Key(stored["suite_id"], stored["private_pem"])


def entry(name, secret=SECRET, wrap_with=None):
    holder = public(name)
    wrapped = generate.Recipients.wrap_now(public(wrap_with or name), secret)
    return generate.make_entry(holder.suite, holder.key_id, wrapped)


def refused(opener, kind, data, context=b"", error=OpenError):
    with pytest.raises(OpenError) as caught:
        open_any(opener, kind, data, context)
    assert type(caught.value) is error


def taken_apart(batch):
    """Everything before the table, the table's lengths, and the records."""
    at = len(headers.parse(batch).raw)
    parts = parse_batch(memoryview(batch), at, batch[at] >= 0x80)
    lengths = [b - a for a, b in pairwise(parts.ends)]
    records, place = [], 0
    for length in lengths:
        records.append(bytes(parts.records[place : place + length]))
        place += length
    return batch[: at + 25], records


def put_together(front, records):
    table = struct.pack(f">{len(records) + 1}I", len(records), *map(len, records))
    return front + table + b"".join(records)


def test_taking_apart_and_putting_together_changes_nothing(sealer):
    # Without this the tests below might refuse their own mistakes.
    batch = sealer.seal_batch([b"a", b"bb", b""])
    assert put_together(*taken_apart(batch)) == batch


def test_records_cannot_be_moved_doubled_dropped_or_added_within_a_batch(engine, cipher, key):
    sealer = Sealer([key.public_key], cipher=cipher, engine=engine)
    opener = Opener([key], engine=engine)
    front, (a, b, c) = taken_apart(sealer.seal_batch([b"one", b"two", b"three"]))
    assert list(opener.open_batch(put_together(front, [a, b, c]))) == [b"one", b"two", b"three"]
    for forged in (
        [b, a, c],
        [c, b, a],
        [a, b, b],
        [a, a, c],
        [a, b],
        [b, c],
        [a, b, c, c],
        [a, b, c, a],
        [a],
    ):
        refused(opener, "batch", put_together(front, forged))


def test_records_cannot_be_moved_between_batches_of_one_session(engine, cipher, key):
    sealer = Sealer([key.public_key], cipher=cipher, engine=engine)
    opener = Opener([key], engine=engine)
    front, (a, b) = taken_apart(sealer.seal_batch([b"one", b"two"]))
    other_front, (c, d) = taken_apart(sealer.seal_batch([b"one", b"two"]))
    assert front != other_front
    for forged in ([a, d], [c, b], [c, d]):
        refused(opener, "batch", put_together(front, forged))
    refused(opener, "batch", put_together(other_front, [a, b]))


def test_headers_cannot_be_swapped_between_sessions(engine, key):
    opener = Opener([key], engine=engine)
    one, two = (Sealer([key.public_key], cipher=1, engine=engine) for _ in range(2))
    for kind, seal in (
        ("envelope", lambda s: s.seal(b"r")),
        ("batch", lambda s: s.seal_batch([b"r"])),
        ("upload", lambda s: upload(s, b"r")),
    ):
        a, b = seal(one), seal(two)
        size = len(headers.parse(a).raw)
        refused(opener, kind, a[:size] + b[size:])
        # The header up to its commitment, and the commitment, cannot be of two sessions either.
        refused(opener, kind, a[: size - 32] + b[size - 32 :])


@pytest.mark.parametrize("length", [0, 1, 16, 31, 33, 64, 96])
@pytest.mark.parametrize("suite", ["x25519-a", "p256-a", "rsa2048-a"])
def test_a_secret_of_another_length_opens_nothing(engine, suite, length):
    # Commitment, keys and tag fit the wrong secret: whoever does not look opens it. With HPKE the
    # length of what is wrapped shows outside already.
    secret = pattern(length)
    session = generate.Session([entry(suite, secret)], secret)
    forged = generate.envelope(session, NONCE, b"r", b"")
    refused(Opener([key(suite)], engine=engine), "envelope", forged)


def test_the_forgers_tools_make_good_envelopes(engine):
    session = generate.Session([entry("x25519-a"), entry("p256-a")], SECRET)
    good = generate.envelope(session, NONCE, b"r", b"c")
    for name in ("x25519-a", "p256-a"):
        assert Opener([key(name)], engine=engine).open(good, b"c") == b"r"


def test_a_recipient_named_twice_is_refused(engine):
    session = generate.Session([entry("x25519-a"), entry("x25519-a")], SECRET)
    forged = generate.envelope(session, NONCE, b"r", b"")
    refused(Opener([key("x25519-a")], engine=engine), "envelope", forged)


def test_only_the_entry_of_an_openers_own_key_is_tried(engine):
    # Our entry holds a secret for somebody else, his entry one for us: neither can be used.
    session = generate.Session(
        [entry("x25519-a", wrap_with="x25519-b"), entry("x25519-b", wrap_with="x25519-a")], SECRET
    )
    forged = generate.envelope(session, NONCE, b"r", b"")
    for name in ("x25519-a", "x25519-b"):
        refused(Opener([key(name)], engine=engine), "envelope", forged)


def test_a_replaced_entry_is_seen_by_every_recipient(engine):
    genuine = Sealer([key("x25519-a").public_key, key("x25519-b").public_key], engine=engine)
    data = genuine.seal(b"r")
    replaced = data[:6] + entry("x25519-r01") + data[98:]
    both = Opener([key("x25519-a")], engine=engine), Opener([key("x25519-b")], engine=engine)
    refused(both[0], "envelope", replaced, error=UnknownRecipient)
    refused(both[1], "envelope", replaced)
    # The same key, but a secret of the forger's own.
    refused(both[0], "envelope", data[:6] + entry("x25519-a") + data[98:])
    refused(both[1], "envelope", data[:6] + entry("x25519-a") + data[98:])


def test_two_recipients_never_get_different_reports(engine):
    # Each entry holds another secret; the commitment can only be of one of them.
    other = bytes(32)
    session = generate.Session([entry("x25519-a"), entry("x25519-b", other)], SECRET)
    forged = generate.envelope(session, NONCE, b"r", b"")
    assert Opener([key("x25519-a")], engine=engine).open(forged) == b"r"
    refused(Opener([key("x25519-b")], engine=engine), "envelope", forged)


def test_kinds_cannot_be_confused(opener, sealer):
    blobs = {
        "envelope": sealer.seal(b"r" * 200),
        "batch": sealer.seal_batch([b"r" * 200]),
        "upload": upload(sealer, b"r" * 200),
    }
    for kind, data in blobs.items():
        at = len(headers.parse(data).raw)
        for other in set(blobs) - {kind}:
            refused(opener, other, data)
        for code in {1, 2, 3, 0x81, 0x82} - {data[at]}:
            changed = data[:at] + bytes([code]) + data[at + 1 :]
            for call in blobs:
                with pytest.raises(OpenError):
                    open_any(opener, call, changed)


def test_chunks_cannot_be_reordered_doubled_or_dropped(engine, cipher, key):
    sealer = Sealer([key.public_key], cipher=cipher, engine=engine)
    opener = Opener([key], engine=engine)
    truth = pattern(4 * 16384 + 100)
    data = upload(sealer, truth)
    front = len(data) - len(truth) - 5 * 16
    pieces = [data[at : at + SEALED_CHUNK] for at in range(front, len(data), SEALED_CHUNK)]
    assert data[:front] + b"".join(pieces) == data
    for order in (
        [1, 0, 2, 3, 4],
        [0, 2, 1, 3, 4],
        [0, 0, 2, 3, 4],
        [0, 1, 1, 2, 3, 4],
        [0, 1, 2, 4],
        [1, 2, 3, 4],
        [4],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 3, 4],
        [0, 1, 2, 3, 4, 4],
    ):
        forged = data[:front] + b"".join(pieces[i] for i in order)
        from support import Pipe

        for wrap in (io.BytesIO, Pipe):
            got, error = drain(opener, forged, wrap=wrap)
            assert error is not None
            assert truth.startswith(got)


def test_chunks_cannot_be_taken_from_another_upload_of_the_session(opener, sealer):
    a, b = upload(sealer, pattern(20000)), upload(sealer, pattern(20000))
    front = len(a) - 20000 - 32
    refused(opener, "upload", a[:front] + b[front:])
    refused(opener, "upload", a[: front + SEALED_CHUNK] + b[front + SEALED_CHUNK :])
    # Nor can the front be: salt and commitment of one, header of the same.
    refused(opener, "upload", a[: front - 32] + b[front - 32 :])

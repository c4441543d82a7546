# SPDX-License-Identifier: Apache-2.0
"""Reports in packed form (Arrow's layout), many envelopes at once, and the Batch that comes out."""

from array import array
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Opener, Sealer, blob, key, vector

from upseal import Batch, OpenError, Truncated, UnknownRecipient, UnsupportedFormat
from upseal.core.alike import OTHER, open_alike

REPORTS = [b"", b"one", b"", b"three" * 100, b"end"]


def packed(reports, code="q", start=0):
    offsets = array(code, [start])
    for report in reports:
        offsets.append(offsets[-1] + len(report))
    return bytes(start) + b"".join(reports), offsets


def unpack(values, offsets):
    return [bytes(values[a:b]) for a, b in pairwise(offsets)]


@pytest.mark.parametrize("code", ["i", "q"])
@pytest.mark.parametrize("start", [0, 7])
def test_packed_reports_of_both_widths_make_batches_and_envelopes(sealer, opener, code, start):
    # Not beginning at 0 is what a slice of an Arrow array looks like.
    values, offsets = packed(REPORTS, code, start)
    batch = sealer.seal_packed(values, offsets, b"c")
    assert list(opener.open_batch(batch, b"c")) == REPORTS
    got, ends = opener.open_packed(batch, b"c")
    assert unpack(got, ends.tolist()) == REPORTS
    many, where = sealer.seal_many_packed(values, offsets, b"c")
    envelopes = unpack(many, where.tolist())
    assert [opener.open(e, b"c") for e in envelopes] == REPORTS
    reports, ends, errors = opener.open_many_packed(many, where, b"c")
    assert (unpack(reports, ends.tolist()), errors) == (REPORTS, {})


def test_packed_and_separate_reports_are_one(sealer, opener):
    values, offsets = packed(REPORTS)
    assert opener.open_batch(sealer.seal_packed(values, offsets)) == opener.open_batch(
        sealer.seal_batch(REPORTS)
    )


def test_nothing_packed_gives_nothing(sealer, opener):
    for code in "iq":
        values, offsets = sealer.seal_many_packed(b"", array(code, [0]))
        assert (bytes(values), offsets.tolist()) == (b"", [0])
        values, offsets, errors = opener.open_many_packed(b"", array(code, [0]))
        assert (bytes(values), offsets.tolist(), errors) == (b"", [0], {})


def test_packed_calls_give_their_work_space_back(sealer, opener, engine):
    if engine.name == "portable":
        pytest.skip("has none")
    values, offsets = packed(REPORTS)
    made = sealer.seal_many_packed(values, offsets)
    opener.open_many_packed(*made)
    idle = list(engine._idle)
    assert idle
    for call, arguments in (
        (sealer.seal_many_packed, (values, offsets)),
        (opener.open_many_packed, made),
        (partial(open_alike, opener), made),
    ):
        call(*arguments)
        assert engine._idle == idle  # the very same


@pytest.mark.parametrize(
    "offsets", [[0, 3, 2], [-1, 3], [0, 7], [3, 0], [0, 2**40], [-(2**62), 2**62], [5, 5, 7]]
)
@pytest.mark.parametrize("call", ["seal_packed", "seal_many_packed"])
def test_offsets_that_fall_or_leave_the_values_are_refused(sealer, call, offsets):
    with pytest.raises(ValueError, match=r".+"):
        getattr(sealer, call)(b"report", array("q", offsets))


@pytest.mark.parametrize("offsets", [[0, 3, 2], [-1, 3], [0, 7], [3, 0], [0, 2**40], [-3, -1]])
def test_offsets_that_fall_or_leave_the_envelopes_are_refused(opener, offsets):
    # Python's slices would quietly take any of these.
    with pytest.raises(ValueError, match=r".+"):
        opener.open_many_packed(b"report", array("q", offsets))


@pytest.mark.parametrize(
    ("offsets", "error"),
    [
        (array("q"), ValueError),
        (array("Q", [0, 1]), TypeError),
        (array("I", [0, 1]), TypeError),
        (array("h", [0, 1]), TypeError),
        (array("d", [0, 1]), TypeError),
        (b"\0" * 16, TypeError),
        ([0, 1], TypeError),
        (None, TypeError),
        (memoryview(array("q", [0, 0, 1, 1]))[::2], TypeError),
        (memoryview(bytes(32)).cast("q", (2, 2)), TypeError),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, type) else value.__name__,
)
def test_offsets_must_be_flat_signed_integers(sealer, opener, offsets, error):
    for call in (sealer.seal_packed, sealer.seal_many_packed, opener.open_many_packed):
        with pytest.raises(error):
            call(b"report", offsets)


def test_offsets_may_be_marked_with_their_byte_order(sealer, opener):
    # numpy and pyarrow say "<i" or "l" for what array says "i" or "q".
    offsets = memoryview(array("q", [0, 2, 6]))
    for code in ("l", "q"):
        data = sealer.seal_packed(b"report", offsets.cast("B").cast(code))
        assert list(opener.open_batch(data)) == [b"re", b"port"]


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=20), st.integers(0, 5))
def test_random_reports_survive_every_packed_way(reports, start):
    sealer = Sealer([key("x25519-a").public_key])
    opener = Opener([key("x25519-a")])
    values, offsets = packed(reports, "q", start)
    assert list(opener.open_batch(sealer.seal_packed(values, offsets))) == reports
    made = sealer.seal_many_packed(values, offsets)
    got, ends, errors = opener.open_many_packed(*made)
    assert (unpack(got, ends.tolist()), errors) == (reports, {})


# -- open_alike ----------------------------------------------------------------------


def test_what_begins_as_the_first_does_is_opened_and_all_else_left_alone(sealer, opener, engine):
    other = Sealer([key("x25519-a").public_key], engine=engine)
    forged = sealer.seal(b"no")
    rows = [
        sealer.seal(b"one", b"c"),
        other.seal(b"of another session", b"c"),
        forged[:-1] + bytes([forged[-1] ^ 1]),
        sealer.seal(b"of another context"),
        b"",
        sealer.seal(b"two", b"c"),
    ]
    values, offsets = packed(rows, start=3)
    opened = open_alike(opener, values, offsets, b"c")
    assert unpack(opened.values, opened.offsets) == [b"one", b"", b"", b"", b"", b"two"]
    assert [0 if s == 0 else "other" if s == OTHER else "no" for s in opened.status] == [
        0, "other", "no", "no", "other", 0
    ]  # fmt: skip
    with pytest.raises(UnsupportedFormat):
        open_alike(opener, *packed([b"junk", rows[0]]))
    with pytest.raises(ValueError, match="no envelopes"):
        open_alike(opener, *packed([]))


# -- open_many --------------------------------------------------------------------


def mixture(engine, count):
    """Envelopes of three sessions, foreign, damaged and senseless ones; and what each must give."""
    first, second, padded = (Sealer([key("x25519-a").public_key], engine=engine) for _ in range(3))
    foreign = Sealer([key("x25519-b").public_key], engine=engine)
    good = first.seal(b"damaged later")
    made = []
    for i in range(count):
        report = b"%d" % i
        made += [
            (first.seal(report), report),
            (foreign.seal(report), UnknownRecipient),
            (second.seal(report), report),
            (good[:-1] + bytes([good[-1] ^ 1]), OpenError),
            (good[:150], Truncated),
            (b"junk", UnsupportedFormat),
            (padded.seal_batch([report]), OpenError),
            (b"", Truncated),
            (padded.seal(b""), b""),
        ]
    return [m[0] for m in made], [m[1] for m in made]


def test_each_envelope_has_its_own_result_in_its_own_place(engine, opener):
    envelopes, wanted = mixture(engine, 40)
    results = opener.open_many(envelopes)
    assert len(results) == len(envelopes)
    assert [type(r) if isinstance(r, OpenError) else r for r in results] == wanted
    # One by one gives just the same.
    for data, want in list(zip(envelopes, wanted, strict=True))[:18]:
        if isinstance(want, bytes):
            assert opener.open(data) == want
        else:
            with pytest.raises(want):
                opener.open(data)


def test_packed_results_say_which_envelopes_failed(engine, opener):
    envelopes, wanted = mixture(engine, 5)
    values, offsets = packed(envelopes)
    reports, ends, errors = opener.open_many_packed(values, offsets)
    assert {i: type(e) for i, e in errors.items()} == {
        i: w for i, w in enumerate(wanted) if not isinstance(w, bytes)
    }
    assert unpack(reports, ends.tolist()) == [w if isinstance(w, bytes) else b"" for w in wanted]


def test_open_many_of_nothing_is_nothing(opener):
    assert opener.open_many([]) == []


def test_open_many_takes_one_context_for_all(sealer, opener):
    made = [sealer.seal(b"a", b"x"), sealer.seal(b"b", b"y"), sealer.seal(b"c", b"x")]
    results = opener.open_many(made, b"x")
    assert results[::2] == [b"a", b"c"]
    assert type(results[1]) is OpenError


def test_a_single_envelope_instead_of_a_list_is_a_type_error(sealer, opener):
    envelope = sealer.seal(b"r")
    for call in (sealer.seal_many, sealer.seal_batch, opener.open_many):
        for wrong in (envelope, memoryview(envelope), "text"):
            with pytest.raises(TypeError):
                call(wrong)


# -- Batch ------------------------------------------------------------------------


def test_a_batch_is_a_sequence(sealer, opener):
    batch = opener.open_batch(sealer.seal_batch(REPORTS))
    assert isinstance(batch, Batch)
    assert isinstance(batch, Sequence)
    assert len(batch) == 5
    assert list(batch) == [batch[i] for i in range(5)] == REPORTS
    assert batch[-1] == b"end"
    assert batch[1:4] == REPORTS[1:4]
    assert batch[::-1] == REPORTS[::-1]
    assert list(reversed(batch)) == REPORTS[::-1]
    assert b"one" in batch
    assert b"two" not in batch
    assert (batch.index(b"three" * 100), batch.count(b"")) == (3, 2)
    assert type(batch[1]) is bytes
    for wrong in (5, -6):
        with pytest.raises(IndexError):
            batch[wrong]
    with pytest.raises(TypeError):
        batch["1"]


def test_a_batch_shows_its_packed_buffers(sealer, opener):
    batch = opener.open_batch(sealer.seal_batch(REPORTS))
    assert batch.offsets.format == "q"
    assert batch.offsets.tolist() == packed(REPORTS)[1].tolist()
    assert (batch.values.format, bytes(batch.values)) == ("B", b"".join(REPORTS))
    assert repr(batch) == "<Batch of 5 reports, 506 bytes>"


def test_batches_are_equal_by_their_reports(sealer, opener):
    one = opener.open_batch(sealer.seal_batch(REPORTS))
    same = opener.open_batch(sealer.seal_batch(REPORTS))
    moved = opener.open_batch(sealer.seal_batch([b"o", b"ne", b"", b"three" * 100, b"end"]))
    assert one == same
    assert one == REPORTS
    assert one == tuple(REPORTS)
    assert one != moved
    assert one != REPORTS[:-1]
    assert one != b"".join(REPORTS)
    with pytest.raises(TypeError):
        hash(one)


def test_padding_leaves_no_trace_in_the_packed_buffers(opener):
    v = vector("batch-padded-aes")
    values, offsets = opener.open_packed(blob(v), bytes.fromhex(v["context"]))
    assert bytes(values) == bytes.fromhex("".join(v["reports"]))
    assert offsets[-1] == len(values)

# SPDX-License-Identifier: Apache-2.0
"""Reports in whatever a caller has them: generators, lists that change, sequences that lie."""

import io
import threading
from collections import deque

import pytest
from support import Opener, Sealer

from upseal import Limits
from upseal.core import header as headers

REPORTS = [b"", b"one", b"two" * 100, b"last"]
FORMS = {
    "generator of bytes": lambda r: (x for x in r),
    "generator of views": lambda r: (memoryview(x) for x in r),
    "views, then bytes": lambda r: (memoryview(x) if i < 2 else x for i, x in enumerate(r)),
    "map": lambda r: map(bytearray, r),
    "deque": deque,
    "tuple": tuple,
    "keys of a dictionary": lambda r: dict.fromkeys(r).keys(),
    "iterator": iter,
}


@pytest.mark.parametrize("form", FORMS)
def test_what_gives_each_report_only_once_loses_none(sealer, opener, form):
    # Looking whether all are bytes took the first one out of an iterator.
    make = FORMS[form]
    assert opener.open_many(sealer.seal_many(make(REPORTS))) == REPORTS
    assert list(opener.open_batch(sealer.seal_batch(make(REPORTS)))) == REPORTS
    envelopes = sealer.seal_many(REPORTS)
    assert opener.open_many(make(envelopes)) == REPORTS


@pytest.mark.parametrize("call", ["seal_many", "seal_batch"])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_a_generator_that_raises_spends_nothing(engine, key, opener, call, error):
    sealer = Sealer([key.public_key], Limits(max_messages=4), engine=engine)
    first = headers.parse(sealer.seal(b"")).raw

    def failing():
        yield from REPORTS
        raise error

    # Python makes a RuntimeError of a StopIteration in a generator.
    with pytest.raises(RuntimeError if error is StopIteration else error):
        getattr(sealer, call)(failing())
    with pytest.raises(TypeError):
        getattr(sealer, call)(r for r in [b"", None, b""])
    abandoned = (r for r in REPORTS)
    next(abandoned)
    abandoned.close()
    if call == "seal_many":
        assert sealer.seal_many(abandoned) == []
    else:
        with pytest.raises(ValueError, match="1 to 2"):
            sealer.seal_batch(abandoned)
    three = sealer.seal_many([b"r"] * 3)
    assert {headers.parse(e).raw for e in three} == {first}
    assert opener.open_many(three) == [b"r"] * 3


def test_a_generator_may_use_the_very_sealer_it_feeds(engine, key, opener):
    sealer = Sealer([key.public_key], Limits(max_messages=5), engine=engine)
    inner = []

    def reports(depth):
        for i in range(6):
            inner.append(sealer.seal(b"%d %d" % (depth, i)))
            if depth:
                inner.extend(sealer.seal_many(reports(depth - 1)))
            with sealer.writer(io.BytesIO()) as writer:
                writer.write(b"an upload")
            yield b"%d %d" % (depth, i)

    batch = sealer.seal_batch(reports(2))
    assert list(opener.open_batch(batch)) == [b"2 %d" % i for i in range(6)]
    opened = opener.open_many(inner)
    assert len(opened) == 6 + 2 * 36 + 2 * 216
    assert all(isinstance(report, bytes) for report in opened)
    nonces = {(headers.parse(e).raw, e[len(headers.parse(e).raw) + 1 :][:24]) for e in inner}
    assert len(nonces) == len(inner)


class Lying(list):
    """Says that it has so many."""

    says = 0

    def __len__(self):
        return self.says


@pytest.mark.parametrize("says", [0, 1, 3, 10, "four"])
def test_a_sequence_that_lies_about_its_length_is_taken_for_what_it_gives(sealer, opener, says):
    reports = Lying(REPORTS)
    reports.says = says
    assert opener.open_many(sealer.seal_many(reports)) == REPORTS
    assert list(opener.open_batch(sealer.seal_batch(reports))) == REPORTS


@pytest.mark.parametrize("says", [-1, 2**40, 2**70])
def test_a_sequence_whose_length_is_none_is_an_error(sealer, says):
    reports = Lying(REPORTS)
    reports.says = says
    for call in (sealer.seal_many, sealer.seal_batch):
        with pytest.raises((ValueError, OverflowError, MemoryError)):
            call(reports)


@pytest.mark.parametrize("name", ["seal_many", "seal_batch"])
def test_a_list_that_others_lengthen_and_shorten_meanwhile_gives_what_it_was(sealer, opener, name):
    done, reports = threading.Event(), [b"%d" % i for i in range(200)]

    def change():
        while not done.is_set():
            reports.append(b"more")
            reports.append(memoryview(b"a view"))
            reports.pop()
            reports.pop()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(60):
            sealed = getattr(sealer, name)(reports)
            opened = list((opener.open_many if name == "seal_many" else opener.open_batch)(sealed))
            assert opened[:200] == [b"%d" % i for i in range(200)]
            assert opened[200:] in ([], [b"more"], [b"more", b"a view"])
    finally:
        done.set()
        thread.join()


def test_groups_left_half_way_cost_the_engine_nothing(engine, key):
    """What an engine gives group by group may be forgotten after the first."""
    from upseal.engine.records import Listed

    reports = Listed([bytes(100_000)] * 12)
    record_key = engine.record_key(1, bytes(32))
    for _ in range(3):
        sealing = iter(engine.seal_envelopes(record_key, bytes(24), b"p", b"", reports, False))
        next(sealing)
        sealing.close()
        sealing = iter(engine.seal_envelopes(record_key, bytes(24), b"p", b"", reports, False))
        next(sealing)
        with pytest.raises(KeyError):
            sealing.throw(KeyError)
        del sealing
    opener, sealer = Opener([key], engine=engine), Sealer([key.public_key], engine=engine)
    many = [b"%d" % i * 50_000 for i in range(12)]
    assert opener.open_many(sealer.seal_many(many)) == many

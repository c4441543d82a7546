# SPDX-License-Identifier: Apache-2.0
"""Units and bodies: whole or refused, and the same bytes when written again."""

import contextlib
import hashlib
import os
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upseal import Opener, PrivateKey, Sealer
from upseal.fleet.identity import KINDS, SigningKey
from upseal.fleet.policy import Level, Reason
from upseal.fleet.statements import signed
from upseal.fleet.units import (
    BODIES_MAX,
    ROWS_MAX,
    MalformedUnits,
    Unit,
    body_id,
    body_kind,
    bundle,
    clear_body,
    fleet_context,
    make_unit,
    parse_bundle,
    parse_clear,
    parse_rows,
    unit_rows,
)

KEYS = {kind: SigningKey.generate(kind) for kind in KINDS}
KEY = KEYS["ed25519"]
DEPLOYMENT, EPOCH = b"d" * 16, b"e" * 16
RECORDS = [b"one", b"", b"three" * 100]


def unit(records=RECORDS, sequence=1, key=KEY, **changes):
    said = {"level": Level.OPTIONAL, "reason": Reason.SEALED, "milliseconds": 5}
    return make_unit(key, DEPLOYMENT, EPOCH, sequence, records=records, **{**said, **changes})


UNITS = [unit(), unit([], 2), unit([b"x"], 3), unit([os.urandom(200)] * 4, 4)]
ROWS = unit_rows(UNITS)


class TestUnit:
    @pytest.mark.parametrize("kind", KINDS)
    def test_it_verifies(self, kind):
        for records in (RECORDS, [], [b""]):
            made = unit(records, key=KEYS[kind])
            assert made.verify(KEYS[kind].public)
            assert made.whole()
            assert made.beacon == (not records)

    def test_its_names(self):
        made = unit()
        assert made.triple == (KEY.public.agent_id, EPOCH, 1)
        assert made.digest == hashlib.sha256(made.statement.encode()).digest()

    def test_changed_records_are_seen(self):
        made = unit()
        for records in (
            [b"One", *RECORDS[1:]], RECORDS[:2], [*RECORDS, b""], RECORDS[::-1], [],
            [b"on", b"e", RECORDS[2]], [b"one", RECORDS[2], b""],
        ):  # fmt: skip
            assert not replace(made, records=records).verify(KEY.public)
            assert not replace(made, records=records).whole()

    def test_each_bit_of_the_signed_record_counts(self):
        made = unit()
        for bit in range(0, len(made.signed) * 8):
            signed = bytearray(made.signed)
            signed[bit // 8] ^= 1 << bit % 8
            # As it comes in, and with the statement it was made of beside it.
            assert not Unit(made.statement, bytes(signed), RECORDS).verify(KEY.public)
            with contextlib.suppress(MalformedUnits):
                (again,) = parse_rows([bytes(signed), *RECORDS])
                assert not again.verify(KEY.public)

    def test_another_statement_beside_the_signed_one(self):
        made = unit()
        other = replace(made.statement, sequence=9)
        assert not Unit(other, made.signed, RECORDS).verify(KEY.public)

    @pytest.mark.parametrize("count", [0, 2, 4])
    def test_a_count_that_is_not_that_of_the_records(self, count):
        statement = replace(unit().statement, count=count)
        made = Unit(statement, signed(statement, KEY), RECORDS)
        assert KEY.public.verify(made.signed[:-64], made.signed[-64:])
        assert not made.verify(KEY.public)
        assert not made.whole()

    def test_another_key(self):
        assert not unit().verify(SigningKey.generate().public)

    def test_signed_for_another_agent(self):
        # Its own signature, under a statement that names somebody else.
        stranger = SigningKey.generate()
        encoded = unit().statement.encode()
        forged = Unit(unit().statement, encoded + stranger.sign(encoded), RECORDS)
        assert not forged.verify(stranger.public)
        assert not forged.verify(KEY.public)

    def test_signed_anew_it_is_at_the_same_place(self):
        first, again = unit(), unit(milliseconds=99, reason=Reason.NO_CERTIFICATE)
        assert first.triple == again.triple
        assert first.statement.digest == again.statement.digest
        assert first.digest != again.digest

    def test_too_many_records(self):
        with pytest.raises(ValueError, match="records"):
            unit([b""] * ROWS_MAX)


class TestRows:
    def test_they_lead_back(self):
        found = parse_rows(ROWS)
        assert [(u.statement, u.signed, list(u.records)) for u in found] == [
            (u.statement, u.signed, list(u.records)) for u in UNITS
        ]
        assert all(u.verify(KEY.public) for u in found)
        assert unit_rows(found) == ROWS

    def test_through_a_batch(self):
        key = PrivateKey.generate("x25519")
        body = Sealer([key.public_key]).seal_batch(ROWS, fleet_context(DEPLOYMENT))
        assert body_kind(body) == "sealed"
        found = parse_rows(Opener([key]).open_batch(body, fleet_context(DEPLOYMENT)))
        assert unit_rows(found) == ROWS
        assert all(u.verify(KEY.public) for u in found)

    def test_every_other_cut_is_seen(self):
        whole = {0}
        for made in UNITS:
            whole.add(max(whole) + 1 + len(made.records))
        for end in range(len(ROWS)):
            if end in whole - {0}:
                assert len(parse_rows(ROWS[:end])) == sorted(whole).index(end)
            else:
                with pytest.raises(MalformedUnits):
                    parse_rows(ROWS[:end])

    @given(st.integers(0, len(ROWS) - 1), st.integers(0, len(ROWS) - 1))
    def test_dropped_or_moved_rows_do_not_verify(self, at, to):
        dropped = [*ROWS[:at], *ROWS[at + 1 :]]
        moved = list(dropped)
        moved.insert(to, ROWS[at])
        for rows in (dropped, moved):
            with contextlib.suppress(MalformedUnits):
                found = parse_rows(rows)
                if rows != ROWS and all(u.verify(KEY.public) for u in found):
                    # What is left is whole units of ours: one dropped, or two that changed places.
                    assert {u.signed for u in found} <= {u.signed for u in UNITS}

    @given(st.lists(st.binary(max_size=200), max_size=8))
    def test_no_input_crashes(self, rows):
        for mixed in (rows, [UNITS[0].signed, *rows], [*rows, UNITS[1].signed]):
            with contextlib.suppress(MalformedUnits):
                assert unit_rows(parse_rows(mixed)) == mixed

    def test_views_do_as_well(self):
        found = parse_rows([memoryview(row) for row in ROWS])
        assert all(u.verify(KEY.public) for u in found)

    def test_nothing_is_no_unit(self):
        with pytest.raises(MalformedUnits):
            parse_rows([])

    def test_more_than_a_batch_holds(self):
        class Many(list):
            def __len__(self):
                return ROWS_MAX + 1

        with pytest.raises(MalformedUnits):
            parse_rows(Many())


bodies = st.lists(st.binary(max_size=80), min_size=1, max_size=6)


class TestClearBody:
    @given(bodies)
    def test_it_leads_back(self, rows):
        body = clear_body(rows)
        assert body_kind(body) == "clear"
        assert parse_clear(body) == rows
        assert parse_clear(memoryview(body)) == rows

    def test_the_bytes_of_the_specification(self):
        assert clear_body([b"ab", b""]) == b"UPC\x01" + bytes.fromhex("00000002 00000002") + (
            b"ab" + bytes(4)
        )

    @given(st.binary(max_size=60))
    def test_what_is_read_is_written_the_same(self, data):
        for body in (data, b"UPC\x01" + data, b"UPC\x01\0\0\0\1" + data, b"UPC\x01\0\0\0\2" + data):
            with contextlib.suppress(MalformedUnits):
                assert clear_body(parse_clear(body)) == body

    @given(bodies, st.integers(0, 500), st.integers(1, 255))
    def test_a_changed_body_is_another_or_none(self, rows, at, change):
        body = bytearray(clear_body(rows))
        body[at % len(body)] ^= change
        with contextlib.suppress(MalformedUnits):
            assert clear_body(parse_clear(bytes(body))) == bytes(body)

    def test_every_cut_is_seen(self):
        body = clear_body(ROWS)
        for end in range(len(body)):
            with pytest.raises(MalformedUnits):
                parse_clear(body[:end])
        with pytest.raises(MalformedUnits):
            parse_clear(body + b"\0")

    @pytest.mark.parametrize("count", [0, ROWS_MAX + 1, 2**32 - 1])
    def test_counts_are_checked_before_anything_is_made(self, count):
        with pytest.raises(MalformedUnits):
            parse_clear(b"UPC\x01" + struct.pack(">I", count) + bytes(64))

    def test_a_row_longer_than_a_record_may_be(self):
        long = bytes((16 << 20) + 1)
        with pytest.raises(ValueError):
            clear_body([long])
        with pytest.raises(MalformedUnits):
            parse_clear(b"UPC\x01" + struct.pack(">II", 1, len(long)) + long)
        assert parse_clear(clear_body([long[1:]])) == [long[1:]]

    def test_no_rows(self):
        with pytest.raises(ValueError):
            clear_body([])


class TestBundle:
    PARTS = (clear_body([b"a"]), b"USL\x01 whatever", clear_body([b"b", b"c"]))

    def test_it_leads_back(self):
        body = bundle(self.PARTS)
        assert body_kind(body) == "bundle"
        assert [bytes(part) for part in parse_bundle(body)] == list(self.PARTS)
        assert bundle(parse_bundle(body)) == body

    def test_it_is_not_copied(self):
        body = bundle(self.PARTS)
        assert all(part.obj is body for part in parse_bundle(body))

    def test_no_bundle_in_a_bundle(self):
        inner = bundle(self.PARTS)
        with pytest.raises(ValueError):
            bundle([inner])
        forged = b"UPB\x01" + struct.pack(">II", 1, len(inner)) + inner
        with pytest.raises(MalformedUnits):
            parse_bundle(forged)

    @pytest.mark.parametrize("part", [b"", b"UPC", b"nonsense", b"UPX\x01", b"USL\x02"])
    def test_only_bodies_in_it(self, part):
        with pytest.raises(ValueError):
            bundle([part])
        with pytest.raises(MalformedUnits):
            parse_bundle(b"UPB\x01" + struct.pack(">II", 1, len(part)) + part)

    @given(st.binary(max_size=80))
    def test_what_is_read_is_written_the_same(self, data):
        for body in (data, b"UPB\x01" + data, b"UPB\x01\0\0\0\1" + data):
            with contextlib.suppress(MalformedUnits):
                assert bundle(parse_bundle(body)) == body

    def test_every_cut_is_seen(self):
        body = bundle(self.PARTS)
        for end in range(len(body)):
            with pytest.raises(MalformedUnits):
                parse_bundle(body[:end])
        with pytest.raises(MalformedUnits):
            parse_bundle(body + b"\0")

    def test_none_or_too_many(self):
        for parts in ([], [self.PARTS[0]] * (BODIES_MAX + 1)):
            with pytest.raises(ValueError):
                bundle(parts)


class TestBodies:
    @given(st.binary(max_size=8))
    def test_kinds_go_by_the_first_bytes(self, data):
        kinds = {b"USL\x01": "sealed", b"UPC\x01": "clear", b"UPB\x01": "bundle"}
        for head, kind in kinds.items():
            assert body_kind(head + data) == kind
            assert body_kind(memoryview(head + data)) == kind
        if data[:4] not in kinds:
            with pytest.raises(ValueError):
                body_kind(data)

    def test_an_id_is_its_hash(self):
        assert body_id(b"USL\x01") == hashlib.sha256(b"USL\x01").digest()

# SPDX-License-Identifier: Apache-2.0
"""Statements and receipts, byte by byte."""

import contextlib
import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upseal.fleet.identity import KINDS, SigningKey
from upseal.fleet.policy import Level, Reason
from upseal.fleet.statements import (
    RECEIPT_CONTEXT,
    RECEIPT_LEN,
    RECORDS_MAX,
    SIGNED_LEN,
    STATEMENT_CONTEXT,
    STATEMENT_LEN,
    BadReceipt,
    Receipt,
    Statement,
    Status,
    fleet_context,
    open_receipt,
    records_digest,
    signed,
    signed_receipt,
)

DEPLOYMENT, EPOCH = bytes(range(16)), bytes(range(16, 32))
KEYS = {kind: SigningKey.generate(kind) for kind in KINDS}
KEY = KEYS["ed25519"]


def statement(**changes):
    said = Statement(
        DEPLOYMENT, KEY.public.agent_id, EPOCH, 7, 1_700_000_000_123, Level.OPTIONAL,
        Reason.NO_CERTIFICATE, 3, hashlib.sha256(b"x").digest(),
    )  # fmt: skip
    return replace(said, **changes)


ids = st.binary(min_size=16, max_size=16)
numbers = st.integers(0, 2**64 - 1)
statements = st.builds(
    Statement, ids, ids, ids, numbers, numbers, st.sampled_from(Level), st.sampled_from(Reason),
    st.integers(0, RECORDS_MAX), st.binary(min_size=32, max_size=32),
)  # fmt: skip


class TestStatement:
    def test_the_bytes_of_the_specification(self):
        said = statement()
        assert said.encode() == (
            b"upseal/v1 statement\0" + DEPLOYMENT + KEY.public.agent_id + EPOCH
            + struct.pack(">QQ", 7, 1_700_000_000_123) + bytes([1, 2]) + struct.pack(">I", 3)
            + hashlib.sha256(b"x").digest()
        )  # fmt: skip
        assert len(said.encode()) == STATEMENT_LEN == 122
        assert SIGNED_LEN == 186

    @given(statements)
    def test_it_leads_back(self, said):
        assert Statement.decode(said.encode()) == said
        assert Statement.decode(memoryview(said.encode())) == said

    @given(st.binary(min_size=STATEMENT_LEN, max_size=STATEMENT_LEN), st.booleans())
    def test_what_is_read_is_written_the_same(self, data, begun):
        if begun:
            data = STATEMENT_CONTEXT + data[len(STATEMENT_CONTEXT) :]
        with contextlib.suppress(ValueError):
            assert Statement.decode(data).encode() == data

    @given(statements, st.integers(0, STATEMENT_LEN * 8 - 1))
    def test_each_bit_counts(self, said, bit):
        data = bytearray(said.encode())
        data[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(ValueError):
            assert Statement.decode(bytes(data)) != said

    @pytest.mark.parametrize("size", [0, 1, STATEMENT_LEN - 1, STATEMENT_LEN + 1])
    def test_other_lengths_are_refused(self, size):
        data = statement().encode() + b"\0"
        with pytest.raises(ValueError):
            Statement.decode(data[:size])

    @pytest.mark.parametrize(
        ("at", "value"),
        [(0, b"U"), (19, b"\1"), (84, b"\3"), (84, b"\xff"), (85, b"\6"), (85, b"\xff"),
         (86, b"\x00\x10\x00\x00"), (86, b"\xff\xff\xff\xff")],
    )  # fmt: skip
    def test_values_out_of_range_are_refused(self, at, value):
        data = bytearray(statement().encode())
        data[at : at + len(value)] = value
        with pytest.raises(ValueError):
            Statement.decode(bytes(data))

    @pytest.mark.parametrize(
        "changes",
        [{"deployment": b""}, {"agent": bytes(15)}, {"epoch": bytes(17)}, {"sequence": -1},
         {"sequence": 2**64}, {"milliseconds": -1}, {"milliseconds": 2**64}, {"count": -1},
         {"count": RECORDS_MAX + 1}, {"digest": bytes(31)}, {"deployment": "x" * 16}],
    )  # fmt: skip
    def test_mistakes_are_seen_at_once(self, changes):
        with pytest.raises(ValueError):
            statement(**changes)

    def test_an_agent_signs_for_itself_only(self):
        with pytest.raises(ValueError, match="own"):
            signed(statement(agent=bytes(16)), KEY)

    @pytest.mark.parametrize("kind", KINDS)
    def test_signed(self, kind):
        key = KEYS[kind]
        said = statement(agent=key.public.agent_id)
        record = signed(said, key)
        assert len(record) == SIGNED_LEN
        assert record[:-64] == said.encode()
        assert key.public.verify(record[:-64], record[-64:])


class TestRecordsDigest:
    @given(st.lists(st.binary(max_size=300), max_size=20))
    def test_as_specified(self, records):
        plain = b"".join(struct.pack(">I", len(record)) + record for record in records)
        assert records_digest(records) == hashlib.sha256(plain).digest()
        assert records_digest([memoryview(r) for r in records]) == records_digest(records)

    @pytest.mark.parametrize(
        "sizes", [[65535, 65536, 65537], [1 << 20] * 3, [70_000] * 30, [1] * 9]
    )
    def test_long_ones_too(self, sizes):
        records = [bytes([i]) * size for i, size in enumerate(sizes)]
        plain = b"".join(struct.pack(">I", len(record)) + record for record in records)
        assert records_digest(records) == hashlib.sha256(plain).digest()

    def test_where_one_record_ends_counts(self):
        split = [[b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"abc", b""], [b"", b"abc"], []]
        assert len({records_digest(records) for records in split}) == len(split)


class TestReceipt:
    DIGEST = hashlib.sha256(b"statement").digest()
    KNOWN = {key.public.key_id: key.public for key in KEYS.values()}  # noqa: RUF012

    def receipt(self, status=Status.STORED, key=KEY):
        return signed_receipt(Receipt(DEPLOYMENT, self.DIGEST, status), key)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("status", Status)
    def test_it_leads_back(self, kind, status):
        data = self.receipt(status, KEYS[kind])
        assert len(data) == RECEIPT_LEN == 139
        opened = open_receipt(data, self.KNOWN, DEPLOYMENT)
        assert opened == Receipt(DEPLOYMENT, self.DIGEST, status)

    def test_the_bytes_of_the_specification(self):
        data = self.receipt(Status.DUPLICATE)
        assert data[:-64] == (
            KEY.public.key_id + b"upseal/v1 receipt\0" + DEPLOYMENT + self.DIGEST + b"\1"
        )
        assert KEY.public.verify(data[8:-64], data[-64:])

    @pytest.mark.parametrize("kind", KINDS)
    def test_each_bit_counts(self, kind):
        data = self.receipt(key=KEYS[kind])
        for bit in range(RECEIPT_LEN * 8):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(BadReceipt):
                open_receipt(bytes(changed), self.KNOWN, DEPLOYMENT)

    def test_truncated_or_longer(self):
        data = self.receipt()
        for size in range(RECEIPT_LEN):
            with pytest.raises(BadReceipt):
                open_receipt(data[:size], self.KNOWN, DEPLOYMENT)
        with pytest.raises(BadReceipt):
            open_receipt(data + b"\0", self.KNOWN, DEPLOYMENT)

    def test_of_another_deployment(self):
        with pytest.raises(BadReceipt):
            open_receipt(self.receipt(), self.KNOWN, bytes(16))

    def test_of_an_unknown_key(self):
        stranger = SigningKey.generate()
        with pytest.raises(BadReceipt):
            open_receipt(self.receipt(key=stranger), self.KNOWN, DEPLOYMENT)
        with pytest.raises(BadReceipt):
            open_receipt(self.receipt(), {}, DEPLOYMENT)

    def test_a_mapping_that_is_wrong_does_not_help(self):
        other = SigningKey.generate().public.key_id
        with pytest.raises(BadReceipt):
            open_receipt(other + self.receipt()[8:], {other: KEY.public}, DEPLOYMENT)

    def test_a_stranger_under_a_known_id(self):
        data = KEY.public.key_id + self.receipt(key=SigningKey.generate())[8:]
        with pytest.raises(BadReceipt):
            open_receipt(data, self.KNOWN, DEPLOYMENT)

    def test_a_status_of_the_future_is_not_taken_for_one_of_today(self):
        encoded = RECEIPT_CONTEXT + DEPLOYMENT + self.DIGEST + b"\4"
        with pytest.raises(BadReceipt):
            data = KEY.public.key_id + encoded + KEY.sign(encoded)
            open_receipt(data, self.KNOWN, DEPLOYMENT)

    def test_a_signature_over_a_statement_is_none_over_a_receipt(self):
        said = statement().encode()
        for encoded in (said, said[: RECEIPT_LEN - 72]):
            with pytest.raises(BadReceipt):
                data = KEY.public.key_id + encoded + KEY.sign(encoded)
                open_receipt(data, self.KNOWN, DEPLOYMENT)

    @given(st.binary(max_size=200))
    def test_no_input_crashes(self, data):
        for tail in (data, KEY.public.key_id + data):
            with pytest.raises(BadReceipt):
                open_receipt(tail, self.KNOWN, DEPLOYMENT)

    def test_what_an_agent_may_forget(self):
        assert [status for status in Status if status.held] == [Status.STORED, Status.DUPLICATE]

    @pytest.mark.parametrize("changes", [{"deployment": b""}, {"statement_digest": bytes(31)}])
    def test_mistakes_are_seen_at_once(self, changes):
        with pytest.raises(ValueError):
            replace(Receipt(DEPLOYMENT, self.DIGEST, Status.STORED), **changes)


def test_the_contexts_are_apart():
    assert fleet_context(DEPLOYMENT) == b"upseal/v1 fleet\0" + DEPLOYMENT
    contexts = (STATEMENT_CONTEXT, RECEIPT_CONTEXT, fleet_context(DEPLOYMENT))
    assert not any(a != b and a.startswith(b) for a in contexts for b in contexts)
    with pytest.raises(ValueError):
        fleet_context(b"short")

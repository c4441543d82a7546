# SPDX-License-Identifier: Apache-2.0
"""What is sealed opens again, whatever seals and whatever opens."""

import io

import pytest
from support import SUITES, Opener, Pipe, Sealer, drain, key, upload

from upseal import OpenError, Padding

REPORTS = [b"", b"one", b"", bytes(300), b"\x80", b"\x80\0\0"]


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_carries_every_kind_with_both_ciphers(engine, cipher, suite):
    recipient = key(f"{suite}-a")
    sealer = Sealer([recipient.public_key], cipher=cipher, engine=engine)
    opener = Opener([recipient], engine=engine)
    assert opener.open(sealer.seal(b"report", b"here"), b"here") == b"report"
    assert list(opener.open_batch(sealer.seal_batch(REPORTS, b"here"), b"here")) == REPORTS
    assert drain(opener, upload(sealer, bytes(40000), b"here"), b"here") == (bytes(40000), None)


@pytest.mark.parametrize("padding", [None, Padding.PADME])
def test_every_engine_opens_what_every_call_seals(engine, cipher, padding, key):
    sealer = Sealer([key.public_key], padding=padding, cipher=cipher, engine=engine)
    opener = Opener([key], engine=engine)
    assert [opener.open(sealer.seal(r)) for r in REPORTS] == REPORTS
    assert opener.open_many(sealer.seal_many(REPORTS)) == REPORTS
    assert [opener.open(e) for e in sealer.seal_many(REPORTS)] == REPORTS
    assert list(opener.open_batch(sealer.seal_batch(REPORTS))) == REPORTS


@pytest.mark.parametrize("size", [1, 15, 16, 17, 255, 4096, 65537, 1 << 20])
def test_reports_of_all_sizes_come_back(sealer, opener, size):
    report = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert opener.open(sealer.seal(report)) == report
    assert list(opener.open_batch(sealer.seal_batch([report, b"", report]))) == [
        report,
        b"",
        report,
    ]


def test_a_report_of_16_mib_is_the_longest(engine, cipher, key):
    sealer = Sealer([key.public_key], cipher=cipher, engine=engine)
    opener = Opener([key], engine=engine)
    most = bytes(1 << 24)
    assert opener.open(sealer.seal(most)) == most
    assert list(opener.open_batch(sealer.seal_batch([most]))) == [most]
    for call in (
        lambda: sealer.seal(most + b"x"),
        lambda: sealer.seal_many([b"", most + b"x"]),
        lambda: sealer.seal_batch([b"", most + b"x"]),
    ):
        with pytest.raises(ValueError, match="16 MiB"):
            call()


def test_a_padded_report_is_at_most_one_byte_short_of_16_mib(engine, key):
    sealer = Sealer([key.public_key], padding=Padding.PADME, engine=engine)
    opener = Opener([key], engine=engine)
    most = bytes((1 << 24) - 1)
    assert opener.open(sealer.seal(most)) == most
    for call in (sealer.seal, lambda r: sealer.seal_many([r]), lambda r: sealer.seal_batch([r])):
        with pytest.raises(ValueError, match="16 MiB"):
            call(most + b"\0")


def test_an_envelope_over_16_mib_is_refused_before_any_key_is_used(engine, sealer, key):
    # A sealer cannot make one, so the length alone must decide.
    long = sealer.seal(bytes(1 << 24)) + b"x"
    with pytest.raises(OpenError) as caught:
        Opener([key], engine=engine).open(long)
    assert caught.value.problem is not None


@pytest.mark.parametrize("context", [b"", b"\0", b"agent 7", bytes(70000)])
def test_a_context_must_be_named_again_to_open(sealer, opener, context):
    sealed = {
        "envelope": (sealer.seal(b"r", context), opener.open, b"r"),
        "batch": (
            sealer.seal_batch([b"r"], context),
            lambda *a: list(opener.open_batch(*a)),
            [b"r"],
        ),
        "upload": (
            upload(sealer, b"r", context),
            lambda data, c=b"": opener.reader(io.BytesIO(data), c).read(),
            b"r",
        ),
    }
    for data, call, want in sealed.values():
        assert call(data, context) == want
        for wrong in {b"", b"\0", context + b"\0", context[:-1], b"\x01" + context} - {context}:
            with pytest.raises(OpenError) as caught:
                call(data, wrong)
            assert type(caught.value) is OpenError


def test_every_one_of_several_recipients_opens_alone(engine):
    names = ["x25519-a", "p256-a", "rsa2048-a", "x25519-b"]
    sealer = Sealer([key(n).public_key for n in names], engine=engine)
    envelope, batch = sealer.seal(b"for all"), sealer.seal_batch([b"for", b"all"])
    stream = upload(sealer, b"for all")
    for name in names:
        opener = Opener([key(name)], engine=engine)
        assert opener.open(envelope) == b"for all"
        assert list(opener.open_batch(batch)) == [b"for", b"all"]
        assert drain(opener, stream) == (b"for all", None)


def test_sixteen_recipients_are_the_most(engine):
    keys = [key(f"x25519-r{i:02}") for i in range(1, 17)]
    envelope = Sealer([k.public_key for k in keys], engine=engine).seal(b"r")
    assert {Opener([k], engine=engine).open(envelope) for k in keys} == {b"r"}


def test_an_upload_comes_through_a_pipe_as_from_a_file(sealer, opener):
    data = bytes(range(251)) * 700
    sealed = upload(sealer, data, step=9999)
    for step in (1 << 30, 4096, 777):
        assert drain(opener, sealed, wrap=lambda d, step=step: Pipe(d, step)) == (data, None)
    assert drain(opener, sealed) == (data, None)


def test_a_large_batch_comes_back_in_order(sealer, opener):
    reports = [b"%d" % i for i in range(5000)]
    assert list(opener.open_batch(sealer.seal_batch(reports))) == reports
    assert opener.open_many(sealer.seal_many(reports)) == reports


def test_two_seals_of_one_report_differ(sealer):
    assert len({sealer.seal(b"same") for _ in range(100)}) == 100
    assert len(set(sealer.seal_many([b"same"] * 100))) == 100
    assert sealer.seal_batch([b"same"]) != sealer.seal_batch([b"same"])

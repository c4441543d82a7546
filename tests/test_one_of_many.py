# SPDX-License-Identifier: Apache-2.0
"""What a call gives must stay as it is when the next call uses the same memory again."""

import os
from types import SimpleNamespace

import pytest
import support


def test_one_envelope_a_call_is_nobody_elses(sealer, opener):
    reports = [b"%03d" % i for i in range(50)]
    envelopes = [sealer.seal_many([report])[0] for report in reports]
    assert len(set(map(id, envelopes))) == len(reports)
    assert opener.open_many(envelopes) == reports


def test_envelopes_that_fill_a_group_alone(sealer, opener):
    reports = [os.urandom(300_000) for _ in range(3)]  # each longer than what is sealed at a time
    assert opener.open_many(sealer.seal_many(reports)) == reports


def test_one_report_a_call_is_nobody_elses(sealer, opener):
    envelopes = [sealer.seal(b"%03d" % i) for i in range(50)]
    opened = [opener.open_many([envelope])[0] for envelope in envelopes]
    assert opened == [b"%03d" % i for i in range(50)]


def test_a_report_that_the_core_failed_to_seal_is_not_handed_out(monkeypatch):
    single = pytest.importorskip("upseal.engine.single")
    status, padded_len = single.lib.UPSEAL_EBACKEND, single.lib.upseal_padded_len
    broken = {"upseal_padded_len": padded_len, "upseal_seal_report": lambda *args: status}
    monkeypatch.setattr(single, "lib", SimpleNamespace(**broken))
    engine = support.engine("native[openssl]")
    sealer = support.Sealer([support.key("x25519-a").public_key], engine=engine)
    with pytest.raises(RuntimeError, match="status"):
        sealer.seal(b"report")

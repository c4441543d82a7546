# SPDX-License-Identifier: Apache-2.0
"""What public-key work costs: a session for each report, and first contact with many."""

import os

import subjects
from peers import hpke

from upseal import Limits, Opener, PrivateKey, Sealer
from upseal.core import header as headers

MANY = 200


def test_fresh_session_for_each_report(rows, engine, size, recipients):
    keys = [PrivateKey.generate("x25519").public_key for _ in range(recipients)]
    sealer = Sealer(keys, Limits(max_messages=1), engine=engine)
    name = f"fresh session, {size} B"
    rows(name, 1, size=size, recipients=recipients)(sealer.seal, os.urandom(size))


def test_bare_hpke_for_each_report(rows, size):
    peer = hpke.Hpke()
    rows(f"fresh session, {size} B", 1, size=size)(peer.seal, os.urandom(size))


def _strangers(engine):
    sealer = Sealer([subjects.key().public_key], Limits(max_messages=1), engine=engine)
    return [sealer.seal(os.urandom(1024)) for _ in range(MANY)]


def test_open_envelopes_of_as_many_sessions(rows, engine):
    sealed = _strangers(engine)

    def first_contact():
        return Opener([subjects.key()], engine=engine).open_many(sealed)

    reports = rows("first contact", MANY, size=1024)(first_contact)
    assert all(isinstance(report, bytes) for report in reports)


def test_asymmetric_work_of_those_alone(rows):
    wrapped = [headers.parse(e).entries[0].wrapped for e in _strangers(None)]
    private = subjects.key()._hpke

    def asymmetric():
        for secret in wrapped:
            hpke.SUITE.decrypt(secret, private, info=b"upseal/v1 session")

    rows("first contact", MANY, size=1024)(asymmetric)
